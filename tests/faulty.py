"""Runs a script with a fault at a given moment.

python faulty.py {step,nan,save,disk} NUMBER SCRIPT ARGUMENTS...

- step: killed (SIGKILL) after the NUMBERth step of the optimizer
- nan: the last of all processes has NaN for weights after that step
- save: killed in the middle of the NUMBERth file of a checkpoint
- disk: from the NUMBERth file of a checkpoint on, no file can grow beyond 1 kB
"""

import os
import resource
import runpy
import signal
import sys

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook


class Fault:
    """Counts down to its moment."""

    def __init__(self, kind, number):
        self.kind = kind
        self.remaining = int(number)
        if kind in ("step", "nan"):
            register_optimizer_step_post_hook(self.step)
        else:
            self.whole_save, torch.save = torch.save, self.save

    def is_now(self):
        self.remaining -= 1
        return self.remaining == 0

    def step(self, optimizer, *_):
        if self.is_now():
            if self.kind == "step":
                os.kill(os.getpid(), signal.SIGKILL)
            if os.environ["RANK"] != "0":
                for weight in optimizer.param_groups[0]["params"]:
                    weight.data.fill_(float("nan"))

    def save(self, value, path):
        if self.is_now():
            if self.kind == "save":
                with open(path, "wb") as file:
                    file.write(b"half a file")
                os.kill(os.getpid(), signal.SIGKILL)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        self.whole_save(value, path)


if __name__ == "__main__":
    Fault(*sys.argv[1:3])
    sys.argv = sys.argv[3:]
    sys.path.insert(0, os.path.dirname(sys.argv[0]))
    runpy.run_path(sys.argv[0], run_name="__main__")
