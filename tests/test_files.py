"""Files and messages: complete, synced, and in one line."""

import pytest

from redimnet2_lobes.files.atomic import check_absent, replace_when_synced
from redimnet2_lobes.files.error_lines import one_line, one_line_errors


def test_links_that_lead_nowhere_are_moved_as_they_are(tmp_path):
    """As some Debian packages hold them."""
    (tmp_path / "partial").mkdir()
    (tmp_path / "partial" / "link").symlink_to("nowhere")
    (tmp_path / "partial" / "file").write_text("all")
    replace_when_synced(tmp_path / "partial", tmp_path / "folder")
    assert (tmp_path / "folder" / "link").is_symlink()
    assert (tmp_path / "folder" / "file").read_text() == "all"


def test_the_remedy_is_kept_behind_a_long_name():
    name = "x" * 2000
    message = f"{name}.wav: missing; check the path"
    assert one_line(ValueError(message)) == message
    with pytest.raises(SystemExit) as caught, one_line_errors():
        raise ValueError(message)
    assert caught.value.code == f"error: {message}"


def test_what_is_there_is_found_behind_a_folder_that_is_not(tmp_path):
    """Such a folder is made before the file is written."""
    (tmp_path / "kept.npz").write_bytes(b"mine")
    check_absent(tmp_path / "new" / "kept.npz")
    for name in ("new/../kept.npz", "new/deeper/../../kept.npz", "new/.."):
        with pytest.raises(ValueError, match="exists already"):
            check_absent(f"{tmp_path}/{name}")
