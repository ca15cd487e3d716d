"""Options of training that keep less for the backward pass."""

import pytest
import torch
from test_redimnet2 import OPTIONS, PADDINGS, build, pad, speech
from torch.nn.parallel import DistributedDataParallel
from torch.utils.flop_counter import FlopCounterMode
from training_memory import bytes_kept
from training_runs import command_line, run, write_corpus

from redimnet2_lobes.models.redimnet2 import ReDimNet2

RECOMPUTE = {"activation_checkpointing": True}
HALF = {"half_precision_maps": True}
WAVS, LENGTHS = pad(
    [speech(size, size) for size in (9000, 8000, 5000)], PADDINGS["noise"]
)


def b0(**options):
    torch.manual_seed(7)
    return ReDimNet2.from_variant("b0", aggregation_norm=True, **options)


def embed(network, wavs=WAVS, lengths=None, autocast=False):
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        return network(wavs, lengths)


def after_two_steps(network, dtype=torch.float32, **how):
    """Embeddings, gradients, statistics, by name."""
    network = network.to(dtype)
    for _ in range(2):
        embeddings = embed(network, WAVS.to(dtype), **how)
        embeddings.square().sum().backward()
    gradients = {
        f"gradient of {name}": weight.grad
        for name, weight in network.named_parameters()
        if weight.grad is not None
    }
    assert gradients["gradient of stem.convolution.weight"].any()
    buffers = dict(network.named_buffers())
    return {"embeddings": embeddings, **gradients, **buffers}


def assert_same_bits(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def kept(network, **how):
    size, _ = bytes_kept(lambda: embed(network, **how), network.parameters())
    return size


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"dtype": torch.float64},
        {"lengths": LENGTHS},
        {"autocast": True},
        {"autocast": True, "lengths": LENGTHS},
    ],
)
@pytest.mark.parametrize("options", [*OPTIONS, HALF])
def test_recomputed_stages_change_nothing(options, how):
    found, expected = (
        after_two_steps(build(**options, **each).train(), **how)
        for each in (RECOMPUTE, {})
    )
    assert found["stages.0.blocks.0.norm_1.num_batches_tracked"] == 2
    assert_same_bits(found, expected)


def test_recomputed_stages_of_b0_change_nothing():
    found, expected = (
        after_two_steps(b0(**each).train()) for each in (RECOMPUTE, {})
    )
    assert_same_bits(found, expected)


@pytest.mark.parametrize("autocast", [False, True])
def test_recomputed_stages_keep_little(autocast):
    """Maps and what pooling needs."""
    plain, recomputed = (
        kept(b0(**each).train(), autocast=autocast) for each in ({}, RECOMPUTE)
    )
    assert 0 < recomputed < 0.3 * plain


def test_stages_are_computed_twice():
    """But for depthwise convolutions, which a CPU computes again anyway."""

    def arithmetic(network):
        with FlopCounterMode(display=False) as counter:
            embed(network).sum().backward()
        return counter.get_total_flops()

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        embed(b0().train())
    once = counter.get_total_flops()
    plain, recomputed = (
        arithmetic(b0(**each).train()) for each in ({}, RECOMPUTE)
    )
    assert 0.8 * once < recomputed - plain < once


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("options", [RECOMPUTE, HALF])
def test_evaluation_is_untouched(options, autocast):
    """With gradients as well."""
    found, expected = (b0(**each).eval() for each in ({**options}, {}))
    sizes = [kept(network, autocast=autocast) for network in (found, expected)]
    assert sizes[0] == sizes[1] > 0
    assert_same_bits(
        after_two_steps(found, autocast=autocast),
        after_two_steps(expected, autocast=autocast),
    )


@pytest.mark.parametrize("lengths", [None, LENGTHS])
def test_maps_are_float32_without_autocast(lengths):
    found, expected = (
        after_two_steps(b0(**each).train(), lengths=lengths)
        for each in (HALF, {})
    )
    assert_same_bits(found, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_maps_in_half_precision_are_rounded_ones(dtype):
    """Statistics, and sums of maps, are in float32 nevertheless."""
    rounded, plain = (b0(**each).train() for each in (HALF, {}))
    features, _ = plain.front_end(WAVS, None)
    with torch.autocast("cpu", dtype):
        maps, expected = (
            network.feature_maps(features)[0] for network in (rounded, plain)
        )
        sums = rounded.aggregation(maps)
    assert {x.dtype for x in maps} == {dtype}
    assert {x.dtype for x in expected} == {torch.float32}
    assert torch.equal(maps[0], expected[0].to(dtype))
    assert {x.dtype for x in sums.values()} == {torch.float32}


def test_maps_in_half_precision_keep_less():
    plain, half, both = (
        kept(b0(**each).train(), autocast=True)
        for each in ({}, HALF, {**HALF, **RECOMPUTE})
    )
    assert both < 0.2 * plain < half < 0.98 * plain


def test_networks_say_nothing_of_it():
    found, expected = b0(**HALF, **RECOMPUTE), b0()
    assert found.arguments() == expected.arguments()
    assert found.state_dict().keys() == expected.state_dict().keys()


def test_a_training_goes_on_with_other_options(monkeypatch, tmp_path):
    corpus = write_corpus(tmp_path / "corpus")
    output = tmp_path / "output"
    one = {"number_of_epochs": 1, "precision": "bf16"}
    run(monkeypatch, command_line(corpus, output, **one))
    options = {**HALF, **RECOMPUTE}
    arguments = {**one, "number_of_epochs": 2, **options}
    watch = run(monkeypatch, command_line(corpus, output, **arguments))
    network = watch.brain.modules.embedding_model
    assert all(getattr(network, key) for key in options)
    assert watch.hparams["epoch_counter"].current == 2
    written = (output / "model" / "hyperparams.yaml").read_text()
    assert not any(key in written for key in options)


def two_processes(rank, folder):
    """Writes the gradients and statistics of a step with and without."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", f"file://{folder}/store", rank=rank, world_size=2
    )
    for name, options in (("with", RECOMPUTE), ("without", {})):
        network = b0(**options).train()
        wrapped = DistributedDataParallel(network)
        wavs = torch.stack([speech(9000, 3 * rank + i) for i in range(3)])
        wrapped(wavs).square().sum().backward()
        state = dict(network.named_buffers())
        for key, weight in network.named_parameters():
            if weight.grad is not None:
                state[f"gradient of {key}"] = weight.grad
        torch.save(state, f"{folder}/{name}_{rank}")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_have_the_same_gradients(tmp_path):
    torch.multiprocessing.spawn(two_processes, (tmp_path,), nprocs=2)
    ranks = []
    for rank in (0, 1):
        found, expected = (
            torch.load(tmp_path / f"{name}_{rank}")
            for name in ("with", "without")
        )
        assert_same_bits(found, expected)
        ranks.append(found)
    name = "gradient of stem.convolution.weight"
    assert torch.equal(ranks[0][name], ranks[1][name])
    name = "stages.0.blocks.0.norm_1.running_mean"
    assert not torch.equal(ranks[0][name], ranks[1][name])
