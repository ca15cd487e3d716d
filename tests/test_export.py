"""Exported files against the networks they come from."""

import errno
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import measurements
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import relative_difference
from hyperpyyaml import load_hyperpyyaml
from speechbrain.dataio import audio_io
from test_parity import build as build_published
from test_parity import load_encoder
from test_redimnet2 import OPTIONS, PADDINGS, STAGES, pad, speech
from test_redimnet2 import build as build_small

from redimnet2_lobes import cli
from redimnet2_lobes.inference.encode import encode_utterances
from redimnet2_lobes.models import onnx_graph, onnx_sessions
from redimnet2_lobes.models.embedding_space import embedding_space
from redimnet2_lobes.models.folding import fold
from redimnet2_lobes.models.front_end import LogMel
from redimnet2_lobes.models.onnx_graph import OPSET, over_batch, write_graph
from redimnet2_lobes.models.redimnet2 import ReDimNet2
from redimnet2_lobes.models.variants import VARIANTS
from redimnet2_lobes.onnx.encoder import OnnxEncoder
from redimnet2_lobes.onnx.export import export_onnx, write_model
from redimnet2_lobes.onnx.fixed_length import DYNAMIC, with_fixed_length

SIZES = [400, 3999, 16160, 30000]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A small network and its file."""
    network = build_small(stages=STAGES[1:3], aggregation_norm=True)
    path = tmp_path_factory.mktemp("export") / "small.onnx"
    export_onnx(network, path)
    return network, path


@torch.no_grad()
def assert_equal(network, path, sizes, padding="NaN"):
    batch, lengths = pad(
        [speech(size, i) for i, size in enumerate(sizes)], PADDINGS[padding]
    )
    found = OnnxEncoder(path, threads=1).encode_batch(batch, lengths)
    assert relative_difference(found, network(batch, lengths)) < 2e-5


@pytest.mark.parametrize("options", OPTIONS)
def test_every_option(options, tmp_path):
    network = build_small(**options)
    export_onnx(network, tmp_path / "a.onnx")
    assert_equal(network, tmp_path / "a.onnx", SIZES)


@pytest.mark.parametrize("groups", [4, 12, 16])
def test_widths_that_fill_blocks_and_others(groups, tmp_path):
    """Strided convolutions of one to four channels out, and in groups."""
    torch.manual_seed(1)
    stages = [
        {**stage, "expansion": expansion, "reduction": 12}
        for stage, expansion in zip(STAGES, (4, 3, 0.75, 1, 0.5), strict=True)
    ]
    network = ReDimNet2(LogMel(), groups, stages).eval()
    export_onnx(network, tmp_path / "a.onnx")
    assert_equal(network, tmp_path / "a.onnx", [8000, 20000])


@torch.no_grad()
def test_published_b0(b0_case, tmp_path):
    network = build_published(b0_case)
    assert export_onnx(network, tmp_path / "b0.onnx") < 1e-5
    encoder = OnnxEncoder(tmp_path / "b0.onnx", threads=1)
    for size in b0_case.lengths:
        found = encoder.encode_batch(b0_case.waveform(size).unsqueeze(0))[0, 0]
        theirs = b0_case.figure(f"embedding_{size}")
        assert relative_difference(found, theirs) < 1e-5
    assert_equal(network, tmp_path / "b0.onnx", [400, 160000])


@pytest.mark.parametrize("variant", [f"b{i}" for i in range(7)])
def test_graph_of_every_variant(variant):
    """The graphs are whole; running all takes long (benchmarks/runtimes.py)."""
    hparams = Path(__file__).parents[1] / "hparams"
    with open(hparams / f"redimnet2_{variant}.yaml") as file:
        overrides = {
            "data_folder": ".",
            "musan_folder": ".",
            "rirs_folder": ".",
        }
        network = load_hyperpyyaml(file, overrides)["embedding_model"]
    for features in (False, True):
        model = over_batch(write_graph(fold(network), features))
        onnx.checker.check_model(model, full_check=True)
        assert model.opset_import[0].version == OPSET == 20


def metadata(model):
    return {entry.key: entry.value for entry in model.metadata_props}


@pytest.mark.parametrize("stages, variant", [(6, "b0"), (2, "custom")])
def test_the_variant_is_the_whole_architecture(tmp_path, stages, variant):
    architecture = VARIANTS["b0"]
    architecture = {**architecture, "stages": architecture["stages"][:stages]}
    path = tmp_path / "network.onnx"
    network = ReDimNet2(LogMel(), **architecture).eval()
    write_model(write_graph(fold(network)), network, path, {})
    assert metadata(onnx.load(path))["variant"] == variant


@pytest.mark.parametrize("padding", PADDINGS)
def test_padding_changes_nothing(small, padding):
    encoder = OnnxEncoder(small[1], threads=1)
    waveforms = [speech(size, i) for i, size in enumerate(SIZES)]
    batch = encoder.encode_batch(*pad(waveforms, PADDINGS[padding]))
    for waveform, found in zip(waveforms, batch, strict=True):
        alone = encoder.encode_batch(waveform.unsqueeze(0))[0]
        assert torch.equal(found, alone)


def test_order_of_a_batch(small):
    encoder = OnnxEncoder(small[1], threads=1)
    waveforms = [speech(size, i) for i, size in enumerate(SIZES)]
    forth = encoder.encode_batch(*pad(waveforms, PADDINGS["NaN"]))
    back = encoder.encode_batch(*pad(waveforms[::-1], PADDINGS["zeros"]))
    assert torch.equal(forth, back.flip(0))


@torch.no_grad()
@pytest.mark.parametrize("at_once", [1, 7, 16])
def test_attention_in_blocks(at_once, tmp_path, monkeypatch):
    """Of as many frames as fit into whole blocks, and of others."""
    monkeypatch.setattr(onnx_graph, "QUERIES_AT_ONCE", at_once)
    network = build_small(stages=STAGES[1:3])
    path = tmp_path / "features.onnx"
    export_onnx(network, path, features=True)
    session = onnxruntime.InferenceSession(path)
    frames = torch.arange(12, 72, 2)
    features = torch.randn(len(frames), 70, 72)
    feed = {"features": features.numpy(), "frames": frames.numpy()}
    (found,) = session.run(["embeddings"], feed)
    expected = network.encode_features(features, frames)
    assert relative_difference(torch.from_numpy(found), expected) < 1e-5


IN_BOUNDED_MEMORY = """
import resource, sys
import numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1])
frames = 12_000
features = numpy.ones((1, frames, 72), numpy.float32)
feed = {"features": features, "frames": numpy.array([frames])}
in_use = 4096 * int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, [in_use + 2**30] * 2)
session.run(None, feed)
"""


def test_memory_grows_with_the_length(tmp_path):
    """Not with its square: two minutes would need 2.3 GB for one product."""
    path = tmp_path / "features.onnx"
    export_onnx(build_small(stages=STAGES[:1]), path, features=True)
    subprocess.run([sys.executable, "-c", IN_BOUNDED_MEMORY, path], check=True)


A_MINUTE = """
import numpy, onnx.helper, torch
from measurements import forget_peak_memory, process_memory
from redimnet2_lobes import ReDimNet2
from redimnet2_lobes.models.onnx_sessions import OnnxSessions
torch.set_num_threads(2)
network = ReDimNet2.from_variant("b0").eval()
x, y = (onnx.helper.make_tensor_value_info(n, 1, [1, None]) for n in "xy")
node = onnx.helper.make_node("Neg", ["x"], ["y"])
graph = onnx.helper.make_graph([node], "graph", [x], [y])
opset = [onnx.helper.make_opsetid("", 20)]
model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=9)
sessions = OnnxSessions(model.SerializeToString())
feeds = [{"x": numpy.ones((1, 400), numpy.float32)}]
with torch.no_grad():
    network(torch.randn(1, 40_000))
    kept = [sessions.run(feeds, [400], threads=1) for _ in range(20_000)]
    minute = torch.randn(1, 960_000)
    forget_peak_memory()
    before = process_memory("VmRSS")
    network(minute)
print(process_memory("VmHWM") - before, process_memory("VmRSS") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_of_a_minute():
    """Hardly above the 187 MB that its maps need, and given back.

    Also if somebody keeps embeddings, here of a graph that costs no time.
    """
    output = subprocess.run(
        [sys.executable, "-c", A_MINUTE],
        cwd=Path(measurements.__file__).parent,
        stdout=subprocess.PIPE,
        check=True,
    ).stdout
    peak, kept = map(int, output.split())
    assert peak < 300e6 and kept < 60e6


def test_memory_that_the_program_around_has_registered(small, monkeypatch):
    """Older versions of ONNX Runtime raise where there is some already."""

    def raise_again(*arguments):
        raise RuntimeError("already been registered for sharing")

    monkeypatch.setattr(
        onnxruntime, "create_and_register_allocator", raise_again
    )
    onnx_sessions._register_memory.cache_clear()
    encoder = OnnxEncoder(small[1], threads=1)
    assert encoder.encode_batch(speech(9000, 0)).isfinite().all()


@torch.no_grad()
def test_features(tmp_path):
    network = build_small(stages=STAGES[1:3], dual_aggregation=True)
    path = tmp_path / "features.onnx"
    export_onnx(network, path, features=True)
    session = onnxruntime.InferenceSession(path)
    features, frames = torch.randn(3, 90, 72), torch.tensor([90, 17, 50])
    feed = {"features": features.numpy(), "frames": frames.numpy()}
    (found,) = session.run(["embeddings"], feed)
    expected = network.encode_features(features, frames)
    assert relative_difference(torch.from_numpy(found), expected) < 1e-5
    with pytest.raises(ValueError, match="takes features; export without"):
        OnnxEncoder(path)


def test_the_file_says_what_it_is(small):
    session = onnxruntime.InferenceSession(small[1])
    known = session.get_modelmeta().custom_metadata_map
    assert len(json.loads(known.pop("test_embedding"))) == 192
    assert "16807" in known.pop("test_input")
    assert known == {
        "embedding_space": embedding_space(small[0]),
        "model": "ReDimNet2",
        "variant": "custom",
        "sample_rate": "16000",
        "minimum_samples": "400",
        "embedding_size": "192",
        "test_shape": "[1, 32000]",
    }
    assert [(x.name, x.shape) for x in session.get_inputs()] == [
        ("waveforms", ["batch", "samples"]),
        ("lengths", ["batch"]),
    ]
    assert os.listdir(small[1].parent) == [small[1].name]


def test_many_files(small, tmp_path):
    """In place of EncoderClassifier.encode_batch."""
    paths = [tmp_path / f"{i}.wav" for i in range(3)]
    for i, path in enumerate(paths):
        audio_io.save(path, speech(9000 + 500 * i, i).unsqueeze(0), 16000)
    encoder = OnnxEncoder(small[1], threads=1)
    found = encode_utterances(encoder.encode_batch, paths)
    expected = encode_utterances(small[0], paths)
    for path in paths:
        assert relative_difference(found[path], expected[path]) < 1e-4


def test_too_short(small):
    encoder = OnnxEncoder(small[1], threads=1)
    with pytest.raises(ValueError, match="has 399 samples"):
        encoder.encode_batch(torch.zeros(1, 399))
    with pytest.raises(ValueError, match="has 100 samples"):
        encoder.encode_batch(torch.zeros(2, 1000), torch.tensor([1, 0.1]))


@pytest.mark.parametrize("size", [(1, 9000), (9000,)])
def test_gradients_are_refused(size, small):
    """A loss of these embeddings would have no effect beside another."""
    encoder = OnnxEncoder(small[1], threads=1)
    wavs = torch.randn(size, requires_grad=True)
    for each in (wavs, 2 * wavs.detach().requires_grad_()):
        with pytest.raises(
            ValueError, match="^wavs: an .onnx file gives no gr"
        ):
            encoder.encode_batch(each)
    expected = encoder.encode_batch(wavs.detach())
    with torch.no_grad():
        assert torch.equal(encoder.encode_batch(wavs), expected)


def test_damaged_and_foreign_files(small, tmp_path):
    path = tmp_path / "a.onnx"
    with pytest.raises(ValueError, match="a.onnx: no such file"):
        OnnxEncoder(path)
    for content in (b"", b"no model", small[1].read_bytes()[:-1000]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="a.onnx: not a") as caught:
            OnnxEncoder(path)
        assert "\n" not in str(caught.value)
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    values = [onnx.helper.make_tensor_value_info(name, 1, [1]) for name in "xy"]
    graph = onnx.helper.make_graph([node], "g", values[:1], values[1:])
    opset = [onnx.helper.make_opsetid("", 20)]
    foreign = onnx.helper.make_model(graph, opset_imports=opset, ir_version=9)
    onnx.save(foreign, path)
    with pytest.raises(ValueError, match="not a file of redimnet2 export"):
        OnnxEncoder(path)


def test_a_wrong_file_is_not_kept(tmp_path):
    network = build_small(stages=STAGES[1:3])
    with torch.no_grad():
        network.projection.weight[0] = torch.finfo().max
    with pytest.raises(ValueError, match="differ by nan of the largest value"):
        export_onnx(network, tmp_path / "a.onnx")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite(tmp_path, value):
    network = ReDimNet2.from_variant("b0").eval()
    with torch.no_grad():
        network.projection.bias[1] = value
    path = tmp_path / "network.onnx"
    with pytest.raises(ValueError, match=f"^{path}: .* projection.bias of the"):
        export_onnx(network, path)
    assert not list(tmp_path.iterdir())


def test_a_full_disk(tmp_path, monkeypatch):
    def full(path, content):
        with open(path, "wb") as file:
            file.write(content[:10])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    network = build_small(stages=STAGES[1:3])
    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(OSError, match="No space left.*a.onnx"):
        export_onnx(network, tmp_path / "a.onnx")
    assert os.listdir(tmp_path) == []


def test_missing_package(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install onnx onnxruntime"):
        export_onnx(build_small(stages=STAGES[1:3]), tmp_path / "a.onnx")


def test_cli(b0_case, tmp_path, capsys):
    load_encoder(b0_case, tmp_path)  # which writes a model folder
    (folder,) = {path.parent for path in tmp_path.rglob("hyperparams.yaml")}
    output = tmp_path / "b0.onnx"
    cli.main(["export", str(folder), "--output", str(output), "--int8"])
    assert "of torch's embeddings" in capsys.readouterr().out
    before = output.read_bytes()
    with pytest.raises(SystemExit, match="error: .* exists already"):
        cli.main(["export", str(folder), "--output", str(output)])
    assert output.read_bytes() == before
    with pytest.raises(SystemExit, match="error: .* is no folder"):
        cli.main(["export", str(folder), f"--output={tmp_path}/b/c.onnx"])


def operations(graph):
    for node in graph.node:
        yield node.op_type
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from operations(attribute.g)


@torch.no_grad()
@pytest.mark.parametrize("features", [False, True])
@pytest.mark.parametrize("options", OPTIONS)
def test_plain(options, features, tmp_path):
    """One utterance of any length, without branches and loops."""
    network = build_small(**options)
    path = tmp_path / "plain.onnx"
    export_onnx(network, path, features, target="plain")
    graph = onnx.load(path).graph
    assert not {"If", "Loop", "Scan"} & {*operations(graph)}
    assert (len(graph.input), len(graph.output)) == (1, 1)
    session = onnxruntime.InferenceSession(path)
    for size in (50, 600) if features else (400, 30001, 120000):
        shape = [1, size, 72] if features else [1, size]
        utterance = torch.randn(shape)
        feed = {graph.input[0].name: utterance.numpy()}
        (found,) = session.run(["embedding"], feed)
        if features:
            expected = network.encode_features(utterance)
        else:
            expected = network(utterance).squeeze(1)
        assert relative_difference(torch.from_numpy(found), expected) < 2e-5


@torch.no_grad()
@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("features", [False, True])
@pytest.mark.parametrize("seconds", [0.025, 0.3, 6])
def test_fixed(seconds, features, int8, tmp_path):
    """All shapes are known, and none is computed."""
    network = build_small(**OPTIONS[1])
    path = tmp_path / "fixed.onnx"
    export_onnx(network, path, features, int8, target="fixed", seconds=seconds)
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert not DYNAMIC & {*operations(model.graph)}
    assert {opset.domain for opset in model.opset_import} == {""}
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    values = [*inferred.input, *inferred.value_info, *inferred.output]
    named = {value.name for value in values}
    assert named >= {name for node in inferred.node for name in node.output}
    for value in values:
        dimensions = value.type.tensor_type.shape.dim
        assert all(x.HasField("dim_value") for x in dimensions), value.name
    samples = round(16000 * seconds)
    waveform = torch.randn(1, samples)
    if features:
        repeated = waveform.repeat(1, 20)[:, : max(samples, 8000)]
        x = network.front_end(repeated)[0]
        expected = network.encode_features(x)
    else:
        x, expected = waveform, network(waveform).squeeze(1)
    session = onnxruntime.InferenceSession(path)
    feed = {session.get_inputs()[0].name: x.numpy()}
    (found,) = session.run(["embedding"], feed)
    tolerance = 0.1 if int8 else 2e-5
    assert relative_difference(torch.from_numpy(found), expected) < tolerance
    if features:
        return
    encoder = OnnxEncoder(path, threads=1)
    assert encoder.encode_batch(waveform.repeat(2, 1)).shape == (2, 1, 192)
    with pytest.raises(ValueError, match=f"utterances of {samples} samples"):
        encoder.encode_batch(torch.randn(1, samples + 1))


def test_what_depends_on_values_is_refused():
    """Its shape would not be known, whatever the length."""
    node = onnx.helper.make_node("NonZero", ["x"], ["y"])
    x = onnx.helper.make_tensor_value_info("x", 1, [1, "samples"])
    y = onnx.helper.make_tensor_value_info("y", 7, [2, "places"])
    graph = onnx.helper.make_graph([node], "graph", [x], [y])
    opset = [onnx.helper.make_opsetid("", 20)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=9)
    with pytest.raises(ValueError, match="leaves NonZero in a graph of fixed"):
        with_fixed_length(model, 400)


@torch.no_grad()
def test_a_plain_file_embeds_batches(tmp_path):
    network = build_small(stages=STAGES[1:3])
    export_onnx(network, tmp_path / "plain.onnx", target="plain")
    assert_equal(network, tmp_path / "plain.onnx", SIZES)


@torch.no_grad()
@pytest.mark.parametrize("target", ["plain", "fixed"])
def test_tract(target, b0_case, tmp_path):
    """A runtime in Rust."""
    import tract

    network = build_published(b0_case)
    path = tmp_path / "b0.onnx"
    seconds = 1 if target == "fixed" else None
    export_onnx(network, path, target=target, seconds=seconds)
    model = tract.onnx().load(path)
    model.set_input_fact(0, model.fact("1,16000,f32"))
    waveform = speech(16000, 0).unsqueeze(0)
    (found,) = model.into_model().into_runnable().run([waveform.numpy()])
    found = torch.from_numpy(found.to_numpy())
    assert relative_difference(found, network(waveform).squeeze(1)) < 1e-4


def test_seconds_belong_to_a_fixed_length(tmp_path, capsys):
    network = build_small(stages=STAGES[1:3])
    for arguments in ({"target": "fixed"}, {"seconds": 1}):
        with pytest.raises(ValueError, match="^seconds: belongs to"):
            export_onnx(network, tmp_path / "a.onnx", **arguments)
    for seconds in (0.02, 121, math.inf, math.nan, "6"):
        with pytest.raises(ValueError, match="^seconds must be .* to 120, got"):
            export_onnx(
                network, tmp_path / "a.onnx", target="fixed", seconds=seconds
            )
    with pytest.raises(ValueError, match="^for: unknown value 'tflite'"):
        export_onnx(network, tmp_path / "a.onnx", target="tflite")
    for options in (
        ["--for=fixed"],
        ["--seconds=3"],
        ["--for=fixed", "--seconds=nan"],
        ["--for=fixed", "--seconds=121"],
    ):
        with pytest.raises(SystemExit) as caught:
            cli.main(["export", "b3", f"--output={tmp_path}/a.onnx", *options])
        assert caught.value.code == 2
        assert "seconds" in capsys.readouterr().err
    assert not os.listdir(tmp_path)


def by_the_formula(count):
    """As somebody writes it who reads the metadata of a file."""
    values, s = [], 1
    for n in range(count):
        s = 16807 * s % 2147483647
        values.append((s / 2147483647 - 0.5) * ((n % 4000 + 1) / 4000))
    return torch.tensor(values, dtype=torch.float64).float()


@torch.no_grad()
@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("features", [False, True])
@pytest.mark.parametrize("target", ["onnx", "plain", "fixed"])
def test_golden_vector(target, features, int8, tmp_path, capsys):
    network = build_small(stages=STAGES[1:3])
    path = tmp_path / "a.onnx"
    seconds = 3 if target == "fixed" else None
    export_onnx(network, path, features, int8, target=target, seconds=seconds)
    known = metadata(onnx.load(path))
    shape = json.loads(known["test_shape"])
    expected = torch.zeros(1, (seconds or 2) * 16000)
    if features:
        expected = network.front_end(expected)[0]
    assert shape == [*expected.shape]
    x = by_the_formula(math.prod(shape)).reshape(shape)
    expected = network.encode_features(x) if features else network(x)[0]
    found = torch.tensor([json.loads(known["test_embedding"])])
    tolerance = 0.1 if int8 else 2e-5
    assert relative_difference(found, expected) < tolerance
    cli.main(["check", str(path)])
    assert "of the embedding of its export" in capsys.readouterr().out


def change_metadata(path, **changes):
    model = onnx.load(path)
    known = {**metadata(model), **changes}
    known = {key: value for key, value in known.items() if value is not None}
    onnx.helper.set_model_props(model, known)
    onnx.save(model, path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test_input": None}, "has no test input, .* export it again"),
        ({"test_input": "sin(n)"}, "its .* another formula"),
        ({"test_embedding": None}, "its test input cannot be run"),
        ({"test_embedding": "[1, 2]"}, "its test input cannot be run"),
        ({"test_embedding": json.dumps([1.0] * 192)}, "its .* differs by"),
        ({"test_embedding": json.dumps([math.nan] * 192)}, "its .* by nan of"),
        ({"test_shape": "[1, 16000]"}, "its .* differs by"),
        ({"test_shape": "[-1]"}, "its test input cannot be run"),
    ],
)
def test_check_says_what_is_wrong(changes, message, small, tmp_path):
    path = tmp_path / "a.onnx"
    shutil.copyfile(small[1], path)
    change_metadata(path, **changes)
    with pytest.raises(SystemExit, match=f"^error: {path}: {message}"):
        cli.main(["check", str(path)])


def test_check_notices_a_weight(small, tmp_path):
    model = onnx.load(small[1])
    (loop,) = [x for x in model.graph.node if x.op_type == "Loop"]
    (body,) = [x.g for x in loop.attribute if x.name == "body"]
    weight = max(body.initializer, key=lambda x: math.prod(x.dims))
    values = onnx.numpy_helper.to_array(weight).copy()
    values.flat[:100] *= 1.5
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    path = tmp_path / "a.onnx"
    onnx.save(model, path)
    with pytest.raises(SystemExit, match="differs by .* export it again"):
        cli.main(["check", str(path)])


def test_silence_gives_what_torch_gives(small):
    silence = torch.zeros(1, 9000)
    found = OnnxEncoder(small[1], threads=1).encode_batch(silence)
    with torch.no_grad():
        assert relative_difference(found, small[0](silence)) < 1e-4
    assert np.isfinite(found.numpy()).all()
