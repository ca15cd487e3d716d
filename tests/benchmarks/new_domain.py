"""What fine-tuning to another package's few speakers gains, and forgets.

    python tests/benchmarks/new_domain.py demo results/new_domain

`make demo` leaves the corpus and its list of training utterances in the first
folder. B0 is trained on the voices of all packages but klettres; then
hparams/finetune_redimnet2.yaml goes on with the training voices of klettres,
with and without replay and frozen stages. Each model is tested on trials among
the unseen voices of klettres, and among those of the other packages.

A run that is interrupted goes on by the same command; the table and the plot
have what is finished. Options that follow go to the fine-tunings, such as
--number_of_epochs=10.
"""

import argparse
import csv
import subprocess
import sys
from pathlib import Path

import torch
from benchmark import ROOT, commit, processor_name
from matplotlib.figure import Figure

from redimnet2_lobes.data.trial_files import read_trial_lists, trial_speakers
from redimnet2_lobes.inference.encode import encode_utterances
from redimnet2_lobes.pretrained.loading import load_model
from redimnet2_lobes.scoring.backends import CosineBackend, trial_scores
from redimnet2_lobes.scoring.bootstrap import bootstrap, eer
from redimnet2_lobes.scoring.tables import markdown_table, with_interval

RECIPE = ROOT / "recipes" / "VoxCeleb" / "SpeakerRec"
PACKAGE = "klettres"
DOMAINS = {"new": PACKAGE, "old": "other packages"}
RANDOM = {"classes_from_embeddings": False}
# What each fine-tuning has in place of the configuration's values.
ARMS = {
    "as configured": {},
    "classes from nothing": RANDOM,
    "the same, without replay": {"replay_lists": "{}", **RANDOM},
    "the same, nothing frozen": {"frozen_stages": 0, **RANDOM},
    "the same, without both": {
        "replay_lists": "{}",
        "frozen_stages": 0,
        **RANDOM,
    },
}


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("demo", type=Path, help="what `make demo` made")
    parser.add_argument("output", type=Path)
    parser.add_argument("--pretraining_epochs", type=int, default=7)
    options, others = parser.parse_known_args(arguments)
    output = options.output
    lists = split(options.demo, output)
    pretrained = output / "pretrained" / "model"
    common = {"data_folder": options.demo / "corpus", "device": "cpu"}
    if not pretrained.is_dir():
        train(
            "demo_redimnet2_b0.yaml",
            output_folder=pretrained.parent,
            training_lists=f'{{"": "{lists["old"]}"}}',
            validation_trials=output / "old_validation.txt",
            number_of_epochs=options.pretraining_epochs,
            **common,
        )
    results = {"before": test(pretrained, options.demo / "corpus", output)}
    report(results, output)
    for number, (arm, changes) in enumerate(ARMS.items()):
        folder = output / f"arm_{number}"
        if not (folder / "model").is_dir():
            train(
                "finetune_redimnet2.yaml",
                *others,
                output_folder=folder,
                pretrained_folder=pretrained,
                training_lists=f'{{"": "{lists["new"]}"}}',
                validation_trials=output / "new_validation.txt",
                minimum_seconds=0.5,
                crop_frames=100,  # those of the pretraining
                musan_folder="null",
                rirs_folder="null",
                augment="{steps: [], probabilities: []}",
                precision="fp32",
                num_workers=0,
                **{
                    "replay_lists": f'{{"": "{lists["old"]}"}}',
                    **changes,
                    **common,
                },
            )
        results[arm] = test(folder / "model", options.demo / "corpus", output)
        report(results, output)


def split(demo, output):
    """Lists of both domains: training utterances, validation, test trials."""
    output.mkdir(parents=True, exist_ok=True)
    corpus = demo / "corpus"
    with open(demo / "trained" / "save" / "train.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    lists = {}
    for domain in DOMAINS:
        lists[domain] = (output / f"{domain}.csv").resolve()
        with open(lists[domain], "w", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            for row in rows:
                if is_of(domain, row["spk_id"]):
                    root = str(corpus.resolve())
                    wav = row["wav"].replace("$data_root", root)
                    writer.writerow({**row, "wav": wav})
        for kind in ("validation", "test2"):
            lines = (corpus / f"veri_{kind}.txt").read_text().splitlines()
            chosen = [
                line
                for line in lines
                if all(is_of(domain, name) for name in line.split()[1:])
            ]
            path = output / f"{domain}_{kind}.txt"
            path.write_text("\n".join(chosen) + "\n")
    return lists


def is_of(domain, name):
    return name.startswith(f"{PACKAGE}-") == (domain == "new")


def train(hparams, *others, **overrides):
    """Runs the recipe, as a user would."""
    command = [
        sys.executable,
        str(RECIPE / "train_speaker_embeddings.py"),
        str(RECIPE / "hparams" / hparams),
        *(f"--{key}={value}" for key, value in overrides.items()),
        *others,
    ]
    print("$", *command, flush=True)
    subprocess.run(command, check=True)


def test(model, corpus, output):
    """The EER of both domains, an Interval each, and the number of trials."""
    encode_batch = load_model(model).encode_batch
    found = {}
    for domain in DOMAINS:
        path = str(output / f"{domain}_test2.txt")
        (trials,) = read_trial_lists(path, str(corpus), str(output))
        embeddings = encode_utterances(encode_batch, trials.paths.values())
        units = CosineBackend().test_side(
            torch.stack([embeddings[path] for path in trials.paths.values()])
        )
        row = {name: row for row, name in enumerate(trials.paths)}
        pairs = torch.tensor([[row[a], row[b]] for _, a, b in trials.trials])
        scores = trial_scores(units, units, *pairs.T)
        speakers = trial_speakers(trials)
        torch.save(scores, model.parent / f"{domain}_scores.pt")
        interval = bootstrap(scores, trials.labels, speakers, {"EER": eer})
        found[domain] = interval["EER"]
    return found


def report(results, output):
    """The table and the plot of what is finished."""
    table = [["fine-tuning", *(f"{d}, EER %" for d in DOMAINS.values())]]
    for arm, found in results.items():
        cells = []
        for domain in DOMAINS:
            value, low, high = (100 * figure for figure in found[domain])
            cells.append(with_interval(value, (low, high)))
        table.append([arm, *cells])
    text = (
        f"{processor_name()}, torch {torch.__version__}, commit "
        f"{commit(ROOT)}; 95 % intervals by bootstrap over speakers\n\n"
        f"{markdown_table(table, names=1)}"
    )
    print(text)
    (output / "new_domain.md").write_text(text, encoding="utf-8")
    plot(results, output / "new_domain.png")


def plot(results, path):
    """The EER of each model and domain, with its interval."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for domain, panel in zip(DOMAINS, axes, strict=True):
        for place, (arm, found) in enumerate(results.items()):
            value, low, high = (100 * each for each in found[domain])
            panel.errorbar(
                value,
                place,
                xerr=[[value - low], [high - value]],
                fmt="o",
                capsize=3,
                color="black" if arm == "before" else "tab:blue",
            )
        panel.axvline(
            100 * results["before"][domain].value, color="0.6", linestyle="--"
        )
        panel.set_title(f"unseen voices of {DOMAINS[domain]}")
        panel.set_xlabel("EER (%), with its 95 % interval")
        panel.set_xlim(left=0)
        panel.grid(axis="x", color="0.9")
        panel.set_axisbelow(True)
    axes[0].set_yticks(range(len(results)), list(results))
    axes[0].invert_yaxis()
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    main()
