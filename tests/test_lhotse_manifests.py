"""Manifests of lhotse as lists, against what lhotse itself loads."""

import gzip
import json
import subprocess
import sys

import lhotse
import make_shards
import numpy as np
import pytest
import soundfile
from lhotse import CutSet, MonoCut, RecordingSet, SupervisionSegment
from lhotse import SupervisionSet as Supervisions

from redimnet2_lobes.data.training_set import UtteranceList
from redimnet2_lobes.data.utterances import read_utterances
from redimnet2_lobes.inference.encode import load_source

RATE = 16000


@pytest.fixture
def recordings(tmp_path):
    """Two files of one channel, one of two."""
    random = np.random.default_rng(0)
    found = []
    for name, channels in (("r0", 1), ("r1", 1), ("stereo", 2)):
        path = tmp_path / f"{name}.wav"
        audio = random.uniform(-0.5, 0.5, (3 * RATE, channels))
        soundfile.write(path, audio, RATE, subtype="FLOAT")
        found.append(lhotse.Recording.from_file(path))
    return found


def supervision(name, recording, start=0.0, duration=1.0, **others):
    others = {"speaker": "anna", **others}
    return SupervisionSegment(name, recording.id, start, duration, **others)


def random_cuts(recordings, count):
    """Cuts with borders at any sample of the two plain recordings."""
    random = np.random.default_rng(1)
    cuts = []
    for index in range(count):
        recording = recordings[index % 2]
        first, last = sorted(random.choice(3 * RATE, 2, replace=False))
        length = (int(last) - int(first)) / RATE
        cuts.append(
            MonoCut(
                *(f"c{index}", int(first) / RATE, length, 0),
                recording=recording,
                supervisions=[
                    supervision("s", recording, speaker=f"speaker{index % 3}")
                ],
            )
        )
    return cuts


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz"])
def test_segments_of_cuts_are_those_that_lhotse_loads(
    ending, recordings, tmp_path
):
    cuts = random_cuts(recordings, 40)
    path = tmp_path / f"cuts.{ending}"
    CutSet(cuts).to_file(path)
    found = read_utterances(path)
    assert [each.name for each in found] == [cut.id for cut in cuts]
    for utterance, cut in zip(found, cuts, strict=True):
        assert utterance.speaker == cut.supervisions[0].speaker
        if cut.duration < 0.1:  # too short to be used
            continue
        expected = cut.load_audio()[0]
        assert np.array_equal(load_source(utterance.path).numpy(), expected)


def test_cuts_of_whole_recordings_are_their_files(recordings, tmp_path):
    CutSet([each.to_cut() for each in recordings]).to_file(tmp_path / "a.jsonl")
    RecordingSet(recordings).to_file(tmp_path / "b.jsonl")
    files = [str(tmp_path / f"{each.id}.wav") for each in recordings]
    for name in "ab":
        found = read_utterances(tmp_path / f"{name}.jsonl")
        assert [each.path for each in found] == files
        assert [each.speaker for each in found] == [None] * 3


def test_supervisions_find_their_recordings(recordings, tmp_path):
    RecordingSet(recordings).to_file(tmp_path / "x_recordings_a.jsonl.gz")
    listed = [
        supervision("s1", recordings[1], 0.5, 1.25),
        supervision("s2", recordings[0], 0.0, 3.0, speaker="bert"),
        supervision("s3", recordings[2], channel=[0, 1], speaker=None),
    ]
    path = tmp_path / "x_supervisions_a.jsonl.gz"
    Supervisions(listed).to_file(path)
    assert read_utterances(path) == [
        ("s1", f"{tmp_path}/r1.wav[0.5s:1.75s]", "anna"),
        ("s2", f"{tmp_path}/r0.wav", "bert"),
        ("s3", f"{tmp_path}/stereo.wav[0.0s:1.0s]", None),
    ]


def test_the_file_of_a_channel_is_taken(recordings, tmp_path):
    first, second, _ = recordings
    (source,), (other,) = first.sources, second.sources
    other.channels = [1]
    first.sources, first.channel_ids = [source, other], [0, 1]
    cut = MonoCut("c", 0.0, 3.0, 1, recording=first)
    CutSet([cut]).to_file(tmp_path / "cuts.jsonl")
    ((_, path, _),) = read_utterances(tmp_path / "cuts.jsonl")
    assert path == str(tmp_path / "r1.wav")


def test_resampling_is_done_here_anyway(recordings, tmp_path):
    cut = recordings[0].to_cut().resample(24000)
    CutSet([cut]).to_file(tmp_path / "cuts.jsonl")
    ((_, path, _),) = read_utterances(tmp_path / "cuts.jsonl")
    assert path == str(tmp_path / "r0.wav")


def test_training_and_shards(recordings, tmp_path):
    cuts = random_cuts(recordings, 20)
    path = tmp_path / "cuts.jsonl"
    CutSet(cuts).to_file(path)
    utterances = UtteranceList()
    utterances.add(path, {}, prefix="A_", minimum_seconds=1.0)
    expected = [cut for cut in cuts if cut.duration >= 1]
    assert 5 < len(expected) < 20
    assert [name for name, _, _ in utterances] == [
        f"A_{cut.id}" for cut in expected
    ]
    assert [speaker for *_, speaker in utterances] == [
        f"A_{cut.supervisions[0].speaker}" for cut in expected
    ]
    make_shards.make_shards(path, tmp_path / "shards", tmp_path, workers=1)
    for found, cut in zip(
        read_utterances(tmp_path / "shards" / "train.csv"), cuts, strict=True
    ):
        assert found.name == cut.id and ".tar:" in found.path
        if cut.duration >= 0.1:
            waveform = load_source(found.path).numpy()
            assert np.array_equal(waveform, cut.load_audio()[0])


def test_training_needs_speakers(recordings, tmp_path):
    path = tmp_path / "cuts.jsonl"
    CutSet([recordings[0].to_cut()]).to_file(path)
    with pytest.raises(ValueError, match="line 1: r0 has no speaker"):
        UtteranceList().add(path, {})


def faulty_cuts(recordings):
    first, _, stereo = recordings
    cut, both = first.to_cut(), stereo.to_cut()
    other = first.to_cut()
    other.recording = None
    talk = first.to_cut()
    talk.supervisions = [
        supervision("s1", first),
        supervision("s2", first, speaker="bert"),
    ]
    link = first.to_cut()
    link.recording = first.with_path_prefix("/")
    link.recording.sources[0].type = "url"
    yield "no part of one recording; .*save_audios", cut.pad(duration=5)
    yield "changed by Speed, .*save_audios", cut.perturb_speed(1.1)
    yield "changed by Resample, .*save_audios", cut.resample(8000)
    yield (
        r"the channels \[0\], .* write each",
        MonoCut("c", 0.0, 3.0, 0, recording=both.recording),
    )
    yield "its recording is missing; .*lhotse cut simple", other
    yield "of 2 speakers; .*trim-to-supervisions", talk
    yield "of type 'url'; .*save_audios", link


@pytest.mark.parametrize("number", range(7))
def test_what_cannot_be_used_is_named(number, recordings, tmp_path):
    message, cut = list(faulty_cuts(recordings))[number]
    good = recordings[1].to_cut()
    path = tmp_path / "cuts.jsonl"
    path.write_text(
        "".join(f"{json.dumps(each.to_dict())}\n" for each in (good, cut))
    )
    with pytest.raises(ValueError, match=message) as caught:
        read_utterances(path)
    assert str(caught.value).startswith(f"{path}, line 2: ")
    assert "\n" not in str(caught.value)


def test_supervisions_without_recordings(recordings, tmp_path):
    listed = Supervisions([supervision("s", recordings[0])])
    for name in ("supervisions.jsonl", "s.jsonl"):
        path = tmp_path / name
        listed.to_file(path)
        with pytest.raises(ValueError, match="their recordings beside them"):
            read_utterances(path)
    RecordingSet(recordings[1:]).to_file(tmp_path / "recordings.jsonl")
    with pytest.raises(ValueError, match="'r0' of 's' is not in recordings"):
        read_utterances(tmp_path / "supervisions.jsonl")


def test_a_path_like_a_part_of_a_file(recordings, tmp_path):
    recordings[0].sources[0].source = "a.wav[0:5]"
    RecordingSet(recordings[:1]).to_file(tmp_path / "a.jsonl")
    with pytest.raises(ValueError, match="part of a file; rename it"):
        read_utterances(tmp_path / "a.jsonl")


def test_damaged_manifests(recordings, tmp_path):
    path = tmp_path / "cuts.jsonl.gz"
    CutSet(random_cuts(recordings, 200)).to_file(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="write the manifest again"):
        read_utterances(path)
    path.write_bytes(gzip.compress(b"\n"))
    with pytest.raises(ValueError, match="line 1: nothing that lhotse reads"):
        read_utterances(path)
    with pytest.raises(OSError, match="No such file"):
        read_utterances(tmp_path / "lost.jsonl")


def test_no_command_is_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OSError, match="No such file"):
        read_utterances("pipe:touch run; cat x.jsonl")
    assert not list(tmp_path.iterdir())


def test_without_lhotse(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lhotse.lazy", None)
    (tmp_path / "cuts.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match="cuts.jsonl: .*pip install lhotse"):
        read_utterances(tmp_path / "cuts.jsonl")


def test_lists_import_no_other_toolkit():
    program = (
        "import sys; import redimnet2_lobes.data.training_set; "
        "import redimnet2_lobes.data.utterances; "
        "print({'lhotse', 'datasets', 'ray'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True
    )
    assert done.stdout.strip() == "set()", done.stderr
