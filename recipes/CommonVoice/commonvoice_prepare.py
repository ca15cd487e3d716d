#!/usr/bin/env python3
"""Prepares a language of Common Voice, or a folder like it.

To run it, on the folder with clips/ and validated.tsv:

> python commonvoice_prepare.py /corpora/cv-corpus-22.0/ga-IE lists/cv_ga

A client_id is taken for a speaker. ``test/`` has trials drawn by seed, of some
speakers named in test.tsv (if there is none, of all); ``train.csv`` lists the
others, without anyone named in test.tsv. Both take all validated clips of a
speaker who has enough of them. Clips are MP3 of 32 or 48 kHz: for training they
are converted to 16 kHz, which takes 230 MB an hour.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import argparse
import os
from collections.abc import Iterator

import numpy as np

from redimnet2_lobes.data.audio import utterance_name
from redimnet2_lobes.data.verification_lists import (
    check_layout,
    draw_trials,
    read_table,
    write_verification_lists,
)
from redimnet2_lobes.files.folder_lock import only_writer
from redimnet2_lobes.recipe.command_line import main_with_one_line_errors
from redimnet2_lobes.recipe.corpus_command import (
    corpus_parser,
    list_training,
    parse_corpus,
)

LAYOUT = "clips/ and validated.tsv"


def read_clips(path: str) -> Iterator[tuple[str, str, str]]:
    r"""Yields the speaker, the file and the gender, if any, of each clip.

    Example
    -------
    >>> path = getfixture("tmp_path") / "validated.tsv"
    >>> _ = path.write_text("client_id\tpath\tgender\nf00d\tga_1.mp3\t\n")
    >>> list(read_clips(path))
    [('f00d', 'ga_1.mp3', '')]
    """
    for number, row in read_table(path, ["client_id", "path"]):
        speaker, file = row["client_id"], row["path"]
        if "/" in speaker + file or len(f"{speaker}{file}".split()) > 1:
            raise ValueError(
                f"{path}, line {number}: client_id or path has a space or a "
                "slash; rename it"
            )
        yield speaker, file, row.get("gender", "")


def prepare_commonvoice(options: argparse.Namespace) -> None:
    """Writes the test and the training list."""
    check_layout(options.corpus, ["clips", "validated.tsv"], LAYOUT)
    speakers, genders = {}, {}
    validated = os.path.join(options.corpus, "validated.tsv")
    for speaker, file, gender in read_clips(validated):
        path = os.path.join(options.corpus, "clips", file)
        if not os.path.splitext(file)[1]:  # in the first releases
            path += ".mp3"
        clips = speakers.setdefault(speaker, {})
        clips[f"{speaker}/{utterance_name(file)}"] = path
        genders[speaker] = gender or genders.get(speaker, "")
    if not speakers:
        raise ValueError(
            f"{validated}: names no clips; unpack the corpus again"
        )
    enough = {
        speaker: clips
        for speaker, clips in speakers.items()
        if len(clips) >= options.minimum_clips
    }
    print(
        f"  {len(speakers) - len(enough)} of {len(speakers)} speakers left "
        f"out: fewer than {options.minimum_clips} validated clips"
    )
    named = os.path.join(options.corpus, "test.tsv")
    reserved = set()
    if os.path.isfile(named):
        reserved = {speaker for speaker, _, _ in read_clips(named)}
    candidates = reserved.intersection(enough) if reserved else set(enough)
    chosen = choose_speakers(options, candidates, genders)
    write_test(options, {name: enough[name] for name in chosen}, genders)
    rest = {
        speaker: clips
        for speaker, clips in enough.items()
        if speaker not in reserved.union(chosen)
    }
    list_training(options, rest, set(chosen))


def choose_speakers(
    options: argparse.Namespace, candidates: set[str], genders: dict[str, str]
) -> list[str]:
    """Draws the speakers of the test."""
    random = np.random.default_rng([options.seed, 0])
    named = sorted(
        name for name in candidates if genders[name] or not options.same_gender
    )
    random.shuffle(named)
    chosen = sorted(named[: options.test_speakers])
    if len(chosen) < 2:
        raise ValueError(
            f"{options.corpus}: {len(chosen)} speakers for a test have "
            f"{options.minimum_clips} clips; two are needed, so lower "
            "--minimum_clips"
        )
    return chosen


def write_test(
    options: argparse.Namespace,
    speakers: dict[str, dict[str, str]],
    genders: dict[str, str],
) -> None:
    """Draws models and trials of the speakers, and writes the test."""
    random = np.random.default_rng([options.seed, 1])
    models, enrolments, tests = {}, {}, {}
    for speaker, clips in speakers.items():
        names = [str(name) for name in random.permutation(sorted(clips))]
        models[f"{speaker}/model"] = speaker
        enrolments[f"{speaker}/model"] = names[: options.enrolment_clips]
        tests[speaker] = names[options.enrolment_clips :]
    trials = draw_trials(
        models,
        tests,
        options.trials_per_speaker,
        random,
        genders if options.same_gender else None,
    )
    used = {name for names in enrolments.values() for name in names}
    used |= {test for _, _, test in trials}
    utterances = {
        name: path
        for clips in speakers.values()
        for name, path in clips.items()
        if name in used
    }
    write_verification_lists(
        os.path.join(options.lists, "test"),
        utterances,
        enrolments,
        {"trials": trials},
        options.allow_incomplete,
    )


def main(arguments: list[str]) -> None:
    """Runs the script."""
    parser = corpus_parser("Prepare Common Voice.", "the folder of a language")
    parser.add_argument(
        "--same_gender",
        action="store_true",
        help="draw trials of different speakers within a gender only",
    )
    numbers = {
        "minimum_clips": (10, "that a speaker must have"),
        "test_speakers": (200, "at most"),
        "enrolment_clips": (3, "of each model"),
        "trials_per_speaker": (20, "of each kind, at most"),
        "seed": (1, "of speakers, models and trials"),
    }
    for name, (default, text) in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=text)
    options = parse_corpus(
        parser,
        arguments,
        test_speakers=2,
        enrolment_clips=1,
        trials_per_speaker=1,
        seed=0,
    )
    if options.minimum_clips <= options.enrolment_clips:
        raise ValueError(
            f"--minimum_clips: {options.minimum_clips} leave none to test "
            f"beside {options.enrolment_clips} of enrolment; raise it"
        )
    with only_writer(options.lists, "preparation"):
        prepare_commonvoice(options)


if __name__ == "__main__":
    main_with_one_line_errors(main)
