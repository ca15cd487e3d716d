"""Files for sherpa-onnx, in its own library, from Python and from C++."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import sherpa_onnx
import soundfile
import torch
from conftest import TESTS, ParityCase, exit_code, relative_difference
from synthetic_corpus import write_synthetic_corpus
from test_parity import build

from redimnet2_lobes import cli
from redimnet2_lobes.data.audio import load_waveform
from redimnet2_lobes.files.same_space import KEY
from redimnet2_lobes.models.embedding_space import embedding_space
from redimnet2_lobes.models.front_end import TorchaudioLogMel
from redimnet2_lobes.models.redimnet2 import ReDimNet2
from redimnet2_lobes.models.variants import VARIANTS
from redimnet2_lobes.onnx import sherpa
from redimnet2_lobes.onnx.encoder import OnnxEncoder
from redimnet2_lobes.onnx.golden_vector import check_export, input_by_formula
from redimnet2_lobes.onnx.sherpa import export_sherpa, prepare
from redimnet2_lobes.pretrained.model_folder import write_model_folder

SHERPA = Path(sherpa_onnx.__file__).parent
EXAMPLE = TESTS.parent / "examples" / "cpp" / "compare.cpp"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "corpus"
    write_synthetic_corpus(folder, 1, 3, 4, seconds=2.0)
    return folder


@pytest.fixture(scope="module")
def recordings(corpus):
    return sorted(corpus.rglob("*.wav"))


@pytest.fixture(scope="module")
def network():
    return build(ParityCase("b0-vox2"))


@pytest.fixture(scope="module")
def model(network, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "b0"
    write_model_folder(folder, network, "B0", variant="b0")
    return folder


@pytest.fixture(scope="module")
def exported(model, corpus, tmp_path_factory):
    """The file, as the command writes it."""
    path = tmp_path_factory.mktemp("export") / "b0.onnx"
    speech = [f"--speech={corpus}", f"--trials={corpus}/veri_test2.txt"]
    options = ["--for=sherpa-onnx", f"--output={path}", *speech]
    cli.main(["export", str(model), *options])
    return path


@pytest.fixture(scope="module")
def extractor(exported):
    return load_extractor(exported)


def load_extractor(path):
    config = sherpa_onnx.SpeakerEmbeddingExtractorConfig(model=str(path))
    return sherpa_onnx.SpeakerEmbeddingExtractor(config)


def embed(extractor, *pieces):
    stream = extractor.create_stream()
    for piece in pieces:
        stream.accept_waveform(16000, piece)
    stream.input_finished()
    assert extractor.is_ready(stream)
    return torch.tensor(extractor.compute(stream))


def cosine(one, other):
    return torch.cosine_similarity(one, other, dim=-1).item()


def metadata(path):
    return {x.key: x.value for x in onnx.load(path).metadata_props}


@torch.no_grad()
@pytest.mark.parametrize("silence", [0, 1])
@pytest.mark.parametrize(
    "prepared, least", [(prepare, 0.9998), (np.asarray, 0.995)]
)
def test_embeddings_are_close(
    network, extractor, recordings, silence, prepared, least
):
    """Also where half of each recording is digital silence."""
    for path in recordings:
        pieces = load_waveform(path).split(8000)
        pieces = [x for y in pieces for x in (y, *silence * [0 * y])]
        waveform = torch.cat(pieces)
        expected = network(waveform[None])[0, 0]
        found = embed(extractor, prepared(waveform.numpy()))
        assert cosine(found, expected) > least


def test_gain_and_offset_do_not_count(extractor, recordings):
    waveform = load_waveform(recordings[0]).numpy()
    expected = embed(extractor, prepare(waveform))
    found = embed(extractor, prepare(0.01 * waveform + 0.2))
    assert cosine(found, expected) > 0.9999


@torch.no_grad()
@pytest.mark.parametrize("samples", [400, 3999, 8000, 30001, 400000])
def test_any_length(network, extractor, recordings, samples):
    waveform = torch.cat([load_waveform(path) for path in recordings])
    waveform = waveform.repeat(2)[4000:][:samples]
    expected = network(waveform[None])[0, 0]
    found = embed(extractor, prepare(waveform.numpy()))
    assert cosine(found, expected) > (0.98 if samples >= 8000 else 0.8)


def test_shorter_than_a_window(extractor):
    stream = extractor.create_stream()
    stream.accept_waveform(16000, np.ones(399, np.float32))
    stream.input_finished()
    assert not extractor.is_ready(stream)


def test_samples_that_are_not_finite(extractor):
    waveform = input_by_formula([16000])
    waveform[9000] = np.nan
    assert embed(extractor, waveform).isnan().all()


def test_samples_in_pieces(extractor, recordings):
    waveform = prepare(load_waveform(recordings[0]).numpy())
    pieces = np.split(waveform, [100, 7001])
    expected = embed(extractor, waveform)
    found = embed(extractor, *pieces)
    assert relative_difference(found, expected) < 1e-5


def test_the_test_waveform(exported, extractor):
    known = metadata(exported)
    waveform = input_by_formula(json.loads(known["test_waveform_shape"]))[0]
    expected = torch.tensor(json.loads(known["test_waveform_embedding"]))
    found = embed(extractor, prepare(waveform))
    assert relative_difference(found, expected) < 1e-4
    assert check_export(exported) < 1e-6
    cli.main(["check", str(exported)])


def test_an_embedding_space_of_its_own(exported, network):
    known = metadata(exported)
    assert known[KEY] == f"{embedding_space(network)}-sherpa-onnx"
    assert known["threshold_origin"].endswith("veri_test2, 66 trials")
    with pytest.raises(ValueError, match="takes sherpa-onnx's features; exp"):
        OnnxEncoder(exported)


def test_manager(extractor, recordings):
    manager = sherpa_onnx.SpeakerEmbeddingManager(extractor.dim)
    embeddings = {
        path: embed(extractor, prepare(load_waveform(path).numpy())).tolist()
        for path in recordings
    }
    one, two, other = (recordings[i] for i in (0, 1, -1))
    assert manager.add("one", [embeddings[one], embeddings[two]])
    assert manager.add("other", embeddings[other])
    assert manager.search(embeddings[one], threshold=0.5) == "one"
    assert manager.search(embeddings[other], threshold=0.5) == "other"
    assert manager.verify("one", embeddings[one], threshold=0.5)


def test_code_of_the_page(exported, recordings, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copy(exported, "b3.onnx")
    shutil.copy(recordings[0], "anna.wav")
    shutil.copy(recordings[1], "call.wav")
    page = (TESTS.parent / "docs" / "sherpa_onnx.md").read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```", page, re.M | re.S)
    exec(code, {})
    assert capsys.readouterr().out == "anna\n"


@pytest.mark.filterwarnings("ignore")  # of the export of pyannote's model
def test_diarization(exported, recordings, tmp_path):
    """With pyannote's segmentation model, which sherpa-onnx is given as ONNX.

    Who speaks is not asked of weights by a formula.
    """
    sys.path.insert(0, str(TESTS / "runtimes" / "pyannote"))
    from segmentation import load_segmentation

    path = tmp_path / "segmentation.onnx"
    torch.onnx.export(
        load_segmentation(),
        (torch.zeros(1, 1, 160000),),
        path,
        dynamic_axes={"x": {2: "samples"}},
        input_names=["x"],
        dynamo=False,
    )
    segmentation = onnx.load(path)
    onnx.helper.set_model_props(
        segmentation,
        {
            "sample_rate": "16000",
            "window_size": "160000",
            "receptive_field_size": "991",
            "receptive_field_shift": "270",
            "num_speakers": "3",
            "powerset_max_classes": "2",
            "num_classes": "7",
        },
    )
    onnx.save(segmentation, path)
    pyannote = sherpa_onnx.OfflineSpeakerSegmentationPyannoteModelConfig(
        model=str(path)
    )
    config = sherpa_onnx.OfflineSpeakerDiarizationConfig(
        segmentation=sherpa_onnx.OfflineSpeakerSegmentationModelConfig(
            pyannote=pyannote
        ),
        embedding=sherpa_onnx.SpeakerEmbeddingExtractorConfig(
            model=str(exported)
        ),
        clustering=sherpa_onnx.FastClusteringConfig(num_clusters=2),
    )
    diarization = sherpa_onnx.OfflineSpeakerDiarization(config)
    waveform = torch.cat([load_waveform(path) for path in recordings]).numpy()
    segments = diarization.process(prepare(waveform)).sort_by_start_time()
    spoken = sum(segment.end - segment.start for segment in segments)
    assert spoken > 0.5 * len(waveform) / 16000
    assert {segment.speaker for segment in segments} == {0, 1}


@torch.no_grad()
def test_eight_bits(network, corpus, recordings, tmp_path):
    path = tmp_path / "int8.onnx"
    accuracy = export_sherpa(network, path, corpus, int8=True)
    assert accuracy.median > 0.99 and accuracy.eer_percent is None
    assert accuracy.recordings == len(recordings)
    waveform = load_waveform(recordings[0])
    found = embed(load_extractor(path), prepare(waveform.numpy()))
    assert cosine(found, network(waveform[None])[0, 0]) > 0.98


@torch.no_grad()
def test_front_end_of_torchaudio(recordings, corpus, tmp_path):
    torch.manual_seed(0)
    network = ReDimNet2(
        TorchaudioLogMel(normalize=True), **VARIANTS["b0"]
    ).eval()
    path = tmp_path / "b0.onnx"
    assert export_sherpa(network, path, corpus).median > 0.99
    waveform = load_waveform(recordings[0])
    found = embed(load_extractor(path), prepare(waveform.numpy()))
    assert cosine(found, network(waveform[None])[0, 0]) > 0.98


@pytest.mark.parametrize(
    "options, message",
    [
        ([], "--speech belongs to --for=sherpa-onnx, which needs it"),
        (["--speech=."], "not.wav: unreadable"),
        (["--speech=nowhere"], "nowhere"),
        (["--speech=empty"], "empty: there is no audio file in it"),
        (["--speech=.", "--features"], "--features is not for"),
        (["--speech=.", "--trials=no.txt"], "trials: no file no.txt"),
        (
            ["--speech=.", "--trials=trials.txt"],
            "3 of the 3 files that the trials",
        ),
    ],
)
def test_refusals(model, tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("not.wav").write_text("no audio")
    Path("trials.txt").write_text("1 a.wav b.wav\n0 a.wav b.flac\n")
    arguments = ["export", str(model), "--for=sherpa-onnx", "--output=a.onnx"]
    assert exit_code(cli.main, *[[*arguments, *options]]) != 0
    *_, line = capsys.readouterr().err.splitlines()
    assert message in line
    assert not Path("a.onnx").exists()


def test_speech_is_for_sherpa_only(model, capsys):
    arguments = ["export", str(model), "--output=a.onnx", "--speech=."]
    assert exit_code(cli.main, arguments) == 2
    assert "--speech belongs to --for=sherpa-onnx" in capsys.readouterr().err


def test_a_file_that_is_not_close(network, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(sherpa, "LEAST_COSINE", 1.1)
    with pytest.raises(ValueError, match="nothing was written, since the med"):
        export_sherpa(network, tmp_path / "a.onnx", corpus)
    assert not list(tmp_path.iterdir())


def test_a_front_end_that_hears_levels(corpus, tmp_path):
    network = ReDimNet2(TorchaudioLogMel(), **VARIANTS["b0"]).eval()
    with pytest.raises(ValueError, match="does not normalize waveforms"):
        export_sherpa(network, tmp_path / "a.onnx", corpus)


def test_without_kaldi_native_fbank(network, corpus, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "kaldi_native_fbank", None)
    with pytest.raises(ValueError, match="pip install kaldi-native-fbank"):
        export_sherpa(network, tmp_path / "a.onnx", corpus)


@pytest.fixture(scope="module")
def compare(tmp_path_factory):
    """The example, built as docs/sherpa_onnx.md says."""
    program = tmp_path_factory.mktemp("cpp") / "compare"
    subprocess.run(
        [
            *("g++", "-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror"),
            *(EXAMPLE, f"-I{SHERPA}/include", f"-L{SHERPA}/lib"),
            *("-lsherpa-onnx-c-api", f"-Wl,-rpath,{SHERPA}/lib"),
            *("-o", program),
        ],
        check=True,
    )

    def run(*arguments):
        command = [program, *arguments]
        return subprocess.run(command, capture_output=True, text=True)

    return run


def test_cpp(compare, extractor, exported, recordings):
    one, other = recordings[0], recordings[-1]
    expected = cosine(
        *(
            embed(extractor, prepare(load_waveform(path).numpy()))
            for path in (one, other)
        )
    )
    result = compare(exported, one, other)
    assert (result.returncode, result.stderr) == (0, "")
    assert float(result.stdout) == pytest.approx(expected, abs=1e-4)


def test_cpp_check(compare, exported, tmp_path):
    result = compare("--check", exported)
    assert (result.returncode, result.stderr) == (0, "")
    damaged = onnx.load(exported)
    weight = max(damaged.graph.initializer, key=lambda x: len(x.raw_data))
    weight.raw_data = bytes(len(weight.raw_data))
    onnx.save(damaged, tmp_path / "damaged.onnx")
    result = compare("--check", tmp_path / "damaged.onnx")
    assert result.returncode == 1
    assert result.stderr.endswith(
        "damaged.onnx: computes something else here\n"
    )


@pytest.mark.parametrize(
    "file, message",
    [
        ("no.wav", "cannot be read; check the path"),
        ("8k.wav", "not at 16 kHz; resample it"),
        ("short.wav", "shorter than 25 ms; record it again"),
        ("nan.wav", "has samples that are not finite"),
    ],
)
def test_cpp_refuses(compare, exported, tmp_path, file, message):
    waveform = input_by_formula([16000])
    soundfile.write(tmp_path / "8k.wav", waveform, 8000)
    soundfile.write(tmp_path / "short.wav", waveform[:399], 16000)
    waveform[100] = np.nan
    soundfile.write(tmp_path / "nan.wav", waveform, 16000, subtype="FLOAT")
    path = tmp_path / file
    result = compare(exported, path, path)
    assert result.returncode == 1 and result.stdout == ""
    assert result.stderr == f"error: {path}: {message}\n"


def test_cpp_refuses_other_models(compare, tmp_path):
    path = tmp_path / "other.onnx"
    path.write_text("no model")
    result = compare("--check", path)
    assert result.returncode == 1
    assert result.stderr == f"error: {path}: export --for=sherpa-onnx\n"
