"""The command itself: what it calls, how it prints, how it says what is wrong.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from redimnet2_lobes import __version__
from redimnet2_lobes.files.error_lines import one_line, one_line_errors

if TYPE_CHECKING:
    from redimnet2_lobes.data.audio import AudioError

    Faults = dict[str, AudioError]  # of each recording that cannot be used

Command = Callable[..., str | None]  # returns what to print


class LeftOut(Exception):
    """Raised by a command that cannot use all recordings.

    It has their faults, and the text to print of the others, if there are any.
    """

    def __init__(self, faults: Faults, text: str | None = None):
        super().__init__(faults, text)
        self.faults = faults
        self.text = text


@click.group(
    no_args_is_help=False,
    invoke_without_command=True,
    subcommand_metavar="COMMAND [OPTIONS] ...",
)
@click.version_option(__version__)
@click.pass_context
def redimnet2(context: click.Context) -> None:
    """Compares voices, and takes models from one form to another.

    Audio may have any format that libsndfile reads (WAV, FLAC, OGG, MP3, AIFF
    and more), any sampling rate and any length.
    """
    if context.invoked_subcommand is None:
        raise click.UsageError("missing COMMAND", context)


def command(
    example: str, group: click.Group = redimnet2
) -> Callable[[Command], click.Command]:
    """Adds a command, which prints what its function returns.

    It has the name of the function, without a ``_`` at its end.
    """

    def add(function: Command) -> click.Command:
        @functools.wraps(function)
        def run(**options: Any) -> None:
            with one_line_errors():
                faults: Faults = {}
                try:
                    text = function(**options)
                except LeftOut as error:
                    text, faults = error.text, error.faults
                if text is None and len(faults) == 1:
                    raise next(iter(faults.values()))
                if text is not None:
                    print_result(text)
                for fault in faults.values():
                    print(f"left out: {one_line(fault)}", file=sys.stderr)
                if faults:
                    sys.exit(1)

        name = function.__name__.rstrip("_")
        words = "redimnet2"
        if group is not redimnet2:
            words += f" {group.name}"
        epilog = f"Example: {words} {name} {example}"
        return group.command(name, epilog=epilog)(run)

    return add


def number(
    kind: type, lowest: float, highest: float, expected: str
) -> Callable[[str], float]:
    """A type of options: click's ranges take NaN."""

    def convert(text: str) -> float:
        with contextlib.suppress(ValueError):
            value = kind(text)
            if lowest <= value <= highest:
                return value
        raise click.BadParameter(f"{text!r} is not {expected}")

    return convert


json_option = click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print JSON instead, with floats in full precision.",
)


def left_out_as_json(faults: Faults | None) -> list[dict[str, str]]:
    """What was left out, and why."""
    return [
        {"name": name, "reason": f"{fault.reason}; {fault.remedy}"}
        for name, fault in (faults or {}).items()
    ]


def note(text: str) -> None:
    """Prints what is worth knowing, on stderr."""
    print(f"note: {' '.join(text.split())}", file=sys.stderr)


def print_result(text: str) -> None:
    """Prints a result on stdout, which its reader may have closed."""
    try:
        print(text, flush=True)
    except OSError as error:
        # Python would try to print the rest at its end, and complain again.
        with contextlib.suppress(OSError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, sys.stdout.fileno())
            os.close(nowhere)
        if not isinstance(error, BrokenPipeError):  # the reader had enough
            raise OSError(f"stdout: {error.strerror}") from None
