"""``SpeakerRecognition``: thresholds, paths, and which file is at fault."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from file_server import serve_files
from hub_server import serve_hub
from huggingface_hub import constants
from speechbrain.inference import speaker
from speechbrain.utils.fetching import FetchConfig, FetchFrom, FetchSource

from redimnet2_lobes import SpeakerRecognition
from redimnet2_lobes.data.audio import AudioError
from redimnet2_lobes.models.front_end import LogMel
from redimnet2_lobes.models.redimnet2 import ReDimNet2
from redimnet2_lobes.pretrained.model_folder import write_model_folder

STAGE = {"frequency_stride": 2, "time_stride": 2, "blocks": 1, "expansion": 1}
ROW = {
    "list": "O",
    "trials": 10,
    "eer_percent": 1.0,
    "min_dcf_0.01": 0.1,
}
KEPT = {"checkpoint": "a", "seconds_used": None, "crops": None}


def results(*rows):
    return json.dumps(
        {
            **KEPT,
            "results": [
                {**ROW, "back_end": back_end, "eer_threshold": threshold}
                for back_end, threshold in rows
            ],
        }
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("trained") / "model"
    write_model_folder(
        folder,
        ReDimNet2(LogMel(), 4, [{**STAGE, "reduction": 8}]).eval(),
        "A test",
        class_weights=torch.randn(2, 192),
        speakers=["anna", "bert"],
    )
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return SpeakerRecognition.from_hparams(source=folder)


@pytest.fixture(scope="module")
def audio(tmp_path_factory):
    """Two recordings of one name, at other rates and with other channels."""
    folder = tmp_path_factory.mktemp("audio")
    random = np.random.default_rng(1)
    for name, shape, rate in (("a", 9000, 8000), ("b", (24000, 2), 16000)):
        (folder / name).mkdir()
        wav = random.uniform(-0.5, 0.5, shape).cumsum(0) / 50
        soundfile.write(folder / name / "1.wav", wav, rate)
    return folder


@pytest.fixture(scope="module")
def expected(folder, audio):
    """The score that SpeechBrain's class gives to those."""
    theirs = speaker.SpeakerRecognition.from_hparams(source=folder)
    pair = (str(audio / name / "1.wav") for name in ("a", "b"))
    score, _ = theirs.verify_files(*pair)
    assert score.item() < 0.995
    return score


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with serve_hub() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(
            constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            server.address + "/{repo_id}/resolve/{revision}/{filename}",
        )
        yield server


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("kind", [str, Path])
@pytest.mark.parametrize("savedir", [None, "kept"])
def test_files_of_one_name(
    kind, savedir, model, audio, expected, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    options = {} if savedir is None else {"savedir": kind(savedir)}
    a, b = (kind(audio / name / "1.wav") for name in ("a", "b"))
    for _ in range(2):
        score, same = model.verify_files(a, b, **options)
        assert torch.allclose(score, expected, atol=1e-5)
        assert score.shape == same.shape == (1,) and same.dtype == torch.bool
        for path in (a, b):
            wav = model.load_audio(path, **options)
            classified = model.classify_file(path, **options)
            found = model.classify_batch(wav.unsqueeze(0))
            assert torch.allclose(classified[0], found[0], atol=1e-5)
    assert list(tmp_path.iterdir()) == []


def test_files_of_the_working_folder(model, audio, expected, monkeypatch):
    monkeypatch.chdir(audio / "a")
    for path in ("1.wav", "./1.wav", Path("1.wav"), "../a/1.wav"):
        score, _ = model.verify_files(path, "../b/1.wav")
        assert torch.allclose(score, expected, atol=1e-5)
    # What is here comes before what could be there.
    monkeypatch.chdir(audio.parent)
    score, _ = model.verify_files(
        f"{audio.name}/a/1.wav", Path(audio.name, "b", "1.wav")
    )
    assert torch.allclose(score, expected, atol=1e-5)


def test_thresholds(model, audio, expected):
    pair = [audio / name / "1.wav" for name in ("a", "b")]
    wavs = [model.load_audio(path).unsqueeze(0) for path in pair]
    value = expected.item()
    for threshold in (value - 0.003, value + 0.003, np.float32(value - 0.003)):
        same = value > threshold
        assert model.verify_files(*pair, threshold=threshold)[1].item() == same
        _, found = model.verify_batch(*wavs, threshold=threshold)
        assert found.shape == (1, 1) and found.item() == same
    for lowest in (-1, 1):
        _, found = model.verify_files(*pair, threshold=lowest)
        assert found.item() == (lowest == -1)


@pytest.mark.parametrize("threshold", [float("nan"), 2, -1.5, "high", "inf"])
def test_what_is_no_threshold(threshold, model, audio):
    path = audio / "a" / "1.wav"
    with pytest.raises(ValueError, match="threshold|could not convert"):
        model.verify_files(path, path, threshold=threshold)


@pytest.mark.parametrize("same", [False, True])
def test_the_operating_point_decides(same, folder, audio, expected, tmp_path):
    value = expected.item()
    below, above = value - 0.003, value + 0.003
    kept = below if same else above
    here = tmp_path / "model"
    here.mkdir()
    for name, data in content(folder).items():
        (here / name).write_bytes(data)
    rows = results(("cosine, s-norm", 3.0), ("cosine", kept), ("cosine", 0.1))
    (here / "results.json").write_text(rows)
    pair = [audio / name / "1.wav" for name in ("a", "b")]
    for source in (here, tmp_path):  # the output folder of a training, too
        model = SpeakerRecognition.from_hparams(source=source)
        assert model.operating_point.value == kept
        assert "on O, 10 trials" in model.operating_point.origin
        assert model.verify_files(*pair)[1].item() == same
        wavs = [model.load_audio(path).unsqueeze(0) for path in pair]
        assert model.verify_batch(*wavs)[1].item() == same
        # One that is given comes first.
        given = above if same else below
        assert model.verify_files(*pair, threshold=given)[1].item() != same


@pytest.mark.parametrize("rows", [None, [("PLDA", 3.0)]])
def test_without_an_operating_point(rows, folder, tmp_path):
    for name, data in content(folder).items():
        (tmp_path / name).write_bytes(data)
    if rows is not None:
        (tmp_path / "results.json").write_text(results(*rows))
    model = SpeakerRecognition.from_hparams(source=str(tmp_path))
    assert model.operating_point.value == 0.25
    assert "SpeechBrain" in model.operating_point.origin
    # Orthogonal but for the cosine wanted.
    for cosine in (0.2, 0.3):
        pair = torch.tensor([[1.0, 0.0], [cosine, (1 - cosine**2) ** 0.5]])
        model.encode_batch = lambda wavs, *_, **__: wavs.unsqueeze(1)
        _, same = model.verify_batch(pair[:1], pair[1:])
        assert same.item() == (cosine > 0.25)


def test_damaged_results(folder, tmp_path):
    for name, data in content(folder).items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(ValueError, match="results.json: not the results"):
        SpeakerRecognition.from_hparams(source=tmp_path)


def bad_files(folder):
    soundfile.write(folder / "silent.wav", np.zeros(16000), 16000)
    soundfile.write(folder / "short.wav", np.ones(100), 16000)
    soundfile.write(folder / "none.wav", np.ones(0), 16000)
    nan = np.full(16000, np.nan)
    soundfile.write(folder / "nan.wav", nan, 16000, subtype="FLOAT")
    (folder / "empty.wav").touch()
    (folder / "text.wav").write_text("no audio")
    (folder / "folder.wav").mkdir()
    (folder / "broken.wav").symlink_to("nowhere")
    return [*(path.name for path in folder.iterdir()), "missing.wav"]


def test_what_is_no_audio_is_named(model, audio, tmp_path, monkeypatch):
    good = audio / "a" / "1.wav"
    names = bad_files(tmp_path)
    assert len(names) == 9
    monkeypatch.chdir(tmp_path)
    for name in names:
        for bad in (tmp_path / name, str(tmp_path / name), name, f"x/{name}"):
            for call in (
                lambda: model.load_audio(bad),  # noqa: B023
                lambda: model.classify_file(bad),  # noqa: B023
                lambda: model.verify_files(bad, good),  # noqa: B023
                lambda: model.verify_files(good, bad),  # noqa: B023
            ):
                with pytest.raises(AudioError) as error:
                    call()
                assert str(error.value).startswith(f"{bad}: ")
                assert "\n" not in str(error.value)


@pytest.mark.parametrize("keep", [False, True])
def test_audio_from_the_web(keep, model, audio, expected, tmp_path):
    files = {
        f"{name}/1.wav": (audio / name / "1.wav").read_bytes()
        for name in ("a", "b")
    }
    options = {"savedir": tmp_path / "kept"} if keep else {}
    with serve_files({**files, "c/1.wav": b"no audio"}) as server:
        a, b, c, d = (f"{server.address}/{name}/1.wav" for name in "abcd")
        for _ in range(2):
            score, _ = model.verify_files(a, b, **options)
            assert torch.allclose(score, expected, atol=1e-5)
        score, _ = model.verify_files(
            FetchSource(FetchFrom.URI, a), audio / "b" / "1.wav", **options
        )
        assert torch.allclose(score, expected, atol=1e-5)
        with pytest.raises(AudioError, match=f"^{c}: unreadable; "):
            model.verify_files(a, c, **options)
        with pytest.raises(AudioError, match=f"^{d}: missing; .* be fetched"):
            model.verify_files(a, d, **options)


@pytest.mark.parametrize("keep", [False, True])
def test_audio_from_the_hub(keep, hub, model, audio, expected, tmp_path):
    for name in ("a", "b"):
        data = (audio / name / "1.wav").read_bytes()
        hub.repositories[f"user/{name}"] = {"main": {"1.wav": data}}
        hub.private[f"user/{name}"] = False
    options = {"savedir": tmp_path / "kept"} if keep else {}
    for _ in range(2):
        score, _ = model.verify_files("user/a/1.wav", "user/b/1.wav", **options)
        assert torch.allclose(score, expected, atol=1e-5)
    said = FetchSource(FetchFrom.HUGGING_FACE, "user/a/1.wav")
    score, _ = model.verify_files(said, "user/b/1.wav", **options)
    assert torch.allclose(score, expected, atol=1e-5)
    for path in ("user/a/2.wav", "user/c/1.wav"):
        with pytest.raises(AudioError, match=f"^{path}: missing; ") as error:
            model.load_audio(path, **options)
        assert "\n" not in str(error.value)


def test_only_names_of_the_hub_are_asked_for(hub, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "anna").mkdir(parents=True)
    for path in ("1.wav", "a/1.wav", "data/anna/1.wav", "a/b/c/1.wav"):
        with pytest.raises(AudioError, match="^[^:]+: missing; check the path"):
            model.load_audio(path)
    assert [each for each in hub.requests if "resolve" in each] == []


def test_models_of_the_hub(hub, folder, audio, tmp_path, capsys):
    main = {
        **content(folder),
        "results.json": results(("cosine", 0.5)).encode(),
    }
    second = {**main, "results.json": results(("cosine", 0.6)).encode()}
    third = content(folder)
    branches = {"main": main, "second": second, "third": third}
    hub.repositories["user/name"] = branches
    hub.private["user/name"] = False
    for revision, threshold in ((None, 0.5), ("second", 0.6), ("third", 0.25)):
        for savedir in (None, tmp_path / "kept"):
            model = SpeakerRecognition.from_hparams(
                source="user/name",
                savedir=savedir,
                fetch_config=FetchConfig(revision=revision),
                run_opts={"device": "cpu"},
            )
            assert model.operating_point.value == threshold
            assert model.device == "cpu"
    offline = FetchConfig(allow_network=False)
    for savedir in (None, tmp_path / "kept2"):
        model = SpeakerRecognition.from_hparams(
            source="user/name", savedir=savedir, fetch_config=offline
        )
        assert model.operating_point.value == 0.5
    assert capsys.readouterr().err == ""


def test_options_of_speechbrain(folder):
    model = SpeakerRecognition.from_hparams(
        source=folder,
        overrides={"sample_rate": 8000},
        freeze_params=False,
    )
    assert model.hparams.sample_rate == 8000
    assert any(weight.requires_grad for weight in model.mods.parameters())
    nothing = SpeakerRecognition.from_hparams(source=folder, download_only=True)
    assert nothing is None
    (folder / "other.yaml").write_bytes(
        (folder / "hyperparams.yaml").read_bytes()
    )
    for source in (folder, FetchSource(FetchFrom.LOCAL, str(folder))):
        model = SpeakerRecognition.from_hparams(source, "other.yaml")
        assert model.operating_point.value == 0.25


@pytest.mark.parametrize("source", ["none", "no/such/folder", Path("none")])
def test_what_is_no_model(source):
    with pytest.raises(ValueError, match="^no file or folder no"):
        SpeakerRecognition.from_hparams(source=source)
