"""Batches of an epoch, for one process or many, from its start or its middle.

What an optimizer step sees follows from the seed, the epoch and the step alone:
not from the workers that read, nor from the number of processes, nor from
whether the run was interrupted.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from speechbrain.utils.checkpoints import (
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
)
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import Sampler

# Of a corpus in shards so many are mixed at a time, and read one after the
# other.
SHARDS_AT_ONCE = 32


class GlobalBatches(Sampler):
    """Batches of one process, of which those of all processes are parts.

    A global batch is what an optimizer step sees: ``batch_size`` utterances in
    each of ``processes`` processes, ``accumulation`` times. Which utterances
    it holds does not depend on how it is divided. The last utterances of an
    epoch, too few for a global batch, are left out. It is a ValueError if a
    global batch cannot be divided, or there are too few utterances.

    With replay each global batch has the same number of utterances from
    another list, drawn anew in every epoch; an epoch is over when all others
    have been seen.

    Arguments
    ---------
    shards
        The shard of each utterance [utterances], from 0.
    global_batch_size
        Utterances of an optimizer step.
    batch_size
        The most utterances of a batch.
    process
        Number of this process, from 0.
    replayed
        How many utterances, the last ones of ``shards``, are there for replay.
    replay_share
        Their share of each global batch, rounded to whole utterances.

    Example
    -------
    >>> one_shard = np.zeros(9, dtype=int)
    >>> batches = GlobalBatches(one_shard, 4, 2, seed=1)
    >>> batches.steps, batches.accumulation
    (2, 2)
    >>> [len(batch) for batch in batches]
    [2, 2, 2, 2]
    >>> batches = GlobalBatches(
    ...     np.zeros(99, dtype=int), 4, 4, 1, replayed=90, replay_share=0.5
    ... )
    >>> batches.steps
    4
    >>> [sum(position >= 9 for position in batch) for batch in batches]
    [2, 2, 2, 2]
    """

    def __init__(
        self,
        shards: np.ndarray,
        global_batch_size: int,
        batch_size: int,
        seed: int,
        process: int = 0,
        processes: int = 1,
        replayed: int = 0,
        replay_share: float = 0.0,
    ):
        if global_batch_size % processes:
            raise ValueError(
                f"global_batch_size: {global_batch_size} cannot be divided "
                f"among {processes} processes"
            )
        self.new = len(shards) - replayed
        # Utterances of a global batch, from replay and from the others.
        self.of_replay = 0
        if replayed:
            self.of_replay = round(replay_share * global_batch_size)
            if self.of_replay in (0, global_batch_size):
                raise ValueError(
                    f"replay_share: {replay_share} of {global_batch_size} "
                    f"crops is {self.of_replay}; pass another, or a larger "
                    "global_batch_size"
                )
        self.of_new = global_batch_size - self.of_replay
        if self.new < self.of_new:
            part = f"{self.of_new} of " if replayed else ""
            raise ValueError(
                f"global_batch_size: {part}{global_batch_size} is more than "
                f"the {self.new} training utterances; pass a smaller one"
            )
        self.steps = self.new // self.of_new
        if replayed < self.steps * self.of_replay:
            raise ValueError(
                f"replay_share: {replay_share} takes "
                f"{self.steps * self.of_replay} utterances of replay_lists an "
                f"epoch, which have {replayed}; pass a lower one"
            )
        share = global_batch_size // processes
        # The fewest equal parts that are small enough.
        self.accumulation = next(
            parts
            for parts in range(1, share + 1)
            if share % parts == 0 and share // parts <= batch_size
        )
        self.batch_size = share // self.accumulation
        self.most_at_a_time = batch_size
        self.global_batch_size = global_batch_size
        self.shards = shards
        self.seed = seed
        self.process = process
        self.processes = processes
        self.epoch = 1
        self.first_step = 0

    def set_epoch(self, epoch: int) -> None:
        """Another order, from its beginning; called by SpeechBrain's Brain."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Batches of an epoch."""
        return self.steps * self.accumulation

    def __iter__(self) -> Iterator[list[int]]:
        """Yields lists of positions, from step ``first_step`` on."""
        order = self._order()
        for step in range(self.first_step, self.steps):
            start = step * self.global_batch_size
            batch = order[start : start + self.global_batch_size]
            parts = batch.reshape(
                self.accumulation, self.processes, self.batch_size
            )
            yield from parts[:, self.process].tolist()

    def _order(self) -> np.ndarray:
        random = np.random.default_rng([self.seed, self.epoch])
        order = _shuffled(self.shards[: self.new], random)
        if not self.of_replay:
            return order
        replay = self.new + _shuffled(self.shards[self.new :], random)
        # [steps, global batch], each row mixed, since it is divided in parts.
        rows = [
            each[: self.steps * number].reshape(self.steps, number)
            for each, number in (
                (order, self.of_new),
                (replay, self.of_replay),
            )
        ]
        return random.permuted(np.concatenate(rows, axis=1), axis=1).ravel()


def _shuffled(shards: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """An order of utterances in which few shards are mixed at a time."""
    numbers = random.permutation(shards.max() + 1)
    window = np.empty_like(numbers)
    window[numbers] = np.arange(len(numbers)) // SHARDS_AT_ONCE
    order = random.permutation(len(shards))
    return order[np.argsort(window[shards[order]], kind="stable")]


def check_batch_norm(
    batches: GlobalBatches, network: nn.Module, synchronized: bool
) -> None:
    """Refuses, with a ValueError, BatchNorm on batches of one utterance.

    The network is put into training mode. Synchronized statistics are those of
    all processes.

    Example
    -------
    >>> batches = GlobalBatches(np.zeros(9, dtype=int), 3, 2, seed=1)
    >>> check_batch_norm(batches, nn.Linear(2, 2), synchronized=False)
    >>> check_batch_norm(batches, nn.BatchNorm1d(2), synchronized=False)
    Traceback (most recent call last):
    ValueError: global_batch_size: 3 for 1 process(es) and batch_size 2 can be \
divided into parts of one utterance only, and BatchNorm needs two; pass \
another global_batch_size or a larger batch_size
    """
    together = synchronized and batches.processes > 1
    normalizes = any(
        isinstance(module, _BatchNorm) and module.training
        for module in network.train().modules()
    )
    if batches.batch_size == 1 and normalizes and not together:
        raise ValueError(
            f"global_batch_size: {batches.global_batch_size} for "
            f"{batches.processes} process(es) and batch_size "
            f"{batches.most_at_a_time} can be divided into parts of one "
            "utterance only, and BatchNorm needs two; pass another "
            "global_batch_size or a larger batch_size"
        )


@register_checkpoint_hooks
class EpochProgress:
    """How far an epoch is and what it showed, for checkpoints in its middle.

    Example
    -------
    >>> progress = EpochProgress()
    >>> progress.utterances += 64
    >>> progress.save(getfixture("tmp_path") / "progress.ckpt")
    >>> resumed = EpochProgress()
    >>> resumed.load(getfixture("tmp_path") / "progress.ckpt", False)
    >>> resumed.utterances
    64
    """

    def __init__(self):
        self.reset()

    def reset(self) -> None:
        """Starts an epoch."""
        self.utterances = 0
        self.correct = 0
        self.replaced = 0
        self.seconds = 0.0
        self.seconds_waiting = 0.0  # of the host, for data

    def figures(self) -> dict[str, float]:
        """What the log of an epoch says of it."""
        # Nothing was done if a run resumes at the very end of an epoch that
        # had a checkpoint there.
        seconds = max(self.seconds, 1e-9)
        return {
            "accuracy": self.correct / max(self.utterances, 1),
            "crops per second": self.utterances / seconds,
            "share of time waiting": self.seconds_waiting / seconds,
            "unusable files": self.replaced,
        }

    @mark_as_saver
    def save(self, path: Path) -> None:
        """Saves it as JSON, for SpeechBrain's Checkpointer."""
        path.write_text(json.dumps(vars(self)), encoding="utf-8")

    @mark_as_loader
    def load(self, path: Path, end_of_epoch: bool) -> None:
        """Goes on from where it was, or starts the next epoch."""
        self.reset()
        if not end_of_epoch:
            vars(self).update(json.loads(path.read_text(encoding="utf-8")))
