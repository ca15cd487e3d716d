"""What a score means, by the operating points of one's own recordings.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from redimnet2_lobes.scoring.operating_points import OperatingPoints


class Meaning(NamedTuple):
    """The same as lines and as values of JSON; empty where none is known."""

    lines: list[str]
    values: dict[str, Any]


def score_meaning(
    own: OperatingPoints | None,
    score: float,
    seconds: Sequence[float],
    vad: bool,
) -> Meaning:
    """Says which share of other speakers scores higher, and the likelihood.

    ``seconds`` are those of the enrolment and of the test utterance. Of all
    audio nothing is known from operating points of speech alone, and the other
    way round.
    """
    meaning = Meaning([], {})
    if own is None or own.speech_only != vad:
        return meaning
    import torch

    from redimnet2_lobes.scoring.operating_points import (
        in_percent,
        interval_in_percent,
    )

    if found := own.false_accepts(score):
        rate, is_limit = found
        words = interval_in_percent(rate)
        if is_limit:  # there were too few false accepts to tell more
            value, limit = in_percent(rate.value), in_percent(rate.high)
            words = f"less than {value} % (up to {limit} %)"
        meaning.lines.append(
            f"false accepts  {words} of other speakers score higher than this"
        )
        meaning.values["false_accepts"] = found.as_json()
    if own.ratio is not None:
        ratio = own.ratio(
            torch.tensor([score]), torch.tensor([seconds], dtype=torch.float32)
        ).item()
        meaning.lines.append(f"likelihood ratio  {_in_words(ratio, own)}")
        meaning.values["log_likelihood_ratio"] = ratio
    return meaning


def _in_words(ratio: float, own: OperatingPoints) -> str:
    """A log-likelihood ratio, no larger than so many trials can show."""
    kinds, trials = ["of one speaker", "of two"], own.different_speakers_trials
    if ratio < 0:
        kinds, trials = kinds[::-1], own.same_speaker_trials
    times = f"more than {trials:,}"
    if abs(ratio) < math.log(trials):
        times = f"{float(f'{math.exp(abs(ratio)):.2g}'):,g}"
    return f"{times} times as likely {kinds[0]} as {kinds[1]}"
