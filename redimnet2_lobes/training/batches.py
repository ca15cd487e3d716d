"""Batches of an epoch, for one process or many, from its start or its middle.

What an optimizer step sees follows from the seed, the epoch and the step alone:
not from the workers that read, nor from the number of processes, nor from
whether the run was interrupted.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import json

import numpy as np
from speechbrain.utils.checkpoints import (
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
)
from torch.utils.data import Sampler


class GlobalBatches(Sampler):
    """Batches of one process, of which those of all processes are parts.

    A global batch is what an optimizer step sees: ``batch_size`` utterances in
    each of ``processes`` processes, ``accumulation`` times. Which utterances
    it holds does not depend on how it is divided. The last utterances of an
    epoch, too few for a global batch, are left out.

    Arguments
    ---------
    shards : numpy.ndarray
        The shard of each utterance [utterances]. So that shards are read one
        after the other, only so many are mixed at a time.
    global_batch_size : int
        Utterances of an optimizer step.
    batch_size : int
        The most utterances of a batch.
    seed : int
        Seed of the order.
    process : int
        Number of this process, from 0.
    processes : int
        Number of processes.
    shards_at_once : int
        Shards to mix.

    Example
    -------
    >>> one_shard = np.zeros(9, dtype=int)
    >>> batches = GlobalBatches(one_shard, 4, 2, seed=1)
    >>> batches.steps, batches.accumulation
    (2, 2)
    >>> [len(batch) for batch in batches]
    [2, 2, 2, 2]
    """

    def __init__(
        self,
        shards,
        global_batch_size,
        batch_size,
        seed,
        process=0,
        processes=1,
        shards_at_once=32,
    ):
        if global_batch_size % processes:
            raise ValueError(
                f"global_batch_size: {global_batch_size} cannot be divided "
                f"among {processes} processes"
            )
        if len(shards) < global_batch_size:
            raise ValueError(
                f"global_batch_size: {global_batch_size} is more than the "
                f"{len(shards)} training utterances; pass a smaller one"
            )
        share = global_batch_size // processes
        # The fewest equal parts that are small enough.
        self.accumulation = next(
            parts
            for parts in range(1, share + 1)
            if share % parts == 0 and share // parts <= batch_size
        )
        self.batch_size = share // self.accumulation
        self.global_batch_size = global_batch_size
        self.shards = shards
        self.seed = seed
        self.process = process
        self.processes = processes
        self.shards_at_once = shards_at_once
        self.steps = len(shards) // global_batch_size
        self.epoch = 1
        self.first_step = 0

    def set_epoch(self, epoch):
        """Another order, from its beginning; called by SpeechBrain's Brain."""
        self.epoch = epoch

    def __len__(self):
        """Batches of a whole epoch."""
        return self.steps * self.accumulation

    def __iter__(self):
        """Yields lists of positions, from step ``first_step`` on."""
        order = self._order()
        for step in range(self.first_step, self.steps):
            start = step * self.global_batch_size
            batch = order[start : start + self.global_batch_size]
            parts = batch.reshape(
                self.accumulation, self.processes, self.batch_size
            )
            yield from parts[:, self.process].tolist()

    def _order(self):
        random = np.random.default_rng([self.seed, self.epoch])
        shards = random.permutation(self.shards.max() + 1)
        window = np.empty_like(shards)
        window[shards] = np.arange(len(shards)) // self.shards_at_once
        order = random.permutation(len(self.shards))
        return order[np.argsort(window[self.shards[order]], kind="stable")]


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

    def reset(self):
        """Starts an epoch."""
        self.utterances = 0
        self.correct = 0
        self.replaced = 0
        self.seconds = 0.0
        self.seconds_waiting = 0.0  # for data

    @mark_as_saver
    def save(self, path):
        """Saves it as JSON, for SpeechBrain's Checkpointer."""
        with open(path, "w", encoding="utf-8") as file:
            json.dump(vars(self), file)

    @mark_as_loader
    def load(self, path, end_of_epoch):
        """Goes on from where it was, or starts the next epoch."""
        self.reset()
        if end_of_epoch:
            return
        with open(path, encoding="utf-8") as file:
            vars(self).update(json.load(file))
