"""SpeechBrain's Brain on global batches, for trainings that can be resumed.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import math
import time
from collections.abc import Mapping

import torch
from speechbrain.core import Brain
from speechbrain.utils.logger import get_logger
from speechbrain.utils.run_opts import RunOptions
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from redimnet2_lobes.pretrained.loading import not_finite
from redimnet2_lobes.training.batches import EpochProgress, GlobalBatches

logger = get_logger(__name__)


class GlobalBatchBrain(Brain):
    """A Brain whose steps are global batches, on any number of processes.

    It goes on from a checkpoint at any step, keeps the figures of an epoch in
    ``progress``, and ends a training that diverges before weights are saved.

    What a subclass must do besides SpeechBrain's: ``compute_objectives`` leaves
    in ``correct`` how many utterances of the batch are classified rightly, and
    a batch has ``replaced``, as ``TrainingCrops`` gives it.

    Takes what ``Brain`` takes, and the batches of this process. The
    checkpointer is a ``CompleteCheckpointer``; of the hyperparameters
    ``synchronize_batchnorm``, ``epoch_counter`` and ``epoch_random`` are used.

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
        self.checkpointer.add_recoverable("progress", self.progress)
        self.checkpointer.before_saving = self.check_weights

    def _wrap_distributed(self):
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

    def _should_save_intra_epoch_ckpt(self, *args):
        # Not public, but there is no other way to leave out the moments between
        # the parts of a global batch: gradients are not saved.
        complete = self.step % self.grad_accumulation_factor == 0
        return complete and super()._should_save_intra_epoch_ckpt(*args)

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
        self.batch_ended = time.perf_counter()

    def on_fit_batch_start(self, batch, should_step):
        """Notes the time: until now the batch was waited for."""
        self.batch_started = time.perf_counter()

    def fit_batch(self, batch) -> torch.Tensor:
        """Trains on a batch; the mean loss over those of all processes."""
        loss = super().fit_batch(batch)
        sums = torch.tensor(
            [loss, self.correct, len(batch.id), sum(batch.replaced), 1],
            device=self.device,
        )
        if self.distributed_launch:
            torch.distributed.all_reduce(sums)
        loss, *counts = sums.tolist()
        correct, utterances, replaced, processes = map(round, counts)
        if not math.isfinite(loss):
            self._end_unless_skipped()
        now = time.perf_counter()
        self.progress.correct += correct
        self.progress.utterances += utterances
        self.progress.replaced += replaced
        self.progress.seconds_waiting += self.batch_started - self.batch_ended
        self.progress.seconds += now - self.batch_ended
        self.batch_ended = now
        return torch.tensor(loss / processes)

    def check_loss_isfinite(self, loss):
        """Left to ``fit_batch``, where all processes see the same loss."""

    def _end_unless_skipped(self) -> None:
        """Ends a training whose loss is not finite, if the weights saw it."""
        self.nonfinite_count += 1
        skipped = self.scaler.is_enabled() or self.skip_nonfinite_grads
        if not skipped or self.nonfinite_count > self.nonfinite_patience:
            raise self.diverged("the loss")

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
        """Ends a training whose weights are no numbers, with a ValueError."""
        if name := first_not_finite(self.modules):
            raise self.diverged(name)

    def diverged(self, what: str) -> ValueError:
        """The error that says where that was, and how to go on."""
        step = math.ceil(self.step / self.grad_accumulation_factor)
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
