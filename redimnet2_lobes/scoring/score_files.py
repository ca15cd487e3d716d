"""Files of scored trials, as the verification scripts write them.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import math
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from redimnet2_lobes.data.lists import read_lines
from redimnet2_lobes.files.atomic import write_text

SCORES = "_scores.txt"  # after the name of a back-end
Trial = tuple[int, str, str]  # label, enrolment, test


def write_scores(
    path: str | os.PathLike, trials: Sequence[Trial], scores: torch.Tensor
) -> None:
    r"""Writes a line ``enrolment test label score`` for each trial.

    Example
    -------
    >>> path = getfixture("tmp_path") / "cosine_scores.txt"
    >>> write_scores(path, [(1, "a/1.wav", "a/2.wav")], torch.tensor([0.5]))
    >>> path.read_text()
    'a/1.wav a/2.wav 1 0.5\n'
    """
    scored = zip(trials, scores.tolist(), strict=True)
    lines = (
        f"{enrolment} {test} {label} {score:.9g}\n"
        for (label, enrolment, test), score in scored
    )
    write_text(path, "".join(lines))


def read_scores(path: str | os.PathLike) -> tuple[list[Trial], torch.Tensor]:
    """Reads what `write_scores` wrote: trials, and their scores [trials].

    Blank lines do no harm.

    Raises
    ------
    ValueError
        If the file cannot be read, has no line or one of another form, or a
        score is not finite.

    Example
    -------
    >>> path = getfixture("tmp_path") / "cosine_scores.txt"
    >>> write_scores(path, [(1, "a/1.wav", "a/2.wav")], torch.tensor([0.5]))
    >>> read_scores(path)
    ([(1, 'a/1.wav', 'a/2.wav')], tensor([0.5000], dtype=torch.float64))
    """
    trials, scores = [], []
    try:
        for number, line in read_lines(path):
            if not line.strip():
                continue
            try:
                enrolment, test, label, score = line.split()
                trials.append((("0", "1").index(label), enrolment, test))
                scores.append(float(score))
                is_right = math.isfinite(scores[-1])
            except ValueError:
                is_right = False
            if not is_right:
                raise ValueError(
                    f"{path}, line {number}: found {line.strip()[:80]!r}, "
                    "expected 'enrolment test 0|1 score'"
                )
    except OSError as error:
        raise ValueError(
            f"{path}: cannot read the scores ({error.strerror}); check the path"
        ) from None
    if not trials:
        raise ValueError(f"{path}: there are no scores in it")
    return trials, torch.tensor(scores, dtype=torch.float64)


def score_files(folder: str | os.PathLike) -> dict[tuple[str, str], Path]:
    """The score files of a verification, by names of list and back-end.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> (folder / "O").mkdir()
    >>> (folder / "O" / "cosine_scores.txt").touch()
    >>> list(score_files(folder))
    [('O', 'cosine')]
    """
    return {
        (path.parent.name, path.name.removesuffix(SCORES)): path
        for path in sorted(Path(folder).glob(f"*/*{SCORES}"))
    }
