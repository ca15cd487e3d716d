"""Open-set identification: its error rates, their intervals, its script."""

import json

import numpy as np
import pytest
import soundfile
import speaker_identification as script
import torch
from conftest import exit_code
from synthetic_voices import synthetic_utterance
from test_cli import small_network
from test_hparams import HPARAMS
from training_runs import write_trials

from redimnet2_lobes.inference import embedding_cache
from redimnet2_lobes.pretrained.model_folder import write_model_folder
from redimnet2_lobes.recipe.command_line import main_with_one_line_errors
from redimnet2_lobes.scoring.identification import (
    RATES,
    identification_table,
    open_set_curve,
    open_set_figures,
    rates_at,
    search_galleries,
)
from redimnet2_lobes.scoring.identification_plot import plot_open_set

YAML = str(HPARAMS / "identification_redimnet2.yaml")


def voices(speakers, seed, utterances=6, dimensions=24):
    """Embeddings of speakers, some of whom vary more than others."""
    random = torch.Generator().manual_seed(seed)
    voices = torch.randn(speakers, dimensions, generator=random)
    spread = 0.9 * (0.35 * torch.randn(speakers, 1, generator=random)).exp()
    names = np.repeat(np.arange(speakers), utterances).astype(str).tolist()
    noise = torch.randn(len(names), dimensions, generator=random)
    each = voices.repeat_interleave(utterances, 0)
    return each + spread.repeat_interleave(utterances, 0) * noise, names


def searched_one_by_one(embeddings, names, searched, threshold):
    """FPIR and FNIR of the enrolments of a gallery, one search at a time."""
    units = embeddings / embeddings.norm(dim=1, keepdim=True)
    false_positives, false_negatives = [], []
    for enrolments, probes in searched:
        for probe in probes:
            scores = {
                name: units[probe]
                @ torch.nn.functional.normalize(units[rows].mean(dim=0), dim=0)
                for name, rows in enrolments.items()
            }
            best = max(scores, key=scores.get)
            named = best if scores[best] > threshold else None
            if names[probe] in enrolments:
                false_negatives.append(named != names[probe])
            else:
                false_positives.append(named is not None)
    return np.mean(false_positives), np.mean(false_negatives)


@pytest.mark.parametrize("enrolment_utterances", [1, 3])
def test_rates_are_those_of_searches_one_by_one(enrolment_utterances):
    embeddings, names = voices(9, seed=1)
    galleries = 3
    searches = search_galleries(
        embeddings, names, 4, enrolment_utterances, galleries
    )
    # What enrols is what is not searched for.
    per_gallery = len(names) - 4 * enrolment_utterances
    assert len(searches.scores) == galleries * per_gallery
    drawn = np.random.default_rng(0)
    searched, numbers = [], np.asarray(names)
    for _ in range(galleries):
        enrolled = np.sort(drawn.choice(9, 4, replace=False))
        enrolments = {
            str(number): drawn.choice(
                np.flatnonzero(numbers == str(number)),
                enrolment_utterances,
                replace=False,
            ).tolist()
            for number in enrolled
        }
        taken = {row for rows in enrolments.values() for row in rows}
        probes = [row for row in range(len(names)) if row not in taken]
        searched.append((enrolments, probes))
    given = embeddings, names, searched
    curve = open_set_curve(searches)
    assert (np.diff(curve.fpir) > 0).all()
    for index in range(0, len(curve.fpir), 12):
        threshold = curve.threshold.value[index]
        fpir, fnir = searched_one_by_one(*given, threshold + 1e-6)
        assert fpir <= curve.fpir[index]
        assert fnir == pytest.approx(curve.fnir.value[index])
        # A lower threshold would let more strangers in.
        more, _ = searched_one_by_one(*given, threshold - 1e-6)
        assert more > curve.fpir[index] or fpir == 1


def test_rates_at_thresholds_are_points_of_the_curve():
    embeddings, names = voices(12, seed=6)
    searches = search_galleries(embeddings, names, 5)
    curve = open_set_curve(searches, [0.05, 0.2, 0.5])
    rates = rates_at(searches, curve.threshold.value)
    assert rates["fnir"].value == pytest.approx(curve.fnir.value)
    assert (rates["fpir"].value <= curve.fpir).all()
    for interval in (*rates.values(), curve.fnir, curve.threshold):
        assert (interval.low <= interval.value).all()
        assert (interval.value <= interval.high).all()
    everybody, nobody = rates_at(searches, [-1.1, 1.1])["fpir"].value
    assert (everybody, nobody) == (1, 0)


def test_a_wrong_name_is_a_miss_at_any_threshold():
    """Of two speakers with each other's voice, neither is found."""
    a, b, other = torch.eye(3)
    embeddings = torch.stack([a, b, b, a, other, other])
    # One of each enrols and the other, of the other's voice, is searched.
    searches = search_galleries(embeddings, list("aabbcc"), 2, galleries=40)
    wrong = searches.is_enrolled & searches.scores.isneginf()
    share = (wrong.sum() / searches.is_enrolled.sum()).item()
    assert 0 < share < 1
    curve = open_set_curve(searches, [1.0])
    assert curve.fnir.value[0] == pytest.approx(share)


def test_the_same_seed_draws_the_same():
    embeddings, names = voices(10, seed=2)
    first, again, other = (
        search_galleries(embeddings, names, 5, seed=seed) for seed in (1, 1, 2)
    )
    assert torch.equal(first.scores, again.scores)
    assert not torch.equal(first.scores, other.scores)
    assert open_set_figures(first)[1] == open_set_figures(again)[1]


def test_more_enrolled_let_more_strangers_in():
    embeddings, names = voices(60, seed=3)
    thresholds, missed = [], []
    for size in (2, 10, 50):
        searches = search_galleries(embeddings, names, size, 2, galleries=40)
        curve = open_set_curve(searches, [0.05])
        thresholds.append(curve.threshold.value[0])
        missed.append(curve.fnir.value[0])
    assert thresholds == sorted(thresholds) and missed == sorted(missed)


def test_rates_that_few_strangers_cannot_show():
    embeddings, names = voices(5, seed=4)
    searches = search_galleries(embeddings, names, 4)
    assert searches.strangers <= 30
    _, figures = open_set_figures(searches, [0.01, 0.2])
    for figure in figures["operating_points"]:
        assert (figure["fnir"] is None) == (figure["fpir"] == 0.01)
        assert (figure["threshold_interval"] is None) == (
            figure["fpir"] == 0.01
        )


def test_one_resampling_gives_what_each_figure_has_alone():
    """That of the curve, of the operating points and of the thresholds."""
    embeddings, names = voices(7, seed=11)
    searches = search_galleries(embeddings, names, 3)
    curve, figures = open_set_figures(searches, [0.1, 0.5], [0.3])
    alone = open_set_curve(searches)
    assert curve.gallery_size == 3 and (curve.fpir == alone.fpir).all()
    points, rates = (
        open_set_curve(searches, [0.1, 0.5]),
        rates_at(searches, [0.3]),
    )
    for name in ("fnir", "threshold"):
        assert np.array_equal(getattr(curve, name), getattr(alone, name))
        value, low, high = getattr(points, name)
        for index, point in enumerate(figures["operating_points"]):
            assert point[name] == value[index]
            assert point[f"{name}_interval"] == [low[index], high[index]]
    (at,) = figures["thresholds"]
    for name, (value, low, high) in rates.items():
        assert at[name] == value[0]
        assert at[f"{name}_interval"] == [low[0], high[0]]


@pytest.mark.filterwarnings("error")  # such as of a legend with nothing in it
def test_a_picture_of_rates_that_few_strangers_cannot_show(tmp_path):
    embeddings, names = voices(5, seed=4)
    searches = search_galleries(embeddings, names, 4)
    curve, figures = open_set_figures(searches, [0.01])
    points = figures["operating_points"]
    plot_open_set([curve], {4: points}, tmp_path / "none.png", "Few")
    assert (tmp_path / "none.png").exists()


def test_intervals_hold_the_population():
    """Of 95 % intervals of few speakers nearly so many."""
    size, rate = 5, 0.05
    searches = search_galleries(*voices(1000, seed=1000), size, galleries=300)
    strangers = searches.scores[~searches.is_enrolled]
    threshold = strangers.sort().values[int(len(strangers) * (1 - rate))]
    enrolled = searches.scores[searches.is_enrolled]
    truth = (enrolled <= threshold).double().mean().item()
    held, width = 0, 0.0
    for seed in range(40):
        found = search_galleries(*voices(15, seed), size, galleries=10)
        fnir = open_set_curve(found, [rate], seed=seed).fnir
        held += bool(fnir.low[0] <= truth <= fnir.high[0])
        width += (fnir.high[0] - fnir.low[0]) / 40
    assert held >= 34 and width < 0.6


@pytest.mark.parametrize(
    "size, enrolment_utterances, message",
    [
        (6, 1, "all 6 speakers would be enrolled"),
        (7, 1, "7 speakers cannot be enrolled, of 6 there are more than 1"),
        (0, 1, "0 speakers cannot be enrolled"),
        (1, 6, "1 speakers cannot be enrolled, of 0 there are more than 6"),
    ],
)
def test_galleries_that_cannot_be(size, enrolment_utterances, message):
    with pytest.raises(ValueError, match=message):
        search_galleries(*voices(6, seed=5), size, enrolment_utterances)


def test_two_speakers_have_no_intervals(tmp_path):
    """All resamples of them are the same."""
    searches = search_galleries(*voices(2, seed=5), 1)
    curve, figures = open_set_figures(searches, [0.5], [0.1])
    (point,), (at,) = figures["operating_points"], figures["thresholds"]
    assert point["fnir"] is not None and point["fnir_interval"] is None
    assert at["fpir"] is not None and at["fpir_interval"] is None
    table = identification_table([{"gallery_size": 1, **figures}])
    assert not any("[" in cell for cell in table[1])
    path = tmp_path / "identification.png"
    plot_open_set([curve], {1: [point]}, path, "Two voices")
    assert path.exists()


@pytest.mark.parametrize("speakers", [17, 19])
def test_as_many_embeddings_as_speakers(speakers):
    embeddings, _ = voices(6, seed=5, utterances=3)
    names = [str(each // 3) for each in range(speakers)]
    problem = f"18 of them, but speakers of {speakers}"
    with pytest.raises(ValueError, match=problem):
        search_galleries(embeddings, names, 2)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Five synthetic speakers, of whom a list of trials names four."""
    folder = tmp_path_factory.mktemp("corpus")
    names = []
    for speaker in range(5):
        for utterance in range(4):
            names.append(f"voice{speaker}/room/{utterance}.wav")
            path = folder / "wav" / names[-1]
            path.parent.mkdir(parents=True, exist_ok=True)
            waveform = synthetic_utterance(speaker, utterance, 0.5)
            soundfile.write(path, waveform, 16000)
    write_trials(folder / "trials.txt", names[:-4])
    write_model_folder(folder / "model", small_network(), "A small network")
    return folder


@pytest.fixture
def command(corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def command(**overrides):
        options = {
            "utterances": corpus,
            "checkpoint": corpus / "model",
            "gallery_sizes": "[2, 3]",
            "enrolment_utterances": 2,
            "galleries": 4,
            "thresholds": "[0.5]",
            **overrides,
        }
        options = [f"--{key}={value}" for key, value in options.items()]
        return [YAML, "--device=cpu", *options]

    return command


def identify(command, tmp_path, **overrides):
    script.main(command(**overrides))
    path = tmp_path / "results" / "identification_redimnet2"
    return json.loads((path / "identification.json").read_text()), path


def test_the_script(command, corpus, tmp_path, capsys, monkeypatch):
    summary, folder = identify(command, tmp_path)
    assert (summary["speakers"], summary["utterances"]) == (5, 20)
    assert [each["gallery_size"] for each in summary["results"]] == [2, 3]
    printed = capsys.readouterr().out
    table = (folder / "identification.txt").read_text()
    assert table in printed and "too few strangers" in table
    assert "warning" not in printed
    assert (folder / "identification.png").read_bytes()[1:4] == b"PNG"
    for each in summary["results"]:
        size = each["gallery_size"]
        assert each["searches"] == 4 * (20 - 2 * size)
        assert [point["fpir"] for point in each["operating_points"]] == [*RATES]
        (at,) = each["thresholds"]
        low, high = at["fpir_interval"]
        assert low <= at["fpir"] <= high and at["threshold"] == 0.5

    def refuse(*arguments, **options):
        raise AssertionError("embedded again")

    monkeypatch.setattr(embedding_cache, "encode_utterances", refuse)
    assert identify(command, tmp_path)[0] == summary  # embeddings are kept
    again, _ = identify(command, tmp_path, seed=7)
    assert again != summary


def test_only_who_is_in_the_trials(command, corpus, tmp_path):
    summary, _ = identify(command, tmp_path, trial_list=corpus / "trials.txt")
    assert (summary["speakers"], summary["utterances"]) == (4, 16)


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"gallery_sizes": "[5]"}, "gallery_sizes: all 5 speakers would be"),
        ({"gallery_sizes": "[]"}, "gallery_sizes: there are none; give"),
        ({"gallery_sizes": "[a]"}, "gallery_sizes: expected"),
        ({"thresholds": "[.nan]"}, "thresholds: nan is no finite number"),
        ({"thresholds": "[0.5, -.inf]"}, "thresholds: -inf is no finite"),
        ({"enrolment_utterances": 4}, "gallery_sizes: 2 speakers cannot"),
        ({"enrolment_utterances": 0}, "enrolment_utterances: 0 is less"),
        ({"trial_list": "gone.txt"}, "gone.txt: cannot read the list"),
        ({"trial_list": "other.txt"}, "trial_list: other.txt names none"),
        ({"utterances": "nobody.csv"}, "nobody.csv does not say whose"),
    ],
)
def test_errors_are_one_line(
    command, corpus, tmp_path, capsys, monkeypatch, overrides, message
):
    (tmp_path / "other.txt").write_text("1 x/1.wav x/2.wav\n")
    path = corpus / "wav" / "voice0" / "room" / "0.wav"
    (tmp_path / "nobody.csv").write_text(f"ID,wav\na,{path}\n")
    monkeypatch.setattr("sys.argv", ["script", *command(**overrides)])
    assert exit_code(main_with_one_line_errors, script.main) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ") and message in line
    assert not list(tmp_path.rglob("identification_redimnet2"))  # at once
