"""Feeds all readers: python -m fuzz MINUTES SEED [TARGET...]

Each target has a process of its own and an equal share of the time. The same
seed gives the same inputs, as far as the time goes. Where an input shows a
fault, hypothesis looks for the smallest that does, and it goes into the corpus,
which `make test` reads again.
"""

import faulthandler
import hashlib
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
import traceback
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings
from tqdm import tqdm

from fuzz.oracle import SECONDS, Hang
from fuzz.targets import CORPUS, TARGETS

INPUTS_PER_TURN = 100


def fuzz(
    name: str, seconds: float, number: int, folder: str
) -> tuple[int, int, bytes | None]:
    """Inputs tried and accepted, and one that shows a fault, if any does."""
    # Libraries in C print what they make of a damaged file.
    report = os.fdopen(os.dup(2), "w")
    for descriptor in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
    # A reader that hangs outside Python does not hear of an alarm.
    faulthandler.enable(report)
    tempfile.tempdir = folder
    target = TARGETS[name]
    tried = accepted = 0
    failed = None

    @given(target.inputs())
    @settings(
        max_examples=INPUTS_PER_TURN,
        database=None,
        deadline=None,
        report_multiple_bugs=False,
        print_blob=False,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    def turn(data):
        nonlocal tried, accepted, failed
        tried += 1
        faulthandler.dump_traceback_later(2 * SECONDS, exit=True, file=report)
        try:
            accepted += target.check(data)
        except BaseException:
            failed = data
            raise

    end = time.monotonic() + seconds
    try:
        while time.monotonic() < end:
            seed(number)(turn)()
            number += 1
    except (Exception, Hang):
        traceback.print_exc(limit=-6, file=report)
    finally:
        faulthandler.cancel_dump_traceback_later()
        report.close()
    return tried, accepted, failed


def main(minutes: str, number: str, *names: str) -> None:
    """Fuzzes, prints a table, and ends with 1 if there was a fault."""
    names = names or tuple(TARGETS)
    seconds = 60 * float(minutes) / len(names)
    print(f"{'target':24}{'tried':>9}{'accepted':>10}{'refused':>9}  fault")
    faults = 0
    for name in tqdm(names, unit="target", disable=None):
        row, data = run(name, seconds, int(number))
        faults += data is not None
        if data is not None:
            path = CORPUS / name / hashlib.sha256(data).hexdigest()[:8]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            row += f"  {path}"
        tqdm.write(row)
    sys.exit(bool(faults))


def run(name: str, seconds: float, number: int) -> tuple[str, bytes | None]:
    """The row of a target in the table, and an input that shows a fault."""
    memory = "/dev/shm"
    folder = tempfile.mkdtemp(
        prefix="fuzz-", dir=memory if os.path.isdir(memory) else None
    )
    context = multiprocessing.get_context("fork")
    try:
        with ProcessPoolExecutor(1, context) as pool:
            tried, accepted, data = pool.submit(
                fuzz, name, seconds, number, folder
            ).result()
        refused = tried - accepted - (data is not None)
        return f"{name:24}{tried:9,}{accepted:10,}{refused:9,}", data
    except BrokenProcessPool:
        # It was killed while it read what lies there.
        (path,) = Path(folder).glob(f"*/{TARGETS[name].file}")
        return f"{name:24} the process was killed by", path.read_bytes()
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
