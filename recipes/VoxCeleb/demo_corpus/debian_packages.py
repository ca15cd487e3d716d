"""Downloads Debian packages and unpacks them, without installing them.

Authors
-------
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import logging
import shutil
import subprocess
import tempfile
from pathlib import Path

from redimnet2_lobes.files.atomic import replace_when_synced

logger = logging.getLogger(__name__)


class PackageError(ValueError):
    """A Debian package cannot be had here; the message is one line."""


def unpacked_package(package: str, cache_folder: Path) -> Path:
    """Downloads and unpacks a Debian package, or finds it in the cache.

    Gives the folder that holds its ``usr``; the name tells the version.

    Raises
    ------
    PackageError
        If the package cannot be downloaded or unpacked.
    """
    trees = sorted((cache_folder / "unpacked").glob(f"{package}_*"))
    if trees:
        return trees[-1]
    if shutil.which("dpkg-deb") is None:
        raise PackageError("dpkg-deb is not installed here")
    cached = sorted(cache_folder.glob(f"{package}_*.deb"))
    if cached:
        try:
            return _unpack(cached[-1], cache_folder)
        except PackageError:
            logger.warning("%s is damaged, downloading again", cached[-1].name)
    return _unpack(_download(package, cache_folder), cache_folder)


def _download(package: str, cache_folder: Path) -> Path:
    cache_folder.mkdir(parents=True, exist_ok=True)
    # apt-get writes under the final name from the start.
    with tempfile.TemporaryDirectory(dir=cache_folder) as folder:
        try:
            _run(["apt-get", "download", package], folder)
        except PackageError:
            # The package lists are missing or older than the archive.
            _run(["apt-get", "update"], folder)
            _run(["apt-get", "download", package], folder)
        found = list(Path(folder).glob(f"{package}_*.deb"))
        if len(found) != 1:
            raise PackageError(f"apt-get download {package} left no package")
        target = cache_folder / found[0].name
        replace_when_synced(found[0], target)
    return target


def _unpack(deb: Path, cache_folder: Path) -> Path:
    tree = cache_folder / "unpacked" / deb.stem
    tree.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_folder) as folder:
        unpacked = Path(folder) / "tree"
        paths = [str(path.resolve()) for path in (deb, unpacked)]
        _run(["dpkg-deb", "-x", *paths], folder)
        replace_when_synced(unpacked, tree)
    return tree


def _run(command: list[str], folder: str) -> None:
    """Runs a program of Debian; its last line of complaint is the error."""
    try:
        subprocess.run(
            command, cwd=folder, check=True, capture_output=True, text=True
        )
    except FileNotFoundError:
        raise PackageError(f"{command[0]} is not installed here") from None
    except subprocess.CalledProcessError as error:
        name = " ".join(command[:2])
        lines = error.stderr.strip().splitlines() or ["no message"]
        raise PackageError(f"{name} failed: {lines[-1]}") from None
