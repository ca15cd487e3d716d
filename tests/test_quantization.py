"""Weights in eight bits."""

import numpy as np
import torch
from onnx import numpy_helper
from test_parity import build
from test_redimnet2 import speech

from redimnet2_lobes.models.folding import fold
from redimnet2_lobes.models.onnx_graph import write_graph
from redimnet2_lobes.onnx.encoder import OnnxEncoder
from redimnet2_lobes.onnx.export import export_onnx
from redimnet2_lobes.onnx.quantization import quantize_weights


@torch.no_grad()
def test_size_and_embeddings_of_b0(b0_case, tmp_path):
    network = build(b0_case)
    path = tmp_path / "b0.onnx"
    export_onnx(network, path, int8=True)
    parameters = sum(x.numel() for x in network.parameters())
    assert path.stat().st_size < 0.6 * 4 * parameters
    waveforms = torch.stack([speech(32000, i) for i in range(2)])
    found = OnnxEncoder(path, threads=1).encode_batch(waveforms)
    cosine = torch.cosine_similarity(found, network(waveforms), dim=2)
    assert cosine.min() > 0.99


def test_each_weight_within_half_a_step(b0_case):
    model = write_graph(fold(build(b0_case)))
    before = {x.name: numpy_helper.to_array(x) for x in model.graph.initializer}
    after = {
        x.name: numpy_helper.to_array(x)
        for x in quantize_weights(model).graph.initializer
    }
    quantized = [name for name in before if f"{name}_int8" in after]
    assert sum(before[name].size for name in quantized) > 900_000
    for name in quantized:
        assert name not in after and not name.startswith("front_end_")
        scale = after[f"{name}_scale"]
        restored = after[f"{name}_int8"] * scale
        assert np.all(np.abs(restored - before[name]) <= 0.501 * scale)
    for name in set(before) - set(quantized):
        assert np.array_equal(before[name], after[name])
