"""Reading trial lists in VoxCeleb's form.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""


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
