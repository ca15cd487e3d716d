"""Manifests of lhotse as lists of utterances.

A manifest is a file ``.jsonl`` or ``.jsonl.gz`` of

- cuts: each is an utterance, of the speaker of its supervisions;
- supervisions: each is an utterance, a segment of its recording. The
  recordings are in the file beside it that is called ``recordings`` where this
  one is called ``supervisions``, as lhotse's own recipes write them;
- recordings: each is an utterance, without a speaker.

Paths in it are used as they stand, as lhotse does.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from redimnet2_lobes.data.sources import segment_source, split_source
from redimnet2_lobes.files.error_lines import one_line
from redimnet2_lobes.models.front_end import SAMPLE_RATE

ENDINGS = (".jsonl", ".jsonl.gz")

_TO_FILES = "write the audio to files by lhotse's CutSet.save_audios"


def is_manifest(path: str | os.PathLike) -> bool:
    """Whether a list is read as a manifest, by its name.

    Example
    -------
    >>> is_manifest("cuts.jsonl.gz"), is_manifest("train.csv")
    (True, False)
    """
    return os.fspath(path).lower().endswith(ENDINGS)


def read_manifest(
    path: str | os.PathLike,
) -> Iterator[tuple[int, dict[str, str]]]:
    """Yields (line number, row) of a manifest, one after the other.

    A row has the columns of `read_rows`: ID, wav, a source of audio, duration
    in seconds, and spk_id, which is empty if the speaker is not known.

    Raises
    ------
    ValueError
        If the package lhotse or the recordings are missing, the file is
        damaged, or an utterance has several speakers, is no part of one file
        as it is, or is of some of its channels: one line that names the file.

    Example
    -------
    >>> import lhotse
    >>> recording = lhotse.Recording(
    ...     "r1", [lhotse.AudioSource("file", [0], "a.wav")], 16000, 64000, 4.0
    ... )
    >>> cut = recording.to_cut().truncate(offset=1.0, duration=2.5)
    >>> path = getfixture("tmp_path") / "cuts.jsonl"
    >>> lhotse.CutSet([cut.with_id("c1")]).to_file(path)
    >>> for _, row in read_manifest(path):
    ...     print(row)
    {'ID': 'c1', 'wav': 'a.wav[1.0s:3.5s]', 'duration': '2.5', 'spk_id': ''}
    """
    recordings: dict[str, Any] | None = None
    for line, item in _read_items(path):
        try:
            kind = type(item).__name__
            if kind == "SupervisionSegment":
                if recordings is None:
                    recordings = _recordings_beside(path)
                if item.recording_id not in recordings:
                    raise ValueError(
                        f"recording {item.recording_id!r} of {item.id!r} is "
                        f"not in {_beside(path).name}; add it there"
                    )
                recording, speakers = recordings[item.recording_id], [item]
                channels = item.channel
            elif kind == "Recording":
                recording, speakers, channels = item, [], item.channel_ids
            elif kind in ("MonoCut", "MultiCut"):
                recording, speakers = item.recording, item.supervisions
                channels = item.channel
            else:
                raise ValueError(
                    f"a {kind} is no part of one recording; {_TO_FILES}"
                )
            if not 0 < item.duration < math.inf:
                raise ValueError(
                    f"{item.id} lasts {item.duration} seconds; correct that"
                )
            start = getattr(item, "start", 0)
            yield (
                line,
                {
                    "ID": _checked(item.id),
                    "wav": _source(
                        recording, channels, start, start + item.duration
                    ),
                    "duration": str(float(item.duration)),
                    "spk_id": _speaker(item.id, speakers),
                },
            )
        except (ValueError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(
                f"{path}, line {line}: {one_line(error)}"
            ) from error


def _read_items(path: str | os.PathLike) -> Iterator[tuple[int, Any]]:
    """Yields (line number, what lhotse makes of the line)."""
    try:
        from lhotse.lazy import LazyManifestIterator
    except ImportError:
        raise ValueError(f"{path}: to read it, pip install lhotse") from None
    line = 0
    # Of other names, such as pipe:..., lhotse might run a command.
    items = iter(LazyManifestIterator(os.path.abspath(path)))
    while True:
        line += 1
        try:
            item = next(items)
        except StopIteration:
            return
        except OSError as error:
            if error.filename is not None:
                raise
            raise ValueError(
                f"{path}, line {line}: damaged ({one_line(error)}); write the "
                "manifest again"
            ) from None
        except Exception as error:  # whatever a wrong value leads to
            raise ValueError(
                f"{path}, line {line}: nothing that lhotse reads "
                f"({one_line(error)}); write the manifest again"
            ) from None
        yield line, item


def _beside(path: str | os.PathLike) -> Path:
    """The file of recordings that belongs to one of supervisions."""
    path = Path(path)
    return path.with_name(path.name.replace("supervisions", "recordings"))


def _recordings_beside(path: str | os.PathLike) -> dict[str, Any]:
    """The recordings by their names."""
    other = _beside(path)
    if other == Path(path) or not other.is_file():
        raise ValueError(
            "supervisions need their recordings beside them; call the files "
            "supervisions.jsonl and recordings.jsonl, or join them to cuts by "
            "lhotse cut simple"
        )
    return {item.id: item for _, item in _read_items(other)}


def _checked(name: Any) -> str:
    """A name that any list can hold."""
    if not isinstance(name, str) or not name:
        raise ValueError(f"{name!r} is no name; name it by a text")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name!a} is not UTF-8; rename it") from None
    if "\0" in name:
        raise ValueError(f"{name!a} has a null character; rename it")
    return name


def _speaker(name: str, supervisions: list) -> str:
    found = {each.speaker for each in supervisions} - {None}
    if len(found) > 1:
        raise ValueError(
            f"{name} is of {len(found)} speakers; cut it by "
            "lhotse cut trim-to-supervisions"
        )
    return _checked(found.pop()) if found else ""


def _source(
    recording: Any, channels: int | list[int], start: float, stop: float
) -> str:
    """The source of a part of a recording, in seconds."""
    if recording is None:
        raise ValueError(
            "its recording is missing; join recordings and cuts by "
            "lhotse cut simple"
        )
    # All audio is brought to 16 kHz here, which such a change does not hinder.
    for transform in recording.transforms or []:
        if type(transform).__name__ != "Resample" or (
            recording.sampling_rate < SAMPLE_RATE
        ):
            raise ValueError(
                f"recording {recording.id} is changed by "
                f"{type(transform).__name__}, which is not done here; "
                f"{_TO_FILES}"
            )
    wanted = channels if isinstance(channels, list) else [channels]
    for source in recording.sources:
        if source.type != "file":
            raise ValueError(
                f"recording {recording.id} is no file, but of type "
                f"{source.type!r}; {_TO_FILES}"
            )
        if sorted(source.channels) == sorted(wanted):
            path = _checked(source.source)
            if start == 0 and stop >= recording.duration:
                if split_source(path)[1]:
                    raise ValueError(
                        f"{path} would be taken for a part of a file; rename it"
                    )
                return path
            return segment_source(path, f"{start}", f"{round(stop, 8)}", "s")
    raise ValueError(
        f"of recording {recording.id} no file has just the channels {wanted}, "
        "and all of a file are mixed; write each to a file of its own"
    )
