"""The demo corpus: what goes in, what stays out, and no half-written files."""

import hashlib
import json
import os
import pathlib
import shutil
import stat

import numpy as np
import prepare_demo_corpus
import pytest
import soundfile
from clips import read_clip
from conftest import exit_code
from corpus_folder import CorpusError
from prepare_demo_corpus import build_demo_corpus
from settings import SETTINGS
from speechbrain.dataio import audio_io
from synthetic_corpus import write_synthetic_corpus
from synthetic_voices import synthetic_utterance

TEST_LANGUAGES = [
    *("he", "hu", "ar", "tn", "ml", "be", "bg"),
    *("ro", "gl", "wa", "sl", "nn", "nb", "cs", "pt_BR"),
]
KTUBERLING = "ktuberling-data_4%3a1_all/usr/share/ktuberling/sounds"
KLETTRES = "klettres-data_4%3a1_all/usr/share/klettres"
TUXPAINT = "tuxpaint-stamps-default_1_all/usr/share/tuxpaint/stamps"
HEDGEWARS = "hedgewars-data_1_all/usr/share/games/hedgewars/Data/Sounds/voices"


@pytest.fixture(autouse=True)
def small_corpus(monkeypatch):
    """A few seconds of each voice are enough here."""
    monkeypatch.setitem(SETTINGS, "shortest_speaker_seconds", 2.0)
    monkeypatch.setitem(SETTINGS, "utterance_seconds", 1.0)
    monkeypatch.setitem(SETTINGS, "test_utterances_per_speaker", 3)


class Packages:
    """Unpacked packages in a cache, with clips of one voice each."""

    def __init__(self, cache):
        self.cache = cache
        self.voices = 0
        for folder in (KTUBERLING, KLETTRES, TUXPAINT, HEDGEWARS):
            self.path(folder).mkdir(parents=True)

    def path(self, name):
        return self.cache / "unpacked" / name

    def speak(self, names, seconds=0.5, rate=16000):
        """Writes one clip under each name, all of one new voice."""
        self.voices += 1
        for number, name in enumerate(names):
            self.write(
                name,
                synthetic_utterance(self.voices, number, seconds, rate),
                rate,
            )

    def write(self, name, samples, rate=16000, **options):
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in (".opus", ".ogg"):
            options["format"] = "OGG"
        if path.suffix == ".opus":
            options["subtype"] = "OPUS"
        soundfile.write(path, samples, rate, **options)


@pytest.fixture(scope="module")
def least_packages(tmp_path_factory):
    """The least that makes a corpus: 15 test and 4 training voices."""
    packages = Packages(tmp_path_factory.mktemp("least") / "cache")
    for language in TEST_LANGUAGES:
        packages.speak(
            [f"{KLETTRES}/{language}/alpha/a-{n:02}.ogg" for n in range(8)]
        )
    packages.speak([f"{KLETTRES}/de/alpha/a-{n:02}.ogg" for n in range(8)])
    packages.speak([f"{KTUBERLING}/fr/word{n}.wav" for n in range(8)])
    packages.speak([f"{TUXPAINT}/animals/a{n}_desc_es.ogg" for n in range(8)])
    packages.speak([f"{HEDGEWARS}/British/Phrase{n}.ogg" for n in range(8)])
    return packages


@pytest.fixture
def packages(least_packages, tmp_path):
    """The least packages, for one test to add to."""
    packages = Packages(tmp_path / "cache")
    shutil.copytree(least_packages.cache, packages.cache, dirs_exist_ok=True)
    packages.voices = least_packages.voices
    return packages


@pytest.fixture
def build(packages, tmp_path):
    return lambda: build_demo_corpus(tmp_path / "corpus", packages.cache)


def contents(folder):
    """Every file under a folder and a digest of it."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(
            path.read_bytes()
        ).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def read_trials(path):
    return [line.split() for line in path.read_text().splitlines()]


def dropped(folder):
    """Name of each dropped file and the reason."""
    lines = (folder / "dropped_files.txt").read_text().splitlines()
    return {
        line.rpartition(": ")[0].rpartition("/")[2]: line.rpartition(": ")[2]
        for line in lines
    }


# The corpus ----------------------------------------------------------------


def test_layout(build, tmp_path):
    description = build()
    corpus = tmp_path / "corpus"
    assert description == json.loads((corpus / "corpus.json").read_text())
    assert description["origin"] == "real"
    assert {path.name for path in corpus.iterdir()} == {
        *("wav", "veri_test2.txt", "veri_validation.txt"),
        *("dropped_files.txt", "corpus.json"),
    }
    assert {
        path.relative_to(corpus / "wav").parent.as_posix()
        for path in corpus.rglob("*.wav")
    } == {f"klettres-{language}/alpha" for language in TEST_LANGUAGES} | {
        *("klettres-de/alpha", "ktuberling-fr/ktuberling"),
        *("tuxpaint-es/tuxpaint", "hedgewars-British/hedgewars"),
    }
    for path in corpus.rglob("*.wav"):
        info = soundfile.info(path)
        assert (info.samplerate, info.channels) == (16000, 1)
        assert info.subtype == "PCM_16"
        assert 1.0 <= info.duration < 2.5
    assert str(tmp_path) not in (corpus / "corpus.json").read_text()


def test_trials(build, tmp_path):
    description = build()
    corpus = tmp_path / "corpus"
    parts = {
        speaker: row["part"] for speaker, row in description["speakers"].items()
    }
    for name, part in [("test2", "test"), ("validation", "train")]:
        trials = read_trials(corpus / f"veri_{name}.txt")
        pairs = {frozenset(trial[1:]) for trial in trials}
        assert len(pairs) == len(trials)
        for label, enrol, test in trials:
            assert (corpus / "wav" / enrol).is_file()
            assert (corpus / "wav" / test).is_file()
            same = enrol.split("/")[0] == test.split("/")[0]
            assert label == ("1" if same else "0")
            assert parts[enrol.split("/")[0]] == part
            assert parts[test.split("/")[0]] == part
        assert {label for label, _, _ in trials} == {"0", "1"}
        utterances = {path for trial in trials for path in trial[1:]}
        assert len(trials) == len(utterances) * (len(utterances) - 1) // 2
    test = [speaker for speaker, part in parts.items() if part == "test"]
    assert len(test) == 15
    files = list((corpus / "wav").glob("klettres-he/*/*.wav"))
    assert len(files) == 3
    # Held-out utterances leave something to train on.
    split = description["split"]
    assert split["train"]["speakers"] == split["validation"]["speakers"] == 4


def test_validation_trials_keep_all_target_pairs(build, monkeypatch, tmp_path):
    build()
    everything = read_trials(tmp_path / "corpus" / "veri_validation.txt")
    monkeypatch.setitem(SETTINGS, "most_validation_trials", 10)
    build()
    chosen = read_trials(tmp_path / "corpus" / "veri_validation.txt")
    assert len(everything) > len(chosen) == 10
    assert [t for t in chosen if t[0] == "1"] == [
        t for t in everything if t[0] == "1"
    ]


def test_same_files_each_time(packages, tmp_path):
    build_demo_corpus(tmp_path / "one", packages.cache)
    build_demo_corpus(tmp_path / "two", packages.cache)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_second_run_reuses(build, tmp_path):
    description = build()
    times = {
        path: path.stat().st_mtime_ns
        for path in (tmp_path / "corpus").rglob("*")
    }
    assert build() == description
    assert times == {
        path: path.stat().st_mtime_ns
        for path in (tmp_path / "corpus").rglob("*")
    }


def test_other_settings_build_again(build, monkeypatch):
    assert build()["split"]["test"]["utterances"] == 45
    monkeypatch.setitem(SETTINGS, "test_utterances_per_speaker", 2)
    assert build()["split"]["test"]["utterances"] == 30


def test_foreign_folder_is_left_alone(build, tmp_path):
    mine = tmp_path / "corpus" / "wav" / "id10270" / "mine.wav"
    mine.parent.mkdir(parents=True)
    mine.write_text("precious")
    with pytest.raises(CorpusError, match="wav was not made by this script"):
        build()
    assert mine.read_text() == "precious"


# Who speaks ----------------------------------------------------------------


def test_speakers_of_each_package(packages, build):
    packages.speak(
        [
            *(f"{KTUBERLING}/nds/word{n}.mp3" for n in range(3)),
            *(f"{KTUBERLING}/nds/word{n}.opus" for n in range(3)),
        ],
        rate=24000,
    )
    packages.speak([f"{TUXPAINT}/a/b/c{n}_desc.ogg" for n in range(6)])
    # Sound effects and drawings stand beside the spoken descriptions.
    packages.speak([f"{TUXPAINT}/a/b/c{n}.ogg" for n in range(6)])
    packages.path(f"{TUXPAINT}/a/b/c1_desc.txt").write_text("cat")
    packages.speak([f"{KLETTRES}/en_GB/syllab/s{n}.ogg" for n in range(6)])
    packages.speak([f"{KLETTRES}/icons/other/s{n}.ogg" for n in range(6)])
    packages.speak([f"{HEDGEWARS}/Russian_pl/P{n}.ogg" for n in range(6)])
    packages.speak([f"{HEDGEWARS}/Robot/P{n}.ogg" for n in range(6)])
    description = build()
    languages = {
        speaker: row["language"]
        for speaker, row in description["speakers"].items()
        if row["part"] == "train"
    }
    assert languages == {
        "hedgewars-British": "en",
        "hedgewars-Russian_pl": "pl",
        "klettres-de": "de",
        "klettres-en_GB": "en_GB",
        "ktuberling-fr": "fr",
        "ktuberling-nds": "nds",
        "tuxpaint-en": "en",
        "tuxpaint-es": "es",
    }
    assert list(description["dropped_speakers"]) == ["hedgewars-Robot"]


def test_serbian_folders_are_one_speaker(packages, build, tmp_path):
    folders = ["sr", "sr@latin", "sr@ijekavian", "sr@ijekavianlatin"]
    packages.speak([f"{KTUBERLING}/sr/word{n}.ogg" for n in range(6)])
    for folder in folders[1:]:
        packages.path(f"{KTUBERLING}/{folder}").mkdir()
        for n in range(6):
            packages.path(f"{KTUBERLING}/{folder}/word{n}.ogg").write_bytes(
                packages.path(f"{KTUBERLING}/sr/word{n}.ogg").read_bytes()
            )
    description = build()
    names = [name for name in description["speakers"] if "sr" in name]
    assert names == ["ktuberling-sr"]
    assert description["speakers"]["ktuberling-sr"]["seconds"] < 4.0
    assert description["dropped_files"] == {"same recording twice": 18}


def test_no_language_on_both_sides(packages, build):
    # Two more packages have Romanian, one of them more of it; European
    # Portuguese may be spoken by whoever spoke the Brazilian; a game voice may
    # be localized; and a code may be written in another form.
    packages.speak([f"{KTUBERLING}/ro/word{n}.ogg" for n in range(20)])
    packages.speak([f"{TUXPAINT}/a/b{n}_desc_ro.ogg" for n in range(6)])
    packages.speak([f"{KTUBERLING}/pt/word{n}.ogg" for n in range(6)])
    packages.speak([f"{HEDGEWARS}/Default_cs/P{n}.ogg" for n in range(6)])
    packages.speak([f"{TUXPAINT}/a/b{n}_desc_HE.ogg" for n in range(6)])
    description = build()
    speakers = description["speakers"]
    sides = {"train": [], "test": []}
    for row in speakers.values():
        sides[row["part"]].append(row["language"].split("_")[0])
    assert not set(sides["train"]) & set(sides["test"])
    assert len(sides["test"]) == len(set(sides["test"])) == 15
    assert speakers["ktuberling-ro"]["part"] == "test"
    assert set(description["dropped_speakers"]) == {
        *("klettres-ro", "tuxpaint-ro", "ktuberling-pt"),
        *("hedgewars-Default_cs", "tuxpaint-he"),
    }


def test_norwegian_forms_are_different_languages(build):
    speakers = build()["speakers"]
    assert {"klettres-nb", "klettres-nn"} <= set(speakers)


def test_short_speaker_is_dropped(packages, build):
    packages.speak([f"{KLETTRES}/nl/alpha/a-{n}.ogg" for n in range(2)])
    description = build()
    assert "klettres-nl" not in description["speakers"]
    assert "under" in description["dropped_speakers"]["klettres-nl"]


def test_too_few_test_speakers(packages, build, tmp_path):
    for language in TEST_LANGUAGES[:4]:
        for path in packages.path(f"{KLETTRES}/{language}/alpha").iterdir():
            path.unlink()
    with pytest.raises(CorpusError, match="11 test speakers") as error:
        build()
    assert "\n" not in str(error.value)
    assert not (tmp_path / "corpus").exists()


# What the files hold -------------------------------------------------------


def test_useless_files_are_counted(packages, build, tmp_path):
    clip = synthetic_utterance(90, 0, 0.5)
    bad = f"{KTUBERLING}/da"
    packages.speak([f"{bad}/good{n}.wav" for n in range(6)])
    packages.write(
        f"{bad}/low.wav", synthetic_utterance(90, 1, 0.5, 8000), 8000
    )
    packages.write(
        f"{bad}/low.ogg", synthetic_utterance(90, 1, 0.5, 8000), 8000
    )
    packages.write(f"{bad}/silent.wav", 1e-5 * clip)
    packages.write(f"{bad}/short.wav", clip[:500])
    packages.write(f"{bad}/opposed.wav", np.stack([clip, -clip], axis=1))
    packages.write(f"{bad}/no_samples.wav", clip[:0])
    broken = clip.copy()
    broken[100] = np.nan
    packages.write(f"{bad}/nan.wav", broken, subtype="FLOAT")
    packages.path(f"{bad}/empty1.ogg").touch()
    packages.path(f"{bad}/empty2.mp3").touch()
    packages.path(f"{bad}/corrupt.ogg").write_bytes(b"OggS" + bytes(2000))
    packages.path(f"{bad}/text.mp3").write_text("not a sound")
    copied = packages.path(f"{bad}/good0.wav").read_bytes()
    packages.path(f"{bad}/copy.wav").write_bytes(copied)
    shared = packages.path(f"{KTUBERLING}/fr/word0.wav").read_bytes()
    packages.path(f"{bad}/of_another.wav").write_bytes(shared)

    description = build()
    assert dropped(tmp_path / "corpus") == {
        "low.wav": "sampling rate under 16 kHz",
        "low.ogg": "sampling rate under 16 kHz",
        "silent.wav": "silent",
        "opposed.wav": "silent",
        "short.wav": "too short",
        "no_samples.wav": "empty",
        "nan.wav": "values not finite",
        "empty1.ogg": "unreadable",
        "empty2.mp3": "unreadable",
        "corrupt.ogg": "unreadable",
        "text.mp3": "unreadable",
        # Of two equal files the first one stays.
        "good0.wav": "same recording twice",
        "of_another.wav": "same recording under two speakers",
        "word0.wav": "same recording under two speakers",
    }
    assert description["dropped_files"] == {
        "unreadable": 4,
        "sampling rate under 16 kHz": 2,
        "same recording under two speakers": 2,
        "silent": 2,
        "too short": 1,
        "empty": 1,
        "values not finite": 1,
        "same recording twice": 1,
    }
    assert description["speakers"]["ktuberling-da"]["part"] == "train"
    seconds = description["speakers"]["ktuberling-da"]["seconds"]
    assert 2.0 < seconds <= 3.0


@pytest.mark.parametrize("rate", [16000, 22050, 22255, 44100, 48000, 128000])
def test_resampling_keeps_the_pitch(packages, rate, tmp_path):
    time = np.arange(rate) / rate
    tone = 0.5 * np.sin(2 * np.pi * 440.0 * time)
    path = tmp_path / "tone.wav"
    soundfile.write(path, np.stack([tone, tone], axis=1), rate)
    clip = read_clip(path).numpy()
    assert len(clip) == pytest.approx(16000, abs=20)
    spectrum = np.abs(np.fft.rfft(clip * np.hanning(len(clip)), 160000))
    assert spectrum.argmax() / 10 == pytest.approx(440.0, abs=1.0)
    assert np.abs(clip[100:-100]).max() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("noise", [0.0, 0.005])
def test_silence_at_the_ends_is_trimmed(noise, tmp_path):
    random = np.random.default_rng(1)
    time = np.arange(48000) / 16000
    word = (time >= 1.0) & (time < 1.6)
    samples = 0.5 * np.sin(2 * np.pi * 300.0 * time) * word
    samples += noise * random.standard_normal(48000) + 0.01
    samples[160:200] = 0.9  # the click of a switch
    path = tmp_path / "clip.wav"
    soundfile.write(path, samples, 16000)
    clip = read_clip(path)
    assert 0.6 <= len(clip) / 16000 <= 0.9
    # The word is all there.
    assert (
        float((clip.abs() > 0.25).sum())
        >= 0.6 * (np.abs(samples) > 0.25)[1000:].sum()
    )


def test_words_are_not_cut(packages, build, tmp_path):
    # Square words of a level of their own show where each sample went.
    names = [f"{KTUBERLING}/lt/word{n}.wav" for n in range(9)]
    wave = np.where(np.arange(6400) % 80 < 40, 1.0, -1.0)
    for number, name in enumerate(names, start=1):
        packages.write(name, 0.1 * number * wave, subtype="FLOAT")
    build()
    found = []
    for path in sorted((tmp_path / "corpus/wav/ktuberling-lt").rglob("*.wav")):
        samples, _ = soundfile.read(path)
        levels = np.round(10 * np.abs(samples)).astype(int)
        changes = np.flatnonzero(np.diff(levels)) + 1
        for number, run in enumerate(np.split(levels, changes)):
            if number % 2 == 0:
                found.append(run[0])
                assert len(run) == 6400
            else:
                assert run[0] == 0 and len(run) == 1600
    assert sorted(found) == list(range(1, 10))
    assert found != sorted(found), "the order is shuffled"


def test_long_clip_is_divided_in_its_pauses(packages, build, tmp_path):
    time = np.arange(30 * 16000) / 16000
    # Sound for 0.9 s, then a pause of 0.1 s, and so on.
    sounding = np.abs(time % 1.0 - 0.5) < 0.45
    samples = np.where(sounding, 0.5 * np.sin(2 * np.pi * 200 * time), 0.0)
    packages.write(f"{KTUBERLING}/it/long.wav", samples)
    build()
    pieces = [
        soundfile.read(path)[0]
        for path in (tmp_path / "corpus/wav/ktuberling-it").rglob("*.wav")
    ]
    assert len(pieces) >= 4
    for piece in pieces:
        assert len(piece) <= 8 * 16000
        assert np.abs(piece[:10]).max() < 1e-3
        assert np.abs(piece[-10:]).max() < 1e-3
    total = sum(np.abs(piece).sum() for piece in pieces)
    assert total == pytest.approx(np.abs(samples).sum(), rel=0.01)


def test_loud_recordings_do_not_clip(packages, build, tmp_path):
    time = np.arange(8000) / 16000
    wave = 1.8 * np.sin(2 * np.pi * 300 * time)
    for number in range(6):
        packages.write(
            f"{KTUBERLING}/ca/loud{number}.wav",
            wave * (1.0 - 0.01 * number),
            subtype="FLOAT",
        )
    build()
    for path in (tmp_path / "corpus/wav/ktuberling-ca").rglob("*.wav"):
        samples, _ = soundfile.read(path)
        # A clipped sine would stay at full scale for a third of the time.
        assert np.mean(np.abs(samples) > 0.98) < 0.15


# Interruptions -------------------------------------------------------------


class Interruption(BaseException):
    """Like KeyboardInterrupt, but none that pytest would take for its own."""


@pytest.mark.parametrize("which, rebuilding", [(1, True), (20, False)])
def test_interrupted_while_writing(
    packages, build, tmp_path, monkeypatch, which, rebuilding
):
    corpus = tmp_path / "corpus"
    complete = build_demo_corpus(tmp_path / "complete", packages.cache)
    if rebuilding:
        with monkeypatch.context() as other:
            other.setitem(SETTINGS, "seed", 1)
            build()
    before = contents(corpus)
    save = audio_io.save
    calls = []

    def interrupted_save(path, *arguments, **options):
        calls.append(path)
        if len(calls) == which:
            pathlib.Path(path).write_bytes(b"RIFF half of a fi")
            raise Interruption
        save(path, *arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(audio_io, "save", interrupted_save)
        with pytest.raises(Interruption):
            build()
    left = {
        name: digest
        for name, digest in contents(corpus).items()
        if not name.startswith(".building/")
    }
    assert left == before
    assert build() == complete
    assert contents(corpus) == contents(tmp_path / "complete")


@pytest.mark.parametrize("which", [1, 2, 5])
def test_interrupted_while_moving(
    packages, build, tmp_path, monkeypatch, which
):
    corpus = tmp_path / "corpus"
    complete = build_demo_corpus(tmp_path / "complete", packages.cache)
    with monkeypatch.context() as other:
        other.setitem(SETTINGS, "seed", 1)
        build()
    replace = os.replace
    calls = []

    def interrupted_replace(*arguments):
        calls.append(arguments)
        if len(calls) == which:
            raise Interruption
        replace(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", interrupted_replace)
        with pytest.raises(Interruption):
            build()
    assert not (corpus / "corpus.json").exists()
    assert build() == complete
    assert contents(corpus) == contents(tmp_path / "complete")


# apt -----------------------------------------------------------------------

# The stand-in for apt-get takes packages from the folder named ARCHIVE; the one
# for dpkg-deb takes them for tar files.
APT_GET = """\
echo "$1 $2" >> "$ARCHIVE/log"
case $1 in
update) touch "$ARCHIVE/lists" ;;
download)
    test -e "$ARCHIVE/lists" || { echo "E: Unable to locate $2" >&2; exit 100; }
    if test -e "$ARCHIVE/offline-$2"; then
        printf half > "$2_1_all.deb"
        echo "W: something" >&2
        echo "E: Failed to fetch $2" >&2
        exit 100
    fi
    cp "$ARCHIVE/$2_1_all.deb" . ;;
esac
"""
DPKG_DEB = """\
mkdir -p "$3" && tar -xf "$2" -C "$3"
"""


@pytest.fixture
def archive(packages, tmp_path, monkeypatch):
    """A Debian archive with the packages, which leave the cache for it."""
    archive = tmp_path / "archive"
    archive.mkdir()
    unpacked = packages.cache / "unpacked"
    for tree in list(unpacked.iterdir()):
        name = tree.name.split("_")[0]
        deb = archive / f"{name}_1_all.deb"
        os.system(f"tar -cf '{deb}' -C '{tree}' .")
    os.rename(packages.cache, tmp_path / "away")
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, script in [("apt-get", APT_GET), ("dpkg-deb", DPKG_DEB)]:
        program = programs / name
        program.write_text(f"#!/bin/sh\n{script}")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("ARCHIVE", str(archive))
    return archive


@pytest.fixture
def small_stand_in(monkeypatch):
    """A synthetic corpus of a tenth of the size."""
    monkeypatch.setattr(
        prepare_demo_corpus,
        "write_synthetic_corpus",
        lambda folder: write_synthetic_corpus(folder, 4, 2, 4, 1.0),
    )


def test_packages_are_downloaded_once(archive, build, packages, tmp_path):
    assert build()["origin"] == "real"
    log = (archive / "log").read_text().split("\n")[:-1]
    # The lists were missing, so the first download is tried twice.
    assert log == [
        "download ktuberling-data",
        "update ",
        "download ktuberling-data",
        "download klettres-data",
        "download tuxpaint-stamps-default",
        "download hedgewars-data",
    ]
    assert (packages.cache / "klettres-data_1_all.deb").is_file()
    description = build_demo_corpus(tmp_path / "again", packages.cache)
    assert description["packages"][1] == "klettres-data_1_all"
    assert (archive / "log").read_text().split("\n")[:-1] == log


def test_partial_download_is_not_taken_for_complete(
    archive, build, packages, small_stand_in, caplog
):
    (archive / "lists").touch()
    broken = archive / "offline-tuxpaint-stamps-default"
    broken.touch()
    assert build()["origin"] == "synthetic"
    assert "SYNTHETIC" in caplog.text
    assert "E: Failed to fetch tuxpaint-stamps-default" in caplog.text
    assert not list(packages.cache.glob("**/tuxpaint*"))
    # What did arrive stays, and the next run fetches the rest.
    assert (packages.cache / "klettres-data_1_all.deb").is_file()
    broken.unlink()
    (archive / "log").unlink()
    description = build()
    assert description["origin"] == "real"
    assert not any("synthetic" in name for name in description["speakers"])
    assert "klettres" not in (archive / "log").read_text()


def test_relative_cache_folder(archive, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert build_demo_corpus("corpus", "cache")["origin"] == "real"


def test_damaged_package_is_downloaded_again(archive, build, packages):
    packages.cache.mkdir()
    damaged = packages.cache / "klettres-data_1_all.deb"
    damaged.write_text("half a package")
    assert build()["origin"] == "real"
    original = archive / "klettres-data_1_all.deb"
    assert damaged.read_bytes() == original.read_bytes()


def test_interrupted_unpacking_is_not_taken_for_complete(
    archive, build, packages, tmp_path, small_stand_in
):
    program = tmp_path / "programs" / "dpkg-deb"
    working = program.read_text()
    program.write_text("#!/bin/sh\nmkdir -p $3/usr\nexit 2\n")
    assert build()["origin"] == "synthetic"
    program.write_text(working)
    assert "ktuberling-fr" in build()["speakers"]


@pytest.mark.parametrize("missing", ["apt-get", "dpkg-deb"])
def test_stand_in_without_apt(
    archive, build, missing, monkeypatch, tmp_path, small_stand_in, caplog
):
    programs = tmp_path / "programs"
    (programs / missing).unlink()
    monkeypatch.setenv("PATH", str(programs))
    description = build()
    assert description["origin"] == "synthetic"
    assert f"{missing} is not installed here" in caplog.text
    assert "SYNTHETIC" in caplog.text
    corpus = tmp_path / "corpus"
    files = contents(corpus)
    assert sum(name.endswith(".wav") for name in files) == 6 * 4
    # Run again, it reuses the stand-in.
    assert build() == description
    assert contents(corpus) == files


def test_cached_packages_need_no_apt(build, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert build()["origin"] == "real"


# The script ----------------------------------------------------------------


def test_script_reports(packages, tmp_path, capsys):
    arguments = [str(tmp_path / "corpus"), "--cache", str(packages.cache)]
    assert exit_code(prepare_demo_corpus.main, arguments) == 0
    output = capsys.readouterr().out
    assert output.startswith("REAL voices")
    assert "veri_test2.txt: 45 target and 945 nontarget trials" in output


def test_script_says_synthetic(tmp_path, capsys, small_stand_in):
    arguments = [str(tmp_path / "corpus"), "--synthetic"]
    assert exit_code(prepare_demo_corpus.main, arguments) == 0
    assert capsys.readouterr().out.startswith("SYNTHETIC voices")


def test_script_error_is_one_line(tmp_path, capsys):
    (tmp_path / "wav").mkdir()
    assert (
        exit_code(prepare_demo_corpus.main, [str(tmp_path), "--synthetic"]) == 1
    )
    captured = capsys.readouterr()
    assert captured.err.splitlines()[-1].startswith("error: ")
    assert captured.out == ""


# Synthetic voices ----------------------------------------------------------


def test_synthetic_utterances_depend_on_both_seeds_only():
    first = synthetic_utterance(3, 5, 1.0)
    np.testing.assert_array_equal(first, synthetic_utterance(3, 5, 1.0))
    assert not np.array_equal(first, synthetic_utterance(3, 6, 1.0))
    assert not np.array_equal(first, synthetic_utterance(4, 5, 1.0))


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
@pytest.mark.parametrize("seconds", [0.01, 0.1, 1.234])
def test_synthetic_utterances_are_sound(rate, seconds):
    for speaker in range(5):
        waveform = synthetic_utterance(speaker, 0, seconds, rate)
        assert waveform.dtype == np.float32
        assert waveform.shape == (round(seconds * rate),)
        assert np.isfinite(waveform).all()
        assert 0.01 < np.abs(waveform).max() <= 1.0


def test_synthetic_speakers_differ_but_not_trivially():
    # Long-term spectra, level removed, as a crude embedding.
    def spectrum(speaker, utterance):
        waveform = synthetic_utterance(speaker, utterance, 3.0)
        frames = waveform[: len(waveform) // 512 * 512].reshape(-1, 512)
        power = np.abs(np.fft.rfft(frames * np.hanning(512))) ** 2
        bands = power.mean(axis=0)[1:].reshape(32, 8).mean(axis=1)
        return np.log(bands) - np.log(bands).mean()

    spectra = np.array([[spectrum(s, u) for u in range(4)] for s in range(20)])
    speakers = np.repeat(np.arange(20), 4)
    flat = spectra.reshape(80, -1)
    distances = np.linalg.norm(flat[:, None] - flat[None], axis=2)
    upper = np.triu(np.ones((80, 80), dtype=bool), 1)
    same = (speakers[:, None] == speakers[None]) & upper
    other = (speakers[:, None] != speakers[None]) & upper
    # How often a pair of one speaker is closer than a pair of two.
    closer = (distances[same][:, None] < distances[other][None]).mean()
    assert 0.75 < closer < 0.999


def test_synthetic_corpus(tmp_path):
    description = write_synthetic_corpus(tmp_path / "corpus", 4, 2, 4, 0.5)
    assert description["origin"] == "synthetic"
    assert description["split"] == {
        "train": {"speakers": 4, "utterances": 8, "seconds": 4.0},
        "validation": {"speakers": 4, "utterances": 8, "seconds": 4.0},
        "test": {"speakers": 2, "utterances": 8, "seconds": 4.0},
    }
    assert len(list((tmp_path / "corpus").glob("wav/*/*/*.wav"))) == 24
    trials = read_trials(tmp_path / "corpus" / "veri_test2.txt")
    assert len(trials) == 28 and sum(t[0] == "1" for t in trials) == 12
    files = contents(tmp_path / "corpus")
    write_synthetic_corpus(tmp_path / "other", 4, 2, 4, 0.5)
    assert contents(tmp_path / "other") == files
    description = write_synthetic_corpus(tmp_path / "corpus", 4, 2, 3, 0.5)
    assert description["split"]["test"] == {
        "speakers": 2,
        "utterances": 6,
        "seconds": 3.0,
    }
