"""Trial lists whose files are in another format than they say."""

import os

import pytest
import soundfile
import torch
from train_speaker_embeddings import dataio_prep
from voxceleb_prepare import prepare_voxceleb

from redimnet2_lobes.data.audio import AUDIO_EXTENSIONS, match_utterances
from redimnet2_lobes.data.training_set import UtteranceList
from redimnet2_lobes.data.trial_files import find_files, read_trial_lists
from redimnet2_lobes.data.utterances import read_utterances


def touch(folder, *files):
    for file in files:
        path = folder / "wav" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"audio")


def find(folder, *names):
    paths = find_files(names, folder, folder / "output")
    return {
        name: os.path.relpath(path, folder / "wav")
        for name, path in paths.items()
    }


def test_a_folder_without_wav(tmp_path):
    (tmp_path / "1.flac").write_bytes(b"audio")
    found = find_files(["1.wav"], tmp_path, tmp_path / "output")
    assert found == {"1.wav": str(tmp_path / "1.flac")}


@pytest.mark.parametrize("extension", AUDIO_EXTENSIONS)
@pytest.mark.parametrize("write", [str.lower, str.upper, str.title])
def test_any_extension(tmp_path, extension, write):
    file = f"id1/x/00001{write(extension)}"
    touch(tmp_path, file)
    names = ["id1/x/00001.wav", "id1/x/00001", "id1/x/00001.M4A"]
    assert find(tmp_path, *names) == dict.fromkeys(names, file)


def test_which_of_several(tmp_path):
    """That which is named, or else that which training takes."""
    touch(tmp_path, *(f"id1/x/1{e}" for e in (".mp3", ".flac", ".wav", ".WAV")))
    touch(tmp_path, *(f"id1/x/2{e}" for e in (".mp3", ".m4a", ".FLAC")))
    expected = {
        "id1/x/1.wav": "id1/x/1.wav",
        "id1/x/1.mp3": "id1/x/1.mp3",
        "id1/x/1.WAV": "id1/x/1.WAV",
        "id1/x/1": "id1/x/1.WAV",
        "id1/x/2.wav": "id1/x/2.FLAC",
        "id1/x/2.m4a": "id1/x/2.m4a",
    }
    assert find(tmp_path, *expected) == expected


def test_dots_in_names(tmp_path):
    touch(tmp_path, "a.b/x.y/take.1.flac", "a.b/x.y/take.2.wav")
    expected = {
        "a.b/x.y/take.1": "a.b/x.y/take.1.flac",
        "a.b/x.y/take.1.wav": "a.b/x.y/take.1.flac",
        "a.b/x.y/take.2.wav": "a.b/x.y/take.2.wav",
    }
    assert find(tmp_path, *expected) == expected


@pytest.mark.parametrize(
    "file", ["id1/x/1.txt", "id1/x/1.wav.part", "id1/x/.1.flac", "id1/y/1.flac"]
)
def test_what_is_no_file_of_the_utterance(tmp_path, file):
    touch(tmp_path, file)
    (tmp_path / "wav" / "id1" / "x" / "1.ogg").mkdir(parents=True)
    with pytest.raises(ValueError, match="1 of the 1 .* is .*id1/x/1.wav; "):
        find(tmp_path, "id1/x/1.wav")
    listed = (tmp_path / "output" / "missing_files.txt").read_text()
    assert listed == f"{tmp_path}/wav/id1/x/1.wav\n"


def test_a_list_of_utterances():
    files = ["a/1.flac", "b", "c/1.wav", "c/1.flac", "d.1"]
    names = ["a/1.wav", "b.wav", "c/1.flac", "c/1.mp3", "d.1", "e.wav"]
    assert match_utterances(names, files) == {
        "a/1.wav": "a/1.flac",
        "b.wav": "b",
        "c/1.flac": "c/1.flac",
        "c/1.mp3": "c/1.wav",
        "d.1": "d.1",
    }


@pytest.fixture
def corpus(tmp_path):
    """VoxCeleb as voxceleb_unpack.py --format=flac writes it."""
    noise = torch.randn(16000, generator=torch.Generator().manual_seed(0)) / 9
    for speaker in ("anna", "bert", "carl"):
        for number in range(3):
            path = tmp_path / "wav" / speaker / "x" / f"{number}.flac"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, noise.numpy(), 16000)
    (tmp_path / "test.txt").write_text(
        "1 carl/x/0.wav carl/x/1.wav\n0 carl/x/0.wav bert/x/0.wav\n"
    )
    (tmp_path / "validation.txt").write_text(
        "1 anna/x/0.wav anna/x/1\n0 anna/x/0.wav bert/x/0.WAV\n"
    )
    return tmp_path


def test_validation(corpus):
    (found,) = read_trial_lists(
        str(corpus / "validation.txt"), str(corpus), str(corpus / "output")
    )
    trials, paths = found.trials, found.paths
    assert trials[0] == (1, "anna/x/0.wav", "anna/x/1")
    assert {os.path.relpath(path, corpus) for path in paths.values()} == {
        *("wav/anna/x/0.flac", "wav/anna/x/1.flac", "wav/bert/x/0.flac")
    }


@pytest.mark.parametrize("source", ["folder", "list"])
def test_validation_utterances_are_not_trained_on(corpus, source):
    """Whether the list of utterances has extensions or not."""
    hparams = {
        "data_folder": str(corpus),
        "save_folder": str(corpus / "save"),
        "test_trials": [],
        "validation_trials": str(corpus / "validation.txt"),
        "minimum_seconds": 0.5,
        "check_audio": False,
        "corpora": None,
        "allow_incomplete": True,
        "preparation_workers": 1,
        "label_weight": 1.0,
    }
    (corpus / "save").mkdir()
    if source == "list":
        rows = "".join(
            f"{utterance.name},1.0,{utterance.path},{utterance.speaker}\n"
            for utterance in read_utterances(corpus)
        )
        path = corpus / "own.csv"
        path.write_text("ID,duration,wav,spk_id\n" + rows)
        hparams["training_lists"] = {"": path}
    trials = [(1, "anna/x/0.wav", "anna/x/1"), (0, "anna/x/0", "bert/x/0.WAV")]
    utterances, _ = dataio_prep(hparams, trials)
    names = [os.path.splitext(name)[0] for name in utterances.names.astype(str)]
    assert sorted(names) == [
        *("anna/x/2", "bert/x/1", "bert/x/2"),
        *("carl/x/0", "carl/x/1", "carl/x/2"),
    ]


def test_preparation_leaves_them_out(corpus):
    prepare_voxceleb(
        str(corpus),
        str(corpus / "save"),
        str(corpus / "test.txt"),
        str(corpus / "validation.txt"),
        check_audio=False,
        workers=1,
    )
    utterances = UtteranceList()
    utterances.add(corpus / "save" / "train.csv", {"data_root": corpus})
    assert utterances.names.astype(str).tolist() == ["anna/x/2"]
