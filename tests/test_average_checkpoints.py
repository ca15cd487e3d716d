"""The average of the last checkpoints of a training."""

from pathlib import Path

import average_checkpoints
import pytest
import torch
from hyperpyyaml import resolve_references
from speechbrain.core import INTRA_EPOCH_CKPT_FLAG
from speechbrain.dataio.encoder import CategoricalEncoder
from speechbrain.inference.classifiers import EncoderClassifier
from speechbrain.lobes.models.ECAPA_TDNN import Classifier

from redimnet2_lobes.checkpoints import CompleteCheckpointer
from redimnet2_lobes.front_end import LogMel
from redimnet2_lobes.losses import SphereFace2
from redimnet2_lobes.redimnet2 import ReDimNet2

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

    def __init__(self, folder):
        self.folder = folder
        self.states = {}
        modules = {
            "embedding_model": ReDimNet2(
                LogMel(), 4, STAGES, aggregation_norm=True
            ),
            "classifier": Classifier(192, out_neurons=3 * len(SPEAKERS)),
            "compute_cost": SphereFace2(),
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
            "variant": None,
            "base_channels": 4,
            "out_channels": None,
            "stages": STAGES,
            "title": "A training",
        }
        hparams = (RECIPE / "hparams" / "redimnet2_b0.yaml").read_text()
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


def test_folder_of_no_training(tmp_path):
    with pytest.raises(ValueError, match=r"elsewhere: no output_folder.*\Z"):
        average_checkpoints.main([str(tmp_path / "elsewhere"), str(tmp_path)])
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(training, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="exists already"):
        run(training, tmp_path, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
