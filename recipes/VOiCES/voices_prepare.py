#!/usr/bin/env python3
"""Prepares VOiCES for training and verification over a distance.

To run it, on the data of the VOiCES from a Distance Challenge 2019, or on the
devkit or the full release:

> python voices_prepare.py /corpora/VOiCES_Box_unzip lists/voices2019 --by room
> python voices_prepare.py /corpora/VOiCES_devkit lists/voices --by room mic

The challenge gives tests, ``dev/`` and ``eval/``, with its own trials. The
release has none: ``train.csv`` lists its training part, and ``test/`` has
trials drawn from its test part, of models from clean source files against
distant recordings of other sentences. With --by there are also lists for each
room, distractor or microphone of the tests.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import argparse
import fnmatch
import functools
import os

import numpy as np
from voices_names import BY, describe, name_of

from redimnet2_lobes.data.audio import list_audio, utterance_name
from redimnet2_lobes.data.verification_lists import (
    check_layout,
    draw_trials,
    read_columns,
    read_key,
    trials_by,
    write_verification_lists,
)
from redimnet2_lobes.files.folder_lock import only_writer
from redimnet2_lobes.recipe.command_line import main_with_one_line_errors
from redimnet2_lobes.recipe.corpus_command import (
    check_count,
    corpus_parser,
    list_training,
    parse_corpus,
)

LAYOUT = (
    "sid_dev_lists_and_keys/ and sid_dev/, or sid_eval_lists/, sid_eval/ and "
    "the post-evaluation release (challenge), or source-16k/ and "
    "distant-16k/speech/, each with train/ and test/ (release)"
)
RELEASE = ("source-16k", os.path.join("distant-16k", "speech"))
# Distant recordings for training in the devkit and in the full release.
DEVKIT, FULL = 12_800, 661_248


def prepare_voices(options: argparse.Namespace) -> None:
    """Writes the lists of what is in the corpus."""
    if all(os.path.isdir(os.path.join(options.corpus, x)) for x in RELEASE):
        prepare_release(options)
        return
    found = find_lists(options.corpus)
    parts = [part for part in ("dev", "eval") if f"{part}-enroll.lst" in found]
    if not parts:
        lists = "sid_dev_lists_and_keys/dev-enroll.lst"
        check_layout(options.corpus, [lists], LAYOUT)
    for part in parts:
        prepare_challenge(options, part, found)


def find_lists(corpus: str) -> dict[str, str]:
    """The lists of the challenge, wherever its archives were unpacked to."""
    found = {}
    for folder, folders, files in os.walk(corpus):
        folders[:] = [x for x in folders if x not in ("sid_dev", "sid_eval")]
        for name in fnmatch.filter(files, "*.lst") + fnmatch.filter(
            files, "*SID.map"
        ):
            found[name] = os.path.join(folder, name)
    return found


def prepare_challenge(
    options: argparse.Namespace, part: str, found: dict[str, str]
) -> None:
    """Writes the test of a part of the challenge."""
    enroll = found[f"{part}-enroll.lst"]
    folder = os.path.dirname(os.path.dirname(enroll))
    keys = fnmatch.filter(found, f"*{part}*trial-keys.lst")
    if not keys:
        raise ValueError(
            f"{options.corpus}: there is no list {part}-trial-keys.lst in it; "
            "of the evaluation it is in the post-evaluation release"
        )
    originals = {}
    for name in fnmatch.filter(found, f"*{part}*SID.map"):
        for anonymous, original in read_columns(found[name], "name original"):
            originals[utterance_name(anonymous)] = original
    utterances, enrolments, models = {}, {}, {}

    @functools.cache  # a list names it many times
    def add(file: str) -> str:
        path = file if "/" in file else f"sid_{part}/{file}"
        stem = utterance_name(os.path.basename(file))
        name = name_of(file, originals.get(stem))
        utterances[name] = os.path.join(folder, path)
        return name

    for model, file in read_columns(enroll, "model file"):
        name = add(file)
        stem = model.split("VOiCES-")[-1]
        models[model] = f"{name.split('/')[0]}/{stem}"
        enrolments.setdefault(models[model], []).append(name)
    trials = []
    for label, model, file in read_key(found[keys[0]], {"tgt": 1, "imp": 0}):
        if model not in models:
            raise ValueError(
                f"{found[keys[0]]}: model {model} is not in {enroll}; unpack "
                "the corpus again"
            )
        trials.append((label, models[model], add(file)))
    write(options, part, utterances, enrolments, trials)


def prepare_release(options: argparse.Namespace) -> None:
    """Writes the training list, and a test of drawn trials."""
    source, distant = RELEASE
    parts = [f"{x}/{part}" for x in RELEASE for part in ("train", "test")]
    check_layout(options.corpus, parts, LAYOUT)
    files = {
        part: list_audio(os.path.join(options.corpus, part)).paths
        for part in parts
    }
    number = len(files[f"{distant}/train"])
    check_count(
        "VOiCES: distant recordings for training",
        number,
        FULL if number > DEVKIT else DEVKIT,
        options.allow_incomplete,
    )
    random = np.random.default_rng(options.seed)
    models, enrolments, utterances, enrolled = {}, {}, {}, set()
    for speaker, paths in by_speaker(files[f"{source}/test"]).items():
        names = list(random.permutation(sorted(paths)))
        names = [str(name) for name in names[: options.enrolment_files]]
        models[f"{speaker}/model"] = speaker
        enrolments[f"{speaker}/model"] = names
        utterances |= {name: paths[name] for name in names}
        enrolled |= {(speaker, describe(name)["sentence"]) for name in names}
    tests = {}
    for speaker, paths in by_speaker(files[f"{distant}/test"]).items():
        tests[speaker] = [
            name
            for name in sorted(paths)
            if (speaker, describe(name)["sentence"]) not in enrolled
        ]
        utterances |= {name: paths[name] for name in tests[speaker]}
    models = {name: each for name, each in models.items() if each in tests}
    trials = draw_trials(models, tests, options.trials_per_speaker, random)
    tested = {name for _, *names in trials for name in names}
    tested |= {name for model in models for name in enrolments[model]}
    write(
        options,
        "test",
        {name: utterances[name] for name in utterances if name in tested},
        {model: enrolments[model] for model in models},
        trials,
    )
    training = files[f"{source}/train"] + files[f"{distant}/train"]
    list_training(options, by_speaker(training), set(tests))


def by_speaker(paths: list[str]) -> dict[str, dict[str, str]]:
    """The utterances of each speaker, with their files."""
    speakers = {}
    for path in paths:
        speaker = describe(path)["speaker"]
        if speaker == "unknown":
            raise ValueError(
                f"{path}: its name is none of VOiCES's, so whose it is remains "
                "unknown; take it out of the corpus"
            )
        speakers.setdefault(speaker, {})[name_of(path)] = path
    return speakers


def write(
    options: argparse.Namespace,
    part: str,
    utterances: dict[str, str],
    enrolments: dict[str, list[str]],
    trials: list[tuple[int, str, str]],
) -> None:
    """Writes a test, with lists by what the names of its tests say."""
    lists = {"trials": trials}
    for key in options.by:
        lists |= trials_by(trials, lambda name, k=key: describe(name)[k], key)
    folder = os.path.join(options.lists, part)
    write_verification_lists(
        folder, utterances, enrolments, lists, options.allow_incomplete
    )


def main(arguments: list[str]) -> None:
    """Runs the script."""
    parser = corpus_parser("Prepare VOiCES.", "the challenge's, or a release")
    parser.add_argument(
        "--by",
        nargs="+",
        choices=BY,
        default=[],
        help="also lists by these",
    )
    numbers = {
        "enrolment_files": (3, "source files of a model (release)"),
        "trials_per_speaker": (50, "of each kind (release)"),
        "seed": (1, "of the trials (release)"),
    }
    for name, (default, text) in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=text)
    options = parse_corpus(
        parser, arguments, enrolment_files=1, trials_per_speaker=1, seed=0
    )
    with only_writer(options.lists, "preparation"):
        prepare_voices(options)


if __name__ == "__main__":
    main_with_one_line_errors(main)
