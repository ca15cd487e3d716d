"""Whole training steps of the published code, by the recipe's own Brain.

The published front-end sums a spectrum in another order in float32, which
moves the loss by 1e-6. Its features of the first three steps are given
(training_features.npz, made by the published code, batch by batch), so that the
rest can be compared in float64.
"""

import itertools
import json

import fill
import numpy as np
import pytest
import torch
import train_speaker_embeddings as recipe
import training_runs
from conftest import TESTS, ParityCase, relative_difference

from redimnet2_lobes.models.front_end import LogMel
from redimnet2_lobes.pretrained.published_layout import take_weights

PARITY = TESTS / "parity"
SETTINGS = json.loads((PARITY / "training.json").read_text())
FIGURES = np.load(PARITY / "training.npz")
FEATURES = torch.from_numpy(
    np.load(PARITY / "training_features.npz")["features"]
)
CLASSES = SETTINGS["speakers"] * SETTINGS["speeds"]


class PublishedCrops(recipe.TrainingCrops):
    """Stands for what is read from files: one published crop after another."""

    def __init__(self, *args):
        super().__init__(*args)
        self.numbers = itertools.count()

    def __getitem__(self, index):
        number = next(self.numbers)
        step, row = divmod(number, SETTINGS["batch"])
        crop = fill.waveform(SETTINGS["crop_samples"], 1000 + number)
        return {
            "id": f"crop {number}",
            "sig": torch.from_numpy(crop),
            "label": int(FIGURES["label"][step, row]),
            "replaced": 0,
        }


class PublishedFeatures(LogMel):
    """The published features of the first steps, then our own."""

    def __init__(self):
        super().__init__()
        self.steps = iter(FEATURES)
        self.largest_difference = 0.0

    def forward(self, wavs, samples=None):
        ours, frames = super().forward(wavs, samples)
        theirs = next(self.steps, None) if self.training else None
        if theirs is None:
            return ours, frames
        difference = (ours[:, : theirs.shape[1]] - theirs).abs().max().item()
        self.largest_difference = max(self.largest_difference, difference)
        return theirs, frames


def take_published_weights(watch):
    """Gives the modules the weights of the figures, in float64."""
    seed = SETTINGS["seed"]
    network = watch.hparams["embedding_model"]
    weights = fill.fill(ParityCase(SETTINGS["case"]).manifest, seed)
    take_weights(
        network, {name: torch.from_numpy(x) for name, x in weights.items()}
    )
    watch.brain.modules.double()  # before -0.3 is rounded to float32
    classes = fill.tensor("projection.weight", (CLASSES, 192), "float32", seed)
    with torch.no_grad():
        watch.brain.modules.classifier.weight.copy_(torch.from_numpy(classes))
        watch.hparams["compute_cost"].bias.fill_(-0.3)
    network.front_end = PublishedFeatures()


@pytest.fixture(scope="module")
def trained(tmp_path_factory, noise_corpora):
    folder = tmp_path_factory.mktemp("parity")
    corpus = training_runs.write_corpus(folder / "corpus", utterances=4)
    case = ParityCase(SETTINGS["case"])
    arguments = training_runs.command_line(
        corpus,
        folder / "output",
        hparams="redimnet2_b3.yaml",
        corpora="null",
        validation_trials=corpus / "veri_validation.txt",
        test_trials=corpus / "veri_test2.txt",
        base_channels=case.manifest["model_config"]["C"],
        stages=training_runs.stages_of("redimnet2_b3.yaml"),
        out_channels=case.manifest["model_config"]["out_channels"],
        crop_frames=200,
        batch_size=SETTINGS["batch"],
        global_batch_size=SETTINGS["batch"],
        number_of_epochs=SETTINGS["epochs"],
        warmup_epochs=1,
        margin_increase_epoch=1,
        margin_final_epoch=3,
        precision="fp32",
        **noise_corpora,
    )
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(recipe, "TrainingCrops", PublishedCrops)
        return training_runs.run(
            monkeypatch, arguments, before=take_published_weights
        )


@pytest.mark.slow  # B3 in float64
def test_steps_are_the_published_ones(trained):
    # Learning rates and margins as the loss saw them.
    assert len(trained.losses) == SETTINGS["steps"]
    for key, figure in (("lr", "learning_rate"), ("margin", "margin")):
        found = [loss[key] for loss in trained.losses]
        assert found == pytest.approx(FIGURES[figure].tolist(), rel=1e-12)

    network = trained.brain.modules.embedding_model
    assert network.front_end.largest_difference < 1e-4

    losses = [loss["value"] for loss in trained.losses]
    expected = FIGURES["loss"].tolist()
    assert losses[:3] == pytest.approx(expected[:3], rel=1e-8)
    # Our own features from here on, and rounding grows a hundredfold a step.
    assert losses[3] == pytest.approx(expected[3], rel=1e-4)
    weight = trained.brain.modules.classifier.weight.detach()
    theirs = torch.from_numpy(FIGURES["classifier_weight"])
    assert relative_difference(weight, theirs) < 1e-3
    bias = trained.brain.modules.compute_cost.bias.item()
    assert bias == pytest.approx(FIGURES["loss_bias"].item(), rel=1e-4)
