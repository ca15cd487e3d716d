"""Our models in the CASE Benchmark, on a small one in its layout."""

import doctest
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from case_benchmark import BenchmarkResults, CASEBenchmark
from case_benchmark.metrics import compute_eer
from case_benchmark.utils import load_trials
from synthetic_voices import synthetic_utterance

from redimnet2_lobes import ReDimNet2, load
from redimnet2_lobes.data.audio import AudioError, load_waveform
from redimnet2_lobes.integrations import case_benchmark as integration
from redimnet2_lobes.integrations.case_benchmark import (
    SpeakerEncoder,
    evaluate,
)
from redimnet2_lobes.onnx.export import export_onnx
from redimnet2_lobes.pretrained.model_folder import write_model_folder
from redimnet2_lobes.scoring.metrics import EER, minDCF

PROTOCOLS = ["clean_clean", "clean_codec_ulaw"]


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """One network as a model folder and as a .onnx file."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(1)
    network = ReDimNet2.from_variant("b0").eval()
    write_model_folder(folder / "b0", network, "A test")
    export_onnx(network, folder / "b0.onnx")
    return folder


@pytest.fixture(scope="session")
def benchmark(tmp_path_factory):
    """Four voices of three utterances, clean and cut to eight bits."""
    folder = tmp_path_factory.mktemp("benchmark")
    names = []
    for speaker in range(4):
        for number in range(3):
            name = f"{speaker}/{number}.wav"
            names.append(name)
            seconds = 1 + 0.3 * number  # so that batches have padding
            waveform = synthetic_utterance(speaker, number, seconds)
            for condition, subtype in (
                ("clean", "FLOAT"),
                ("codec/ulaw", "ULAW"),
            ):
                path = folder / "voxceleb1_o" / condition / name
                path.parent.mkdir(parents=True, exist_ok=True)
                soundfile.write(path, waveform, 16000, subtype)
    trials = folder / "trials"
    trials.mkdir()
    for protocol, condition in zip(
        PROTOCOLS, ["clean", "codec/ulaw"], strict=True
    ):
        (trials / f"{protocol}.txt").write_text(
            "".join(
                f"{int(one[0] == other[0])} voxceleb1_o/clean/{one} "
                f"voxceleb1_o/{condition}/{other}\n"
                for one in names
                for other in names
                if one < other
            )
        )
    return folder


@pytest.fixture(scope="session")
def results(models, benchmark):
    return evaluate(SpeakerEncoder(models / "b0"), benchmark)


def test_the_examples_run(request):
    done = doctest.testmod(
        integration, extraglobs={"getfixture": request.getfixturevalue}
    )
    assert done.attempted and not done.failed


@pytest.mark.parametrize("name", ["b0", "b0.onnx"])
def test_embeddings_are_ours(name, models, benchmark):
    path = benchmark / "voxceleb1_o/clean/2/1.wav"
    model = SpeakerEncoder(models / name)
    assert not model.is_loaded
    model.load()
    found = model.extract_embedding(path)
    assert isinstance(found, np.ndarray) and found.dtype == np.float32
    assert found.shape == (model.embedding_dim,) == (192,)
    waveform = load_waveform(path)
    expected = load(models / name).encode_batch(waveform.unsqueeze(0))
    np.testing.assert_allclose(found, expected.flatten(), rtol=0, atol=1e-5)
    # Beside others of other lengths in one batch.
    batched = SpeakerEncoder(models / name)
    batched.load()
    batched.embed((benchmark / "voxceleb1_o/clean").rglob("*.wav"))
    np.testing.assert_allclose(
        batched.extract_embedding(path), found, rtol=0, atol=1e-4
    )


def our_scores(model, benchmark, protocol):
    enrolments, tests, labels = load_trials(
        benchmark / "trials" / f"{protocol}.txt"
    )
    encoder = load(model)

    def unit(name):
        waveform = load_waveform(benchmark / name)
        embedding = encoder.encode_batch(waveform.unsqueeze(0)).flatten()
        return torch.nn.functional.normalize(embedding, dim=0)

    embeddings = {name: unit(name) for name in {*enrolments, *tests}}
    scores = torch.stack(
        [
            embeddings[one] @ embeddings[other]
            for one, other in zip(enrolments, tests, strict=True)
        ]
    )
    same = torch.from_numpy(labels) == 1
    return scores[same], scores[~same]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_its_figures_are_ours(protocol, results, models, benchmark):
    positive, negative = our_scores(models / "b0", benchmark, protocol)
    found = results.protocol_results[protocol]
    assert found.num_trials == len(positive) + len(negative) == 66
    cost, _ = minDCF(positive, negative)
    assert found.min_dcf == pytest.approx(cost / 0.01, abs=1e-6)
    labels = np.repeat([1, 0], [len(positive), len(negative)])
    scores = torch.cat([positive, negative]).numpy()
    assert found.eer == pytest.approx(compute_eer(scores, labels)[0], abs=1e-6)
    # It draws a line between two points; ours is the mean at the closest.
    rate, _ = EER(positive, negative)
    assert found.eer == pytest.approx(rate, abs=1 / len(positive))


def test_it_scores_what_it_scores_without_batches(results, models, benchmark):
    model = SpeakerEncoder(models / "b0")
    alone = CASEBenchmark(benchmark).evaluate(model, show_progress=False)
    for protocol in PROTOCOLS:
        ours, its = (
            each.protocol_results[protocol] for each in (results, alone)
        )
        assert ours.eer == pytest.approx(its.eer, abs=1e-6)
        assert ours.min_dcf == pytest.approx(its.min_dcf, abs=1e-6)


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", integration.__name__, *map(str, arguments)],
        capture_output=True,
        text=True,
    )


def test_the_command(results, models, benchmark, tmp_path):
    path = tmp_path / "results.json"
    done = run(models / "b0", benchmark, path, "clean_codec_ulaw")
    assert done.returncode == 0, done.stderr
    assert "CASE-Score" in done.stdout
    kept = BenchmarkResults.load(path)
    assert list(kept.protocol_results) == ["clean_codec_ulaw"]
    assert (
        kept.protocol_results["clean_codec_ulaw"].eer
        == results.protocol_results["clean_codec_ulaw"].eer
    )
    assert json.loads(path.read_text())["model_name"] == str(models / "b0")
    done = run(models / "b0", benchmark, path, "clean_gsm")
    assert done.returncode == 1 and not done.stdout
    assert done.stderr.startswith("error: clean_gsm: no protocol of ")
    assert done.stderr.count("\n") == 1
    done = run(models / "b0", benchmark)
    assert done.stderr.startswith("error: expected MODEL BENCHMARK RESULTS")


def test_the_code_of_the_page(models, benchmark, results, capsys):
    page = Path(__file__).parents[3] / "docs" / "case_benchmark.md"
    (code,) = re.findall(
        r"^```python\n(.*?)^```", page.read_text("utf-8"), re.M | re.S
    )
    for name, ours in (
        ('"b3-vox2-lm"', f'"{models / "b0"}"'),
        ('"benchmark"', f'"{benchmark}"'),
        ("clean_reverb", "clean_codec_ulaw"),
    ):
        assert name in code
        code = code.replace(name, ours)
    exec(code, {})
    expected = results.protocol_results["clean_codec_ulaw"].eer
    assert capsys.readouterr().out.endswith(f"\n{expected}\n")


@pytest.fixture
def copy(benchmark, tmp_path):
    return shutil.copytree(benchmark, tmp_path / "copy")


def test_a_file_it_would_leave_out_is_named(models, copy):
    file = copy / "voxceleb1_o/codec/ulaw/1/1.wav"
    file.unlink()
    model = SpeakerEncoder(models / "b0")
    its = CASEBenchmark(copy).evaluate(model, show_progress=False)
    assert its.protocol_results["clean_codec_ulaw"].num_trials < 66
    with pytest.raises(AudioError, match="ulaw/1/1.wav: missing"):
        evaluate(model, copy)
    file.write_bytes(b"RIFF")
    with pytest.raises(AudioError, match="ulaw/1/1.wav: unreadable"):
        evaluate(model, copy)
    assert evaluate(model, copy, ["clean_clean"]).protocol_results


def test_without_trials(models, copy):
    model = SpeakerEncoder(models / "b0")
    (copy / "trials" / "clean_clean.txt").write_text("not a trial\n")
    with pytest.raises(ValueError, match="clean_clean.txt: no trial; expected"):
        evaluate(model, copy)
    shutil.rmtree(copy / "trials")
    with pytest.raises(FileNotFoundError, match="Trials directory not found"):
        evaluate(model, copy)
    (copy / "trials").mkdir()
    with pytest.raises(ValueError, match="trials: no trial list"):
        evaluate(model, copy)
