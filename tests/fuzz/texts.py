"""Lists, and the small JSON and text files that programs leave behind."""

import json
import math
import re

from hypothesis import strategies as st

from fuzz.inputs import json_of, text
from fuzz.oracle import Target
from redimnet2_lobes.data.trials import read_enrolments, read_trials
from redimnet2_lobes.scoring.calibration import load_calibrations
from redimnet2_lobes.scoring.operating_point import operating_point_of
from redimnet2_lobes.scoring.results import (
    ENTRIES,
    embedded_part,
    in_precision,
    read_results,
    results_table,
)
from redimnet2_lobes.training.fine_tuning import read_speakers

NAMES = st.sampled_from(("a", "b/1.wav", "a/ä.flac", "0", "target", "enrol"))


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
    lines = ["enrol,label,test"] if "," in form else []
    for label in draw(st.lists(st.sampled_from("01"), max_size=4)):
        kind = "target" if label == "1" else "nontarget"
        lines.append(form.format(label, draw(NAMES), draw(NAMES), kind))
    end = draw(st.sampled_from(("\n", "\r\n", "\r", "\n\n ")))
    content = draw(st.sampled_from(("", "\ufeff"))) + end.join(lines)
    return draw(text(content, most=3))


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


CALIBRATION = {
    "cosine": {"offset": -2.0, "weights": {"score": 10.0}},
    "PLDA": {"offset": 1, "weights": {"score": 0.5, "lower duration": 2e-3}},
}


def calibration(path):
    found = load_calibrations(path)
    entries = json.loads(path.read_bytes())
    for name, (offset, weights) in found.items():
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
}
RESULTS = {
    "checkpoint": "b3",
    "seconds_used": 4.0,
    "crops": 10,
    "eval_precision": "bf16",
    "results": [ROW, {**ROW, "back_end": "PLDA"}],
}


def results(path):
    point = operating_point_of(str(path.parent))
    if point.value is not None:
        assert math.isfinite(point.value)
    found = read_results(path)
    assert found == json.loads(path.read_bytes())
    results_table(found["results"], ENTRIES)
    assert embedded_part(found) + in_precision(found)


SPEAKERS = "'anna' => 0\n'bert' => 1\n'1' => 2\n" + 16 * "=" + "\n"


def speakers(path):
    encoder = read_speakers(path)
    assert sorted(encoder.lab2ind.values()) == list(range(len(encoder)))
    assert all(isinstance(label, str) for label in encoder.lab2ind)
    for label, index in encoder.lab2ind.items():
        assert encoder.decode_ndim(index) == label


TARGETS = (
    Target("trials", "trials.txt", trial_lists, trials),
    Target(
        "enrolments",
        "enrolments.txt",
        lambda: text("anna a/1.wav a/2.wav\nbert b/1.wav\nanna a/3.wav"),
        enrolments,
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
        "speakers",
        "label_encoder.ckpt",
        lambda: text(SPEAKERS, SPEAKERS + "'starting_index' => 0\n"),
        speakers,
    ),
)
