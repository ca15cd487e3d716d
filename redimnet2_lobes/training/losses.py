"""Speaker-classification losses on cosines that SpeechBrain lacks.

Each loss takes the cosines between embeddings and class weights, as
``speechbrain.lobes.models.ECAPA_TDNN.Classifier`` returns them, and the class
indices. Its ``margin`` may be changed at any step; see
``redimnet2_lobes.MarginSchedule``.

The additive margin (CosFace, AM-softmax) is missing here because SpeechBrain's
own ``LogSoftmaxWrapper(AngularMargin(margin, scale))`` is exactly that.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import math
from functools import partial
from numbers import Real

import torch
import torch.nn.functional as F
from torch import nn

from redimnet2_lobes.models.precision import at_least_float32

# The margin at which the inter-top-k penalty has its nominal size.
NOMINAL_MARGIN = 0.2
# SphereFace2 holds its intermediate results for so many classes at a time: with
# 160 utterances each of them takes 5 MB.
CLASSES_PER_BLOCK = 8192


class SphereFace2(nn.Module):
    """One binary classifier per speaker on a shared bias (SphereFace2).

    With cosines cos_j, label y, g(z) = 2 ((z + 1) / 2)^t - 1, scale s, margin m
    and a learned bias b, type C of one utterance is::

        lambda log(1 + exp(-(s (g(cos_y) - m) + b)))
        + (1 - lambda) sum_{j != y} log(1 + exp(s (g(cos_j) + m) + b))

    Type A adds the margin to the angle instead: g(cos(theta_y + m)) for the
    target and g(cos(theta_j - m)) for the others. Where theta_y exceeds pi - m,
    cos(theta_y + m) would rise again; cos(theta_y) - 1 + cos(m) continues it.

    From "SphereFace2: Binary Classification is All You Need for Deep Face
    Recognition" (Wen et al., 2022, https://arxiv.org/abs/2108.01513), with the
    margins of "Exploring Binary Classification Loss for Speaker Verification"
    (Han et al., 2023, https://arxiv.org/abs/2307.08205). The constant factor
    1/s of the first paper is left out, as in the second.

    The bias is a parameter: give it to the optimizer along with the weights of
    the classifier.

    With hundreds of thousands of classes the cosines are large, and so would be
    every intermediate result. The loss is therefore computed in blocks of
    classes, and again in the backward pass.

    Arguments
    ---------
    margin : float
        The margin m: a cosine for type C (0.2 is usual, 0.3 in large-margin
        fine-tuning), an angle in radians for type A (0.15 and 0.25).
    scale : float
        The factor s of the similarities.
    margin_type : str
        "C" (margin on the cosine) or "A" (margin on the angle).
    positive_weight : float
        The weight lambda of the target, from 0 to 1; the other classes have
        1 - lambda.
    exponent : int
        The exponent t: the larger, the more the similarities of the other
        classes are pressed together.

    Raises
    ------
    ValueError
        If an argument is out of its range.

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
        margin=0.2,
        scale=32.0,
        margin_type="C",
        positive_weight=0.7,
        exponent=3,
    ):
        super().__init__()
        if margin_type not in ("A", "C"):
            raise ValueError(
                f"margin_type must be 'A' or 'C', got {margin_type!r}"
            )
        _require_number("margin", margin, 0)
        _require_number("scale", scale, 0)
        _require_number("positive_weight", positive_weight, 0, 1)
        # Rounding takes some cosines below -1, where only an integer power is
        # defined.
        _require_integer("exponent", exponent, 1)
        self.margin = margin
        self.scale = scale
        self.margin_type = margin_type
        self.positive_weight = positive_weight
        self.exponent = exponent
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, cosines, labels):
        """Returns the mean loss.

        Arguments
        ---------
        cosines : torch.Tensor
            Cosines, [batch, 1, classes] or [batch, classes].
        labels : torch.Tensor
            Class indices, [batch, 1] or [batch].

        Returns
        -------
        loss : torch.Tensor
            The loss, a scalar in float32 (float64 for float64 cosines).

        Raises
        ------
        ValueError
            If a label is not the index of a class, or if there are not as
            many labels as rows of cosines.
        """
        cosines, labels = _to_rows(cosines, labels)
        # The margin may have changed when the backward pass computes again.
        binary_losses = partial(self._binary_losses, self.margin)
        return _SumOfBlocks.apply(
            binary_losses, labels, cosines, self.bias
        ).mean()

    def _binary_losses(self, margin, labels, cosines, bias):
        """Loss of each utterance over a block of classes [batch].

        Labels count from the first class of the block: where the target is in
        another block, the label is none of these columns.
        """
        last = cosines.shape[1] - 1
        target = cosines.gather(1, labels.clamp(0, last))
        if self.margin_type == "A":
            target = self._spread(_add_margin_to_angle(target, margin))
            others = self._spread(_rotate(cosines, -margin))
        else:
            target = self._spread(target) - margin
            others = self._spread(cosines) + margin
        target_loss = F.softplus(-(self.scale * target + bias))
        other_losses = F.softplus(self.scale * others + bias)
        columns = torch.arange(last + 1, device=cosines.device)
        return torch.where(
            columns == labels,
            self.positive_weight * target_loss,
            (1 - self.positive_weight) * other_losses,
        ).sum(1)

    def _spread(self, cosines):
        """The function g, which uses the range of similarities better."""
        return 2 * ((cosines + 1) / 2) ** self.exponent - 1


class _SumOfBlocks(torch.autograd.Function):
    """Sum of a function of each block of classes, in the memory of one block.

    Autograd would keep each intermediate result of all classes, and another
    gradient of all cosines for every use of them. Here the backward pass
    computes each block again and writes its gradient in place.
    """

    @staticmethod
    def forward(ctx, function, labels, cosines, bias):
        ctx.function = function
        ctx.save_for_backward(cosines, labels, bias)
        return sum(
            function(labels - start, block, bias)
            for start, block in _blocks(cosines)
        )

    @staticmethod
    def backward(ctx, gradient):
        cosines, labels, bias = ctx.saved_tensors
        to_cosines = torch.empty_like(cosines)
        to_bias = torch.zeros_like(bias)
        for (start, block), (_, to_block) in zip(
            _blocks(cosines), _blocks(to_cosines), strict=True
        ):
            function = partial(ctx.function, labels - start)
            _, vjp = torch.func.vjp(function, block, bias)
            block_gradient, bias_gradient = vjp(gradient)
            to_block.copy_(block_gradient)
            to_bias += bias_gradient
        return None, None, to_cosines, to_bias


def _blocks(cosines):
    """Each block of columns with the index of its first one."""
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

    Arguments
    ---------
    margin : float
        The margin m in radians.
    scale : float
        The factor of the cosines.

    Raises
    ------
    ValueError
        If an argument is out of its range.

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

    def __init__(self, margin=0.2, scale=32.0):
        super().__init__()
        _require_number("margin", margin, 0)
        _require_number("scale", scale, 0)
        self.margin = margin
        self.scale = scale

    def forward(self, cosines, labels):
        """Returns the mean loss.

        Arguments
        ---------
        cosines : torch.Tensor
            Cosines, [batch, 1, classes] or [batch, classes].
        labels : torch.Tensor
            Class indices, [batch, 1] or [batch].

        Returns
        -------
        loss : torch.Tensor
            The loss, a scalar in float32 (float64 for float64 cosines).

        Raises
        ------
        ValueError
            If a label is not the index of a class, or if there are not as
            many labels as rows of cosines.
        """
        cosines, labels = _to_rows(cosines, labels)
        target = _add_margin_to_angle(cosines.gather(1, labels), self.margin)
        logits = self.scale * cosines.scatter(1, labels, target)
        return F.cross_entropy(logits, labels.squeeze(1))


class SubCenterInterTopKLoss(nn.Module):
    """Additive angular margin with sub-centers and an inter-top-k penalty.

    Each class has several centers, and the nearest of them counts: noisy
    utterances may gather around the others ("Sub-center ArcFace", Deng et al.,
    ECCV 2020). Of the other classes, the most similar ones are made
    more similar still, cos(theta - penalty), so that training works on the
    confusable speakers ("Multi-query multi-head attention pooling and
    inter-topK penalty for speaker verification", Zhao et al., 2022,
    https://arxiv.org/abs/2110.05042). The target is treated as in
    ``AdditiveAngularMarginLoss``.

    Arguments
    ---------
    margin : float
        The margin in radians.
    scale : float
        The factor of the cosines.
    sub_centers : int
        Centers per class. The classifier has classes * sub_centers outputs:
        the centers of a class stand side by side.
    top_k : int
        How many of the most similar other classes are penalized (all of them
        where there are fewer).
    penalty : float
        The penalty in radians at a margin of 0.2. It is proportional to the
        margin, so a margin schedule introduces both. 0 turns it off, as usual
        in large-margin fine-tuning.

    Raises
    ------
    ValueError
        If an argument is out of its range.

    Example
    -------
    >>> cosines = torch.tensor([[[0.9, 0.1, -0.2, 0.3, 0.0, 0.2]]])
    >>> labels = torch.tensor([[0]])
    >>> compute_loss = SubCenterInterTopKLoss(sub_centers=2, penalty=0.0)
    >>> without_penalty = compute_loss(cosines, labels)
    >>> compute_loss.penalty = 0.06
    >>> bool(compute_loss(cosines, labels) > without_penalty)
    True
    """

    def __init__(
        self, margin=0.2, scale=32.0, sub_centers=3, top_k=5, penalty=0.06
    ):
        super().__init__()
        _require_number("margin", margin, 0)
        _require_number("scale", scale, 0)
        _require_integer("sub_centers", sub_centers, 1)
        _require_integer("top_k", top_k, 1)
        _require_number("penalty", penalty, 0)
        self.margin = margin
        self.scale = scale
        self.sub_centers = sub_centers
        self.top_k = top_k
        self.penalty = penalty

    def forward(self, cosines, labels):
        """Returns the mean loss.

        Arguments
        ---------
        cosines : torch.Tensor
            Cosines, [batch, 1, classes * sub_centers] or
            [batch, classes * sub_centers]; index = class * sub_centers +
            sub-center.
        labels : torch.Tensor
            Class indices, [batch, 1] or [batch].

        Returns
        -------
        loss : torch.Tensor
            The loss, a scalar in float32 (float64 for float64 cosines).

        Raises
        ------
        ValueError
            If the number of cosines is no multiple of sub_centers, if a label
            is not the index of a class, or if there are not as many labels as
            rows of cosines.
        """
        if cosines.shape[-1] % self.sub_centers:
            raise ValueError(
                f"{cosines.shape[-1]} cosines do not divide into sub_centers "
                f"{self.sub_centers}: set the classifier's out_neurons to "
                "classes * sub_centers"
            )
        cosines = cosines.unflatten(-1, (-1, self.sub_centers)).amax(-1)
        cosines, labels = _to_rows(cosines, labels)

        others = cosines.detach().scatter(1, labels, -math.inf)
        top_k = min(self.top_k, cosines.shape[1] - 1)
        hardest = others.topk(top_k, dim=1).indices
        penalty = self.penalty * self.margin / NOMINAL_MARGIN
        penalized = _rotate(cosines.gather(1, hardest), -penalty)
        target = _add_margin_to_angle(cosines.gather(1, labels), self.margin)
        cosines = cosines.scatter(1, hardest, penalized)
        cosines = cosines.scatter(1, labels, target)
        return F.cross_entropy(self.scale * cosines, labels.squeeze(1))


def _to_rows(cosines, labels):
    """Cosines as [batch, classes] in float32 or better, labels as [batch, 1].

    Half precision has no place in a loss: near 1, bfloat16 knows every
    256th of a cosine only, and the scale multiplies that.
    """
    cosines = cosines.flatten(end_dim=-2)
    cosines = at_least_float32(cosines)
    labels = labels.reshape(-1, 1).long()
    if len(labels) != len(cosines):
        raise ValueError(
            f"{len(labels)} labels for {len(cosines)} rows of cosines: give "
            "one label per utterance"
        )
    classes = cosines.shape[1]
    lowest, highest = labels.aminmax()
    if lowest < 0 or highest >= classes:
        raise ValueError(
            f"labels from {lowest.item()} to {highest.item()} for {classes} "
            "classes: set the classifier's out_neurons to the number of "
            "training speakers"
        )
    return cosines, labels


def _rotate(cosines, angle):
    """The cosines of (theta + angle), for cosines of theta."""
    # Where the cosine is 1 or -1 the sine's slope is infinite; clamped, it is
    # zero there.
    sines = (1 - cosines**2).clamp_min(1e-12).sqrt()
    return cosines * math.cos(angle) - sines * math.sin(angle)


def _add_margin_to_angle(cosines, margin):
    """cos(theta + margin), continued where theta + margin exceeds pi."""
    return torch.where(
        cosines > -math.cos(margin),
        _rotate(cosines, margin),
        cosines - 1 + math.cos(margin),
    )


def _require_number(key, value, lowest, highest=math.inf):
    if not isinstance(value, Real) or not lowest <= value <= highest:
        raise ValueError(
            f"{key} must be a number from {lowest} to {highest}, got {value!r}"
        )


def _require_integer(key, value, lowest):
    if not isinstance(value, int) or value < lowest:
        raise ValueError(
            f"{key} must be an integer from {lowest} on, got {value!r}"
        )
