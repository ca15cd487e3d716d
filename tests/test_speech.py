"""Voice activity, and embeddings of the speech alone."""

import contextlib
import json
import shutil
import subprocess
import sys
import threading
import tracemalloc
import types
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import soundfile
import torch
from silero_vad import load_silero_vad
from silero_vad.sequence_vad import get_speech_timestamps_sequence
from synthetic_voices import synthetic_utterance
from test_cli import keep_results, small_network

from redimnet2_lobes.cli import main
from redimnet2_lobes.data import speech as speech_module
from redimnet2_lobes.data.audio import AudioError, load_waveform
from redimnet2_lobes.data.speech import (
    Speech,
    SpeechDetector,
    at_usual_level,
    find_speech,
    load_detector,
)
from redimnet2_lobes.inference import long_files
from redimnet2_lobes.inference.long_files import encode_files
from redimnet2_lobes.onnx.export import export_onnx

RATE = 16000


def recording(*parts):
    """What a speaker (a number) says, so many seconds, and silence (None)."""
    return np.concatenate(
        [
            np.zeros(round(seconds * RATE), np.float32)
            if speaker is None
            else synthetic_utterance(speaker, round(10 * seconds), seconds)
            for speaker, seconds in parts
        ]
    )


WITH_PAUSES = recording((None, 2), (3, 1.5), (None, 1.2), (4, 1), (None, 0.7))


@pytest.fixture
def spoken():
    return torch.from_numpy(WITH_PAUSES)


def test_speech_is_where_somebody_speaks(spoken):
    found = find_speech(spoken)
    (start, stop), (again, end) = found.spans
    expected = np.array([2, 3.5, 4.7, 5.7]) + np.array([-1, 1, -1, 1]) * 0.2
    borders = np.array([start, stop, again, end]) / RATE
    assert np.abs(borders - expected).max() < 0.1
    assert found.samples == len(spoken)
    parts = [spoken[start:stop], spoken[again:end]]
    assert torch.equal(found.of(spoken), torch.cat(parts))
    assert len(find_speech(spoken, pause=2).spans) == 1
    noise = torch.randn(5 * RATE, generator=torch.Generator().manual_seed(0))
    assert find_speech(noise).spans == []


@pytest.mark.parametrize("size", [1, 63, 512, 1000, 15999, 100000])
def test_chunks_do_not_matter(size, spoken):
    spoken = spoken[24000:58000]
    detector = SpeechDetector()
    new = [detector.feed(chunk) for chunk in spoken.split(size)]
    assert np.array_equal(np.concatenate(new), detector.probabilities)
    assert len(detector.probabilities) == len(spoken) // 512
    whole = SpeechDetector()
    expected = whole.feed(spoken)
    assert np.allclose(detector.probabilities, expected, rtol=0, atol=1e-5)
    found = detector.finish()
    assert found.spans
    assert found == whole.finish()


def test_the_package_finds_the_same(spoken):
    expected = get_speech_timestamps_sequence(
        at_usual_level(spoken), load_silero_vad(sequence=True)
    )
    found = find_speech(spoken, pause=0.1, padding=0.03)
    assert found.spans == [(each["start"], each["end"]) for each in expected]


@pytest.mark.parametrize("gain", [1e-4, 0.01, 30, 2.0**30])
def test_the_level_does_not_matter(gain, spoken):
    expected = find_speech(spoken)
    found = find_speech(spoken * gain)
    assert found.seconds == pytest.approx(expected.seconds, abs=0.1)
    silence = torch.zeros(9)
    assert torch.equal(at_usual_level(silence), silence)


@pytest.fixture
def not_loaded():
    """As before anything is found; and what a test loads is not kept."""
    speech_module._session.cache_clear()
    yield
    speech_module._session.cache_clear()


def test_threads_at_once_find_the_same():
    waveforms = [
        torch.from_numpy(synthetic_utterance(speaker, 1, 3.0))
        for speaker in range(8)
    ]
    expected = [find_speech(waveform) for waveform in waveforms]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(find_speech, waveforms)) == expected


def test_threads_at_once_load_it_once(not_loaded, monkeypatch):
    calls = []
    together = threading.Barrier(2)

    def load(sequence):
        calls.append(sequence)
        with contextlib.suppress(threading.BrokenBarrierError):
            together.wait(0.5)  # for another that loads it as well
        return types.SimpleNamespace(session="a network")

    monkeypatch.setattr("silero_vad.load_silero_vad", load)
    with ThreadPoolExecutor(2) as pool:
        found = [pool.submit(load_detector) for _ in range(2)]
        assert [each.result() for each in found] == ["a network"] * 2
    assert calls == [True]


def test_the_threads_of_torch_are_left_alone():
    """Also where several threads are the first to look for speech."""
    code = """if True:
        import threading
        import torch
        torch.set_num_threads(3)
        from redimnet2_lobes.data.speech import find_speech
        found = []
        started = threading.Barrier(4)
        def find():
            started.wait()
            find_speech(torch.zeros(16000))
            found.append(torch.get_num_threads())
        threads = [threading.Thread(target=find) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print(*found, torch.get_num_threads())
        """
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["3"] * 5


@pytest.mark.parametrize("name", ["silero_vad", "onnxruntime"])
def test_a_missing_package_is_one_line(
    name, not_loaded, monkeypatch, model, speakers, error_of, run
):
    monkeypatch.setitem(sys.modules, name, None)
    expected = "^voice activity needs .*; pip install silero-vad onnxruntime"
    with pytest.raises(ValueError, match=expected):
        find_speech(torch.zeros(RATE))
    path = speakers / "anna" / "1.wav"
    line = error_of("verify", path, path)
    assert "pip install silero-vad onnxruntime" in line and "--no_vad" in line
    if name == "silero_vad":
        assert "score " in run("verify", path, path, "--no_vad")


def remember(wavs, wav_lens):
    """In place of a network: figures of the samples that are not padding."""
    wavs = [
        wav[: round(float(part) * len(wav))]
        for wav, part in zip(wavs, wav_lens, strict=True)
    ]
    return torch.stack(
        [torch.stack([wav.mean(), wav.std(), wav.abs().max()]) for wav in wavs]
    ).unsqueeze(1)


def test_the_speech_alone_is_embedded(tmp_path, spoken):
    paths = [str(tmp_path / f"{name}.wav") for name in "abcd"]
    waveforms = [
        WITH_PAUSES,
        recording((5, 2), (None, 3)),
        np.random.default_rng(0).normal(0, 0.01, 3 * RATE),
        np.full(RATE, np.nan),
    ]
    for path, waveform in zip(paths, waveforms, strict=True):
        soundfile.write(path, waveform, RATE, subtype="FLOAT")
    faults, speech = {}, {}
    found, pieces = encode_files(remember, paths, faults=faults, speech=speech)
    assert {*found} == {*paths[:2]}
    assert pieces == {}
    for path in paths[:2]:
        waveform = load_waveform(path)
        assert speech[path] == find_speech(waveform)
        alone = speech[path].of(waveform)
        expected = remember(alone[None], torch.ones(1)).flatten()
        assert torch.allclose(found[path], expected, atol=1e-6)
    assert str(faults[paths[2]]).startswith(
        f"{paths[2]}: no speech; nobody speaks in its 3.0 s"
    )
    assert str(speech[paths[2]]) == "0.0 s of speech in 3.0 s"
    # Before anything is looked for in them.
    assert str(faults[paths[3]]).startswith(f"{paths[3]}: not finite; ")
    assert paths[3] not in speech
    with pytest.raises(AudioError, match="c.wav: no speech; "):
        encode_files(remember, paths[2:3], speech={})
    assert len(encode_files(remember, paths[:3])[0]) == 3


class Ears:
    """In place of a network: keeps what it hears."""

    def __init__(self):
        self.heard = []

    def __call__(self, wavs, wav_lens):
        (wav,) = wavs
        self.heard.append(wav)
        return remember(wavs, wav_lens)


def test_the_speech_of_a_long_file_fills_pieces(tmp_path):
    """Minutes without any are left out, but counted."""
    path = str(tmp_path / "long.wav")
    noise = np.random.default_rng(0).normal(0, 0.001, 70 * RATE)
    parts = [recording((2, 3), (None, 130), (3, 2)), noise, recording((4, 2.5))]
    wav = np.concatenate(parts).astype(np.float32)
    soundfile.write(path, wav, RATE, subtype="FLOAT")
    ears, speech = Ears(), {}
    embeddings, pieces = encode_files(ears, [path], 3.0, speech=speech)
    found = speech[path]
    assert found.samples == len(wav)
    borders = np.array(found.spans[:1] + found.spans[-1:]).flatten() / RATE
    assert np.abs(borders - [0, 3.2, 204.8, 207.5]).max() < 0.15
    heard = torch.cat(ears.heard)
    assert torch.equal(heard, found.of(torch.from_numpy(wav)))
    sizes = [len(each) for each in ears.heard]
    assert sizes[:-1] == [3 * RATE] * (len(sizes) - 1)
    assert pieces == {path: len(sizes)} and len(sizes) > 1
    # All of it in one piece is what a short file of it would be.
    (embedding,) = encode_files(remember, [path], speech={})[0].values()
    assert torch.allclose(
        embedding, remember(heard[None], torch.ones(1)).flatten(), atol=1e-6
    )
    soundfile.write(path, noise, RATE, subtype="FLOAT")
    with pytest.raises(AudioError, match="long.wav: no speech; .* its 70.0 s"):
        encode_files(ears, [path], speech={})
    soundfile.write(path, 0 * noise, RATE)
    with pytest.raises(AudioError, match="long.wav: silent; "):
        encode_files(ears, [path], speech={})


@pytest.mark.parametrize("seconds", [1, 60])
@pytest.mark.parametrize("samples", [399, 400])
def test_speech_shorter_than_a_window(seconds, samples, tmp_path, monkeypatch):
    path = str(tmp_path / "a.wav")
    soundfile.write(path, recording((1, 2)), RATE)
    found = Speech([(100, 300), (500, 300 + samples)], 2 * RATE)
    monkeypatch.setattr(long_files, "find_speech", lambda waveform: found)
    if samples == 400:
        assert path in encode_files(remember, [path], seconds, speech={})[0]
        return
    with pytest.raises(AudioError, match="a.wav: no speech; "):
        encode_files(remember, [path], seconds, speech={})


def test_memory_is_bounded(tmp_path, monkeypatch):
    path = str(tmp_path / "long.wav")
    samples = np.random.default_rng(0).integers(-99, 99, 600 * RATE, np.int16)
    soundfile.write(path, samples, RATE)
    del samples
    monkeypatch.setattr(
        *(long_files, "find_speech"),
        lambda waveform: Speech([(0, len(waveform))], len(waveform)),
    )
    speech = {}
    tracemalloc.start()  # numpy tells it what it takes
    try:
        _, pieces = encode_files(remember, [path], 10.0, speech=speech)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert pieces == {path: 60}
    assert speech[path].seconds == 600
    assert peak < 600 * RATE * 4 / 4


@pytest.fixture(scope="module")
def speakers(tmp_path_factory):
    """A folder with recordings of each of two speakers."""
    folder = tmp_path_factory.mktemp("speakers")
    for name, speaker in (("anna", 2), ("carl", 5)):
        (folder / name).mkdir()
        for take in (1, 2):
            path = folder / name / f"{take}.wav"
            wav = recording((None, 1), (speaker, 1 + take), (None, 2))
            soundfile.write(path, wav, RATE, subtype="FLOAT")
    return folder


@pytest.fixture(scope="module")
def alone(speakers, tmp_path_factory):
    """The same, but nothing but the speech."""
    folder = tmp_path_factory.mktemp("alone")
    shutil.copytree(speakers, folder, dirs_exist_ok=True)
    for path in folder.rglob("*.wav"):
        waveform = load_waveform(path)
        speech = find_speech(waveform).of(waveform)
        soundfile.write(path, speech.numpy(), RATE, subtype="FLOAT")
    return folder


@pytest.fixture(params=["model folder", "onnx", "fixed"])
def any_model(request, model, tmp_path):
    if request.param == "model folder":
        return model
    path = tmp_path / f"{request.param}.onnx"
    seconds = 1 if request.param == "fixed" else None
    export_onnx(small_network(), path, target=request.param, seconds=seconds)
    return path


def pair_in(folder):
    return folder / "anna" / "1.wav", folder / "carl" / "2.wav"


def test_verify_compares_the_speech_alone(any_model, speakers, alone, run):
    pair = pair_in(speakers)
    found = json.loads(run("verify", *pair, "--json", f"--model={any_model}"))
    expected = json.loads(
        run(
            *("verify", *pair_in(alone), "--json", "--no_vad"),
            f"--model={any_model}",
        )
    )
    assert found["score"] == pytest.approx(expected["score"], abs=1e-5)
    for side, path in zip(("enrolment", "test"), pair, strict=True):
        speech = find_speech(load_waveform(path))
        assert found[f"{side}_speech_seconds"] == speech.seconds
        assert found[f"{side}_seconds"] == speech.samples / RATE
    whole = json.loads(
        run("verify", *pair, "--json", "--no_vad", f"--model={any_model}")
    )
    assert whole["score"] != pytest.approx(found["score"], abs=1e-4)


def test_verify_says_how_much_speech_there_is(model, speakers, run):
    pair = pair_in(speakers)
    lines = run("verify", *pair, "--threshold=0.5").splitlines()
    assert len(lines) == 5
    for line, path, seconds in zip(lines, pair, ("5.0", "6.0"), strict=False):
        speech = find_speech(load_waveform(path))
        assert line == f"speech     {path}: {speech}"
        assert line.endswith(f" s of speech in {seconds} s")
    assert lines[2].startswith("score      ")
    lines = run("verify", pair[0], pair[0]).splitlines()
    assert [line.split()[0] for line in lines] == [
        *("speech", "score", "threshold", "decision"),
    ]


def test_a_threshold_of_all_audio(model, speakers, tmp_path, run):
    folder = shutil.copytree(model, tmp_path / "model")
    keep_results(folder, 0.25)
    command = ["verify", *pair_in(speakers), f"--model={folder}"]
    origin = "that of the EER on list0, 37,611 trials"
    assert f"({origin}, of all audio, not speech alone; " in run(*command)
    assert f"({origin}; results.json of " in run(*command, "--no_vad")
    assert "(given by --threshold)" in run(*command, "--threshold=0.5")


def test_identify_compares_the_speech_alone(model, speakers, alone, run):
    tests = sorted(str(path) for path in speakers.rglob("*.wav"))
    command = ["identify", f"--enrol={speakers}", *tests]
    found = json.loads(run(*command, "--json"))
    others = [path.replace(str(speakers), str(alone)) for path in tests]
    expected = json.loads(
        run("identify", "--no_vad", f"--enrol={alone}", *others, "--json")
    )
    lines = run(*command).splitlines()[1:]
    for row, other, line in zip(
        found["files"], expected["files"], lines, strict=True
    ):
        speech = find_speech(load_waveform(row["name"]))
        assert row["speech_seconds"] == speech.seconds
        assert row["seconds"] == speech.samples / RATE
        assert line.endswith(f"; {speech})")
        assert other["speech_seconds"] is None and other["seconds"] is None
        assert row["speaker"] == other["speaker"]
        for one, two in zip(
            row["candidates"], other["candidates"], strict=True
        ):
            assert one["speaker"] == two["speaker"]
            assert one["score"] == pytest.approx(two["score"], abs=1e-5)


def test_recordings_without_speech(model, speakers, tmp_path, capsys):
    noise = np.random.default_rng(0).normal(0, 0.1, 2 * RATE)
    enrol = shutil.copytree(speakers, tmp_path / "enrol")
    (enrol / "nobody").mkdir()
    empty = [enrol / "nobody" / "1.wav", tmp_path / "noise.wav"]
    for path in empty:
        soundfile.write(path, noise, RATE)
    good = speakers / "anna" / "1.wav"
    command = ["identify", f"--enrol={enrol}", str(good), str(empty[1])]
    with pytest.raises(SystemExit) as caught:
        main([*command, "--json"])
    assert caught.value.code == 1
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert [row["name"] for row in found["files"]] == [str(good)]
    reasons = {row["name"]: row["reason"] for row in found["left_out"]}
    assert {*reasons} == {*map(str, empty), "speaker nobody"}
    for path in empty:
        assert reasons[str(path)].startswith("no speech; nobody speaks in its")
        assert f"left out: {path}: no speech; " in captured.err
    with pytest.raises(SystemExit) as caught:
        main(["verify", str(good), str(empty[1])])
    line = caught.value.code
    assert line.startswith(f"error: {empty[1]}: no speech; nobody speaks in")


def test_little_speech_is_noted(model, speakers, tmp_path, capsys):
    paths = [tmp_path / f"{take}.wav" for take in range(7)]
    for path in paths:
        soundfile.write(path, recording((None, 2), (2, 0.5), (None, 1)), RATE)
    good = speakers / "anna" / "2.wav"
    main(["verify", str(good), str(paths[0])])
    (line,) = capsys.readouterr().err.splitlines()
    speech = find_speech(load_waveform(paths[0]))
    assert 0.25 < speech.seconds < 1
    expected = "note: scores of less than 1 s of speech are uncertain: "
    assert line == f"{expected}{paths[0]} ({speech})"
    main(["identify", f"--enrol={speakers}", *map(str, paths)])
    (line,) = capsys.readouterr().err.splitlines()
    shown = ", ".join(f"{path} ({speech})" for path in paths[:5])
    assert line == f"{expected}{shown}, ..."
    main(["verify", "--no_vad", str(good), str(paths[0])])
    assert capsys.readouterr().err == ""


def test_embed_takes_the_speech_alone_if_asked(model, speakers, alone, run):
    whole, speech = (speakers / "carl" / "1.wav", alone / "carl" / "1.wav")

    def embedding(*arguments):
        (row,) = json.loads(run("embed", *arguments, "--json"))
        return torch.tensor(row["embedding"])

    expected = embedding(speech)
    assert torch.allclose(embedding(whole, "--vad"), expected, atol=1e-5)
    assert torch.equal(embedding(whole), embedding(whole, "--no_vad"))
    assert not torch.allclose(embedding(whole), expected, atol=1e-3)
