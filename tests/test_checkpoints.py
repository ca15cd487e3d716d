"""Checkpoints survive a kill while they are written."""

import subprocess
import sys

import torch

from redimnet2_lobes.checkpoints import CompleteCheckpointer

KILLED_WHILE_SAVING = """
import os, signal, sys, torch
from redimnet2_lobes.checkpoints import CompleteCheckpointer

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
