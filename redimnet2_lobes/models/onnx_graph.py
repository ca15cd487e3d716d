"""The network as an ONNX graph, in the form that runs fast.

The graph is written out operation by operation, not traced: it stays the same
for any batch and length, and its layout is its own. Maps lie in memory as
[1, bins, channels, frames], so that reshaping to the 1-D view
[1, bins * channels, frames] is free, and all that goes over time goes over
neighbours in memory. Each utterance is cut out of the batch and encoded by
itself: padding is never read, and a batch needs the memory of its longest
utterance only. On a CPU that is faster than a padded batch, whose maps leave
the cache and need masks.

What torch.onnx.export(dynamo=True) with onnxscript traces is slower: one file
of 3 s takes it 1.32 times as long for B0, 1.17 for B3 and 1.04 for B6. With
second forms of the spectrum, the stem, the strided convolutions and the
pooling, and a rule that rewrites the convolutions over time, these are 1.07 to
1.13, 1.06 to 1.08 and 1.09. It takes 20 to 30 s of processor time to export B0,
this 0.1 s. (Processor time of interleaved runs, medians, one thread of a busy
AMD EPYC; torch 2.11.0, onnxscript 0.7.2, onnxruntime 1.32.0.)

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from onnx import (
    GraphProto,
    ModelProto,
    NodeProto,
    OperatorSetIdProto,
    TensorProto,
    ValueInfoProto,
    helper,
    numpy_helper,
)
from torch import Tensor, nn

from redimnet2_lobes.models.blocks import (
    ATTENTION_HEADS,
)
from redimnet2_lobes.models.front_end import (
    HOP,
    PRE_EMPHASIS,
    WINDOW,
    FrontEnd,
    LogMel,
    spectrum_basis,
)
from redimnet2_lobes.models.redimnet2 import Aggregation, ReDimNet2

OPSET = 20  # the first that has Gelu
IR_VERSION = 9
# ONNX Runtime's fast convolutions work on blocks of so many channels.
CHANNEL_BLOCK = 16
# Frames whose attention to all frames is computed together.
QUERIES_AT_ONCE = 512
# The input of one utterance: those of a batch.
BATCH_INPUTS = {
    "waveform": ("waveforms", "lengths"),
    "features_of_one": ("features", "frames"),
}
# A map [1, size, frames], the scale and the shift [1, size, 1] that its
# GroupNorm gives it; None without one.
Map = tuple[str, str | None, str | None]


def write_graph(
    network: ReDimNet2, features: bool = False, blockwise: bool = True
) -> ModelProto:
    """Writes the graph that encodes one utterance.

    The network is a folded one, `fold`, and stays as it is. The input is
    ``waveform`` [1, samples] or, with ``features``, ``features_of_one``
    [1, frames, mel bins], the output ``embedding`` [1, embedding].

    Attention is computed ``blockwise``, in a loop where the utterance is long,
    or at once: without branches and loops, which not every runtime has, but in
    memory that grows with the square of the length.

    Example
    -------
    >>> from redimnet2_lobes.models.folding import fold
    >>> model = write_graph(fold(ReDimNet2.from_variant("b0")))
    >>> model.graph.input[0].name, model.graph.output[0].name
    ('waveform', 'embedding')
    """
    graph = _Graph(blockwise=blockwise)
    if features:
        source = _value(
            "features_of_one", [1, "frames", network.front_end.mel_bins]
        )
        x = graph("Transpose", source.name, perm=[0, 2, 1])
    else:
        source = _value("waveform", [1, "samples"])
        graph.prefix = "front_end_"
        x = _front_end(graph, source.name, network)
        graph.prefix = ""
    _encode_features(graph, x, network, output="embedding")
    embedding = _value("embedding", [1, network.projection.out_features])
    opset = helper.make_opsetid("", OPSET)
    return _model(graph, [source], [embedding], [opset])


def over_batch(model: ModelProto) -> ModelProto:
    """Puts a graph of ``write_graph`` into a loop over a padded batch.

    Inputs are ``waveforms`` [batch, samples] and ``lengths`` [batch], int64,
    in samples, or ``features`` [batch, frames, mel bins] and ``frames``
    [batch]; the output is ``embeddings`` [batch, embedding].

    Example
    -------
    >>> from redimnet2_lobes.models.folding import fold
    >>> model = over_batch(write_graph(fold(ReDimNet2.from_variant("b0"))))
    >>> [value.name for value in model.graph.input]
    ['waveforms', 'lengths']
    """
    inner = model.graph
    (source,), (embedding,) = inner.input, inner.output
    shape, size = _shape(source)[1:], _shape(embedding)[1]
    batch, lengths = BATCH_INPUTS[source.name]
    body = _Graph("turn_")
    index = body("Unsqueeze", "turn", [0])
    padded = body("Gather", batch, index)
    length = body("Gather", lengths, index)
    body("Slice", padded, [0], length, [1], output=source.name)
    body.nodes.extend(inner.node)
    body("Squeeze", embedding.name, [0], output="embedding_of_one")
    body("Identity", "go_on", output="go_on_after")
    turn = _value("turn", [], TensorProto.INT64)
    go_on = _value("go_on", [], TensorProto.BOOL)
    go_on_after = _value("go_on_after", [], TensorProto.BOOL)
    outputs = [go_on_after, _value("embedding_of_one", [size])]
    # Optimizations do not see constants of the outer graph.
    constants = [*body.constants, *inner.initializer]
    subgraph = helper.make_graph(
        body.nodes, "one_utterance", [turn, go_on], outputs, constants
    )
    graph = _Graph("loop_")
    count = graph("Squeeze", graph("Shape", batch, start=0, end=1))
    # Not a Scan, which ONNX Runtime refuses to run over an empty batch.
    graph("Loop", count, "", output="embeddings", body=subgraph)
    inputs = [
        _value(batch, ["batch", *shape]),
        _value(lengths, ["batch"], TensorProto.INT64),
    ]
    outputs = [_value("embeddings", ["batch", size])]
    return _model(graph, inputs, outputs, model.opset_import)


class _Graph:
    """Nodes and constants, each constant once."""

    def __init__(self, prefix: str = "", blockwise: bool = True) -> None:
        self.prefix = prefix
        self.blockwise = blockwise
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []
        self._names: dict[tuple, str] = {}

    def __call__(
        self,
        operation: str,
        *inputs: str | Tensor | list[int] | float,
        output: str | None = None,
        **settings: Any,
    ) -> str:
        """Adds a node and returns the name of its output.

        Inputs are names; all others become constants, integers as int64,
        numbers as float32.
        """
        names = [x if isinstance(x, str) else self.constant(x) for x in inputs]
        name = f"{self.prefix}{operation}_{len(self.nodes)}"
        output = output or name
        node = helper.make_node(operation, names, [output], name, **settings)
        self.nodes.append(node)
        return output

    def split(self, x: str, count: int, axis: int) -> list[str]:
        """Cuts a tensor into equal parts."""
        name = self("Split", x, axis=axis, num_outputs=count)
        others = [f"{name}_{i}" for i in range(1, count)]
        self.nodes[-1].output.extend(others)
        return [name, *others]

    def constant(self, value: Tensor | list[int] | float) -> str:
        """The name of a constant, which is kept once."""
        if isinstance(value, Tensor):
            array = value.float().contiguous().numpy()
        else:
            kind = np.int64 if isinstance(value, list) else np.float32
            array = np.array(value, kind)
        key = array.dtype.str, array.shape, array.tobytes()
        if key not in self._names:
            name = f"{self.prefix}constant_{len(self.constants)}"
            self._names[key] = name
            self.constants.append(numpy_helper.from_array(array, name))
        return self._names[key]

    def layer(self, x: str, linear: nn.Linear) -> str:
        """A linear layer over the channels of [1, channels, frames]."""
        return self("Conv", x, linear.weight[:, :, None], linear.bias)

    def layer_norm(self, x: str, norm: nn.LayerNorm) -> str:
        """LayerNorm over the channels of [1, channels, frames]."""
        x = self("Transpose", x, perm=[0, 2, 1])
        parameters = norm.weight, norm.bias
        x = self("LayerNormalization", x, *parameters, epsilon=norm.eps)
        return self("Transpose", x, perm=[0, 2, 1])


def _front_end(graph: _Graph, x: str, network: ReDimNet2) -> str:
    """Waveform [1, samples] to features [1, mel bins, frames]."""
    minimum = network.minimum_samples
    # Short ones are repeated up to the minimum.
    length = graph("Shape", x, start=1, end=2)
    times = graph("Div", graph("Add", length, [minimum - 1]), length)
    times = graph("Max", times, [1])
    wanted = graph("Max", length, [minimum])
    x = graph("Tile", x, graph("Concat", [1], times, axis=0))
    x = graph("Slice", x, [0], wanted, [1])

    front_end = network.front_end
    ours = isinstance(front_end, LogMel)
    if ours or front_end.normalize:
        centred = graph("Sub", x, graph("ReduceMean", x, [1]))
        variance = graph("ReduceMean", graph("Mul", centred, centred), [1])
        epsilon = 1e-8 if ours else 1e-6
        deviation = graph("Add", graph("Sqrt", variance), epsilon)
        x = graph("Div", centred, deviation)

    # Pre-emphasis; the first sample sees the second.
    second = graph("Slice", x, [1], [2], [1])
    before = graph("Concat", second, graph("Slice", x, [0], [-1], [1]), axis=1)
    x = graph("Sub", x, graph("Mul", before, PRE_EMPHASIS))

    # Half a hop of zeros stands at either end, or half a window reflected.
    if ours:
        x = graph("Pad", x, [0, HOP // 2, 0, HOP // 2])
        span = graph("Sub", wanted, [WINDOW - 2 * HOP])
    else:
        x = graph("Pad", x, [0, WINDOW // 2, 0, WINDOW // 2], mode="reflect")
        span = graph("Add", wanted, [HOP])
    count = graph("Div", span, [HOP])
    power = _power_spectrum(graph, x, count, front_end)
    limits = 1e-8, 1e8
    if ours:
        power = graph("Clip", power, *limits)
    mel = graph("MatMul", power, front_end.mel_filters)
    if ours:
        mel = graph("Clip", mel, *limits)
    x = graph("Log", graph("Add", mel, 1e-8 if ours else 1e-6))
    x = graph("Sub", x, graph("ReduceMean", x, [0]))
    return graph("Unsqueeze", graph("Transpose", x, perm=[1, 0]), [0])


def _power_spectrum(
    graph: _Graph, x: str, count: str, front_end: FrontEnd
) -> str:
    """Power of windows every 10 ms, [frames, spectrum bins].

    A window of 400 samples is two hops of 160 and half of a third, so that
    frames are joined from a few long pieces; the spectrum is a product.
    """
    x = graph("Pad", x, [0, 0, 0, 2 * HOP])
    samples = graph("Mul", graph("Add", count, [2]), [HOP])
    x = graph("Reshape", graph("Slice", x, [0], samples, [1]), [-1, HOP])
    pieces = []
    for hop in range(3):
        rows, columns = graph("Add", count, [hop]), min(HOP, WINDOW - hop * HOP)
        end = graph("Concat", rows, [columns], axis=0)
        pieces.append(graph("Slice", x, [hop, 0], end, [0, 1]))
    frames = graph("Concat", *pieces, axis=1)
    basis = spectrum_basis(front_end.window, len(front_end.mel_filters))
    spectrum = graph("MatMul", frames, basis)
    squares = [graph("Mul", x, x) for x in graph.split(spectrum, 2, axis=1)]
    return graph("Add", *squares)


# To torch, what is in a module may be a tensor or a module; hence Any.


def _encode_features(graph: _Graph, x: str, network: Any, output: str) -> None:
    """Features [1, mel bins, frames] to the embedding [1, embedding]."""
    trim = [network.time_stride]
    count = graph("Shape", x, start=2, end=3)
    count = graph("Mul", graph("Div", count, trim), trim)
    x = graph("Slice", x, [0], count, [2])
    bins = network.front_end.mel_bins
    channels = network.stem.norm.weight.numel()
    maps = [_stem(graph, x, network.stem, bins * channels)]
    for stage in network.stages:
        maps.extend(_stage(graph, maps, stage, channels, bins))
        stride = stage.reshape.kernel_size[1]
        bins, channels = bins // stride, channels * stride
    sums = _aggregate(graph, network.aggregation, maps)
    x = _at_full_rate(graph, sums, bins * channels)
    head, projection = network.head, network.projection
    if head is not None:
        x = graph("Reshape", x, [1, bins, channels, -1])
        x = graph("Add", graph("MatMul", head.weight, x), head.bias[:, None])
        x = graph("Reshape", x, [1, bins * head.out_features, -1])
    count = graph("Cast", count, to=TensorProto.FLOAT)
    x = _pool(graph, x, count, network.pooling)
    parameters = projection.weight, projection.bias
    graph("Gemm", x, *parameters, transB=1, output=output)


def _stem(graph: _Graph, x: str, stem: Any, size: int) -> Map:
    # LayerNorm over channels: weights without their mean over the channels
    # give maps without it.
    weight, bias = stem.convolution.weight, stem.convolution.bias
    weight = (weight - weight.mean(0)).transpose(2, 3)
    x = graph("Unsqueeze", x, [1])
    x = graph("Conv", x, weight, bias - bias.mean(), pads=[1] * 4)
    variance = graph("ReduceMean", graph("Mul", x, x), [1])
    deviation = graph("Sqrt", graph("Add", variance, stem.norm.eps))
    x = graph("Mul", x, graph("Reciprocal", deviation))
    x = graph("Mul", x, stem.norm.weight[:, None, None])
    x = graph("Add", x, stem.norm.bias[:, None, None])
    x = graph("Transpose", x, perm=[0, 2, 1, 3])
    return _normalized(graph, graph("Reshape", x, [1, size, -1]), stem.map_norm)


def _normalized(graph: _Graph, x: str, norm: Any) -> Map:
    """The next sums multiply scale and shift into their weights."""
    if norm is None:
        return x, None, None
    size, groups = norm.weight.numel(), norm.groups
    grouped = graph("Reshape", x, [1, groups, -1])
    mean = graph("ReduceMean", grouped, [2])
    centred = graph("Sub", grouped, mean)
    variance = graph("ReduceMean", graph("Mul", centred, centred), [2])
    deviation = graph("Sqrt", graph("Add", variance, 1e-5))
    scale = graph("Div", norm.weight.reshape(1, groups, -1), deviation)
    bias = norm.bias.reshape(1, groups, -1)
    shift = graph("Sub", bias, graph("Mul", scale, mean))
    scale, shift = (graph("Reshape", y, [1, size, 1]) for y in (scale, shift))
    return x, scale, shift


def _aggregate(
    graph: _Graph, aggregation: Aggregation, maps: list[Map]
) -> dict[int, str]:
    """Sums [1, size, frames] of the maps of each time stride."""
    weights = aggregation.weight.softmax(0)[:, None, :, None]
    sums, shifts = {}, []
    for stride, weight, (x, scale, shift) in zip(
        aggregation.strides, weights, maps, strict=True
    ):
        if scale is not None and shift is not None:
            shifts.append(graph("Mul", shift, weight))
            weight = graph("Mul", scale, weight)
        x = graph("Mul", x, weight)
        sums[stride] = graph("Add", sums[stride], x) if stride in sums else x
    if shifts:
        # One rate takes the shifts of all, the slowest, with fewest frames.
        stride = max(sums)
        sums[stride] = graph("Add", sums[stride], graph("Sum", *shifts))
    return sums


def _at_full_rate(graph: _Graph, sums: dict[int, str], size: int) -> str:
    """Adds sums of several rates; the frames come out in another order.

    With s frames to each of the slowest rate, the first of every s come first,
    then the second of every s, and so on. No more than pooling follows, which
    knows no order, and additions over frames side by side are fast.
    """
    slowest = max(sums)
    total, repeats = "", 1
    for stride in sorted(sums, reverse=True):
        phases = slowest // stride
        x = graph("Reshape", sums[stride], [1, size, -1, phases])
        x = graph("Transpose", x, perm=[0, 1, 3, 2])
        x = graph("Reshape", x, [1, size, repeats, phases // repeats, -1])
        if total:
            x = graph("Add", x, total)
        total = graph("Reshape", x, [1, size, phases, 1, -1])
        repeats = phases
    return graph("Reshape", total, [1, size, -1])


def _stage(
    graph: _Graph, maps: list[Map], stage: Any, channels: int, bins: int
) -> list[Map]:
    sums = _aggregate(graph, stage.aggregation, maps)
    size = channels * bins
    x, order = _reshape(graph, stage.reshape, sums, bins)
    stride = stage.reshape.kernel_size[1]
    bins, channels = bins // stride, channels * stride
    for block in stage.blocks:
        x = _residual_block(graph, x, block, order)
    if stage.contract is not None:
        weight, bias = stage.contract.weight[:, order], stage.contract.bias
        x = graph("Conv", x, weight, bias)
        order = torch.arange(channels)
    # To [bins, channels, frames], channels in torch's order.
    groups = stage.reshape.groups if order[:2].sum() > 1 else channels
    x = graph("Reshape", x, [channels // groups, groups, bins, -1])
    x = graph("Transpose", x, perm=[2, 1, 0, 3])
    x = graph("Reshape", x, [1, size, -1])
    outputs = [_time_context(graph, x, stage.time_context)]
    if stage.dual_aggregation:
        outputs.insert(0, x)
    norms = stage.map_norms or [None] * len(outputs)
    pairs = zip(outputs, norms, strict=True)
    return [_normalized(graph, *pair) for pair in pairs]


def _reshape(
    graph: _Graph, convolution: Any, sums: dict[int, str], bins: int
) -> tuple[str, Tensor]:
    """The strided convolution of a stage.

    Returns the map [1, width, bins / stride, frames / stride] and which channel
    of torch's each of its channels is. Convolutions of one channel in and
    several out are made of depthwise ones, one after the other on the channel
    axis, where these fill whole blocks; others with all weights, most of them
    zero. Both are faster than groups.
    """
    channels, width = convolution.in_channels, convolution.out_channels
    frames, stride = convolution.kernel_size
    groups, count = convolution.groups, width // convolution.groups
    depthwise = groups == channels and channels % CHANNEL_BLOCK == 0
    order = torch.arange(width)
    if depthwise:
        order = order.view(groups, count).T.flatten()
    bias = convolution.bias[order]
    total = ""
    for rate, x in sums.items():
        x = graph("Reshape", x, [bins, channels, -1])
        x = graph("Transpose", x, perm=[1, 0, 2])
        x = graph("Unsqueeze", x, [0])
        # A frame of a slower rate stands for several of the kernel's.
        weight = convolution.weight.unflatten(2, (-1, rate)).sum(3)
        weight = weight.transpose(2, 3)
        strides = [stride, frames // rate]
        if depthwise:
            settings = {"group": groups, "strides": strides}
            parts = [
                graph("Conv", x, weight[i::count], part, **settings)
                for i, part in enumerate(bias.split(groups))
            ]
            x = graph("Concat", *parts, axis=1) if count > 1 else parts[0]
        else:
            # The output channels of each group read its input channels.
            dense = torch.zeros(groups, count, groups, *weight.shape[1:])
            each = torch.arange(groups)
            dense[each, :, each] = weight.unflatten(0, (groups, count))
            dense = dense.flatten(2, 3).flatten(0, 1)
            x = graph("Conv", x, dense, bias, strides=strides)
        total = graph("Add", total, x) if total else x
        bias = torch.zeros_like(bias)
    return total, order


def _residual_block(graph: _Graph, x: str, block: Any, order: Tensor) -> str:
    def depthwise(x: str, layer: Any) -> str:
        weight = layer.weight[order].transpose(2, 3)
        return graph("Conv", x, weight, group=len(order), pads=[1] * 4)

    def pointwise(x: str, layer: Any, shift: Tensor | float = 0.0) -> str:
        weight, bias = layer.weight[order][:, order], layer.bias[order]
        return graph("Conv", x, weight, bias + shift)

    # The folded network raises each channel to a floor, which is ReLU between
    # two shifts. ONNX Runtime works the first into the convolution, and the
    # second, as a BatchNormalization, keeps to the layout of convolutions.
    floor = block.rectify.floor.flatten()[order]
    one, zero = torch.ones_like(floor), torch.zeros_like(floor)
    y = pointwise(depthwise(x, block.depthwise_1), block.pointwise_1, -floor)
    y = graph("Relu", y)
    y = graph("BatchNormalization", y, one, floor, zero, one, epsilon=0.0)
    y = pointwise(depthwise(y, block.depthwise_2), block.pointwise_2)
    return graph("Relu", graph("Add", y, x))


def _time_context(graph: _Graph, x: str, block: Any) -> str:
    y = graph.layer_norm(graph.layer(x, block.contract), block.norm)
    for layer in block.convolutions:
        weight, bias = layer.depthwise.weight[..., 0], layer.depthwise.bias
        width, _, kernel = weight.shape
        pads = [kernel // 2] * 2
        z = graph("Conv", y, weight, bias, group=width, pads=pads)
        y = graph("Add", graph.layer(graph("Gelu", z), layer.pointwise), y)
    y = _self_attention(graph, y, block.attention)
    return graph("Add", graph.layer(y, block.expand), x)


def _self_attention(graph: _Graph, x: str, layer: Any) -> str:
    width = layer.output.out_features
    size = width // ATTENTION_HEADS
    scale = torch.ones(3 * width, 1)
    scale[:width] = size**-0.5  # of the queries
    weight = layer.query_key_value.weight * scale
    bias = layer.query_key_value.bias * scale[:, 0]
    heads = graph("Conv", x, weight[:, :, None], bias)
    heads = graph("Reshape", heads, [3, ATTENTION_HEADS, size, -1])
    query, key, value = graph.split(heads, 3, axis=0)
    value = graph("Transpose", value, perm=[0, 1, 3, 2])
    attended = _attend(graph, query, key, value)
    attended = graph("Reshape", attended, [1, width, -1])
    x = graph("Add", x, graph.layer(attended, layer.output))
    x = graph.layer_norm(x, layer.attention_norm)
    first, _, second = layer.feed_forward
    y = graph("Gelu", graph.layer(x, first), approximate="tanh")
    x = graph("Add", x, graph.layer(y, second))
    return graph.layer_norm(x, layer.feed_forward_norm)


def _attend(graph: _Graph, query: str, key: str, value: str) -> str:
    """Attended values [1, heads, size, frames].

    Queries and keys are [1, heads, size, frames], values [1, heads, frames,
    size]. Blockwise the queries of a long utterance are taken in blocks of
    about equal length: weights of all at once would grow with the square of the
    frames.
    """
    if not graph.blockwise:
        return _attend_at_once(graph, query, key, value)
    frames = graph("Shape", query, start=3, end=4)
    short = _Graph(f"{query}_short_")
    short_output = _attend_at_once(short, query, key, value)

    long = _Graph(f"{query}_long_")
    limit = [QUERIES_AT_ONCE]
    blocks = long("Div", long("Add", frames, [QUERIES_AT_ONCE - 1]), limit)
    length = long("Add", long("Div", long("Sub", frames, [1]), blocks), [1])
    missing = long("Sub", long("Mul", blocks, length), frames)
    x = long("Pad", query, long("Concat", [0], missing, axis=0), "", [3])
    shape = long("Concat", [0, 0, 0], blocks, length, axis=0)
    x = long("Transpose", long("Reshape", x, shape), perm=[3, 0, 1, 4, 2])
    block = _Graph(f"{query}_block_")
    one = f"{query}_block"
    output = _weighted_values(block, one, key, value)
    body = _subgraph(block, output, one)
    x = long("Scan", x, body=body, num_scan_inputs=1)
    x = long("Transpose", x, perm=[1, 2, 4, 0, 3])
    x = long("Reshape", x, [0, 0, 0, -1])
    long_output = long("Slice", x, [0], frames, [3])
    return graph(
        "If",
        graph("Squeeze", graph("LessOrEqual", frames, limit)),
        then_branch=_subgraph(short, short_output),
        else_branch=_subgraph(long, long_output),
    )


def _attend_at_once(graph: _Graph, query: str, key: str, value: str) -> str:
    x = graph("Transpose", query, perm=[0, 1, 3, 2])
    x = _weighted_values(graph, x, key, value)
    return graph("Transpose", x, perm=[0, 1, 3, 2])


def _weighted_values(graph: _Graph, query: str, key: str, value: str) -> str:
    weights = graph("Softmax", graph("MatMul", query, key), axis=-1)
    return graph("MatMul", weights, value)


def _subgraph(graph: _Graph, output: str, *inputs: str) -> GraphProto:
    values = [_value(name, [None] * 4) for name in (*inputs, output)]
    return helper.make_graph(
        graph.nodes, "attention", values[:-1], values[-1:], graph.constants
    )


def _pool(graph: _Graph, x: str, count: str, pooling: Any) -> str:
    """Statistics [1, 2 * size] of frames [1, size, frames]."""
    size = pooling.attention.out_features
    mean = graph("Div", graph("ReduceSum", x, [2]), count)
    centred = graph("Sub", x, mean)
    variance = graph("ReduceSum", graph("Mul", centred, centred), [2])
    variance = graph("Div", variance, graph("Sub", count, 1.0))
    deviation = graph("Sqrt", graph("Add", variance, 1e-7))
    statistics = graph("Concat", mean, deviation, axis=1)
    of_frame, of_statistics = pooling.context.weight.split([size, 2 * size], 1)
    context = graph("MatMul", of_statistics, statistics)
    context = graph("Add", context, pooling.context.bias[:, None])
    hidden = graph("Add", graph("MatMul", of_frame, x), context)
    weights = graph("MatMul", pooling.attention.weight, graph("Tanh", hidden))
    weights = graph("Add", weights, pooling.attention.bias[:, None])
    weighted = graph("Mul", graph("Softmax", weights, axis=-1), x)
    mean = graph("ReduceSum", weighted, [2])
    square = graph("ReduceSum", graph("Mul", weighted, x), [2])
    variance = graph("Sub", square, graph("Mul", mean, mean))
    deviation = graph("Sqrt", graph("Max", variance, 1e-7))
    statistics = graph("Concat", mean, deviation, axis=1)
    return graph("Squeeze", statistics, [2])


def _value(
    name: str, shape: list[int | str | None], kind: int = TensorProto.FLOAT
) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def _shape(value: ValueInfoProto) -> list[int | str]:
    dimensions = value.type.tensor_type.shape.dim
    return [x.dim_param or x.dim_value for x in dimensions]


def _model(
    graph: _Graph,
    inputs: list[ValueInfoProto],
    outputs: list[ValueInfoProto],
    opset_imports: Iterable[OperatorSetIdProto],
) -> ModelProto:
    return helper.make_model(
        helper.make_graph(
            graph.nodes, "redimnet2", inputs, outputs, graph.constants
        ),
        opset_imports=opset_imports,
        ir_version=IR_VERSION,
        producer_name="redimnet2_lobes",
    )
