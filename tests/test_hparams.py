"""The shipped configurations against the published recipe."""

import re
from pathlib import Path

import pytest
from command_line import build_hparam, load_hparams
from conftest import ParityCase

from redimnet2_lobes.published import build_network

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


def hparams_file(variant):
    return HPARAMS / f"redimnet2_{variant}.yaml"


@pytest.mark.parametrize("variant", VARIANTS)
def test_architecture_is_the_published_one(variant):
    network = build_hparam(hparams_file(variant), "embedding_model")
    config = ParityCase(f"{variant}-vox2").manifest["model_config"]
    published = build_network(config).arguments()
    # The published recipes normalize maps, the released checkpoints do not.
    assert network.arguments() == {**published, "aggregation_norm": True}


@pytest.mark.parametrize("variant", VARIANTS)
def test_recipe_is_the_published_one(variant, tmp_path):
    hparams = load_hparams(
        hparams_file(variant),
        {"data_folder": "corpus", "output_folder": str(tmp_path)},
    )
    batch_size, weight_decay, factor = PUBLISHED[variant]
    assert hparams["variant"] == variant
    assert hparams["batch_size"] == batch_size
    assert hparams["weight_decay"] == weight_decay
    assert hparams["loss_weight_decay"] == pytest.approx(weight_decay * factor)
    assert hparams["number_of_epochs"] == 120
    assert hparams["max_grad_norm"] == float("inf")
    assert hparams["crop"].samples == 32000
    assert hparams["crop"].speeds == [1.0, 0.9, 1.1]
    assert hparams["validation_seconds"] == 8
    loss = hparams["compute_cost"]
    assert (loss.scale, loss.positive_weight, loss.exponent) == (32, 0.7, 3)
    assert loss.margin_type == "C"
    optimizer = hparams["opt_class"].keywords
    assert optimizer == {
        "lr": 0.1,
        "momentum": 0.9,
        "nesterov": True,
        "weight_decay": weight_decay,
    }
    for schedule in (hparams["lr_schedule"], hparams["margin_schedule"]):
        schedule.steps_per_epoch = 100
    rate, margin = hparams["lr_schedule"], hparams["margin_schedule"]
    rate.scale = 28
    # From tests/parity/schedules.json.
    assert rate.value_at(100) == pytest.approx(0.43869030976808604)
    assert rate.value_at(11999) == pytest.approx(0.00168103892243205)
    assert margin.value_at(2400) == pytest.approx(0.16443442069061304)
    assert hparams["augment"].noise_probability == 0.6
    assert hparams["augment"].gain == [-18, 6]


def test_only_the_marked_block_differs():
    rests = {}
    for variant in VARIANTS:
        text = hparams_file(variant).read_text()
        match = re.fullmatch(
            r"(.*)# --- What differs between B0 and B6 ---\n(.*)"
            r"# --- The same for all ---\n(.*)",
            text,
            re.DOTALL,
        )
        head, block, rest = match.groups()
        head = head.replace(f"-{variant.upper()}:", "-V:")
        head = head.replace(f"redimnet2_{variant}.yaml", "redimnet2_v.yaml")
        rests[variant] = head + rest
        keys = re.findall(r"^(\w+):", block, re.MULTILINE)
        assert keys == [
            "variant",
            "base_channels",
            "out_channels",
            "stages",
            "batch_size",
            "weight_decay",
            "loss_weight_decay",
        ]
    assert len(set(rests.values())) == 1


@pytest.mark.parametrize("path", sorted(HPARAMS.glob("*.yaml")))
def test_missing_data_folder_points_to_the_demo(path):
    with pytest.raises(ValueError, match="data_folder: missing.*make demo"):
        load_hparams(path, {})


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"base_channels": "many"}, "base_channels.*'many'"),
        ({"stages": 3}, "stages"),
        ({"speeds": [0.9, 1.0]}, "speeds"),
        ({"crop_seconds": "long"}, "crop_seconds"),
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
        "output_folder": str(tmp_path),
        **overrides,
    }
    with pytest.raises(ValueError, match=message) as error:
        load_hparams(hparams_file("b0"), overrides)
    assert "\n" not in str(error.value)
