"""Open-set identification: who of the enrolled is it, or is it none of them?

A probe is searched in a gallery of enrolled speakers. The speaker with the
highest score is the answer, if that score is above a threshold; if not, the
answer is nobody. As ISO/IEC 19795-1 names the errors:

- FPIR, the false-positive identification rate: of the probes of speakers who
  are not enrolled, the share that is given a name;
- FNIR, the false-negative identification rate: of the probes of enrolled
  speakers, the share that is given no name or another's (at rank 1).

With a higher threshold the first falls and the second grows, with a larger
gallery both grow: Grother and Ngan, "Face Recognition Vendor Test: Performance
of Face Identification Algorithms", NIST Interagency Report 8009, 2014, section
2. For voices Singer and Reynolds, "Analysis of multitarget detection for
speaker and language recognition", Odyssey 2004.

The intervals are for other speakers. All galleries are drawn from the same
ones, so intervals over galleries would shrink with their number. Each search
counts as a trial of the probe's speaker with the one that is found, and
`bootstrap` draws speakers.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

from redimnet2_lobes.scoring.backends import Backend, CosineBackend, average
from redimnet2_lobes.scoring.bootstrap import (
    FEWEST_SPEAKERS,
    Figure,
    Interval,
    bootstrap,
    far_at,
    frr_at,
    frr_at_far,
    threshold_at_far,
)
from redimnet2_lobes.scoring.tables import with_interval

RATES = (0.01, 0.05, 0.1)  # FPIRs at which the FNIR is told
GALLERIES = 20
CURVE_POINTS = 60


class Searches(NamedTuple):
    """Searches of all galleries of one size, and what they found."""

    gallery_size: int
    scores: torch.Tensor  # [searches], -inf where another name came first
    is_enrolled: torch.Tensor  # [searches], True for probes of the enrolled
    speakers: torch.Tensor  # [searches, 2], of the probe and of the answer
    strangers: int  # distinct probes of speakers who were not enrolled


class OpenSetCurve(NamedTuple):
    """What identification costs at each threshold, for one gallery size."""

    gallery_size: int
    fpir: np.ndarray  # [points], ascending
    fnir: Interval  # arrays [points]
    threshold: Interval  # arrays [points]


def check_gallery_size(
    speakers: Sequence[str], gallery_size: int, enrolment_utterances: int = 1
) -> None:
    """Refuses, with a ValueError, what `search_galleries` cannot draw.

    Example
    -------
    >>> check_gallery_size(["anna", "anna", "bert"], 2)
    Traceback (most recent call last):
    ValueError: 2 speakers cannot be enrolled, of 1 there are more than 1 \
utterances; enrol fewer speakers, or by fewer utterances (enrolment_utterances)
    """
    counts = Counter(speakers)
    able = sum(count > enrolment_utterances for count in counts.values())
    if not 0 < gallery_size <= able:
        raise ValueError(
            f"{gallery_size} speakers cannot be enrolled, of {able} there are "
            f"more than {enrolment_utterances} utterances; enrol fewer "
            "speakers, or by fewer utterances (enrolment_utterances)"
        )
    if gallery_size == len(counts):
        raise ValueError(
            f"all {gallery_size} speakers would be enrolled, and none be left "
            "who is a stranger; enrol fewer"
        )


def search_galleries(
    embeddings: torch.Tensor,
    speakers: Sequence[str],
    gallery_size: int,
    enrolment_utterances: int = 1,
    galleries: int = GALLERIES,
    seed: int = 0,
    backend: Backend | None = None,
) -> Searches:
    """Draws galleries, and searches all other utterances in each.

    For each gallery so many speakers are drawn, and of each the utterances that
    enrol, whose embeddings are averaged at length 1. All other utterances are
    probes: of speakers who are enrolled, and of strangers.

    Arguments
    ---------
    embeddings
        Of the utterances [utterances, embedding].
    speakers
        Of each utterance. Speakers with as few utterances as enrol are always
        strangers.
    backend
        The cosine, if None.

    Raises
    ------
    ValueError
        If there are not as many embeddings as speakers, not enough speakers to
        enrol, or no stranger is left.

    Example
    -------
    >>> embeddings = torch.eye(3).repeat_interleave(2, dim=0)
    >>> found = search_galleries(embeddings, list("aabbcc"), 2, galleries=1)
    >>> found.is_enrolled.tolist(), found.scores.tolist()
    ([False, False, True, True], [0.0, 0.0, 1.0, 1.0])
    """
    if len(embeddings) != len(speakers):
        raise ValueError(
            f"embeddings: {len(embeddings):,} of them, but speakers of "
            f"{len(speakers):,} utterances"
        )
    check_gallery_size(speakers, gallery_size, enrolment_utterances)
    names, numbers = np.unique(np.asarray(speakers), return_inverse=True)
    own = [np.flatnonzero(numbers == number) for number in range(len(names))]
    able = [i for i, rows in enumerate(own) if len(rows) > enrolment_utterances]
    backend = backend or CosineBackend()
    tests = backend.test_side(embeddings)
    units = torch.nn.functional.normalize(embeddings, dim=1)
    random = np.random.default_rng(seed)
    found, strangers = [], set()
    for _ in range(galleries):
        enrolled = np.sort(random.choice(able, gallery_size, replace=False))
        drawn = [
            random.choice(own[number], enrolment_utterances, replace=False)
            for number in enrolled
        ]
        voices = backend.enrolment_side(
            average(units, [rows.tolist() for rows in drawn])
        )
        is_probe = np.ones(len(numbers), bool)
        is_probe[np.concatenate(drawn)] = False
        probes = np.flatnonzero(is_probe)
        best = [
            (part @ voices.T).max(dim=1)
            for part in tests[torch.from_numpy(probes)].split(4096)
        ]
        scores = torch.cat([each.values for each in best]).double()
        answers = enrolled[torch.cat([each.indices for each in best]).numpy()]
        is_enrolled = np.isin(numbers[probes], enrolled)
        is_wrong = is_enrolled & (answers != numbers[probes])
        scores[torch.from_numpy(is_wrong)] = -torch.inf
        strangers.update(probes[~is_enrolled].tolist())
        pairs = np.stack([numbers[probes], answers], axis=1)
        found.append((scores, is_enrolled, pairs))
    scores, is_enrolled, pairs = zip(*found, strict=True)
    return Searches(
        gallery_size,
        torch.cat(scores),
        torch.from_numpy(np.concatenate(is_enrolled)),
        torch.from_numpy(np.concatenate(pairs)),
        len(strangers),
    )


def open_set_curve(
    searches: Searches,
    rates: Sequence[float] | np.ndarray | None = None,
    seed: int = 0,
) -> OpenSetCurve:
    """The FNIR and the threshold at false-positive identification rates.

    All galleries share a threshold, the lowest at which no more than the rate
    of the strangers is given a name. The intervals are of a `bootstrap` over
    speakers.

    Arguments
    ---------
    searches
        Of `search_galleries`.
    rates
        Ascending. By default from one stranger to all of them.

    Example
    -------
    >>> random = torch.Generator().manual_seed(0)
    >>> voices = torch.randn(30, 16, generator=random).repeat_interleave(5, 0)
    >>> embeddings = voices + 0.5 * torch.randn(150, 16, generator=random)
    >>> speakers = [f"speaker{row // 5}" for row in range(150)]
    >>> for size in (5, 20):
    ...     searches = search_galleries(embeddings, speakers, size)
    ...     curve = open_set_curve(searches, [0.1])
    ...     print(f"{size}: {curve.fnir.value[0]:.2f}")
    5: 0.02
    20: 0.06
    """
    if rates is None:
        rates = _curve_rates(searches)
    found = _bootstrap(
        searches,
        {
            "fnir": frr_at_far(np.asarray(rates)),
            "threshold": threshold_at_far(np.asarray(rates)),
        },
        seed,
    )
    return OpenSetCurve(
        searches.gallery_size,
        np.asarray(rates),
        found["fnir"],
        found["threshold"],
    )


def _curve_rates(searches: Searches) -> np.ndarray:
    return np.geomspace(1 / searches.strangers, 1, CURVE_POINTS)


def rates_at(
    searches: Searches, thresholds: Sequence[float]
) -> dict[str, Interval]:
    """The ``fpir`` and the ``fnir`` at thresholds, arrays [thresholds].

    Example
    -------
    >>> embeddings = torch.eye(3).repeat_interleave(2, dim=0)
    >>> searches = search_galleries(embeddings, list("aabbcc"), 2)
    >>> rates_at(searches, [0.5])["fpir"].value
    array([0.])
    """
    at = np.asarray(thresholds)
    return _bootstrap(searches, {"fpir": far_at(at), "fnir": frr_at(at)})


def _bootstrap(
    searches: Searches,
    figures: Mapping[str, Figure],
    seed: int = 0,
) -> dict[str, Interval]:
    """Figures of searches as trials, with intervals for other speakers.

    Of two speakers all resamples are the same: limits are NaN.
    """
    # What is not found at any threshold lies below all that may be found.
    lowest = searches.scores[searches.scores.isfinite()].min() - 1
    pairs = searches.speakers.clone()
    # A miss is of one speaker, whoever is found in the place.
    pairs[searches.is_enrolled, 1] = pairs[searches.is_enrolled, 0]
    enough = len(pairs.unique()) >= FEWEST_SPEAKERS
    found = bootstrap(
        searches.scores.clamp(min=lowest),
        searches.is_enrolled,
        pairs.numpy() if enough else None,
        figures,
        seed=seed,
    )
    if enough:
        return found
    return {
        name: Interval(value, *[np.full_like(value, np.nan)] * 2)
        for name, (value, _, _) in found.items()
    }


def open_set_figures(
    searches: Searches,
    rates: Sequence[float] = RATES,
    thresholds: Sequence[float] = (),
) -> tuple[OpenSetCurve, dict[str, list[dict]]]:
    """The curve of searches, and for programs figures at rates and thresholds.

    The figures are ``operating_points``, the FNIR and the threshold at rates,
    and ``thresholds``, the FPIR and the FNIR there. Of a rate that the
    strangers are too few to show all is null: it takes one of them at least who
    is given a name.
    """
    curve_rates = _curve_rates(searches)
    at = np.asarray(thresholds, np.float64)
    found = _bootstrap(  # once, as each resample sorts out all of them
        searches,
        {
            "curve_fnir": frr_at_far(curve_rates),
            "curve_threshold": threshold_at_far(curve_rates),
            "fnir": frr_at_far(np.asarray(rates)),
            "threshold": threshold_at_far(np.asarray(rates)),
            "fpir_at": far_at(at),
            "fnir_at": frr_at(at),
        },
    )
    curve = OpenSetCurve(
        searches.gallery_size,
        curve_rates,
        found["curve_fnir"],
        found["curve_threshold"],
    )
    points = []
    for index, rate in enumerate(rates):
        seen = rate * searches.strangers >= 1
        points.append(
            {
                "fpir": rate,
                **_entry("fnir", found["fnir"], index, seen),
                **_entry("threshold", found["threshold"], index, seen),
            }
        )
    at_thresholds = [
        {
            "threshold": threshold,
            **_entry("fpir", found["fpir_at"], index),
            **_entry("fnir", found["fnir_at"], index),
        }
        for index, threshold in enumerate(thresholds)
    ]
    return curve, {"operating_points": points, "thresholds": at_thresholds}


def _entry(
    name: str, interval: Interval, index: int, seen: bool = True
) -> dict[str, float | list[float] | None]:
    value, *limits = (float(part[index]) for part in interval)
    known = seen and not math.isnan(limits[0])
    return {
        name: value if seen else None,
        f"{name}_interval": limits if known else None,
    }


def identification_table(results: Sequence[dict]) -> list[list[str]]:
    """Cells of a table of error rates in percent, the headings first.

    ``results`` has entries with ``gallery_size``, ``operating_points`` and
    ``thresholds``, as `open_set_figures` gives them.

    Example
    -------
    >>> point = {"fpir": 0.01, "fnir": 0.25, "fnir_interval": [0.2, 0.3]}
    >>> row = {"gallery_size": 5, "operating_points": [point], "thresholds": []}
    >>> identification_table([row])
    [['enrolled', 'FNIR at FPIR 1 %'], ['5', '25.0 [20.0, 30.0]']]
    """
    table = [["enrolled"]]
    for point in results[0]["operating_points"]:
        table[0].append(f"FNIR at FPIR {100 * point['fpir']:g} %")
    for point in results[0]["thresholds"]:
        table[0] += [
            f"{name} at {point['threshold']:g}" for name in ("FPIR", "FNIR")
        ]
    for row in results:
        cells = [f"{row['gallery_size']:,}"]
        cells += [_cell(each, "fnir") for each in row["operating_points"]]
        for each in row["thresholds"]:
            cells += [_cell(each, "fpir"), _cell(each, "fnir")]
        table.append(cells)
    return table


def _cell(figures: dict, name: str) -> str:
    if figures[name] is None:
        return "too few strangers"
    limits = figures[f"{name}_interval"]
    if limits is not None:
        limits = [100 * limit for limit in limits]
    return with_interval(100 * figures[name], limits, "{:.1f}")
