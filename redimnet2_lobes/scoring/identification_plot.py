"""A picture of open-set identification: its errors over gallery size.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import os
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import ticker
from matplotlib.figure import Figure

from redimnet2_lobes.scoring.identification import OpenSetCurve
from redimnet2_lobes.scoring.plots import save_figure


def plot_open_set(
    curves: Sequence[OpenSetCurve],
    points: Mapping[int, Sequence[dict]],
    path: str | os.PathLike,
    title: str,
) -> None:
    """Plots open-set identification over gallery size, as a PNG file.

    On the left FNIR against FPIR, a curve for each gallery size, on logarithmic
    scales as in NIST's reports, with the intervals of the first and the last;
    on the right the FNIR at FPIRs over the gallery size: ``points`` are those
    of `open_set_figures` by gallery size.

    Example
    -------
    >>> limits = {"fnir": 0.2, "fnir_interval": [0.1, 0.3]}
    >>> from redimnet2_lobes.scoring.bootstrap import Interval
    >>> rates = np.array([0.01, 0.1])
    >>> same = Interval(rates, rates, rates)
    >>> curve = OpenSetCurve(5, rates, same, same)
    >>> path = getfixture("tmp_path") / "open_set.png"
    >>> plot_open_set([curve], {5: [{"fpir": 0.1, **limits}]}, path, "Voices")
    >>> path.exists()
    True
    """
    figure = Figure(figsize=(11, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    smallest = 1.0
    for curve in curves:
        value, low, high = (100 * part for part in curve.fnir)
        smallest = min([smallest, *value[value > 0]])
        (line,) = left.plot(
            100 * curve.fpir, value, label=f"{curve.gallery_size:,} enrolled"
        )
        # Those of all would hide each other.
        if curve is curves[0] or curve is curves[-1]:
            left.fill_between(
                *(100 * curve.fpir, low, high),
                color=line.get_color(),
                alpha=0.15,
                linewidth=0,
                label="its 95 % interval",
            )
    left.set_xscale("log")
    left.set_yscale("log")
    left.set_ylim(max(smallest / 2, 0.01), 110)
    for axis in (left.xaxis, left.yaxis):
        axis.set_major_formatter(ticker.FuncFormatter(lambda y, _: f"{y:g}"))
    left.set_xlabel("FPIR: strangers who are given a name (%)")
    left.set_ylabel("FNIR: enrolled who are not, or another's (%)")
    left.legend()
    sizes = sorted(points)
    rates = [each["fpir"] for each in points[sizes[0]]]
    for index, rate in enumerate(rates):
        shown = [
            (size, each["fnir"], *(each["fnir_interval"] or [np.nan] * 2))
            for size in sizes
            if (each := points[size][index])["fnir"] is not None
        ]
        if not shown:
            continue
        at, value, low, high = np.array(shown).T
        # Side by side, so that none hides another.
        right.errorbar(
            at * 1.02**index,
            100 * value,
            [100 * (value - low), 100 * (high - value)],
            fmt="o-",
            capsize=4,
            label=f"at FPIR {100 * rate:g} %",
        )
    right.set_xscale("log")
    right.set_xticks(sizes, [f"{size:,}" for size in sizes])
    right.xaxis.set_minor_locator(ticker.NullLocator())
    right.set_ylim(0, 105)
    right.set_xlabel("enrolled speakers")
    right.set_ylabel("FNIR (%)")
    if right.containers:
        right.legend()
    else:
        right.text(
            *(0.5, 0.5, "too few strangers"),
            ha="center",
            transform=right.transAxes,
        )
    for axes in (left, right):
        axes.grid(color="0.9")
        axes.set_axisbelow(True)
    figure.suptitle(title)
    save_figure(figure, path)
