"""Whether ReDimNet2 learns: beside SpeechBrain's encoders on the demo corpus.

    python learning.py CORPUS OUTPUT [--systems b0 b2 ecapa resnet]
        [--seeds 1 2 3] [--epochs 7]

CORPUS is what prepare_demo_corpus.py builds (`make demo` has it in
demo/corpus). Each system is trained by the demo's recipe with the same steps,
crops and augmentation of a seed, then verifies the unseen speakers of the test
trials. The learning rate is the demo's for ReDimNet2, and that of their own
VoxCeleb recipes, 0.001, for ECAPA-TDNN and ResNet, as are their sizes and
features. A run that is interrupted goes on by the same command; finished ones
are not repeated. OUTPUT/table.md has the table, OUTPUT/results.json all.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import argparse
import json
import os
import re
import statistics
import sys
import time
from pathlib import Path

import speechbrain as sb
import torch

REPOSITORY = Path(__file__).resolve().parents[2]
RECIPE = REPOSITORY / "recipes" / "VoxCeleb" / "SpeakerRec"
HPARAMS = REPOSITORY / "hparams"
sys.path[:0] = [str(RECIPE), str(Path(__file__).parent)]

import train_speaker_embeddings as recipe  # noqa: E402
from command_line import load_hparams, parse_command_line  # noqa: E402
from trials import read_trials  # noqa: E402

# Class of the encoder, size of its embedding, learning rate; of ReDimNet2 the
# configuration that describes it.
SPEECHBRAIN = {
    "ecapa": ("implementations.Ecapa", 192, 0.001),
    "resnet": ("implementations.ResNetEncoder", 256, 0.001),
}
NAMES = {
    "b0": "ReDimNet2-B0",
    "b2": "ReDimNet2-B2",
    "ecapa": "ECAPA-TDNN",
    "resnet": "ResNet",
}


def write_hparams(system, path):
    """The demo's configuration with another encoder.

    Arguments
    ---------
    system : str
        A key of NAMES.
    path : Path
        The file to write.
    """
    text = (HPARAMS / "demo_redimnet2_b0.yaml").read_text(encoding="utf-8")
    if system in SPEECHBRAIN:
        encoder, size, rate = SPEECHBRAIN[system]
        text = replace(
            r"embedding_model: !new:redimnet2.*?(?=# One class)",
            f"embedding_model: !new:{encoder}\n",
            text,
        )
        text = replace("input_size: 192", f"input_size: {size}", text)
        # It is for a global batch of 64, and the demo has 32.
        text = replace(r"initial_lr: 0.01\b", f"initial_lr: {2 * rate}", text)
        text = replace("variant: b0", "variant: null", text)
    else:
        other = (HPARAMS / f"redimnet2_{system}.yaml").read_text("utf-8")
        block = r"variant: .*?(?=batch_size:)"
        text = replace(block, re.search(block, other, re.DOTALL)[0], text)
    path.write_text(text, encoding="utf-8")


def replace(pattern, replacement, text):
    """Replaces what must be there once."""
    text, count = re.subn(pattern, lambda _: replacement, text, flags=re.DOTALL)
    if count != 1:
        raise ValueError(f"{pattern}: found {count} times in the demo's YAML")
    return text


def measure(system, seed, corpus, folder, epochs):
    """Trains and verifies, or goes on with it.

    Arguments
    ---------
    system : str
        A key of NAMES.
    seed : int
        Seed of weights and crops.
    corpus : Path
        The demo corpus.
    folder : Path
        Where the run lives.
    epochs : int
        How long to train.

    Returns
    -------
    dict
        ``parameters``, ``untrained`` and ``trained`` (EER, per cent),
        ``seconds`` of training (without validation) and ``steps``.
    """
    results = folder / "results.json"
    if results.exists():
        return json.loads(results.read_text(encoding="utf-8"))
    folder.mkdir(parents=True, exist_ok=True)
    write_hparams(system, folder / "hparams.yaml")
    hparams_file, run_opts, overrides = parse_command_line(
        [
            str(folder / "hparams.yaml"),
            f"--data_folder={corpus}",
            f"--output_folder={folder}",
            f"--seed={seed}",
            f"--number_of_epochs={epochs}",
            "--device=cpu",
        ]
    )
    hparams = load_hparams(hparams_file, overrides)
    recipe.check_settings(hparams)
    sb.core.create_experiment_directory(folder)
    brain, loader, _ = recipe.build_brain(hparams, run_opts)
    validation = brain.trials, brain.paths
    trials = read_trials(hparams["test_trials"])
    test = trials, recipe.find_files(trials, str(corpus), folder)

    def test_eer():
        brain.trials, brain.paths = test
        eer = brain.validate()
        brain.trials, brain.paths = validation
        return eer

    untrained = test_eer()
    brain.fit(hparams["epoch_counter"], loader)
    log = (folder / "train_log.txt").read_text(encoding="utf-8")
    rates = dict(
        re.findall(r"epoch: (\d+),.*crops per second: ([^,]+),", log)
    ).values()
    batches = brain.train_sampler
    crops = batches.steps * batches.global_batch_size
    figures = {
        "parameters": sum(
            weight.numel()
            for weight in brain.modules.embedding_model.parameters()
        ),
        "untrained": untrained,
        "trained": test_eer(),
        "steps": batches.steps * epochs,
        "seconds": sum(crops / float(rate) for rate in rates),
    }
    partial = folder / "results.json.part"
    partial.write_text(json.dumps(figures, indent=2), encoding="utf-8")
    os.replace(partial, results)
    return figures


def table(results):
    """The results as a Markdown table.

    Arguments
    ---------
    results : dict
        For each system a list of figures, one for each seed.

    Returns
    -------
    str
    """
    lines = [
        "| | parameters | steps | minutes | EER untrained (%) | EER trained (%)"
        " | mean |",
        "|---|---:|---:|---:|---|---|---:|",
    ]
    for system, runs in results.items():
        trained = [run["trained"] for run in runs]
        untrained = [run["untrained"] for run in runs]
        minutes = statistics.mean(run["seconds"] for run in runs) / 60
        lines.append(
            f"| {NAMES[system]} | {runs[0]['parameters']:,} "
            f"| {runs[0]['steps']} | {minutes:.1f} "
            f"| {', '.join(f'{eer:.2f}' for eer in untrained)} "
            f"| {', '.join(f'{eer:.2f}' for eer in trained)} "
            f"| {statistics.mean(trained):.2f} |"
        )
    return "\n".join(lines) + "\n"


def main(arguments):
    """Runs what is asked for.

    Arguments
    ---------
    arguments : list of str
        The command line.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--systems", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--epochs", type=int, default=7)
    options = parser.parse_args(arguments)
    results = {}
    for seed in options.seeds:
        for system in options.systems:
            print(f"{NAMES[system]}, seed {seed}", flush=True)
            start = time.monotonic()
            figures = measure(
                system,
                seed,
                options.corpus,
                options.output / f"{system}_{seed}",
                options.epochs,
            )
            print(f"{figures}, {time.monotonic() - start:.0f} s", flush=True)
            results.setdefault(system, []).append(figures)
            (options.output / "results.json").write_text(
                json.dumps(results, indent=2) + "\n", encoding="utf-8"
            )
            (options.output / "table.md").write_text(
                table(results), encoding="utf-8"
            )
    print(table(results))


if __name__ == "__main__":
    torch.set_num_threads(2)
    main(sys.argv[1:])
