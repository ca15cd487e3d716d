"""Other corpora: from tiny ones in their layouts to training and scores."""

import csv
import functools
import json
import os
from collections import Counter
from pathlib import Path

import cnceleb_prepare
import commonvoice_prepare
import numpy as np
import pytest
import sitw_prepare
import soundfile
import speaker_verification_cosine as verification
import torch
import voices_prepare
from synthetic_voices import synthetic_utterance

from redimnet2_lobes.data import audio_checks
from redimnet2_lobes.data.crops import RandomCrop
from redimnet2_lobes.data.sources import open_audio
from redimnet2_lobes.data.training_set import read_training_lists
from redimnet2_lobes.data.trial_files import read_trial_lists, trial_speakers
from redimnet2_lobes.data.trials import read_enrolments, read_trials
from redimnet2_lobes.data.utterances import paths_of, read_utterances
from redimnet2_lobes.data.verification_lists import draw_trials
from redimnet2_lobes.models.front_end import LogMel
from redimnet2_lobes.models.redimnet2 import ReDimNet2
from redimnet2_lobes.pretrained.model_folder import write_model_folder
from redimnet2_lobes.scoring import report

HPARAMS = Path(__file__).parent.parent / "hparams/verification_redimnet2.yaml"
STAGE = {
    "frequency_stride": 2,
    "time_stride": 2,
    "blocks": 1,
    "expansion": 1,
    "reduction": 8,
}


@functools.cache
def speech(speaker, utterance, rate=16000):
    return synthetic_utterance(speaker, utterance, 1.2, rate)


def write(path, speaker, utterance, rate=16000):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, speech(speaker, utterance, rate), rate)


def write_lines(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def make_cnceleb(folder):
    """Speakers 0 and 1 to train on, 800 and 801 to test, as in version 2."""
    for speaker in (0, 1, 800, 801):
        for number in (1, 2):
            name = f"id{speaker:05d}/singing-01-{number:03d}.flac"
            write(folder / "data" / name, speaker, number)
    for speaker in (800, 801):
        name = f"id{speaker:05d}"
        write(folder / f"eval/enroll/{name}-enroll.flac", speaker, 3)
        for genre in ("singing", "live_broadcast"):
            test = folder / f"eval/test/{name}-{genre}-02-001.flac"
            write(test, speaker, 4 + len(genre))
    write_lines(folder / "dev/dev.lst", "id00000", "id00001")
    models = ("id00800", "id00801")
    lists = folder / "eval/lists"
    write_lines(
        lists / "enroll.lst",
        *(f"{name}-enroll enroll/{name}-enroll.wav" for name in models),
    )
    write_lines(
        lists / "enroll.map",
        *(
            f"{name}-enroll {name}/singing-01-001.wav {name}/singing-01-002.wav"
            for name in models
        ),
    )
    write_lines(
        lists / "trials.lst",
        *(
            f"{model}-enroll test/{test}-{genre}-02-001.wav "
            f"{int(model == test)}"
            for model in models
            for test in models
            for genre in ("singing", "live_broadcast")
        ),
    )


def make_cnceleb2(folder):
    for speaker in (10000, 10001):
        for number in (1, 2):
            name = f"id{speaker}/vlog-01-{number:03d}.flac"
            write(folder / "data" / name, speaker, number)
    write_lines(folder / "spk.lst", "id10000", "id10001")


def make_sitw(folder):
    """Of each part two speakers with three files."""
    for part, speakers in (("dev", "AB"), ("eval", "CD")):
        meta, models = [], []
        for speaker in speakers:
            for number in (1, 2, 3):
                stem = f"{speaker.lower()}file{number}"
                write(
                    folder / part / f"audio/{stem}.flac", ord(speaker), number
                )
                people = 1 if number < 3 else 2
                meta.append(
                    f"audio/{stem}.flac SP{speaker} f video 6052 0 1 {people} "
                    "codec,reverb 3 interview laughter,overlap"
                )
            models.append((str(ord(speaker)), speaker.lower()))
        lists, keys = folder / part / "lists", folder / part / "keys"
        write_lines(keys / "meta.lst", *meta)
        write_lines(
            lists / "enroll-core.lst",
            *(f"{model} audio/{name}file1.flac" for model, name in models),
        )
        write_lines(
            lists / "enroll-assist.lst",
            *(
                f"{model} audio/{name}file{number}.flac 0.100 0.600"
                for model, name in models
                for number in (1, 3)
            ),
        )
        for enrol in ("core", "assist"):
            for test, number in (("core", 2), ("multi", 3)):
                trials = [
                    f"{model} audio/{other}file{number}.flac "
                    + ("tgt" if other == name else "imp")
                    for model, name in models
                    for _, other in models
                ]
                write_lines(keys / f"{enrol}-{test}.lst", *trials)
        write_lines(keys / "aux/assist-multi.10s.lst", *trials)


def voices_name(speaker, sentence, room=1, distractor="babb", mic=1):
    return (
        f"Lab41-SRI-VOiCES-rm{room}-{distractor}-sp{speaker:04d}-ch123-"
        f"sg{sentence:04d}-mc{mic:02d}-stu-clo-dg010"
    )


def make_voices_challenge(folder):
    base = folder / "Development_Data/Speaker_Recognition"
    enroll, keys = [], []
    for speaker in (32, 40):
        stem = voices_name(speaker, 1, distractor="none")
        path = f"sid_dev/sp{speaker:04d}/{stem}.wav"
        write(base / path, speaker, 1)
        enroll.append(f"{stem} {path}")
        for room in (1, 2):
            test = voices_name(speaker, 2, room, "babb", 4 + room)
            write(base / f"sid_dev/sp{speaker:04d}/{test}.wav", speaker, 2)
            keys += [
                f"{voices_name(other, 1, distractor='none')} "
                f"sid_dev/sp{speaker:04d}/{test}.wav "
                f"{'tgt' if other == speaker else 'imp'}"
                for other in (32, 40)
            ]
    lists = base / "sid_dev_lists_and_keys"
    write_lines(lists / "dev-enroll.lst", *enroll)
    write_lines(lists / "dev-trial-keys.lst", *keys)
    # In the evaluation names say nothing, but for the map released later.
    base = folder / "Speaker_Recognition"
    release = folder / "VOiCES_challenge_2019_post-eval-release"
    names, keys, enroll = [], [], []
    for speaker in (50, 60):
        write(base / f"sid_eval/e{speaker}.wav", speaker, 1)
        write(base / f"sid_eval/t{speaker}.wav", speaker, 2)
        names.append(
            f"e{speaker} Lab41-SRI-VOiCES-src-sp{speaker:04d}-ch1-sg1.wav"
        )
        names.append(f"t{speaker} {voices_name(speaker, 2, 3)}.wav")
        enroll.append(f"m{speaker} sid_eval/e{speaker}.wav")
        keys += [
            f"m{other} t{speaker}.wav {'tgt' if other == speaker else 'imp'}"
            for other in (50, 60)
        ]
    write_lines(base / "sid_eval_lists/eval-enroll.lst", *enroll)
    prefix = "VOiCES_challenge_2019_eval.SID"
    write_lines(release / f"{prefix}.map", *names)
    write_lines(release / f"{prefix}.trial-keys.lst", *keys)


def make_voices_release(folder):
    for part, speakers in (("train", (1, 2)), ("test", (3, 4))):
        for speaker in speakers:
            for sentence in range(4):
                stem = (
                    f"Lab41-SRI-VOiCES-src-sp{speaker:04d}-ch1-sg{sentence:04d}"
                )
                path = folder / f"source-16k/{part}/sp{speaker:04d}/{stem}.wav"
                write(path, speaker, sentence)
                stem = voices_name(speaker, sentence).replace("ch123", "ch1")
                path = folder / "distant-16k/speech" / part / "rm1/babb"
                write(path / f"sp{speaker:04d}/{stem}.wav", speaker, sentence)


def make_commonvoice(folder):
    """Eight speakers with five clips each, one with a single clip."""
    rows, named = [], []
    for speaker in range(9):
        for clip in range(5 if speaker < 8 else 1):
            file = f"common_voice_ga_{speaker}{clip}.mp3"
            write(folder / "clips" / file, speaker, clip, 48000)
            gender = ("female_feminine", "male_masculine")[speaker % 2]
            row = f'{speaker:064x}\t{file}\tFáilte "\t2\t0\t\t{gender}\tga'
            rows.append(row)
            if speaker < 5 and clip == 0:
                named.append(row)
    header = (
        "client_id\tpath\tsentence\tup_votes\tdown_votes\tage\tgender\tlocale"
    )
    write_lines(folder / "validated.tsv", header, *rows)
    write_lines(folder / "test.tsv", header, *named)


CORPORA = {
    "cnceleb": (make_cnceleb, cnceleb_prepare, ["--allow_incomplete"]),
    "cnceleb2": (make_cnceleb2, cnceleb_prepare, []),
    "sitw": (make_sitw, sitw_prepare, []),
    "sitw_dev": (make_sitw, sitw_prepare, ["--train_on_dev"]),
    "challenge": (
        make_voices_challenge,
        voices_prepare,
        ["--by", "room", "mic"],
    ),
    "release": (make_voices_release, voices_prepare, ["--allow_incomplete"]),
    "commonvoice": (
        *(make_commonvoice, commonvoice_prepare),
        ["--minimum_clips=4", "--enrolment_clips=2", "--test_speakers=4"],
    ),
}
TESTS = {
    "cnceleb": ["eval"],
    "cnceleb2": [],
    "sitw": ["dev", "eval"],
    "sitw_dev": ["eval"],
    "challenge": ["dev", "eval"],
    "release": ["test"],
    "commonvoice": ["test"],
}
TRAINED = ("cnceleb", "cnceleb2", "sitw_dev", "release", "commonvoice")


def prepare(name, corpus, lists, *options):
    _, module, usual = CORPORA[name]
    module.main([str(corpus), str(lists), "--workers=2", *usual, *options])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The corpus of a name, which no test changes."""

    @functools.cache
    def make(function):
        folder = tmp_path_factory.mktemp("corpora") / "corpus $1"
        function(folder)
        return folder

    return lambda name: make(CORPORA[name][0])


@pytest.fixture(scope="module")
def prepared(made, tmp_path_factory):
    """The lists of a corpus, which no test changes."""

    @functools.cache
    def run(name):
        lists = tmp_path_factory.mktemp("lists") / name
        prepare(name, made(name), lists)
        return lists

    return run


@pytest.fixture
def own(made, tmp_path):
    """A copy of a corpus, by hard links, for a test to change."""

    def copy(name):
        corpus = tmp_path / "own"
        for path in made(name).rglob("*"):
            target = corpus / path.relative_to(made(name))
            target.parent.mkdir(parents=True, exist_ok=True)
            if path.is_file():
                os.link(path, target)
        return corpus

    return copy


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "small"
    torch.manual_seed(1)
    network = ReDimNet2(
        LogMel(),
        base_channels=4,
        stages=[STAGE],
        embedding_size=16,
    )
    write_model_folder(folder, network, "A small network")
    return folder


def rows(path):
    with open(path, newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def trained(lists):
    return {row["ID"]: row["spk_id"] for row in rows(lists / "train.csv")}


@pytest.mark.parametrize(
    ("name", "part"), [(name, part) for name in TESTS for part in TESTS[name]]
)
def test_verification_takes_the_lists(
    name, part, prepared, model, tmp_path, monkeypatch
):
    for plot in ("plot_det", "plot_score_histogram"):
        monkeypatch.setattr(report, plot, lambda *args, **kwargs: None)
    folder = prepared(name) / part
    lists = [str(path) for path in sorted(folder.rglob("*.txt"))]
    lists.remove(f"{folder}/enrolments.txt")
    verification.main(
        [
            str(HPARAMS),
            f"--checkpoint={model}",
            f"--data_folder={tmp_path}",
            f"--verification_file=[{', '.join(lists)}]",
            f"--utterance_list={folder}/utterances.csv",
            f"--enrolment_file={folder}/enrolments.txt",
            f"--output_folder={tmp_path}/results",
            "--device=cpu",
        ]
    )
    results = json.loads((tmp_path / "results/results.json").read_text())
    assert [row["list"] for row in results["results"]] == [
        Path(path).stem for path in lists
    ]
    for row, path in zip(results["results"], lists, strict=True):
        assert row["trials"] == len(read_trials(path))
        assert 0 <= row["eer_percent"] <= 100


@pytest.mark.parametrize("name", TESTS)
def test_names_tell_speakers_apart(name, prepared):
    """For intervals by bootstrap, and so that no test speaker is trained on."""
    for part in TESTS[name]:
        folder = prepared(name) / part
        for trials in read_trial_lists(
            [str(p) for p in folder.glob("*.txt") if p.stem != "enrolments"],
            *("", ""),
            paths_of(read_utterances(folder / "utterances.csv")),
            read_enrolments(folder / "enrolments.txt"),
        ):
            speakers = trial_speakers(trials)
            same = speakers[:, 0] == speakers[:, 1]
            assert np.array_equal(same, trials.labels.numpy())
            names = [name for _, *pair in trials.trials for name in pair]
            assert len({name.split("/")[0] for name in names}) >= 2
            if (prepared(name) / "train.csv").exists():
                tested = {name.split("/")[0] for name in names}
                assert tested.isdisjoint(trained(prepared(name)).values())


def test_a_mixture_is_trained_on(prepared):
    lists = {f"{name}_": prepared(name) / "train.csv" for name in TRAINED}
    tests = [
        prepared(name) / part / "trials.txt"
        for name in TRAINED
        for part in TESTS[name]
        if name != "sitw_dev"
    ]
    utterances, speakers = read_training_lists(lists, {}, 1.0, tests, [])
    assert len(utterances) == 4 + 4 + 4 + 16 + 15
    assert len(speakers) == 2 + 2 + 2 + 2 + 3
    crop, random = RandomCrop(50, [1.0]), np.random.default_rng(1)
    for index in range(len(utterances)):
        waveform, _ = crop(utterances[index][1], random)
        assert waveform.abs().max() > 0.01


def test_cnceleb_averages_the_files_of_a_model(prepared):
    folder = prepared("cnceleb") / "eval"
    enrolments = read_enrolments(folder / "enrolments.txt")
    assert enrolments["id00800/enroll"] == [
        "id00800/singing-01-001",
        "id00800/singing-01-002",
    ]
    paths = paths_of(read_utterances(folder / "utterances.csv"))
    assert paths["id00800/singing-01-001"].endswith(
        "data/id00800/singing-01-001.flac"
    )
    # Without enrolments a model is the file of all joined.
    assert paths["id00800/enroll"].endswith("enroll/id00800-enroll.flac")
    assert (1, "id00800/enroll", "id00800/test/singing-02-001") in read_trials(
        folder / "trials.txt"
    )


def test_cnceleb_by_genre(made, tmp_path):
    prepare("cnceleb", made("cnceleb"), tmp_path, "--by_genre")
    folder = tmp_path / "eval/by_genre"
    assert sorted(path.name for path in folder.iterdir()) == [
        "live_broadcast.txt",
        "singing.txt",
    ]
    for path in folder.iterdir():
        tests = {test for *_, test in read_trials(path)}
        assert tests and all(f"/test/{path.stem}-" in test for test in tests)


def test_a_test_speaker_in_the_list_of_training_is_left_out(
    own, tmp_path, capsys, caplog
):
    corpus = own("cnceleb")
    (corpus / "dev/dev.lst").unlink()
    write_lines(corpus / "dev/dev.lst", "id00000", "id00001", "id00801")
    prepare("cnceleb", corpus, tmp_path / "lists")
    assert set(trained(tmp_path / "lists").values()) == {"id00000", "id00001"}
    assert "1 speakers of the training are in the tests too" in caplog.text
    assert "id00801" in caplog.text


def test_sitw_enrols_segments(prepared):
    folder = prepared("sitw") / "eval"
    enrolments = read_enrolments(folder / "enrolments.txt")
    assert enrolments["SPC/core-67"] == ["SPC/cfile1"]
    paths = paths_of(read_utterances(folder / "utterances.csv"))
    for name in enrolments["SPC/assist-67"]:
        with open_audio(paths[name]) as segment:
            assert segment.length == 8000
            read = segment.read_part(0, 8000)
        whole, _ = soundfile.read(paths[name].split("[")[0], dtype="float32")
        assert np.array_equal(read, whole[1600:9600])
    assert len(enrolments["SPC/assist-67"]) == 2
    assert {path.stem for path in folder.glob("*-*.txt")} == {
        *("core-core", "core-multi", "assist-core", "assist-multi"),
        "assist-multi.10s",
    }


def test_sitw_trains_on_files_of_one_speaker(prepared):
    assert trained(prepared("sitw_dev")) == {
        "SPA/afile1": "SPA",
        "SPA/afile2": "SPA",
        "SPB/bfile1": "SPB",
        "SPB/bfile2": "SPB",
    }
    assert not (prepared("sitw_dev") / "dev").exists()
    assert not (prepared("sitw") / "train.csv").exists()


def test_voices_by_room_and_microphone(prepared):
    dev = prepared("challenge") / "dev"
    everything = Counter(read_trials(dev / "trials.txt"))
    for key, values in (("room", ["rm1", "rm2"]), ("mic", ["mc05", "mc06"])):
        folder = dev / f"by_{key}"
        assert sorted(path.stem for path in folder.iterdir()) == values
        parts = [Counter(read_trials(folder / f"{v}.txt")) for v in values]
        assert sum(parts, Counter()) == everything
        for value, part in zip(values, parts, strict=True):
            assert all(value in test for *_, test in part)
    # What was anonymous has its name from the map.
    evaluation = prepared("challenge") / "eval"
    assert [path.stem for path in (evaluation / "by_room").iterdir()] == ["rm3"]
    paths = paths_of(read_utterances(evaluation / "utterances.csv"))
    stem = voices_name(50, 2, 3).removeprefix("Lab41-SRI-VOiCES-")
    assert paths[f"sp0050/{stem}"].endswith("sid_eval/t50.wav")


def test_voices_without_the_map(own, tmp_path):
    corpus = own("challenge")
    next(corpus.rglob("*.map")).unlink()
    prepare("challenge", corpus, tmp_path / "lists")
    trials = read_trials(tmp_path / "lists/eval/trials.txt")
    assert (1, "unknown/m50", "unknown/t50") in trials


def test_voices_tests_other_sentences_than_enrolled(prepared):
    folder = prepared("release") / "test"
    enrolments = read_enrolments(folder / "enrolments.txt")
    for _, model, test in read_trials(folder / "trials.txt"):
        assert "rm1-babb" in test
        for name in enrolments[model]:
            speaker, _, rest = name.partition("/src-")
            assert speaker != test[:6] or rest[-6:] not in test
    # Clean and distant recordings are trained on.
    assert len(trained(prepared("release"))) == 16


def test_commonvoice_keeps_the_speakers_apart(prepared, made):
    lists = prepared("commonvoice")
    named = {f"{speaker:064x}" for speaker in range(5)}
    trials = read_trials(lists / "test/trials.txt")
    tested = {test.split("/")[0] for *_, test in trials}
    assert tested < named and len(tested) == 4
    assert set(trained(lists).values()) == {f"{n:064x}" for n in (5, 6, 7)}
    for row in rows(lists / "train.csv"):
        info = soundfile.info(row["wav"].replace("$$", "$"))
        assert (info.samplerate, info.channels) == (16000, 1)
        assert float(row["duration"]) == pytest.approx(1.2, abs=0.1)
    reports = rows(lists / "preparation_report.csv")
    assert {(row["action"], row["reason"]) for row in reports} == {
        ("converted", "48000 Hz")
    }
    # Each speaker has the same weight, and no clip of a model tests it.
    counts = Counter((label, model) for label, model, _ in trials)
    assert set(counts.values()) == {3}
    enrolments = read_enrolments(lists / "test/enrolments.txt")
    assert {len(names) for names in enrolments.values()} == {2}
    used = {name for names in enrolments.values() for name in names}
    assert used.isdisjoint(test for *_, test in trials)


def test_commonvoice_draws_by_seed_and_gender(made, tmp_path):
    read = {}
    for seed in (1, 1, 2):
        lists = tmp_path / f"{len(read)}{seed}"
        prepare(
            *("commonvoice", made("commonvoice"), lists, f"--seed={seed}"),
            *("--same_gender", "--headers_only"),
        )
        read.setdefault(seed, []).append(
            (lists / "test/trials.txt").read_text()
        )
    assert read[1][0] == read[1][1] != read[2][0]
    for _, model, test in read_trials(lists / "test/trials.txt"):
        assert int(model.split("/")[0], 16) % 2 == int(test[:64], 16) % 2


def test_drawn_trials_are_balanced():
    tests = {s: [f"{s}/{n}" for n in range(20)] for s in "abcde"}
    models = {f"{speaker}/model": speaker for speaker in tests}
    trials = draw_trials(models, tests, 8, np.random.default_rng(3))
    assert len(set(trials)) == len(trials) == 5 * 16
    pairs = Counter((model[0], test[0]) for _, model, test in trials)
    assert set(pairs.values()) == {8, 2}
    assert all((m[0] == t[0]) == label for label, m, t in trials)


@pytest.mark.parametrize(
    ("name", "absent"),
    [
        ("cnceleb", "data"),
        ("cnceleb", "dev/dev.lst"),
        ("cnceleb", "eval/lists/enroll.map"),
        ("sitw", "eval/keys"),
        ("challenge", "Development_Data"),
        ("release", "source-16k/test"),
        ("commonvoice", "clips"),
        ("commonvoice", "validated.tsv"),
    ],
)
def test_a_wrong_layout_is_named(name, absent, own, tmp_path):
    corpus = own(name)
    (corpus / absent).rename(corpus / "elsewhere")
    if name == "challenge":
        (corpus / "elsewhere/Speaker_Recognition").rename(tmp_path / "x")
        (corpus / "Speaker_Recognition").rename(tmp_path / "y")
        absent = "sid_dev_lists_and_keys"
    with pytest.raises(ValueError) as caught:
        prepare(name, corpus, tmp_path / "lists")
    assert f"{corpus}: there is no {absent}" in str(caught.value)
    assert "; give the unpacked corpus, a folder with" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "lists/train.csv").exists()


def test_missing_files_are_named_or_their_trials_left_out(own, tmp_path):
    corpus, lists = own("sitw"), tmp_path / "lists"
    missing = corpus / "eval/audio/dfile3.flac"
    missing.unlink()
    with pytest.raises(ValueError, match="1 of the 6 files .*--allow_incompl"):
        prepare("sitw", corpus, lists)
    listed = (lists / "eval/missing_files.txt").read_text()
    assert listed == f"{missing}\n"
    assert not (lists / "eval/core-multi.txt").exists()
    prepare("sitw", corpus, lists, "--allow_incomplete")
    trials = read_trials(lists / "eval/core-multi.txt")
    assert {test for *_, test in trials} == {"SPC/cfile3"}
    # A model of two files is not made of the one that is left.
    trials = read_trials(lists / "eval/assist-core.txt")
    assert {model for _, model, _ in trials} == {"SPC/assist-67"}
    enrolments = read_enrolments(lists / "eval/enrolments.txt")
    assert "SPD/assist-68" not in enrolments


def test_a_missing_enrolment_is_not_replaced(own, tmp_path):
    """Not even by the file that the corpus has of all joined."""
    corpus, lists = own("cnceleb"), tmp_path / "lists"
    (corpus / "data/id00800/singing-01-001.flac").unlink()
    prepare("cnceleb", corpus, lists)
    trials = read_trials(lists / "eval/trials.txt")
    assert {model for _, model, _ in trials} == {"id00801/enroll"}


@pytest.mark.parametrize(
    "folder",
    ["source-16k/train", "distant-16k/speech/train", "distant-16k/speech/test"],
)
def test_a_file_of_no_speaker_is_named(folder, own, tmp_path):
    corpus = own("release")
    write(corpus / folder / "stray.wav", 1, 1)
    with pytest.raises(ValueError, match=r"stray\.wav: its name is none of"):
        prepare("release", corpus, tmp_path / "lists")
    assert not (tmp_path / "lists/train.csv").exists()


@pytest.mark.parametrize("name", ["cnceleb", "release"])
def test_published_counts(name, made, tmp_path):
    _, module, _ = CORPORA[name]
    with pytest.raises(ValueError, match="found .* published are .*unpack"):
        module.main([str(made(name)), str(tmp_path)])


def test_a_speaker_without_files(own, tmp_path):
    corpus = own("cnceleb2")
    (corpus / "data/id10001").rename(corpus / "data/other")
    with pytest.raises(ValueError, match="in data/: found 1, published are 2"):
        prepare("cnceleb2", corpus, tmp_path / "lists")


@pytest.mark.parametrize(
    ("name", "path", "line", "fault"),
    [
        ("cnceleb", "eval/lists/trials.lst", "a b 2", "has the label '2'"),
        ("cnceleb", "eval/lists/enroll.lst", "a", "line 1: expected 'model f"),
        ("sitw", "eval/keys/core-core.lst", "1 a imp", "model 1 is not in li"),
        ("sitw", "dev/keys/meta.lst", "a b", "expected 'file speaker gender"),
        (
            *("sitw", "eval/lists/enroll-assist.lst"),
            *(
                "67 audio/cfile1.flac 2 1",
                "enroll-assist.lst: audio/cfile1.flac: start 2 is",
            ),
        ),
        ("commonvoice", "validated.tsv", "path\na", "line 2: no client_id or"),
        ("commonvoice", "validated.tsv", "client_id\tpath", "names no clips"),
        (
            *("commonvoice", "validated.tsv"),
            *("client_id\tpath\na b\tc", "line 2: client_id or path has a sp"),
        ),
    ],
)
def test_a_damaged_list_is_named(name, path, line, fault, own, tmp_path):
    corpus = own(name)
    (corpus / path).unlink()
    write_lines(corpus / path, line)
    with pytest.raises(ValueError) as caught:
        prepare(name, corpus, tmp_path / "lists")
    assert fault in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("commonvoice", "--test_speakers=-1"),
        ("commonvoice", "--enrolment_clips=0"),
        ("commonvoice", "--trials_per_speaker=-1"),
        ("commonvoice", "--seed=-1"),
        ("release", "--enrolment_files=0"),
        ("release", "--trials_per_speaker=0"),
        ("sitw", "--minimum_seconds=-1"),
        ("sitw", "--minimum_seconds=nan"),
    ],
)
def test_numbers_are_checked_before_anything_is_written(
    name, option, made, tmp_path
):
    key, _, value = option[2:].partition("=")
    with pytest.raises(ValueError, match=f"^{key}: {value}.* is less than"):
        prepare(name, made(name), tmp_path / "lists", option)
    assert not (tmp_path / "lists").exists()


def test_a_test_without_both_kinds_of_trials_leaves_no_lists(own, tmp_path):
    corpus = own("sitw")
    for path in (corpus / "eval/keys").rglob("*.lst"):
        if path.name != "meta.lst":
            path.write_text("")
    with pytest.raises(ValueError, match="no list has trials of one speaker"):
        prepare("sitw", corpus, tmp_path / "lists")
    assert not [*(tmp_path / "lists" / "eval").iterdir()]


def test_a_folder_that_cannot_be_made_is_named(made, tmp_path):
    (tmp_path / "file").write_text("")
    message = f"^{tmp_path}/file: cannot be made .File exists.; choose another"
    with pytest.raises(OSError, match=message):
        prepare("sitw", made("sitw"), tmp_path / "file")


def test_too_few_speakers_for_a_test(made, tmp_path):
    with pytest.raises(ValueError, match="0 speakers for a test have 9 clips"):
        prepare(
            "commonvoice", made("commonvoice"), tmp_path, "--minimum_clips=9"
        )
    with pytest.raises(ValueError, match="--minimum_clips: 2 leave none"):
        prepare(
            "commonvoice", made("commonvoice"), tmp_path, "--minimum_clips=2"
        )


def test_bad_audio_is_reported(own, tmp_path):
    corpus, lists = own("cnceleb2"), tmp_path / "lists"
    silent = corpus / "data/id10000/vlog-01-001.flac"
    silent.unlink()
    soundfile.write(silent, np.zeros(32000), 16000)
    prepare("cnceleb2", corpus, lists)
    assert len(trained(lists)) == 3
    (row,) = rows(lists / "preparation_report.csv")
    assert row == {"file": str(silent), "action": "skipped", "reason": "silent"}


def test_a_killed_call_is_resumed(made, tmp_path, monkeypatch):
    options = ["commonvoice", made("commonvoice"), tmp_path, "--workers=1"]
    load, killed = audio_checks.load_waveform, tmp_path / "killed"

    def dying(path, rate):
        if path.endswith("common_voice_ga_70.mp3"):
            os._exit(9)
        return load(path, rate)

    monkeypatch.setattr(audio_checks, "load_waveform", dying)
    with pytest.raises(OSError, match="workers was killed"):
        prepare(*options)
    assert not (tmp_path / "train.csv").exists()
    decoded = tmp_path / "decoded.txt"

    def noting(path, rate):
        with open(decoded, "a") as stream:
            stream.write(f"{path[-6:-4]}\n")
        return load(path, rate)

    monkeypatch.setattr(audio_checks, "load_waveform", noting)
    prepare(*options)
    assert len(trained(tmp_path)) == 15
    again = decoded.read_text().split()
    assert "70" in again and len(again) < 15
    decoded.unlink()
    before = (tmp_path / "train.csv").read_bytes()
    prepare(*options)
    assert not decoded.exists()
    assert (tmp_path / "train.csv").read_bytes() == before
    assert not killed.exists()


def test_the_number_of_processes_makes_no_difference(made, tmp_path):
    for workers in (1, 3):
        lists = tmp_path / str(workers)
        prepare("cnceleb2", made("cnceleb2"), lists, f"--workers={workers}")
    one, three = (tmp_path / n / "train.csv" for n in "13")
    assert one.read_bytes() == three.read_bytes()
    with pytest.raises(ValueError, match="workers: 0 is less than 1"):
        prepare("cnceleb2", made("cnceleb2"), tmp_path, "--workers=0")


def test_one_line_on_the_command_line(tmp_path, monkeypatch, capsys):
    from redimnet2_lobes.recipe.command_line import main_with_one_line_errors

    arguments = ["x", str(tmp_path / "nowhere"), str(tmp_path / "lists")]
    monkeypatch.setattr("sys.argv", arguments)
    for module in (*(m for _, m, _ in CORPORA.values()),):
        with pytest.raises(SystemExit) as caught:
            main_with_one_line_errors(module.main)
        assert "error: " in caught.value.code
        assert "\n" not in caught.value.code
