"""Who spoke when: windows, clustering, turns, names, RTTM and the command."""

import json
import types

import numpy as np
import pytest
import soundfile
import torch

from redimnet2_lobes import ReDimNet2, cli
from redimnet2_lobes.cli import diarize as command
from redimnet2_lobes.cli.encoder import Loaded
from redimnet2_lobes.data.audio import AudioError
from redimnet2_lobes.data.speech import Speech
from redimnet2_lobes.inference.long_files import read_pieces
from redimnet2_lobes.pretrained.model_folder import write_model_folder
from redimnet2_lobes.voices import clustering, diarization
from redimnet2_lobes.voices.clustering import cluster_windows
from redimnet2_lobes.voices.diarization import (
    Turn,
    diarize,
    name_speakers,
    to_rttm,
)
from redimnet2_lobes.voices.store import VoiceStore

RATE = 16000
ANN, BO, CY = 400.0, 1300.0, 2700.0  # their voices, in hertz
SIZE = 24


class LoudIsSpeech:
    """In place of silero-vad, which takes no tone for a voice."""

    def __init__(self):
        self.heard = torch.empty(0)

    def feed(self, chunk):
        self.heard = torch.cat([self.heard, chunk])

    def finish(self, pause, padding):
        frames = self.heard.abs().unfold(0, 160, 160).amax(1) > 0.01
        edges = torch.diff(frames.int(), prepend=torch.zeros(1)).nonzero()
        edges = [*edges.flatten().tolist(), len(frames)]
        spans = zip(edges[::2], edges[1::2], strict=False)
        return Speech([(160 * a, 160 * b) for a, b in spans], len(self.heard))


@pytest.fixture(autouse=True)
def loud_is_speech(monkeypatch):
    monkeypatch.setattr(diarization, "SpeechDetector", LoudIsSpeech)
    monkeypatch.setattr(
        diarization, "at_usual_level", lambda waveform: waveform
    )


def encode_batch(wavs, wav_lens):
    """How much there is of each band of frequencies [batch, 1, SIZE]."""
    rows = []
    for wav, share in zip(wavs, wav_lens, strict=True):
        spectrum = torch.fft.rfft(wav[: round(share.item() * len(wav))]).abs()
        below_4k = spectrum[: len(spectrum) // 2]
        rows.append(
            torch.stack([band.sum() for band in below_4k.tensor_split(SIZE)])
        )
    return torch.stack(rows).unsqueeze(1)


def record(path, *parts, rate=RATE):
    """Writes tones of so many hertz (None: silence) and seconds."""
    waves = []
    for hertz, seconds in parts:
        time = np.arange(round(seconds * rate)) / rate
        waves.append(0.3 * np.sin(2 * np.pi * (hertz or 0) * time))
    soundfile.write(path, np.concatenate(waves), rate, subtype="FLOAT")
    return str(path)


@pytest.fixture
def meeting(tmp_path):
    """With silence that is longer than a piece."""
    return record(
        tmp_path / "a meeting.wav",
        *((None, 3.5), (ANN, 4), (None, 1), (BO, 6), (None, 5)),
        *((ANN, 0.6), (None, 1), (CY, 5), (None, 0.7)),
    )


SPOKEN = [(3.5, 7.5, 1), (8.5, 14.5, 2), (19.5, 20.1, 1), (21.1, 26.1, 3)]


def assert_spoken(turns, expected, within=0.02):
    assert len(turns) == len(expected)
    for turn, (start, end, number) in zip(turns, expected, strict=True):
        assert turn.speaker == f"speaker_{number}"
        assert turn.start == pytest.approx(start, abs=within)
        assert turn.end == pytest.approx(end, abs=within)


# Turns ------------------------------------------------------------------------


def test_turns_are_where_they_were_spoken(meeting):
    found = diarize(encode_batch, meeting)
    assert_spoken(found.turns, SPOKEN)
    assert found.speech.samples == round(26.8 * RATE)
    assert list(found.voices) == ["speaker_1", "speaker_2", "speaker_3"]
    for voice in found.voices.values():
        assert voice.norm().item() == pytest.approx(1)
    voice = encode_batch(
        torch.from_numpy(soundfile.read(meeting)[0])[None, 60000:84000].float(),
        torch.ones(1),
    ).flatten()
    similar = torch.cosine_similarity(voice, found.voices["speaker_1"], dim=0)
    assert similar > 0.99


@pytest.mark.parametrize("seconds", [1, 3.3, 60])
@pytest.mark.parametrize("rate", [8000, 44100])
def test_pieces_and_rates_do_not_matter(tmp_path, seconds, rate):
    path = record(
        tmp_path / "meeting.wav",
        *((None, 3.5), (ANN, 4), (None, 1), (BO, 6), (None, 5)),
        *((ANN, 0.6), (None, 1), (CY, 5), (None, 0.7)),
        rate=rate,
    )
    found = diarize(encode_batch, path, seconds_per_piece=seconds)
    assert_spoken(found.turns, SPOKEN)


def test_batches_do_not_matter(meeting, monkeypatch):
    whole = diarize(encode_batch, meeting)
    for size in (1, 3):
        monkeypatch.setattr(diarization, "WINDOWS_AT_ONCE", size)
        sizes = []

        def counted(wavs, wav_lens, sizes=sizes):
            sizes.append(len(wavs))
            return encode_batch(wavs, wav_lens)

        assert diarize(counted, meeting).turns == whole.turns
        assert max(sizes) == size


def test_it_is_the_same_again_and_leaves_random_numbers_alone(meeting):
    np.random.seed(5)
    expected = np.random.random(3)
    np.random.seed(5)
    first = diarize(encode_batch, meeting)
    assert np.array_equal(np.random.random(3), expected)
    assert diarize(encode_batch, meeting).turns == first.turns


def test_a_change_without_a_pause(tmp_path):
    path = record(tmp_path / "a.wav", (ANN, 5.6), (BO, 6.4))
    first, second = diarize(encode_batch, path).turns
    assert first.end == second.start == pytest.approx(5.6, abs=0.1)
    assert (first.start, second.end) == (0, 12)


def test_short_gaps_are_bridged_and_long_ones_not(tmp_path):
    path = record(
        tmp_path / "a.wav",
        *((ANN, 2), (None, 0.2), (ANN, 2), (None, 0.4), (ANN, 2), (None, 0.6)),
        (ANN, 2),
    )
    turns = diarize(encode_batch, path).turns
    assert_spoken(turns, [(0, 6.6, 1), (7.2, 9.2, 1)])


def test_the_number_may_be_given(meeting):
    for number in (1, 2, 3):
        turns = diarize(encode_batch, meeting, (number, number)).turns
        assert len({turn.speaker for turn in turns}) == number
    turns = diarize(encode_batch, meeting, (1, 2)).turns
    assert len({turn.speaker for turn in turns}) == 2


@pytest.mark.parametrize("seconds", [0.03, 0.5, 1.5, 1.6, 2.3, 3.1, 30])
@pytest.mark.parametrize("speakers", [(1, 10), (1, 1), (2, 4)])
def test_one_voice_however_short(tmp_path, seconds, speakers):
    path = record(tmp_path / "a.wav", (ANN, seconds), (None, 0.1))
    turns = diarize(encode_batch, path, speakers).turns
    if speakers[0] == 1:
        assert_spoken(turns, [(0, seconds, 1)])
    else:  # as many as could be
        assert turns[0].start == 0
        assert turns[-1].end == pytest.approx(seconds, abs=0.02)


def test_nobody_speaks(tmp_path):
    path = str(tmp_path / "a.wav")
    soundfile.write(path, 1e-4 * np.random.default_rng(1).random(9000), RATE)
    found = diarize(encode_batch, path)
    assert (found.turns, found.voices) == ([], {})
    assert found.speech.samples == 9000


def test_silent_pieces_keep_their_time(meeting):
    whole = torch.cat([*read_pieces(meeting, 60)])
    pieces = [*read_pieces(meeting, 1, keep_silence=True)]
    assert not all(piece.any() for piece in pieces)
    assert torch.equal(torch.cat(pieces), whole)
    assert len(torch.cat([*read_pieces(meeting, 1)])) < len(whole)


def test_what_cannot_be_used_is_named(meeting, tmp_path):
    with pytest.raises(AudioError, match="a meeting.wav: its embedding is not"):
        diarize(lambda *batch: encode_batch(*batch) * torch.nan, meeting)

    def refuse(wavs, wav_lens):
        raise AudioError("too loud", "speak lower")

    with pytest.raises(AudioError, match="a meeting.wav: too loud"):
        diarize(refuse, meeting)
    silent = record(tmp_path / "silent.wav", (None, 3))
    with pytest.raises(AudioError, match="silent"):
        diarize(encode_batch, silent)


# Clustering -------------------------------------------------------------------


def voices(*counts, spread=0.6, size=64):
    """Embeddings of so many windows of each of some voices, in turns of ten."""
    random = torch.Generator().manual_seed(1)
    centres = torch.nn.functional.normalize(
        torch.randn(len(counts), size, generator=random), dim=1
    )
    labels = []
    left = list(counts)
    while any(left):
        for voice, count in enumerate(left):
            labels += [voice] * min(10, count)
            left[voice] -= min(10, count)
    labels = torch.tensor(labels)
    noise = torch.randn(len(labels), size, generator=random) / size**0.5
    return centres[labels] + spread * noise, labels


def share_of_pairs(found, labels):
    """How many pairs of windows are rightly together or apart."""
    return (
        ((found[:, None] == found) == (labels[:, None] == labels))
        .float()
        .mean()
        .item()
    )


@pytest.mark.parametrize(
    "counts", [(60,), (60, 60), (40, 80, 50), (60, 30, 60, 40, 50)]
)
def test_the_number_is_found(counts):
    embeddings, labels = voices(*counts)
    found = cluster_windows(embeddings)
    assert len(found.unique()) == len(counts)
    assert share_of_pairs(found, labels) > 0.98


def test_only_directions_matter():
    embeddings, _ = voices(40, 40, 40)
    found = cluster_windows(embeddings)
    random = torch.Generator().manual_seed(0)
    turned = torch.linalg.qr(torch.randn(64, 64, generator=random)).Q
    lengths = 0.1 + torch.rand(len(embeddings), 1, generator=random)
    assert torch.equal(cluster_windows(embeddings @ turned), found)
    assert torch.equal(cluster_windows(embeddings * lengths), found)


def test_more_windows_than_are_clustered(monkeypatch):
    monkeypatch.setattr(clustering, "MOST_WINDOWS", 150)
    embeddings, labels = voices(300, 130)
    embeddings, labels = embeddings[labels.argsort()], labels.sort().values
    asked = []
    spectral = clustering._spectral

    def counted(embeddings, *bounds):
        asked.append(len(embeddings))
        return spectral(embeddings, *bounds)

    monkeypatch.setattr(clustering, "_spectral", counted)
    found = cluster_windows(embeddings)
    assert asked[0] <= 150
    assert share_of_pairs(found, labels) > 0.98


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("speakers", [(1, 10), (2, 2), (3, 8), (4, 4)])
def test_few_windows(count, speakers):
    found = cluster_windows(torch.eye(count), speakers)
    assert len(found) == count
    assert len(found.unique()) <= min(count, speakers[1])
    same = cluster_windows(torch.ones(count, 4), (1, speakers[1]))
    assert len(same.unique()) == 1


@pytest.mark.parametrize("most_windows", [2000, 40])
def test_as_many_speakers_as_are_asked_for(monkeypatch, most_windows):
    """Though one of them is heard so little that no change is worth it."""
    monkeypatch.setattr(clustering, "MOST_WINDOWS", most_windows)
    embeddings, _ = voices(60, 60, 1)
    for number in (2, 3, 5):
        found = cluster_windows(embeddings, (number, number))
        assert len(found) == len(embeddings)
        assert len(found.unique()) == number


# Names ------------------------------------------------------------------------


def voice_of(hertz):
    tone = torch.sin(2 * torch.pi * hertz * torch.arange(24000) / RATE)
    return encode_batch(tone[None], torch.ones(1))[0]


@pytest.fixture
def store(tmp_path):
    with VoiceStore(tmp_path / "voices.sqlite", "tones") as store:
        store.add("Ann Other", voice_of(ANN), [2.0])
        store.add("Bo", voice_of(BO), [2.0])
        yield store


def test_who_is_in_the_store_gets_the_name(meeting, store):
    found, scores = name_speakers(diarize(encode_batch, meeting), store, 0.9)
    assert [turn.speaker for turn in found.turns] == [
        *("Ann Other", "Bo", "Ann Other", "speaker_3"),
    ]
    assert list(found.voices) == ["Ann Other", "Bo", "speaker_3"]
    assert scores["Bo"] > 0.99 and scores["speaker_3"] < 0.9


def test_speakers_of_one_name_are_one(store):
    voice = voice_of(BO).flatten()
    noise = torch.rand(SIZE, generator=torch.Generator().manual_seed(0))
    found = diarization.Diarization(
        [Turn(0, 1, "speaker_1"), Turn(1.2, 2, "speaker_2")],
        {"speaker_1": voice + 2000 * noise, "speaker_2": voice},
        Speech([], 0),
    )
    named, scores = name_speakers(found, store, 0.5)
    assert named.turns == [Turn(0, 2, "Bo")]
    assert torch.equal(named.voices["Bo"], voice)
    assert scores == {"Bo": pytest.approx(1)}


@pytest.mark.parametrize("known", ["speaker_1", "speaker 1"])
def test_a_voice_called_as_the_unnamed_are_stays_one_of_its_own(store, known):
    """In RTTM too, where a space is an underscore."""
    store.add(known, voice_of(CY), [2.0])
    found = diarization.Diarization(
        [Turn(number, number + 1, f"speaker_{number}") for number in (1, 2, 3)],
        {
            "speaker_1": -voice_of(ANN).flatten(),  # of nobody
            "speaker_2": voice_of(CY).flatten(),
            "speaker_3": -voice_of(BO).flatten(),
        },
        Speech([], 0),
    )
    named, scores = name_speakers(found, store, 0.5)
    names = [turn.speaker for turn in named.turns]
    assert names == [*scores] == [*named.voices]
    assert names == ["speaker_2", known, "speaker_4"]


def test_nobody_has_no_name(store):
    nothing = diarization.Diarization([], {}, Speech([], 0))
    assert name_speakers(nothing, store, 0.5) == (nothing, {})


def test_rttm_has_ten_fields():
    text = to_rttm("my\tmeeting  1", [Turn(1, 2.25, "Ann B"), Turn(3, 4, "C")])
    for line in text.splitlines():
        assert len(line.split(" ")) == 10
    assert text.splitlines()[0] == (
        "SPEAKER my_meeting_1 1 1.000 1.250 <NA> <NA> Ann_B <NA> <NA>"
    )
    assert to_rttm("a", []) == ""


# The command ------------------------------------------------------------------


@pytest.fixture
def tones(monkeypatch):
    """The command with the encoder of the tests in place of a model."""
    encoder = types.SimpleNamespace(encode_batch=encode_batch)
    loaded = Loaded("tones", encoder, "tones")
    monkeypatch.setattr(command, "load_encoder", lambda _: loaded)


def test_the_table(tones, run, meeting):
    lines = run("diarize", meeting).splitlines()
    assert lines[0] == (
        f"{meeting}: 15.6 s of speech in 26.8 s; speaker_1 (4.6 s), "
        "speaker_2 (6.0 s), speaker_3 (5.0 s)"
    )
    assert [line.split() for line in lines[1:]] == [
        ["3.50", "7.50", "speaker_1"],
        ["8.50", "14.50", "speaker_2"],
        ["19.50", "20.10", "speaker_1"],
        ["21.10", "26.10", "speaker_3"],
    ]


def test_json(tones, run, meeting, store):
    result = json.loads(run("diarize", meeting, "--json"))
    assert result["threshold"] is None
    assert result["embedding_space"] == "tones"
    (file,) = result["files"]
    assert file["name"] == meeting
    assert file["seconds"] == pytest.approx(26.8)
    assert file["speech_seconds"] == pytest.approx(15.6, abs=0.05)
    assert_spoken([Turn(**turn) for turn in file["turns"]], SPOKEN)
    assert {each["score"] for each in file["speakers"]} == {None}
    options = (f"--store={store.path}", "--threshold=0.9", "--json")
    result = json.loads(run("diarize", meeting, *options))
    assert result["threshold"] == 0.9
    names = [each["speaker"] for each in result["files"][0]["speakers"]]
    assert names == ["Ann Other", "Bo", "speaker_3"]
    assert result["files"][0]["speakers"][0]["score"] > 0.99


def test_names_in_the_table(tones, run, meeting, store):
    lines = run(
        "diarize", meeting, f"--store={store.path}", "--threshold=0.9"
    ).splitlines()
    assert lines[0] == "threshold  0.9000 (given by --threshold)"
    assert "; Ann Other (4.6 s, score 1.0000), Bo (6.0 s, score" in lines[1]
    assert lines[-1].endswith("  speaker_3")


def test_files_of_turns(tones, run, meeting, tmp_path):
    other = record(tmp_path / "other.wav", (BO, 3))
    folder = tmp_path / "new" / "turns"
    run("diarize", meeting, other, f"--output={folder}")
    assert sorted(path.name for path in folder.iterdir()) == [
        *("a meeting.png", "a meeting.rttm", "other.png", "other.rttm"),
    ]
    lines = (folder / "a meeting.rttm").read_text().splitlines()
    assert len(lines) == 4
    assert lines[1].split()[:2] == ["SPEAKER", "a_meeting"]
    assert (folder / "a meeting.png").read_bytes()[:4] == b"\x89PNG"
    run("diarize", other, f"--output={tmp_path}/one.rttm")
    assert (tmp_path / "one.rttm").read_text() == (
        "SPEAKER other 1 0.000 3.000 <NA> <NA> speaker_1 <NA> <NA>\n"
    )
    assert (tmp_path / "one.png").exists()


def test_nobody_speaks_in_a_recording(tones, run, tmp_path):
    path = str(tmp_path / "a.wav")
    soundfile.write(path, 1e-4 * np.random.default_rng(1).random(16000), RATE)
    text = run("diarize", path, f"--output={tmp_path}/a.rttm")
    assert text == f"{path}: 0.0 s of speech in 1.0 s; nobody speaks\n"
    assert (tmp_path / "a.rttm").read_text() == ""


def test_a_bad_recording_is_left_out(tones, capsys, meeting, tmp_path):
    silent = record(tmp_path / "silent.wav", (None, 3))
    missing = str(tmp_path / "missing.wav")
    for options in ([], ["--json"]):
        with pytest.raises(SystemExit) as end:
            cli.main(["diarize", silent, meeting, missing, *options])
        assert end.value.code == 1
        printed = capsys.readouterr()
        left_out = printed.err.splitlines()
        assert left_out[0].startswith(f"left out: {missing}: missing")
        assert left_out[1].startswith(f"left out: {silent}: silent")
        assert meeting in printed.out
    result = json.loads(printed.out)
    assert [each["name"] for each in result["left_out"]] == [missing, silent]


def test_errors_are_a_line(tones, error_of, meeting, store, tmp_path):
    assert "nothing.wav: missing" in error_of("diarize", "nothing.wav")
    for text in ("0", "3-2", "a", "-1", "2-", "1-2-3"):
        line = error_of("diarize", meeting, f"--speakers={text}", code=2)
        assert "is neither a number" in line
    line = error_of("diarize", meeting, "--threshold=0.5", code=2)
    assert "--threshold is for the names of a --store" in line
    other = record(tmp_path / "other.wav", (BO, 3))
    line = error_of("diarize", meeting, other, f"--output={tmp_path}/a.rttm")
    assert "is for one recording, and here are 2; name a folder" in line
    (tmp_path / "b").mkdir()
    same = record(tmp_path / "b" / "other.wav", (BO, 2))
    line = error_of("diarize", same, other, f"--output={tmp_path}/out")
    assert "would both be" in line
    (tmp_path / "a.rttm").write_text("mine")
    line = error_of("diarize", meeting, f"--output={tmp_path}/a.rttm")
    assert "exists already" in line
    line = error_of("diarize", meeting, f"--output={other}")
    assert "is a file; name a folder, or a new file .rttm" in line
    line = error_of(
        "diarize", meeting, f"--store={tmp_path}/no.sqlite", "--threshold=0.5"
    )
    assert "no.sqlite" in line


def test_a_store_of_another_space_is_refused(
    tones, error_of, meeting, tmp_path
):
    with VoiceStore(tmp_path / "other.sqlite", "b3-1") as other:
        other.add("Ann", voice_of(ANN), [2.0])
    line = error_of(
        *("diarize", meeting, "--threshold=0.5"),
        f"--store={tmp_path}/other.sqlite",
    )
    assert "other.sqlite" in line and "b3-1" in line


def test_a_store_needs_a_threshold(
    tones, error_of, meeting, store, monkeypatch
):
    from redimnet2_lobes.scoring.operating_point import OperatingPoint

    monkeypatch.setattr(
        command,
        "find_operating_point",
        lambda *_, **__: OperatingPoint(None, None),
    )
    line = error_of("diarize", meeting, f"--store={store.path}")
    assert "--threshold: missing, and tones has none" in line


def test_with_a_real_model(run, meeting, tmp_path):
    torch.manual_seed(1)
    network = ReDimNet2.from_variant("b0").eval()
    write_model_folder(tmp_path / "model", network, "A test")
    text = run("diarize", meeting, f"--model={tmp_path}/model", "--speakers=2")
    assert "15.6 s of speech in 26.8 s" in text
    assert {line.split()[-1] for line in text.splitlines()[1:]} == {
        "speaker_1",
        "speaker_2",
    }
