"""The command line of the recipe's scripts.

``python SCRIPT HPARAMS.yaml --key=value`` as in SpeechBrain, but whatever a
user can get wrong ends in one line that names the key or file, and what to do.
The log of a training also has where in the code such an error arose.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import contextlib
import gc
import io
import logging
import os
import re
import sys
from collections.abc import Callable, Container

import speechbrain as sb
import torch
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


def parse_command_line(arguments: list[str]) -> tuple[str, RunOptions, str]:
    """``speechbrain.parse_arguments``, but errors are ValueErrors.

    From the command line without the script's name the YAML file, SpeechBrain's
    run options, such as ``device``, and what is left, ``--key=value``, as YAML.
    Run options must be written out.

    Example
    -------
    >>> param_file, run_opts, overrides = parse_command_line(
    ...     ["b0.yaml", "--device=cpu", "--seed=3"]
    ... )
    >>> param_file, run_opts.device, overrides
    ('b0.yaml', 'cpu', 'seed: 3')
    """
    for argument in arguments:
        # SpeechBrain reads the value of an abbreviation, and does not use it.
        name = argument.removeprefix("--").split("=", maxsplit=1)[0]
        if argument.startswith("--") and name and name not in RUN_OPTIONS:
            for option in RUN_OPTIONS:
                if option.startswith(name):
                    raise ValueError(
                        f"{name}: no option; write out --{option} if it is that"
                    )
    messages = io.StringIO()
    try:
        with contextlib.redirect_stderr(messages):
            parsed = sb.parse_arguments(arguments)
    except SystemExit as end:
        if end.code == 0:  # --help
            raise
        message = messages.getvalue().strip().splitlines()[-1]
        message = message.rsplit("error: ", maxsplit=1)[-1]
        raise ValueError(
            message.replace("param_file", "a YAML file of hyperparameters")
        ) from None
    check_device("device", parsed[1].device)
    return parsed


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
