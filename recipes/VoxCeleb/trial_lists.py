"""Fetches the trial lists of VoxCeleb1 and checks them.

To run it:

> python trial_lists.py FOLDER [O E H B]

FOLDER then holds VoxCeleb1-O, -E and -H in their cleaned versions
(veri_test2.txt, list_test_all2.txt, list_test_hard2.txt) and VoxCeleb1-B
(list_test_bilingual.txt). The first three must have the published MD5 sum. None
is published for VoxCeleb1-B: of this list only the form is checked.

VoxCeleb1-O tests on VoxCeleb1's test speakers. E, H and B test on its training
speakers too, so they are for models trained without VoxCeleb1.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import argparse
import os

from redimnet2_lobes.data.trials import MD5_SUMS, has_published_sum, read_trials
from redimnet2_lobes.files.download import download
from redimnet2_lobes.files.error_lines import one_line_errors

META = "https://mm.kaist.ac.kr/datasets/voxceleb/meta"
URLS = {
    "O": f"{META}/veri_test2.txt",
    "E": f"{META}/list_test_all2.txt",
    "H": f"{META}/list_test_hard2.txt",
    "B": "https://mm.kaist.ac.kr/projects/voxceleb1-b/list_test_bilingual.txt",
}


def fetch_trial_list(name: str, folder: str) -> tuple[str, int]:
    """Downloads the list of a letter, unless it is there, and checks it.

    Gives its path and its number of trials.

    Raises
    ------
    ValueError
        If what arrived or was there is not the list.
    OSError
        If it cannot be fetched or written.
    """
    url = URLS[name]
    file = url.rpartition("/")[2]
    path = os.path.join(folder, file)
    # Without a sum, an error page is recognized by its form.
    download(url, path, MD5_SUMS.get(file), check=read_trials)
    if not has_published_sum(path):
        raise ValueError(
            f"{path}: it is not VoxCeleb1-{name} as published (another MD5 "
            "sum); remove it and run the same command again"
        )
    try:
        return path, len(read_trials(path))
    except ValueError as error:
        raise ValueError(
            f"{error}; remove it and run the same command again"
        ) from None


def main(arguments: list[str] | None = None) -> None:
    """Runs the script."""
    parser = argparse.ArgumentParser(
        description="Fetch the trial lists of VoxCeleb1."
    )
    parser.add_argument("folder", help="where the lists go")
    parser.add_argument(
        "lists",
        nargs="*",
        default=list(URLS),
        help=f"of {' '.join(URLS)} (default: all)",
    )
    options = parser.parse_args(arguments)
    with one_line_errors():
        for name in options.lists:
            if name not in URLS:
                raise ValueError(
                    f"{name}: no list of VoxCeleb1; they are {' '.join(URLS)}"
                )
        os.makedirs(options.folder, exist_ok=True)
        for name in options.lists:
            path, trials = fetch_trial_list(name, options.folder)
            known = os.path.basename(path) in MD5_SUMS
            note = "as published" if known else "form checked"
            print(f"VoxCeleb1-{name}: {path}, {trials:,} trials, {note}")


if __name__ == "__main__":
    main()
