"""The lists that verification takes, from those that a corpus comes with.

The folder of a test receives ``utterances.csv`` (``utterance_list`` in the YAML
of verification), ``enrolments.txt`` (``enrolment_file``) and lists of trials
(``verification_file``). Names of utterances and models begin with the speaker,
``<speaker>/...``: the uncertainty of error rates, and the warning of speakers
that were trained on, go by that.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import csv
import itertools
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
from speechbrain.utils.logger import get_logger

from redimnet2_lobes.data.audio_checks import Path, text_file
from redimnet2_lobes.data.lists import read_lines
from redimnet2_lobes.data.sources import split_source
from redimnet2_lobes.data.trial_files import existing_files, list_missing

logger = get_logger(__name__)

Trial = tuple[int, str, str]  # label, model, test


def check_layout(corpus: Path, parts: Iterable[str], layout: str) -> None:
    """Refuses, with a ValueError, a folder that is not the unpacked corpus.

    Example
    -------
    >>> check_layout("nowhere", ["eval/lists"], "eval/ and data/")
    Traceback (most recent call last):
    ValueError: nowhere: there is no eval/lists in it; give the unpacked \
corpus, a folder with eval/ and data/
    """
    for part in parts:
        if not os.path.exists(os.path.join(corpus, part)):
            raise ValueError(
                f"{corpus}: there is no {part} in it; give the unpacked "
                f"corpus, a folder with {layout}"
            )


def read_columns(path: Path, form: str) -> Iterator[list[str]]:
    r"""Yields the columns of a list; further ones are left out.

    Example
    -------
    >>> path = getfixture("tmp_path") / "enroll.lst"
    >>> _ = path.write_text("anna a/1.wav more\n\nbert\n")
    >>> columns = read_columns(path, "model file")
    >>> next(columns)
    ['anna', 'a/1.wav']
    >>> next(columns)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: .../enroll.lst, line 3: expected 'model file', found 'bert'
    """
    count = len(form.split())
    for number, line in read_lines(path):
        columns = line.split()
        if columns and len(columns) < count:
            raise ValueError(
                f"{path}, line {number}: expected {form!r}, found "
                f"{line.strip()[:80]!r}"
            )
        if columns:
            yield columns[:count]


def read_table(
    path: Path, columns: Sequence[str]
) -> Iterator[tuple[int, dict[str, str]]]:
    r"""Yields (line number, row) of a table with a header, split by tabs.

    Each row has a value in ``columns``; others may be missing.

    Example
    -------
    >>> path = getfixture("tmp_path") / "test.tsv"
    >>> _ = path.write_text('client_id\tpath\tsentence\nf00d\t1.mp3\tAn "\n')
    >>> next(read_table(path, ["client_id"]))
    (2, {'client_id': 'f00d', 'path': '1.mp3', 'sentence': 'An "'})
    """
    header = None
    for number, line in read_lines(path):
        values = line.rstrip("\r\n").split("\t")
        if header is None:
            header = values
            continue
        row = dict(zip(header, values, strict=False))
        if line.strip():
            if not all(row.get(column) for column in columns):
                raise ValueError(
                    f"{path}, line {number}: no {' or '.join(columns)}; "
                    "expected these columns, separated by tabs"
                )
            yield number, row


def read_key(path: Path, labels: Mapping[str, int]) -> Iterator[Trial]:
    """Yields the trials of a list with the columns model, file and label.

    Example
    -------
    >>> path = getfixture("tmp_path") / "core-core.lst"
    >>> _ = path.write_text("12013 audio/unotx.flac tgt")
    >>> list(read_key(path, {"tgt": 1, "imp": 0}))
    [(1, '12013', 'audio/unotx.flac')]
    """
    for model, file, label in read_columns(path, "model file label"):
        if label not in labels:
            raise ValueError(
                f"{path}: {model} {file} has the label {label!r}, expected "
                f"{' or '.join(labels)}"
            )
        yield labels[label], model, file


def write_verification_lists(
    folder: Path,
    utterances: Mapping[str, str],
    enrolments: Mapping[str, Sequence[str]],
    lists: Mapping[str, Sequence[Trial]],
    allow_incomplete: bool = False,
) -> None:
    """Writes all that verification takes, and prints what.

    Arguments
    ---------
    folder
    utterances
        Each to its source (``data/sources.py``); lists may name files by
        another extension of audio.
    enrolments
        Each model to its utterances.
    lists
        The trials of each list.
    allow_incomplete
        Whether trials are left out whose test, or a file of whose model, is
        missing. If not, missing files are an error.

    Raises
    ------
    ValueError
        If files are missing, or no list has trials of both kinds.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> for name in ("a1.flac", "a2.flac", "b1.flac"):
    ...     _ = (folder / name).write_bytes(b"audio")
    >>> utterances = {
    ...     f"{name[0]}/{name}": f"{folder}/{name}.wav"
    ...     for name in ("a1", "a2", "b1")
    ... }
    >>> trials = [(1, "a/anna", "a/a2"), (0, "a/anna", "b/b1")]
    >>> write_verification_lists(
    ...     folder / "eval", utterances, {"a/anna": ["a/a1"]}, {"core": trials}
    ... )  # doctest: +ELLIPSIS
    1 trials of one speaker, 1 of two: .../eval/core.txt
    >>> print((folder / "eval" / "core.txt").read_text().rstrip())
    1 a/anna a/a2
    0 a/anna b/b1
    """
    folder = os.path.abspath(folder)
    os.makedirs(folder, exist_ok=True)
    sources = _found(utterances, folder, allow_incomplete)
    models = {
        model: names
        for model, names in enrolments.items()
        if all(name in sources for name in names)
    }
    written = [
        _write_trials(
            os.path.join(folder, f"{name}.txt"),
            (
                trial
                for trial in trials
                if trial[2] in sources
                # A model without enrolments is an utterance.
                and trial[1] in (models if trial[1] in enrolments else sources)
            ),
        )
        for name, trials in lists.items()
    ]
    if not any(written):
        raise ValueError(
            f"{folder}: no list has trials of one speaker and of two; check "
            "that the corpus is complete"
        )
    with text_file(os.path.join(folder, "utterances.csv")) as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["ID", "wav", "spk_id", "start", "stop"])
        for name, (path, borders) in sources.items():
            wav = path.replace("$", "$$")
            writer.writerow([name, wav, name.split("/")[0], *borders])
    with text_file(os.path.join(folder, "enrolments.txt")) as stream:
        for model, names in models.items():
            stream.write(" ".join([model, *names]) + "\n")


def _found(
    utterances: Mapping[str, str], folder: str, allow_incomplete: bool
) -> dict[str, tuple[str, list[str]]]:
    """The file and borders of each utterance that is there."""
    split = {name: split_source(each) for name, each in utterances.items()}
    paths = dict.fromkeys(path for path, _ in split.values())
    found = existing_files(paths)
    missing = [path for path in paths if path not in found]
    if missing:
        message = (
            f"{len(missing)} of the {len(paths)} files that the lists name are "
            f"missing, the first is {missing[0]}; "
            f"{list_missing(missing, folder)} names all"
        )
        if not allow_incomplete:
            raise ValueError(
                f"{message}; unpack the rest, or leave their trials out by "
                "--allow_incomplete"
            )
        logger.warning("Preparation: %s; their trials are left out", message)
    return {
        name: (
            os.path.abspath(found[path]),
            place[0][1:-1].split(":") if place else ["", ""],
        )
        for name, (path, place) in split.items()
        if path in found
    }


def _write_trials(path: str, trials: Iterable[Trial]) -> bool:
    """Whether there are trials of both kinds; otherwise there is no list."""
    counts = Counter()
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with text_file(path) as stream:
        for label, model, test in trials:
            stream.write(f"{label} {model} {test}\n")
            counts[label] += 1
    shown = f"{counts[1]} trials of one speaker, {counts[0]} of two"
    if len(counts) < 2:
        os.remove(path)
        logger.warning("Preparation: %s left out, it has %s", path, shown)
        return False
    print(f"{shown}: {path}")
    return True


def trials_by(
    trials: Iterable[Trial], value_of: Callable[[str], str], key: str
) -> dict[str, list[Trial]]:
    """The trials for each value that tests have, as lists ``by_<key>/<value>``.

    Example
    -------
    >>> trials = [(1, "a", "a/rm1-2"), (0, "a", "b/rm2-1")]
    >>> trials_by(trials, lambda test: test.split("/")[1][:3], "room")
    {'by_room/rm1': [(1, 'a', 'a/rm1-2')], 'by_room/rm2': [(0, 'a', 'b/rm2-1')]}
    """
    lists = defaultdict(list)
    for trial in trials:
        lists[f"by_{key}/{value_of(trial[2])}"].append(trial)
    return dict(sorted(lists.items()))


def draw_trials(
    models: Mapping[str, str],
    tests: Mapping[str, Sequence[str]],
    count: int,
    random: np.random.Generator,
    groups: Mapping[str, str] | None = None,
) -> list[Trial]:
    """Draws trials in which all speakers have the same weight.

    Each model gets up to ``count`` tests of its speaker, and as many of other
    speakers, taken in turn.

    Arguments
    ---------
    models
        Each to its speaker.
    tests
        Of each speaker.
    count
    random
    groups
        Of each speaker; others are taken from the speaker's group only.

    Example
    -------
    >>> tests = {"a": ["a/1", "a/2"], "b": ["b/1", "b/2"]}
    >>> random = np.random.default_rng(1)
    >>> draw_trials({"a/m": "a"}, tests, 1, random)
    [(1, 'a/m', 'a/1'), (0, 'a/m', 'b/1')]
    """
    trials = []
    for model, speaker in models.items():
        own = random.permutation(tests[speaker])[:count]
        trials += [(1, model, str(test)) for test in own]
        others = [
            other
            for other in tests
            if other != speaker
            and (groups is None or groups[other] == groups[speaker])
        ]
        random.shuffle(others)
        in_turn = [random.permutation(tests[other]) for other in others]
        turns = itertools.zip_longest(*in_turn)
        foreign = (test for turn in turns for test in turn if test is not None)
        trials += [
            (0, model, str(test))
            for test in itertools.islice(foreign, len(own))
        ]
    return trials
