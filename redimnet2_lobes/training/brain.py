"""SpeechBrain's Brain on global batches, for trainings that can be resumed.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import math
import time
from collections.abc import Mapping
from typing import NamedTuple

import torch
from speechbrain.core import Brain, Stage
from speechbrain.utils.distributed import (
    if_main_process,
    is_distributed_initialized,
)
from speechbrain.utils.logger import get_logger
from speechbrain.utils.run_opts import RunOptions
from torch import nn
from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler
from torch.nn.parallel import DistributedDataParallel

from redimnet2_lobes.pretrained.loading import not_finite
from redimnet2_lobes.training.batches import EpochProgress, GlobalBatches
from redimnet2_lobes.training.sharded_classifier import ShardedClassifier

logger = get_logger(__name__)


class _Sums(NamedTuple):
    """What all processes have of a batch, on its way to the host."""

    step: int
    utterances: int
    # Loss, correct, replaced, whether a checkpoint is due [4].
    values: torch.Tensor
    copied: torch.cuda.Event | None  # None where the host has them


class GlobalBatchBrain(Brain):
    """A Brain whose steps are global batches, on any number of processes.

    It goes on from a checkpoint at any step, keeps the figures of an epoch in
    ``progress``, and ends a training that diverges before weights are saved.
    The host does not wait for a GPU: what a batch showed is read when the next
    one is queued, and at the latest before weights are checked or saved.

    What a subclass must do besides SpeechBrain's: ``compute_objectives`` calls
    ``classification_loss``, and a batch has ``replaced``, as ``TrainingCrops``
    gives it. ``on_stage_end`` calls ``check_weights`` first; only then is
    ``avg_train_loss`` that of the whole epoch.

    Takes what ``Brain`` takes, and the batches of this process. The modules are
    ``embedding_model``, ``classifier`` (which may be a ``ShardedClassifier``)
    and ``compute_cost``; the checkpointer is a ``CompleteCheckpointer``. Of the
    hyperparameters ``synchronize_batchnorm``, ``epoch_counter`` and
    ``epoch_random`` are used.

    Example
    -------
    >>> import numpy as np
    >>> from redimnet2_lobes.training.checkpointer import CompleteCheckpointer
    >>> brain = GlobalBatchBrain(
    ...     batches=GlobalBatches(np.zeros(8, dtype=int), 4, 2, seed=1),
    ...     modules={"embedding_model": nn.Linear(2, 2)},
    ...     hparams={},
    ...     run_opts=RunOptions(device="cpu"),
    ...     checkpointer=CompleteCheckpointer(getfixture("tmp_path")),
    ... )
    >>> brain.grad_accumulation_factor
    2
    """

    def __init__(
        self,
        *,
        batches: GlobalBatches,
        hparams: Mapping,
        run_opts: RunOptions,
        **kwargs,
    ):
        if run_opts.ckpt_interval_steps > 0:  # SpeechBrain takes one of them
            hparams = {**hparams, "ckpt_interval_minutes": 0}
        super().__init__(hparams=hparams, run_opts=run_opts, **kwargs)
        self.train_sampler = batches
        self.grad_accumulation_factor = batches.accumulation
        self.progress = EpochProgress()
        self._queued: _Sums | None = None
        self.checkpointer.add_recoverable("progress", self.progress)
        self.checkpointer.before_saving = self.check_weights
        if self._sharded():
            self._agree_on_skipped_steps()

    def _sharded(self) -> list[ShardedClassifier]:
        """Modules of which this process holds a share, no replica."""
        modules = map(unwrap, self.modules.values())
        return [each for each in modules if isinstance(each, ShardedClassifier)]

    def _agree_on_skipped_steps(self) -> None:
        """Lets all processes skip a step where the gradient of a share asks."""
        if self.skip_nonfinite_grads:
            raise ValueError(
                "skip_nonfinite_grads: with shard_classes: True processes may "
                "skip different weights; leave out one of the two"
            )
        if self.scaler.is_enabled():
            self.scaler = ShardedGradScaler(self.device)
            self.checkpointer.add_recoverable(
                "scaler", self.scaler, optional_load=True
            )

    def _wrap_distributed(self):
        # Without gradients a module is not wrapped.
        for module in self._sharded():
            module.requires_grad_(False)
        self._wrap_replicas()
        for module in self._sharded():
            module.requires_grad_(True)

    def _wrap_replicas(self) -> None:
        # Not public, but there is no other way: SpeechBrain's own makes every
        # BatchNorm a synchronized one, which the published training does not
        # have, and CPUs cannot do.
        on_cpu = self.device_type == "cpu"
        if not self.distributed_launch or self.hparams.synchronize_batchnorm:
            if self.distributed_launch and on_cpu:
                raise ValueError(
                    "synchronize_batchnorm: True is for GPUs; pass False"
                )
            super()._wrap_distributed()
            return
        for name, module in self.modules.items():
            if any(weight.requires_grad for weight in module.parameters()):
                self.modules[name] = DistributedDataParallel(
                    module,
                    None if on_cpu else [self.device],
                    find_unused_parameters=self.find_unused_parameters,
                )

    def _should_save_intra_epoch_ckpt(self, last_ckpt_time, steps_since_ckpt):
        # Not public, but there is no other way: SpeechBrain's asks the main
        # process after every batch, for which a GPU is waited for. Here the
        # clock of the main process comes with the sums. And between the parts
        # of a global batch there are gradients, which are not saved.
        minutes = (time.time() - last_ckpt_time) / 60
        self._is_late = 0 < self.ckpt_interval_minutes < minutes
        if self.step % self.grad_accumulation_factor:
            return False
        by_steps = 0 < self.ckpt_interval_steps <= steps_since_ckpt
        return self._is_due or by_steps

    def _save_intra_epoch_ckpt(self):
        super()._save_intra_epoch_ckpt()
        self._is_late = self._is_due = False

    def on_fit_start(self):
        """Goes on from the newest checkpoint."""
        super().on_fit_start()
        counter = self.hparams.epoch_counter
        if counter.current >= counter.limit:
            logger.info(
                f"Trained for {counter.current} epochs already; raise "
                "--number_of_epochs to go on"
            )

    def on_stage_start(self, stage, epoch=None):
        """Draws other crops in every epoch, from where it was left."""
        self.hparams.epoch_random.epoch = epoch
        # In steps and batches of today: global batch size and number of
        # processes may have been others before.
        steps = self.progress.utterances // self.train_sampler.global_batch_size
        self.train_sampler.first_step = steps
        self.step = steps * self.grad_accumulation_factor
        self._is_late = self._is_due = False
        self.batch_ended = time.perf_counter()

    def on_fit_batch_start(self, batch, should_step):
        """Notes the time: until now the batch was waited for."""
        self.batch_started = time.perf_counter()

    def fit_batch(self, batch) -> torch.Tensor:
        """Trains on a batch, and reads what the one before showed.

        It is SpeechBrain's without its looks at the loss, for each of which the
        host would wait. The loss of this process is returned, on the device.
        """
        should_step = self.step % self.grad_accumulation_factor == 0
        self.on_fit_batch_start(batch, should_step)
        with self.no_sync(not should_step):
            with self.training_ctx:
                outputs = self.compute_forward(batch, Stage.TRAIN)
                loss = self.compute_objectives(outputs, batch, Stage.TRAIN)
            part = loss / self.grad_accumulation_factor
            self.scaler.scale(part).backward()
        if should_step:
            self.optimizers_step()
        self.on_fit_batch_end(batch, outputs, loss, should_step)
        queued = self._queue_sums(batch, loss.detach())
        self._read_sums()
        self._queued = queued
        self.progress.seconds_waiting += self.batch_started - self.batch_ended
        self._count_seconds()
        return loss.detach()

    def update_average(self, loss, avg_loss):
        """Leaves the average as it is: it is kept where losses are read."""
        return avg_loss

    def _queue_sums(self, batch, loss: torch.Tensor) -> _Sums:
        """Sums over all processes, which nobody has waited for yet."""
        replaced = batch.replaced.to(self.device, non_blocking=True).sum()
        is_late = self._is_late and if_main_process()
        is_late = torch.full_like(replaced, is_late)
        values = torch.stack([loss, self.correct, replaced, is_late])
        utterances = len(batch.id)
        if self.distributed_launch:
            torch.distributed.all_reduce(values)
            utterances *= torch.distributed.get_world_size()
        copied = None
        if values.is_cuda:
            values = values.to("cpu", non_blocking=True)
            copied = torch.cuda.Event(blocking=True)
            copied.record()
        return _Sums(self.step, utterances, values, copied)

    def _read_sums(self) -> None:
        """Counts what the last batch that was queued showed."""
        if self._queued is None:
            return
        step, utterances, values, copied = self._queued
        self._queued = None
        if copied is not None:
            copied.synchronize()
        if self.distributed_launch:
            values[0] /= torch.distributed.get_world_size()
        loss, correct, replaced, is_late = values.tolist()
        if math.isfinite(loss):
            # As in SpeechBrain's update_average.
            self.avg_train_loss -= self.avg_train_loss / step
            self.avg_train_loss += loss / step
        else:
            self._end_unless_skipped(step)
        self.progress.correct += round(correct)
        self.progress.utterances += utterances
        self.progress.replaced += round(replaced)
        self._is_due = is_late > 0

    def _count_seconds(self) -> None:
        """Adds the time since the last batch."""
        now = time.perf_counter()
        self.progress.seconds += now - self.batch_ended
        self.batch_ended = now

    def _end_unless_skipped(self, step: int) -> None:
        """Ends a training whose loss is not finite, if the weights saw it."""
        self.nonfinite_count += 1
        skipped = self.scaler.is_enabled() or self.skip_nonfinite_grads
        if not skipped or self.nonfinite_count > self.nonfinite_patience:
            raise self.diverged("the loss", step)

    def classification_loss(
        self, cosines: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        """Loss of what the classifier gave; counts what is told rightly.

        The labels are [batch], of the classes.
        """
        classifier = unwrap(self.modules.classifier)
        if isinstance(classifier, ShardedClassifier):
            labels = classifier.own_labels(labels)
            self.correct = classifier.correct(cosines, labels)
            return self.modules.compute_cost(cosines, labels, classifier.shares)
        self.correct = (cosines.detach().squeeze(1).argmax(1) == labels).sum()
        # [batch, 1], as SpeechBrain's LogSoftmaxWrapper wants them.
        return self.modules.compute_cost(cosines, labels.unsqueeze(1))

    def use_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Makes it the only one, whose state is in checkpoints."""
        self.optimizer = optimizer
        self.optimizers_dict = {"opt_class": optimizer}
        classifier = unwrap(self.modules.classifier)
        hooks = {}
        if isinstance(classifier, ShardedClassifier):
            hooks = {
                "custom_load_hook": classifier.load_optimizer,
                "custom_save_hook": classifier.save_optimizer,
            }
        self.checkpointer.add_recoverable("optimizer", optimizer, **hooks)

    def class_weights(self) -> torch.Tensor | None:
        """All of them [classes, embedding], in the main process.

        Called in all processes, as each may hold a share.
        """
        classifier = unwrap(self.modules.classifier)
        if isinstance(classifier, ShardedClassifier):
            return classifier.whole(classifier.weight)
        return classifier.get_parameter("weight")

    def encode_batch(
        self, wavs: torch.Tensor, wav_lens: torch.Tensor
    ) -> torch.Tensor:
        """Embeddings of waveforms [batch, time] for validation, after eval().

        It is a ValueError if the network gives what is no number.
        """
        wavs, wav_lens = wavs.to(self.device), wav_lens.to(self.device)
        with torch.no_grad(), self.evaluation_ctx:
            embeddings = unwrap(self.modules.embedding_model)(wavs, wav_lens)
        # What is read of a file is finite, so that it is not the file's fault.
        if not embeddings.isfinite().all():
            raise self.diverged("what the network gives")
        return embeddings

    def check_weights(self) -> None:
        """Ends a training whose loss or weights are no numbers: ValueError.

        Before, it reads what the last batch showed. Called in all processes:
        where they hold shares, one may have the fault.
        """
        if self._queued is not None:
            self._read_sums()
            self._count_seconds()
        names = [first_not_finite(self.modules)]
        if shares := self._sharded():
            names *= shares[0].shares
            torch.distributed.all_gather_object(names, names[0])
        if name := next(filter(None, names), None):
            raise self.diverged(name)

    def diverged(self, what: str, step: int | None = None) -> ValueError:
        """The error that says where that was, and how to go on.

        ``step`` counts batches; None is the last one.
        """
        batch = self.step if step is None else step
        step = math.ceil(batch / self.grad_accumulation_factor)
        precision = "" if self.precision == "fp32" else " or --precision=fp32"
        go_on = "there is no checkpoint from before: start again"
        if self.checkpointer.list_checkpoints():
            go_on = (
                f"the checkpoints in {self.checkpointer.checkpoints_dir} are "
                "from before: go on from them"
            )
        return ValueError(
            f"epoch {self.hparams.epoch_counter.current}, step {step}: {what} "
            f"is not finite; {go_on} with a lower --initial_lr{precision}"
        )


def unwrap(module: nn.Module) -> nn.Module:
    """The module inside DistributedDataParallel and torch.compile's.

    Example
    -------
    >>> layer = nn.Linear(2, 2)
    >>> unwrap(nn.DataParallel(layer)) is unwrap(layer) is layer
    True
    """
    module = getattr(module, "module", module)
    return getattr(module, "_orig_mod", module)


def broadcast_buffers(module: nn.Module) -> None:
    """Gives all processes the buffers of the main one.

    Each has BatchNorm's statistics of its own batches since the last step.

    Example
    -------
    >>> broadcast_buffers(nn.BatchNorm1d(2))  # nothing in one process
    """
    if is_distributed_initialized():
        for buffer in module.buffers():
            torch.distributed.broadcast(buffer, src=0)


def first_not_finite(modules: Mapping[str, nn.Module]) -> str | None:
    """Names the first weight or statistic that holds NaN or infinity.

    Example
    -------
    >>> layer = nn.Linear(2, 2)
    >>> _ = nn.init.constant_(layer.bias, float("nan"))
    >>> first_not_finite({"classifier": layer})
    'classifier: bias'
    """
    for key, module in modules.items():
        if name := not_finite(unwrap(module).state_dict()):
            return f"{key}: {name}"
    return None
