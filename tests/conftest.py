"""Shared by all tests: published parity cases and the recipe's modules."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from redimnet2_lobes import cli
from redimnet2_lobes.models import folded_copy, redimnet2, tiles
from redimnet2_lobes.pretrained.model_folder import write_model_folder

sys.path.insert(0, str(Path(__file__).parent / "parity"))
import fill

TESTS = Path(__file__).parent

# With pytest-xdist each process has a core of its own.
if "OMP_NUM_THREADS" not in os.environ:
    torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)


class ParityCase:
    """One parity case: its published layout, weights, inputs and figures."""

    names = sorted(
        path.name.removesuffix(".manifest.json")
        for path in (TESTS / "parity").glob("*.manifest.json")
    )

    def __init__(self, name):
        path = TESTS / "parity" / name
        text = path.with_name(f"{name}.manifest.json").read_text()
        self.manifest = json.loads(text)
        self.figures = np.load(path.with_name(f"{name}.npz"))
        self.lengths = self.manifest["waveform_lengths"]

    def checkpoint(self):
        weights = fill.fill(self.manifest, self.manifest["seed"])
        return {
            "model_config": self.manifest["model_config"],
            "state_dict": {
                name: torch.from_numpy(value) for name, value in weights.items()
            },
        }

    def waveform(self, samples):
        return torch.from_numpy(fill.waveform(samples, self.manifest["seed"]))

    def figure(self, name):
        return torch.from_numpy(self.figures[name])


@pytest.fixture(
    params=[
        pytest.param(name, marks=[pytest.mark.slow] * (name >= "b4"))
        for name in ParityCase.names
    ]
)
def parity_case(request):
    return ParityCase(request.param)


@pytest.fixture
def b3_case():
    return ParityCase("b3-vox2")


@pytest.fixture
def b0_case():
    return ParityCase("b0-vox2")


@pytest.fixture(params=["onnxruntime", "torch"])
def runtime(request):
    """What a network computes embeddings with on a CPU."""
    if request.param == "torch":
        request.getfixturevalue("torch_only")
    return request.param


@pytest.fixture
def torch_only(monkeypatch):
    """As where ONNX Runtime is not installed."""
    monkeypatch.setattr(folded_copy, "HAS_ONNX_RUNTIME", False)


@pytest.fixture
def tile_bytes(monkeypatch):
    """Sets the size of tiles, so that small networks have some or none."""

    def set_both(size):
        monkeypatch.setattr(tiles, "TILE_BYTES", size)
        monkeypatch.setattr(redimnet2, "TILE_BYTES", size)

    return set_both


@pytest.fixture(scope="session")
def noise_corpora(tmp_path_factory):
    """MUSAN and RIRS_NOISES with a few short files, in their layouts."""
    folder = tmp_path_factory.mktemp("noises")
    random = np.random.default_rng(1)

    def write(name, waveform):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, waveform, 16000, subtype="FLOAT")

    for part in ("noise/free-sound", "music/fma", "speech/us-gov"):
        for index, samples in enumerate([400, 8000, 48000]):
            noise = random.normal(0, 0.1, samples)
            write(f"musan/{part}/{index}.wav", noise)
    for size in ("smallroom", "largeroom"):
        for index, samples in enumerate([200, 1500, 20000]):
            tail = random.normal(0, 1, samples)
            tail *= np.geomspace(1, 0.001, samples)
            write(f"rirs/simulated_rirs/{size}/Room001/{index}.wav", tail)
    return {
        "musan_folder": str(folder / "musan"),
        "rirs_folder": str(folder / "rirs"),
    }


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    from test_cli import small_network

    folder = tmp_path_factory.mktemp("models") / "small"
    write_model_folder(folder, small_network(), "A small network")
    return folder


@pytest.fixture
def model(model_folder, monkeypatch):
    """It is the default model of the command."""
    monkeypatch.setenv("REDIMNET2_MODEL", str(model_folder))
    return model_folder


@pytest.fixture
def run(capsys):
    """Runs a command that succeeds, and returns what it prints."""

    def run(*arguments):
        capsys.readouterr()
        cli.main([str(argument) for argument in arguments])
        return capsys.readouterr().out

    return run


@pytest.fixture
def error_of(capsys):
    """Runs a command that fails, and returns its line."""

    def run(*arguments, code=1):
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            cli.main([str(argument) for argument in arguments])
        # libmpg123 adds lines of its own to those of the process.
        captured = capsys.readouterr()
        assert captured.out == ""
        if code == 1:  # Python prints it, and makes it the exit code 1
            assert captured.err == ""
            line = caught.value.code
            assert "\n" not in line
        else:
            assert caught.value.code == code
            (line,) = captured.err.splitlines()
        assert line.startswith("error: ")
        return line

    return run


def relative_difference(ours, theirs):
    """Largest difference, relative to the largest value."""
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def exit_code(main, *arguments):
    """What a program ends with; Python prints a text, and makes it a 1."""
    try:
        main(*arguments)
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
            return 1
        return end.code
    return 0


def join_files(paths, joined):
    """Writes 16-bit files at 16 kHz into one; gives the borders of each.

    Between them is noise, so that a border that is missed is seen.
    """
    random = np.random.default_rng(1)
    parts, borders, end = [], [], 0
    for path in paths:
        samples, rate = soundfile.read(path, dtype="int16")
        assert rate == 16000 and soundfile.info(path).subtype == "PCM_16"
        noise = random.integers(-9999, 9999, 1000 + len(parts)).astype("int16")
        start = end + len(noise)
        end = start + len(samples)
        parts += [noise, samples]
        borders.append((start, end))
    soundfile.write(joined, np.concatenate(parts), 16000)
    return borders
