"""``redimnet2 compare``: what it prints, draws and refuses."""

import json

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from redimnet2_lobes.scoring.bootstrap import REPORTED
from redimnet2_lobes.scoring.comparison import compare
from redimnet2_lobes.scoring.score_files import write_scores

LISTS = ("O", "H")
BACK_ENDS = ("cosine", "plda")


def scored(better, seed=0, people=8, recordings=2):
    """Trials of all pairs, and scores."""
    names = [f"p{p}/{r}" for p in range(people) for r in range(recordings)]
    trials = [
        (int(one.split("/")[0] == other.split("/")[0]), one, other)
        for row, one in enumerate(names)
        for other in names[row + 1 :]
    ]
    labels = np.array([label for label, _, _ in trials])
    noise = np.random.default_rng(seed).normal(size=len(trials))
    return trials, torch.from_numpy(noise + better * labels)


@pytest.fixture
def results(tmp_path):
    """Two output folders of verifications, of which one has more back-ends."""
    for folder, better in (("first", 1.0), ("second", 3.0)):
        for trial_list in LISTS:
            (tmp_path / folder / trial_list).mkdir(parents=True)
            for back_end in BACK_ENDS if folder == "second" else BACK_ENDS[:1]:
                write_scores(
                    tmp_path / folder / trial_list / f"{back_end}_scores.txt",
                    *scored(better, seed=len(folder)),
                )
    return tmp_path


def paths_of(results):
    return [
        results / x / "O" / "cosine_scores.txt" for x in ("first", "second")
    ]


def test_two_files(results, run):
    paths = paths_of(results)
    plot = results / "det.png"
    shown = run("compare", *paths, f"--plot={plot}")
    assert f"A  {paths[0]}\nB  {paths[1]}\n" in shown
    assert "120 trials. Intervals: 95 %, 1,000 resamples over 8 speakers." in (
        shown
    )
    assert imread(plot).shape[0] > 500
    found = json.loads(run("compare", *paths, "--json"))
    assert found["first"] == str(paths[0])
    (entry,) = found["comparisons"]
    assert entry["list"] is entry["back_end"] is None
    assert (entry["trials"], entry["speakers"]) == (120, 8)
    trials, first = scored(1.0, seed=5)
    _, second = scored(3.0, seed=6)
    pairs = [(one.split("/")[0], other[:2]) for _, one, other in trials]
    labels = torch.tensor([label for label, _, _ in trials]) == 1
    expected = compare(first, second, labels, pairs)
    assert list(entry["figures"]) == list(REPORTED)
    for key, each in entry["figures"].items():
        assert each["first"] == pytest.approx(expected[key].first, abs=1e-6)
        assert each["second"] == pytest.approx(expected[key].second, abs=1e-6)
        assert each["p_value"] == pytest.approx(expected[key].p_value)
        value, low, high = each["difference"]
        assert value == pytest.approx(each["second"][0] - each["first"][0])
        assert low <= high
    eer = entry["figures"]["eer_percent"]
    (line,) = (line for line in shown.splitlines() if line.startswith("EER"))
    assert f"{eer['first'][0]:.3f} [{eer['first'][1]:.3f}, " in line
    assert f"{eer['difference'][0]:+.3f} [{eer['difference'][1]:+.3f}" in line
    assert line.endswith(f" {eer['p_value']:.3f}")


def test_two_folders_have_lists_and_back_ends_in_common(results, run):
    plot = results / "det.png"
    shown = run(
        "compare", results / "first", results / "second", f"--plot={plot}"
    )
    for trial_list in LISTS:
        assert f"\n{trial_list}, cosine:\n" in shown
        assert (results / f"det_{trial_list}_cosine.png").stat().st_size > 0
    assert "plda" not in shown and not plot.exists()
    found = json.loads(
        run("compare", results / "first", results / "second", "--json")
    )
    assert [each["list"] for each in found["comparisons"]] == sorted(LISTS)


def test_the_order_of_lines_does_not_matter(results, run):
    paths = paths_of(results)
    before = run("compare", *paths)
    lines = paths[1].read_text().splitlines()
    paths[1].write_text("\n".join(lines[::-1]))
    assert run("compare", *paths) == before


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda lines: lines[1:], "120 trials against 119"),
        (lambda lines: [], "no scores in it"),
        (lambda lines: [*lines, "a b 1"], "line 121: found 'a b 1', expected"),
        (lambda lines: [*lines, "a b 1 nan"], "line 121: found"),
        (lambda lines: [*lines, "a b 2 0.5"], "line 121: found"),
        (
            lambda lines: [lines[0].replace(" 1 ", " 0 "), *lines[1:]],
            "p0/0 p0/1 has another label; compare scores of the same trials",
        ),
        (
            lambda lines: [lines[0].replace("p0/0", "p9/0"), *lines[1:]],
            "p0/0 p0/1 is not there",
        ),
    ],
)
def test_other_trials_and_damaged_files_are_refused(
    damage, problem, results, error_of
):
    paths = paths_of(results)
    paths[1].write_text("\n".join(damage(paths[1].read_text().splitlines())))
    line = error_of("compare", *paths)
    assert str(paths[1]) in line and problem in line


def test_what_cannot_be_compared(results, error_of, tmp_path):
    first, second = paths_of(results)
    assert "one is a folder" in error_of("compare", first, results)
    empty = tmp_path / "empty"
    empty.mkdir()
    line = error_of("compare", results / "first", empty)
    assert "no list and back-end has scores in both" in line
    line = error_of("compare", first, tmp_path / "none")
    assert f"{tmp_path / 'none'}: cannot read the scores" in line
    line = error_of("compare", first, second, f"--plot={first}")
    assert "--plot" in line and first.read_text()
    same = [line for line in first.read_text().splitlines() if " 1 " in line]
    for path in (first, second):
        path.write_text("\n".join(same))
    assert "all trials have the label 1" in error_of("compare", first, second)
    for path in (first, second):
        path.write_text("u v 1 0.5\nv w 1 0.4\nu w 0 0.1\n")
    line = error_of("compare", first, second)
    assert line.startswith(f"error: {first}: names and labels do not tell")
    for path in (first, second):
        path.write_text("u/1 u/2 1 0.5\nu/1 v/1 0 0.1\n")
    line = error_of("compare", first, second)
    assert line.startswith(f"error: {first}: 2 speakers are too few to compare")


@pytest.mark.parametrize(
    ("plot", "problem"),
    [
        ("det.pdf", "does not end in .png; name it so"),
        ("det", "does not end in .png; name it so"),
        ("new/", "does not end in .png; name it so"),
        ("", "does not end in .png; name it so"),
        ("none/det.png", "there is no folder"),
    ],
)
def test_plots_that_cannot_be_written_are_refused_first(
    results, error_of, monkeypatch, plot, problem
):
    monkeypatch.chdir(results)
    before = sorted(results.rglob("*"))
    line = error_of("compare", "no.txt", "neither.txt", f"--plot={plot}")
    assert line.startswith("error: --plot: ") and problem in line
    assert sorted(results.rglob("*")) == before
