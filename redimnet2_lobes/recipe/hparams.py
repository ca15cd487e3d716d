"""YAML files of hyperparameters, as HyperPyYAML reads them.

Whatever a user can get wrong is one line that names the key, and what to do.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import difflib
import io
import os
import re
import typing
from collections.abc import Mapping

import ruamel.yaml
from hyperpyyaml import load_hyperpyyaml
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from redimnet2_lobes.files.error_lines import one_line

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
        "a model folder, a hub name, the name of a published checkpoint or "
        "the file embedding_model.ckpt of a training checkpoint"
    ),
    "utterances": (
        "a folder of audio files, a CSV file with the columns ID and wav, or a "
        "wav.scp"
    ),
    "output": "the file to write; the ending may be left out",
}


def load_hparams(
    param_file: str | os.PathLike, overrides: Mapping[str, object]
) -> dict:
    r"""``load_hyperpyyaml`` on a file, but errors name the key.

    Overrides are as from :func:`parse_command_line`. It is a ValueError if the
    file is not YAML, an override is not a key of it, a placeholder is left, or
    an object cannot be built.

    Example
    -------
    >>> path = getfixture("tmp_path") / "hparams.yaml"
    >>> _ = path.write_text("start: abc\nsum: !apply:sum [[1], !ref <start>]")
    >>> load_hparams(path, {"start": 2})["sum"]
    3
    >>> load_hparams(path, {"strat": 2})
    Traceback (most recent call last):
    ValueError: strat: not a key of hparams.yaml; did you mean start?
    """
    document = _read_document(param_file, overrides)
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


def build_hparam(
    param_file: str | os.PathLike,
    key: str,
    overrides: Mapping[str, object] | None = None,
) -> typing.Any:
    r"""Builds the value of one key of a YAML file, and nothing else of it.

    It is what :func:`load_hparams` gives for the key, but without the effects
    of building the others. Placeholders without an override are None.

    Example
    -------
    >>> path = getfixture("tmp_path") / "hparams.yaml"
    >>> _ = path.write_text("a: !new:no.such.Class\nb: !ref <c> * 2\nc: 4")
    >>> build_hparam(path, "b", {"c": 5})
    10
    """
    overrides = overrides or {}
    document = _read_document(param_file, overrides)
    if key not in document:
        raise ValueError(f"{key}: not a key of {os.path.basename(param_file)}")
    overrides = {**dict.fromkeys(_placeholders(document)), **overrides}
    needed = {key, *_sources(document, document[key])}
    try:
        alone = io.StringIO()
        nodes = {name: document[name] for name in document if name in needed}
        ruamel.yaml.YAML().dump(nodes, alone)
        given = {name: overrides[name] for name in needed & set(overrides)}
        return load_hyperpyyaml(alone.getvalue(), given).get(key)
    except Exception as error:
        # What a user wrote wrongly is one of the keys that go in.
        sources = _sources(document, document[key])
        sources = [name for name in sources if name in overrides] or sources
        origin = f" (built from {', '.join(sources)})" if sources else ""
        raise ValueError(f"{key}{origin}: {one_line(error)}") from error


def _read_document(
    param_file: str | os.PathLike, overrides: Mapping[str, object]
) -> dict:
    """The file as a mapping, in which all overrides are keys."""
    name = os.path.basename(param_file)
    text = ""
    try:
        with open(param_file, encoding="utf-8") as file:
            text = file.read()
        document = ruamel.yaml.YAML().load(text) or {}
    except MarkedYAMLError as error:
        line = (error.context_mark or error.problem_mark).line
        content = text.splitlines()[line].strip()[:80]
        raise ValueError(
            f"{name}, line {line + 1} ({content!r}): not valid YAML, "
            f"{error.problem}"
        ) from error
    except (YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{name}: not YAML, {one_line(error)}") from error
    if not isinstance(document, dict):
        raise ValueError(
            f"{name}: expected keys with values, found {text[:80]!r}"
        )
    for key, value in overrides.items():
        if key not in document:
            similar = difflib.get_close_matches(key, map(str, document), n=1)
            hint = f"; did you mean {similar[0]}?" if similar else ""
            raise ValueError(f"{key}: not a key of {name}{hint}")
        if isinstance(value, dict) and not isinstance(document[key], dict):
            raise ValueError(
                f"{key}: a mapping, but in {name} it is none; give a value as "
                "there"
            )
    return document


def _placeholders(document: dict) -> list[str]:
    return [
        key for key, node in document.items() if _tag(node) == "!PLACEHOLDER"
    ]


def _tag(node: typing.Any) -> str:
    return str(node.tag.value) if hasattr(node, "tag") else ""


def _sources(document: dict, node: typing.Any) -> list[str]:
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
