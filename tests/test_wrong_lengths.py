"""Waveforms and lengths of other shapes and units than SpeechBrain's."""

import re

import pytest
import torch
from conftest import relative_difference
from test_redimnet2 import build, speech

from redimnet2_lobes.models.redimnet2 import ReDimNet2
from redimnet2_lobes.onnx.encoder import OnnxEncoder
from redimnet2_lobes.onnx.export import export_onnx

WAVS = torch.stack([speech(16000), speech(16000, 1)])
LENGTHS = {
    "samples": torch.tensor([8000, 16000]),
    "seconds": torch.tensor([0.5, 1.25]),
    "per cent": torch.tensor([50.0, 100.0]),
    "zero": torch.tensor([0.0, 1.0]),
    "negative": torch.tensor([-0.5, 1.0]),
    "NaN": torch.tensor([torch.nan, 1.0]),
    "too few": torch.tensor([1.0]),
    "too many": torch.tensor([1.0, 0.5, 1.0]),
    "a scalar": torch.tensor(1.0),
    "a column": torch.tensor([[0.5], [1.0]]),
    "a row": torch.tensor([[0.5, 1.0]]),
    "a mask": torch.ones(2, 16000),
    "none": torch.ones(0),
}
SHAPES = [(2, 16000, 1), (2, 1, 16000), (0, 16000), (1, 2, 3, 16000), ()]


@pytest.fixture(scope="module", params=["torch", "onnx"])
def encode(request, tmp_path_factory):
    network = build()
    if request.param == "torch":
        return network
    path = tmp_path_factory.mktemp("onnx") / "small.onnx"
    export_onnx(network, path)
    return OnnxEncoder(path, threads=1).encode_batch


@pytest.mark.parametrize("kind", LENGTHS)
def test_lengths(encode, kind):
    with pytest.raises(ValueError, match="^wav_lens: expected") as caught:
        encode(WAVS, LENGTHS[kind])
    message = str(caught.value)
    assert message.endswith("divide samples by 16000") and "\n" not in message
    assert f"of shape {list(LENGTHS[kind].shape)};" in message


@pytest.mark.parametrize("shape", SHAPES)
def test_waveforms(encode, shape):
    expected = re.escape(f"of shape {list(shape)}")
    with pytest.raises(ValueError, match=f"^wavs: expected .* {expected}$"):
        encode(torch.zeros(shape))


def test_the_right_lengths_pass(encode):
    """In whatever type; the message says how to get there from samples."""
    with torch.no_grad():
        expected = encode(WAVS, torch.tensor([0.5, 1.0]))
        for samples in (torch.tensor([8000, 16000]), torch.tensor([8e3, 16e3])):
            found = encode(WAVS, samples / 16000)
            assert relative_difference(found, expected) < 1e-6
        whole = encode(WAVS, torch.tensor([1, 1]))
        assert torch.equal(whole, encode(WAVS))


def test_one_waveform_for_the_onnx_encoder(tmp_path):
    export_onnx(build(), tmp_path / "small.onnx")
    encode = OnnxEncoder(tmp_path / "small.onnx", threads=1).encode_batch
    assert torch.equal(encode(WAVS[0]), encode(WAVS[:1]))


def test_tracing_is_refused():
    """What is traced gives wrong embeddings for other lengths."""
    network = ReDimNet2.from_variant("b0").eval()
    with pytest.raises(ValueError, match="redimnet2 export or torch.compile"):
        torch.jit.trace(network, speech(8000)[None])


@pytest.mark.parametrize("wrap", [lambda each: each, torch.nn.Sequential])
def test_scripting_is_refused(wrap):
    """It ends in a page of code, and a second try in another one."""
    network = wrap(build())
    for _ in range(2):
        with pytest.raises(ValueError, match="redimnet2 export or torch.comp"):
            torch.jit.script(network)
