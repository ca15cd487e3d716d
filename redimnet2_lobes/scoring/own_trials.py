"""Trials of one's own recordings: each against all others.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from redimnet2_lobes.scoring.backends import CosineBackend, average

MOST_TRIALS = 1_000_000  # of each kind


class OwnTrials(NamedTuple):
    """Scores of recordings against each other, and what they are of."""

    scores: torch.Tensor  # [trials], cosines
    labels: torch.Tensor  # [trials], True where both are of one speaker
    speakers: torch.Tensor  # [trials, 2], their numbers: enrolment, test
    seconds: torch.Tensor  # [trials, 2], of enrolment and of test


def score_all(
    embeddings: torch.Tensor,
    speakers: Sequence[str],
    seconds: Sequence[float],
    enrolment_utterances: int = 1,
    most: int = MOST_TRIALS,
    seed: int = 0,
) -> OwnTrials:
    """Scores all recordings against each other.

    No recording is compared with itself. With several enrolment utterances the
    recordings of each speaker are split, in a drawn order, into enrolments of
    so many, with none in two. The mean of their embeddings, each of length 1
    before, is compared with all recordings that are not among them, as a store
    of voices does. What is left over is tested alone.

    Arguments
    ---------
    embeddings
        Of the recordings [recordings, embedding].
    speakers, seconds
        The speaker of each recording, and how long it is.
    enrolment_utterances
        How many recordings enrol a voice.
    most
        About so many trials of each kind are kept, drawn from all of them.
    seed
        Of what is drawn.

    Raises
    ------
    ValueError
        If there are no trials of one of the kinds.

    Example
    -------
    >>> trials = score_all(torch.eye(3), ["anna", "anna", "bert"], [1, 2, 3])
    >>> trials.labels, trials.seconds[0]
    (tensor([ True, False, False]), tensor([1., 2.]))
    """
    random = np.random.default_rng(seed)
    _, numbers, counts = np.unique(
        np.asarray(speakers), return_inverse=True, return_counts=True
    )
    enrolments = []
    for speaker, count in enumerate(counts):
        order = np.flatnonzero(numbers == speaker)
        if enrolment_utterances > 1:
            order = random.permutation(order)
        whole = count - count % enrolment_utterances
        enrolments += [*order[:whole].reshape(-1, enrolment_utterances)]
    once = enrolment_utterances == 1  # either recording may enrol: count one
    groups = counts // enrolment_utterances
    same = int((groups * (counts - enrolment_utterances)).sum())
    different = int((groups * (len(numbers) - counts)).sum())
    if not (same and different):
        raise ValueError(
            "too few recordings for trials of both kinds; it takes two "
            f"speakers, and of one {enrolment_utterances + 1} recordings"
        )
    share_of_kind = most * (1 + once) / np.array([different, same])

    lengths = torch.as_tensor(seconds, dtype=torch.float32)
    cosine = CosineBackend()
    tests = cosine.test_side(embeddings)
    voices = cosine.enrolment_side(
        average(tests, [group.tolist() for group in enrolments])
    )
    found = []
    for group, voice in zip(enrolments, voices, strict=True):
        is_same = numbers == numbers[group[0]]
        kept = random.random(len(numbers)) < share_of_kind[is_same.astype(int)]
        kept[group] = False
        if once:
            kept[: group[0]] = False
        tested = torch.from_numpy(np.flatnonzero(kept))
        enrolled = torch.full_like(tested, int(numbers[group[0]]))
        found.append(
            OwnTrials(
                tests[tested] @ voice,
                torch.from_numpy(is_same)[tested],
                torch.stack([enrolled, torch.from_numpy(numbers)[tested]], 1),
                torch.stack(
                    [
                        lengths[group].sum().expand(len(tested)),
                        lengths[tested],
                    ],
                    dim=1,
                ),
            )
        )
    return OwnTrials(*map(torch.cat, zip(*found, strict=True)))
