"""The command line of the recipe's scripts.

``python SCRIPT HPARAMS.yaml --key=value`` as in SpeechBrain, but whatever a
user can get wrong ends in one line that names the key or file, and what to do.
The log of a training also has where in the code such an error arose.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import ast
import contextlib
import gc
import io
import logging
import os
import re
import sys
import unicodedata
from collections.abc import Callable, Container

import speechbrain as sb
import torch
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.resolver import VersionedResolver
from speechbrain.utils.distributed import if_main_process
from speechbrain.utils.logger import get_logger
from speechbrain.utils.run_opts import HELP_TEXTS, RunOptions

from redimnet2_lobes.files.error_lines import one_line_errors
from redimnet2_lobes.files.settings import check_device

logger = get_logger(__name__)

# All run options of SpeechBrain that a command line can have.
RUN_OPTIONS: tuple[str, ...] = (
    *HELP_TEXTS,
    "jit_module_keys",
    "compile_module_keys",
)

# Of a value these are for YAML to read; lists and mappings are, too.
NOT_TEXT = [
    f"tag:yaml.org,2002:{kind}" for kind in ("int", "float", "bool", "null")
]
REFERENCE = re.compile("<[^>]*>")  # as in HyperPyYAML

# What torch.distributed says where another process is gone.
LOST_CONNECTION = re.compile("(closed|reset) by peer|Broken pipe")


def main_with_one_line_errors(
    function: Callable[[list[str]], str | None],
) -> None:
    """Runs a script, and ends it with one line on stderr where a user erred.

    Errors are treated as ``one_line_errors`` does. Where other processes wait
    for one that ends so, they end with one line as well. The function gets the
    arguments of the command line, and may return a line to end with, as one
    that has results, but not all.

    Example
    -------
    >>> def main(arguments):
    ...     raise ValueError("variant: unknown")
    >>> main_with_one_line_errors(main)
    Traceback (most recent call last):
    SystemExit: error: variant: unknown
    """
    # It warns of figures that no script here saves with torchvision.
    logging.getLogger("speechbrain.utils.train_logger").setLevel(logging.ERROR)
    try:
        with one_line_errors():
            line = function(sys.argv[1:])
    except RuntimeError as error:
        lost = LOST_CONNECTION.search(str(error))
        if not (lost and torch.distributed.is_initialized()):
            raise
        logger.debug("Where the error arose:", exc_info=True)
        sys.exit(
            "error: another process of this run has ended; its own message "
            "says why"
        )
    is_main = if_main_process()  # afterwards each would be
    if torch.distributed.is_initialized():
        # Its threads abort a process that ends while they wait for Python.
        gc.collect()  # what is wrapped holds the group too
        torch.distributed.destroy_process_group()
        if not is_main:  # which alone has files to finish
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)
    if line:
        sys.exit(line)


def parse_command_line(
    arguments: list[str],
) -> tuple[str, RunOptions, dict[str, object]]:
    """``speechbrain.parse_arguments``, but values arrive as they were written.

    From the command line without the script's name the YAML file, SpeechBrain's
    run options, such as ``device``, and by its key each value that is left,
    given as ``--key=value`` or ``--key value``. A number, True, False, null, a
    list ``[...]`` and a mapping ``{...}`` are read as YAML; any other value is
    a text, letter by letter. Run options must be written out.

    Raises
    ------
    ValueError
        If an option is not known or its value not valid, a key is given twice
        or without a value, or HyperPyYAML would change a value.

    Example
    -------
    >>> param_file, run_opts, overrides = parse_command_line(
    ...     ["b0.yaml", "--device=cpu", "--seed=3", "--output=a=1 #2"]
    ... )
    >>> param_file, run_opts.device, overrides
    ('b0.yaml', 'cpu', {'seed': 3, 'output': 'a=1 #2'})
    """
    overrides: dict[str, object] = {}
    words, others = list(arguments), []
    while words:
        word = words.pop(0)
        key, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or key in ("help", *RUN_OPTIONS):
            others.append(word)
            continue
        _check_key(key)
        if not equals and words and not words[0].startswith("--"):
            value = words.pop(0)
        if key in overrides:
            raise ValueError(f"{key}: given twice; leave out one of them")
        overrides[key] = _read_value(key, value)
    messages = io.StringIO()
    try:
        with contextlib.redirect_stderr(messages):
            param_file, run_opts, left = sb.parse_arguments(others)
    except SystemExit as end:
        if end.code == 0:  # --help
            raise
        message = messages.getvalue().strip().splitlines()[-1]
        message = message.rsplit("error: ", maxsplit=1)[-1]
        raise ValueError(
            message.replace("param_file", "a YAML file of hyperparameters")
        ) from None
    if left:
        raise ValueError(
            f"{left}: no option is before it; write --key=value, in quotes if "
            "the value has spaces"
        )
    check_device("device", run_opts.device)
    return param_file, run_opts, overrides


def _check_key(key: str) -> None:
    """Refuses what SpeechBrain would take for a run option, and not use."""
    for option in RUN_OPTIONS:
        if option.startswith(key):
            raise ValueError(
                f"{key or '--'}: no option; write out --{option} if it is that"
            )


def _read_value(key: str, text: str) -> object:
    """A value as `parse_command_line` says."""
    if not text:
        raise ValueError(
            f"{key}: no value; write --{key}=VALUE, or null for none"
        )
    if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in text):
        raise ValueError(
            f"{key}: {text!a} has a control character or is not UTF-8; leave "
            "out such characters"
        )
    tag = VersionedResolver().resolve(ScalarNode, text, (True, False))
    if text[0] in "[{" or str(tag) in NOT_TEXT:
        try:
            return YAML().load(text)
        except (YAMLError, ValueError, RecursionError) as error:
            problem = getattr(error, "problem", None) or error
            raise ValueError(
                f"{key}: {text!r} is not valid YAML ({problem}); for a file or "
                "folder of that name write ./ before it"
            ) from error
    if REFERENCE.search(text):
        raise ValueError(
            f"{key}: what is between < and > in {text!r} would be taken for "
            "another key; leave out one of these signs"
        )
    if _is_changed(text):
        raise ValueError(
            f"{key}: HyperPyYAML would make something else of {text!r}; for a "
            "file or folder of that name write ./ before it"
        )
    return text


def _is_changed(text: str) -> bool:
    """Whether HyperPyYAML may make something else of a text.

    It makes tuples, writes a list without the quotes that ``?`` and ``:`` need,
    and computes a reference as Python where it holds no names, of which a
    comment hides those that the YAML has behind it.
    """
    if text[0] in "?:" or (text[0] == "(" and text[-1] == ")"):
        return True
    if "#" not in text:
        return False
    try:
        nodes = ast.walk(ast.parse(f"{text}/name", mode="eval"))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return not any(isinstance(node, ast.Name) for node in nodes)


def refuse_run_options(given: Container[str], remedies: dict[str, str]) -> None:
    """Refuses, with a ValueError, run options that a script has no use for.

    ``given`` are those that the user set: ``overridden_args`` of the run
    options, or keys of a YAML; ``remedies`` say what to do instead.

    Example
    -------
    >>> _, run_opts, _ = parse_command_line(["b0.yaml", "--test_only"])
    >>> given = run_opts.overridden_args
    >>> refuse_run_options(given, {"test_only": "use verification"})
    Traceback (most recent call last):
    ValueError: test_only: it does nothing here; use verification
    """
    for name, remedy in remedies.items():
        if name in given:
            raise ValueError(f"{name}: it does nothing here; {remedy}")
