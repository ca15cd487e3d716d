"""The list of training utterances, and the report of what is not in it.

A preparation checks the files of each speaker in a process
(``data/audio_checks.py``), and writes what they have found into a folder:

- ``train.csv`` (ID, duration in seconds, wav, spk_id);
- ``preparation_report.csv`` (file, action, reason): each file that was
  converted or skipped;
- ``preparation_index.tsv``: the state of each file used, for the next call.
  What an interrupted call has found is in ``preparation_index.tsv.part``.

Each appears under its name only when complete.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import contextlib
import csv
import functools
import io
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from redimnet2_lobes.data.audio import check_speaker
from redimnet2_lobes.data.audio_checks import (
    INDEX,
    REPORT_CSV,
    Path,
    Verdict,
    check_recording,
    converted_path,
    earlier_verdicts,
    in_processes,
    index_file,
    parse_verdicts,
    text_file,
)
from redimnet2_lobes.files.settings import require_number


class SpeakerFiles:
    """What was found about the files of a speaker, from a worker process.

    Example
    -------
    >>> files = SpeakerFiles("anna")
    >>> verdict = Verdict("used", "", 2.5, "1.wav ...")
    >>> files.add("anna/1", "1.wav", "$data_root/1.wav", verdict)
    >>> files.skip("2.wav", "silent")
    >>> print(files.train.getvalue() + files.report.getvalue())
    anna/1,2.5,$data_root/1.wav,anna
    2.wav,skipped,silent
    <BLANKLINE>
    """

    def __init__(self, speaker: str):
        self.speaker = speaker
        self.utterances = 0  # there, whether used or not
        self.counts: Counter[tuple[str, str]] = Counter()  # (action, reason)
        self.seconds = 0.0  # for training
        self.train = io.StringIO()
        self.report = io.StringIO()
        self.index = io.StringIO()

    def skip(self, file: str, reason: str) -> None:
        """Reports a file that cannot be used, before it is checked."""
        self._report(file, "skipped", reason)

    def keep_out(self, reason: str) -> None:
        """Counts an utterance that must not be used."""
        self.counts["kept out", reason] += 1

    def add(
        self, utterance: str, file: str, wav: str, verdict: Verdict
    ) -> None:
        """Lists what was checked by ``wav``, or reports the file."""
        if verdict.action == "used":
            self.counts[verdict.action, verdict.reason] += 1
        else:
            self._report(file, verdict.action, verdict.reason)
        if verdict.action != "skipped":
            self.index.write(verdict.line)
            self.seconds += verdict.seconds
            row = [utterance, verdict.seconds, wav, self.speaker]
            csv.writer(self.train, lineterminator="\n").writerow(row)

    def _report(self, file: str, action: str, reason: str) -> None:
        self.counts[action, reason] += 1
        row = [file, action, reason]
        csv.writer(self.report, lineterminator="\n").writerow(row)


class Totals(NamedTuple):
    """What the list of a corpus holds."""

    found: dict[str, int]  # utterances there of each speaker
    speakers: int
    utterances: int
    seconds: float
    others: list[str]  # how many were converted, skipped or kept out, and why

    def __str__(self) -> str:
        return (
            f"{self.utterances} utterances of {self.speakers} speakers for "
            f"training, {self.seconds / 3600:.2f} hours"
        )


@contextlib.contextmanager
def training_list(
    folder: Path,
    results: Iterable[SpeakerFiles],
    corpus: str,
    unused: Iterable[tuple[str, str]] = (),
) -> Iterator[Totals]:
    r"""Writes the files of a preparation, the list only after the block.

    An error in the block, or if there is no utterance, leaves ``train.csv`` as
    it was.

    Arguments
    ---------
    folder
    results
        In the order of the list.
    corpus
        What the error names if no utterance is left.
    unused
        Files that belong to no speaker, with the reason.

    Raises
    ------
    ValueError
        If no utterance is left.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> files = SpeakerFiles("anna")
    >>> files.add("anna/1", "1.wav", "1.wav", Verdict("used", "", 3600, "..."))
    >>> with training_list(folder, [files], "Anna") as totals:
    ...     print(totals)
    1 utterances of 1 speakers for training, 1.00 hours
    >>> (folder / "train.csv").read_text()
    'ID,duration,wav,spk_id\nanna/1,3600,1.wav,anna\n'
    """
    report_path = os.path.join(folder, REPORT_CSV)
    found, counts = {}, Counter()
    speakers, utterances, seconds = 0, 0, 0.0
    with text_file(os.path.join(folder, "train.csv")) as train:
        train.write("ID,duration,wav,spk_id\n")
        with (
            text_file(report_path) as report,
            index_file(os.path.join(folder, INDEX)) as index,
        ):
            report.write("file,action,reason\n")
            for name, reason in unused:
                counts["skipped", reason] += 1
                csv.writer(report, lineterminator="\n").writerow(
                    [name, "skipped", reason]
                )
            for result in results:
                listed = result.train.getvalue()
                found[result.speaker] = result.utterances
                counts.update(result.counts)
                speakers += bool(listed)
                utterances += listed.count("\n")
                seconds += result.seconds
                train.write(listed)
                report.write(result.report.getvalue())
                index.write(result.index.getvalue())
                index.flush()
        others = [
            f"{count} {action}: {reason}"
            for (action, reason), count in sorted(counts.items())
            if action != "used"
        ]
        if not utterances:
            raise ValueError(
                f"{corpus}: no utterance is left for training "
                f"({', '.join(others) or 'it holds no audio file'}); see "
                f"{report_path}"
            )
        yield Totals(found, speakers, utterances, seconds, others)


class Task(NamedTuple):
    """What a worker process needs to know of a speaker."""

    speaker: str
    files: Mapping[str, str]  # each utterance to its file
    earlier: str  # lines of the index


def write_training_list(
    folder: Path,
    corpus: Path,
    speakers: Mapping[str, Mapping[str, str]],
    minimum_seconds: float = 1.0,
    check_audio: bool = True,
    workers: int | None = None,
) -> Totals:
    """Checks the files of speakers, and lists them for training.

    The list has absolute paths, so that lists of several corpora can be mixed.
    Copies of files that had to be converted are in ``converted/``.

    Arguments
    ---------
    folder
    corpus
        What the error names if no utterance is left.
    speakers
        For each the names of its utterances, ``<speaker>/...``, with their
        files.
    minimum_seconds
        Shorter files are skipped.
    check_audio
        Whether all files are decoded, not only those to be converted.
    workers
        Number of processes; by default one for each available CPU.

    Raises
    ------
    ValueError
        If no utterance is left, or a setting or a speaker's name is wrong.

    Example
    -------
    >>> import soundfile, torch
    >>> folder = getfixture("tmp_path")
    >>> soundfile.write(folder / "1.flac", torch.rand(32000).numpy(), 16000)
    >>> files = {"anna/1": f"{folder}/1.flac", "anna/2": f"{folder}/2.flac"}
    >>> totals = write_training_list(
    ...     folder, "corpus", {"anna": files}, workers=1
    ... )
    >>> totals.utterances, totals.others
    (1, ['1 skipped: missing'])
    """
    require_number("minimum_seconds", minimum_seconds)
    if workers is not None and workers < 1:
        raise ValueError(f"workers: {workers} is less than 1")
    for speaker in speakers:
        check_speaker(speaker, folder)
    folder = os.path.abspath(folder)
    os.makedirs(folder, exist_ok=True)
    earlier = earlier_verdicts(folder)
    tasks = [
        Task(speaker, files, earlier.get(speaker, ""))
        for speaker, files in sorted(speakers.items())
    ]
    check = functools.partial(
        _check_files,
        folder=folder,
        minimum_seconds=minimum_seconds,
        check_audio=check_audio,
    )
    results = in_processes(check, tasks, workers)
    with training_list(folder, results, str(corpus)) as totals:
        return totals


def _check_files(
    task: Task, folder: str, minimum_seconds: float, check_audio: bool
) -> SpeakerFiles:
    """Checks the files of one speaker (in a worker process)."""
    result = SpeakerFiles(task.speaker)
    earlier = parse_verdicts(task.earlier)
    for utterance, path in sorted(task.files.items()):
        result.utterances += 1
        try:
            status = os.stat(path)
            size, mtime_ns = status.st_size, status.st_mtime_ns
        except OSError:
            size, mtime_ns = -1, -1
        verdict = check_recording(
            utterance,
            utterance,
            path,
            size,
            mtime_ns,
            earlier,
            folder,
            minimum_seconds,
            check_audio,
        )
        wav = path
        if verdict.action == "converted":
            wav = converted_path(folder, utterance)
        wav = os.path.abspath(wav).replace("$", "$$")
        result.add(utterance, path, wav, verdict)
    return result
