"""ReDimNet2: speaker embeddings by time-pooled dimension reshaping.

Source: Yakovlev and Okhotnikov, "ReDimNet2: Scaling Speaker Verification via
Time-Pooled Dimension Reshaping", Interspeech 2026 (arXiv 2603.11841).

One memory, two views. Every map lies in memory as [batch, time, bins,
channels]. Its 1-D view [batch, time, bins * channels] is a reshape, and its
2-D view [batch, channels, time, bins] is a permutation that torch knows as
``channels_last``: neither copies anything. A stage with time stride s works on
every s-th frame, and its maps stay at that rate; the paper repeats each frame
s times, which changes no number (see ``Aggregation``).

Padding changes nothing. Where lengths are given, each utterance is trimmed to
its own multiple of the total time stride, and frames beyond its end are set to
zero before every operation that looks across time.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import math

import torch
from torch import nn

from redimnet2_lobes.models.front_end import HOP, SAMPLE_RATE, WINDOW, LogMel
from redimnet2_lobes.models.lengths import (
    repeat_short,
    valid_mask,
    valid_samples,
)
from redimnet2_lobes.models.pooling import AttentiveStatisticsPooling
from redimnet2_lobes.models.precision import at_least_float32
from redimnet2_lobes.models.residual_training import (
    pays_in_tiles,
    residual_block,
)
from redimnet2_lobes.models.tiles import (
    TILE_BYTES,
    groups_of_like_length,
    in_tiles,
)
from redimnet2_lobes.models.weighted_sum import weighted_sum

TIME_KERNELS = (7, 19, 31, 59)
ATTENTION_HEADS = 4


class ReDimNet2(nn.Module):
    """Maps waveforms to speaker embeddings.

    The front-end stands inside, because features need each utterance's exact
    length in samples, which SpeechBrain's inference classes hand to the
    embedding model only. In a model folder ``compute_features`` and
    ``mean_var_norm`` are therefore ``PassThrough``.

    Arguments
    ---------
    front_end : torch.nn.Module
        ``LogMel``.
    base_channels : int
        Channels C of the stem's map.
    stages : list of dict
        For each stage its ``frequency_stride``, ``time_stride``, number of
        residual ``blocks``, channel ``expansion`` inside them, and
        ``reduction`` of the width of the time-context block.
    out_channels : int or None
        Channels of a last 1x1 convolution before pooling; None for none.
    aggregation_norm : bool
        Whether maps are normalized before they are aggregated
        (``agg_gnorm`` in published checkpoints).
    dual_aggregation : bool
        Whether a stage also yields the input of its time-context block
        (``dual_agg`` in published checkpoints).
    embedding_size : int
        Size of the embedding.
    minimum_seconds : float
        Shorter utterances are repeated up to this length, which must make
        two frames at least, and as many as the total time stride.

    Example
    -------
    >>> from redimnet2_lobes.models.front_end import LogMel
    >>> stage = {"time_stride": 1, "blocks": 1, "expansion": 1, "reduction": 8}
    >>> network = ReDimNet2(
    ...     LogMel(),
    ...     base_channels=4,
    ...     stages=[
    ...         {"frequency_stride": 1, **stage},
    ...         {"frequency_stride": 2, **stage, "time_stride": 2},
    ...     ],
    ... )
    >>> network(torch.randn(2, 16000), torch.tensor([1.0, 0.7])).shape
    torch.Size([2, 1, 192])
    """

    def __init__(
        self,
        front_end,
        base_channels,
        stages,
        out_channels=None,
        aggregation_norm=False,
        dual_aggregation=False,
        embedding_size=192,
        minimum_seconds=0.5,
    ):
        super().__init__()
        bins = front_end.mel_bins
        check_architecture(bins, base_channels, stages)
        if out_channels is not None and not _positive(out_channels, int):
            raise ValueError(
                f"out_channels: {out_channels!r} is not a positive integer"
            )
        self._arguments = {
            "base_channels": base_channels,
            "stages": [dict(stage) for stage in stages],
            "out_channels": out_channels,
            "aggregation_norm": aggregation_norm,
            "dual_aggregation": dual_aggregation,
            "embedding_size": embedding_size,
            "minimum_seconds": minimum_seconds,
        }
        if not _positive(minimum_seconds, (int, float)):
            raise ValueError(
                f"minimum_seconds: {minimum_seconds!r} is not a positive number"
            )
        self.minimum_samples = round(minimum_seconds * SAMPLE_RATE)
        self.front_end = front_end
        self.stem = Stem(base_channels, bins, aggregation_norm)

        self.stages = nn.ModuleList()
        strides = [1]
        channels = base_channels
        for stage in stages:
            self.stages.append(
                Stage(
                    channels,
                    bins,
                    strides,
                    groups=base_channels if aggregation_norm else None,
                    dual_aggregation=dual_aggregation,
                    **stage,
                )
            )
            channels *= stage["frequency_stride"]
            bins //= stage["frequency_stride"]
            stride = strides[-1] * stage["time_stride"]
            strides = strides + [stride] * (2 if dual_aggregation else 1)
        self.time_stride = strides[-1]
        # The variance over time needs two frames.
        self.minimum_frames = max(2, self.time_stride)
        frames = (self.minimum_samples + HOP - WINDOW) // HOP + 1
        if frames < self.minimum_frames:
            raise ValueError(
                f"minimum_seconds: {minimum_seconds!r} makes {frames} frames, "
                f"but {self.minimum_frames} are needed with a total time "
                f"stride of {self.time_stride}; raise it"
            )

        self.aggregation = Aggregation(strides, bins * channels)
        self.bins, self.channels = bins, channels
        self.head = None
        if out_channels is not None:
            self.head = nn.Linear(channels, out_channels)
        pooled = bins * (out_channels or channels)
        self.pooling = AttentiveStatisticsPooling(pooled)
        self.norm = nn.BatchNorm1d(2 * pooled)
        self.projection = nn.Linear(2 * pooled, embedding_size)
        self.to(memory_format=torch.channels_last)

    @classmethod
    def from_variant(cls, variant, front_end=None, **arguments):
        """An untrained network of a variant.

        Arguments
        ---------
        variant : str
            b0 to b6.
        front_end : torch.nn.Module or None
            As for the constructor; None for ``LogMel()``.
        **arguments
            In place of those of the variant, such as ``embedding_size``.

        Returns
        -------
        ReDimNet2

        Raises
        ------
        ValueError
            If there is no such variant.

        Example
        -------
        >>> network = ReDimNet2.from_variant("b0")
        >>> f"{sum(weight.numel() for weight in network.parameters()):,}"
        '1,115,220'
        """
        # It imports this module.
        from redimnet2_lobes.models.variants import VARIANTS

        if variant not in VARIANTS:
            raise ValueError(
                f"variant: no {variant!r}; expected one of "
                f"{', '.join(VARIANTS)}"
            )
        return cls(front_end or LogMel(), **{**VARIANTS[variant], **arguments})

    def forward(self, wavs, wav_lens=None):
        """Computes embeddings.

        Arguments
        ---------
        wavs : torch.Tensor
            Waveforms at 16 kHz, padded at the end [batch, time].
        wav_lens : torch.Tensor or None
            Lengths relative to ``time`` [batch]; None where none is padded.

        Returns
        -------
        torch.Tensor
            Embeddings [batch, 1, embedding]; cosine similarity compares them.
        """
        samples = valid_samples(wavs, wav_lens)
        shortest = wavs.shape[1] if samples is None else int(samples.min())
        if shortest < WINDOW:
            raise ValueError(
                f"an utterance has {shortest} samples at 16 kHz; at least "
                f"{WINDOW} (25 ms) are needed"
            )
        wavs, samples = repeat_short(wavs, samples, self.minimum_samples)
        if self._needs_one_piece(wavs):
            return self._encode(wavs, samples)
        with torch.no_grad():
            return self._encode_in_groups(wavs, samples)

    def _needs_one_piece(self, wavs):
        """Whether a batch must stay together: for statistics or gradients,
        because the device is made for large batches, or because groups would
        make a graph of their own for each mixture of lengths.
        """
        if (
            self.training
            or wavs.device.type != "cpu"
            or torch.compiler.is_compiling()
        ):
            return True
        return torch.is_grad_enabled() and (
            wavs.requires_grad
            or any(weight.requires_grad for weight in self.parameters())
        )

    def _encode_in_groups(self, wavs, samples):
        lengths = [wavs.shape[1]] * len(wavs)
        if samples is not None:
            lengths = samples.tolist()
        frame = self.bins * self.channels * wavs.element_size()
        embeddings = [None] * len(wavs)
        for group in groups_of_like_length(lengths, TILE_BYTES // frame * HOP):
            longest = lengths[group[0]]
            same = longest == lengths[group[-1]]
            encoded = self._encode(
                wavs[group, :longest], None if same else samples[group]
            )
            for position, embedding in zip(group, encoded, strict=True):
                embeddings[position] = embedding
        return torch.stack(embeddings)

    def _encode(self, wavs, samples):
        features, frames = self.front_end(wavs, samples)
        return self.encode_features(features, frames).unsqueeze(1)

    def arguments(self):
        """What builds a network like this one.

        Returns
        -------
        dict
            Arguments of the constructor; ``front_end`` is a dict too.
        """
        return {"front_end": self.front_end.arguments(), **self._arguments}

    def encode_features(self, features, frames=None):
        """Computes embeddings of log-mel features.

        Arguments
        ---------
        features : torch.Tensor
            Features [batch, time, mel bins].
        frames : torch.Tensor or None
            Valid frames of each utterance [batch]; None where none is padded.

        Returns
        -------
        torch.Tensor
            Embeddings [batch, embedding].
        """
        maps, frames = self.feature_maps(features, frames)
        x = self.upsample(self.aggregation(maps))
        if self.head is not None:
            x = self.head(x.unflatten(2, (self.bins, self.channels)))
            x = x.flatten(2)
        return self.projection(self.norm(self.pooling(x, frames)))

    def feature_maps(self, features, frames=None):
        """Computes the maps of the stem and of every stage.

        Arguments
        ---------
        features : torch.Tensor
            Features [batch, time, mel bins].
        frames : torch.Tensor or None
            Valid frames of each utterance [batch].

        Returns
        -------
        maps : list of torch.Tensor
            1-D views [batch, time / stride, bins * channels], each at its own
            frame rate.
        frames : torch.Tensor or None
            Valid frames after trimming [batch].
        """
        trim = self.time_stride
        shortest = features.shape[1]
        if frames is not None and not torch.compiler.is_compiling():
            shortest = int(frames.min())
        if shortest < self.minimum_frames:
            raise ValueError(
                f"an utterance has {shortest} frames; at least "
                f"{self.minimum_frames} are needed"
            )
        # Waveforms in float32 may well be given to a network in another
        # precision.
        features = features.to(self.stem.convolution.weight.dtype)
        if frames is not None:
            frames = frames // trim * trim
            padding = ~valid_mask(frames, features.shape[1]).unsqueeze(2)
            features = features.masked_fill(padding, 0)
        features = features[:, : features.shape[1] // trim * trim]
        maps = [self.stem(features, frames)]
        for stage in self.stages:
            maps.extend(stage(maps, frames))
        return maps, frames

    def upsample(self, sums):
        """Adds maps of several frame rates at the full rate.

        Arguments
        ---------
        sums : dict of int to torch.Tensor
            For each time stride a 1-D view [batch, time / stride, channels].

        Returns
        -------
        torch.Tensor
            [batch, time, channels]
        """
        # From the slowest rate upwards, so that little is repeated.
        strides = sorted(sums, reverse=True)
        total = sums[strides[0]]
        for slow, fast in zip(strides, strides[1:], strict=False):
            frames = sums[fast].unflatten(1, (-1, slow // fast))
            total = (total.unsqueeze(2) + frames).flatten(1, 2)
        return total


class PassThrough(nn.Module):
    """Stands where SpeechBrain's inference classes expect a module that
    ReDimNet2 has no use for.

    Example
    -------
    >>> PassThrough()(torch.ones(2), torch.ones(1))
    tensor([1., 1.])
    """

    def forward(self, x, lengths=None):
        """Returns its input.

        Arguments
        ---------
        x : torch.Tensor
            Anything.
        lengths : torch.Tensor
            Not needed.

        Returns
        -------
        torch.Tensor
            ``x``
        """
        return x


class Stem(nn.Module):
    """3x3 convolution of the features, LayerNorm over channels.

    Arguments
    ---------
    channels : int
        Output channels.
    bins : int
        Mel bins.
    aggregation_norm : bool
        Whether the map is normalized for the aggregations.

    Example
    -------
    >>> stem = Stem(channels=4, bins=72, aggregation_norm=True)
    >>> stem(torch.randn(2, 8, 72), frames=None).shape
    torch.Size([2, 8, 288])
    """

    def __init__(self, channels, bins, aggregation_norm):
        super().__init__()
        self.convolution = nn.Conv2d(1, channels, 3, padding=1)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.map_norm = None
        if aggregation_norm:
            self.map_norm = MapNorm(channels, bins * channels)

    def forward(self, features, frames):
        """Computes the first map.

        Arguments
        ---------
        features : torch.Tensor
            Features [batch, time, bins].
        frames : torch.Tensor or None
            Valid frames of each utterance [batch].

        Returns
        -------
        torch.Tensor
            1-D view [batch, time, bins * channels].
        """
        x = self.convolution(features.unsqueeze(1)).permute(0, 2, 3, 1)
        x = self.norm(x).flatten(2)
        return x if self.map_norm is None else self.map_norm(x, frames)


class Stage(nn.Module):
    """One stage: aggregate, reshape, 2-D blocks, 1-D time context.

    Arguments
    ---------
    channels : int
        Channels c of the 2-D view it reads.
    bins : int
        Frequency bins f of the 2-D view it reads.
    strides : list of int
        Time strides of all maps before.
    frequency_stride : int
        Bins become fewer, channels more, by this factor.
    time_stride : int
        Frames become fewer by this factor than in the stage before.
    blocks : int
        Residual blocks.
    expansion : float
        Width of the residual blocks relative to the stage's channels.
    reduction : int
        Width of the time-context block is c * f divided by this.
    groups : int or None
        Groups of the normalization before aggregation; None for none.
    dual_aggregation : bool
        Whether the input of the time-context block is a map as well.

    Example
    -------
    >>> stage = Stage(
    ...     channels=4,
    ...     bins=72,
    ...     strides=[1],
    ...     frequency_stride=2,
    ...     time_stride=2,
    ...     blocks=1,
    ...     expansion=1,
    ...     reduction=8,
    ...     groups=None,
    ...     dual_aggregation=False,
    ... )
    >>> [x.shape for x in stage([torch.randn(2, 8, 288)], frames=None)]
    [torch.Size([2, 4, 288])]
    """

    def __init__(
        self,
        channels,
        bins,
        strides,
        frequency_stride,
        time_stride,
        blocks,
        expansion,
        reduction,
        groups,
        dual_aggregation,
    ):
        super().__init__()
        size = channels * bins
        self.time_stride = strides[-1] * time_stride
        self.aggregation = Aggregation(strides, size)
        width = int(frequency_stride * channels * expansion)
        self.reshape = StridedConvolution(
            channels,
            width,
            kernel_size=(self.time_stride, frequency_stride),
            groups=math.gcd(channels, width),
        )
        channels *= frequency_stride
        self.blocks = nn.ModuleList(ResidualBlock(width) for _ in range(blocks))
        self.contract = None
        if expansion != 1:
            self.contract = nn.Sequential(
                nn.Conv2d(width, channels, 1),
                nn.BatchNorm2d(channels, eps=1e-6),
            )
        self.time_context = TimeContextBlock(size, size // reduction)
        self.dual_aggregation = dual_aggregation
        self.map_norms = None
        if groups is not None:
            self.map_norms = nn.ModuleList(
                MapNorm(groups, size) for _ in range(1 + dual_aggregation)
            )

    def forward(self, maps, frames):
        """Computes the maps of this stage.

        Arguments
        ---------
        maps : list of torch.Tensor
            All maps before, 1-D views [batch, time / stride, channels].
        frames : torch.Tensor or None
            Valid frames of each utterance at the full rate [batch].

        Returns
        -------
        list of torch.Tensor
            One map or, with dual aggregation, two: 1-D views.
        """
        if frames is not None:
            frames = frames // self.time_stride
        x = self.reshape(self.aggregation(maps))
        padding = None
        if frames is not None:
            padding = ~valid_mask(frames, x.shape[2])
        for block in self.blocks:
            x = in_tiles(block, x, padding)
        if self.contract is not None:
            x = self.contract(x)
        x = x.permute(0, 2, 3, 1).flatten(2)
        outputs = [self.time_context(x, padding)]
        if self.dual_aggregation:
            outputs.insert(0, x)
        if self.map_norms is not None:
            outputs = [
                norm(output, frames)
                for norm, output in zip(self.map_norms, outputs, strict=True)
            ]
        return outputs


class Aggregation(nn.Module):
    """Weighted sum of maps; the weights are a softmax over the maps, one set
    for each channel of the 1-D view.

    Maps of one frame rate are summed at that rate: repeating frames commutes
    with the sum.

    Arguments
    ---------
    strides : list of int
        Time stride of each map.
    size : int
        Channels of the 1-D view.

    Example
    -------
    >>> aggregation = Aggregation([1, 1, 2], 8)
    >>> maps = [torch.randn(1, time, 8) for time in (4, 4, 2)]
    >>> {stride: x.shape[1] for stride, x in aggregation(maps).items()}
    {1: 4, 2: 2}
    """

    def __init__(self, strides, size):
        super().__init__()
        self.strides = tuple(strides)
        # Published checkpoints hold a weight for a single map as well; the
        # softmax makes it 1 whatever it is.
        self.weight = nn.Parameter(
            torch.zeros(len(strides), size), requires_grad=len(strides) > 1
        )

    def forward(self, maps):
        """Sums the maps of each time stride.

        Arguments
        ---------
        maps : list of torch.Tensor
            1-D views [batch, time / stride, channels].

        Returns
        -------
        dict of int to torch.Tensor
            For each time stride the sum [batch, time / stride, channels].
        """
        weights = self.weight.softmax(0)
        sums = {}
        for stride in dict.fromkeys(self.strides):
            # Maps come in the order of their strides.
            first = self.strides.index(stride)
            last = first + self.strides.count(stride)
            sums[stride] = weighted_sum(maps[first:last], weights[first:last])
        return sums


class StridedConvolution(nn.Conv2d):
    """Convolution whose kernel equals its stride, over maps of several rates.

    Over a map whose frames stand for r repeated ones, a kernel of s frames is
    a kernel of s / r frames, each tap the sum of r taps.

    Arguments
    ---------
    in_channels : int
        Input channels.
    out_channels : int
        Output channels.
    kernel_size : tuple of int
        Kernel and stride in full-rate frames and in bins.
    groups : int
        Groups.

    Example
    -------
    >>> convolution = StridedConvolution(4, 8, kernel_size=(2, 3), groups=4)
    >>> convolution({1: torch.randn(1, 10, 24), 2: torch.randn(1, 5, 24)}).shape
    torch.Size([1, 8, 5, 2])
    """

    def __init__(self, in_channels, out_channels, kernel_size, groups):
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride=kernel_size,
            groups=groups,
        )

    def forward(self, sums):
        """Convolves and adds maps of several rates.

        Arguments
        ---------
        sums : dict of int to torch.Tensor
            For each time stride a 1-D view [batch, time / stride, channels].

        Returns
        -------
        torch.Tensor
            2-D view [batch, channels, time / kernel, bins / kernel].
        """
        frames, bins = self.kernel_size
        bias = self.bias
        total = None
        for stride, x in sums.items():
            x = x.unflatten(2, (-1, self.in_channels)).permute(0, 3, 1, 2)
            weight = self.weight
            if stride > 1:
                weight = weight.unflatten(2, (-1, stride)).sum(3)
            y = convolve(x, weight, bias, (frames // stride, bins), self.groups)
            total = y if total is None else total.add_(y)
            bias = None
        return total


class ResidualBlock(nn.Module):
    """Two depthwise-separable 3x3 convolutions and a shortcut.

    Arguments
    ---------
    channels : int
        Channels.

    Example
    -------
    >>> ResidualBlock(4)(torch.randn(2, 4, 8, 72), padding=None).shape
    torch.Size([2, 4, 8, 72])
    """

    # Frames on either side that an output frame depends on.
    context = 2

    def __init__(self, channels):
        super().__init__()
        self.depthwise_1 = nn.Conv2d(
            channels, channels, 3, padding=1, groups=channels, bias=False
        )
        self.pointwise_1 = nn.Conv2d(channels, channels, 1)
        self.rectify = nn.ReLU(inplace=True)
        self.norm_1 = nn.BatchNorm2d(channels)
        self.depthwise_2 = nn.Conv2d(
            channels, channels, 3, padding=1, groups=channels, bias=False
        )
        self.pointwise_2 = nn.Conv2d(channels, channels, 1)
        self.norm_2 = nn.BatchNorm2d(channels)

    def forward(self, x, padding):
        """Computes the block.

        Arguments
        ---------
        x : torch.Tensor
            2-D view [batch, channels, time, bins].
        padding : torch.Tensor or None
            True where padded [batch, time]; None where nothing is.

        Returns
        -------
        torch.Tensor
            2-D view [batch, channels, time, bins].
        """
        if self.norm_1.training and padding is None and pays_in_tiles(x):
            return residual_block(x, self)
        if padding is not None:
            padding = padding[:, None, :, None]
        y = self.pointwise_1(self.depthwise_1(blank(x, padding)))
        y = self.norm_1(self.rectify(y))
        y = self.norm_2(self.pointwise_2(self.depthwise_2(blank(y, padding))))
        return y.add_(x).relu_()


class TimeContextBlock(nn.Module):
    """Convolutions over time, then self-attention, on a narrow 1-D view.

    Arguments
    ---------
    size : int
        Channels of the 1-D view.
    width : int
        Channels inside the block.

    Example
    -------
    >>> TimeContextBlock(64, 8)(torch.randn(2, 10, 64), padding=None).shape
    torch.Size([2, 10, 64])
    """

    def __init__(self, size, width):
        super().__init__()
        self.contract = nn.Linear(size, width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.convolutions = nn.ModuleList(
            TimeConvolution(width, kernel) for kernel in TIME_KERNELS
        )
        self.attention = SelfAttention(width)
        self.expand = nn.Linear(width, size)

    def forward(self, x, padding):
        """Adds the context of each frame.

        Arguments
        ---------
        x : torch.Tensor
            1-D view [batch, time, size].
        padding : torch.Tensor or None
            True where padded [batch, time]; None where nothing is.

        Returns
        -------
        torch.Tensor
            1-D view [batch, time, size].
        """
        y = self.norm(self.contract(x))
        for convolution in self.convolutions:
            y = convolution(y, padding)
        return self.expand(self.attention(y, padding)).add_(x)


class TimeConvolution(nn.Module):
    """Depthwise convolution over time, BatchNorm, GELU, pointwise.

    Arguments
    ---------
    width : int
        Channels.
    kernel : int
        Frames that the convolution spans.

    Example
    -------
    >>> TimeConvolution(8, 7)(torch.randn(2, 10, 8), padding=None).shape
    torch.Size([2, 10, 8])
    """

    def __init__(self, width, kernel):
        super().__init__()
        self.depthwise = nn.Conv2d(
            width, width, (kernel, 1), padding=(kernel // 2, 0), groups=width
        )
        self.norm = nn.BatchNorm2d(width)
        self.pointwise = nn.Linear(width, width)

    def forward(self, x, padding):
        """Computes the layer.

        Arguments
        ---------
        x : torch.Tensor
            1-D view [batch, time, width].
        padding : torch.Tensor or None
            True where padded [batch, time]; None where nothing is.

        Returns
        -------
        torch.Tensor
            1-D view [batch, time, width].
        """
        y = x
        if padding is not None:
            y = blank(y, padding.unsqueeze(2))
        # As a 2-D view with one bin, which is channels_last without a copy. As
        # one with one frame it would take half the time, but torch 2.11 never
        # returns from some convolutions with 59 taps in bfloat16 then.
        y = y.transpose(1, 2).unsqueeze(3)
        y = self.norm(self.depthwise(y)).squeeze(3).transpose(1, 2)
        return self.pointwise(nn.functional.gelu(y)).add_(x)


class SelfAttention(nn.Module):
    """Self-attention and feed-forward, each normalized after its shortcut.

    Arguments
    ---------
    width : int
        Channels.

    Example
    -------
    >>> SelfAttention(8)(torch.randn(2, 10, 8), padding=None).shape
    torch.Size([2, 10, 8])
    """

    def __init__(self, width):
        super().__init__()
        self.query_key_value = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)
        self.attention_norm = nn.LayerNorm(width, eps=1e-6)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, width),
            nn.GELU(approximate="tanh"),
            nn.Linear(width, width),
        )
        self.feed_forward_norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, x, padding):
        """Computes the layer.

        Arguments
        ---------
        x : torch.Tensor
            1-D view [batch, time, width].
        padding : torch.Tensor or None
            True where padded [batch, time]; None where nothing is.

        Returns
        -------
        torch.Tensor
            1-D view [batch, time, width].
        """
        heads = self.query_key_value(x).unflatten(2, (3, ATTENTION_HEADS, -1))
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        attended = nn.functional.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=None if padding is None else ~padding[:, None, None],
        )
        attended = attended.transpose(1, 2).flatten(2)
        x = self.attention_norm(x + self.output(attended))
        return self.feed_forward_norm(x + self.feed_forward(x))


class MapNorm(nn.Module):
    """GroupNorm of a 1-D view over channels of a group and time.

    torch's GroupNorm wants channels before time and knows no lengths.

    Arguments
    ---------
    groups : int
        Groups of neighbouring channels.
    size : int
        Channels of the 1-D view.

    Example
    -------
    >>> MapNorm(2, 8)(torch.randn(3, 5, 8), None).shape
    torch.Size([3, 5, 8])
    """

    def __init__(self, groups, size):
        super().__init__()
        self.groups = groups
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size))

    def forward(self, x, frames):
        """Normalizes each group of each utterance.

        Arguments
        ---------
        x : torch.Tensor
            1-D view [batch, time, channels].
        frames : torch.Tensor or None
            Valid frames [batch] at this view's rate.

        Returns
        -------
        torch.Tensor
            1-D view [batch, time, channels].
        """
        grouped = at_least_float32(x).unflatten(2, (self.groups, -1))
        if frames is None:
            variance, mean = torch.var_mean(grouped, (1, 3), correction=0)
        else:
            padding = ~valid_mask(frames, x.shape[1])[:, :, None, None]
            count = (frames * grouped.shape[3]).unsqueeze(1)
            mean = grouped.masked_fill(padding, 0).sum((1, 3)) / count
            centred = grouped - mean[:, None, :, None]
            centred = centred.masked_fill(padding, 0)
            variance = centred.square().sum((1, 3)) / count
        scale = (variance + 1e-5).rsqrt()
        # One multiply-add of the map: scale and shift for each channel.
        weight = self.weight.unflatten(0, (self.groups, -1))
        weight = weight * scale.unsqueeze(2)
        bias = self.bias.unflatten(0, (self.groups, -1))
        bias = bias - weight * mean.unsqueeze(2)
        x = x * weight.flatten(1)[:, None] + bias.flatten(1)[:, None]
        return x.to(self.weight.dtype)


def convolve(x, weight, bias, stride, groups):
    """Grouped convolution, by depthwise ones where those are faster.

    torch has fast kernels where each group has one channel in and one out. For
    two or three out, as many depthwise convolutions take half the time of one
    grouped convolution, forward and backward.

    Arguments
    ---------
    x : torch.Tensor
        2-D view [batch, channels, time, bins].
    weight : torch.Tensor
        Weight [out, channels / groups, frames, bins].
    bias : torch.Tensor or None
        Bias [out].
    stride : tuple of int
        Stride in frames and bins.
    groups : int
        Groups.

    Returns
    -------
    torch.Tensor
        2-D view [batch, out, time / stride, bins / stride].

    Example
    -------
    >>> x, weight = torch.randn(2, 3, 8, 6), torch.randn(6, 1, 2, 3)
    >>> y = convolve(x, weight, None, (2, 3), groups=3)
    >>> expected = nn.functional.conv2d(x, weight, stride=(2, 3), groups=3)
    >>> torch.allclose(y, expected, atol=1e-6)
    True
    """
    out, size, *kernel = weight.shape
    count = out // groups
    if size > 1 or count not in (2, 3) or kernel == [1, 1]:
        return nn.functional.conv2d(x, weight, bias, stride, groups=groups)
    maps = []
    for i in range(count):
        y = nn.functional.conv2d(
            x,
            weight[i::count],
            None if bias is None else bias[i::count],
            stride,
            groups=groups,
        )
        maps.append(y.permute(0, 2, 3, 1))
    # Back to the order of a grouped convolution: outputs of a group together.
    return torch.stack(maps, 4).flatten(3).permute(0, 3, 1, 2)


def blank(x, padding):
    """Sets padded frames to zero.

    Arguments
    ---------
    x : torch.Tensor
        Any view of a map.
    padding : torch.Tensor or None
        True where padded, broadcastable to ``x``; None where nothing is.

    Returns
    -------
    torch.Tensor
        ``x``, zero where padded.

    Example
    -------
    >>> blank(torch.tensor([[1.0, 2.0]]), torch.tensor([[False, True]]))
    tensor([[1., 0.]])
    """
    return x if padding is None else x.masked_fill(padding, 0)


def check_architecture(bins, base_channels, stages):
    """Refuses architectures that cannot be built, naming the key.

    Arguments
    ---------
    bins : int
        Mel bins.
    base_channels : int
        Channels of the stem's map.
    stages : list of dict
        As in ``ReDimNet2``.

    Example
    -------
    >>> check_architecture(72, 4, [])
    Traceback (most recent call last):
    ValueError: stages: expected a list with an entry for each stage
    """
    integers = ("frequency_stride", "time_stride", "blocks", "reduction")
    keys = {*integers, "expansion"}

    if not _positive(base_channels, int):
        raise ValueError(
            f"base_channels: {base_channels!r} is not a positive integer"
        )
    if not isinstance(stages, (list, tuple)) or not stages:
        raise ValueError("stages: expected a list with an entry for each stage")
    size = bins * base_channels
    for index, stage in enumerate(stages):
        where = f"stages[{index}]"
        if not isinstance(stage, dict) or set(stage) != keys:
            raise ValueError(f"{where}: expected the keys {sorted(keys)}")
        for key in integers:
            if not _positive(stage[key], int):
                raise ValueError(
                    f"{where}.{key}: {stage[key]!r} is not a positive integer"
                )
        if not _positive(stage["expansion"], (int, float)):
            raise ValueError(
                f"{where}.expansion: {stage['expansion']!r} is not a positive "
                "number"
            )
        if bins % stage["frequency_stride"]:
            raise ValueError(
                f"{where}.frequency_stride: {bins} bins cannot be divided by "
                f"{stage['frequency_stride']}"
            )
        bins //= stage["frequency_stride"]
        width = size // stage["reduction"]
        if width == 0 or width % ATTENTION_HEADS:
            raise ValueError(
                f"{where}.reduction: {size} channels / {stage['reduction']} "
                f"are not a multiple of {ATTENTION_HEADS} attention heads"
            )


def _positive(value, kind):
    return isinstance(value, kind) and not isinstance(value, bool) and value > 0
