"""What a training goes on from, what it refuses, and how it ends."""

import contextlib
import errno
import fcntl
import functools
import itertools
import json
import logging
import os
import pickle
import re
import shutil
import signal
import zlib
from pathlib import Path

import pytest
import soundfile
import torch
import train_speaker_embeddings as recipe
from synthetic_voices import synthetic_utterance

from redimnet2_lobes.files import folder_lock
from redimnet2_lobes.files.atomic import complete_or_absent
from redimnet2_lobes.files.error_lines import one_line
from redimnet2_lobes.files.folder_lock import only_writer
from redimnet2_lobes.models.redimnet2 import ReDimNet2
from redimnet2_lobes.training.batches import EpochProgress
from redimnet2_lobes.training.checkpointer import CompleteCheckpointer

HPARAMS = Path(recipe.__file__).parent / "hparams" / "demo_redimnet2_b0.yaml"
STAGE = {"frequency_stride": 2, "time_stride": 2, "blocks": 1, "expansion": 1}
STAGES = [{**STAGE, "reduction": 18}]
SPEAKERS = ["anna", "bert", "carl"]
UTTERANCES = 6  # of each; one for validation


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    names = []
    for seed, speaker in enumerate([*SPEAKERS, "test"]):
        for utterance in range(UTTERANCES):
            name = f"{speaker}/session/{utterance:05d}.wav"
            path = folder / "wav" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            waveform = synthetic_utterance(seed, utterance, 0.6)
            soundfile.write(path, waveform, 16000)
            names.append(name)
    for file, used in (
        ("veri_test2.txt", names[-2:]),
        ("veri_validation.txt", names[:-UTTERANCES:UTTERANCES] + names[1:2]),
    ):
        (folder / file).write_text(
            "".join(
                f"{int(a[:4] == b[:4])} {a} {b}\n"
                for a, b in itertools.combinations(used, 2)
            )
        )
    return folder


@pytest.fixture(autouse=True)
def neither_logging_setup_nor_plots(monkeypatch):
    """It would change what is logged in all later tests."""
    # Drawing it takes longer than the epoch.
    monkeypatch.setattr(recipe, "plot_training_curves", lambda *_: None)
    monkeypatch.setattr(
        recipe.sb.core, "create_experiment_directory", lambda **_: None
    )


def train(corpus, output, hparams=HPARAMS, options=(), **overrides):
    """Runs the script's main function in this process."""
    overrides = {
        "data_folder": str(corpus),
        "output_folder": str(output),
        "variant": None,
        "base_channels": 4,
        "out_channels": None,
        "stages": STAGES,
        "speeds": [1.0, 0.9],
        "crop_frames": 38,
        "batch_size": 6,
        "number_of_epochs": 2,
        "checkpoints_kept": 3,
        "num_workers": 0,
        "preparation_workers": 1,
        **overrides,
    }
    recipe.main(
        [
            str(hparams),
            *("--device=cpu", "--noprogressbar", *options),
            *(
                f"--{key}={value if type(value) is str else json.dumps(value)}"
                for key, value in overrides.items()
            ),
        ]
    )


def refused(*arguments, **overrides):
    """The one line that a run ends with."""
    with pytest.raises((ValueError, OSError)) as caught:
        train(*arguments, **overrides)
    line = one_line(caught.value)
    assert "\n" not in line
    return line


def checkpoints(output):
    return sorted((output / "save").glob("CKPT*"))


def losses(output):
    log = (output / "train_log.txt").read_text()
    return dict(re.findall(r"epoch: (\d+),.*train loss: (\S+),", log))


def content(folder):
    return {
        path: (path.stat().st_mtime_ns, path.stat().st_size)
        for path in folder.rglob("*")
    }


@pytest.fixture(scope="module")
def trained_once(corpus, tmp_path_factory):
    """Two epochs of two steps, each with a checkpoint in its middle."""
    output = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            recipe.sb.core, "create_experiment_directory", lambda **_: None
        )
        train(corpus, output)
    return output


@pytest.fixture
def trained(trained_once, tmp_path):
    output = tmp_path / "trained"
    shutil.copytree(trained_once, output)
    return output


def edited(folder, before, after):
    """A copy of the hyperparameters with another text in a place."""
    text = HPARAMS.read_text()
    assert before in text
    path = folder / "edited.yaml"
    path.write_text(text.replace(before, after))
    return path


@pytest.mark.parametrize(
    "key, value",
    [
        ("speeds", [1.0, 0.9, 1.1]),
        ("speeds", [1.0]),
        ("speeds", [1.0, 1.1]),  # as many classes
        ("base_channels", 8),
        ("out_channels", 8),
        ("stages", STAGES * 2),
        ("stages", [{**STAGES[0], "expansion": 2}]),
        ("weight_decay", 0.1),  # the optimizer takes the checkpoint's
        ("loss_weight_decay", 0.1),
        ("seed", 43),
        ("pretrained_folder", "model"),
    ],
)
def test_other_settings_are_refused(trained, corpus, key, value):
    before = content(trained)
    line = refused(corpus, trained, number_of_epochs=3, **{key: value})
    assert re.match(f"{key}(, loss_weight_decay)?: not as in the che", line)
    assert f"{trained}/save; choose another --output_folder, or take" in line
    assert f" {key}: " in line
    assert content(trained) == before


def test_other_order_of_speeds(corpus, tmp_path):
    """The classes of the checkpoint would belong to other speeds."""
    train(corpus, tmp_path, speeds=[1.0, 0.9, 1.1], number_of_epochs=1)
    line = refused(corpus, tmp_path, speeds=[1.0, 1.1, 0.9])
    assert line.endswith("take again speeds: [1.0, 0.9, 1.1]")


@pytest.mark.parametrize(
    "before, after, keys",
    [
        ("torch.optim.AdamW", "torch.optim.Adam", "opt_class"),
        ("torch.optim.AdamW", "torch.optim.SGD", "opt_class"),
        ("torch.optim.AdamW", "torch.optim.NAdam", "opt_class"),
        (
            "torch.optim.AdamW\n",
            "torch.optim.AdamW\n    amsgrad: True\n",
            "amsgrad",
        ),
        ("AdditiveAngularMarginLoss", "SphereFace2", "compute_cost"),
        (
            """WarmupExponentialSchedule
    initial_lr: !ref <initial_lr>
    final_lr: !ref <final_lr>
    warmup_epochs: !ref <warmup_epochs>
    epochs: !ref <number_of_epochs>""",
            """WarmupPlateauSchedule
    initial_lr: !ref <initial_lr>
    plateau_epochs: 1
    halving_epochs: 1
    warmup_epochs: !ref <warmup_epochs>""",
            "lr_schedule",
        ),
        (
            "aggregation_norm: True",
            "aggregation_norm: False",
            "aggregation_norm",
        ),
        (
            "redimnet2_lobes.ReDimNet2",
            "frozen_norms.FrozenNorms",
            "embedding_model",
        ),
    ],
)
def test_other_objects_are_refused(
    trained, corpus, tmp_path, before, after, keys
):
    hparams = edited(tmp_path, before, after)
    line = refused(corpus, trained, hparams)
    assert line.startswith(f"{keys}: not as in the checkpoints of {trained}")


def test_another_optimizer_and_back(corpus, tmp_path):
    """SGD's state would load into Adam, and fail at the step."""
    sgd = edited(
        tmp_path,
        "torch.optim.AdamW\n",
        "torch.optim.SGD\n    momentum: 0.9\n    nesterov: True\n",
    )
    output = tmp_path / "output"
    train(corpus, output, sgd, number_of_epochs=1)
    line = refused(corpus, output)
    assert line.startswith("opt_class, momentum, nesterov: not as in the")
    assert line.endswith('opt_class: "SGD", momentum: 0.9, nesterov: true')
    train(corpus, output, sgd)


def test_a_loss_that_learns_where_none_did(trained, corpus, tmp_path):
    """Objects that the checkpoint has no file for."""
    hparams = edited(
        tmp_path,
        "        counter: !ref <epoch_counter>",
        "        counter: !ref <epoch_counter>\n"
        "        compute_cost: !ref <compute_cost>",
    )
    line = refused(corpus, trained, hparams, number_of_epochs=3)
    newest = checkpoints(trained)[-1]
    assert line.startswith(f"{newest}: a checkpoint of another training; choo")
    assert "compute_cost" in line


@pytest.mark.parametrize(
    "overrides",
    [
        {"batch_size": 3, "global_batch_size": 6},
        {"global_batch_size": 12, "batch_size": 12},
        {"initial_lr": 0.001, "crop_frames": 48},
        {"options": ["--precision=bf16"]},
    ],
    ids=str,
)
def test_what_may_change(trained, corpus, overrides):
    train(corpus, trained, number_of_epochs=3, **overrides)
    assert losses(trained).keys() == {"1", "2", "3"}


def test_mixed_precision_may_change(tmp_path):
    """SpeechBrain saves the scale of gradients with fp16 alone."""
    layer = torch.nn.Linear(2, 2)
    CompleteCheckpointer(tmp_path, {"layer": layer}).save_checkpoint()
    checkpointer = CompleteCheckpointer(tmp_path, {"layer": layer})
    scaler = torch.GradScaler("cpu", init_scale=8.0)
    checkpointer.add_recoverable("scaler", scaler, optional_load=True)
    with pytest.warns(UserWarning, match="scaler"):
        assert checkpointer.recover_if_possible()
    assert scaler.get_scale() == 8
    checkpointer.save_checkpoint()
    assert CompleteCheckpointer(
        tmp_path, {"layer": layer}
    ).recover_if_possible()


def test_settings_of_any_type(tmp_path):
    checkpointer = CompleteCheckpointer(tmp_path)
    settings = {"dtype": torch.float32, "betas": (0.9, 0.99), "beta": None}
    checkpointer.keep_settings(settings)
    checkpointer.save_checkpoint()
    checkpointer.keep_settings(settings)
    with pytest.raises(ValueError, match=r'^dtype: .* dtype: "torch.float32"$'):
        checkpointer.keep_settings({**settings, "dtype": torch.float64})


def test_fewer_epochs_than_are_done(trained, corpus):
    weights = torch.load(trained / "model" / "embedding_model.ckpt")
    shutil.rmtree(trained / "model")
    train(corpus, trained, number_of_epochs=1)
    again = torch.load(trained / "model" / "embedding_model.ckpt")
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    assert losses(trained).keys() == {"1", "2"}


class Stopped(Exception):
    pass


@pytest.fixture
def stopped_in_the_middle(corpus, tmp_path, monkeypatch):
    """A training that ended after the first step of its second epoch."""
    output = tmp_path / "stopped"
    save = recipe.SpeakerBrain._save_intra_epoch_ckpt

    def save_and_stop(brain):
        save(brain)
        if brain.hparams.epoch_counter.current == 2:
            raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(
            recipe.SpeakerBrain, "_save_intra_epoch_ckpt", save_and_stop
        )
        with pytest.raises(Stopped):
            train(corpus, output, options=["--ckpt_interval_steps=1"])
    return output


def test_another_global_batch_in_the_middle_of_an_epoch(
    stopped_in_the_middle, corpus, monkeypatch
):
    seen = []
    fit_batch = recipe.SpeakerBrain.fit_batch

    def watched(brain, batch):
        seen.extend(batch.id)
        return fit_batch(brain, batch)

    monkeypatch.setattr(recipe.SpeakerBrain, "fit_batch", watched)
    train(corpus, stopped_in_the_middle, global_batch_size=2)
    # Of 14 utterances, six were in the step before.
    assert len(seen) == len(set(seen)) == 8


@pytest.mark.parametrize(
    "newest_is, name",
    [
        ("end of an epoch", "classifier.ckpt"),
        ("end of an epoch", "CKPT.yaml"),
        ("within an epoch", "classifier.ckpt"),
    ],
)
def test_the_one_before_a_damaged_checkpoint(
    newest_is, name, trained, corpus, request, caplog
):
    output = trained
    expected = losses(trained)
    if newest_is == "within an epoch":
        output = request.getfixturevalue("stopped_in_the_middle")
    newest = checkpoints(output)[-1]
    (newest / name).write_bytes(b"{")
    with caplog.at_level(logging.WARNING):
        train(corpus, output)
    assert f"{newest}: {name} is damaged; renamed to DAMAGED+" in caplog.text
    # A new checkpoint of the same second may have the name again.
    aside = newest.parent / f"DAMAGED+{newest.name}"
    assert (aside / name).read_bytes() == b"{"
    # Nothing of the damaged one was taken.
    assert losses(output) == expected


FILES = [
    "CKPT.yaml",
    "brain.ckpt",
    "checks.json",
    "classifier.ckpt",
    "counter.ckpt",
    "embedding_model.ckpt",
    "lr_schedule.ckpt",
    "margin_schedule.ckpt",
    "optimizer.ckpt",
    "progress.ckpt",
]
DAMAGES = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "empty": lambda path: path.write_bytes(b""),
    "missing": Path.unlink,
    "garbage": lambda path: path.write_bytes(bytes(range(256))),
    "one bit": lambda path: path.write_bytes(
        bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:]
    ),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_any_damaged_file_is_found(damage, trained, caplog):
    before, newest = checkpoints(trained)
    assert sorted(path.name for path in newest.iterdir()) == FILES
    for name in FILES:
        copy = trained / name
        (copy / "save").mkdir(parents=True)
        shutil.copytree(before, copy / "save" / before.name)
        shutil.copytree(newest, copy / "save" / newest.name)
        DAMAGES[damage](copy / "save" / newest.name / name)
        progress = EpochProgress()
        checkpointer = CompleteCheckpointer(
            copy / "save", {"progress": progress}
        )
        assert checkpointer.recover_if_possible().meta["epoch"] == 1
        found = "missing" if damage == "missing" else "damaged"
        assert f"{newest.name}: {name} is {found}; renamed" in caplog.text
        # The older one alone is listed from now on.
        assert len(checkpointer.list_checkpoints()) == 1


def test_a_copy_that_is_damaged_as_well(tmp_path):
    checkpointer = CompleteCheckpointer(tmp_path)
    for name in ("whole", "bad"):
        checkpointer.save_checkpoint(name=name)
    bad = tmp_path / "CKPT+bad"
    for content in ("first", "second"):
        bad.mkdir(exist_ok=True)
        (bad / "checks.json").write_text(content)
        checkpointer.set_damaged_aside()
        aside = tmp_path / "DAMAGED+CKPT+bad" / "checks.json"
        assert aside.read_text() == content and not bad.exists()


@pytest.mark.parametrize("name", FILES)
def test_all_are_damaged(name, trained, corpus):
    for checkpoint in checkpoints(trained):
        (checkpoint / name).unlink()
    before = checkpoints(trained)
    line = refused(corpus, trained, number_of_epochs=3)
    assert line.startswith(f"{before[-1]}: {name} is missing, and there is no")
    assert line.endswith("choose another --output_folder to start anew")
    assert checkpoints(trained) == before


@pytest.mark.parametrize("damage", ["truncated", "empty", "missing", "garbage"])
def test_damaged_names_of_speakers(damage, trained, corpus):
    path = trained / "save" / "label_encoder.txt"
    path.write_bytes(path.read_bytes().strip())
    DAMAGES[damage](path)
    line = refused(corpus, trained, number_of_epochs=3)
    assert line.startswith(f"{path}: missing or damaged")


def test_an_unreadable_checkpoint_is_not_damaged(trained, monkeypatch):
    newest = checkpoints(trained)[-1]
    opened = open

    def forbidden(path, *arguments, **keywords):
        if Path(path) == newest / "optimizer.ckpt":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, *arguments, **keywords)

    monkeypatch.setattr("builtins.open", forbidden)
    with pytest.raises(PermissionError, match="optimizer.ckpt"):
        CompleteCheckpointer(trained / "save").recover_if_possible()
    assert newest.exists()


def test_a_disk_that_fails_while_loading(tmp_path):
    def fail(progress, path, end_of_epoch):
        raise OSError(errno.EIO, "Input/output error", str(path))

    checkpointer = CompleteCheckpointer(tmp_path, {"progress": EpochProgress()})
    checkpointer.save_checkpoint()
    checkpointer.custom_load_hooks["progress"] = fail
    with pytest.raises(OSError, match="Input/output error: '.*progress.ckpt"):
        checkpointer.recover_if_possible()


def touch(path):
    Path(path).touch()


class Code:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return touch, (str(self.path),)


@pytest.mark.parametrize("name", ["embedding_model.ckpt", "optimizer.ckpt"])
@pytest.mark.parametrize("save", ["torch", "pickle"])
def test_no_code_is_loaded(name, save, trained, corpus, tmp_path):
    ran = tmp_path / "ran"
    newest = checkpoints(trained)[-1]
    if save == "torch":
        torch.save({"weight": Code(ran)}, newest / name)
    else:
        (newest / name).write_bytes(pickle.dumps(Code(ran), protocol=2))
    checks = json.loads((newest / "checks.json").read_text())
    checks["crc32"][name] = zlib.crc32((newest / name).read_bytes())
    (newest / "checks.json").write_text(json.dumps(checks))
    assert "another training" in refused(corpus, trained, number_of_epochs=3)
    assert not ran.exists()


def test_progress_of_another_checkpoint_is_forgotten(tmp_path):
    progress = EpochProgress()
    progress.utterances = 3
    progress.save(tmp_path / "progress.ckpt")
    progress.load(tmp_path / "progress.ckpt", end_of_epoch=True)
    assert vars(progress) == vars(EpochProgress())


@pytest.fixture
def disk(monkeypatch):
    """What is synced and moved, in order."""
    done = []
    fsync, replace = os.fsync, os.replace

    def synced(descriptor):
        done.append(("fsync", os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def moved(source, target):
        done.append(("replace", str(target)))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", moved)
    return done


def test_checkpoints_are_synced_before_they_are_moved(disk, tmp_path):
    checkpointer = CompleteCheckpointer(
        tmp_path, {"layer": torch.nn.Linear(2, 2), "progress": EpochProgress()}
    )
    path = checkpointer.save_checkpoint().path
    partial = tmp_path / ".partial" / path.name
    moved = disk.index(("replace", str(path)))
    assert {name for _, name in disk[:moved]} == {
        str(partial),
        *(str(partial / file.name) for file in path.iterdir()),
    }
    assert disk[moved + 1 :] == [("fsync", str(tmp_path))]


def test_files_are_synced_before_they_are_moved(disk, tmp_path):
    path = tmp_path / "results.json"
    with complete_or_absent(path) as partial:
        partial.write_text("{}")
    assert disk == [
        ("fsync", str(partial)),
        ("replace", str(path)),
        ("fsync", str(tmp_path)),
    ]


def test_model_folders_are_synced(disk, trained, corpus):
    """Weights before the file that says the folder is whole."""
    train(corpus, trained)
    names = [
        (what, Path(name).name)
        for what, name in disk
        if Path(name).parent.name.startswith((".model-", "model"))
    ]
    assert names[-2:] == [
        ("fsync", "hyperparams.yaml"),
        ("replace", "hyperparams.yaml"),
    ]
    assert names.index(("fsync", "embedding_model.ckpt")) < names.index(
        ("replace", "embedding_model.ckpt")
    )


def test_a_disk_that_fails_late(trained, tmp_path, monkeypatch):
    """Some file systems say only at the sync that they are full."""

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    checkpointer = CompleteCheckpointer(tmp_path / "save")
    kept = checkpointer.save_checkpoint()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="save: cannot write a checkpoint"):
        checkpointer.save_checkpoint()
    path = tmp_path / "results.json"
    with (
        pytest.raises(OSError, match="results.json"),
        complete_or_absent(path) as partial,
    ):
        partial.write_text("{}")
    assert [c.path for c in checkpointer.list_checkpoints()] == [kept.path]
    assert sorted(tmp_path.iterdir()) == [tmp_path / "save", trained]


def test_file_systems_that_cannot_sync_folders(tmp_path, monkeypatch):
    fsync = os.fsync

    def files_only(descriptor):
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", files_only)
    assert CompleteCheckpointer(tmp_path).save_checkpoint().path.is_dir()


@contextlib.contextmanager
def locked_elsewhere(folder):
    """A process that locks a folder and has a child; gives its number."""
    ready, waiting = os.pipe(), os.pipe()
    process = os.fork()
    if process == 0:
        try:
            os.close(waiting[1])
            with only_writer(folder, "training"):
                os.fork()
                os.write(ready[1], b"x")
                os.read(waiting[0], 1)
        finally:
            os._exit(0)
    for _ in range(2):
        assert os.read(ready[0], 1) == b"x"
    yield process
    for descriptor in (*ready, *waiting):
        os.close(descriptor)  # which ends the child


def test_a_second_training_in_a_folder(trained, corpus):
    with locked_elsewhere(trained) as process:
        before = content(trained)
        line = refused(corpus, trained, number_of_epochs=3)
        assert line.startswith(f"{trained}: another training is writing it; ")
        assert content(trained) == before
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        # A worker of it is left, but has no lock.
        train(corpus, trained, number_of_epochs=3)
    assert losses(trained).keys() == {"1", "2", "3"}


def test_the_main_process_alone_locks(trained, corpus, monkeypatch):
    locked = []
    monkeypatch.setattr(recipe, "only_writer", locked.append)
    monkeypatch.setattr(recipe, "if_main_process", lambda: False)
    train(corpus, trained)
    assert locked == []


def test_a_folder_is_free_after_an_error(trained, corpus):
    refused(corpus, trained, seed=43)
    with only_writer(trained, "test"):
        pass


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOTSUP, errno.EBADF])
def test_file_systems_without_locks(code, tmp_path, monkeypatch, caplog):
    def fail(descriptor, operation):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", fail)
    with only_writer(tmp_path, "training"):
        assert (
            f"{tmp_path} cannot be locked ({os.strerror(code)})" in caplog.text
        )
    assert not folder_lock._locked


@pytest.fixture
def diverging(monkeypatch):
    """Sets something not finite after so many calls of a method."""

    def diverge(method, calls, spoil):
        whole = getattr(recipe.SpeakerBrain, method)

        @functools.wraps(whole)
        def spoiled(brain, *arguments, **keywords):
            nonlocal calls
            result = whole(brain, *arguments, **keywords)
            calls -= 1
            return spoil(brain, result) if calls == 0 else result

        monkeypatch.setattr(recipe.SpeakerBrain, method, spoiled)

    return diverge


def bad_weight(brain, result, value=float("inf")):
    with torch.no_grad():
        next(brain.modules.embedding_model.parameters()).fill_(value)
    return result


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("step", [1, 2])
def test_a_loss_that_is_not_finite(trained, corpus, diverging, value, step):
    before = checkpoints(trained)
    model = content(trained / "model")
    diverging("compute_objectives", step, lambda brain, loss: loss * value)
    line = refused(corpus, trained, number_of_epochs=3, initial_lr=0.5)
    assert line == (
        f"epoch 3, step {step}: the loss is not finite; the checkpoints in "
        f"{trained}/save are from before: go on from them with a lower "
        "--initial_lr"
    )
    assert checkpoints(trained) == before
    assert content(trained / "model") == model
    train(corpus, trained, number_of_epochs=3, initial_lr=0.001)


def test_no_checkpoint_after_a_loss_that_is_not_finite(
    trained, corpus, diverging
):
    """It is read before, though nothing waits for it else."""
    before = checkpoints(trained)
    # Left out of the gradient, so that no weight shows it.
    diverging("compute_objectives", 1, lambda brain, loss: loss + torch.inf)
    line = refused(
        corpus,
        trained,
        options=["--ckpt_interval_steps=1"],
        number_of_epochs=3,
    )
    assert line.startswith("epoch 3, step 1: the loss is not finite; ")
    assert checkpoints(trained) == before


def test_mixed_precision_may_be_the_cause(corpus, tmp_path, diverging):
    diverging("compute_objectives", 3, lambda brain, loss: loss * float("nan"))
    line = refused(corpus, tmp_path, options=["--precision=bf16"])
    assert line.startswith("epoch 2, step 1: the loss is not finite; ")
    assert line.endswith("with a lower --initial_lr or --precision=fp32")


def test_parts_of_a_global_batch(corpus, tmp_path, diverging):
    """Steps are those of the optimizer."""
    diverging("compute_objectives", 5, lambda brain, loss: loss * float("nan"))
    line = refused(corpus, tmp_path, batch_size=2, global_batch_size=6)
    assert line == (
        "epoch 1, step 2: the loss is not finite; there is no checkpoint from "
        "before: start again with a lower --initial_lr"
    )


def test_steps_that_are_skipped(corpus, tmp_path, diverging):
    """As SpeechBrain's options have it, the weights stay as they were."""
    diverging("compute_objectives", 2, lambda brain, loss: loss * float("nan"))
    train(
        corpus,
        tmp_path,
        options=["--skip_nonfinite_grads", "--nonfinite_patience=1"],
    )
    assert losses(tmp_path).keys() == {"1", "2"}


def test_too_many_steps_are_skipped(corpus, tmp_path, diverging):
    diverging("compute_objectives", 2, lambda brain, loss: loss * float("nan"))
    line = refused(
        corpus,
        tmp_path,
        options=["--skip_nonfinite_grads", "--nonfinite_patience=0"],
    )
    assert line.startswith("epoch 1, step 2: the loss is not finite; ")


def test_all_skipped_steps_count(corpus, tmp_path, diverging):
    for step in (1, 2):
        diverging(
            "compute_objectives", step, lambda brain, loss: loss * float("nan")
        )
    line = refused(
        corpus,
        tmp_path,
        options=["--skip_nonfinite_grads", "--nonfinite_patience=1"],
    )
    assert line.startswith("epoch 1, step 2: the loss is not finite; ")


@pytest.mark.parametrize("interval", [0, 1])
@pytest.mark.parametrize("steps", [1, 2])
def test_weights_that_are_not_finite(
    steps, interval, trained, corpus, diverging
):
    """From a step whose loss was finite still; no checkpoint holds them."""
    before = checkpoints(trained)
    diverging("optimizers_step", steps, bad_weight)
    line = refused(
        corpus,
        trained,
        options=[f"--ckpt_interval_steps={interval}"],
        number_of_epochs=3,
    )
    if (steps, interval) == (1, 0):
        assert line.startswith("epoch 3, step 2: the loss is not finite; ")
    else:
        key = f"epoch 3, step {steps}: embedding_model: "
        assert re.match(f"{key}.*weight is not finite; ", line)
    for checkpoint in set(checkpoints(trained)) - set(before):
        weights = torch.load(checkpoint / "embedding_model.ckpt")
        assert all(weight.isfinite().all() for weight in weights.values())


def test_finite_weights_whose_embeddings_are_not(trained, corpus, diverging):
    diverging(
        "optimizers_step",
        2,
        functools.partial(bad_weight, value=torch.finfo().max),
    )
    line = refused(corpus, trained, number_of_epochs=3)
    assert line.startswith("epoch 3, step 2: what the network gives is not fi")
    assert len(checkpoints(trained)) == 2


@pytest.mark.parametrize("epoch", [0, 1])
def test_embeddings_of_some_files_that_are_not_finite(
    epoch, corpus, tmp_path, monkeypatch
):
    """What is read of a file is finite, so that none is blamed."""
    forward, calls = ReDimNet2.forward, 0

    def spoil(network, *arguments):
        nonlocal calls
        embeddings = forward(network, *arguments)
        calls += not network.training
        if not network.training and calls > epoch:
            embeddings[0] = torch.nan
        return embeddings

    monkeypatch.setattr(ReDimNet2, "forward", spoil)
    line = refused(corpus, tmp_path / "output")
    assert line.startswith(f"epoch {epoch}, step ")
    assert "what the network gives is not finite; there is no check" in line


def test_pretraining_that_diverged(trained, corpus, tmp_path):
    for path in (trained / "model").glob("embedding_model.*"):
        path.unlink()
    weights = torch.load(checkpoints(trained)[-1] / "embedding_model.ckpt")
    next(iter(weights.values())).fill_(float("nan"))
    torch.save(weights, trained / "model" / "embedding_model.ckpt")
    pretrained = str(trained / "model")
    line = refused(corpus, tmp_path / "new", pretrained_folder=pretrained)
    assert line.startswith(f"{pretrained}: not all of its weights are finite")


def test_one_speaker_only(corpus, tmp_path):
    shutil.copytree(corpus, tmp_path / "one")
    one = tmp_path / "one"
    for speaker in SPEAKERS[1:]:
        shutil.rmtree(one / "wav" / speaker)
    line = refused(
        one,
        tmp_path / "output",
        validation_folder=str(corpus),
        validation_trials=str(corpus / "veri_validation.txt"),
        global_batch_size=2,
    )
    assert re.match(".*train.csv: anna is the only speaker that is left", line)
    assert "data_folder" in line
