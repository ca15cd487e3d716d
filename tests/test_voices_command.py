"""The command redimnet2 voices, and identify and verify with a store."""

import json

import numpy as np
import pytest
import soundfile
import torch
from test_cli import PITCHES, buzz, small_network

from redimnet2_lobes import load, space_of
from redimnet2_lobes.data.audio import load_waveform
from redimnet2_lobes.pretrained.model_folder import write_model_folder
from redimnet2_lobes.voices.store import VoiceStore


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "small"
    write_model_folder(folder, small_network(), "A small network")
    return folder


@pytest.fixture(scope="module")
def encoder(model_folder):
    return load(model_folder)


def embedding_of(encoder, path):
    return encoder.encode_batch(load_waveform(path)[None])[0]  # [1, embedding]


@pytest.fixture
def calls(tmp_path):
    paths = {}
    for name, pitch in PITCHES.items():
        paths[name] = str(tmp_path / f"{name}.wav")
        soundfile.write(paths[name], buzz(pitch + 3, 0.9), 16000)
    return paths


@pytest.fixture
def store(model_folder, encoder, tmp_path, monkeypatch):
    """Two recordings of each speaker but carl."""
    monkeypatch.setenv("REDIMNET2_MODEL", str(model_folder))
    path = tmp_path / "voices.sqlite"
    with VoiceStore(path, space_of(encoder)) as opened:
        for name in ("anna", "bea"):
            for shift in (0, 6):
                wav = tmp_path / "enrol.wav"
                soundfile.write(wav, buzz(PITCHES[name] + shift), 16000)
                row = embedding_of(encoder, wav)
                opened.add(name, row, [1.25], f"form of {name}")
    return path


def test_list(run, store):
    found = json.loads(run("voices", "list", f"--store={store}", "--json"))
    with VoiceStore(store) as opened:
        assert found["embedding_space"] == opened.space
        assert found["voices"] == [each._asdict() for each in opened.voices()]
    anna = found["voices"][0]
    first, second, _ = run("voices", "list", f"--store={store}").splitlines()
    assert (
        first == f"2 voices of the embedding space {found['embedding_space']}"
    )
    assert second == (
        "anna: 2 prototypes of 2.5 s of speech, added "
        f"{anna['added']}, changed {anna['changed']}, consent: form of anna"
    )


def test_remove(run, error_of, store):
    assert run("voices", "remove", "anna", f"--store={store}") == (
        f"anna is removed from {store}\n"
    )
    assert b"anna" not in store.read_bytes()
    assert error_of("voices", "remove", "anna", f"--store={store}") == (
        f"error: {store}: no voice 'anna'; redimnet2 voices list shows the "
        "names"
    )


def test_export_and_import(run, error_of, store, tmp_path):
    file, other = tmp_path / "voices.npz", tmp_path / "other.sqlite"
    run("voices", "export", file, f"--store={store}")
    line = error_of("voices", "export", file, f"--store={store}")
    assert "exists already" in line
    assert run("voices", "import", file, f"--store={other}") == (
        f"2 voices added to {other}\n"
    )
    shown = [
        run("voices", "list", f"--store={path}", "--json")
        for path in (store, other)
    ]
    assert shown[0] == shown[1]
    line = error_of("voices", "import", file, f"--store={other}")
    assert "2 of its names are in" in line
    file.write_bytes(b"PK")
    new = tmp_path / "new.sqlite"
    line = error_of("voices", "import", file, f"--store={new}")
    assert line.startswith(f"error: {file}: no export of voices, or damaged")
    assert not new.exists()


def test_identify(run, store, encoder, calls):
    paths = [*calls.values()]
    rows = torch.cat([embedding_of(encoder, path) for path in paths])
    with VoiceStore(store) as opened:
        sure = opened.identify(rows)
        limit = sure[2].score
        expected = opened.identify(rows, limit)
    command = [
        "identify",
        "--no_vad",
        *paths,
        f"--store={store}",
        f"--threshold={limit}",
    ]
    found = json.loads(run(*command, "--json"))
    for row, path, one in zip(found["files"], paths, expected, strict=True):
        assert row["name"] == path
        assert row["speaker"] == one.name
        assert row["score"] == pytest.approx(one.score, abs=1e-5)
        assert row["margin"] == pytest.approx(one.margin, abs=1e-5)
        candidates = [
            (each["speaker"], each["score"]) for each in row["candidates"]
        ]
        assert [name for name, _ in candidates] == [
            name for name, _ in one.candidates
        ]
    lines = run(*command, "--top=1").splitlines()[1:]
    for line, path, row in zip(lines, paths, found["files"], strict=True):
        best = row["candidates"][0]["speaker"]
        assert line == (
            f"{path}: {row['speaker'] or 'unknown'} (closest: {best} "
            f"{row['score']:.4f}; margin {row['margin']:.4f})"
        )


def test_unknown_to_the_store(run, store, calls):
    command = [
        "identify",
        "--no_vad",
        calls["carl"],
        f"--store={store}",
        "--threshold=1",
    ]
    (row,) = json.loads(run(*command, "--json"))["files"]
    assert row["speaker"] is None and row["score"] < 1
    assert ": unknown (closest: " in run(*command)


def test_verify_by_name(run, error_of, store, encoder, calls):
    command = ["verify", "--no_vad", "bea", calls["bea"], f"--store={store}"]
    found = json.loads(run(*command, "--json", "--threshold=0"))
    with VoiceStore(store) as opened:
        row = embedding_of(encoder, calls["bea"])
        scores = dict(opened.identify(row)[0].candidates)
    assert found["score"] == pytest.approx(scores["bea"], abs=1e-5)
    assert (found["enrolment"], found["same_speaker"]) == ("bea", True)
    line = error_of("verify", "carl", calls["bea"], f"--store={store}")
    assert line.startswith(f"error: {store}: no voice 'carl'")


def test_stores_that_are_refused(error_of, store, calls, tmp_path):
    missing = tmp_path / "no.sqlite"
    text = tmp_path / "text.sqlite"
    text.write_text("text " * 99)
    other = tmp_path / "b3.sqlite"
    with VoiceStore(other, "redimnet2-b3-1") as opened:
        opened.add("anna", torch.ones(1, 8), [1])
    call = calls["anna"]
    for words in (
        ("voices", "list"),
        ("voices", "remove", "anna"),
        ("voices", "export", tmp_path / "voices.npz"),
        ("identify", call),
        ("verify", "anna", call),
    ):
        line = error_of(*words, f"--store={missing}")
        assert line == f"error: {missing}: no such store; enrol a voice first"
        line = error_of(*words, f"--store={text}")
        assert line.startswith(f"error: {text}: no store of voices, or")
        if words[0] != "voices":
            line = error_of(*words, f"--store={other}")
            assert f"{other}: of the embedding space redimnet2-b3-1" in line
    assert not missing.exists()


def test_one_of_enrol_and_store(error_of, store, calls):
    call = calls["anna"]
    for words in ([], [f"--store={store}", f"--enrol={call}"]):
        assert error_of("identify", call, *words, code=2) == (
            "error: give one of --enrol and --store; see redimnet2 identify "
            "--help"
        )
    line = error_of("voices", code=2)
    assert line == "error: Missing command; see redimnet2 voices --help"
    line = error_of("voices", "list", code=2)
    assert line == "error: missing --store; see redimnet2 voices list --help"


def test_bad_recordings_are_left_out(store, calls, capsys, tmp_path):
    from redimnet2_lobes import cli

    silent = tmp_path / "silent.wav"
    soundfile.write(silent, np.zeros(16000), 16000)
    with pytest.raises(SystemExit) as caught:
        command = ["identify", calls["anna"], str(silent), "--no_vad"]
        cli.main([*command, f"--store={store}"])
    assert caught.value.code == 1
    captured = capsys.readouterr()
    assert calls["anna"] in captured.out and str(silent) not in captured.out
    assert f"left out: {silent}: silent" in captured.err
