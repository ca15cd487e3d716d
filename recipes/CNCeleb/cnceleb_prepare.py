#!/usr/bin/env python3
"""Prepares CN-Celeb: lists for training, and for its multi-enrolment test.

To run it, on CN-Celeb and CN-Celeb2 as unpacked from OpenSLR's resource 82:

> python cnceleb_prepare.py /corpora/CN-Celeb_flac lists/cnceleb
> python cnceleb_prepare.py /corpora/CN-Celeb2_flac lists/cnceleb2

CN-Celeb gives ``train.csv`` of the speakers in dev/dev.lst, and in ``eval/``
its test, CN-Celeb.E: ``enrolments.txt`` names the files of each model in
enroll.map, whose embeddings are averaged. Without it, a model is the one file
in eval/enroll that the corpus has of all these joined. CN-Celeb2 gives
``train.csv`` of all its speakers.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import argparse
import os

from redimnet2_lobes.data.audio import audio_rank, utterance_name
from redimnet2_lobes.data.trials import read_enrolments
from redimnet2_lobes.data.verification_lists import (
    check_layout,
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
    "data/<speaker>/<genre>-<session>-<utterance>.flac, dev/dev.lst and "
    "eval/ (CN-Celeb), or data/ and spk.lst (CN-Celeb2)"
)

# Of cn-celeb_v2.tar.gz; its 196 models and 17,777 tests make all pairs.
MODELS, TRIALS = 196, 3_484_292


def prepare_cnceleb(options: argparse.Namespace) -> None:
    """Writes the lists of either corpus.

    Example
    -------
    >>> prepare_cnceleb(argparse.Namespace(corpus=".", lists="lists"))
    Traceback (most recent call last):
    ValueError: .: there is no data in it; give the unpacked corpus, a folder \
with data/<speaker>/<genre>-<session>-<utterance>.flac, dev/dev.lst and eval/ \
(CN-Celeb), or data/ and spk.lst (CN-Celeb2)
    """
    corpus = options.corpus
    check_layout(corpus, ["data"], LAYOUT)
    speakers, tested = os.path.join(corpus, "spk.lst"), set()
    if not os.path.isfile(speakers):
        speakers = os.path.join(corpus, "dev", "dev.lst")
        parts = ["dev/dev.lst", "eval/lists/enroll.lst", "eval/test"]
        parts += ["eval/lists/enroll.map", "eval/lists/trials.lst"]
        check_layout(corpus, parts, LAYOUT)
        tested = prepare_test(options)
    names = [name for (name,) in read_columns(speakers, "speaker")]
    folders = os.listdir(os.path.join(corpus, "data"))
    there = sorted(set(names).intersection(folders))
    what = f"speakers of {speakers} in data/"
    check_count(what, len(there), len(names), options.allow_incomplete)
    list_training(
        options, {name: find_utterances(corpus, name) for name in there}, tested
    )


def prepare_test(options: argparse.Namespace) -> set[str]:
    """Writes CN-Celeb.E, and gives its speakers."""
    folder = os.path.join(options.corpus, "eval")
    lists = os.path.join(folder, "lists")
    utterances, enrolments = {}, {}
    for model, files in read_enrolments(f"{lists}/enroll.map").items():
        enrolments[model_name(model)] = [utterance_name(name) for name in files]
        for name in files:
            path = os.path.join(options.corpus, "data", name)
            utterances[utterance_name(name)] = path
    for model, file in read_columns(f"{lists}/enroll.lst", "model file"):
        utterances[model_name(model)] = os.path.join(folder, file)
    trials = []
    for label, model, file in read_key(f"{lists}/trials.lst", {"0": 0, "1": 1}):
        test = name_of_test(file)
        utterances[test] = os.path.join(folder, file)
        trials.append((label, model_name(model), test))
    incomplete = options.allow_incomplete
    check_count("CN-Celeb.E: models", len(enrolments), MODELS, incomplete)
    check_count("CN-Celeb.E: trials", len(trials), TRIALS, incomplete)
    all_lists = {"trials": trials}
    if options.by_genre:
        all_lists |= trials_by(trials, genre_of, "genre")
    write_verification_lists(
        os.path.join(options.lists, "eval"),
        utterances,
        enrolments,
        all_lists,
        incomplete,
    )
    return {name.split("/")[0] for name in utterances}


def model_name(model: str) -> str:
    """Begins with the speaker, as all names.

    Example
    -------
    >>> model_name("id00800-enroll")
    'id00800/enroll'
    """
    return model.replace("-", "/", 1)


def name_of_test(file: str) -> str:
    """The name of a test; files in data/ may have the same rest.

    Example
    -------
    >>> name_of_test("test/id00800-singing-01-001.wav")
    'id00800/test/singing-01-001'
    """
    speaker, _, rest = utterance_name(os.path.basename(file)).partition("-")
    return f"{speaker}/test/{rest}"


def genre_of(test: str) -> str:
    """What a test is of, by its name.

    Example
    -------
    >>> genre_of("id00800/test/live_broadcast-01-001")
    'live_broadcast'
    """
    return test.split("/")[-1].split("-")[0]


def find_utterances(corpus: str, speaker: str) -> dict[str, str]:
    """The utterances of a speaker, with their files; a usual format if any."""
    folder = os.path.join(corpus, "data", speaker)
    ranks = {name: audio_rank(name) for name in os.listdir(folder)}
    files = [name for name, rank in ranks.items() if rank is not None]
    return {
        f"{speaker}/{utterance_name(name)}": os.path.join(folder, name)
        for name in sorted(files, key=lambda name: -ranks[name])
    }


def main(arguments: list[str]) -> None:
    """Runs the script."""
    parser = corpus_parser(
        "Prepare CN-Celeb.", "CN-Celeb_flac/ or CN-Celeb2_flac/"
    )
    parser.add_argument(
        "--by_genre",
        action="store_true",
        help="also lists of trials for each genre of the test",
    )
    options = parse_corpus(parser, arguments)
    with only_writer(options.lists, "preparation"):
        prepare_cnceleb(options)


if __name__ == "__main__":
    main_with_one_line_errors(main)
