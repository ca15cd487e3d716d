"""``redimnet2 compare``: whether two systems differ on the same trials.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from redimnet2_lobes.cli.group import command, json_option
from redimnet2_lobes.files.atomic import check_new_file

if TYPE_CHECKING:
    import torch

    from redimnet2_lobes.scoring.comparison import Comparison

    Compared = dict[str, Comparison]  # by the keys of results.json


@command("results/first results/second --plot=comparison.png")
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@click.option(
    "--plot",
    metavar="FILE.png",
    help="A new file for the DET curves of both; with several lists and "
    "back-ends one for each, whose names are added.",
)
@json_option
def compare(first: str, second: str, plot: str | None, as_json: bool) -> str:
    """Says whether two systems differ in their error rates.

    A and B are two files of scores of the same trials, such as
    results/veri_test2/cosine_scores.txt, or two output folders of verification
    scripts, whose lists and back-ends of the same names are compared. Speakers
    are resampled, the same for both.
    """
    if plot is not None:
        _check_plot(plot)
    pairs = _pairs(first, second)
    plots = {name: _plot_of(plot, name, len(pairs)) for name in pairs}
    for path in plots.values():
        if path is not None:
            check_new_file(path, "--plot")

    from redimnet2_lobes.scoring.bootstrap import RESAMPLES

    entries, parts = [], []
    for name, (one, other) in pairs.items():
        labels, speakers, found = _compare(one, other, plots[name])
        if as_json:
            entries.append(_entry(name, labels, speakers, found))
            continue
        if name is not None:
            parts.append("{}, {}:".format(*name))
        parts.append(_table(found))
        parts.append(
            f"{len(labels):,} trials. Intervals: 95 %, {RESAMPLES:,} resamples "
            f"over {speakers:,} speakers.\n"
        )
        if plots[name] is not None:
            parts.append(f"written  {plots[name]}\n")
    if as_json:
        content = {
            "first": first,
            "second": second,
            "resamples": RESAMPLES,
            "comparisons": entries,
        }
        return json.dumps(content, indent=2)
    return "\n".join([f"A  {first}\nB  {second}\n", *parts]).rstrip()


Name = tuple[str, str] | None  # list and back-end, None for two files


def _pairs(first: str, second: str) -> dict[Name, tuple[Path, Path]]:
    """The files to compare."""
    from redimnet2_lobes.scoring.score_files import score_files

    if os.path.isdir(first) != os.path.isdir(second):
        raise ValueError(
            f"{first} and {second}: one is a folder; give two files of scores "
            "or two output folders of verifications"
        )
    if not os.path.isdir(first):
        return {None: (Path(first), Path(second))}
    of_first, of_second = score_files(first), score_files(second)
    common: dict[Name, tuple[Path, Path]] = {
        name: (path, of_second[name])
        for name, path in of_first.items()
        if name in of_second
    }
    if not common:
        raise ValueError(
            f"{first} and {second}: no list and back-end has scores in both; "
            "give two output folders of verifications, or two files of scores"
        )
    return common


def _check_plot(plot: str) -> None:
    """Refuses, before all is computed, what no plot can be written to."""
    if not plot.lower().endswith(".png"):
        raise ValueError(f"--plot: {plot!r} does not end in .png; name it so")
    folder = os.path.dirname(plot)
    if folder and not os.path.isdir(folder):
        raise ValueError(f"--plot: there is no folder {folder}; make it first")


def _plot_of(plot: str | None, name: Name, pairs: int) -> Path | None:
    if plot is None:
        return None
    path = Path(plot)
    if name is None or pairs == 1:
        return path
    return path.with_name(f"{path.stem}_{'_'.join(name)}{path.suffix}")


def _compare(
    one: Path, other: Path, plot: Path | None
) -> tuple[torch.Tensor, int, Compared]:
    """Labels of the trials, the number of speakers, and the comparison."""
    import numpy as np
    import torch

    from redimnet2_lobes.scoring.bootstrap import (
        REPORTED,
        det_rates,
        frr_at_far,
    )
    from redimnet2_lobes.scoring.comparison import (
        compare,
        same_trials,
        speakers_of,
    )
    from redimnet2_lobes.scoring.score_files import read_scores

    of_one, of_other = read_scores(one), read_scores(other)
    try:
        trials, scores, others = same_trials(of_one, of_other)
    except ValueError as error:
        raise ValueError(
            f"{one} and {other}: {error}; compare scores of the same trials"
        ) from None
    labels = torch.tensor([label for label, _, _ in trials]) == 1
    if labels.all() or not labels.any():
        raise ValueError(
            f"{one}: all trials have the label {trials[0][0]}, but error rates "
            "need both labels"
        )
    rates = det_rates(int((~labels).sum()))
    figures = {**REPORTED, "det": frr_at_far(rates)}
    try:
        speakers = speakers_of(trials)
        found = compare(scores, others, labels, speakers, figures)
    except ValueError as error:
        raise ValueError(f"{one}: {error}") from None
    det = found.pop("det")
    if plot is not None:
        from redimnet2_lobes.scoring.metrics import det_curve
        from redimnet2_lobes.scoring.plots import plot_det

        names = [
            f"{side}: {path if len(path) < 40 else '…' + path[-39:]}"
            for side, path in (("A", str(one)), ("B", str(other)))
        ]
        plot_det(
            {
                name: det_curve(each[labels], each[~labels])[:2]
                for name, each in zip(names, (scores, others), strict=True)
            },
            plot,
            {name: (rates, det[side]) for side, name in enumerate(names)},
            {
                name: found["eer_percent"][side].limits
                for side, name in enumerate(names)
            },
        )
    return labels, len(np.unique(speakers)), found


def _table(found: Compared) -> str:
    from redimnet2_lobes.scoring.results import COLUMNS
    from redimnet2_lobes.scoring.tables import text_table, with_interval

    table = [["", "A", "B", "B less A", "p"]]
    for heading, key, form in COLUMNS:
        if key in found:
            first, second, difference, p_value = found[key]
            signed = form.replace("{:", "{:+")
            table.append(
                [
                    heading,
                    with_interval(first.value, first.limits, form),
                    with_interval(second.value, second.limits, form),
                    with_interval(difference.value, difference.limits, signed),
                    f"{p_value:.3f}",
                ]
            )
    return text_table(table, names=1)


def _entry(
    name: Name, labels: torch.Tensor, speakers: int, found: Compared
) -> dict:
    trial_list, back_end = name or (None, None)
    return {
        "list": trial_list,
        "back_end": back_end,
        "trials": len(labels),
        "speakers": speakers,
        "figures": {
            key: {
                "first": [*map(float, each.first)],
                "second": [*map(float, each.second)],
                "difference": [*map(float, each.difference)],
                "p_value": float(each.p_value),
            }
            for key, each in found.items()
        },
    }
