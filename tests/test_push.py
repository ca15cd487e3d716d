"""Pushing to a hub on this machine, by the real client, and loading from it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import relative_difference
from hub_server import TOKEN, commit_of, serve_hub
from huggingface_hub import ModelCard, SpaceCard, constants

from redimnet2_lobes import cli
from redimnet2_lobes.models.folding import fold
from redimnet2_lobes.models.front_end import LogMel
from redimnet2_lobes.models.redimnet2 import ReDimNet2
from redimnet2_lobes.onnx.encoder import OnnxEncoder
from redimnet2_lobes.onnx.export import export_onnx
from redimnet2_lobes.pretrained.loading import load_model
from redimnet2_lobes.pretrained.model_folder import write_model_folder

NAME = "user/redimnet2-test"
STAGE = {"frequency_stride": 2, "time_stride": 2, "reduction": 8}
RESULTS = {
    "checkpoint": "results/of/anna/redimnet2",
    "seconds_used": None,
    "crops": None,
    "results": [
        {
            "list": "veri_test2",
            "back_end": "cosine",
            "trials": 37611,
            "eer_percent": 1.25,
            "eer_threshold": 0.31,
            "min_dcf_0.01": 0.123,
        }
    ],
}
SPACE = f"spaces/{NAME}"
WEB = Path(__file__).parent.parent / "web"
RUNTIME_FILES = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
UPLOADED = {
    "README.md",
    "classifier.ckpt",
    "classifier.safetensors",
    "config.json",
    "embedding_model.ckpt",
    "embedding_model.safetensors",
    "embedding_space.txt",
    "hyperparams.yaml",
    "label_encoder.ckpt",
    "redimnet2_lobes.py",
}


def main(arguments):
    """``redimnet2 push``."""
    cli.main(["push", *arguments])


@pytest.fixture
def network():
    torch.manual_seed(0)
    stage = {**STAGE, "blocks": 1, "expansion": 2}
    return ReDimNet2(LogMel(), 4, [stage], aggregation_norm=True).eval()


@pytest.fixture
def folder(network, tmp_path):
    folder = tmp_path / "model"
    write_model_folder(
        folder,
        network,
        "A test",
        class_weights=torch.randn(2, 192),
        speakers=["anna", "bert"],
    )
    return folder


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with serve_hub() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        # The newer way of upload has no server but the hub's own.
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        # The client waits between its attempts.
        monkeypatch.setattr("time.sleep", lambda seconds: None)
        yield server


def push(*arguments):
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    message = end.value.code
    assert message.startswith("error: ") and "\n" not in message
    return message


LOAD = """
import sys, torch
source, output, way = sys.argv[1:]
if way == "alone":
    # A machine with SpeechBrain, and nothing that we need beyond it.
    import importlib.util, os
    sys.meta_path[:] = [
        finder for finder in sys.meta_path
        if "editable" not in getattr(finder, "__module__", "")
        and "editable" not in getattr(finder, "__name__", "").lower()
    ]
    sys.path[:] = [
        path for path in sys.path
        if not os.path.isdir(os.path.join(path or ".", "redimnet2_lobes"))
    ]
    for name in ("safetensors", "onnx", "onnxruntime", "kaldiio", "pyarrow"):
        sys.modules[name] = None
    assert importlib.util.find_spec("redimnet2_lobes") is None
if way == "package":
    from redimnet2_lobes import SpeakerRecognition
    model = SpeakerRecognition.from_hparams(source=source)
else:
    from speechbrain.inference.interfaces import foreign_class
    model = foreign_class(
        source=source,
        pymodule_file="redimnet2_lobes.py",
        classname="SpeakerRecognition",
    )
module = type(model).__module__
assert module == "redimnet2_lobes.pretrained.speaker_recognition", module
is_installed = getattr(sys.modules[module], "__file__", None) is not None
assert is_installed == (way != "alone")
assert model.operating_point.value == 0.31
try:
    model.verify_files("a.wav", "a.wav", threshold=0.5)
except ValueError as error:
    assert str(error) == "a.wav: missing; check the path", error
else:
    raise AssertionError
wavs = torch.randn(2, 24000, generator=torch.Generator().manual_seed(1))
embeddings = model.encode_batch(wavs, torch.tensor([1.0, 0.5]))
torch.save(embeddings, output)


"""


@pytest.mark.parametrize("beside", ["folder", "file"])
def test_loading_beside_what_has_the_name_of_the_user(
    beside, hub, folder, network, tmp_path, monkeypatch
):
    main([str(folder), NAME])
    working_folder = tmp_path / "work"
    (working_folder / ("user" if beside == "folder" else ".")).mkdir(
        parents=True
    )
    if beside == "file":
        (working_folder / "user").write_text("notes")
    monkeypatch.chdir(working_folder)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        hub.address + "/{repo_id}/resolve/{revision}/{filename}",
    )
    loaded = load_model(NAME, {"device": "cpu"}).mods.embedding_model
    for name, tensor in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    assert load_model(str(folder)).mods.classifier.weight.shape == (2, 192)
    with pytest.raises(ValueError, match="user/none is no file or folder, and"):
        load_model("user/none")


@pytest.fixture
def runtime(tmp_path):
    """As much of the npm package onnxruntime-web as a Space takes."""
    folder = tmp_path / "node_modules" / "onnxruntime-web"
    (folder / "dist").mkdir(parents=True)
    (folder / "package.json").write_text('{"version": "1.30.0"}')
    for name in RUNTIME_FILES:
        (folder / "dist" / name).write_text(name)
    return folder


def test_a_space_beside_the_model(hub, folder, network, runtime, capsys):
    (folder / "results.json").write_text(json.dumps(RESULTS))
    arguments = [str(folder), NAME, "--space", f"--onnxruntime_web={runtime}"]
    main([*arguments, "--private", "--license=mit", "--revision=second"])
    assert capsys.readouterr().out.splitlines() == [
        f"{hub.address}/{name}/commit/{commit_of(hub.repositories[name][at])}"
        for name, at in ((NAME, "second"), (SPACE, "main"))
    ]
    assert hub.commits == 2 and hub.private[SPACE]
    space = hub.repositories[SPACE]["main"]
    own = {
        name: path.read_bytes()
        for name in json.loads((WEB / "files.json").read_text())
        if (path := WEB / name).parent == WEB
    }
    libraries = {
        f"node_modules/onnxruntime-web/dist/{name}": name.encode()
        for name in RUNTIME_FILES
    }
    assert space == {
        **{name: space[name] for name in ("README.md", "model.onnx")},
        **{"files.json": (WEB / "files.json").read_bytes()},
        **own,
        **libraries,
    }
    card = SpaceCard(space["README.md"].decode())
    assert card.data.sdk == "static" and card.data.license == "mit"
    assert card.data.models == [NAME]
    path = runtime / "model.onnx"
    path.write_bytes(space["model.onnx"])
    encoder = OnnxEncoder(path)
    assert encoder.operating_point.value == 0.31
    assert encoder.operating_point.origin.endswith("veri_test2, 37,611 trials")
    wavs = torch.randn(2, 24000, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = network(wavs, torch.ones(2))
    assert relative_difference(encoder.encode_batch(wavs), expected) < 1e-4
    main(arguments)  # again, to what is there
    assert hub.commits == 4


def test_a_dry_run_lists_the_space(hub, folder, runtime, capsys):
    web = f"--onnxruntime_web={runtime}"
    main([str(folder), NAME, "--space", web, "--dry_run"])
    listing = capsys.readouterr().out.split(f"Space {NAME}:\n\n")[1]
    listed = listing.split("\n\n")[0].splitlines()
    names = {line.split()[-1] for line in listed}
    assert {"README.md", "index.html", "model.onnx"} <= names
    assert hub.requests == []


@pytest.mark.parametrize("fault", ["none", "another", "incomplete"])
def test_a_space_needs_the_runtime_that_was_tested(fault, hub, folder, runtime):
    if fault == "none":
        runtime = folder / "nowhere"
    elif fault == "another":
        (runtime / "package.json").write_text('{"version": "1.29.0"}')
    else:
        (runtime / "dist" / RUNTIME_FILES[1]).unlink()
    error = push(folder, NAME, "--space", f"--onnxruntime_web={runtime}")
    assert f"{runtime}: no onnxruntime-web 1.30.0; get it by npm" in error
    assert hub.requests == []


def test_the_runtime_is_for_a_space(folder):
    with pytest.raises(SystemExit) as end:
        main([str(folder), NAME, "--onnxruntime_web=somewhere"])
    assert end.value.code == 2


def test_a_space_is_refused(hub, folder, runtime):
    hub.faults = {"/api/spaces": [500] * 100}
    error = push(folder, NAME, "--space", f"--onnxruntime_web={runtime}")
    assert error.startswith(f"error: space {NAME}: the hub refused it")


@pytest.mark.parametrize("way", ["package", "package and file", "alone"])
def test_what_is_pushed_loads(way, hub, folder, network, tmp_path, capsys):
    (folder / "results.json").write_text(json.dumps(RESULTS))
    main([str(folder), NAME])
    assert capsys.readouterr().out.startswith(f"{hub.address}/{NAME}/commit/")
    assert hub.commits == 1 and not hub.private[NAME]
    pushed = hub.repositories[NAME]["main"].keys()
    assert pushed == {*UPLOADED, "results.json"}
    output = tmp_path / "embeddings.pt"
    subprocess.run(
        [sys.executable, "-c", LOAD, NAME, output, way],
        check=True,
        cwd=tmp_path,
        env={
            **os.environ,
            "HF_ENDPOINT": hub.address,
            "HF_HOME": str(tmp_path / "home"),
            "PYTHONPATH": "",
        },
    )
    wavs = torch.randn(2, 24000, generator=torch.Generator().manual_seed(1))
    if way == "alone":  # where torch computes, not ONNX Runtime
        network = fold(network)
    with torch.no_grad():
        expected = network(wavs, torch.tensor([1.0, 0.5]))
    embeddings = torch.load(output, weights_only=True)
    assert relative_difference(embeddings, expected) < 1e-6
    assert any("resolve" in request for request in hub.requests)


def test_private_branch_and_second_push(hub, folder):
    main([str(folder), NAME, "--private", "--revision=second"])
    assert hub.private[NAME]
    assert hub.repositories[NAME]["main"] == {}
    assert hub.repositories[NAME]["second"].keys() == UPLOADED
    extra = folder / "extra.onnx"
    export_onnx(load_model(folder).mods.embedding_model, extra)
    main([str(folder), NAME, "--revision=second"])
    assert hub.commits == 2
    pushed = hub.repositories[NAME]["second"]["extra.onnx"]
    assert pushed == extra.read_bytes()
    extra.write_bytes(b"graph")
    assert "extra.onnx: not an ONNX file" in push(folder, NAME)


def test_results_and_what_stays_at_home(hub, folder, capsys):
    (folder / "results.json").write_text(json.dumps(RESULTS))
    (folder / "log.txt").write_text("from home")
    (folder / ".token").write_text(TOKEN)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    main([str(folder), NAME])
    pushed = hub.repositories[NAME]["main"]
    assert pushed.keys() == {*UPLOADED, "results.json"}
    results = json.loads(pushed["results.json"])
    assert results == {**RESULTS, "checkpoint": NAME}
    out, err = capsys.readouterr()
    left_out = [line for line in err.splitlines() if "left out" in line]
    assert left_out == ["left out: .token", "left out: log.txt"]
    for content in [*pushed.values(), out.encode(), err.encode()]:
        assert TOKEN.encode() not in content
        assert str(folder).encode() not in content
        assert b"anna/redimnet2" not in content
    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert after == before


def test_the_card(folder, tmp_path, capsys):
    results = tmp_path / "results.json"
    results.write_text(json.dumps({**RESULTS, "seconds_used": 8.0}))
    main(
        [
            *(str(folder), NAME, f"--results={results}", "--dry_run"),
            *("--license=mit", "--training_data=VoxCeleb2, dev"),
            *("--dataset", "ProgramComputer/voxceleb"),
        ]
    )
    out = capsys.readouterr().out
    listing, text = out.split("README.md:\n\n")
    listed = {line.split()[-1] for line in listing.splitlines() if line}
    assert listed == {*UPLOADED, "results.json"}
    card = ModelCard(text)
    data = card.data.to_dict()
    assert data["library_name"] == "speechbrain"
    assert data["license"] == "mit"
    assert data["datasets"] == ["ProgramComputer/voxceleb"]
    assert {"speechbrain", "speaker-verification"} <= set(data["tags"])
    (index,) = data["model-index"]
    (result,) = index["results"]
    (metric,) = result["metrics"]
    assert metric["value"] == 1.25
    for line in (
        "| training data | VoxCeleb2, dev |",
        "| speaker classes | 2 |",
        "| veri_test2 | cosine | 1.250 | 0.1230 | 37,611 | 0.3100 |",
        f'model = SpeakerRecognition.from_hparams(source="{NAME}")',
        f"redimnet2 verify a.wav b.wav --model={NAME}",
        "the threshold 0.3100 (that of the EER on veri_test2, 37,611 trials, ",
    ):
        assert line in card.text
    assert "of each utterance its first 8 s was embedded. min" in card.text


def test_the_card_has_intervals(folder, tmp_path, capsys):
    (row,) = RESULTS["results"]
    row = {
        **row,
        "speakers": 40,
        "eer_percent_interval": [0.75, 2],
        "min_dcf_0.01_interval": None,
    }
    content = {**RESULTS, "bootstrap_resamples": 1000, "results": [row]}
    results = tmp_path / "results.json"
    results.write_text(json.dumps(content))
    main([str(folder), NAME, f"--results={results}", "--dry_run"])
    text = capsys.readouterr().out
    assert "| cosine | 1.250 [0.750, 2.000] | 0.1230 | 37,611 |" in text
    assert "Intervals: 95 %, 1,000 resamples over 40 speakers." in text


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("eer_percent_interval", [1.0]),
        ("cllr_interval", 0.5),
        ("min_dcf_0.05_interval", ["0", "1"]),
        ("eer_percent_interval", [float("nan"), 1.0]),
        ("eer_percent_interval", [0.5, float("inf")]),
        ("eer_percent_interval", [False, True]),
        ("eer_percent_interval", [2.0, 1.0]),
        ("speakers", "40"),
    ],
)
def test_damaged_intervals_are_refused(key, value, folder, tmp_path):
    row = {**RESULTS["results"][0], key: value}
    results = tmp_path / "results.json"
    results.write_text(json.dumps({**RESULTS, "results": [row]}))
    problem = re.escape(f"results.{key} is {value!r}")
    with pytest.raises(SystemExit, match=problem):
        main([str(folder), NAME, f"--results={results}", "--dry_run"])


def test_the_card_names_the_precision(folder, tmp_path, capsys):
    results = tmp_path / "results.json"
    results.write_text(json.dumps({**RESULTS, "eval_precision": "bf16"}))
    main([str(folder), NAME, f"--results={results}", "--dry_run"])
    text = capsys.readouterr().out
    assert "of each utterance all of it was embedded, in bf16. min" in text


def test_a_card_without_results_claims_none(folder, capsys):
    main([str(folder), NAME, "--dry_run"])
    text = capsys.readouterr().out
    assert "Not evaluated." in text
    assert "by\nSpeechBrain's default threshold, 0.25;" in text
    for word in ("model-index", "EER", "VoxCeleb"):
        assert word not in text


def test_a_dry_run_asks_nobody(hub, folder):
    main([str(folder), NAME, "--dry_run"])
    assert hub.requests == []


@pytest.mark.parametrize(
    ("part", "status", "message"),
    [
        ("repos/create", 401, "HTTP 401.*hf auth login.*HF_TOKEN"),
        ("repos/create", 403, "HTTP 403.*may not write there"),
        ("preupload", 404, "HTTP 404.*check the name"),
        ("commit", 409, "HTTP 409.*changed at the same time"),
        ("repos/create", 429, "HTTP 429.*wait some minutes"),
        ("preupload", 429, "HTTP 429.*wait some minutes"),
        ("objects/batch", 503, "HTTP 503.*again later"),
        ("commit", 500, "HTTP 500.*again later"),
        ("storage", 500, "HTTP 500.*again later"),
        ("commit", "cut", "cannot be reached or broke off"),
        ("storage", "cut", "cannot be reached or broke off"),
        ("repos/create", "cut", "cannot be reached or broke off"),
        ("commit", 418, "HTTP 418.*it says"),
    ],
)
def test_the_hub_refuses(part, status, message, hub, folder, capsys):
    hub.faults = {part: [status] * 100}
    if part == "repos/create" and status in (401, 403):
        hub.faults["/api/models"] = [status] * 100
    error = push(folder, NAME)
    assert error.startswith(f"error: {NAME}: ")
    assert re.search(message, error)
    assert hub.commits == 0
    out, err = capsys.readouterr()
    for text in (error, out, err):
        assert TOKEN not in text
        assert "Traceback" not in text


@pytest.mark.parametrize("fault", [429, 500, 503])
def test_the_client_tries_again(fault, hub, folder):
    hub.faults = {"preupload": [fault], "storage": [fault]}
    main([str(folder), NAME])
    assert hub.commits == 1
    assert hub.repositories[NAME]["main"].keys() == UPLOADED


def test_a_wrong_token(hub, folder, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    error = push(folder, NAME)
    assert "HTTP 401" in error and "hf_another" not in error


def test_no_token(hub, folder, monkeypatch):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert "hf auth login" in push(folder, NAME)
    assert hub.requests == []


def test_no_hub_at_all(folder, hub, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "cannot be reached" in push(folder, NAME)


@pytest.mark.parametrize(
    "name", ["name", "user/../name", "../name", "a/b/c", "user/na me", ""]
)
def test_what_is_no_name(name, hub, folder):
    assert push(folder, name).endswith("not a name USER/NAME on the hub")
    assert hub.requests == []


def truncate(folder):
    file = folder / "embedding_model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])


def remove_weights(folder):
    for file in folder.glob("embedding_model.*"):
        file.unlink()


def foreign_results(folder):
    (folder / "results.json").write_text('{"eer": 1}')


def remove_all(folder):
    for file in folder.iterdir():
        file.unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, "it is damaged"),
        (remove_weights, "embedding_model.ckpt"),
        (foreign_results, "results.json: not the results"),
        (remove_all, "no hyperparams.yaml"),
    ],
)
def test_a_folder_that_does_not_load_is_not_pushed(
    damage, message, hub, folder
):
    damage(folder)
    assert message in push(folder, NAME)
    assert hub.requests == []


def test_no_results(hub, folder):
    line = push(folder, NAME, "--results=nosuch.json")
    assert line == "error: nosuch.json: No such file or directory"
    assert hub.requests == []


def test_no_folder(hub, tmp_path):
    assert push(tmp_path / "none", NAME).endswith("none: no such folder")
    assert push("user/name", NAME) == "error: user/name: no such folder"
