"""Networks in other precisions, and gradients down to the waveform."""

import copy

import pytest
import torch
from conftest import relative_difference
from test_redimnet2 import OPTIONS, PADDINGS, build, pad, speech

from redimnet2_lobes.models.folding import fold
from redimnet2_lobes.models.front_end import LogMel, TorchaudioLogMel
from redimnet2_lobes.models.redimnet2 import ReDimNet2

STAGE = {"blocks": 1, "expansion": 2, "reduction": 8}
FRONT_ENDS = [LogMel(), TorchaudioLogMel(), TorchaudioLogMel(normalize=True)]


@pytest.mark.parametrize(
    "dtype, bound",
    [(torch.float64, 1e-5), (torch.float16, 5e-3), (torch.bfloat16, 3e-2)],
)
@pytest.mark.parametrize("options", OPTIONS)
@torch.no_grad()
def test_networks_in_other_precisions(options, dtype, bound):
    """From waveforms in float32 and their own, padded, folded before, after."""
    network = build(**options)
    sizes = [4000, 16319, 21234]
    batch, lengths = pad([speech(n, n) for n in sizes], PADDINGS["NaN"])
    expected = network(batch, lengths)
    cast = copy.deepcopy(network).to(dtype)
    for other in (cast, fold(cast), fold(network).to(dtype)):
        for waveforms in (batch, batch.to(dtype)):
            found = other(waveforms, lengths)
            assert found.dtype == dtype
            assert relative_difference(found, expected) < bound


@pytest.mark.parametrize("front_end", FRONT_ENDS)
@torch.no_grad()
def test_constants_of_the_front_end_are_never_rounded(front_end):
    wavs = torch.stack([speech(16000, seed) for seed in range(2)])
    expected, _ = front_end(wavs)
    cast = copy.deepcopy(front_end).half().float().bfloat16()
    assert torch.equal(cast(wavs)[0], expected)
    double, _ = copy.deepcopy(front_end).double()(wavs)
    assert torch.equal(double, expected)
    assert front_end(wavs.double())[0].dtype == torch.float64
    assert front_end(wavs.half())[0].dtype == torch.float32


@torch.no_grad()
def test_float64_is_more_exact():
    """All of it: what differs by rounding alone differs less."""
    network = build(aggregation_norm=True).double()
    batch = torch.stack([speech(16000, seed) for seed in range(2)]).double()
    padded = torch.nn.functional.pad(batch, (0, 4000), value=torch.nan)
    lengths = torch.full((2,), 0.8, dtype=torch.float64)
    difference = relative_difference(network(padded, lengths), network(batch))
    assert difference < 1e-13
    assert relative_difference(fold(network)(batch), network(batch)) < 1e-13


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_features_pass_the_gradient_to_the_waveform(front_end, normalize):
    """Against differences of the features, in float64."""
    torch.manual_seed(1)
    wavs = torch.stack([speech(2000, seed) for seed in range(2)]).double()
    samples = torch.tensor([2000, 1500]) if normalize else None
    direction = torch.randn_like(wavs)
    weights = torch.randn_like(front_end(wavs, samples)[0])

    def value(step):
        return (front_end(wavs + step * direction, samples)[0] * weights).sum()

    wavs.requires_grad_()
    (gradient,) = torch.autograd.grad(value(0.0), wavs)
    slope = (gradient * direction).sum()
    with torch.no_grad():
        expected = (value(1e-6) - value(-1e-6)) / 2e-6
    assert slope.item() == pytest.approx(expected.item(), rel=1e-4)
    if samples is not None:
        assert not gradient[1, 1500:].any()


@pytest.mark.parametrize(
    "folded, training", [(False, False), (False, True), (True, False)]
)
def test_networks_pass_the_gradient_to_the_waveform(folded, training):
    network = build(aggregation_norm=True)
    network = fold(network) if folded else network.train(training)
    batch = torch.stack([speech(9000, seed) for seed in range(3)])
    batch.requires_grad_()
    network(batch, torch.tensor([1.0, 0.5, 0.9])).sum().backward()
    assert batch.grad.isfinite().all() and batch.grad.abs().sum() > 0
    assert not batch.grad[1, 4500:].any()


@pytest.mark.parametrize("samples", [None, torch.tensor([8000, 6000])])
@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_silence_has_a_gradient(front_end, samples):
    """None that would spoil what made the waveforms."""
    wavs = torch.stack([speech(8000), torch.zeros(8000)]).requires_grad_()
    features, _ = front_end(wavs, samples)
    features.square().sum().backward()
    assert wavs.grad.isfinite().all() and wavs.grad[0].any()


@pytest.mark.parametrize("seconds", [0.0, -1, "half", True, 0.02, 0.04])
def test_minimum_seconds_makes_frames_enough(seconds):
    stage = {**STAGE, "frequency_stride": 2, "time_stride": 4}
    with pytest.raises(ValueError, match="^minimum_seconds: .*") as error:
        ReDimNet2(LogMel(), 4, [stage], minimum_seconds=seconds)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("time_stride, seconds", [(1, 0.025), (4, 0.045)])
@pytest.mark.parametrize("front_end", FRONT_ENDS)
@torch.no_grad()
def test_the_shortest_utterances_work(front_end, time_stride, seconds):
    stage = {**STAGE, "frequency_stride": 2, "time_stride": time_stride}
    network = ReDimNet2(front_end, 4, [stage], minimum_seconds=seconds).eval()
    embedding = network(speech(400)[None])
    assert embedding.isfinite().all()
    batch = torch.stack([speech(2000, 1), speech(2000, 2)])
    assert network(batch, torch.tensor([1.0, 0.2])).isfinite().all()


@torch.no_grad()
def test_too_few_frames_are_refused():
    stage = {**STAGE, "frequency_stride": 2, "time_stride": 4}
    network = ReDimNet2(LogMel(), 4, [stage]).eval()
    for frames in (None, torch.tensor([3, 3])):
        with pytest.raises(ValueError, match="has 3 frames; at least 4 are"):
            network.encode_features(torch.randn(2, 3, 72), frames)
    with pytest.raises(ValueError, match="has 2 frames; at least 4 are"):
        network.encode_features(torch.randn(2, 9, 72), torch.tensor([9, 2]))
    assert network.encode_features(torch.randn(1, 4, 72)).isfinite().all()
