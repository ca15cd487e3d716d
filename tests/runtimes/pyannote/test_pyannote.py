"""Our embeddings in pyannote.audio, with its own segmentation weights."""

import contextlib
import doctest
import importlib.util
import io
import re
import subprocess
from pathlib import Path

import numpy as np
import pyannote.audio
import pytest
import torch
from hub_server import TOKEN, serve_hub
from huggingface_hub import constants
from pyannote.audio.pipelines import SpeakerDiarization
from pyannote.audio.pipelines.speaker_verification import (
    PretrainedSpeakerEmbedding,
    SpeakerEmbedding,
)
from pyannote.core import Segment, Timeline
from pyannote.database.util import load_rttm
from pyannote.metrics.diarization import DiarizationErrorRate
from segmentation import load_segmentation

from redimnet2_lobes import ReDimNet2, load
from redimnet2_lobes.data.audio import load_waveform
from redimnet2_lobes.integrations import pyannote as integration
from redimnet2_lobes.integrations.pyannote import NoPlda, SpeakerEncoder
from redimnet2_lobes.onnx.export import export_onnx
from redimnet2_lobes.pretrained.model_folder import write_model_folder
from redimnet2_lobes.voices.diarization import Turn, to_rttm

PAGE = Path(__file__).parents[3] / "docs" / "pyannote.md"
PYANNOTE = Path(pyannote.audio.__file__).parent
DEVICES = ["cpu", *["cuda"] * torch.cuda.is_available()]


@pytest.fixture(scope="session", autouse=True)
def no_network():
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("PYANNOTE_METRICS_ENABLED", "0")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        yield


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """One network as a model folder and as .onnx files."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(1)
    network = ReDimNet2.from_variant("b0").eval()
    write_model_folder(folder / "speechbrain-b0", network, "A test")
    export_onnx(network, folder / "b0.onnx")
    export_onnx(network, folder / "fixed.onnx", target="fixed", seconds=6)
    return folder


@pytest.fixture(scope="session")
def encoder(models):
    return SpeakerEncoder(models / "speechbrain-b0").eval()


@pytest.fixture(scope="session")
def recording():
    """30 s of a real conversation, which pyannote.audio brings [time]."""
    return load_waveform(PYANNOTE / "sample" / "sample.wav")


@pytest.fixture(scope="session")
def speech(recording):
    """Three parts of it [batch, 1, time]."""
    return recording[7 * 16000 : 28 * 16000].reshape(3, 1, -1)


@pytest.fixture(scope="session")
def masks():
    """Masks at the frame rate of the segmentation [batch, frames]."""
    masks = torch.zeros(3, 412)
    masks[0, 10:200] = 1
    masks[1, 100:150] = masks[1, 300:330] = 1
    masks[2, ::2] = 0.6
    masks[2, 1::2] = 0.5
    return masks


def selected(waveform, mask):
    """The samples of one waveform in the frames of a mask, as pyannote does."""
    size = len(waveform)
    frames = torch.nn.functional.interpolate(mask[None, None], size)
    return waveform[frames[0, 0] > 0.5]


def test_the_examples_run(request):
    done = doctest.testmod(
        integration, extraglobs={"getfixture": request.getfixturevalue}
    )
    assert done.attempted and not done.failed


@pytest.mark.parametrize("name", ["speechbrain-b0", "b0.onnx"])
def test_a_mask_selects_as_if_embedded_alone(name, models, speech, masks):
    model = load(models / name)
    with torch.inference_mode():
        found = SpeakerEncoder(models / name)(speech, weights=masks)
    for row, waveform, mask in zip(found, speech[:, 0], masks, strict=True):
        alone = selected(waveform, mask)
        expected = model.encode_batch(alone.unsqueeze(0)).flatten()
        assert torch.allclose(row, expected, rtol=0, atol=1e-5)
        # A sample more is seen.
        longer = model.encode_batch(
            torch.cat([alone, waveform[-1:]]).unsqueeze(0)
        ).flatten()
        assert not torch.allclose(row, longer, rtol=0, atol=1e-5)


def test_a_frame_is_its_share_of_the_waveform(encoder):
    """Counted out: 4 frames of 500 samples, of which two are selected."""
    waveform = torch.randn(2000, generator=torch.Generator().manual_seed(1))
    alone = torch.cat([waveform[:500], waveform[1000:1500]])
    found = encoder(
        waveform[None, None], weights=torch.tensor([[1, 0, 1, 0]]).bool()
    )
    assert torch.allclose(found, encoder(alone[None, None]), atol=1e-5)


def test_others_of_the_batch_change_nothing(encoder, speech, masks):
    together = encoder(speech, weights=masks)
    turned = encoder(speech.flip(0), weights=masks.flip(0)).flip(0)
    assert torch.allclose(together, turned, rtol=0, atol=1e-5)
    for row in range(3):
        alone = encoder(speech[row : row + 1], weights=masks[row : row + 1])
        assert torch.allclose(together[row], alone[0], rtol=0, atol=1e-5)
    others = speech.clone()
    others[0, 0, 110000:] = 9  # beyond what the mask selects
    others[1:] = torch.randn(2, 1, speech.shape[2])
    assert torch.equal(encoder(others, weights=masks)[0], together[0])
    others[0, 0, 50000] = 9  # within
    assert not torch.allclose(
        encoder(others, weights=masks)[0], together[0], rtol=0, atol=1e-5
    )


def test_less_than_25_ms_are_nan(encoder):
    waveforms = torch.randn(4, 1, 16000)
    masks = torch.zeros(4, 16000)
    masks[0, :400] = masks[1, :399] = masks[3] = 1
    found = encoder(waveforms, weights=masks)
    assert found.isnan().all(dim=1).tolist() == [False, True, True, False]
    assert found[[0, 3]].isfinite().all()
    assert encoder(waveforms, weights=masks * 0).isnan().all()


def test_without_masks(encoder, models, speech):
    model = load(models / "speechbrain-b0")
    expected = model.encode_batch(speech.squeeze(1)).squeeze(1)
    assert torch.allclose(encoder(speech), expected, atol=1e-5)


NAN = torch.full((2, 1, 8000), torch.nan)


@pytest.mark.parametrize(
    "waveforms, masks, message",
    [
        (torch.ones(2, 8000), None, "waveforms: expected .* not .*2, 8000"),
        (torch.ones(2, 2, 8000), None, "waveforms: expected .* not .*2, 2"),
        (torch.ones(2, 1, 399), None, "399 samples at 16 kHz; at least 400"),
        (NAN, None, "waveforms: NaN or infinite"),
        (NAN / 0, torch.ones(2, 9), "waveforms: NaN or infinite"),
        (torch.ones(2, 1, 800), torch.ones(3, 9), "weights: expected .*3, 9"),
        (torch.ones(2, 1, 800), torch.ones(2), r"weights: expected .*\[2\]"),
        (torch.ones(2, 1, 800), NAN[:, 0, :9], "weights: NaN or infinite"),
    ],
)
def test_bad_input_is_an_error(encoder, waveforms, masks, message):
    with pytest.raises(ValueError, match=message) as error:
        encoder(waveforms, weights=masks)
    assert "\n" not in str(error.value)


def test_a_file_of_one_length_is_refused(models):
    with pytest.raises(ValueError, match="takes utterances of 96000 samples"):
        SpeakerEncoder(models / "fixed.onnx")


def test_no_model(tmp_path):
    with pytest.raises(ValueError, match="no file or folder .*none$"):
        SpeakerEncoder(tmp_path / "none")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["speechbrain-b0", "b0.onnx"])
def test_as_pretrained_speaker_embedding(
    name, device, models, encoder, speech, masks
):
    embedding = PretrainedSpeakerEmbedding(SpeakerEncoder(models / name))
    assert embedding.to(torch.device(device)) is embedding
    assert embedding.sample_rate == 16000
    assert embedding.dimension == 192
    assert embedding.metric == "cosine"
    assert embedding.min_num_samples == 400
    masks = masks.clone()
    masks[1] = 0
    found = embedding(speech, masks=masks)
    assert isinstance(found, np.ndarray)
    expected = encoder(speech, weights=masks).numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
    found = embedding(speech)
    np.testing.assert_allclose(found, encoder(speech), rtol=0, atol=1e-4)


def test_in_the_pipeline_for_one_speaker(encoder, recording):
    file = {"waveform": recording.unsqueeze(0), "sample_rate": 16000}
    found = SpeakerEmbedding(embedding=encoder)(file)
    expected = encoder(recording[None, None]).numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    pipeline = SpeakerEmbedding(
        embedding=encoder, segmentation=load_segmentation()
    )
    speech = pipeline(file)
    assert np.isfinite(speech).all()
    assert not np.allclose(speech, expected, rtol=0, atol=1e-3)


# Diarization ----------------------------------------------------------------


@pytest.fixture(scope="module")
def documented(models):
    """What the code of the page leaves, run on the sample with this model."""
    (code,) = re.findall(
        r"^```python\n(.*?)^```", PAGE.read_text(), re.M | re.S
    )
    names = {
        '"pyannote/segmentation-3.0"': "load_segmentation()",
        '"b3-vox2-lm"': f'"{models / "speechbrain-b0"}"',
        '"meeting.wav"': f'"{PYANNOTE / "sample" / "sample.wav"}"',
    }
    for name, ours in names.items():
        assert name in code
        code = code.replace(name, ours)
    left = {"load_segmentation": load_segmentation}
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(code, left)
    return {**left, "printed": printed.getvalue()}


def test_speech_is_found(documented):
    """The segmentation finds it; whose it is, a trained network would."""
    (reference,) = load_rttm(PYANNOTE / "sample" / "sample.rttm").values()
    found = documented["output"].speaker_diarization
    turns = documented["printed"].splitlines()
    assert len(turns) == len(list(found.itersegments())) > 5
    assert re.fullmatch(r"\d+\.\d \d+\.\d SPEAKER_\d\d", turns[0])
    errors = DiarizationErrorRate()(reference, found, detailed=True)
    missed = errors["missed detection"] + errors["false alarm"]
    assert missed / errors["total"] < 0.05


def test_the_pipeline_clusters_what_the_masks_select(
    documented, models, recording
):
    steps = {}

    def hook(name, result, file=None, **progress):
        if not progress:
            steps[name] = result

    file = {"waveform": recording.unsqueeze(0), "sample_rate": 16000}
    output = documented["pipeline"](file, hook=hook, num_speakers=2)
    assert sorted(output.speaker_diarization.labels()) == [
        "SPEAKER_00",
        "SPEAKER_01",
    ]
    assert np.isfinite(output.speaker_embeddings).all()
    assert output.speaker_embeddings.shape == (2, 192)

    model = load(models / "speechbrain-b0")
    segmentations, embeddings = steps["segmentation"], steps["embeddings"]
    chunks, frames, speakers = segmentations.data.shape
    assert embeddings.shape == (chunks, speakers, 192)
    embedded = 0
    for (chunk, active), rows in zip(segmentations, embeddings, strict=True):
        start = round(chunk.start * 16000)
        waveform = recording[start : start + 160000]
        waveform = torch.nn.functional.pad(
            waveform, (0, 160000 - len(waveform))
        )
        active = torch.from_numpy(active)
        alone = active * (active.sum(dim=1, keepdim=True) < 2)
        for mask, whole, row in zip(alone.T, active.T, rows, strict=True):
            # The least that can be embedded is two frames, of 25 ms.
            cut = selected(waveform, mask if mask.sum() > 2 else whole)
            if len(cut) < 400:
                assert np.isnan(row).all()
                continue
            expected = model.encode_batch(cut.unsqueeze(0)).flatten()
            np.testing.assert_allclose(row, expected, rtol=0, atol=1e-5)
            embedded += 1
    assert embedded >= 2 * chunks - 10


def test_vbx_is_refused_in_one_line(encoder, recording):
    pipeline = SpeakerDiarization(
        segmentation=load_segmentation(),
        embedding=encoder,
        segmentation_step=0.5,
        plda=NoPlda(),
    )
    file = {"waveform": recording.unsqueeze(0), "sample_rate": 16000}
    with pytest.raises(ValueError, match="take AgglomerativeClustering$"):
        pipeline(file)


# By name --------------------------------------------------------------------


@pytest.fixture(scope="module")
def patched(tmp_path_factory):
    """pyannote's module with the patch of the page, as a user applies it."""
    folder = tmp_path_factory.mktemp("site-packages")
    place = "pyannote/audio/pipelines/speaker_verification.py"
    copy = folder / place
    copy.parent.mkdir(parents=True)
    copy.write_bytes((PYANNOTE.parents[1] / place).read_bytes())
    (patch,) = re.findall(r"^```diff\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    subprocess.run(
        ["patch", "-p0", "--fuzz=0"],
        input=patch,
        cwd=folder,
        text=True,
        check=True,
    )
    specification = importlib.util.spec_from_file_location("patched", copy)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_unpatched_it_loads_no_speechbrain_model(models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TypeError) as error:
        PretrainedSpeakerEmbedding(str(models / "speechbrain-b0"))
    assert f"    TypeError: {error.value}\n" in PAGE.read_text()
    assert (tmp_path / "None" / "speechbrain").is_dir()


def test_patched_it_loads_model_folders(
    patched, models, encoder, speech, masks, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    embedding = patched.PretrainedSpeakerEmbedding(
        str(models / "speechbrain-b0")
    )
    embedding.to(torch.device("cpu"))
    assert embedding.dimension == 192
    assert embedding.min_num_samples == 400
    masks = masks.clone()
    masks[1] = 0
    np.testing.assert_allclose(
        embedding(speech, masks=masks),
        encoder(speech, weights=masks),
        rtol=0,
        atol=1e-5,
    )
    assert not list(tmp_path.iterdir())


def test_patched_it_loads_models_of_the_hub(
    patched, models, encoder, speech, tmp_path, monkeypatch
):
    files = (models / "speechbrain-b0").iterdir()
    content = {path.name: path.read_bytes() for path in files}
    with serve_hub() as server:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        monkeypatch.setattr(
            constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            server.address + "/{repo_id}/resolve/{revision}/{filename}",
        )
        name = "user/speechbrain-b0"
        server.repositories[name] = {"main": {}, "v1": content}
        server.private[name] = True
        embedding = patched.PretrainedSpeakerEmbedding(
            f"{name}@v1", token=TOKEN, cache_dir=tmp_path / "cache"
        )
    np.testing.assert_allclose(embedding(speech), encoder(speech), atol=1e-5)
    assert list((tmp_path / "cache").glob("models--user--speechbrain-b0"))


# Our own turns ----------------------------------------------------------------


def test_our_rttm_is_read_and_scored(tmp_path):
    """The error is counted by hand: 1 s missed, 0.5 s false, 2 s confused."""
    reference = [Turn(1, 5, "Ann"), Turn(5, 9, "Bo B"), Turn(10, 12, "Ann")]
    found = [
        *(Turn(2, 5, "speaker_1"), Turn(5, 7, "speaker_2")),
        *(Turn(7, 9, "speaker_1"), Turn(10, 12.5, "speaker_1")),
    ]
    read = []
    for number, turns in enumerate((reference, found)):
        path = tmp_path / f"{number}.rttm"
        path.write_text(to_rttm("a meeting", turns))
        (annotation,) = load_rttm(path).values()
        read.append(annotation)
        assert annotation.uri == "a_meeting"
        assert [
            (segment.start, segment.end, speaker)
            for segment, _, speaker in annotation.itertracks(yield_label=True)
        ] == [
            (turn.start, turn.end, turn.speaker.replace(" ", "_"))
            for turn in turns
        ]
    whole = Timeline([Segment(0, 13)])
    errors = DiarizationErrorRate()(*read, uem=whole, detailed=True)
    assert errors["total"] == pytest.approx(10)
    assert errors["missed detection"] == pytest.approx(1)
    assert errors["false alarm"] == pytest.approx(0.5)
    assert errors["confusion"] == pytest.approx(2)
    assert errors["diarization error rate"] == pytest.approx(0.35)
