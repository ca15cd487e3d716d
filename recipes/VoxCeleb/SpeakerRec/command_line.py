"""The command line of the recipe's scripts.

``python SCRIPT HPARAMS.yaml --key=value`` as in SpeechBrain, but whatever a
user can get wrong ends in one line that names the key or file, and what to do.
``SB_LOG_LEVEL=DEBUG`` shows where in the code such an error arose.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import contextlib
import difflib
import gc
import io
import logging
import os
import re
import sys
import textwrap

import ruamel.yaml
import speechbrain as sb
import torch
from hyperpyyaml import load_hyperpyyaml
from speechbrain.utils.distributed import if_main_process
from speechbrain.utils.logger import get_logger
from speechbrain.utils.run_opts import HELP_TEXTS

logger = get_logger(__name__)
# It warns of figures that no script here saves with torchvision.
logging.getLogger("speechbrain.utils.train_logger").setLevel(logging.ERROR)

# All run options of SpeechBrain that a command line can have.
RUN_OPTIONS = (*HELP_TEXTS, "jit_module_keys", "compile_module_keys")

# What to pass for keys that a YAML leaves to the user (`!PLACEHOLDER`).
PLACEHOLDERS = {
    "data_folder": (
        "the folder that holds wav/<speaker>/<session>/<utterance>.wav; "
        "without a corpus, `make demo` builds a small one and runs on it"
    ),
    "validation_folder": (
        "the folder that holds VoxCeleb1's wav/ and trial lists"
    ),
    "musan_folder": (
        "the folder of MUSAN that holds music/, noise/ and speech/; "
        "noises_prepare.py makes it"
    ),
    "rirs_folder": (
        "the folder RIRS_NOISES that holds simulated_rirs/; "
        "noises_prepare.py makes it"
    ),
    "pretrained_folder": (
        "the model folder of the pretraining, which fine-tuning starts from"
    ),
    **dict.fromkeys(
        ("voxceleb2_list", "voxblink2_list", "cnceleb2_list"),
        "a CSV file with the columns ID, duration, wav and spk_id, such as "
        "make_shards.py writes",
    ),
    "checkpoint": (
        "a model folder, a hub name or the file embedding_model.ckpt of a "
        "training checkpoint"
    ),
    "utterances": (
        "a folder of audio files, a CSV file with the columns ID and wav, or a "
        "wav.scp"
    ),
    "output": "the file to write; the ending may be left out",
}
# What torch.distributed says where another process is gone.
LOST_CONNECTION = re.compile("(closed|reset) by peer|Broken pipe")
TYPES = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "True or False",
}


def main_with_one_line_errors(function):
    """Runs a script, and ends it with one line on stderr where a user erred.

    Arguments
    ---------
    function : callable
        The script's main function, called with the command line's arguments
        (a list of str). Of what it raises, ValueError and OSError are printed
        as ``error: ...``, and the exit code is 1; anything else is a bug and
        keeps its traceback. Where other processes wait for one that ends so,
        they end with one line as well.

    Example
    -------
    >>> def main(arguments):
    ...     raise ValueError("variant: unknown")
    >>> with contextlib.redirect_stderr(sys.stdout):
    ...     main_with_one_line_errors(main)
    Traceback (most recent call last):
    SystemExit: 1
    """
    try:
        function(sys.argv[1:])
    except (ValueError, OSError) as error:
        logger.debug("Where the error arose:", exc_info=True)
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except RuntimeError as error:
        lost = LOST_CONNECTION.search(str(error))
        if not (lost and torch.distributed.is_initialized()):
            raise
        logger.debug("Where the error arose:", exc_info=True)
        print(
            "error: another process of this run has ended; its own message "
            "says why",
            file=sys.stderr,
        )
        sys.exit(1)
    if torch.distributed.is_initialized():
        # Its threads abort a process that ends while they wait for Python.
        gc.collect()  # what is wrapped holds the group too
        torch.distributed.destroy_process_group()
        if not if_main_process():  # which alone has files to finish
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)


def one_line(error):
    r"""The message of an exception, without line breaks.

    Arguments
    ---------
    error : Exception
        The exception.

    Returns
    -------
    str
        One line of up to 400 characters.

    Example
    -------
    >>> one_line(ValueError("two\n  lines"))
    'two lines'
    >>> one_line(FileNotFoundError(2, "No such file or directory", "a.wav"))
    'a.wav: No such file or directory'
    """
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    text = str(error)
    if text.startswith("Caught "):  # in a worker of a DataLoader
        text = text.splitlines()[-1].split(": ", maxsplit=1)[-1]
    if isinstance(error, TypeError):  # hyperpyyaml adds the class in front
        text = ": ".join(str(argument) for argument in error.args)
    elif isinstance(error, KeyError):
        text = f"{error} is missing"
    text = textwrap.shorten(text, width=400, placeholder=" [...]")
    return text or type(error).__name__


def parse_command_line(arguments):
    """``speechbrain.parse_arguments``, but errors are exceptions.

    Arguments
    ---------
    arguments : list of str
        The command line without the script's name.

    Returns
    -------
    param_file : str
        The YAML file.
    run_opts : RunOptions
        SpeechBrain's run options, such as ``device``.
    overrides : str
        What is left, ``--key=value``, as YAML.

    Raises
    ------
    ValueError
        If the YAML file is not given, or a run option has a wrong value or is
        not written out.

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
    device = parsed[1].device
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"device: {device!r} cannot be used here ({one_line(error)})"
        ) from error
    return parsed


def refuse_run_options(given, remedies):
    """Refuses run options that a script has no use for.

    Arguments
    ---------
    given : container of str
        Names that the user set: ``overridden_args`` of the run options, or
        the keys of a YAML.
    remedies : dict
        For each such option what to do instead.

    Raises
    ------
    ValueError
        If one is given.

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


def load_hparams(param_file, overrides):
    r"""``load_hyperpyyaml`` on a file, but errors name the key.

    Arguments
    ---------
    param_file : str
        A YAML file.
    overrides : str or dict
        Values to replace, from :func:`parse_command_line`.

    Returns
    -------
    dict
        The hyperparameters.

    Raises
    ------
    ValueError
        If the file or the overrides are not YAML, an override is not a key of
        the file, a placeholder is left, or an object cannot be built.

    Example
    -------
    >>> path = getfixture("tmp_path") / "hparams.yaml"
    >>> _ = path.write_text("start: abc\nsum: !apply:sum [[1], !ref <start>]")
    >>> load_hparams(path, "start: 2")["sum"]
    3
    >>> load_hparams(path, "strat: 2")
    Traceback (most recent call last):
    ValueError: strat: not a key of hparams.yaml; did you mean start?
    """
    document, overrides = _read_documents(param_file, overrides)
    for key in _placeholders(document):
        if key not in overrides:
            what = PLACEHOLDERS.get(key, "it has no default")
            raise ValueError(f"{key}: missing; pass --{key}=..., {what}")
    try:
        with open(param_file, encoding="utf-8") as file:
            return load_hyperpyyaml(file, overrides)
    except Exception as error:
        # The exception does not say which key it was building: build them one
        # by one to see.
        for key in document:
            try:
                build_hparam(param_file, key, overrides)
            except ValueError as named:
                raise named from error
        raise ValueError(
            f"{os.path.basename(param_file)}: {one_line(error)}"
        ) from error


def build_hparam(param_file, key, overrides=None):
    r"""Builds the value of one key of a YAML file, and nothing else of it.

    Arguments
    ---------
    param_file : str
        A YAML file.
    key : str
        One of its keys.
    overrides : str or dict or None
        Values to replace.

    Returns
    -------
    object
        What :func:`load_hparams` gives for the key, but without the effects of
        building the others. Placeholders without an override are None.

    Raises
    ------
    ValueError
        As :func:`load_hparams`, or if there is no such key.

    Example
    -------
    >>> path = getfixture("tmp_path") / "hparams.yaml"
    >>> _ = path.write_text("a: !new:no.such.Class\nb: !ref <c> * 2\nc: 4")
    >>> build_hparam(path, "b", {"c": 5})
    10
    """
    document, overrides = _read_documents(param_file, overrides)
    if key not in document:
        raise ValueError(f"{key}: not a key of {os.path.basename(param_file)}")
    overrides = {**dict.fromkeys(_placeholders(document)), **overrides}
    needed = {key, *_sources(document, document[key])}
    try:
        alone = io.StringIO()
        ruamel.yaml.YAML().dump(
            {name: node for name, node in document.items() if name in needed},
            alone,
        )
        given = {name: overrides[name] for name in needed & set(overrides)}
        return load_hyperpyyaml(alone.getvalue(), given).get(key)
    except Exception as error:
        # What a user wrote wrongly is one of the keys that go in.
        sources = _sources(document, document[key])
        sources = [name for name in sources if name in overrides] or sources
        origin = f" (built from {', '.join(sources)})" if sources else ""
        raise ValueError(f"{key}{origin}: {one_line(error)}") from error


def check_types(hparams, **types):
    """Checks values that are used as they are, so that none fails later.

    Arguments
    ---------
    hparams : dict
        The hyperparameters.
    **types : type
        For each key its type: str, int, float (which takes an int) or bool.

    Raises
    ------
    ValueError
        If a value has another type, or a text is empty.

    Example
    -------
    >>> check_types({"lr": 1, "name": "b0"}, lr=float, name=str)
    >>> check_types({"lr": "high"}, lr=float)
    Traceback (most recent call last):
    ValueError: lr: expected a number, not 'high'
    """
    for key, expected in types.items():
        value = hparams[key]
        fits = type(value) is expected
        if expected is float:
            fits = type(value) in (int, float)
        if not fits or value == "":
            raise ValueError(
                f"{key}: expected {TYPES[expected]}, not {value!r}"
            )


def check_at_least(hparams, **lowest):
    """Checks numbers against their lowest value.

    Arguments
    ---------
    hparams : dict
        The hyperparameters.
    **lowest : float
        For each key its lowest value.

    Raises
    ------
    ValueError
        If a value is lower.

    Example
    -------
    >>> check_at_least({"batch_size": 0}, batch_size=1)
    Traceback (most recent call last):
    ValueError: batch_size: 0 is less than 1
    """
    for key, limit in lowest.items():
        if not hparams[key] >= limit:
            raise ValueError(f"{key}: {hparams[key]} is less than {limit}")


def _read_documents(param_file, overrides):
    """Both as mappings, checked against each other."""
    name = os.path.basename(param_file)
    with open(param_file, encoding="utf-8") as file:
        document = _read_mapping(file.read(), name)
    if isinstance(overrides, str):
        overrides = _read_mapping(overrides, "command line")
    overrides = overrides or {}
    for key in overrides:
        if key not in document:
            similar = difflib.get_close_matches(str(key), document, n=1)
            hint = f"; did you mean {similar[0]}?" if similar else ""
            raise ValueError(f"{key}: not a key of {name}{hint}")
    return document, overrides


def _read_mapping(text, name):
    try:
        mapping = ruamel.yaml.YAML().load(text) or {}
    except ruamel.yaml.error.MarkedYAMLError as error:
        line = (error.context_mark or error.problem_mark).line
        content = text.splitlines()[line].strip()
        raise ValueError(
            f"{name}, line {line + 1} ({content!r}): not valid YAML, "
            f"{error.problem}"
        ) from error
    if not isinstance(mapping, dict):
        raise ValueError(f"{name}: expected keys with values, found {text!r}")
    return mapping


def _placeholders(document):
    return [
        key for key, node in document.items() if _tag(node) == "!PLACEHOLDER"
    ]


def _tag(node):
    return str(node.tag.value) if hasattr(node, "tag") else ""


def _sources(document, node):
    """Keys that a node refers to, and those that these refer to, in order."""
    names, nodes = [], [node]
    while nodes:
        node = nodes.pop(0)
        if isinstance(node, dict):
            nodes.extend(node.values())
        elif isinstance(node, list):
            nodes.extend(node)
        elif _tag(node) in ("!ref", "!copy"):
            for name in re.findall(r"<(\w+)", node.value):
                if name in document and name not in names:
                    names.append(name)
                    nodes.append(document[name])
    return names
