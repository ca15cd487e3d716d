"""What a teacher's embeddings gain a small network, over several seeds.

    python tests/benchmarks/distillation.py demo/corpus results/distillation \
        --teacher results/teacher/1.0.npz results/teacher/0.8.npz ...

B0 is trained on the demo corpus by hparams/demo_redimnet2_b0.yaml, for as many
epochs with a teacher as without, and tested on the corpus' trials. The files of
the teacher are those of the speeds in that configuration, in their order, such
as tests/runtimes/peers/teacher.py makes of CAM++. OUTPUT/distillation.md has
the table, OUTPUT/distillation.png the plot. What is finished is used again.
"""

import argparse
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from benchmark import ROOT, commit, processor_name
from matplotlib.figure import Figure
from torch.nn.functional import normalize

from redimnet2_lobes.data.trial_files import read_trial_lists, trial_speakers
from redimnet2_lobes.inference.encode import encode_utterances
from redimnet2_lobes.pretrained.loading import load_model
from redimnet2_lobes.scoring.comparison import compare
from redimnet2_lobes.scoring.tables import markdown_table, with_interval

RECIPE = ROOT / "recipes" / "VoxCeleb" / "SpeakerRec"
PLAIN, DISTILLED = "plain", "distilled"
EER = "eer_percent"


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--teacher", nargs="+", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--at_once", type=int, default=1)
    options = parser.parse_args(arguments)
    teacher = f"[{', '.join(options.teacher)}]"
    arms = {PLAIN: {}, DISTILLED: {"teacher_embeddings": teacher}}
    runs = [(arm, seed) for seed in options.seeds for arm in arms]

    def run(arm, seed):
        folder = options.output / f"{arm}_{seed}"
        if not (folder / "model").is_dir():
            start = time.perf_counter()
            train(
                data_folder=options.corpus,
                output_folder=folder,
                device=options.device,
                seed=seed,
                **arms[arm],
            )
            minutes = (time.perf_counter() - start) / 60
            (folder / "minutes.txt").write_text(f"{minutes:.1f}")
        return folder

    with ThreadPoolExecutor(options.at_once) as pool:
        done = pool.map(lambda each: run(*each), runs)
        folders = dict(zip(runs, done, strict=True))
    path = str(options.corpus / "veri_test2.txt")
    (trials,) = read_trial_lists(path, str(options.corpus), "")
    scores = {name: score(folder, trials) for name, folder in folders.items()}
    report(scores, folders, trials, options)


def train(**overrides):
    """Runs the recipe, as a user would."""
    command = [
        sys.executable,
        RECIPE / "train_speaker_embeddings.py",
        RECIPE / "hparams" / "demo_redimnet2_b0.yaml",
        *(f"--{key}={value}" for key, value in overrides.items()),
    ]
    subprocess.run(list(map(str, command)), check=True)


def score(folder, trials):
    """The cosines of the trials [trials]."""
    embeddings = encode_utterances(
        load_model(folder / "model").encode_batch, trials.paths.values()
    )
    units = {
        name: normalize(embeddings[path], dim=0)
        for name, path in trials.paths.items()
    }
    return torch.stack([units[a] @ units[b] for _, a, b in trials.trials])


def report(scores, folders, trials, options):
    """The table and the plot; systems are compared seed by seed."""
    table = [["seed", PLAIN, DISTILLED, "p", "minutes"]]
    found = {}
    for seed in options.seeds:
        pair = [scores[arm, seed] for arm in (PLAIN, DISTILLED)]
        found[seed] = compare(*pair, trials.labels, trial_speakers(trials))[EER]
        minutes = [
            (folders[arm, seed] / "minutes.txt").read_text()
            for arm in (PLAIN, DISTILLED)
        ]
        table.append(
            [
                str(seed),
                *(
                    with_interval(each.value, (each.low, each.high))
                    for each in (found[seed].first, found[seed].second)
                ),
                f"{found[seed].p_value:.3f}",
                " and ".join(minutes),
            ]
        )
    means = [
        sum(getattr(each, side).value for each in found.values()) / len(found)
        for side in ("first", "second")
    ]
    table.append(["mean", *map("{:.2f}".format, means), "", ""])
    device = processor_name()
    if options.device != "cpu":
        device = torch.cuda.get_device_name()
    text = (
        f"{device}, {options.at_once} trainings at once, torch "
        f"{torch.__version__}, commit {commit(ROOT)}. EER in %, 95 % intervals "
        f"and p by bootstrap over speakers\n\n{markdown_table(table, names=1)}"
    )
    print(text)
    path = options.output / "distillation.md"
    path.write_text(text, encoding="utf-8")
    plot(found, options.output / "distillation.png")


def plot(found, path):
    """The EER of each training, with its interval."""
    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    for side, arm, colour, shift in (
        ("first", PLAIN, "0.4", -0.1),
        ("second", DISTILLED, "tab:blue", 0.1),
    ):
        values, lows, highs = zip(
            *(getattr(each, side) for each in found.values()), strict=True
        )
        values, lows, highs = map(torch.tensor, (values, lows, highs))
        axes.errorbar(
            values,
            torch.arange(len(found)) + shift,
            xerr=torch.stack([values - lows, highs - values]),
            fmt="o",
            capsize=3,
            color=colour,
            label=arm,
        )
    axes.set_yticks(range(len(found)), [f"seed {seed}" for seed in found])
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_xlabel("EER (%), with its 95 % interval")
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)
    axes.legend()
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    main()
