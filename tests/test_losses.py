"""The losses against published figures, formulas and hard inputs."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from speechbrain.lobes.models.ECAPA_TDNN import Classifier
from speechbrain.nnet.losses import (
    AdditiveAngularMargin,
    AngularMargin,
    LogSoftmaxWrapper,
)

from redimnet2_lobes.training.losses import (
    AdditiveAngularMarginLoss,
    SphereFace2,
)

PUBLISHED = np.load(Path(__file__).parent / "parity" / "loss.npz")
NOT_IN_THE_PUBLISHED_RECIPES = {
    "sphereface2-A-m0.15",
    "aam-subcenter3-intertopk5-m0.2",
}


def additive_margin(margin, scale=32.0):
    """The additive margin, which is all SpeechBrain's."""
    return LogSoftmaxWrapper(AngularMargin(margin, scale))


def make_losses(margin=0.2, scale=32.0):
    """Every loss of ours, for 8 cosines."""
    return [
        SphereFace2(margin, scale),
        AdditiveAngularMarginLoss(margin, scale),
    ]


def name_of(loss):
    return type(loss).__name__


every_loss = pytest.mark.parametrize("loss", make_losses(), ids=name_of)


def random_cosines(seed=0, batch=5, outputs=8):
    """Cosines of 8 classes, labels of the first 4."""
    generator = torch.Generator().manual_seed(seed)
    cosines = torch.rand(batch, 1, outputs, generator=generator) * 1.9 - 0.95
    labels = torch.randint(0, 4, (batch, 1), generator=generator)
    return cosines, labels


# The published figures


@pytest.mark.parametrize(
    ("case", "loss"),
    [
        ("sphereface2-C-m0.0", SphereFace2(0.0)),
        ("sphereface2-C-m0.2", SphereFace2(0.2)),
        ("sphereface2-C-m0.3", SphereFace2(0.3)),
        ("aam-m0.2", AdditiveAngularMarginLoss(0.2)),
        ("am-m0.2", additive_margin(0.2)),
    ],
)
def test_published_values_and_gradients(case, loss):
    weight = torch.from_numpy(PUBLISHED["weight"])
    classifier = Classifier(weight.shape[1], out_neurons=weight.shape[0])
    with torch.no_grad():
        classifier.weight.copy_(weight)
        if "sphereface2" in case:
            assert loss.bias == 0  # as published, before it is learned
            loss.bias.fill_(-0.3)
    embeddings = torch.from_numpy(PUBLISHED["embedding"]).requires_grad_()
    labels = torch.from_numpy(PUBLISHED["label"]).unsqueeze(1)

    value = loss(classifier(embeddings.unsqueeze(1)), labels)
    value.backward()

    for ours, figure in [
        (value.detach(), "loss"),
        (embeddings.grad, "grad_embedding"),
        (classifier.weight.grad, "grad_weight"),
    ]:
        expected = PUBLISHED[f"{case}.{figure}"]
        difference = np.abs(ours.numpy() - expected).max()
        assert difference <= 1e-5 * np.abs(expected).max(), figure


def test_every_published_case_is_tested():
    cases = {key.rsplit(".", 1)[0] for key in PUBLISHED if ".loss" in key}
    cases -= NOT_IN_THE_PUBLISHED_RECIPES
    parameters = test_published_values_and_gradients.pytestmark[0].args[1]
    assert cases == {case for case, _ in parameters}


def test_speechbrains_angular_margin_is_another():
    """The reason for ours; if this fails, SpeechBrain's may have become it."""
    cosines = torch.tensor([[[-0.99, 0.5, 0.1]]])  # beyond pi - m
    label = torch.tensor([[0]])
    theirs = LogSoftmaxWrapper(AdditiveAngularMargin(0.2, 32.0))
    ours = AdditiveAngularMarginLoss(0.2)
    assert not torch.isclose(theirs(cosines, label), ours(cosines, label))
    before = theirs(-cosines, label)
    theirs.loss_fn.margin = 0.4
    assert theirs(-cosines, label) == before


# The formulas, where the published figures do not reach


def continued_cosine(angle, margin):
    """cos(angle + margin), continued beyond pi as published."""
    if angle > math.pi - margin:
        return math.cos(angle) - 1 - math.cos(math.pi - margin)
    return math.cos(angle + margin)


@pytest.mark.parametrize("angle", [0.3, 2.0, math.pi - 0.21, math.pi - 0.19, 3])
def test_additive_angular_margin_follows_the_angle(angle):
    loss = AdditiveAngularMarginLoss(margin=0.2, scale=2.0)
    cosines = torch.tensor([[math.cos(angle), 0.3]], dtype=torch.float64)
    logits = [2 * continued_cosine(angle, 0.2), 2 * 0.3]
    expected = math.log(sum(map(math.exp, logits))) - logits[0]
    value = loss(cosines, torch.tensor([0]))
    assert value.item() == pytest.approx(expected, rel=1e-9)


# SphereFace2 in blocks of classes


def plain_sphereface2(loss, cosines, labels):
    """The formula for all classes at once."""

    def spread(cosines):
        return 2 * ((cosines + 1) / 2) ** loss.exponent - 1

    margin = loss.margin
    targets, others = spread(cosines) - margin, spread(cosines) + margin
    targets = torch.log1p(torch.exp(-(loss.scale * targets + loss.bias)))
    others = torch.log1p(torch.exp(loss.scale * others + loss.bias))
    is_target = torch.nn.functional.one_hot(labels, cosines.shape[1]) == 1
    weight = loss.positive_weight
    losses = torch.where(is_target, weight * targets, (1 - weight) * others)
    return losses.sum(1).mean()


@pytest.fixture
def sphereface2():
    loss = SphereFace2(margin=0.2, scale=4.0)
    torch.nn.init.constant_(loss.bias, -0.3)
    return loss.double()


@pytest.fixture
def classes_and_labels():
    """Cosines of 8 classes, each of which is the target of an utterance."""
    cosines, _ = random_cosines(batch=8)
    return cosines.squeeze(1).double().requires_grad_(), torch.arange(8)


@pytest.mark.parametrize("block", [1, 3, 4, 8, 100])
def test_blocks_change_neither_value_nor_gradient(
    monkeypatch, sphereface2, classes_and_labels, block
):
    monkeypatch.setattr(
        "redimnet2_lobes.training.losses.CLASSES_PER_BLOCK", block
    )
    expected = plain_sphereface2(sphereface2, *classes_and_labels)
    value = sphereface2(*classes_and_labels)
    sphereface2.margin = 0.3  # the gradient is still that of the value
    inputs = [classes_and_labels[0], sphereface2.bias]
    gradients = torch.autograd.grad(3 * value, inputs)
    expected_gradients = torch.autograd.grad(3 * expected, inputs)
    torch.testing.assert_close(
        [value, *gradients],
        [expected, *expected_gradients],
        rtol=1e-10,
        atol=1e-10,
    )


def test_compiled_in_blocks(monkeypatch, classes_and_labels):
    monkeypatch.setattr("redimnet2_lobes.training.losses.CLASSES_PER_BLOCK", 5)
    cosines, labels = classes_and_labels
    loss = SphereFace2(margin=0.2, scale=4.0)
    compiled = torch.compile(loss, backend="eager")
    for loss.margin in (0.2, 0.3):
        values = [f(cosines, labels) for f in (compiled, loss)]
        gradients = [torch.autograd.grad(value, cosines) for value in values]
        torch.testing.assert_close(values[0], values[1])
        torch.testing.assert_close(gradients[0], gradients[1])


def test_nothing_but_the_cosines_waits_for_the_backward_pass(sphereface2):
    """With 357,819 classes another tensor of their size takes 229 MB."""
    cosines = torch.zeros(2, 20_000, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.append(tensor.numel()) or tensor, lambda x: x
    ):
        sphereface2(cosines, torch.tensor([0, 1]))
    assert cosines.numel() <= sum(kept) < 1.1 * cosines.numel()


# Properties of every loss


@pytest.mark.parametrize("loss", make_losses(scale=4.0), ids=name_of)
def test_gradients_are_those_of_the_value(loss):
    cosines, labels = random_cosines(seed=1)
    cosines = cosines.double().requires_grad_()
    assert torch.autograd.gradcheck(loss, (cosines, labels))


def test_sphereface2_learns_its_bias():
    loss = SphereFace2(scale=4.0)
    cosines, labels = random_cosines()
    bias = torch.tensor(-0.3, dtype=torch.float64, requires_grad=True)
    assert "bias" in dict(loss.named_parameters())
    assert torch.autograd.gradcheck(
        lambda bias: torch.func.functional_call(
            loss, {"bias": bias}, (cosines.double(), labels)
        ),
        bias,
    )


@every_loss
def test_shapes_with_and_without_the_time_axis(loss):
    cosines, labels = random_cosines()
    value = loss(cosines, labels)
    assert value.shape == ()
    assert loss(cosines.squeeze(1), labels.squeeze(1)) == value
    assert loss(cosines.squeeze(1), labels) == value


@every_loss
def test_loss_is_the_mean_over_the_batch(loss):
    cosines, labels = random_cosines()
    singles = [
        loss(cosines[i : i + 1], labels[i : i + 1]) for i in range(len(labels))
    ]
    torch.testing.assert_close(
        loss(cosines, labels), torch.stack(singles).mean()
    )


@every_loss
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_input_float32_loss(loss, dtype):
    cosines, labels = random_cosines(batch=64)
    half = cosines.to(dtype).requires_grad_()
    value = loss(half, labels)
    assert value.dtype == torch.float32
    # All that is lost was lost before the loss.
    assert value == loss(half.detach().float(), labels)
    value.backward()
    assert half.grad.isfinite().all()
    tolerance = 0.02 if dtype == torch.bfloat16 else 0.002
    torch.testing.assert_close(
        value.detach(), loss(cosines, labels).detach(), rtol=tolerance, atol=0
    )


@every_loss
def test_autocast_changes_nothing(loss):
    cosines, labels = random_cosines()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = loss(cosines, labels)
    assert inside.dtype == torch.float32
    assert inside == loss(cosines, labels)


@pytest.mark.parametrize("margin", [0.05, 0.3])
def test_margin_set_later_equals_margin_given(margin):
    cosines, labels = random_cosines()
    for changed, fresh in zip(
        make_losses(margin=0.15), make_losses(margin), strict=True
    ):
        before = changed(cosines, labels)
        changed.margin = margin
        after = changed(cosines, labels)
        assert after == fresh(cosines, labels), name_of(changed)
        assert after != before, name_of(changed)


def test_additive_margin_set_later_equals_margin_given():
    cosines, labels = random_cosines()
    changed = additive_margin(0.0)
    changed.loss_fn.margin = 0.2
    assert changed(cosines, labels) == additive_margin(0.2)(cosines, labels)
    assert changed(cosines, labels) > additive_margin(0.0)(cosines, labels)


@every_loss
@pytest.mark.parametrize("target", [-1.0, 1.0])
@pytest.mark.parametrize("excess", [0.0, 1e-7, 0.01])
def test_extreme_cosines_have_finite_gradients(loss, target, excess):
    """Rounding may also take a cosine slightly beyond 1 (bfloat16: 1/128)."""
    cosines = torch.full((2, 8), -target)
    cosines[0, :4] = target
    cosines = (cosines * (1 + excess)).requires_grad_()
    value = loss(cosines, torch.tensor([0, 3]))
    value.backward()
    assert value.isfinite()
    assert cosines.grad.isfinite().all()


@pytest.mark.parametrize("cosine", [-1.0, -0.9, 0.9, 1.0])
@pytest.mark.parametrize("scale", [32.0, 128.0])  # exp(128) is infinite
def test_sphereface2_is_stable_with_thousands_of_classes(cosine, scale):
    loss = SphereFace2(scale=scale, margin=0.3)
    labels = torch.arange(4)
    cosines = torch.full((4, 20_000), cosine, requires_grad=True)
    value = loss(cosines, labels)
    value.backward()
    exact = loss.double()(cosines.detach().double(), labels)
    assert value.item() == pytest.approx(exact.item(), rel=1e-5)
    assert cosines.grad.isfinite().all()
    # The target is always pulled, the others are always pushed.
    target = torch.zeros_like(cosines, dtype=torch.bool)
    target[labels, labels] = True
    assert (cosines.grad[target] <= 0).all()
    assert (cosines.grad[~target] >= 0).all()


# Wrong input


@every_loss
@pytest.mark.parametrize("label", [-1, 8])
def test_label_out_of_range(loss, label):
    cosines, labels = random_cosines()
    labels[2] = label
    with pytest.raises(ValueError, match=rf"^labels from .*{label}.*\Z"):
        loss(cosines, labels)


@every_loss
def test_as_many_labels_as_rows(loss):
    cosines, labels = random_cosines(batch=5)
    with pytest.raises(ValueError, match="4 labels for 5 rows"):
        loss(cosines, labels[:4])


@pytest.mark.parametrize(
    ("loss", "key", "value"),
    [
        (SphereFace2, "margin", -0.1),
        (SphereFace2, "scale", "32"),
        (SphereFace2, "positive_weight", 1.5),
        (SphereFace2, "exponent", 2.5),
        (SphereFace2, "exponent", 0),
        (AdditiveAngularMarginLoss, "margin", "0.2"),
        (AdditiveAngularMarginLoss, "scale", float("nan")),
        (AdditiveAngularMarginLoss, "margin", None),
        (AdditiveAngularMarginLoss, "scale", -1),
    ],
)
def test_wrong_value_is_named_in_one_line(loss, key, value):
    with pytest.raises(ValueError, match=rf"^{key} must be [^\n]*\Z") as error:
        loss(**{key: value})
    assert repr(value) in str(error.value)
