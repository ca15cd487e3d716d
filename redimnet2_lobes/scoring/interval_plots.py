"""Pictures of equal error rates with their intervals, in percent.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import os
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from redimnet2_lobes.scoring.bootstrap import Interval
from redimnet2_lobes.scoring.plots import save_figure


def plot_eer_by_duration(
    seconds: Sequence[float],
    rates: Sequence[Interval],
    path: str | os.PathLike,
    title: str = "EER by duration",
) -> None:
    """Plots equal error rates over the seconds used, with their intervals.

    Both are ascending in time [durations], the rates in percent. ``path`` is a
    PNG file.

    Example
    -------
    >>> rates = [Interval(20, 10, 30), Interval(10, None, None)]
    >>> path = getfixture("tmp_path") / "duration.png"
    >>> plot_eer_by_duration([1.0, 3.7], rates, path)
    >>> path.exists()
    True
    """
    figure = Figure(figsize=(8, 5.5), layout="constrained")
    axes = figure.add_subplot()
    value, low, high = _of_intervals(rates)
    axes.plot(seconds, value, "o-", color="tab:blue", label="EER")
    axes.fill_between(
        seconds,
        low,
        high,
        color="tab:blue",
        alpha=0.2,
        linewidth=0,
        label="95 % interval over speakers, if known",
    )
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    axes.set_xlabel("audio of the test utterance, mean (s)")
    axes.set_ylabel("equal error rate (%)")
    axes.set_title(title)
    figure.legend(loc="outside lower center", ncols=2)
    save_figure(figure, path)


def plot_eer_of_conditions(
    rates: Mapping[str, Interval],
    path: str | os.PathLike,
    title: str = "EER under conditions",
) -> None:
    """Plots the equal error rate of each condition, with its interval.

    Rates are in percent. The first is what the others are compared with; its
    interval is shaded. ``path`` is a PNG file.

    Example
    -------
    >>> rates = {"clean": Interval(10, 5, 20), "GSM": Interval(20, 10, 30)}
    >>> path = getfixture("tmp_path") / "conditions.png"
    >>> plot_eer_of_conditions(rates, path)
    >>> path.exists()
    True
    """
    height = 1.5 + 0.32 * len(rates)
    figure = Figure(figsize=(8, height), layout="constrained")
    axes = figure.add_subplot()
    value, low, high = _of_intervals(rates.values())
    rows = np.arange(len(rates))
    axes.axvspan(low[0], high[0], color="tab:blue", alpha=0.15, linewidth=0)
    axes.axvline(value[0], color="tab:blue", linewidth=1, linestyle="--")
    axes.hlines(rows, low, high, color="tab:blue", linewidth=2)
    axes.plot(value, rows, "o", color="tab:blue")
    axes.set_yticks(rows, list(rates))
    axes.set_ylim(len(rates) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)
    axes.set_xlabel(
        "equal error rate (%), with its 95 % interval over speakers, if known"
    )
    axes.set_title(title)
    save_figure(figure, path)


def plot_published(
    figures: Mapping[str, tuple[Interval, float | None]],
    path: str | os.PathLike,
    title: str,
) -> None:
    """Plots measured equal error rates beside published ones, as a PNG file.

    ``figures`` has for each list the measured rate with its interval, and the
    published one or None, in percent.

    Example
    -------
    >>> path = getfixture("tmp_path") / "published.png"
    >>> figures = {"VoxCeleb1-O": (Interval(0.29, 0.2, 0.4), 0.287)}
    >>> plot_published(figures, path, "b6-vox2-lm")
    >>> path.exists()
    True
    """
    figure = Figure(figsize=(2.5 + 1.5 * len(figures), 5), layout="constrained")
    axes = figure.add_subplot()
    value, low, high = _of_intervals(rate for rate, _ in figures.values())
    axes.errorbar(
        range(len(figures)),
        value,
        [value - low, high - value],
        fmt="o",
        capsize=6,
        label="measured, with the 95 % interval for other speakers, if known",
    )
    published = {
        place: rate
        for place, (_, rate) in enumerate(figures.values())
        if rate is not None
    }
    if published:
        axes.plot(
            [*published],
            [*published.values()],
            "_",
            color="tab:orange",
            markersize=40,
            markeredgewidth=2,
            label="published",
        )
    axes.set_xticks(range(len(figures)), [*figures])
    axes.set_xlim(-0.5, len(figures) - 0.5)
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", color="0.9")
    axes.set_axisbelow(True)
    axes.set_ylabel("equal error rate (%)")
    axes.set_title(title)
    # The marks of published rates are too wide to stand before a word.
    figure.legend(loc="outside lower center", markerscale=0.5)
    save_figure(figure, path)


def _of_intervals(intervals: Iterable[Interval]) -> np.ndarray:
    """Values and limits [3, intervals], NaN where they are not known."""
    return np.array([*intervals], np.float64).T
