"""What a GPU computes, beside the CPU; left out where there is none."""

import copy
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import train_speaker_embeddings as recipe
from conftest import relative_difference
from speechbrain.inference.classifiers import EncoderClassifier
from test_parity import build, load_encoder, padded
from test_recipe import SCRIPT
from training_runs import command_line, run, stages_of, write_corpus

from redimnet2_lobes.models.folding import fold

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a GPU"
)


@pytest.fixture
def exact_float32():
    """Without TensorFloat-32, which rounds factors to eleven bits.

    SpeechBrain allows it in the whole process.
    """
    backends = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = False
    yield
    for backend, allowed in zip(backends, before, strict=True):
        backend.allow_tf32 = allowed


@pytest.mark.parametrize("folded", [False, True])
def test_published_embeddings(folded, parity_case, exact_float32):
    network = build(parity_case)
    network = (fold(network) if folded else network).cuda()
    with torch.no_grad():
        for samples in parity_case.lengths:
            wavs = parity_case.waveform(samples).unsqueeze(0)
            ours = network(wavs.cuda())[0, 0].cpu()
            theirs = parity_case.figure(f"embedding_{samples}")
            assert relative_difference(ours, theirs) < 1e-5


@pytest.mark.parametrize("folded", [False, True])
def test_padding_changes_nothing(folded, b3_case, exact_float32):
    network = build(b3_case)
    network = (fold(network) if folded else network).cuda()
    wavs, batch, lengths = padded(b3_case, [20000, 32000, 16000, 48000])
    with torch.no_grad():
        together = network(batch.cuda(), lengths.cuda())
        for row, wav in zip(together, wavs, strict=True):
            alone = network(wav.unsqueeze(0).cuda())[0]
            assert relative_difference(row, alone) < 1e-5


def test_through_speechbrain(b0_case, exact_float32, tmp_path):
    """Loaded onto the GPU by SpeechBrain's own run option."""
    load_encoder(b0_case, tmp_path)
    encoder = EncoderClassifier.from_hparams(
        source=str(tmp_path / "model"), run_opts={"device": "cuda"}
    )
    samples = b0_case.lengths[-1]
    ours = encoder.encode_batch(b0_case.waveform(samples)).squeeze()
    assert ours.is_cuda
    theirs = b0_case.figure(f"embedding_{samples}")
    assert relative_difference(ours.cpu(), theirs) < 1e-5


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"))


def settings(device, **others):
    """B0 as it is published, on short crops, with AdamW."""
    return {
        "device": device,
        "variant": "b0",
        "base_channels": 12,
        "out_channels": 64,
        "stages": stages_of("redimnet2_b0.yaml"),
        "crop_frames": 100,
        "number_of_epochs": 2,
        **others,
    }


def values(watch):
    return [loss["value"] for loss in watch.losses]


@pytest.fixture(scope="module")
def on_the_cpu(corpus, tmp_path_factory):
    arguments = command_line(
        corpus, tmp_path_factory.mktemp("cpu"), **settings("cpu")
    )
    with pytest.MonkeyPatch.context() as monkeypatch:
        return run(monkeypatch, arguments)


@pytest.mark.parametrize(
    "options",
    [{}, {"half_precision_maps": True, "activation_checkpointing": True}],
    ids=["plain", "less memory"],
)
@pytest.mark.parametrize(
    "precision, dtype",
    [
        ("fp32", torch.float32),
        ("bf16", torch.bfloat16),
        ("fp16", torch.float16),
    ],
)
def test_training_follows_that_on_the_cpu(
    precision,
    dtype,
    options,
    corpus,
    on_the_cpu,
    exact_float32,
    monkeypatch,
    tmp_path,
):
    watch = run(
        monkeypatch,
        command_line(
            corpus,
            tmp_path,
            **settings("cuda", precision=precision, num_workers=2, **options),
        ),
    )
    for ours, theirs in zip(watch.items, on_the_cpu.items, strict=True):
        assert ours[0] == theirs[0] and ours[2] == theirs[2]
        assert torch.equal(ours[1], theirs[1])
    # An untrained network is a rough one: rounding grows in each step.
    ours, theirs = values(watch), values(on_the_cpu)
    if precision == "fp32":
        assert ours[:2] == pytest.approx(theirs[:2], rel=1e-3)
    assert sum(ours[:4]) == pytest.approx(sum(theirs[:4]), rel=0.1)
    assert sum(ours[4:]) < 0.8 * sum(ours[:4])
    assert {loss["dtype"] for loss in watch.losses} == {torch.float32}
    assert {each["dtype"] for each in watch.forwards if each["gradients"]} == {
        dtype
    }
    assert watch.brain.scaler.is_enabled() == (precision == "fp16")
    assert all(
        weight.is_cuda and weight.dtype == torch.float32
        for weight in watch.brain.modules.parameters()
    )
    # What a GPU trained, a CPU loads.
    model = EncoderClassifier.from_hparams(
        source=str(tmp_path / "model"), run_opts={"device": "cpu"}
    )
    wavs = watch.items[0][1].unsqueeze(0)
    network = recipe.unwrap(watch.brain.modules.embedding_model).eval()
    with torch.no_grad():
        trained = network(wavs.cuda()).cpu()
    assert relative_difference(model.encode_batch(wavs), trained) < 0.01


def test_a_compiled_training(corpus, on_the_cpu, monkeypatch, tmp_path):
    watch = run(
        monkeypatch,
        command_line(corpus, tmp_path, flags=["--compile"], **settings("cuda")),
    )
    assert values(watch)[:2] == pytest.approx(values(on_the_cpu)[:2], rel=0.02)


def test_a_step_does_not_wait(corpus, monkeypatch, tmp_path):
    """Beside the one event, which torch does not count."""
    waits = []

    def before(watch):
        fit_batch = watch.brain.fit_batch

        def watched(batch):
            torch.cuda.set_sync_debug_mode("warn")
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                loss = fit_batch(batch)
            torch.cuda.set_sync_debug_mode("default")
            waits.extend(
                each
                for each in caught
                if "synchronizing" in str(each.message)
                and Path(each.filename).name != "training_runs.py"
            )
            return loss

        watch.brain.fit_batch = watched

    arguments = command_line(corpus, tmp_path, **settings("cuda"))
    run(monkeypatch, arguments, before)
    assert not [str(each) for each in waits]


class Stop(Exception):
    pass


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_stopped_training_goes_on(precision, corpus, monkeypatch, tmp_path):
    """With the weights, the optimizer and the scale it had, on the same crops.

    Not with the same losses: sums on a GPU have no fixed order, and within
    six steps of an untrained network a last bit grows to several percent.
    """

    def train(name, before=lambda watch: None):
        arguments = command_line(
            corpus, tmp_path / name, **settings("cuda", precision=precision)
        )
        return run(monkeypatch, arguments, before)

    states = []

    def note_state(watch):
        brain = watch.brain
        state = (
            brain.modules.state_dict(),
            brain.optimizer.state_dict(),
            brain.scaler.state_dict(),
        )
        states.append(copy.deepcopy(state))

    def stop(watch):
        goes_on = watch.brain.on_stage_start

        def stage_starts(stage, epoch):
            if epoch == 2:
                note_state(watch)
                raise Stop
            goes_on(stage, epoch)

        watch.brain.on_stage_start = stage_starts

    with pytest.raises(Stop):
        train("stopped", stop)
    resumed = train("stopped", note_state)
    torch.testing.assert_close(*states, rtol=0, atol=0)
    whole = train("whole")
    second_epoch = whole.items[len(whole.items) // 2 :]
    for ours, theirs in zip(resumed.items, second_epoch, strict=True):
        assert ours[0] == theirs[0] and ours[2] == theirs[2]
        assert torch.equal(ours[1], theirs[1])


def test_by_torchrun_with_nccl(corpus, tmp_path):
    launcher = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=1",
    ]
    arguments = command_line(
        corpus, tmp_path, **settings("cuda", distributed_backend="nccl")
    )
    done = subprocess.run(
        [sys.executable, *launcher, SCRIPT, *arguments],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "model" / "hyperparams.yaml").exists()
