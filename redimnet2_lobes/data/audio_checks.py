"""Is a file fit for training? Checks many, and remembers what it found.

Training reads mono at 16 kHz. Other files are converted if they can be, and
what holds no speech is skipped, with the reason. Lengths come from the headers.
A header does not tell silence or NaNs: on request, a file is decoded once.

The tasks of a preparation, one for each speaker, run in processes. Their
results are in the order of the tasks, whatever the number of processes.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import contextlib
import itertools
import os
import signal
import struct
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import NamedTuple, TextIO, TypeVar

import soundfile
import torch
from speechbrain.dataio import audio_io
from speechbrain.utils.parallel import get_available_cpu_count
from tqdm import tqdm

from redimnet2_lobes.data.audio import AudioError, load_waveform, unreadable
from redimnet2_lobes.files.atomic import complete_or_absent, replace_when_synced
from redimnet2_lobes.models.front_end import SAMPLE_RATE

REPORT_CSV = "preparation_report.csv"
INDEX = "preparation_index.tsv"

# The plain header of a wav file, up to its samples; a flac file's up to the
# number of its samples.
WAV_HEADER = struct.Struct("<4s4x8sI2H2I2H4sI")
FLAC_HEADER = struct.Struct(">4s14xQ")

Path = str | os.PathLike
Work = TypeVar("Work")
Found = TypeVar("Found")
# Of each state of a file how it was checked, the reason to convert it if any,
# and its seconds.
Earlier = dict[str, tuple[str, str, float]]


class Verdict(NamedTuple):
    """What becomes of a file."""

    action: str  # used, converted or skipped
    reason: str
    seconds: float
    line: str  # for the index; empty if skipped


def check_recording(
    utterance: str,
    name: str,
    path: str,
    size: int,
    mtime_ns: int,
    earlier: Earlier,
    save_folder: Path,
    minimum_seconds: float,
    check_audio: bool,
) -> Verdict:
    """Checks a file, unless an earlier call has, and converts it if needed.

    Arguments
    ---------
    utterance
        Its name, which a converted copy gets.
    name
        Of the file, in the index.
    path, size, mtime_ns
        Of the file, as ``os.stat`` gives them; a size of -1 is a missing file.
    earlier
        From `parse_verdicts`.
    save_folder
        Has the converted copies, see `converted_path`.
    minimum_seconds
        Shorter files are skipped.
    check_audio
        Whether it is decoded even if it need not be converted.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> soundfile.write(folder / "a.wav", torch.rand(8000).numpy(), 8000)
    >>> size = os.path.getsize(folder / "a.wav")
    >>> check_recording(
    ...     *("a/1", "a.wav", f"{folder}/a.wav", size, 0, {}, folder, 0.5, True)
    ... )[:3]
    ('converted', '8000 Hz', 1.0)
    """
    checked = "audio" if check_audio else "header"
    state = f"{name}\t{size}\t{mtime_ns}"
    converted = converted_path(save_folder, utterance)
    how, reason, seconds = earlier.get(state, ("", "", 0.0))
    if (
        how in ("audio", checked)
        and seconds >= minimum_seconds
        and (not reason or os.path.exists(converted))
    ):
        action = "converted" if reason else "used"
    else:
        how = checked
        action, reason, seconds = _check_file(
            path, size, converted, minimum_seconds, check_audio
        )
    line = f"{state}\t{how}\t{reason}\t{seconds}\n"
    return Verdict(action, reason, seconds, "" if action == "skipped" else line)


def converted_path(save_folder: Path, utterance: str) -> str:
    """Where the converted copy of an utterance is.

    Example
    -------
    >>> converted_path("save", "anna/x/1")
    'save/converted/anna/x/1.wav'
    """
    return f"{save_folder}/converted/{utterance}.wav"


def parse_verdicts(lines: str) -> Earlier:
    r"""Reads lines of the index; damaged ones are left out.

    Example
    -------
    >>> parse_verdicts("a.wav\t32044\t17\taudio\t\t1.0\ndamaged\n")
    {'a.wav\t32044\t17': ('audio', '', 1.0)}
    """
    earlier = {}
    for line in lines.splitlines():
        with contextlib.suppress(ValueError):  # the file is checked again
            state, how, reason, seconds = line.rsplit("\t", 3)
            earlier[state] = how, reason, float(seconds)
    return earlier


def _start_worker() -> None:
    # Ctrl-C reaches the whole group; the parent then stops the workers. One
    # thread each: the processes share the cores already.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)


def in_processes(
    function: Callable[[Work], Found],
    tasks: Sequence[Work],
    workers: int | None,
) -> Iterator[Found]:
    """Yields ``function(task)`` for the tasks of speakers, with a progress bar.

    By default there is one process for each available CPU. One that is killed
    is an OSError.
    """
    workers = min(workers or get_available_cpu_count(), max(len(tasks), 1))
    try:
        with ProcessPoolExecutor(workers, initializer=_start_worker) as pool:
            chunksize = max(1, min(8, len(tasks) // (4 * workers)))
            results = pool.map(function, tasks, chunksize=chunksize)
            yield from tqdm(
                results, "Checking audio", len(tasks), unit="speaker"
            )
    except BrokenProcessPool:
        raise OSError(
            f"one of the {workers} preparation workers was killed, perhaps for "
            "want of memory; pass a smaller number of workers"
        ) from None


@contextlib.contextmanager
def index_file(path: str) -> Iterator[TextIO]:
    """Yields a text file; incomplete, it keeps the ending ``.part``."""
    with open(f"{path}.part", "w", encoding="utf-8") as stream:
        yield stream
    replace_when_synced(f"{path}.part", path)


@contextlib.contextmanager
def text_file(path: str) -> Iterator[TextIO]:
    """Yields a text file that appears when it is complete."""
    with (
        complete_or_absent(path) as partial,
        open(partial, "w", encoding="utf-8") as stream,
    ):
        yield stream


def earlier_verdicts(save_folder: Path) -> dict[str, str]:
    """The lines of a folder's index for each speaker, the first part of names.

    What an interrupted call has left is put into the index first, so that it
    outlives a second interruption.
    """
    path = os.path.join(save_folder, INDEX)
    lines = defaultdict(str)
    for name in (path, f"{path}.part"):
        with (
            contextlib.suppress(FileNotFoundError),
            open(name, encoding="utf-8", errors="replace") as stream,
        ):
            text = stream.read()
            text = text[: text.rfind("\n") + 1]  # the last may be cut off
            for speaker, group in itertools.groupby(
                text.splitlines(keepends=True),
                key=lambda line: line.split("/", 1)[0],
            ):
                lines[speaker] += "".join(group)
    if os.path.exists(f"{path}.part"):
        with text_file(f"{path}.merged") as index:
            index.writelines(lines.values())
        os.replace(f"{path}.merged", path)
        os.remove(f"{path}.part")
    return lines


def _check_file(
    path: str,
    size: int,
    converted: str,
    minimum_seconds: float,
    check_audio: bool,
) -> tuple[str, str, float]:
    """Gives used, converted or skipped, the reason if any, and the seconds."""
    if size <= 0:
        return "skipped", "empty" if size == 0 else "missing", 0.0
    try:
        header = _read_plain_header(path) or _read_any_header(path)
        rate, channels, frames, end = header
        if end > size:
            return "skipped", "cut off", 0.0
        deviations = []
        if channels != 1:
            deviations.append(f"{channels} channels")
        if rate != SAMPLE_RATE:
            deviations.append(f"{rate} Hz")
        if check_audio or deviations:
            waveform = load_waveform(path, SAMPLE_RATE)
            frames = len(waveform)
        elif frames == 0:
            return "skipped", "empty", 0.0
    except AudioError as error:
        return "skipped", error.reason, 0.0
    duration = frames / SAMPLE_RATE
    if duration < minimum_seconds:
        return "skipped", f"shorter than {minimum_seconds:g} s", duration
    if not deviations:
        return "used", "", duration
    os.makedirs(os.path.dirname(converted), exist_ok=True)
    try:
        with complete_or_absent(converted) as partial:
            # As float, training hears what inference makes of the original.
            samples = waveform.numpy()
            soundfile.write(partial, samples, SAMPLE_RATE, "FLOAT", None, "WAV")
    except RuntimeError as error:
        raise OSError(
            f"{converted}: cannot write the converted copy "
            f"({error}); check the free space and permissions"
        ) from None
    return "converted", ", ".join(deviations), duration


# Sampling rate, channels, samples, and the size in bytes that the file must
# have at least.
Header = tuple[int, int, int, int]


def _read_plain_header(path: str) -> Header | None:
    """Reads a usual header of wav or flac, 15 times as fast as libsndfile."""
    try:
        with open(path, "rb", buffering=0) as file:
            header = file.read(WAV_HEADER.size)
    except OSError:
        return None
    if len(header) < WAV_HEADER.size:
        return None
    if header.startswith(b"RIFF"):
        _, kind, length, code, channels, rate, _, block, _, chunk, body = (
            WAV_HEADER.unpack(header)
        )
        if (
            (kind, length, code, chunk) == (b"WAVEfmt ", 16, 1, b"data")
            and block
            and body < 2**31 - 2**16  # above it is what streams have
        ):
            return rate, channels, body // block, WAV_HEADER.size + body
    elif header.startswith(b"fLaC"):
        _, packed = FLAC_HEADER.unpack_from(header)
        frames = packed & (2**36 - 1)
        if frames:  # 0 stands for unknown
            return packed >> 44, (packed >> 41 & 7) + 1, frames, 0
    return None


def _read_any_header(path: str) -> Header:
    try:
        header = audio_io.info(path)
    except RuntimeError as error:
        raise unreadable(path, error) from None
    return header.sample_rate, header.channels, header.frames, 0
