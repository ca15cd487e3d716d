"""Builds a small speaker verification corpus of real voices for the demo.

The voices come from four Debian packages of games and learning programs, in
which volunteers speak letters, words and short sentences. Their clips, of about
a second each, are joined into utterances of about three seconds and written in
the layout of VoxCeleb::

    OUTPUT_FOLDER/wav/<speaker>/<session>/<utterance>.wav
    OUTPUT_FOLDER/veri_test2.txt        trials over speakers kept for testing
    OUTPUT_FOLDER/veri_validation.txt   trials over held-out utterances of the
                                        training speakers
    OUTPUT_FOLDER/dropped_files.txt     one line for each file left out
    OUTPUT_FOLDER/corpus.json           what was built; written last

Where apt-get is missing or a download fails, synthetic voices take over; the
output and ``corpus.json`` say so. ``README.md`` beside this file names the
origins and licences, and the modules, one for each step.

Example
-------
python prepare_demo_corpus.py corpus

Authors
-------
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import argparse
import logging
from pathlib import Path

import torch
from debian_packages import PackageError
from real_corpus import write_real_corpus
from synthetic_corpus import write_synthetic_corpus

from redimnet2_lobes.files.error_lines import one_line_errors

logger = logging.getLogger(__name__)


def build_demo_corpus(
    output_folder: str | Path, cache_folder: str | Path, synthetic: bool = False
) -> dict:
    """Builds the corpus unless it is there; gives the content of corpus.json.

    The voices are synthetic on request, or if the packages cannot be had.

    Raises
    ------
    CorpusError
        If there are too few speakers, or the folder holds something else.
    """
    if not synthetic:
        try:
            return write_real_corpus(output_folder, cache_folder)
        except PackageError as error:
            logger.warning(
                "No real speech here: %s. SYNTHETIC VOICES take its place; "
                "figures measured on them say nothing about people.",
                error,
            )
    return write_synthetic_corpus(output_folder)


def summary(description: dict) -> str:
    """The parts, trials and dropped files of a corpus, to be read."""
    lines = [f"{description['origin'].upper()} voices"]
    for part, row in description["split"].items():
        lines.append(
            f"{part:12}{row['speakers']:4} speakers {row['utterances']:6} "
            f"utterances {row['seconds'] / 60:7.1f} minutes"
        )
    for name, row in description["trials"].items():
        lines.append(
            f"{name}: {row['target']} target and {row['nontarget']} "
            "nontarget trials"
        )
    for reason, count in description.get("dropped_files", {}).items():
        lines.append(f"dropped {count} files: {reason}")
    for speaker, reason in description.get("dropped_speakers", {}).items():
        lines.append(f"dropped speaker {speaker}: {reason}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Runs the script."""
    parser = argparse.ArgumentParser(
        description="Build the demo corpus from recordings in Debian packages."
    )
    parser.add_argument("output_folder", help="where to write the corpus")
    parser.add_argument(
        "--cache",
        default="demo_cache",
        help="where downloaded packages stay (default: %(default)s)",
    )
    parser.add_argument(
        "--synthetic",
        action="store_true",
        help="build the synthetic stand-in, without any download",
    )
    options = parser.parse_args(arguments)
    # One thread for each clip read; more would only wait for each other.
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with one_line_errors():
        description = build_demo_corpus(
            options.output_folder, options.cache, options.synthetic
        )
    print(summary(description))


if __name__ == "__main__":
    main()
