"""Which networks are called B0 to B6, and which are not."""

import re
from pathlib import Path

import pytest
from conftest import ParityCase

from redimnet2_lobes.models.front_end import LogMel, TorchaudioLogMel
from redimnet2_lobes.models.redimnet2 import ReDimNet2
from redimnet2_lobes.models.variants import VARIANTS, check_variant, variant_of
from redimnet2_lobes.pretrained.model_folder import write_model_folder
from redimnet2_lobes.pretrained.published_layout import build_network
from redimnet2_lobes.pretrained.push import collect
from redimnet2_lobes.recipe.hparams import build_hparam

HPARAMS = Path(__file__).parents[1] / "hparams"
FILES = sorted(
    path.name
    for path in HPARAMS.glob("*redimnet2_b*.yaml")
    if re.search("^variant: b", path.read_text(), re.MULTILINE)
)
B3 = VARIANTS["b3"]


def edited(stage, **changes):
    """The stages of B3 with one that is different."""
    stages = [dict(each) for each in B3["stages"]]
    stages[stage].update(changes)
    return {"stages": stages}


@pytest.mark.parametrize("name", FILES)
def test_hparams(name):
    variant = build_hparam(HPARAMS / name, "variant")
    network = build_hparam(HPARAMS / name, "embedding_model")
    assert variant_of(network) == variant
    check_variant(variant, network)
    arguments = {key: network.arguments()[key] for key in VARIANTS[variant]}
    if name.startswith("redimnet2_b3_mixture"):
        assert arguments.pop("out_channels") == 224
    assert arguments.items() <= VARIANTS[variant].items()


def test_there_are_hparams_of_each():
    assert {re.search(r"_(b\d)", name)[1] for name in FILES} == set(VARIANTS)
    assert len(FILES) == 19


@pytest.mark.parametrize("name", ParityCase.names)
def test_published(name):
    network = build_network(ParityCase(name).manifest["model_config"])
    # No checkpoint was released with features of torchaudio.
    expected = None if "torchaudio" in name else name[:2]
    assert variant_of(network) == expected


OTHERS = {
    "other stages": {"stages": B3["stages"][:4]},
    "one reduction": edited(2, reduction=12),
    "one expansion": edited(0, expansion=3),
    "one block more": edited(5, blocks=4),
    "frequency": edited(3, frequency_stride=1),
    "time": edited(4, time_stride=1),
    "head": {"out_channels": 64},
    "dual aggregation": {"dual_aggregation": True},
    "embedding": {"embedding_size": 256},
    "mel bins": {"front_end": LogMel(144)},
    "features": {"front_end": TorchaudioLogMel(72)},
    "channels": {"base_channels": 48},
}


@pytest.mark.parametrize("kind", OTHERS)
def test_as_many_channels_make_no_variant(kind):
    network = ReDimNet2(**{"front_end": LogMel(), **B3, **OTHERS[kind]})
    assert variant_of(network) is None
    with pytest.raises(ValueError, match="^variant: 'b3' does not go with"):
        check_variant("b3", network)
    check_variant(None, network)


def test_the_key_is_named():
    network = ReDimNet2(LogMel(), **{**B3, "out_channels": 64})
    with pytest.raises(ValueError, match="'b3' does not go with out_channels"):
        check_variant("b3", network)
    with pytest.raises(ValueError, match="'b0' does not go with base_channel"):
        check_variant("b0", network)


@pytest.mark.parametrize(
    "given",
    [
        {"aggregation_norm": True},
        {"minimum_seconds": 1.0},
        {"out_channels": 224},
    ],
)
def test_forms_of_a_variant(given):
    assert variant_of(ReDimNet2(LogMel(), **{**B3, **given})) == "b3"


def test_other_classes_have_no_variant():
    assert variant_of(LogMel()) is None
    with pytest.raises(ValueError, match="does not go with embedding_model"):
        check_variant("b3", LogMel())


def test_card_of_a_network_that_is_called_so(tmp_path):
    """The card says what the network is, not what its folder says."""
    network = ReDimNet2(LogMel(72), 24, B3["stages"][:2])
    write_model_folder(tmp_path / "model", network, "Custom", variant="b3")
    files, _ = collect(tmp_path / "model", "user/name", None, "mit", None, [])
    card = files["README.md"].decode()
    assert "B3" not in card and "an architecture of its own" in card
