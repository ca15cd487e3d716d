"""Who speaks in which file of the packages, and in which language.

Authors
-------
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import collections
import dataclasses
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

AUDIO_SUFFIXES = {".ogg", ".opus", ".mp3", ".wav", ".flac"}


@dataclasses.dataclass(frozen=True)
class Source:
    """A source file and who speaks in it."""

    path: Path
    speaker: str  # such as klettres-pt_BR
    session: str  # occasion of the recording, as far as the folders tell
    language: str  # such as pt_BR


def _ktuberling_sources(tree: Path) -> Iterator[Source]:
    """Sources in ``ktuberling/sounds/<language>/<word>``."""
    folder = tree / "usr/share/ktuberling/sounds"
    for path in _audio_files(folder, "*/*"):
        language = normalize_language(path.parent.name)
        yield Source(path, f"ktuberling-{language}", "ktuberling", language)


def _klettres_sources(tree: Path) -> Iterator[Source]:
    """Sources in ``klettres/<language>/{alpha,syllab}/<sound>``."""
    folder = tree / "usr/share/klettres"
    for path in _audio_files(folder, "*/*/*"):
        session = path.parent.name
        if session in ("alpha", "syllab"):
            language = normalize_language(path.parent.parent.name)
            yield Source(path, f"klettres-{language}", session, language)


def _tuxpaint_sources(tree: Path) -> Iterator[Source]:
    """Sources ``tuxpaint/stamps/**/<stamp>_desc[_<language>]``."""
    folder = tree / "usr/share/tuxpaint/stamps"
    for path in _audio_files(folder, "**/*_desc*"):
        described = re.fullmatch(r".+_desc(?:_([A-Za-z_@]+))?", path.stem)
        if described:
            language = normalize_language(described[1] or "en")
            yield Source(path, f"tuxpaint-{language}", "tuxpaint", language)


def _hedgewars_sources(tree: Path) -> Iterator[Source]:
    """Sources in ``voices/<voice>[_<language>]/<phrase>``, else English."""
    folder = tree / "usr/share/games/hedgewars/Data/Sounds/voices"
    for path in _audio_files(folder, "*/*"):
        voice = path.parent.name
        localized = re.fullmatch(r".+_([a-z]{2,3}(?:_[A-Z]{2})?)", voice)
        language = normalize_language(localized[1] if localized else "en")
        yield Source(path, f"hedgewars-{voice}", "hedgewars", language)


# Each yields the spoken clips below the folder that holds the package's usr/.
PACKAGES = {
    "ktuberling-data": _ktuberling_sources,
    "klettres-data": _klettres_sources,
    "tuxpaint-stamps-default": _tuxpaint_sources,
    "hedgewars-data": _hedgewars_sources,
}


def _audio_files(folder: Path, pattern: str) -> list[Path]:
    return sorted(
        path
        for path in folder.glob(pattern)
        if path.suffix.lower() in AUDIO_SUFFIXES and path.is_file()
    )


def normalize_language(code: str) -> str:
    """Writes a language code in one form.

    The four ``sr`` folders of ktuberling differ in script and dialect only and
    hold the same voice, so what follows ``@`` is left out.

    Example
    -------
    >>> normalize_language("pt-br"), normalize_language("sr@ijekavianlatin")
    ('pt_BR', 'sr')
    """
    language, *region = code.split("@")[0].replace("-", "_").split("_")
    return "_".join([language.lower(), *map(str.upper, region)])


def drop_duplicates(
    sources: list[Source],
) -> tuple[list[Source], dict[Path, str]]:
    """Leaves out recordings that occur again.

    Returns
    -------
    distinct
        The first of equal files of one speaker, but none of equal files of
        two.
    dropped_files
        Path to reason.
    """
    equal_sources = collections.defaultdict(list)
    for source in tqdm(sources, desc="finding duplicates", unit="file"):
        equal_sources[_digest(source.path)].append(source)
    distinct, dropped_files = [], {}
    for equal in equal_sources.values():
        if len({source.speaker for source in equal}) > 1:
            # Whose voice it is, the folders do not tell.
            reason = "same recording under two speakers"
        else:
            reason = "same recording twice"
            distinct.append(equal.pop(0))
        dropped_files.update((source.path, reason) for source in equal)
    return distinct, dropped_files


def _digest(path: Path) -> bytes:
    """What is equal for equal files, and for them only."""
    try:
        content = path.read_bytes()
    except OSError:
        content = b""
    # Files without content are no recordings, let alone the same.
    return hashlib.sha256(content or str(path).encode()).digest()
