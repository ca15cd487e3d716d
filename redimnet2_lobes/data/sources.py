"""Sources of audio: files, segments of files, and places in shards.

A source is a text, one of

- a path: the whole file;
- ``<path>[<start>:<stop>]``: a segment of a file, from its sample ``start`` to
  the one before ``stop``, such as ``a.wav[16000:48000]``; in seconds
  ``a.wav[1.5s:3.0s]``, or ``a.wav[1.5s:]`` up to the end;
- ``<shard>.tar:<offset>:<size>``: the bytes of a file in a shard.

A shard is a tar file of the WebDataset library with some thousands of
utterances, for file systems that are slow with millions of small files. An
index names the place of each utterance in it.

From each of them a crop is read as from a plain file: without what surrounds
it.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import contextlib
import io
import os
import re
from collections.abc import Iterator

import numpy as np
import soundfile

from redimnet2_lobes.data.audio import (
    EMPTY,
    AudioError,
    open_descriptor,
    thread_safe_open,
    unreadable,
)

_COUNT = "[0-9]{1,18}"
_SECONDS = r"(?:[0-9]{1,18}\.?[0-9]*|\.[0-9]+)(?:e-[0-9]+)?s"
_SHARD = re.compile(rf"(.+\.tar):({_COUNT}):({_COUNT})", re.DOTALL)
_SEGMENT = re.compile(
    rf"(.+)(\[{_COUNT}:{_COUNT}\]|\[{_SECONDS}:(?:{_SECONDS})?\])", re.DOTALL
)

# After seeking, libsndfile decodes some milliseconds of MP3 wrongly, and misses
# the place in Vorbis by up to thousands of samples. That is no harm to a random
# crop, but another speaker may have spoken there: a segment is counted off.
_NOT_EXACT = ("MPEG_LAYER_I", "MPEG_LAYER_II", "MPEG_LAYER_III", "VORBIS")
_BLOCK = 2**20  # samples

# What libsndfile gives for a header that does not say how long the audio is.
_UNKNOWN_LENGTH = 2**63 - 1

# A segment in seconds may end so many beyond the file, as Kaldi has it.
OVERSHOOT = 0.5


def split_source(source: str) -> tuple[str, tuple[str, ...]]:
    """Splits a source into the path of its file and the place in there.

    The place is empty for a whole file, the text of a segment, or offset and
    size in a shard.

    Example
    -------
    >>> split_source("a.wav"), split_source("a.wav[1.5s:3.0s]")
    (('a.wav', ()), ('a.wav', ('[1.5s:3.0s]',)))
    >>> split_source("shards/1.tar:512:900")
    ('shards/1.tar', ('512', '900'))
    """
    match = _SHARD.fullmatch(source) or _SEGMENT.fullmatch(source)
    if match is None:
        return source, ()
    path, *place = match.groups()
    return path, tuple(place)


def segment_source(path: str, start: str, stop: str, unit: str = "") -> str:
    """The source of a segment, from the text of a list.

    The unit is "" for samples of the file, "s" for seconds; then ``stop`` may
    be empty, for the end of the file.

    Raises
    ------
    ValueError
        If these are no such numbers, nothing lies between them, or the path is
        a part of a file already.

    Example
    -------
    >>> segment_source("a.wav", "1.5", "3.0", "s")
    'a.wav[1.5s:3.0s]'
    """
    if split_source(path)[1]:
        raise ValueError(
            f"{path} is a part of a file already, and no segment of that can "
            "be taken; name the file itself"
        )
    source = f"{path}[{start}{unit}:{stop}{unit if stop else ''}]"
    if not split_source(source)[1]:
        numbers = "numbers of seconds" if unit else "whole numbers of samples"
        raise ValueError(
            f"start {start!r} and stop {stop!r} are not {numbers} from 0 on; "
            "correct them"
        )
    if stop and float(start) >= float(stop):
        raise ValueError(
            f"start {start} is not before stop {stop}; correct them"
        )
    return source


@contextlib.contextmanager
def open_audio(source: str) -> Iterator["AudioFile"]:
    """Opens a source.

    Raises
    ------
    AudioError
        If the file or the shard is missing or ends too early, or it cannot be
        decoded, now or when it is read.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> soundfile.write(folder / "a.wav", [0.0, 0.5, 0.25], 16000)
    >>> with open_audio(f"{folder}/a.wav[1:3]") as file:
    ...     file.length, file.read_part(0, 2)
    (2, array([0.5 , 0.25], dtype=float32))
    >>> audio = (folder / "a.wav").read_bytes()
    >>> _ = (folder / "shard.tar").write_bytes(b"header" + audio + b"more")
    >>> with open_audio(f"{folder}/shard.tar:6:{len(audio)}") as file:
    ...     file.read_part(1, 2)
    array([0.5 , 0.25], dtype=float32)
    """
    path, place = split_source(source)
    in_shard = len(place) == 2
    start, size = place if in_shard else (0, None)
    try:
        with _FileRange(path, start, size) as file:
            if file.is_cut_short():
                raise AudioError(
                    "cut short",
                    "the shard ends before it, so copy or make the shard again",
                    source,
                )
            with thread_safe_open(
                lambda: AudioFile(file, in_shard, source)
            ) as audio:
                if place and not in_shard:
                    audio.narrow(*place)
                yield audio
    except FileNotFoundError:
        raise AudioError("missing", "check the path", source) from None
    # Of a header that lies, as much as it says may not fit into memory.
    except (soundfile.LibsndfileError, OSError, MemoryError) as error:
        if os.path.isfile(path) and os.path.getsize(path) == 0:
            raise AudioError(*EMPTY, source) from None
        fault = unreadable(path, error)
        raise AudioError(fault.reason, fault.remedy, source) from None


class AudioFile(soundfile.SoundFile):
    """An open utterance of ``length`` samples, made by `open_audio`."""

    _counted_off = False

    def __init__(self, file: "_FileRange", in_shard: bool, source: str):
        file.seek(0)
        # libsndfile's own reading is faster, but ends with the whole file.
        super().__init__(file if in_shard else file.fileno(), closefd=False)
        self._range = file
        self._source = source
        self._first = 0
        self.length = self.frames

    def narrow(self, segment: str) -> None:
        """Makes a segment of the file, ``[<start>:<stop>]``, the utterance."""
        start, stop = segment[1:-1].split(":")
        if start.endswith("s"):
            first = round(float(start[:-1]) * self.samplerate)
            last = self.frames
            if stop:
                last = round(float(stop[:-1]) * self.samplerate)
                if last - self.frames <= OVERSHOOT * self.samplerate:
                    last = min(last, self.frames)
        else:
            first, last = int(start), int(stop)
        if max(first, last) > self.frames:
            raise AudioError(
                "a segment beyond the end of its file",
                f"that has {self.frames} samples, "
                f"{self.frames / self.samplerate:.3f} s, so correct the list",
                self._source,
            )
        self._first, self.length = first, last - first
        self._counted_off = self.subtype in _NOT_EXACT

    def seekable(self) -> bool:
        """Whether samples are found without decoding all before them.

        Where they are not, soundfile does not seek after reading either.
        """
        return not self._counted_off and super().seekable()

    def read_part(
        self, start: int, frames: int, dtype: str = "float32"
    ) -> np.ndarray:
        """Reads samples from ``start`` on, and nothing else from the disk.

        It is an AudioError if the audio is incomplete. What is not seekable is
        decoded from the beginning of the file, and once only.
        """
        first = self._first + start
        if first + frames == _UNKNOWN_LENGTH:
            raise AudioError(
                "of unknown length",
                "its header does not say it, so convert the file again",
                self._source,
            )
        self._range.prefetch(first, frames, self.frames)
        if self.seekable():
            self.seek(first)
        else:
            for block in range(0, first, _BLOCK):
                self.read(min(_BLOCK, first - block), dtype)
        audio = self.read(frames, dtype)
        if len(audio) < frames:
            raise AudioError(
                "cut short",
                f"it ends within {frames} samples from {start}, against its "
                "header, so replace it or leave it out",
                self._source,
            )
        return audio


class _FileRange(io.FileIO):
    """A part of a file that looks like a file of its own to soundfile.

    Left to itself, Linux reads up to megabytes around the bytes asked for.
    """

    def __init__(self, path: str, start: int | str, size: int | str | None):
        super().__init__(path, opener=lambda path, _: open_descriptor(path))
        self.end_of_file = os.fstat(self.fileno()).st_size
        self.start = int(start)
        self.size = self.end_of_file if size is None else int(size)
        self._advise(0, 0, "POSIX_FADV_RANDOM")

    def _advise(self, start: int, size: int, advice: str) -> None:
        if hasattr(os, "posix_fadvise"):  # Linux
            os.posix_fadvise(self.fileno(), start, size, getattr(os, advice))

    def is_cut_short(self) -> bool:
        """Whether the file ends before the part does."""
        return self.end_of_file < self.start + self.size

    def prefetch(self, start: int, length: int, total: int) -> None:
        """Has the bytes of a part read at once, given in samples.

        Compressed audio may lie elsewhere; then it is read when it is needed.
        """
        if total:
            self._advise(
                self.start + self.size * start // total,
                self.size * length // total,
                "POSIX_FADV_WILLNEED",
            )

    def tell(self):
        """The position in the part."""
        return super().tell() - self.start

    def seek(self, offset, whence=os.SEEK_SET):
        """Goes to a position in the part."""
        if whence == os.SEEK_SET:
            offset += self.start
        elif whence == os.SEEK_END:
            offset += self.start + self.size
            whence = os.SEEK_SET
        return super().seek(offset, whence) - self.start

    def readinto(self, buffer):
        """Reads up to the end of the part."""
        left = max(0, self.size - self.tell())
        return super().readinto(memoryview(buffer)[:left])
