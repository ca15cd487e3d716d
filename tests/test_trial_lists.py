"""Fetching the trial lists of VoxCeleb1, from a folder instead of the net."""

import hashlib

import pytest
import trial_lists
from conftest import exit_code

from redimnet2_lobes.data import trials

TRIALS = (
    "1 id10270/x/1.wav id10270/y/1.wav\n0 id10270/x/1.wav id10271/x/1.wav\n"
)


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A folder with small lists, published under the names of the real ones."""
    folder = tmp_path / "published"
    folder.mkdir()
    for letter, url in trial_lists.URLS.items():
        path = folder / url.rpartition("/")[2]
        path.write_text(TRIALS)
        monkeypatch.setitem(trial_lists.URLS, letter, path.as_uri())
    for name in trials.MD5_SUMS:
        md5 = hashlib.md5(TRIALS.encode()).hexdigest()
        monkeypatch.setitem(trials.MD5_SUMS, name, md5)
    return folder


def test_all_lists_are_fetched(published, tmp_path, capsys):
    folder = tmp_path / "lists"
    assert exit_code(trial_lists.main, [str(folder)]) == 0
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        path.name for path in published.iterdir()
    )
    output = capsys.readouterr().out
    assert output.count("2 trials, as published\n") == 3
    assert "list_test_bilingual.txt, 2 trials, form checked\n" in output


@pytest.mark.parametrize("is_there", [True, False])
def test_another_sum_is_an_error(published, tmp_path, capsys, is_there):
    folder = tmp_path / "lists"
    folder.mkdir()
    wrong = (folder if is_there else published) / "list_test_hard2.txt"
    wrong.write_text(TRIALS[:-1])
    assert exit_code(trial_lists.main, [str(folder), "O", "H"]) == 1
    output = capsys.readouterr()
    assert "VoxCeleb1-O: " in output.out
    last_line = output.err.splitlines()[-1]
    assert last_line.startswith("error: ")
    assert "list_test_hard2.txt" in last_line
    assert "MD5 sum" in last_line
    assert wrong.exists()
    assert (folder / "list_test_hard2.txt").exists() == is_there


def test_no_list_but_a_web_page(published, tmp_path, capsys):
    (published / "list_test_bilingual.txt").write_text("<html>Not here</html>")
    assert exit_code(trial_lists.main, [str(tmp_path), "B"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "expected 'label enrol test'" in error
    assert trial_lists.URLS["B"] in error
    assert not (tmp_path / "list_test_bilingual.txt").exists()


def test_a_web_page_that_is_there_already(tmp_path, capsys):
    """Left by another program; the line says what to do about it."""
    (tmp_path / "list_test_bilingual.txt").write_text("<html>Not here</html>")
    assert exit_code(trial_lists.main, [str(tmp_path), "B"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "list_test_bilingual.txt" in error
    assert error.endswith("move it away and run the same command again")


def test_unknown_letter(tmp_path, capsys):
    assert exit_code(trial_lists.main, [str(tmp_path / "new"), "O", "X"]) == 1
    assert capsys.readouterr().err == (
        "error: X: no list of VoxCeleb1; they are O E H B\n"
    )
    assert not (tmp_path / "new").exists()
