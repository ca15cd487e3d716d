"""Data preparation for corpora in VoxCeleb's layout.

Every audio file is decoded once, because a header does not tell silence, NaNs
or a cut-off body. What training can read is listed, what it could read after a
conversion is converted, and the rest is left out; the report tells which.

Everything is kept in the order of the utterances, so the result does not depend
on the number of workers.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import contextlib
import csv
import functools
import os
import signal
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import torch
from speechbrain.dataio import audio_io
from speechbrain.utils.logger import get_logger
from speechbrain.utils.parallel import get_available_cpu_count, parallel_map
from tqdm import tqdm
from trials import read_trials

from redimnet2_lobes.audio import AudioError, load_waveform

logger = get_logger(__name__)

SAMPLE_RATE = 16000

# Of two files of one utterance, the one whose extension comes first is taken.
# libsndfile does not decode the last three: they are reported, not overlooked.
AUDIO_EXTENSIONS = (
    *(".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif", ".aifc"),
    *(".au", ".snd", ".caf", ".w64", ".rf64", ".sph", ".voc"),
    *(".m4a", ".aac", ".wma"),
)

TRAIN_CSV = "train.csv"
REPORT_CSV = "preparation_report.csv"
INDEX_CSV = "preparation_index.csv"
INDEX_HEADER = ["file", "size", "mtime_ns", "reason", "duration"]


def prepare_voxceleb(
    data_folder,
    save_folder,
    test_trials=None,
    validation_trials=None,
    minimum_seconds=0.5,
    workers=None,
):
    """Check a corpus and list its training utterances.

    The corpus holds ``wav/<speaker>/<session>/<utterance>.<extension>``; its
    files are only read. The save folder receives:

    - ``train.csv`` (ID, duration, wav, spk_id), sorted by ID. The ID is
      ``<speaker>/<session>/<utterance>``, the duration is in seconds, and wav
      starts with ``$data_root`` or ``$save_root``, for
      ``DynamicItemDataset.from_csv(path, replacements={"data_root":
      data_folder, "save_root": save_folder})``.
    - ``converted/``: mono copies at 16 kHz of files with more channels or
      other rates.
    - ``preparation_report.csv`` (file, action, reason): each file that was
      converted or skipped. The log counts every reason.
    - ``preparation_index.csv``: the state of each file used. The next call
      decodes only what is new, has changed or was skipped.

    Each of them appears under its name only when complete.

    Arguments
    ---------
    data_folder : str
        The folder that holds ``wav/``.
    save_folder : str
        The folder for the results.
    test_trials : str, optional
        A trial list; its *speakers* stay out of training.
    validation_trials : str, optional
        A trial list; its *utterances* stay out of training.
    minimum_seconds : float
        Shorter files are skipped.
    workers : int, optional
        Number of processes; by default one for each available CPU.

    Raises
    ------
    ValueError
        If there is no ``wav/``, no utterance is left for training, or a
        setting or a trial list is wrong. The message is one line.
    OSError
        If the save folder cannot be written.

    Example
    -------
    >>> folder = getfixture("tmpdir")
    >>> session = folder / "wav" / "id00012" / "21Uxsk56VDQ"
    >>> os.makedirs(session)
    >>> audio_io.save(str(session / "00001.wav"), torch.rand(1, 16000), 16000)
    >>> prepare_voxceleb(folder, folder / "save", workers=1)
    >>> print((folder / "save" / "train.csv").read_text("utf-8").rstrip())
    ID,duration,wav,spk_id
    id00012/21Uxsk56VDQ/00001,1.0,$data_root/wav/id00012/21Uxsk56VDQ/00001.wav,\
id00012
    """
    _check_settings(minimum_seconds, workers)
    wav_folder = os.path.join(data_folder, "wav")
    if not os.path.isdir(wav_folder):
        raise ValueError(
            f"data_folder {data_folder}: it has no folder wav/ with "
            "<speaker>/<session>/<utterance>.wav in it; give the folder of "
            "the corpus, or run `make demo` for a small one"
        )
    test_speakers = {
        utterance.split("/")[0] for utterance in _utterances_of(test_trials)
    }
    validation_utterances = _utterances_of(validation_trials)
    if not test_speakers.isdisjoint(
        utterance.split("/")[0] for utterance in validation_utterances
    ):
        logger.warning(
            "Preparation: validation_trials and test_trials share speakers, "
            "so a choice made in validation is not independent of the test."
        )

    os.makedirs(save_folder, exist_ok=True)
    counts = Counter()  # of (action, reason)
    with _csv_file(
        os.path.join(save_folder, REPORT_CSV), ["file", "action", "reason"]
    ) as report:

        def leave_out(file, reason):
            counts["skipped", reason] += 1
            report.writerow([file, "skipped", reason])

        files = []
        for file in _one_file_per_utterance(wav_folder, leave_out):
            if file[0].split("/")[0] in test_speakers:
                counts["kept out", "test speaker"] += 1
            elif file[0] in validation_utterances:
                counts["kept out", "validation utterance"] += 1
            else:
                files.append(file)

        check = functools.partial(
            _check_file,
            wav_folder=wav_folder,
            save_folder=save_folder,
            minimum_seconds=minimum_seconds,
        )
        earlier = list(_earlier_verdicts(files, save_folder, minimum_seconds))
        unknown = [
            file
            for file, verdict in zip(files, earlier, strict=True)
            if verdict is None
        ]
        fresh = iter(_check_files(check, unknown, workers))
        with _csv_file(
            os.path.join(save_folder, INDEX_CSV), INDEX_HEADER
        ) as index:
            for file, verdict in zip(files, earlier, strict=True):
                utterance, extension, size, mtime_ns = file
                name = utterance + extension
                action, reason, duration = verdict or next(fresh)
                counts[action, reason] += 1
                if action != "used":
                    report.writerow([name, action, reason])
                if action != "skipped":
                    index.writerow([name, size, mtime_ns, reason, duration])

    summary = [
        f"{count} {action}: {reason}"
        for (action, reason), count in sorted(counts.items())
        if action != "used"
    ]
    for line in summary:
        logger.info("Preparation: %s", line)
    if not any(action in ("used", "converted") for action, _ in counts):
        raise ValueError(
            f"data_folder {data_folder}: no utterance is left for training "
            f"({', '.join(summary) or 'wav/ holds no audio file'}); see "
            f"{os.path.join(save_folder, REPORT_CSV)}"
        )
    _write_train_csv(save_folder)


def _check_settings(minimum_seconds, workers):
    """Refuse wrong settings by the name that they have in a YAML file."""
    if not (isinstance(minimum_seconds, (int, float)) and minimum_seconds >= 0):
        raise ValueError(
            "minimum_seconds must be a number of seconds from 0 on, "
            f"not {minimum_seconds!r}"
        )
    if workers is not None and (not isinstance(workers, int) or workers < 1):
        raise ValueError(
            f"workers must be a whole number from 1 on, not {workers!r}"
        )


def _utterances_of(trial_list):
    """Give the set of utterance IDs that a trial list (or None) names."""
    if trial_list is None:
        return set()
    utterances = set()
    for _, *pair in read_trials(trial_list):
        for file in pair:
            parts = file.split("/")
            # A name that matches nothing would let the utterance into training.
            if len(parts) != 3 or not all(parts) or parts[0] in (".", ".."):
                raise ValueError(
                    f"{trial_list}: {file!r} is not of the form "
                    "speaker/session/utterance.wav, relative to wav/"
                )
            utterances.add(os.path.splitext(file)[0])
    return utterances


def _find_audio(folder, prefix="", depth=0):
    """Yield (path without extension, extension, size, mtime in ns).

    Paths are relative. The search goes one level too deep, to report what lies
    there, but not further: links could go in circles.
    """
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                if depth < 3:
                    yield from _find_audio(
                        entry.path, f"{prefix}{entry.name}/", depth + 1
                    )
                continue
            stem, extension = os.path.splitext(entry.name)
            if extension.lower() not in AUDIO_EXTENSIONS:
                continue
            try:
                status = entry.stat()
                size, mtime_ns = status.st_size, status.st_mtime_ns
            except OSError:  # a link to nowhere: its check will tell
                size, mtime_ns = -1, -1
            yield prefix + stem, extension, size, mtime_ns


def _one_file_per_utterance(wav_folder, leave_out):
    """Yield what `_find_audio` finds, sorted, one file per utterance."""
    files = sorted(
        _find_audio(wav_folder),
        key=lambda file: (
            file[0],
            AUDIO_EXTENSIONS.index(file[1].lower()),
            file[1],
        ),
    )
    last = None
    for file in files:
        name = file[0] + file[1]
        if "$" in name or not name.isprintable() or name != name.strip():
            # SpeechBrain's CSV reader would change it.
            printable = name.encode("unicode_escape").decode("ascii")
            leave_out(printable, "name with $, control or odd characters")
        elif name.count("/") != 2:
            leave_out(name, "not in wav/<speaker>/<session>/")
        elif file[0] == last:
            leave_out(name, "second file of one utterance")
        else:
            last = file[0]
            yield file


def _read_csv(path, header):
    """Yield the rows of a CSV file, or none if it is of another kind."""
    with open(path, newline="", encoding="utf-8") as stream:
        rows = csv.reader(stream)
        if next(rows, None) == header:
            yield from rows


def _earlier_verdicts(files, save_folder, minimum_seconds):
    """Yield for each file the verdict of the last call if it still holds.

    Both the files and the index are sorted by utterance, so the two are read
    side by side.
    """
    index_path = os.path.join(save_folder, INDEX_CSV)
    if not os.path.exists(index_path):
        yield from (None for _ in files)
        return
    rows = _read_csv(index_path, INDEX_HEADER)
    row = next(rows, None)
    for utterance, extension, size, mtime_ns in files:
        while row and os.path.splitext(row[0])[0] < utterance:
            row = next(rows, None)
        verdict = None
        if row and row[:3] == [utterance + extension, str(size), str(mtime_ns)]:
            reason, duration = row[3], float(row[4])
            converted = _converted_path(save_folder, utterance)
            if duration >= minimum_seconds and (
                not reason or os.path.exists(converted)
            ):
                verdict = "converted" if reason else "used", reason, duration
        yield verdict


def _converted_path(save_folder, utterance):
    return os.path.join(save_folder, "converted", f"{utterance}.wav")


def _start_worker():
    # Ctrl-C reaches the whole group; the parent then stops the workers, between
    # two files. One thread each: the processes share the cores already.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)


def _check_files(check, files, workers):
    """Return ``[check(file) for file in files]``, with a progress bar."""
    if not files:
        return []
    workers = min(workers or get_available_cpu_count(), len(files))
    try:
        with ProcessPoolExecutor(workers, initializer=_start_worker) as pool:
            verdicts = parallel_map(
                check, files, executor=pool, progress_bar=False
            )
            # Unlike parallel_map's own bar, this one also ends on an error.
            return list(
                tqdm(
                    verdicts,
                    desc="Checking audio",
                    unit="file",
                    total=len(files),
                )
            )
    except BrokenProcessPool:
        raise OSError(
            f"one of the {workers} preparation workers was killed, perhaps for "
            "want of memory; pass a smaller number of workers"
        ) from None


def _check_file(file, wav_folder, save_folder, minimum_seconds):
    """Decode one file and convert it if need be (in a worker process).

    Returns
    -------
    action : {"used", "converted", "skipped"}
    reason : str
        Empty if the file is used as it is.
    duration : float
        In seconds, at 16 kHz.
    """
    utterance, extension, _, _ = file
    path = os.path.join(wav_folder, utterance + extension)
    try:
        waveform = load_waveform(path, SAMPLE_RATE)
    except AudioError as error:
        return "skipped", error.reason, 0.0
    duration = len(waveform) / SAMPLE_RATE
    if duration < minimum_seconds:
        return "skipped", f"shorter than {minimum_seconds:g} s", duration
    header = audio_io.info(path)
    deviations = []
    if header.channels != 1:
        deviations.append(f"{header.channels} channels")
    if header.sample_rate != SAMPLE_RATE:
        deviations.append(f"{header.sample_rate} Hz")
    if not deviations:
        return "used", "", duration
    converted = _converted_path(save_folder, utterance)
    os.makedirs(os.path.dirname(converted), exist_ok=True)
    try:
        with _complete_or_absent(converted) as temporary:
            # As float, nothing is clipped and faint recordings keep all bits:
            # training hears exactly what inference makes of the original.
            audio_io.save(temporary, waveform, SAMPLE_RATE, subtype="FLOAT")
    except RuntimeError as error:
        raise OSError(
            f"{converted}: cannot write the converted copy "
            f"({error.__cause__}); check the free space and permissions"
        ) from None
    return "converted", ", ".join(deviations), duration


@contextlib.contextmanager
def _complete_or_absent(path):
    """Yield a temporary name; what it holds becomes ``path`` on success."""
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, f".{os.getpid()}.{name}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(temporary)


@contextlib.contextmanager
def _csv_file(path, header):
    """Yield a CSV writer for a file that appears when it is complete."""
    with (
        _complete_or_absent(path) as temporary,
        open(temporary, "w", newline="", encoding="utf-8") as stream,
    ):
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(header)
        yield writer


def _write_train_csv(save_folder):
    """Write train.csv from the index."""
    utterances, seconds, speakers = 0, 0.0, set()
    index_path = os.path.join(save_folder, INDEX_CSV)
    with _csv_file(
        os.path.join(save_folder, TRAIN_CSV),
        ["ID", "duration", "wav", "spk_id"],
    ) as train:
        for file, _, _, reason, duration in _read_csv(index_path, INDEX_HEADER):
            utterance = os.path.splitext(file)[0]
            speaker = utterance.split("/")[0]
            wav = (
                _converted_path("$save_root", utterance)
                if reason
                else f"$data_root/wav/{file}"
            )
            train.writerow([utterance, duration, wav, speaker])
            utterances += 1
            seconds += float(duration)
            speakers.add(speaker)
    logger.info(
        "Preparation: %d utterances of %d speakers for training, %.2f hours",
        utterances,
        len(speakers),
        seconds / 3600,
    )
