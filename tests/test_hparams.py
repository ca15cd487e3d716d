"""The shipped configurations against the published recipe."""

import re
from pathlib import Path

import pytest
from conftest import ParityCase

from redimnet2_lobes.pretrained.published_layout import build_network
from redimnet2_lobes.recipe.hparams import build_hparam, load_hparams

HPARAMS = Path(__file__).parent.parent / "hparams"
VARIANTS = ["b0", "b1", "b2", "b3", "b4", "b5", "b6"]
# Crops per GPU, weight decay, factor for the class weights (reference,
# section 3).
PUBLISHED = {
    "b0": (512, 2e-5, 5),
    "b1": (224, 5e-6, 2),
    "b2": (192, 1.5e-5, 4),
    "b3": (224, 2e-5, 5),
    "b4": (160, 2e-5, 5),
    "b5": (128, 2e-5, 5),
    "b6": (140, 2e-5, 5),
}


MIXTURE = {"b3": (160, 2e-5, 0.1), "b6": (96, 2e-5, 0.5)}
FINE_TUNING = {
    "b0": 160,
    "b1": 64,
    "b2": 64,
    "b3": 64,
    "b4": 64,
    "b5": 48,
    "b6": 48,
}
# Stage, variant, and what of its recipe differs between variants.
RECIPES = {
    **{("", variant): figures for variant, figures in PUBLISHED.items()},
    **{
        ("_lm", variant): (batch_size, 1e-4, 1)
        for variant, batch_size in FINE_TUNING.items()
    },
    **{("_mixture", variant): figures for variant, figures in MIXTURE.items()},
    **{("_mixture_lm", variant): (48, 4e-5, 0.25) for variant in MIXTURE},
}
# Epochs, frames of a crop, seconds of the shortest utterance, speeds, rate at
# the last step of epochs 1 and of training for a global batch of 64, margin
# then.
STAGES = {
    "": (120, 200, 1, 3, 0.0157, 6e-5, 0.2),
    "_lm": (5, 600, 1, 1, 7.6e-5, 2.5e-5, 0.3),
    "_mixture": (None, 200, 1, 3, None, None, 0.2),
    "_mixture_lm": (1, 500, 5, 1, 2.5e-5, 2.5e-5, 0.3),
}
PLACEHOLDERS = [
    *("data_folder", "validation_folder", "musan_folder", "rirs_folder"),
    *("pretrained_folder", "voxceleb2_list", "voxblink2_list"),
    "cnceleb2_list",
]
HEADS = (
    "# --- What differs between B0 and B6 ---\n",
    "# --- What differs between the stages of training ---\n",
    "# --- The same for all ---\n",
)


def hparams_file(variant, stage=""):
    return HPARAMS / f"redimnet2_{variant}{stage}.yaml"


def load(variant, stage, output_folder):
    path = hparams_file(variant, stage)
    text = path.read_text()
    given = {
        key: "somewhere"
        for key in PLACEHOLDERS
        if re.search(f"^{key}: !PLACEHOLDER", text, re.MULTILINE)
    }
    return load_hparams(path, {**given, "output_folder": str(output_folder)})


def blocks(variant, stage):
    """The four parts of a file: head, variant, stage, common."""
    text = hparams_file(variant, stage).read_text()
    return re.fullmatch("(.*)".join(["", *HEADS, ""]), text, re.DOTALL).groups()


@pytest.mark.parametrize("stage, variant", RECIPES)
def test_architecture_is_the_published_one(stage, variant):
    network = build_hparam(hparams_file(variant, stage), "embedding_model")
    corpus = "vb2+vox2+cnc2" if "mixture" in stage else "vox2"
    config = ParityCase(f"{variant}-{corpus}").manifest["model_config"]
    published = build_network(config).arguments()
    # The published recipes normalize maps, the checkpoints released for
    # VoxCeleb2 alone do not.
    assert network.arguments() == {**published, "aggregation_norm": True}


@pytest.mark.parametrize("stage, variant", RECIPES)
def test_recipe_is_the_published_one(stage, variant, tmp_path):
    hparams = load(variant, stage, tmp_path)
    batch_size, weight_decay, factor = RECIPES[stage, variant]
    epochs, crop, shortest, speeds, first, last, margin = STAGES[stage]
    if stage == "_mixture":
        epochs, first = {"b3": (110, 0.025 / 8), "b6": (120, 0.06 / 8)}[variant]
        last = {
            "b3": 0.025 * 0.5 ** ((110 - 8 - 32) / 10),
            "b6": 0.06 * 0.5 ** ((120 - 8 - 45) / 10),
        }[variant]
    assert hparams["variant"] == variant
    assert hparams["batch_size"] == batch_size
    assert hparams["global_batch_size"] == 8 * batch_size
    assert hparams["weight_decay"] == weight_decay
    assert hparams["loss_weight_decay"] == pytest.approx(weight_decay * factor)
    assert hparams["number_of_epochs"] == epochs
    assert hparams["minimum_seconds"] == shortest
    assert hparams["max_grad_norm"] == float("inf")
    assert hparams["crop"].samples == {200: 32240, 600: 96240, 500: 80240}[crop]
    assert hparams["crop"].speeds == [1.0, 0.9, 1.1][:speeds]
    assert hparams["validation_seconds"] == 8
    loss = hparams["compute_cost"]
    assert (loss.scale, loss.positive_weight, loss.exponent) == (32, 0.7, 3)
    optimizer = hparams["opt_class"].keywords
    assert optimizer == {
        "lr": hparams["initial_lr"],
        "momentum": 0.9,
        "nesterov": True,
        "weight_decay": weight_decay,
    }
    rate, margins = hparams["lr_schedule"], hparams["margin_schedule"]
    for schedule in (rate, margins):
        schedule.steps_per_epoch = 1000
    assert rate.value_at(1000) == pytest.approx(first, rel=5e-3)
    assert rate.value_at(1000 * epochs) == pytest.approx(last, rel=5e-3)
    assert margins.value_at(1000 * epochs) == pytest.approx(margin)


def test_pretraining_curves(tmp_path):
    """From tests/parity/schedules.json."""
    hparams = load("b3", "", tmp_path)
    rate, margin = hparams["lr_schedule"], hparams["margin_schedule"]
    for schedule in (rate, margin):
        schedule.steps_per_epoch = 100
    rate.scale = 28
    assert rate.value_at(100) == pytest.approx(0.43869030976808604)
    assert rate.value_at(11999) == pytest.approx(0.00168103892243205)
    assert margin.value_at(2400) == pytest.approx(0.16443442069061304)


def test_files_differ_only_where_they_say():
    parts = {recipe: blocks(*reversed(recipe)) for recipe in RECIPES}
    assert len({common for *_, common in parts.values()}) == 1
    for chosen in STAGES:
        of_stage = [
            (variant, head, differing, rest)
            for (stage, variant), (head, differing, *rest) in parts.items()
            if stage == chosen
        ]
        for variant, head, differing, _ in of_stage:
            assert f"ReDimNet2-{variant.upper()}:" in head
            assert f"hparams/redimnet2_{variant}{chosen}.yaml" in head
            assert re.findall(r"^(\w+):", differing, re.MULTILINE) == [
                *("variant", "base_channels", "out_channels", "stages"),
                *("batch_size", "weight_decay", "loss_weight_decay"),
            ]
        if chosen != "_mixture":  # its rates differ between B3 and B6
            assert len({tuple(rest) for *_, rest in of_stage}) == 1
    for variant in VARIANTS:
        architectures = {
            parts[stage, variant][1].split("batch_size")[0]
            for stage in ("", "_lm")
        }
        assert len(architectures) == 1


@pytest.mark.parametrize("path", sorted(HPARAMS.glob("*.yaml")))
def test_the_first_missing_value_is_explained(path):
    with pytest.raises(
        ValueError, match="^(data_folder|voxceleb2_list|utterances): miss"
    ):
        load_hparams(path, {})
    with pytest.raises(ValueError) as error:
        load_hparams(path, {})
    assert "no default" not in str(error.value)


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"base_channels": "many"}, "base_channels.*'many'"),
        ({"stages": 3}, "stages"),
        ({"speeds": [0.9, 1.0]}, "speeds"),
        ({"crop_frames": "long"}, "crop_frames"),
        ({"final_margin": -1}, "final_margin"),
        ({"warmup_epochs": -1}, "warmup_epochs"),
        ({"margin_final_epoch": 3}, "margin_final_epoch|fix_start_epoch"),
        ({"final_lr": 0}, "final_lr"),
        ({"mel_bins": 80}, "mel_bins: not a key"),
    ],
)
def test_wrong_value_names_the_key(overrides, message, tmp_path):
    overrides = {
        "data_folder": "corpus",
        "musan_folder": "musan",
        "rirs_folder": "rirs",
        "output_folder": str(tmp_path),
        **overrides,
    }
    with pytest.raises(ValueError, match=message) as error:
        load_hparams(hparams_file("b0"), overrides)
    assert "\n" not in str(error.value)


def test_torchaudio_features():
    """B3's file but for the front-end, which the published code knows too."""
    path = HPARAMS / "redimnet2_b3_torchaudio.yaml"
    texts = [each.read_text() for each in (hparams_file("b3"), path)]
    theirs, ours = (
        [line for line in text.splitlines() if not line.startswith("#")]
        for text in texts
    )
    differing = [
        line.split(":")[0]
        for line, other in zip(ours, theirs, strict=True)
        if line != other
    ]
    assert differing == ["variant", "output_folder", "title", "front_end"]
    case = ParityCase("b3-vox2-torchaudio-mel")
    published = build_network(case.manifest["model_config"])
    network = build_hparam(path, "embedding_model")
    assert type(network.front_end) is type(published.front_end)
    # The figures are of a network that does not normalize its maps.
    expected = {**published.arguments(), "aggregation_norm": True}
    assert network.arguments() == expected
