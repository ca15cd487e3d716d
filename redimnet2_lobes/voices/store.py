"""The voices of people in one file, which knows them again.

It is a file of SQLite. Several processes may use it at once, and a process
that is killed leaves whole entries only. What is removed is overwritten.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import contextlib
import datetime
import json
import os
import secrets
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import EllipsisType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn.functional import normalize

from redimnet2_lobes.files.same_space import KEY, check_same_space
from redimnet2_lobes.files.settings import check_choices
from redimnet2_lobes.voices.checks import (
    LONGEST_NOTE,
    check_seconds,
    checked_embeddings,
    checked_text,
)
from redimnet2_lobes.voices.search import (
    INDEXES,
    Identification,
    Search,
    identify_by,
    mean_voice,
)
from redimnet2_lobes.voices.transfer import Voices, read_voices, write_voices

APPLICATION = int.from_bytes(b"RDNv", "big")  # in the header of the file
FORMAT = 1
PATIENCE = 30  # seconds to wait for another process that writes
READ_AT_ONCE = 65536  # prototypes, 50 MB of 192 values
TABLES = """
CREATE TABLE facts (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE voices (
    voice INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    consent TEXT,
    added TEXT NOT NULL,
    changed TEXT NOT NULL
);
CREATE TABLE prototypes (
    prototype INTEGER PRIMARY KEY,
    voice INTEGER NOT NULL REFERENCES voices ON DELETE CASCADE,
    embedding BLOB NOT NULL,
    seconds REAL NOT NULL,
    added TEXT NOT NULL
);
CREATE INDEX prototypes_of_voice ON prototypes (voice);
"""
# What is deleted is overwritten, and stays so when the power fails; nothing
# goes to files elsewhere; a damaged or forged file does no harm.
PRAGMAS = """
PRAGMA secure_delete = ON;
PRAGMA synchronous = EXTRA;
PRAGMA temp_store = MEMORY;
PRAGMA foreign_keys = ON;
PRAGMA cell_size_check = ON;
PRAGMA trusted_schema = OFF;
"""


class NoVoiceError(ValueError):
    """Nobody of that name, or nobody at all, is in the store."""


class VoiceChangedError(ValueError):
    """A voice is no longer what it was when it was read."""


class Voice(NamedTuple):
    """What a store tells of a voice."""

    name: str
    prototypes: int
    seconds: float  # of speech, of all prototypes
    added: str  # dates in ISO 8601, UTC
    changed: str
    consent: str | None


class Known(NamedTuple):
    """What is kept in memory of a file as it was."""

    version: int  # of the file, as this connection counts
    names: list[str]
    size: int  # values of an embedding
    search: Search  # among the means of the names


class VoiceStore:
    """Names, and the prototypes of their voices, in one file.

    A voice is compared by the cosine of the test embedding with the mean of
    its prototypes, each of length 1.

    Arguments
    ---------
    path
        The file.
    space
        Of the embeddings, see ``redimnet2_lobes.space_of``. The file is made if
        there is none, and refused if it is of another space. None opens what
        there is.
    index
        How the nearest voices are found: "exact" compares with all of them,
        "faiss" (the package faiss-cpu) with those of the nearest cells, which
        is faster, and beyond 65,536 voices may miss one.

    Raises
    ------
    ValueError
        If the file is another one, damaged, of another space or of a newer
        format. Here and of all methods, it is one line.
    OSError
        If it cannot be opened; of methods, if it cannot be written, or another
        process has been writing for 30 s.

    Example
    -------
    >>> path = getfixture("tmp_path") / "voices.sqlite"
    >>> with VoiceStore(path, "redimnet2-b0-1") as store:
    ...     store.add("anna", torch.tensor([[3.0, 0.0], [4.0, 0.0]]), [2.5, 3])
    ...     store.add("bert", torch.tensor([[0.0, 1.0]]), [2.0])
    ...     store.identify(torch.tensor([[0.8, 0.6]]), threshold=0.5)[0].name
    'anna'
    """

    def __init__(
        self,
        path: str | os.PathLike,
        space: str | None = None,
        index: str = "exact",
    ):
        check_choices({"index": index}, index=INDEXES)
        self.path = os.fspath(path)
        self._index = INDEXES[index]
        self._lock = threading.RLock()
        self._known: Known | None = None
        if not os.path.isfile(self.path):
            if space is None:
                raise ValueError(
                    f"{self.path}: no such store; enrol a voice first"
                )
            # Voices are nobody else's business.
            os.close(os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o600))
        with self._plain_errors():
            self._file = sqlite3.connect(
                f"{Path(self.path).absolute().as_uri()}?mode=rw",
                timeout=PATIENCE,
                isolation_level=None,
                check_same_thread=False,
                uri=True,
            )
        try:
            with self._plain_errors():
                self._file.executescript(PRAGMAS)
            if space is not None:
                self._make_if_empty(checked_text(KEY, space))
            self.space = self._read_space()
            if space is not None:
                check_same_space(self.path, self.space, "the model", space)
            with self._reading():
                half_removed = self._fact("removing") is not None
            if half_removed:  # by a process that was killed
                self._overwrite_removed()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "VoiceStore":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def add(
        self,
        name: str,
        prototypes: torch.Tensor,
        seconds: Sequence[float],
        consent: str | None = None,
        known: torch.Tensor | EllipsisType | None = ...,
    ) -> None:
        """Adds prototypes to a voice, which is new or known.

        Arguments
        ---------
        name
            One line of printable characters.
        prototypes
            Embeddings [prototypes, embedding].
        seconds
            Of speech, of each.
        consent
            A note of one line, such as where a signed one is; it replaces an
            earlier one, None keeps that.
        known
            The prototypes of the voice that the new ones were compared with,
            None where it was new. If it has others now, which another process
            has written meanwhile, it is a VoiceChangedError, and nothing is
            added. By default it may have any.
        """
        name = checked_text("name", name)
        if consent is not None:
            consent = checked_text("consent", consent, LONGEST_NOTE)
        prototypes = checked_embeddings("prototypes", prototypes)
        check_seconds(seconds, len(prototypes))
        now = _now()
        with self._writing() as file:
            if known is not ...:
                self._check_unchanged(name, known)
            self._check_size("prototypes", prototypes)
            file.execute(
                "INSERT INTO voices (name, consent, added, changed) "
                "VALUES (?, ?, ?, ?) ON CONFLICT (name) DO UPDATE SET "
                "changed = excluded.changed, "
                "consent = coalesce(excluded.consent, consent)",
                (name, consent, now, now),
            )
            voice = self._number_of(name)
            file.executemany(
                "INSERT INTO prototypes (voice, embedding, seconds, added) "
                "VALUES (?, ?, ?, ?)",
                [
                    (voice, _bytes(row), float(each), now)
                    for row, each in zip(prototypes, seconds, strict=True)
                ],
            )

    def remove(self, name: str) -> None:
        """Removes a voice, of which no byte stays in the file.

        For that the file is written anew, in memory first, which is a matter of
        seconds for a million prototypes.
        """
        with self._writing() as file:
            voice = self._number_of(name)
            file.execute("DELETE FROM voices WHERE voice = ?", (voice,))
            self._write_fact("removing", secrets.token_hex())
        try:
            self._overwrite_removed()
        except OSError as error:
            raise OSError(
                f"{error}; the voice is removed, but its bytes are not "
                "overwritten before the store is opened the next time"
            ) from None

    def names(self) -> list[str]:
        """The names, in the order in which they were added."""
        return [voice.name for voice in self.voices()]

    def check_not_empty(self) -> None:
        """A NoVoiceError if there are no voices."""
        with self._reading() as file:
            prototype = file.execute("SELECT 1 FROM prototypes").fetchone()
        if prototype is None:
            raise self._no_voices()

    def voices(self) -> list[Voice]:
        """What is kept of each voice, in the order of their addition."""
        with self._reading():
            return self._voices("GROUP BY voice ORDER BY voice")

    def find(self, name: str) -> Voice | None:
        """What is kept of one voice, or None."""
        with self._reading():
            return self._find(name)

    def read(self, name: str) -> tuple[Voice, torch.Tensor]:
        """What is kept of one voice, and its prototypes of the same moment.

        They are [prototypes, embedding]. A NoVoiceError without the voice.
        """
        with self._reading():
            prototypes = self._prototypes_of(name)
            voice = self._find(name)
        assert voice is not None
        return voice, prototypes

    def _find(self, name: str) -> Voice | None:
        found = self._voices(
            "WHERE name = ? GROUP BY voice", checked_text("name", name)
        )
        return found[0] if found else None

    def _voices(self, which: str, *values: str) -> list[Voice]:
        rows = self._file.execute(
            "SELECT name, count(*), total(seconds), voices.added, changed, "
            f"consent FROM voices JOIN prototypes USING (voice) {which}",
            values,
        ).fetchall()
        voices = [Voice(*row) for row in rows]
        for voice in voices:
            self._check_texts(*voice[:1], *voice[3:5], voice.consent or "-")
        return voices

    def prototypes(self, name: str) -> torch.Tensor:
        """The prototypes of a voice [prototypes, embedding]."""
        with self._reading():
            return self._prototypes_of(name)

    def _prototypes_of(self, name: str) -> torch.Tensor:
        rows = self._file.execute(
            "SELECT embedding FROM prototypes WHERE voice = ? "
            "ORDER BY prototype",
            (self._number_of(name),),
        ).fetchall()
        if not rows:
            raise self._damaged(f"{name} has no prototypes")
        return self._embeddings_of([blob for (blob,) in rows])

    def _check_unchanged(self, name: str, known: torch.Tensor | None) -> None:
        now = None if self._find(name) is None else self._prototypes_of(name)
        before = None if known is None else known.tolist()
        if before != (None if now is None else now.tolist()):
            raise VoiceChangedError(
                f"{self.path}: the voice of {name} was changed meanwhile by "
                "another process; enrol again"
            )

    def score(self, name: str, embeddings: torch.Tensor) -> torch.Tensor:
        """Scores [tests] of embeddings [tests, embedding] for one voice.

        They are those that `identify` gives it.
        """
        prototypes = self.prototypes(name)
        size = prototypes.shape[1]
        tests = normalize(checked_embeddings("embeddings", embeddings, size))
        return tests @ normalize(mean_voice(prototypes), dim=0)

    def identify(
        self,
        embeddings: torch.Tensor,
        threshold: float | None = None,
        top: int = 3,
    ) -> list[Identification]:
        """Finds whose voices embeddings [tests, embedding] are of.

        Without a score above the threshold nobody is named; None names the
        best, however far. ``top`` is how many candidates are given. Thousands
        of names take milliseconds; where the file has changed since the last
        time, it is read again first.
        """
        tests = checked_embeddings("embeddings", embeddings)
        _, names, size, search = self._voices_to_compare()
        tests = normalize(checked_embeddings("embeddings", tests, size), dim=1)
        return identify_by(search, names, tests, threshold, top)

    def read_operating_points(self) -> dict | None:
        """What `write_operating_points` has kept, or None."""
        with self._reading():
            text = self._fact("operating_points")
        try:
            return None if text is None else json.loads(text)
        except (ValueError, RecursionError, TypeError):
            raise self._damaged("its operating points are no JSON") from None

    def write_operating_points(self, operating_points: dict) -> None:
        """Keeps a JSON object: what scores of these voices mean."""
        text = json.dumps(operating_points, allow_nan=False)
        with self._writing():
            self._write_fact("operating_points", text)

    def export(self, path: str | os.PathLike) -> None:
        """Writes all voices, with notes and dates, to a new .npz file."""
        with self._reading() as file:
            voices = file.execute(
                "SELECT name, coalesce(consent, ''), added, changed, voice "
                "FROM voices ORDER BY voice"
            ).fetchall()
            prototypes = file.execute(
                "SELECT voice, embedding, seconds, added FROM prototypes "
                "ORDER BY voice, prototype"
            ).fetchall()
        if not voices:
            raise ValueError(f"{self.path}: holds no voices")
        names, consents, added, changed, numbers = zip(*voices, strict=True)
        owners, blobs, seconds, dates = zip(*prototypes, strict=True)
        self._check_texts(*names)
        place = {number: i for i, number in enumerate(numbers)}
        write_voices(
            path,
            Voices(
                embedding_space=self.space,
                names=[*names],
                consents=[*consents],
                added=[*added],
                changed=[*changed],
                owners=[place[owner] for owner in owners],
                embeddings=self._embeddings_of(blobs),
                seconds=[*seconds],
                prototypes_added=[*dates],
            ),
        )

    def import_(self, path: str | os.PathLike) -> int:
        """Adds the voices of a file of `export`, and returns how many.

        All are added or, with a ValueError, none: if the file is damaged or of
        another space, or one of its names is here already.
        """
        voices = read_voices(path)
        check_same_space(path, voices.embedding_space, self.path, self.space)
        with self._writing() as file:
            self._check_size(f"{path}", voices.embeddings)
            known = {
                name for (name,) in file.execute("SELECT name FROM voices")
            }
            if both := sorted(known & {*voices.names}):
                shown = ", ".join(both[:5]) + ", ..." * (len(both) > 5)
                raise ValueError(
                    f"{path}: {len(both)} of its names are in {self.path} "
                    f"already ({shown}); remove them there, or import into "
                    "another store"
                )
            numbers = [
                file.execute(
                    "INSERT INTO voices (name, consent, added, changed) "
                    "VALUES (?, nullif(?, ''), ?, ?)",
                    row,
                ).lastrowid
                for row in zip(*voices[1:5], strict=True)
            ]
            file.executemany(
                "INSERT INTO prototypes (voice, embedding, seconds, added) "
                "VALUES (?, ?, ?, ?)",
                zip(
                    [numbers[owner] for owner in voices.owners],
                    map(_bytes, voices.embeddings),
                    voices.seconds,
                    voices.prototypes_added,
                    strict=True,
                ),
            )
        return len(numbers)

    def _voices_to_compare(self) -> Known:
        """The names and the search among their means, as the file is now."""
        with self._reading() as file:
            ((version,),) = file.execute("PRAGMA data_version")
            if self._known is None or self._known.version != version:
                names, means = self._read_means(file)
                search = self._index(means)
                self._known = Known(version, names, means.shape[1], search)
            return self._known

    def _read_means(
        self, file: sqlite3.Connection
    ) -> tuple[list[str], torch.Tensor]:
        """The names, and of each the mean of its prototypes, of length 1."""
        cursor = file.execute(
            "SELECT name, embedding FROM prototypes JOIN voices USING (voice) "
            "ORDER BY voice, prototype"
        )
        numbers: dict[str, int] = {}
        means = torch.zeros(0, 0)
        while rows := cursor.fetchmany(READ_AT_ONCE):
            names, blobs = zip(*rows, strict=True)
            embeddings = self._embeddings_of(blobs)
            if not numbers:
                ((count,),) = file.execute("SELECT count(*) FROM voices")
                means = torch.zeros(count, embeddings.shape[1])
            owners = [numbers.setdefault(name, len(numbers)) for name in names]
            means.index_add_(
                0, torch.tensor(owners), normalize(embeddings, dim=1)
            )
        if not numbers:
            raise self._no_voices()
        self._check_texts(*numbers)
        return [*numbers], normalize(means, dim=1)

    def _embeddings_of(self, blobs: Sequence[Any]) -> torch.Tensor:
        """Embeddings [prototypes, embedding] of what the file has."""
        size = len(blobs[0]) if isinstance(blobs[0], bytes) else 0
        if size % 4 or any(
            not isinstance(blob, bytes) or len(blob) != size for blob in blobs
        ):
            raise self._damaged("its embeddings have several lengths")
        values = np.frombuffer(bytearray().join(blobs), "<f4")
        rows = values.astype(np.float32, copy=False).reshape(len(blobs), -1)
        try:
            return checked_embeddings("embeddings", torch.from_numpy(rows))
        except ValueError as error:
            raise self._damaged(error) from None

    def _check_texts(self, *texts: Any) -> None:
        """Refuses names, notes and dates that no store would have written."""
        try:
            for text in texts:
                checked_text("text", text, LONGEST_NOTE)
        except ValueError as error:
            raise self._damaged(error) from None

    def _number_of(self, name: str) -> int:
        """The number of a voice; a NoVoiceError if there is none."""
        found = self._file.execute(
            "SELECT voice FROM voices WHERE name = ?",
            (checked_text("name", name),),
        ).fetchone()
        if found is None:
            raise NoVoiceError(
                f"{self.path}: no voice {name!r}; redimnet2 voices list shows "
                "the names"
            )
        return found[0]

    def _check_size(self, key: str, embeddings: torch.Tensor) -> None:
        """Refuses embeddings of another number of values than the others."""
        found = self._file.execute(
            "SELECT embedding FROM prototypes LIMIT 1"
        ).fetchone()
        if found is not None:
            size = self._embeddings_of(found).shape[1]
            checked_embeddings(f"{self.path}: {key}", embeddings, size)

    def _fact(self, key: str) -> Any:
        found = self._file.execute(
            "SELECT value FROM facts WHERE key = ?", (key,)
        ).fetchone()
        return found and found[0]

    def _write_fact(self, key: str, value: str) -> None:
        self._file.execute("REPLACE INTO facts VALUES (?, ?)", (key, value))

    def _overwrite_removed(self) -> None:
        """Writes the file anew.

        secure_delete overwrites what is deleted, but not the copies of it that
        SQLite has left in pages when it moved rows from one to another.
        Whatever another process removes while the file is written anew has a
        mark of its own, which stays.
        """
        with self._reading():
            mark = self._fact("removing")
        with self._lock, self._plain_errors():
            self._file.execute("VACUUM")
        with self._writing() as file:
            file.execute(
                "DELETE FROM facts WHERE key = 'removing' AND value = ?",
                (mark,),
            )

    def _make_if_empty(self, space: str) -> None:
        """Makes the tables of a new file."""
        if self._header("page_count"):
            return  # which others may be reading
        with self._writing() as file:
            if self._header("application_id"):
                return  # another process was first
            for statement in TABLES.split(";"):
                file.execute(statement)
            file.execute(f"PRAGMA application_id = {APPLICATION}")
            file.execute(f"PRAGMA user_version = {FORMAT}")
            self._write_fact(KEY, space)

    def _read_space(self) -> str:
        """The space of a store that can be read; refuses other files."""
        with self._reading():
            if self._header("application_id") != APPLICATION:
                raise ValueError(
                    f"{self.path}: no store of voices; name another file"
                )
            if (version := self._header("user_version")) != FORMAT:
                raise ValueError(
                    f"{self.path}: of format {version}, not {FORMAT}; a newer "
                    "version of redimnet2-lobes may read it"
                )
            space = self._fact(KEY)
        self._check_texts(space)
        return space

    def _header(self, name: str) -> int:
        """A number that the file has of itself."""
        with self._plain_errors():
            return self._file.execute(f"PRAGMA {name}").fetchone()[0]

    def _no_voices(self) -> NoVoiceError:
        return NoVoiceError(f"{self.path}: holds no voices; enrol one first")

    def _damaged(self, reason: object) -> ValueError:
        return ValueError(
            f"{self.path}: no store of voices, or damaged ({reason}); take "
            "another, or a copy of it"
        )

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """All that is read within it is of one moment."""
        with self._transaction("DEFERRED"):
            yield self._file

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """What is written within it is there as a whole, or not at all."""
        with self._transaction("IMMEDIATE"):
            yield self._file
        self._known = None

    @contextlib.contextmanager
    def _transaction(self, kind: str) -> Iterator[None]:
        with self._lock, self._plain_errors():
            self._file.execute(f"BEGIN {kind}")
            try:
                yield
                self._file.execute("COMMIT")
            except BaseException:
                # SQLite has done so itself where the disk is full.
                if self._file.in_transaction:
                    self._file.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def _plain_errors(self) -> Iterator[None]:
        """What SQLite says, in one line that names the file."""
        try:
            yield
        except sqlite3.OperationalError as error:
            raise OSError(
                f"{self.path}: {error}; nothing is changed"
            ) from error
        # Names of a damaged file stand in messages.
        except (sqlite3.DatabaseError, UnicodeError) as error:
            raise self._damaged(error) from error


def _bytes(embedding: torch.Tensor) -> bytes:
    return embedding.numpy().astype("<f4").tobytes()


def _now() -> str:
    now = datetime.datetime.now(datetime.timezone.utc)
    return now.isoformat(timespec="seconds")
