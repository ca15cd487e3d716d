"""Attentive statistics pooling with global context.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import torch
from torch import Tensor, nn

from redimnet2_lobes.models.lengths import valid_mask
from redimnet2_lobes.models.precision import at_least_float32


class AttentiveStatisticsPooling(nn.Module):
    """Weighted mean and standard deviation over the frames.

    The attention sees each frame beside the mean and the standard deviation
    of its utterance (Okabe et al., Interspeech 2018, with the global context
    of ECAPA-TDNN). The two statistics are the same for all frames of an
    utterance, so they enter the first layer as a bias for each utterance and
    nothing is concatenated.

    SpeechBrain's layer of the same name normalizes its first layer by
    BatchNorm and clamps variances elsewhere; published weights do not fit it.

    Arguments
    ---------
    input_size
        Channels of a frame.
    attention_size
        Hidden units of the attention.

    Example
    -------
    >>> pooling = AttentiveStatisticsPooling(16)
    >>> pooling(torch.randn(2, 10, 16)).shape
    torch.Size([2, 32])
    """

    def __init__(self, input_size: int, attention_size: int = 128) -> None:
        super().__init__()
        self.context = nn.Linear(3 * input_size, attention_size)
        self.attention = nn.Linear(attention_size, input_size)

    def forward(self, x: Tensor, frames: Tensor | None = None) -> Tensor:
        """Pools over time.

        Arguments
        ---------
        x
            Frames [batch, time, channels].
        frames
            Valid frames of each utterance [batch]; None where none is padded.

        Returns
        -------
        torch.Tensor
            Means, then standard deviations [batch, 2 * channels], in the
            precision of the weights.
        """
        # Sums of squares over an utterance need float32 whatever the precision.
        x = at_least_float32(x)
        padding = None
        count = x.shape[1]
        if frames is not None:
            padding = ~valid_mask(frames, x.shape[1]).unsqueeze(2)
            x = x.masked_fill(padding, 0)
            count = frames.unsqueeze(1)
        # Twice as fast as var_mean over this axis.
        mean = x.sum(1) / count
        centred = x - mean.unsqueeze(1)
        if padding is not None:
            centred = centred.masked_fill(padding, 0)
        variance = centred.square().sum(1) / (count - 1)
        deviation = (variance + 1e-7).sqrt()

        frame_weight, statistics_weight = self.context.weight.split(
            [x.shape[2], 2 * x.shape[2]], dim=1
        )
        dtype = self.context.weight.dtype
        bias = nn.functional.linear(
            torch.cat([mean, deviation], 1).to(dtype),
            statistics_weight,
            self.context.bias,
        )
        hidden = nn.functional.linear(x.to(dtype), frame_weight)
        hidden = hidden + bias.unsqueeze(1)
        logits = at_least_float32(self.attention(hidden.tanh()))
        if padding is not None:
            logits = logits.masked_fill(padding, -torch.inf)
        weights = logits.softmax(1)

        weighted = weights * x
        mean = weighted.sum(1)
        variance = (weighted * x).sum(1) - mean.square()
        deviation = variance.clamp(min=1e-7).sqrt()
        return torch.cat([mean, deviation], 1).to(dtype)
