"""The benchmark of scoring at toy size; no figure is judged."""

import json
import math

import pytest
import scoring
import torch


def job(case, implementation, trials, limit=None, memory=2**34):
    return {
        "case": case,
        "implementation": implementation,
        "trials": trials,
        "trials_measured": scoring.measured_trials(implementation, trials),
        "limit": limit,
        "threads": 1,
        "memory": memory,
    }


@pytest.mark.slow
def test_tables_of_a_run(tmp_path, capsys):
    arguments = ["--cases=minDCF", "--trials=40", f"--output={tmp_path}"]
    assert scoring.main(arguments) == 0
    table = (tmp_path / "table.md").read_text()
    assert table == capsys.readouterr().out
    assert "| minDCF | ours | 40 |" in table
    results = json.loads((tmp_path / "results.json").read_text())
    theirs, ours = results["rows"]
    assert theirs["implementation"] == scoring.SPEECHBRAIN
    assert ours["implementation"] == scoring.OURS
    assert ours["agrees"] is True
    for row in (theirs, ours):
        assert row["problem"] is None
        assert 0 < row["seconds"] < math.inf
        assert 0 <= row["mebibytes"] < math.inf
    assert len(list(tmp_path.iterdir())) == 2


def test_both_normalizations_agree():
    embeddings, cohort, rows = scoring.generated_trials(8)
    ours = scoring.normalized(embeddings, cohort, *rows)
    direct = scoring.normalized_directly(embeddings, cohort, *rows)
    torch.testing.assert_close(ours, direct, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_stopped_at_the_limit():
    # A thousand times longer than the limit.
    stuck = job("EER", scoring.SPEECHBRAIN, 200_000, limit=0.05)
    assert scoring.run_child(stuck) == {"problem": "stopped after 0.05 s"}


@pytest.mark.slow
def test_stopped_where_memory_ends(monkeypatch):
    # 10,000 scores beside 40,000 thresholds need 1.6 GB.
    monkeypatch.setattr(scoring, "available_memory", lambda: 2**28)
    large = job("minDCF", scoring.SPEECHBRAIN, 20_000)
    assert scoring.run_child(large) == {"problem": scoring.OUT_OF_MEMORY}


def compared(other, case="EER", implementation=scoring.SPEECHBRAIN, trials=40):
    ours = job(case, scoring.OURS, trials) | {
        "problem": None,
        "seconds": 2.0,
        "mebibytes": 10.0,
        "result": [0.5, 1.0],
    }
    other = job(case, implementation, trials, limit=600) | other
    return scoring.compare([other, ours])


def measured(**figures):
    figures = {"seconds": 8.0, "result": [0.5, 1.0]} | figures
    return {"problem": None, "mebibytes": 100.0} | figures


def test_ratios():
    _, ours = compared(measured())
    assert ours["speed_ratio"] == 4
    assert ours["memory_ratio"] == 0.1
    assert ours["agrees"] is True


@pytest.mark.parametrize(
    ("problem", "bound"),
    [
        ("stopped after 600 s", 300),
        (scoring.OUT_OF_MEMORY, None),
        ("ValueError: something", None),
    ],
)
def test_a_measurement_without_result_gives_at_most_a_bound(problem, bound):
    rows = compared({"problem": problem})
    assert rows[1]["speed_ratio_at_least"] == bound
    assert rows[1]["speed_ratio"] is rows[1]["memory_ratio"] is None
    _, other, ours = scoring.cells(rows)
    assert problem in other
    assert ("over 300.0" in ours) is (bound is not None)


def test_part_of_a_list_is_compared_per_trial_and_says_so():
    rows = compared(
        measured(),
        case="adaptive s-norm",
        implementation=scoring.DIRECT,
        trials=10 * scoring.O_TRIALS,
    )
    assert rows[1]["speed_ratio"] == pytest.approx(40)
    assert rows[1]["memory_ratio"] is None
    assert "8 (first 37,611 trials)" in scoring.cells(rows)[1]


def test_different_results_are_marked_and_fail(tmp_path, monkeypatch):
    rows = compared(measured(result=[0.5, 1.1]))
    assert rows[1]["agrees"] is False
    assert scoring.cells(rows)[2][-1].endswith(" !")
    threshold = iter([1.1, 1.0])
    monkeypatch.setattr(
        scoring,
        "run_child",
        lambda job: measured(result=[0.5, next(threshold)]),
    )
    arguments = ["--cases=EER", "--trials=40", f"--output={tmp_path}"]
    assert scoring.main(arguments) == 1


def test_own_failure_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(
        scoring, "run_child", lambda job: {"problem": "ValueError: something"}
    )
    arguments = ["--cases=EER", "--trials=40", f"--output={tmp_path}"]
    assert scoring.main(arguments) == 1
    assert "ValueError: something" in (tmp_path / "table.md").read_text()
