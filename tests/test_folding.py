"""The folded copy of a network against the network."""

import pytest
import torch
from conftest import relative_difference
from test_parity import build, load_encoder
from test_redimnet2 import OPTIONS, PADDINGS, pad, speech
from test_redimnet2 import build as build_small

from redimnet2_lobes.models.folding import fold


@torch.no_grad()
def test_every_published_architecture(parity_case):
    network = build(parity_case)
    folded = fold(network)
    sizes = [8000, 16319, 33000]
    waveforms = [parity_case.waveform(size) for size in sizes]
    batch, lengths = pad(waveforms, PADDINGS["NaN"])
    expected = network(batch, lengths)
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
    expected = network(waveform)
    assert relative_difference(fold(network)(waveform), expected) < 1e-5


def test_the_network_is_left_alone(b0_case):
    network = build(b0_case)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    folded = fold(network.train())
    assert network.training and not folded.training
    assert all(x.requires_grad is False for x in folded.parameters())
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_in_place_of_speechbrains_network(b0_case, tmp_path):
    encoder = load_encoder(b0_case, tmp_path)
    batch, lengths = pad([speech(9000), speech(20000, 1)], PADDINGS["zeros"])
    expected = encoder.encode_batch(batch, lengths)
    encoder.mods.embedding_model = fold(encoder.mods.embedding_model)
    folded = encoder.encode_batch(batch, lengths)
    assert relative_difference(folded, expected) < 1e-5


@torch.no_grad()
def test_bfloat16_stays_close(parity_case):
    folded = fold(build(parity_case))
    waveform = parity_case.waveform(32000).unsqueeze(0)
    exact = folded(waveform)
    with torch.autocast("cpu", torch.bfloat16):
        coarse = folded(waveform)
    similarity = torch.cosine_similarity(exact, coarse.float(), dim=2)
    assert similarity.item() > 0.999
