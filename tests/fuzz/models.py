"""Weights, model folders, checkpoints of trainings, published ones, ONNX."""

import functools
import io
import json
import shutil
import tempfile
from pathlib import Path

import onnx
import torch
from hypothesis import strategies as st
from onnx import TensorProto, helper
from safetensors.torch import save
from speechbrain.dataio.encoder import CategoricalEncoder
from torch import nn

from fuzz.inputs import json_of, mutated, repacked, shallow, text
from fuzz.oracle import Target
from redimnet2_lobes.models.folding import fold
from redimnet2_lobes.models.front_end import LogMel
from redimnet2_lobes.models.redimnet2 import ReDimNet2
from redimnet2_lobes.onnx.encoder import OnnxEncoder
from redimnet2_lobes.pretrained.convert import convert
from redimnet2_lobes.pretrained.loading import (
    check_tensors,
    load_model,
    read_tensors,
)
from redimnet2_lobes.pretrained.model_folder import write_model_folder
from redimnet2_lobes.pretrained.published_layout import published_checkpoint
from redimnet2_lobes.training.averaging import average_weights, last_epochs
from redimnet2_lobes.training.batches import EpochProgress
from redimnet2_lobes.training.checkpointer import CompleteCheckpointer
from redimnet2_lobes.training.fine_tuning import load_pretrained

STAGE = {"frequency_stride": 2, "time_stride": 2, "blocks": 1}


def network(seed=0):
    torch.manual_seed(seed)
    stages = [{**STAGE, "expansion": 1, "reduction": 4}]
    return ReDimNet2(LogMel(8), 4, stages, embedding_size=4).eval()


def saved(content, **options):
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def same(ours, theirs):
    return ours.keys() == theirs.keys() and all(
        torch.equal(ours[name], theirs[name]) for name in ours
    )


LAYER = {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.ones(2)}


def read_weights(path, checksums=True):
    tensors = read_tensors(path)
    assert not checksums or same(tensors, LAYER)
    layer = nn.Linear(3, 2)
    check_tensors(tensors, layer, path, path.name)
    layer.load_state_dict(tensors)


def weights():
    return mutated([saved(LAYER)])


def weights_without_checksums():
    older = saved(LAYER, _use_new_zipfile_serialization=False)
    return mutated([save(LAYER), older]) | repacked([saved(LAYER)])


# A model folder, of which one file is damaged.

WAVEFORM = torch.sin(torch.arange(1600.0)).unsqueeze(0)


@functools.cache
def model_files():
    with tempfile.TemporaryDirectory() as folder:
        write_model_folder(
            folder,
            network(),
            "A test",
            class_weights=torch.ones(2, 4),
            speakers=["anna", "bert"],
        )
        return {p.name: p.read_bytes() for p in Path(folder).iterdir()}


def write_model(folder, without=""):
    (folder / "model").mkdir()
    for name, content in model_files().items():
        if name != without:
            (folder / "model" / name).write_bytes(content)


@functools.cache
def embedding():
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder))
        return load_model(Path(folder, "model")).encode_batch(WAVEFORM)


def read_model(path, checksums=True):
    encoder = load_model(path.parent)
    if path.suffix == ".yaml":
        network = encoder.mods.embedding_model
        if isinstance(network, ReDimNet2):  # which folds itself
            fold(network)
        return
    found = encoder.encode_batch(WAVEFORM)
    assert found.shape == embedding().shape
    if checksums:
        assert torch.equal(found, embedding())
    labels = encoder.classify_batch(WAVEFORM)[3]
    assert labels[0] in encoder.hparams.label_encoder.lab2ind


def hyperparams():
    """No digits are added, so that no network becomes a thousand times larger.

    No tags are added either: they build any class and call any function.
    """
    pieces = (
        b"\n",
        b" ",
        b":",
        b"null",
        b"-",
        b"[",
        b"}",
        b"\t",
        b"'",
        b"\xff",
    )
    return shallow(mutated([model_files()["hyperparams.yaml"]], pieces, 3))


def model_target(file, inputs=None, without="", **options):
    return Target(
        f"model-{file}",
        f"model/{file}",
        inputs or (lambda: mutated([model_files()[file]])),
        functools.partial(read_model, **options),
        functools.partial(write_model, without=without),
    )


def fine_tune(path):
    speakers = CategoricalEncoder()
    speakers.update_from_iterable(["bert", "carl"], False)
    classifier = nn.Module()
    classifier.weight = nn.Parameter(torch.zeros(2, 4))
    known, unknown = load_pretrained(
        path.parent, network(), classifier, speakers, nn.Module()
    )
    assert known + unknown == 2
    assert classifier.weight.isfinite().all()


# Checkpoints of two epochs, of which the newer one has a damaged file.


class Training:
    """A layer, its optimizer and the progress, as they are after an epoch."""

    def __init__(self, folder, epoch=0):
        self.layer = nn.Linear(2, 2)
        nn.init.constant_(self.layer.weight, epoch)
        nn.init.constant_(self.layer.bias, 2 * epoch)
        self.optimizer = torch.optim.SGD(
            self.layer.parameters(), lr=1 + epoch, momentum=0.9
        )
        self.progress = EpochProgress()
        self.progress.utterances = epoch
        self.checkpointer = CompleteCheckpointer(
            folder,
            {
                "layer": self.layer,
                "optimizer": self.optimizer,
                "progress": self.progress,
            },
        )
        self.checkpointer.settings = {"seed": 1}

    def epochs(self):
        """What each part says of the epoch that it is of."""
        return {
            *self.layer.weight.flatten().tolist(),
            *(self.layer.bias / 2).tolist(),
            self.optimizer.param_groups[0]["lr"] - 1,
            self.progress.utterances,
        }


@functools.cache
def checkpoint_files():
    with tempfile.TemporaryDirectory() as folder:
        for epoch in (1, 2):
            Training(folder, epoch).checkpointer.save_checkpoint(
                {"epoch": epoch}, end_of_epoch=False, name=str(epoch)
            )
        return {
            str(path.relative_to(folder)): path.read_bytes()
            for path in Path(folder).glob("*/*")
        }


def write_checkpoints(folder):
    for name, content in checkpoint_files().items():
        path = folder / "save" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def resume(path):
    training = Training(path.parent.parent)
    training.checkpointer.keep_settings({"seed": 1})
    content = path.read_bytes()
    damaged = content != checkpoint_files()[f"{path.parent.name}/{path.name}"]
    training.checkpointer.recover_if_possible()
    # checks.json may be written in another way and be right.
    epochs = {1, 2} if path.name == "checks.json" else {1 if damaged else 2}
    assert len(training.epochs()) == 1 and training.epochs() <= epochs


def average(path):
    checkpoints = last_epochs(path.parent.parent, 2)
    layer = nn.Linear(2, 2)
    average_weights(checkpoints, "layer", layer)
    assert (layer.weight == 1.5).all() and (layer.bias == 3).all()


def checkpoint_target(file, inputs=None):
    name = f"CKPT+2/{file}"
    return Target(
        f"checkpoint-{file}",
        f"save/{name}",
        inputs or (lambda: mutated([checkpoint_files()[name]])),
        resume,
        write_checkpoints,
        r"save/DAMAGED\+.*",
    )


def averaging_target(file):
    name = f"CKPT+2/{file}"
    return Target(
        f"average-{file}",
        f"save/{name}",
        lambda: mutated([checkpoint_files()[name]]),
        average,
        write_epoch_ends,
    )


def write_epoch_ends(folder):
    write_checkpoints(folder)
    for path in folder.glob("save/*/CKPT.yaml"):
        content = path.read_text()
        content = content.replace("end-of-epoch: false", "end-of-epoch: true")
        path.write_text(content)


def checks():
    content = checkpoint_files()["CKPT+2/checks.json"]
    return json_of(json.loads(content))


# A published checkpoint without the constants of its front-end.


@functools.cache
def published():
    content = published_checkpoint(network())
    weights = content["state_dict"]
    for name in [name for name in weights if name.startswith("spec.")]:
        del weights[name]
    return saved(content)


def read_published(path, forged=False):
    output = path.parent / "model"
    try:
        convert(path, output)
        converted = load_model(output).mods.embedding_model
        found, expected = converted.state_dict(), network().state_dict()
        assert forged or same(found, expected)
    finally:
        shutil.rmtree(output, ignore_errors=True)


# A file of ONNX with the inputs and outputs of an export.


@functools.cache
def onnx_file():
    mean = helper.make_node(
        "ReduceMean", ["waveforms", "axes"], ["mean"], keepdims=1
    )
    lengths = helper.make_node("Cast", ["lengths"], ["cast"], to=1)
    column = helper.make_node("Unsqueeze", ["cast", "axes"], ["column"])
    join = helper.make_node(
        "Concat", ["mean", "column"], ["embeddings"], axis=1
    )
    graph = helper.make_graph(
        [mean, lengths, column, join],
        "graph",
        [
            helper.make_tensor_value_info("waveforms", 1, ["batch", "samples"]),
            helper.make_tensor_value_info("lengths", 7, ["batch"]),
        ],
        [helper.make_tensor_value_info("embeddings", 1, ["batch", 2])],
        [helper.make_tensor("axes", TensorProto.INT64, [1], [1])],
    )
    return helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )


METADATA = {
    "model": "ReDimNet2",
    "variant": "b0",
    "sample_rate": "16000",
    "minimum_samples": "400",
    "embedding_size": "2",
    "embedding_space": "b0-1",
    "threshold": "0.25",
    "threshold_origin": "that of the EER on O, 37,611 trials",
}


def onnx_with(properties):
    model = onnx.ModelProto()
    model.CopyFrom(onnx_file())
    helper.set_model_props(model, properties)
    return model.SerializeToString()


@st.composite
def onnx_metadata(draw):
    properties = dict(METADATA)
    texts = st.sampled_from(("0", "-1", "nan", "1e999", "16000.0", "4" * 5000))
    for name in draw(st.lists(st.sampled_from(sorted(METADATA)), max_size=3)):
        value = draw(st.none() | texts | st.text(max_size=8))
        properties.pop(name, None)
        if value is not None:
            properties[name] = value
    return onnx_with(properties)


def read_onnx(path, intact=True):
    encoder = OnnxEncoder(path, threads=1)
    point = encoder.operating_point
    if point.value is not None:
        assert abs(point.value) < float("inf") and isinstance(point.origin, str)
    assert encoder.minimum_samples > 0
    embeddings = encoder.encode_batch(WAVEFORM)
    assert not intact or embeddings.shape == (1, 1, 2)


TARGETS = (
    Target("weights", "weights.ckpt", weights, read_weights),
    Target(
        "weights-unchecked",
        "weights.ckpt",
        weights_without_checksums,
        functools.partial(read_weights, checksums=False),
    ),
    model_target("hyperparams.yaml", hyperparams),
    model_target("embedding_model.safetensors", checksums=False),
    model_target("embedding_model.ckpt", without="embedding_model.safetensors"),
    model_target("classifier.safetensors"),
    model_target(
        "label_encoder.ckpt",
        lambda: text(model_files()["label_encoder.ckpt"].decode()),
    ),
    Target(
        "fine-tuning",
        "model/label_encoder.ckpt",
        lambda: text(model_files()["label_encoder.ckpt"].decode()),
        fine_tune,
        write_model,
    ),
    checkpoint_target("CKPT.yaml"),
    checkpoint_target("checks.json", checks),
    checkpoint_target("layer.ckpt"),
    checkpoint_target("optimizer.ckpt"),
    checkpoint_target("progress.ckpt"),
    averaging_target("CKPT.yaml"),
    averaging_target("layer.ckpt"),
    Target(
        "published", "b3.pt", lambda: mutated([published()]), read_published
    ),
    Target(
        "published-forged",
        "b3.pt",
        lambda: repacked([published()]),
        functools.partial(read_published, forged=True),
    ),
    Target(
        "onnx",
        "b3.onnx",
        lambda: mutated([onnx_with(METADATA)]),
        functools.partial(read_onnx, intact=False),
    ),
    Target("onnx-metadata", "b3.onnx", onnx_metadata, read_onnx),
)
