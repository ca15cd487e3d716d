"""Fine-tuning starts where a pretraining ended."""

import logging

import pytest
import soundfile
import torch
from speechbrain.dataio.encoder import CategoricalEncoder
from speechbrain.inference.classifiers import EncoderClassifier
from speechbrain.lobes.models.ECAPA_TDNN import Classifier
from torch.nn.functional import normalize

from redimnet2_lobes.data.training_set import UtteranceList
from redimnet2_lobes.models.front_end import LogMel
from redimnet2_lobes.models.redimnet2 import ReDimNet2
from redimnet2_lobes.pretrained.model_folder import write_model_folder
from redimnet2_lobes.training.fine_tuning import (
    load_pretrained,
    start_new_classes,
)
from redimnet2_lobes.training.losses import (
    AdditiveAngularMarginLoss,
    SphereFace2,
)

BEFORE = ["anna", "bert", "carl", "dora"]
NOW = ["carl", "emil", "anna"]  # another order, one new, two gone


def small_network(**changes):
    stage = {"blocks": 1, "expansion": 1, "reduction": 8}
    stages = [{"frequency_stride": 2, "time_stride": 2, **stage}]
    return ReDimNet2(LogMel(), 4, stages, **changes)


def encoder_of(names):
    speakers = CategoricalEncoder()
    speakers.update_from_iterable(names, sequence_input=False)
    return speakers


@pytest.fixture(scope="module")
def class_weights():
    return torch.randn(4, 192)


@pytest.fixture
def pretrained(tmp_path, class_weights):
    """A model folder, and the network and the loss that are in it."""
    network, loss = small_network(), SphereFace2()
    torch.nn.init.constant_(loss.bias, -0.3)
    network(torch.randn(2, 16000))  # the running statistics move
    folder = tmp_path / "model"
    write_model_folder(
        folder,
        network,
        "A pretraining",
        class_weights=class_weights,
        speakers=BEFORE,
        loss=loss,
    )
    return folder, network


@pytest.fixture
def fine_tuned():
    """The network, classifier, speakers and loss of a fine-tuning."""
    return (
        small_network(),
        Classifier(192, out_neurons=len(NOW)),
        encoder_of(NOW),
        SphereFace2(),
    )


def assert_same_tensors(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name


def test_speakers_are_matched_by_name(pretrained, fine_tuned, class_weights):
    folder, pretrained_network = pretrained
    network, classifier, _, loss = fine_tuned
    initial = classifier.weight.detach().clone()
    assert load_pretrained(folder, *fine_tuned) == (2, 1)
    assert_same_tensors(network.state_dict(), pretrained_network.state_dict())
    expected = torch.stack([class_weights[2], initial[1], class_weights[0]])
    assert torch.equal(classifier.weight, expected)
    assert classifier.weight.requires_grad
    assert classifier.weight.is_leaf
    assert loss.bias.item() == pytest.approx(-0.3)


def test_classes_of_other_speeds_stay_initialized(pretrained, class_weights):
    classifier = Classifier(192, out_neurons=12)
    initial = classifier.weight.detach().clone()
    speakers = encoder_of(BEFORE)
    counts = load_pretrained(
        pretrained[0], small_network(), classifier, speakers, SphereFace2()
    )
    assert counts == (4, 0)
    assert torch.equal(classifier.weight[:4], class_weights)
    assert torch.equal(classifier.weight[4:], initial[4:])


def test_another_loss_learns_nothing_from_the_bias(pretrained, fine_tuned):
    *parts, _ = fine_tuned
    loss = AdditiveAngularMarginLoss()
    assert load_pretrained(pretrained[0], *parts, loss) == (2, 1)


def test_folder_without_speaker_classes(tmp_path, fine_tuned, caplog):
    """As ``redimnet2_lobes.pretrained.convert`` writes it."""
    converted = small_network()
    write_model_folder(tmp_path / "model", converted, "A converted network")
    network, classifier, _, loss = fine_tuned
    initial = classifier.weight.detach().clone()
    with caplog.at_level(logging.WARNING):
        counts = load_pretrained(tmp_path / "model", *fine_tuned)
    assert counts == (0, 3)
    assert "no speaker classes" in caplog.text
    assert_same_tensors(network.state_dict(), converted.state_dict())
    assert torch.equal(classifier.weight, initial)
    assert loss.bias.item() == 0


def test_folder_still_loads_for_inference(pretrained):
    encoder = EncoderClassifier.from_hparams(source=str(pretrained[0]))
    assert encoder.classify_batch(torch.randn(1, 16000))[3][0] in BEFORE


# Frozen stages


def two_stages(**changes):
    stage = {"blocks": 1, "expansion": 2, "reduction": 8}
    stages = [
        {"frequency_stride": 2, "time_stride": 2, **stage},
        {"frequency_stride": 2, "time_stride": 1, **stage},
    ]
    return ReDimNet2(LogMel(), 4, stages, aggregation_norm=True, **changes)


def moved(network, steps=2):
    """The names of what training moves: weights and statistics."""
    before = {
        name: tensor.clone() for name, tensor in network.state_dict().items()
    }
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=0.1, weight_decay=0.1
    )
    for _ in range(steps):
        network.eval()  # as for a validation in between
        network.train()
        network(torch.randn(2, 8000)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return {
        name
        for name, tensor in network.state_dict().items()
        if not torch.equal(tensor, before[name])
    }


@pytest.mark.parametrize("frozen_stages", [0, 1, 2])
@pytest.mark.parametrize("recomputed", [False, True])
def test_frozen_stages_stay_to_the_bit(frozen_stages, recomputed):
    """Neither gradients, weight decay nor BatchNorm move them."""
    network = two_stages(
        frozen_stages=frozen_stages, activation_checkpointing=recomputed
    )
    names = set(network.state_dict()) - {
        # Its softmax over a single map is 1 whatever it is.
        "stages.0.aggregation.weight"
    }
    frozen = tuple(
        ["stem.", "stages.0.", "stages.1."][: frozen_stages + 1]
        if frozen_stages
        else []
    )
    stay = {name for name in names if name.startswith(frozen)}
    movable = {
        name
        for name in names - stay
        if name in dict(network.named_parameters()) or "running_" in name
    }
    found = moved(network)
    assert found.isdisjoint(stay)
    # Biases before a normalization have no gradient but for rounding.
    assert len(movable - found) < 0.1 * len(movable)
    assert any("running_mean" in name for name in found)


def test_frozen_stages_compute_what_inference_does():
    network = two_stages(frozen_stages=2)
    network.train()
    statistics = torch.nn.modules.batchnorm._BatchNorm
    training = [
        name
        for name, module in network.named_modules()
        if isinstance(module, statistics) and module.training
    ]
    assert training
    assert not [name for name in training if name.startswith("stages.")]
    wavs = torch.randn(2, 8000)
    features, _ = network.front_end(wavs, None)
    here, _ = network.feature_maps(features)
    there, _ = network.eval().feature_maps(features)
    for ours, theirs in zip(here, there, strict=True):
        assert torch.equal(ours, theirs)
        assert not ours.requires_grad


@pytest.mark.parametrize("frozen_stages", [-1, 3, 1.0, True, None])
def test_stages_that_are_not_there_cannot_be_frozen(frozen_stages):
    with pytest.raises(
        ValueError, match=r"^frozen_stages: .* is not one of 0 to 2, [^\n]*\Z"
    ):
        two_stages(frozen_stages=frozen_stages)


# Wrong folders


def damage_weights(folder):
    file = folder / "embedding_model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])


def damage_classes(folder):
    (folder / "label_encoder.ckpt").write_text("'anna'\n")


def mix_trainings(folder):
    encoder_of(BEFORE[:3]).save(folder / "label_encoder.ckpt")


def remove_weights(folder):
    for file in folder.glob("embedding_model.*"):
        file.unlink()


def remove_classes(folder):
    for file in folder.glob("classifier.*"):
        file.unlink()


class Code:
    """Runs when it is unpickled."""

    def __reduce__(self):
        return (pytest.fail, ("unpickled",))


def hide_code(folder):
    (folder / "classifier.safetensors").unlink()
    torch.save({"stem.0.weight": Code()}, folder / "classifier.ckpt")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (damage_weights, "embedding_model.safetensors .* it is damaged"),
        (damage_classes, "label_encoder.ckpt: damaged"),
        (hide_code, "classifier.ckpt is not a file of weights"),
        (mix_trainings, "names 3 speakers for 4 classes"),
        (remove_weights, "model: no model folder"),
        (remove_classes, "names speakers, but there is no classifier file"),
    ],
)
def test_spoilt_folder_changes_nothing(pretrained, fine_tuned, spoil, message):
    folder = pretrained[0]
    spoil(folder)
    modules = [fine_tuned[0], fine_tuned[1], fine_tuned[3]]
    initial = [
        {name: tensor.clone() for name, tensor in module.state_dict().items()}
        for module in modules
    ]
    with pytest.raises(ValueError, match=rf"{message}[^\n]*\Z"):
        load_pretrained(folder, *fine_tuned)
    for module, before in zip(modules, initial, strict=True):
        assert_same_tensors(module.state_dict(), before)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"out_channels": 8},
            r"head.weight is missing there and \[8, 8\] here",
        ),
        ({"embedding_size": 64}, r"is \[192, \d+\] there and \[64, \d+\] here"),
    ],
)
def test_other_architecture_names_the_first_tensor(
    pretrained, fine_tuned, changes, message
):
    _, *others = fine_tuned
    with pytest.raises(ValueError, match=rf"{message}[^\n]*\Z"):
        load_pretrained(pretrained[0], small_network(**changes), *others)


def test_new_classes_start_from_embeddings(pretrained, fine_tuned, tmp_path):
    """Not those of old speakers, nor of one who cannot be read."""
    folder, _ = pretrained
    network, classifier, speakers, _ = fine_tuned
    load_pretrained(folder, *fine_tuned)
    before = classifier.weight.detach().clone()
    rows = ["ID,duration,wav,spk_id"]
    noises = torch.randn(
        3, 3, 16000, generator=torch.Generator().manual_seed(1)
    )
    for speaker, waveforms in zip(NOW, noises, strict=True):
        for number, waveform in enumerate(waveforms):
            path = tmp_path / f"{speaker}{number}.wav"
            soundfile.write(path, 0.1 * waveform.numpy(), 16000, "FLOAT")
            rows.append(f"{speaker}/x/{number},1.0,{path},{speaker}")
    (tmp_path / "emil1.wav").write_bytes(b"")  # left out of the mean
    path = tmp_path / "train.csv"
    path.write_text("\n".join(rows))
    utterances = UtteranceList()
    utterances.add(path, {})

    others = folder, network, classifier, speakers, utterances
    assert start_new_classes(*others) == 1
    assert network.training
    network.eval()
    with torch.no_grad():
        own = network(0.1 * noises[NOW.index("emil")][[0, 2]]).squeeze(1)
    expected = normalize(normalize(own, dim=1).mean(dim=0), dim=0)
    row = speakers.lab2ind["emil"]
    new = classifier.weight.detach()
    torch.testing.assert_close(normalize(new[row], dim=0), expected)
    known = [speakers.lab2ind[name] for name in ("carl", "anna")]
    assert torch.equal(new[known], before[known])
    torch.testing.assert_close(
        new[row].norm(), before[known].norm(dim=1).mean()
    )
    for name in ("emil0", "emil2"):
        (tmp_path / f"{name}.wav").write_bytes(b"")
    assert start_new_classes(*others) == 0
    assert torch.equal(classifier.weight, new)
