"""The schedules against published curves, and their resumption."""

import json
from pathlib import Path

import pytest
import torch
from speechbrain.nnet.losses import (
    AdditiveAngularMargin,
    AngularMargin,
    LogSoftmaxWrapper,
)
from speechbrain.utils.checkpoints import Checkpointer

from redimnet2_lobes.training.losses import (
    AdditiveAngularMarginLoss,
    SphereFace2,
)
from redimnet2_lobes.training.schedules import (
    MarginSchedule,
    WarmupExponentialSchedule,
    WarmupPlateauSchedule,
)

PUBLISHED = json.loads(
    (Path(__file__).parent / "parity" / "schedules.json").read_text()
)


def make_optimizer(groups=2):
    return torch.optim.SGD(
        [
            {"params": [torch.nn.Parameter(torch.zeros(1))]}
            for _ in range(groups)
        ],
        lr=123.0,
    )


def lr_schedule(**changes):
    arguments = {
        "initial_lr": 0.1,
        "final_lr": 0.001,
        "warmup_epochs": 2,
        "epochs": 5,
        "steps_per_epoch": 4,
    }
    return WarmupExponentialSchedule(**{**arguments, **changes})


def plateau_schedule(**changes):
    arguments = {
        "initial_lr": 0.1,
        "warmup_epochs": 2,
        "plateau_epochs": 1,
        "halving_epochs": 2,
        "steps_per_epoch": 4,
    }
    return WarmupPlateauSchedule(**{**arguments, **changes})


def margin_schedule(**changes):
    arguments = {
        "initial_margin": 0.05,
        "final_margin": 0.2,
        "increase_start_epoch": 2,
        "fix_start_epoch": 4,
        "steps_per_epoch": 4,
    }
    return MarginSchedule(**{**arguments, **changes})


def run(schedule, steps):
    """The curve that an optimizer or a loss sees."""
    curve = []
    for _ in range(steps):
        if isinstance(schedule, MarginSchedule):
            loss = SphereFace2()
            schedule(loss)
            curve.append(loss.margin)
        else:
            optimizer = make_optimizer(groups=1)
            schedule(optimizer)
            curve.append(optimizer.param_groups[0]["lr"])
    return curve


every_schedule = pytest.mark.parametrize(
    "make_schedule", [lr_schedule, plateau_schedule, margin_schedule]
)


# The published curves


@pytest.mark.parametrize("stage", ["pretrain", "large_margin"])
def test_published_learning_rates(stage):
    published = PUBLISHED[stage].copy()
    learning_rates = {int(k): v for k, v in published.pop("lr").items()}
    curve = run(WarmupExponentialSchedule(**published), max(learning_rates) + 1)
    ours = {step: curve[step] for step in learning_rates}
    assert ours == pytest.approx(learning_rates, rel=1e-5)


@pytest.mark.parametrize(
    ("initial_lr", "plateau_epochs", "scale", "learning_rates"),
    [
        pytest.param(
            *(0.025, 32, 20.0),  # 8 GPUs with 160 crops each
            {
                0: 0.0,
                1: 0.000625,
                799: 0.499375,
                800: 0.5,
                4000: 0.5,
                4001: 0.49965354649522625,
                5000: 0.25,
                10999: 0.003908958544775708,
            },
            id="b3",
        ),
        pytest.param(
            *(0.06, 45, 12.0),
            {
                1: 0.0009,
                5300: 0.72,
                5301: 0.7195011069531257,
                6300: 0.36,
                11999: 0.00692998916313238,
            },
            id="b6",
        ),
    ],
)
def test_published_learning_rates_of_the_large_mixture(
    initial_lr, plateau_epochs, scale, learning_rates
):
    """Figures made by the published training application."""
    schedule = WarmupPlateauSchedule(
        initial_lr=initial_lr,
        warmup_epochs=8,
        plateau_epochs=plateau_epochs,
        halving_epochs=10,
        steps_per_epoch=100,
        scale=scale,
    )
    ours = {step: schedule.value_at(step) for step in learning_rates}
    assert ours == pytest.approx(learning_rates, rel=1e-5)


def test_published_fine_tuning_on_the_large_mixture():
    """Figures made by the published training application."""
    schedule = WarmupExponentialSchedule(
        initial_lr=1e-4,
        final_lr=2.5e-5,
        warmup_epochs=0.2,
        epochs=1,
        steps_per_epoch=1000,
        scale=6.0,  # 8 GPUs with 48 crops each
    )
    learning_rates = {
        0: 0.0,
        1: 2.995843998303087e-06,
        199: 0.0004530690470127551,
        200: 0.0004547149699531195,
        500: 0.0003,
        999: 0.0001502080883567002,
    }
    ours = {step: schedule.value_at(step) for step in learning_rates}
    assert ours == pytest.approx(learning_rates, rel=1e-5)


def test_published_margins():
    published = PUBLISHED["margin"]
    margins = {int(k): v for k, v in published["margin"].items()}
    schedule = MarginSchedule(
        initial_margin=published["initial"],
        final_margin=published["final"],
        increase_start_epoch=published["increase_start_epoch"],
        fix_start_epoch=published["fix_start_epoch"],
        steps_per_epoch=published["steps_per_epoch"],
    )
    curve = run(schedule, max(margins) + 1)
    ours = {step: curve[step] for step in margins}
    assert ours == pytest.approx(margins, rel=1e-5)


# Properties


every_lr_schedule = pytest.mark.parametrize(
    "make_schedule", [lr_schedule, plateau_schedule]
)


@every_lr_schedule
def test_every_parameter_group_gets_the_learning_rate(make_schedule):
    optimizer = make_optimizer(groups=3)
    schedule = make_schedule()
    for _ in range(3):
        lr = schedule(optimizer)
    assert [group["lr"] for group in optimizer.param_groups] == [lr] * 3
    assert lr == schedule.value_at(2)


@every_lr_schedule
def test_scale_multiplies_the_whole_curve(make_schedule):
    scaled = [lr / 7 for lr in run(make_schedule(scale=7.0), 20)]
    assert scaled == pytest.approx(run(make_schedule(), 20), rel=1e-12)


def test_warmup_may_be_left_out_or_last_a_part_of_an_epoch():
    without = run(lr_schedule(warmup_epochs=0), 3)
    assert without[0] == 0.1
    assert without[2] < without[1] < without[0]
    half_an_epoch = run(lr_schedule(warmup_epochs=0.5), 3)
    expected = [0.0, without[1] / 2, without[2]]
    assert half_an_epoch == pytest.approx(expected, rel=1e-12)


def test_learning_rate_stays_final_after_the_last_epoch():
    assert run(lr_schedule(), 40)[20:] == pytest.approx([0.001] * 20)


def test_plateau_and_halvings():
    curve = run(plateau_schedule(), 29)
    assert curve[:8] == sorted(set(curve[:8]))
    assert curve[8:13] == [0.1] * 5
    assert curve[12:] == sorted(set(curve[12:]), reverse=True)
    assert curve[12:29:8] == pytest.approx([0.1, 0.05, 0.025])


def test_margin_grows_steadily_from_the_initial_to_the_final_one():
    curve = run(margin_schedule(), 16)
    assert curve[:5] == pytest.approx([0.05] * 5)
    assert curve[4:13] == sorted(set(curve[4:13]))
    assert curve[12:] == [0.2] * 4


def test_fixed_margin_and_margin_in_one_step():
    fixed = margin_schedule(
        initial_margin=0.3,
        final_margin=0.3,
        increase_start_epoch=1,
        fix_start_epoch=1,
    )
    assert run(fixed, 3) == [0.3] * 3
    one_step = margin_schedule(increase_start_epoch=2, fix_start_epoch=2)
    assert run(one_step, 6) == [0.05] * 4 + [0.2] * 2


@pytest.mark.parametrize(
    "make_loss",
    [
        lambda: SphereFace2(margin=0.0),
        lambda: AdditiveAngularMarginLoss(margin=0.0),
        lambda: LogSoftmaxWrapper(AngularMargin(margin=0.0, scale=32.0)),
        # DistributedDataParallel holds the loss in the same attribute.
        lambda: torch.nn.DataParallel(SphereFace2(margin=0.0)),
    ],
)
def test_margin_reaches_the_loss(make_loss):
    loss = make_loss()
    cosines = torch.tensor([[[0.6, 0.5, -0.1]], [[0.1, 0.2, 0.3]]])
    labels = torch.tensor([[0], [2]])
    before = loss(cosines, labels)
    margin_schedule()(loss)
    assert loss(cosines, labels) > before


@pytest.mark.parametrize(
    "loss",
    [
        LogSoftmaxWrapper(torch.nn.Identity()),
        torch.nn.NLLLoss(),
        # Its margin is an attribute, but without effect.
        LogSoftmaxWrapper(AdditiveAngularMargin(margin=0.2, scale=32.0)),
    ],
)
def test_loss_whose_margin_cannot_be_set(loss):
    schedule = margin_schedule()
    with pytest.raises(ValueError, match=r"margin[^\n]*\Z"):
        schedule(loss)
    assert schedule.step == 0


# Steps per epoch


@every_schedule
def test_steps_per_epoch_may_follow_later(make_schedule):
    schedule = make_schedule(steps_per_epoch=None)
    schedule.steps_per_epoch = 4
    assert run(schedule, 20) == run(make_schedule(), 20)


@every_schedule
def test_steps_per_epoch_forgotten(make_schedule):
    schedule = make_schedule(steps_per_epoch=None)
    with pytest.raises(ValueError, match="^steps_per_epoch is not set"):
        run(schedule, 1)


@every_schedule
@pytest.mark.parametrize("steps", [0, -1, 2.5, "100"])
def test_steps_per_epoch_wrong(make_schedule, steps):
    with pytest.raises(ValueError, match="^steps_per_epoch must be"):
        make_schedule(steps_per_epoch=steps)
    schedule = make_schedule()
    with pytest.raises(ValueError, match="^steps_per_epoch must be"):
        schedule.steps_per_epoch = steps


# Resumption


@every_schedule
@pytest.mark.parametrize("known_before_loading", [True, False])
def test_resumed_curve_continues(tmp_path, make_schedule, known_before_loading):
    whole = run(make_schedule(), 20)
    assert len(set(whole)) > 5

    interrupted = make_schedule()
    first = run(interrupted, 7)
    Checkpointer(tmp_path, {"schedule": interrupted}).save_checkpoint()

    resumed = make_schedule(steps_per_epoch=4 if known_before_loading else None)
    Checkpointer(tmp_path, {"schedule": resumed}).recover_if_possible()
    resumed.steps_per_epoch = 4
    assert first + run(resumed, 13) == whole


@every_schedule
@pytest.mark.parametrize("known_before_loading", [True, False])
def test_resumed_with_another_batch_size(
    tmp_path, make_schedule, known_before_loading
):
    """Half the steps per epoch: the curve goes on at the same epoch."""
    interrupted = make_schedule()
    run(interrupted, 10)
    Checkpointer(tmp_path, {"schedule": interrupted}).save_checkpoint()

    resumed = make_schedule(steps_per_epoch=2 if known_before_loading else None)
    Checkpointer(tmp_path, {"schedule": resumed}).recover_if_possible()
    resumed.steps_per_epoch = 2
    assert run(resumed, 5) == run(make_schedule(), 20)[10::2]


@every_schedule
def test_saved_position_is_json(tmp_path, make_schedule):
    schedule = make_schedule()
    run(schedule, 3)
    schedule.save(tmp_path / "schedule")
    position = json.loads((tmp_path / "schedule").read_text())
    assert position == {"step": 3, "steps_per_epoch": 4}


# Wrong values


@pytest.mark.parametrize(
    ("make_schedule", "key", "value"),
    [
        (lr_schedule, "initial_lr", 0.0),
        (lr_schedule, "final_lr", 0),
        (lr_schedule, "final_lr", -6e-5),
        (lr_schedule, "final_lr", "small"),
        (lr_schedule, "final_lr", float("nan")),
        (lr_schedule, "warmup_epochs", -1),
        (lr_schedule, "epochs", 0),
        (lr_schedule, "epochs", None),
        (lr_schedule, "scale", 0.0),
        (plateau_schedule, "initial_lr", None),
        (plateau_schedule, "warmup_epochs", -1),
        (plateau_schedule, "plateau_epochs", -1),
        (plateau_schedule, "halving_epochs", 0),
        (plateau_schedule, "scale", -1.0),
        (margin_schedule, "initial_margin", -0.1),
        (margin_schedule, "final_margin", -0.2),
        (margin_schedule, "increase_start_epoch", 0),
        (margin_schedule, "fix_start_epoch", 1.5),
    ],
)
def test_wrong_value_is_named_in_one_line(make_schedule, key, value):
    with pytest.raises(ValueError, match=rf"^{key} must be [^\n]*\Z") as error:
        make_schedule(**{key: value})
    assert repr(value) in str(error.value)
