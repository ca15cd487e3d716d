"""Evaluation of trial lists, in functions over values.

`evaluate` goes from lists to results: it embeds, scores by any number of
back-ends and score normalizations (`score_trials`), and calibrates
(`train_calibrations`, `results_of`). `adaptive_s_norm` is the usual score of
trials in one call.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import torch

from redimnet2_lobes.data.trial_files import TrialList, files_of
from redimnet2_lobes.data.utterances import Utterance, paths_of
from redimnet2_lobes.inference.embedding_cache import Embeddings
from redimnet2_lobes.scoring.backends import (
    Backend,
    CosineBackend,
    average,
    cohort_statistics,
    normalize_scores,
    trial_scores,
)
from redimnet2_lobes.scoring.calibration import (
    Calibration,
    quality_measures,
    train_calibration,
)
from redimnet2_lobes.scoring.report import Result

# Score normalizations, and what reports call them.
SCORE_NORMS = {
    "z": "z-norm",
    "t": "t-norm",
    "s": "s-norm",
    "adaptive_s": "adaptive s-norm (top {top})",
}
QUALITY_MEASURES = ("durations", "magnitudes", "cohort_means")

# Of each back-end and normalization the features of trials, [trials] each:
# ``score``, and quality measures beside it.
Scored = dict[str, dict[str, torch.Tensor]]


def adaptive_s_norm(
    embeddings: torch.Tensor,
    pairs: torch.Tensor,
    cohort: torch.Tensor,
    top: int = 300,
    backend: Backend | None = None,
) -> torch.Tensor:
    """Scores trials, normalized by the top of a cohort (AS-norm) [trials].

    Matějka et al., "Analysis of Score Normalization in Multilingual Speaker
    Recognition", Interspeech 2017, equation 5: by the mean and the standard
    deviation of the ``top`` scores of enrolment and test against the cohort.

    Arguments
    ---------
    embeddings
        Of enrolments and test utterances [utterances, embedding].
    pairs
        Rows of the enrolment and the test utterance of each trial [trials, 2].
    cohort
        Embeddings of other speakers [cohort, embedding], such as the mean of
        each speaker of the training.
    backend
        The cosine, if None.

    Example
    -------
    >>> embeddings = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    >>> cohort = torch.tensor([[0.5, 0.5], [0.2, 0.8], [-0.4, 0.6]])
    >>> pairs = torch.tensor([[0, 1], [0, 2]])
    >>> adaptive_s_norm(embeddings, pairs, cohort, top=2)
    tensor([ 1.4917, -5.3368])
    """
    backend = backend or CosineBackend()
    enrolments = backend.enrolment_side(embeddings)
    scores = trial_scores(enrolments, backend.test_side(embeddings), *pairs.T)
    statistics = cohort_statistics(enrolments, backend.test_side(cohort), top)
    return normalize_scores(scores, *_of_trials(statistics, pairs))


def evaluate(
    backends: Mapping[str, Backend],
    tested: Sequence[TrialList],
    calibrating: Sequence[TrialList],
    calibrations: dict[str, Calibration],
    embed: Callable[[dict[str, str]], Embeddings],
    cohort: Sequence[Utterance] = (),
    *,
    cohort_entries: str = "speakers",
    cohort_top: int = 300,
    score_norms: Collection[str] = (),
    measures: Collection[str] = (),
) -> tuple[list[Result], dict[str, Calibration]]:
    """Scores trial lists by all back-ends, and calibrates the scores.

    Returns the results of each list, back-end, normalization and calibration,
    and the calibrations that were trained. Arguments that are not listed are
    those of `score_trials`.

    Arguments
    ---------
    calibrating
        Lists of other speakers to train calibrations on; may be empty.
    calibrations
        Those of an earlier evaluation, to use if none are trained.
    embed
        Maps each utterance's name and file to embeddings, such as
        `extract_embeddings` with its other arguments given.
    cohort
        Utterances of other speakers, to normalize scores with.
    cohort_entries
        ``speakers``, to average each speaker's, or ``utterances``.

    Raises
    ------
    ValueError
        As `score_trials`, `train_calibrations` and `results_of`. A file that
        cannot be used is an AudioError.
    """
    against = None
    if cohort:
        against = embed(paths_of(cohort)).vectors
        if cohort_entries == "speakers":
            against = average_speakers(against, cohort)

    def score(lists: Sequence[TrialList]) -> list[Scored]:
        embeddings = embed(files_of(lists))
        options = against, score_norms, cohort_top, measures
        return [
            score_trials(each, embeddings, backends, *options) for each in lists
        ]

    trained = {}
    if calibrating:
        trained = train_calibrations(calibrating, score(calibrating))
    results = [
        result
        for trial_list, scored in zip(tested, score(tested), strict=True)
        for result in results_of(trial_list, scored, trained or calibrations)
    ]
    return results, trained


def average_speakers(
    vectors: torch.Tensor, utterances: Iterable[Utterance]
) -> torch.Tensor:
    """The mean of each speaker's embeddings, in the order of first mention.

    From vectors [utterances, embedding] to [speakers, embedding].

    Example
    -------
    >>> utterances = [Utterance(n, "", n[0]) for n in ("a1", "b1", "a2")]
    >>> vectors = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 3.0]])
    >>> average_speakers(vectors, utterances)
    tensor([[0., 2.],
            [1., 0.]])
    """
    rows: dict[str | None, list[int]] = {}
    for row, utterance in enumerate(utterances):
        rows.setdefault(utterance.speaker, []).append(row)
    return average(vectors, list(rows.values()))


def score_trials(
    trial_list: TrialList,
    embeddings: Embeddings,
    backends: Mapping[str, Backend],
    cohort: torch.Tensor | None = None,
    score_norms: Collection[str] = (),
    cohort_top: int = 300,
    measures: Collection[str] = (),
) -> Scored:
    """Scores a trial list by all back-ends, without and with normalizations.

    The utterances of an enrolment are averaged. It is a ValueError if an
    embedding is missing, or as in `cohort_statistics`.

    Arguments
    ---------
    trial_list, embeddings
        The trials, and embeddings of all their utterances.
    backends
        By name. A score must not depend on which of two embeddings enrols.
    cohort
        Embeddings to normalize scores with [cohort, embedding].
    score_norms
        Keys of ``SCORE_NORMS``.
    cohort_top
        How many of the highest scores count in the adaptive normalization.
    measures
        Quality measures for calibration, of ``QUALITY_MEASURES``.
    """
    vectors, seconds, pairs = _voices(trial_list, embeddings)
    qualities = {}
    if "durations" in measures:
        qualities["duration"] = seconds.log()
    if "magnitudes" in measures:
        qualities["magnitude"] = vectors.norm(dim=1).log()
    scored = {}
    for name, backend in backends.items():
        # Scores are symmetric, and so are the statistics of an utterance.
        enrolments = backend.enrolment_side(vectors)
        tests = backend.test_side(vectors)
        statistics = {}
        if cohort is not None:
            against = backend.test_side(cohort)
            if {"z", "t", "s"} & set(score_norms):
                statistics["all"] = cohort_statistics(enrolments, against)
            if "adaptive_s" in score_norms or "cohort_means" in measures:
                statistics["top"] = cohort_statistics(
                    enrolments, against, cohort_top
                )
        scores = trial_scores(enrolments, tests, *pairs.T)
        of_norms = {name: scores}
        for norm in score_norms:
            part = "top" if norm == "adaptive_s" else "all"
            enrolment, test = _of_trials(statistics[part], pairs)
            title = SCORE_NORMS[norm].format(top=cohort_top)
            of_norms[f"{name}, {title}"] = normalize_scores(
                scores,
                None if norm == "t" else enrolment,
                None if norm == "z" else test,
            )
        if "cohort_means" in measures:
            qualities["cohort mean"] = statistics["top"][0]
        of_pairs = {
            name: values[pairs].unbind(1) for name, values in qualities.items()
        }
        features = quality_measures(**of_pairs)
        for title, values in of_norms.items():
            scored[title] = {"score": values, **features}
    return scored


def train_calibrations(
    lists: Sequence[TrialList], scored: Sequence[Scored]
) -> dict[str, Calibration]:
    """Fits calibrations to lists that `score_trials` has scored."""
    labels = torch.cat([each.labels for each in lists])
    return {
        name: train_calibration(
            {
                key: torch.cat([part[name][key] for part in scored])
                for key in features
            },
            labels,
        )
        for name, features in scored[0].items()
    }


def results_of(
    trial_list: TrialList, scored: Scored, calibrations: dict[str, Calibration]
) -> list[Result]:
    """What there is to report of a list: scores, and calibrated ones if any.

    It is a ValueError if a back-end has no calibration while others have, or it
    was trained on other quality measures.
    """
    results = []
    for name, features in scored.items():
        results.append(Result(trial_list, name, features["score"]))
        if not calibrations:
            continue
        if name not in calibrations:
            raise ValueError(
                f"calibration: it has none for {name}, only for "
                f"{'; '.join(calibrations)}"
            )
        ratios = calibrations[name](features)
        # Of the score alone: the order of the trials is the same.
        own_curve = len(features) > 1
        title = f"{name}, calibrated"
        results.append(Result(trial_list, title, ratios, own_curve))
    return results


def _voices(
    trial_list: TrialList, embeddings: Embeddings
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The distinct enrolments and test utterances of a trial list.

    Their embeddings [voices, embedding], the seconds of all utterances of each
    [voices], and enrolment and test of each trial [trials, 2].
    """
    row: dict[tuple[str, ...], int] = {}
    pairs = [
        [
            row.setdefault(tuple(utterances), len(row))
            for utterances in (trial_list.enrolments[enrolment], [test])
        ]
        for _, enrolment, test in trial_list.trials
    ]
    sizes = [len(utterances) for utterances in row]
    rows = embeddings.rows(name for names in row for name in names)
    groups = [group.tolist() for group in rows.split(sizes)]
    seconds = average(embeddings.seconds.unsqueeze(1), groups).flatten()
    vectors = average(embeddings.vectors, groups)
    return vectors, seconds * torch.tensor(sizes), torch.tensor(pairs)


def _of_trials(
    statistics: Iterable[torch.Tensor], pairs: torch.Tensor
) -> list[list[torch.Tensor]]:
    """Statistics [voices] of the enrolments and of the tests of trials."""
    return [[values[rows] for values in statistics] for rows in pairs.T]
