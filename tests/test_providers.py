"""Execution providers and threads, where onnxruntime has its CPU one only."""

import json
import math

import numpy as np
import onnx
import onnxruntime
import pytest
import soundfile
import torch
from conftest import exit_code, relative_difference
from test_redimnet2 import PADDINGS, STAGES, build, pad, speech
from torch.nn.functional import normalize

from redimnet2_lobes import cli, load
from redimnet2_lobes.inference.encode import encode_utterances
from redimnet2_lobes.inference.long_files import encode_files
from redimnet2_lobes.onnx import providers
from redimnet2_lobes.onnx.encoder import OnnxEncoder
from redimnet2_lobes.onnx.export import export_onnx
from redimnet2_lobes.onnx.providers import PROVIDERS
from redimnet2_lobes.pretrained.model_folder import write_model_folder

SESSION = onnxruntime.InferenceSession


# ONNX Runtime warns of providers that it does not know, and goes on.
pytestmark = pytest.mark.filterwarnings("ignore:Specified provider")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A file of each form."""
    network = build(stages=STAGES[1:3])
    folder = tmp_path_factory.mktemp("export")
    for target in ("onnx", "plain", "fixed"):
        seconds = 1 if target == "fixed" else None
        path = folder / f"{target}.onnx"
        export_onnx(network, path, target=target, seconds=seconds)
    write_model_folder(folder / "model", network, "Small")
    return folder


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path / f"{i}.wav" for i in range(2)]
    for i, path in enumerate(paths):
        soundfile.write(path, speech(16000, i).numpy(), 16000, "FLOAT")
    return paths


@pytest.fixture
def pretend(monkeypatch):
    """As if this onnxruntime had all providers; gives what they were given."""
    names = [each.name for each in PROVIDERS.values()]
    given = []

    def session(model, settings, providers, **kwargs):
        given.append(providers)
        return SESSION(model, settings, providers=providers, **kwargs)

    monkeypatch.setattr(
        providers.onnxruntime,
        "get_available_providers",
        lambda: [*names, "CPUExecutionProvider"],
    )

    monkeypatch.setattr(providers.onnxruntime, "InferenceSession", session)
    return given


@pytest.mark.parametrize(
    "name, remedy",
    [
        ("cuda", "pip install onnxruntime-gpu"),
        ("cuda:1", "pip install onnxruntime-gpu"),
        (
            "tensorrt",
            "pip install onnxruntime-gpu in place of it, and tensorrt",
        ),
        ("openvino:GPU", "pip install onnxruntime-openvino"),
        ("directml", "pip install onnxruntime-directml"),
        ("coreml", "the onnxruntime for macOS"),
        ("qnn", "pip install 'onnxruntime-qnn>=2'"),
    ],
)
def test_a_missing_provider_is_one_line(name, remedy, exported):
    with pytest.raises(ValueError, match=f"^device {name!r}: not in") as caught:
        load(exported / "fixed.onnx", {"device": name})
    message = str(caught.value)
    assert remedy in message and "\n" not in message
    assert "CPUExecutionProvider" in message


@pytest.mark.parametrize(
    "name", ["abacus", "CUDA", "", "cuda:", "cpu:0", "coreml:1", "cuda:0:1"]
)
def test_an_unknown_provider(name, exported):
    with pytest.raises(ValueError, match="runs on cpu, cuda, tensorrt") as e:
        OnnxEncoder(exported / "plain.onnx", provider=name)
    assert str(e.value).startswith(f"device {name!r}: ")


def test_the_command(exported, files, capsys):
    def run(*options, model="plain.onnx"):
        arguments = ["verify", "--no_vad", *map(str, files), *options]
        code = exit_code(cli.main, [*arguments, f"--model={exported / model}"])
        return code, capsys.readouterr()

    def error(*options, **model):
        code, output = run(*options, **model)
        assert code == 1 and not output.out
        (line,) = output.err.splitlines()
        return line

    before = torch.get_num_threads()
    expected = run()[1].out
    assert run("--device=cpu", "--threads=1")[1].out == expected
    assert torch.get_num_threads() == 1
    assert run("--threads=1", model="model")[1].out == expected
    torch.set_num_threads(before)
    line = error("--device=cuda")
    assert line.startswith("error: device 'cuda': not in this onnxruntime")
    assert "runs on cpu, cuda," in error("--device=abacus")
    for options in ([], ["--device=cpu"]):
        line = error(*options, "--engine_cache=x")
        assert line.startswith("error: engine_cache: the CPU keeps nothing")
    line = error("--engine_cache=x", model="model")
    assert line.startswith("error: --engine_cache: belongs to .onnx files")
    line = error("--device=tensorrt", model="model")
    assert line.startswith("error: --device: 'tensorrt' cannot be used here")
    for threads in ("0", "-1", "two", "1.5", "nan"):
        code, output = run(f"--threads={threads}")
        assert code == 2 and "is not a whole number from 1 on" in output.err


# tests/runtimes/qnn has the real plug-in.
@pytest.mark.parametrize("name", sorted({*PROVIDERS} - {"qnn"}))
def test_the_cpu_never_takes_its_place(name, exported, pretend):
    """It is there, but does not start: ONNX Runtime would use the CPU."""
    path = exported / "fixed.onnx"
    assert OnnxEncoder(path).encode_batch(speech(16000)).isfinite().all()
    with pytest.raises(ValueError, match=f"^device {name!r}: did not start"):
        OnnxEncoder(path, provider=name)


@pytest.mark.parametrize("name", ["cuda", "openvino", "directml"])
def test_a_provider_that_takes_nothing_of_the_graph(
    name, exported, pretend, monkeypatch
):
    """It is in the list of the session, as where its device has failed."""
    real = SESSION.get_providers
    monkeypatch.setattr(
        SESSION,
        "get_providers",
        lambda self: [PROVIDERS[name].name, *real(self)],
    )
    with pytest.raises(
        ValueError, match=f"^device {name!r}: takes 0 of .* pro"
    ):
        OnnxEncoder(exported / "plain.onnx", provider=name)


def test_a_provider_that_takes_a_part_is_told(exported, pretend, monkeypatch):
    """The rest is for the CPU, and whoever waits for it should know."""
    monkeypatch.setitem(
        PROVIDERS,
        "cuda",
        PROVIDERS["cuda"]._replace(name="CPUExecutionProvider", options={}),
    )
    real = SESSION.get_provider_graph_assignment_info

    class Part:
        def __init__(self, ep_name, nodes):
            self.ep_name, self.nodes = ep_name, nodes

        def get_nodes(self):
            return self.nodes

    def halved(session):
        parts = real(session)
        half = len(parts) // 2
        other = [Part("OtherProvider", x.get_nodes()) for x in parts[:half]]
        return [*other, *parts[half:]]

    told = []
    monkeypatch.setattr(providers.logger, "warning", told.append)
    monkeypatch.setattr(
        SESSION,
        "get_provider_graph_assignment_info",
        halved,
    )
    OnnxEncoder(exported / "plain.onnx", provider="cuda")
    (line,) = told
    assert line.startswith("cuda takes ") and "run on OtherProvider" in line


def test_an_onnxruntime_that_does_not_say_what_runs_where(
    exported, pretend, monkeypatch
):
    monkeypatch.delattr(SESSION.__base__, "get_provider_graph_assignment_info")
    monkeypatch.setattr(
        SESSION,
        "get_providers",
        lambda self: [PROVIDERS["cuda"].name],
    )
    with pytest.raises(ValueError, match="needs onnxruntime 1.24 or newer"):
        OnnxEncoder(exported / "plain.onnx", provider="cuda")


def test_options_reach_onnxruntime(exported, pretend, tmp_path):
    def options(device, engine_cache=None, path=exported / "fixed.onnx"):
        with pytest.raises(ValueError, match="did not start"):
            OnnxEncoder(path, 1, device, engine_cache)
        return pretend.pop()

    ((name, cuda),) = options("cuda:1")
    assert name == "CUDAExecutionProvider" and cuda["device_id"] == "1"
    assert "device_id" not in dict(options("cuda"))["CUDAExecutionProvider"]
    cache = tmp_path / "new" / "cache"
    (name, tensorrt), (second, cuda) = options("tensorrt:2", cache)
    assert name == "TensorrtExecutionProvider"
    assert second == "CUDAExecutionProvider"
    assert tensorrt["device_id"] == cuda["device_id"] == "2"
    assert tensorrt["trt_engine_cache_enable"] == "True"
    (folder,) = cache.iterdir()
    assert tensorrt["trt_engine_cache_path"] == str(folder)
    assert dict(options("tensorrt", cache)) and [*cache.iterdir()] == [folder]
    ((_, coreml),) = options("coreml", cache)
    assert coreml["ModelCacheDirectory"] == str(folder)
    ((_, openvino),) = options("openvino:GPU.1", cache)
    assert openvino["device_type"] == "GPU.1"
    assert openvino["cache_dir"] == str(folder)
    assert openvino["num_of_threads"] == "1"


def test_two_files_do_not_share_what_is_compiled(exported, pretend, tmp_path):
    """Providers know some by the structure, not by the weights."""
    other = tmp_path / "other.onnx"
    network = build(stages=STAGES[1:3])
    with torch.no_grad():
        network.projection.bias += 1
    export_onnx(network, other, target="fixed", seconds=1)
    cache = tmp_path / "cache"
    for path in (exported / "fixed.onnx", other):
        with pytest.raises(ValueError, match="did not start"):
            OnnxEncoder(path, 1, "tensorrt", cache)
    assert len([*cache.iterdir()]) == 2


@pytest.mark.parametrize("name", ["cuda", "openvino", "directml"])
def test_who_keeps_nothing_refuses_a_cache(name, exported, pretend, tmp_path):
    with pytest.raises(ValueError, match="^engine_cache: .* has no use for it"):
        OnnxEncoder(exported / "fixed.onnx", 1, name, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_cache_that_is_no_folder(exported, pretend, tmp_path):
    (tmp_path / "file").write_text("")
    for cache in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ValueError, match=f"^engine_cache: {cache} cannot"):
            OnnxEncoder(exported / "fixed.onnx", 1, "tensorrt", cache)


@pytest.mark.parametrize(
    "name, form, remedy",
    [
        ("tensorrt", "onnx", "--for=fixed"),
        ("tensorrt", "plain", "--for=fixed"),
        ("coreml", "plain", "--for=fixed"),
        ("openvino", "onnx", "--for=plain or --for=fixed"),
    ],
)
def test_forms_that_a_provider_does_not_take(
    name, form, remedy, exported, pretend
):
    with pytest.raises(ValueError, match=f"^device {name!r}: takes no") as e:
        OnnxEncoder(exported / f"{form}.onnx", provider=name)
    assert str(e.value).endswith(f"export {remedy}")


@pytest.mark.parametrize("form", ["onnx", "plain"])
def test_threads(form, exported, monkeypatch):
    """Side by side the same bits; of one on several another order of sums."""
    monkeypatch.setattr("joblib.cpu_count", lambda: 2)
    waveforms = [speech(size, i) for i, size in enumerate((400, 9000, 70000))]
    batch = pad(waveforms, PADDINGS["NaN"])
    one, two = (load(exported / f"{form}.onnx", threads=n) for n in (1, 2))
    assert torch.equal(one.encode_batch(*batch), two.encode_batch(*batch))
    torch.testing.assert_close(
        one.encode_batch(waveforms[2]),
        two.encode_batch(waveforms[2]),
        atol=1e-6,
        rtol=1e-6,
    )


def test_threads_of_a_model_folder(exported):
    before = torch.get_num_threads()
    load(exported / "model", threads=1)
    assert torch.get_num_threads() == 1
    torch.set_num_threads(before)
    with pytest.raises(ValueError, match="^engine_cache: belongs to .onnx"):
        load(exported / "model", engine_cache="x")


@pytest.mark.parametrize("threads", [0, -1, "2", 1.5, math.nan, True])
def test_bad_threads(threads, exported):
    for path in (exported / "plain.onnx", exported / "model"):
        with pytest.raises(ValueError, match="^threads: "):
            load(path, threads=threads)


@pytest.mark.parametrize("form", ["onnx", "plain", "fixed"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf, 1e12])
def test_samples_that_are_not_finite(form, bad, exported):
    encoder = OnnxEncoder(exported / f"{form}.onnx", 1)
    batch = torch.stack([speech(16000, i) for i in range(3)])
    batch[1, 300] = bad
    with pytest.raises(ValueError, match=r"^wavs\[1\]: not finite; it holds"):
        encoder.encode_batch(batch)


def test_padding_may_hold_anything(exported):
    encoder = OnnxEncoder(exported / "onnx.onnx", 1)
    batch, lengths = pad([speech(9000), speech(16000)], PADDINGS["NaN"])
    assert encoder.encode_batch(batch, lengths).isfinite().all()


def test_an_embedding_that_is_not_finite(exported, tmp_path):
    """Of weights that are not, or where a provider computes in 16 bits."""
    model = onnx.load(exported / "plain.onnx")
    for tensor in model.graph.initializer:
        if tensor.dims == [192]:
            tensor.raw_data = np.full(192, np.inf, np.float32).tobytes()
    onnx.save(model, tmp_path / "spoilt.onnx")
    encoder = OnnxEncoder(tmp_path / "spoilt.onnx", 1)
    with pytest.raises(ValueError, match=r"^wavs\[0\]: its embedding is not"):
        encoder.encode_batch(speech(16000))


def test_files_are_named(exported, files, tmp_path):
    """And the others are embedded."""
    encode = OnnxEncoder(exported / "onnx.onnx", 1).encode_batch
    spoilt = tmp_path / "spoilt.wav"
    loaded = {path: speech(16000, i) for i, path in enumerate(files)}
    expected = encode_utterances(encode, files, load=loaded.get)
    loaded[spoilt] = torch.full((9000,), torch.nan)
    faults = {}
    found = encode_utterances(encode, loaded, load=loaded.get, faults=faults)
    assert {*found} == {*files} and [*faults] == [spoilt]
    assert str(faults[spoilt]).startswith(f"{spoilt}: not finite; it holds")
    for path in files:
        assert torch.equal(found[path], expected[path])
    with pytest.raises(ValueError, match=f"^{spoilt}: not finite; it holds"):
        encode_utterances(encode, loaded, load=loaded.get)


def test_an_embedding_of_a_long_file_that_is_not_finite(tmp_path):
    from redimnet2_lobes.data.audio import AudioError

    def encode_batch(wavs, wav_lens):
        raise AudioError("not finite", "leave it out", "wavs[0]")

    path = str(tmp_path / "long.wav")
    soundfile.write(path, speech(48000).numpy(), 16000)
    faults = {}
    encode_files(encode_batch, [path], 1, faults)
    assert str(faults[path]) == f"{path}: not finite; leave it out"


@torch.no_grad()
def test_the_command_fits_recordings_to_a_fixed_length(
    exported, tmp_path, capsys
):
    """Here 1 s: repeated, or in pieces that cover them."""
    waveforms = [speech(size, i) for i, size in enumerate((9000, 16000, 33000))]
    paths = [tmp_path / f"{i}.wav" for i in range(3)]
    for path, waveform in zip(paths, waveforms, strict=True):
        soundfile.write(path, waveform.numpy(), 16000, "FLOAT")
    model = f"--model={exported / 'fixed.onnx'}"
    cli.main(["embed", *map(str, paths), model, "--json"])
    output = capsys.readouterr()
    assert output.err.startswith("note: the .onnx file takes 1 s: of longer")
    found = [torch.tensor(x["embedding"]) for x in json.loads(output.out)]
    network = build(stages=STAGES[1:3])
    short, whole, long = waveforms
    pieces = [
        (short.repeat(2)[:16000],),
        (whole,),
        (long[:16000], long[8500:24500], long[17000:]),
    ]
    for embedding, parts in zip(found, pieces, strict=True):
        expected = normalize(network(torch.stack(parts)).squeeze(1), dim=-1)
        assert relative_difference(embedding, expected.mean(0)) < 1e-4


@pytest.mark.parametrize("kind", [torch.int16, torch.bool, torch.complex64])
def test_samples_of_another_type(kind, exported):
    encoder = OnnxEncoder(exported / "onnx.onnx", 1)
    for encode in (encoder.encode_batch, build(stages=STAGES[1:3])):
        with pytest.raises(ValueError, match=f"not {kind}; divide those of 16"):
            encode((100 * speech(16000)).to(kind).unsqueeze(0))
