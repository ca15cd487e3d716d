r"""What a model costs in each runtime: time, memory, size and accuracy.

    make test-runtimes   # builds the environments of tests/runtimes
    python tests/benchmarks/devices.py --model=demo/trained/model \
        --corpus=demo/corpus

Each form of B0 and B3 is measured in processes of its own that are bound to one
core or two, in turns: every round runs all of them once, and the median of the
rounds counts. Memory is the most that such a process has taken, libraries and
interpreter included. B0 has the weights of --model, and embeds 3 s of each file
of the corpus' trials; B3 has the weights of tests/parity, which know no voices:
of it there is no EER.
"""

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from benchmark import ROOT, commit, positive, processor_name
from conftest import ParityCase
from tqdm import tqdm

from redimnet2_lobes.data.audio import load_waveform
from redimnet2_lobes.models.embedding_space import embedding_space
from redimnet2_lobes.models.front_end import SAMPLE_RATE
from redimnet2_lobes.pretrained.loading import load_model
from redimnet2_lobes.pretrained.model_folder import write_model_folder
from redimnet2_lobes.pretrained.published_layout import (
    build_network,
    take_weights,
)
from redimnet2_lobes.scoring.metrics import EER

WORKER = Path(__file__).with_name("device_worker.py")
SECONDS = (1, 3, 20)
CORES = (1, 2)
TRIAL_SECONDS = 3
COMMAND = "from redimnet2_lobes.cli import main; main()"
SPEECH = 60  # files for the correction of sherpa-onnx

# Of each form the options of its export ({} stands for the seconds), how
# device_worker.py loads it, and in which environment of tests/runtimes.
FORMS = {
    "torch": (None, "torch", None),
    "model folder (ONNX Runtime in torch)": (None, "model folder", None),
    "onnx": (["--for=onnx"], "onnx", None),
    "onnx --int8": (["--for=onnx", "--int8"], "onnx", None),
    "plain": (["--for=plain"], "onnx", None),
    "fixed": (["--for=fixed", "--seconds={}"], "onnx", None),
    "fixed, OpenVINO": (
        ["--for=fixed", "--seconds={}"],
        "openvino",
        "openvino",
    ),
    "plain, tract": (["--for=plain"], "tract", None),
    "onnx, onnxruntime-web in Node": (["--for=onnx"], "web", None),
    "sherpa-onnx": (["--for=sherpa-onnx"], "sherpa", "sherpa"),
    "executorch": (
        ["--for=executorch", "--seconds={}"],
        "executorch",
        "executorch",
    ),
    "executorch --int8": (
        ["--for=executorch", "--seconds={}", "--int8"],
        "executorch",
        "executorch",
    ),
}


def main(arguments=None):
    options = parse_arguments(arguments)
    folder = options.exports
    trials = Trials(options.corpus, folder)
    models = {"b0": options.model, "b3": parity_model(folder / "b3")}
    rows = {}
    for variant, model in models.items():
        for form in tqdm(options.forms, desc=f"exporting {variant}"):
            space = embedding_space(load_model(model).mods)
            paths = export(model, form, folder / space, trials.speech)
            rows[variant, form] = Row(variant, form, paths)
    for row in tqdm(rows.values(), desc="embedding"):
        row.embed(trials)
    for row in rows.values():
        row.compare(rows[row.variant, "torch"], trials)
    measure(rows.values(), options.rounds)
    text = "\n".join([*heading(options), "", *table(rows.values())]) + "\n"
    print(text, end="")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(text)


def parse_arguments(arguments):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="a B0")
    parser.add_argument(
        "--corpus", type=Path, required=True, help="wav/ and veri_test2.txt"
    )
    parser.add_argument(
        "--exports",
        type=Path,
        default=Path("build/exports"),
        help="where the files are; those that are there are not made again",
    )
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=[*FORMS])
    parser.add_argument(
        "--output", type=Path, default=Path("results/devices.md")
    )
    options = parser.parse_args(arguments)
    if "torch" not in options.forms:
        parser.error("--forms: torch is what others are compared with")
    return options


class Trials:
    """Trials of a corpus, 3 s of each file, and speech of other speakers."""

    def __init__(self, corpus, folder):
        lines = (corpus / "veri_test2.txt").read_text().splitlines()
        trials = [line.split() for line in lines]
        names = sorted({name for _, *pair in trials for name in pair})
        self.pairs = np.array(
            [[names.index(name) for name in pair] for _, *pair in trials]
        )
        self.same = torch.tensor([label == "1" for label, *_ in trials])
        folder.mkdir(parents=True, exist_ok=True)
        size = TRIAL_SECONDS * SAMPLE_RATE
        waveforms = [load_waveform(corpus / "wav" / name) for name in names]
        waveforms = [each.repeat(size // len(each) + 1) for each in waveforms]
        waveforms = torch.stack([each[:size] for each in waveforms])
        self.path, self.shape = folder / "trials.npy", waveforms.shape
        np.save(self.path, waveforms.numpy())
        self.speech = folder / "speech"
        tested = {name.split("/")[0] for name in names}
        others = [
            path
            for path in sorted((corpus / "wav").rglob("*.wav"))
            if path.relative_to(corpus / "wav").parts[0] not in tested
        ]
        self.speech.mkdir(exist_ok=True)
        for n, path in enumerate(random.Random(0).sample(others, SPEECH)):
            link = self.speech / f"{n}.wav"
            link.unlink(missing_ok=True)
            link.symlink_to(path.resolve())

    def error_rate(self, embeddings):
        """EER in per cent."""
        rows = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
        first, second = rows[self.pairs.T]
        scores = torch.from_numpy((first * second).sum(1))
        return 100 * EER(scores[self.same], scores[~self.same])[0]


def parity_model(folder):
    """A model folder of B3 with weights by a formula."""
    checkpoint = ParityCase("b3-vox2").checkpoint()
    network = build_network(checkpoint["model_config"])
    take_weights(network, checkpoint["state_dict"])
    write_model_folder(folder / "model", network, "B3", variant="b3")
    return folder / "model"


def export(model, form, folder, speech):
    """The file of each number of seconds."""
    options, _, environment = FORMS[form]
    if options is None:
        return dict.fromkeys(SECONDS, str(model))
    folder.mkdir(exist_ok=True)
    paths = {}
    # An export to ExecuTorch takes minutes: one length only.
    lengths = (TRIAL_SECONDS,) if environment == "executorch" else SECONDS
    for seconds in lengths:
        flags = [each.format(seconds) for each in options]
        ending = "pte" if "executorch" in flags[0] else "onnx"
        path = folder / f"{'_'.join(flags).replace('--', '')}.{ending}"
        if "sherpa" in flags[0]:
            flags.append(f"--speech={speech}")
        if not path.exists():
            command = ["export", str(model), f"--output={path}", *flags]
            subprocess.run(
                [python_of(environment), "-c", COMMAND, *command],
                check=True,
                stdout=subprocess.DEVNULL,
            )
        paths[seconds] = str(path)
    return paths


def python_of(environment):
    if environment is None:
        return sys.executable
    return ROOT / "build" / "runtimes" / environment / "bin" / "python"


class Row:
    """A form of a model, and what was measured of it."""

    def __init__(self, variant, form, paths):
        self.variant = variant
        self.form = form
        self.paths = paths
        self.samples = []  # of each round and number of cores
        self.embeddings = None
        self.cosine = self.error_rate = None

    def run(self, **job):
        _, loader, environment = FORMS[self.form]
        job = {"loader": loader, **job}
        done = subprocess.run(
            [python_of(environment), WORKER, json.dumps(job)],
            check=True,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        return json.loads(done.stdout.splitlines()[-1])

    def measure(self, cores):
        found = self.run(task="measure", paths=self.paths, cores=cores)
        self.samples.append((cores, found))

    def embed(self, trials):
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / "found.npy"
            self.run(
                task="embeddings",
                path=self.paths[TRIAL_SECONDS],
                waveforms=str(trials.path),
                shape=[*trials.shape],
                output=str(output),
                cores=max(CORES),
            )
            try:
                self.embeddings = np.load(output)
            except ValueError:  # Node's
                self.embeddings = np.array(json.loads(output.read_text()))

    def compare(self, other, trials):
        one, two = (
            x.embeddings / np.linalg.norm(x.embeddings, axis=1, keepdims=True)
            for x in (self, other)
        )
        self.cosine = np.median((one * two).sum(1))
        if self.variant == "b0":
            self.error_rate = trials.error_rate(self.embeddings)

    def medians(self, cores, figure):
        """Of each number of seconds, as text."""
        texts = []
        for seconds in map(str, SECONDS):
            found = [
                each[seconds][figure]
                for number, each in self.samples
                if number == cores and seconds in each
            ]
            texts.append(f"{statistics.median(found):.0f}" if found else "-")
        return " / ".join(texts)

    def megabytes(self):
        path = Path(self.paths[TRIAL_SECONDS])
        if path.is_dir():
            path = path / "embedding_model.safetensors"
        return path.stat().st_size / 1e6


def measure(rows, rounds):
    turns = [
        (row, cores) for _ in range(rounds) for row in rows for cores in CORES
    ]
    for row, cores in tqdm(turns, desc="measuring", unit="process"):
        row.measure(cores)


def heading(options):
    return [
        f"{processor_name()}, {platform.system()}, torch {torch.__version__}, "
        f"commit {commit(ROOT)}; medians of {options.rounds} rounds. Time of "
        "one utterance of 1, 3 and 20 s on one core and on two, most memory of "
        "the process on one core, file size (of 3 s where the length is "
        f"fixed), EER of {TRIAL_SECONDS} s of each file of the demo's trials, "
        "median cosine to torch's embeddings of these.",
    ]


def table(rows):
    lines = [
        "| | form, runtime | ms, one core | ms, two cores | MiB | MB | EER % "
        "| cosine |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        times = [row.medians(cores, "milliseconds") for cores in CORES]
        memory = row.medians(1, "mebibytes")
        rate = "" if row.error_rate is None else f"{row.error_rate:.2f}"
        lines.append(
            f"| {row.variant.upper()} | {row.form} | {times[0]} | {times[1]} | "
            f"{memory} | {row.megabytes():.1f} | {rate} | {row.cosine:.4f} |"
        )
    return lines


if __name__ == "__main__":
    main()
