"""Folders that SpeechBrain's inference classes load.

``write_model_folder`` writes what ``EncoderClassifier.from_hparams`` and
``SpeakerRecognition.from_hparams`` read from a folder: hyperparams.yaml,
embedding_model.ckpt, for a network with speaker classes classifier.ckpt and
label_encoder.ckpt, embedding_space.txt and a README.md. The weights are there
as .safetensors as well. ``redimnet2_lobes.training.fine_tuning`` goes on from
it.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import io
import json
import os
import tempfile
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
import yaml
from speechbrain.dataio.encoder import CategoricalEncoder
from speechbrain.utils.checkpoints import PARAMFILE_EXT
from torch import nn

from redimnet2_lobes.data.audio import check_speaker
from redimnet2_lobes.files.atomic import replace_when_synced
from redimnet2_lobes.files.same_space import FILE
from redimnet2_lobes.models.embedding_space import embedding_space
from redimnet2_lobes.models.redimnet2 import ReDimNet2
from redimnet2_lobes.pretrained.loading import SAFETENSORS_EXTENSION
from redimnet2_lobes.pretrained.provenance import NOT_STATED, Provenance

HYPERPARAMS = """\
# {title}
# Read by speechbrain.inference: EncoderClassifier, SpeakerRecognition.
sample_rate: 16000
variant: {variant}
license: {license}
training_data: {training_data}

embedding_model: !new:redimnet2_lobes.ReDimNet2
    front_end: !new:redimnet2_lobes.{front_end}
{front_end_arguments}
{network_arguments}

# The network holds the front-end: it needs each utterance's exact length.
compute_features: !new:redimnet2_lobes.PassThrough
mean_var_norm: !new:redimnet2_lobes.PassThrough
mean_var_norm_emb: !new:redimnet2_lobes.PassThrough
audio_normalizer: !new:redimnet2_lobes.CheckedAudioNormalizer

{classifier}
modules:
    compute_features: !ref <compute_features>
    mean_var_norm: !ref <mean_var_norm>
    mean_var_norm_emb: !ref <mean_var_norm_emb>
    embedding_model: !ref <embedding_model>
    classifier: !ref <classifier>

pretrainer: !new:redimnet2_lobes.ModelPretrainer
    loadables:
        embedding_model: !ref <embedding_model>
{loadables}"""

CLASSIFIER = """\
classifier: !new:speechbrain.lobes.models.ECAPA_TDNN.Classifier
    input_size: {embedding_size}
    out_neurons: {speakers}
label_encoder: !new:speechbrain.dataio.encoder.CategoricalEncoder
# Without it SpeechBrain warns that it does not know the count.
expect_len: !apply:speechbrain.dataio.encoder.CategoricalEncoder.expect_len
    - !ref <label_encoder>
    - {speakers}
"""
CLASSIFIER_LOADABLES = """\
        classifier: !ref <classifier>
        label_encoder: !ref <label_encoder>
"""
NO_CLASSIFIER = "classifier: !new:redimnet2_lobes.NoSpeakerClasses\n"


class NoSpeakerClasses(nn.Module):
    """Classifier of a network that was published without speaker classes.

    Example
    -------
    >>> NoSpeakerClasses()(torch.zeros(1, 1, 192))
    Traceback (most recent call last):
    ValueError: this checkpoint has no speaker classes: use encode_batch or \
verify_files, or train a classifier
    """

    def forward(self, embeddings: torch.Tensor) -> NoReturn:
        """Raises a ValueError."""
        raise ValueError(
            "this checkpoint has no speaker classes: use encode_batch or "
            "verify_files, or train a classifier"
        )


def write_model_folder(
    folder: str | os.PathLike,
    network: ReDimNet2,
    title: str,
    variant: str | None = None,
    class_weights: torch.Tensor | None = None,
    speakers: Sequence[str] | None = None,
    loss: nn.Module | None = None,
    provenance: Provenance = NOT_STATED,
) -> None:
    """Writes a network in the form that SpeechBrain loads.

    Each file is atomic; hyperparams.yaml comes last.

    Arguments
    ---------
    folder
        Made if it does not exist.
    network
    title
        One line that says what the folder holds.
    variant
        b0 to b6; None for another architecture.
    class_weights
        Classifier weights [speakers, embedding]; None for no classes.
    speakers
        Names of the speakers, in the order of ``class_weights``; a ValueError
        says that SpeechBrain cannot keep one.
    loss
        The training loss: what it has learned (the bias of ``SphereFace2``)
        goes into compute_cost, for fine-tuning alone. None for no file.
    provenance
        Its licence and training data.

    Example
    -------
    >>> from speechbrain.inference.classifiers import EncoderClassifier
    >>> from redimnet2_lobes.models.front_end import LogMel
    >>> stage = dict(blocks=1, expansion=1, reduction=8)
    >>> stages = [dict(frequency_stride=2, time_stride=2, **stage)]
    >>> folder = getfixture("tmp_path") / "model"
    >>> write_model_folder(folder, ReDimNet2(LogMel(), 4, stages), "A test")
    >>> encoder = EncoderClassifier.from_hparams(source=str(folder))
    >>> encoder.encode_batch(torch.randn(1, 16000)).shape
    torch.Size([1, 1, 192])
    """
    folder, title = Path(folder), " ".join(title.split())
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=f".{folder.name}-", dir=folder.parent
        ) as partial:
            partial = Path(partial)
            _save(network.state_dict(), partial / "embedding_model")
            classifier, loadables = NO_CLASSIFIER, ""
            if class_weights is not None and speakers is not None:
                count, embedding_size = class_weights.shape
                classifier = CLASSIFIER.format(
                    embedding_size=embedding_size, speakers=count
                )
                loadables = CLASSIFIER_LOADABLES
                # The clone, since of a view all the storage is written.
                class_weights = class_weights.detach().cpu().clone()
                _save({"weight": class_weights}, partial / "classifier")
                encoder = CategoricalEncoder()
                # update_from_iterable needs minutes for 100,000 speakers.
                for index, speaker in enumerate(speakers):
                    check_speaker(speaker, folder)
                    encoder.insert_label(speaker, index)
                encoder.save(partial / "label_encoder.ckpt")
            if loss is not None:
                _save(loss.state_dict(), partial / "compute_cost")
            # Not in hyperparams.yaml, which networks of one architecture share.
            space = f"{embedding_space(network)}\n"
            (partial / FILE).write_text(space, encoding="utf-8")
            (partial / "README.md").write_text(
                _readme(title, speakers), encoding="utf-8"
            )
            arguments = network.arguments()
            front_end = arguments.pop("front_end")
            hyperparams = HYPERPARAMS.format(
                title=title,
                variant=variant or "null",
                license=json.dumps(provenance.license),
                training_data=json.dumps(provenance.training_data),
                front_end=type(network.front_end).__name__,
                front_end_arguments=_yaml_block(front_end, 8),
                network_arguments=_yaml_block(arguments, 4),
                classifier=classifier,
                loadables=loadables,
            )
            (partial / "hyperparams.yaml").write_text(
                hyperparams, encoding="utf-8"
            )
            folder.mkdir(exist_ok=True)
            for file in sorted(
                partial.iterdir(),
                key=lambda file: file.name == "hyperparams.yaml",
            ):
                replace_when_synced(file, folder / file.name)
    except OSError as error:
        # Which folder, since of a full disk the error names no file.
        raise OSError(error.errno, error.strerror, str(folder)) from error


def _save(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Writes tensors in both formats, under a name without extension."""
    # SpeechBrain alone does not bring it, and loads NoSpeakerClasses from here.
    from safetensors.torch import save

    # In memory first: of a full disk both libraries make errors of their own.
    content = io.BytesIO()
    torch.save(tensors, content)
    path.with_suffix(PARAMFILE_EXT).write_bytes(content.getbuffer())
    path.with_suffix(SAFETENSORS_EXTENSION).write_bytes(
        # Convolutions are channels_last, which that format does not know.
        save({name: tensor.contiguous() for name, tensor in tensors.items()})
    )


def _yaml_block(arguments: Mapping[str, Any], indent: int) -> str:
    # None: each stage in a line of its own.
    text = yaml.safe_dump(
        arguments, default_flow_style=None, sort_keys=False, width=1000
    )
    return textwrap.indent(text.rstrip(), " " * indent)


def _readme(title: str, speakers: Sequence[str] | None) -> str:
    classes = "It has no speaker classes."
    if speakers is not None:
        classes = f"`classify_file` knows {len(speakers)} speakers."
    return f"""\
# {title}

A ReDimNet2 speaker encoder for SpeechBrain, 16 kHz input. {classes}
Loading needs `speechbrain` and `redimnet2_lobes`.

```python
from redimnet2_lobes import SpeakerRecognition

model = SpeakerRecognition.from_hparams(source="path/to/this/folder")
score, same_speaker = model.verify_files("a.wav", "b.wav")
```

`same_speaker` goes by the threshold of the EER in `results.json`, if the
verification script has kept one here, else by SpeechBrain's default, 0.25.
"""
