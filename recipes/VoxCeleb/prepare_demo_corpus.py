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
origins and licences.

Example
-------
python prepare_demo_corpus.py demo_corpus

Authors
-------
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import argparse
import collections
import concurrent.futures
import dataclasses
import hashlib
import itertools
import json
import logging
import os
import pathlib
import random
import re
import shutil
import subprocess
import sys
import tempfile

import torch
from speechbrain.dataio import audio_io
from speechbrain.utils.parallel import get_available_cpu_count, parallel_map
from synthetic_voices import synthetic_utterance
from torchaudio.functional import resample
from tqdm import tqdm

logger = logging.getLogger(__name__)

# Raise it whenever the same settings begin to give another corpus.
FORMAT_VERSION = 1

# All that decides the content of a corpus; recorded in corpus.json.
SETTINGS = {
    "seed": 2602,
    "sample_rate": 16000,
    "lowest_source_rate": 16000,
    "silent_peak": 1e-3,
    "trim_decibels_under_peak": [20.0, 35.0],
    "trim_decibels_over_noise": 10.0,
    "trim_margin_seconds": 0.1,
    "shortest_clip_seconds": 0.1,
    "longest_clip_seconds": 8.0,
    "utterance_seconds": 3.0,
    "gap_seconds": 0.1,
    "shortest_speaker_seconds": 20.0,
    "test_utterances_per_speaker": 12,
    "fewest_test_speakers": 12,
    "most_validation_trials": 3000,
    # Each has one voice with enough material, and no training speaker uses it.
    "test_languages": [
        *("he", "hu", "ar", "tn", "ml", "be", "bg"),
        *("ro", "gl", "wa", "sl", "nn", "nb", "cs", "pt_BR"),
    ],
}

PACKAGES = (
    "ktuberling-data",
    "klettres-data",
    "tuxpaint-stamps-default",
    "hedgewars-data",
)

# Its sound is changed by effects, so that it says nothing about a speaker.
ROBOT = "hedgewars-Robot"

AUDIO_SUFFIXES = {".ogg", ".opus", ".mp3", ".wav", ".flac"}


class CorpusError(ValueError):
    """The corpus cannot be built; the message says why in one line."""


class PackageError(CorpusError):
    """A Debian package cannot be had here."""


class DroppedFile(ValueError):
    """A source file is of no use; the message is the reason to count."""


@dataclasses.dataclass(frozen=True)
class Source:
    """A source file and who speaks in it.

    Arguments
    ---------
    path : pathlib.Path
        The audio file.
    speaker : str
        For example ``klettres-pt_BR``.
    session : str
        Occasion of the recording, as far as the folders tell.
    language : str
        For example ``pt_BR``.
    """

    path: pathlib.Path
    speaker: str
    session: str
    language: str


@dataclasses.dataclass(frozen=True)
class Utterance:
    """An utterance of the corpus.

    Arguments
    ---------
    path : str
        Of its file, relative to the folder ``wav``.
    part : str
        ``train``, ``validation`` or ``test``.
    """

    path: str
    part: str

    @property
    def speaker(self):
        """The speaker, who is the first folder of the path."""
        return self.path.split("/")[0]


# --------------------------------------------------------------------------
# Packages
# --------------------------------------------------------------------------


def unpacked_package(package, cache_folder):
    """Downloads and unpacks a Debian package, or finds it in the cache.

    Arguments
    ---------
    package : str
        Name of the package.
    cache_folder : pathlib.Path
        Where packages and their unpacked trees stay.

    Returns
    -------
    tree : pathlib.Path
        The folder that holds the ``usr`` of the package; its name tells the
        version.

    Raises
    ------
    PackageError
        If the package cannot be downloaded or unpacked.
    """
    trees = sorted((cache_folder / "unpacked").glob(f"{package}_*"))
    if trees:
        return trees[-1]
    if shutil.which("dpkg-deb") is None:
        raise PackageError("dpkg-deb is not installed here")
    cached = sorted(cache_folder.glob(f"{package}_*.deb"))
    if cached:
        try:
            return _unpack(cached[-1], cache_folder)
        except PackageError:
            logger.warning("%s is damaged, downloading again", cached[-1].name)
    return _unpack(_download(package, cache_folder), cache_folder)


def _download(package, cache_folder):
    cache_folder.mkdir(parents=True, exist_ok=True)
    # apt-get writes under the final name from the start.
    with tempfile.TemporaryDirectory(dir=cache_folder) as folder:
        try:
            _run(["apt-get", "download", package], folder)
        except PackageError:
            # The package lists are missing or older than the archive.
            _run(["apt-get", "update"], folder)
            _run(["apt-get", "download", package], folder)
        found = list(pathlib.Path(folder).glob(f"{package}_*.deb"))
        if len(found) != 1:
            raise PackageError(f"apt-get download {package} left no package")
        target = cache_folder / found[0].name
        os.replace(found[0], target)
    return target


def _unpack(deb, cache_folder):
    tree = cache_folder / "unpacked" / deb.stem
    tree.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_folder) as folder:
        unpacked = pathlib.Path(folder) / "tree"
        paths = [str(path.resolve()) for path in (deb, unpacked)]
        _run(["dpkg-deb", "-x", *paths], folder)
        os.replace(unpacked, tree)
    return tree


def _run(command, folder):
    """Runs a program of Debian; its last line of complaint is the error."""
    name = " ".join(command[:2])
    try:
        subprocess.run(
            command, cwd=folder, check=True, capture_output=True, text=True
        )
    except FileNotFoundError:
        raise PackageError(f"{command[0]} is not installed here") from None
    except subprocess.CalledProcessError as error:
        lines = error.stderr.strip().splitlines() or ["no message"]
        raise PackageError(f"{name} failed: {lines[-1]}") from None


# --------------------------------------------------------------------------
# Who speaks in which file
# --------------------------------------------------------------------------


def normalize_language(code):
    """Writes a language code in one form.

    The four ``sr`` folders of ktuberling differ in script and dialect only and
    hold the same voice, so what follows ``@`` is left out.

    Arguments
    ---------
    code : str
        For example ``pt-br`` or ``sr@ijekavianlatin``.

    Returns
    -------
    code : str
        For example ``pt_BR`` or ``sr``.

    Example
    -------
    >>> normalize_language("pt-br"), normalize_language("sr@ijekavianlatin")
    ('pt_BR', 'sr')
    """
    language, _, region = code.split("@")[0].replace("-", "_").partition("_")
    return (
        f"{language.lower()}_{region.upper()}" if region else language.lower()
    )


def find_sources(package, tree):
    """Lists the spoken clips of an unpacked package.

    Arguments
    ---------
    package : str
        One of ``PACKAGES``.
    tree : pathlib.Path
        Folder that holds the ``usr`` of the package.

    Returns
    -------
    sources : list of Source
        Sorted by path.
    """
    find = {
        "ktuberling-data": _ktuberling_sources,
        "klettres-data": _klettres_sources,
        "tuxpaint-stamps-default": _tuxpaint_sources,
        "hedgewars-data": _hedgewars_sources,
    }[package]
    return list(find(tree))


def _audio_files(folder, pattern):
    return sorted(
        path
        for path in folder.glob(pattern)
        if path.suffix.lower() in AUDIO_SUFFIXES and path.is_file()
    )


def _ktuberling_sources(tree):
    """Sources in ``ktuberling/sounds/<language>/<word>``."""
    folder = tree / "usr/share/ktuberling/sounds"
    for path in _audio_files(folder, "*/*"):
        language = normalize_language(path.parent.name)
        yield Source(path, f"ktuberling-{language}", "ktuberling", language)


def _klettres_sources(tree):
    """Sources in ``klettres/<language>/{alpha,syllab}/<sound>``."""
    folder = tree / "usr/share/klettres"
    for path in _audio_files(folder, "*/*/*"):
        session = path.parent.name
        if session in ("alpha", "syllab"):
            language = normalize_language(path.parent.parent.name)
            yield Source(path, f"klettres-{language}", session, language)


def _tuxpaint_sources(tree):
    """Sources ``tuxpaint/stamps/**/<stamp>_desc[_<language>]``."""
    folder = tree / "usr/share/tuxpaint/stamps"
    for path in _audio_files(folder, "**/*_desc*"):
        described = re.fullmatch(r".+_desc(?:_([A-Za-z_@]+))?", path.stem)
        if described:
            language = normalize_language(described[1] or "en")
            yield Source(path, f"tuxpaint-{language}", "tuxpaint", language)


def _hedgewars_sources(tree):
    """Sources in ``voices/<voice>[_<language>]/<phrase>``, else English."""
    folder = tree / "usr/share/games/hedgewars/Data/Sounds/voices"
    for path in _audio_files(folder, "*/*"):
        voice = path.parent.name
        localized = re.fullmatch(r".+_([a-z]{2,3}(?:_[A-Z]{2})?)", voice)
        language = normalize_language(localized[1] if localized else "en")
        yield Source(path, f"hedgewars-{voice}", "hedgewars", language)


# --------------------------------------------------------------------------
# Clips
# --------------------------------------------------------------------------


def read_clip(path):
    """Reads a source file as a trimmed clip.

    Arguments
    ---------
    path : pathlib.Path
        An audio file that soundfile reads, of any rate, mono or stereo.

    Returns
    -------
    clip : torch.Tensor
        Mono waveform at 16 kHz without the silence at both ends [time].

    Raises
    ------
    DroppedFile
        If the file is unreadable, empty, silent, too short, of too low a
        sampling rate, or holds values that are not finite.
    """
    try:
        waveform, sample_rate = audio_io.load(path, dtype=torch.float32)
    except RuntimeError:
        raise DroppedFile("unreadable") from None
    if waveform.shape[1] == 0:
        raise DroppedFile("empty")
    if sample_rate < SETTINGS["lowest_source_rate"]:
        raise DroppedFile("sampling rate under 16 kHz")
    if not torch.isfinite(waveform).all():
        raise DroppedFile("values not finite")
    waveform = waveform.mean(dim=0)
    if waveform.abs().max() < SETTINGS["silent_peak"]:
        raise DroppedFile("silent")
    # The filter grows with the smallest common period of the two rates. A rate
    # such as 22254 Hz, taken as 22250 Hz, keeps it short and sounds the same.
    sample_rate = 50 * round(sample_rate / 50)
    clip = trim_silence(
        resample(waveform, sample_rate, SETTINGS["sample_rate"])
    )
    if len(clip) < _samples("shortest_clip_seconds"):
        raise DroppedFile("too short")
    return clip


def _samples(setting):
    return round(SETTINGS[setting] * SETTINGS["sample_rate"])


def _frame_powers(waveform):
    """Mean power of frames of 20 ms every 10 ms [frames]."""
    frame = min(len(waveform), SETTINGS["sample_rate"] // 50)
    frames = waveform.unfold(0, frame, SETTINGS["sample_rate"] // 100)
    # The variance: a constant offset and its slow drift are no sound.
    return frames.var(dim=1, correction=0)


def trim_silence(waveform):
    """Cuts silence and background noise off both ends of a clip.

    Silence is what lies 35 dB under the loudest part of the clip. Where the
    background is noisier than that, the limit is 10 dB over the noise (the
    level that a tenth of the clip stays under), but at least 20 dB under the
    loudest part. Levels are medians over 80 ms, so that clicks of a switch or a
    mouse are no sound. A margin of 100 ms stays at both ends, for the short or
    soft sounds at the ends of a word.

    Arguments
    ---------
    waveform : torch.Tensor
        Mono waveform at 16 kHz, not empty [time].

    Returns
    -------
    waveform : torch.Tensor
        The part from the first to the last sound [time].
    """
    powers = _frame_powers(waveform)
    around = 3
    padded = torch.nn.functional.pad(powers, (around, around))
    levels = padded.unfold(0, 2 * around + 1, 1).median(dim=1).values
    loudest = levels.max()
    highest, lowest = (
        loudest * 10.0 ** (-decibels / 10.0)
        for decibels in SETTINGS["trim_decibels_under_peak"]
    )
    over_noise = 10.0 ** (SETTINGS["trim_decibels_over_noise"] / 10.0)
    threshold = (levels.quantile(0.1) * over_noise).clamp(lowest, highest)
    loud = torch.nonzero(levels >= threshold).flatten()
    hop = SETTINGS["sample_rate"] // 100
    margin = _samples("trim_margin_seconds")
    start = int(loud[0]) * hop - margin
    stop = int(loud[-1]) * hop + 2 * hop + margin
    return waveform[max(0, start) : stop]


def split_long_clip(clip):
    """Cuts a long clip into pieces at its most silent places.

    Arguments
    ---------
    clip : torch.Tensor
        Mono waveform at 16 kHz [time].

    Returns
    -------
    pieces : list of torch.Tensor
        The clip itself if it is no longer than 8 s; else pieces shorter than
        that, which together are the clip.
    """
    if len(clip) <= _samples("longest_clip_seconds"):
        return [clip]
    # Cut at the most silent frame of the middle half, then again if need be.
    hop = SETTINGS["sample_rate"] // 100
    powers = _frame_powers(clip)
    first = len(powers) // 4
    middle = powers[first : 3 * first]
    cut = (first + int(middle.argmin())) * hop + hop
    return [
        *split_long_clip(clip[:cut]),
        *split_long_clip(clip[cut:]),
    ]


def join_clips(clips):
    """Joins clips, in the order given, into utterances of about 3 s.

    Arguments
    ---------
    clips : list of torch.Tensor
        Mono waveforms at 16 kHz of one speaker and session [time].

    Returns
    -------
    utterances : list of torch.Tensor
        Waveforms within -1 and 1 of at least 3 s, but one shorter one if all
        clips together are shorter [time].
    """
    target = _samples("utterance_seconds")
    gap = torch.zeros(_samples("gap_seconds"))
    groups = [[]]
    for clip in clips:
        if sum(map(len, groups[-1])) >= target:
            groups.append([])
        groups[-1] += [gap, clip] if groups[-1] else [clip]
    if len(groups) > 1 and sum(map(len, groups[-1])) < target:
        short = groups.pop()
        groups[-1] += [gap, *short]
    utterances = [torch.cat(group) for group in groups if group]
    # Resampling may overshoot the full scale of a loud recording.
    return [
        utterance / max(1.0, float(utterance.abs().max()))
        for utterance in utterances
    ]


# --------------------------------------------------------------------------
# Speakers
# --------------------------------------------------------------------------


def read_speakers(sources, dropped_files):
    """Reads the clips of all speakers.

    Arguments
    ---------
    sources : list of Source
        Files of all packages.
    dropped_files : dict
        Receives path -> reason of each file of no use.

    Returns
    -------
    speakers : dict
        speaker -> session -> list of clips.
    """
    digests = [
        _digest(source.path)
        for source in tqdm(sources, desc="finding duplicates", unit="file")
    ]
    owners = collections.defaultdict(set)
    for source, digest in zip(sources, digests, strict=True):
        owners[digest].add(source.speaker)
    seen = set()
    distinct = []
    for source, digest in zip(sources, digests, strict=True):
        if len(owners[digest]) > 1:
            # Whose voice it is, the folders do not tell.
            dropped_files[source.path] = "same recording under two speakers"
        elif digest in seen:
            dropped_files[source.path] = "same recording twice"
        else:
            distinct.append(source)
        seen.add(digest)

    def read(source):
        try:
            return source, read_clip(source.path), None
        except DroppedFile as error:
            return source, None, str(error)

    speakers = collections.defaultdict(lambda: collections.defaultdict(list))
    # Decoding and resampling run outside Python, so threads share the work.
    workers = get_available_cpu_count()
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        for source, clip, reason in parallel_map(
            read,
            distinct,
            process_count=workers,
            executor=pool,
            progress_bar_kwargs={"desc": "reading clips", "unit": "file"},
        ):
            if reason:
                dropped_files[source.path] = reason
            else:
                speakers[source.speaker][source.session].append(clip)
    return speakers


def _digest(path):
    """What is equal for equal files, and for them only."""
    try:
        content = path.read_bytes()
    except OSError:
        content = b""
    # Files without content are no recordings, let alone the same.
    return hashlib.sha256(content or str(path).encode()).digest()


def _base_language(language):
    """A volunteer may well have recorded two regions' forms of a language."""
    return language.split("_")[0]


def choose_speakers(seconds, languages, dropped_speakers):
    """Decides which speakers are for training and which for testing.

    Arguments
    ---------
    seconds : dict
        speaker -> seconds of clips.
    languages : dict
        speaker -> language.
    dropped_speakers : dict
        Receives speaker -> reason of each one left out.

    Returns
    -------
    parts : dict
        speaker -> ``train`` or ``test``. No language is in both, and no test
        language has two speakers, since they may be one person.

    Raises
    ------
    CorpusError
        If too few speakers are left for testing.
    """
    test_languages = {
        _base_language(code) for code in SETTINGS["test_languages"]
    }
    by_seconds = sorted(seconds, key=lambda name: (-seconds[name], name))
    parts = {}
    tested = set()
    for speaker in by_seconds:
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
    return dict(sorted(parts.items()))


def make_utterances(speaker, part, sessions):
    """Makes the utterances of one speaker.

    Arguments
    ---------
    speaker : str
        Name of the speaker.
    part : str
        ``train`` or ``test``.
    sessions : dict
        session -> list of clips.

    Returns
    -------
    utterances : list of tuple
        Each one an Utterance and its waveform. For testing at most 12; for
        training all, some of them held out for validation.
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
    return [
        (
            Utterance(path, "validation" if path in held_out else part),
            waveforms[path],
        )
        for path in paths
    ]


# --------------------------------------------------------------------------
# The corpus on disk
# --------------------------------------------------------------------------


def make_trials(utterances, most_trials=None):
    """Pairs utterances for verification.

    Arguments
    ---------
    utterances : list of Utterance
        Utterances of several speakers.
    most_trials : int or None
        If there are more pairs, all target pairs stay and as many nontarget
        pairs, chosen by the seed, as fill this number.

    Returns
    -------
    trials : list of str
        Lines of a trial list of VoxCeleb: ``1`` for a target trial or ``0``,
        the enrolment utterance, the test utterance.

    Example
    -------
    >>> paths = ["a/x/1.wav", "a/y/1.wav", "b/x/1.wav"]
    >>> for line in make_trials([Utterance(path, "test") for path in paths]):
    ...     print(line)
    1 a/x/1.wav a/y/1.wav
    0 a/x/1.wav b/x/1.wav
    0 a/y/1.wav b/x/1.wav
    """
    pairs = list(itertools.combinations(utterances, 2))
    if most_trials is not None and len(pairs) > most_trials:
        target = [pair for pair in pairs if pair[0].speaker == pair[1].speaker]
        others = [pair for pair in pairs if pair[0].speaker != pair[1].speaker]
        room = max(0, most_trials - len(target))
        pairs = target + random.Random(SETTINGS["seed"]).sample(others, room)
    return [
        f"{int(enrol.speaker == test.speaker)} {enrol.path} {test.path}"
        for enrol, test in pairs
    ]


def build_demo_corpus(output_folder, cache_folder, synthetic=False):
    """Builds the corpus, or returns at once if it is there.

    Arguments
    ---------
    output_folder : str or pathlib.Path
        Where to write the corpus.
    cache_folder : str or pathlib.Path
        Where downloaded packages stay for the next run.
    synthetic : bool
        Whether to build the synthetic stand-in without trying the packages.

    Returns
    -------
    description : dict
        The content of ``corpus.json``.

    Raises
    ------
    CorpusError
        If there are too few speakers, or the folder holds something else.
    """
    output_folder = pathlib.Path(output_folder)
    cache_folder = pathlib.Path(cache_folder)
    if synthetic:
        return write_synthetic_corpus(output_folder)
    found = _reusable(output_folder, "real", SETTINGS)
    if found:
        return found
    _check_output_folder(output_folder)
    try:
        trees = {
            package: unpacked_package(package, cache_folder)
            for package in tqdm(PACKAGES, desc="packages", unit="package")
        }
    except PackageError as error:
        logger.warning(
            "No real speech here: %s. SYNTHETIC VOICES take its place; figures "
            "measured on them say nothing about people.",
            error,
        )
        return write_synthetic_corpus(output_folder)
    return _write_real_corpus(output_folder, trees)


def _write_real_corpus(output_folder, trees):
    sources = [
        source
        for package, tree in trees.items()
        for source in find_sources(package, tree)
    ]
    dropped_files = {}
    speakers = read_speakers(sources, dropped_files)
    languages = {source.speaker: source.language for source in sources}
    seconds = {
        speaker: sum(map(len, itertools.chain(*speakers[speaker].values())))
        / SETTINGS["sample_rate"]
        for speaker in languages
    }
    dropped_speakers = {}
    parts = choose_speakers(seconds, languages, dropped_speakers)
    utterances = (
        pair
        for speaker, part in tqdm(
            parts.items(), desc="writing utterances", unit="speaker"
        )
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
            for speaker, reason in sorted(dropped_speakers.items())
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
    unpacked = trees[PACKAGES[0]].parent
    report = "".join(
        f"{path.relative_to(unpacked)}: {reason}\n"
        for path, reason in sorted(dropped_files.items())
    )
    return _write_corpus(output_folder, utterances, description, report)


def write_synthetic_corpus(
    output_folder,
    training_speakers=45,
    test_speakers=15,
    utterances_per_speaker=12,
    seconds=3.0,
):
    """Writes a corpus of synthetic voices in the same layout.

    Arguments
    ---------
    output_folder : str or pathlib.Path
        Where to write the corpus; if this corpus is already there, it stays.
    training_speakers : int
        Number of voices for training. Two utterances of each (or half, if that
        is less) are for validation.
    test_speakers : int
        Number of voices for testing.
    utterances_per_speaker : int
        Utterances of each voice.
    seconds : float
        Length of each utterance.

    Returns
    -------
    description : dict
        The content of ``corpus.json``.

    Raises
    ------
    CorpusError
        If the folder holds something else.
    """
    output_folder = pathlib.Path(output_folder)
    settings = {
        "training_speakers": training_speakers,
        "test_speakers": test_speakers,
        "utterances_per_speaker": utterances_per_speaker,
        "seconds": seconds,
        "most_validation_trials": SETTINGS["most_validation_trials"],
    }
    found = _reusable(output_folder, "synthetic", settings)
    if found:
        return found
    _check_output_folder(output_folder)
    parts = ["train"] * training_speakers + ["test"] * test_speakers
    held_out = min(2, utterances_per_speaker // 2)

    def speak():
        for speaker, part in enumerate(
            tqdm(parts, desc="writing utterances", unit="speaker")
        ):
            for index in range(utterances_per_speaker):
                path = f"synthetic-{speaker:03d}/synthetic/{index + 1:05d}.wav"
                validation = part == "train" and index < held_out
                yield (
                    Utterance(path, "validation" if validation else part),
                    synthetic_utterance(speaker, index, seconds),
                )

    description = {
        "origin": "synthetic",
        "settings": settings,
        "speakers": {
            f"synthetic-{speaker:03d}": {"part": part}
            for speaker, part in enumerate(parts)
        },
    }
    return _write_corpus(output_folder, speak(), description, report="")


def _read_description(output_folder):
    """The content of corpus.json, or None if there is none of ours."""
    try:
        text = (output_folder / "corpus.json").read_text(encoding="utf-8")
        description = json.loads(text)
    except (OSError, ValueError):
        return None
    ours = isinstance(description, dict) and "format_version" in description
    return description if ours else None


def _reusable(output_folder, origin, settings):
    """The description of a complete corpus just as wanted, or None."""
    found = _read_description(output_folder)
    wanted = {
        "format_version": FORMAT_VERSION,
        "origin": origin,
        "settings": settings,
    }
    if not found or any(found.get(key) != wanted[key] for key in wanted):
        return None
    logger.info("reusing the corpus of %s voices in %s", origin, output_folder)
    return found


def _write_corpus(output_folder, utterances, description, report):
    """Writes all files of a corpus, ``corpus.json`` last.

    Everything is written into a folder ``.building`` and moved from there, so
    that no half-written file ever has its final name.
    """
    building = _building(output_folder)
    if building.exists():
        shutil.rmtree(building)
    building.mkdir(parents=True)
    rate = SETTINGS["sample_rate"]
    written = {"train": [], "validation": [], "test": []}
    seconds = collections.Counter()
    for utterance, waveform in utterances:
        path = building / "wav" / utterance.path
        path.parent.mkdir(parents=True, exist_ok=True)
        audio_io.save(path, waveform, rate, subtype="PCM_16")
        written[utterance.part].append(utterance)
        seconds[utterance.part] += len(waveform) / rate
    trials = {
        "veri_test2.txt": make_trials(written["test"]),
        "veri_validation.txt": make_trials(
            written["validation"], SETTINGS["most_validation_trials"]
        ),
    }
    description = {
        "format_version": FORMAT_VERSION,
        **description,
        "split": {
            part: {
                "speakers": len({item.speaker for item in items}),
                "utterances": len(items),
                "seconds": round(seconds[part], 1),
            }
            for part, items in written.items()
        },
        "trials": {
            name: {
                "target": sum(line.startswith("1 ") for line in lines),
                "nontarget": sum(line.startswith("0 ") for line in lines),
            }
            for name, lines in trials.items()
        },
    }
    texts = {
        "dropped_files.txt": report,
        **{name: "\n".join(lines) + "\n" for name, lines in trials.items()},
        "corpus.json": json.dumps(description, indent=2) + "\n",
    }
    for name, text in texts.items():
        (building / name).write_text(text, encoding="utf-8")

    # From here on only names change. While they do there is no corpus.json, so
    # that a mixture of old and new is not taken for a corpus.
    (output_folder / "corpus.json").unlink(missing_ok=True)
    if (output_folder / "wav").exists():
        shutil.rmtree(output_folder / "wav")
    for name in ("wav", *texts):
        os.replace(building / name, output_folder / name)
    building.rmdir()
    return description


def _check_output_folder(output_folder):
    """Refuses a folder with files that this script did not write."""
    # What an interrupted run leaves is a folder .building.
    if _read_description(output_folder) or _building(output_folder).is_dir():
        return
    for name in ("wav", "veri_test2.txt", "corpus.json"):
        if (output_folder / name).exists():
            raise CorpusError(
                f"{output_folder / name} was not made by this script; choose "
                "another output folder"
            )


def _building(output_folder):
    return output_folder / ".building"


def summary(description):
    """Describes a corpus in a few lines.

    Arguments
    ---------
    description : dict
        The content of ``corpus.json``.

    Returns
    -------
    text : str
        A table of the parts and the numbers of trials and dropped files.
    """
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


def main(arguments=None):
    """Runs the script; errors are one line on stderr and exit status 1."""
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
    try:
        description = build_demo_corpus(
            options.output_folder, options.cache, options.synthetic
        )
    except (CorpusError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(summary(description))
    return 0


if __name__ == "__main__":
    sys.exit(main())
