"""Validation by the equal error rate on a trial list.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

from collections.abc import Callable

import torch

from redimnet2_lobes.data.trial_files import TrialList
from redimnet2_lobes.inference.encode import encode_utterances
from redimnet2_lobes.scoring.backends import CosineBackend, trial_scores
from redimnet2_lobes.scoring.metrics import EER


def equal_error_rate(
    encode_batch: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    trials: TrialList,
    maximum_seconds: float,
    seconds_per_batch: float,
) -> float:
    """Equal error rate of the cosines of trials, per cent.

    Arguments
    ---------
    encode_batch
        Waveforms [batch, time] and relative lengths [batch] to embeddings, as
        ``encode_utterances`` takes it.
    trials
        The trials and their files.
    maximum_seconds
        What of each utterance is used, from its start.
    seconds_per_batch
        Seconds of audio in a batch, padding included.

    Example
    -------
    >>> import soundfile
    >>> folder = getfixture("tmp_path")
    >>> paths = {name: str(folder / name) for name in ("a", "b", "c")}
    >>> for path, noise in zip(paths.values(), torch.randn(3, 800)):
    ...     soundfile.write(path, noise.numpy(), 16000, format="WAV")
    >>> trials = [(1, "a", "a"), (0, "a", "b"), (0, "b", "c")]
    >>> trials = TrialList("three", trials, {}, paths)
    >>> equal_error_rate(lambda wavs, _: wavs[:, None, :400], trials, 8.0, 60.0)
    0.0
    """
    embeddings = encode_utterances(
        encode_batch,
        trials.paths.values(),
        seconds_per_batch=seconds_per_batch,
        maximum_seconds=maximum_seconds,
    )
    units = CosineBackend().test_side(
        torch.stack([embeddings[path] for path in trials.paths.values()])
    )
    row = {name: row for row, name in enumerate(trials.paths)}
    pairs = torch.tensor([[row[a], row[b]] for _, a, b in trials.trials])
    scores = trial_scores(units, units, *pairs.T)
    return 100 * EER(scores[trials.labels], scores[~trials.labels])[0]
