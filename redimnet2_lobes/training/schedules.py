"""Learning-rate and margin schedules that move at every training step.

A schedule counts its calls: call it once before every optimizer step (in
``Brain.on_fit_batch_start``), since the first call sets the value of step 0.
Put it among the recoverables of the checkpointer, and a resumed run continues
the curve.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import json
import math
from numbers import Real

from speechbrain.nnet.losses import AdditiveAngularMargin
from speechbrain.utils import checkpoints


@checkpoints.register_checkpoint_hooks
class _StepSchedule:
    """Counts steps and translates them to epochs.

    Arguments
    ---------
    steps_per_epoch : int
        Calls per epoch, or None if it is known later.
    """

    def __init__(self, steps_per_epoch):
        self.step = 0
        self._steps_per_epoch = None
        if steps_per_epoch is not None:
            self.steps_per_epoch = steps_per_epoch

    @property
    def steps_per_epoch(self):
        """Calls per epoch: optimizer steps, not utterances.

        Set it once the data is read, before the first call. Setting another
        number later (a run resumed with another batch size) keeps the position
        in epochs.
        """
        return self._steps_per_epoch

    @steps_per_epoch.setter
    def steps_per_epoch(self, steps_per_epoch):
        if not isinstance(steps_per_epoch, int) or steps_per_epoch < 1:
            raise ValueError(
                "steps_per_epoch must be a positive integer, got "
                f"{steps_per_epoch!r}"
            )
        if self._steps_per_epoch is not None:
            ratio = steps_per_epoch / self._steps_per_epoch
            self.step = round(self.step * ratio)
        self._steps_per_epoch = steps_per_epoch

    def value_at(self, step):
        """Returns the scheduled value at a step.

        Arguments
        ---------
        step : int
            The step, counted from 0 at the start of training.

        Returns
        -------
        value : float
            The learning rate or the margin.

        Raises
        ------
        ValueError
            If steps_per_epoch is not set.
        """
        if self._steps_per_epoch is None:
            raise ValueError(
                "steps_per_epoch is not set: give the number of batches per "
                "epoch before the first step"
            )
        return self._value_after(step / self._steps_per_epoch)

    def _value_after(self, epochs_passed):
        raise NotImplementedError

    @checkpoints.mark_as_saver
    def save(self, path):
        """Saves the position as JSON, for SpeechBrain's Checkpointer."""
        position = {
            "step": self.step,
            "steps_per_epoch": self._steps_per_epoch,
        }
        with open(path, "w", encoding="utf-8") as file:
            json.dump(position, file)

    @checkpoints.mark_as_loader
    def load(self, path, end_of_epoch=False):
        """Continues from a saved position, for SpeechBrain's Checkpointer."""
        del end_of_epoch  # The step alone says where the run was.
        with open(path, encoding="utf-8") as file:
            position = json.load(file)
        current = self._steps_per_epoch
        self.step = position["step"]
        self._steps_per_epoch = position["steps_per_epoch"]
        if current is not None:
            self.steps_per_epoch = current


class _WarmupSchedule(_StepSchedule):
    """A learning rate that starts with a linear warm-up from zero.

    Arguments
    ---------
    initial_lr : float
        The learning rate without warm-up and decay.
    warmup_epochs : float
        Length of the warm-up in epochs.
    steps_per_epoch : int
        Calls per epoch, or None if it is known later.
    scale : float
        Factor of the whole curve.
    """

    def __init__(self, initial_lr, warmup_epochs, steps_per_epoch, scale):
        _require_positive("initial_lr", initial_lr)
        _require_not_negative("warmup_epochs", warmup_epochs)
        _require_positive("scale", scale)
        super().__init__(steps_per_epoch)
        self.initial_lr = initial_lr
        self.warmup_epochs = warmup_epochs
        self.scale = scale

    def __call__(self, optimizer):
        """Sets the learning rate of this step in every parameter group.

        Arguments
        ---------
        optimizer : torch.optim.Optimizer
            The optimizer.

        Returns
        -------
        lr : float
            The learning rate.
        """
        lr = self.value_at(self.step)
        for group in optimizer.param_groups:
            group["lr"] = lr
        self.step += 1
        return lr

    def _value_after(self, epochs_passed):
        lr = self.scale * self.initial_lr
        if epochs_passed < self.warmup_epochs:
            lr *= epochs_passed / self.warmup_epochs
        return lr * self._decay_after(epochs_passed)

    def _decay_after(self, epochs_passed):
        raise NotImplementedError


class WarmupExponentialSchedule(_WarmupSchedule):
    """Exponential decay of the learning rate with a linear warm-up from zero.

    After x epochs (a fraction, by steps) the learning rate is::

        scale * min(x / warmup_epochs, 1)
        * initial_lr * (final_lr / initial_lr) ** (x / epochs)

    and stays at scale * final_lr when the epochs are over. The decay begins
    with the first step, whereas SpeechBrain's ``WarmAndExpDecayLRSchedule``
    does not decay during the warm-up.

    Arguments
    ---------
    initial_lr : float
        The learning rate from which the decay starts.
    final_lr : float
        The learning rate at the end of training.
    warmup_epochs : float
        Length of the warm-up in epochs; 0 for none.
    epochs : float
        Length of training in epochs.
    steps_per_epoch : int
        Optimizer steps per epoch. It may be left out here and set as an
        attribute when the data is read.
    scale : float
        Factor of the whole curve: as a rule, global batch / 64.

    Raises
    ------
    ValueError
        If an argument is out of its range.

    Example
    -------
    >>> import torch
    >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1)
    >>> schedule = WarmupExponentialSchedule(
    ...     initial_lr=0.1, final_lr=0.001, warmup_epochs=1, epochs=2
    ... )
    >>> schedule.steps_per_epoch = 2
    >>> for _ in range(5):
    ...     lr = schedule(optimizer)
    ...     print(f"{optimizer.param_groups[0]['lr']:.5f}")
    0.00000
    0.01581
    0.01000
    0.00316
    0.00100
    """

    def __init__(
        self,
        initial_lr,
        final_lr,
        warmup_epochs,
        epochs,
        steps_per_epoch=None,
        scale=1.0,
    ):
        _require_positive("final_lr", final_lr)
        _require_positive("epochs", epochs)
        super().__init__(initial_lr, warmup_epochs, steps_per_epoch, scale)
        self.final_lr = final_lr
        self.epochs = epochs

    def _decay_after(self, epochs_passed):
        decay = math.log(self.final_lr / self.initial_lr)
        return math.exp(decay * min(epochs_passed / self.epochs, 1))


class WarmupPlateauSchedule(_WarmupSchedule):
    """Linear warm-up from zero, a plateau, then smooth halvings.

    The learning rate rises to scale * initial_lr, stays there for the epochs of
    the plateau, and x epochs (a fraction, by steps) after its end is::

        scale * initial_lr * 0.5 ** (x / halving_epochs)

    Arguments
    ---------
    initial_lr : float
        The learning rate of the plateau.
    warmup_epochs : float
        Length of the warm-up in epochs; 0 for none.
    plateau_epochs : float
        Length of the plateau in epochs, from the end of the warm-up on.
    halving_epochs : float
        Epochs in which the learning rate halves after the plateau.
    steps_per_epoch : int
        Optimizer steps per epoch. It may be left out here and set as an
        attribute when the data is read.
    scale : float
        Factor of the whole curve: as a rule, global batch / 64.

    Raises
    ------
    ValueError
        If an argument is out of its range.

    Example
    -------
    >>> import torch
    >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1)
    >>> schedule = WarmupPlateauSchedule(
    ...     initial_lr=0.1, warmup_epochs=1, plateau_epochs=1, halving_epochs=1
    ... )
    >>> schedule.steps_per_epoch = 2
    >>> for _ in range(7):
    ...     lr = schedule(optimizer)
    ...     print(f"{optimizer.param_groups[0]['lr']:.5f}")
    0.00000
    0.05000
    0.10000
    0.10000
    0.10000
    0.07071
    0.05000
    """

    def __init__(
        self,
        initial_lr,
        warmup_epochs,
        plateau_epochs,
        halving_epochs,
        steps_per_epoch=None,
        scale=1.0,
    ):
        _require_not_negative("plateau_epochs", plateau_epochs)
        _require_positive("halving_epochs", halving_epochs)
        super().__init__(initial_lr, warmup_epochs, steps_per_epoch, scale)
        self.plateau_epochs = plateau_epochs
        self.halving_epochs = halving_epochs

    def _decay_after(self, epochs_passed):
        plateau_end = self.warmup_epochs + self.plateau_epochs
        decaying = max(epochs_passed - plateau_end, 0)
        return 0.5 ** (decaying / self.halving_epochs)


class MarginSchedule(_StepSchedule):
    """Lets the margin of a loss grow, fast at first and then ever slower.

    The margin is initial_margin before epoch increase_start_epoch and
    final_margin from epoch fix_start_epoch on. At a fraction x of the way
    between, a share of 1 - r^x of the difference has been added, with
    r = 0.001 / (1 + 1e-6) as in the published application.

    Arguments
    ---------
    initial_margin : float
        The margin at the start of training.
    final_margin : float
        The margin at the end.
    increase_start_epoch : float
        The epoch (counted from 1) at whose start the margin begins to grow.
    fix_start_epoch : float
        The epoch (counted from 1) from whose start the margin is final.
    steps_per_epoch : int
        Optimizer steps per epoch. It may be left out here and set as an
        attribute when the data is read.

    Raises
    ------
    ValueError
        If an argument is out of its range.

    Example
    -------
    >>> from redimnet2_lobes.training.losses import SphereFace2
    >>> compute_loss = SphereFace2()
    >>> schedule = MarginSchedule(
    ...     initial_margin=0.0,
    ...     final_margin=0.2,
    ...     increase_start_epoch=2,
    ...     fix_start_epoch=3,
    ... )
    >>> schedule.steps_per_epoch = 2
    >>> for _ in range(5):
    ...     margin = schedule(compute_loss)
    ...     print(f"{compute_loss.margin:.4f}")
    0.0000
    0.0000
    0.0000
    0.1937
    0.2000
    """

    def __init__(
        self,
        initial_margin,
        final_margin,
        increase_start_epoch,
        fix_start_epoch,
        steps_per_epoch=None,
    ):
        _require_not_negative("initial_margin", initial_margin)
        _require_not_negative("final_margin", final_margin)
        _require(
            "increase_start_epoch",
            increase_start_epoch,
            "from 1 on",
            lambda v: v >= 1,
        )
        _require(
            "fix_start_epoch",
            fix_start_epoch,
            f"from increase_start_epoch ({increase_start_epoch}) on",
            lambda v: v >= increase_start_epoch,
        )
        super().__init__(steps_per_epoch)
        self.initial_margin = initial_margin
        self.final_margin = final_margin
        self.increase_start_epoch = increase_start_epoch
        self.fix_start_epoch = fix_start_epoch

    def __call__(self, loss):
        """Sets the margin of this step.

        Arguments
        ---------
        loss : torch.nn.Module
            A loss with an attribute ``margin``, or a wrapper of one
            (SpeechBrain's LogSoftmaxWrapper, torch's
            DistributedDataParallel).

        Returns
        -------
        margin : float
            The margin.

        Raises
        ------
        ValueError
            If the loss has no margin that can be changed.
        """
        margin = self.value_at(self.step)
        _unwrap(loss).margin = margin
        self.step += 1
        return margin

    def _value_after(self, epochs_passed):
        epoch = epochs_passed + 1
        if epoch >= self.fix_start_epoch:
            return self.final_margin
        if epoch < self.increase_start_epoch:
            return self.initial_margin
        grown = (epoch - self.increase_start_epoch) / (
            self.fix_start_epoch - self.increase_start_epoch
        )
        share = 1 - (0.001 / (1 + 1e-6)) ** grown
        return (
            self.initial_margin
            + (self.final_margin - self.initial_margin) * share
        )


def _unwrap(loss):
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


def _require(key, value, rule, holds):
    if not isinstance(value, Real) or not holds(value):
        raise ValueError(f"{key} must be a number {rule}, got {value!r}")


def _require_positive(key, value):
    _require(key, value, "greater than 0", lambda v: v > 0)


def _require_not_negative(key, value):
    _require(key, value, "from 0 on", lambda v: v >= 0)
