"""The operating point that is kept with a model.

One of one's own recordings, which ``redimnet2 calibrate`` has left, goes before
that of an evaluation.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from redimnet2_lobes.files.same_space import KEY, check_same_space
from redimnet2_lobes.scoring.results import (
    RESULTS_FILE,
    in_precision,
    plain_cosine,
    read_results,
)

if TYPE_CHECKING:
    from redimnet2_lobes.scoring.operating_points import OperatingPoints

OWN_FILE = "operating_points.json"  # its name in a model folder


class OperatingPoint(NamedTuple):
    """The cosine above which two voices are one.

    Example
    -------
    >>> OperatingPoint().value is None
    True
    """

    value: float | None = None  # None where none is known
    origin: str | None = None  # where it is from, in words

    def but(self, reservation: str) -> "OperatingPoint":
        """The same, with a reservation about where it is from.

        Example
        -------
        >>> OperatingPoint(0.5, "that of the EER").but("before quantization")
        OperatingPoint(value=0.5, origin='that of the EER, before quantization')
        """
        if self.value is None:
            return self
        return self._replace(origin=f"{self.origin}, {reservation}")

    def where(
        self, *, found_on_speech: bool, used_on_speech: bool
    ) -> "OperatingPoint":
        """The same, which says if it is of speech alone and used on all audio.

        Or the other way round.

        Example
        -------
        >>> point = OperatingPoint(0.5, "that of the EER")
        >>> point.where(found_on_speech=False, used_on_speech=True).origin
        'that of the EER, of all audio, not speech alone'
        """
        if found_on_speech == used_on_speech:
            return self
        kinds = "speech alone", "all audio"
        of, not_of = kinds if found_on_speech else kinds[::-1]
        return self.but(f"of {of}, not {not_of}")


def operating_point_of(
    model: str, space: str, **hub_options: Any
) -> OperatingPoint:
    """Finds the threshold of a model.

    It is that of one's own recordings, see ``own_operating_points``, or else
    that at the EER of the model's first trial list. The model is a folder or a
    hub name, see ``loading.find_model``, whose embeddings are of ``space``;
    ``hub_options`` are those of ``hf_hub_download``, such as ``revision``.
    There is no value where it has neither those nor results of plain cosine. If
    they cannot be downloaded, a note on stderr says so; if they are damaged, or
    of another space, it is a ValueError.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> operating_point_of(folder, "redimnet2-b3-1")
    OperatingPoint(value=None, origin=None)
    >>> row = {"list": "O", "back_end": "cosine", "trials": 37611}
    >>> row.update({"eer_percent": 1.0, "eer_threshold": 0.25})
    >>> results = {"results": [{**row, "min_dcf_0.01": 0.1}]}
    >>> results.update(checkpoint="b3", seconds_used=None, crops=None)
    >>> import json
    >>> _ = (folder / RESULTS_FILE).write_text(json.dumps(results))
    >>> operating_point_of(folder, "redimnet2-b3-1").origin
    'that of the EER on O, 37,611 trials'
    """
    if own := own_operating_points(model, space):
        # What SpeechBrain's interfaces embed is all audio.
        return own.operating_point.where(
            found_on_speech=own.speech_only, used_on_speech=False
        )
    return evaluated_operating_point(model, space, **hub_options)


def own_operating_points(model: str, space: str) -> "OperatingPoints | None":
    """The operating points of one's own recordings that a model has, or None.

    Only a folder has them: what is of one's own is not on the hub. If they are
    damaged, or of another space, it is a ValueError.

    Example
    -------
    >>> own_operating_points(getfixture("tmp_path"), "redimnet2-b3-1") is None
    True
    """
    path = Path(model) / OWN_FILE
    if not path.is_file():
        return None
    # It needs SciPy and torch: not before it is needed.
    from redimnet2_lobes.scoring.operating_points import read_operating_points

    found = read_operating_points(path)
    check_same_space(path, found.embedding_space, "the model", space)
    return found


def evaluated_operating_point(
    model: str, space: str, **hub_options: Any
) -> OperatingPoint:
    """The threshold of an evaluation alone; see ``operating_point_of``.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> evaluated_operating_point(folder, "redimnet2-b3-1").value is None
    True
    """
    path = _find_results(model, hub_options)
    if path is None:
        return OperatingPoint()
    results = read_results(path)
    check_same_space(path, results.get(KEY), "the model", space)
    return operating_point_in(results)


def operating_point_in(results: dict) -> OperatingPoint:
    """The same, of what ``read_results`` gives.

    Example
    -------
    >>> operating_point_in({"results": [{"back_end": "PLDA"}]}).value is None
    True
    """
    rows = plain_cosine(results)
    if not rows or not math.isfinite(rows[0]["eer_threshold"]):
        return OperatingPoint()
    row = rows[0]
    origin = f"that of the EER on {row['list']}, {row['trials']:,} trials"
    if len(rows) > 1:
        origin += f", the first of {len(rows)} lists"
    seconds, crops = results["seconds_used"], results["crops"]
    if crops is not None:
        origin += f", with {crops} crops of {seconds:g} s each, not whole files"
    elif seconds is not None:
        origin += f", with the first {seconds:g} s of each, not whole files"
    return OperatingPoint(row["eer_threshold"], origin + in_precision(results))


def _find_results(model: str, hub_options: dict) -> Path | str | None:
    """The results.json of a model, or None."""
    if os.path.isdir(model):
        path = Path(model) / RESULTS_FILE
        return path if path.is_file() else None
    from huggingface_hub import errors, hf_hub_download

    try:
        return hf_hub_download(model, RESULTS_FILE, **hub_options)
    except (errors.EntryNotFoundError, OSError) as error:
        missing = isinstance(error, errors.EntryNotFoundError)
        if not missing or isinstance(error, errors.LocalEntryNotFoundError):
            note = f"the {RESULTS_FILE} of {model} is out of reach: {error}"
            print(f"note: {' '.join(note.split())}", file=sys.stderr)
        return None
