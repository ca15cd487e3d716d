"""Training utterances: which there are, and a random crop of each.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import dataclasses
import os
from collections.abc import Callable, Container, Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from speechbrain.dataio.batch import PaddedBatch, PaddedData
from speechbrain.dataio.encoder import CategoricalEncoder
from speechbrain.utils.logger import get_logger
from torch.utils.data import Dataset

from redimnet2_lobes.data.audio import (
    AudioError,
    check_speaker,
    utterance_name,
)
from redimnet2_lobes.data.crops import EpochRandom, RandomCrop
from redimnet2_lobes.data.lists import read_rows
from redimnet2_lobes.data.sources import split_source
from redimnet2_lobes.data.trials import read_trials

logger = get_logger(__name__)

COLUMNS = ("ID", "duration", "wav", "spk_id")

UNKNOWN = "unknown"  # the speaker of all utterances of an unlabelled training

# So many unusable files one after the other are no accident.
MOST_REPLACEMENTS = 10


class UtteranceList:
    r"""Utterances of CSV files (ID, duration, wav, spk_id).

    Rows with start and stop are segments of files, see `read_rows`. Kept as
    arrays, which all workers of a process share. ``shards`` holds the number of
    each utterance's shard; files are one shard. ``replayed`` counts the last
    ones, which are there for replay.

    Example
    -------
    >>> path = getfixture("tmp_path") / "train.csv"
    >>> rows = "ID,duration,wav,spk_id\na/x/1,2.5,$data_root/a.wav,a\n"
    >>> _ = path.write_text(rows)
    >>> utterances = UtteranceList()
    >>> utterances.add(path, {"data_root": "/corpus"}, prefix="A_")
    >>> utterances[0]
    ('A_a/x/1', '/corpus/a.wav', 'A_a')
    """

    def __init__(self):
        self.names = np.empty(0, "S1")
        self.sources = np.empty(0, "S1")
        self.speakers = np.empty(0, "S1")
        self.shards = np.empty(0, np.int32)
        self.replayed = 0
        self._shard_numbers: dict[str, int] = {}

    def add(
        self,
        path: str | Path,
        replacements: Mapping[str, str | Path],
        prefix: str = "",
        minimum_seconds: float = 0.0,
        left_out_speakers: Container[str] = (),
        left_out_utterances: Container[str] = (),
        labelled: bool = True,
    ) -> None:
        """Adds the utterances of a CSV file.

        Arguments
        ---------
        path
        replacements
            What stands for variables in the column wav, such as ``$data_root``.
        prefix
            Put in front of names and speakers, so that those of several
            corpora are not confused.
        minimum_seconds
            Shorter utterances are left out.
        left_out_speakers
            Without prefix.
        left_out_utterances
            Without prefix, by their ``utterance_name``.
        labelled
            Whether each must have a speaker. Otherwise all have the same one;
            whom to leave out says ``spk_id``, or else the first folder of ID.

        Raises
        ------
        ValueError
            If the file cannot be read, has other columns or a speaker whose
            name cannot be kept.
        """
        names, sources, speakers, shards = [], [], [], []
        columns = COLUMNS if labelled else COLUMNS[:-1]
        try:
            for _, row in read_rows(path, columns, replacements):
                named = row.get("spk_id") or row["ID"].split("/")[0]
                if (
                    float(row["duration"]) < minimum_seconds
                    or named in left_out_speakers
                    or row["ID"] in left_out_utterances
                    or utterance_name(row["ID"]) in left_out_utterances
                ):
                    continue
                names.append(os.fsencode(prefix + row["ID"]))
                sources.append(os.fsencode(row["wav"]))
                speaker = prefix + row["spk_id"] if labelled else UNKNOWN
                speakers.append(os.fsencode(speaker))
                file, _ = split_source(row["wav"])
                shards.append(
                    self._shard_numbers.setdefault(
                        file if file.endswith(".tar") else "",
                        len(self._shard_numbers),
                    )
                )
        except OSError as error:
            raise ValueError(
                f"{path}: cannot read the list of utterances "
                f"({error.strerror}); check the path"
            ) from None
        except ValueError as error:
            raise ValueError(
                f"{path}: not a list of utterances with the columns "
                f"{', '.join(columns)} ({error})"
            ) from None
        for speaker in set(speakers):
            check_speaker(os.fsdecode(speaker), path)
        self.names = np.append(self.names, np.array(names, "S"))
        self.sources = np.append(self.sources, np.array(sources, "S"))
        self.speakers = np.append(self.speakers, np.array(speakers, "S"))
        self.shards = np.append(self.shards, np.array(shards, np.int32))

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[str, str, str]:
        """Name, source and speaker of an utterance."""
        return (
            os.fsdecode(self.names[index]),
            os.fsdecode(self.sources[index]),
            os.fsdecode(self.speakers[index]),
        )


def read_training_lists(
    lists: Mapping[str, str | Path],
    replacements: Mapping[str, str | Path],
    minimum_seconds: float,
    test_trials: str | Path | Iterable[str | Path],
    validation_trials: Iterable[tuple],
    replay_lists: Mapping[str, str | Path] | None = None,
    labelled: bool = True,
) -> tuple[UtteranceList, CategoricalEncoder]:
    r"""Reads the training utterances and speakers, without those of the trials.

    Arguments
    ---------
    lists
        For each prefix of names and speakers a CSV file.
    replacements
        What stands for variables in the column wav; if empty, the folder of
        each list for ``$data_root``.
    minimum_seconds
        Shorter utterances are left out.
    test_trials
        Trial lists whose speakers are left out.
    validation_trials
        Trials (label, enrolment, test) whose utterances are left out.
    replay_lists
        As ``lists``, of the speakers of a pretraining; they come last.
    labelled
        See `UtteranceList.add`.

    Raises
    ------
    ValueError
        If a list cannot be read, or where each utterance must have a speaker,
        there are not two, or one is in ``replay_lists`` and in ``lists``.

    Example
    -------
    >>> path = getfixture("tmp_path") / "train.csv"
    >>> test = path.with_name("test.txt")
    >>> _ = test.write_text("1 c/x/1.wav c/x/2.wav")
    >>> rows = (f"{name}/x/1,2,{name}.wav,{name}" for name in "cab")
    >>> _ = path.write_text("\n".join(["ID,duration,wav,spk_id", *rows]))
    >>> utterances, speakers = read_training_lists(
    ...     {"": path}, {}, 1.0, test, []
    ... )
    >>> len(utterances), speakers.lab2ind
    (2, {'a': 0, 'b': 1})
    """
    if isinstance(test_trials, (str, Path)):
        test_trials = [test_trials]
    left_out_speakers = {
        name.split("/")[0]
        for path in test_trials
        for _, *pair in read_trials(path)
        for name in pair
    }
    left_out_utterances = {
        utterance_name(name) for _, *pair in validation_trials for name in pair
    }
    utterances = UtteranceList()

    def add(lists: Mapping, replacements: Mapping) -> None:
        before = len(utterances)
        for prefix, path in lists.items():
            utterances.add(
                path,
                replacements or {"data_root": Path(path).parent},
                prefix,
                minimum_seconds,
                left_out_speakers,
                left_out_utterances,
                labelled,
            )
        if lists and len(utterances) == before:
            paths = ", ".join(map(str, lists.values()))
            raise ValueError(f"{paths}: no utterance is left for training")

    add(lists, replacements)
    new = len(utterances)
    add(replay_lists or {}, {})
    utterances.replayed = len(utterances) - new
    both = np.intersect1d(utterances.speakers[:new], utterances.speakers[new:])
    if labelled and len(both):
        raise ValueError(
            f"replay_lists: the speaker {os.fsdecode(both[0])} has utterances "
            "for training as well; give the new ones a prefix: "
            "--training_lists='{prefix: CSV}'"
        )
    paths = ", ".join(map(str, lists.values()))
    names = [os.fsdecode(name) for name in np.unique(utterances.speakers)]
    if labelled and len(names) == 1:
        raise ValueError(
            f"{paths}: {names[0]} is the only speaker that is left for "
            "training; more are needed in data_folder or the lists, beside "
            "those of test_trials"
        )
    speakers = CategoricalEncoder()
    speakers.expect_len(len(names))
    for index, name in enumerate(names):  # update_from_iterable is quadratic
        speakers.insert_label(name, index)
    return utterances, speakers


@dataclasses.dataclass(eq=False)
class TrainingCrops(Dataset):
    """A crop of each utterance, in epochs.

    ``augment`` changes a crop [samples]. If ``on_bad_audio`` is "skip", another
    utterance takes the place of one that cannot be used, with a warning.
    """

    utterances: UtteranceList  # both from read_training_lists
    speakers: CategoricalEncoder
    crop: RandomCrop
    augment: Callable[[torch.Tensor, np.random.Generator], torch.Tensor]
    epoch_random: EpochRandom
    on_bad_audio: str  # skip or stop
    # What a teacher makes of each, if there is one [speeds, utterances, size].
    teacher: torch.Tensor | None = None

    def __post_init__(self):
        if self.on_bad_audio not in ("skip", "stop"):
            raise ValueError(
                f"on_bad_audio: {self.on_bad_audio!r} is neither skip nor stop"
            )

    def __len__(self) -> int:
        return len(self.utterances)

    def __getitem__(self, index: int) -> dict:
        """Reads a crop.

        Gives ``id``, ``sig`` [samples], ``label`` (class index; each speed
        makes a new class of each speaker), ``replaced``, the number of
        utterances that could not be used in its place, and with a teacher
        ``teacher`` [size].

        Raises
        ------
        ValueError
            If it cannot be used and ``on_bad_audio`` is "stop", or if many in
            a row cannot.
        """
        random = self.epoch_random(self.utterances[index][0])
        replaced = 0
        while True:
            name, source, speaker = self.utterances[index]
            try:
                waveform, speed = self.crop(source, random)
                break
            except AudioError as error:
                if self.on_bad_audio == "stop":
                    raise ValueError(
                        f"{error}, or go on without such files by "
                        "--on_bad_audio=skip"
                    ) from None
                logger.warning("Skipped: %s", error)
            replaced += 1
            if replaced == MOST_REPLACEMENTS:
                raise ValueError(
                    f"{source}: like {replaced - 1} utterances before, it "
                    "cannot be used; check the corpus"
                )
            index = int(random.integers(len(self)))
        label = self.speakers.encode_label(speaker)
        crop = {
            "id": name,
            "sig": self.augment(waveform, random),
            "label": label + speed * len(self.speakers),
            "replaced": replaced,
        }
        if self.teacher is not None:
            crop["teacher"] = self.teacher[speed, index]
        return crop


def collate_crops(crops: list[dict]) -> PaddedBatch:
    """A batch of ``TrainingCrops``, whose lengths are None if none is padded.

    The network would look at them on the GPU, and the host wait for it. All
    tensors move to pinned memory, and to a device, with the batch.

    Example
    -------
    >>> crop = {"id": "a", "sig": torch.zeros(3), "label": 0, "replaced": 0}
    >>> batch = collate_crops([crop, crop])
    >>> batch.sig.data.shape, batch.sig.lengths
    (torch.Size([2, 3]), None)
    """
    on_device = ["sig", "label", "replaced", "teacher"]
    batch = PaddedBatch(crops, device_prep_keys=on_device)
    if len({len(crop["sig"]) for crop in crops}) == 1:
        batch.sig = PaddedData(batch.sig.data, None)
    return batch
