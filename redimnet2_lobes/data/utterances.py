"""Lists of utterances, in the forms that corpora come in.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import csv
import functools
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from speechbrain.utils.logger import get_logger

from redimnet2_lobes.data.audio import AudioError, check_name, find_audio
from redimnet2_lobes.data.lhotse_manifests import is_manifest
from redimnet2_lobes.data.lists import read_lines, read_rows
from redimnet2_lobes.data.sources import segment_source, split_source
from redimnet2_lobes.files.atomic import complete_or_absent

logger = get_logger(__name__)

# What Kaldi takes in place of a file.
_NO_FILE = (
    (re.compile(r"\|.*|.*\|", re.DOTALL), "a command, and none is run"),
    (re.compile("-"), "standard input, which is not read"),
    (re.compile(r".*:[0-9]+", re.DOTALL), "a place in an archive"),
    (re.compile(r".*\]", re.DOTALL), "a range of a file"),
)


class Utterance(NamedTuple):
    """An utterance: its name, its source and its speaker if known.

    The path is any source of ``data/sources.py``: of a file, a segment of one,
    or a place in a shard.
    """

    name: str
    path: str
    speaker: str | None = None


def read_utterances(
    source: str | os.PathLike,
    data_folder: str | os.PathLike | None = None,
    strict: bool = True,
) -> list[Utterance]:
    r"""Reads which utterances there are, in the order of the list or by name.

    The source is one of

    - a folder: all audio files in its folder ``wav``, or else in it, each once
      (`find_audio`; the log counts what is left out). Their names are their
      paths in there, their speakers the first folder in these;
    - a file ``.csv`` with the columns ID and wav, and spk_id for speakers, such
      as training lists and those of shards. With the columns start and stop,
      in samples of the file, an utterance is that segment of it, where they
      are not empty. In it ``$save_root`` is the folder of the CSV, and so is
      ``$data_root`` unless ``data_folder`` is given;
    - a file ``.scp`` of Kaldi with lines ``name path``. With a file
      ``segments`` beside it, lines ``name recording start end`` in seconds,
      these are the utterances. A file ``utt2spk`` gives their speakers;
    - a file ``.jsonl`` or ``.jsonl.gz`` of lhotse: cuts, recordings, or
      supervisions with their recordings beside them (`read_manifest`).

    Raises
    ------
    ValueError
        If the list has another form, is empty, or names an utterance twice, a
        command, channels, or files that are missing; those pass without
        ``strict``, unless all are.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> (folder / "anna" / "home").mkdir(parents=True)
    >>> _ = (folder / "anna" / "home" / "1.wav").write_bytes(b"audio")
    >>> [(utterance.name, utterance.speaker)
    ...     for utterance in read_utterances(folder)]
    [('anna/home/1.wav', 'anna')]
    >>> _ = (folder / "list.csv").write_text(
    ...     "ID,wav\na1,$data_root/anna/home/1.wav"
    ... )
    >>> read_utterances(folder / "list.csv")[0].name
    'a1'
    """
    source = Path(source)
    if source.is_dir():
        return _read_folder(source)
    suffix = source.suffix.lower()
    if suffix == ".csv" or is_manifest(source):
        found = _read_csv(source, data_folder)
    elif suffix == ".scp":
        source, found = _read_kaldi(source)
    else:
        raise ValueError(
            f"{source}: neither a folder nor a file .csv, .scp or .jsonl; name "
            "one of these"
        )
    utterances, lines = [], {}
    for line, utterance in found:
        before = lines.setdefault(utterance.name, line)
        if before != line:
            raise ValueError(
                f"{source}, line {line}: utterance {utterance.name} is in line "
                f"{before} already; leave out one of them"
            )
        utterances.append(utterance)
    if not utterances:
        raise ValueError(f"{source}: no utterances; name a list that has some")
    _check_files(source, utterances, lines, strict)
    return utterances


def paths_of(utterances: Iterable[Utterance]) -> dict[str, str]:
    """The name of each utterance to its path.

    Example
    -------
    >>> paths_of([Utterance("a1", "/corpus/a1.wav", "anna")])
    {'a1': '/corpus/a1.wav'}
    """
    return {utterance.name: utterance.path for utterance in utterances}


def write_left_out(
    path: str | os.PathLike,
    utterances: Iterable[Utterance],
    faults: Mapping[str, AudioError],
) -> None:
    """Writes a CSV list of the utterances with faults, for `read_utterances`.

    It has the columns ID, wav, spk_id and reason, with segments also start and
    stop, and appears when it is complete. Without faults a list of an earlier
    run is removed.

    Example
    -------
    >>> path = getfixture("tmp_path") / "a.left_out.csv"
    >>> utterances = [Utterance("a1", "/corpus/a1.wav", "anna")]
    >>> faults = {"a1": AudioError("empty", "record it again")}
    >>> write_left_out(path, utterances, faults)
    >>> print(path.read_text().rstrip())
    "ID","wav","spk_id","reason"
    "a1","/corpus/a1.wav","anna","empty; record it again"
    """
    rows = []
    for name, source, speaker in utterances:
        if name in faults:
            wav, place = split_source(source)
            borders = "", ""
            if len(place) == 1:
                borders = place[0][1:-1].split(":")
            else:
                wav = source
            # In any folder the list finds the file, whatever its name.
            wav = os.path.join(os.getcwd(), wav).replace("$", "$$")
            reason = f"{faults[name].reason}; {faults[name].remedy}"
            rows.append([name, wav, speaker, reason, *borders])
    if not rows:
        Path(path).unlink(missing_ok=True)
        return
    columns = ["ID", "wav", "spk_id", "reason", "start", "stop"]
    if not any(start for *_, start, _ in rows):
        del columns[4:]
    with (
        complete_or_absent(path) as partial,
        # What is no UTF-8 could not be read again, but should be seen.
        open(
            *(partial, "w"),
            encoding="utf-8",
            errors="backslashreplace",
            newline="",
        ) as file,
    ):
        # Left alone, csv quotes neither a carriage return nor a space in front.
        writer = csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(row[: len(columns)] for row in rows)


def limit_per_speaker(
    utterances: Sequence[Utterance], count: int
) -> list[Utterance]:
    """Keeps at most ``count`` utterances of each speaker, evenly spaced.

    Example
    -------
    >>> utterances = [Utterance(str(i), f"{i}.wav", "anna") for i in range(6)]
    >>> [utterance.name for utterance in limit_per_speaker(utterances, 3)]
    ['0', '2', '4']
    """
    if not count >= 1:
        raise ValueError(f"utterances per speaker: {count} is less than 1")
    of_speaker = defaultdict(list)
    for index, utterance in enumerate(utterances):
        if utterance.speaker is None:
            raise ValueError(
                f"{utterance.name}: its speaker is not known; give the list a "
                "column spk_id or a file utt2spk"
            )
        of_speaker[utterance.speaker].append(index)
    kept = []
    for indices in of_speaker.values():
        number = min(count, len(indices))
        kept += [indices[i * len(indices) // number] for i in range(number)]
    return [utterances[index] for index in sorted(kept)]


def _read_folder(folder: Path) -> list[Utterance]:
    root = folder / "wav" if (folder / "wav").is_dir() else folder
    try:
        found = find_audio(root)
    except ValueError:
        if not (folder / "wav.scp").is_file():
            raise
        raise ValueError(
            f"{folder}: there is no audio file in it, but a list of them; name "
            f"{folder / 'wav.scp'}"
        ) from None
    utterances = []
    if found.left_out:
        logger.warning("note: %s", found.left_out)
    for path in found.paths:
        name = Path(path).relative_to(root).as_posix()
        check_name(name)
        speaker, slash, _ = name.partition("/")
        utterances.append(Utterance(name, path, speaker if slash else None))
    return utterances


def _read_csv(
    path: Path, data_folder: str | os.PathLike | None
) -> Iterator[tuple[int, Utterance]]:
    replacements = {
        "data_root": path.parent if data_folder is None else data_folder,
        "save_root": path.parent,
    }
    for line, row in read_rows(path, ["ID", "wav"], replacements):
        speaker = row.get("spk_id") or None
        yield line, Utterance(row["ID"], row["wav"], speaker)


def _read_pairs(path: Path, second: str) -> Iterator[tuple[int, str, str]]:
    """Yields (line, name, the rest) of a list of Kaldi."""
    for line, text in read_lines(path):
        fields = text.strip().split(maxsplit=1)
        if not fields:
            continue
        if len(fields) != 2:
            raise ValueError(
                f"{path}, line {line}: expected 'name {second}', found "
                f"{text.strip()[:80]!r}"
            )
        yield line, fields[0], fields[1]


def _read_kaldi(scp: Path) -> tuple[Path, Iterator[tuple[int, Utterance]]]:
    """The file that lists the utterances, and its lines and utterances."""
    channels = scp.with_name("reco2file_and_channel")
    if channels.exists():
        raise ValueError(
            f"{channels}: channels cannot be chosen, all of a file are mixed; "
            "write each to a file of its own, and remove this list of them"
        )
    segments = scp.with_name("segments")
    if segments.is_file():
        return segments, _with_speakers(segments, _read_segments(segments, scp))
    return scp, _with_speakers(scp, _read_scp(scp))


def _read_scp(path: Path) -> Iterator[tuple[int, str, str]]:
    """Yields (line, name, file) of a wav.scp."""
    for line, name, audio in _read_pairs(path, "path"):
        for form, what in _NO_FILE:
            if form.fullmatch(audio):
                raise ValueError(
                    f"{path}, line {line}: {name} is {what}; write its audio "
                    "to a file and name that"
                )
        yield line, name, audio


def _read_segments(path: Path, scp: Path) -> Iterator[tuple[int, str, str]]:
    """Yields (line, name, segment of a file) of a list of segments."""
    recordings = {}
    for line, name, audio in _read_scp(scp):
        if name in recordings:
            raise ValueError(
                f"{scp}, line {line}: recording {name} is in an earlier line "
                "already; leave out one of them"
            )
        recordings[name] = audio
    for line, name, rest in _read_pairs(path, "recording start end"):
        recording, *times = rest.split()
        try:
            if len(times) == 3:
                raise ValueError(
                    f"{name} is of channel {times[2]}, but all channels of a "
                    "file are mixed; write each to a file of its own"
                )
            if len(times) != 2:
                raise ValueError(
                    "expected 'name recording start end', found "
                    f"{f'{name} {rest}'[:80]!r}"
                )
            if recording not in recordings:
                raise ValueError(
                    f"recording {recording} is not in {scp.name}; add it there "
                    "or leave out its segments"
                )
            start, stop = times
            if re.fullmatch(r"-1(\.0*)?", stop):  # the end of the file
                stop = ""
            segment = segment_source(recordings[recording], start, stop, "s")
        except ValueError as error:
            raise ValueError(f"{path}, line {line}: {error}") from None
        yield line, name, segment


def _with_speakers(
    path: Path, sources: Iterator[tuple[int, str, str]]
) -> Iterator[tuple[int, Utterance]]:
    """Yields the lines and utterances of a list, by the utt2spk beside it."""
    speakers = None
    utt2spk = path.with_name("utt2spk")
    if utt2spk.is_file():
        speakers = {}
        for line, name, speaker in _read_pairs(utt2spk, "speaker"):
            if speakers.setdefault(name, speaker) != speaker:
                raise ValueError(
                    f"{utt2spk}, line {line}: {name} has the speaker "
                    f"{speakers[name]} in an earlier line; leave out one of "
                    "them"
                )
    for line, name, source in sources:
        if speakers is not None and name not in speakers:
            raise ValueError(
                f"{utt2spk}: no speaker for {name} ({path.name}, line "
                f"{line}); add it, or remove the file to do without speakers"
            )
        speaker = None if speakers is None else speakers[name]
        yield line, Utterance(name, source, speaker)


def _check_files(
    source: Path,
    utterances: list[Utterance],
    lines: dict[str, int],
    strict: bool,
) -> None:
    is_file = functools.cache(os.path.isfile)  # which may hold many utterances
    missing = [
        utterance
        for utterance in utterances
        if not is_file(split_source(utterance.path)[0])
    ]
    if missing and (strict or len(missing) == len(utterances)):
        raise ValueError(
            f"{source}: {len(missing)} of the {len(utterances)} files are "
            f"missing, the first is {missing[0].path} (line "
            f"{lines[missing[0].name]}); check the paths, and the folder that "
            "$data_root stands for (list_folder in verification, data_folder "
            "in extraction)"
        )
