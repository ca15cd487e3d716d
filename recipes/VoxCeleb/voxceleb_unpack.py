"""Unpacks VoxCeleb1 and VoxCeleb2, as distributed, into one folder.

To run it:

> python voxceleb_unpack.py OUTPUT SOURCE... [--format=flac] [--workers=8]

Afterwards OUTPUT holds ``wav/<speaker>/<session>/<utterance>.wav`` (or .flac),
16 kHz, mono, 16 bit, which is what ``prepare_voxceleb`` and the recipe read. A
SOURCE is

- an archive: vox1_dev_wav.zip, vox1_test_wav.zip, vox2_dev_aac.zip,
  vox2_test_aac.zip or any other zip;
- one part of a split archive, such as vox2_dev_aac_partaa: all parts beside it
  are read as one file, without joining them on the disk;
- a folder with archives, or with what was extracted from them.

In all of them an utterance is any audio file (.wav, .flac, .m4a and more), and
the last three parts of its path are the speaker, the session and the utterance.
Hidden files are left out; links are followed, but not to what is there already.
Files that have the wanted format already are taken as they are (from a folder
as hard links, where the file system has them); ffmpeg converts the others.
Sources are only read.

The same command goes on where it was interrupted: it skips utterances that
OUTPUT has, in either format. Files that cannot be unpacked are named in
OUTPUT/unpack_report.csv, and the exit status is 1; a further run tries them
again.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import argparse
import contextlib
import csv
import errno
import io
import itertools
import os
import re
import shutil
import string
import subprocess
import sys
import threading
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from multiprocessing.pool import ThreadPool
from typing import NamedTuple

import imageio_ffmpeg
from speechbrain.utils.parallel import get_available_cpu_count
from tqdm import tqdm

from redimnet2_lobes.data.audio import audio_rank, list_audio
from redimnet2_lobes.files.atomic import NO_SPACE, complete_or_absent
from redimnet2_lobes.files.error_lines import one_line_errors
from redimnet2_lobes.files.folder_lock import only_writer

FORMATS = {"wav": "pcm_s16le", "flac": "flac"}
REPORT_CSV = "unpack_report.csv"
PART = re.compile(r"(.+_part)([a-z]{2})")


class Recording(NamedTuple):
    """An audio file in a folder or an archive."""

    utterance: str  # speaker/session/utterance
    extension: str
    path: str  # in the archive if there is one
    archive: zipfile.ZipFile | None = None


Place = str | tuple[str, ...]  # a folder, or the parts of an archive
# What is found in a place: a recording, and the reason if it cannot be used.
Found = Iterator[tuple[Recording, str | None]]


class JoinedFiles(io.RawIOBase):
    """Reads several files as if they were one.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> for name in ("ab", "cde"):
    ...     _ = (folder / name).write_text(name)
    >>> joined = JoinedFiles([folder / "ab", folder / "cde"])
    >>> joined.seek(1), joined.read(1), joined.read(9)
    (1, b'b', b'cde')
    """

    def __init__(self, paths: Sequence[str | os.PathLike]):
        self._files = [io.FileIO(path) for path in paths]
        sizes = [os.fstat(file.fileno()).st_size for file in self._files]
        self._ends = list(itertools.accumulate(sizes))
        self._position = 0

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Moves to a place, as in any file."""
        # In the order of SEEK_SET, SEEK_CUR and SEEK_END.
        self._position = (0, self._position, self._ends[-1])[whence] + offset
        return self._position

    def readinto(self, buffer: bytearray) -> int:
        """Reads up to the end of one of the files."""
        start = 0
        for file, end in zip(self._files, self._ends, strict=True):
            if self._position < end:
                file.seek(self._position - start)
                count = file.readinto(buffer)
                self._position += count
                return count
            start = end
        return 0

    def close(self) -> None:
        """Closes the files."""
        for file in self._files:
            file.close()
        super().close()


def unpack(
    output: str,
    sources: list[str],
    audio_format: str = "wav",
    workers: int | None = None,
) -> tuple[int, int, int]:
    """Unpacks archives and extracted trees; see the top of this file.

    Gives the numbers of new utterances, of those that were there before, and of
    files in the report. By default there are as many workers as available CPUs.

    Raises
    ------
    ValueError
        If a source is missing, holds no audio or is no archive.
    OSError
        If the output cannot be written, or another process is writing it.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> with zipfile.ZipFile(folder / "vox1_test_wav.zip", "w") as archive:
    ...     archive.writestr("wav/id10270/x6uYqmx31kE/00001.wav", b"RIFF")
    >>> unpack(str(folder / "VoxCeleb1"), [str(folder / "vox1_test_wav.zip")])
    (1, 0, 0)
    """
    wav_folder = os.path.join(output, "wav")
    with (
        _work_folder(output) as work_folder,
        contextlib.ExitStack() as archives,
    ):
        there = set()
        if os.path.isdir(wav_folder):
            there = {found.utterance for found, _ in _in_folder(wav_folder)}
        present, failures, recordings = 0, [], []
        found = {}  # audio files in each place
        for source in sources:
            places = list(_places(source))
            for place in places:
                if place in found:  # each part of an archive may be given
                    continue
                found[place] = 0
                if isinstance(place, tuple):
                    audio_files = _in_archive(place, archives)
                else:
                    audio_files = _in_folder(
                        place, os.path.realpath(wav_folder)
                    )
                for recording, fault in audio_files:
                    found[place] += 1
                    if fault:
                        failures.append((source, recording.path, fault))
                    elif recording.utterance in there:
                        present += 1
                    else:
                        there.add(recording.utterance)
                        recordings.append(recording)
            if not any(found[place] for place in places):
                raise ValueError(
                    f"{source}: there is no audio file in it; give an archive "
                    "of VoxCeleb or a folder with archives or with wav/ or aac/"
                )

        def unpack_one(recording: Recording) -> str | None:
            return _unpack_one(recording, wav_folder, work_folder, audio_format)

        with ThreadPool(workers or get_available_cpu_count()) as pool:
            results = pool.imap(unpack_one, recordings)
            bar = {"desc": "Unpacking", "unit": "file"}
            faults = list(tqdm(results, total=len(recordings), **bar))
        for recording, fault in zip(recordings, faults, strict=True):
            if fault:
                source = getattr(recording.archive, "filename", "")
                failures.append((source, recording.path, fault))
        with (
            complete_or_absent(os.path.join(output, REPORT_CSV)) as report,
            open(report, "w", newline="", encoding="utf-8") as stream,
        ):
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(["source", "file", "reason"])
            writer.writerows(failures)
    return len(recordings) - sum(map(bool, faults)), present, len(failures)


@contextlib.contextmanager
def _work_folder(output: str) -> Iterator[str]:
    """Gives a folder for unfinished files, to one process at a time."""
    with only_writer(output, "voxceleb_unpack.py"):
        folder = os.path.join(output, ".unpacking")
        shutil.rmtree(folder, ignore_errors=True)  # left by a killed process
        os.mkdir(folder)
        yield folder
        shutil.rmtree(folder)


def _places(source: str) -> Iterator[Place]:
    """Yields the archives of a source, each as its parts, and the folder."""
    if os.path.isfile(source):
        yield _all_parts(source)
    elif os.path.isdir(source):
        for name in sorted(os.listdir(source)):
            if name.endswith(".zip") or PART.fullmatch(name):
                yield _all_parts(os.path.join(source, name))
        yield source
    else:
        raise ValueError(f"{source}: no such file or folder")


def _all_parts(path: str) -> tuple[str, ...]:
    """Gives the paths of all parts of an archive, in order."""
    folder, name = os.path.split(path)
    match = PART.fullmatch(name)
    if not match:
        return (path,)
    beside = {
        other
        for other in os.listdir(folder or ".")
        if PART.fullmatch(other) and other.startswith(match[1])
    }
    letters = itertools.product(string.ascii_lowercase, repeat=2)
    expected = [match[1] + "".join(pair) for pair in letters]
    parts = expected[: expected.index(max(beside)) + 1]
    for part in parts:
        if part not in beside:
            raise ValueError(
                f"{os.path.join(folder, part)}: this part of the archive is "
                "missing; download it"
            )
    return tuple(os.path.join(folder, part) for part in parts)


def _in_archive(
    paths: tuple[str, ...], archives: contextlib.ExitStack
) -> Found:
    try:
        joined = archives.enter_context(io.BufferedReader(JoinedFiles(paths)))
        archive = archives.enter_context(zipfile.ZipFile(joined))
    except zipfile.BadZipFile as error:
        raise ValueError(
            f"{paths[-1]}: no zip archive, or cut off ({error}); download it "
            "again, and if it is one of several parts, all of them"
        ) from None
    archive.filename = paths[0]
    for member in archive.namelist():
        yield from _recording(member, member, archive)


def _in_folder(folder: str, left_out: str | None = None) -> Found:
    is_other = left_out not in (None, os.path.realpath(folder))
    found = list_audio(folder, [left_out] if is_other else [])
    if left_out and found.left_out:
        print(f"note: {found.left_out}", file=sys.stderr)
    for path in found.paths:
        yield from _recording(os.path.relpath(path, folder), path)


def _recording(
    inner: str, path: str, archive: zipfile.ZipFile | None = None
) -> Found:
    """Yields the recording that a path names, if it is one."""
    stem, extension = os.path.splitext(inner)
    parts = stem.split("/")
    if audio_rank(inner) is None or parts[-1][:1] == ".":
        return
    fault = None
    if len(parts) < 3 or not all(part.strip(".") for part in parts[-3:]):
        fault = "not in <speaker>/<session>/"
    utterance = "/".join(parts[-3:])
    yield Recording(utterance, extension.lower(), path, archive), fault


def _unpack_one(
    recording: Recording, wav_folder: str, work_folder: str, audio_format: str
) -> str | None:
    """Unpacks one file; gives None, or the reason why it failed."""
    target = os.path.join(wav_folder, f"{recording.utterance}.{audio_format}")
    working = os.path.join(work_folder, str(threading.get_ident()))
    try:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        original = recording.path
        if recording.archive:
            original = f"{working}{recording.extension}"
            with (
                recording.archive.open(recording.path) as packed,
                open(original, "wb") as extracted,
            ):
                shutil.copyfileobj(packed, extracted, 1 << 20)
        if recording.extension != f".{audio_format}":
            converted = f"{working}.converted.{audio_format}"
            _convert(original, converted, audio_format)
            os.replace(converted, target)
        elif recording.archive:
            os.replace(original, target)
        else:
            try:
                os.link(os.path.realpath(original), target)
            except OSError:  # another file system, or one without links
                shutil.copyfile(original, working)
                os.replace(working, target)
    except OSError as error:
        if error.errno in NO_SPACE:
            raise OSError(
                f"{target}: {error.strerror}; make room and run it again"
            ) from None
        return error.strerror
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        return f"damaged in the archive: {error}"
    except ValueError as error:
        return str(error)
    return None


def _convert(original: str, converted: str, audio_format: str) -> None:
    """Converts to 16 kHz, mono, 16 bit."""
    completed = subprocess.run(
        [
            imageio_ffmpeg.get_ffmpeg_exe(),
            *("-nostdin", "-v", "error", "-xerror", "-y", "-threads", "1"),
            *("-i", f"file:{original}", "-map", "0:a:0"),
            *("-ac", "1", "-ar", "16000", "-sample_fmt", "s16"),
            *("-c:a", FORMATS[audio_format], "-map_metadata", "-1"),
            # No tags of the encoder: the plain header of 44 bytes.
            *("-fflags", "+bitexact", "-flags:a", "+bitexact"),
            f"file:{converted}",
        ],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    if completed.returncode:
        message = completed.stderr.decode(errors="replace")
        if os.strerror(errno.ENOSPC) in message:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        first_line = message.strip().partition("\n")[0]
        # "[mov @ 0x55d0] ...": the number differs from call to call.
        first_line = re.sub(r"^\[.*?\] ", "", first_line)
        raise ValueError(f"ffmpeg: {first_line or completed.returncode}")


def main() -> None:
    """Runs the script."""
    parser = argparse.ArgumentParser(
        description="Unpack VoxCeleb into OUTPUT/wav, in 16 kHz mono."
    )
    parser.add_argument("output", help="the folder that gets wav/")
    parser.add_argument(
        "source", nargs="+", help="archives, their parts, or folders"
    )
    parser.add_argument("--format", choices=FORMATS, default="wav")
    parser.add_argument(
        "--workers", type=int, help="default: one for each available CPU"
    )
    options = parser.parse_args()
    if options.workers is not None and options.workers < 1:
        parser.error(f"--workers: {options.workers} is less than 1")
    with one_line_errors():
        unpacked, present, failures = unpack(
            options.output, options.source, options.format, options.workers
        )
    print(f"{unpacked:,} utterances unpacked, {present:,} were there before")
    if failures:
        report = os.path.join(options.output, REPORT_CSV)
        sys.exit(
            f"error: {failures:,} of the files could not be unpacked, "
            f"{report} names them; the others can be used"
        )


if __name__ == "__main__":
    main()
