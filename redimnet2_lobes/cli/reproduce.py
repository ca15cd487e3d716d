"""``redimnet2 reproduce``: are the published error rates those of the weights?

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from redimnet2_lobes.cli.group import (
    command,
    json_option,
    note,
    number,
    print_result,
)

if TYPE_CHECKING:
    from redimnet2_lobes.data.trial_files import TrialList
    from redimnet2_lobes.pretrained.releases import Released
    from redimnet2_lobes.recipe.encoder import Encoder
    from redimnet2_lobes.scoring.reproduction import Reproduced

LISTS = ("O", "E", "H")  # in the order of the published figures
PROTOCOL = "cosine of the embeddings of whole utterances, in float32"
RESULT_FILE, PLOT_FILE = "reproduction.json", "reproduction.png"


def _letters(text: str) -> list[str]:
    letters = text.split(",")
    if not set(letters) <= set(LISTS) or len(set(letters)) < len(letters):
        raise click.BadParameter(f"{text!r} is not some of O,E,H")
    return letters


@command("b6-vox2-lm --data_folder=/corpora/VoxCeleb1")
@click.argument("checkpoint")
@click.option(
    "--data_folder",
    required=True,
    metavar="FOLDER",
    help="The folder that holds VoxCeleb1 as wav/<speaker>/<video>/"
    "<utterance>.wav (or flac), test and dev together.",
)
@click.option(
    "--lists",
    "letters",
    default="O,E,H",
    metavar="LISTS",
    type=_letters,
    help="Of VoxCeleb1-O, -E and -H, cleaned; the default is O,E,H. For O "
    "VoxCeleb1's test part is enough.",
)
@click.option(
    "--output",
    metavar="FOLDER",
    help="Receives the results, plots, lists and embeddings; by default "
    "results/reproduction/CHECKPOINT. Interrupted, the same command goes on.",
)
@click.option("--device", default="cpu", help="Such as cuda:0; default cpu.")
@click.option(
    "--seconds_per_batch",
    default=240,
    metavar="SECONDS",
    type=number(float, 1, sys.float_info.max, "a number from 1 on"),
    help="Of audio, padding included; the default is 240. A lower number needs "
    "less memory.",
)
@json_option
def reproduce(
    checkpoint: str,
    data_folder: str,
    letters: list[str],
    output: str | None,
    device: str,
    seconds_per_batch: float,
    as_json: bool,
) -> str | None:
    """Measures a published checkpoint on VoxCeleb1, beside its figures.

    CHECKPOINT is a name that redimnet2 convert --list shows. It is downloaded
    once, and so are the lists of trials. The exit code is 1 if a published
    figure is not reproduced.
    """
    from redimnet2_lobes.files.settings import check_device
    from redimnet2_lobes.pretrained.releases import RELEASED

    if checkpoint not in RELEASED:
        raise ValueError(
            f"{checkpoint}: no published checkpoint has this name; see "
            "redimnet2 convert --list"
        )
    if not os.path.isdir(data_folder):
        raise ValueError(
            f"--data_folder: no folder {data_folder}; give the one that holds "
            "wav/ of VoxCeleb1"
        )
    check_device("--device", device)
    folder = Path(output or f"results/reproduction/{checkpoint}")
    # Whatever is printed on the way, stdout is for results.
    with contextlib.redirect_stdout(sys.stderr):
        lists = _read_lists(letters, data_folder, folder)
        reproduced, space = _measure(
            RELEASED[checkpoint], lists, folder, device, seconds_per_batch
        )
    summary = {
        "checkpoint": checkpoint,
        "embedding_space": space,
        "protocol": PROTOCOL,
        "lists": [each.as_json() for each in reproduced],
    }
    _write(summary, reproduced, folder)
    if as_json:
        print_result(json.dumps(summary, indent=2))
    else:
        print_result(_as_text(checkpoint, reproduced, folder))
    missed = [each.name for each in reproduced if each.is_within is False]
    if missed:
        raise ValueError(
            f"{checkpoint}: not within tolerance of the published EER on "
            f"{', '.join(missed)}; see {folder / RESULT_FILE}"
        )
    return None


def _read_lists(
    letters: list[str], data_folder: str, folder: Path
) -> dict[str, TrialList]:
    """The lists, from the folder of the corpus if they are there."""
    from redimnet2_lobes.data.trial_files import read_trial_lists
    from redimnet2_lobes.data.voxceleb_lists import fetch_trial_list, file_of

    kept = folder / "lists"
    kept.mkdir(parents=True, exist_ok=True)
    paths = []
    for letter in letters:
        beside = os.path.isfile(os.path.join(data_folder, file_of(letter)))
        path, _ = fetch_trial_list(letter, data_folder if beside else kept)
        paths.append(path)
    keys = "--lists", "--data_folder"
    try:
        lists = read_trial_lists(paths, data_folder, str(folder), keys=keys)
    except ValueError as error:
        remedy = "unpack both parts of VoxCeleb1, or give --lists=O"
        raise ValueError(
            f"{error}; {remedy}" if letters != ["O"] else str(error)
        ) from None
    return dict(zip(letters, lists, strict=True))


def _measure(
    released: Released,
    lists: dict[str, TrialList],
    folder: Path,
    device: str,
    seconds_per_batch: float,
) -> tuple[list[Reproduced], str]:
    """Embeds, scores and reports; the figures, and the embedding space."""
    from redimnet2_lobes.inference.embedding_cache import extract_embeddings
    from redimnet2_lobes.scoring.backends import CosineBackend
    from redimnet2_lobes.scoring.evaluate import evaluate
    from redimnet2_lobes.scoring.report import report
    from redimnet2_lobes.scoring.reproduction import compare_with_published
    from redimnet2_lobes.scoring.results import PLAIN_COSINE

    encoder = _load(released.name, device)
    results, _ = evaluate(
        {PLAIN_COSINE: CosineBackend()},
        list(lists.values()),
        [],
        {},
        lambda files: extract_embeddings(
            encoder.encode_batch,
            files,
            folder / "embeddings",
            encoder.fingerprint,
            seconds_per_batch=seconds_per_batch,
        ),
    )
    entries = report(results, {}, folder, released.name, encoder.space)
    published: dict[str, str] = dict(
        zip(LISTS, released.error_rates, strict=True)
    )
    return [
        compare_with_published(letter, result, entry, published[letter])
        for letter, result, entry in zip(lists, results, entries, strict=True)
    ], encoder.space


def _load(name: str, device: str) -> Encoder:
    """The published network, with float32 that is no TensorFloat-32."""
    import torch
    from speechbrain.utils.run_opts import RunOptions

    from redimnet2_lobes.recipe.encoder import load_encoder

    # SpeechBrain allows it, which moves scores by more than the tolerance has.
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    return load_encoder(name, None, RunOptions(device=device))


def _write(summary: dict, reproduced: list[Reproduced], folder: Path) -> None:
    from redimnet2_lobes.files.atomic import write_text
    from redimnet2_lobes.scoring.interval_plots import plot_published

    write_text(folder / RESULT_FILE, json.dumps(summary, indent=2) + "\n")
    plot_published(
        {
            f"VoxCeleb1-{each.name}": (
                each.measured,
                None if each.tolerance is None else float(each.published),
            )
            for each in reproduced
        },
        folder / PLOT_FILE,
        summary["checkpoint"],
    )


def _as_text(
    checkpoint: str, reproduced: list[Reproduced], folder: Path
) -> str:
    from redimnet2_lobes.scoring.reproduction import reproduction_table
    from redimnet2_lobes.scoring.tables import text_table

    if any(each.tolerance is None for each in reproduced):
        note(f"{checkpoint}: no figures are published, these are measured")
    return (
        f"{text_table(reproduction_table(reproduced), names=1)}"
        f"{checkpoint}: {PROTOCOL}.\n"
        "In brackets the 95 % interval for other speakers. The tolerance is "
        "for the same:\nrounding of the published figure, numerics and one "
        "trial.\n"
        f"written  {folder / RESULT_FILE}, {folder / PLOT_FILE}, "
        f"{folder / 'results.json'}"
    )
