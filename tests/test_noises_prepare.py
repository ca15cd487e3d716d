"""Extraction of MUSAN and RIRS_NOISES."""

import io
import os
import tarfile
import zipfile

import noises_prepare
import pytest
from conftest import exit_code
from noises_prepare import main

from redimnet2_lobes.data.augment import Noise, Reverberation

MUSAN = [
    "musan/README",
    "musan/music/fma/music-fma-0000.wav",
    "musan/noise/free-sound/noise-free-sound-0000.wav",
    "musan/speech/us-gov/speech-us-gov-0000.wav",
]
RIRS = [
    "RIRS_NOISES/simulated_rirs/smallroom/Room001/Room001-00001.wav",
    "RIRS_NOISES/pointsource_noises/noise-free-sound-0000.wav",
]


def tar_of(path, names):
    with tarfile.open(path, "w:gz") as archive:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = 1000
            archive.addfile(member, io.BytesIO(os.urandom(1000)))
    return str(path)


def zip_of(path, names):
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, os.urandom(1000))
    return str(path)


@pytest.fixture
def archives(tmp_path):
    return [
        "--musan=" + tar_of(tmp_path / "musan.tar.gz", MUSAN),
        "--rirs=" + zip_of(tmp_path / "rirs_noises.zip", RIRS),
    ]


@pytest.fixture
def error_of(tmp_path, capsys):
    """Runs the command, which must fail; gives its one line."""

    def run(*arguments):
        assert exit_code(main, [str(tmp_path / "noises"), *arguments]) == 1
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("error: ")
        return error

    return run


def test_archives_become_folders_once(tmp_path, archives, capsys, monkeypatch):
    folder = tmp_path / "noises"
    assert exit_code(main, [str(folder), *archives]) == 0
    assert sorted(os.listdir(folder)) == ["RIRS_NOISES", "musan"]
    for name in MUSAN + RIRS:
        assert (folder / name).stat().st_size == 1000
    musan, rirs = (
        word.split("=")[1]
        for word in capsys.readouterr().out.split()
        if "=" in word
    )
    Noise(musan, {"noise": [0, 15], "babble": [13, 20]}).check()
    Reverberation(rirs).check()
    # The second time, neither archives nor the network are needed.
    monkeypatch.setattr(noises_prepare, "download", None)
    assert exit_code(main, [str(folder)]) == 0


def test_without_archives_they_are_downloaded(tmp_path, monkeypatch):
    fetched = {}

    def download(url, path, md5):
        fetched[url] = md5
        if url.endswith(".zip"):
            zip_of(path, RIRS)
        else:
            tar_of(path, MUSAN)

    monkeypatch.setattr(noises_prepare, "download", download)
    assert exit_code(main, [str(tmp_path)]) == 0
    assert (tmp_path / MUSAN[1]).exists() and (tmp_path / RIRS[0]).exists()
    assert fetched == {
        "https://www.openslr.org/resources/17/musan.tar.gz": (
            "0c472d4fc0c5141eca47ad1ffeb2a7df"
        ),
        "https://www.openslr.org/resources/28/rirs_noises.zip": (
            "e6f48e257286e05de56413b4779d8ffb"
        ),
    }


@pytest.mark.parametrize("kept", [0, 100, 2500])
@pytest.mark.parametrize("which", [0, 1])
def test_cut_archives_are_named(tmp_path, archives, error_of, which, kept):
    path = archives[which].split("=")[1]
    with open(path, "r+b") as archive:
        archive.truncate(min(kept, os.path.getsize(path) - 100))
    error = error_of(*archives)
    assert path in error and "damaged or no archive" in error
    name = ["musan", "RIRS_NOISES"][which]
    assert not (tmp_path / "noises" / name).exists()
    # No temporary folder stays.
    assert len(os.listdir(tmp_path / "noises")) == which


def test_a_damaged_member_is_noticed(archives, error_of):
    path = archives[1].split("=")[1]
    with open(path, "r+b") as archive:
        archive.seek(200)  # in the first file, after its header
        archive.write(b"not as it was")
    assert "damaged or no archive (Bad CRC" in error_of(*archives)


def test_wrong_archives_and_folders_are_named(tmp_path, archives, error_of):
    without = tar_of(tmp_path / "half.tar.gz", MUSAN[:2])
    error = error_of("--musan=" + without, archives[1])
    assert f"{without}: no folder musan/noise/ in it; pass" in error
    assert not os.listdir(tmp_path / "noises")
    assert "nowhere.tar.gz" in error_of("--musan=nowhere.tar.gz")
    (tmp_path / "noises" / "musan" / "music").mkdir(parents=True)
    error = error_of(*archives)
    assert "noises/musan: no folder musan/noise/ in it; remove it" in error


def test_nothing_is_written_elsewhere(tmp_path, archives, error_of):
    path = tar_of(tmp_path / "evil.tar.gz", [*MUSAN, "../../escaped"])
    assert "outside the destination" in error_of("--musan=" + path)
    path = zip_of(tmp_path / "evil.zip", [*RIRS, "../../../escaped"])
    assert (
        exit_code(
            main, [str(tmp_path / "noises"), archives[0], "--rirs=" + path]
        )
        == 0
    )
    assert not list(tmp_path.parent.glob("escaped"))
    assert not list(tmp_path.glob("escaped"))
