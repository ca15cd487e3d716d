"""Published error rates, measured again: ``redimnet2 reproduce``."""

import dataclasses
import hashlib
import json
import os
import shutil

import numpy as np
import pytest
import soundfile
import torch
from conftest import exit_code
from file_server import serve_files
from synthetic_voices import synthetic_utterance
from test_releases import FILE, NAME, published_file
from training_runs import write_trials

from redimnet2_lobes import cli
from redimnet2_lobes.data import trials, voxceleb_lists
from redimnet2_lobes.inference import embedding_cache
from redimnet2_lobes.pretrained import releases
from redimnet2_lobes.scoring.metrics import EER
from redimnet2_lobes.scoring.reproduction import tolerance

# Of each list the speakers, numbers of synthetic voices.
SPEAKERS = {"O": (1, 2, 3), "E": (1, 2, 3, 4, 5), "H": (2, 4, 5)}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A folder such as VoxCeleb1's, and small lists in place of its own."""
    folder = tmp_path_factory.mktemp("corpus")
    names = {speaker: [] for speaker in SPEAKERS["E"]}
    for speaker, files in names.items():
        for utterance in range(3):
            files.append(f"id{speaker}/video/{utterance:05}.wav")
            path = folder / "wav" / files[-1]
            path.parent.mkdir(parents=True, exist_ok=True)
            waveform = synthetic_utterance(speaker, utterance, 0.5)
            soundfile.write(path, waveform, 16000)
    lists = {}
    for letter, speakers in SPEAKERS.items():
        path = folder / "list.txt"
        write_trials(path, [name for each in speakers for name in names[each]])
        lists[letter] = path.read_bytes()
        path.unlink()
    return folder, lists


@pytest.fixture
def data_folder(corpus, tmp_path):
    return shutil.copytree(corpus[0], tmp_path / "VoxCeleb1")


@pytest.fixture
def server(corpus, tmp_path, monkeypatch):
    """Where the checkpoint and the lists are published."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.chdir(tmp_path)
    files = {FILE: published_file("b0-vox2")}
    with serve_files(files) as server:
        monkeypatch.setattr(releases, "ADDRESS", server.address)
        for letter, content in corpus[1].items():
            name = voxceleb_lists.file_of(letter)
            server.files[name] = content
            md5 = hashlib.md5(content).hexdigest()
            monkeypatch.setitem(trials.MD5_SUMS, name, md5)
            url = f"{server.address}/{name}"
            monkeypatch.setitem(voxceleb_lists.URLS, letter, url)
        yield server


@pytest.fixture
def publish(monkeypatch):
    """Sets the figures that are published of a checkpoint."""

    def publish(*error_rates, name=NAME):
        released = dataclasses.replace(
            releases.RELEASED[name], error_rates=error_rates
        )
        monkeypatch.setitem(releases.RELEASED, name, released)

    return publish


@pytest.fixture
def refused(capsys):
    """Runs a command that fails; what it printed, and the line at its end."""

    def run(*arguments):
        capsys.readouterr()
        assert exit_code(cli.main, [*map(str, arguments)]) == 1
        printed = capsys.readouterr()
        line = printed.err.splitlines()[-1]
        assert line.startswith("error: ")
        return printed.out, line

    return run


def measured(run, data_folder, *options):
    printed = run("reproduce", NAME, f"--data_folder={data_folder}", *options)
    return json.loads(printed)


def scores_of(path):
    labels, scores = np.loadtxt(path, usecols=(2, 3)).T
    return torch.from_numpy(scores[labels == 1]), torch.from_numpy(
        scores[labels == 0]
    )


def test_figures_within_tolerance(server, publish, run, data_folder, tmp_path):
    publish("-", "-", "-")
    first = measured(run, data_folder, "--json")
    published = [f"{each['eer_percent']:.1f}" for each in first["lists"]]
    publish(*published)
    asked = len(server.ranges)
    again = measured(run, data_folder, "--json")
    assert len(server.ranges) == asked == 4  # each file once
    folder = tmp_path / "results" / "reproduction" / NAME
    assert json.loads((folder / "reproduction.json").read_text()) == again
    assert [each["list"] for each in again["lists"]] == list(SPEAKERS)
    rows = json.loads((folder / "results.json").read_text())["results"]
    for each, before, row, figure in zip(
        again["lists"], first["lists"], rows, published, strict=True
    ):
        assert each["eer_percent"] == before["eer_percent"]
        assert each["eer_percent"] == pytest.approx(row["eer_percent"])
        low, high = each["eer_percent_interval"]
        assert low <= each["eer_percent"] <= high
        assert each["published_eer_percent"] == float(figure)
        assert each["within_tolerance"] is True
        assert before["within_tolerance"] is None
        scores = scores_of(folder / row["list"] / "cosine_scores.txt")
        assert each["eer_percent"] == pytest.approx(100 * EER(*scores)[0])
        assert each["tolerance_percent"] == pytest.approx(
            tolerance(*scores, figure)
        )
    assert (folder / "reproduction.png").read_bytes()[1:4] == b"PNG"


def test_embeddings_are_computed_once(
    server, publish, run, data_folder, monkeypatch
):
    publish("-", "-", "-")
    first = measured(run, data_folder, "--json")

    def refuse(*arguments, **options):
        raise AssertionError("embedded again")

    monkeypatch.setattr(embedding_cache, "encode_utterances", refuse)
    assert measured(run, data_folder, "--json") == first


def test_a_figure_that_is_not_reproduced(
    server, publish, run, data_folder, refused
):
    publish("-", "-", "-")
    options = "--lists=H,O", "--output=here"
    found = measured(run, data_folder, *options, "--json")["lists"]
    rates = {each["list"]: each["eer_percent"] for each in found}
    assert list(rates) == ["H", "O"]
    # The tolerance is a trial of the rarer kind, a digit and next to nothing.
    targets = 9  # three pairs of each of three speakers
    off = rates["H"] + 100 / targets + 0.2
    publish(f"{rates['O'] + 100 / targets:.1f}", "0.1", f"{off:.1f}")
    out, line = refused(
        "reproduce", NAME, f"--data_folder={data_folder}", *options
    )
    assert line.startswith(f"error: {NAME}: not within tolerance")
    assert f"on H; see {os.path.join('here', 'reproduction.json')}" in line
    rows = out.splitlines()
    assert rows[1].startswith("VoxCeleb1-H") and " NO " in rows[1]
    assert rows[2].startswith("VoxCeleb1-O") and " yes " in rows[2]


def test_without_published_figures(server, run, data_folder, capsys):
    name = "b0-vox2-ptn"
    server.files[f"{name}.pt"] = server.files[FILE]
    cli.main(["reproduce", name, f"--data_folder={data_folder}", "--lists=O"])
    printed = capsys.readouterr()
    assert "note: b0-vox2-ptn: no figures are published" in printed.err
    assert printed.out.splitlines()[1].split()[-4:] == ["-", "-", "-", "36"]


def test_lists_beside_the_corpus_are_taken(
    server, corpus, publish, run, data_folder, tmp_path
):
    publish("-", "-", "-")
    path = data_folder / "veri_test2.txt"
    path.write_bytes(corpus[1]["O"])
    measured(run, data_folder, "--lists=O", "--json")
    assert len(server.ranges) == 1  # the checkpoint
    assert not list((tmp_path / "results").rglob("veri_test2.txt"))


def test_another_list_beside_the_corpus(server, error_of, data_folder):
    (data_folder / "veri_test2.txt").write_text("1 a/1.wav a/2.wav\n")
    line = error_of("reproduce", NAME, f"--data_folder={data_folder}")
    assert "veri_test2.txt: it is not VoxCeleb1-O as published" in line
    assert line.endswith("move it away and run the same command again")
    assert not server.ranges


@pytest.mark.parametrize(
    "letters, remedy", [("O,E,H", True), ("E", True), ("O", False)]
)
def test_missing_audio(server, refused, data_folder, letters, remedy):
    shutil.rmtree(data_folder / "wav" / "id2")
    _, line = refused(
        *("reproduce", NAME, f"--data_folder={data_folder}"),
        *(f"--lists={letters}", "--output=here"),
    )
    assert "--data_folder: 3 of the " in line and "missing_files.txt" in line
    assert line.endswith("give --lists=O") == remedy
    # The lists alone, not the checkpoint.
    assert len(server.ranges) == len(letters.split(","))


def test_an_interrupted_download_goes_on(
    server, publish, run, refused, data_folder
):
    publish("-", "-", "-")
    server.cut_at = 100
    arguments = "reproduce", NAME, f"--data_folder={data_folder}", "--lists=O"
    _, line = refused(*arguments)
    assert "cannot be fetched" in line and "veri_test2.txt" in line
    server.cut_at = None
    run(*arguments)
    assert server.ranges == [None, "bytes=100-", None]  # and the checkpoint


def test_without_a_network(server, error_of, data_folder, tmp_path):
    server.server_close()
    line = error_of("reproduce", NAME, f"--data_folder={data_folder}")
    path = tmp_path / "results" / "reproduction" / NAME / "lists"
    assert "fetch it by hand and save it as " in line
    assert line.endswith(str(path.relative_to(tmp_path) / "veri_test2.txt"))


def test_wrong_arguments(server, error_of, data_folder):
    folder = f"--data_folder={data_folder}"
    assert "no published checkpoint" in error_of("reproduce", "b7", folder)
    line = error_of("reproduce", NAME, "--data_folder=gone")
    assert line.startswith("error: --data_folder: no folder gone; give")
    for letters in ("B", "O,O", "", "OE"):
        arguments = "reproduce", NAME, folder, f"--lists={letters}"
        assert "is not some of O,E,H" in error_of(*arguments, code=2)
    line = error_of("reproduce", NAME, folder, "--lists=O", "--device=nothing")
    assert line.startswith("error: --device: 'nothing' cannot be used here")
    assert "missing --data_folder" in error_of("reproduce", NAME, code=2)


@pytest.mark.parametrize("published", ["1", "2.0", "2.04", "2.345"])
def test_the_tolerance_covers_what_it_says(published):
    """Any errors of the scores, on top of the rounding."""
    random = np.random.default_rng(1)
    positive = torch.from_numpy(random.normal(4.0, 1, 2000))
    negative = torch.from_numpy(random.normal(0, 1, 9000))
    digits = len(published.partition(".")[2])
    rounding = 0.5 * 10**-digits
    eer = 100 * EER(positive, negative)[0]
    one_trial = 100 / 2000
    exact = tolerance(positive, negative, published, score_error=0)
    assert exact == pytest.approx(rounding + one_trial)
    for error in (1e-5, 1e-3, 1e-2):
        allowed = tolerance(positive, negative, published, error)
        assert allowed >= exact
        for _ in range(20):
            moved = [
                scores + error * (2 * torch.rand(len(scores)) - 1)
                for scores in (positive, negative)
            ]
            off = abs(100 * EER(*moved)[0] - eer)
            assert off <= allowed - exact + 1e-9
    # Few scores lie near the threshold: 1e-5 counts for less than a trial.
    assert tolerance(positive, negative, published, 1e-5) - exact < one_trial
