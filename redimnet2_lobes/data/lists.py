"""The text of lists: lines, and rows of a CSV file that names utterances.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import csv
import math
import os
import re
import string
from collections.abc import Collection, Iterator, Mapping

from redimnet2_lobes.data.lhotse_manifests import is_manifest, read_manifest
from redimnet2_lobes.data.sources import segment_source, split_source
from redimnet2_lobes.models.front_end import SAMPLE_RATE

# What others call the columns start and stop; taken for none of them, whole
# files would be read.
_LIKE_BORDERS = re.compile(
    "(start|stop|begin|end|onset|offset)"
    "([ _]?(time|s|secs?|seconds?|ms|samples?|frames?))?",
    re.IGNORECASE,
)


def read_lines(path: str | os.PathLike) -> Iterator[tuple[int, str]]:
    r"""Yields (line number, line with its end) of a text in UTF-8.

    A byte-order mark is left out.

    Example
    -------
    >>> path = getfixture("tmp_path") / "list.txt"
    >>> _ = path.write_bytes(b"\xef\xbb\xbfa\nb")
    >>> list(read_lines(path))
    [(1, 'a\n'), (2, 'b')]
    """
    # Lines may end as on any system.
    with open(
        path, encoding="utf-8-sig", errors="surrogateescape", newline=""
    ) as file:
        for number, line in enumerate(file, start=1):
            try:
                line.encode()
                is_text = "\0" not in line
            except UnicodeEncodeError:
                is_text = False
            if not is_text:
                raise ValueError(
                    f"{path}, line {number}: not UTF-8 text; save the list as "
                    "such"
                )
            yield number, line


def read_rows(
    path: str | os.PathLike,
    columns: Collection[str],
    replacements: Mapping[str, str | os.PathLike],
) -> Iterator[tuple[int, dict[str, str]]]:
    r"""Yields (line number, row) of a list of utterances.

    That is a CSV file, or by the endings .jsonl and .jsonl.gz a manifest of
    lhotse (`read_manifest`).

    Where columns start and stop have values, in samples of the file, wav
    becomes a segment, see ``data/sources.py``, and duration its seconds at
    16 kHz: SpeechBrain's own lists have that of the file there. Columns that
    look like these by other names, such as ``end``, are refused.

    Arguments
    ---------
    path
    columns
        Those that it must have, wav among them; a row has a value for each,
        in duration a number.
    replacements
        What stands for variables in the column wav, such as ``$data_root``.

    Raises
    ------
    ValueError
        If the file has other columns or a faulty row: one line that names it.

    Example
    -------
    >>> path = getfixture("tmp_path") / "list.csv"
    >>> _ = path.write_text("ID,wav\na1,$data_root/a.wav\n")
    >>> list(read_rows(path, ["ID", "wav"], {"data_root": "/corpus"}))
    [(2, {'ID': 'a1', 'wav': '/corpus/a.wav'})]
    >>> _ = path.write_text("ID,wav,start,stop\na1,a.wav,0,16000\n")
    >>> [row["wav"] for _, row in read_rows(path, ["ID", "wav"], {})]
    ['a.wav[0:16000]']
    """
    if is_manifest(path):
        for line, row in read_manifest(path):
            if "spk_id" in columns and not row["spk_id"]:
                raise ValueError(
                    f"{path}, line {line}: {row['ID']} has no speaker; name "
                    "that of a supervision"
                )
            yield line, row
        return
    rows = csv.DictReader(
        (line for _, line in read_lines(path)),
        strict=True,
        skipinitialspace=True,  # as SpeechBrain reads them
    )

    def fault(problem: str, line: int) -> ValueError:
        return ValueError(f"{path}, line {line}: {problem}")

    try:
        for column in columns:
            if column not in (rows.fieldnames or ()):
                raise fault(
                    f"column {column} is missing; expected "
                    f"{', '.join(columns)}, separated by commas",
                    1,
                )
        for column in (*columns, "spk_id", "start", "stop"):
            if (rows.fieldnames or []).count(column) > 1:
                raise fault(f"column {column} is there twice", 1)
        for column in rows.fieldnames or ():
            if _LIKE_BORDERS.fullmatch(column.strip()) and (
                column not in ("start", "stop")
            ):
                raise fault(
                    f"column {column!r} looks like a border of segments, which "
                    "is read from start and stop only, in samples of the file; "
                    "rename the column",
                    1,
                )
        borders = {"start", "stop"}.intersection(rows.fieldnames or ())
        if len(borders) == 1:
            raise fault(
                f"column {borders.pop()} stands alone; segments need both "
                "start and stop, in samples of the file",
                1,
            )
        for row in rows:
            line = rows.line_num
            if None in row or None in row.values():
                count = len(rows.fieldnames or ())
                raise fault(
                    f"expected {count} columns as in the first line", line
                )
            if not all(row[column] for column in columns):
                raise fault(
                    f"{' or '.join(columns)} is empty; fill it in", line
                )
            if "$" in row["wav"]:
                try:
                    template = string.Template(row["wav"])
                    row["wav"] = template.substitute(replacements)
                except (KeyError, ValueError):
                    names = " and ".join(f"${name}" for name in replacements)
                    raise fault(
                        f"wav: of {row['wav']!r} only {names or 'nothing'} can "
                        "be replaced; write $$ for the sign itself",
                        line,
                    ) from None
            try:
                _take_segment(row)
                if "duration" in columns:
                    _check_duration(row["duration"])
            except ValueError as error:
                raise fault(str(error), line) from None
            yield line, row
    except csv.Error as error:
        # Where the row begins; a quote that is left open goes on to the end.
        raise fault(
            f"not a row of a CSV ({error}); check its quotes", rows.line_num + 1
        ) from None


def _check_duration(seconds: str) -> None:
    try:
        is_right = 0 <= float(seconds) < math.inf
    except ValueError:
        is_right = False
    if not is_right:
        raise ValueError(f"duration: {seconds!r} is not a number of seconds")


def _take_segment(row: dict[str, str]) -> None:
    """Makes a segment of a row's wav, if it has start and stop."""
    start, stop = row.get("start", "").strip(), row.get("stop", "").strip()
    if start.endswith("s"):  # of seconds, as in the list of what is left out
        start, stop = start[:-1], stop.removesuffix("s")
        row["wav"] = segment_source(row["wav"], start, stop, "s")
        if stop:
            row["duration"] = str(float(stop) - float(start))
    elif start or stop:
        row["wav"] = segment_source(row["wav"], start, stop)
        row["duration"] = str((int(stop) - int(start)) / SAMPLE_RATE)
    elif len(split_source(row["wav"])[1]) == 1:
        raise ValueError(
            f"wav: {row['wav']} looks like a segment; write its borders into "
            "columns start and stop"
        )
