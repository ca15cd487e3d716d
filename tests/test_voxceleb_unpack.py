"""Unpacking VoxCeleb: all forms of sources, restarts, faults."""

import csv
import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
import soundfile
import voxceleb_unpack
from conftest import exit_code
from voxceleb_unpack import unpack

VOX1 = {
    "wav/id10001/1zcIwhmdeo4/00001.wav",
    "wav/id10001/1zcIwhmdeo4/00002.wav",
    "wav/id10002/xTV-jFAUKcw/00001.wav",
}
VOX2 = {
    "aac/id00012/21Uxsk56VDQ/00001.m4a",
    "aac/id00012/21Uxsk56VDQ/00002.m4a",
    "aac/id00015/00kI5gHPQUs/00001.m4a",
}
M4A = "aac/id00012/21Uxsk56VDQ/00001.m4a"


@pytest.fixture(scope="session")
def recordings(tmp_path_factory):
    """The bytes of a .wav and of a .m4a, by extension."""
    folder = tmp_path_factory.mktemp("recordings")
    wav, m4a = folder / "a.wav", folder / "a.m4a"
    time = np.arange(4800) / 16000
    soundfile.write(wav, 0.5 * np.sin(2 * np.pi * 1000 * time), 16000)
    ffmpeg = imageio_ffmpeg.get_ffmpeg_exe()
    subprocess.run([ffmpeg, "-v", "error", "-i", wav, m4a], check=True)
    return {path.suffix: path.read_bytes() for path in (wav, m4a)}


@pytest.fixture
def output(tmp_path):
    return tmp_path / "output"


@pytest.fixture
def make(tmp_path, recordings):
    """Give a function that makes a tree or an archive of it."""

    def make_source(kind, names, **contents):
        folder = tmp_path / "source"
        folder.mkdir(exist_ok=True)
        contents = contents or {
            name: recordings[Path(name).suffix] for name in sorted(names)
        }
        if kind == "tree":
            for name, content in contents.items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(content)
            return [folder]
        path = folder / "vox_dev.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("wav/readme.txt", "not audio")
            for name, content in contents.items():
                archive.writestr(name, content)
        if kind == "zip":
            return [path]
        data = path.read_bytes()
        path.unlink()
        size = len(data) // 3
        for number, letter in enumerate("abc"):
            end = None if letter == "c" else (number + 1) * size
            part = folder / f"vox_dev_parta{letter}"
            part.write_bytes(data[number * size : end])
        if kind == "folder of parts":
            return [folder]
        return sorted(folder.iterdir(), reverse=True)

    return make_source


def utterances(names):
    return {Path(*Path(name).parts[-3:]).with_suffix("") for name in names}


def files(folder):
    return {path for path in folder.rglob("*") if path.is_file()}


def unpacked(output):
    return utterances(path for path in files(output / "wav"))


def report(output):
    with open(output / "unpack_report.csv", newline="") as stream:
        return {row["file"]: row["reason"] for row in csv.DictReader(stream)}


@pytest.mark.parametrize("kind", ["tree", "zip", "parts", "folder of parts"])
@pytest.mark.parametrize(
    ("names", "above"), [(VOX1, ""), (VOX2, ""), (VOX2, "dev/")]
)
def test_all_forms(make, output, recordings, kind, names, above):
    sources = make(kind, [f"{above}{name}" for name in names])
    folder = sources[0] if sources[0].is_dir() else sources[0].parent
    before = {path: path.read_bytes() for path in files(folder)}
    assert unpack(str(output), map(str, sources)) == (3, 0, 0)
    assert unpacked(output) == utterances(names)
    for path in files(output / "wav"):
        header = soundfile.info(path)
        assert header.samplerate == 16000
        assert header.channels == 1
        assert header.subtype == "PCM_16"
        samples, _ = soundfile.read(path)
        middle = np.abs(np.fft.rfft(samples[1600:3200]))
        assert middle.argmax() == 100  # 1000 Hz in steps of 10 Hz
        if names is VOX1:
            assert path.read_bytes() == recordings[".wav"]
    assert {path: path.read_bytes() for path in files(folder)} == before
    assert {path.name for path in output.iterdir()} == {
        "wav",
        "unpack_report.csv",
    }
    assert report(output) == {}


def test_flac_and_what_is_there(make, output):
    sources = [str(make("zip", VOX2)[0])]
    assert unpack(output, sources, "flac", workers=1) == (3, 0, 0)
    written = {path: path.stat().st_mtime_ns for path in files(output / "wav")}
    assert {path.suffix for path in written} == {".flac"}
    assert {soundfile.info(path).subtype for path in written} == {"PCM_16"}
    next(iter(written)).unlink()
    assert unpack(output, sources, "wav") == (1, 2, 0)
    assert len({path for path in written if path.exists()}) == 2
    assert unpack(output, sources, "flac") == (0, 3, 0)


def test_tree_inside_the_output(make, output):
    [tree] = make("tree", [f"dev/{name}" for name in VOX2])
    assert unpack(tree, [tree]) == (3, 0, 0)
    assert unpack(tree, [tree]) == (0, 3, 0)


def test_failures_are_reported_and_tried_again(
    make, output, recordings, capsys, monkeypatch
):
    good, stored = recordings[".m4a"], recordings[".wav"]
    contents = {
        M4A: good[: len(good) // 2],
        "aac/id00012/21Uxsk56VDQ/00002.m4a": good,
        "aac/id00012/21Uxsk56VDQ/empty.m4a": b"",
        "wav/id10001/1zcIwhmdeo4/00001.wav": stored,
        "wav/misplaced.wav": stored,
        "wav/id10001/../00001.wav": stored,
    }
    [path] = make("zip", contents, **contents)
    with zipfile.ZipFile(path) as archive:
        member = archive.getinfo("wav/id10001/1zcIwhmdeo4/00001.wav")
    data = bytearray(path.read_bytes())
    start = member.header_offset + 30 + len(member.filename)
    data[start + member.compress_size // 2] ^= 255
    path.write_bytes(data)

    monkeypatch.setattr(sys, "argv", ["", str(output), str(path)])
    assert exit_code(voxceleb_unpack.main) == 1
    captured = capsys.readouterr()
    assert captured.out == "1 utterances unpacked, 0 were there before\n"
    assert captured.err.splitlines()[-1].startswith(
        "error: 5 of the files could not"
    )
    reasons = report(output)
    assert reasons.pop("wav/misplaced.wav") == "not in <speaker>/<session>/"
    assert reasons.pop("wav/id10001/../00001.wav").startswith("not in ")
    assert reasons.pop(M4A).startswith("ffmpeg: ")
    assert reasons.pop("aac/id00012/21Uxsk56VDQ/empty.m4a").startswith("ffmpeg")
    assert reasons.pop(member.filename).startswith("damaged in the archive: ")
    assert reasons == {}
    assert len(files(output / "wav")) == 1

    path.unlink()
    make("zip", VOX1 | VOX2)
    assert exit_code(voxceleb_unpack.main) == 0
    assert report(output) == {}
    assert unpacked(output) == utterances(VOX1 | VOX2)


def test_killed_in_the_middle(make, output):
    [tree] = make("tree", VOX2)
    blocked = tree / M4A
    content = blocked.read_bytes()
    blocked.unlink()
    os.mkfifo(blocked)  # ffmpeg waits here for a writer
    command = [sys.executable, voxceleb_unpack.__file__, output, tree]
    process = subprocess.Popen(
        [*command, "--workers=2"],
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not (output / "wav").exists() or not files(output / "wav"):
        assert time.monotonic() < deadline
        assert process.poll() is None
    with pytest.raises(OSError, match="another voxceleb_unpack.py"):
        unpack(output, [tree])
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert all(soundfile.info(path).frames for path in files(output / "wav"))

    blocked.unlink()
    blocked.write_bytes(content)
    assert subprocess.run(command, capture_output=True).returncode == 0
    assert unpacked(output) == utterances(VOX2)
    assert not (output / ".unpacking").exists()


def test_full_disk_ends_the_run(make, output, monkeypatch):
    def full(source, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    sources = make("zip", VOX1)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(OSError, match="00001.wav: No space left .* again"):
            unpack(output, sources, workers=1)
    assert unpack(output, sources) == (3, 0, 0)


def test_hard_links_only_where_they_work(make, output, monkeypatch):
    [tree] = make("tree", VOX1)
    name = sorted(VOX1)[0]

    def no_link(source, target):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", no_link)
        assert unpack(output, [tree]) == (3, 0, 0)
    assert not (output / name).samefile(tree / name)
    (output / name).unlink()
    assert unpack(output, [tree]) == (1, 2, 0)
    assert (output / name).samefile(tree / name)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "vox_dev_partab").unlink(), "partab: .*miss"),
        (lambda folder: (folder / "vox_dev_partac").unlink(), "cut off"),
        (lambda folder: (folder / "vox_dev_partaa").unlink(), "partaa: .*miss"),
    ],
)
def test_missing_parts(make, output, spoil, message):
    path = make("parts", VOX1)[0]
    spoil(path.parent)
    with pytest.raises(ValueError, match=message) as caught:
        unpack(output, [path.parent])
    assert "\n" not in str(caught.value)


def test_sources_without_audio(make, output, tmp_path, capsys, monkeypatch):
    (tmp_path / "empty").mkdir()
    for source, message in (
        ("nowhere", "no such file or folder"),
        ("empty", "there is no audio file in it"),
    ):
        arguments = ["", str(output), str(tmp_path / source)]
        monkeypatch.setattr(sys, "argv", arguments)
        assert exit_code(voxceleb_unpack.main) == 1
        error = capsys.readouterr().err
        assert error.startswith(f"error: {tmp_path / source}: {message}")
        assert error.count("\n") == 1


def test_one_process_at_a_time(make, output):
    output.mkdir()
    folder = os.open(output, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    with pytest.raises(OSError, match="^.*output: another voxceleb_unpack.py"):
        unpack(output, make("zip", VOX1))
    os.close(folder)


def test_links_are_followed_but_nothing_is_taken_twice(
    make, output, tmp_path, capsys
):
    [tree] = make("tree", [f"pool/{name}" for name in VOX1])
    (tree / "dev").symlink_to("pool/wav")
    session = tree / "pool/wav/id10001/1zcIwhmdeo4"
    (session / "loop").symlink_to(".")
    (session / "up").symlink_to(tree)
    assert unpack(str(output), [str(tree)]) == (3, 0, 0)
    assert unpacked(output) == utterances(VOX1)
    assert capsys.readouterr().err.splitlines()[0] == (
        f"note: {tree}: 3 left out: 3 links to what is there already"
    )
    # A source may consist of links.
    other = tmp_path / "links"
    other.mkdir()
    (other / "wav").symlink_to(tree / "pool/wav")
    assert unpack(str(tmp_path / "again"), [str(other)]) == (3, 0, 0)
    assert unpack(str(output), [str(output / "wav")]) == (0, 3, 0)


def test_other_endings(make, output, recordings, tmp_path):
    folder = "wav/id10001/1zcIwhmdeo4"
    contents = {
        f"{folder}/1.WAV": recordings[".wav"],
        f"{folder}/2.mp4": recordings[".m4a"],
        f"{folder}/3.webm": b"no audio",
        f"{folder}/notes.txt": b"text",
    }
    sources = make("tree", (), **contents)
    assert unpack(str(output), map(str, sources)) == (2, 0, 1)
    assert {path.name for path in unpacked(output)} == {"1", "2"}
    assert all("3.webm" in name for name in report(output))
    [archive] = make("zip", (), **contents)
    archive = archive.rename(tmp_path / archive.name)
    assert unpack(str(tmp_path / "again"), [str(archive)]) == (2, 0, 1)
