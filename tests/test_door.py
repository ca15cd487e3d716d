"""Whatever a model is kept as, one function loads it."""

import pytest
import torch

from redimnet2_lobes import LogMel, ReDimNet2, load
from redimnet2_lobes.onnx.encoder import OnnxEncoder
from redimnet2_lobes.onnx.export import export_onnx
from redimnet2_lobes.pretrained.model_folder import write_model_folder

STAGE = {"frequency_stride": 2, "time_stride": 2, "blocks": 1, "expansion": 1}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """One network in each form that lies on a disk."""
    folder = tmp_path_factory.mktemp("models")
    network = ReDimNet2(LogMel(), 4, [{**STAGE, "reduction": 18}]).eval()
    write_model_folder(folder / "trained" / "model", network, "A test")
    export_onnx(network, folder / "small.ONNX")
    return folder


@pytest.mark.parametrize("name", ["trained", "trained/model", "small.ONNX"])
def test_all_forms_give_the_same_embedding(models, name):
    wavs = torch.randn(2, 12000, generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor([1.0, 0.8])
    expected = load(models / "trained").encode_batch(wavs, lengths)
    encoder = load(models / name)
    assert isinstance(encoder, OnnxEncoder) == name.endswith("ONNX")
    found = encoder.encode_batch(wavs, lengths)
    assert found.shape == (2, 1, 192)
    assert torch.allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize(
    "name, message",
    [
        ("none", "no file or folder .*none$"),
        ("none.onnx", "none.onnx: no such file"),
        ("trained/model/embedding_model.ckpt", "is no folder"),
    ],
)
def test_what_is_no_model(models, name, message):
    with pytest.raises((ValueError, OSError), match=message) as error:
        load(models / name)
    assert "\n" not in str(error.value)


def test_variants_by_name():
    network = ReDimNet2.from_variant("b3", embedding_size=64)
    assert network.arguments()["base_channels"] == 24
    assert network.arguments()["embedding_size"] == 64
    with pytest.raises(ValueError, match="variant: no 'b7'; expected one of"):
        ReDimNet2.from_variant("b7")
