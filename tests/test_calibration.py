"""Calibration: what it learns, keeps and refuses."""

import json

import pytest
import torch

from redimnet2_lobes.scoring.calibration import (
    Calibration,
    held_out_ratios,
    load_calibrations,
    quality_measures,
    save_calibrations,
    train_calibration,
)
from redimnet2_lobes.scoring.metrics import EER, Cllr, minCllr


def gaussian_scores(count, seed=0):
    """Scores with means 1 and 0, variance 1/4: their ratio is 4 s - 2."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 4 == 0
    scores = torch.randn(count, generator=generator) / 2 + labels.float()
    return scores, labels


def test_it_finds_the_log_likelihood_ratio():
    scores, labels = gaussian_scores(40000)
    calibration = train_calibration({"score": scores}, labels)
    assert calibration.weights["score"] == pytest.approx(4, rel=0.05)
    assert calibration.offset == pytest.approx(-2, rel=0.05)


def test_it_is_good_on_other_trials_and_keeps_their_order():
    calibration = train_calibration(
        *(lambda scores, labels: ({"score": 100 * scores + 7}, labels))(
            *gaussian_scores(4000)
        )
    )
    scores, labels = gaussian_scores(4000, seed=1)
    ratios = calibration({"score": 100 * scores + 7})
    cost = Cllr(ratios[labels], ratios[~labels])
    least = minCllr(ratios[labels], ratios[~labels])
    assert least <= cost < least + 0.02
    assert (ratios.argsort() == scores.argsort()).all()


def test_a_quality_measure_that_tells_something_is_used():
    scores, labels = gaussian_scores(4000)
    generator = torch.Generator().manual_seed(2)
    shifts = torch.rand(4000, generator=generator) * 4
    shifted = scores - shifts
    plain = train_calibration({"score": shifted}, labels)
    measures = quality_measures(shift=(shifts, shifts))
    both = {"score": shifted, **measures}
    better = train_calibration(both, labels)

    def eer(ratios):
        return EER(ratios[labels], ratios[~labels])[0]

    expected = eer(scores)
    assert eer(plain({"score": shifted})) > 1.5 * expected
    assert eer(better(both)) == pytest.approx(expected, abs=0.01)


def test_measures_do_not_care_which_utterance_enrols():
    enrolment, test = torch.randn(2, 10)
    assert all(
        torch.equal(one, other)
        for one, other in zip(
            quality_measures(duration=(enrolment, test)).values(),
            quality_measures(duration=(test, enrolment)).values(),
            strict=True,
        )
    )


def test_trials_told_apart_without_error_and_constant_features():
    labels = torch.tensor([True, False] * 10)
    features = {"score": labels.float(), "lower duration": torch.ones(20)}
    calibration = train_calibration(features, labels)
    assert (calibration(features).abs() < 30).all()
    assert ((calibration(features) > 0) == labels).all()
    assert calibration.weights["lower duration"] == 0


def test_held_out_ratios_know_neither_speaker():
    """Other trials of the speakers of a trial do not change its ratio."""
    speakers = torch.combinations(torch.arange(12), with_replacement=True)
    labels = speakers[:, 0] == speakers[:, 1]
    generator = torch.Generator().manual_seed(0)
    scores = labels + 0.5 * torch.randn(len(labels), generator=generator)
    ratios = held_out_ratios({"score": scores}, labels, speakers)
    for trial in (0, 1, 40):
        touched = torch.isin(speakers, speakers[trial]).any(dim=1)
        changed = scores + 5 * touched
        changed[trial] = scores[trial]
        again = held_out_ratios({"score": changed}, labels, speakers)
        torch.testing.assert_close(again[trial], ratios[trial])
        assert not torch.allclose(again[~touched], ratios[~touched])


@pytest.mark.parametrize("label", [True, False])
def test_trials_of_one_kind_are_refused(label):
    with pytest.raises(ValueError, match="all of one kind"):
        train_calibration({"score": torch.rand(3)}, torch.full((3,), label))


def test_values_that_are_not_finite_are_named():
    features = {"score": torch.rand(2), "lower duration": torch.rand(2).log()}
    features["lower duration"][1] = -torch.inf
    with pytest.raises(ValueError, match="lower duration is not finite"):
        train_calibration(features, torch.tensor([True, False]))


def test_a_saved_calibration_is_the_same(tmp_path):
    path = tmp_path / "calibration.json"
    save_calibrations({"a": Calibration(0.1, {"score": 1 / 3})}, path)
    (name, loaded), *_ = load_calibrations(path).items()
    assert (name, loaded.offset, loaded.weights) == ("a", 0.1, {"score": 1 / 3})
    assert [file.name for file in tmp_path.iterdir()] == ["calibration.json"]
    with pytest.raises(ValueError, match="trained on score, not on score, x"):
        loaded({"score": torch.ones(1), "x": torch.ones(1)})


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[1]",
        '{"a": 1}',
        '{"a": {"offset": "x", "weights": {}}}',
        '{"a": {"offset": 1}}',
        '{"a": {"offset": NaN, "weights": {"score": 1}}}',
        json.dumps({"a": {"offset": 1, "weights": {"score": 1}}})[:-9],
    ],
)
def test_other_files_are_refused_by_name(content, tmp_path):
    path = tmp_path / "calibration.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"calibration\.json") as caught:
        load_calibrations(path)
    assert "\n" not in str(caught.value)
