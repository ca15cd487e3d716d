"""The trial lists of VoxCeleb1: downloaded once, and checked.

VoxCeleb1-O, -E and -H, in their cleaned versions, must have the published MD5
sum. None is published for VoxCeleb1-B: of this list only the form is checked.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import os

from redimnet2_lobes.data.trials import MD5_SUMS, has_published_sum, read_trials
from redimnet2_lobes.files.download import download

META = "https://mm.kaist.ac.kr/datasets/voxceleb/meta"
URLS = {
    "O": f"{META}/veri_test2.txt",
    "E": f"{META}/list_test_all2.txt",
    "H": f"{META}/list_test_hard2.txt",
    "B": "https://mm.kaist.ac.kr/projects/voxceleb1-b/list_test_bilingual.txt",
}


def file_of(name: str) -> str:
    """The file of the list of a letter.

    Example
    -------
    >>> file_of("O")
    'veri_test2.txt'
    """
    return URLS[name].rpartition("/")[2]


def fetch_trial_list(name: str, folder: str | os.PathLike) -> tuple[str, int]:
    """Downloads the list of a letter, unless it is there, and checks it.

    Gives its path and its number of trials.

    Raises
    ------
    ValueError
        If what arrived or was there is not the list.
    OSError
        If it cannot be fetched or written.
    """
    file = file_of(name)
    path = os.path.join(folder, file)
    # Without a sum, an error page is recognized by its form.
    download(URLS[name], path, MD5_SUMS.get(file), check=read_trials)
    if not has_published_sum(path):
        raise ValueError(
            f"{path}: it is not VoxCeleb1-{name} as published (another MD5 "
            "sum); move it away and run the same command again"
        )
    try:
        return path, len(read_trials(path))
    except ValueError as error:
        raise ValueError(
            f"{error}; move it away and run the same command again"
        ) from None
