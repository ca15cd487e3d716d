"""Work in pieces: the same embeddings, only where it is allowed."""

import pytest
import torch
from conftest import relative_difference
from test_redimnet2 import OPTIONS, PADDINGS, build, pad, speech

from redimnet2_lobes.models.tiles import groups_of_like_length

pytestmark = pytest.mark.usefixtures("torch_only")


# Tiles of a few frames, of about an utterance, of several utterances.
@pytest.mark.parametrize("size", [20_000, 300_000, 1_000_000])
@pytest.mark.parametrize("options", OPTIONS)
@torch.no_grad()
def test_tiles_change_nothing(options, size, tile_bytes):
    network = build(**options)
    sizes = [3000, 8000, 16000, 16319, 21234, 40000]
    waveforms = [speech(size, seed) for seed, size in enumerate(sizes)]
    batch, lengths = pad(waveforms, PADDINGS["NaN"])
    with torch.enable_grad():
        whole = network(batch, lengths).detach()
    tile_bytes(size)
    assert relative_difference(network(batch, lengths), whole) < 1e-5


def test_a_long_and_a_short_utterance_in_one_piece():
    """Masks alone, with 30 s beside 25 ms: with gradients nothing is cut."""
    network = build(aggregation_norm=True, dual_aggregation=True)
    waveforms = [speech(400), speech(480_000, 1), speech(77_777, 2)]
    batch, lengths = pad(waveforms, PADDINGS["NaN"])
    together = network(batch, lengths)
    for waveform, embedding in zip(waveforms, together, strict=True):
        alone = network(waveform.unsqueeze(0))[0]
        assert relative_difference(embedding, alone) < 1e-5, len(waveform)


def test_training_sees_the_whole_batch(tile_bytes):
    """Batch statistics and gradients must not depend on the pieces."""
    features = torch.randn(4, 80, 72).double()

    def step(size):
        tile_bytes(size)
        # In float64: BatchNorm of fresh networks magnifies rounding.
        network = build(aggregation_norm=True).train().double()
        maps, _ = network.feature_maps(features)
        sum(x.square().mean() for x in maps).backward()
        with torch.no_grad():  # batch statistics without gradient
            again, _ = network.feature_maps(features)
        results = {f"map {i}": x.detach() for i, x in enumerate(again)}
        results.update(network.named_buffers())
        for name, parameter in network.named_parameters():
            if parameter.grad is not None:
                results[name] = parameter.grad
        return results

    whole, pieces = step(2**40), step(20_000)
    assert any("running_var" in name for name in whole)
    assert "stem.convolution.weight" in whole
    for name, value in whole.items():
        assert torch.allclose(pieces[name].double(), value.double()), name


def test_gradient_to_the_waveform(tile_bytes):
    tile_bytes(20_000)
    network = build().requires_grad_(False)
    waveform = speech(16000).unsqueeze(0).requires_grad_()
    network(waveform).sum().backward()
    assert waveform.grad.abs().sum() > 0


def test_frozen_network_outside_no_grad(tile_bytes):
    """SpeechBrain's encode_batch freezes the network, and no more."""
    waveforms = [speech(9000), speech(20000, 1)]
    batch, lengths = pad(waveforms, PADDINGS["zeros"])
    network = build()
    with torch.no_grad():
        expected = network(batch, lengths)
    tile_bytes(20_000)
    frozen = network.requires_grad_(False)(batch, lengths)
    assert not frozen.requires_grad
    assert relative_difference(frozen, expected) < 1e-5
    network.stem.convolution.weight.requires_grad_()
    assert network(batch, lengths).requires_grad


def test_groups():
    lengths = [5, 100, 40, 60, 39, 41]
    groups = groups_of_like_length(lengths, budget=120)
    assert sorted(sum(groups, [])) == list(range(6))
    for group in groups:
        longest = max(lengths[position] for position in group)
        assert lengths[group[0]] == longest
        assert len(group) == 1 or len(group) * longest <= 120
    assert groups_of_like_length([], 10) == []
