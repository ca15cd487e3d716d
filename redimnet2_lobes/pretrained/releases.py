"""The published checkpoints: their names, figures and files.

Files are downloaded once, into the folder where ``torch.hub`` keeps its own, so
that what one has fetched the other finds.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import difflib
import os
from dataclasses import dataclass
from pathlib import Path

import torch

from redimnet2_lobes.files.download import download
from redimnet2_lobes.models.redimnet2 import ReDimNet2
from redimnet2_lobes.models.variants import difference
from redimnet2_lobes.pretrained.provenance import Provenance
from redimnet2_lobes.pretrained.published_layout import (
    PUBLISHED_NAMES,
    load_published,
    published_config,
)

ADDRESS = "https://github.com/PalabraAI/redimnet2/releases/download/v1.0.0"

CORPORA = {
    "vox2": "VoxCeleb2",
    "vb2+vox2_v0": "VoxBlink2 (CC BY-NC-SA) and VoxCeleb2",
    "vb2+vox2+cnc2_v0": "VoxBlink2 (CC BY-NC-SA), VoxCeleb2 and CN-Celeb2",
}
LICENSE = "mit"  # of all published weights
# As the authors give them, - where they do not: variant, corpora, parameters,
# GMACs, and the EERs of the fine-tuned model on Vox1-O, -E and -H.
FIGURES = (
    ("b0", "vox2", "1,115,220", "0.33", ("1.04", "1.16", "1.97")),
    ("b1", "vox2", "2,161,488", "0.56", ("0.78", "0.96", "1.72")),
    ("b2", "vox2", "3,677,760", "0.95", ("0.57", "0.76", "1.41")),
    ("b3", "vox2", "4,181,576", "2.70", ("0.42", "0.66", "1.22")),
    ("b4", "vox2", "6,659,744", "4.62", ("0.37", "0.58", "1.07")),
    ("b5", "vox2", "8,959,272", "9.62", ("0.33", "0.56", "1.07")),
    ("b6", "vox2", "12,394,784", "13.05", ("0.287", "0.52", "0.99")),
    ("b6", "vb2+vox2_v0", "12.5 M", "13.05", ("0.23", "0.35", "0.67")),
    ("b3", "vb2+vox2+cnc2_v0", "-", "-", ("0.51", "0.60", "1.14")),
    ("b6", "vb2+vox2+cnc2_v0", "-", "-", ("0.26", "0.41", "0.79")),
)


@dataclass(frozen=True)
class Released:
    """One published checkpoint, with figures as text.

    Example
    -------
    >>> RELEASED["b3-vox2-lm"].file_name
    'b3-vox2-lm.pt'
    """

    variant: str  # b0 to b6
    corpora: str  # what it was trained on, a key of CORPORA
    stage: str  # ptn (pretraining) or lm (large-margin fine-tuning after it)
    parameters: str
    gmacs: str  # billions of multiply-accumulates for 2 s
    error_rates: tuple[str, str, str]  # EERs in % on VoxCeleb1-O, -E and -H

    @property
    def name(self) -> str:
        """The name by which it is asked for."""
        return f"{self.variant}-{self.corpora}-{self.stage}"

    @property
    def provenance(self) -> Provenance:
        """Its licence, and what it was trained on."""
        return Provenance(LICENSE, CORPORA[self.corpora])

    @property
    def file_name(self) -> str:
        """The name of the published file."""
        return f"{self.name}.pt"


RELEASED = {
    released.name: released
    for variant, corpora, parameters, gmacs, error_rates in FIGURES
    for released in (
        Released(variant, corpora, "ptn", parameters, gmacs, ("-", "-", "-")),
        Released(variant, corpora, "lm", parameters, gmacs, error_rates),
    )
}


def load_released(name: str) -> ReDimNet2:
    """Loads a checkpoint of ``RELEASED``; downloads it the first time.

    A ValueError says that there is none of the name, or that the file is
    damaged or of another architecture; after an OSError, for a download that
    was cut off, the same call goes on from there.

    Example
    -------
    >>> load_released("b3-vox2")
    Traceback (most recent call last):
    ValueError: b3-vox2: no such file, and no published checkpoint has this \
name; did you mean b3-vox2-lm? See redimnet2 convert --list
    """
    if name not in RELEASED:
        stem = Path(name).name.removesuffix(".pt").lower()
        similar = difflib.get_close_matches(stem, RELEASED, n=1)
        hint = f"; did you mean {similar[0]}?" if similar else "."
        raise ValueError(
            f"{name}: no such file, and no published checkpoint has this name"
            f"{hint} See redimnet2 convert --list"
        )
    released = RELEASED[name]
    folder = os.path.join(torch.hub.get_dir(), "checkpoints")
    path = os.path.join(folder, released.file_name)
    if not os.path.exists(path):
        os.makedirs(folder, exist_ok=True)
        download(
            f"{ADDRESS}/{released.file_name}",
            path,
            check=lambda arrived: _load(arrived, released),
        )
    try:
        return _load(path, released)
    except ValueError as error:
        raise ValueError(
            f"{path}: {error} (delete it and run the same command again)"
        ) from error


def _load(path: str | os.PathLike, released: Released) -> ReDimNet2:
    network = load_published(path)
    name = difference(network, released.variant)
    if name is not None:
        key = PUBLISHED_NAMES[name]
        value = published_config(network).get(key)
        raise ValueError(
            f"model_config.{key}: {value} is not that of {released.variant}"
        )
    has_norm = network.arguments()["aggregation_norm"]
    if has_norm != (released.corpora != "vox2"):
        raise ValueError(
            f"model_config.agg_gnorm: {has_norm} is not that of {released.name}"
        )
    return network


def list_released() -> str:
    """The published checkpoints and their figures, in up to 80 columns.

    Example
    -------
    >>> print(list_released().splitlines()[-1])
    b6-vb2+vox2+cnc2_v0-lm   lm              -      -    0.26    0.41    0.79
    """
    row = "{:<23}  {:<5}  {:>10}  {:>5}  {:>6}  {:>6}  {:>6}"
    lines = [
        "Published checkpoints, with their authors' figures (not measured "
        "here): EER in %",
        "on VoxCeleb1's cleaned lists, GMACs for 2 s, - where none is given. "
        "ptn is",
        "pretraining, lm the large-margin fine-tuning after it.",
        "",
        row.format(
            *("name", "stage", "parameters", "GMACs"),
            *("Vox1-O", "Vox1-E", "Vox1-H"),
        ),
    ]
    for corpora, description in CORPORA.items():
        lines += ["", f"Trained on {description}:"]
        lines += [
            row.format(
                released.name,
                released.stage,
                released.parameters,
                released.gmacs,
                *released.error_rates,
            )
            for released in RELEASED.values()
            if released.corpora == corpora
        ]
    return "\n".join(lines)
