"""Validation by the equal error rate on a trial list.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import torch

from redimnet2_lobes.data.trial_files import TrialList
from redimnet2_lobes.inference.encode import EncodeBatch, encode_utterances
from redimnet2_lobes.scoring.backends import CosineBackend, trial_scores
from redimnet2_lobes.scoring.metrics import EER


def equal_error_rate(
    encode_batch: EncodeBatch,
    trials: TrialList,
    maximum_seconds: float,
    seconds_per_batch: float,
) -> float:
    """Equal error rate of the cosines of trials, per cent.

    The other arguments are those of `encode_utterances`.

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
