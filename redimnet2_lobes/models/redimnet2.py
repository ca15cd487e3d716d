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
zero before every operation that looks across time. ``frames`` are the valid
frames of each utterance [batch], and ``padding`` is True where padded [batch,
time]; both are None where nothing is padded.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor, nn

from redimnet2_lobes.models.architecture import (
    check_architecture,
    check_frozen_stages,
)
from redimnet2_lobes.models.blocks import (
    MapNorm,
    ResidualBlock,
    TimeContextBlock,
)
from redimnet2_lobes.models.front_end import (
    HOP,
    SAMPLE_RATE,
    WINDOW,
    FrontEnd,
    LogMel,
)
from redimnet2_lobes.models.lengths import (
    check_not_shorter,
    length_of_each,
    repeat_short,
    valid_mask,
    valid_samples,
)
from redimnet2_lobes.models.pooling import AttentiveStatisticsPooling
from redimnet2_lobes.models.recomputation import recomputed
from redimnet2_lobes.models.strided_convolution import StridedConvolution
from redimnet2_lobes.models.threads import (
    is_watched,
    side_by_side,
    usable_threads,
)
from redimnet2_lobes.models.tiles import (
    TILE_BYTES,
    groups_of_like_length,
    in_tiles,
)

if TYPE_CHECKING:
    from redimnet2_lobes.models.folded_copy import FoldedCopy

# From so many samples on, an utterance that is alone gets all threads.
LONG_FOR_THREADS = 20 * SAMPLE_RATE
NO_TORCHSCRIPT = (
    "TorchScript cannot compile the network, and its trace would hold it to "
    "the lengths that it saw; use redimnet2 export or torch.compile"
)


class ReDimNet2(nn.Module):
    """Maps waveforms to speaker embeddings.

    The front-end stands inside, because features need each utterance's exact
    length in samples, which SpeechBrain's inference classes hand to the
    embedding model only. In a model folder ``compute_features`` and
    ``mean_var_norm`` are therefore ``PassThrough``.

    Arguments
    ---------
    front_end
        Such as ``LogMel``.
    base_channels
        Channels C of the stem's map.
    stages
        For each stage its ``frequency_stride``, ``time_stride``, number of
        residual ``blocks``, channel ``expansion`` inside them, and
        ``reduction`` of the width of the time-context block.
    out_channels
        Channels of a last 1x1 convolution before pooling; None for none.
    aggregation_norm
        Whether maps are normalized before they are aggregated
        (``agg_gnorm`` in published checkpoints).
    dual_aggregation
        Whether a stage also yields the input of its time-context block
        (``dual_agg`` in published checkpoints).
    embedding_size
        Size of the embedding.
    minimum_seconds
        Shorter utterances are repeated up to this length, which must make
        two frames at least, and as many as the total time stride.
    half_precision_maps
        Whether training under autocast keeps the maps in autocast's precision,
        where normalization before aggregation gives float32.
    activation_checkpointing
        Whether training computes the stages again in the backward pass, which
        keeps the maps between stages alone.
    frozen_stages
        How many of the first stages training leaves as they are, with the stem
        before them: neither weights nor BatchNorm's statistics move. 0 for
        none, the stem neither. This and the two options before say how to train
        a network, not what it is: ``arguments`` has none of them.

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
        front_end: FrontEnd,
        base_channels: int,
        stages: Sequence[dict[str, Any]],
        out_channels: int | None = None,
        aggregation_norm: bool = False,
        dual_aggregation: bool = False,
        embedding_size: int = 192,
        minimum_seconds: float = 0.5,
        half_precision_maps: bool = False,
        activation_checkpointing: bool = False,
        frozen_stages: int = 0,
    ) -> None:
        super().__init__()
        bins = front_end.mel_bins
        check_architecture(
            bins, base_channels, stages, out_channels, minimum_seconds
        )
        check_frozen_stages(frozen_stages, len(stages))
        self._arguments = {
            "base_channels": base_channels,
            "stages": [dict(stage) for stage in stages],
            "out_channels": out_channels,
            "aggregation_norm": aggregation_norm,
            "dual_aggregation": dual_aggregation,
            "embedding_size": embedding_size,
            "minimum_seconds": minimum_seconds,
        }
        self.half_precision_maps = half_precision_maps
        self.activation_checkpointing = activation_checkpointing
        self.frozen_stages = frozen_stages
        self._folded_copy: FoldedCopy | None = None
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
        self.minimum_samples = round(minimum_seconds * SAMPLE_RATE)
        frames = (self.minimum_samples + HOP - WINDOW) // HOP + 1
        if frames < self.minimum_frames:
            raise ValueError(
                f"minimum_seconds: {minimum_seconds!r} makes {frames} frames, "
                f"but {self.minimum_frames} are needed with a total time "
                f"stride of {self.time_stride}; raise it"
            )

        for module in self._frozen():
            module.requires_grad_(False)

        self.aggregation = Aggregation(strides, bins * channels)
        self.bins, self.channels = bins, channels
        self.head = None
        if out_channels is not None:
            self.head = nn.Linear(channels, out_channels)
        pooled = bins * (out_channels or channels)
        self.pooling = AttentiveStatisticsPooling(pooled)
        self.norm: nn.Module = nn.BatchNorm1d(2 * pooled)
        self.projection = nn.Linear(2 * pooled, embedding_size)
        # torch's annotations lack this form.
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    @classmethod
    def from_variant(
        cls, variant: str, front_end: FrontEnd | None = None, **arguments: Any
    ) -> "ReDimNet2":
        """An untrained network of a variant.

        Arguments
        ---------
        variant
            b0 to b6; another is a ValueError.
        front_end
            None for ``LogMel()``.
        **arguments
            In place of those of the variant, such as ``embedding_size``.

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

    def __prepare_scriptable__(self) -> NoReturn:
        """Refuses TorchScript; ``torch.jit.script`` calls this first."""
        raise ValueError(NO_TORCHSCRIPT)

    def forward(self, wavs: Tensor, wav_lens: Tensor | None = None) -> Tensor:
        """Computes embeddings, which cosine similarity compares.

        Arguments
        ---------
        wavs
            Waveforms at 16 kHz, padded at the end [batch, time], each of 400
            samples at least.
        wav_lens
            Lengths relative to ``time`` [batch]; None where none is padded.

        Returns
        -------
        torch.Tensor
            Embeddings [batch, 1, embedding].

        Raises
        ------
        ValueError
            If the shape, a length or a relative length is not as above, or the
            network is being traced.
        """
        if torch.jit.is_tracing():  # pyright: ignore[reportPrivateImportUsage]
            raise ValueError(NO_TORCHSCRIPT)
        samples = valid_samples(wavs, wav_lens)
        check_not_shorter(wavs, samples, WINDOW)
        wavs, samples = repeat_short(wavs, samples, self.minimum_samples)
        if self._only_infers(wavs):
            return self._infer(wavs, samples)
        return self._encode(wavs, samples)

    def _only_infers(self, wavs: Tensor) -> bool:
        """Whether neither statistics, nor gradients, nor a graph are wanted."""
        if self.training or torch.compiler.is_compiling() or is_watched():
            return False
        return not torch.is_grad_enabled() or not (
            wavs.requires_grad
            or any(weight.requires_grad for weight in self.parameters())
        )

    @torch.no_grad()
    def _infer(self, wavs: Tensor, samples: Tensor | None) -> Tensor:
        """Embeds by the fastest way that there is."""
        # It imports this module.
        from redimnet2_lobes.models.folded_copy import FoldedCopy, runs_itself

        is_folded = isinstance(self.norm, nn.Identity)
        if is_folded or hasattr(self, "_is_replica"):  # of DataParallel
            return self._encode_on_device(wavs, samples)
        copy = self._folded_copy
        if copy is None or not copy.is_current():
            if any(map(runs_itself, self.modules())):
                return self._encode_on_device(wavs, samples)
            copy = self._folded_copy = FoldedCopy(self)
        return copy.encode(wavs, samples)

    def train(self, mode: bool = True) -> "ReDimNet2":
        """Goes into training mode, or out of it; what is frozen stays out."""
        self._folded_copy = None
        super().train(mode)
        for module in self._frozen():
            module.eval()
        return self

    def _frozen(self) -> list[nn.Module]:
        """What training leaves as it is."""
        if self.frozen_stages == 0:
            return []
        return [self.stem, *self.stages[: self.frozen_stages]]

    def __getstate__(self) -> dict[str, Any]:
        """Leaves the folded copy out of copies and files."""
        return {**self.__dict__, "_folded_copy": None}

    def _encode_on_device(self, wavs: Tensor, samples: Tensor | None) -> Tensor:
        # Other devices are made for large batches.
        if wavs.device.type != "cpu":
            return self._encode(wavs, samples)
        return self._encode_in_groups(wavs, samples)

    def _encode_in_groups(self, wavs: Tensor, samples: Tensor | None) -> Tensor:
        lengths = length_of_each(wavs, samples)
        frame = self.bins * self.channels * wavs.element_size()
        threads = usable_threads()
        budget = min(TILE_BYTES // frame * HOP, -(-sum(lengths) // threads))
        groups = groups_of_like_length(lengths, budget)
        is_half = torch.is_autocast_enabled("cpu")
        half = torch.get_autocast_dtype("cpu")

        def encode(group: list[int]) -> Tensor:
            longest = lengths[group[0]]
            padded = longest != lengths[group[-1]]
            with torch.no_grad(), torch.autocast("cpu", half, is_half):
                return self._encode(
                    wavs[group, :longest],
                    samples[group] if samples is not None and padded else None,
                )

        # Of torch's threads only a long utterance that is alone has more gain
        # than loss, should another process be busy.
        if len(groups) == 1 and lengths[groups[0][0]] >= LONG_FOR_THREADS:
            encoded = [encode(groups[0])]
        else:
            encoded = side_by_side(encode, groups, threads)
        embeddings = [wavs] * len(wavs)
        for group, rows in zip(groups, encoded, strict=True):
            for position, embedding in zip(group, rows, strict=True):
                embeddings[position] = embedding
        return torch.stack(embeddings)

    def _encode(self, wavs: Tensor, samples: Tensor | None) -> Tensor:
        features, frames = self.front_end(wavs, samples)
        return self.encode_features(features, frames).unsqueeze(1)

    def arguments(self) -> dict[str, Any]:
        """What builds a network like this one; ``front_end`` is a dict too."""
        return {"front_end": self.front_end.arguments(), **self._arguments}

    def encode_features(
        self, features: Tensor, frames: Tensor | None = None
    ) -> Tensor:
        """Embeddings [batch, embedding] of features [batch, time, mel bins]."""
        maps, frames = self.feature_maps(features, frames)
        x = self.upsample(self.aggregation(maps))
        if self.head is not None:
            x = self.head(x.unflatten(2, (self.bins, self.channels)))
            x = x.flatten(2)
        return self.projection(self.norm(self.pooling(x, frames)))

    def feature_maps(
        self, features: Tensor, frames: Tensor | None = None
    ) -> tuple[list[Tensor], Tensor | None]:
        """Computes the maps of the stem and of every stage.

        Arguments
        ---------
        features
            Features [batch, time, mel bins].
        frames
            Valid frames of each utterance [batch].

        Returns
        -------
        maps
            1-D views [batch, time / stride, bins * channels], each at its own
            frame rate.
        frames
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
        maps = [self._kept(self.stem(features, frames))]
        for stage in self.stages:
            recompute = self.activation_checkpointing and stage.training
            # A list of its own, as the stage may be computed again later.
            inputs = list(maps), frames
            outputs = (
                recomputed(stage, *inputs) if recompute else stage(*inputs)
            )
            maps.extend(map(self._kept, outputs))
        return maps, frames

    def _kept(self, x: Tensor) -> Tensor:
        """A map in the precision in which training keeps it."""
        device = x.device.type
        if (
            self.half_precision_maps
            and self.training
            and torch.is_autocast_enabled(device)
        ):
            return x.to(torch.get_autocast_dtype(device))
        return x

    def upsample(self, sums: dict[int, Tensor]) -> Tensor:
        """Adds maps of several frame rates at the full rate.

        Arguments
        ---------
        sums
            For each time stride a 1-D view [batch, time / stride, channels].

        Returns
        -------
        torch.Tensor
            1-D view [batch, time, channels].
        """
        # From the slowest rate upwards, so that little is repeated.
        strides = sorted(sums, reverse=True)
        total = sums[strides[0]]
        for slow, fast in zip(strides[:-1], strides[1:], strict=True):
            frames = sums[fast].unflatten(1, (-1, slow // fast))
            total = (total.unsqueeze(2) + frames).flatten(1, 2)
        return total


class Stem(nn.Module):
    """3x3 convolution of the features, LayerNorm over channels.

    Arguments
    ---------
    channels
        Output channels.
    bins
        Mel bins.
    aggregation_norm
        Whether the map is normalized for the aggregations.

    Example
    -------
    >>> stem = Stem(channels=4, bins=72, aggregation_norm=True)
    >>> stem(torch.randn(2, 8, 72), frames=None).shape
    torch.Size([2, 8, 288])
    """

    def __init__(
        self, channels: int, bins: int, aggregation_norm: bool
    ) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, channels, 3, padding=1)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.map_norm = None
        if aggregation_norm:
            self.map_norm = MapNorm(channels, bins * channels)

    def forward(self, features: Tensor, frames: Tensor | None) -> Tensor:
        """Features [batch, time, bins] to the first map, a 1-D view."""
        x = self.convolution(features.unsqueeze(1)).permute(0, 2, 3, 1)
        x = self.norm(x).flatten(2)
        return x if self.map_norm is None else self.map_norm(x, frames)


class Stage(nn.Module):
    """One stage: aggregate, reshape, 2-D blocks, 1-D time context.

    Arguments
    ---------
    channels, bins
        Channels c and frequency bins f of the 2-D view that it reads.
    strides
        Time strides of all maps before.
    frequency_stride
        Bins become fewer, channels more, by this factor.
    time_stride
        Frames become fewer by this factor than in the stage before.
    blocks
        Residual blocks.
    expansion
        Width of the residual blocks relative to the stage's channels.
    reduction
        Width of the time-context block is c * f divided by this.
    groups
        Groups of the normalization before aggregation; None for none.
    dual_aggregation
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
        channels: int,
        bins: int,
        strides: list[int],
        frequency_stride: int,
        time_stride: int,
        blocks: int,
        expansion: float,
        reduction: int,
        groups: int | None,
        dual_aggregation: bool,
    ) -> None:
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
        self.contract: nn.Module | None = None
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

    def forward(
        self, maps: list[Tensor], frames: Tensor | None
    ) -> list[Tensor]:
        """All maps before to the one or, with dual aggregation, two of this
        stage; 1-D views. ``frames`` are at the full rate.
        """
        x = self.reshape(self.aggregation(maps))
        padding = None
        if frames is not None:
            frames = frames // self.time_stride
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
    strides
        Time stride of each map.
    size
        Channels of the 1-D view.

    Example
    -------
    >>> aggregation = Aggregation([1, 1, 2], 8)
    >>> maps = [torch.randn(1, time, 8) for time in (4, 4, 2)]
    >>> {stride: x.shape[1] for stride, x in aggregation(maps).items()}
    {1: 4, 2: 2}
    """

    def __init__(self, strides: list[int], size: int) -> None:
        super().__init__()
        self.strides = tuple(strides)
        # Published checkpoints hold a weight for a single map as well; the
        # softmax makes it 1 whatever it is.
        self.weight = nn.Parameter(
            torch.zeros(len(strides), size), requires_grad=len(strides) > 1
        )

    def forward(self, maps: list[Tensor]) -> dict[int, Tensor]:
        """Sums the maps of each time stride, 1-D views."""
        sums = {}
        weights = self.weight.softmax(0)
        for stride, x, weight in zip(self.strides, maps, weights, strict=True):
            if stride in sums:
                sums[stride].addcmul_(x, weight)
            else:
                sums[stride] = x * weight
        return sums
