"""Pictures of scores, training and turns: DET curves, histograms, curves.

They are drawn on figures of their own, without ``matplotlib.pyplot``: no
display is needed, and a caller's figures and settings are left alone.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import contextlib
import itertools
import os
import re
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np
import torch
from matplotlib import ticker
from matplotlib.figure import Figure
from scipy.special import ndtr, ndtri

from redimnet2_lobes.files.atomic import complete_or_absent
from redimnet2_lobes.scoring.bootstrap import Interval
from redimnet2_lobes.scoring.metrics import equal_error_index
from redimnet2_lobes.scoring.tables import with_interval

# The error rates in percent that a DET plot labels, those of NIST's plots.
# fmt: off
DET_TICKS = (
    0.001, 0.01, 0.1, 0.5, 1, 2, 5, 10, 20, 40,
    60, 80, 90, 95, 99, 99.9, 99.99,
)
# fmt: on


def plot_det(
    curves: dict[str, tuple[torch.Tensor, torch.Tensor]],
    path: str | os.PathLike,
    bands: Mapping[str, tuple[np.ndarray, Interval]] | None = None,
    eer_percent: Mapping[str, Sequence[float] | None] | None = None,
) -> None:
    """Plots detection error trade-off curves, with their equal error rates.

    Both axes are in percent on a normal-deviate scale, where the curve of
    normally distributed scores is a straight line: Martin et al., "The DET
    curve in assessment of detection task performance", Eurospeech 1997.

    ``curves`` has for each name in the legend the false acceptance and the
    false rejection rates, which `det_curve` gives; ``path`` is a PNG file.
    ``bands`` has for names of curves false acceptance rates, and of the false
    rejection rates there the confidence intervals, all [rates]; ``eer_percent``
    the limits of the equal error rate, for the legend.

    Example
    -------
    >>> from redimnet2_lobes.scoring.metrics import det_curve
    >>> far, frr, _ = det_curve(torch.randn(200) + 2, torch.randn(900))
    >>> folder = getfixture("tmp_path")
    >>> plot_det({"cosine (1,100 trials)": (far, frr)}, folder / "det.png")
    >>> [file.name for file in folder.iterdir()]
    ['det.png']
    """
    equal_error_rates = {}
    for name, (far, frr) in curves.items():
        index = equal_error_index(far, frr)
        equal_error_rates[name] = (far[index].item() + frr[index].item()) / 2
    low, high = _det_limits(curves.values(), equal_error_rates.values())

    height = 6.6 + 0.2 * len(curves)  # the legend has a line for each
    figure = Figure(figsize=(6.4, height), layout="constrained")
    axes = figure.add_subplot()
    diagonal = np.array([low, high])
    axes.plot(diagonal, diagonal, color="0.7", linewidth=1, linestyle=":")
    for name, (far, frr) in curves.items():
        rate = equal_error_rates[name]
        written = with_interval(100 * rate, (eer_percent or {}).get(name))
        # On this scale 0 and 100 % lie at infinity: a curve along a border is
        # there or beyond.
        (line,) = axes.plot(
            *_as_array(torch.stack([far, frr])).clip(low, DET_TICKS[-1] / 100),
            label=f"{name}: EER {written} %",
        )
        if name in (bands or {}):
            rates, interval = (bands or {})[name]
            axes.fill_between(
                rates,
                *(
                    np.clip(limit, low, DET_TICKS[-1] / 100)
                    for limit in interval[1:]
                ),
                color=line.get_color(),
                alpha=0.2,
                linewidth=0,
            )
        marked = np.clip(rate, low, high)
        axes.plot(marked, marked, "o", color=line.get_color(), clip_on=False)

    ticks = ticker.FixedLocator([tick / 100 for tick in DET_TICKS])
    percent = ticker.FuncFormatter(lambda rate, _: f"{100 * rate:g}")
    for axis, set_scale, set_limits in (
        (axes.xaxis, axes.set_xscale, axes.set_xlim),
        (axes.yaxis, axes.set_yscale, axes.set_ylim),
    ):
        set_scale("function", functions=(ndtri, ndtr))
        set_limits(low, high)
        axis.set_major_locator(ticks)
        axis.set_minor_locator(ticker.NullLocator())
        axis.set_major_formatter(percent)
    axes.set_aspect("equal", adjustable="box")
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    axes.set_xlabel("false acceptance rate (%)")
    axes.set_ylabel("false rejection rate (%)")
    axes.set_title("Detection error trade-off (dot: equal error rate)")
    figure.legend(loc="outside lower center")
    save_figure(figure, path)


def plot_score_histogram(
    positive_scores: torch.Tensor,
    negative_scores: torch.Tensor,
    threshold: float,
    path: str | os.PathLike,
    title: str = "Scores",
) -> None:
    """Plots the distributions of both kinds of scores [trials] into a PNG file.

    Each kind is scaled to its own number of trials, as there are usually many
    more trials of two speakers than of one. The threshold, such as that of the
    equal error rate, is marked.

    Example
    -------
    >>> positive, negative = torch.randn(200) + 2, torch.randn(900)
    >>> path = getfixture("tmp_path") / "score_histogram.png"
    >>> plot_score_histogram(positive, negative, 1.0, path)
    >>> path.exists()
    True
    """
    positive = _as_array(positive_scores)
    negative = _as_array(negative_scores)
    everything = np.concatenate([positive, negative])
    # Few trials get wide bars, so that the shape is seen and not the noise.
    bars = int(np.clip(3 * min(len(positive), len(negative)) ** 0.5, 20, 100))
    bins = np.histogram_bin_edges(everything, bars).tolist()

    figure = Figure(figsize=(8, 5.5), layout="constrained")
    axes = figure.add_subplot()
    for scores, kind, colour in (
        (negative, "different speakers", "tab:orange"),
        (positive, "same speaker", "tab:blue"),
    ):
        above = np.mean(scores > threshold)
        axes.hist(
            scores,
            bins,
            weights=np.full(len(scores), 100 / len(scores)),
            histtype="stepfilled",
            color=colour,
            edgecolor=colour,
            alpha=0.5,
            label=f"{kind}: {len(scores):,} trials, "
            f"{100 * above:.2f} % accepted",
        )
    label = f"threshold {threshold:.4f}"
    axes.axvline(threshold, color="black", linestyle="--", label=label)
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    axes.set_xlabel("score (higher: more alike)")
    axes.set_ylabel("share of the trials of each kind (% per bar)")
    axes.set_title(title)
    figure.legend(loc="outside lower center")
    save_figure(figure, path)


def plot_error_rates(
    scores: Sequence[float],
    far: Sequence[Interval],
    frr: Sequence[Interval],
    thresholds: Mapping[str, float],
    path: str | os.PathLike,
) -> None:
    """Plots both error rates over the threshold, with confidence intervals.

    The rates are those at ``scores``, ascending [scores]; ``thresholds`` are
    marked by their names. Rates are on a logarithmic scale, where 0 is not
    seen. ``path`` is a PNG file.

    Example
    -------
    >>> rates = [Interval(0.5, 0.4, 0.6), Interval(0.1, 0.0, 0.2)]
    >>> path = getfixture("tmp_path") / "error_rates.png"
    >>> plot_error_rates([0.1, 0.9], rates, rates[::-1], {"EER": 0.5}, path)
    >>> path.exists()
    True
    """
    figure = Figure(figsize=(8, 5.5), layout="constrained")
    axes = figure.add_subplot()
    for rates, kind, colour in (
        (far, "false acceptance rate", "tab:orange"),
        (frr, "false rejection rate", "tab:blue"),
    ):
        value, low, high = 100 * np.array(rates).T
        axes.plot(scores, value, color=colour, label=kind)
        axes.fill_between(
            scores, low, high, color=colour, alpha=0.2, linewidth=0
        )
    for (name, threshold), style in zip(
        thresholds.items(), itertools.cycle(("--", "-.", ":"))
    ):
        label = f"{name}: threshold {threshold:.4f}"
        axes.axvline(threshold, color="black", linestyle=style, label=label)
    axes.set_yscale("log")
    smallest = min(rate.value for rate in [*far, *frr] if rate.value > 0)
    axes.set_ylim(50 * max(smallest, 1e-4), 110)
    axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda y, _: f"{y:g}"))
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    axes.set_xlabel("threshold (higher: stricter)")
    axes.set_ylabel("error rate (%), with its confidence interval")
    axes.set_title("Error rates over the threshold")
    figure.legend(loc="outside lower center", ncols=2)
    save_figure(figure, path)


def plot_training_curves(
    train_log: str | os.PathLike, path: str | os.PathLike
) -> None:
    r"""Plots loss, accuracy and validation EER over the epochs, as a PNG file.

    They are read from the log of SpeechBrain's ``FileTrainLogger``. A training
    without speakers has no accuracy.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> log = folder / "train_log.txt"
    >>> _ = log.write_text(
    ...     "epoch: 1 - train loss: 5.1, train accuracy: 2.00e-02"
    ...     " - valid EER: 9.3\n"
    ... )
    >>> plot_training_curves(log, folder / "training_curves.png")
    """
    panels = {
        "train loss": "training loss (grows with the margin)",
        "train accuracy": "training accuracy",
        "valid EER": "validation EER (%)",
    }
    epochs = {}
    with open(train_log, encoding="utf-8", errors="replace") as file:
        lines = file.readlines()
    if not any("train accuracy" in line for line in lines):
        del panels["train accuracy"]
    for line in lines:
        values = dict(re.findall(r"([a-zA-Z][\w ]*): ([^\s,]+)", line))
        # A killed machine may leave a line that is none. A run that was killed
        # before its checkpoint was complete logs the epoch again.
        with contextlib.suppress(LookupError, ValueError):
            figures = {key: float(values[key]) for key in panels}
            epochs[int(values["epoch"])] = figures
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    axes = figure.subplots(1, len(panels))
    for axis, (key, label) in zip(axes, panels.items(), strict=True):
        axis.plot(
            list(epochs),
            [figures[key] for figures in epochs.values()],
            marker="." if len(epochs) < 50 else None,
        )
        axis.set_xlabel("epoch")
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
        axis.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    save_figure(figure, path)


def plot_turns(
    turns: Iterable[tuple[float, float, str]],
    seconds: float,
    path: str | os.PathLike,
    title: str = "Who spoke when",
) -> None:
    """Plots who spoke when in a recording of so many seconds, as a PNG file.

    ``turns`` are start, end and speaker; each speaker has a line, in the order
    in which they begin to speak.

    Example
    -------
    >>> path = getfixture("tmp_path") / "turns.png"
    >>> plot_turns([(0.5, 2.0, "Ann"), (2.5, 3.0, "Bo")], 4.0, path)
    >>> path.exists()
    True
    """
    spoken = {}
    for start, end, speaker in turns:
        spoken.setdefault(speaker, []).append((start, end - start))
    figure = Figure(
        figsize=(10, 1.2 + 0.4 * max(1, len(spoken))), layout="constrained"
    )
    axes = figure.add_subplot()
    for row, (speaker, bars) in enumerate(spoken.items()):
        axes.broken_barh(bars, (row - 0.4, 0.8), color=f"C{row % 10}")
        total = sum(length for _, length in bars)
        spoken[speaker] = f"{speaker} ({total:.0f} s)"
    axes.set_yticks(range(len(spoken)), list(spoken.values()))
    axes.set_ylim(max(1, len(spoken)) - 0.5, -0.5)
    axes.set_xlim(0, seconds)
    axes.xaxis.set_major_formatter(
        ticker.FuncFormatter(lambda at, _: f"{at // 60:.0f}:{at % 60:02.0f}")
    )
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)
    axes.set_xlabel("minutes and seconds")
    axes.set_title(title)
    save_figure(figure, path)


def _as_array(values: torch.Tensor) -> np.ndarray:
    return torch.as_tensor(values).detach().cpu().double().numpy()


def _det_limits(
    curves: Iterable[tuple[torch.Tensor, torch.Tensor]],
    equal_error_rates: Collection[float],
) -> tuple[float, float]:
    """Labelled rates that enclose the EERs and what is of interest there.

    Downwards that is what the curves resolve, but no less than a fiftieth of
    the least EER: below it one of the two rates is hardly ever wanted.
    """
    ticks = np.array(DET_TICKS) / 100
    rates = _as_array(torch.cat([rate for curve in curves for rate in curve]))
    smallest = min(rates[rates > 0].min(), 0.1)
    smallest = max(smallest, min([0.1, *filter(None, equal_error_rates)]) / 50)
    low = np.searchsorted(ticks, smallest, side="right") - 1
    high = np.searchsorted(ticks, max(0.4, 2.5 * max(equal_error_rates)))
    return ticks[max(low, 0)], ticks[min(high, len(ticks) - 1)]


def save_figure(figure: Figure, path: str | os.PathLike) -> None:
    """Writes a figure as a PNG file."""
    with complete_or_absent(path) as partial, warnings.catch_warnings():
        # A name may have letters of which the font has none: a box is drawn.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure.savefig(partial, format="png", dpi=150)
