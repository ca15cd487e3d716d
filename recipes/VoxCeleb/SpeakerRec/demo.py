#!/usr/bin/env python3
"""Trains a small model on real voices and verifies unseen speakers with it.

> make demo

Builds the demo corpus, measures the untrained network on its test trials,
trains ReDimNet2-B0, measures again, and loads the result with SpeechBrain's
inference classes. Each step is a command that stands on its own and is printed
before it runs. What is there already is used again.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from redimnet2_lobes import SpeakerRecognition
from redimnet2_lobes.data.trials import read_trials
from redimnet2_lobes.pretrained.model_folder import write_model_folder
from redimnet2_lobes.recipe.command_line import main_with_one_line_errors
from redimnet2_lobes.recipe.hparams import build_hparam
from redimnet2_lobes.scoring.tables import with_interval

# Relative, so that the commands can be read, and copied.
HERE = Path(os.path.relpath(Path(__file__).parent))
HPARAMS = HERE / "hparams" / "demo_redimnet2_b0.yaml"


Trial = tuple[int, str, str]  # label, enrolment, test


def run(script: str | Path, *arguments: object) -> None:
    """Runs one of the recipe's scripts, as a user would."""
    command = [str(argument) for argument in (script, *arguments)]
    print("\n$ python", *command, flush=True)
    process = subprocess.run([sys.executable, *command])
    if process.returncode:
        sys.exit(process.returncode)


def verify(corpus: Path, model: Path, output: Path) -> dict:
    """Runs the cosine verification on the test trials.

    Scores and plots go to ``output``; what comes back is the entry of
    results.json.
    """
    run(
        HERE / "speaker_verification_cosine.py",
        HERE / "hparams" / "verification_redimnet2.yaml",
        f"--data_folder={corpus}",
        f"--checkpoint={model}",
        f"--output_folder={output}",
        "--keep_results_with_model=True",
        "--device=cpu",
    )
    results = json.loads((output / "results.json").read_text(encoding="utf-8"))
    return results["results"][0]


def pick_pairs(trials: list[Trial]) -> list[Trial]:
    """Two pairs of one speaker and one pair of two, of different speakers."""

    def speaker(trial: Trial) -> str:
        return trial[1].split("/")[0]

    same = [trial for trial in trials if trial[0] == 1]
    by_speaker = [
        next(group) for _, group in itertools.groupby(same, key=speaker)
    ]
    return [
        by_speaker[0],
        by_speaker[-1],
        next(trial for trial in trials if trial[0] == 0),
    ]


def main(arguments: list[str]) -> None:
    """Runs the demo."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where everything goes")
    parser.add_argument(
        "--synthetic",
        action="store_true",
        help="use synthetic voices instead of real ones",
    )
    parser.add_argument(
        "--number_of_epochs", type=int, help="train for fewer epochs"
    )
    options = parser.parse_args(arguments)
    folder = options.folder
    corpus = folder / "corpus"

    flags = ["--synthetic"] if options.synthetic else []
    run(
        os.path.relpath(HERE.parent / "demo_corpus/prepare_demo_corpus.py"),
        corpus,
        f"--cache={folder / 'cache'}",
        *flags,
    )

    untrained = folder / "untrained" / "model"
    torch.manual_seed(build_hparam(HPARAMS, "seed"))
    write_model_folder(
        untrained,
        build_hparam(HPARAMS, "embedding_model"),
        title="ReDimNet2-B0, untrained",
        variant="b0",
    )
    before = verify(corpus, untrained, folder / "untrained")

    flags = []
    if options.number_of_epochs is not None:
        flags = [f"--number_of_epochs={options.number_of_epochs}"]
    run(
        HERE / "train_speaker_embeddings.py",
        HPARAMS,
        f"--data_folder={corpus}",
        f"--output_folder={folder / 'trained'}",
        "--device=cpu",
        *flags,
    )
    model = folder / "trained" / "model"
    after = verify(corpus, model, folder / "verification")

    print(
        "\n$ python\n"
        ">>> from redimnet2_lobes import SpeakerRecognition\n"
        f'>>> model = SpeakerRecognition.from_hparams(source="{model}")\n'
        ">>> model.operating_point"
    )
    recognition = SpeakerRecognition.from_hparams(source=model)
    print(recognition.operating_point)
    for label, *pair in pick_pairs(read_trials(corpus / "veri_test2.txt")):
        pair = [str(corpus / "wav" / name) for name in pair]
        score, same = recognition.verify_files(*pair)
        truth = "same speaker" if label else "different speakers"
        print(
            f'>>> model.verify_files("{pair[0]}", "{pair[1]}")  # {truth}\n'
            f"({score}, {same})"
        )

    description = json.loads(
        (corpus / "corpus.json").read_text(encoding="utf-8")
    )
    written = [
        with_interval(each["eer_percent"], each["eer_percent_interval"])
        for each in (before, after)
    ]
    ratio = after["eer_percent"] / before["eer_percent"]
    print(
        f"\nVerification of unseen speakers ({description['origin']} voices):\n"
        f"  EER before training {written[0]:>20} %\n"
        f"  EER after training  {written[1]:>20} %   ({ratio:.2f} of it)\n"
        f"In brackets 95 % intervals, over {after['speakers']} speakers.\n"
        f"Plots: {folder / 'verification' / 'veri_test2'}/; "
        f"{folder / 'trained'}/training_curves.png"
    )


if __name__ == "__main__":
    main_with_one_line_errors(main)
