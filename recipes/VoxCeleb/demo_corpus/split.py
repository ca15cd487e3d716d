"""The split: who is for training, who for testing, what for validation.

Authors
-------
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import collections
import random

import torch
from clips import join_clips, split_long_clip
from corpus_folder import CorpusError, Utterance
from settings import SETTINGS

# Its sound is changed by effects, so that it says nothing about a speaker.
ROBOT = "hedgewars-Robot"


def choose_speakers(
    seconds: dict[str, float], languages: dict[str, str]
) -> tuple[dict[str, str], dict[str, str]]:
    """Decides which speakers are for training and which for testing.

    No language is in both, and no test language has two speakers, since they
    may be one person.

    Arguments
    ---------
    seconds
        Speaker to seconds of clips.
    languages
        Speaker to language.

    Returns
    -------
    parts
        Speaker to ``train`` or ``test``.
    dropped_speakers
        Speaker to reason.

    Raises
    ------
    CorpusError
        If too few speakers are left for testing.
    """
    test_languages = set(map(_base_language, SETTINGS["test_languages"]))
    parts, dropped_speakers, tested = {}, {}, set()
    # Of each test language the speaker with the most material is kept.
    for speaker in sorted(seconds, key=lambda name: (-seconds[name], name)):
        language = _base_language(languages[speaker])
        if speaker == ROBOT:
            dropped_speakers[speaker] = "not a human voice"
        elif seconds[speaker] < SETTINGS["shortest_speaker_seconds"]:
            dropped_speakers[speaker] = "under 20 s"
        elif language not in test_languages:
            parts[speaker] = "train"
        elif language in tested:
            dropped_speakers[speaker] = "test language of another speaker"
        else:
            tested.add(language)
            parts[speaker] = "test"
    counts = collections.Counter(parts.values())
    fewest = SETTINGS["fewest_test_speakers"]
    if counts["test"] < fewest or counts["train"] < 2:
        raise CorpusError(
            f"the packages hold {counts['test']} test speakers and "
            f"{counts['train']} training speakers, needed are {fewest} and 2; "
            "empty the cache folder to download them again"
        )
    return dict(sorted(parts.items())), dict(sorted(dropped_speakers.items()))


def _base_language(language: str) -> str:
    """A volunteer may well have recorded two regions' forms of a language."""
    return language.split("_")[0]


def make_utterances(
    speaker: str, part: str, sessions: dict[str, list[torch.Tensor]]
) -> list[tuple[Utterance, torch.Tensor]]:
    """Makes the utterances of one speaker, each with its waveform [time].

    For ``part`` "test" they are at most 12; for "train" all, some of them held
    out for validation. ``sessions`` holds the clips of each session.
    """
    # Seeded by the name, so that no speaker depends on the others.
    chance = random.Random(f"{SETTINGS['seed']} {speaker}")
    waveforms = {}
    for session, clips in sorted(sessions.items()):
        pieces = [piece for clip in clips for piece in split_long_clip(clip)]
        chance.shuffle(pieces)
        for number, waveform in enumerate(join_clips(pieces), start=1):
            waveforms[f"{speaker}/{session}/{number:05d}.wav"] = waveform
    paths = sorted(waveforms)
    held_out = []
    if part == "test":
        most = SETTINGS["test_utterances_per_speaker"]
        paths = sorted(chance.sample(paths, min(most, len(paths))))
    else:
        # Two of each speaker, up to four of those who said much; never more
        # than half.
        count = min(4, max(2, len(paths) // 10), len(paths) // 2)
        held_out = chance.sample(paths, count)
    part_of = dict.fromkeys(paths, part) | dict.fromkeys(held_out, "validation")
    return [(Utterance(path, part_of[path]), waveforms[path]) for path in paths]
