"""Speed and memory beside the published code and ECAPA-TDNN.

README.md beside this file says how to run it and what it reports. Whatever is
measured runs in a child process of its own: this script with ``--child``.
"""

import argparse
import contextlib
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from implementations import (
    ECAPA,
    OURS,
    OURS_BFLOAT16,
    OURS_COMPILED,
    OURS_TORCH,
    OURS_WITH_LENGTHS,
    PUBLISHED,
    PUBLISHED_COMPILED,
    PUBLISHED_VARIABLE,
    published_checkout,
)
from measurements import has_bfloat16, measure
from report import agrees, write_report
from tqdm import tqdm

from redimnet2_lobes.models import variants

ROOT = Path(__file__).resolve().parents[2]
VARIANTS = tuple(variants.VARIANTS)


@dataclass(frozen=True)
class Case:
    """One kind of work. On an accelerator the batch may be another."""

    name: str
    what: str
    batch: int
    seconds: float
    variants: tuple = VARIANTS
    training: bool = False
    bfloat16: bool = False
    lengths: bool = False
    busy: bool = False
    batch_on_cuda: int | None = None

    def batch_on(self, device):
        if device == "cuda" and self.batch_on_cuda:
            return self.batch_on_cuda
        return self.batch

    def title(self, device):
        return (
            f"{self.name}: {self.what}, {self.batch_on(device)} x "
            f"{self.seconds:g} s"
        )


CASES = (
    Case("batch", "inference on a batch of files", 8, 3),
    Case("file", "inference on one file", 1, 3),
    Case("long", "inference on one long file", 1, 20),
    Case(
        "training",
        "forward, backward and SGD step",
        8,
        2,
        variants=("b0", "b3", "b6"),
        training=True,
        batch_on_cuda=64,
    ),
    Case(
        "bfloat16",
        "inference in bfloat16 on a batch of files",
        8,
        3,
        bfloat16=True,
    ),
    Case(
        "lengths",
        "inference with and without equal lengths",
        8,
        3,
        lengths=True,
    ),
    Case(
        "busy",
        "inference on one file, in fresh processes, beside as many busy ones "
        "as cores",
        1,
        3,
        variants=("b0", "b3"),
        busy=True,
    ),
)
# Fresh processes of the case `busy`.
PROCESSES_ALONE = 3
PROCESSES_BESIDE = 10


class ChildFailed(Exception):
    """A child process ended without a result."""


def main(arguments=None):
    options = parse_arguments(arguments)
    if options.child:
        print(json.dumps(measure(json.loads(options.child))))
        return 0
    problem = check(options)
    if problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    cases = chosen_cases(options)
    measured = [
        case
        for case in cases
        if not case.bfloat16 or has_bfloat16(options.device)
    ]
    results, failed = run_jobs(list_jobs(measured, options))
    peak = results.get(("peak", None, None), {})
    report = {
        "machine": describe_machine(options),
        "peak_operations_per_second": peak,
        "cases": [
            {
                "name": case.name,
                "title": case.title(options.device),
                "training": case.training,
                "reference": reference(case).name,
                "measured": case in measured,
                "rows": rows(case, results, options),
            }
            for case in cases
        ],
    }
    write_report(report, options.output)
    different = any(
        row["difference"] is not None and not agrees(row["difference"])
        for case in report["cases"]
        for row in case["rows"]
    )
    return 1 if failed or different else 0


def parse_arguments(arguments):
    parser = argparse.ArgumentParser(
        description="Measures speed and memory beside the published code, "
        f"where {PUBLISHED_VARIABLE} names its checkout, and ECAPA-TDNN."
    )
    names = [case.name for case in CASES]
    parser.add_argument("--cases", nargs="+", choices=names, default=names)
    parser.add_argument(
        "--variants", nargs="+", choices=VARIANTS, default=VARIANTS
    )
    parser.add_argument("--repeats", type=positive, default=5, help="rounds")
    parser.add_argument("--threads", type=positive, default=2)
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("results/benchmark"),
        help="folder for tables, figures and picture",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--compiled",
        action="store_true",
        help="also measure what torch.compile makes of the networks",
    )
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def positive(text):
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return value


def check(options):
    """What keeps these options from being run, or None."""
    checkout = published_checkout()
    if checkout and not (checkout / "redimnet2" / "redimnet2.py").is_file():
        return (
            f"{PUBLISHED_VARIABLE} names no checkout of the published code "
            "(no redimnet2/redimnet2.py there)"
        )
    if options.device == "cuda" and not torch.cuda.is_available():
        return "--device cuda: none on this machine"
    if not chosen_cases(options):
        return "none of these cases has one of these variants"
    return None


def chosen_cases(options):
    return [
        case
        for case in CASES
        if case.name in options.cases and variants_of(case, options)
    ]


def variants_of(case, options):
    return [name for name in case.variants if name in options.variants]


def implementations_of(case, options):
    """What is measured side by side."""
    if case.bfloat16:
        return [OURS, OURS_BFLOAT16]
    if case.lengths:
        return [OURS, OURS_WITH_LENGTHS]
    has_published = published_checkout() is not None
    chosen = [PUBLISHED] * has_published + [OURS]
    if options.compiled:
        chosen += [PUBLISHED_COMPILED] * has_published + [OURS_COMPILED]
    if not (case.training or options.device == "cuda"):
        chosen.append(OURS_TORCH)
    return [*chosen, *[ECAPA] * (not case.busy)]


def reference(case):
    """What the others are compared with."""
    return OURS if case.bfloat16 or case.lengths else PUBLISHED


def list_jobs(cases, options):
    """For each child process a key and the job that it gets.

    The key is what is measured, of which case and variant; memory is measured
    in a process for each implementation.
    """
    common = {
        "device": options.device,
        "threads": options.threads,
        "repeats": options.repeats,
    }
    jobs = {("peak", None, None): {"task": "peak", **common}}
    for case in cases:
        implementations = implementations_of(case, options)
        for variant in variants_of(case, options):
            job = {
                **common,
                "variant": variant,
                "batch": case.batch_on(options.device),
                "seconds": case.seconds,
                "training": case.training,
            }
            if case.busy:
                for each in implementations:
                    jobs |= busy_jobs(case, variant, each, job)
                continue
            jobs["time", case.name, variant] = {
                **job,
                "task": "time",
                "implementations": [each.name for each in implementations],
            }
            if reference(case) is OURS:
                continue
            for each in implementations:
                # ECAPA-TDNN is the same beside every variant, and what
                # compiling takes would hide what a compiled network takes.
                where = case.name, None if each is ECAPA else variant
                if not each.compiled:
                    jobs.setdefault(
                        (memory_of(each), *where),
                        {
                            **job,
                            "task": "memory",
                            "implementations": [each.name],
                        },
                    )
    return jobs


def busy_jobs(case, variant, implementation, job):
    """One for each fresh process, by key."""
    job = {**job, "task": "beside", "implementations": [implementation.name]}
    cores = len(os.sched_getaffinity(0))
    counts = {0: PROCESSES_ALONE, cores: PROCESSES_BESIDE}
    return {
        (
            f"{implementation.name} beside {competitors}, {process + 1}",
            case.name,
            variant,
        ): {**job, "competitors": competitors}
        for competitors, count in counts.items()
        for process in range(count)
    }


def busy_rows(case, results, options):
    """The figures of the case `busy`, medians of each process's calls."""
    found = []
    for variant in variants_of(case, options):
        base = None
        for each in implementations_of(case, options):
            jobs = busy_jobs(case, variant, each, {})
            times = {0: [], 1: []}
            for key, job in jobs.items():
                if key in results:
                    beside = bool(job["competitors"])
                    times[beside].append(results[key]["median_s"])
            if not (times[0] and times[1]):
                continue
            entry = row(case, variant, each, times[0], options)
            entry["busy_samples_s"] = times[1]
            entry["busy_s"] = statistics.median(times[1])
            entry["worst_s"] = max(times[1])
            entry["worst_ratio"] = max(times[1]) / entry["median_s"]
            if each is PUBLISHED:
                base = entry
            elif base is not None:
                entry["speed_ratio"] = base["median_s"] / entry["median_s"]
            found.append(entry)
    return found


def memory_of(implementation):
    return f"memory of {implementation.name}"


def run_jobs(jobs):
    """Runs all child processes; returns their results and how many failed."""
    results = {}
    with tqdm(total=len(jobs), unit="process", dynamic_ncols=True) as progress:
        for key, job in jobs.items():
            name = " ".join(part for part in (*key[1:], key[0]) if part)
            progress.set_description(name)
            try:
                results[key] = run_child(job)
            except ChildFailed as problem:
                progress.write(f"failed: {name}: {problem}", file=sys.stderr)
            progress.update()
    return results, len(jobs) - len(results)


def run_child(job):
    process = subprocess.run(
        [sys.executable, __file__, "--child", json.dumps(job)],
        capture_output=True,
        text=True,
    )
    if process.returncode:
        lines = process.stderr.strip().splitlines()
        message = lines[-1] if lines else f"status {process.returncode}"
        raise ChildFailed(without_paths(message))
    return json.loads(process.stdout.splitlines()[-1])


def without_paths(text):
    """Keeps this machine's folders out of what is reported."""
    for folder in (published_checkout(), ROOT, Path.home()):
        if folder:
            text = text.replace(str(folder), "...")
    return text


def rows(case, results, options):
    """The figures of a case, a row for each variant and implementation."""
    if case.busy:
        return busy_rows(case, results, options)
    found = []
    ecapa_samples = []
    for variant in variants_of(case, options):
        times = results.get(("time", case.name, variant))
        if times is None:
            continue
        ecapa_samples += times["samples"].pop(ECAPA.name, [])
        found += variant_rows(case, variant, times, results, options)
    if ecapa_samples:
        memory = results.get((memory_of(ECAPA), case.name, None), {})
        found.append(
            row(case, None, ECAPA, ecapa_samples, options)
            | {"peak_memory_mib": memory.get("mebibytes")}
        )
    return found


def variant_rows(case, variant, times, results, options):
    peak = results.get(("peak", None, None), {})
    passes = 3 if case.training else 1  # backward computes twice as much
    operations = 2 * passes * times["multiply_accumulates"]
    found = {}
    for each in implementations_of(case, options):
        if each is ECAPA:
            continue
        samples = times["samples"][each.name]
        entry = row(case, variant, each, samples, options)
        memory = results.get((memory_of(each), case.name, variant), {})
        entry["peak_memory_mib"] = memory.get("mebibytes")
        rate = peak.get("bfloat16" if each.bfloat16 else "float32")
        if each.family == "ours" and rate:
            entry["share_of_peak"] = operations / entry["median_s"] / rate
        if each is OURS:
            entry["difference"] = times.get("difference")
        if each is OURS_BFLOAT16:
            entry["smallest_cosine"] = times["smallest_cosine"]
        found[each] = entry
    base = found.get(reference(case))
    for entry in found.values():
        if base is not None and entry is not base:
            entry["speed_ratio"] = base["median_s"] / entry["median_s"]
            if base["peak_memory_mib"] and entry["peak_memory_mib"]:
                entry["memory_ratio"] = (
                    entry["peak_memory_mib"] / base["peak_memory_mib"]
                )
    return list(found.values())


def row(case, variant, implementation, samples, options):
    batch = case.batch_on(options.device)
    median = statistics.median(samples)
    return {
        "case": case.name,
        "variant": variant,
        "implementation": implementation.name,
        "batch": batch,
        "seconds": case.seconds,
        "median_s": median,
        "samples_s": samples,
        "real_time_factor": median / (batch * case.seconds),
        "speed_ratio": None,
        "busy_s": None,
        "worst_s": None,
        "worst_ratio": None,
        "peak_memory_mib": None,
        "memory_ratio": None,
        "share_of_peak": None,
        "difference": None,
        "smallest_cosine": None,
    }


def describe_machine(options):
    checkout = published_checkout()
    accelerator = None
    if torch.cuda.is_available():
        accelerator = torch.cuda.get_device_name()
    return {
        "processor": processor_name(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": options.threads,
        "accelerator": accelerator,
        "device": options.device,
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
        "repeats": options.repeats,
        "commit": commit(ROOT),
        "published_commit": commit(checkout) if checkout else None,
    }


def processor_name():
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.machine()


def commit(folder):
    """Short hash of a checkout's commit, marked if files differ from it."""
    if not (folder / ".git").exists():
        return None
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        return subprocess.run(
            ["git", "describe", "--always", "--dirty", "--exclude=*"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    return None


if __name__ == "__main__":
    sys.exit(main())
