"""Properties of the network: padding, batches, lengths, wrong values."""

import pytest
import torch
from conftest import relative_difference

from redimnet2_lobes.models.front_end import LogMel, TorchaudioLogMel
from redimnet2_lobes.models.redimnet2 import ReDimNet2

# A few channels, with every kind of stage: strides, expansion below and above
# 1, several frame rates.
STAGES = [
    {
        "frequency_stride": frequency_stride,
        "time_stride": time_stride,
        "blocks": 1,
        "expansion": expansion,
        "reduction": 18,
    }
    for frequency_stride, time_stride, expansion in (
        (1, 1, 2),
        (2, 1, 1),
        (1, 2, 0.75),
        (3, 1, 1),
        (1, 2, 1),
    )
]
OPTIONS = [
    {"front_end": LogMel()},
    {"front_end": TorchaudioLogMel()},
    {"front_end": TorchaudioLogMel(normalize=True)},
    {"front_end": LogMel(), "aggregation_norm": True, "out_channels": 10},
    {
        "front_end": LogMel(),
        "aggregation_norm": True,
        "dual_aggregation": True,
    },
]


def build(front_end=None, stages=STAGES, **options):
    torch.manual_seed(7)
    network = ReDimNet2(front_end or LogMel(), 8, stages, **options)
    for name, value in network.state_dict().items():
        # Trained networks have other statistics and weights than fresh ones.
        if name.endswith(("running_mean", "bias", "aggregation.weight")):
            value.normal_(std=0.3)
        elif name.endswith("running_var"):
            value.uniform_(0.5, 2)
    return network.eval()


def speech(samples, seed=0):
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(samples) / 16000
    tone = torch.sin(2 * torch.pi * (150 + 40 * seed) * time)
    envelope = 0.2 + torch.sin(2 * torch.pi * 2 * time).abs()
    noise = torch.randn(samples, generator=generator)
    return 0.1 * envelope * tone.sign() + 0.02 * noise


def pad(waveforms, padding):
    longest = max(map(len, waveforms))
    batch = torch.zeros(len(waveforms), longest)
    for row, waveform in zip(batch, waveforms, strict=True):
        row[: len(waveform)] = waveform
        row[len(waveform) :] = padding(longest - len(waveform))
    lengths = torch.tensor([len(waveform) / longest for waveform in waveforms])
    return batch, lengths


PADDINGS = {
    "zeros": lambda size: torch.zeros(size),
    "noise": lambda size: 3 * torch.randn(size),
    "NaN": lambda size: torch.full((size,), torch.nan),
}


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("options", OPTIONS)
@torch.no_grad()
def test_padding_changes_nothing(options, padding, runtime):
    network = build(**options)
    # Shorter than the minimum, odd counts of frames, frame borders.
    sizes = [400, 3000, 8000, 16000, 16319, 16320, 21234, 40000]
    waveforms = [speech(size, seed) for seed, size in enumerate(sizes)]
    batch, lengths = pad(waveforms, PADDINGS[padding])
    together = network(batch, lengths)
    assert together.shape == (len(sizes), 1, 192)
    for waveform, embedding in zip(waveforms, together, strict=True):
        alone = network(waveform.unsqueeze(0))
        assert relative_difference(embedding, alone[0]) < 1e-5, len(waveform)


@torch.no_grad()
def test_full_batch_needs_no_mask(runtime):
    network = build(aggregation_norm=True)
    batch = torch.stack([speech(16000, seed) for seed in range(3)])
    with_lengths = network(batch, torch.ones(3))
    assert torch.equal(with_lengths, network(batch))


@torch.no_grad()
def test_order_and_batch_size_do_not_matter(runtime):
    network = build(aggregation_norm=True)
    waveforms = [speech(9000 + 1234 * seed, seed) for seed in range(6)]
    batch, lengths = pad(waveforms, PADDINGS["zeros"])
    together = network(batch, lengths)
    order = torch.tensor([4, 2, 0, 5, 1, 3])
    shuffled = network(batch[order], lengths[order])
    assert relative_difference(shuffled, together[order]) < 1e-5
    half = network(batch[:3], lengths[:3])
    assert relative_difference(half, together[:3]) < 1e-5


@torch.no_grad()
def test_the_same_batch_gives_the_same_bits(runtime):
    network = build()
    batch, lengths = pad([speech(9000), speech(20000, 1)], PADDINGS["zeros"])
    assert torch.equal(network(batch, lengths), network(batch, lengths))


@torch.no_grad()
def test_short_utterances_are_repeated(runtime):
    network = build(minimum_seconds=0.5)
    short = speech(1600)
    repeated = short.repeat(5)
    assert torch.equal(network(short[None]), network(repeated[None]))


def test_too_short_is_an_error():
    with pytest.raises(ValueError, match="399 samples.*at least 400"):
        build()(torch.randn(1, 399))
    with pytest.raises(ValueError, match="160 samples.*at least 400"):
        build()(torch.randn(2, 16000), torch.tensor([1.0, 0.01]))


@torch.no_grad()
def test_level_and_offset_do_not_matter(runtime):
    network = build()
    waveform = speech(16000).unsqueeze(0)
    louder = 3 * waveform + 0.2
    assert relative_difference(network(louder), network(waveform)) < 1e-3


@pytest.mark.parametrize("options", OPTIONS)
def test_every_parameter_learns(options):
    network = build(**options).train()
    batch = torch.stack([speech(16000, seed) for seed in range(4)])
    network(batch).square().sum().backward()
    silent = [
        name
        for name, parameter in network.named_parameters()
        if parameter.requires_grad and not parameter.grad.abs().sum() > 0
    ]
    # The first stage's aggregation has one map and is frozen; a constant
    # added before a normalization, or to all attention logits, has no effect.
    assert not [name for name in silent if not name.endswith("bias")]


def test_arguments_rebuild_the_network():
    network = build(aggregation_norm=True, out_channels=10)
    arguments = network.arguments()
    front_end = LogMel(**arguments.pop("front_end"))
    twin = ReDimNet2(front_end, **arguments)
    twin.load_state_dict(network.state_dict())
    waveform = speech(16000).unsqueeze(0)
    with torch.no_grad():
        assert torch.equal(twin.eval()(waveform), network(waveform))


def change(key, value):
    stages = [dict(stage) for stage in STAGES]
    stages[1][key] = value
    return stages


@pytest.mark.parametrize(
    "stages, message",
    [
        ([], "stages: expected a list"),
        (change("blocks", 0), r"stages\[1\].blocks: 0"),
        (change("time_stride", 1.5), r"stages\[1\].time_stride: 1.5"),
        (change("frequency_stride", 5), "72 bins cannot be divided by 5"),
        (change("expansion", "2"), r"stages\[1\].expansion: '2'"),
        (change("reduction", 100), r"stages\[1\].reduction: .* 4 attention"),
        (change("kernel", 3), r"stages\[1\]: expected the keys"),
    ],
)
def test_wrong_architecture_names_the_key(stages, message):
    with pytest.raises(ValueError, match=message):
        build(stages=stages)


def test_wrong_base_channels_name_the_key():
    with pytest.raises(ValueError, match="base_channels: 0"):
        ReDimNet2(LogMel(), 0, STAGES)


@torch.no_grad()
def test_bfloat16_stays_close():
    network = build(aggregation_norm=True)
    waveform = speech(32000).unsqueeze(0)
    exact = network(waveform)
    with torch.autocast("cpu", torch.bfloat16):
        coarse = network(waveform)
    similarity = torch.cosine_similarity(exact, coarse.float(), dim=2)
    assert similarity.item() > 0.999


def test_training_in_bfloat16():
    batch = torch.stack([speech(16000, seed) for seed in range(4)])

    def step(enabled):
        network = build(aggregation_norm=True).train()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            embeddings = network(batch)
        embeddings.float().square().sum().backward()
        for name, parameter in network.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad.isfinite().all(), name
        return embeddings.float()

    similarity = torch.cosine_similarity(step(True), step(False), dim=2)
    assert similarity.min() > 0.99


def test_synchronized_batchnorm_changes_nothing_but_the_statistics():
    network = build()
    wavs = torch.stack([speech(16000), speech(16000, seed=1)])
    expected = network(wavs)
    converted = torch.nn.SyncBatchNorm.convert_sync_batchnorm(network)
    assert not [
        module
        for module in converted.modules()
        if type(module) in (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)
    ]
    assert relative_difference(converted(wavs), expected) < 1e-6
