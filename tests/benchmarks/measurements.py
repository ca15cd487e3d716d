"""What a child process measures: times, memory, or the machine's peak rate.

Each function takes a job, a dictionary that the parent process wrote, and
returns a dictionary that it reads.
"""

import contextlib
import ctypes
import gc
import math
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from implementations import (
    IMPLEMENTATIONS,
    OURS,
    OURS_BFLOAT16,
    PUBLISHED,
    build,
    multiply_accumulates,
    waveforms,
)

from redimnet2_lobes.models.front_end import SAMPLE_RATE

MEBIBYTE = 2**20
# Seconds of a turn. Short calls are repeated, so that most of them find the
# caches and the free memory as they leave them themselves.
TURN = 0.5
# Calls in each process of the case `busy`.
CALLS_BESIDE = 9


def measure(job):
    """Does what the job names."""
    # Only here: tests/conftest.py sets a number of threads when imported.
    torch.set_num_threads(job["threads"])
    # Float32 shall mean float32 on accelerators too.
    torch.backends.cudnn.allow_tf32 = False
    tasks = {
        "time": measure_times,
        "memory": measure_memory,
        "beside": measure_beside,
        "peak": peak,
    }
    return tasks[job["task"]](job)


class Inference:
    """Computes the embeddings of a batch."""

    def __init__(self, network, batch, implementation):
        self.network = network
        self.batch = batch
        self.bfloat16 = implementation.bfloat16
        self.lengths = None
        if implementation.lengths:
            self.lengths = torch.ones(len(batch))

    def __call__(self):
        precision = contextlib.nullcontext()
        if self.bfloat16:
            precision = torch.autocast(self.batch.device.type, torch.bfloat16)
        with torch.no_grad(), precision:
            if self.lengths is None:
                return self.network(self.batch).flatten(1)
            return self.network(self.batch, self.lengths).flatten(1)


class TrainingStep:
    """Forward, backward and an SGD step on a batch."""

    def __init__(self, network, batch):
        self.network = network
        self.batch = batch
        self.optimizer = torch.optim.SGD(network.parameters(), lr=1e-6)
        generator = torch.Generator().manual_seed(0)
        target = torch.randn(len(batch), 192, generator=generator)
        self.target = target.to(batch.device)

    def __call__(self):
        self.optimizer.zero_grad()
        embeddings = self.network(self.batch).flatten(1)
        (embeddings - self.target).square().mean().backward()
        self.optimizer.step()


def prepare(job, name):
    """Builds an implementation and its input, as a call without arguments."""
    implementation = IMPLEMENTATIONS[name]
    network = build(implementation, job["variant"], job["training"])
    network.to(job["device"])
    samples = round(job["seconds"] * SAMPLE_RATE)
    batch = waveforms(job["variant"], job["batch"], samples).to(job["device"])
    if job["training"]:
        return TrainingStep(network, batch)
    return Inference(network, batch, implementation)


def measure_times(job):
    """Times all implementations in turn, round by round."""
    runs = {name: prepare(job, name) for name in job["implementations"]}
    result = {
        "multiply_accumulates": job["batch"]
        * multiply_accumulates(job["variant"], job["seconds"]),
        **compare_embeddings(runs),
    }
    calls = {}
    for name, run in runs.items():
        run()  # the first call takes longer
        calls[name] = math.ceil(
            TURN / max(timed(run, job["device"]), TURN / 20)
        )
    samples = {name: [] for name in runs}
    for _ in range(job["repeats"]):
        for name, run in runs.items():
            turn = [timed(run, job["device"]) for _ in range(calls[name])]
            samples[name].append(statistics.median(turn))
    return {**result, "samples": samples}


def measure_beside(job):
    """Median time of a call beside processes that never rest."""
    (name,) = job["implementations"]
    run = prepare(job, name)
    with contextlib.ExitStack() as stack:
        for _ in range(job["competitors"]):
            endless = [sys.executable, "-c", "while True: pass"]
            process = stack.enter_context(subprocess.Popen(endless))
            stack.callback(process.kill)
        run()  # the first call takes longer
        times = [timed(run, job["device"]) for _ in range(CALLS_BESIDE)]
    return {"median_s": statistics.median(times)}


def compare_embeddings(runs):
    """How far apart the embeddings are, in evaluation mode."""
    embeddings = {}
    for name in (PUBLISHED.name, OURS.name, OURS_BFLOAT16.name):
        if name in runs:
            run = runs[name]
            mode = run.network.training
            run.network.eval()
            embeddings[name] = Inference(
                run.network, run.batch, IMPLEMENTATIONS[name]
            )()
            run.network.train(mode)
    ours = embeddings[OURS.name].double()
    comparison = {}
    if PUBLISHED.name in embeddings:
        theirs = embeddings[PUBLISHED.name].double()
        difference = (ours - theirs).abs().max() / theirs.abs().max()
        comparison["difference"] = difference.item()
    if OURS_BFLOAT16.name in embeddings:
        coarse = embeddings[OURS_BFLOAT16.name].double()
        cosines = torch.nn.functional.cosine_similarity(ours, coarse)
        comparison["smallest_cosine"] = cosines.min().item()
    return comparison


def timed(run, device):
    """Seconds that a call takes."""
    synchronize(device)
    start = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device):
    if device == "cuda":
        torch.cuda.synchronize()


def measure_memory(job):
    """Growth of the peak memory by two calls, in MiB."""
    (name,) = job["implementations"]
    run = prepare(job, name)
    if not job["training"]:
        # What a first call loads or builds is no memory of a call. This one
        # is small, for ONNX Runtime keeps what a call has needed.
        with torch.no_grad():
            run.network(run.batch[:1, : SAMPLE_RATE // 2])
    gc.collect()
    if job["device"] == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        run()
        return {"mebibytes": grown(torch.cuda.max_memory_allocated(), before)}
    forget_peak_memory()
    before = process_memory("VmRSS")
    run()
    run()
    return {"mebibytes": grown(process_memory("VmHWM"), before)}


def grown(peak, before):
    return (peak - before) / MEBIBYTE


def forget_peak_memory():
    """Building the network shall count neither as peak nor as spare memory."""
    ctypes.CDLL(None).malloc_trim(0)
    # Linux: 5 sets the peak back to what is resident now.
    Path("/proc/self/clear_refs").write_text("5")


def process_memory(key):
    """A figure of /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


def peak(job):
    """Best rate of square matrix products, in operations per second.

    A multiply-accumulate counts as two operations.
    """
    sizes = [1024, 2048]
    if job["device"] == "cuda":
        sizes += [4096, 8192]
    types = ["float32"] + ["bfloat16"] * has_bfloat16(job["device"])
    return {
        name: max(
            product_rate(size, getattr(torch, name), job["device"])
            for size in sizes
        )
        for name in types
    }


def product_rate(size, dtype, device):
    a, b = torch.randn(2, size, size, device=device).to(dtype)
    output = torch.empty_like(a)

    def product():
        torch.mm(a, b, out=output)

    product()
    seconds = statistics.median(timed(product, device) for _ in range(5))
    return 2 * size**3 / seconds


def has_bfloat16(device):
    """Whether the device computes in bfloat16, not only stores it."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported()
    return (
        torch.cpu._is_avx512_bf16_supported()
        or torch.cpu._is_amx_tile_supported()
    )
