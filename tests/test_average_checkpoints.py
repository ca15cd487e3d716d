"""The average of the last checkpoints of a training."""

import re
import shutil
from pathlib import Path

import average_checkpoints
import pytest
import torch
from hyperpyyaml import resolve_references
from speechbrain.core import INTRA_EPOCH_CKPT_FLAG
from speechbrain.dataio.encoder import CategoricalEncoder
from speechbrain.inference.classifiers import EncoderClassifier
from speechbrain.lobes.models.ECAPA_TDNN import Classifier
from speechbrain.nnet.losses import AdditiveAngularMargin, LogSoftmaxWrapper

from redimnet2_lobes.files.error_lines import one_line
from redimnet2_lobes.models.front_end import LogMel
from redimnet2_lobes.models.redimnet2 import ReDimNet2
from redimnet2_lobes.pretrained.loading import load_model, read_tensors
from redimnet2_lobes.training.averaging import last_epochs
from redimnet2_lobes.training.checkpointer import CompleteCheckpointer
from redimnet2_lobes.training.losses import SphereFace2

RECIPE = Path(average_checkpoints.__file__).parent
STAGES = [
    {
        "frequency_stride": 2,
        "time_stride": 2,
        "blocks": 1,
        "expansion": 1,
        "reduction": 8,
    }
]
SPEAKERS = ["anna", "bert"]
# The best one has been kept, and 5 to 8.
EPOCHS = [2, 5, 6, 7, 8]


class Training:
    """What a training leaves in its output folder."""

    def __init__(
        self,
        folder,
        hparams="redimnet2_b0.yaml",
        speeds=3,
        loss=None,
        left_out=(),
        edit=lambda text: text,
    ):
        self.folder = folder
        self.states = {}
        modules = {
            "embedding_model": ReDimNet2(
                LogMel(), 4, STAGES, aggregation_norm=True
            ),
            "classifier": Classifier(192, out_neurons=speeds * len(SPEAKERS)),
            "compute_cost": SphereFace2() if loss is None else loss,
        }
        modules = {
            name: module
            for name, module in modules.items()
            if name not in left_out
        }
        checkpointer = CompleteCheckpointer(folder / "save", modules)
        for epoch in EPOCHS:
            self._move(modules, epoch)
            self.states[epoch] = {
                name: {
                    key: tensor.clone()
                    for key, tensor in module.state_dict().items()
                }
                for name, module in modules.items()
            }
            checkpointer.save_checkpoint(meta={"epoch": epoch, "EER": 5.0})
        self._move(modules, 1000)
        checkpointer.save_checkpoint(
            meta={INTRA_EPOCH_CKPT_FLAG: True}, end_of_epoch=False
        )
        speakers = CategoricalEncoder()
        speakers.update_from_iterable(SPEAKERS, sequence_input=False)
        speakers.save(folder / "save" / "label_encoder.txt")
        overrides = {
            "variant": "b0",
            "base_channels": 4,
            "out_channels": None,
            "stages": STAGES,
            "title": "A training",
        }
        hparams = edit((RECIPE / "hparams" / hparams).read_text())
        hparams = hparams.replace("!PLACEHOLDER", "given")
        resolved = resolve_references(hparams, overrides)
        (folder / "hyperparams.yaml").write_text(resolved.getvalue())

    @staticmethod
    def _move(modules, epoch):
        generator = torch.Generator().manual_seed(epoch)
        for module in modules.values():
            for tensor in module.state_dict().values():
                if tensor.is_floating_point():
                    tensor.uniform_(0.1, 1, generator=generator)
                else:
                    tensor.fill_(100 * epoch)

    def mean(self, name, epochs):
        states = [self.states[epoch][name] for epoch in epochs]
        return {
            key: torch.stack([state[key].double() for state in states]).mean(0)
            if tensor.is_floating_point()
            else tensor
            for key, tensor in states[-1].items()
        }


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    return Training(tmp_path_factory.mktemp("training"))


def run(training, output, last):
    average_checkpoints.main(
        [str(training.folder), str(output), f"--last={last}"]
    )


def assert_means(ours, means):
    assert ours.keys() == means.keys()
    for key, mean in means.items():
        ours_now = ours[key].double()
        torch.testing.assert_close(ours_now, mean.double(), msg=key)


@pytest.mark.parametrize("last", [1, 4])
def test_average_of_the_last_epochs(training, tmp_path, last):
    output = tmp_path / "average"
    run(training, output, last)
    epochs = EPOCHS[-last:]

    encoder = EncoderClassifier.from_hparams(source=str(output))
    network = encoder.mods.embedding_model.state_dict()
    assert_means(network, training.mean("embedding_model", epochs))
    counters = [key for key in network if key.endswith("num_batches_tracked")]
    assert {network[key].item() for key in counters} == {800}
    weight = training.mean("classifier", epochs)["weight"]
    assert_means(encoder.mods.classifier.state_dict(), {"weight": weight[:2]})
    assert encoder.hparams.label_encoder.decode_ndim([0, 1]) == SPEAKERS
    loss = torch.load(output / "compute_cost.ckpt", weights_only=True)
    assert_means(loss, training.mean("compute_cost", epochs))

    assert encoder.hparams.variant == "b0"
    embedding = encoder.encode_batch(torch.randn(1, 16000))
    assert embedding.isfinite().all()
    title = (output / "README.md").read_text().splitlines()[0]
    assert title.endswith(f"A training, average of epochs {9 - last} to 8")


@pytest.mark.parametrize(
    ("last", "message"),
    [
        (5, r"last 4 epochs are there, but 5 .*--last.*--checkpoints_kept"),
        (0, "last: 0 is less than 1"),
    ],
)
def test_number_of_epochs_out_of_range(training, tmp_path, last, message):
    output = tmp_path / "average"
    with pytest.raises(ValueError, match=rf"{message}\Z"):
        run(training, output, last)
    assert not output.exists()


def test_ten_epochs_unless_told_otherwise(training, tmp_path):
    output = tmp_path / "average"
    with pytest.raises(ValueError, match="last 4 epochs .* but 10 were asked"):
        average_checkpoints.main([str(training.folder), str(output)])


def test_folder_of_no_training(tmp_path):
    with pytest.raises(ValueError, match=r"elsewhere: no output_folder.*\Z"):
        average_checkpoints.main([str(tmp_path / "elsewhere"), str(tmp_path)])
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(training, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="exists already"):
        run(training, tmp_path, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


WRAPPED = """\
compute_cost: !new:speechbrain.nnet.losses.LogSoftmaxWrapper
    loss_fn: !new:speechbrain.nnet.losses.AdditiveAngularMargin
"""


def with_speechbrains_loss(text):
    return re.sub(r"^compute_cost: (.*\n)( .*\n)+", WRAPPED, text, flags=re.M)


@pytest.mark.parametrize(
    "given",
    [
        {
            "hparams": "demo_redimnet2_b0.yaml",
            "speeds": 5,
            "left_out": ["compute_cost"],
        },
        {"edit": with_speechbrains_loss, "left_out": ["compute_cost"]},
        {
            "edit": with_speechbrains_loss,
            "loss": LogSoftmaxWrapper(AdditiveAngularMargin()),
        },
    ],
)
def test_losses_without_state(tmp_path, given):
    """Like the demo's, whether the checkpoints have an empty file of it."""
    training = Training(tmp_path / "training", **given)
    run(training, tmp_path / "average", 3)
    encoder = EncoderClassifier.from_hparams(source=str(tmp_path / "average"))
    network = encoder.mods.embedding_model.state_dict()
    assert_means(network, training.mean("embedding_model", EPOCHS[-3:]))
    # The same files as at the end of the training, which fine-tuning takes.
    assert read_tensors(tmp_path / "average" / "compute_cost.ckpt") == {}


def test_a_loss_that_was_not_kept(tmp_path, capsys):
    training = Training(tmp_path / "training", left_out=["compute_cost"])
    run(training, tmp_path / "average", 3)
    assert "compute_cost: not in the checkpoints" in capsys.readouterr().out
    assert not list((tmp_path / "average").glob("compute_cost*"))
    assert load_model(tmp_path / "average").mods.classifier.weight.shape[0] == 2


@pytest.mark.parametrize("name", ["classifier", "embedding_model"])
def test_modules_that_were_not_kept(tmp_path, name):
    training = Training(tmp_path / "training", left_out=[name])
    refuse(training, tmp_path, rf"CKPT.*: has no {name}\.ckpt; pass the")


def cut(path):
    path.write_bytes(path.read_bytes()[:-1000])


def replaced(tensors):
    return lambda path: torch.save(tensors, path)


FAULTS = {
    "cut": ("embedding_model.ckpt", cut, "embedding_model.ckpt is not a file"),
    "empty": ("classifier.ckpt", lambda p: p.write_bytes(b""), "classifier.ck"),
    "text": ("compute_cost.ckpt", lambda p: p.write_text("text"), "compute_c"),
    "other network": (
        "embedding_model.ckpt",
        replaced(Classifier(192, out_neurons=2).state_dict()),
        "embedding_model.ckpt does not fit hyperparams.yaml of the training: ",
    ),
    "other speakers": (
        "classifier.ckpt",
        replaced(Classifier(192, out_neurons=9).state_dict()),
        "classifier.ckpt does not fit .*: weight has the shape .9, 192.",
    ),
    "other loss": (
        "compute_cost.ckpt",
        replaced({"scale": torch.ones(())}),
        "compute_cost.ckpt does not fit .*: bias is missing",
    ),
    "missing": ("classifier.ckpt", Path.unlink, "has no classifier.ckpt"),
    "meta": ("CKPT.yaml", lambda p: p.write_text("{"), "CKPT.yaml"),
    "empty meta": ("CKPT.yaml", lambda p: p.write_text(""), "CKPT.yaml"),
}


@pytest.mark.parametrize("age", [0, 1])
@pytest.mark.parametrize("fault", FAULTS)
def test_faults_in_one_checkpoint(training, tmp_path, fault, age):
    name, harm, message = FAULTS[fault]
    harmed = Training.__new__(Training)
    harmed.folder = tmp_path / "training"
    shutil.copytree(training.folder, harmed.folder)
    found = last_epochs(harmed.folder / "save", 3)
    harm(found[age].path / name)
    refuse(harmed, tmp_path, message)


@pytest.mark.parametrize(
    ("speakers", "message"),
    [
        (["carl"], "weight has the shape .6, 192., not .3, 192."),
        ("anna", "label_encoder.txt: damaged"),
        (None, "label_encoder.txt"),
    ],
)
def test_faults_of_the_speakers(training, tmp_path, speakers, message):
    harmed = Training.__new__(Training)
    harmed.folder = tmp_path / "training"
    shutil.copytree(training.folder, harmed.folder)
    path = harmed.folder / "save" / "label_encoder.txt"
    path.unlink()
    if speakers == "anna":
        path.write_text(speakers)
    elif speakers is not None:
        encoder = CategoricalEncoder()
        encoder.update_from_iterable(speakers, sequence_input=False)
        encoder.save(path)
    refuse(harmed, tmp_path, message)


def refuse(training, tmp_path, message):
    with pytest.raises((ValueError, OSError), match=message) as error:
        run(training, tmp_path / "average", 3)
    assert "\n" not in one_line(error.value)
    assert not (tmp_path / "average").exists()
