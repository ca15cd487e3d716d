"""Exported files in ONNX Runtime's OpenVINO execution provider, on the CPU."""

import onnxruntime
import pytest
import soundfile
import torch
from conftest import ParityCase, relative_difference
from test_parity import build
from test_redimnet2 import PADDINGS, pad, speech

from redimnet2_lobes import cli, load
from redimnet2_lobes.inference.encode import encode_utterances
from redimnet2_lobes.onnx.encoder import OnnxEncoder
from redimnet2_lobes.onnx.export import export_onnx

SIZES = [400, 9000, 32000, 71234]
SECONDS = 2


@pytest.fixture(scope="module")
def network():
    return build(ParityCase("b0-vox2"))


@pytest.fixture(scope="module")
def exported(network, tmp_path_factory):
    """A file of each form."""
    folder = tmp_path_factory.mktemp("export")
    for target in ("onnx", "plain", "fixed"):
        seconds = SECONDS if target == "fixed" else None
        path = folder / f"{target}.onnx"
        export_onnx(network, path, target=target, seconds=seconds)
    return folder


def test_the_provider_is_there():
    assert "OpenVINOExecutionProvider" in onnxruntime.get_available_providers()


@torch.no_grad()
@pytest.mark.parametrize("threads", [1, 2])
def test_plain(threads, network, exported):
    encoder = OnnxEncoder(exported / "plain.onnx", threads, "openvino")
    batch, lengths = pad(
        [speech(size, i) for i, size in enumerate(SIZES)], PADDINGS["NaN"]
    )
    found = encoder.encode_batch(batch, lengths)
    difference = relative_difference(found, network(batch, lengths))
    assert found.shape == (4, 1, 192) and difference < 1e-3


@torch.no_grad()
def test_fixed(network, exported):
    encoder = load(exported / "fixed.onnx", {"device": "openvino:CPU"})
    batch = torch.stack([speech(16000 * SECONDS, i) for i in range(3)])
    found = encoder.encode_batch(batch)
    difference = relative_difference(found, network(batch))
    assert difference < 1e-3
    with pytest.raises(ValueError, match="takes utterances of 32000 samples"):
        encoder.encode_batch(batch[:, 1:])


def test_the_form_with_loops_is_refused(exported):
    with pytest.raises(ValueError, match="^device 'openvino': .*--for=plain"):
        OnnxEncoder(exported / "onnx.onnx", provider="openvino")


def test_a_device_that_is_not_there(exported):
    """ONNX Runtime would go on with its CPU provider."""
    with pytest.raises(ValueError, match="^device 'openvino:GPU.7': ") as e:
        OnnxEncoder(exported / "plain.onnx", provider="openvino:GPU.7")
    assert "\n" not in str(e.value)


def test_a_cache_that_would_not_be_read_is_refused(exported, tmp_path):
    """OpenVINO writes that of its CPU device anew each time."""
    cache = tmp_path / "cache"
    with pytest.raises(ValueError, match="^engine_cache: .* has no use for it"):
        OnnxEncoder(exported / "fixed.onnx", 1, "openvino", cache)
    assert not cache.exists()


@pytest.mark.parametrize("form", ["plain", "fixed"])
def test_bad_waveforms(form, exported):
    encoder = OnnxEncoder(exported / f"{form}.onnx", 1, "openvino")
    batch = torch.stack([speech(16000 * SECONDS, i) for i in range(2)])
    for bad in (torch.nan, torch.inf):
        spoilt = batch.clone()
        spoilt[1, 300] = bad
        with pytest.raises(ValueError, match=r"^wavs\[1\]: not finite"):
            encoder.encode_batch(spoilt)
    with pytest.raises(ValueError, match="has 399 samples"):
        encoder.encode_batch(torch.zeros(1, 399))


def test_the_command(network, exported, tmp_path, capsys):
    paths = [tmp_path / f"{i}.wav" for i in range(2)]
    for i, path in enumerate(paths):
        soundfile.write(path, speech(30000, i).numpy(), 16000)
    expected = encode_utterances(network, paths)
    first, second = (expected[path] for path in paths)
    cosine = torch.cosine_similarity(first, second, dim=0).item()
    cli.main(
        [
            *("verify", *map(str, paths), "--no_vad", "--threads=1"),
            "--device=openvino",
            f"--model={exported / 'plain.onnx'}",
        ]
    )
    score = float(capsys.readouterr().out.split()[1])
    assert score == pytest.approx(cosine, abs=1e-3)
