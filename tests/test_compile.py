"""torch.compile: one graph for all lengths."""

import shutil

import pytest
import torch
from conftest import ParityCase, relative_difference
from test_parity import build as build_published
from test_redimnet2 import PADDINGS, STAGES, build, pad, speech
from torch._dynamo.testing import CompileCounter, CompileCounterWithBackend
from torch.nn.functional import normalize
from training_memory import bytes_kept

from redimnet2_lobes.models.folding import fold
from redimnet2_lobes.training.losses import AdditiveAngularMarginLoss


@pytest.fixture(autouse=True)
def no_graphs_of_other_tests():
    """Graphs of all networks count towards the limit of recompilations."""
    torch._dynamo.reset()


def compile_features(network, counter):
    """As README says, and nothing may fall back to eager code."""
    return torch.compile(
        network.encode_features, backend=counter, dynamic=True, fullgraph=True
    )


def batch_of_features(batch, time, padded):
    """The longest utterance first; the shortest is half of it."""
    frames = None
    if padded:
        frames = torch.linspace(time, time // 2, batch).long()
    return torch.randn(batch, time, 72), frames


@torch.no_grad()
def check_one_graph(network, padded, sizes):
    """Sizes are (batch, time); those of the first make the graph."""
    counter = CompileCounter()
    compiled = compile_features(network, counter)
    for batch, time in sizes:
        features, frames = batch_of_features(batch, time, padded)
        expected = network.encode_features(features, frames)
        found = compiled(features, frames)
        assert relative_difference(found, expected) < 1e-5
    assert counter.frame_count == 1


# From less than a second to 20 s: eager code works on the short ones in one
# piece, on the long ones in several.
SIZES = [(2, 64), (3, 301), (2, 1999)]
# torch takes a batch of one to be a constant, and where it has fewer than
# 20,480 values it makes a graph with another convolution.
SINGLE = [(1, 300), (1, 1999), (1, 499)]
SHORT_SINGLE = [(1, 64), (1, 280), (1, 72)]


def test_one_graph_of_b0(b0_case):
    check_one_graph(fold(build_published(b0_case)), False, SIZES)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["b0-vox2", "b3-vox2", "b6-vb2+vox2+cnc2"])
@pytest.mark.parametrize("folded", [True, False], ids=["folded", "as trained"])
@pytest.mark.parametrize("padded", [True, False], ids=["padded", "equal"])
def test_one_graph_of_published_variants(name, folded, padded):
    network = build_published(ParityCase(name))
    check_one_graph(fold(network) if folded else network, padded, SIZES)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [SINGLE, SHORT_SINGLE])
@pytest.mark.parametrize("padded", [True, False], ids=["padded", "equal"])
def test_one_graph_of_single_utterances(b0_case, padded, sizes):
    check_one_graph(fold(build_published(b0_case)), padded, sizes)


@pytest.mark.parametrize("padded", [True, False], ids=["padded", "equal"])
def test_one_graph_with_every_option(padded, tile_bytes):
    tile_bytes(20_000)  # so that a small network has tiles
    options = {"aggregation_norm": True, "dual_aggregation": True}
    network = build(stages=STAGES[1:3], **options)
    check_one_graph(network, padded, SIZES)


@torch.no_grad()
def test_waveforms_of_all_lengths(tile_bytes):
    """Masks or none, repeated or not: some graphs, but no more by length."""
    tile_bytes(20_000)
    network = build(stages=STAGES[1:3])
    counter = CompileCounter()
    compiled = torch.compile(network, backend=counter, dynamic=True)

    def check(*sizes):
        batch, lengths = pad(
            [speech(size, seed) for seed, size in enumerate(sizes)],
            PADDINGS["NaN"],
        )
        expected = network(batch, lengths)
        found = compiled(batch, lengths)
        assert relative_difference(found, expected) < 1e-5

    check(16000, 9000)
    check(18000, 9000, 900)
    check(17000, 17000, 17000)
    graphs = counter.frame_count
    check(40000, 25000, 9000)
    check(21000, 20000, 10000, 500)
    check(31000, 31000)
    assert counter.frame_count == graphs


def train(network, forward, steps):
    """As the recipe does it: crops of one length, with lengths.

    Yields
    ------
    float
        Loss of each step.
    """
    torch.manual_seed(3)
    labels = torch.arange(4).unsqueeze(1)
    classes = torch.randn(192, 4)
    cost = AdditiveAngularMarginLoss(margin=0.2)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3)
    for _ in range(steps):
        embeddings = forward(torch.randn(4, 16240), torch.ones(4))
        cosines = normalize(embeddings, dim=2) @ normalize(classes, dim=0)
        loss = cost(cosines, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield loss.item()


def test_training_step(tile_bytes):
    """The losses of eager code, in graphs of the first step."""
    tile_bytes(20_000)
    network = build(stages=STAGES[1:3], aggregation_norm=True).train()
    counter = CompileCounter()
    # SpeechBrain's choice.
    compiled = torch.compile(network, backend=counter, dynamic=False)
    found, graphs = [], []
    for loss in train(network, compiled, steps=3):
        found.append(loss)
        graphs.append(counter.frame_count)
    assert graphs == graphs[:1] * 3
    # In one piece, as graphs do it: BatchNorm of fresh networks magnifies
    # rounding.
    tile_bytes(2**40)
    network = build(stages=STAGES[1:3], aggregation_norm=True).train()
    expected = list(train(network, network, steps=3))
    assert len(set(expected)) == 3
    assert found == pytest.approx(expected, rel=1e-5)


def test_training_in_one_graph(tile_bytes):
    tile_bytes(20_000)
    network = build(stages=STAGES[1:3]).train()
    counter = CompileCounter()
    compiled = compile_features(network, counter)
    for batch, time in ((2, 64), (3, 100)):
        features = torch.randn(batch, time, 72)
        compiled(features).sum().backward()
    assert counter.frame_count == 1
    assert network.stem.convolution.weight.grad.abs().sum() > 0


def test_recomputed_stages_are_in_the_graph():
    """It keeps less; statistics and gradients are those of eager code."""
    features = torch.randn(2, 64, 72, dtype=torch.float64)
    results, sizes = [], []
    for compiled in (False, True):
        for recompute in (False, True):
            network = build(
                stages=STAGES[1:3], activation_checkpointing=recompute
            )
            network = network.train().double()
            encode = network.encode_features
            counter = CompileCounterWithBackend("aot_eager")
            if compiled:
                encode = torch.compile(encode, backend=counter, fullgraph=True)
            size, embeddings = bytes_kept(
                lambda encode=encode: encode(features), network.parameters()
            )
            embeddings.square().sum().backward()
            assert counter.frame_count == compiled
            results.append(dict(network.named_buffers()))
            results[-1]["gradient"] = network.stem.convolution.weight.grad
            sizes.append(size)
    assert sizes[3] < 0.6 * sizes[2]
    for result in results[1:]:
        for name, value in results[0].items():
            assert torch.allclose(result[name], value, rtol=1e-9), name


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("g++") is None, reason="torch compiles with g++"
)
@torch.no_grad()
def test_compiled_to_machine_code():
    network = fold(build(stages=STAGES[1:3], aggregation_norm=True))
    compiled = torch.compile(network.encode_features, dynamic=True)
    for batch, time in ((2, 64), (3, 1999), (1, 101)):
        features = torch.randn(batch, time, 72)
        expected = network.encode_features(features)
        assert relative_difference(compiled(features), expected) < 1e-5
