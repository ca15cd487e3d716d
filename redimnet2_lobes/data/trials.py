"""Reading trial lists in the forms used out there.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import csv
import os
from collections.abc import Iterator

from speechbrain.utils.logger import get_logger

from redimnet2_lobes.data.lists import read_lines
from redimnet2_lobes.files.download import md5_of

logger = get_logger(__name__)

# VoxCeleb1-O, -E and -H, cleaned, as published with VoxCeleb.
MD5_SUMS = {
    "veri_test2.txt": "b73110731c9223c1461fe49cb48dddfc",
    "list_test_all2.txt": "a53e059deb562ffcfc092bf5d90d9f3a",
    "list_test_hard2.txt": "857790e09d579a68eb2e339a090343c8",
}

LABELS = {"0": 0, "1": 1, "nontarget": 0, "target": 1}
FORMS = (
    "'label enrol test' (VoxCeleb), 'enrol test target|nontarget' (Kaldi) or a "
    "CSV file with the columns enrol, test and label"
)


def read_trials(path: str | os.PathLike) -> list[tuple[int, str, str]]:
    """Reads (label, enrolment, test) of each trial, from any of three forms.

    - VoxCeleb: ``label enrol test``, the label 1 for the same speaker and 0 for
      different ones;
    - Kaldi: ``enrol test target`` or ``enrol test nontarget``;
    - CSV: a header with the columns ``enrol``, ``test`` and ``label`` in any
      order, labels as in either of the others.

    enrol and test name utterances, such as ``id10270/5r0dWxy17C8/00001.wav``,
    or enrol a model of several (``read_enrolments``). The first line decides.
    Blank lines, Windows line ends and a byte-order mark do no harm. Repeated
    trials are kept, as published error rates count them, with a warning; with
    another label they are an error.

    Raises
    ------
    ValueError
        If the file cannot be read, holds no trial or holds a line of another
        form.

    Example
    -------
    >>> path = getfixture("tmpdir") / "trials.txt"
    >>> path.write_text("1 a/x/1.wav a/y/1.wav", encoding="utf-8")
    >>> read_trials(path)
    [(1, 'a/x/1.wav', 'a/y/1.wav')]
    >>> path.write_text("a/x/1.wav b/y/1.wav nontarget", encoding="utf-8")
    >>> read_trials(path)
    [(0, 'a/x/1.wav', 'b/y/1.wav')]
    """
    trials, labels = [], {}
    for number, label, enrolment, test in _rows(path):
        known = labels.setdefault((enrolment, test), label)
        if known != label:
            raise ValueError(
                f"{path}, line {number}: {enrolment} {test} has the label "
                f"{label}, but {known} in a line before; remove one of them"
            )
        trials.append((label, enrolment, test))
    if not trials:
        raise ValueError(
            f"{path}: the trial list is empty; expected lines of the form "
            f"{FORMS}"
        )
    if repeated := len(trials) - len(labels):
        logger.warning(
            "%s: %d trials stand there more than once, and count each time",
            path,
            repeated,
        )
    return trials


def read_enrolments(path: str | os.PathLike) -> dict[str, list[str]]:
    """Reads the utterances of each enrolled model, as Kaldi's spk2utt.

    The lines are ``model utterance [utterance ...]``. A model may have several.

    Raises
    ------
    ValueError
        If the file cannot be read, is empty, a line has no utterance, or a
        model has the same one twice.

    Example
    -------
    >>> path = getfixture("tmpdir") / "enrolments.txt"
    >>> path.write_text("anna a/1.wav a/2.wav", encoding="utf-8")
    >>> read_enrolments(path)
    {'anna': ['a/1.wav', 'a/2.wav']}
    """
    models = {}
    for number, line in _lines(path):
        model, *utterances = line.split()
        if not utterances:
            raise ValueError(
                f"{path}, line {number}: {model} has no utterance; expected "
                "'model utterance [utterance ...]'"
            )
        for utterance in utterances:
            if utterance in models.setdefault(model, []):
                raise ValueError(
                    f"{path}, line {number}: {model} has {utterance} twice; "
                    "remove one"
                )
            models[model].append(utterance)
    if not models:
        raise ValueError(
            f"{path}: there are no enrolments; expected lines 'model utterance "
            "[utterance ...]'"
        )
    return models


Lines = list[tuple[int, str]]  # with their numbers
Row = tuple[int, int, str, str]  # line number, label, enrolment, test


def _rows(path: str | os.PathLike) -> Iterator[Row]:
    lines = list(_lines(path))
    first = lines[0][1] if lines else ""
    if "," in first:
        return _csv_rows(path, lines)
    if first.split()[2:] in (["target"], ["nontarget"]):
        return _columns(path, lines, (2, 0, 1), ("target", "nontarget"))
    return _columns(path, lines, (0, 1, 2), ("0", "1"))


def _columns(
    path: str | os.PathLike,
    lines: Lines,
    order: tuple[int, int, int],
    labels: tuple[str, str],
) -> Iterator[Row]:
    for number, line in lines:
        fields = line.split()
        if len(fields) != 3 or fields[order[0]] not in labels:
            raise ValueError(
                f"{path}, line {number}: found {line.strip()[:80]!r}, expected "
                f"{FORMS}, all lines alike"
            )
        label, enrolment, test = (fields[column] for column in order)
        yield number, LABELS[label], enrolment, test


def _csv_rows(path: str | os.PathLike, lines: Lines) -> Iterator[Row]:
    number, line = lines[0]
    header = _fields(path, number, line)
    if any(header.count(name) != 1 for name in ("enrol", "test", "label")):
        raise ValueError(
            f"{path}, line {number}: found the columns {', '.join(header)}, "
            f"expected {FORMS}"
        )
    for number, line in lines[1:]:
        fields = _fields(path, number, line)
        row = dict(zip(header, fields, strict=False))
        if (
            len(fields) != len(header)
            or row["label"] not in LABELS
            or not (row["enrol"] and row["test"])
        ):
            raise ValueError(
                f"{path}, line {number}: expected {','.join(header)} with one "
                f"of the labels {', '.join(LABELS)}, found "
                f"{line.strip()[:80]!r}"
            )
        yield number, LABELS[row["label"]], row["enrol"], row["test"]


def _fields(path: str | os.PathLike, number: int, line: str) -> list[str]:
    try:
        return [field.strip() for field in next(csv.reader([line]))]
    except csv.Error as error:
        raise ValueError(
            f"{path}, line {number}: not a row of a CSV ({error})"
        ) from None


def _lines(path: str | os.PathLike) -> Iterator[tuple[int, str]]:
    """Yields (line number, line) of the lines that are not blank."""
    try:
        for number, line in read_lines(path):
            if line.strip():
                yield number, line
    except OSError as error:
        raise ValueError(
            f"{path}: cannot read the list ({error.strerror}); check the path"
        ) from None


def has_published_sum(path: str | os.PathLike) -> bool:
    """Whether a trial list is the published one of its name, if there is one.

    Example
    -------
    >>> path = getfixture("tmpdir") / "veri_test2.txt"
    >>> path.write_text("1 a/x/1.wav a/y/1.wav", encoding="utf-8")
    >>> has_published_sum(path)
    False
    """
    published = MD5_SUMS.get(os.path.basename(path))
    return published is None or md5_of(path) == published
