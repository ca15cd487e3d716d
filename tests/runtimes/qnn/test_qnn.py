"""ONNX Runtime's QNN execution provider where there is no such processor.

It registers, says that it has a device and is in the list of a session's
providers, whatever happens then.
"""

import onnxruntime
import pytest
import torch
from conftest import ParityCase, relative_difference
from test_parity import build
from test_redimnet2 import speech

from redimnet2_lobes.onnx.encoder import OnnxEncoder
from redimnet2_lobes.onnx.export import export_onnx


@pytest.fixture(scope="module")
def network():
    return build(ParityCase("b0-vox2"))


@pytest.fixture(scope="module")
def path(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "fixed.onnx"
    export_onnx(network, path, target="fixed", seconds=1)
    return path


def test_the_cpu_does_not_take_its_place(path):
    """Without a word, ONNX Runtime would leave all of the graph to the CPU."""
    with pytest.raises(
        ValueError, match="^device 'qnn:gpu': takes 0 of .* above"
    ):
        OnnxEncoder(path, provider="qnn:gpu")
    assert "QNNExecutionProvider" in onnxruntime.get_available_providers()


@pytest.mark.parametrize("device", ["qnn", "qnn:htp", "qnn:abacus"])
def test_what_cannot_be_set_up_is_one_line(device, path):
    for _ in range(2):  # the plug-in is loaded once
        with pytest.raises(
            ValueError, match=f"^device {device!r}: cannot be used here"
        ) as caught:
            OnnxEncoder(path, provider=device)
        assert "\n" not in str(caught.value)


@torch.no_grad()
def test_the_cpu_is_as_before(network, path):
    waveform = speech(16000).unsqueeze(0)
    found = OnnxEncoder(path).encode_batch(waveform)
    assert relative_difference(found, network(waveform)) < 2e-5
