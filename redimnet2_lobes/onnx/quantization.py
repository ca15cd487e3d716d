"""Weights of an ONNX graph in eight bits, for small files.

A runtime that folds constants, as ONNX Runtime does, makes floats of them when
it loads the file: half to a third of the size, much the same speed. Arithmetic
in eight bits did not pay; tests/benchmarks/measured/runtimes.md has the
figures.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

# Smaller constants are not worth the two nodes that make floats of them.
MINIMUM_SIZE = 1024


def quantize_weights(
    model: ModelProto, exempt: str = "front_end_"
) -> ModelProto:
    """Stores the weights of convolutions and products as int8.

    Each output channel has a scale of its own. Constants whose name starts with
    ``exempt`` keep their precision. Those of the front-end have to: its spectra
    span many powers of ten. The model itself is not changed.

    Example
    -------
    >>> weight = numpy_helper.from_array(np.eye(64, dtype=np.float32), "weight")
    >>> product = helper.make_node("MatMul", ["weight", "x"], ["y"])
    >>> graph = helper.make_graph([product], "graph", [], [], [weight])
    >>> quantized = quantize_weights(helper.make_model(graph))
    >>> [node.op_type for node in quantized.graph.node]
    ['Cast', 'Mul', 'MatMul']
    """
    weights = {
        name
        for node in model.graph.node
        if node.op_type in ("Conv", "MatMul", "Gemm")
        for name in node.input
    }
    quantized = ModelProto()
    quantized.CopyFrom(model)
    graph = quantized.graph
    del graph.initializer[:], graph.node[:]
    for constant in model.graph.initializer:
        name = constant.name
        if (
            name not in weights
            or name.startswith(exempt)
            or np.prod(constant.dims) < MINIMUM_SIZE
        ):
            graph.initializer.append(constant)
            continue
        weight = numpy_helper.to_array(constant)
        axes = tuple(range(1, weight.ndim))
        largest = np.abs(weight).max(axes, keepdims=True)
        scale = np.where(largest > 0, largest / 127, 1).astype(np.float32)
        integers = (weight / scale).round().astype(np.int8)
        stored, converted = f"{name}_int8", f"{name}_float"
        scales = f"{name}_scale"
        graph.initializer.append(numpy_helper.from_array(integers, stored))
        graph.initializer.append(numpy_helper.from_array(scale, scales))
        # Not DequantizeLinear, which ONNX Runtime keeps for kernels that
        # multiply integers, and computes anew in each run.
        make_node, kind = helper.make_node, TensorProto.FLOAT
        graph.node.append(make_node("Cast", [stored], [converted], to=kind))
        graph.node.append(make_node("Mul", [converted, scales], [name]))
    graph.node.extend(model.graph.node)
    return quantized
