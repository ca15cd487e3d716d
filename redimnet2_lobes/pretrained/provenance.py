"""What a model was trained on, and its licence, wherever it goes.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import contextlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from speechbrain.inference.interfaces import Pretrained


class Provenance(NamedTuple):
    """Where a model is from, in its hyperparams.yaml and exported files."""

    license: str | None = None  # as the hub calls it
    training_data: str | None = None  # in words

    def or_else(self, other: "Provenance") -> "Provenance":
        """What is stated here, or else there.

        Example
        -------
        >>> Provenance("mit").or_else(Provenance("other", "VoxCeleb2"))
        Provenance(license='mit', training_data='VoxCeleb2')
        """
        pairs = zip(self, other, strict=True)
        return Provenance(*(here or there for here, there in pairs))


NOT_STATED = Provenance()


def provenance_of(model: Pretrained) -> Provenance:
    """What the hyperparams.yaml of a model says.

    Example
    -------
    >>> from argparse import Namespace
    >>> provenance_of(Namespace(hparams=Namespace(license="mit")))
    Provenance(license='mit', training_data=None)
    """
    return _of_keys(vars(model.hparams))


def after_fine_tuning(folder: str | os.PathLike | None) -> Provenance:
    r"""That of a network that was trained further, from a model folder.

    Nothing is stated without one, or where it is gone.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> text = "license: mit\ntraining_data: VoxCeleb2"
    >>> _ = (folder / "hyperparams.yaml").write_text(text)
    >>> after_fine_tuning(folder).training_data
    'VoxCeleb2, then trained further'
    """
    if folder is None:
        return NOT_STATED
    with contextlib.suppress(OSError, YAMLError, ValueError):
        keys = YAML().load(Path(folder) / "hyperparams.yaml")
        if isinstance(keys, dict):
            license, data = _of_keys(keys)
            return Provenance(license, data and f"{data}, then trained further")
    return NOT_STATED


def with_provenance(hyperparams: str, stated: Provenance) -> str:
    r"""The text of a hyperparams.yaml that says what is stated.

    Example
    -------
    >>> with_provenance("license: mit\nvariant: b3\n", Provenance("other"))
    'variant: b3\nlicense: "other"\ntraining_data: null\n'
    """
    kept = re.sub(r"^(license|training_data):.*\n", "", hyperparams, flags=re.M)
    values = stated._asdict().items()
    lines = [f"{key}: {json.dumps(value)}\n" for key, value in values]
    return "".join([kept, *lines])


def _of_keys(keys: Mapping[str, Any]) -> Provenance:
    values = [keys.get(key) for key in Provenance._fields]
    return Provenance(*(x if isinstance(x, str) else None for x in values))
