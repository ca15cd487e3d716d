"""Operating points of one's own recordings: which threshold, and how sure.

A threshold holds for recordings such as those that it was found with. Here it
is found with trials of one's own, for chosen false acceptance rates and at the
equal error rate, each with confidence intervals, and with what the recordings
are too few for. What is kept, as JSON, also tells of each score which share of
other speakers scores higher.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import datetime
import itertools
import json
import math
import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from redimnet2_lobes.files.atomic import write_text
from redimnet2_lobes.files.error_lines import one_line
from redimnet2_lobes.files.json_files import read_json
from redimnet2_lobes.files.same_space import KEY
from redimnet2_lobes.files.settings import check_types, require_number
from redimnet2_lobes.scoring.bootstrap import (
    CONFIDENCE,
    RESAMPLES,
    Interval,
    bootstrap,
    cllr,
    eer,
    eer_threshold,
    far_at,
    frr_at,
    threshold_at_far,
)
from redimnet2_lobes.scoring.calibration import (
    Calibration,
    calibration_from,
    held_out_ratios,
    quality_measures,
    train_calibration,
)
from redimnet2_lobes.scoring.operating_point import OperatingPoint
from redimnet2_lobes.scoring.own_trials import OwnTrials
from redimnet2_lobes.scoring.tables import text_table

FAR_RATES = (0.01, 0.001)
# Doddington et al., "The NIST speaker recognition evaluation: overview,
# methodology, systems, results, perspective", Speech Communication, 2000: with
# 30 errors in independent trials the true rate is, in 90 % of cases, within
# 30 % of what was measured.
ENOUGH_ERRORS = 30
ENOUGH_SPEAKERS = 10
CURVE_POINTS = 200


class ChosenPoint(NamedTuple):
    """A threshold, and the error rates that it gives."""

    name: str  # such as "FAR 1 %"
    threshold: Interval
    far: Interval
    frr: Interval


class FalseAccepts(NamedTuple):
    """Of other speakers the share that scores higher."""

    rate: Interval
    is_upper_limit: bool  # above a score that too few exceed to tell more

    def as_json(self) -> dict[str, Any]:
        """The same as an object of JSON."""
        return {
            **self.rate._asdict(),
            "is_upper_limit": self.is_upper_limit,
        }


class RatioOfScore(NamedTuple):
    """From a cosine and the seconds of both recordings to a likelihood ratio.

    Example
    -------
    >>> weights = {"score": 10.0, "lower duration": 0, "higher duration": 0}
    >>> ratio = RatioOfScore(Calibration(-2.0, weights), 1.0, 9.0)
    >>> ratio(torch.tensor([0.5]), torch.tensor([[3.0, 60.0]]))
    tensor([3.])
    """

    calibration: Calibration
    shortest: float  # seconds that it was trained on
    longest: float
    cllr: Interval | None = None  # in bits, of speakers held out

    def __call__(
        self, scores: torch.Tensor, seconds: torch.Tensor
    ) -> torch.Tensor:
        """Log-likelihood ratios (natural logarithm) of trials [trials].

        ``seconds`` are [trials, 2], and count as the nearest that there were in
        the training.
        """
        features = _features(scores, seconds.clip(self.shortest, self.longest))
        return self.calibration(features)


class OperatingPoints(NamedTuple):
    """What one's own recordings say about thresholds."""

    embedding_space: str
    date: str  # such as 2026-11-27
    speech_only: bool  # whether silence was left out
    speakers: int
    recordings: int
    enrolment_utterances: int
    same_speaker_trials: int
    different_speakers_trials: int
    eer: Interval
    points: list[ChosenPoint]  # decisions go by the first
    scores: list[float]  # of the curve, ascending
    far: list[Interval]  # of the curve
    frr: list[Interval]
    ratio: RatioOfScore | None  # None where the recordings are too few
    shortfalls: list[str]  # what they are too few for

    @property
    def operating_point(self) -> OperatingPoint:
        """The threshold of the first point."""
        name, threshold, *_ = self.points[0]
        people = f"{self.speakers} speakers"
        if self.speakers < ENOUGH_SPEAKERS:
            people += ", too few to rely on"
        return OperatingPoint(
            threshold.value,
            f"{name} on own recordings of {people}, {self.date}",
        )

    def false_accepts(self, score: float) -> FalseAccepts | None:
        """Of other speakers the share that scores higher.

        For a score above which there were too few to tell it is that of the
        highest threshold below. None if there are too few for any.
        """
        if not self.scores:
            return None
        if score > self.scores[-1]:
            known = [self.far[-1]]
            known += [
                point.far
                for point in self.points
                if self.scores[-1] < point.threshold.value <= score
            ]
            return FalseAccepts(min(known, key=lambda rate: rate.high), True)
        limits = [
            float(np.interp(score, self.scores, values, left=1.0))
            for values in zip(*self.far, strict=True)
        ]
        return FalseAccepts(Interval(*limits), False)


def find_operating_points(
    trials: OwnTrials,
    embedding_space: str,
    speakers: Sequence[str],
    rates: Sequence[float] = FAR_RATES,
    speech_only: bool = False,
    enrolment_utterances: int = 1,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> OperatingPoints:
    """Finds thresholds for false acceptance rates, and that of the EER.

    Arguments
    ---------
    trials
        Those of `score_all`.
    embedding_space
        Of the embeddings that were compared.
    speakers
        The speaker of each recording.
    rates
        False acceptance rates, between 0 and 1; decisions go by the first.
    speech_only
        Whether silence was left out of the recordings.
    enrolment_utterances
        How many recordings enrolled a voice.
    resamples, seed
        As for `bootstrap`.

    Example
    -------
    >>> from redimnet2_lobes.scoring.own_trials import score_all
    >>> speakers = ["anna", "anna", "bert", "bert"]
    >>> trials = score_all(torch.randn(4, 9), speakers, [1.0] * 4)
    >>> found = find_operating_points(trials, "redimnet2-b0-1", speakers)
    >>> [point.name for point in found.points]
    ['FAR 1 %', 'FAR 0.1 %', 'EER']
    >>> found.shortfalls[0]
    '2 speakers are too few for intervals to rely on; have at least 10'
    """
    figures = {_name(rate): threshold_at_far(rate) for rate in rates}
    figures["EER"] = eer_threshold
    known = (trials.scores, trials.labels, trials.speakers.numpy())
    thresholds = bootstrap(*known, figures, resamples=resamples, seed=seed)
    chosen = np.array([found.value for found in thresholds.values()])
    ascending = trials.scores[~trials.labels].double().sort().values
    curve = np.zeros(0)
    if len(ascending) > ENOUGH_ERRORS:
        curve = np.linspace(
            trials.scores.double().min(),
            ascending[-ENOUGH_ERRORS - 1],
            CURVE_POINTS,
        )
    errors = bootstrap(
        *known,
        {
            "EER": eer,
            "far": far_at(chosen),
            "frr": frr_at(chosen),
            "curve far": far_at(curve),
            "curve frr": frr_at(curve),
        },
        resamples=resamples,
        seed=seed,
    )
    equal = Interval(*map(float, errors.pop("EER")))
    far, frr, far_curve, frr_curve = (
        [Interval(*map(float, row)) for row in zip(*found, strict=True)]
        for found in errors.values()
    )
    points = [
        ChosenPoint(name, Interval(*map(float, threshold)), *of_both)
        for (name, threshold), *of_both in zip(
            thresholds.items(), far, frr, strict=True
        )
    ]
    number = int(trials.labels.sum())
    counts = (number, len(trials.labels) - number)
    people = len(set(speakers))
    pairs = people * (people - 1) // 2
    equal = without_errors(equal, people)
    points = [
        point._replace(
            far=without_errors(point.far, pairs),
            frr=without_errors(point.frr, people),
        )
        for point in points
    ]
    ratio = _calibrate(trials, people, resamples, seed)
    shortfalls = [
        *_shortfalls(points, rates, counts, speakers, enrolment_utterances)
    ]
    if ratio is None:
        shortfalls.append(
            "too little for likelihood ratios: they take at least "
            f"{ENOUGH_SPEAKERS} speakers of several recordings, and scores "
            "that tell other people apart"
        )
    return OperatingPoints(
        embedding_space,
        datetime.date.today().isoformat(),
        speech_only,
        people,
        len(speakers),
        enrolment_utterances,
        *counts,
        equal,
        points,
        curve.tolist(),
        far_curve,
        frr_curve,
        ratio,
        shortfalls,
    )


def without_errors(rate: Interval, count: int) -> Interval:
    """The interval of a rate, also where there were no errors, or only errors.

    Resamples know no other rate then. What so many independent cases allow is
    the rule of three: Hanley and Lippman-Hand, "If nothing goes wrong, is
    everything all right?", JAMA, 1983.

    Example
    -------
    >>> high = without_errors(Interval(0.0, 0.0, 0.0), 100).high
    >>> round(high, 3)
    0.03
    """
    limit = 1 - 0.05 ** (1 / count)
    if rate.value == 0:
        return rate._replace(high=max(rate.high, limit))
    if rate.value == 1:
        return rate._replace(low=min(rate.low, 1 - limit))
    return rate


def _name(rate: float) -> str:
    return f"FAR {100 * rate:g} %"


def _features(
    scores: torch.Tensor, seconds: torch.Tensor
) -> dict[str, torch.Tensor]:
    enrolment, test = seconds.log().unbind(dim=1)
    measures = quality_measures(duration=(enrolment, test))
    return {"score": scores, **measures}


def _calibrate(
    trials: OwnTrials, people: int, resamples: int, seed: int
) -> RatioOfScore | None:
    """A calibration, if it says something of speakers it does not know."""
    if people < ENOUGH_SPEAKERS:
        return None
    features = _features(trials.scores, trials.seconds)
    try:
        ratios = held_out_ratios(
            features, trials.labels, trials.speakers, seed=seed
        )
    except ValueError:  # too few of one kind without some speakers
        return None
    cost = bootstrap(
        ratios,
        trials.labels,
        trials.speakers.numpy(),
        {"cllr": cllr},
        resamples=resamples,
        seed=seed,
    )["cllr"]
    if not cost.value < 1:
        return None
    return RatioOfScore(
        train_calibration(features, trials.labels),
        trials.seconds.min().item(),
        trials.seconds.max().item(),
        Interval(*map(float, cost)),
    )


def _shortfalls(
    points: list[ChosenPoint],
    rates: Sequence[float],
    counts: tuple[int, int],
    speakers: Sequence[str],
    enrolment_utterances: int,
) -> Iterator[str]:
    """What the recordings are too few for, and what it would take."""
    same, different = counts
    people = len(set(speakers))
    each = max(enrolment_utterances, round(len(speakers) / people))
    if people < ENOUGH_SPEAKERS:
        yield (
            f"{people} speakers are too few for intervals to rely on; have at "
            f"least {ENOUGH_SPEAKERS}"
        )
    for rate in rates:
        if rate * different < ENOUGH_ERRORS:
            needed = math.ceil(ENOUGH_ERRORS / rate)
            # A pair of speakers gives so many trials.
            pairs = each * (each // enrolment_utterances)
            if enrolment_utterances > 1:  # either of the two enrols
                pairs *= 2
            others = math.ceil((1 + math.sqrt(1 + 8 * needed / pairs)) / 2)
            yield (
                f"{different:,} trials of different speakers are too few for "
                f"a false-accept rate of {100 * rate:g} %: it takes "
                f"{needed:,} ({ENOUGH_ERRORS} false accepts), such as "
                f"{others:,} speakers with {each} recordings each"
            )
    few = [
        f"{point.name} ({round(point.frr.value * same)})"
        for point in points
        if round(point.frr.value * same) < ENOUGH_ERRORS
    ]
    if few:
        yield (
            f"{same:,} trials of one speaker gave fewer than {ENOUGH_ERRORS} "
            f"false rejects at {', '.join(few)}: go by the upper end of those "
            "intervals, or have more recordings of each speaker"
        )


def describe_operating_points(found: OperatingPoints) -> str:
    """Operating points for people to read: a table, and lines about it."""
    table = [["", "threshold", "false accepts", "false rejects"]]
    for point in found.points:
        table.append(
            [
                point.name,
                f"{point.threshold.value:.4f} ({point.threshold.low:.4f} to "
                f"{point.threshold.high:.4f})",
                interval_in_percent(point.far),
                interval_in_percent(point.frr),
            ]
        )
    lines = [
        f"{found.speakers} speakers, {found.recordings} recordings: "
        f"{found.same_speaker_trials:,} trials of one speaker, "
        f"{found.different_speakers_trials:,} of different speakers",
        f"equal error rate {interval_in_percent(found.eer)}",
        text_table(table, names=1).rstrip("\n"),
        f"in parentheses {100 * CONFIDENCE:g} % confidence intervals; "
        f"decisions go by {found.points[0].name}",
    ]
    if found.ratio is not None and found.ratio.cllr is not None:
        cost = found.ratio.cllr
        lines.append(
            f"likelihood ratios: Cllr {cost.value:.3f} ({cost.low:.3f} to "
            f"{cost.high:.3f}) bits on speakers held out"
        )
    return "\n".join([*lines, *(f"too few: {x}" for x in found.shortfalls)])


def in_percent(rate: float) -> str:
    """A rate in percent, to two figures.

    Example
    -------
    >>> in_percent(0.00314), in_percent(0.123), in_percent(1.0)
    ('0.31', '12', '100')
    """
    return f"{100 * rate:.2g}" if rate < 0.995 else "100"


def interval_in_percent(rate: Interval) -> str:
    """A rate and its interval in percent.

    Example
    -------
    >>> interval_in_percent(Interval(0.00314, 0.001, 0.12))
    '0.31 % (0.1 to 12 %)'
    """
    value, low, high = map(in_percent, rate)
    return f"{value} % ({low} to {high} %)"


def to_json(found: OperatingPoints) -> dict[str, Any]:
    """The JSON object that `from_json` reads."""
    content = found._asdict()
    content["points"] = [point._asdict() for point in found.points]
    if found.ratio is not None:
        content["ratio"] = {
            **found.ratio._asdict(),
            "calibration": found.ratio.calibration._asdict(),
        }
    return content


def write_operating_points(
    found: OperatingPoints, path: str | os.PathLike
) -> None:
    """Writes operating points as JSON."""
    write_text(path, json.dumps(to_json(found), indent=2) + "\n")


def read_operating_points(path: str | os.PathLike) -> OperatingPoints:
    """Reads what `write_operating_points` wrote; ValueError if it is damaged.

    Example
    -------
    >>> path = getfixture("tmp_path") / "operating_points.json"
    >>> _ = path.write_text("{}")
    >>> read_operating_points(path)
    Traceback (most recent call last):
    ValueError: ...operating_points.json: not what redimnet2 calibrate wrote, \
or damaged (embedding_space is missing); calibrate again
    """
    try:
        content = read_json(path)
    except ValueError as error:
        raise _damaged(path, str(error)) from error
    return from_json(content, path)


def from_json(content: Any, source: str | os.PathLike) -> OperatingPoints:
    """Operating points of a JSON object; an error names its source.

    Example
    -------
    >>> from_json([], "voices.sqlite")
    Traceback (most recent call last):
    ValueError: voices.sqlite: not what redimnet2 calibrate wrote, or damaged \
(no JSON object); calibrate again
    """
    try:
        return _checked(content)
    except KeyError as error:
        raise _damaged(source, f"{error.args[0]} is missing") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise _damaged(source, one_line(error)) from error


def _damaged(source: str | os.PathLike, reason: str) -> ValueError:
    return ValueError(
        f"{source}: not what redimnet2 calibrate wrote, or damaged ({reason}); "
        "calibrate again"
    )


def _checked(content: Any) -> OperatingPoints:
    if not isinstance(content, dict):
        raise ValueError("no JSON object")
    check_types(
        content,
        **{KEY: str, "date": str, "speech_only": bool},
        **{"speakers": int, "recordings": int, "enrolment_utterances": int},
        **{"same_speaker_trials": int, "different_speakers_trials": int},
        **{
            "eer": list,
            "points": list,
            "scores": list,
            "far": list,
            "frr": list,
        },
        **{"ratio": dict | None, "shortfalls": list[str]},
    )
    datetime.date.fromisoformat(content["date"])
    points = [
        ChosenPoint(
            _text(point["name"]),
            _interval("threshold", point["threshold"], -2.0, 2.0),
            _interval("far", point["far"]),
            _interval("frr", point["frr"]),
        )
        for point in content["points"]
    ]
    if not points:
        raise ValueError("points is empty")
    scores = [
        _number("scores", score, -2.0, 2.0) for score in content["scores"]
    ]
    if any(second <= first for first, second in itertools.pairwise(scores)):
        raise ValueError("scores do not rise")
    curves = {
        key: [_interval(key, rates) for rates in content[key]]
        for key in ("far", "frr")
    }
    if {len(curve) for curve in curves.values()} != {len(scores)}:
        raise ValueError("scores, far and frr are not as many")
    ratio = content["ratio"]
    if ratio is not None:
        calibration = calibration_from(ratio["calibration"])
        expected = _features(torch.zeros(1), torch.ones(1, 2))
        if calibration.weights.keys() != expected.keys():
            raise ValueError(f"weights are of {', '.join(calibration.weights)}")
        shortest = _number("shortest", ratio["shortest"], 1e-9, 1e9)
        ratio = RatioOfScore(
            calibration,
            shortest,
            _number("longest", ratio["longest"], shortest, 1e9),
            _interval("cllr", ratio["cllr"], 0.0, 1e9),
        )
    known = {key: content[key] for key in OperatingPoints._fields}
    return OperatingPoints(
        **{
            **known,
            **curves,
            "eer": _interval("eer", content["eer"]),
            "points": points,
            "scores": scores,
            "ratio": ratio,
        }
    )


def _text(value: Any) -> str:
    check_types({"name": value}, name=str)
    return value


def _number(key: str, value: Any, lowest: float, highest: float) -> float:
    require_number(key, value, lowest, highest)
    return float(value)


def _interval(
    key: str, values: Any, lowest: float = 0.0, highest: float = 1.0
) -> Interval:
    if not isinstance(values, list) or len(values) != 3:
        raise ValueError(f"{key} is {values!r:.80}")
    found = Interval(*(_number(key, x, lowest, highest) for x in values))
    if found.low > found.high:
        raise ValueError(f"{key}: {found.low} is above {found.high}")
    return found
