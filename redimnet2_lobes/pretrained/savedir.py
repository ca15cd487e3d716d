"""Folders in which SpeechBrain keeps the files of a model (its ``savedir``).

SpeechBrain reads what lies there, whichever model is asked for. The functions
here see to it that these are the files of that model. ``source.json`` in the
folder says what was put there; what it does not speak for and is no link may be
somebody's own, and stays.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import contextlib
import filecmp
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub.errors import (
    EntryNotFoundError,
    LocalEntryNotFoundError,
)
from speechbrain.utils.checkpoints import PARAMFILE_EXT
from speechbrain.utils.distributed import main_process_only
from speechbrain.utils.fetching import (
    FetchConfig,
    FetchFrom,
    FetchSource,
    LocalStrategy,
    fetch,
    link_with_strategy,
)

from redimnet2_lobes.files.error_lines import one_line
from redimnet2_lobes.scoring.results import RESULTS_FILE

SOURCE_FILE = "source.json"
HYPERPARAMS_FILE = "hyperparams.yaml"
# The code beside a model on the hub, see ``standalone``.
CODE_FILE = "redimnet2_lobes.py"


@dataclass(frozen=True)
class Savedir:
    """A savedir, and the source whose files it is to hold.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> (folder / "a").mkdir(), (folder / "b").mkdir()
    (None, None)
    >>> for model in ("a", "b"):
    ...     _ = (folder / model / "hyperparams.yaml").write_text(model)
    >>> source = FetchSource(FetchFrom.LOCAL, str(folder / "a"))
    >>> Savedir(folder / "b", source).check()
    Traceback (most recent call last):
    ValueError: savedir: ...b holds another model (its hyperparams.yaml is not \
that of ...a); choose another savedir, or delete it
    """

    folder: Path
    source: FetchSource
    strategy: LocalStrategy = LocalStrategy.SYMLINK
    config: FetchConfig = FetchConfig()

    @property
    def is_local(self) -> bool:
        """Whether the source is a folder."""
        return self.source[0] is FetchFrom.LOCAL

    def is_source(self) -> bool:
        """Whether it is the source itself."""
        return self.is_local and self.folder.samefile(self.source[1])

    def is_known(self, names: Iterable[str]) -> bool:
        """Whether it is said to hold the source, and has files of these names.

        Nothing is asked of the hub.
        """
        path = self.folder / SOURCE_FILE
        return (
            path.is_file()
            and path.read_text(encoding="utf-8") == self._content()
            and all((self.folder / name).is_file() for name in names)
        )

    def matches(self, weights: Mapping[str, str | Path]) -> bool:
        """Whether it holds these files, and the results of the local source."""
        files = {**weights, RESULTS_FILE: self.original(RESULTS_FILE, "")}
        return all(self._has(name, file) for name, file in files.items())

    def _has(self, name: str, file: str | Path | None) -> bool:
        kept = self.folder / name
        return not kept.exists() if file is None else is_same(file, kept)

    def check(self, filename: str = HYPERPARAMS_FILE) -> None:
        """Refuses, with a ValueError, another model's file of this name.

        SpeechBrain reads that file before any code of ours.
        """
        kept = self.folder / filename
        if not kept.is_file():
            return
        with tempfile.TemporaryDirectory() as folder:
            try:
                original = self.original(filename, folder)
            except Exception as error:
                raise ValueError(
                    f"savedir: {self.folder} is not known to hold "
                    f"{self.source[1]}, which cannot be fetched "
                    f"({one_line(error)[:300]}); to load what it holds, make "
                    "it the source"
                ) from error
            if original is None and filename == CODE_FILE:
                return
            if original is None or not is_same(original, kept):
                raise self._another(filename)

    @main_process_only
    def check_unread(self, filename: str) -> None:
        """The same, before SpeechBrain reads it, if it is to be read."""
        is_new = self.config.overwrite or self.config.allow_updates
        if not is_new and not self.is_known([filename]):
            self.check(filename)

    def check_loaded(self, paths: Mapping[str, str]) -> None:
        """Refuses weights, by their names, that a local source has otherwise.

        Their ``paths`` are those that were loaded.
        """
        for name, path in paths.items() if self.is_local else ():
            filename = name + PARAMFILE_EXT
            original = self.original(filename, "")
            if original is not None and not is_same(original, path):
                raise self._another(filename)

    def original(self, filename: str, folder: str | Path) -> Path | None:
        """A file of the source, fetched into a folder unless it lies here.

        None if the source has no such file.
        """
        if self.is_local:
            path = Path(self.source[1], filename)
            return path if path.is_file() else None
        strategy = self.strategy
        if strategy is LocalStrategy.NO_LINK:
            # Of the hub's files SpeechBrain then returns a path of none.
            strategy = LocalStrategy.SYMLINK
        try:
            return fetch(
                filename,
                self.source,
                savedir=folder,
                local_strategy=strategy,
                fetch_config=self.config,
            )
        except LocalEntryNotFoundError:
            raise
        except EntryNotFoundError:
            return None
        except ValueError as error:
            if getattr(error.__cause__, "code", None) == 404:  # web server
                return None
            raise

    @contextlib.contextmanager
    def refilled(self) -> Iterator[Path]:
        """A folder for weights, which go into the savedir at its end.

        The results of an evaluation go with them. Each file appears when it is
        complete. A ValueError says that one would replace what is not known to
        be a copy.
        """
        with tempfile.TemporaryDirectory(
            prefix=".partial-", dir=self.folder
        ) as partial:
            partial = Path(partial)
            yield partial
            results = self.original(RESULTS_FILE, partial)
            if results is not None and self.is_local:
                kept = partial / RESULTS_FILE
                link_with_strategy(results, kept, self.strategy)
            # A link that leads nowhere is no file: loading names it.
            files = {file.name: file for file in partial.iterdir()}
            files = {n: file for n, file in files.items() if file.is_file()}
            source_file = self.folder / SOURCE_FILE
            changed = []
            for name in {*files, RESULTS_FILE}:
                kept = self.folder / name
                # Asked first: another process may fill the folder as well.
                is_new = not kept.exists()
                if self._has(name, files.get(name)):
                    continue
                is_copy = kept.is_symlink() or source_file.is_file()
                if is_new or is_copy:
                    changed.append(kept)
                # The weights in the other format are right as well.
                elif not self._has(name, self.original(name, partial / "own")):
                    raise self._another(name)
            # So that it never speaks for files of two sources.
            source_file.unlink(missing_ok=True)
            for kept in changed:
                if kept.name in files:
                    os.replace(files[kept.name], kept)
                else:
                    kept.unlink()
            content = partial / SOURCE_FILE
            content.write_text(self._content(), encoding="utf-8")
            os.replace(content, source_file)

    def _content(self) -> str:
        """What source.json says of it."""
        hyperparams = self.folder / HYPERPARAMS_FILE
        digest = None
        if hyperparams.is_file():
            digest = hashlib.sha256(hyperparams.read_bytes()).hexdigest()
        content = {
            "kind": self.source[0].name,
            "source": str(self.source[1]),
            "revision": self.config.revision,
            HYPERPARAMS_FILE: digest,
        }
        return json.dumps(content, indent=2) + "\n"

    def _another(self, filename: str) -> ValueError:
        return ValueError(
            f"savedir: {self.folder} holds another model (its {filename} is "
            f"not that of {self.source[1]}); choose another savedir, or delete "
            "it"
        )


def is_same(first: str | Path, second: str | Path) -> bool:
    """Whether two paths lead to files of one content.

    Example
    -------
    >>> is_same("no such file", "no such file")
    False
    """
    return (
        os.path.isfile(first)
        and os.path.isfile(second)
        and filecmp.cmp(first, second, shallow=False)
    )
