"""Classes divided among processes train as those of one process do."""

import os
import re

import pytest
import torch
import train_speaker_embeddings as recipe
from processes import in_processes, joined
from speechbrain.lobes.models.ECAPA_TDNN import Classifier
from torch.nn.parallel import DistributedDataParallel
from training_runs import command_line, run, write_corpus

from redimnet2_lobes.training.losses import (
    AdditiveAngularMarginLoss,
    SphereFace2,
)
from redimnet2_lobes.training.sharded_classifier import ShardedClassifier

# Two steps an epoch, in parts of at most three crops; gradients are clipped.
SETTINGS = {
    "global_batch_size": 12,
    "batch_size": 3,
    "number_of_epochs": 4,
    "warmup_epochs": 1,
    "margin_increase_epoch": 1,
    "margin_final_epoch": 3,
    "max_grad_norm": 0.5,
    "ckpt_interval_steps": 1,
    "precision": "fp32",
}


class DoubleBrain(recipe.SpeakerBrain):
    """In float64, and with statistics that do not depend on the division."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.modules.double()
        for module in self.modules.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.train = lambda mode=True, norm=module: norm
                module.training = False
        self.modules.embedding_model.register_forward_pre_hook(
            lambda _, inputs: (inputs[0].double(), *inputs[1:])
        )


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"), utterances=8)


@pytest.fixture(scope="module", params=["SphereFace2", "AdditiveAngularMargin"])
def settings(request, corpus, noise_corpora):
    """SGD with momentum, or AdamW; both with weight decay."""
    if request.param == "SphereFace2":
        return {
            **SETTINGS,
            **noise_corpora,
            "hparams": "redimnet2_b0.yaml",
            "corpora": "null",
            "loss_weight_decay": 0.01,
            "validation_trials": corpus / "veri_validation.txt",
            "test_trials": corpus / "veri_test2.txt",
        }
    return SETTINGS


def train(corpus, output, before, overrides):
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(recipe, "SpeakerBrain", DoubleBrain)
        arguments = command_line(
            corpus, output, distributed_backend="gloo", **overrides
        )
        run(monkeypatch, arguments, before)


def trained(processes, corpus, output, before=lambda watch: None, **overrides):
    """Exit codes of a training."""
    return in_processes(processes, train, corpus, output, before, overrides)


@pytest.fixture(scope="module")
def whole(settings, corpus, tmp_path_factory):
    """One process, undivided."""
    output = tmp_path_factory.mktemp("whole")
    assert trained(1, corpus, output, **settings) == [0]
    return output


def tensors(value, name=""):
    """All tensors and numbers of nested values, by their place."""
    if isinstance(value, dict):
        value = value.items()
    elif isinstance(value, list):
        value = enumerate(value)
    else:
        return {name: value}
    return {
        key: each
        for index, part in value
        for key, each in tensors(part, f"{name}.{index}").items()
    }


def assert_same(output, whole):
    """The last checkpoint, the log and the model folder."""
    checkpoints = [
        max((folder / "save").glob("CKPT*")) for folder in (output, whole)
    ]
    files = [
        *(f"{path.name}/{file.name}" for path in checkpoints for file in [])
    ]
    for ours, theirs in [
        checkpoints,
        [folder / "model" for folder in (output, whole)],
    ]:
        names = sorted(path.name for path in theirs.iterdir())
        assert sorted(path.name for path in ours.iterdir()) == names
        for name in names:
            if not is_weights(theirs / name):
                continue
            found, expected = (
                tensors(torch.load(folder / name))
                for folder in (ours, theirs)
            )
            assert found.keys() == expected.keys()
            for key, value in expected.items():
                torch.testing.assert_close(
                    found[key], value, rtol=1e-6, atol=1e-9, msg=f"{name} {key}"
                )
    assert figures(output) == pytest.approx(figures(whole), rel=1e-3)


def figures(output):
    log = (output / "train_log.txt").read_text()
    return [
        float(figure)
        for figure in re.findall("(?:loss|accuracy|EER): ([^ ,]*)", log)
    ]


def is_weights(path):
    return path.suffix == ".ckpt" and path.read_bytes()[:2] == b"PK"


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_a_training_in_shares_is_the_same(
    processes, settings, whole, corpus, tmp_path
):
    codes = trained(
        processes, corpus, tmp_path, shard_classes=True, **settings
    )
    assert codes == [0] * processes
    assert_same(tmp_path, whole)
