"""The demo on synthetic voices, as ``make demo`` runs it on real ones."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from speechbrain.inference.classifiers import EncoderClassifier

DEMO = Path(__file__).parent.parent / "recipes/VoxCeleb/SpeakerRec/demo.py"


@pytest.mark.slow
def test_demo(tmp_path):
    process = subprocess.run(
        [sys.executable, DEMO, "demo", "--synthetic", "--number_of_epochs=1"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert process.returncode == 0, process.stderr
    assert "SYNTHETIC" in process.stdout
    # Two pairs of one speaker and one of two.
    kinds = re.findall(r"# (same speaker|different speakers)", process.stdout)
    assert kinds == ["same speaker", "same speaker", "different speakers"]
    assert "that of the EER on veri_test2" in process.stdout
    before, after = re.findall(
        r"EER (?:before|after) training +([\d.]+) \[[\d., ]+\] %",
        process.stdout,
    )
    assert 0 < float(before) < 50 and 0 < float(after) < 50
    folder = tmp_path / "demo"
    for name in (
        "trained/training_curves.png",
        "verification/results.json",
        "verification/veri_test2/det.png",
        "verification/veri_test2/cosine_histogram.png",
        "verification/veri_test2/cosine_scores.txt",
    ):
        assert (folder / name).stat().st_size > 0
    encoder = EncoderClassifier.from_hparams(
        source=str(folder / "trained" / "model")
    )
    speakers = encoder.hparams.label_encoder.lab2ind
    assert len(speakers) == 45
