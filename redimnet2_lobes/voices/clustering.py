"""Whose voice each window of a recording is, by SpeechBrain's clustering.

That is its spectral clustering (``Spec_Clust_unorm``): cosines, of which each
window keeps the largest, the Laplacian of what is left, the number of speakers
from the gaps between its eigenvalues, k-means. Added is what it lacks: one
speaker, few windows, bounds of the number, repeatable results, long recordings.

Its parameters were tuned on conversations of the demo's training voices.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import contextlib
from collections.abc import Iterator

import numpy as np
import scipy.linalg
import torch
from torch.nn.functional import normalize

KEPT = 0.05  # share of the cosines that each window keeps
FEWEST_KEPT = 10
ONE_VOICE = 0.72  # cosine of two halves that are one speaker
# What a change of the speaker costs, as a share of how much more alike windows
# are to their speaker than to all.
CHANGE = 0.8
MOST_WINDOWS = 2000  # the time of eigenvalues grows with their third power
MOST_SPEAKERS = 10


def cluster_windows(
    embeddings: torch.Tensor, speakers: tuple[int, int] = (1, MOST_SPEAKERS)
) -> torch.Tensor:
    """The speaker of each window, from 0 as they begin to speak [windows].

    ``embeddings`` [windows, embedding] are of windows in the order of time;
    ``speakers`` are the fewest and the most that there may be. There are never
    more than windows, and a speaker whom no window is most like is left out.

    Example
    -------
    >>> voices = torch.eye(2).repeat_interleave(20, dim=0)
    >>> cluster_windows(voices).unique_consecutive()
    tensor([0, 1])
    >>> cluster_windows(voices, (1, 1)).unique()
    tensor([0])
    """
    embeddings = normalize(embeddings.double(), dim=1)
    count = len(embeddings)
    fewest, most = (min(bound, count) for bound in speakers)
    if most < 2:
        return torch.zeros(count, dtype=torch.int64)
    # A window is too short to be sure of, so it is taken with its neighbours.
    steady = embeddings.clone()
    steady[1:] += embeddings[:-1]
    steady[:-1] += embeddings[1:]
    steady = normalize(steady, dim=1)
    step = -(-count // MOST_WINDOWS)
    labels = _spectral(steady[::step], fewest, most)
    labels = _speakers_in_time(
        embeddings, mean_directions(embeddings[::step], labels)
    )
    order = list(dict.fromkeys(labels))
    return torch.tensor([order.index(label) for label in labels])


def mean_directions(
    embeddings: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """The mean embedding of each label, of length 1 [labels, embedding].

    Example
    -------
    >>> mean_directions(torch.eye(2), torch.tensor([1, 0]))
    tensor([[0., 1.],
            [1., 0.]])
    """
    directions = normalize(embeddings, dim=1)
    return normalize(
        torch.stack(
            [directions[labels == one].mean(0) for one in labels.unique()]
        ),
        dim=1,
    )


def _spectral(embeddings: torch.Tensor, fewest: int, most: int) -> torch.Tensor:
    """Speakers by spectral clustering, each with a window at least."""
    with _numpy_random_kept():
        try:
            from sklearn.cluster import k_means
            from speechbrain.integrations.alignment.diarization import (
                Spec_Clust_unorm,
            )
        except ImportError as error:
            raise ValueError(
                f"diarization needs scikit-learn ({error}); pip install "
                "'redimnet2-lobes[diarization]'"
            ) from None
    count = len(embeddings)
    clustering = Spec_Clust_unorm()
    alike = clustering.get_sim_mat(embeddings.numpy())
    kept = clustering.p_pruning(alike, max(KEPT, FEWEST_KEPT / count))
    laplacian = clustering.get_laplacian((kept + kept.T) / 2)
    values, vectors = scipy.linalg.eigh(
        laplacian, subset_by_index=[0, min(most, count - 1)]
    )

    def split(speakers: int) -> torch.Tensor:
        _, labels, _ = k_means(
            vectors[:, :speakers], speakers, random_state=0, n_init=10
        )
        return torch.from_numpy(labels).long()

    if fewest < 2:
        halves = split(2)
        means = mean_directions(embeddings, halves)
        if len(means) < 2 or means[0] @ means[1] > ONE_VOICE:
            return torch.zeros(count, dtype=torch.int64)
    gaps = clustering.getEigenGaps(values.tolist())
    fewest = max(fewest, 2)
    # The gap behind eigenvalue n, the first being 0, speaks for n speakers.
    candidates = gaps[fewest - 1 : most]
    return split(fewest + (int(np.argmax(candidates)) if candidates else 0))


def _speakers_in_time(
    embeddings: torch.Tensor, means: torch.Tensor
) -> list[int]:
    """The speakers of windows in a row that are most alike, with few changes.

    Viterbi's algorithm: the sum of cosines, less what the changes cost.
    """
    scores = (embeddings @ means.T).numpy()
    cost = CHANGE * (scores.max(axis=1) - scores.mean(axis=1)).mean()
    best = scores[0]
    came_from = []
    for score in scores[1:]:
        changed = best.argmax()
        stays = best >= best[changed] - cost
        came_from.append(np.where(stays, np.arange(len(best)), changed))
        best = score + np.maximum(best, best[changed] - cost)
    path = [int(best.argmax())]
    for before in reversed(came_from):
        path.append(int(before[path[-1]]))
    return path[::-1]


@contextlib.contextmanager
def _numpy_random_kept() -> Iterator[None]:
    """Keeps the caller's random state: SpeechBrain seeds it when imported."""
    state = np.random.get_state()
    try:
        yield
    finally:
        np.random.set_state(state)
