"""Trial lists, checked, with the audio files that they name.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import contextlib
import os
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from redimnet2_lobes.data.audio import audio_rank, match_utterances
from redimnet2_lobes.data.trials import read_trials
from redimnet2_lobes.files.atomic import write_text


@dataclass
class TrialList:
    """Trials, and the utterances of each enrolment.

    Example
    -------
    >>> trials = [(1, "a/1.wav", "a/2.wav"), (0, "a/1.wav", "b/1.wav")]
    >>> enrolments = {"a/1.wav": ["a/1.wav"]}
    >>> TrialList("O", trials, enrolments, {}).labels
    tensor([ True, False])
    """

    name: str
    trials: list[tuple[int, str, str]]  # label, enrolment, test
    enrolments: dict[str, list[str]]  # each to its utterances
    paths: dict[str, str]  # each utterance to its file

    @property
    def labels(self) -> torch.Tensor:
        """True for trials of one speaker [trials]."""
        return torch.tensor([label for label, _, _ in self.trials]) == 1


def read_trial_lists(
    paths: str | list[str],
    data_folder: str,
    output_folder: str,
    utterances: dict[str, str] | None = None,
    enrolments: dict[str, list[str]] | None = None,
    keys: tuple[str, str] = ("verification_file", "data_folder"),
    files: tuple[object, object] = ("it", "it"),
) -> list[TrialList]:
    """Reads trial lists, and finds the files that they name.

    Arguments
    ---------
    paths
        In any form of `read_trials`.
    data_folder, output_folder
        See `find_files`.
    utterances
        Each utterance to its file, in place of ``data_folder``.
    enrolments
        Each speaker model to its utterances, see `read_enrolments`; None if
        trials name enrolment utterances.
    keys
        What the user calls the first two arguments, for messages.
    files
        Where ``utterances`` and ``enrolments`` are from, for messages.

    Raises
    ------
    ValueError
        If a list cannot be read or has trials of one kind only, two lists have
        one name, a model is not known, or files are missing.
    """
    key, folder_key = keys
    if not isinstance(paths, str | list):
        raise ValueError(
            f"{key}: expected a trial list or several, not {paths!r}"
        )
    lists: dict[str, TrialList] = {}
    for path in [paths] if isinstance(paths, str) else paths:
        if not os.path.isfile(path):
            raise ValueError(
                f"{key}: no file {path}; pass --{key}=..., or --{folder_key}="
                "..., the folder that holds wav/ and the trial lists"
            )
        name = Path(path).stem
        if name in lists:
            raise ValueError(
                f"{key}: two lists are called {name}, and so would their "
                "results be; rename one"
            )
        trials = read_trials(path)
        if {label for label, _, _ in trials} != {0, 1}:
            raise ValueError(
                f"{key}: all trials in {path} have label {trials[0][0]}, but "
                "error rates need both labels"
            )
        enrolled = {enrolment: [enrolment] for _, enrolment, _ in trials}
        if enrolments is not None:
            for model in enrolled:
                if model not in enrolments:
                    raise ValueError(
                        f"enrolment_file: {files[1]} has no model {model}, "
                        f"which {path} names; add it"
                    )
                enrolled[model] = enrolments[model]
        names = [
            utterance
            for _, enrolment, test in trials
            for utterance in (*enrolled[enrolment], test)
        ]
        if utterances is None:
            found = find_files(names, data_folder, output_folder, folder_key)
        else:
            found = _find_utterances(names, utterances, path, files[0])
        lists[name] = TrialList(name, trials, enrolled, found)
    return list(lists.values())


def files_of(lists: Iterable[TrialList]) -> dict[str, str]:
    """All utterances of trial lists, each with its file."""
    return {name: path for each in lists for name, path in each.paths.items()}


def trial_speakers(trial_list: TrialList) -> np.ndarray | None:
    """The two speakers of each trial, as numbers [trials, 2].

    A speaker is the first folder of a name, as in VoxCeleb's lists. Where that
    does not fit the labels, it is all that trials of one speaker link. None if
    that does not fit either: two speakers of a trial are linked.

    Example
    -------
    >>> trials = [(1, "u1", "u2"), (1, "u2", "u3"), (0, "u1", "u4")]
    >>> enrolments = {name: [name] for _, name, _ in trials}
    >>> trial_speakers(TrialList("O", trials, enrolments, {})).tolist()
    [[0, 0], [0, 0], [0, 1]]
    """
    labels = trial_list.labels.numpy()
    linked = [
        (trial_list.enrolments[enrolment], test)
        for _, enrolment, test in trial_list.trials
    ]
    names = [name for group, test in linked for name in (group[0], test)]
    if all("/" in name for name in names):
        folders = [name.split("/")[0] for name in names]
        numbers = np.unique(folders, return_inverse=True)[1].reshape(-1, 2)
        if np.array_equal(numbers[:, 0] == numbers[:, 1], labels):
            return numbers
    row: dict[str, int] = {}
    for group, test in linked:
        for name in (*group, test):
            row.setdefault(name, len(row))
    links = [
        (row[group[0]], row[name])
        for (group, test), label in zip(linked, labels, strict=True)
        for name in ([*group, test] if label else group)
    ]
    first, second = np.array(links).T
    graph = coo_array((np.ones(len(links)), (first, second)), [len(row)] * 2)
    _, component = connected_components(graph, directed=False)
    numbers = component[[row[name] for name in names]].reshape(-1, 2)
    fits = np.array_equal(numbers[:, 0] == numbers[:, 1], labels)
    return numbers if fits else None


def find_files(
    names: Iterable[str],
    data_folder: str,
    output_folder: str,
    key: str = "data_folder",
) -> dict[str, str]:
    """Paths of the files of distinct utterances, in their order.

    Arguments
    ---------
    names
        Utterances, such as ``id10270/5r0dWxy17C8/00001.wav``. Where there is
        no such file, one with another extension of audio files is taken.
    data_folder
        The folder that holds them in ``wav/`` or, without one, itself.
    output_folder
        Receives missing_files.txt if files are missing.
    key
        The key that gave the folder, for the error.

    Raises
    ------
    ValueError
        If files are missing: how many, the first, and where all are named.
    """
    root = os.path.join(data_folder, "wav")
    if not os.path.isdir(root):
        root = data_folder
    paths = {name: os.path.join(root, name) for name in dict.fromkeys(names)}
    found = existing_files(paths.values())
    missing = [path for path in paths.values() if path not in found]
    if missing:
        listed = list_missing(missing, output_folder)
        raise ValueError(
            f"{key}: {len(missing)} of the {len(paths)} files that the "
            f"trials name are missing, the first is {missing[0]}; "
            f"{listed} names all"
        )
    return {name: found[path] for name, path in paths.items()}


def existing_files(paths: Collection[str]) -> dict[str, str]:
    """Those paths that have a file, each with it, in any format of audio.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> _ = (folder / "a.flac").write_bytes(b"audio")
    >>> found = existing_files([f"{folder}/a.wav", f"{folder}/b.wav"])
    >>> found == {f"{folder}/a.wav": f"{folder}/a.flac"}
    True
    """
    found = {path: path for path in paths if os.path.isfile(path)}
    absent = [path for path in paths if path not in found]
    return found | match_utterances(absent, _audio_beside(absent))


def list_missing(paths: Iterable[str], folder: str | os.PathLike) -> Path:
    r"""Writes missing_files.txt into a folder, and gives its path.

    Example
    -------
    >>> list_missing(["a.wav"], getfixture("tmp_path")).read_text()
    'a.wav\n'
    """
    os.makedirs(folder, exist_ok=True)
    listed = Path(folder) / "missing_files.txt"
    write_text(listed, "".join(f"{path}\n" for path in paths))
    return listed


def _find_utterances(
    names: list[str], utterances: dict[str, str], trials: str, file: object
) -> dict[str, str]:
    matches = match_utterances(names, utterances)
    for name in names:
        if name not in matches:
            raise ValueError(
                f"utterance_list: {file} does not say where {name} is, which "
                f"{trials} or its enrolments name; add it"
            )
    return {name: utterances[matches[name]] for name in names}


def _audio_beside(paths: list[str]) -> Iterator[str]:
    """The audio files in the folders of the paths."""
    for folder in {os.path.dirname(path) for path in paths}:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            for file in os.listdir(folder):
                path = os.path.join(folder, file)
                if audio_rank(file) is not None and os.path.isfile(path):
                    yield path
