"""torch.compile: one graph for all lengths."""

import torch
from conftest import relative_difference
from test_redimnet2 import STAGES, build
from torch._dynamo.testing import CompileCounter

from redimnet2_lobes.folding import fold


@torch.no_grad()
def test_one_graph_for_all_lengths():
    network = fold(build(stages=STAGES[1:3], aggregation_norm=True))
    counter = CompileCounter()
    compiled = torch.compile(
        network.encode_features, backend=counter, dynamic=True, fullgraph=True
    )
    for batch, time in ((2, 64), (3, 101), (5, 72)):
        features = torch.randn(batch, time, 72)
        expected = network.encode_features(features)
        assert relative_difference(compiled(features), expected) < 1e-5
    assert counter.frame_count == 1


@torch.no_grad()
def test_one_graph_for_all_paddings():
    network = build(stages=STAGES[1:3], dual_aggregation=True)
    counter = CompileCounter()
    compiled = torch.compile(
        network.encode_features, backend=counter, dynamic=True, fullgraph=True
    )
    for frames in ([64, 48], [101, 20, 99]):
        features = torch.randn(len(frames), max(frames), 72)
        frames = torch.tensor(frames)
        expected = network.encode_features(features, frames)
        found = compiled(features, frames)
        assert relative_difference(found, expected) < 1e-5
    assert counter.frame_count == 1


def test_training_in_one_graph():
    network = build(stages=STAGES[1:3]).train()
    counter = CompileCounter()
    compiled = torch.compile(
        network.encode_features, backend=counter, dynamic=True, fullgraph=True
    )
    for batch, time in ((2, 64), (3, 100)):
        features = torch.randn(batch, time, 72)
        compiled(features).sum().backward()
    assert counter.frame_count == 1
    assert network.stem.convolution.weight.grad.abs().sum() > 0
