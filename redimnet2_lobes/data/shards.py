"""Audio in plain files or in the shards of a corpus.

A shard is a tar file of the WebDataset library with some thousands of
utterances, for file systems that are slow with millions of small files. An
index names the place of each utterance in it, so that a crop is read from a
shard as it is from a plain file: without what surrounds it.

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

from redimnet2_lobes.data.audio import EMPTY, AudioError

SHARD_SOURCE = re.compile(r"(.+\.tar):(\d+):(\d+)")


@contextlib.contextmanager
def open_audio(source: str) -> Iterator["AudioFile"]:
    """Opens an audio file, or the bytes ``<shard>.tar:<offset>:<size>``.

    Raises
    ------
    AudioError
        If the file or the shard is missing or ends too early, or it cannot be
        decoded, now or when it is read.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> soundfile.write(folder / "a.wav", [0.0, 0.5, 0.25], 16000)
    >>> audio = (folder / "a.wav").read_bytes()
    >>> _ = (folder / "shard.tar").write_bytes(b"header" + audio + b"more")
    >>> with open_audio(f"{folder}/shard.tar:6:{len(audio)}") as file:
    ...     file.read_part(1, 2)
    array([0.5 , 0.25], dtype=float32)
    """
    match = SHARD_SOURCE.fullmatch(source)
    path, start, size = match.groups() if match else (source, 0, None)
    try:
        with _FileRange(path, start, size) as file:
            if file.is_cut_short():
                raise AudioError(
                    "cut short",
                    "the shard ends before it, so copy or make the shard again",
                    source,
                )
            with AudioFile(file, in_shard=bool(match)) as audio:
                yield audio
    except FileNotFoundError:
        raise AudioError("missing", "check the path", source) from None
    except (soundfile.LibsndfileError, OSError) as error:
        if os.path.getsize(path) == 0:
            raise AudioError(*EMPTY, source) from None
        detail = " ".join(getattr(error, "error_string", str(error)).split())
        raise AudioError(
            "unreadable",
            f"the error is {detail!r}, so replace the file or leave it out",
            source,
        ) from None


class AudioFile(soundfile.SoundFile):
    """An open utterance, made by `open_audio`."""

    def __init__(self, file: "_FileRange", in_shard: bool):
        # libsndfile's own reading is faster, but ends with the whole file.
        super().__init__(file if in_shard else file.fileno(), closefd=False)
        self._range = file

    def read_part(self, start: int, frames: int) -> np.ndarray:
        """Reads samples from ``start`` on, and nothing else from the disk.

        They are float32, and fewer than asked for if the audio is incomplete.
        """
        self._range.prefetch(start, frames, self.frames)
        self.seek(start)
        return self.read(frames, dtype="float32")


class _FileRange(io.FileIO):
    """A part of a file that looks like a file of its own to soundfile.

    Left to itself, Linux reads up to megabytes around the bytes asked for.
    """

    def __init__(self, path: str, start: int | str, size: int | str | None):
        super().__init__(path)
        self.end_of_file = os.fstat(self.fileno()).st_size
        self.start = int(start)
        self.size = self.end_of_file if size is None else int(size)
        self._advise(0, 0, "POSIX_FADV_RANDOM")
        self.seek(0)

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
