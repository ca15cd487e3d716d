"""Our network against figures that the published code produced."""

import pytest
import torch
from conftest import ParityCase, relative_difference
from speechbrain.inference.classifiers import EncoderClassifier
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from redimnet2_lobes.models import tiles
from redimnet2_lobes.pretrained.convert import convert
from redimnet2_lobes.pretrained.published_layout import (
    build_network,
    take_weights,
)

# Computed multiply-accumulates for 2 s, 1e9 (reference, section 1).
MULTIPLY_ACCUMULATES = {
    "b0-vox2": 0.316,
    "b1-vox2": 0.545,
    "b2-vox2": 0.924,
    "b3-vox2": 2.644,
    "b4-vox2": 4.542,
    "b5-vox2": 9.483,
    "b6-vox2": 12.863,
}


def build(case):
    checkpoint = case.checkpoint()
    network = build_network(checkpoint["model_config"]).eval()
    take_weights(network, checkpoint["state_dict"])
    return network


def load_encoder(case, folder):
    """The published checkpoint, converted, as SpeechBrain loads it."""
    torch.save(case.checkpoint(), folder / "published.pt")
    convert(folder / "published.pt", folder / "model")
    return EncoderClassifier.from_hparams(source=str(folder / "model"))


def test_embeddings_through_speechbrain(parity_case, tmp_path, runtime):
    encoder = load_encoder(parity_case, tmp_path)
    for samples in parity_case.lengths:
        ours = encoder.encode_batch(parity_case.waveform(samples))
        theirs = parity_case.figure(f"embedding_{samples}")
        assert ours.shape == (1, 1, 192)
        assert relative_difference(ours[0, 0], theirs) < 1e-5


def padded(parity_case, sizes):
    """Waveforms, their batch and relative lengths; every kind of padding."""
    waveforms = [parity_case.waveform(size) for size in sizes]
    batch = torch.zeros(len(sizes), max(sizes))
    batch[1::3] = torch.nan
    batch[2::3] = torch.randn(1, max(sizes))
    for row, waveform in zip(batch, waveforms, strict=True):
        row[: len(waveform)] = waveform
    return waveforms, batch, torch.tensor(sizes) / max(sizes)


def test_padded_batch_through_speechbrain(parity_case, tmp_path):
    """Each architecture, from the shortest utterance to 30 s in a batch."""
    encoder = load_encoder(parity_case, tmp_path)
    waveforms, batch, lengths = padded(
        parity_case, [8000, 400, 16319, 480_000, 52813]
    )
    together = encoder.encode_batch(batch, lengths)
    for waveform, embedding in zip(waveforms, together, strict=True):
        alone = encoder.encode_batch(waveform.unsqueeze(0))[0]
        assert relative_difference(embedding, alone) < 1e-5, len(waveform)


def test_padded_batch_in_one_piece(parity_case):
    """As in training: masks alone keep the utterances apart."""
    network = build(parity_case)
    waveforms, batch, lengths = padded(parity_case, [400, 8000, 16319, 52813])
    together = network(batch, lengths)
    for waveform, embedding in zip(waveforms, together, strict=True):
        alone = network(waveform.unsqueeze(0))[0]
        assert relative_difference(embedding, alone) < 1e-5, len(waveform)


def test_parameters(parity_case):
    network = build_network(parity_case.manifest["model_config"])
    count = sum(parameter.numel() for parameter in network.parameters())
    assert count == parity_case.manifest["parameters"]


@pytest.mark.parametrize("name", ["b3-vox2", "b3-vox2-torchaudio-mel"])
def test_features(name):
    case = ParityCase(name)
    front_end = build_network(case.manifest["model_config"]).front_end
    features, frames = front_end(case.waveform(32000).unsqueeze(0))
    theirs = case.figure("features_32000")
    assert frames is None
    assert features[0].T.shape == theirs.shape
    assert (features[0].T - theirs).abs().max() < 1e-4


def test_intermediate_maps(b3_case):
    network = build(b3_case)
    with torch.no_grad():
        features, _ = network.front_end(b3_case.waveform(16000).unsqueeze(0))
        maps, _ = network.feature_maps(features)
    strides = [1, *(stage.time_stride for stage in network.stages)]
    assert len(maps) == 7
    for index, (x, stride) in enumerate(zip(maps, strides, strict=True)):
        # The published maps repeat each frame to the full rate.
        ours = x.repeat_interleave(stride, dim=1)[0, :8].T
        name = "stem_16000" if index == 0 else f"stage{index - 1}_16000"
        if index > 0:
            ours = ours[::4]
        assert relative_difference(ours, b3_case.figure(name)) < 1e-5, name


@pytest.mark.parametrize("name", MULTIPLY_ACCUMULATES)
def test_multiply_accumulates(name, monkeypatch):
    # Tiles overlap by a few frames, which the network itself does not ask for.
    monkeypatch.setattr(tiles, "TILE_BYTES", 2**40)
    network = build_network(ParityCase(name).manifest["model_config"]).eval()
    counter = FlopCounterMode(display=False)
    # The counter knows the plain form of attention only.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        network.encode_features(torch.randn(1, 199, 72))
    # The published pooling multiplies the utterance's mean and deviation for
    # each of the 196 frames, ours once: the only work that ours leaves out.
    pooled = network.projection.in_features // 2
    attention = network.pooling.attention.in_features
    saved = 2 * pooled * attention * (196 - 1)
    ours = (counter.get_total_flops() / 2 + saved) / 1e9
    assert ours == pytest.approx(MULTIPLY_ACCUMULATES[name], rel=0.01)
