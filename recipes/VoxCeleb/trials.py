"""Reading trial lists in VoxCeleb's form.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import hashlib
import os

# VoxCeleb1-O, -E and -H, cleaned, as published with VoxCeleb.
MD5_SUMS = {
    "veri_test2.txt": "b73110731c9223c1461fe49cb48dddfc",
    "list_test_all2.txt": "a53e059deb562ffcfc092bf5d90d9f3a",
    "list_test_hard2.txt": "857790e09d579a68eb2e339a090343c8",
}


def read_trials(path):
    """Read a trial list: one ``label enrol test`` per line.

    Blank lines, Windows line ends and a byte-order mark do no harm.

    Arguments
    ---------
    path : str or os.PathLike
        A text file in UTF-8. The label is 1 for the same speaker, 0 for
        different ones; enrol and test are audio files relative to ``wav/``,
        such as ``id10270/5r0dWxy17C8/00001.wav``.

    Returns
    -------
    list of tuple
        One (label: int, enrol: str, test: str) for each trial, in file order.

    Raises
    ------
    ValueError
        If the file cannot be read, holds no trial or holds a line of another
        form. The message is one line that names the file and the line.

    Example
    -------
    >>> path = getfixture("tmpdir") / "trials.txt"
    >>> path.write_text("1 a/x/1.wav a/y/1.wav", encoding="utf-8")
    >>> read_trials(path)
    [(1, 'a/x/1.wav', 'a/y/1.wav')]
    """
    trials = []
    try:
        with open(path, encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                fields = line.split()
                if not fields:
                    continue
                if len(fields) != 3 or fields[0] not in ("0", "1"):
                    raise ValueError(
                        f"{path}, line {number}: expected 'label enrol test' "
                        f"with the label 0 or 1, found {line.strip()[:80]!r}"
                    )
                trials.append((int(fields[0]), fields[1], fields[2]))
    except OSError as error:
        raise ValueError(
            f"{path}: cannot read the trial list ({error.strerror}); check "
            "the path"
        ) from None
    except UnicodeDecodeError:
        raise ValueError(
            f"{path}: the trial list is not UTF-8 text; save it as such"
        ) from None
    if not trials:
        raise ValueError(
            f"{path}: the trial list is empty; expected lines of the form "
            "'label enrol test'"
        )
    return trials


def has_published_sum(path):
    """Compare a file with the published list of its name.

    Arguments
    ---------
    path : str or os.PathLike
        A trial list.

    Returns
    -------
    bool
        False if its name is in ``MD5_SUMS`` and its own MD5 sum is another.

    Example
    -------
    >>> path = getfixture("tmpdir") / "veri_test2.txt"
    >>> path.write_text("1 a/x/1.wav a/y/1.wav", encoding="utf-8")
    >>> has_published_sum(path)
    False
    """
    published = MD5_SUMS.get(os.path.basename(path))
    if published is None:
        return True
    with open(path, "rb") as stream:
        found = hashlib.md5(stream.read(), usedforsecurity=False)
    return found.hexdigest() == published
