"""Lists, and the small JSON and text files that programs leave behind."""

import csv
import io
import json
import math
import os
import re

import torch
from hypothesis import strategies as st

from fuzz.inputs import json_of, text
from fuzz.oracle import Target
from redimnet2_lobes.data.lhotse_manifests import read_manifest
from redimnet2_lobes.data.sources import split_source
from redimnet2_lobes.data.training_set import read_training_lists
from redimnet2_lobes.data.trials import read_enrolments, read_trials
from redimnet2_lobes.data.utterances import read_utterances
from redimnet2_lobes.data.verification_lists import read_key, read_table
from redimnet2_lobes.inference.embedding_files import read_embeddings
from redimnet2_lobes.scoring.calibration import load_calibrations
from redimnet2_lobes.scoring.operating_point import operating_point_of
from redimnet2_lobes.scoring.operating_points import (
    describe_operating_points,
    read_operating_points,
)
from redimnet2_lobes.scoring.results import (
    ENTRIES,
    about_intervals,
    embedded_part,
    in_precision,
    read_results,
    results_table,
)
from redimnet2_lobes.scoring.score_files import read_scores
from redimnet2_lobes.training.fine_tuning import read_speakers

NAMES = st.sampled_from(("a", "b/1.wav", "a/ä.flac", "0", "target", "", "a b"))


def lines_of(path):
    """The lines that are not blank, read in the plainest way."""
    content = path.read_bytes().decode("utf-8-sig")
    lines = re.split("\r\n|\r|\n", content)
    return [line.strip() for line in lines if line.strip()]


def columns_of(line):
    return [column.strip() for column in line.split(",")]


@st.composite
def trial_lists(draw):
    """Lists in one of the forms, now and then with damage."""
    form = draw(st.sampled_from(("{0} {1} {2}", "{1}\t{2} {3}", "{1},{0},{2}")))
    header = st.sampled_from(("enrol,label,test", "enrol,label,label"))
    lines = [draw(header)] if "," in form else []
    for label in draw(st.lists(st.sampled_from("01"), max_size=4)):
        kind = "target" if label == "1" else "nontarget"
        lines.append(form.format(label, draw(NAMES), draw(NAMES), kind))
    end = draw(st.sampled_from(("\n", "\r\n", "\r", "\n\n ")))
    content = draw(st.sampled_from(("", "\ufeff"))) + end.join(lines)
    return draw(text(content, most=2))


def trials(path):
    found = read_trials(path)
    first, *others = lines = lines_of(path)
    rows = others if "," in first else lines
    for (label, *pair), line in zip(found, rows, strict=True):
        assert label in (0, 1) and all(name.strip() for name in pair)
        words = line.split()
        if "," not in first:
            kind = ("nontarget", "target")[label]
            assert words in ([str(label), *pair], [*pair, kind])
        elif '"' not in first + line:
            row = dict(zip(columns_of(first), columns_of(line), strict=True))
            assert pair == [row["enrol"], row["test"]]


def enrolments(path):
    found = read_enrolments(path)
    lines = [line.split() for line in lines_of(path)]
    assert {line[0] for line in lines} == set(found)
    assert sum(map(len, found.values())) == sum(len(x) - 1 for x in lines)
    assert all(found.values())


def corpus_key(path):
    labels = {"tgt": 1, "imp": 0}
    found = list(read_key(path, labels))
    for (label, *pair), line in zip(found, lines_of(path), strict=True):
        *names, kind = line.split()[:3]
        assert names == pair and labels[kind] == label


def table(path):
    columns = ["client_id", "path"]
    found = [row for _, row in read_table(path, columns)]
    assert all(row[column] for row in found for column in columns)
    assert len(found) <= max(0, len(lines_of(path)) - 1)


CALIBRATION = {
    "cosine": {"offset": -2.0, "weights": {"score": 10.0}},
    "PLDA": {"offset": 1, "weights": {"score": 0.5, "lower duration": 2e-3}},
}


def calibration(path):
    found = load_calibrations(path)
    entries = json.loads(path.read_bytes())
    for name, (offset, weights, space) in found.items():
        assert space is None or isinstance(space, str)
        assert math.isfinite(offset) and offset == entries[name]["offset"]
        assert weights == entries[name]["weights"]
        assert all(isinstance(value, float) for value in weights.values())


ROW = {
    "list": "O",
    "back_end": "cosine",
    "trials": 37611,
    "eer_percent": 1.25,
    "eer_threshold": 0.25,
    "min_dcf_0.01": 0.1,
    "min_dcf_0.05": 0.08,
    "speakers": 40,
    "eer_percent_interval": [0.75, 2],
    "cllr_interval": None,
}
RESULTS = {
    "checkpoint": "b3",
    "seconds_used": 4.0,
    "crops": 10,
    "eval_precision": "bf16",
    "embedding_space": "b3-1",
    "bootstrap_resamples": 1000,
    "results": [ROW, {**ROW, "back_end": "PLDA"}],
}


def results(path):
    point = operating_point_of(str(path.parent), "b3-1")
    if point.value is not None:
        assert math.isfinite(point.value)
    found = read_results(path)
    assert found == json.loads(path.read_bytes())
    results_table(found["results"], ENTRIES)
    assert embedded_part(found) + in_precision(found)
    about_intervals(found)


SCORES = "a/1.wav a/2.wav 1 0.895085871\na/1.wav b/1.wav 0 -2e-3\n"


def scores(path):
    trials, values = read_scores(path)
    rows = [line.split() for line in lines_of(path)]
    assert rows and len(values) == len(rows)
    assert [[a, b, str(x)] for x, a, b in trials] == [row[:3] for row in rows]
    assert values.tolist() == [float(row[3]) for row in rows]
    assert values.isfinite().all()


OPERATING_POINTS = {
    "embedding_space": "b3-1",
    "date": "2026-11-27",
    "speech_only": True,
    "speakers": 2,
    "recordings": 4,
    "enrolment_utterances": 1,
    "same_speaker_trials": 2,
    "different_speakers_trials": 4,
    "eer": [0.25, 0, 0.5],
    "points": [
        {
            "name": "EER",
            "threshold": [0.25, -0.5, 0.75],
            "far": [0.25, 0.0, 0.5],
            "frr": [0.25, 0.125, 1],
        }
    ],
    "scores": [-0.5, 0.25],
    "far": [[1.0, 1.0, 1.0], [0.25, 0.0, 0.5]],
    "frr": [[0.0, 0.0, 0.0], [0.25, 0.125, 1]],
    "ratio": {
        "calibration": {
            "offset": -2.0,
            "weights": {
                "score": 10.0,
                "lower duration": 1,
                "higher duration": 0.5,
            },
        },
        "shortest": 1.5,
        "longest": 4,
        "cllr": [0.5, 0.25, 1.5],
    },
    "shortfalls": ["too few"],
}


def operating_points(path):
    found = read_operating_points(path)
    assert math.isfinite(found.operating_point.value)
    assert describe_operating_points(found)
    for score in (-1.0, 0.0, 1.0):
        if known := found.false_accepts(score):
            assert 0 <= known[0].low <= known[0].high <= 1
    if found.ratio is not None:
        ratio = found.ratio(torch.zeros(1), torch.ones(1, 2))
        assert not ratio.isnan()


SPEAKERS = "'anna' => 0\n'bert' => 1\n'1' => 2\n" + 16 * "=" + "\n"


EMBEDDINGS = [
    {"name": name, "embedding": [1.5, value], "embedding_space": "b3-1"}
    for name, value in (("a", 0.25), ("b", -1))
]


def embeddings(path):
    found = read_embeddings(path)
    rows = json.loads(path.read_bytes())
    assert found.names == [row["name"] for row in rows] == found.speakers
    assert {found.space} == {row["embedding_space"] for row in rows}
    assert found.vectors.isfinite().all() and found.vectors.ndim == 2


def speakers(path):
    encoder = read_speakers(path)
    assert sorted(encoder.lab2ind.values()) == list(range(len(encoder)))
    assert all(isinstance(label, str) for label in encoder.lab2ind)
    for label, index in encoder.lab2ind.items():
        assert encoder.decode_ndim(index) == label


# Lists of utterances; FOLDER stands for that of the list.

PLAIN = "ID,wav,spk_id\na1,$data_root/a.wav,anna\nb/1,$save_root/b.wav,bert"
SEGMENTS = (
    "ID,duration,wav,start,stop,spk_id\n"
    "anna-1,9.5,$data_root/a.wav,0,400,anna\n"
    '"bert, 1",9.5,$data_root/a.wav,400,800,bert\n'
    "anna-2,1.5,$data_root/b.wav,,,anna"
)
TRAINING = (
    "ID,duration,wav,spk_id\na/1,1.5,$data_root/a.wav,a\n"
    "b/1,2,$data_root/x.tar:512:900,b\nb/2,0.5,$data_root/b.wav,b"
)


def rows_of(path):
    content = path.read_bytes().decode("utf-8-sig")
    return list(csv.DictReader(io.StringIO(content, ""), skipinitialspace=True))


def utterance_list(path):
    found = read_utterances(path)
    rows = rows_of(path)
    assert [each.name for each in found] == [row["ID"] for row in rows]
    for utterance, row in zip(found, rows, strict=True):
        assert os.path.isfile(split_source(utterance.path)[0])
        assert utterance.name and utterance.speaker != ""
        assert utterance.speaker == (row.get("spk_id") or None)
        start = row.get("start") or row.get("stop")
        assert bool(split_source(utterance.path)[1]) == bool(
            (start or "").strip() or re.search(r"\.tar:", utterance.path)
        )


def training_list(path):
    utterances, encoder = read_training_lists({"": path}, {}, 1.0, [], [])
    expected = [
        (row["ID"], row["spk_id"])
        for row in rows_of(path)
        if row.get("start", "").strip() or float(row["duration"]) >= 1
    ]
    found = [utterances[index] for index in range(len(utterances))]
    if "start" not in rows_of(path)[0]:
        assert [(name, speaker) for name, _, speaker in found] == expected
    assert sorted(encoder.lab2ind) == sorted({each[2] for each in found})
    assert sorted(encoder.lab2ind.values()) == list(range(len(encoder)))
    assert all(map(all, found))


KALDI = {
    "wav.scp": "A FOLDER/a.wav\nB-1 FOLDER/b.wav\n",
    "segments": "A-1 A 0 0.02\nA-2 A 1e-2 -1\nB-1 B-1 0.01 0.05\n",
    "utt2spk": "A anna\nA-1 anna\nA-2 anna\nB-1 bert\n",
}


def kaldi(path):
    for file in path.parent.iterdir():
        content = file.read_bytes()
        file.write_bytes(content.replace(b"FOLDER", bytes(path.parent)))
    folder = path.parent
    found = read_utterances(folder / "wav.scp")
    listed = folder / "segments"
    if not listed.exists():
        listed = folder / "wav.scp"
    lines = [line.split(maxsplit=1) for line in lines_of(listed)]
    assert [each.name for each in found] == [line[0] for line in lines]
    speakers = {}
    if (folder / "utt2spk").exists():
        lines = [
            line.split(maxsplit=1) for line in lines_of(folder / "utt2spk")
        ]
        speakers = dict(lines)
    for utterance in found:
        file, place = split_source(utterance.path)
        assert os.path.isfile(file)
        assert bool(place) == (listed.name == "segments")
        assert utterance.speaker == speakers.get(utterance.name)


# A manifest of lhotse: cuts, and recordings and supervisions.

RECORDING = {
    "id": "r",
    "sources": [{"type": "file", "channels": [0], "source": "a.wav"}],
    "sampling_rate": 16000,
    "num_samples": 64000,
    "duration": 4.0,
    "channel_ids": [0],
}
SUPERVISION = {
    "id": "s",
    "recording_id": "r",
    "start": 0.5,
    "duration": 1.25,
    "channel": 0,
    "speaker": "anna",
}
CUT = {
    "id": "c",
    "start": 1.0,
    "duration": 2.5,
    "channel": 0,
    "supervisions": [SUPERVISION],
    "recording": RECORDING,
    "type": "MonoCut",
}


def manifest(path):
    rows = [row for _, row in read_manifest(path)]
    with open(path, encoding="utf-8") as file:
        items = [json.loads(line) for line in file]
    assert [row["ID"] for row in rows] == [item["id"] for item in items]
    for row, item in zip(rows, items, strict=True):
        assert row["ID"] and row["wav"] and "\0" not in row["spk_id"]
        assert 0 < float(row["duration"]) == item["duration"] < math.inf
        assert len(split_source(row["wav"])[1]) <= 1


def write_recordings(folder):
    (folder / "recordings.jsonl").write_text(json.dumps(RECORDING))


def write_utterances(folder, *files):
    for name in ("a.wav", "b.wav"):
        (folder / name).write_bytes(b"audio")
    for name in files:
        (folder / name).write_text(KALDI[name])


def kaldi_target(name, *others):
    return Target(
        f"kaldi-{name}",
        name,
        lambda: text(KALDI[name]),
        kaldi,
        lambda folder: write_utterances(folder, *others),
    )


TARGETS = (
    Target("trials", "trials.txt", trial_lists, trials),
    Target(
        "enrolments",
        "enrolments.txt",
        lambda: text("anna a/1.wav a/2.wav\nbert b/1.wav\nanna a/3.wav"),
        enrolments,
    ),
    Target(
        "corpus-key",
        "core-core.lst",
        lambda: text("12013 audio/a.flac tgt\n12013 audio/b.flac imp more"),
        corpus_key,
    ),
    Target(
        "table",
        "validated.tsv",
        lambda: text("client_id\tpath\tgender\nf00d\t1.mp3\t\nf00d\t2.mp3"),
        table,
    ),
    Target(
        "utterances",
        "list.csv",
        lambda: text(PLAIN, SEGMENTS),
        utterance_list,
        write_utterances,
    ),
    kaldi_target("wav.scp"),
    kaldi_target("segments", "wav.scp"),
    kaldi_target("utt2spk", "wav.scp", "segments"),
    Target(
        "training-list",
        "train.csv",
        lambda: text(TRAINING, SEGMENTS),
        training_list,
    ),
    Target(
        "manifest",
        "supervisions.jsonl",
        lambda: json_of(CUT, SUPERVISION, RECORDING),
        manifest,
        write_recordings,
    ),
    Target(
        "calibration",
        "calibration.json",
        lambda: json_of(CALIBRATION),
        calibration,
    ),
    Target(
        "results",
        "results.json",
        lambda: json_of(RESULTS, {**RESULTS, "crops": None}),
        results,
    ),
    Target(
        "scores",
        "cosine_scores.txt",
        lambda: text(SCORES, SCORES.replace("\n", "\r\n\n")),
        scores,
    ),
    Target(
        "operating-points",
        "operating_points.json",
        lambda: json_of(OPERATING_POINTS, {**OPERATING_POINTS, "ratio": None}),
        operating_points,
    ),
    Target(
        "embeddings-json",
        "embeddings.json",
        lambda: json_of(EMBEDDINGS),
        embeddings,
    ),
    Target(
        "speakers",
        "label_encoder.ckpt",
        lambda: text(SPEAKERS, SPEAKERS + "'starting_index' => 0\n"),
        speakers,
    ),
)
