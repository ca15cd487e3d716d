"""The audio files and the labels of trial lists, checked.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import contextlib
import os
from pathlib import Path

from redimnet2_lobes.data.audio import audio_rank, match_utterances
from redimnet2_lobes.files.atomic import complete_or_absent


def check_labels(trials, key, path):
    """Checks that a trial list holds trials of both kinds.

    Arguments
    ---------
    trials : list of tuple
        Trials (label, enrolment, test) from ``read_trials``.
    key : str
        The key that gave the list.
    path : str
        The list.

    Raises
    ------
    ValueError
        If all labels are the same.
    """
    if {label for label, _, _ in trials} != {0, 1}:
        raise ValueError(
            f"{key}: all trials in {path} have label {trials[0][0]}, but "
            "error rates need both labels"
        )


def find_files(names, data_folder, output_folder, key="data_folder"):
    """Paths of the files of utterances.

    Arguments
    ---------
    names : iterable of str
        Utterances, such as ``id10270/5r0dWxy17C8/00001.wav``. Where there is
        no such file, one with another extension of audio files is taken.
    data_folder : str
        The folder that holds ``wav/``.
    output_folder : str
        Receives missing_files.txt if files are missing.
    key : str
        The key that gave the folder, for the error.

    Returns
    -------
    dict
        Each distinct name to its path, in the order of their first mention.

    Raises
    ------
    ValueError
        If files are missing: how many, the first, and where all are named.
    """
    paths = {
        name: os.path.join(data_folder, "wav", name)
        for name in dict.fromkeys(names)
    }
    absent = [path for path in paths.values() if not os.path.isfile(path)]
    others = match_utterances(absent, _audio_beside(absent))
    paths = {name: others.get(path, path) for name, path in paths.items()}
    missing = [path for path in absent if path not in others]
    if missing:
        os.makedirs(output_folder, exist_ok=True)
        listed = Path(output_folder) / "missing_files.txt"
        with complete_or_absent(listed) as partial:
            partial.write_text(
                "".join(f"{path}\n" for path in missing), "utf-8"
            )
        raise ValueError(
            f"{key}: {len(missing)} of the {len(paths)} files that the "
            f"trials name are missing, the first is {missing[0]}; "
            f"{listed} names all"
        )
    return paths


def _audio_beside(paths):
    """The audio files in the folders of the paths."""
    for folder in {os.path.dirname(path) for path in paths}:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            for file in os.listdir(folder):
                path = os.path.join(folder, file)
                if audio_rank(file) is not None and os.path.isfile(path):
                    yield path
