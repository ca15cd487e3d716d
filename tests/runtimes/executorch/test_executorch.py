"""Files for ExecuTorch, in its own runtime, against their networks."""

import os

import pytest
import torch
from conftest import ParityCase, relative_difference
from executorch.runtime import Runtime
from test_parity import build as build_published
from test_redimnet2 import STAGES, speech
from test_redimnet2 import build as build_small

from redimnet2_lobes import cli
from redimnet2_lobes.executorch.export import export_pte
from redimnet2_lobes.models.embedding_space import embedding_space
from redimnet2_lobes.models.folding import fold
from redimnet2_lobes.models.front_end import TorchaudioLogMel
from redimnet2_lobes.onnx import export as onnx_export
from redimnet2_lobes.pretrained.model_folder import write_model_folder
from redimnet2_lobes.scoring.operating_point import OperatingPoint

SAMPLES = 8000


def small(**options):
    return build_small(stages=STAGES[2:3], **options)


def methods(path):
    """What a file holds, by the runtime alone."""
    program = Runtime.get().load_program(path)
    return {
        name: program.load_method(name).execute([])[0]
        for name in program.method_names - {"forward"}
    }


def encode(path, x):
    """As docs/devices.md has it."""
    program = Runtime.get().load_program(path)
    return program.load_method("forward").execute([x])[0].clone()


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A small network, its file and its file with 8-bit weights."""
    network = small(aggregation_norm=True, dual_aggregation=True)
    folder = tmp_path_factory.mktemp("export")
    paths = folder / "float.pte", folder / "int8.pte"
    operating_point = OperatingPoint(0.25, "EER of a test")
    for path, int8 in zip(paths, (False, True), strict=True):
        export_pte(network, path, SAMPLES / 16000, False, int8, operating_point)
    return network, *paths


@torch.no_grad()
def test_published_b0(tmp_path):
    case = ParityCase("b0-vox2")
    size = min(case.lengths)
    path = tmp_path / "b0.pte"
    assert export_pte(build_published(case), path, size / 16000) < 1e-5
    found = encode(path, case.waveform(size).unsqueeze(0))[0]
    theirs = case.figure(f"embedding_{size}")
    assert relative_difference(found, theirs) < 1e-5
    assert methods(path)["variant"] == "b0"


@torch.no_grad()
def test_speech_and_silence(exported):
    network, path, _ = exported
    for waveform in (speech(SAMPLES), torch.zeros(SAMPLES)):
        waveform = waveform.unsqueeze(0)
        found = encode(path, waveform)
        assert relative_difference(found, network(waveform)[:, 0]) < 1e-5


@torch.no_grad()
def test_int8(exported):
    network, path, int8 = exported
    assert os.path.getsize(int8) < 0.8 * os.path.getsize(path)
    waveform = speech(SAMPLES).unsqueeze(0)
    found, expected = encode(int8, waveform), network(waveform)[:, 0]
    assert torch.cosine_similarity(found, expected) > 0.995
    assert not torch.equal(found, encode(path, waveform))


@torch.no_grad()
def test_features(tmp_path):
    """Of half a second, to which what is shorter is repeated."""
    network = small(front_end=TorchaudioLogMel())
    path = tmp_path / "features.pte"
    export_pte(network, path, seconds=0.1, features=True)
    features = network.front_end(speech(SAMPLES).unsqueeze(0))[0]
    found = encode(path, features)
    assert relative_difference(found, network.encode_features(features)) < 1e-5
    known = methods(path)
    assert known["fixed_frames"] == features.shape[1] == 51
    assert "fixed_samples" not in known


@torch.no_grad()
def test_the_other_front_end(tmp_path):
    network = small(front_end=TorchaudioLogMel(normalize=True))
    path = tmp_path / "a.pte"
    export_pte(network, path, SAMPLES / 16000)
    waveform = speech(SAMPLES).unsqueeze(0)
    found = encode(path, waveform)
    assert relative_difference(found, network(waveform)[:, 0]) < 1e-5


def test_what_a_file_holds(exported):
    known = methods(exported[1])
    assert known["model"] == "ReDimNet2"
    assert known["variant"] == "custom"
    assert known["sample_rate"] == 16000
    assert known["fixed_samples"] == SAMPLES
    assert known["embedding_size"] == 192
    assert float(known["threshold"]) == 0.25
    assert known["threshold_origin"] == "EER of a test, not of 0.5 s each"
    space = embedding_space(exported[0])
    assert known["embedding_space"] == space
    assert known["test_shape"].tolist() == [1, SAMPLES]
    assert known["test_tolerance"] == 1e-4
    quantized = methods(exported[2])
    assert quantized["threshold_origin"].endswith(", before quantization")
    assert quantized["test_tolerance"] == 0.02
    assert quantized["embedding_space"] == f"{space}-int8-executorch"


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_no_embedding_of_what_is_not_finite(exported, value):
    for path in exported[1:]:
        waveform = speech(SAMPLES).unsqueeze(0)
        waveform[0, 4000] = value
        assert encode(path, waveform).isnan().all()


@pytest.mark.parametrize("shape", [[1, 7999], [1, 8001], [2, 8000], [8000]])
def test_other_shapes_are_refused(exported, shape):
    with pytest.raises(RuntimeError):
        encode(exported[1], torch.randn(shape))


def test_check(exported, capsys):
    for path in exported[1:]:
        cli.main(["check", str(path)])
        assert "within 0.0e+00 of the embedding" in capsys.readouterr().out


def test_check_notices_a_weight(exported, tmp_path):
    network, path, _ = exported
    content = bytearray(path.read_bytes())
    bias = fold(network).projection.bias.detach().numpy().tobytes()
    assert content.count(bias) == 1
    place = content.index(bias)
    content[place : place + len(bias)] = bytes(len(bias))
    damaged = tmp_path / "damaged.pte"
    damaged.write_bytes(content)
    with pytest.raises(SystemExit, match="differs by .* export it again"):
        cli.main(["check", str(damaged)])


@pytest.mark.parametrize("content", [b"", b"not a program" * 100])
def test_check_refuses_other_files(content, tmp_path):
    path = tmp_path / "a.pte"
    path.write_bytes(content)
    with pytest.raises(SystemExit, match=f"^error: {path}: not a .pte file"):
        cli.main(["check", str(path)])


def test_check_refuses_programs_of_others(tmp_path):
    from executorch.exir import to_edge

    program = torch.export.export(torch.nn.ReLU(), (torch.zeros(1),))
    path = tmp_path / "a.pte"
    path.write_bytes(to_edge(program).to_executorch().buffer)
    with pytest.raises(SystemExit, match="not a file of redimnet2 export"):
        cli.main(["check", str(path)])


def test_the_command(tmp_path, capsys):
    folder, output = tmp_path / "model", tmp_path / "a.pte"
    write_model_folder(folder, small(), "A small network")
    arguments = ["export", str(folder), f"--output={output}"]
    arguments += ["--for=executorch", "--seconds=0.5", "--int8"]
    cli.main(arguments)
    assert "of torch's embeddings" in capsys.readouterr().out
    assert methods(output)["fixed_samples"] == SAMPLES
    with pytest.raises(SystemExit, match="^error: output: .*a.pte"):
        cli.main(arguments)
    assert sorted(os.listdir(tmp_path)) == ["a.pte", "model"]


def test_nothing_is_written_of_bad_weights(tmp_path):
    network = small()
    with torch.no_grad():
        network.projection.bias[3] = torch.inf
    with pytest.raises(ValueError, match="projection.bias .* not finite"):
        export_pte(network, tmp_path / "a.pte", 1)
    assert not os.listdir(tmp_path)


def test_nothing_is_written_that_differs(tmp_path, monkeypatch):
    """XNNPACK's only GELU is the exact one."""
    from redimnet2_lobes.executorch import export

    table = export.substitutes()
    del table[torch.ops.aten.gelu.default]
    monkeypatch.setattr(export, "substitutes", lambda: table)
    monkeypatch.setattr(onnx_export, "TOLERANCE", 1e-6)
    with pytest.raises(ValueError, match="nothing was written, .* differ by"):
        export_pte(small(), tmp_path / "a.pte", SAMPLES / 16000)
    assert not os.listdir(tmp_path)
