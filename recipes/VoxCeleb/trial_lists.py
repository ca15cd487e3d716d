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

from redimnet2_lobes.data.trials import MD5_SUMS
from redimnet2_lobes.data.voxceleb_lists import URLS, fetch_trial_list
from redimnet2_lobes.files.error_lines import one_line_errors


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
