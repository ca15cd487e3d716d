"""Training utterances: lists, and crops of files that may be bad."""

import csv

import numpy as np
import pytest
import soundfile
import torch
from speechbrain.dataio.encoder import CategoricalEncoder
from test_verification import small_network

from redimnet2_lobes.data.audio import AudioError
from redimnet2_lobes.data.crops import EpochRandom, RandomCrop
from redimnet2_lobes.data.training_set import (
    TrainingCrops,
    UtteranceList,
    read_training_lists,
)
from redimnet2_lobes.pretrained.model_folder import write_model_folder


def write_list(path, rows):
    lines = [f"{name},{seconds},{wav},{name[0]}" for name, seconds, wav in rows]
    path.write_text("\n".join(["ID,duration,wav,spk_id", *lines]))
    return path


def test_lists_are_joined_under_prefixes(tmp_path):
    first = write_list(tmp_path / "1.csv", [("a/x/1", 0.3, "$data_root/1.wav")])
    second = write_list(
        tmp_path / "2.csv",
        [
            ("a/x/1", 2, "$data_root/s-0.tar:512:900"),
            ("a/x/2", 2, "$data_root/s-1.tar:512:900"),
            ("a/x/3", 0.4, "$data_root/short.wav"),
            ("b/x/1", 2, "$data_root/speaker_of_the_test.wav"),
            ("c/x/1", 2, "$data_root/utterance_of_the_validation.wav"),
        ],
    )
    utterances = UtteranceList()
    utterances.add(first, {"data_root": "/one"}, "A_")
    utterances.add(second, {"data_root": "/two"}, "B_", 0.5, {"b"}, {"c/x/1"})
    assert list(utterances) == [
        ("A_a/x/1", "/one/1.wav", "A_a"),
        ("B_a/x/1", "/two/s-0.tar:512:900", "B_a"),
        ("B_a/x/2", "/two/s-1.tar:512:900", "B_a"),
    ]
    assert utterances.shards.tolist() == [0, 1, 2]


def test_held_out_utterances_with_and_without_an_ending(tmp_path):
    """And those of the shortest length stay, in shards of an odd folder."""
    path = write_list(
        tmp_path / "list.csv",
        [
            ("a/x/1.wav", 1.0, "/all.tar:old/s-0.tar:512:900"),
            ("a/x/2.wav", 1.0, "/all.tar:old/s-0.tar:512:900"),
            ("a/x/3", 1.0, "/all.tar:old/s-1.tar:512:900"),
            ("a/x/4", 1.0, "/all.tar:old/s-1.tar:512:900"),
            ("a/x/5", 0.999, "/all.tar:old/s-1.tar:512:900"),
        ],
    )
    utterances = UtteranceList()
    utterances.add(path, {}, "", 1.0, (), {"a/x/1", "a/x/3"})
    assert [name for name, *_ in utterances] == ["a/x/2.wav", "a/x/4"]
    assert utterances.shards.tolist() == [0, 1]


@pytest.mark.parametrize(
    "text",
    [
        "ID,wav\na,b\n",
        "ID,duration,wav,spk_id\na,long,b,c\n",
        "ID,duration,wav,spk_id\na,1,b,c\na,long,b,c\n",
        "",
        None,
    ],
)
def test_a_wrong_list_is_named(text, tmp_path):
    path = tmp_path / "list.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=f"^{path}: .*") as error:
        UtteranceList().add(path, {})
    assert "\n" not in str(error.value)


def test_segments_count_by_their_own_length(tmp_path):
    """SpeechBrain's lists have the duration of the whole file there."""
    rows = [
        "ID,duration,wav,start,stop,spk_id",
        "a_0,60.0,$data_root/a.wav,0,16000,a",
        "a_1,60.0,$data_root/a.wav,16000,31999,a",
        "a_2,0.1,$data_root/a.wav,16000,48000,a",
        "b,1.0,$data_root/b.wav,,,b",
        "b_short,0.9,$data_root/b.wav,,,b",
        "c,1.0,$data_root/s.tar:512:900,,,c",
    ]
    path = tmp_path / "list.csv"
    path.write_text("\n".join(rows))
    utterances, speakers = read_training_lists(
        {"A_": path, "B_": path}, {"data_root": "/data"}, 1.0, [], []
    )
    assert list(utterances) == [
        (f"{prefix}{name}", f"/data/{source}", f"{prefix}{name[0]}")
        for prefix in ("A_", "B_")
        for name, source in (
            ("a_0", "a.wav[0:16000]"),
            ("a_2", "a.wav[16000:48000]"),
            ("b", "b.wav"),
            ("c", "s.tar:512:900"),
        )
    ]
    assert utterances.shards.tolist() == [0, 0, 0, 1] * 2
    assert len(speakers) == 6


def test_without_speakers_no_test_speaker_gets_in(tmp_path):
    """Of whom an utterance is, its name says where the list does not."""
    path, trials = tmp_path / "list.csv", tmp_path / "trials.txt"
    path.write_text("ID,duration,wav\na/x/1,2,1.wav\nb/x/1,2,2.wav\n")
    trials.write_text("1 b/x/8.wav b/x/9.wav\n")
    utterances, speakers = read_training_lists(
        {"P_": path}, {}, 1.0, trials, [], labelled=False
    )
    assert [name for name, _, _ in utterances] == ["P_a/x/1"]
    assert len(speakers) == 1


@pytest.mark.parametrize(
    ("header", "row", "message"),
    [
        ("start,stop", "0,", "line 2: start '0' and stop ''"),
        ("start,stop", "0.5,9", "line 2: .* whole numbers of samples"),
        ("start,stop", "9,9", "line 2: start 9 is not before stop 9"),
        ("start,x", "0,9", "line 1: column start stands alone"),
    ],
)
def test_faulty_segments_are_named(header, row, message, tmp_path):
    path = tmp_path / "list.csv"
    path.write_text(f"ID,duration,wav,spk_id,{header}\na,1,a.wav,a,{row}\n")
    with pytest.raises(ValueError, match=f"^{path}: .*{message}"):
        UtteranceList().add(path, {})


# What SpeechBrain's label encoder writes around names, and reads as more.
ODD_SPEAKERS = [
    *("=>", "a=>b", "a =>", "=> b", "a ==> b", "================", "unk_label"),
    *("'", '"', "'\"", "\\", "\\n", "a\u2028b", "a\x85b", "日本", "😀"),
    *("None", "0"),
]


def speaker_lists(folder, name):
    """A list with an odd speaker and one without, and no trials."""
    (folder / "trials.txt").write_text("1 t/x/1.wav t/x/2.wav\n")
    paths = {}
    for prefix, speaker in (("A_", "anna"), ("B_", name)):
        paths[prefix] = folder / f"{prefix}.csv"
        with open(paths[prefix], "w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(["ID", "duration", "wav", "spk_id"])
            rows.writerow(["x/1", "2", "x.wav", speaker])
    return paths, folder / "trials.txt"


@pytest.mark.parametrize("name", ODD_SPEAKERS)
def test_names_of_speakers_are_kept(name, tmp_path):
    lists, trials = speaker_lists(tmp_path, name)
    _, speakers = read_training_lists(lists, {}, 1.0, trials, [])
    speakers.save(tmp_path / "speakers.txt")
    kept = CategoricalEncoder.from_saved(tmp_path / "speakers.txt")
    assert kept.lab2ind == {"A_anna": 0, f"B_{name}": 1}


@pytest.mark.parametrize("name", ["a => b", "- => -", "a => 1", "x => y => z"])
def test_names_that_speechbrain_cannot_keep_are_refused(name, tmp_path):
    lists, trials = speaker_lists(tmp_path, name)
    expected = f"^{lists['B_']}: speaker 'B_{name}' has ' => ' .* rename"
    with pytest.raises(ValueError, match=expected):
        read_training_lists(lists, {}, 1.0, trials, [])
    network, weights = small_network(), torch.ones(1, 16)
    with pytest.raises(ValueError, match=f"speaker '{name}' has ' => '"):
        write_model_folder(tmp_path / "m", network, "M", None, weights, [name])
    assert not (tmp_path / "m").exists()


def crops_of(tmp_path, good, bad, on_bad_audio):
    """Crops of utterances, of which some files are cut off."""
    rows = []
    for name in good + bad:
        path = tmp_path / f"{name.replace('/', '-')}.wav"
        noise = np.random.default_rng(len(rows)).normal(0, 0.1, 16000)
        soundfile.write(path, noise, 16000)
        if name in bad:
            path.write_bytes(path.read_bytes()[:30])
        rows.append((name, 1.0, path))
    utterances = UtteranceList()
    utterances.add(write_list(tmp_path / "list.csv", rows), {})
    speakers = CategoricalEncoder()
    speakers.expect_len(2)
    speakers.update_from_iterable(["a", "b"], sequence_input=False)
    return TrainingCrops(
        utterances,
        speakers,
        RandomCrop(50, [1.0, 0.9]),
        lambda waveform, random: 2 * waveform,
        EpochRandom(seed=1),
        on_bad_audio,
    )


def test_speeds_are_classes(tmp_path):
    crops = crops_of(tmp_path, ["a/x/1", "b/x/1"], [], "stop")
    labels = set()
    for crops.epoch_random.epoch in range(10):
        item = crops[1]
        assert item["id"] == "b/x/1" and item["replaced"] == 0
        assert item["sig"].shape == (8240,)
        labels.add(item["label"])
    assert labels == {1, 3}


def test_bad_files_are_replaced_the_same_way_again(tmp_path, caplog):
    good = [f"a/x/{i}" for i in range(8)]
    crops = crops_of(tmp_path, good, ["b/x/1", "b/x/2"], "skip")
    item = crops[8]
    assert item["id"] in good and item["replaced"] >= 1
    assert "b-x-1.wav" in caplog.text
    again = crops[8]
    assert again["id"] == item["id"]
    assert np.array_equal(again["sig"], item["sig"])


def test_bad_files_stop(tmp_path):
    crops = crops_of(tmp_path, ["a/x/1"], ["b/x/1"], "stop")
    crops[0]
    with pytest.raises(ValueError, match="b-x-1.wav: .*--on_bad_audio=skip"):
        crops[1]


def test_only_bad_files(tmp_path):
    crops = crops_of(tmp_path, [], ["a/x/1", "b/x/1"], "skip")
    with pytest.raises(ValueError, match="check the corpus") as error:
        crops[0]
    assert not isinstance(error.value, AudioError)


def test_unknown_way_to_treat_bad_audio(tmp_path):
    with pytest.raises(ValueError, match="on_bad_audio: 'ignore' is neither"):
        crops_of(tmp_path, ["a/x/1"], [], "ignore")
