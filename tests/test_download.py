"""Downloads from a server that cuts, resumes, or cannot resume."""

import hashlib
import os

import pytest
from file_server import serve_files

from redimnet2_lobes.files.download import download

CONTENT = os.urandom(300_000)
MD5 = hashlib.md5(CONTENT).hexdigest()


@pytest.fixture
def server():
    with serve_files({"file": CONTENT}) as server:
        server.url = f"{server.address}/file"
        yield server


@pytest.mark.parametrize("can_resume", [True, False])
def test_a_cut_connection_is_resumed(server, tmp_path, can_resume):
    path = tmp_path / "file.bin"
    server.can_resume = can_resume
    server.cut_at = 100_000
    with pytest.raises(OSError) as failure:
        download(server.url, path, MD5)
    message = str(failure.value)
    assert message.startswith(f"{server.url}: cannot be fetched (")
    assert "100000 of 300000 bytes" in message and str(path) in message
    assert "\n" not in message and not path.exists()
    server.cut_at = None
    download(server.url, path, MD5)
    assert path.read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=100000-"]
    assert os.listdir(tmp_path) == ["file.bin"]


def test_a_file_that_is_there_is_not_fetched(server, tmp_path):
    path = tmp_path / "file.bin"
    path.write_bytes(b"by hand")
    download(server.url, path, MD5)
    assert path.read_bytes() == b"by hand" and not server.ranges


def test_a_wrong_sum_is_named_and_nothing_stays(server, tmp_path):
    with pytest.raises(ValueError) as failure:
        download(server.url, tmp_path / "file.bin", "0" * 32)
    assert MD5 in str(failure.value) and "0" * 32 in str(failure.value)
    assert "\n" not in str(failure.value)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("is_fine", [True, False])
def test_a_check_sees_the_file_before_it_takes_its_name(
    server, tmp_path, is_fine
):
    path = tmp_path / "file.bin"
    seen = []

    def check(partial):
        with open(partial, "rb") as stream:
            seen.append((stream.read(), path.exists()))
        if not is_fine:
            raise ValueError("no such thing")

    if is_fine:
        download(server.url, path, check=check)
    else:
        with pytest.raises(ValueError) as failure:
            download(server.url, path, check=check)
        message = str(failure.value)
        assert message.startswith(f"{server.url}: no such thing; ")
        assert str(path) in message and "\n" not in message
    assert seen == [(CONTENT, False)]
    assert os.listdir(tmp_path) == (["file.bin"] if is_fine else [])


@pytest.mark.parametrize("partial", [CONTENT, CONTENT + b"more"])
def test_a_partial_file_of_full_length(server, tmp_path, partial):
    (tmp_path / "file.bin.partial").write_bytes(partial)
    download(server.url, tmp_path / "file.bin", MD5)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert len(server.ranges) == (1 if partial == CONTENT else 2)


def test_missing_files_and_dead_servers_are_named(server, tmp_path):
    missing = server.url.replace("file", "none")
    with pytest.raises(OSError, match=f"{missing}: .*404"):
        download(missing, tmp_path / "file.bin")
    server.server_close()
    with pytest.raises(OSError, match=f"{server.url}: .*by hand"):
        download(server.url, tmp_path / "file.bin")
