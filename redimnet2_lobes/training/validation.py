"""Validation by the equal error rate on a trial list.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

from collections.abc import Callable
from typing import Any

import torch
from speechbrain.utils.distributed import is_distributed_initialized

from redimnet2_lobes.data.trial_files import TrialList
from redimnet2_lobes.files.error_lines import one_line
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

    With ``torch.distributed`` initialized, all processes call this with the
    same arguments, share the utterances and return the same. It does not depend
    on their number. An error of one process is raised in all, as a ValueError
    in the others.

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
    embeddings = {}
    for share in _in_all_processes(
        lambda process, processes: encode_utterances(
            encode_batch,
            trials.paths.values(),
            seconds_per_batch=seconds_per_batch,
            maximum_seconds=maximum_seconds,
            share=(process, processes),
        )
    ):
        embeddings.update(share)
    units = CosineBackend().test_side(
        torch.stack([embeddings[path] for path in trials.paths.values()])
    )
    row = {name: row for row, name in enumerate(trials.paths)}
    pairs = torch.tensor([[row[a], row[b]] for _, a, b in trials.trials])
    scores = trial_scores(units, units, *pairs.T)
    return 100 * EER(scores[trials.labels], scores[~trials.labels])[0]


def _in_all_processes(compute: Callable[[int, int], Any]) -> list[Any]:
    """What a function gives in each process, or the error of the first.

    It gets the number of its process, from 0, and that of all.
    """
    distributed = torch.distributed
    if not is_distributed_initialized():
        return [compute(0, 1)]
    processes = distributed.get_world_size()
    result, error = None, None
    try:
        result = compute(distributed.get_rank(), processes)
    except Exception as caught:
        # The others wait for what is gathered, and have to know.
        error = caught
    outcomes: list[Any] = [None] * processes
    outcome = result, None if error is None else one_line(error)
    distributed.all_gather_object(outcomes, outcome)
    if error is not None:
        raise error
    for _, message in outcomes:
        if message is not None:
            raise ValueError(message)
    return [result for result, _ in outcomes]
