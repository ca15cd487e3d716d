"""Thresholds for one's own recordings: found, explained, kept and refused."""

import json
import shutil

import numpy as np
import pytest
import soundfile
import torch
from test_cli import buzz

from redimnet2_lobes import SpeakerRecognition
from redimnet2_lobes.cli import main
from redimnet2_lobes.data.speech import Speech
from redimnet2_lobes.inference import long_files
from redimnet2_lobes.pretrained.push import collect
from redimnet2_lobes.scoring.bootstrap import Interval
from redimnet2_lobes.scoring.metrics import Cllr
from redimnet2_lobes.scoring.operating_points import (
    describe_operating_points,
    find_operating_points,
    from_json,
    read_operating_points,
    to_json,
    write_operating_points,
)
from redimnet2_lobes.scoring.own_trials import OwnTrials, score_all

SPACE = "redimnet2-b0-1"


def recordings(people, each, spread=0.6, seed=0):
    """Embeddings of recordings around those of people, and whose they are."""
    generator = torch.Generator().manual_seed(seed)
    voices = torch.randn(people, 16, generator=generator)
    noise = torch.randn(people, each, 16, generator=generator)
    names = [f"p{i:03}" for i in range(people) for _ in range(each)]
    seconds = 1 + 9 * torch.rand(people * each, generator=generator)
    embeddings = (voices.unsqueeze(1) + spread * noise).flatten(0, 1)
    return embeddings, names, seconds.tolist()


def find(people, each, enrolment_utterances=1, **options):
    embeddings, names, seconds = recordings(people, each)
    trials = score_all(embeddings, names, seconds, enrolment_utterances)
    options.setdefault("resamples", 60)
    return find_operating_points(
        *(trials, SPACE, names),
        enrolment_utterances=enrolment_utterances,
        **options,
    )


def test_all_pairs_are_scored_once():
    embeddings, names, seconds = recordings(4, 3)
    trials = score_all(embeddings, names, seconds)
    assert len(trials.scores) == 12 * 11 // 2
    assert trials.labels.sum() == 4 * 3
    cosines = torch.cosine_similarity(
        embeddings[:, None], embeddings[None], dim=2
    )
    first, second = torch.triu_indices(12, 12, 1)
    torch.testing.assert_close(
        trials.scores.sort().values, cosines[first, second].sort().values
    )
    same = trials.speakers[:, 0] == trials.speakers[:, 1]
    assert torch.equal(same, trials.labels)
    assert torch.equal(trials.seconds[0], torch.tensor(seconds[:2]))


def test_enrolments_of_several_do_not_hold_what_they_are_tested_with():
    embeddings, names, seconds = recordings(5, 7)
    trials = score_all(embeddings, names, seconds, enrolment_utterances=3)
    assert trials.labels.sum() == 5 * 2 * (7 - 3)
    assert (~trials.labels).sum() == 5 * 2 * 4 * 7
    assert trials.seconds[:, 0].min() > trials.seconds[:, 1].min()
    # Its own recordings would raise the score of an enrolment.
    random = torch.Generator().manual_seed(0)
    rows = torch.randn(200, 99, generator=random)
    alone = score_all(rows, ["a", "b"] * 100, [1.0] * 200, 50)
    assert alone.scores[alone.labels].mean().abs() < 0.02


def test_very_many_trials_are_drawn():
    embeddings, names, seconds = recordings(30, 10)
    for several in (1, 2):
        trials = score_all(embeddings, names, seconds, several, most=1000)
        different = (~trials.labels).sum().item()
        assert 850 < different < 1150
        assert 850 < trials.labels.sum() < 1400
    again = score_all(embeddings, names, seconds, 2, most=1000)
    assert torch.equal(again.scores, trials.scores)


@pytest.mark.parametrize(
    ("names", "several"), [("aaa", 1), ("abc", 1), ("aabb", 2)]
)
def test_recordings_without_both_kinds_of_trials(names, several):
    number = len(names)
    with pytest.raises(ValueError, match="it takes two speakers, and of one"):
        score_all(torch.randn(number, 4), [*names], [1.0] * number, several)


def test_thresholds_keep_their_rates():
    found = find(30, 8, rates=(0.05, 0.01))
    embeddings, names, seconds = recordings(30, 8)
    trials = score_all(embeddings, names, seconds)
    negative = trials.scores[~trials.labels]
    for point, rate in zip(found.points, (0.05, 0.01), strict=False):
        share = (negative > point.threshold.value).double().mean().item()
        assert share == pytest.approx(point.far.value)
        assert rate - 0.001 < share <= rate
        for interval in point[1:]:
            assert interval.low <= interval.value <= interval.high
        assert point.far.low < point.far.high
    assert found.points[-1].name == "EER"
    assert found.eer.value == pytest.approx(
        found.points[-1].far.value, abs=0.01
    )
    assert not any("different speakers" in line for line in found.shortfalls)
    assert found.operating_point.value == found.points[0].threshold.value


def test_what_recordings_are_too_few_for_is_said():
    found = find(5, 4)
    people, one, tenth, misses, ratios = found.shortfalls
    assert people.startswith("5 speakers are too few for intervals")
    assert "160 trials of different speakers are too few" in one
    assert "of 1 %: it takes 3,000 (30 false accepts)" in one
    # 20 speakers with 4 recordings each have 190 * 16 trials: just enough.
    assert one.endswith("such as 20 speakers with 4 recordings each")
    assert "0.1 %: it takes 30,000" in tenth
    assert "30 trials of one speaker gave fewer than 30 false rejects" in misses
    assert "too little for likelihood ratios" in ratios
    text = describe_operating_points(found)
    assert text.count("too few: ") == 5 and "decisions go by FAR 1 %" in text
    enough = find(20, 4, rates=(0.01,))
    assert not any("of 1 %" in line for line in enough.shortfalls)
    # A score above which there were too few is only given a limit.
    rate, is_limit = enough.false_accepts(0.999)
    assert is_limit and rate.value >= 30 / enough.different_speakers_trials
    assert find(2, 2).false_accepts(0.5) is None


def test_every_score_is_told_its_false_accepts():
    found = find(20, 5)
    embeddings, names, seconds = recordings(20, 5)
    trials = score_all(embeddings, names, seconds)
    negative = trials.scores[~trials.labels].double()
    for score in np.linspace(found.scores[0], found.scores[-1], 50):
        rate, is_limit = found.false_accepts(score)
        expected = (negative > score).double().mean().item()
        assert rate.value == pytest.approx(expected, abs=0.01)
        assert rate.low <= rate.value <= rate.high and not is_limit
    assert found.false_accepts(-1.0) == (Interval(1, 1, 1), False)


def test_ratios_are_judged_by_other_people():
    found = find(20, 6)
    embeddings, names, seconds = recordings(20, 6)
    known = score_all(embeddings, names, seconds)
    ratios = found.ratio(known.scores, known.seconds)
    own = Cllr(ratios[known.labels], ratios[~known.labels])
    assert own < found.ratio.cllr.value < 0.6
    others = score_all(*recordings(200, 4, seed=1))
    ratios = found.ratio(others.scores, others.seconds)
    cost = Cllr(ratios[others.labels], ratios[~others.labels])
    assert found.ratio.cllr.low < cost < found.ratio.cllr.high
    # Durations as there were none count as the nearest.
    longest = torch.full((1, 2), found.ratio.longest)
    score = torch.tensor([0.5])
    assert found.ratio(score, longest) == found.ratio(score, longest * 50)


def test_scores_that_say_nothing_get_no_ratios():
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(60, 16, generator=generator)
    names = [f"p{i % 12}" for i in range(60)]
    trials = score_all(embeddings, names, [2.0] * 60)
    found = find_operating_points(trials, SPACE, names, resamples=20)
    assert found.ratio is None or found.ratio.cllr.value > 0.98


def test_duration_is_made_use_of():
    """Scores of short recordings say less, and get ratios nearer to 1."""
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randint(20, (4000, 2), generator=generator)
    numbers[::2, 1] = numbers[::2, 0]
    labels = numbers[:, 0] == numbers[:, 1]
    seconds = 1 + 9 * torch.rand(4000, 2, generator=generator)
    shift = 0.2 * seconds.log().amin(dim=1)
    noise = 0.15 * torch.randn(4000, generator=generator)
    trials = OwnTrials(labels * 0.4 - shift + noise, labels, numbers, seconds)
    names = [f"p{i}" for i in range(20)]
    found = find_operating_points(trials, SPACE, names, resamples=20)
    pairs = torch.tensor([[2.0, 9.0], [9.0, 9.0]])
    short, long = found.ratio(torch.zeros(2), pairs).tolist()
    assert short < long - 1


def test_what_is_kept_is_the_same(tmp_path):
    for found in (find(20, 4), find(2, 2)):
        path = tmp_path / "operating_points.json"
        write_operating_points(found, path)
        assert read_operating_points(path) == found
        assert [file.name for file in tmp_path.iterdir()] == [path.name]
        assert from_json(json.loads(json.dumps(to_json(found))), "x") == found


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"date": "yesterday"}, "yesterday"),
        ({"speakers": "many"}, "speakers: expected a whole number"),
        ({"points": []}, "points is empty"),
        ({"points": [{"name": "EER"}]}, "threshold is missing"),
        ({"points": [1]}, "not"),
        ({"scores": [0.5, 0.5], "far": [[0, 0, 0]] * 2}, "do not rise"),
        ({"scores": [0.5]}, "not as many"),
        ({"scores": [0.5], "far": [[0, 0, 2]]}, "from 0.0 to 1.0, got 2"),
        ({"scores": [0.5], "far": [[0.5, 1, 0]]}, "1.0 is above 0.0"),
        ({"scores": [float("nan")]}, "got nan"),
        ({"ratio": {}}, "calibration is missing"),
        ({"shortfalls": [1]}, "shortfalls: expected a list"),
        ({"embedding_space": None}, "embedding_space: expected text"),
    ],
)
def test_what_is_damaged_is_refused(changes, problem, tmp_path):
    path = tmp_path / "x.json"
    content = {**to_json(find(2, 2)), **changes}
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=problem) as caught:
        read_operating_points(path)
    line = str(caught.value)
    assert line.startswith(f"{path}: not what redimnet2 calibrate wrote")
    assert line.endswith("calibrate again") and "\n" not in line


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A folder with recordings of each of twelve speakers."""
    folder = tmp_path_factory.mktemp("own")
    for number in range(12):
        (folder / f"p{number}").mkdir()
        for take in range(4):
            pitch = 90 + 12 * number + 3 * take
            path = folder / f"p{number}" / f"{take}.wav"
            soundfile.write(path, buzz(pitch, 0.4 + 0.1 * take), 16000)
    return folder


@pytest.fixture
def a_model(model, tmp_path, monkeypatch):
    """A folder of a model, to write into."""
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    monkeypatch.setenv("REDIMNET2_MODEL", str(folder))
    return folder


def test_from_a_folder_to_a_decision(
    run, a_model, own, tmp_path, error_of, monkeypatch
):
    shown = run("calibrate", "--no_vad", own, "--far=0.1", "--far=0.05")
    assert "12 speakers, 48 recordings: 72 trials of one" in shown
    assert "decisions go by FAR 10 %" in shown
    written = shown.split("written  ")[1].strip().split(", ")
    for path in written:
        assert (tmp_path / path).stat().st_size > 0
    assert {path.rpartition(".")[2] for path in written} == {"json", "png"}
    found = read_operating_points(a_model / "operating_points.json")
    threshold = found.points[0].threshold.value

    pair = (own / "p0" / "0.wav", own / "p9" / "1.wav")
    lines = run("verify", "--no_vad", *pair).splitlines()
    assert lines[1].startswith(f"threshold  {threshold:.4f} (FAR 10 % on own")
    assert lines[3].startswith("false accepts  ")
    assert "of other speakers score higher than this" in lines[3]
    result = json.loads(run("verify", "--no_vad", *pair, "--json"))
    assert result["threshold"] == threshold
    assert result["same_speaker"] is (result["score"] > threshold)
    rate, is_limit = found.false_accepts(result["score"])
    assert result["false_accepts"] == {
        **rate._asdict(),
        "is_upper_limit": is_limit,
    }
    if found.ratio is not None:
        assert "times as likely of" in lines[4]
        assert isinstance(result["log_likelihood_ratio"], float)
    # A threshold that is given decides, and the score still means the same.
    command = ["verify", *pair, "--json", "--no_vad"]
    given = json.loads(run(*command, "--threshold=1"))
    assert given["threshold"] == 1 and given["same_speaker"] is False
    assert given["false_accepts"] == result["false_accepts"]
    # What is known of all audio is not said of speech alone.
    monkeypatch.setattr(
        *(long_files, "find_speech"),
        lambda waveform: Speech([(0, len(waveform))], len(waveform)),
    )
    of_speech = json.loads(run(*command[:-1]))
    assert of_speech["threshold"] == threshold
    assert "of all audio, not speech alone" in of_speech["threshold_origin"]
    assert "false_accepts" not in of_speech

    identified = json.loads(
        run("identify", "--no_vad", "--enrol", own, pair[0], "--json")
    )
    assert identified["threshold"] == threshold
    recognition = SpeakerRecognition.from_hparams(source=a_model)
    assert recognition.operating_point.value == threshold
    # What is one's own stays here.
    files, left_out = collect(a_model, "user/name", None, "mit", None, [])
    assert "operating_points.json" in left_out
    assert "operating_points.json" not in files

    path = a_model / "operating_points.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "embedding_space": "other"}))
    assert "of the embedding space other" in error_of(
        "verify", "--no_vad", *pair
    )
    path.write_text(path.read_text()[:-9])
    assert "calibrate again" in error_of("verify", *pair)


def test_a_file_of_its_own(run, a_model, own, tmp_path, error_of):
    output = tmp_path / "new" / "points.json"
    result = json.loads(
        run(
            *("calibrate", "--no_vad", own, f"--output={output}"),
            *("--enrolment_utterances=3", "--json"),
        )
    )
    assert result["same_speaker_trials"] == 12
    assert not (a_model / "operating_points.json").exists()
    assert to_json(read_operating_points(output)).keys() == result.keys()
    assert {path.name for path in output.parent.iterdir()} == {
        "points.json",
        *(f"points.{name}.png" for name in ("scores", "det", "error_rates")),
    }
    pair = (own / "p0" / "0.wav", own / "p9" / "1.wav")
    given = f"--operating_points={output}"
    found = json.loads(run("verify", "--no_vad", *pair, given, "--json"))
    assert found["threshold"] == result["points"][0]["threshold"][0]
    assert "exists already" in error_of(
        "calibrate", "--no_vad", own, f"--output={output}"
    )
    line = error_of("verify", "--no_vad", *pair, "--operating_points=no.json")
    assert "no.json" in line


def test_the_same_again_is_the_same(run, a_model, own):
    shown = run("calibrate", "--no_vad", own)
    first = (a_model / "operating_points.json").read_bytes()
    assert run("calibrate", "--no_vad", own) == shown
    assert (a_model / "operating_points.json").read_bytes() == first


def test_bad_recordings_are_left_out(a_model, own, tmp_path, capsys, error_of):
    folder = tmp_path / "speakers"
    shutil.copytree(own, folder)
    (folder / "p3" / "bad.wav").write_bytes(b"no audio")
    with pytest.raises(SystemExit) as caught:
        main(["calibrate", "--no_vad", str(folder)])
    captured = capsys.readouterr()
    assert caught.value.code == 1
    assert "12 speakers, 48 recordings" in captured.out
    assert "left out: " in captured.err and "bad.wav" in captured.err
    assert "bad.wav" in error_of("calibrate", "--no_vad", folder, "--strict")


def test_what_cannot_be_calibrated(a_model, own, tmp_path, error_of):
    assert "no/folder is none" in error_of("calibrate", "no/folder")
    (tmp_path / "few" / "anna").mkdir(parents=True)
    soundfile.write(tmp_path / "few" / "anna" / "1.wav", buzz(100), 16000)
    line = error_of("calibrate", "--no_vad", tmp_path / "few")
    assert "few: too few recordings for trials of both kinds" in line
    for far in ("0", "1", "nan", "x"):
        error_of("calibrate", "--no_vad", own, f"--far={far}", code=2)


def test_copies_count_once(run, a_model, own, tmp_path, capsys):
    folder = tmp_path / "speakers"
    shutil.copytree(own, folder)
    before = run("calibrate", "--no_vad", own)
    for copy in ("p0/copy.wav", "p1/again.wav"):
        shutil.copy(folder / "p0" / "0.wav", folder / copy)
    main(["calibrate", "--no_vad", str(folder)])
    captured = capsys.readouterr()
    assert captured.err.count("left out, a copy of") == 2
    assert captured.out == before


def test_too_little_for_the_rate_changes_nothing(
    run, a_model, own, tmp_path, error_of
):
    run("calibrate", "--no_vad", own)
    written = (a_model / "operating_points.json").read_bytes()
    few = tmp_path / "few"
    for speaker in ("p0", "p1"):
        shutil.copytree(own / speaker, few / speaker)
    line = error_of("calibrate", "--no_vad", few)
    assert "16 trials of different speakers cannot show" in line
    assert (a_model / "operating_points.json").read_bytes() == written
    shown = run("calibrate", "--no_vad", few, "--far=0.1")
    assert "(0 to 0 %)" not in shown
    pair = (own / "p0" / "0.wav", own / "p1" / "1.wav")
    lines = run("verify", "--no_vad", *pair)
    assert "own recordings of 2 speakers, too few to rely on" in lines
