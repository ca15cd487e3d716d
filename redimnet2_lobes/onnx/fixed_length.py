"""A graph for utterances of one length, all of whose shapes are known.

Compilers for small devices want that: no shape depends on the input, and
nothing is computed from one.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import tempfile
from pathlib import Path

import onnx
import onnxruntime

# What is left of a shape that is not known.
DYNAMIC = {"If", "Loop", "Scan", "Shape", "Size", "Range", "NonZero"}


def with_fixed_length(model: onnx.ModelProto, length: int) -> onnx.ModelProto:
    """A graph of one utterance, for so many samples, or frames, only.

    ONNX Runtime computes what follows from the length. A ValueError says that
    its version leaves something to be computed in each run. The model itself
    is not changed.

    Example
    -------
    >>> from redimnet2_lobes.models.folding import fold
    >>> from redimnet2_lobes.models.onnx_graph import write_graph
    >>> from redimnet2_lobes.models.redimnet2 import ReDimNet2
    >>> network = fold(ReDimNet2.from_variant("b0"))
    >>> model = write_graph(network, blockwise=False)
    >>> fixed = with_fixed_length(model, 16000)
    >>> [x.dim_value for x in fixed.graph.input[0].type.tensor_type.shape.dim]
    [1, 16000]
    """
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    fixed.graph.input[0].type.tensor_type.shape.dim[1].dim_value = length
    options = onnxruntime.SessionOptions()
    # More would write operations of its own.
    options.graph_optimization_level = (
        onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "fixed.onnx"
        options.optimized_model_filepath = str(path)
        onnxruntime.InferenceSession(
            fixed.SerializeToString(),
            options,
            providers=["CPUExecutionProvider"],
        )
        fixed = onnx.load(path)
    for opset in [x for x in fixed.opset_import if x.domain]:
        fixed.opset_import.remove(opset)
    fixed.producer_name = model.producer_name
    left = {
        node.op_type
        for node in fixed.graph.node
        if node.domain or node.op_type in DYNAMIC
    }
    if left:
        raise ValueError(
            f"this version of onnxruntime leaves {', '.join(sorted(left))} in "
            "a graph of fixed length; install a newer one"
        )
    return fixed
