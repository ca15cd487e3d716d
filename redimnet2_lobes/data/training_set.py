"""Training utterances: which there are, and a random crop of each.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import csv
import os
import string

import numpy as np
from speechbrain.utils.logger import get_logger
from torch.utils.data import Dataset

from redimnet2_lobes.data.audio import AudioError, utterance_name

logger = get_logger(__name__)

COLUMNS = {"ID", "duration", "wav", "spk_id"}

# So many unusable files one after the other are no accident.
MOST_REPLACEMENTS = 10


class UtteranceList:
    r"""Utterances of CSV files (ID, duration, wav, spk_id).

    Kept as arrays, which all workers of a process share. ``shards`` holds the
    number of each utterance's shard; files are one shard.

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
        self._shard_numbers = {}

    def add(
        self,
        path,
        replacements,
        prefix="",
        minimum_seconds=0.0,
        left_out_speakers=(),
        left_out_utterances=(),
    ):
        """Adds the utterances of a CSV file.

        Arguments
        ---------
        path : str or Path
            The CSV file.
        replacements : dict
            For each variable in the column wav, such as ``$data_root``, what
            stands for it.
        prefix : str
            Put in front of names and speakers, so that those of several
            corpora are not confused.
        minimum_seconds : float
            Shorter utterances are left out.
        left_out_speakers : container of str
            Speakers of the trials to test on, without prefix.
        left_out_utterances : container of str
            Utterances of the trials to validate on, without prefix, by their
            ``utterance_name``.

        Raises
        ------
        ValueError
            If the file cannot be read or has other columns.
        """
        names, sources, speakers, shards = [], [], [], []
        try:
            with open(path, newline="", encoding="utf-8") as file:
                rows = csv.DictReader(file)
                if not COLUMNS.issubset(rows.fieldnames or ()):
                    raise ValueError(f"found {rows.fieldnames}")
                for row in rows:
                    if (
                        float(row["duration"]) < minimum_seconds
                        or row["spk_id"] in left_out_speakers
                        or row["ID"] in left_out_utterances
                        or utterance_name(row["ID"]) in left_out_utterances
                    ):
                        continue
                    source = string.Template(row["wav"])
                    source = source.substitute(replacements)
                    names.append(os.fsencode(prefix + row["ID"]))
                    sources.append(os.fsencode(source))
                    speakers.append(os.fsencode(prefix + row["spk_id"]))
                    tar, place, _ = source.rpartition(".tar:")
                    shards.append(
                        self._shard_numbers.setdefault(
                            tar if place else "", len(self._shard_numbers)
                        )
                    )
        except OSError as error:
            raise ValueError(
                f"{path}: cannot read the list of utterances "
                f"({error.strerror}); check the path"
            ) from None
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path}: not a list of utterances with the columns ID, "
                f"duration, wav and spk_id ({error})"
            ) from None
        self.names = np.concatenate([self.names, np.array(names, "S")])
        self.sources = np.concatenate([self.sources, np.array(sources, "S")])
        self.speakers = np.concatenate([self.speakers, np.array(speakers, "S")])
        self.shards = np.concatenate([self.shards, np.array(shards, np.int32)])

    def __len__(self):
        return len(self.names)

    def __getitem__(self, index):
        """Name, source and speaker of an utterance."""
        return tuple(
            os.fsdecode(column[index])
            for column in (self.names, self.sources, self.speakers)
        )


class TrainingCrops(Dataset):
    """A crop of each utterance, in epochs.

    Arguments
    ---------
    utterances : UtteranceList
        The utterances.
    speakers : speechbrain.dataio.encoder.CategoricalEncoder
        Their speakers.
    crop : RandomCrop
        Reads a crop.
    augment : callable
        Maps a crop [samples] and a ``numpy.random.Generator`` to a crop.
    epoch_random : EpochRandom
        Random numbers for each utterance.
    on_bad_audio : str
        "skip" (another utterance takes the place of one that cannot be used,
        with a warning) or "stop".
    """

    def __init__(
        self, utterances, speakers, crop, augment, epoch_random, on_bad_audio
    ):
        if on_bad_audio not in ("skip", "stop"):
            raise ValueError(
                f"on_bad_audio: {on_bad_audio!r} is neither skip nor stop"
            )
        self.utterances = utterances
        self.speakers = speakers
        self.crop = crop
        self.augment = augment
        self.epoch_random = epoch_random
        self.on_bad_audio = on_bad_audio

    def __len__(self):
        return len(self.utterances)

    def __getitem__(self, index):
        """Reads a crop.

        Arguments
        ---------
        index : int
            Position of the utterance.

        Returns
        -------
        dict
            ``id``, ``sig`` [samples], ``label`` (class index; each speed makes
            a new class of each speaker) and ``replaced``, the number of
            utterances that could not be used in its place.

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
            index = random.integers(len(self))
        label = self.speakers.encode_label(speaker)
        return {
            "id": name,
            "sig": self.augment(waveform, random),
            "label": label + speed * len(self.speakers),
            "replaced": replaced,
        }
