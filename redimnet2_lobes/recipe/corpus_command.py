"""The command line of the scripts that prepare a corpus.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import argparse
from collections.abc import Mapping, Sequence

from speechbrain.utils.logger import get_logger

from redimnet2_lobes.data.training_list import write_training_list
from redimnet2_lobes.files.settings import check_at_least

logger = get_logger(__name__)


def corpus_parser(description: str, corpus: str) -> argparse.ArgumentParser:
    """A parser for what all of them take; ``corpus`` says which folder.

    Example
    -------
    >>> parser = corpus_parser("Prepare SITW.", "the unpacked database")
    >>> options = parser.parse_args(["/corpora/SITW", "lists/sitw"])
    >>> options.corpus, options.lists, options.minimum_seconds
    ('/corpora/SITW', 'lists/sitw', 1.0)
    """
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("corpus", help=corpus)
    parser.add_argument("lists", help="the folder that receives the lists")
    parser.add_argument(
        "--minimum_seconds",
        type=float,
        default=1.0,
        help="shorter files are not trained on",
    )
    parser.add_argument(
        "--headers_only",
        action="store_true",
        help="do not decode all training files, to find silent ones",
    )
    parser.add_argument(
        "--allow_incomplete",
        action="store_true",
        help="leave out trials of files that are missing",
    )
    parser.add_argument(
        "--workers", type=int, help="processes, as many as CPUs if not given"
    )
    return parser


def parse_corpus(
    parser: argparse.ArgumentParser, arguments: Sequence[str], **lowest: float
) -> argparse.Namespace:
    """Reads the arguments of a `corpus_parser`, before anything is written.

    It is a ValueError if a number is less than its ``lowest``, if it has one.

    Example
    -------
    >>> parser = corpus_parser("Prepare SITW.", "the unpacked database")
    >>> parse_corpus(parser, ["SITW", "lists", "--minimum_seconds=-1"])
    Traceback (most recent call last):
    ValueError: minimum_seconds: -1.0 is less than 0
    """
    options = parser.parse_args(arguments)
    check_at_least(vars(options), minimum_seconds=0, workers=1, **lowest)
    return options


def list_training(
    options: argparse.Namespace,
    speakers: Mapping[str, Mapping[str, str]],
    test_speakers: set[str],
) -> None:
    """Writes the training list, without speakers of the tests, and prints it.

    Arguments
    ---------
    options
        From a `corpus_parser`.
    speakers
        As for `write_training_list`.
    test_speakers
        A warning names those that are left out.
    """
    if common := sorted(test_speakers.intersection(speakers)):
        logger.warning(
            "Preparation: %d speakers of the training are in the tests too, "
            "and left out of the training, the first is %s",
            len(common),
            common[0],
        )
    totals = write_training_list(
        options.lists,
        options.corpus,
        {
            speaker: files
            for speaker, files in speakers.items()
            if speaker not in test_speakers
        },
        options.minimum_seconds,
        not options.headers_only,
        options.workers,
    )
    for line in totals.others:
        print(f"  {line}")
    print(f"{options.lists}/train.csv: {totals}")


def check_count(
    what: str, found: int, published: int, allow_incomplete: bool
) -> None:
    """Refuses, or with ``allow_incomplete`` warns of, another number.

    Example
    -------
    >>> check_count("CN-Celeb.E: models", 195, 196, False)
    Traceback (most recent call last):
    ValueError: CN-Celeb.E: models: found 195, published are 196; unpack the \
rest, or pass --allow_incomplete
    """
    if found == published:
        return
    message = f"{what}: found {found:,}, published are {published:,}"
    if not allow_incomplete:
        raise ValueError(
            f"{message}; unpack the rest, or pass --allow_incomplete"
        )
    logger.warning("Preparation: %s", message)
