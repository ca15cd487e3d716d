"""What the training script does with the pieces, seen from inside.

The recipe's own ``main`` runs in process on small data; what reached the
network, the loss and the optimizer is compared with what the configuration
says. The losses of whole steps stand in test_training_parity.py.
"""

import csv
import gc
import itertools
import json
import logging
import math
import re
import shutil
import socket
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.signal
import soundfile
import torch
import torchaudio
import train_speaker_embeddings as recipe
from conftest import join_files, relative_difference
from make_shards import make_shards
from speechbrain.dataio.encoder import CategoricalEncoder
from speechbrain.inference.speaker import SpeakerRecognition
from speechbrain.nnet.losses import AngularMargin, LogSoftmaxWrapper
from speechbrain.utils.checkpoints import Checkpointer
from tensorboard.backend.event_processing.event_accumulator import (
    EventAccumulator,
)
from torch.nn.parallel import DistributedDataParallel
from training_runs import (
    HPARAMS,
    TEST,
    TRAINING,
    command_line,
    run,
    write_corpus,
)

from redimnet2_lobes.data.crops import RandomCrop
from redimnet2_lobes.data.trial_files import read_trial_lists
from redimnet2_lobes.models.front_end import LogMel
from redimnet2_lobes.models.redimnet2 import ReDimNet2
from redimnet2_lobes.models.variants import VARIANTS, check_variant
from redimnet2_lobes.recipe.command_line import parse_command_line
from redimnet2_lobes.recipe.hparams import load_hparams
from redimnet2_lobes.recipe.training import check_hparams
from redimnet2_lobes.scoring.metrics import EER
from redimnet2_lobes.training import brain as brain_module
from redimnet2_lobes.training.batches import check_batch_norm
from redimnet2_lobes.training.loggers import build_loggers
from redimnet2_lobes.training.losses import SphereFace2

# Four speakers with four utterances each, and four crops a step.
STEPS = 4
# What is compared with ``trained`` must be trained in the same way.
THREE_EPOCHS = {
    "number_of_epochs": 3,
    "warmup_epochs": 1,
    "margin_increase_epoch": 2,
    "margin_final_epoch": 3,
    "loss_weight_decay": 0.01,
}
TICK = 1 / 32  # seconds from one look at the clock to the next


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"))


def edited(folder, *changes, hparams="demo_redimnet2_b0.yaml"):
    """A copy of a configuration with other texts, as users would make it."""
    text = (HPARAMS / hparams).read_text()
    for before, after in changes:
        assert before in text
        text = text.replace(before, after)
    path = folder / "edited.yaml"
    path.write_text(text)
    return path


def without_gain(folder):
    return edited(folder, ("gain: [-18.0, 6.0]", "gain: [0.0, 0.0]"))


def same(items, others):
    """Whether the same crops came in the same order."""
    return len(items) == len(others) and all(
        a[0] == b[0] and torch.equal(a[1], b[1]) and a[2] == b[2]
        for a, b in zip(items, others, strict=True)
    )


def epochs(items):
    """The items of each epoch."""
    size = STEPS * 4
    return [items[i : i + size] for i in range(0, len(items), size)]


def utterance(corpus, name):
    samples, _ = soundfile.read(corpus / "wav" / f"{name}.wav", dtype="float32")
    return torch.from_numpy(samples)


def set_clock(monkeypatch):
    """Whenever the recipe looks at it, a tick has passed."""
    clock = itertools.count(step=TICK)
    monkeypatch.setattr(
        brain_module,
        "time",
        SimpleNamespace(perf_counter=clock.__next__, time=time.time),
    )


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory):
    """Three epochs of the demo's configuration, without gain."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as monkeypatch:
        set_clock(monkeypatch)
        return run(
            monkeypatch,
            command_line(
                corpus,
                folder / "output",
                without_gain(folder),
                **THREE_EPOCHS,
                tensorboard=True,
            ),
        )


# --- Crops ---


def crops_of(whole, speed, samples):
    """All crops that an utterance has at a speed, near to any place."""
    needed = math.ceil(samples * speed)
    if speed == 1:
        return lambda start: whole[start : start + needed]
    rates = round(16000 * speed), 16000
    return lambda start: torchaudio.functional.resample(
        whole[start : start + needed], *rates
    )[:samples]


def test_crops_are_pieces_of_their_utterances(trained, corpus):
    """With the speaker's class, and the class of the speed."""
    speeds = [1.0, 0.8, 0.9, 1.1, 1.2]
    drawn = Counter()
    for name, crop, label in trained.items:
        speed, speaker = divmod(label, len(TRAINING))
        assert name.split("/")[0] == TRAINING[speaker]
        assert crop.shape == (39 * 160 + 400,)
        whole = utterance(corpus, name)
        at = crops_of(whole, speeds[speed], len(crop))
        # Where the whole utterance at that speed is most like the crop.
        faster = torchaudio.functional.resample(
            whole, round(16000 * speeds[speed]), 16000
        ).double()
        energy = faster.square().cumsum(0)
        energy = energy[len(crop) - 1 :] - torch.nn.functional.pad(
            energy[: -len(crop)], (1, 0)
        )
        likeness = torch.from_numpy(
            scipy.signal.correlate(faster, crop.double(), mode="valid")
        )
        likeness = likeness / energy.sqrt()
        place = round(likeness.argmax().item() * speeds[speed])
        assert any(
            torch.allclose(at(start), crop, atol=1e-5)
            for start in range(max(0, place - 2), place + 3)
        )
        drawn[speed] += 1
    assert len(drawn) == len(speeds)


def test_an_epoch_has_each_utterance_once(trained):
    for items in epochs(trained.items):
        names = [name for name, *_ in items]
        assert len(set(names)) == len(names) == 16
        assert Counter(name.split("/")[0] for name in names) == dict.fromkeys(
            TRAINING, 4
        )


def test_every_epoch_draws_anew(trained):
    orders, crops = [], []
    for items in epochs(trained.items):
        orders.append([name for name, *_ in items])
        crops.append({name: crop for name, crop, _ in items})
    assert len({tuple(order) for order in orders}) == 3
    for name in orders[0]:
        assert not torch.equal(crops[0][name], crops[1][name])
        assert not torch.equal(crops[1][name], crops[2][name])


@pytest.fixture(scope="module")
def augmented_hparams(noise_corpora, tmp_path_factory):
    """The published augmentation, of crops that are whole utterances."""
    folder = tmp_path_factory.mktemp("augmented")
    return lambda corpus, name, **overrides: command_line(
        corpus,
        folder / name,
        hparams="redimnet2_b0.yaml",
        validation_trials=corpus / "veri_validation.txt",
        test_trials=corpus / "veri_test2.txt",
        corpora="null",
        speeds="[1.0]",
        crop_frames=130,
        **{**noise_corpora, **overrides},
    )


def test_augmentation_is_applied_as_often_as_it_should(
    corpus, augmented_hparams, monkeypatch
):
    """Noise or reverberation at 0.6, a gain always, others in every epoch."""
    arguments = augmented_hparams(corpus, "often", number_of_epochs=10)
    items = run(monkeypatch, arguments).items
    rooms, gains, crops = 0, [], {}
    for name, crop, _ in items:
        clean = utterance(corpus, name)
        clean = clean.repeat(2)[: len(crop)]
        likeness = torch.nn.functional.cosine_similarity(crop, clean, dim=0)
        if likeness < 1 - 1e-4:
            rooms += 1
        else:
            gains.append(20 * (crop.norm() / clean.norm()).log10().item())
        crops.setdefault(name, []).append(crop)
    # Within three standard deviations.
    assert rooms / len(items) == pytest.approx(0.6, abs=0.12)
    assert -18.1 < min(gains) < -14 and 2 < max(gains) < 6.1
    for versions in crops.values():
        assert not any(
            torch.equal(a, b)
            for i, a in enumerate(versions)
            for b in versions[:i]
        )


def test_workers_and_repetition_change_nothing(
    corpus, augmented_hparams, monkeypatch
):
    watches = [
        run(
            monkeypatch,
            augmented_hparams(
                corpus, f"{number}", num_workers=workers, number_of_epochs=2
            ),
        )
        for number, workers in enumerate((0, 0, 2))
    ]
    for other in watches[1:]:
        assert same(other.items, watches[0].items)
        assert [loss["value"] for loss in other.losses] == [
            loss["value"] for loss in watches[0].losses
        ]


def test_another_seed_draws_others(trained, corpus, monkeypatch, tmp_path):
    watch = run(
        monkeypatch,
        command_line(
            corpus,
            tmp_path / "output",
            without_gain(tmp_path),
            number_of_epochs=1,
            seed=7,
        ),
    )
    before = epochs(trained.items)[0]
    assert [name for name, *_ in watch.items] != [name for name, *_ in before]
    crops = {name: crop for name, crop, _ in before}
    assert not any(
        torch.equal(crop, crops[name]) for name, crop, _ in watch.items
    )


def test_ranks_share_the_global_batch(trained, corpus, monkeypatch, tmp_path):
    """Two processes with two parts of one crop each: together, in order."""
    parts = []
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        hparams_file, run_opts, overrides = parse_command_line(
            command_line(
                corpus,
                tmp_path,
                without_gain(tmp_path),
                batch_size=1,
                synchronize_batchnorm=True,  # it cannot have one crop alone
            )
        )
        hparams = load_hparams(hparams_file, overrides)
        brain, loader, _ = recipe.build_brain(hparams, run_opts)
        hparams["epoch_random"].epoch = 1
        parts.append(
            [
                (name, wav, label)
                for batch in loader
                for name, wav, label in zip(
                    batch.id, batch.sig.data, batch.label.tolist(), strict=True
                )
            ]
        )
        assert brain.grad_accumulation_factor == 2
    merged = [item for pair in zip(*parts, strict=True) for item in pair]
    assert same(merged, epochs(trained.items)[0])


def test_converted_files_are_trained_on(corpus, monkeypatch, tmp_path):
    """Preparation writes what is not 16 kHz mono anew, beside its list."""
    own = tmp_path / "corpus"
    shutil.copytree(corpus, own)
    name = f"{TRAINING[0]}/session0/00002"
    path = own / "wav" / f"{name}.wav"
    whole = utterance(corpus, name).numpy()
    soundfile.write(path, np.stack([whole, whole], 1), 16000, subtype="FLOAT")
    watch = run(
        monkeypatch,
        command_line(
            own,
            tmp_path / "output",
            without_gain(tmp_path),
            speeds="[1.0]",
            number_of_epochs=1,
        ),
    )
    (crop,) = [crop for other, crop, _ in watch.items if other == name]
    likeness = scipy.signal.correlate(whole, crop, mode="valid")
    start = likeness.argmax()
    part = torch.from_numpy(whole[start : start + len(crop)])
    assert torch.allclose(part, crop, atol=1e-4)


# --- Settings as the loss and the optimizer saw them ---


def test_learning_rate_and_margin(trained):
    assert len(trained.losses) == len(trained.steps) == 3 * STEPS
    for step, loss in enumerate(trained.losses):
        passed = step / STEPS
        decay = (0.00005 / 0.01) ** (passed / 3)
        rate = 4 / 64 * 0.01 * min(passed, 1) * decay
        grown = 1 - (0.001 / (1 + 1e-6)) ** (passed - 1) if passed >= 1 else 0
        margin = 0.2 if passed >= 2 else 0.2 * grown
        assert loss["lr"] == pytest.approx(rate, abs=1e-12)
        assert loss["margin"] == pytest.approx(margin, abs=1e-12)
        rates = {group["lr"] for group in trained.steps[step].values()}
        assert rates == {loss["lr"]}


def test_each_parameter_has_its_weight_decay(trained):
    brain = trained.brain
    expected = {}
    for module, weight_decay in (
        ("embedding_model", 0.05),
        ("classifier", 0.01),
        ("compute_cost", 0.01),
    ):
        for name, _ in brain.modules[module].named_parameters():
            expected[f"{module}.{name}"] = weight_decay
    for step in trained.steps:
        assert {
            name: settings["weight_decay"] for name, settings in step.items()
        } == expected


def test_every_parameter_moves(corpus, augmented_hparams, monkeypatch):
    """SphereFace2's bias and the class weights too, under SGD."""
    before = {}

    def note(watch):
        for name, module in watch.brain.modules.items():
            for key, weight in module.named_parameters():
                before[f"{name}.{key}"] = weight.detach().clone()

    watch = run(
        monkeypatch,
        augmented_hparams(corpus, "moves", number_of_epochs=1),
        note,
    )
    assert "compute_cost.bias" in before
    assert "classifier.weight" in before
    still = [
        f"{name}.{key}"
        for name, module in watch.brain.modules.items()
        for key, weight in module.named_parameters()
        if torch.equal(weight, before[f"{name}.{key}"])
    ]
    # Its softmax over a single map is 1 whatever it is.
    assert still == ["embedding_model.stages.0.aggregation.weight"]
    optimizer = watch.brain.optimizer
    assert {
        (group["weight_decay"], group["momentum"], group["nesterov"])
        for group in optimizer.param_groups
    } == {(2e-5, 0.9, True), (1e-4, 0.9, True)}


@pytest.fixture
def one_of_one(monkeypatch):
    """The environment that torchrun makes for a single process."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    for name, value in (
        ("RANK", 0),
        ("LOCAL_RANK", 0),
        ("WORLD_SIZE", 1),
        ("MASTER_ADDR", "localhost"),
        ("MASTER_PORT", port),
    ):
        monkeypatch.setenv(name, str(value))
    yield
    gc.collect()
    torch.distributed.destroy_process_group()


def test_a_distributed_training_of_one_process(
    trained, corpus, one_of_one, monkeypatch, tmp_path
):
    """The same as without, and its modules are wrapped."""
    arguments = command_line(
        corpus,
        tmp_path / "output",
        without_gain(tmp_path),
        **THREE_EPOCHS,
        distributed_backend="gloo",
    )
    watch = run(monkeypatch, arguments)
    wrapped = {
        name
        for name, module in watch.brain.modules.items()
        if isinstance(module, DistributedDataParallel)
    }
    assert wrapped == {"embedding_model", "classifier"}
    assert same(watch.items, trained.items)
    found = [loss["value"] for loss in watch.losses]
    expected = [loss["value"] for loss in trained.losses]
    assert found == pytest.approx(expected, rel=1e-6)
    for ours, theirs in zip(read_log(watch), read_log(trained), strict=True):
        for name in ("loss", "accuracy", "unusable files"):
            figure = re.compile(f"train {name}: [^ ,]*")
            assert figure.search(ours)[0] == figure.search(theirs)[0]


def test_the_statistics_of_the_main_process_are_validated_and_saved(
    corpus, one_of_one, monkeypatch, tmp_path
):
    """Which any other gets from it: BatchNorm's of the last step differ."""

    def broadcast(buffer, src):
        assert src == 0
        buffer.fill_(3)

    validated = []

    def before(watch):
        validate, network = (
            watch.brain.validate,
            recipe.unwrap(watch.brain.modules.embedding_model),
        )

        def noted():
            validated.append(network.norm.running_var.tolist())
            return validate()

        watch.brain.validate = noted

    monkeypatch.setattr(torch.distributed, "broadcast", broadcast)
    arguments = command_line(
        corpus, tmp_path, number_of_epochs=1, distributed_backend="gloo"
    )
    watch = run(monkeypatch, arguments, before)
    (variances,) = validated
    assert set(variances) == {3.0}
    weights = tensors(checkpoints(watch)[1].paramfiles["embedding_model"])
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        saved = [weights[key] for key in weights if key.endswith(name)]
        assert saved and all((each == 3).all() for each in saved)


def test_figures_are_those_of_all_processes(corpus, monkeypatch, tmp_path):
    """As if another process had the same batches."""

    def two_processes(watch):
        watch.brain.distributed_launch = True
        distributed = recipe.torch.distributed
        monkeypatch.setattr(
            distributed, "all_reduce", lambda sums: sums.mul_(2)
        )
        monkeypatch.setattr(distributed, "get_world_size", lambda: 2)

    set_clock(monkeypatch)
    watch = run(
        monkeypatch,
        command_line(corpus, tmp_path, number_of_epochs=1),
        two_processes,
    )
    (line,) = read_log(watch)
    mean = np.mean([loss["value"] for loss in watch.losses])
    (found,) = re.findall("train loss: ([^,]*)", line)
    assert float(found) == pytest.approx(mean, rel=1e-2)
    assert f"train accuracy: {sum(watch.correct) / 16:.4e}" in line
    assert f"crops per second: {32 / (9 * TICK):.4e}" in line


@pytest.mark.parametrize(
    "device_type, synchronized, distributed, expected",
    [
        ("cuda", False, True, [["cuda:1"]]),
        ("cuda", None, True, [["cuda:1"]]),
        ("cpu", False, True, [None]),
        ("cuda", True, True, ["SpeechBrain's"]),
        ("cpu", False, False, ["SpeechBrain's"]),
        ("cpu", True, False, ["SpeechBrain's"]),
        ("cpu", True, True, "synchronize_batchnorm: True is for GPUs"),
    ],
)
def test_modules_are_wrapped_for_their_device(
    device_type, synchronized, distributed, expected, monkeypatch
):
    found, noted = [], []
    monkeypatch.setattr(
        brain_module,
        "DistributedDataParallel",
        lambda module, devices, **options: (
            found.append(devices) or noted.append(options) or module
        ),
    )
    monkeypatch.setattr(
        recipe.sb.core.Brain,
        "_wrap_distributed",
        lambda brain: found.append("SpeechBrain's"),
    )
    brain = recipe.SpeakerBrain.__new__(recipe.SpeakerBrain)
    brain.distributed_launch = distributed
    brain.hparams = SimpleNamespace(synchronize_batchnorm=synchronized)
    brain.device, brain.device_type = f"{device_type}:1", device_type
    brain.find_unused_parameters = synchronized is None
    frozen = torch.nn.Linear(2, 2).requires_grad_(False)
    brain.modules = {"network": torch.nn.Linear(2, 2), "frozen": frozen}
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=expected):
            brain._wrap_distributed()
        return
    brain._wrap_distributed()
    assert found == expected
    unused = {"find_unused_parameters": brain.find_unused_parameters}
    assert noted == [unused] * (found != ["SpeechBrain's"])


def test_accumulation_is_one_large_batch(corpus, monkeypatch, tmp_path):
    """The same weights, however a global batch is divided."""
    hparams = edited(
        tmp_path,
        ("gain: [-18.0, 6.0]", "gain: [0.0, 0.0]"),
        ("redimnet2_lobes.ReDimNet2", "frozen_norms.FrozenNorms"),
        # Adam makes a step of the sign of gradients near zero.
        ("torch.optim.AdamW", "torch.optim.SGD"),
    )
    watches = [
        run(
            monkeypatch,
            command_line(
                corpus,
                tmp_path / f"{batch_size}",
                hparams,
                global_batch_size=8,
                batch_size=batch_size,
                number_of_epochs=3,
                warmup_epochs=0,
                margin_increase_epoch=1,
                margin_final_epoch=2,
            ),
        )
        for batch_size in (8, 5, 2)
    ]
    for watch, parts in zip(watches, (1, 2, 4), strict=True):
        assert len(watch.steps) == 6
        assert same(watch.items, watches[0].items)
        # All parts of a global batch have its learning rate and margin.
        for key in ("lr", "margin"):
            values = [loss[key] for loss in watch.losses]
            assert values == [
                value
                for loss in watches[0].losses
                for value in [loss[key]] * parts
            ]
        whole = torch.tensor([each["value"] for each in watches[0].losses])
        divided = torch.tensor([each["value"] for each in watch.losses])
        assert torch.allclose(
            divided.unflatten(0, (-1, parts)).mean(1), whole, rtol=1e-3
        )
        ours = watch.brain.modules.classifier.weight.detach()
        theirs = watches[0].brain.modules.classifier.weight.detach()
        assert relative_difference(ours, theirs) < 1e-3


def test_modules_are_found_in_what_wraps_them():
    inner = torch.nn.Linear(2, 2)
    compiled = SimpleNamespace(_orig_mod=inner)
    for module in (inner, compiled, SimpleNamespace(module=compiled)):
        assert recipe.unwrap(module) is inner


@pytest.mark.parametrize(
    "batch_size, processes, synchronized, normalizes, refused",
    [
        (1, 1, False, True, True),
        (1, 2, False, True, True),
        (1, 1, True, True, True),
        (1, 2, True, True, False),
        (2, 1, False, True, False),
        (1, 1, False, False, False),
    ],
)
def test_parts_of_one_utterance(
    batch_size, processes, synchronized, normalizes, refused
):
    """BatchNorm in training needs two, in all processes or in each."""
    layers = [torch.nn.Linear(2, 2)]
    if normalizes:
        layers.append(torch.nn.BatchNorm1d(2))
    batches = SimpleNamespace(
        batch_size=batch_size,
        most_at_a_time=batch_size,
        processes=processes,
        global_batch_size=4,
    )
    network = torch.nn.Sequential(*layers).eval()
    if refused:
        with pytest.raises(ValueError, match="^global_batch_size: 4 for "):
            check_batch_norm(batches, network, synchronized)
    else:
        check_batch_norm(batches, network, synchronized)


# --- Training and evaluation mode ---


def test_modes(trained):
    """Gradients and batch statistics in training steps, and nowhere else."""
    kinds = [
        "training" if each["gradients"] else "validation"
        for each in trained.forwards
    ]
    for each, kind in zip(trained.forwards, kinds, strict=True):
        assert each["training"] == {kind == "training"}
    # One validation before training and one after each epoch.
    order = "".join(kind[0] for kind in kinds)
    assert re.fullmatch(r"v+(t{4}v+){3}", order)
    assert all(loss["training"] for loss in trained.losses)


def test_validation_leaves_no_trace(trained):
    brain = trained.brain
    brain.modules.train()
    before = {
        key: value.clone()
        for key, value in brain.modules.embedding_model.state_dict().items()
    }
    first, second = brain.validate(), brain.validate()
    assert first == second
    after = brain.modules.embedding_model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert {each.training for each in brain.modules.modules()} == {True}


def cosines_of_trials(network, corpus, seconds):
    """Of the validation trials, each utterance embedded by itself."""
    embeddings, scores, labels = {}, [], []
    network.eval()
    for line in (corpus / "veri_validation.txt").read_text().splitlines():
        label, *pair = line.split()
        for name in pair:
            if name not in embeddings:
                wav = utterance(corpus, name.removesuffix(".wav"))
                wav = wav[: round(seconds * 16000)]
                with torch.no_grad():
                    embeddings[name] = network(wav.unsqueeze(0))[0, 0]
        a, b = (embeddings[name] for name in pair)
        scores.append(torch.nn.functional.cosine_similarity(a, b, dim=0).item())
        labels.append(int(label))
    return scores, labels


@pytest.fixture(scope="module")
def uneven(corpus, tmp_path_factory):
    """The validation utterances, each of another length."""
    folder = tmp_path_factory.mktemp("uneven")
    trials = (corpus / "veri_validation.txt").read_text()
    (folder / "veri_validation.txt").write_text(trials)
    names = dict.fromkeys(re.findall(r"\S+\.wav", trials))
    for number, name in enumerate(names):
        samples, rate = soundfile.read(corpus / "wav" / name)
        path = folder / "wav" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, samples[: 8000 + 1600 * number], rate)
    return folder


@pytest.mark.parametrize("seconds", [8.0, 0.6])
def test_validation_is_the_equal_error_rate_of_the_cosines(
    seconds, trained, uneven, monkeypatch
):
    brain = trained.brain
    network = recipe.unwrap(brain.modules.embedding_model)
    monkeypatch.setattr(brain.hparams, "validation_seconds", seconds)
    paths = {name: str(uneven / "wav" / name) for name in brain.trials.paths}
    monkeypatch.setattr(brain.trials, "paths", paths)
    found = brain.validate()
    scores, labels = cosines_of_trials(network, uneven, seconds)
    targets = sorted(
        s for s, label in zip(scores, labels, strict=True) if label
    )
    others = sorted(
        s for s, label in zip(scores, labels, strict=True) if not label
    )
    # At the equal error rate so many of both kinds are on the wrong side.
    rates = [
        max(
            np.mean(np.array(targets) < threshold),
            np.mean(np.array(others) >= threshold),
        )
        for threshold in scores
    ]
    assert found == pytest.approx(100 * min(rates), abs=100 / len(targets))
    exact = EER(torch.tensor(targets), torch.tensor(others))[0]
    assert found == pytest.approx(100 * exact, rel=1e-4)


# --- What is refused before anything is done ---

TEXTS = ("data_folder", "validation_folder", "validation_trials")
TEXTS += ("output_folder",)
LOWEST = {
    "number_of_epochs": 1,
    "batch_size": 1,
    "global_batch_size": 1,
    "checkpoints_kept": 1,
    "num_workers": 0,
    "crop_frames": 10,
    "minimum_seconds": 0.1,
    "loss_weight_decay": 0,
    "validation_seconds": 0.1,
    "validation_seconds_per_batch": 0.1,
    "teacher_weight": 0,
    "teacher_pairs_weight": 0,
    "label_weight": 0,
}


SWITCHES = ("half_precision_maps", "activation_checkpointing")


def lowest_settings(**others):
    return {
        **dict.fromkeys(TEXTS, "here"),
        **dict.fromkeys(SWITCHES, True),
        **LOWEST,
        "variant": None,
        "embedding_model": torch.nn.Linear(2, 2),
        "teacher_embeddings": ["teacher.npz"],
        "teacher_weight": 1,  # of the three weights one must be above 0
        "crop": RandomCrop(10, [1.0]),
        **others,
    }


def test_the_lowest_settings_will_do():
    check_hparams(lowest_settings())
    lists = lowest_settings(training_lists={"a": "a.csv"})
    del lists["data_folder"]
    check_hparams(lists)


@pytest.mark.parametrize("key", [*TEXTS, *LOWEST, *SWITCHES])
def test_settings_of_another_type_are_refused(key):
    with pytest.raises(ValueError, match=f"^{key}: expected "):
        check_hparams(lowest_settings(**{key: [3]}))


@pytest.mark.parametrize("key", [*LOWEST, "teacher_embeddings"])
def test_keys_that_an_older_configuration_lacks_are_named(key):
    settings = lowest_settings()
    del settings[key]
    with pytest.raises(ValueError, match=f"^{key}: missing; copy it from "):
        check_hparams(settings)


@pytest.mark.parametrize("key", LOWEST)
def test_lower_settings_are_refused(key):
    step = 1 if isinstance(LOWEST[key], int) else 0.01
    lower = {key: LOWEST[key] - step}
    with pytest.raises(ValueError, match=f"^{key}: .* is less than "):
        check_hparams(lowest_settings(**lower))


def test_classes_are_divided_for_losses_that_can_be():
    check_hparams(
        lowest_settings(shard_classes=True, compute_cost=SphereFace2())
    )
    loss = LogSoftmaxWrapper(AngularMargin())
    with pytest.raises(
        ValueError, match="^shard_classes: True is not for LogSoftmaxWrapper"
    ):
        check_hparams(lowest_settings(shard_classes=True, compute_cost=loss))


def test_the_variant_is_that_of_the_network():
    small = ReDimNet2(LogMel(), **{**VARIANTS["b0"], "base_channels": 16})
    check_variant(None, small)
    check_variant("b0", ReDimNet2(LogMel(), **VARIANTS["b0"]))
    with pytest.raises(ValueError, match="^variant: 'b0' .* base_channels; "):
        check_hparams(lowest_settings(variant="b0", embedding_model=small))
    with pytest.raises(ValueError, match="'b7' does not go with this network"):
        check_variant("b7", small)


def test_validation_trials_that_cannot_be_used(uneven, tmp_path):
    (name, *others) = sorted((uneven / "wav").rglob("*.wav"))
    name = name.relative_to(uneven / "wav")
    settings = {
        "validation_trials": str(tmp_path / "trials.txt"),
        "validation_folder": str(uneven),
        "output_folder": str(tmp_path / "output"),
    }
    for trials, message in (
        (None, f"validation_trials: no file {tmp_path}"),
        (f"1 {name} {name}\n", f"validation_trials: all trials in {tmp_path}"),
        (
            f"1 {name} {name}\n0 {name} none.wav\n",
            "validation_folder: 1 of the 2 files .* "
            f"{tmp_path}/output/missing_files.txt",
        ),
    ):
        if trials is not None:
            (tmp_path / "trials.txt").write_text(trials)
        with pytest.raises(ValueError, match=f"^{message}"):
            read_trial_lists(
                *settings.values(),
                keys=("validation_trials", "validation_folder"),
            )


# --- What is kept ---


def read_log(watch):
    """A line for each epoch."""
    return Path(watch.hparams["train_log"]).read_text("utf-8").splitlines()


def test_log(trained):
    """Epoch by epoch what the loss and the optimizer saw."""
    log = read_log(trained)
    assert len(log) == 3
    kept = checkpoints(trained)  # the last one and the best
    drawn = trained.hparams["train_log"], trained.hparams["training_curves"]
    assert trained.plots == [drawn] * 3
    for epoch, line in enumerate(log, start=1):
        found = {
            key: float(value)
            for key, value in re.findall(r"(\w[\w ]*): ([\d.e+-]+)", line)
        }
        losses = trained.losses[STEPS * (epoch - 1) : STEPS * epoch]
        assert found["epoch"] == epoch
        mean = np.mean([loss["value"] for loss in losses])
        assert found["train loss"] == pytest.approx(mean, rel=1e-3)
        assert found["lr"] == pytest.approx(losses[-1]["lr"], rel=1e-2)
        assert found["margin"] == pytest.approx(losses[-1]["margin"], abs=6e-5)
        assert found["train unusable files"] == 0
        correct = trained.correct[STEPS * (epoch - 1) : STEPS * epoch]
        assert found["train accuracy"] == pytest.approx(
            sum(correct) / 16, rel=1e-2
        )
        # A step waits for a tick and computes for another one; then there is
        # one until the last is done.
        ticks = 2 * STEPS + 1
        rate = pytest.approx(16 / (ticks * TICK), rel=1e-2)
        assert found["train crops per second"] == rate
        waiting = pytest.approx(STEPS / ticks, rel=1e-2)
        assert found["train share of time waiting"] == waiting
        if epoch in kept:
            expected = kept[epoch].meta["EER"]
            assert found["valid EER"] == pytest.approx(expected, rel=1e-3)


def test_what_is_said_and_noted(corpus, monkeypatch, tmp_path, capsys):
    quiet = logging.getLogger("matplotlib"), logging.getLogger("filelock")
    for other in quiet:
        monkeypatch.setattr(other, "level", logging.NOTSET)
    root = logging.getLogger().level
    run(monkeypatch, command_line(corpus, tmp_path, number_of_epochs=1))
    assert f"Model folder: {tmp_path}/model" in capsys.readouterr().out
    # The settings that it was called with, too.
    noted = (tmp_path / "hyperparams.yaml").read_text()
    assert "number_of_epochs: 1" in noted
    # Neither writes its details into log.txt.
    assert [other.level for other in quiet] == [logging.WARNING] * 2
    assert logging.getLogger().level == root


def test_tensorboard(trained):
    """The figures of the log, each at its epoch."""
    folder = Path(trained.hparams["output_folder"]) / "tensorboard"
    events = EventAccumulator(str(folder))
    events.Reload()
    logged = {}
    for tag in events.Tags()["scalars"]:
        found = events.Scalars(tag)
        assert [event.step for event in found] == [1, 2, 3]
        name, *phase = tag.split("/")
        logged[" ".join([*phase, name])] = [event.value for event in found]
    log = [
        dict(re.findall(r"(\w[\w ]*): ([\d.e+-]+)", line))
        for line in read_log(trained)
    ]
    assert logged.keys() == log[0].keys()
    for name, values in logged.items():
        expected = [float(line[name]) for line in log]
        assert values == pytest.approx(expected, rel=1e-2, abs=1e-4)


def test_weights_and_biases(monkeypatch, tmp_path):
    """The logger gets what wandb.init wants; there is no account here."""
    logged = []

    class Wandb:
        @staticmethod
        def init(project, dir, resume, id):
            assert (project, dir, resume) == ("voices", tmp_path, "allow")
            assert id == tmp_path.name
            return Wandb

        @staticmethod
        def log(stats, step):
            logged.append((stats, step))

    settings = {
        "train_logger": None,
        "output_folder": tmp_path,
        "tensorboard": False,
        "wandb_project": "voices",
    }
    monkeypatch.setitem(sys.modules, "wandb", Wandb)
    _, logger = build_loggers(*settings.values())
    logger.log_stats({"epoch": 3}, {"loss": 1.5}, {"EER": 7.0})
    assert logged == [
        ({"epoch": 3, "train": {"loss": 1.5}, "valid": {"EER": 7.0}}, 3)
    ]
    monkeypatch.setitem(sys.modules, "wandb", None)  # not installed
    with pytest.raises(ValueError, match="wandb is not installed; pip install"):
        build_loggers(*settings.values())


def checkpoints(watch):
    """The checkpoints of a training by their epoch."""
    found = Checkpointer(watch.hparams["save_folder"]).list_checkpoints()
    return {each.meta.get("epoch"): each for each in found}


def tensors(path):
    return torch.load(path, weights_only=True)


def test_checkpoint_holds_the_end_of_the_epoch(trained):
    last = checkpoints(trained)[3]
    modules = trained.brain.modules
    for name in ("embedding_model", "classifier"):
        saved = tensors(last.paramfiles[name])
        now = recipe.unwrap(modules[name]).state_dict()
        assert saved.keys() == now.keys()
        assert all(torch.equal(saved[key], now[key]) for key in now)
    optimizer = tensors(last.paramfiles["optimizer"])
    assert len(optimizer["state"]) == len(trained.steps[0]) - 1  # one frozen
    for schedule in ("lr_schedule", "margin_schedule"):
        position = json.loads(last.paramfiles[schedule].read_text())
        assert position == {"step": 3 * STEPS, "steps_per_epoch": STEPS}
    # The network has a whole epoch behind it, and validation changed nothing.
    scores = last.meta["EER"]
    assert trained.brain.validate() == scores


def train_to(errors, corpus, monkeypatch, folder, **overrides):
    """Trains with given validation EERs: before training, then by epoch."""
    values = iter(errors)

    def fake(watch):
        watch.brain.validate = lambda: next(values)

    return run(
        monkeypatch,
        command_line(corpus, folder, number_of_epochs=len(errors), **overrides),
        fake,
    )


@pytest.mark.parametrize(
    "kept, expected", [(1, {2, 5}), (2, {2, 4, 5}), (9, {1, 2, 3, 4, 5})]
)
def test_the_best_and_the_last_checkpoints_are_kept(
    kept, expected, corpus, monkeypatch, tmp_path
):
    watch = train_to(
        [9.0, 3.0, 5.0, 4.0, 6.0],
        corpus,
        monkeypatch,
        tmp_path,
        checkpoints_kept=kept,
        ckpt_interval_steps=3,
    )
    found = checkpoints(watch)
    assert set(found) == expected
    assert found[2].meta["EER"] == 3.0
    assert found[5].meta["EER"] == 6.0


def test_model_folder_is_the_last_epoch(trained):
    folder = trained.hparams["model_folder"]
    model = SpeakerRecognition.from_hparams(source=folder)
    network = recipe.unwrap(trained.brain.modules.embedding_model)
    found = model.mods.embedding_model.state_dict()
    for name, expected in network.state_dict().items():
        assert torch.equal(found[name], expected), name
    names = CategoricalEncoder.from_saved(f"{folder}/label_encoder.ckpt")
    weights = recipe.unwrap(trained.brain.modules.classifier).weight
    assert model.mods.classifier.weight.shape == (4, 192)
    for name in TRAINING:
        # Of the five speeds, the class of the speaker's own.
        row = trained.speakers.encode_label(name)
        kept = model.mods.classifier.weight[names.encode_label(name)]
        assert torch.equal(kept, weights[row])


def test_labels_and_class_weights_go_together(trained, corpus):
    """A trained classifier knows its training utterances by name."""
    seen = {}
    for name, _, label in trained.items:
        if label < len(TRAINING):
            seen.setdefault(name.split("/")[0], set()).add(label)
    assert all(len(labels) == 1 for labels in seen.values())
    for name, (label,) in seen.items():
        assert trained.speakers.encode_label(name) == label


# --- Sources ---


def everything(corpus, path):
    """A list of all utterances, those held out among them."""
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["ID", "duration", "wav", "spk_id"])
        for wav in sorted((corpus / "wav").rglob("*.wav")):
            name = wav.relative_to(corpus / "wav").with_suffix("")
            rows.writerow(
                [name, 1.2, f"$data_root/wav/{name}.wav", name.parts[0]]
            )
    return path


def as_segments(corpus, path, joined):
    """A list of all utterances, each a segment of one file."""
    wavs = sorted((corpus / "wav").rglob("*.wav"))
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["ID", "duration", "wav", "start", "stop", "spk_id"])
        for wav, borders in zip(wavs, join_files(wavs, joined), strict=True):
            name = wav.relative_to(corpus / "wav").with_suffix("")
            rows.writerow([name, 99.0, joined, *borders, name.parts[0]])
    return path


@pytest.mark.parametrize(
    "source", ["files", "shards", "lists", "segments", "shards of segments"]
)
def test_sources_give_the_same_crops_without_what_is_held_out(
    source, trained, corpus, monkeypatch, tmp_path
):
    hparams = without_gain(tmp_path)
    overrides = {}
    data_folder = corpus
    if source.startswith("shards"):
        data_folder = tmp_path / "shards"
        path = tmp_path / "all.csv"
        if source == "shards":
            everything(corpus, path)
        else:
            as_segments(corpus, path, tmp_path / "joined.wav")
        make_shards(path, data_folder, corpus, workers=1)
    elif source == "segments":  # in train.csv of the data folder
        data_folder = tmp_path / "segments"
        data_folder.mkdir()
        as_segments(corpus, data_folder / "train.csv", tmp_path / "joined.wav")
    elif source == "lists":
        path = everything(corpus, corpus / "all.csv")
        hparams.write_text(
            hparams.read_text().replace(
                "training_lists: {}", f"training_lists: {{'': {path}}}"
            )
        )
        data_folder = "null"
    if source != "files":
        overrides = {
            "validation_folder": corpus,
            "validation_trials": corpus / "veri_validation.txt",
            "test_trials": corpus / "veri_test2.txt",
        }
    watch = run(
        monkeypatch,
        command_line(
            data_folder,
            tmp_path / "output",
            hparams,
            number_of_epochs=2,
            **overrides,
        ),
    )
    drawn = {name for name, *_ in watch.items}
    held_out = {
        name.removesuffix(".wav")
        for line in (corpus / "veri_validation.txt").read_text().splitlines()
        for name in line.split()[1:]
    }
    assert len(held_out) == 8 and not drawn & held_out
    assert {name.split("/")[0] for name in drawn} == set(TRAINING)
    assert len(drawn) == 16 and not set(watch.speakers.lab2ind) & set(TEST)
    expected = [
        {name: (crop, label) for name, crop, label in items}
        for items in epochs(trained.items)[:2]
    ]
    if not source.startswith("shards"):  # whose utterances lie in another order
        assert [item[0] for item in watch.items] == [
            item[0] for item in trained.items[: len(watch.items)]
        ]
    for items, crops in zip(epochs(watch.items), expected, strict=True):
        for name, crop, label in items:
            assert torch.equal(crop, crops[name][0])
            assert label == crops[name][1]


def test_a_mixture_holds_out_by_name_and_draws_by_corpus(
    corpus, noise_corpora, monkeypatch, tmp_path
):
    path = everything(corpus, corpus / "all.csv")
    watch = run(
        monkeypatch,
        command_line(
            "null",
            tmp_path / "output",
            hparams="redimnet2_b3_mixture.yaml",
            number_of_epochs=2,
            warmup_epochs=1,
            plateau_epochs=0,
            validation_folder=corpus,
            validation_trials=corpus / "veri_validation.txt",
            test_trials=corpus / "veri_test2.txt",
            voxceleb2_list=path,
            voxblink2_list=path,
            cnceleb2_list=path,
            **noise_corpora,
        ),
    )
    names = {name for name, *_ in watch.items}
    assert {name.split("/")[0] for name in names} == {
        f"{prefix}_{speaker}" for prefix in "ABC" for speaker in TRAINING
    }
    assert len(names) == 48
    for name, _, label in watch.items:
        speaker = watch.speakers.decode_ndim(label % 12)
        assert speaker == name.split("/")[0]
    # The plateau's end is that of the warm-up here; then halvings in 10 epochs.
    for step, loss in enumerate(watch.losses):
        passed = step / 12
        rate = (
            4 / 64 * 0.025 * min(passed, 1) * 0.5 ** (max(passed - 1, 0) / 10)
        )
        assert loss["lr"] == pytest.approx(rate, abs=1e-12)


def test_short_utterances_are_left_out(corpus, monkeypatch, tmp_path):
    """As published, those under a second: here none has so much."""
    arguments = command_line(corpus, tmp_path, minimum_seconds=1.3)
    with pytest.raises(ValueError, match="no utterance is left"):
        run(monkeypatch, arguments)


# --- Interruption ---


class Stop(Exception):
    pass


def stop_after(step):
    """Raises Stop in the step after, once the checkpoint is written."""

    def before(watch):
        steps = itertools.count(1)

        def after_step(*_):
            if next(steps) > step:
                raise Stop

        watch.brain.optimizer.register_step_pre_hook(after_step)

    return before


@pytest.mark.parametrize("step", [2, 6, 8, 11])
def test_a_resumed_training_goes_on_as_if_never_stopped(
    step, trained, corpus, monkeypatch, tmp_path
):
    """Stopped after that step; a checkpoint is written after every second."""
    arguments = command_line(
        corpus,
        tmp_path / "output",
        without_gain(tmp_path),
        **THREE_EPOCHS,
        ckpt_interval_steps=2,
    )
    with pytest.raises(Stop):
        run(monkeypatch, arguments, stop_after(step))
    watch = run(monkeypatch, arguments)
    done = step // 2 * 2
    # The untrained network alone is validated before.
    assert watch.forwards[0]["gradients"]
    assert same(watch.items, trained.items[4 * done :])
    assert watch.losses == trained.losses[done:]
    assert watch.steps == trained.steps[done:]
    logs = [
        re.sub("train (crops per|share of)[^,]*, ", "", line)
        for each in (watch, trained)
        for line in read_log(each)
    ]
    assert logs[:3] == logs[3:]


def test_a_training_in_parts_is_resumed_within_an_epoch(
    trained, corpus, monkeypatch, tmp_path
):
    """Two parts a step: each has its crops, learning rate and margin."""
    arguments = command_line(
        corpus,
        tmp_path / "output",
        without_gain(tmp_path),
        batch_size=2,
        **THREE_EPOCHS,
        ckpt_interval_steps=2,
    )

    with pytest.raises(Stop):
        run(monkeypatch, arguments, stop_after(3))
    watch = run(monkeypatch, arguments)
    done = 3 * STEPS - len(watch.steps)
    assert 0 < done < 4
    assert same(watch.items, trained.items[4 * done :])
    for key in ("lr", "margin"):
        expected = [loss[key] for loss in trained.losses[done:] for _ in "ab"]
        assert [loss[key] for loss in watch.losses] == expected


@pytest.mark.parametrize("steps, minutes", [(0, 30), (1, 0), (5, 0)])
def test_how_often_a_checkpoint_is_written_and_who_reads(
    steps, minutes, corpus, augmented_hparams
):
    """Every half an hour, as the published configurations say, or by steps."""
    hparams_file, run_opts, overrides = parse_command_line(
        augmented_hparams(
            corpus, f"often{steps}", ckpt_interval_steps=steps, num_workers=2
        )
    )
    hparams = load_hparams(hparams_file, overrides)
    brain, loader, _ = recipe.build_brain(hparams, run_opts)
    assert brain.ckpt_interval_minutes == minutes
    assert brain.ckpt_interval_steps == steps
    assert loader.num_workers == 2
    assert not loader.pin_memory  # there is no GPU to send it to


def test_checkpoints_by_the_clock(corpus, monkeypatch, tmp_path):
    """The main process's clock comes with the sums of the step after."""
    arguments = command_line(corpus, tmp_path, number_of_epochs=2)
    saved = []

    def before(watch):
        watch.brain.ckpt_interval_minutes = 1e-9
        save = watch.brain._save_intra_epoch_ckpt
        watch.brain._save_intra_epoch_ckpt = lambda: (
            saved.append((watch.brain.step, watch.brain.progress.utterances)),
            save(),
            saved.append((watch.brain.step, watch.brain.progress.utterances)),
        )

    run(monkeypatch, arguments, before)
    # Late after the first step, known with the second, read after the third,
    # which counts in the checkpoint as well.
    assert saved == [(3, 8), (3, 12)] * 2


def test_a_finished_training_does_not_go_on(corpus, monkeypatch, tmp_path):
    arguments = command_line(corpus, tmp_path, number_of_epochs=1)
    run(monkeypatch, arguments)
    again = run(monkeypatch, arguments)
    assert not again.items
    log = (tmp_path / "log.txt").read_text()
    assert "Trained for 1 epochs already; raise --number_of_epochs" in log


@pytest.mark.parametrize("flags", [[], ["--debug_persistently"]])
def test_debugging_leaves_what_is_trained(corpus, monkeypatch, tmp_path, flags):
    """Unless it is asked to: two batches an epoch, from the beginning."""
    arguments = command_line(corpus, tmp_path, number_of_epochs=1)
    run(monkeypatch, arguments)

    def kept():
        return {
            path: path.read_bytes()
            for part in ("model", "save")
            for path in (tmp_path / part).rglob("*")
            if path.is_file()
        }

    before = kept()
    arguments = command_line(corpus, tmp_path, number_of_epochs=2)
    watch = run(monkeypatch, [*arguments, "--debug", *flags])
    assert len(watch.losses) == (2 if flags else 4)
    assert (kept() == before) is not bool(flags)


# --- Precision, compilation, fine-tuning ---


def test_mixed_precision(corpus, monkeypatch, tmp_path):
    """bfloat16 in the network, float32 in the loss and in validation."""
    watch = run(
        monkeypatch,
        command_line(corpus, tmp_path, number_of_epochs=1, precision="bf16"),
    )
    for each in watch.forwards:
        assert each["autocast"] == each["gradients"]
        expected = torch.bfloat16 if each["gradients"] else torch.float32
        assert each["dtype"] == expected
    assert {loss["dtype"] for loss in watch.losses} == {torch.float32}
    weights = watch.brain.modules.parameters()
    assert {weight.dtype for weight in weights} == {torch.float32}


def test_a_compiled_training_is_the_same(
    trained, corpus, monkeypatch, tmp_path
):
    """With dynamo, which sees what the network does, but no C++ compiler."""
    compiled = []

    def compile_eagerly(module, **options):
        compiled.append(module)
        return original(module, backend="eager", dynamic=options["dynamic"])

    original = torch.compile
    monkeypatch.setattr(torch, "compile", compile_eagerly)
    watch = run(
        monkeypatch,
        command_line(
            corpus,
            tmp_path / "output",
            edited(
                tmp_path,
                ("gain: [-18.0, 6.0]", "gain: [0.0, 0.0]"),
            ),
            number_of_epochs=1,
            warmup_epochs=1,
            margin_increase_epoch=2,
            margin_final_epoch=3,
            loss_weight_decay=0.01,
            flags=["--compile"],
        ),
    )
    # Not the loss, whose margin moves with every step.
    assert compiled == [recipe.unwrap(watch.brain.modules.embedding_model)]
    assert same(watch.items, epochs(trained.items)[0])
    first, expected = (w.losses[0]["value"] for w in (watch, trained))
    assert first == pytest.approx(expected, rel=1e-5)
    # No trace of the compilation in what is kept.
    network = checkpoints(watch)[1].paramfiles["embedding_model"]
    expected = tensors(checkpoints(trained)[3].paramfiles["embedding_model"])
    assert tensors(network).keys() == expected.keys()
    SpeakerRecognition.from_hparams(source=watch.hparams["model_folder"])


@pytest.fixture(scope="module")
def pretrained(corpus, noise_corpora, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrained")
    with pytest.MonkeyPatch.context() as monkeypatch:
        return run(
            monkeypatch,
            command_line(
                corpus,
                folder,
                hparams="redimnet2_b0.yaml",
                number_of_epochs=1,
                corpora="null",
                validation_trials=corpus / "veri_validation.txt",
                test_trials=corpus / "veri_test2.txt",
                **noise_corpora,
            ),
        )


def fine_tuning(corpus, folder, pretrained, noise_corpora, **overrides):
    return command_line(
        corpus,
        folder,
        hparams="redimnet2_b0_lm.yaml",
        corpora="null",
        validation_trials=corpus / "veri_validation.txt",
        test_trials=corpus / "veri_test2.txt",
        pretrained_folder=pretrained.hparams["model_folder"],
        **{"number_of_epochs": 2, **noise_corpora, **overrides},
    )


def state(watch):
    """All that is learned, by name, copied."""
    return {
        f"{name}.{key}": value.clone()
        for name, module in watch.brain.modules.items()
        for key, value in module.state_dict().items()
    }


def test_fine_tuning_starts_where_pretraining_ended(
    pretrained, corpus, noise_corpora, monkeypatch, tmp_path
):
    """Names decide: one speaker is new, and sorts before the others."""
    changed = write_corpus(tmp_path / "corpus")
    (changed / "wav" / "dora").rename(changed / "wav" / "aaron")
    for path in changed.glob("*.txt"):
        path.write_text(path.read_text().replace("dora/", "aaron/"))
    start = {}
    watch = run(
        monkeypatch,
        fine_tuning(changed, tmp_path / "output", pretrained, noise_corpora),
        lambda watch: start.update(state(watch)),
    )
    before = state(pretrained)
    for name, value in start.items():
        if name != "classifier.weight":
            assert torch.equal(value, before[name]), name
    assert before["compute_cost.bias"] != 0
    classes = start["classifier.weight"]
    assert classes.shape == (4, 192)
    for name in ("anna", "bert", "carl"):
        row = watch.speakers.encode_label(name)
        theirs = pretrained.speakers.encode_label(name)
        assert row == theirs + 1
        assert torch.equal(classes[row], before["classifier.weight"][theirs])
    new = classes[watch.speakers.encode_label("aaron")]
    assert not (new == before["classifier.weight"]).all(1).any()
    # Without speeds, at a margin of 0.3, all weights with one weight decay.
    assert {label for *_, label in watch.items} <= set(range(4))
    assert {loss["margin"] for loss in watch.losses} == {0.3}
    assert {
        group["weight_decay"] for step in watch.steps for group in step.values()
    } == {1e-4}


def test_resumed_fine_tuning_does_not_start_again(
    pretrained, corpus, noise_corpora, monkeypatch, tmp_path
):
    arguments = fine_tuning(
        corpus, tmp_path, pretrained, noise_corpora, number_of_epochs=1
    )
    first = run(monkeypatch, arguments)
    end = state(first)
    start = {}
    arguments = fine_tuning(corpus, tmp_path, pretrained, noise_corpora)
    run(monkeypatch, arguments, lambda watch: start.update(state(watch)))
    assert all(torch.equal(start[name], end[name]) for name in end)


# --- Bad audio ---


def test_a_bad_file_is_replaced_and_counted(corpus, monkeypatch, tmp_path):
    broken = write_corpus(tmp_path / "corpus")
    arguments = command_line(
        broken,
        tmp_path / "output",
        number_of_epochs=1,
        on_bad_audio="skip",
    )

    def damage(watch):
        bad = broken / "wav" / "anna" / "session0" / "00002.wav"
        bad.write_bytes(b"no audio")

    watch = run(monkeypatch, arguments, damage)
    names = [name for name, *_ in watch.items]
    assert len(names) == 16 and "anna/session0/00002" not in names
    skipped = (tmp_path / "output" / "log.txt").read_text().count("Skipped: ")
    assert skipped >= 1
    assert f"unusable files: {skipped} " in read_log(watch)[0]
