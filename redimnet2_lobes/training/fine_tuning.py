"""Fine-tuning goes on from the model folder of a pretraining.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

from collections.abc import Container, Mapping
from pathlib import Path

import torch
from speechbrain.dataio.encoder import CategoricalEncoder
from speechbrain.lobes.models.ECAPA_TDNN import Classifier
from speechbrain.utils.checkpoints import PARAMFILE_EXT
from speechbrain.utils.logger import get_logger
from torch import nn
from torch.nn.functional import normalize

from redimnet2_lobes.data.training_set import UtteranceList
from redimnet2_lobes.inference.encode import encode_utterances
from redimnet2_lobes.pretrained.loading import (
    SAFETENSORS_EXTENSION,
    load_labels,
    read_tensors,
)

logger = get_logger(__name__)

UTTERANCES_OF_A_CLASS = 20  # at most, evenly spaced


def load_pretrained(
    folder: str | Path,
    network: nn.Module,
    classifier: Classifier,
    speakers: CategoricalEncoder,
    loss: nn.Module,
) -> tuple[int, int]:
    """Takes over what a pretraining has learned.

    The network takes all its weights. Each speaker who was in the pretraining
    takes the class weight of that time, found by name; others keep the weights
    that they have. The loss takes what it has learned itself, such as the bias
    of ``SphereFace2``, where the pretraining had the same loss.

    Returns how many speakers took over a class weight, and how many did not:
    all, with a warning, where the folder has no speaker classes (a converted
    checkpoint). It is a ValueError, and nothing is taken over, if the folder is
    no model folder, one of another architecture, damaged, or of a training that
    diverged.

    Arguments
    ---------
    folder
        A model folder, from ``write_model_folder``.
    network
        The network to fine-tune, of the same architecture.
    classifier
        Its classifier: the first rows of ``weight`` [classes, embedding] are
        the classes of the speakers at their own speed.
    speakers
        The speakers of the fine-tuning, in the order of these rows.

    Example
    -------
    >>> from redimnet2_lobes.models.front_end import LogMel
    >>> from redimnet2_lobes.training.losses import SphereFace2
    >>> from redimnet2_lobes.pretrained.model_folder import write_model_folder
    >>> from redimnet2_lobes.models.redimnet2 import ReDimNet2
    >>> stage = dict(blocks=1, expansion=1, reduction=8)
    >>> stages = [dict(frequency_stride=2, time_stride=2, **stage)]
    >>> network = ReDimNet2(LogMel(), 4, stages)
    >>> folder = getfixture("tmp_path") / "model"
    >>> names = ["anna", "bert"]
    >>> classes = dict(class_weights=torch.ones(2, 192), speakers=names)
    >>> write_model_folder(folder, network, "A test", **classes)
    >>> speakers = CategoricalEncoder()
    >>> speakers.update_from_iterable(["bert", "carl", "dora"], False)
    >>> classifier = Classifier(192, out_neurons=3)
    >>> load_pretrained(folder, network, classifier, speakers, SphereFace2())
    (1, 2)
    >>> (classifier.weight == 1).all(dim=1).tolist()
    [True, False, False]
    """
    folder = Path(folder)
    weights = _weights(folder, "embedding_model")
    if weights is None:
        raise ValueError(
            f"{folder}: no model folder, for it has no embedding_model.ckpt; "
            "pass the folder model/ that a training has written"
        )
    _check_architecture(weights, network, folder)
    if not all(tensor.isfinite().all() for tensor in weights.values()):
        raise ValueError(
            f"{folder}: not all of its weights are finite, since its training "
            "diverged; take another model folder"
        )
    learned_by_loss = _weights(folder, "compute_cost") or {}
    class_weights = _class_weights(folder)

    network.load_state_dict(weights)
    loss.load_state_dict(learned_by_loss, strict=False)
    known = class_weights.keys() & speakers.lab2ind.keys()
    with torch.no_grad():
        for name in known:
            classifier.weight[speakers.lab2ind[name]] = class_weights[name]
    unmatched = len(speakers) - len(known)
    logger.info(
        f"Fine-tuning: {len(known)} speakers have the class weights of the "
        f"pretraining, {unmatched} are new"
    )
    return len(known), unmatched


def start_new_classes(
    folder: str | Path,
    network: nn.Module,
    classifier: Classifier,
    speakers: CategoricalEncoder,
    utterances: UtteranceList,
) -> int:
    """Starts the classes of new speakers from what the network makes of them.

    The class weight of each speaker whom the pretraining in ``folder`` did not
    have gets the direction of the mean of the embeddings of length 1 of some of
    their utterances, and the size of other classes: of few speakers, random
    classes would pull the network away from what it knows before they are
    found. The other arguments are those of `load_pretrained`, which comes
    before.

    Returns how many classes were started so. A speaker of whom no utterance can
    be read keeps the weight of before.
    """
    sources: dict[str, list[str]] = {}
    known = _class_names(Path(folder))
    for _, source, speaker in utterances:
        if speaker not in known:
            sources.setdefault(speaker, []).append(source)
    chosen = {
        speaker: own[:: -(-len(own) // UTTERANCES_OF_A_CLASS)]
        for speaker, own in sources.items()
    }
    network.eval()
    embeddings = encode_utterances(
        network,
        [source for own in chosen.values() for source in own],
        seconds_per_batch=64.0,
        maximum_seconds=8.0,
        faults={},
    )
    network.train()
    started = 0
    old = [row for name, row in speakers.lab2ind.items() if name in known]
    with torch.no_grad():
        size = classifier.weight[old or slice(None)].norm(dim=1).mean()
        for speaker, own in chosen.items():
            units = [
                normalize(embeddings[source], dim=0)
                for source in own
                if source in embeddings
            ]
            if units:
                mean = normalize(torch.stack(units).mean(dim=0), dim=0)
                classifier.weight[speakers.lab2ind[speaker]] = size * mean
                started += 1
    logger.info(f"Fine-tuning: {started} new classes start from embeddings")
    return started


def _class_names(folder: Path) -> Container[str]:
    """The speakers whom a model folder has classes of."""
    path = folder / "label_encoder.ckpt"
    return read_speakers(path).lab2ind if path.is_file() else ()


def _weights(folder: Path, name: str) -> dict[str, torch.Tensor] | None:
    """The tensors of a module in a model folder, or None."""
    for extension in (SAFETENSORS_EXTENSION, PARAMFILE_EXT):
        path = folder / f"{name}{extension}"
        if path.is_file():
            return read_tensors(path)
    return None


def read_speakers(path: str | Path) -> CategoricalEncoder:
    """The names of the classes; ValueError if the file is damaged."""
    speakers = CategoricalEncoder()
    load_labels(speakers, path)
    return speakers


def _check_architecture(
    weights: Mapping[str, torch.Tensor], network: nn.Module, folder: Path
) -> None:
    expected = network.state_dict()
    for name in [*expected, *weights]:
        there, here = (
            list(tensors[name].shape) if name in tensors else "missing"
            for tensors in (weights, expected)
        )
        if there != here:
            raise ValueError(
                f"{folder}: a network of another architecture, {name} is "
                f"{there} there and {here} here; take the configuration of "
                "the same variant"
            )


def _class_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Each speaker's class weight [embedding] by name."""
    class_weights = _weights(folder, "classifier")
    if class_weights is None:
        if (folder / "label_encoder.ckpt").is_file():
            raise ValueError(
                f"{folder}: label_encoder.ckpt names speakers, but there is no "
                "classifier file with their classes; copy the folder again"
            )
        logger.warning(
            f"{folder} has no speaker classes: all of them start anew"
        )
        return {}
    weight = class_weights["weight"]
    speakers = read_speakers(folder / "label_encoder.ckpt")
    if len(speakers) != len(weight):
        raise ValueError(
            f"{folder}: label_encoder.ckpt names {len(speakers)} speakers for "
            f"{len(weight)} classes; the two files are of different trainings"
        )
    return {name: weight[row] for name, row in speakers.lab2ind.items()}
