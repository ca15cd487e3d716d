"""The network as an ONNX graph, in the form that runs fast.

The graph is written out operation by operation, not traced: it stays the same
for any batch and length, and its layout is its own. Maps lie in memory as
[1, bins, channels, frames], so that reshaping to the 1-D view
[1, bins * channels, frames] is free, and all that goes over time goes over
neighbours in memory. Each utterance is cut out of the batch and encoded by
itself in a loop: padding is never read, and a batch needs the memory of its
longest utterance only. On a CPU that is faster than a padded batch, whose maps
leave the cache and need masks.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from redimnet2_lobes.models.folding import fold
from redimnet2_lobes.models.front_end import (
    FFT_LENGTH,
    HOP,
    PRE_EMPHASIS,
    WINDOW,
    LogMel,
)
from redimnet2_lobes.models.redimnet2 import ATTENTION_HEADS

OPSET = 20  # the first that has Gelu
IR_VERSION = 9
# ONNX Runtime's fast convolutions work on blocks of so many channels.
CHANNEL_BLOCK = 16


def write_graph(network, features=False):
    """Writes the graph that encodes one utterance.

    Arguments
    ---------
    network : ReDimNet2
        The network, not folded; it is not changed.
    features : bool
        Whether the input is log-mel features in place of a waveform.

    Returns
    -------
    onnx.ModelProto
        Input ``waveform`` [1, samples] or ``features_of_one`` [1, frames,
        mel bins], output ``embedding`` [1, embedding].

    Example
    -------
    >>> from redimnet2_lobes.models.redimnet2 import ReDimNet2
    >>> stage = {"frequency_stride": 2, "time_stride": 2, "blocks": 1}
    >>> stage = {**stage, "expansion": 2, "reduction": 8}
    >>> model = write_graph(ReDimNet2(LogMel(), 4, [stage]))
    >>> model.graph.input[0].name, model.graph.output[0].name
    ('waveform', 'embedding')
    """
    folded = fold(network)
    graph = _Graph()
    if features:
        source = "features_of_one"
        shape = [1, "frames", folded.front_end.mel_bins]
        x = graph("Transpose", source, perm=[0, 2, 1])
    else:
        source = "waveform"
        shape = [1, "samples"]
        graph.prefix = "front_end_"
        x = _front_end(graph, source, folded)
        graph.prefix = ""
    _encode_features(graph, x, folded, output="embedding")
    return _model(
        graph.nodes,
        [_value(source, shape)],
        [_value("embedding", [1, folded.projection.out_features])],
        graph.constants,
    )


def over_batch(model):
    """Puts the graph for one utterance into a loop over a padded batch.

    Arguments
    ---------
    model : onnx.ModelProto
        From ``write_graph``, or a quantized form of it.

    Returns
    -------
    onnx.ModelProto
        Inputs ``waveforms`` [batch, samples] and ``lengths`` [batch], int64,
        in samples, or ``features`` [batch, frames, mel bins] and ``frames``
        [batch]; output ``embeddings`` [batch, embedding].

    Example
    -------
    >>> from redimnet2_lobes.models.redimnet2 import ReDimNet2
    >>> stage = {"frequency_stride": 2, "time_stride": 2, "blocks": 1}
    >>> stage = {**stage, "expansion": 2, "reduction": 8}
    >>> model = over_batch(write_graph(ReDimNet2(LogMel(), 4, [stage])))
    >>> [value.name for value in model.graph.input]
    ['waveforms', 'lengths']
    """
    inner = model.graph
    shape = [d.dim_param or d.dim_value for d in _dimensions(inner.input[0])]
    size = _dimensions(inner.output[0])[-1].dim_value
    if inner.input[0].name == "waveform":
        batch, lengths = "waveforms", "lengths"
    else:
        batch, lengths = "features", "frames"
    body = _Graph("turn_")
    zero, one = body.integers(0), body.integers(1)
    index = body("Unsqueeze", "turn", zero)
    length = body("Gather", lengths, index, axis=0)
    body(
        "Slice",
        batch,
        body("Concat", index, zero, axis=0),
        body("Concat", body("Add", index, one), length, axis=0),
        body.integers(0, 1),
        output=inner.input[0].name,
    )
    body.nodes.extend(inner.node)
    body("Identity", "go_on", output="go_on_after")
    body("Squeeze", inner.output[0].name, zero, output="embedding_of_one")
    subgraph = helper.make_graph(
        body.nodes,
        "one_utterance",
        [
            _value("turn", [], TensorProto.INT64),
            _value("go_on", [], TensorProto.BOOL),
        ],
        [
            _value("go_on_after", [], TensorProto.BOOL),
            _value("embedding_of_one", [size]),
        ],
        # The constants too: those of the outer graph no optimization sees.
        [*body.constants, *inner.initializer],
    )
    outer = _Graph("loop_")
    count = outer("Squeeze", outer("Shape", batch, start=0, end=1))
    outer("Loop", count, np.array(True), output="embeddings", body=subgraph)
    looped = _model(
        outer.nodes,
        [
            _value(batch, ["batch", *shape[1:]]),
            _value(lengths, ["batch"], TensorProto.INT64),
        ],
        [_value("embeddings", ["batch", size])],
        outer.constants,
    )
    del looped.opset_import[:]
    looped.opset_import.extend(model.opset_import)
    return looped


class _Graph:
    """Nodes and constants, each constant once."""

    def __init__(self, prefix=""):
        self.prefix = prefix
        self.nodes = []
        self.constants = []
        self._names = {}

    def __call__(self, operation, *inputs, output=None, outputs=1, **settings):
        """Adds a node; arrays among its inputs become constants."""
        inputs = [x if isinstance(x, str) else self.constant(x) for x in inputs]
        name = f"{self.prefix}{operation}_{len(self.nodes)}"
        names = [output or name]
        if outputs > 1:
            names = [f"{name}_{i}" for i in range(outputs)]
        node = helper.make_node(operation, inputs, names, name, **settings)
        self.nodes.append(node)
        return names[0] if outputs == 1 else names

    def constant(self, array):
        array = np.ascontiguousarray(array).reshape(np.shape(array))
        key = array.dtype.str, array.shape, array.tobytes()
        if key not in self._names:
            name = f"{self.prefix}constant_{len(self.constants)}"
            self._names[key] = name
            self.constants.append(numpy_helper.from_array(array, name))
        return self._names[key]

    def integers(self, *values):
        return self.constant(np.array(values, np.int64))

    def scalar(self, value):
        return self.constant(np.array(value, np.float32))

    def reshape(self, x, *shape):
        return self("Reshape", x, self.integers(*shape))

    def linear(self, x, weight, bias):
        """A linear layer over the channels of [1, channels, frames]."""
        return self("Conv", x, weight[:, :, None], bias)

    def layer(self, x, linear):
        return self.linear(x, _array(linear.weight), _array(linear.bias))

    def layer_norm(self, x, norm):
        """LayerNorm over the channels of [1, channels, frames]."""
        x = self("Transpose", x, perm=[0, 2, 1])
        x = self(
            "LayerNormalization",
            x,
            _array(norm.weight),
            _array(norm.bias),
            epsilon=norm.eps,
        )
        return self("Transpose", x, perm=[0, 2, 1])

    def sum(self, x, axis):
        return self("ReduceSum", x, self.integers(axis), keepdims=1)

    def mean(self, x, axis):
        return self("ReduceMean", x, self.integers(axis), keepdims=1)

    def square(self, x):
        return self("Mul", x, x)


def _front_end(graph, x, network):
    """Waveform [1, samples] to features [1, mel bins, frames]."""
    front_end = network.front_end
    minimum = np.array([network.minimum_samples], np.int64)
    # Short ones are repeated up to the minimum.
    length = graph("Shape", x, start=1, end=2)
    times = graph(
        "Div", graph("Add", length, minimum - 1), length
    )  # rounded up, at least 1
    times = graph("Max", times, graph.integers(1))
    wanted = graph("Max", length, minimum)
    x = graph("Tile", x, graph("Concat", graph.integers(1), times, axis=0))
    x = graph("Slice", x, graph.integers(0), wanted, graph.integers(1))

    is_logmel = isinstance(front_end, LogMel)
    if is_logmel or front_end.normalize:
        centred = graph("Sub", x, graph.mean(x, 1))
        deviation = graph("Sqrt", graph.mean(graph.square(centred), 1))
        epsilon = graph.scalar(1e-8 if is_logmel else 1e-6)
        x = graph("Div", centred, graph("Add", deviation, epsilon))

    # Pre-emphasis; the first sample sees the second.
    first, last = graph.integers(0), graph.integers(-1)
    one, two = graph.integers(1), graph.integers(2)
    before = graph(
        "Concat",
        graph("Slice", x, one, two, one),
        graph("Slice", x, first, last, one),
        axis=1,
    )
    x = graph("Sub", x, graph("Mul", before, graph.scalar(PRE_EMPHASIS)))

    window = front_end.window.double().numpy()
    hop = np.array([HOP], np.int64)
    if is_logmel:
        x = graph("Pad", x, graph.integers(0, HOP // 2, 0, HOP // 2))
        spectrum_bins = FFT_LENGTH // 2
        span = graph("Sub", wanted, graph.integers(WINDOW - 2 * HOP))
    else:
        x = graph(
            "Pad",
            x,
            graph.integers(0, WINDOW // 2, 0, WINDOW // 2),
            mode="reflect",
        )
        spectrum_bins = FFT_LENGTH // 2 + 1
        span = graph("Add", wanted, hop)
    count = graph("Div", span, hop)
    power = _power_spectrum(graph, x, count, window, spectrum_bins)
    filters = _array(front_end.mel_filters)
    if is_logmel:
        lowest, highest = graph.scalar(1e-8), graph.scalar(1e8)
        power = graph("Clip", power, lowest, highest)
        mel = graph("Clip", graph("MatMul", power, filters), lowest, highest)
        mel = graph("Add", mel, lowest)
    else:
        mel = graph("MatMul", power, filters)
        mel = graph("Add", mel, graph.scalar(1e-6))
    x = graph("Log", mel)
    x = graph("Sub", x, graph.mean(x, 0))
    return graph("Unsqueeze", graph("Transpose", x, perm=[1, 0]), first)


def _power_spectrum(graph, x, count, window, spectrum_bins):
    """Power of windows every 10 ms, [frames, spectrum bins].

    A window of 400 samples is two hops of 160 and half of a third, so that
    frames are joined from a few long pieces; the spectrum is a product.
    """
    hops = graph("Add", count, graph.integers(2))
    samples = graph("Mul", hops, graph.integers(HOP))
    x = graph("Pad", x, graph.integers(0, 0, 0, 2 * HOP))
    x = graph("Slice", x, graph.integers(0), samples, graph.integers(1))
    x = graph.reshape(x, -1, HOP)
    pieces = []
    for hop in range(3):
        start = graph.integers(hop, 0)
        rows = graph("Add", count, graph.integers(hop))
        columns = graph.integers(min(HOP, WINDOW - hop * HOP))
        end = graph("Concat", rows, columns, axis=0)
        pieces.append(graph("Slice", x, start, end, graph.integers(0, 1)))
    frames = graph("Concat", *pieces, axis=1)
    angle = np.outer(np.arange(WINDOW), np.arange(spectrum_bins))
    angle = 2 * np.pi / FFT_LENGTH * angle
    basis = np.concatenate([np.cos(angle), np.sin(angle)], 1)
    basis = (window[:, None] * basis).astype(np.float32)
    spectrum = graph("MatMul", frames, basis)
    real, imaginary = graph("Split", spectrum, outputs=2, axis=1, num_outputs=2)
    return graph("Add", graph.square(real), graph.square(imaginary))


def _encode_features(graph, x, network, output):
    """Features [1, mel bins, frames] to the embedding [1, embedding]."""
    trim = np.array([network.time_stride], np.int64)
    count = graph("Shape", x, start=2, end=3)
    count = graph("Mul", graph("Div", count, trim), trim)
    x = graph("Slice", x, graph.integers(0), count, graph.integers(2))
    bins, channels = (
        network.front_end.mel_bins,
        network.stem.norm.weight.numel(),
    )
    maps = [_stem(graph, x, network.stem, bins * channels)]
    for stage in network.stages:
        maps.extend(_stage(graph, maps, stage, channels, bins))
        _, stride = stage.reshape.kernel_size
        bins, channels = bins // stride, channels * stride
    sums = _aggregate(graph, network.aggregation, maps)
    x = _at_full_rate(graph, sums, bins * channels)
    if network.head is not None:
        x = graph.reshape(x, 1, bins, channels, -1)
        x = graph("MatMul", _array(network.head.weight), x)
        x = graph("Add", x, _array(network.head.bias)[:, None])
        x = graph.reshape(x, 1, bins * network.head.out_features, -1)
    count = graph("Cast", count, to=TensorProto.FLOAT)
    x = _pool(graph, x, count, network.pooling)
    projection = network.projection
    graph(
        "Gemm",
        x,
        _array(projection.weight),
        _array(projection.bias),
        transB=1,
        output=output,
    )


def _stem(graph, x, stem, size):
    """The first map, as ``_normalized`` gives it."""
    # LayerNorm over channels: weights without their mean over the channels
    # give maps without it.
    weight, bias = (
        _array(stem.convolution.weight),
        _array(stem.convolution.bias),
    )
    x = graph(
        "Conv",
        graph("Unsqueeze", x, graph.integers(1)),
        (weight - weight.mean(0)).swapaxes(2, 3),
        bias - bias.mean(),
        pads=[1] * 4,
    )
    variance = graph.mean(graph.square(x), 1)
    variance = graph("Add", variance, graph.scalar(stem.norm.eps))
    x = graph("Mul", x, graph("Reciprocal", graph("Sqrt", variance)))
    x = graph("Mul", x, _array(stem.norm.weight)[:, None, None])
    x = graph("Add", x, _array(stem.norm.bias)[:, None, None])
    x = graph("Transpose", x, perm=[0, 2, 1, 3])
    x = graph.reshape(x, 1, size, -1)
    return _normalized(graph, x, stem.map_norm)


def _normalized(graph, x, norm):
    """A map [1, size, frames] with the scale and the shift [1, size, 1] of its
    GroupNorm, which the next sums multiply into their weights.
    """
    if norm is None:
        return x, None, None
    size, groups = norm.weight.numel(), norm.groups
    grouped = graph.reshape(x, 1, groups, -1)
    mean = graph.mean(grouped, 2)
    centred = graph("Sub", grouped, mean)
    variance = graph.mean(graph.square(centred), 2)
    variance = graph("Add", variance, graph.scalar(1e-5))
    scale = graph(
        "Div",
        _array(norm.weight).reshape(1, groups, -1),
        graph("Sqrt", variance),
    )
    bias = _array(norm.bias).reshape(1, groups, -1)
    shift = graph("Sub", bias, graph("Mul", scale, mean))
    return (
        x,
        graph.reshape(scale, 1, size, 1),
        graph.reshape(shift, 1, size, 1),
    )


def _aggregate(graph, aggregation, maps):
    """Sums of the maps of each time stride, [1, size, frames]."""
    weights = _array(aggregation.weight.softmax(0))[:, None, :, None]
    sums, shifts = {}, []
    for stride, weight, (x, scale, shift) in zip(
        aggregation.strides, weights, maps, strict=True
    ):
        if scale is not None:
            shifts.append(graph("Mul", shift, weight))
            weight = graph("Mul", scale, weight)
        x = graph("Mul", x, weight)
        sums[stride] = graph("Add", sums[stride], x) if stride in sums else x
    if shifts:
        # One rate takes the shifts of all, the slowest, with fewest frames.
        stride = max(sums)
        sums[stride] = graph("Add", sums[stride], graph("Sum", *shifts))
    return sums


def _at_full_rate(graph, sums, size):
    """Adds sums of several rates; the frames come out in another order.

    With s frames to each of the slowest rate, the first of every s come first,
    then the second of every s, and so on. No more than pooling follows, which
    knows no order, and additions over frames side by side are fast.
    """
    slowest = max(sums)
    total, repeats = None, 1
    for stride in sorted(sums, reverse=True):
        phases = slowest // stride
        x = graph.reshape(sums[stride], 1, size, -1, phases)
        x = graph("Transpose", x, perm=[0, 1, 3, 2])
        x = graph.reshape(x, 1, size, repeats, phases // repeats, -1)
        if total is not None:
            x = graph("Add", x, total)
        total = graph.reshape(x, 1, size, phases, 1, -1)
        repeats = phases
    return graph.reshape(total, 1, size, -1)


def _stage(graph, maps, stage, channels, bins):
    """The maps of a stage, as ``_normalized`` gives them."""
    sums = _aggregate(graph, stage.aggregation, maps)
    size = channels * bins
    stride = stage.reshape.kernel_size[1]
    x, order = _reshape(graph, stage, sums, bins)
    bins, channels = bins // stride, channels * stride
    for block in stage.blocks:
        x = _residual_block(graph, x, block, order)
    if stage.contract is not None:
        weight = _array(stage.contract.weight)[:, order]
        x = graph("Conv", x, weight, _array(stage.contract.bias))
        order = np.arange(channels)
    # To [bins, channels, frames], channels in torch's order.
    groups = stage.reshape.groups if order[0:2].sum() > 1 else channels
    x = graph.reshape(x, channels // groups, groups, bins, -1)
    x = graph("Transpose", x, perm=[2, 1, 0, 3])
    x = graph.reshape(x, 1, size, -1)
    outputs = [_time_context(graph, x, stage.time_context)]
    if stage.dual_aggregation:
        outputs.insert(0, x)
    norms = stage.map_norms or [None] * len(outputs)
    return [
        _normalized(graph, output, norm)
        for output, norm in zip(outputs, norms, strict=True)
    ]


def _reshape(graph, stage, sums, bins):
    """The strided convolution of a stage.

    Returns the map [1, width, bins / stride, frames / stride] and which channel
    of torch's each of its channels is. Convolutions of one channel in and
    several out are made of depthwise ones, one after the other on the channel
    axis, where these fill whole blocks; others with all weights, most of them
    zero. Both are faster than groups.
    """
    convolution = stage.reshape
    channels, width = convolution.in_channels, convolution.out_channels
    frames, stride = convolution.kernel_size
    groups = convolution.groups
    count = width // groups
    depthwise = groups == channels and channels % CHANNEL_BLOCK == 0
    order = np.arange(width)
    if depthwise:
        order = order.reshape(groups, count).T.ravel()
    bias = _array(convolution.bias)[order]
    total = None
    for rate, x in sums.items():
        x = graph.reshape(x, bins, channels, -1)
        x = graph("Transpose", x, perm=[1, 0, 2])
        x = graph("Unsqueeze", x, graph.integers(0))
        weight = _array(convolution.weight)
        weight = weight.reshape(*weight.shape[:2], frames // rate, rate, stride)
        weight = weight.sum(3).swapaxes(2, 3)
        strides = [stride, frames // rate]
        if depthwise:
            parts = [
                graph(
                    "Conv",
                    x,
                    weight[i::count],
                    bias[i * groups : (i + 1) * groups],
                    group=groups,
                    strides=strides,
                )
                for i in range(count)
            ]
            x = graph("Concat", *parts, axis=1) if count > 1 else parts[0]
        else:
            dense = np.zeros((groups, count, groups, *weight.shape[1:]), "f4")
            for i in range(groups):
                dense[i, :, i] = weight[i * count : (i + 1) * count]
            dense = dense.reshape(width, channels, *weight.shape[2:])
            x = graph("Conv", x, dense, bias, strides=strides)
        total = x if total is None else graph("Add", total, x)
        bias = np.zeros_like(bias)
    return total, order


def _residual_block(graph, x, block, order):
    def depthwise(x, layer):
        weight = _array(layer.weight)[order].swapaxes(2, 3)
        return graph("Conv", x, weight, group=len(order), pads=[1] * 4)

    def pointwise(x, layer, shift=0.0):
        weight = _array(layer.weight)[order][:, order]
        return graph("Conv", x, weight, _array(layer.bias)[order] + shift)

    # The folded network raises each channel to a floor, which is ReLU between
    # two shifts. ONNX Runtime works the first into the convolution, and the
    # second, as a BatchNormalization, keeps to the layout of convolutions.
    floor = _array(block.rectify.floor).ravel()[order]
    one, zero = np.ones_like(floor), np.zeros_like(floor)
    y = pointwise(depthwise(x, block.depthwise_1), block.pointwise_1, -floor)
    y = graph("Relu", y)
    y = graph("BatchNormalization", y, one, floor, zero, one, epsilon=0.0)
    y = pointwise(depthwise(y, block.depthwise_2), block.pointwise_2)
    return graph("Relu", graph("Add", y, x))


def _time_context(graph, x, block):
    y = graph.layer_norm(graph.layer(x, block.contract), block.norm)
    for layer in block.convolutions:
        weight = _array(layer.depthwise.weight)[..., 0]
        width, _, kernel = weight.shape
        z = graph(
            "Conv",
            y,
            weight,
            _array(layer.depthwise.bias),
            group=width,
            pads=[kernel // 2] * 2,
        )
        y = graph("Add", graph.layer(graph("Gelu", z), layer.pointwise), y)
    y = _self_attention(graph, y, block.attention)
    return graph("Add", graph.layer(y, block.expand), x)


def _self_attention(graph, x, layer):
    """As in the network, with maps [1, width, frames]."""
    width = layer.output.out_features
    size = width // ATTENTION_HEADS
    weight = _array(layer.query_key_value.weight).copy()
    bias = _array(layer.query_key_value.bias).copy()
    weight[:width] *= size**-0.5  # the queries
    bias[:width] *= size**-0.5
    heads = graph.linear(x, weight, bias)
    heads = graph.reshape(heads, 3, ATTENTION_HEADS, size, -1)
    query, key, value = graph("Split", heads, outputs=3, num_outputs=3)
    query = graph("Transpose", query, perm=[0, 1, 3, 2])
    value = graph("Transpose", value, perm=[0, 1, 3, 2])
    weights = graph("Softmax", graph("MatMul", query, key), axis=-1)
    attended = graph("MatMul", weights, value)
    attended = graph("Transpose", attended, perm=[0, 1, 3, 2])
    attended = graph.reshape(attended, 1, width, -1)
    x = graph("Add", x, graph.layer(attended, layer.output))
    x = graph.layer_norm(x, layer.attention_norm)
    first, _, second = layer.feed_forward
    y = graph("Gelu", graph.layer(x, first), approximate="tanh")
    x = graph("Add", x, graph.layer(y, second))
    return graph.layer_norm(x, layer.feed_forward_norm)


def _pool(graph, x, count, pooling):
    """Statistics [1, 2 * size] of frames [1, size, frames]."""
    size = pooling.attention.out_features
    mean = graph("Div", graph.sum(x, 2), count)
    variance = graph.sum(graph.square(graph("Sub", x, mean)), 2)
    variance = graph("Div", variance, graph("Sub", count, graph.scalar(1)))
    deviation = graph("Sqrt", graph("Add", variance, graph.scalar(1e-7)))
    weight = _array(pooling.context.weight)
    context = graph(
        "MatMul", weight[:, size:], graph("Concat", mean, deviation, axis=1)
    )
    context = graph("Add", context, _array(pooling.context.bias)[:, None])
    hidden = graph("Add", graph("MatMul", weight[:, :size], x), context)
    weights = graph(
        "MatMul", _array(pooling.attention.weight), graph("Tanh", hidden)
    )
    weights = graph("Add", weights, _array(pooling.attention.bias)[:, None])
    weights = graph("Softmax", weights, axis=-1)
    weighted = graph("Mul", weights, x)
    mean = graph.sum(weighted, 2)
    variance = graph.sum(graph("Mul", weighted, x), 2)
    variance = graph("Sub", variance, graph.square(mean))
    deviation = graph("Sqrt", graph("Max", variance, graph.scalar(1e-7)))
    statistics = graph("Concat", mean, deviation, axis=1)
    return graph("Squeeze", statistics, graph.integers(2))


def _array(tensor):
    return tensor.detach().cpu().float().numpy()


def _value(name, shape, kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def _dimensions(value):
    return value.type.tensor_type.shape.dim


def _model(nodes, inputs, outputs, constants):
    return helper.make_model(
        helper.make_graph(nodes, "redimnet2", inputs, outputs, constants),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="redimnet2_lobes",
    )
