"""The folder of a corpus: its utterances, trial lists and description.

Authors
-------
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import collections
import dataclasses
import itertools
import json
import logging
import random
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from settings import FORMAT_VERSION, SETTINGS
from speechbrain.dataio import audio_io

from redimnet2_lobes.files.atomic import replace_when_synced

logger = logging.getLogger(__name__)


class CorpusError(ValueError):
    """The corpus cannot be built; the message says why in one line."""


@dataclasses.dataclass(frozen=True)
class Utterance:
    """An utterance of the corpus."""

    path: str  # of its file, relative to the folder wav
    part: str  # train, validation or test

    @property
    def speaker(self) -> str:
        """The first folder of the path."""
        return self.path.split("/")[0]


def make_trials(
    utterances: list[Utterance], most_trials: int | None = None
) -> list[str]:
    """Pairs utterances for verification, as lines of a list of VoxCeleb.

    If there are more than ``most_trials``, all target pairs stay, and as many
    nontarget pairs, chosen by the seed, as fill this number.

    Example
    -------
    >>> paths = ["a/x/1.wav", "a/y/1.wav", "b/x/1.wav"]
    >>> for line in make_trials([Utterance(path, "test") for path in paths]):
    ...     print(line)
    1 a/x/1.wav a/y/1.wav
    0 a/x/1.wav b/x/1.wav
    0 a/y/1.wav b/x/1.wav
    """
    pairs = list(itertools.combinations(utterances, 2))
    if most_trials is not None and len(pairs) > most_trials:
        target = [pair for pair in pairs if pair[0].speaker == pair[1].speaker]
        others = [pair for pair in pairs if pair[0].speaker != pair[1].speaker]
        room = max(0, most_trials - len(target))
        pairs = target + random.Random(SETTINGS["seed"]).sample(others, room)
    return [
        f"{int(enrol.speaker == test.speaker)} {enrol.path} {test.path}"
        for enrol, test in pairs
    ]


def find_corpus(
    output_folder: Path, origin: str, settings: dict
) -> dict | None:
    """The content of ``corpus.json``, if the corpus need not be built again.

    Its ``origin`` ("real" or "synthetic") and settings must be those given.

    Raises
    ------
    CorpusError
        If the folder holds files that this script did not write.
    """
    found = _read_description(output_folder)
    wanted = {
        "format_version": FORMAT_VERSION,
        "origin": origin,
        "settings": settings,
    }
    if found and found.items() >= wanted.items():
        logger.info(
            "reusing the corpus of %s voices in %s", origin, output_folder
        )
        return found
    # What an interrupted run leaves is a folder .building.
    if not found and not _building(output_folder).is_dir():
        for name in ("wav", "veri_test2.txt", "corpus.json"):
            if (output_folder / name).exists():
                raise CorpusError(
                    f"{output_folder / name} was not made by this script; "
                    "choose another output folder"
                )
    return None


def _read_description(output_folder: Path) -> dict | None:
    try:
        text = (output_folder / "corpus.json").read_text(encoding="utf-8")
        description = json.loads(text)
    except (OSError, ValueError):
        return None
    ours = isinstance(description, dict) and "format_version" in description
    return description if ours else None


def write_corpus(
    output_folder: Path,
    utterances: Iterable[tuple[Utterance, torch.Tensor | np.ndarray]],
    description: dict,
    report: str = "",
) -> dict:
    """Writes all files of a corpus; gives the content of ``corpus.json``.

    Everything is written into a folder ``.building`` and moved from there, so
    that no half-written file ever has its final name. Another corpus in the
    output folder is replaced.

    Arguments
    ---------
    output_folder
    utterances
        Each with its waveform at 16 kHz [time].
    description
        What to put into ``corpus.json`` besides the figures counted here.
    report
        The content of ``dropped_files.txt``.
    """
    building = _building(output_folder)
    if building.exists():
        shutil.rmtree(building)
    building.mkdir(parents=True)
    rate = SETTINGS["sample_rate"]
    written = {"train": [], "validation": [], "test": []}
    seconds = collections.Counter()
    for utterance, waveform in utterances:
        path = building / "wav" / utterance.path
        path.parent.mkdir(parents=True, exist_ok=True)
        audio_io.save(path, waveform, rate, subtype="PCM_16")
        written[utterance.part].append(utterance)
        seconds[utterance.part] += len(waveform) / rate
    trials = {
        "veri_test2.txt": make_trials(written["test"]),
        "veri_validation.txt": make_trials(
            written["validation"], SETTINGS["most_validation_trials"]
        ),
    }
    description = {
        "format_version": FORMAT_VERSION,
        **description,
        "split": {
            part: {
                "speakers": len({item.speaker for item in items}),
                "utterances": len(items),
                "seconds": round(seconds[part], 1),
            }
            for part, items in written.items()
        },
        "trials": {
            name: {
                "target": sum(line.startswith("1 ") for line in lines),
                "nontarget": sum(line.startswith("0 ") for line in lines),
            }
            for name, lines in trials.items()
        },
    }
    texts = {
        "dropped_files.txt": report,
        **{name: "\n".join(lines) + "\n" for name, lines in trials.items()},
        "corpus.json": json.dumps(description, indent=2) + "\n",
    }
    for name, text in texts.items():
        (building / name).write_text(text, encoding="utf-8")

    # From here on only names change. While they do there is no corpus.json, so
    # that a mixture of old and new is not taken for a corpus.
    (output_folder / "corpus.json").unlink(missing_ok=True)
    if (output_folder / "wav").exists():
        shutil.rmtree(output_folder / "wav")
    for name in ("wav", *texts):
        replace_when_synced(building / name, output_folder / name)
    building.rmdir()
    return description


def _building(output_folder: Path) -> Path:
    return output_folder / ".building"
