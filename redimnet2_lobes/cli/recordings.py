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
