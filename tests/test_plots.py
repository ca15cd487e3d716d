"""DET plots and score histograms: what they show, and how they are written."""

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread
from scipy.special import ndtri

from redimnet2_lobes.scoring.bootstrap import Interval
from redimnet2_lobes.scoring.metrics import EER, det_curve
from redimnet2_lobes.scoring.plots import (
    plot_det,
    plot_error_rates,
    plot_score_histogram,
    plot_training_curves,
)

PERCENT = torch.arange(1, 1000) / 1000


@pytest.fixture
def figures(monkeypatch):
    """Collects the figures that are saved, as matplotlib sees them."""
    saved = []
    savefig = Figure.savefig

    def collect(figure, *args, **kwargs):
        savefig(figure, *args, **kwargs)
        saved.append(figure)

    monkeypatch.setattr(Figure, "savefig", collect)
    return saved


def legend_texts(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def normal_scores():
    """Quantiles of two normal distributions, 2.5 deviations apart."""
    quantiles = torch.from_numpy(ndtri(PERCENT.double().numpy()))
    return quantiles + 2.5, quantiles


def test_normal_scores_give_a_straight_line_through_their_eer(
    figures, tmp_path
):
    positive, negative = normal_scores()
    far, frr, _ = det_curve(positive, negative)
    plot_det({"normal": (far, frr)}, tmp_path / "det.png")

    (axes,) = figures[0].axes
    curve = max(axes.lines, key=lambda line: len(line.get_xdata()))
    display = curve.get_transform().transform(curve.get_xydata())
    inside = (far > 0.03) & (far < 0.4) & (frr > 0.03) & (frr < 0.4)
    horizontal, vertical = display[inside.numpy()].T
    assert inside.sum() > 100
    slope, offset = np.polyfit(horizontal, vertical, 1)
    assert slope == pytest.approx(-1, abs=0.02)
    assert np.abs(slope * horizontal + offset - vertical).max() < 4  # pixels

    rate, _ = EER(positive, negative)
    marker = next(line for line in axes.lines if line.get_marker() == "o")
    assert marker.get_xydata().tolist() == [[rate, rate]]
    assert legend_texts(figures[0]) == [f"normal: EER {100 * rate:.2f} %"]


def test_det_axes_are_labelled_in_percent(figures, tmp_path):
    far, frr, _ = det_curve(*normal_scores())
    plot_det({"one": (far, frr), "two": (frr, far)}, tmp_path / "det.png")
    (axes,) = figures[0].axes
    assert axes.get_xlabel() == "false acceptance rate (%)"
    assert axes.get_ylabel() == "false rejection rate (%)"
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert {"0.5", "1", "10", "40"} <= set(labels)
    assert len(legend_texts(figures[0])) == 2


@pytest.mark.parametrize("shift", [-20.0, 0.0, 20.0])
@pytest.mark.parametrize("trials", [1, 30])
def test_det_of_extreme_sets_stays_inside_the_axes(
    shift, trials, figures, tmp_path
):
    negative = torch.linspace(0, 1, trials)
    far, frr, _ = det_curve(negative + shift, negative)
    plot_det({"extreme": (far, frr)}, tmp_path / "det.png")
    (axes,) = figures[0].axes
    marker = next(line for line in axes.lines if line.get_marker() == "o")
    low, high = axes.get_xlim()
    assert 0 < low < high < 1
    assert low <= marker.get_xdata()[0] <= high
    for line in axes.lines:
        assert np.isfinite(ndtri(line.get_xydata())).all()


def test_det_with_a_band(figures, tmp_path):
    positive, negative = normal_scores()
    far, frr, _ = det_curve(positive, negative)
    rates = np.array([0.02, 0.1, 0.3])
    at = np.interp(rates, far.numpy()[::-1], frr.numpy()[::-1])
    band = Interval(at, 0 * at, 1.5 * at)
    plot_det({"a": (far, frr)}, tmp_path / "det.png", {"a": (rates, band)})
    (axes,) = figures[0].axes
    (area,) = axes.collections
    low, high = axes.get_ylim()
    corners = area.get_paths()[0].vertices
    assert np.isfinite(ndtri(corners)).all()  # 0 lies at infinity
    assert corners[:, 1].min() == low
    assert corners[:, 1].max() == pytest.approx(1.5 * at.max())
    assert "[" not in legend_texts(figures[0])[0]


def test_det_with_bands_of_some_curves(figures, tmp_path):
    far, frr, _ = det_curve(*normal_scores())
    rates = np.array([0.02, 0.1])
    plot_det(
        {"a": (far, frr), "b": (frr, far)},
        tmp_path / "det.png",
        {"b": (rates, Interval(rates, rates / 2, 2 * rates))},
        {"b": (8.125, 12.0)},
    )
    (axes,) = figures[0].axes
    (area,) = axes.collections
    colours = {line.get_label(): line.get_color() for line in axes.lines}
    (label,) = (name for name in colours if name.startswith("b: "))
    assert label.endswith(" [8.12, 12.00] %")
    assert area.get_facecolor()[0][:3] == pytest.approx(to_rgb(colours[label]))


def test_error_rates_over_the_threshold(figures, tmp_path):
    scores = [0.0, 0.5, 1.0]
    far = [Interval(1, 1, 1), Interval(0.1, 0, 0.2), Interval(0, 0, 0)]
    thresholds = {"EER": 0.5, "FAR 1 %": 0.75}
    path = tmp_path / "rates.png"
    plot_error_rates(scores, far, far[::-1], thresholds, path)
    (axes,) = figures[0].axes
    accepted, rejected, *marks = axes.lines
    assert list(accepted.get_ydata()) == [100, 10, 0]
    assert list(rejected.get_ydata()) == [0, 10, 100]
    assert [mark.get_xdata()[0] for mark in marks] == [0.5, 0.75]
    assert legend_texts(figures[0])[-1] == "FAR 1 %: threshold 0.7500"
    assert imread(path).shape[2] in (3, 4)


def test_histogram_shows_each_kind_in_percent_of_its_own(figures, tmp_path):
    positive = torch.tensor([0.5, 0.6, 0.7, 0.9])
    negative = torch.linspace(-0.5, 0.55, 1200)
    plot_score_histogram(positive, negative, 0.52, tmp_path / "scores.png")
    (axes,) = figures[0].axes
    assert axes.get_ylabel().endswith("(% per bar)")
    assert axes.get_xlabel().startswith("score")
    accepted = 100 * (negative > 0.52).float().mean()
    assert legend_texts(figures[0]) == [
        f"different speakers: 1,200 trials, {accepted:.2f} % accepted",
        "same speaker: 4 trials, 75.00 % accepted",
        "threshold 0.5200",
    ]
    for outline in axes.patches:  # the area under the steps is 100 %
        (x, y) = outline.get_xy().T
        width = np.diff(np.unique(x))[0]
        area = 0.5 * abs(x @ np.roll(y, 1) - y @ np.roll(x, 1))
        assert area / width == pytest.approx(100)


def test_histogram_of_a_single_value(tmp_path):
    path = tmp_path / "scores.png"
    plot_score_histogram(torch.ones(3), torch.ones(2), 1.0, path)
    assert imread(path).ndim == 3


def draw_det(path):
    plot_det({"curve": det_curve(*normal_scores())[:2]}, path)


def draw_histogram(path):
    plot_score_histogram(*normal_scores(), 1.25, path)


@pytest.mark.parametrize("draw", [draw_det, draw_histogram])
def test_png_is_written_whole_or_not_at_all(draw, tmp_path, monkeypatch):
    path = tmp_path / "plot.png"
    draw(path)
    assert min(imread(path).shape[:2]) >= 600
    before = path.read_bytes()

    def full_disk(figure, name, **kwargs):
        with open(name, "wb") as file:
            file.write(before[:100])
        raise OSError("No space left on device")

    monkeypatch.setattr(Figure, "savefig", full_disk)
    with pytest.raises(OSError, match="No space left"):
        draw(path)
    assert path.read_bytes() == before
    with pytest.raises(OSError, match="No space left"):
        draw(tmp_path / "new.png")
    assert not (tmp_path / "new.png").exists()


@pytest.mark.parametrize("draw", [draw_det, draw_histogram])
def test_global_matplotlib_state_is_left_alone(draw, tmp_path):
    import matplotlib.pyplot as plt

    settings, figures = dict(matplotlib.rcParams), plt.get_fignums()
    draw(tmp_path / "plot.png")
    assert dict(matplotlib.rcParams) == settings
    assert plt.get_fignums() == figures


def test_damaged_lines_of_a_log_are_left_out(tmp_path, figures):
    line = b"epoch: %s - train loss: %s, train accuracy: 0.5 - valid EER: 9\n"
    log = tmp_path / "train_log.txt"
    log.write_bytes(
        line % (b"1", b"5.5")
        + b"epoch: 2 - tra\0\xff\n"
        + line % (b"x", b"4")
        + line % (b"3", b"4.5.")
        + line % (b"4", b"3.5")
    )
    plot_training_curves(log, tmp_path / "curves.png")
    (curve,) = figures[0].axes[0].lines
    assert curve.get_xydata().tolist() == [[1, 5.5], [4, 3.5]]
