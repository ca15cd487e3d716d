"""Speaker-classification losses on cosines that SpeechBrain lacks.

Each takes cosines between embeddings and class weights [batch, 1, classes] or
[batch, classes], as ``speechbrain.lobes.models.ECAPA_TDNN.Classifier`` returns
them, and class indices [batch, 1] or [batch]. It returns the mean, a scalar in
float32 (float64 for float64 cosines), or raises ValueError for labels that are
no classes or not one per utterance. ``margin`` may be changed at any step; see
``redimnet2_lobes.MarginSchedule``. To see whether labels are classes, the host
waits for a GPU; where they are known to be, set ``check_labels`` to False.

Where the classes are divided among processes (``ShardedClassifier``), each
passes the cosines of its ``shares``-th part, and labels that count from the
first of its classes, and are none of them where another process has the target.
The mean of what the processes get is then the mean loss, and so are gradients.

The additive margin (CosFace, AM-softmax) is missing here because SpeechBrain's
own ``LogSoftmaxWrapper(AngularMargin(margin, scale))`` is exactly that.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from torch.distributed.nn.functional import all_gather

from redimnet2_lobes.files.settings import require_number
from redimnet2_lobes.models.precision import at_least_float32

# SphereFace2 holds its intermediate results for so many classes at a time: with
# 160 utterances each of them takes 5 MB.
CLASSES_PER_BLOCK = 8192


class SphereFace2(nn.Module):
    """One binary classifier per speaker on a shared bias (SphereFace2).

    With cosines cos_j, label y, g(z) = 2 ((z + 1) / 2)^t - 1, scale s, margin m
    and a learned bias b, the loss of one utterance is::

        lambda log(1 + exp(-(s (g(cos_y) - m) + b)))
        + (1 - lambda) sum_{j != y} log(1 + exp(s (g(cos_j) + m) + b))

    From "SphereFace2: Binary Classification is All You Need for Deep Face
    Recognition" (Wen et al., 2022, https://arxiv.org/abs/2108.01513), with the
    margin of type C of "Exploring Binary Classification Loss for Speaker
    Verification" (Han et al., 2023, https://arxiv.org/abs/2307.08205). The
    constant factor 1/s of the first paper is left out, as in the second.

    The bias is a parameter: give it to the optimizer along with the weights of
    the classifier.

    With hundreds of thousands of classes the cosines are large, and so would be
    every intermediate result. The loss is therefore computed in blocks of
    classes, and again in the backward pass.

    Arguments
    ---------
    margin
        The margin m: 0.2 is usual, 0.3 in large-margin fine-tuning.
    scale
        The factor s of the similarities.
    positive_weight
        The weight lambda, from 0 to 1.
    exponent
        The exponent t, from 1 on: the larger, the more the similarities of the
        other classes are pressed together.

    Example
    -------
    >>> cosines = torch.tensor([[[0.9, 0.1, -0.2]], [[0.3, 0.8, 0.0]]])
    >>> labels = torch.tensor([[0], [1]])
    >>> compute_loss = SphereFace2(margin=0.0)
    >>> easy = compute_loss(cosines, labels)
    >>> compute_loss.margin = 0.2
    >>> bool(compute_loss(cosines, labels) > easy)
    True
    """

    def __init__(
        self,
        margin: float = 0.2,
        scale: float = 32.0,
        positive_weight: float = 0.7,
        exponent: int = 3,
    ):
        super().__init__()
        require_number("margin", margin)
        require_number("scale", scale)
        require_number("positive_weight", positive_weight, highest=1)
        # Rounding takes some cosines below -1, where only an integer power is
        # defined.
        if not isinstance(exponent, int) or exponent < 1:
            raise ValueError(
                f"exponent must be an integer from 1 on, got {exponent!r}"
            )
        self.margin = margin
        self.scale = scale
        self.positive_weight = positive_weight
        self.exponent = exponent
        self.check_labels = True
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(
        self, cosines: torch.Tensor, labels: torch.Tensor, shares: int = 1
    ) -> torch.Tensor:
        """Returns the mean loss; see the head of this file."""
        check = self.check_labels and shares == 1
        cosines, labels = _to_rows(cosines, labels, check)
        # The margin may have changed when the backward pass computes again.
        function = partial(self._binary_losses, self.margin)
        losses = _SumOfBlocks.apply(function, labels, cosines, self.bias)
        return losses.mean() * shares

    def _binary_losses(
        self,
        margin: float,
        labels: torch.Tensor,
        cosines: torch.Tensor,
        bias: torch.Tensor,
    ) -> torch.Tensor:
        """Loss of each utterance over a block of classes [batch].

        Labels count from the first class of the block: where the target is in
        another block, the label is none of these columns.
        """
        last = cosines.shape[1] - 1
        target = self._spread(cosines.gather(1, labels.clamp(0, last))) - margin
        others = self._spread(cosines) + margin
        target_loss = F.softplus(-(self.scale * target + bias))
        other_losses = F.softplus(self.scale * others + bias)
        columns = torch.arange(last + 1, device=cosines.device)
        return torch.where(
            columns == labels,
            self.positive_weight * target_loss,
            (1 - self.positive_weight) * other_losses,
        ).sum(1)

    def _spread(self, cosines: torch.Tensor) -> torch.Tensor:
        """The function g, which uses the range of similarities better."""
        return 2 * ((cosines + 1) / 2) ** self.exponent - 1


class _SumOfBlocks(torch.autograd.Function):
    """Sum of a function of each block of classes, in the memory of one block.

    Autograd would keep each intermediate result of all classes, and another
    gradient of all cosines for every use of them. Here the backward pass
    computes each block again and writes its gradient in place.
    """

    @staticmethod
    def forward(
        ctx,
        function: Callable[..., torch.Tensor],
        labels: torch.Tensor,
        cosines: torch.Tensor,
        bias: torch.Tensor,
    ) -> torch.Tensor:
        """The sum, a scalar."""
        ctx.function = function
        ctx.save_for_backward(cosines, labels, bias)
        losses = (
            function(labels - start, block, bias)
            for start, block in _blocks(cosines)
        )
        return sum(losses, cosines.new_zeros(()))

    @staticmethod
    def backward(ctx, gradient: torch.Tensor):
        """To the cosines and the bias."""
        cosines, labels, bias = ctx.saved_tensors
        to_cosines = torch.empty_like(cosines)
        to_bias = torch.zeros_like(bias)
        for (start, block), (_, to_block) in zip(
            _blocks(cosines), _blocks(to_cosines), strict=True
        ):
            function = partial(ctx.function, labels - start)
            vjp = torch.func.vjp(function, block, bias)[1]
            block_gradient, bias_gradient = vjp(gradient)
            to_block.copy_(block_gradient)
            to_bias += bias_gradient
        return None, None, to_cosines, to_bias


def _blocks(cosines: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
    """The first class of each block, and its columns."""
    starts = range(0, cosines.shape[1], CLASSES_PER_BLOCK)
    return zip(starts, cosines.split(CLASSES_PER_BLOCK, dim=1), strict=True)


class AdditiveAngularMarginLoss(nn.Module):
    """Softmax cross-entropy with a margin added to the target's angle.

    The target's cosine becomes cos(theta + m). Where theta exceeds pi - m, that
    would rise again; cos(theta) - 1 + cos(m) continues it without a step.

    ``speechbrain.nnet.losses.AdditiveAngularMargin`` differs in two points: it
    continues with cos(theta) - m sin(m), which steps at pi - m, and it computes
    its constants once, so that a margin set later has no effect.

    From "ArcFace: Additive Angular Margin Loss for Deep Face Recognition" (Deng
    et al., 2019, https://arxiv.org/abs/1801.07698).

    The margin m is in radians; the scale is the factor of the cosines.

    Example
    -------
    >>> cosines = torch.tensor([[[0.9, 0.1, -0.2]], [[0.3, 0.8, 0.0]]])
    >>> labels = torch.tensor([[0], [1]])
    >>> compute_loss = AdditiveAngularMarginLoss(margin=0.0)
    >>> easy = compute_loss(cosines, labels)
    >>> compute_loss.margin = 0.2
    >>> bool(compute_loss(cosines, labels) > easy)
    True
    """

    def __init__(self, margin: float = 0.2, scale: float = 32.0):
        super().__init__()
        require_number("margin", margin)
        require_number("scale", scale)
        self.margin = margin
        self.scale = scale
        self.check_labels = True

    def forward(
        self, cosines: torch.Tensor, labels: torch.Tensor, shares: int = 1
    ) -> torch.Tensor:
        """Returns the mean loss; see the head of this file."""
        check = self.check_labels and shares == 1
        cosines, labels = _to_rows(cosines, labels, check)
        columns = labels.clamp(0, cosines.shape[1] - 1)
        is_here = labels == columns
        target = cosines.gather(1, columns)
        # Where the cosine is 1 or -1 the sine's slope is infinite; clamped, it
        # is zero there.
        sine = (1 - target**2).clamp_min(1e-12).sqrt()
        cosine_of_margin = math.cos(self.margin)
        with_margin = torch.where(
            target > -cosine_of_margin,
            target * cosine_of_margin - sine * math.sin(self.margin),
            target - 1 + cosine_of_margin,
        )
        target = torch.where(is_here, with_margin, target)
        logits = self.scale * cosines.scatter(1, columns, target)
        if shares == 1:
            return F.cross_entropy(logits, columns.squeeze(1))
        losses = _share_of_log_sum_exp(logits) - torch.where(
            is_here, self.scale * target, 0
        ).squeeze(1)
        return losses.mean() * shares


def _share_of_log_sum_exp(logits: torch.Tensor) -> torch.Tensor:
    """What these classes add to the log-sum-exp over all processes' [batch].

    Each share is in proportion to the probability of its classes, which makes
    its gradient right without another exchange in the backward pass.
    """
    own = logits.logsumexp(1)
    everyones = torch.stack(all_gather(own.detach()))
    total = everyones.logsumexp(0)
    probability = (own.detach() - total).exp()
    return probability * (total + own - own.detach())


def _to_rows(
    cosines: torch.Tensor, labels: torch.Tensor, check_labels: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines as [batch, classes] in float32 or better, labels as [batch, 1].

    Half precision has no place in a loss: near 1, bfloat16 knows every
    256th of a cosine only, and the scale multiplies that.
    """
    cosines = at_least_float32(cosines.flatten(end_dim=-2))
    labels = labels.reshape(-1, 1).long()
    if len(labels) != len(cosines):
        raise ValueError(
            f"{len(labels)} labels for {len(cosines)} rows of cosines: give "
            "one label per utterance"
        )
    if not check_labels:
        return cosines, labels
    classes = cosines.shape[1]
    lowest, highest = labels.aminmax()
    if lowest < 0 or highest >= classes:
        raise ValueError(
            f"labels from {lowest.item()} to {highest.item()} for {classes} "
            "classes: set the classifier's out_neurons to the number of "
            "training speakers"
        )
    return cosines, labels
