"""Whether ReDimNet2 learns: beside SpeechBrain's encoders on the demo corpus.

    python learning.py CORPUS OUTPUT [--systems b0 b2 ecapa resnet]
        [--seeds 1 2 3] [--epochs 3] [--KEY=VALUE ...]

CORPUS is what prepare_demo_corpus.py builds (`make demo` has it in
demo/corpus). Each system is trained by the demo's recipe with the same steps,
crops and augmentation of a seed, then verifies the unseen speakers of the test
trials. The learning rate is the demo's for ReDimNet2, and that of their own
VoxCeleb recipes, 0.001, for ECAPA-TDNN and ResNet, as are their sizes and
features; for training this short it falls to a tenth, from a warm-up of half an
epoch, and the margin grows in the second.

A run that is interrupted goes on by the same command; finished ones are not
repeated. All run in bfloat16, in which the larger ones are twice as
fast on a CPU that has instructions for it. The times of a step are measured
first, side by side. OUTPUT/table.md has the table, OUTPUT/results.json all.
Other options go to the recipe, such as --half_precision_maps=True.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import argparse
import json
import re
import shutil
import statistics
import sys
import time
from pathlib import Path

import speechbrain as sb
import torch

from redimnet2_lobes.data.trial_files import read_trial_lists
from redimnet2_lobes.files.atomic import write_text
from redimnet2_lobes.recipe.command_line import parse_command_line
from redimnet2_lobes.recipe.hparams import load_hparams
from redimnet2_lobes.recipe.training import check_hparams

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(
    0,
    str(Path(__file__).resolve().parents[2] / "recipes/VoxCeleb/SpeakerRec"),
)
import train_speaker_embeddings as recipe

HPARAMS = Path(__file__).resolve().parents[2] / "hparams"

# Shorter than the demo's.
SCHEDULE = {
    "final_lr": "!ref <initial_lr> / 10",
    "warmup_epochs": "0.5",
    "margin_increase_epoch": "2",
    "margin_final_epoch": "3",
}
# Class of the encoder, size of its embedding, learning rate; of ReDimNet2 the
# configuration that describes it.
SPEECHBRAIN = {
    "ecapa": ("implementations.Ecapa", 192, 0.001),
    "resnet": ("implementations.ResNetEncoder", 256, 0.001),
}
ROUNDS = 5  # steps that are timed of each system
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
    for key, value in SCHEDULE.items():
        text = replace(rf"\n{key}: [^\n]*", f"\n{key}: {value}", text)
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


def build(system, seed, corpus, folder, epochs, overrides):
    """Everything that the recipe needs to train a system.

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
    overrides : list of str
        More options of the recipe.

    Returns
    -------
    hparams : dict
        The configuration.
    brain : SpeakerBrain
        The recipe's.
    loader : DataLoader
        Batches of crops.
    """
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
            "--precision=bf16",
            "--eval_precision=bf16",
            *overrides,
        ]
    )
    hparams = load_hparams(hparams_file, overrides)
    check_hparams(hparams)
    sb.core.create_experiment_directory(folder)
    brain, loader, _ = recipe.build_brain(hparams, run_opts)
    return hparams, brain, loader


def step_seconds(systems, corpus, output, overrides):
    """Times of a training step, side by side.

    Arguments
    ---------
    systems : list of str
        Keys of NAMES.
    corpus : Path
        The demo corpus.
    output : Path
        Receives step_seconds.json; if it has it, nothing is measured.
    overrides : list of str
        More options of the recipe.

    Returns
    -------
    dict
        Of each system the median of ROUNDS steps, seconds.
    """
    results = output / "step_seconds.json"
    if results.exists():
        return json.loads(results.read_text(encoding="utf-8"))
    folder = output / "step_seconds"
    brains, seconds = {}, {system: [] for system in systems}
    for system in systems:
        _, brain, loader = build(
            system, 0, corpus, folder / system, 1, overrides
        )
        brain.on_fit_start()
        brain.on_stage_start(sb.Stage.TRAIN, 1)
        brain.modules.train()
        brains[system] = brain, next(iter(loader))
    for _ in range(1 + ROUNDS):
        for system, (brain, batch) in brains.items():
            brain.step += 1
            start = time.perf_counter()
            brain.fit_batch(batch)
            seconds[system].append(time.perf_counter() - start)
    shutil.rmtree(folder)
    medians = {
        system: statistics.median(times[1:])
        for system, times in seconds.items()
    }
    write_json(medians, results)
    return medians


def measure(system, seed, corpus, folder, epochs, overrides):
    """Trains and verifies, or goes on with it.

    Arguments
    ---------
    system, seed, corpus, folder, epochs, overrides
        As for ``build``.

    Returns
    -------
    dict
        ``parameters``, ``untrained`` and ``trained`` (EER, per cent),
        ``losses`` of the epochs and ``steps``.
    """
    results = folder / "results.json"
    if results.exists():
        return json.loads(results.read_text(encoding="utf-8"))
    hparams, brain, loader = build(
        system, seed, corpus, folder, epochs, overrides
    )
    validation = brain.trials
    (test,) = read_trial_lists(hparams["test_trials"], str(corpus), folder)

    def test_eer():
        brain.trials = test
        eer = brain.validate()
        brain.trials = validation
        return eer

    untrained = test_eer()
    brain.fit(hparams["epoch_counter"], loader)
    figures = {
        "parameters": sum(
            weight.numel()
            for weight in brain.modules.embedding_model.parameters()
        ),
        "untrained": untrained,
        "trained": test_eer(),
        "losses": re.findall(
            r"train loss: ([^ ,]+)", Path(hparams["train_log"]).read_text()
        ),
        "steps": brain.train_sampler.steps * epochs,
    }
    write_json(figures, results)
    return figures


def write_json(figures, path):
    """Writes a file that stands under its name only when complete."""
    write_text(path, json.dumps(figures, indent=2) + "\n")


def table(results, seconds):
    """The results as a Markdown table.

    Arguments
    ---------
    results : dict
        For each system a list of figures, one for each seed.
    seconds : dict
        For each system the time of a step.

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
        minutes = runs[0]["steps"] * seconds[system] / 60
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
    parser.add_argument("--epochs", type=int, default=3)
    options, overrides = parser.parse_known_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    seconds = step_seconds(
        options.systems, options.corpus, options.output, overrides
    )
    print(f"seconds of a step: {seconds}", flush=True)
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
                overrides,
            )
            print(f"{figures}, {time.monotonic() - start:.0f} s", flush=True)
            results.setdefault(system, []).append(figures)
            write_json(results, options.output / "results.json")
            (options.output / "table.md").write_text(
                table(results, seconds), encoding="utf-8"
            )
    print(table(results, seconds))


if __name__ == "__main__":
    torch.set_num_threads(2)
    main(sys.argv[1:])
