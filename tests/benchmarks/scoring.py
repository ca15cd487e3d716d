"""Error rates and score normalization: time and memory beside other ways.

    python scoring.py [--trials 37611 579818] [--limit 600]
        [--threads 1] [--output results/scoring]

Generated scores and embeddings in the sizes of VoxCeleb1-O and -E. ``EER`` and
``minDCF`` stand beside SpeechBrain's of the same names, on the same scores. The
adaptive s-norm (cohort of 5,994 speakers, its top 300) stands beside a direct
computation for each trial: cosines of both embeddings with the whole cohort,
their top, its mean and deviation. That gets the first 37,611 trials at most; of
longer lists, the table says for how many trials its time stands, and the ratio
is that of times per trial.

Each measurement has a process of its own, which warms up on a few trials. The
memory is how far its peak rose above what was resident before the call (Linux).
What ours is compared with is stopped after ``--limit`` seconds, and ends when
it asks for more memory than is available; the table says so. The exit status is
1 if results differ or one of our own measurements failed.
"""

import argparse
import datetime
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
from benchmark import ROOT, commit, positive, processor_name
from measurements import forget_peak_memory, grown, process_memory
from speechbrain.utils import metric_stats
from torch.nn.functional import cosine_similarity
from tqdm import tqdm

from redimnet2_lobes.files.atomic import write_text
from redimnet2_lobes.scoring import metrics
from redimnet2_lobes.scoring.evaluate import adaptive_s_norm
from redimnet2_lobes.scoring.tables import markdown_table

O_TRIALS, E_TRIALS = 37_611, 579_818
UTTERANCES = {O_TRIALS: 4_708, E_TRIALS: 145_160}
EMBEDDING, COHORT, TOP = 192, 5_994, 300
WARM_UP = 10  # trials
COMPARED = 1000  # of the normalized scores
LARGEST_DIFFERENCE = 1e-5  # of normalized scores, float32 on both sides

OURS, SPEECHBRAIN, DIRECT = "ours", "SpeechBrain", "direct, for each trial"
# Case: what ours is compared with.
CASES = {"EER": SPEECHBRAIN, "minDCF": SPEECHBRAIN, "adaptive s-norm": DIRECT}
STOPPED = "stopped after {:g} s"
OUT_OF_MEMORY = "needs more than the available memory"


def main(arguments=None):
    options = parse_arguments(arguments)
    if options.child:
        print(json.dumps(measure(json.loads(options.child))))
        return 0
    jobs = [
        {
            "case": case,
            "implementation": implementation,
            "trials": trials,
            "trials_measured": measured_trials(implementation, trials),
            "limit": None if implementation == OURS else options.limit,
            "threads": options.threads,
        }
        for trials in options.trials
        for case in options.cases
        for implementation in (CASES[case], OURS)
    ]
    results = []
    for job in tqdm(jobs, unit="process", dynamic_ncols=True):
        results.append(job | run_child(job))
    rows = compare(results)
    write_report(rows, options.output)
    wrong = any(row["agrees"] is False for row in rows)
    failed = any(
        row["implementation"] == OURS and row["problem"] for row in rows
    )
    return 1 if wrong or failed else 0


def measured_trials(implementation, trials):
    return min(trials, O_TRIALS) if implementation == DIRECT else trials


def parse_arguments(arguments):
    parser = argparse.ArgumentParser(
        description="Measures error rates and score normalization."
    )
    parser.add_argument(
        "--cases", nargs="+", choices=CASES, default=list(CASES)
    )
    parser.add_argument(
        "--trials", nargs="+", type=positive, default=[O_TRIALS, E_TRIALS]
    )
    parser.add_argument(
        "--limit", type=float, default=600, help="seconds of a measurement"
    )
    parser.add_argument("--threads", type=positive, default=1)
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("results/scoring"),
        help="folder for results.json and table.md",
    )
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def run_child(job):
    """What a process of its own measured, or why it did not."""
    job = job | {"memory": available_memory()}
    process = subprocess.run(
        [sys.executable, __file__, "--child", json.dumps(job)],
        capture_output=True,
        text=True,
    )
    if process.returncode == 0:
        return json.loads(process.stdout.splitlines()[-1])
    if process.returncode == -signal.SIGALRM:
        return {"problem": STOPPED.format(job["limit"])}
    if process.returncode == -signal.SIGKILL:  # by the kernel
        return {"problem": OUT_OF_MEMORY}
    lines = process.stderr.strip().splitlines() or ["no message"]
    return {"problem": lines[-1].replace(str(ROOT), "...")}


def available_memory():
    """Bytes that a process can get without swapping."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise KeyError("MemAvailable")


def measure(job):
    """Time, memory and results of a job, in this process."""
    torch.set_num_threads(job["threads"])
    calls = {
        ("EER", OURS): metrics.EER,
        ("EER", SPEECHBRAIN): metric_stats.EER,
        ("minDCF", OURS): metrics.minDCF,
        ("minDCF", SPEECHBRAIN): metric_stats.minDCF,
        ("adaptive s-norm", OURS): normalized,
        ("adaptive s-norm", DIRECT): normalized_directly,
    }
    call = calls[job["case"], job["implementation"]]
    if job["case"] == "adaptive s-norm":
        embeddings, cohort, rows = generated_trials(job["trials"])
        given = embeddings, cohort, *rows[:, : job["trials_measured"]]
        few = embeddings[:WARM_UP], cohort, *torch.arange(WARM_UP).repeat(2, 1)
    else:
        given = generated_scores(job["trials"])
        few = [scores[:WARM_UP] for scores in given]
    call(*few)
    forget_peak_memory()
    before = process_memory("VmRSS")
    limit_process(job["memory"], job["limit"])
    start = time.perf_counter()
    try:
        result = call(*given)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        return {"problem": OUT_OF_MEMORY}
    seconds = time.perf_counter() - start
    peak = process_memory("VmHWM")
    signal.setitimer(signal.ITIMER_REAL, 0)
    return {
        "problem": None,
        "seconds": seconds,
        "mebibytes": grown(peak, before),
        "result": torch.as_tensor(result)[:COMPARED].tolist(),
    }


def limit_process(memory, seconds):
    """From now on, so that neither libraries nor the input count."""
    limit = process_memory("VmSize") + memory
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    if seconds is not None:
        # Without a handler the signal ends the process, in compiled code too.
        signal.setitimer(signal.ITIMER_REAL, seconds)


def generated_scores(trials):
    generator = torch.Generator().manual_seed(0)
    positive = torch.randn(trials // 2, generator=generator) + 3
    negative = torch.randn(trials - trials // 2, generator=generator)
    return positive, negative


def generated_trials(trials):
    """Embeddings, a cohort, and the two rows of each trial."""
    generator = torch.Generator().manual_seed(0)
    utterances = UTTERANCES.get(trials, max(WARM_UP, trials // 4))
    embeddings = torch.randn(utterances, EMBEDDING, generator=generator)
    cohort = torch.randn(COHORT, EMBEDDING, generator=generator)
    rows = torch.randint(utterances, (2, trials), generator=generator)
    return embeddings, cohort, rows


def normalized(embeddings, cohort, enrolment_rows, test_rows):
    """By the package: statistics once for each utterance."""
    pairs = torch.stack([enrolment_rows, test_rows], dim=1)
    return adaptive_s_norm(embeddings, pairs, cohort, TOP)


def normalized_directly(embeddings, cohort, enrolment_rows, test_rows):
    """Trial by trial, everything anew."""
    scores = []
    for rows in zip(enrolment_rows, test_rows, strict=True):
        enrolment, test = (embeddings[row] for row in rows)
        score = cosine_similarity(enrolment, test, dim=0)
        sides = []
        for embedding in (enrolment, test):
            against = cosine_similarity(embedding.unsqueeze(0), cohort)
            top = against.topk(TOP).values
            sides.append((score - top.mean()) / top.std())
        # As numbers: small tensors that live on would keep the memory of
        # large ones from being given back.
        scores.append((sum(sides) / 2).item())
    return torch.tensor(scores)


def compare(results):
    """The rows of the table, with ratios and the agreement of results."""
    rows = []
    for other, ours in zip(results[::2], results[1::2], strict=True):
        for row in (other, ours):
            row["speed_ratio"] = row["speed_ratio_at_least"] = None
            row["memory_ratio"] = row["difference"] = row["agrees"] = None
        if not ours["problem"]:
            ours.update(ratios(other, ours))
        rows += [other, ours]
    for row in rows:
        row.pop("result", None)
    return rows


def ratios(other, ours):
    """What ours says beside the other."""
    own_time = ours["seconds"] / ours["trials_measured"]
    if other["problem"] == OUT_OF_MEMORY:
        return {}
    if other["problem"] == STOPPED.format(other["limit"]):
        their_time = other["limit"] / other["trials_measured"]
        return {"speed_ratio_at_least": their_time / own_time}
    if other["problem"]:
        return {}
    their_time = other["seconds"] / other["trials_measured"]
    found = {"speed_ratio": their_time / own_time}
    # Of another number of trials memory says nothing.
    if other["trials_measured"] == ours["trials_measured"]:
        # Pages that were free already make a small one nothing at all.
        found["memory_ratio"] = ours["mebibytes"] / max(other["mebibytes"], 1)
    results = [torch.tensor(row["result"]).double() for row in (other, ours)]
    size = min(map(len, results))
    largest = (results[0][:size] - results[1][:size]).abs().max().item()
    exact = ours["case"] != "adaptive s-norm"
    found["difference"] = largest
    found["agrees"] = largest <= (0 if exact else LARGEST_DIFFERENCE)
    return found


def write_report(rows, folder):
    """Writes results.json and table.md, and prints the table."""
    machine = {
        "processor": processor_name(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": rows[0]["threads"],
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
        "commit": commit(ROOT),
    }
    line = (
        f"{machine['processor']}, {machine['cores']} cores, "
        f"threads: {machine['threads']}, torch {machine['torch']}, commit "
        f"{machine['commit']}, {machine['date']}"
    )
    text = f"{line}\n\n{markdown_table(cells(rows))}"
    print(text, end="")
    folder.mkdir(parents=True, exist_ok=True)
    figures = json.dumps({"machine": machine, "rows": rows}, indent=2) + "\n"
    for name, content in (("table.md", text), ("results.json", figures)):
        write_text(folder / name, content)


def cells(rows):
    table = [
        [
            "what",
            "implementation",
            "trials",
            "time (s)",
            "times as fast",
            "memory (MiB)",
            "memory ratio",
            "difference",
        ]
    ]
    for row in rows:
        if row["problem"]:
            measured = [row["problem"], "", "", "", ""]
        else:
            seconds = f"{row['seconds']:.3g}"
            if row["trials_measured"] < row["trials"]:
                seconds += f" (first {row['trials_measured']:,} trials)"
            ratio = written(row["speed_ratio"], "{:,.1f}")
            difference = written(row["difference"], "{:.0e}")
            measured = [
                seconds,
                ratio or written(row["speed_ratio_at_least"], "over {:,.1f}"),
                written(row["mebibytes"], "{:,.0f}"),
                written(row["memory_ratio"], "{:.2g}"),
                difference + " !" * (row["agrees"] is False),
            ]
        what = [row["case"], row["implementation"], f"{row['trials']:,}"]
        table.append(what + measured)
    return table


def written(figure, form):
    return "" if figure is None else form.format(figure)


if __name__ == "__main__":
    sys.exit(main())
