"""Checkpoints survive a kill while they are written."""

import functools
import os
import subprocess
import sys

import torch

from redimnet2_lobes.data.crops import RandomCrop
from redimnet2_lobes.models.front_end import LogMel
from redimnet2_lobes.models.redimnet2 import ReDimNet2
from redimnet2_lobes.training.batches import EpochProgress
from redimnet2_lobes.training.checkpointer import (
    CompleteCheckpointer,
    training_settings,
)
from redimnet2_lobes.training.losses import SphereFace2
from redimnet2_lobes.training.schedules import MarginSchedule

KILLED_WHILE_SAVING = """
import os, signal, sys, torch
from redimnet2_lobes.training.checkpointer import CompleteCheckpointer

def kill(obj, path):
    path.write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)

first, second = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
checkpointer = CompleteCheckpointer(sys.argv[1])
checkpointer.add_recoverable("first", first)
checkpointer.add_recoverable("second", second)
checkpointer.save_checkpoint({"epoch": 1})
checkpointer.add_recoverable("second", second, custom_save_hook=kill)
checkpointer.save_checkpoint({"epoch": 2})
"""


def test_killed_while_saving(tmp_path):
    process = subprocess.run(
        [sys.executable, "-c", KILLED_WHILE_SAVING, tmp_path],
        capture_output=True,
    )
    assert process.returncode == -9
    layers = {"first": torch.nn.Linear(2, 2), "second": torch.nn.Linear(2, 2)}
    checkpointer = CompleteCheckpointer(tmp_path, layers)
    found = checkpointer.recover_if_possible()
    assert found.meta["epoch"] == 1
    # The next checkpoint takes the place of the broken one.
    checkpointer.save_checkpoint({"epoch": 2})
    assert checkpointer.recover_if_possible().meta["epoch"] == 2
    assert len(checkpointer.list_checkpoints()) == 2
    assert not (tmp_path / ".partial").exists()


def test_best_and_last_are_kept(tmp_path):
    layer = torch.nn.Linear(2, 2)
    checkpointer = CompleteCheckpointer(tmp_path, {"layer": layer})
    for epoch, eer in enumerate((5.0, 2.0, 3.0, 4.0), start=1):
        with torch.no_grad():
            layer.bias.fill_(epoch)
        checkpointer.save_and_keep_only(
            meta={"EER": eer, "epoch": epoch}, min_keys=["EER"]
        )
    kept = sorted(c.meta["epoch"] for c in checkpointer.list_checkpoints())
    assert kept == [2, 4]
    checkpointer.recover_if_possible()
    assert layer.bias[0].item() == 4
    checkpointer.recover_if_possible(min_key="EER")
    assert layer.bias[0].item() == 2


def test_where_a_checkpoint_was_written(tmp_path):
    """At the end of an epoch unless it is said otherwise."""
    progress = EpochProgress()
    layer = torch.nn.Linear(2, 2)
    recoverables = {"progress": progress, "layer": layer}
    checkpointer = CompleteCheckpointer(tmp_path, recoverables)
    for kept, options in ((0, {}), (7, {"end_of_epoch": False})):
        progress.utterances = 7
        saved = checkpointer.save_checkpoint({"epoch": 3}, **options)
        assert saved.meta["epoch"] == 3
        assert saved.meta["end-of-epoch"] == (kept == 0)
        assert set(saved.paramfiles) == {"progress", "layer"}
        for path in saved.paramfiles.values():
            assert path.parent == saved.path and path.exists()
        progress.utterances = 1
        checkpointer.recover_if_possible()
        assert progress.utterances == kept
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {
        checkpoint.path.name for checkpoint in checkpointer.list_checkpoints()
    }


def test_what_an_earlier_kill_has_left_is_no_hindrance(tmp_path):
    checkpointer = CompleteCheckpointer(
        tmp_path, {"layer": torch.nn.Linear(2, 2)}
    )
    (tmp_path / ".partial").mkdir()
    (tmp_path / ".partial" / "half").write_text("half")
    saved = checkpointer.save_checkpoint()
    assert not (saved.path / "half").exists()
    assert [path.name for path in tmp_path.iterdir()] == [saved.path.name]


STAGE = {"frequency_stride": 2, "time_stride": 2, "blocks": 1, "expansion": 1}
STAGES = [{**STAGE, "reduction": 18}]


def test_settings_that_must_stay(tmp_path, monkeypatch):
    """By name, with the network's own; the learning rate may change."""
    monkeypatch.chdir(tmp_path)
    hparams = {
        "variant": "b0",
        "embedding_model": ReDimNet2(LogMel(), 4, STAGES),
        "crop": RandomCrop(100, [1.0, 0.9]),
        "compute_cost": torch.nn.Sequential(SphereFace2()),
        "opt_class": functools.partial(
            torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=2e-5
        ),
        "loss_weight_decay": 1e-4,
        "lr_schedule": MarginSchedule,
        "margin_schedule": [],
        "seed": 3,
        "teacher_embeddings": ["teacher.npz", "slower.npz"],
        "label_weight": 0.0,
        "pretrained_folder": "before",
    }
    expected = {
        "variant": "b0",
        "embedding_model": "ReDimNet2",
        **hparams["embedding_model"].arguments(),
        "speeds": [1.0, 0.9],
        "compute_cost": ["Sequential", "SphereFace2"],
        "opt_class": "SGD",
        "momentum": 0.9,
        "weight_decay": 2e-5,
        "loss_weight_decay": 1e-4,
        "lr_schedule": "type",
        "margin_schedule": "list",
        "seed": 3,
        "teacher_embeddings": ["teacher.npz", "slower.npz"],
        "unlabelled": True,
        "pretrained_folder": os.path.join(os.getcwd(), "before"),
    }
    assert training_settings(hparams) == expected
    # Other networks, optimizers without options, no pretraining.
    others = {
        "embedding_model": torch.nn.Linear(2, 2),
        "opt_class": torch.optim.Adam,
        "pretrained_folder": None,
    }
    found = training_settings({**hparams, **others})
    assert found["embedding_model"] == "Linear"
    assert found["opt_class"] == "Adam"
    assert found["pretrained_folder"] is None
    assert "base_channels" not in found
    assert "momentum" not in found
