"""Data preparation for corpora in VoxCeleb's layout.

Files that training can read are listed, others converted if they can be, and
the rest is left out and reported, see ``data/audio_checks.py``.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import functools
import os
import re
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

from speechbrain.utils.logger import get_logger

from redimnet2_lobes.data.audio import (
    audio_rank,
    check_speaker,
    leads_back,
    utterance_name,
)
from redimnet2_lobes.data.audio_checks import (
    check_recording,
    converted_path,
    earlier_verdicts,
    in_processes,
    parse_verdicts,
)
from redimnet2_lobes.data.training_list import SpeakerFiles, training_list
from redimnet2_lobes.data.trials import has_published_sum, read_trials
from redimnet2_lobes.files.settings import require_number

logger = get_logger(__name__)

MISPLACED = "not in wav/<speaker>/<session>/"
REPEATED, REPEATED_SIZE = "link to what is there already", -2

# Speakers and utterances as published, at robots.ox.ac.uk/~vgg/data/voxceleb.
CORPORA = {
    "voxceleb1-dev": (1211, 148642),
    "voxceleb1-test": (40, 4874),
    "voxceleb2-dev": (5994, 1092009),
    "voxceleb2-test": (118, 36237),
}
VOXCELEB1 = range(10001, 11252)
VOXCELEB1_TEST = range(10270, 10310)

Path = str | os.PathLike


def prepare_voxceleb(
    data_folder: Path,
    save_folder: Path,
    test_trials: Path | list[Path] | None = None,
    validation_trials: Path | None = None,
    minimum_seconds: float = 1.0,
    check_audio: bool = True,
    corpora: list[str] | None = None,
    allow_incomplete: bool = False,
    workers: int | None = None,
) -> None:
    """Checks a corpus and lists its training utterances.

    The corpus holds ``wav/<speaker>/<session>/<utterance>.<extension>``; its
    files are only read. Links are followed, but not to what it holds without
    them, and hidden files are left out. The save folder receives:

    - ``train.csv`` (ID, duration, wav, spk_id), sorted by ID. The ID is
      ``<speaker>/<session>/<utterance>``, the duration is in seconds, and wav
      starts with ``$data_root`` or ``$save_root``, for
      ``DynamicItemDataset.from_csv(path, replacements={"data_root":
      data_folder, "save_root": save_folder})``.
    - ``converted/``: mono copies at 16 kHz of files with more channels or
      other rates.
    - ``preparation_report.csv`` (file, action, reason): each file that was
      converted or skipped. The log counts every reason.
    - ``preparation_index.tsv``: the state of each file used. The next call
      reads only what is new, has changed or was skipped. What an interrupted
      call has found out is in ``preparation_index.tsv.part``.

    Each of them appears under its name only when complete.

    Arguments
    ---------
    data_folder
    save_folder
    test_trials
        Trial lists; their *speakers* stay out of training.
    validation_trials
        A trial list; its *utterances* stay out of training.
    minimum_seconds
        Shorter files are skipped.
    check_audio
        Whether all files are decoded, to skip those that are silent, hold NaN
        or cannot be decoded. If not, only files to be converted are.
    corpora
        What the folder is meant to hold in full: names in ``CORPORA``. Their
        speakers and utterances are counted. VoxCeleb2's parts cannot be told
        from each other by the speakers' names: their sum is checked.
    allow_incomplete
        Whether other counts are a warning, not an error.
    workers
        Number of processes; by default one for each available CPU.

    Raises
    ------
    ValueError
        If there is no ``wav/``, no utterance is left for training, a corpus
        is incomplete, a setting or a trial list is wrong, or test trials are
        about training speakers of a VoxCeleb1 that the folder holds.

    Example
    -------
    >>> folder = getfixture("tmpdir")
    >>> session = folder / "wav" / "id00012" / "21Uxsk56VDQ"
    >>> os.makedirs(session)
    >>> import soundfile, torch
    >>> speech = torch.rand(16000).numpy()
    >>> soundfile.write(session / "00001.wav", speech, 16000)
    >>> prepare_voxceleb(folder, folder / "save", workers=1)
    >>> print((folder / "save" / "train.csv").read_text("utf-8").rstrip())
    ID,duration,wav,spk_id
    id00012/21Uxsk56VDQ/00001,1.0,$data_root/wav/id00012/21Uxsk56VDQ/00001.wav,\
id00012
    """
    _check_settings(minimum_seconds, check_audio, corpora, workers)
    wav_folder = os.path.join(data_folder, "wav")
    if not os.path.isdir(wav_folder):
        raise ValueError(
            f"data_folder {data_folder}: it has no folder wav/ with "
            "<speaker>/<session>/<utterance>.wav in it; give the folder of "
            "the corpus (voxceleb_unpack.py makes it from what VoxCeleb "
            "distributes), or run `make demo` for a small one"
        )
    speakers, unused = _find_speakers(wav_folder)
    test_speakers, validation_utterances = _read_held_out(
        test_trials, validation_trials, data_folder, speakers
    )
    for speaker in set(speakers) - test_speakers:
        check_speaker(speaker, wav_folder)
    os.makedirs(save_folder, exist_ok=True)
    earlier = earlier_verdicts(save_folder)
    tasks = [
        Task(
            speaker,
            speaker in test_speakers,
            validation_utterances.get(speaker, frozenset()),
            earlier.pop(speaker, ""),
        )
        for speaker in speakers
    ]
    check = functools.partial(
        _check_speaker,
        wav_folder=wav_folder,
        save_folder=save_folder,
        minimum_seconds=minimum_seconds,
        check_audio=check_audio,
    )
    results = in_processes(check, tasks, workers)
    corpus = f"data_folder {data_folder}"
    with training_list(save_folder, results, corpus, unused) as totals:
        for line in totals.others:
            logger.info("Preparation: %s", line)
        _check_complete(
            totals.found, corpora or [], allow_incomplete, data_folder
        )
    logger.info("Preparation: %s", totals)


def _check_settings(
    minimum_seconds: object,
    check_audio: object,
    corpora: object,
    workers: object,
) -> None:
    """Refuses wrong settings by the name that they have in a YAML file."""
    require_number("minimum_seconds", minimum_seconds)
    if not isinstance(check_audio, bool):
        raise ValueError(
            f"check_audio must be True or False, not {check_audio!r}"
        )
    if isinstance(corpora, str) or not set(corpora or []) <= set(CORPORA):
        raise ValueError(
            f"corpora must be a list of names among {', '.join(CORPORA)}, "
            f"not {corpora!r}"
        )
    if workers is not None and (not isinstance(workers, int) or workers < 1):
        raise ValueError(
            f"workers must be a whole number from 1 on, not {workers!r}"
        )


def _read_held_out(
    test_trials: Path | list[Path] | None,
    validation_trials: Path | None,
    data_folder: Path,
    speakers: list[str],
) -> tuple[set[str], dict[str, set[str]]]:
    """Gives the test speakers, and the validation utterances by speaker."""
    if isinstance(test_trials, (str, os.PathLike)):
        test_trials = [test_trials]
    test_speakers = set()
    for trial_list in test_trials or []:
        tested = {name.split("/")[0] for name in _utterances_of(trial_list)}
        _check_voxceleb1_training(trial_list, tested, data_folder, speakers)
        test_speakers |= tested
    validation_utterances = defaultdict(set)
    if validation_trials is not None:
        for utterance in _utterances_of(validation_trials):
            validation_utterances[utterance.split("/")[0]].add(utterance)
    if not test_speakers.isdisjoint(validation_utterances):
        logger.warning(
            "Preparation: validation_trials and test_trials share speakers, "
            "so a choice made in validation is not independent of the test."
        )
    return test_speakers, validation_utterances


def _utterances_of(trial_list: Path) -> set[str]:
    """Gives the IDs of the utterances that a trial list names."""
    trials = read_trials(trial_list)
    files = dict.fromkeys(file for _, *pair in trials for file in pair)
    # The demo corpus has a veri_test2.txt too.
    is_voxceleb = any(_corpus_of(file.split("/")[0]) for file in files)
    if is_voxceleb and not has_published_sum(trial_list):
        logger.warning(
            "Preparation: %s is not the published list of this name (another "
            "MD5 sum); trial_lists.py fetches it.",
            trial_list,
        )
    utterances = set()
    for file in files:
        parts = file.split("/")
        # A name that matches nothing would let the utterance into training.
        if len(parts) != 3 or not all(parts) or parts[0] in (".", ".."):
            raise ValueError(
                f"{trial_list}: {file!r} is not of the form "
                "speaker/session/utterance.wav, relative to wav/"
            )
        utterances.add(utterance_name(file))
    return utterances


def _corpus_of(speaker: str) -> str | None:
    """Gives the part of VoxCeleb that a speaker's name belongs to, or None."""
    if not re.fullmatch(r"id\d{5}", speaker):
        return None
    number = int(speaker[2:])
    if number in VOXCELEB1_TEST:
        return "voxceleb1-test"
    return "voxceleb1-dev" if number in VOXCELEB1 else "voxceleb2"


def _check_voxceleb1_training(
    trial_list: Path, tested: set[str], data_folder: Path, speakers: list[str]
) -> None:
    """Refuses VoxCeleb1-E, -H and -B if VoxCeleb1 is there for training."""
    if any(_corpus_of(speaker) == "voxceleb1-dev" for speaker in tested):
        for speaker in speakers:
            if (_corpus_of(speaker) or "").startswith("voxceleb1"):
                raise ValueError(
                    f"test_trials: {trial_list} tests on VoxCeleb1's training "
                    "speakers, as VoxCeleb1-E, -H and -B do, and data_folder "
                    f"{data_folder} holds VoxCeleb1 ({speaker}); train "
                    "without VoxCeleb1, or leave that list out"
                )


def _check_complete(
    found: dict[str, int],
    corpora: list[str],
    allow_incomplete: bool,
    data_folder: Path,
) -> None:
    """Compares the speakers and utterances found with the published counts."""
    by_corpus = defaultdict(list)
    for name in corpora:
        # VoxCeleb2's test speakers have names among those of dev.
        key = "voxceleb2" if name.startswith("voxceleb2") else name
        by_corpus[key].append(name)
    for key, names in by_corpus.items():
        utterances = [
            count
            for speaker, count in found.items()
            if count and _corpus_of(speaker) == key
        ]
        expected_speakers = sum(CORPORA[name][0] for name in names)
        expected_utterances = sum(CORPORA[name][1] for name in names)
        counted = len(utterances), sum(utterances)
        if counted == (expected_speakers, expected_utterances):
            continue
        message = (
            f"data_folder {data_folder}: {' and '.join(names)} should have "
            f"{expected_speakers:,} speakers and {expected_utterances:,} "
            f"utterances, found {counted[0]:,} and {counted[1]:,}"
        )
        if not allow_incomplete:
            raise ValueError(
                f"{message}; unpack the rest, pass --allow_incomplete=True, or "
                "--corpora=null for a corpus of your own"
            )
        logger.warning("Preparation: %s", message)


def _find_speakers(
    wav_folder: str,
) -> tuple[list[str], list[tuple[str, str]]]:
    """Gives the folders in ``wav/``, and what cannot be used, with the reason.

    That is audio beside the folders, and links to a folder once more.
    """
    speakers, links, unused = [], [], []
    with os.scandir(wav_folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                (links if entry.is_symlink() else speakers).append(entry.name)
            elif audio_rank(entry.name) is not None:
                unused.append((_printable(entry.name), MISPLACED))
    targets = set()
    for name in sorted(links):
        path = os.path.join(wav_folder, name)
        target = os.path.realpath(path)
        if target in targets or _is_repeated(path, wav_folder):
            unused.append((_printable(name), REPEATED))
        else:
            targets.add(target)
            speakers.append(name)
    # As utterances are sorted, where "a-b/x/1" is before "a/x/1".
    return sorted(speakers, key=lambda name: f"{name}/"), sorted(unused)


def _is_repeated(link: str, wav_folder: str) -> bool:
    """Whether the corpus holds what a link leads to without it, or it itself.

    Only what is at the same depth counts, since the rest is not used.
    """
    if leads_back(link):
        return True
    target = os.path.realpath(link)
    inner = os.path.relpath(target, os.path.realpath(wav_folder)).split(os.sep)
    depth = os.path.relpath(link, wav_folder).count(os.sep) + 1
    return (
        os.path.exists(target)
        and len(inner) == depth
        and not any(part[0] == "." for part in inner)
        and (os.path.isdir(target) or audio_rank(target) is not None)
    )


class Task(NamedTuple):
    """What a worker process needs to know of a speaker."""

    speaker: str
    is_test_speaker: bool
    validation_utterances: frozenset[str]
    earlier: str  # lines of the index


def _check_speaker(
    task: Task,
    wav_folder: str,
    save_folder: Path,
    minimum_seconds: float,
    check_audio: bool,
) -> SpeakerFiles:
    """Checks the files of one speaker (in a worker process)."""
    result = SpeakerFiles(task.speaker)
    earlier = parse_verdicts(task.earlier)
    last = None
    folder = os.path.join(wav_folder, task.speaker)
    files = sorted(_find_audio(folder, f"{task.speaker}/", wav_folder))
    for utterance, _, name, size, mtime_ns in files:
        fault = REPEATED
        if size != REPEATED_SIZE:
            fault = _fault_of_name(name, utterance == last)
        if fault:
            result.skip(_printable(name), fault)
            continue
        last = utterance
        result.utterances += 1
        if task.is_test_speaker:
            result.keep_out("test speaker")
            continue
        if utterance in task.validation_utterances:
            result.keep_out("validation utterance")
            continue
        verdict = check_recording(
            utterance,
            name,
            f"{wav_folder}/{name}",
            size,
            mtime_ns,
            earlier,
            save_folder,
            minimum_seconds,
            check_audio,
        )
        wav = f"$data_root/wav/{name}"
        if verdict.action == "converted":
            wav = converted_path("$save_root", utterance)
        result.add(utterance, name, wav, verdict)
    return result


def _find_audio(
    folder: str, prefix: str, wav_folder: str, depth: int = 1
) -> Iterator[tuple[str, int, str, int, int]]:
    """Yields (utterance, rank of extension, name, size, mtime in ns).

    Names are relative to ``wav/``. The search goes one level too deep, to
    report what lies there, but not further. A link to what is there already has
    ``REPEATED_SIZE``.
    """
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            if name.startswith("."):
                continue
            rank, is_folder = audio_rank(name), entry.is_dir()
            if rank is None and not is_folder:
                continue
            if entry.is_symlink() and _is_repeated(entry.path, wav_folder):
                yield prefix + name, 0, prefix + name, REPEATED_SIZE, 0
                continue
            if is_folder:
                if depth < 3:
                    yield from _find_audio(
                        entry.path,
                        f"{prefix}{name}/",
                        wav_folder,
                        depth + 1,
                    )
                continue
            try:
                status = entry.stat()
                size, mtime_ns = status.st_size, status.st_mtime_ns
            except OSError:  # a link to nowhere
                size, mtime_ns = -1, -1
            name = prefix + name
            yield utterance_name(name), rank, name, size, mtime_ns


def _fault_of_name(name: str, is_second: bool) -> str | None:
    if "$" in name or not name.isprintable() or name != name.strip():
        # SpeechBrain's CSV reader would change it.
        return "name with $, control or odd characters"
    if name.count("/") != 2:
        return MISPLACED
    return "second file of one utterance" if is_second else None


def _printable(name: str) -> str:
    if name.isprintable():
        return name
    return name.encode("unicode_escape").decode("ascii")
