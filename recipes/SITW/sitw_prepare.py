#!/usr/bin/env python3
"""Prepares Speakers in the Wild (SITW) for verification.

To run it, on the unpacked sitw_database.v4:

> python sitw_prepare.py /corpora/sitw_database.v4 lists/sitw

The folders ``dev/`` and ``eval/`` get a list for each key of SITW: core-core,
core-multi, assist-core, assist-multi and more. Models of assist are segments of
files, as annotated. One ``enrolments.txt`` serves all lists of a part: models
are called ``<speaker>/core-<model>`` or ``<speaker>/assist-<model>``.

With --train_on_dev the development part becomes ``train.csv``, of its files
with one speaker, in place of a test.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import argparse
import functools
import glob
import os
import re

from redimnet2_lobes.data.audio import utterance_name
from redimnet2_lobes.data.sources import segment_source
from redimnet2_lobes.data.verification_lists import (
    check_layout,
    read_columns,
    read_key,
    write_verification_lists,
)
from redimnet2_lobes.files.folder_lock import only_writer
from redimnet2_lobes.recipe.command_line import main_with_one_line_errors
from redimnet2_lobes.recipe.corpus_command import (
    corpus_parser,
    list_training,
    parse_corpus,
)

LAYOUT = "dev/ and eval/, each with audio/, keys/ and lists/"
KEY = re.compile(r"((core|assist|assistclean)-(core|multi)(\..+)?)\.lst")
META = "file speaker gender microphone session start stop speakers"


def prepare_sitw(options: argparse.Namespace) -> None:
    """Writes the lists of both parts."""
    parts = ["dev", "eval"]
    check_layout(
        options.corpus,
        [f"{part}/{name}" for part in parts for name in ("keys", "lists")],
        LAYOUT,
    )
    tested = set()
    for part in parts[options.train_on_dev :]:
        tested |= prepare_part(options, part)
    if options.train_on_dev:
        list_training(options, single_speakers(options.corpus), tested)


def prepare_part(options: argparse.Namespace, part: str) -> set[str]:
    """Writes the test of a part, and gives its speakers."""
    folder = os.path.join(options.corpus, part)
    speaker_of = {row[0]: row[1] for row in read_meta(folder)}

    @functools.cache  # a list names it many times
    def named(file: str) -> str:
        stem = utterance_name(os.path.basename(file))
        return f"{speaker_of.get(file, 'unknown')}/{stem}"

    utterances, enrolments, models = {}, {}, {}
    for kind in ("core", "assist", "assistclean"):
        path = os.path.join(folder, "lists", f"enroll-{kind}.lst")
        if kind == "assistclean" and not os.path.exists(path):
            continue
        form = "model file" if kind == "core" else "model file start stop"
        for model, file, *borders in read_columns(path, form):
            name, source = named(file), os.path.join(folder, file)
            if borders:
                name = "-".join([name, *borders])
                try:
                    source = segment_source(source, *borders, unit="s")
                except ValueError as error:
                    raise ValueError(f"{path}: {file}: {error}") from None
            utterances[name] = source
            known = models.setdefault(
                (kind, model), f"{named(file).split('/')[0]}/{kind}-{model}"
            )
            enrolments.setdefault(known, []).append(name)
    lists = {}
    keys = os.path.join(folder, "keys")
    for path in sorted(glob.glob(f"{keys}/*.lst") + glob.glob(f"{keys}/aux/*")):
        if not (match := KEY.fullmatch(os.path.basename(path))):
            continue
        name, kind = match[1], match[2]
        lists[name] = []
        for label, model, file in read_key(path, {"tgt": 1, "imp": 0}):
            if (kind, model) not in models:
                raise ValueError(
                    f"{path}: model {model} is not in lists/enroll-{kind}.lst; "
                    "unpack the corpus again"
                )
            utterances[named(file)] = os.path.join(folder, file)
            lists[name].append((label, models[kind, model], named(file)))
    write_verification_lists(
        os.path.join(options.lists, part),
        utterances,
        enrolments,
        lists,
        options.allow_incomplete,
    )
    return {name.split("/")[0] for name in utterances}


def read_meta(folder: str) -> list[list[str]]:
    """What the corpus says of each file, see META.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> (folder / "keys").mkdir()
    >>> line = "audio/skdts.flac ZPYJ m video 605273 96 120 1 codec 3 interview"
    >>> _ = (folder / "keys" / "meta.lst").write_text(line)
    >>> read_meta(folder)[0][:2]
    ['audio/skdts.flac', 'ZPYJ']
    """
    return list(read_columns(os.path.join(folder, "keys", "meta.lst"), META))


def single_speakers(corpus: str) -> dict[str, dict[str, str]]:
    """The files of the development part in which one person speaks."""
    folder = os.path.join(corpus, "dev")
    speakers = {}
    for file, speaker, *_, number in read_meta(folder):
        if number == "1":
            stem = utterance_name(os.path.basename(file))
            files = speakers.setdefault(speaker, {})
            files[f"{speaker}/{stem}"] = os.path.join(folder, file)
    return speakers


def main(arguments: list[str]) -> None:
    """Runs the script."""
    parser = corpus_parser("Prepare SITW.", "sitw_database.v4/")
    parser.add_argument(
        "--train_on_dev",
        action="store_true",
        help="list the development part for training, not as a test",
    )
    options = parse_corpus(parser, arguments)
    with only_writer(options.lists, "preparation"):
        prepare_sitw(options)


if __name__ == "__main__":
    main_with_one_line_errors(main)
