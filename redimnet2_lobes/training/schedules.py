"""Learning-rate and margin schedules that move at every training step.

A schedule counts its calls: call it once before every optimizer step (in
``Brain.on_fit_batch_start``), since the first call sets the value of step 0.
Put it among the recoverables of the checkpointer, and a resumed run continues
the curve. Epochs may be fractions; an argument out of its range is a
ValueError. ``steps_per_epoch`` are optimizer steps; it may be left out, and set
as an attribute when the data is read. The ``scale`` of a learning rate is a
factor of the whole curve: as a rule, global batch / 64.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import json
import math
from pathlib import Path
from typing import Any

import torch
from speechbrain.nnet.losses import AdditiveAngularMargin
from speechbrain.utils import checkpoints

from redimnet2_lobes.files.settings import require_number, require_positive


@checkpoints.register_checkpoint_hooks
class _StepSchedule:
    """Counts steps and translates them to epochs."""

    def __init__(self, steps_per_epoch: int | None):
        self.step = 0
        self._steps_per_epoch = None
        if steps_per_epoch is not None:
            self.steps_per_epoch = steps_per_epoch

    @property
    def steps_per_epoch(self) -> int | None:
        """Calls per epoch: optimizer steps, not utterances.

        Set it once the data is read, before the first call. Setting another
        number later (a run resumed with another batch size) keeps the position
        in epochs.
        """
        return self._steps_per_epoch

    @steps_per_epoch.setter
    def steps_per_epoch(self, steps_per_epoch: int) -> None:
        if not isinstance(steps_per_epoch, int) or steps_per_epoch < 1:
            raise ValueError(
                "steps_per_epoch must be a positive integer, got "
                f"{steps_per_epoch!r}"
            )
        if self._steps_per_epoch is not None:
            ratio = steps_per_epoch / self._steps_per_epoch
            self.step = round(self.step * ratio)
        self._steps_per_epoch = steps_per_epoch

    def value_at(self, step: int) -> float:
        """The learning rate or the margin of a step, counted from 0."""
        if self._steps_per_epoch is None:
            raise ValueError(
                "steps_per_epoch is not set: give the number of batches per "
                "epoch before the first step"
            )
        return self._value_after(step / self._steps_per_epoch)

    def _value_after(self, epochs_passed: float) -> float:
        raise NotImplementedError

    @checkpoints.mark_as_saver
    def save(self, path: Path) -> None:
        """Saves the position as JSON, for SpeechBrain's Checkpointer."""
        position = {"step": self.step, "steps_per_epoch": self._steps_per_epoch}
        path.write_text(json.dumps(position), encoding="utf-8")

    @checkpoints.mark_as_loader
    def load(self, path: Path, end_of_epoch: bool = False) -> None:
        """Continues from a saved position, for SpeechBrain's Checkpointer."""
        del end_of_epoch  # The step alone says where the run was.
        position = json.loads(path.read_text(encoding="utf-8"))
        current = self._steps_per_epoch
        self.step = position["step"]
        self._steps_per_epoch = position["steps_per_epoch"]
        if current is not None:
            self.steps_per_epoch = current


class _WarmupSchedule(_StepSchedule):
    """A learning rate that starts with a linear warm-up from zero."""

    def __init__(
        self,
        initial_lr: float,
        warmup_epochs: float,
        steps_per_epoch: int | None,
        scale: float,
    ):
        require_positive("initial_lr", initial_lr)
        require_number("warmup_epochs", warmup_epochs)
        require_positive("scale", scale)
        super().__init__(steps_per_epoch)
        self.initial_lr = initial_lr
        self.warmup_epochs = warmup_epochs
        self.scale = scale

    def __call__(self, optimizer: torch.optim.Optimizer) -> float:
        """Sets this step's learning rate, and returns it."""
        lr = self.value_at(self.step)
        for group in optimizer.param_groups:
            group["lr"] = lr
        self.step += 1
        return lr

    def _value_after(self, epochs_passed: float) -> float:
        lr = self.scale * self.initial_lr
        if epochs_passed < self.warmup_epochs:
            lr *= epochs_passed / self.warmup_epochs
        return lr * self._decay_after(epochs_passed)

    def _decay_after(self, epochs_passed: float) -> float:
        raise NotImplementedError


class WarmupExponentialSchedule(_WarmupSchedule):
    """Exponential decay of the learning rate with a linear warm-up from zero.

    After x epochs the learning rate is::

        scale * min(x / warmup_epochs, 1)
        * initial_lr * (final_lr / initial_lr) ** (x / epochs)

    and stays at scale * final_lr when the epochs are over. The decay begins
    with the first step, whereas SpeechBrain's ``WarmAndExpDecayLRSchedule``
    does not decay during the warm-up.

    Arguments
    ---------
    initial_lr, final_lr
        The learning rates from which the decay starts and where it ends.
    warmup_epochs
        Length of the warm-up; 0 for none.
    epochs
        Length of training.
    steps_per_epoch, scale
        See the head of this file.

    Example
    -------
    >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1)
    >>> schedule = WarmupExponentialSchedule(
    ...     initial_lr=0.1, final_lr=0.001, warmup_epochs=1, epochs=2
    ... )
    >>> schedule.steps_per_epoch = 2
    >>> [round(schedule(optimizer), 5) for _ in range(5)]
    [0.0, 0.01581, 0.01, 0.00316, 0.001]
    """

    def __init__(
        self,
        initial_lr: float,
        final_lr: float,
        warmup_epochs: float,
        epochs: float,
        steps_per_epoch: int | None = None,
        scale: float = 1.0,
    ):
        require_positive("final_lr", final_lr)
        require_positive("epochs", epochs)
        super().__init__(initial_lr, warmup_epochs, steps_per_epoch, scale)
        self.final_lr = final_lr
        self.epochs = epochs

    def _decay_after(self, epochs_passed: float) -> float:
        decay = math.log(self.final_lr / self.initial_lr)
        return math.exp(decay * min(epochs_passed / self.epochs, 1))


class WarmupPlateauSchedule(_WarmupSchedule):
    """Linear warm-up from zero, a plateau, then smooth halvings.

    The learning rate rises to scale * initial_lr, stays there for the epochs of
    the plateau, and x epochs after its end is::

        scale * initial_lr * 0.5 ** (x / halving_epochs)

    Arguments
    ---------
    initial_lr
        The learning rate of the plateau.
    warmup_epochs
        Length of the warm-up; 0 for none.
    plateau_epochs
        Length of the plateau, from the end of the warm-up on.
    halving_epochs
        Epochs in which the learning rate halves after the plateau.
    steps_per_epoch, scale
        See the head of this file.

    Example
    -------
    >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1)
    >>> schedule = WarmupPlateauSchedule(
    ...     initial_lr=0.1, warmup_epochs=1, plateau_epochs=1, halving_epochs=1
    ... )
    >>> schedule.steps_per_epoch = 2
    >>> [round(schedule(optimizer), 5) for _ in range(7)]
    [0.0, 0.05, 0.1, 0.1, 0.1, 0.07071, 0.05]
    """

    def __init__(
        self,
        initial_lr: float,
        warmup_epochs: float,
        plateau_epochs: float,
        halving_epochs: float,
        steps_per_epoch: int | None = None,
        scale: float = 1.0,
    ):
        require_number("plateau_epochs", plateau_epochs)
        require_positive("halving_epochs", halving_epochs)
        super().__init__(initial_lr, warmup_epochs, steps_per_epoch, scale)
        self.plateau_epochs = plateau_epochs
        self.halving_epochs = halving_epochs

    def _decay_after(self, epochs_passed: float) -> float:
        plateau_end = self.warmup_epochs + self.plateau_epochs
        decaying = max(epochs_passed - plateau_end, 0)
        return 0.5 ** (decaying / self.halving_epochs)


class MarginSchedule(_StepSchedule):
    """Lets the margin of a loss grow, fast at first and then ever slower.

    At a fraction x of the way from increase_start_epoch to fix_start_epoch, a
    share of 1 - r^x of the difference has been added, with
    r = 0.001 / (1 + 1e-6) as in the published application.

    Arguments
    ---------
    increase_start_epoch
        The epoch (counted from 1) at whose start the margin begins to grow.
    fix_start_epoch
        The epoch (counted from 1) from whose start the margin is final.
    steps_per_epoch
        See the head of this file.

    Example
    -------
    >>> from redimnet2_lobes.training.losses import SphereFace2
    >>> epochs = dict(increase_start_epoch=2, fix_start_epoch=3)
    >>> schedule = MarginSchedule(0.0, 0.2, **epochs)
    >>> schedule.steps_per_epoch = 2
    >>> [round(schedule(SphereFace2()), 4) for _ in range(5)]
    [0.0, 0.0, 0.0, 0.1937, 0.2]
    """

    def __init__(
        self,
        initial_margin: float,
        final_margin: float,
        increase_start_epoch: float,
        fix_start_epoch: float,
        steps_per_epoch: int | None = None,
    ):
        require_number("initial_margin", initial_margin)
        require_number("final_margin", final_margin)
        require_number("increase_start_epoch", increase_start_epoch, 1)
        require_number("fix_start_epoch", fix_start_epoch, increase_start_epoch)
        super().__init__(steps_per_epoch)
        self.initial_margin = initial_margin
        self.final_margin = final_margin
        self.increase_start_epoch = increase_start_epoch
        self.fix_start_epoch = fix_start_epoch

    def __call__(self, loss: torch.nn.Module) -> float:
        """Sets this step's margin, and returns it.

        The loss has an attribute ``margin``, or is a wrapper of one that has
        (SpeechBrain's LogSoftmaxWrapper, torch's DistributedDataParallel). It
        is a ValueError if it has none that can be changed.
        """
        margin = self.value_at(self.step)
        _with_margin(loss).margin = margin
        self.step += 1
        return margin

    def _value_after(self, epochs_passed: float) -> float:
        epoch = epochs_passed + 1
        if epoch >= self.fix_start_epoch:
            return self.final_margin
        if epoch < self.increase_start_epoch:
            return self.initial_margin
        grown = (epoch - self.increase_start_epoch) / (
            self.fix_start_epoch - self.increase_start_epoch
        )
        share = 1 - (0.001 / (1 + 1e-6)) ** grown
        difference = self.final_margin - self.initial_margin
        return self.initial_margin + difference * share


def _with_margin(loss: torch.nn.Module) -> Any:
    """The module that holds the margin."""
    inner = getattr(loss, "module", loss)
    inner = getattr(inner, "loss_fn", inner)
    if isinstance(inner, AdditiveAngularMargin):
        raise ValueError(
            "speechbrain's AdditiveAngularMargin ignores a margin set later: "
            "use redimnet2_lobes.AdditiveAngularMarginLoss"
        )
    if not hasattr(inner, "margin"):
        raise ValueError(
            f"the loss {type(inner).__name__} has no margin: leave out the "
            "margin schedule or take a loss with a margin"
        )
    return inner
