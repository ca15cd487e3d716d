"""Classes divided among processes train as those of one process do."""

import os
import re
from functools import partial

import numpy as np
import pytest
import torch
import train_speaker_embeddings as recipe
from processes import in_processes, joined
from speechbrain.lobes.models.ECAPA_TDNN import Classifier
from speechbrain.utils.run_opts import RunOptions
from torch.nn.parallel import DistributedDataParallel
from training_runs import command_line, run, write_corpus

from redimnet2_lobes.training.batches import GlobalBatches
from redimnet2_lobes.training.brain import GlobalBatchBrain
from redimnet2_lobes.training.checkpointer import CompleteCheckpointer
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

WEIGHTS = {
    "embedding_model.ckpt",
    "classifier.ckpt",
    "compute_cost.ckpt",
    "optimizer.ckpt",
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
        try:
            run(monkeypatch, arguments, before)
        except ValueError as error:
            path = output / f"error{os.environ['RANK']}.txt"
            path.write_text(str(error))
            raise


def nothing(watch):
    """Before a training."""


def trained(processes, corpus, output, before=nothing, **overrides):
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
    """The last checkpoint, the model folder and the log."""
    for ours, theirs in (
        [
            # Of the same second, the name does not say which is the newest.
            CompleteCheckpointer(folder / "save").find_checkpoint().path
            for folder in (output, whole)
        ],
        [folder / "model" for folder in (output, whole)],
    ):
        names = {path.name for path in theirs.iterdir()}
        assert {path.name for path in ours.iterdir()} == names
        for name in names & WEIGHTS:
            found, expected = (
                tensors(torch.load(folder / name)) for folder in (ours, theirs)
            )
            assert found.keys() == expected.keys()
            for key, value in expected.items():
                torch.testing.assert_close(
                    found[key], value, rtol=1e-6, atol=1e-9, msg=name + key
                )
    assert figures(output) == pytest.approx(figures(whole), rel=1e-3)


def figures(output):
    log = (output / "train_log.txt").read_text()
    found = re.findall(r"(?:loss|accuracy|EER): ([^ ,\n]*)", log)
    assert len(found) == 3 * SETTINGS["number_of_epochs"]
    return [float(figure) for figure in found]


@pytest.mark.parametrize(
    "processes", [pytest.param(1, marks=pytest.mark.slow), 2, 3]
)
def test_a_training_in_shares_is_the_same(
    processes, settings, whole, corpus, tmp_path
):
    codes = trained(processes, corpus, tmp_path, shard_classes=True, **settings)
    assert codes == [0] * processes
    assert_same(tmp_path, whole)


def in_parts(last, watch):
    """Ends a run at the beginning of a step, in every process."""
    brain = watch.brain
    begin = brain.on_fit_batch_start

    def begin_or_end(batch, should_step):
        if brain.optimizer_step == last:
            os._exit(0)
        begin(batch, should_step)

    brain.on_fit_batch_start = begin_or_end


@pytest.mark.slow
def test_resumed_by_other_numbers_of_processes_with_and_without_shares(
    settings, whole, corpus, tmp_path
):
    """From within epochs and from their ends."""
    for processes, shard_classes, last in (
        (2, True, 3),
        (1, False, 4),
        (3, True, 5),
        (2, False, 6),
        (2, True, 7),
        (3, True, 9),  # to the end
    ):
        codes = trained(
            processes,
            corpus,
            tmp_path,
            before=partial(in_parts, last),
            shard_classes=shard_classes,
            **settings,
        )
        assert codes == [0] * processes
    assert_same(tmp_path, whole)


@pytest.mark.slow
def test_fine_tuning_takes_over_class_weights(
    settings, whole, corpus, tmp_path
):
    codes = trained(
        2,
        corpus,
        tmp_path,
        shard_classes=True,
        pretrained_folder=whole / "model",
        **settings | {"initial_lr": 1e-12, "final_lr": 1e-12},
    )
    assert codes == [0, 0]
    found, expected = (
        torch.load(folder / "model" / "classifier.ckpt")["weight"]
        for folder in (tmp_path, whole)
    )
    torch.testing.assert_close(found.float(), expected.float())


def spoil(fault, watch):
    """In the second process only, by the end of the first epoch."""
    brain = watch.brain
    weight = recipe.unwrap(brain.modules.classifier).weight
    begin = brain.on_fit_batch_start

    def begin_or_end(batch, should_step):
        if brain.optimizer_step == 1 and fault == "dies":
            os._exit(9)
        if brain.optimizer_step == 1 and fault == "before a step":
            weight.data[0, 0] = float("nan")
        begin(batch, should_step)

    def step(*_):
        if brain.optimizer_step == 1 and fault == "after a step":
            weight.data[0, 0] = float("nan")

    if os.environ["RANK"] == "1":
        brain.on_fit_batch_start = begin_or_end
        brain.optimizer.register_step_post_hook(step)


@pytest.mark.parametrize(
    "fault, codes, message",
    [
        ("dies", [1, 9], None),
        ("before a step", [1, 1], "step 2: the loss is not finite"),
        ("after a step", [1, 1], "step 2: classifier: weight is not finite"),
    ],
)
def test_a_fault_of_one_process_ends_all(
    fault, codes, message, corpus, tmp_path
):
    before = partial(spoil, fault)
    assert codes == trained(
        2, corpus, tmp_path, before, shard_classes=True, **SETTINGS
    )
    errors = [path.read_text() for path in tmp_path.glob("error*.txt")]
    assert len(errors) == (2 if message else 0)
    assert all(error.startswith(f"epoch 1, {message}") for error in errors)
    (checkpoint,) = (tmp_path / "save").glob("CKPT*")
    weights = torch.load(checkpoint / "classifier.ckpt")["weight"]
    assert weights.isfinite().all()
    assert not (tmp_path / "model").exists()


def overflow(watch):
    """Of the second process's classes, in the first step."""
    brain = watch.brain
    weight = recipe.unwrap(brain.modules.classifier).weight
    if os.environ["RANK"] == "1":
        weight.register_hook(
            lambda gradient: gradient / (brain.optimizer_step != 0)
        )
    end = brain.on_stage_end

    def write_scale(*arguments):
        end(*arguments)
        path = brain.checkpointer.checkpoints_dir / os.environ["RANK"]
        network = recipe.unwrap(brain.modules.embedding_model).state_dict()
        torch.save({**network, **brain.scaler.state_dict()}, path)

    brain.on_stage_end = write_scale


def train_scaled(*arguments):
    """Gradients are scaled on GPUs only, so let it be done here as well."""
    scaler = torch.GradScaler
    torch.GradScaler = lambda device, enabled: scaler(device)
    train(*arguments)


def test_all_processes_skip_a_step(corpus, tmp_path):
    settings = {
        **SETTINGS,
        "number_of_epochs": 1,
        "warmup_epochs": 0,
        "shard_classes": True,
    }
    codes = in_processes(2, train_scaled, corpus, tmp_path, overflow, settings)
    assert codes == [0, 0]
    first, second = (torch.load(tmp_path / "save" / rank) for rank in "01")
    assert first["scale"] == 2.0**15
    assert_equal(first, second)


def assert_equal(values, others):
    assert values.keys() == others.keys()
    for key, value in values.items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(others[key]))


LOSSES = [
    SphereFace2(margin=0.3, scale=8.0),
    AdditiveAngularMarginLoss(margin=0.3, scale=8.0),
]


def one_step(loss, classes, folder):
    """Loss, gradients and right answers, in shares and undivided."""
    with joined() as rank:
        processes = torch.distributed.get_world_size()
        torch.manual_seed(1)
        classifier = Classifier(4, lin_neurons=4, out_neurons=classes).double()
        replicas = torch.nn.ModuleDict(
            {"network": torch.nn.Linear(4, 4), "loss": loss}
        ).double()
        inputs = torch.randn(2 * processes, 1, 4, dtype=torch.double)
        labels = torch.randint(classes, (2 * processes,))
        sharded = ShardedClassifier(classifier, rank, processes)

        def gradients():
            return {
                name: weight.grad.clone()
                for name, weight in replicas.named_parameters()
            }

        cosines = classifier(replicas["network"](inputs))
        value = loss(cosines, labels)
        value.backward()
        expected = {
            "value": value.detach(),
            "correct": (cosines.squeeze(1).argmax(1) == labels).sum(),
            "classes": classifier.weight.grad,
            **gradients(),
        }
        replicas.zero_grad()

        wrapped = {
            name: DistributedDataParallel(module)
            if list(module.parameters())
            else module
            for name, module in replicas.items()
        }
        own = slice(2 * rank, 2 * rank + 2)
        cosines = sharded(wrapped["network"](inputs[own]))
        own_labels = sharded.own_labels(labels[own])
        value = wrapped["loss"](cosines, own_labels, sharded.shares)
        value.backward()
        correct = sharded.correct(cosines, own_labels)
        sums = torch.stack([value.detach(), correct])
        torch.distributed.all_reduce(sums)
        found = {
            "value": sums[0] / processes,
            "correct": sums[1].long(),
            "classes": sharded.whole(sharded.weight.grad),
            **gradients(),
        }
        if rank == 0:
            torch.save([found, expected], folder / "step.pt")


@pytest.mark.parametrize("processes, classes", [(1, 3), (2, 5), (3, 3), (3, 7)])
@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
def test_one_step(loss, processes, classes, tmp_path):
    codes = in_processes(processes, one_step, loss, classes, tmp_path)
    assert codes == [0] * processes
    found, expected = torch.load(tmp_path / "step.pt")
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=1e-10, atol=1e-12, msg=name
        )


def count_bytes(folder):
    """Of what a process holds, in shares and undivided, in float32."""
    with joined() as rank:
        whole = Classifier(192, out_neurons=301)
        embeddings = torch.randn(6, 1, 192)
        held = {}
        for name, classifier, batch in (
            ("undivided", whole, embeddings[:3]),
            ("first step", ShardedClassifier(whole, rank, 2), embeddings[:3]),
            ("resumed", ShardedClassifier(whole, rank, 2), embeddings[:3]),
        ):
            optimizer = torch.optim.SGD(classifier.parameters(), 0.1, 0.9)
            if name == "resumed":
                classifier.load(folder / "classifier.ckpt")
                classifier.load_optimizer(optimizer, folder / "optimizer.ckpt")
            cosines = classifier(batch)
            if name != "resumed":
                cosines.sum().backward()
                optimizer.step()
            state = optimizer.state[classifier.weight]
            held[name] = [
                tensor.untyped_storage().nbytes()
                for tensor in (
                    classifier.weight,
                    state["momentum_buffer"],
                    cosines,
                )
            ]
            if name == "first step":
                classifier.save(folder / "classifier.ckpt")
                classifier.save_optimizer(optimizer, folder / "optimizer.ckpt")
                torch.distributed.barrier()
        torch.save(held, folder / f"{rank}.pt")


def test_a_process_holds_its_share_only(tmp_path):
    assert in_processes(2, count_bytes, tmp_path) == [0, 0]
    for rank, classes in enumerate((151, 150)):
        held = torch.load(tmp_path / f"{rank}.pt")
        undivided = [4 * 301 * 192, 4 * 301 * 192, 4 * 3 * 301]
        share = [4 * classes * 192, 4 * classes * 192, 4 * 6 * classes]
        assert held == {
            "undivided": undivided,
            "first step": share,
            "resumed": share,
        }


def test_what_cannot_be_divided(tmp_path):
    with pytest.raises(
        ValueError, match="^shard_classes: 2 classes .* among 3"
    ):
        ShardedClassifier(Classifier(4, out_neurons=2), 0, processes=3)
    with pytest.raises(ValueError, match="^shard_classes: .* lin_blocks"):
        ShardedClassifier(Classifier(4, lin_blocks=1), 0, processes=2)
    classifier = ShardedClassifier(Classifier(4, out_neurons=3), 0, 2)
    with pytest.raises(ValueError, match="^skip_nonfinite_grads: "):
        GlobalBatchBrain(
            batches=GlobalBatches(np.zeros(4, dtype=int), 4, 2, seed=1),
            modules={"classifier": classifier},
            hparams={},
            run_opts=RunOptions.from_dictionary(
                {"device": "cpu", "skip_nonfinite_grads": True}
            ),
            checkpointer=CompleteCheckpointer(tmp_path),
        )
