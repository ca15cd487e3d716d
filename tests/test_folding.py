"""The folded copy of a network against the network."""

import copy
import io

import pytest
import torch
from conftest import relative_difference
from test_parity import build, load_encoder
from test_redimnet2 import OPTIONS, PADDINGS, pad, speech
from test_redimnet2 import build as build_small

from redimnet2_lobes.models.folding import fold
from redimnet2_lobes.models.front_end import LogMel


def not_folded(network, *batch):
    """With a gradient a network runs itself."""
    with torch.enable_grad():
        return network(*batch).detach()


@torch.no_grad()
def test_every_published_architecture(parity_case):
    network = build(parity_case)
    folded = fold(network)
    sizes = [8000, 16319, 33000]
    waveforms = [parity_case.waveform(size) for size in sizes]
    batch, lengths = pad(waveforms, PADDINGS["NaN"])
    expected = not_folded(network, batch, lengths)
    assert relative_difference(folded(batch, lengths), expected) < 1e-5
    for size in parity_case.lengths:
        embedding = folded(parity_case.waveform(size).unsqueeze(0))[0, 0]
        theirs = parity_case.figure(f"embedding_{size}")
        assert relative_difference(embedding, theirs) < 1e-5


@pytest.mark.parametrize("options", OPTIONS)
@torch.no_grad()
def test_signs_and_zeros_of_the_scales(options):
    """Scales of either sign, and of none, which no division survives."""
    network = build_small(**options)
    for name, value in network.state_dict().items():
        if ".norm_" in name and name.endswith("weight"):
            value.copy_(torch.linspace(-1, 1, len(value)))
            value[len(value) // 2] = 0
    waveform = speech(16000).unsqueeze(0)
    expected = not_folded(network, waveform)
    assert relative_difference(fold(network)(waveform), expected) < 1e-5


def test_the_network_is_left_alone(b0_case):
    network = build(b0_case)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    folded = fold(network.train())
    assert network.training and not folded.training
    assert all(x.requires_grad is False for x in folded.parameters())
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_speechbrains_encoder_runs_the_folded_network(
    b0_case, tmp_path, runtime
):
    encoder = load_encoder(b0_case, tmp_path)
    batch, lengths = pad([speech(9000), speech(20000, 1)], PADDINGS["zeros"])
    found = encoder.encode_batch(batch, lengths)
    network = encoder.mods.embedding_model
    folded = fold(network)(batch, lengths)
    assert torch.equal(found, folded) == (runtime == "torch")
    expected = not_folded(network.requires_grad_(), batch, lengths)
    assert relative_difference(found, expected) < 1e-5


def write_in_place(network):
    with torch.no_grad():
        network.stages[1].blocks[0].pointwise_1.weight.mul_(2)


def write_statistics(network):
    network.stages[1].blocks[0].norm_2.running_var.fill_(3)


def train_a_step(network):
    optimizer = torch.optim.SGD(network.train().parameters(), lr=1.0)
    network(speech(16000).expand(2, -1)).square().sum().backward()
    optimizer.step()
    network.eval()


CHANGES = {
    "weights": write_in_place,
    "statistics": write_statistics,
    "a step": train_a_step,
    "load_state_dict": lambda network: network.load_state_dict(
        {k: v * 1.5 for k, v in network.state_dict().items()}
    ),
    "data": lambda network: [
        setattr(weight, "data", weight.data * 1.5)
        for weight in network.parameters()
    ],
    "a new weight": lambda network: setattr(
        network.projection,
        "weight",
        torch.nn.Parameter(torch.ones_like(network.projection.weight)),
    ),
    "a new layer": lambda network: setattr(
        network,
        "projection",
        torch.nn.Linear(network.projection.in_features, 192).eval(),
    ),
    "a new layer in a list": lambda network: network.stages[0].blocks.append(
        copy.deepcopy(network.stages[0].blocks[0])
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_shows_at_once(change, runtime):
    network = build_small()
    waveform = speech(16000).unsqueeze(0)
    with torch.no_grad():
        before = network(waveform)
    CHANGES[change](network)
    with torch.no_grad():
        after = network(waveform)
        assert relative_difference(after, before) > 1e-4
        folded = fold(network)(waveform)
        assert relative_difference(after, folded) < 1e-5
        assert torch.equal(after, network(waveform))


class Halved(torch.nn.Linear):
    def forward(self, x):
        return super().forward(x) / 2


class Louder(LogMel):
    def features(self, wavs, samples):
        features, frames = super().features(wavs, samples)
        return 2 * features, frames


def put_a_linear_layer_of_another_kind(network):
    network.projection.__class__ = Halved


def put_a_layer_around(network):
    network.projection = torch.nn.Sequential(
        network.projection, torch.nn.Tanh()
    )


def put_another_activation(network):
    network.stages[0].time_context.attention.feed_forward[1] = torch.nn.ReLU()


def put_another_method(network):
    network.encode_features = lambda *call: (
        2 * type(network).encode_features(network, *call)
    )


def put_another_front_end(network):
    network.front_end = Louder()


@pytest.mark.parametrize(
    "change",
    [
        put_a_linear_layer_of_another_kind,
        put_a_layer_around,
        put_another_activation,
        put_another_method,
        put_another_front_end,
    ],
)
@torch.no_grad()
def test_what_is_in_no_graph_is_computed_by_torch(change):
    network = build_small()
    waveform = speech(16000).unsqueeze(0)
    before = network(waveform)
    change(network)
    network.eval()
    expected = not_folded(network, waveform)
    assert relative_difference(expected, before) > 1e-4
    assert relative_difference(network(waveform), expected) < 1e-5


@torch.no_grad()
def test_another_precision():
    network = build_small()
    waveform = speech(16000).unsqueeze(0)
    before = network(waveform)
    after = network.double()(waveform)
    assert after.dtype == torch.float64
    assert torch.equal(after, fold(network)(waveform))
    assert relative_difference(after, before) < 1e-5


@torch.no_grad()
def test_first_use_in_mixed_precision(runtime):
    network = build_small()
    waveform = speech(16000).unsqueeze(0)
    with torch.autocast("cpu", torch.bfloat16):
        network(waveform)
    expected = fold(network)(waveform)
    assert relative_difference(network(waveform), expected) < 1e-5


@torch.no_grad()
def test_hooks_are_called(runtime):
    network = build_small()
    waveform = speech(16000).unsqueeze(0)
    network(waveform)
    seen = []
    layer = network.stages[1].blocks[0].norm_1
    hook = layer.register_forward_hook(lambda *call: seen.append(call))
    network(waveform)
    assert len(seen) == 1
    hook.remove()
    network(waveform)
    assert len(seen) == 1


def test_copies_and_files_hold_one_network(runtime):
    network = build_small()
    keys = list(network.state_dict())
    files = [io.BytesIO(), io.BytesIO()]
    torch.save(network, files[0])
    with torch.inference_mode():
        embedding = network(speech(16000).unsqueeze(0))
    torch.save(network, files[1])
    assert len(files[0].getvalue()) == len(files[1].getvalue())
    assert list(network.state_dict()) == keys
    with torch.no_grad():
        other = copy.deepcopy(network)(speech(16000).unsqueeze(0))
    assert torch.equal(other, embedding)


@torch.no_grad()
def test_bfloat16_stays_close(parity_case):
    folded = fold(build(parity_case))
    waveform = parity_case.waveform(32000).unsqueeze(0)
    exact = folded(waveform)
    with torch.autocast("cpu", torch.bfloat16):
        coarse = folded(waveform)
    similarity = torch.cosine_similarity(exact, coarse.float(), dim=2)
    assert similarity.item() > 0.999
