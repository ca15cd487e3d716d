"""The corpus of synthetic voices, which needs no packages.

Authors
-------
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from corpus_folder import Utterance, find_corpus, write_corpus
from settings import SETTINGS
from synthetic_voices import synthetic_utterance
from tqdm import tqdm


def write_synthetic_corpus(
    output_folder: str | Path,
    training_speakers: int = 45,
    test_speakers: int = 15,
    utterances_per_speaker: int = 12,
    seconds: float = 3.0,
) -> dict:
    """Writes a corpus of synthetic voices, unless it is there.

    Two utterances of each training speaker (or half, if that is less) are for
    validation. Gives the content of ``corpus.json``.

    Raises
    ------
    CorpusError
        If the folder holds something else.
    """
    output_folder = Path(output_folder)
    settings = {
        "training_speakers": training_speakers,
        "test_speakers": test_speakers,
        "utterances_per_speaker": utterances_per_speaker,
        "seconds": seconds,
        "most_validation_trials": SETTINGS["most_validation_trials"],
    }
    if found := find_corpus(output_folder, "synthetic", settings):
        return found
    parts = {
        f"synthetic-{seed:03d}": "train" if seed < training_speakers else "test"
        for seed in range(training_speakers + test_speakers)
    }
    held_out = min(2, utterances_per_speaker // 2)

    def speak() -> Iterator[tuple[Utterance, np.ndarray]]:
        for seed, (speaker, part) in enumerate(
            tqdm(parts.items(), desc="writing utterances", unit="speaker")
        ):
            for index in range(utterances_per_speaker):
                path = f"{speaker}/synthetic/{index + 1:05d}.wav"
                validation = part == "train" and index < held_out
                yield (
                    Utterance(path, "validation" if validation else part),
                    synthetic_utterance(seed, index, seconds),
                )

    description = {
        "origin": "synthetic",
        "settings": settings,
        "speakers": {
            speaker: {"part": part} for speaker, part in parts.items()
        },
    }
    return write_corpus(output_folder, speak(), description)
