"""Recordings that are named on the command line.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

from redimnet2_lobes.cli.group import note

if TYPE_CHECKING:
    from redimnet2_lobes.cli.group import Faults

files_argument = click.argument("files", nargs=-1, required=True)
strict_option = click.option(
    "--strict",
    is_flag=True,
    help="Stop at the first recording that cannot be used. By default it is "
    "left out, and named at the end.",
)


def find_files(arguments: Iterable[str]) -> list[str]:
    """Files, and those below folders, each once."""
    from redimnet2_lobes.data.audio import find_audio

    paths = []
    for argument in arguments:
        if os.path.isdir(argument):
            found = find_audio(argument)
            if found.left_out:
                note(found.left_out)
            paths.append(found.paths)
        else:
            paths.append([argument])
    if len(paths) == 1:
        return paths[0]
    files = {}
    for path in itertools.chain(*paths):
        files.setdefault(os.path.realpath(path), path)
    if repeated := sum(map(len, paths)) - len(files):
        note(f"{repeated} left out: named more than once")
    return list(files.values())


def check_files(paths: list[str], faults: Faults | None) -> None:
    """Finds files that cannot be opened, before anything is loaded."""
    from redimnet2_lobes.data.audio import AudioError, unreadable

    for path in paths:
        try:
            check_file(path)
        except (AudioError, OSError) as error:
            if faults is None:
                raise
            if isinstance(error, OSError):
                error = unreadable(path, error)
            faults[path] = error


def check_file(path: str) -> None:
    """Refuses what is no file, before anything is loaded."""
    from redimnet2_lobes.data.audio import (
        AudioError,
        check_name,
        open_descriptor,
    )

    check_name(path)
    if os.path.isdir(path):
        raise AudioError("a folder", "name an audio file in it", path)
    try:
        os.close(open_descriptor(path))
    except FileNotFoundError:
        raise AudioError("missing", "check the path", path) from None


def enrolled_speakers(
    folder: str, option: str, faults: Faults | None
) -> dict[str, list[str]]:
    """The recordings of each speaker; none of one with an empty folder.

    Errors name the option, or the argument, that gave the folder.
    """
    from redimnet2_lobes.data.audio import (
        AudioError,
        audio_rank,
        find_audio,
        leads_back,
        utterance_name,
    )

    speakers, others, notes = {}, [], []
    for entry in sorted(os.listdir(folder)):
        path = os.path.join(folder, entry)
        if entry[0] == ".":
            continue
        if os.path.isdir(path):
            speaker = entry
            is_other = os.path.islink(path) and leads_back(path)
        else:  # a link to nowhere may be of a speaker's folder
            speaker = utterance_name(entry)
            is_other = audio_rank(entry) is None and os.path.exists(path)
        if is_other:
            others.append(entry)
            continue
        if speaker in speakers:
            raise ValueError(
                f"{option}: {path}: there is a speaker {speaker} already; "
                "rename one, or put all recordings into one folder"
            )
        speakers[speaker] = [path]
        if not os.path.isdir(path):
            continue
        try:
            speakers[speaker], left_out = find_audio(path)
            notes += [left_out] * bool(left_out)
        except AudioError as error:
            if faults is None:
                raise
            speakers[speaker] = []
            faults[f"speaker {speaker}"] = error
    if notes:
        more = len(notes) - 1
        others_too = f"; the like in {more} more folder{'s' * (more > 1)}"
        note(notes[0] + others_too * bool(more))
    if others:
        shown = others[:5] + ["..."] * (len(others) > 5)
        note(
            f"{option}: {len(others)} left out, neither recordings nor folders "
            f"of a speaker's own: {', '.join(shown)}"
        )
    if not speakers:
        raise ValueError(
            f"{option}: {folder} holds no speakers; it needs a folder with "
            "recordings, or a recording, for each"
        )
    return speakers
