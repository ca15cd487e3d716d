"""Weights in either format, and what is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import relative_difference
from safetensors.torch import load_file, save_file
from speechbrain.inference.classifiers import EncoderClassifier

import redimnet2_lobes
from redimnet2_lobes.cli import main
from redimnet2_lobes.models.front_end import LogMel
from redimnet2_lobes.models.redimnet2 import ReDimNet2
from redimnet2_lobes.pretrained.loading import (
    find_model,
    load_model,
    read_tensors,
)
from redimnet2_lobes.pretrained.model_folder import write_model_folder
from redimnet2_lobes.scoring.results import plain_cosine, read_results

STAGE = {"frequency_stride": 2, "time_stride": 2, "reduction": 8}
WAVEFORMS = torch.randn(2, 16000, generator=torch.Generator().manual_seed(1))


def network(**changes):
    stage = {**STAGE, "blocks": 1, "expansion": 1}
    return ReDimNet2(LogMel(), 4, [stage], **changes)


@pytest.fixture
def trained():
    torch.manual_seed(0)
    return network().eval()


@pytest.fixture
def folder(trained, tmp_path):
    write_model_folder(
        tmp_path / "model",
        trained,
        "A test",
        class_weights=torch.arange(384.0).reshape(2, 192),
        speakers=["anna", "bert"],
    )
    return tmp_path / "model"


@pytest.mark.parametrize("removed", [None, "*.ckpt", "*.safetensors"])
def test_either_format_will_do(removed, folder, trained, tmp_path):
    for file in folder.glob(removed or "no such file"):
        if file.stem != "label_encoder":
            file.unlink()
    for options in ({}, {"savedir": tmp_path / "collected"}):
        encoder = EncoderClassifier.from_hparams(source=folder, **options)
        embeddings = encoder.encode_batch(WAVEFORMS)
        with torch.no_grad():
            expected = trained(WAVEFORMS)
        assert relative_difference(embeddings, expected) < 1e-6
        weights = encoder.mods.classifier.weight.flatten()
        assert torch.equal(weights, torch.arange(384.0))


def test_both_files_hold_the_same(folder, trained):
    for name, expected in (
        ("embedding_model", trained.state_dict()),
        ("classifier", {"weight": torch.arange(384.0).reshape(2, 192)}),
    ):
        for extension in ("ckpt", "safetensors"):
            tensors = read_tensors(folder / f"{name}.{extension}")
            assert tensors.keys() == expected.keys()
            for key, tensor in tensors.items():
                assert torch.equal(tensor, expected[key])
                assert tensor.dtype == expected[key].dtype


def truncate(file):
    file.write_bytes(file.read_bytes()[:2000])


def replace_by_another_variant(file):
    tensors = network(out_channels=8).state_dict()
    save_file({k: v.contiguous() for k, v in tensors.items()}, file)


def drop_a_tensor(file):
    tensors = load_file(file)
    del tensors["projection.bias"]
    save_file(tensors, file)


def write_text(file):
    file.write_text("no weights")


def make_infinite(file):
    tensors = load_file(file)
    tensors["projection.bias"][3] = -torch.inf
    save_file(tensors, file)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (make_infinite, "projection.bias holds values that are not finite"),
        (truncate, "safetensors is not a file of weights, or it is damaged"),
        (write_text, "safetensors is not a file of weights, or it is damaged"),
        (replace_by_another_variant, "head.bias is surplus .and 1 more"),
        (drop_a_tensor, "does not fit its hyp.*: projection.bias is missing"),
    ],
)
def test_damaged_weights_are_an_error_in_one_line(damage, message, folder):
    damage(folder / "embedding_model.safetensors")
    with pytest.raises(ValueError, match=rf"^[^\n]*{message}[^\n]*\Z"):
        load_model(folder)
    # The other way in tells the same.
    with pytest.raises(ValueError, match=message):
        EncoderClassifier.from_hparams(source=folder)


SPEECH_RECOGNITION = """\
encoder: !new:torch.nn.Linear {in_features: 1, out_features: 1}
modules: {encoder: !ref <encoder>}
pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer {}
"""
SHIPPED = Path(__file__).parent.parent / "hparams"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"modules: [", "is damaged, for it is no YAML"),
        (b"a: 1\na: 2", "is damaged, for it is no YAML"),
        (b"a: \x01", "is damaged, for it is no YAML"),
        (b"\xff\xfe", "is damaged, for it is no YAML"),
        (b"", "is damaged, for it has no keys"),
        (b"only text", "is damaged, for it has no keys"),
        (b"[1, 2]", "is damaged, for it has no keys"),
        (b"variant: b0", "has no pretrainer, so it is of something else"),
        (SHIPPED / "verification_redimnet2.yaml", "has no pretrainer"),
        (b"pretrainer: !new:no.such.Class", "no.such.Class"),
        (b"pretrainer: null\nmodules: {}", "has no pretrainer"),
    ],
)
def test_other_hyperparams(content, message, folder):
    if isinstance(content, Path):
        content = content.read_bytes()
    (folder / "hyperparams.yaml").write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        load_model(folder)
    line = str(caught.value)
    assert line.startswith(f"the model folder {folder} cannot be loaded (")
    assert "\n" not in line


def test_a_model_of_another_kind(folder):
    (folder / "hyperparams.yaml").write_text(SPEECH_RECOGNITION)
    with pytest.raises(ValueError, match=f"^{folder}: .*no speaker encoder"):
        load_model(folder)


def test_a_training_that_has_not_ended(tmp_path):
    shutil.copy(
        SHIPPED / "demo_redimnet2_b0.yaml", tmp_path / "hyperparams.yaml"
    )
    expected = f"^{tmp_path}: the training in .* not ended.* same command$"
    for load in (
        load_model,
        redimnet2_lobes.load,
        redimnet2_lobes.SpeakerRecognition.from_hparams,
    ):
        with pytest.raises(ValueError, match=expected):
            load(tmp_path)
    with pytest.raises(SystemExit, match="has not ended.* same command$"):
        main(["export", str(tmp_path), f"--output={tmp_path / 'a.onnx'}"])
    with pytest.raises(SystemExit, match="has not ended.* same command$"):
        main(["push", str(tmp_path), "user/name", "--dry_run"])


def test_the_output_folder_of_a_training_will_do(folder, tmp_path):
    (tmp_path / "hyperparams.yaml").write_text("seed: 1")
    assert load_model(tmp_path).hparams.variant is None
    shutil.rmtree(folder)
    folder.mkdir()
    with pytest.raises(ValueError, match="model has no hyperparams.yaml"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    "source", ["nothing", "no/such/folder", "../name", "user/..", "a/b..c", ""]
)
def test_what_is_no_model(source):
    with pytest.raises(ValueError, match=rf"^no file or folder {source}$"):
        load_model(source)


RESULTS = {
    "checkpoint": "model",
    "seconds_used": None,
    "crops": None,
    "results": [
        {
            "list": "veri_test2",
            "back_end": back_end,
            "trials": 10,
            "eer_percent": 1.0,
            "eer_threshold": 0.3,
            "min_dcf_0.01": 0.1,
        }
        for back_end in ("cosine", "cosine, s-norm", "PLDA")
    ],
}


def test_results(tmp_path):
    (tmp_path / "results.json").write_text(json.dumps(RESULTS))
    results = read_results(tmp_path / "results.json")
    assert results == RESULTS
    assert plain_cosine(results) == RESULTS["results"][:1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "no JSON"),
        ("[]", "no JSON object"),
        (json.dumps({**RESULTS, "results": []}), "no list with entries"),
        (json.dumps({**RESULTS, "results": [1]}), "results.list is None"),
        (
            json.dumps(RESULTS).replace("0.3", '"high"'),
            "results.eer_threshold is 'high'",
        ),
        (json.dumps(RESULTS).replace("crops", "cuts"), "crops is missing"),
    ],
)
def test_results_that_are_none(content, message, tmp_path):
    path = tmp_path / "results.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=rf"^{path}: not the .*{message}"):
        read_results(path)


@pytest.mark.parametrize("beside", ["nothing", "folder", "file", "others"])
def test_hub_names_whatever_lies_beside(beside, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if beside == "file":
        (tmp_path / "user").write_text("notes")
    elif beside != "nothing":
        (tmp_path / "user").mkdir()
    if beside == "others":
        (tmp_path / "user" / "name2").mkdir()
        (tmp_path / "name").mkdir()
    assert find_model("user/name") == "user/name"
    for path in ("./user/name", "user/name/", "~/user/name", "user//name"):
        with pytest.raises(ValueError, match=f"^no file or folder {path}$"):
            find_model(path)
    for path in (f"{tmp_path}/user/name", "user/name/model", "name3"):
        with pytest.raises(ValueError, match=f"^no file or folder {path}$"):
            find_model(path)


def test_what_exists_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "user" / "name"
    folder.mkdir(parents=True)
    either = "; for the model of this name on the hub, rename it or run .*er$"
    with pytest.raises(ValueError, match=f"^user/name has no hyp.*{either}"):
        find_model("user/name")
    with pytest.raises(ValueError, match="so it is no model folder$"):
        find_model("./user/name")
    (folder / "hyperparams.yaml").write_text("variant: b0")
    assert find_model("user/name") == "user/name"
    (folder / "model").mkdir()
    (folder / "model" / "hyperparams.yaml").write_text("variant: b0")
    assert find_model("user/name") == "user/name/model"


@pytest.mark.parametrize("kind", ["file", "broken link"])
def test_what_exists_and_is_no_folder(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "user").mkdir()
    path = tmp_path / "user" / "name"
    if kind == "file":
        path.write_text("notes")
    else:
        path.symlink_to("nowhere")
    with pytest.raises(ValueError, match="^user/name is no folder; for the mo"):
        find_model("user/name")
    with pytest.raises(ValueError, match="^./user/name is no folder$"):
        find_model("./user/name")
