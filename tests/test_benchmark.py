"""The benchmark's tables, figures and picture; no figure is judged."""

import json
import math

import benchmark
import learning
import pytest
import torch

from redimnet2_lobes.recipe.hparams import build_hparam


@pytest.mark.slow
def test_without_the_published_code(tmp_path, monkeypatch, capfd):
    monkeypatch.delenv(benchmark.PUBLISHED_VARIABLE, raising=False)
    arguments = ["--cases=file", "--variants=b0", "--repeats=1", "--threads=1"]
    assert benchmark.main([*arguments, f"--output={tmp_path}"]) == 0
    output = capfd.readouterr().out
    assert (tmp_path / "table.txt").read_text() == output
    assert "| b0 | ours |" in (tmp_path / "table.md").read_text()
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["peak_operations_per_second"]["float32"] > 0
    ours, torch_only, ecapa = results["cases"][0]["rows"]
    assert (ours["variant"], ours["implementation"]) == ("b0", "ours")
    assert torch_only["implementation"] == "ours, torch"
    assert (ecapa["variant"], ecapa["implementation"]) == (None, "ECAPA-TDNN")
    for row in (ours, ecapa):
        assert len(row["samples_s"]) == 1
        for key in ("median_s", "real_time_factor", "peak_memory_mib"):
            assert 0 < row[key] < math.inf
    assert 0 < ours["share_of_peak"] < math.inf
    assert ours["speed_ratio"] is None
    picture = (tmp_path / "benchmark.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.slow
def test_beside_busy_processes(tmp_path, monkeypatch, capfd):
    monkeypatch.delenv(benchmark.PUBLISHED_VARIABLE, raising=False)
    monkeypatch.setattr(benchmark, "PROCESSES_ALONE", 1)
    monkeypatch.setattr(benchmark, "PROCESSES_BESIDE", 2)
    arguments = ["--cases=busy", "--variants=b0", f"--output={tmp_path}"]
    assert benchmark.main(arguments) == 0
    assert "worst / alone" in capfd.readouterr().out
    results = json.loads((tmp_path / "results.json").read_text())
    ours, torch_only = results["cases"][0]["rows"]
    assert ours["implementation"] == "ours"
    assert torch_only["implementation"] == "ours, torch"
    for row in (ours, torch_only):
        assert len(row["busy_samples_s"]) == 2
        assert row["worst_s"] == max(row["busy_samples_s"]) > 0
        assert row["worst_ratio"] == row["worst_s"] / row["median_s"]


def test_wrong_checkout(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(benchmark.PUBLISHED_VARIABLE, str(tmp_path))
    assert benchmark.main([f"--output={tmp_path / 'results'}"]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("error: REDIMNET2_PUBLISHED ")
    assert output.err.count("\n") == 1
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("system", learning.NAMES)
def test_every_encoder_fits_the_demo_s_recipe(system, tmp_path):
    path = tmp_path / "hparams.yaml"
    learning.write_hparams(system, path)
    encoder = build_hparam(path, "embedding_model").eval()
    classifier = build_hparam(path, "classifier")(out_neurons=3)
    wavs, wav_lens = torch.randn(2, 8000), torch.ones(2)
    with torch.no_grad():
        assert classifier(encoder(wavs, wav_lens)).shape == (2, 1, 3)


def test_the_table_of_learning():
    runs = [
        {
            "parameters": 1000,
            "steps": 10,
            "untrained": 20.0,
            "trained": eer,
        }
        for eer in (8.0, 9.0)
    ]
    row = learning.table({"b0": runs}, {"b0": 9.0}).splitlines()[-1]
    assert row == (
        "| ReDimNet2-B0 | 1,000 | 10 | 1.5 | 20.00, 20.00 | 8.00, 9.00 | 8.50 |"
    )
