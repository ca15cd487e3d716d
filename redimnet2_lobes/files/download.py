"""Downloads that go on where they were cut off.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import hashlib
import http.client
import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable

from tqdm import tqdm

from redimnet2_lobes.files.atomic import replace_when_synced

BLOCK = 2**20  # bytes
TIMEOUT = 60  # seconds without a byte


def download(
    url: str,
    path: str | os.PathLike,
    md5: str | None = None,
    check: Callable[[str], object] | None = None,
) -> None:
    """Downloads a file, unless it is there already.

    What has arrived stays in ``path.partial``; after a cut connection the next
    call asks the server for the rest only.

    Arguments
    ---------
    url
    path
        Appears when it is complete.
    md5
        The MD5 sum that it must have.
    check
        Called with the path of what has arrived, before it takes its name. A
        ValueError says what is wrong with it.

    Raises
    ------
    OSError
        If the file cannot be fetched, or not to its end.
    ValueError
        If it has another MD5 sum, or the check says so. What has arrived is
        removed.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> _ = (folder / "there.txt").write_text("text")
    >>> download((folder / "there.txt").as_uri(), folder / "copy.txt")
    >>> (folder / "copy.txt").read_text()
    'text'
    """
    path = os.fspath(path)
    if os.path.exists(path):
        return
    partial = f"{path}.partial"
    try:
        _fetch(url, partial)
    except (OSError, http.client.HTTPException) as error:
        raise OSError(
            f"{url}: cannot be fetched ({error}); run the same command again "
            f"to go on from there, or fetch it by hand and save it as {path}"
        ) from error
    try:
        if md5 is not None and (found := md5_of(partial)) != md5:
            raise ValueError(f"the MD5 sum is {found}, not {md5}")
        if check is not None:
            check(partial)
    except ValueError as error:
        os.remove(partial)
        raise ValueError(
            f"{url}: {error}; run the same command again, or fetch it by hand "
            f"and save it as {path}"
        ) from error
    replace_when_synced(partial, path)


def _fetch(url: str, partial: str) -> None:
    """Append what is missing to a partial file, or begin anew."""
    start = os.path.getsize(partial) if os.path.exists(partial) else 0
    headers = {"Range": f"bytes={start}-"} if start else {}
    request = urllib.request.Request(url, headers=headers)
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        # Nothing is missing, or the partial file belongs to something else.
        if error.headers["Content-Range"] != f"bytes */{start}":
            os.remove(partial)
            _fetch(url, partial)
        return
    with response:
        if response.status != http.HTTPStatus.PARTIAL_CONTENT:
            start = 0  # the server sends all of it
        length = response.headers["Content-Length"]
        total = None if length is None else start + int(length)
        with (
            open(partial, "ab" if start else "wb") as stream,
            tqdm.wrapattr(
                response,
                "read",
                total=total,
                initial=start,
                desc=os.path.basename(partial).removesuffix(".partial"),
            ) as watched_response,
        ):
            shutil.copyfileobj(watched_response, stream, BLOCK)
    arrived = os.path.getsize(partial)
    # A connection that is cut looks like the end of the file.
    if total is not None and arrived != total:
        raise OSError(f"the connection ended at {arrived} of {total} bytes")


def md5_of(path: str | os.PathLike) -> str:
    """The MD5 sum of a file, in hexadecimal digits."""
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as stream:
        while block := stream.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()
