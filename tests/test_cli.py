"""The command redimnet2: its results, its output and its errors."""

import contextlib
import csv
import json
import os
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from full_disk import full_disk
from huggingface_hub import constants, errors
from speechbrain.inference.classifiers import EncoderClassifier

from redimnet2_lobes.cli import main
from redimnet2_lobes.data.audio import load_waveform
from redimnet2_lobes.inference.long_files import encode_files, read_pieces
from redimnet2_lobes.models.embedding_space import embedding_space
from redimnet2_lobes.models.front_end import SAMPLE_RATE, LogMel
from redimnet2_lobes.models.redimnet2 import ReDimNet2
from redimnet2_lobes.onnx.export import export_onnx
from redimnet2_lobes.pretrained import loading
from redimnet2_lobes.pretrained.model_folder import write_model_folder

REPOSITORY = Path(__file__).resolve().parent.parent
PITCHES = {"anna": 210, "bea": 180, "carl": 110}


def small_network(channels=4):
    torch.manual_seed(0)
    stage = {"blocks": 1, "expansion": 1, "reduction": 8}
    stages = [{"frequency_stride": 2, "time_stride": 2, **stage}]
    return ReDimNet2(LogMel(), channels, stages)


def buzz(pitch, seconds=1.0, rate=16000, channels=1):
    time = np.arange(round(seconds * rate)) / rate
    wav = sum(np.sin(2 * np.pi * pitch * k * time) for k in range(1, 12))
    wav = wav / 20 + np.random.default_rng(pitch).normal(0, 0.02, len(time))
    return np.stack([wav] * channels, axis=1)


@pytest.fixture(scope="module")
def encoder(model_folder):
    return EncoderClassifier.from_hparams(source=str(model_folder))


@pytest.fixture(scope="module")
def speakers(tmp_path_factory):
    """Two recordings of each speaker, one below a folder of its own."""
    folder = tmp_path_factory.mktemp("speakers")
    for name, pitch in PITCHES.items():
        (folder / name / "home").mkdir(parents=True)
        soundfile.write(folder / name / "1.wav", buzz(pitch), 16000)
        path = folder / name / "home" / "2.flac"
        soundfile.write(path, buzz(pitch + 4, 0.7), 16000)
    return folder


def cosine(a, b):
    return torch.cosine_similarity(a.flatten(), b.flatten(), dim=0).item()


def keep_results(folder, *thresholds, **keys):
    rows = [
        {
            "list": f"list{index}",
            "back_end": "cosine",
            "trials": 37611,
            "eer_percent": 1.0,
            "eer_threshold": threshold,
            "min_dcf_0.01": 0.1,
        }
        for index, threshold in enumerate(thresholds)
    ]
    other = {**rows[0], "back_end": "PLDA", "eer_threshold": 12.5}
    content = {"checkpoint": "small", "seconds_used": None, "crops": None}
    content.update(keys)
    content["results"] = [other, *rows]
    path = folder / "results.json"
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("name", "rate", "channels"),
    [
        ("a.wav", 16000, 1),
        ("a.wav", 8000, 1),
        ("a.flac", 44100, 2),
        ("a.ogg", 44100, 2),
        ("a.mp3", 44100, 2),
        ("a.aiff", 8000, 1),
    ],
)
def test_any_format_is_verified_as_by_speechbrain(
    name, rate, channels, run, model, encoder, speakers, tmp_path
):
    path = tmp_path / name
    soundfile.write(path, buzz(200, 1.2, rate, channels), rate)
    other = speakers / "carl" / "1.wav"
    found = json.loads(run("verify", "--no_vad", path, other, "--json"))
    expected = cosine(
        *(encoder.encode_batch(load_waveform(file)) for file in (path, other))
    )
    assert found.pop("score") == pytest.approx(expected, abs=1e-5)
    assert found == {
        "enrolment": str(path),
        "test": str(other),
        "enrolment_speech_seconds": None,
        "enrolment_seconds": None,
        "test_speech_seconds": None,
        "test_seconds": None,
        "threshold": None,
        "threshold_origin": None,
        "same_speaker": None,
        "embedding_space": embedding_space(encoder.mods),
    }


@pytest.fixture
def pair(speakers):
    return speakers / "anna" / "1.wav", speakers / "bea" / "1.wav"


def test_the_decision_is_by_the_threshold(run, model, pair):
    score = json.loads(run("verify", "--no_vad", *pair, "--json"))["score"]
    lines = run("verify", "--no_vad", *pair).splitlines()
    assert lines[0] == f"score      {score:.4f}"
    assert "none known" in lines[1]
    assert lines[2] == "decision   none, without a threshold"
    for threshold, words in (
        (score - 1e-6, "same speaker"),
        (score, "different speakers"),
    ):
        given = f"--threshold={threshold!r}"
        lines = run("verify", "--no_vad", *pair, given).splitlines()
        assert lines[2] == f"decision   {words}"
        found = json.loads(run("verify", "--no_vad", *pair, given, "--json"))
        assert found["threshold"] == threshold
        assert found["same_speaker"] is (words == "same speaker")


@pytest.mark.parametrize(
    ("thresholds", "keys", "words"),
    [
        ([0.125], {}, "on list0, 37,611 trials; results.json of "),
        ([0.125, 0.5], {}, "trials, the first of 2 lists; "),
        ([0.125], {"seconds_used": 8}, "the first 8 s of each, not whole"),
        ([0.125], {"seconds_used": 4, "crops": 10}, "10 crops of 4 s each"),
        ([0.125], {"eval_precision": "bf16"}, "trials, in bf16; results.json"),
    ],
)
def test_the_threshold_of_the_evaluation_is_found(
    thresholds, keys, words, run, model, pair, tmp_path
):
    trained = tmp_path / "trained"
    shutil.copytree(model, trained / "model")
    keep_results(trained / "model", *thresholds, **keys)
    found = json.loads(
        run("verify", "--no_vad", *pair, f"--model={trained}", "--json")
    )
    assert found["threshold"] == 0.125
    assert found["same_speaker"] is (found["score"] > 0.125)
    assert words in found["threshold_origin"]
    assert str(tmp_path) not in found["threshold_origin"]
    shown = run("verify", "--no_vad", *pair, f"--model={trained}")
    assert f"threshold  0.1250 ({found['threshold_origin']})" in shown
    given = run(
        "verify", "--no_vad", *pair, f"--model={trained}", "--threshold=0.5"
    )
    assert "threshold  0.5000 (given by --threshold)" in given


def test_damaged_results_are_an_error(model, pair, tmp_path, error_of):
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    (folder / "results.json").write_text('{"results": [')
    line = error_of("verify", "--no_vad", *pair, f"--model={folder}")
    assert "results.json: not the results of a verification" in line


def test_the_threshold_of_a_model_on_the_hub(
    run, model, pair, tmp_path, monkeypatch, capsys
):
    load = loading.load_model
    monkeypatch.setattr(
        loading, "load_model", lambda name, opts: load(model, opts)
    )
    path = keep_results(tmp_path, 0.25)

    def download(name, filename):
        assert (name, filename) == ("user/name", "results.json")
        answer = answers.pop()
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    command = ["verify", "--no_vad", *map(str, pair), "--model=user/name"]
    answers = [str(path)]
    shown = run(*command)
    assert "0.2500 (that of the EER on list0" in shown
    assert "results.json of user/name)" in shown
    for answer, noted in (
        (errors.EntryNotFoundError("404"), False),
        (errors.LocalEntryNotFoundError("no\nnetwork"), True),
        (OSError("no\nnetwork"), True),
    ):
        answers.append(answer)
        main(command)
        captured = capsys.readouterr()
        assert "none known" in captured.out
        assert captured.err.startswith("note: ") is noted
        assert len(captured.err.splitlines()) == noted


def test_a_file_of_onnx_gives_the_same(run, model, pair, tmp_path, error_of):
    path = tmp_path / "small.onnx"
    network = loading.load_model(model).mods.embedding_model
    export_onnx(network, path)
    expected = json.loads(run("verify", "--no_vad", *pair, "--json"))["score"]
    found = json.loads(
        run("verify", "--no_vad", *pair, f"--model={path}", "--json")
    )
    assert found["score"] == pytest.approx(expected, abs=1e-4)
    assert found["threshold"] is None
    line = error_of(
        "verify", "--no_vad", *pair, f"--model={path}", "--device=cuda"
    )
    assert "device 'cuda': not in this onnxruntime" in line
    path.write_bytes(b"no graph")
    assert f"{path}: not " in error_of(
        "verify", "--no_vad", *pair, f"--model={path}"
    )


@pytest.mark.parametrize("options", [[], ["--int8"]])
def test_a_file_of_onnx_holds_the_threshold_of_the_evaluation(
    options, run, model, pair, tmp_path
):
    trained = tmp_path / "trained"
    shutil.copytree(model, trained / "model")
    keep_results(trained / "model", 0.1 + 0.2, 0.5)
    path = tmp_path / "small.onnx"
    main(["export", str(trained), f"--output={path}", *options])
    shutil.rmtree(trained)
    found = json.loads(
        run("verify", "--no_vad", *pair, f"--model={path}", "--json")
    )
    assert found["threshold"] == 0.1 + 0.2
    assert found["same_speaker"] is (found["score"] > 0.1 + 0.2)
    origin = "that of the EER on list0, 37,611 trials, the first of 2 lists"
    origin += ", before quantization" if options else ""
    assert found["threshold_origin"] == f"{origin}; small.onnx"
    shown = run(
        "verify", "--no_vad", *pair, f"--model={path}", "--threshold=0.5"
    )
    assert "threshold  0.5000 (given by --threshold)" in shown


def test_embeddings_are_written_and_printed(
    run, model, encoder, speakers, tmp_path
):
    speakers = shutil.copytree(speakers, tmp_path / "speakers")
    extra = tmp_path / "extra.mp3"
    soundfile.write(extra, buzz(150, 1.5, 22050), 22050)
    (speakers / "anna" / ".hidden.wav").write_text("no audio")
    (speakers / "anna" / "notes.txt").write_text("no audio")
    arguments = ["embed", extra, speakers, speakers / "bea" / "1.wav"]
    output = tmp_path / "new" / "embeddings.npz"
    shown = run(*arguments, f"--output={output}")
    assert shown == f"written  7 embeddings: {output}\n"
    with np.load(output, allow_pickle=False) as content:
        names, embeddings = content["names"], content["embeddings"]
    paths = sorted(
        path
        for path in speakers.rglob("*")
        if path.suffix in (".wav", ".flac") and path.name[0] != "."
    )
    assert names.tolist() == [str(path) for path in [extra, *paths]]
    assert embeddings.dtype == np.float32
    for path, embedding in zip(names, embeddings, strict=True):
        expected = encoder.encode_batch(load_waveform(path)).flatten().numpy()
        difference = np.abs(embedding - expected).max()
        assert difference < 1e-5 * np.abs(expected).max()

    written = tmp_path / "embeddings.json"
    run(*arguments, f"--output={written}")
    for text in (written.read_text(), run(*arguments, "--json")):
        rows = json.loads(text)
        assert [row["name"] for row in rows] == names.tolist()
        found = np.array([row["embedding"] for row in rows], np.float32)
        assert np.array_equal(found, embeddings)
    for line, name, embedding in zip(
        run(*arguments).splitlines(), names, embeddings, strict=True
    ):
        shown_name, numbers = line.split("\t")
        assert shown_name == name
        assert np.array_equal(np.float32(numbers.split()), embedding)


@pytest.fixture
def outcome_of(capsys):
    """Runs a command that leaves something out.

    Gives what it prints, and the lines on stderr.
    """

    def run(*arguments):
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert caught.value.code == 1
        assert "Traceback" not in captured.err
        lines = captured.err.splitlines()
        return captured.out, [line for line in lines if ": " in line]

    return run


def write_spoilt(path):
    wav = buzz(200)
    wav[5000] = np.nan
    soundfile.write(path, wav, 16000, subtype="FLOAT")


def write_cut(path):
    soundfile.write(path, buzz(200, 5.0), 16000)
    cut(path)


# Bad in every way: the name, how it comes about, and what is said of it.
BAD = [
    ("0.wav", lambda path: path.write_bytes(b""), "empty; "),
    ("a.m4a", lambda path: path.write_bytes(b"\0\0\0\x20ftypM4A "), "unread"),
    ("b.raw", lambda path: path.write_bytes(bytes(99)), "has no header; "),
    ("c.webm", lambda path: path.write_text("text " * 99), "unreadable; "),
    ("cut.wav", write_cut, "cut short; "),
    ("lost.wav", lambda path: path.symlink_to("nowhere"), "missing; "),
    ("nan.wav", write_spoilt, "not finite; "),
    (
        "silent.wav",
        lambda path: soundfile.write(path, np.zeros(9999), 16000),
        "silent; ",
    ),
]


@pytest.fixture
def calls(tmp_path):
    """A folder of two good recordings and of bad ones; and the good ones."""
    folder = tmp_path / "calls"
    folder.mkdir()
    for name, make, _ in BAD:
        make(folder / name)
    good = [folder / "Good.OGA", folder / "good.flac"]
    soundfile.write(good[0], buzz(180), 16000, format="OGG")
    soundfile.write(good[1], buzz(190), 16000)
    return folder, good


@pytest.mark.parametrize("seconds", [1, 60])
def test_bad_files_are_left_out_and_named(
    seconds, outcome_of, run, model, calls, tmp_path
):
    folder, good = calls
    pieces = f"--seconds_per_piece={seconds}"
    gone = tmp_path / "gone.wav"
    arguments = ["embed", gone, folder, pieces]
    printed, lines = outcome_of(*arguments)
    lines = [line for line in lines if not line.startswith("note: ")]
    expected = {f"{folder / name}: {words}" for name, _, words in BAD}
    expected.add(f"{gone}: missing; ")
    assert len(lines) == len(expected)
    for start in expected:
        (line,) = (
            each for each in lines if each.startswith(f"left out: {start}")
        )
    alone = run("embed", *good, pieces)
    assert printed == alone
    rows = json.loads(outcome_of(*arguments, "--json")[0])
    assert [row["name"] for row in rows] == [str(path) for path in good]

    for name in ("a.npz", "b.json"):
        output = tmp_path / "out" / name
        printed, others = outcome_of(*arguments, f"--output={output}")
        assert printed == f"written  2 embeddings: {output}\n"
        assert set(others) == set(lines) | {
            line for line in others if line.startswith("note: ")
        }
        report = output.with_suffix(".left_out.csv")
        with open(report, newline="", encoding="utf-8") as file:
            columns, *rows = csv.reader(file)
        assert columns == ["ID", "wav", "spk_id", "reason"]
        assert len(rows) == len(expected)
        for start in expected:
            path, words = start.split(": ")
            (row,) = (row for row in rows if row[:3] == [path, path, ""])
            assert row[3].startswith(words)
    with np.load(tmp_path / "out" / "a.npz") as arrays:
        assert arrays["names"].tolist() == [str(path) for path in good]
    # Mended, nothing is left out, and no list says so.
    (tmp_path / "out" / "a.npz").unlink()
    output = tmp_path / "out" / "a.npz"
    run("embed", *good, f"--output={output}")
    assert sorted(os.listdir(output.parent)) == [
        *("a.npz", "b.json", "b.left_out.csv"),
    ]


def test_strict_stops_at_the_first(model, calls, speakers, tmp_path, error_of):
    folder, good = calls
    output = tmp_path / "out" / "embeddings.npz"
    line = error_of("embed", folder, "--strict", f"--output={output}")
    assert line.startswith(f"error: {folder / 'lost.wav'}: missing; ")
    assert not output.parent.exists()
    line = error_of("embed", *good, folder / "nan.wav", "--strict")
    assert line.startswith(f"error: {folder / 'nan.wav'}: not finite; ")
    enrol = f"--enrol={speakers}"
    line = error_of(
        "identify", "--no_vad", enrol, *good, folder / "0.wav", "--strict"
    )
    assert line.startswith(f"error: {folder / '0.wav'}: empty; ")


def test_nothing_but_bad_files(outcome_of, model, calls, tmp_path, error_of):
    folder, good = calls
    output = tmp_path / "out" / "embeddings.npz"
    # One that is bad is simply the error.
    for path, words in (
        (folder / "0.wav", "empty"),
        (folder / "lost.wav", "missing"),
    ):
        line = error_of("embed", path, f"--output={output}")
        assert line.startswith(f"error: {path}: {words}; ")
    assert os.listdir(output.parent) == []
    for path in good:
        path.unlink()
    for arguments in ([], ["--json"]):
        printed, lines = outcome_of("embed", folder, *arguments)
        assert printed == ""
        assert len(lines) == len(BAD)
    printed, lines = outcome_of("embed", folder, f"--output={output}")
    assert printed == ""
    assert os.listdir(output.parent) == ["embeddings.left_out.csv"]


def test_bad_files_that_need_no_model(outcome_of, monkeypatch, tmp_path):
    monkeypatch.delenv("REDIMNET2_MODEL", raising=False)
    paths = [tmp_path / "1.wav", tmp_path / "2.wav"]
    _, lines = outcome_of("embed", *paths)
    assert lines == [
        f"left out: {path}: missing; check the path" for path in paths
    ]


def test_a_name_that_is_not_utf8(outcome_of, model, calls):
    folder, good = calls
    try:
        path = os.path.join(folder, "caf\udce9.wav")
        shutil.copy(good[1], path)
    except OSError:
        pytest.skip("a file system that has only names in UTF-8")
    for name, *_ in BAD:
        (folder / name).unlink()
    printed, lines = outcome_of(
        "embed", folder, f"--output={folder.parent / 'a.npz'}"
    )
    assert printed.startswith("written  2 embeddings")
    (line,) = lines
    assert "caf\\udce9.wav': not a name in UTF-8; rename it" in line
    assert "caf\\udce9.wav" in (folder.parent / "a.left_out.csv").read_text()


def test_identify_goes_on_without_what_is_bad(
    outcome_of, run, model, calls, speakers, tmp_path
):
    folder, good = calls
    enrol = tmp_path / "enrol"
    shutil.copytree(speakers, enrol)
    (enrol / "anna" / "0.wav").touch()
    shutil.rmtree(enrol / "bea")
    (enrol / "bea").mkdir()
    (enrol / "bea" / "1.wav").write_text("text " * 99)
    (enrol / "bea" / "2.wav").symlink_to("nowhere")
    (enrol / "dora.m4a").write_bytes(b"\0\0\0\x20ftypM4A ")
    (enrol / "emil").mkdir()
    (enrol / "fay").symlink_to("nowhere")
    (enrol / "loop").symlink_to(".")
    (enrol / "read_me.txt").write_text("text")
    (enrol / ".DS_Store").write_text("no speaker")
    for name in ("anna", "carl"):
        (enrol / name / "notes.txt").write_text("text")
    tests = [good[0], folder / "0.wav", good[1]]
    command = ["identify", "--no_vad", f"--enrol={enrol}", *tests]
    printed, lines = outcome_of(*command, "--json")
    assert lines[:2] == [
        f"note: {enrol / 'anna'}: 1 left out: 1 file without an ending of "
        "audio (.txt); the like in 1 more folder",
        "note: --enrol: 2 left out, neither recordings nor folders of a "
        "speaker's own: loop, read_me.txt",
    ]
    found = json.loads(printed)
    expected = {
        str(enrol / "anna" / "0.wav"): "empty; ",
        str(enrol / "bea" / "1.wav"): "unreadable; ",
        str(enrol / "bea" / "2.wav"): "missing; ",
        str(enrol / "dora.m4a"): "unreadable; ",
        str(enrol / "fay"): "missing; ",
        str(folder / "0.wav"): "empty; ",
        "speaker bea": "not enrolled; ",
        "speaker dora": "not enrolled; ",
        "speaker emil": "there is no audio file in it; ",
        "speaker fay": "not enrolled; ",
    }
    left_out = {row["name"]: row["reason"] for row in found["left_out"]}
    assert set(left_out) == set(expected)
    for name, words in expected.items():
        assert left_out[name].startswith(words)
    assert len(lines) == 2 + len(expected)
    named = {line.removeprefix("left out: ") for line in lines[2:]}
    for name, reason in left_out.items():
        shown = str(enrol / "emil") if name == "speaker emil" else name
        assert f"{shown}: {reason}" in named

    clean = tmp_path / "clean"
    for name in ("anna", "carl"):
        shutil.copytree(speakers / name, clean / name)
    wanted = json.loads(
        run("identify", "--no_vad", f"--enrol={clean}", *good, "--json")
    )
    assert wanted["left_out"] == []
    for row, other in zip(found["files"], wanted["files"], strict=True):
        assert row["name"] == other["name"]
        for one, two in zip(
            row["candidates"], other["candidates"], strict=True
        ):
            assert one["speaker"] == two["speaker"]
            assert one["score"] == pytest.approx(two["score"], abs=1e-5)
    text, lines = outcome_of(*command)
    assert text == run("identify", "--no_vad", f"--enrol={clean}", *good)
    assert len(lines) == 2 + len(expected)


def test_identify_with_nothing_to_go_on_with(
    outcome_of, model, calls, speakers, pair, tmp_path, error_of
):
    folder, good = calls
    enrol = f"--enrol={speakers}"
    line = error_of("identify", "--no_vad", enrol, tmp_path / "lost.wav")
    assert line == f"error: {tmp_path / 'lost.wav'}: missing; check the path"
    line = error_of("identify", "--no_vad", enrol, folder / "silent.wav")
    assert line.startswith(f"error: {folder / 'silent.wav'}: silent; ")
    only = tmp_path / "only"
    only.mkdir()
    (only / "anna.wav").touch()
    printed, lines = outcome_of(
        "identify", "--no_vad", f"--enrol={only}", *pair, "--json"
    )
    assert printed == ""
    assert [line.split(": ")[1] for line in lines] == [
        *(str(only / "anna.wav"), "speaker anna"),
    ]


def test_each_recording_once(
    run, model, speakers, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(speakers / "anna", "folder")
    (tmp_path / "folder" / "loop").symlink_to(".")
    (tmp_path / "folder" / "notes.txt").write_text("text")
    shutil.copy("folder/1.wav", "a.wav")
    os.symlink("a.wav", "link.wav")
    os.symlink("folder", "again")
    main(
        ["embed", "a.wav", "./a.wav", "folder/", "link.wav", "again", "--json"]
    )
    captured = capsys.readouterr()
    names = [row["name"] for row in json.loads(captured.out)]
    assert names == ["a.wav", "folder/1.wav", "folder/home/2.flac"]
    notes = captured.err.splitlines()
    reasons = (
        "2 left out: 1 file without an ending of audio (.txt), 1 link to what "
        "is there already"
    )
    assert notes == [
        f"note: folder/: {reasons}",
        f"note: again: {reasons}",
        "note: 4 left out: named more than once",
    ]
    main(["embed", "folder", "--json"])
    assert len(json.loads(capsys.readouterr().out)) == 2


def test_an_output_that_cannot_be_written(model, pair, tmp_path, error_of):
    output = tmp_path / "embeddings.npz"
    output.write_text("earlier")
    line = error_of("embed", *pair, f"--output={output}")
    assert f"--output: {output} exists" in line
    assert output.read_text() == "earlier"
    below = output / "a.json"
    assert str(output) in error_of("embed", *pair, f"--output={below}")
    output.unlink()
    with full_disk(100):
        line = error_of("embed", *pair, f"--output={output}")
    assert f"--output: {output} cannot be written (File too large)" in line
    assert list(tmp_path.iterdir()) == []


@contextlib.contextmanager
def without_privileges():
    """For root there is no lack of permission."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_lack_of_permission(model, pair, tmp_path, error_of):
    path = tmp_path / "secret.wav"
    soundfile.write(path, buzz(200), 16000)
    path.chmod(0)
    folder = tmp_path / "folder"
    folder.mkdir()
    folder.chmod(0o500)
    with without_privileges():
        line = error_of("verify", "--no_vad", path, path)
        assert line == f"error: {path}: Permission denied"
        line = error_of("identify", "--no_vad", f"--enrol={tmp_path}", *pair)
        assert line.endswith(": Permission denied")


def test_speakers_are_identified(run, model, encoder, speakers, tmp_path):
    voices = {}
    for name in PITCHES:
        files = sorted((speakers / name).rglob("[12].*"))
        assert len(files) == 2
        voices[name] = torch.stack(
            [encoder.encode_batch(load_waveform(file)) for file in files]
        ).mean(dim=0)
    test = tmp_path / "test.wav"
    soundfile.write(test, buzz(112, 0.8), 16000)
    embedding = encoder.encode_batch(load_waveform(test))
    expected = {name: cosine(embedding, voices[name]) for name in voices}
    order = sorted(expected, key=expected.get, reverse=True)

    command = ["identify", "--no_vad", f"--enrol={speakers}", test]
    found = json.loads(run(*command, "--json"))
    assert found["threshold"] is None
    (row,) = found["files"]
    assert (row["name"], row["speaker"]) == (str(test), order[0])
    assert [each["speaker"] for each in row["candidates"]] == order
    for each in row["candidates"]:
        score = expected[each["speaker"]]
        assert each["score"] == pytest.approx(score, abs=1e-5)

    best = row["candidates"][0]["score"]
    lines = run(*command, f"--threshold={best - 1e-6}", "--top=1").splitlines()
    margin = best - row["candidates"][1]["score"]
    assert (row["score"], row["margin"]) == (best, pytest.approx(margin))
    assert lines[1:] == [
        f"{test}: {order[0]} (closest: {order[0]} {best:.4f}; "
        f"margin {margin:.4f})"
    ]
    lines = run(*command, f"--threshold={best!r}", "--top=2").splitlines()
    assert lines[0] == f"threshold  {best:.4f} (given by --threshold)"
    assert lines[1].startswith(f"{test}: unknown (closest: {order[0]} ")
    assert lines[1].count(",") == 1
    found = json.loads(run(*command, f"--threshold={best!r}", "--json"))
    assert found["files"][0]["speaker"] is None


def test_speakers_may_be_single_files(run, model, pair, tmp_path, error_of):
    for name, path in zip(("anna", "bea"), pair, strict=True):
        shutil.copy(path, tmp_path / f"{name}.wav")
    (tmp_path / "read_me.txt").write_text("two speakers")
    found = json.loads(
        run("identify", "--no_vad", f"--enrol={tmp_path}", *pair, "--json")
    )
    for name, row in zip(("anna", "bea"), found["files"], strict=True):
        assert row["speaker"] == name
        assert row["candidates"][0]["score"] == pytest.approx(1, abs=1e-5)
    (tmp_path / "read_me.txt").unlink()
    (tmp_path / "carl").mkdir()
    line = error_of(
        "identify", "--no_vad", f"--enrol={tmp_path}", *pair, "--strict"
    )
    assert f"{tmp_path / 'carl'}: there is no audio" in line
    (tmp_path / "bea").mkdir()
    line = error_of("identify", "--no_vad", f"--enrol={tmp_path}", *pair)
    assert "there is a speaker bea already" in line
    shutil.copy(pair[0], tmp_path / "bea" / "1.wav")
    line = error_of("identify", "--no_vad", f"--enrol={tmp_path}", *pair)
    assert "there is a speaker bea already" in line


@pytest.mark.parametrize(
    ("name", "rate", "channels"),
    [
        ("a.wav", 16000, 1),
        ("a.wav", 8000, 2),
        ("a.flac", 44100, 2),
        ("a.flac", 44099, 1),
        ("a.aiff", 11025, 1),
        ("a.ogg", 48000, 1),
        ("a.mp3", 44100, 1),
    ],
)
def test_pieces_are_what_the_whole_gives(name, rate, channels, tmp_path):
    path = tmp_path / name
    wav = np.random.default_rng(0).normal(0, 0.1, (7 * rate + 13, channels))
    # After a tone MP3 has bits left, and its decoder cannot start anywhere.
    tone = 0.1 * np.sin(0.02 * np.arange(3 * rate))
    wav[: 3 * rate] = tone[:, np.newaxis]
    soundfile.write(path, wav, rate)
    whole = load_waveform(path)
    pieces = list(read_pieces(str(path), 2.0))
    lengths = [len(piece) / SAMPLE_RATE for piece in pieces]
    assert 1.7 < min(lengths) <= max(lengths) <= 2.0
    difference = (torch.cat(pieces) - whole).abs().max()
    assert difference < 1e-6


class Ears:
    """In place of a network: remembers what it hears."""

    def __init__(self):
        self.heard = []

    def __call__(self, wavs, wav_lens):
        self.heard += [wavs.shape]
        return torch.stack(
            [wavs.mean(1), wavs.std(1), wavs.abs().amax(1)], dim=1
        ).unsqueeze(1)


def test_memory_is_bounded(tmp_path):
    path = str(tmp_path / "long.wav")
    samples = np.random.default_rng(0).integers(-99, 99, 600 * 8000, np.int16)
    soundfile.write(path, samples * 200, 8000, subtype="PCM_U8")
    del samples
    ears = Ears()
    tracemalloc.start()  # numpy tells it what it takes
    try:
        _, pieces = encode_files(ears, [path])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert pieces == {path: 11}
    batches, lengths = zip(*ears.heard, strict=True)
    assert set(batches) == {1}
    assert max(lengths) <= 60 * SAMPLE_RATE
    assert sum(lengths) == 600 * SAMPLE_RATE
    whole = 600 * 8000 * 4
    assert peak < whole / 4


def test_pieces_count_by_their_seconds_and_silence_not_at_all(tmp_path):
    random = np.random.default_rng(0)
    loud = random.normal(0, 0.2, 2 * 16000)
    high = np.abs(random.normal(0, 0.1, 2 * 16000)) + 0.3
    path = str(tmp_path / "a.wav")
    silence = np.zeros(6 * 16000)
    wav = np.concatenate([loud, silence, high])
    soundfile.write(path, wav, 16000, subtype="FLOAT")
    embeddings, pieces = encode_files(Ears(), [path], 2.5)
    assert pieces == {path: 2}

    # Pieces of 2 s: the first and the last are not silent.
    parts = [
        Ears()(torch.from_numpy(part).float()[None], None).flatten()
        for part in (loud, high)
    ]
    directions = torch.stack([part / part.norm() for part in parts])
    length = torch.stack([part.norm() for part in parts]).mean()
    expected = directions.mean(0) * length
    assert torch.allclose(embeddings[path], expected, atol=1e-4)

    soundfile.write(path, silence, 16000)
    with pytest.raises(ValueError, match="a.wav: silent; it is all over"):
        encode_files(Ears(), [path], 2.5)


@pytest.mark.parametrize("extension", ["wav", "mp3"])
def test_channels_of_a_long_file_that_cancel_each_other(tmp_path, extension):
    path = str(tmp_path / f"a.{extension}")
    left = np.random.default_rng(4).normal(0, 0.2, 6 * 16000)
    soundfile.write(path, np.stack([left, -left], axis=1), 16000)
    expected = f"a.{extension}: channels cancel each other; .* export one"
    with pytest.raises(ValueError, match=expected):
        encode_files(Ears(), [path], 2.5)


def test_long_and_short_files_through_the_command(
    run, model, encoder, tmp_path, capsys
):
    long, short = str(tmp_path / "long.wav"), str(tmp_path / "short.wav")
    soundfile.write(long, buzz(200, 5.0), 16000)
    soundfile.write(short, buzz(190, 2.0), 16000)
    main(["embed", long, short, "--json", "--seconds_per_piece=2"])
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith(f"note: {long} is longer than 2 s")
    assert "3 pieces" in line
    rows = json.loads(captured.out)
    assert [row["name"] for row in rows] == [long, short]
    pieces = [encoder.encode_batch(p).flatten() for p in read_pieces(long, 2)]
    average = sum(piece / piece.norm() for piece in pieces)
    found = torch.tensor(rows[0]["embedding"])
    assert cosine(found, average) == pytest.approx(1, abs=1e-5)
    lengths = [piece.norm().item() for piece in pieces]
    assert 0.9 * min(lengths) < found.norm() < 1.1 * max(lengths)
    expected = encoder.encode_batch(load_waveform(short)).flatten()
    difference = (torch.tensor(rows[1]["embedding"]) - expected).abs().max()
    assert difference < 1e-5 * expected.abs().max()


def cut(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def make_pipe(path):
    path.unlink()
    os.mkfifo(path)


def forget_length(path):
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0  # the 36 bits of STREAMINFO's number of samples
    content[22:26] = bytes(4)
    path.write_bytes(content)


def spoil(path):
    waveform, rate = soundfile.read(path)
    waveform[50000] = np.nan
    soundfile.write(path, waveform, rate, subtype="FLOAT")


@pytest.mark.parametrize("seconds", [2, 60])
@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        ("a.wav", cut, "cut short"),
        ("a.aiff", cut, "cut short"),
        ("a.flac", cut, "unreadable"),
        ("a.mp3", cut, "cut short"),
        ("a.flac", forget_length, "of unknown length"),
        ("a.wav", lambda path: path.write_bytes(b""), "empty"),
        ("a.wav", lambda path: path.write_text("text " * 99), "unreadable"),
        ("a.wav", lambda path: path.unlink(), "missing"),
        ("a.wav", make_pipe, "a pipe or the like"),
        ("a.wav", spoil, "not finite"),
    ],
)
def test_bad_files_are_named(
    name, damage, words, seconds, model, pair, tmp_path, error_of
):
    path = tmp_path / name
    soundfile.write(path, buzz(200, 5.0), 16000)
    damage(path)
    piece = f"--seconds_per_piece={seconds}"
    line = error_of("verify", "--no_vad", pair[0], path, piece)
    assert line.startswith(f"error: {path}: {words}; ")


def test_a_wav_from_a_pipe_is_whole(run, model, tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, buzz(200), 16000)
    expected = run("embed", path)
    content = bytearray(path.read_bytes())
    start = content.index(b"data") + 4
    content[4:8] = content[start : start + 4] = b"\xff" * 4
    path.write_bytes(content)
    assert run("embed", path) == expected


def test_models_that_cannot_be_used(
    model, pair, tmp_path, monkeypatch, error_of
):
    def error(given):
        return error_of("verify", "--no_vad", *pair, f"--model={given}")

    assert "no file or folder user/../name" in error("user/../name")
    assert "has no hyperparams.yaml" in error(tmp_path)
    weights = model / "embedding_model.ckpt"
    assert f"{weights} is a file; give the model folder" in error(weights)
    assert f"{tmp_path / 'a.onnx'}: no such file" in error(tmp_path / "a.onnx")
    other = tmp_path / "other"
    shutil.copytree(model, other)
    write_model_folder(tmp_path / "wide", small_network(8), "Another")
    for path in (tmp_path / "wide").glob("embedding_model.*"):
        shutil.copy(path, other)
    assert "does not fit" in error(other)
    line = error_of("verify", "--no_vad", *pair, "--device=abacus")
    assert "--device: 'abacus' cannot be used here" in line
    monkeypatch.delenv("REDIMNET2_MODEL")
    line = error_of("verify", "--no_vad", *pair)
    assert "--model: missing; " in line
    assert "REDIMNET2_MODEL" in line


def test_an_interruption(model, pair, tmp_path, monkeypatch, capsys):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(EncoderClassifier, "encode_batch", interrupt)
    output = tmp_path / "embeddings.npz"
    with pytest.raises(SystemExit) as caught:
        main(["embed", str(pair[0]), f"--output={output}"])
    assert caught.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"
    assert list(tmp_path.iterdir()) == []


def test_a_model_without_network(pair, monkeypatch, tmp_path, error_of):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    line = error_of("verify", "--no_vad", *pair, "--model=nobody/nothing")
    assert "nobody/nothing" in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "COMMAND"),
        (["verify", "a.wav"], "test; see redimnet2 verify --help"),
        (["verify", "a.wav", "b.wav", "--threshold=nan"], "from -1 to 1"),
        (["embed", "a.wav", "--output=a.txt"], "neither in .npz nor"),
        (["embed", "a.wav", "--output=a.npz", "--json"], "not allowed with"),
        (["embed", "a.wav", "--seconds_per_piece=0.5"], "a number from 1 on"),
        (["identify", "a.wav"], "--enrol"),
        (["identify", "a.wav", "--enrol=b", "--top=0"], "whole number from 1"),
        (["speak"], "'speak'"),
    ],
)
def test_wrong_command_lines(arguments, words, error_of):
    assert words in error_of(*arguments, code=2)


def test_folders_that_hold_nothing(model, pair, tmp_path, error_of):
    assert "there is no audio file in it" in error_of("embed", tmp_path)
    assert "a folder; name an audio" in error_of(
        "verify", "--no_vad", tmp_path, pair[0]
    )
    line = error_of("identify", "--no_vad", f"--enrol={tmp_path}", *pair)
    assert "holds no speakers" in line
    nowhere = tmp_path / "nowhere"
    line = error_of("identify", "--no_vad", f"--enrol={nowhere}", *pair)
    assert f"{nowhere}: No such file or directory" in line


def test_results_that_cannot_be_printed(model, pair, monkeypatch, capsys):
    command = ["verify", "--no_vad", *map(str, pair)]
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(SystemExit) as caught:
            main(command)
    assert caught.value.code == "error: stdout: No space left on device"
    assert capsys.readouterr().err == ""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        main(command)
    assert capsys.readouterr().err == ""


def python(*arguments, **variables):
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), **variables},
        capture_output=True,
        text=True,
        check=False,
    )


def test_help_does_not_load_torch():
    code = (
        "import atexit, sys; from redimnet2_lobes.cli import main;"
        "atexit.register(lambda: print('torch' in sys.modules));"
        "main(['embed', '--help'])"
    )
    done = python("-c", code)
    assert done.returncode == 0
    assert "Example: redimnet2 embed" in done.stdout
    assert done.stdout.splitlines()[-1] == "False"


def test_the_command_in_a_process_of_its_own(model_folder, pair):
    done = python(
        *("-c", "from redimnet2_lobes.cli import main; main()"),
        *("verify", "--no_vad", *pair, "--json"),
        REDIMNET2_MODEL=str(model_folder),
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert -1 <= json.loads(done.stdout)["score"] <= 1


def test_hyperparameters(run, error_of, tmp_path, monkeypatch):
    names = run("hparams").split()
    assert {"redimnet2_b3", "verification_redimnet2"} <= set(names)
    path = Path(run("hparams", "redimnet2_b3").strip())
    copy = tmp_path / "new" / "folder" / "own.yaml"
    assert str(copy) in run("hparams", "redimnet2_b3", f"--output={copy}")
    assert copy.read_text() == path.read_text()
    line = error_of("hparams", "redimnet2_b3", f"--output={copy}")
    assert "exists already" in line
    line = error_of("hparams", "b9")
    assert "b9: no such configuration; there are" in line
    assert "redimnet2_b3_lm" in line


@pytest.mark.parametrize("variant", ["b3", "b3_lm"])
def test_hyperparameters_by_variant(run, tmp_path, variant):
    path = Path(run("hparams", variant).strip())
    assert path.name == f"redimnet2_{variant}.yaml"
    copy = tmp_path / "own.yaml"
    run("hparams", variant, f"--output={copy}")
    assert copy.read_text() == path.read_text()


def test_export_to_executorch_without_it(
    model, error_of, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "executorch", None)

    def export(output, *options, **keys):
        options = ["--for=executorch", f"--output={output}", *options]
        return error_of("export", model, *options, **keys)

    path = tmp_path / "a.pte"
    line = export(path, code=2)
    assert "--seconds belongs to --for=fixed and --for=executorch" in line
    line = export(path, "--seconds=121", code=2)
    assert "'121' is not a number from 0.025 to 120" in line
    assert "a.onnx does not end in .pte" in export(
        tmp_path / "a.onnx", "--seconds=6"
    )
    line = export(tmp_path / "no" / "a.pte", "--seconds=6")
    assert "no is no folder; create it first" in line
    assert "pip install executorch==" in export(path, "--seconds=6")
    path.touch()
    assert "a.pte exists already" in export(path, "--seconds=6")
    assert "pip install executorch==" in error_of("check", path)
    line = error_of("check", tmp_path / "b.pte")
    assert line.endswith("b.pte: no such file")
