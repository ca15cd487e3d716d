"""Published checkpoints to model folders and back, and what is refused."""

import json
import pickle
import subprocess
import sys
import zlib

import pytest
import torch
from conftest import ParityCase
from full_disk import full_disk
from speechbrain.inference.classifiers import EncoderClassifier
from speechbrain.inference.speaker import SpeakerRecognition

from redimnet2_lobes import cli
from redimnet2_lobes.models.front_end import (
    LogMel,
    TorchaudioLogMel,
    mel_triangles,
)
from redimnet2_lobes.models.redimnet2 import ReDimNet2
from redimnet2_lobes.pretrained.convert import convert, convert_back
from redimnet2_lobes.pretrained.loading import read_tensors
from redimnet2_lobes.pretrained.model_folder import write_model_folder
from redimnet2_lobes.pretrained.published_layout import (
    build_network,
    published_checkpoint,
    take_weights,
)


def front_end_constants():
    """What a published file with feat_type "tf" holds under spec."""
    window = LogMel().window.double()
    sample = torch.arange(400, dtype=torch.float64)
    turns = torch.arange(256, dtype=torch.float64).unsqueeze(1) * sample / 512
    kernel = torch.polar(window.expand(256, -1), 2 * torch.pi * turns)
    prefix = "spec.torchfbank."
    return {
        f"{prefix}1.flipped_filter": torch.tensor([[[-0.97, 1.0]]]),
        f"{prefix}2.real_kernel_pt": kernel.real.float().unsqueeze(1),
        f"{prefix}2.image_kernel_pt": kernel.imag.float().unsqueeze(1),
        f"{prefix}2.melbanks_pt": mel_triangles(72).T.unsqueeze(2),
    }


@pytest.fixture
def published(b0_case):
    checkpoint = b0_case.checkpoint()
    checkpoint["state_dict"].update(front_end_constants())
    return checkpoint


def main(arguments):
    """``redimnet2 convert``."""
    cli.main(["convert", *arguments])


def refuse(checkpoint, tmp_path, match):
    torch.save(checkpoint, tmp_path / "published.pt")
    with pytest.raises(ValueError, match=match) as error:
        convert(tmp_path / "published.pt", tmp_path / "model")
    assert "published.pt" in str(error.value)
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["published.pt"]


def test_command_line(published, b0_case, tmp_path):
    torch.save(published, tmp_path / "published.pt")
    model = tmp_path / "model"
    subprocess.run(
        [
            *(sys.executable, "-c"),
            "from redimnet2_lobes.cli import main; main()",
            "convert",
            tmp_path / "published.pt",
            "--output",
            model,
        ],
        check=True,
    )
    files = {path.name for path in model.iterdir()}
    assert files == {
        "README.md",
        "embedding_model.ckpt",
        "embedding_model.safetensors",
        "embedding_space.txt",
        "hyperparams.yaml",
    }
    weights = torch.load(model / "embedding_model.ckpt", weights_only=True)
    assert not [name for name in weights if name.startswith("front_end")]

    recognition = SpeakerRecognition.from_hparams(source=str(model))
    assert recognition.hparams.variant == "b0"
    waveform = b0_case.waveform(32000).unsqueeze(0)
    score, same = recognition.verify_batch(waveform, waveform)
    assert score.item() == pytest.approx(1, abs=1e-5)
    assert same.item()


def test_no_speaker_classes(published, tmp_path):
    torch.save(published, tmp_path / "published.pt")
    convert(tmp_path / "published.pt", tmp_path / "model")
    encoder = EncoderClassifier.from_hparams(source=str(tmp_path / "model"))
    with pytest.raises(ValueError, match="^this checkpoint has no speaker cla"):
        encoder.classify_batch(torch.randn(1, 16000))


def test_weights_only_files_without_constants_are_fine(b0_case, tmp_path):
    torch.save(b0_case.checkpoint(), tmp_path / "published.pt")
    convert(tmp_path / "published.pt", tmp_path / "model")
    assert (tmp_path / "model" / "hyperparams.yaml").exists()


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("block_1d_type", "fc", "model_config.block_1d_type: 'fc' is not supp"),
        ("causal", "full", "model_config.causal: 'full'"),
        ("emb_bn", True, "model_config.emb_bn: True"),
        ("hop_length", 80, "model_config.hop_length: 80"),
        ("group_divisor", 4, "model_config.group_divisor: 4"),
        ("feat_type", "pt_stft", "model_config.feat_type: 'pt_stft'"),
        ("subnet", 1, "model_config.subnet: unknown option"),
        ("F", "72", "model_config.F: unusable value '72'"),
        ("C", 0, "model_config.C: unusable value 0"),
        ("stages_setup", None, "model_config.stages_setup: unusable value"),
        ("spec_params", None, "model_config.spec_params: unusable value None"),
        ("embed_dim", "x", "model_config.embed_dim: unusable value 'x'"),
        ("out_channels", -1, "out_channels: -1 is not a positive integer"),
        ("agg_gnorm", "no", "model_config.agg_gnorm: unusable value 'no'"),
        ("stages_setup", [[1, 2]], r"model_config.stages_setup\[0\]: expected"),
        ("spec_params", {"norm_signal": False}, "spec_params.norm_signal"),
        (
            "spec_params",
            {"norm_signal": True, "do_preemph": False},
            "spec_params.do_preemph: False",
        ),
        (
            "spec_params",
            {"norm_signal": True, "do_spec_aug": True},
            "spec_params.do_spec_aug: True",
        ),
        (
            "spec_params",
            {"norm_signal": True, "dither": 1},
            "spec_params.dither: unknown option",
        ),
    ],
)
def test_unsupported_options(published, tmp_path, key, value, message):
    published["model_config"][key] = value
    refuse(published, tmp_path, message)


@pytest.mark.parametrize("key", ["C", "F", "stages_setup", "causal"])
def test_missing_option(published, tmp_path, key):
    del published["model_config"][key]
    refuse(published, tmp_path, f"model_config.{key}: ")


def test_missing_tensor(published, tmp_path):
    del published["state_dict"]["backbone.stage3.0.w"]
    refuse(published, tmp_path, "1 tensors are missing.*backbone.stage3.0.w")


def test_surplus_tensor(published, tmp_path):
    published["state_dict"]["backbone.stage9.0.w"] = torch.zeros(1)
    refuse(published, tmp_path, "1 tensors are not part.*backbone.stage9.0.w")


@pytest.mark.parametrize(
    "name", ["linear.weight", "bn.weight", "backbone.stage0.2.weight"]
)
def test_wrong_shape(published, tmp_path, name):
    tensor = published["state_dict"][name]
    published["state_dict"][name] = torch.cat([tensor, tensor])
    refuse(published, tmp_path, rf"{name}: shape \[")


def test_weights_that_are_not_finite(published, tmp_path):
    published["state_dict"]["linear.bias"][0] = torch.nan
    refuse(published, tmp_path, "linear.bias holds values that are not finite")


def test_not_a_tensor(published, tmp_path):
    published["state_dict"]["bn.weight"] = [1.0]
    refuse(published, tmp_path, "bn.weight is not a tensor")


def test_another_variants_weights(published, tmp_path):
    other = ParityCase("b1-vox2").checkpoint()["state_dict"]
    published["state_dict"] = other
    refuse(published, tmp_path, "tensors are missing")


@pytest.mark.parametrize(
    "name", ["2.melbanks_pt", "1.flipped_filter", "2.real_kernel_pt"]
)
def test_other_front_end_constants(published, tmp_path, name):
    published["state_dict"][f"spec.torchfbank.{name}"].mul_(1.01)
    refuse(published, tmp_path, f"spec.torchfbank.{name}: differs")


def test_missing_and_surplus_front_end_constants(published, tmp_path):
    constant = published["state_dict"].pop("spec.torchfbank.2.melbanks_pt")
    refuse(published, tmp_path, "2.melbanks_pt: missing")
    published["state_dict"]["spec.torchfbank.2.melbanks_pt"] = constant
    published["state_dict"]["spec.other"] = constant
    refuse(published, tmp_path, "spec.other: not one of this front-end")


@pytest.mark.parametrize(
    "content",
    [b"", b"no checkpoint at all", b"PK\x03\x04 cut short"],
    ids=["empty", "foreign", "truncated"],
)
def test_damaged_file(tmp_path, content):
    (tmp_path / "published.pt").write_bytes(content)
    with pytest.raises(ValueError, match="published.pt: not a complete check"):
        convert(tmp_path / "published.pt", tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_truncated_checkpoint(published, tmp_path):
    torch.save(published, tmp_path / "whole.pt")
    content = (tmp_path / "whole.pt").read_bytes()
    (tmp_path / "published.pt").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="published.pt: not a complete check"):
        convert(tmp_path / "published.pt", tmp_path / "model")


class RunsCode:
    """Creates a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("save", [torch.save, "pickle"])
def test_code_in_a_file_never_runs(published, tmp_path, save):
    published["extra"] = RunsCode(tmp_path / "code_ran")
    path = tmp_path / "published.pt"
    if save == "pickle":
        path.write_bytes(pickle.dumps({"extra": published["extra"]}))
    else:
        save(published, path)
    with pytest.raises(ValueError, match="tensors only"):
        convert(path, tmp_path / "model")
    assert [item.name for item in tmp_path.iterdir()] == ["published.pt"]


def test_other_dictionary(tmp_path):
    refuse({"weights": torch.zeros(1)}, tmp_path, "model_config and state_dict")


def test_existing_folder_is_not_overwritten(published, tmp_path):
    torch.save(published, tmp_path / "published.pt")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "precious.txt").write_text("keep")
    with pytest.raises(ValueError, match="exists already"):
        convert(tmp_path / "published.pt", tmp_path / "model")
    assert [path.name for path in (tmp_path / "model").iterdir()] == [
        "precious.txt"
    ]


@pytest.mark.parametrize("limit", [100, 1_000_000])
def test_a_full_disk_leaves_nothing(published, tmp_path, limit):
    torch.save(published, tmp_path / "published.pt")
    with full_disk(limit), pytest.raises(SystemExit) as end:
        main(
            [
                str(tmp_path / "published.pt"),
                "--output",
                str(tmp_path / "model"),
            ]
        )
    folder = tmp_path / "model"
    assert end.value.code == f"error: {folder}: File too large"
    assert [path.name for path in tmp_path.iterdir()] == ["published.pt"]


def test_damage_that_torch_does_not_see(published, tmp_path):
    path = tmp_path / "published.pt"
    torch.save(published, path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    torch.load(path, weights_only=True)
    with pytest.raises(ValueError, match="published.pt: not a complete check"):
        convert(path, tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["none.pt"], "none.pt: no such file, and no published checkpoint"),
        (["folder"], "folder: is a folder, not a checkpoint file; with --to"),
        (["file/in/none", "--to", "published"], "no file or folder file/in/"),
        (["folder", "--to", "published"], "folder has no hyperparams.yaml"),
    ],
)
def test_command_line_error_is_one_line(
    tmp_path, monkeypatch, arguments, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(SystemExit) as end:
        main([*arguments, "--output", "output"])
    assert end.value.code.startswith(f"error: {message}")
    assert "\n" not in end.value.code
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("arguments", [[], ["b0-vox2-lm"], ["--output", "a"]])
def test_source_and_output_are_needed(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert "SOURCE and --output are needed" in capsys.readouterr().err


def assert_same_tensors(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


def test_layout_back_and_forth(parity_case):
    checkpoint = parity_case.checkpoint()
    network = load(checkpoint)
    back = published_checkpoint(network)
    weights = {
        name: tensor
        for name, tensor in back["state_dict"].items()
        if not name.startswith("spec.")
    }
    assert_same_tensors(weights, checkpoint["state_dict"])
    assert all(x.is_contiguous() for x in back["state_dict"].values())
    # Kernel sizes are for other types of blocks.
    expected = json.loads(json.dumps(checkpoint["model_config"]))
    config = json.loads(json.dumps(back["model_config"]))
    for stage in expected["stages_setup"] + config["stages_setup"]:
        del stage[3]
    assert config | expected == config


def load(checkpoint):
    network = build_network(checkpoint["model_config"])
    take_weights(network, checkpoint["state_dict"])
    return network


@pytest.mark.parametrize(
    "front_end",
    [LogMel(), TorchaudioLogMel(), TorchaudioLogMel(normalize=True)],
)
def test_file_to_folder_to_file_to_folder(front_end, tmp_path):
    network = small_network(
        front_end, aggregation_norm=True, dual_aggregation=True
    )
    generator = torch.Generator().manual_seed(0)
    for tensor in network.state_dict().values():
        tensor.random_(generator=generator)
    torch.save(published_checkpoint(network), tmp_path / "first.pt")
    convert(tmp_path / "first.pt", tmp_path / "first")
    main(
        [str(tmp_path / "first"), "--to", "published"]
        + ["--output", str(tmp_path / "new" / "second.pt")]
    )
    convert(tmp_path / "new" / "second.pt", tmp_path / "second")

    first = torch.load(tmp_path / "first.pt", weights_only=True)
    second = torch.load(tmp_path / "new" / "second.pt", weights_only=True)
    assert first["model_config"] == second["model_config"]
    assert_same_tensors(second["state_dict"], first["state_dict"])
    for extension in ("ckpt", "safetensors"):
        assert_same_tensors(
            *(
                read_tensors(tmp_path / folder / f"embedding_model.{extension}")
                for folder in ("second", "first")
            )
        )
    texts = [
        (tmp_path / name / "hyperparams.yaml").read_text().splitlines()[1:]
        for name in ("first", "second")
    ]
    assert texts[0] == texts[1]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["second.pt"]


# CRC-32 of the constants that the published code builds, made by running it.
CONSTANTS = {
    LogMel: {
        "1.flipped_filter": 3439110235,
        "2.real_kernel_pt": 623578016,
        "2.image_kernel_pt": 2009036195,
        "2.melbanks_pt": 1541775146,
    },
    TorchaudioLogMel: {
        "1.flipped_filter": 3439110235,
        "2.spectrogram.window": 518644151,
        "2.mel_scale.fb": 2275832430,
    },
}


@pytest.mark.parametrize("front_end", CONSTANTS)
def test_constants_are_those_of_the_published_code(front_end):
    tensors = published_checkpoint(small_network(front_end()))["state_dict"]
    found = {
        name.removeprefix("spec.torchfbank."): zlib.crc32(tensor.numpy())
        for name, tensor in tensors.items()
        if name.startswith("spec.")
    }
    assert found == CONSTANTS[front_end]


def small_network(front_end, **options):
    stage = {"blocks": 1, "expansion": 1, "reduction": 8}
    stages = [{"frequency_stride": 2, "time_stride": 2, **stage}]
    return ReDimNet2(front_end, 4, stages, **options)


@pytest.fixture
def trained(tmp_path):
    """A model folder as training writes it."""
    write_model_folder(
        tmp_path / "trained",
        small_network(LogMel()),
        "A test",
        class_weights=torch.zeros(2, 192),
        speakers=["anna", "bert"],
    )
    return tmp_path / "trained"


def test_trained_folder_to_published(trained, tmp_path):
    convert_back(trained, tmp_path / "published.pt")
    content = torch.load(tmp_path / "published.pt", weights_only=True)
    held = sum(x.nbytes for x in content["state_dict"].values())
    assert (tmp_path / "published.pt").stat().st_size < held + 100_000
    convert(tmp_path / "published.pt", tmp_path / "again")
    name = "embedding_model.safetensors"
    assert_same_tensors(
        read_tensors(tmp_path / "again" / name), read_tensors(trained / name)
    )


def test_existing_file_is_not_overwritten(trained, tmp_path):
    (tmp_path / "published.pt").write_text("keep")
    with pytest.raises(ValueError, match="published.pt exists already"):
        convert_back(trained, tmp_path / "published.pt")
    assert (tmp_path / "published.pt").read_text() == "keep"


def test_a_full_disk_leaves_no_file(trained, tmp_path):
    with full_disk(100_000), pytest.raises(OSError, match="File too large"):
        convert_back(trained, tmp_path / "published.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["trained"]


def test_other_models_have_no_published_form(trained, tmp_path):
    path = trained / "hyperparams.yaml"
    text = path.read_text()
    start = text.index("embedding_model:")
    end = text.index("# The network holds")
    path.write_text(
        text[:start]
        + "embedding_model: !new:torch.nn.Identity\n\n"
        + text[end:]
    )
    (trained / "embedding_space.txt").unlink()
    for file in trained.glob("embedding_model.*"):
        file.unlink()
    torch.save({}, trained / "embedding_model.ckpt")
    with pytest.raises(
        ValueError, match="trained: holds an? Identity, not a Re"
    ):
        convert_back(trained, tmp_path / "published.pt")
    assert not (tmp_path / "published.pt").exists()
