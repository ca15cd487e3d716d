"""Converts published ReDimNet2 checkpoints to SpeechBrain model folders.

> redimnet2 convert b3-vox2-lm --output redimnet2_b3

The folder is what ``EncoderClassifier.from_hparams(source="redimnet2_b3")``
and ``SpeakerRecognition.from_hparams(source="redimnet2_b3")`` load, offline.
Other names are shown by ``--list``; a file will do as well. And back:

> redimnet2 convert FOLDER --to published --output FILE.pt

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import io
import os
from pathlib import Path

import torch

from redimnet2_lobes.files.atomic import (
    check_absent,
    check_new_file,
    complete_or_absent,
)
from redimnet2_lobes.models.redimnet2 import ReDimNet2
from redimnet2_lobes.models.variants import variant_of
from redimnet2_lobes.pretrained.loading import load_model, network_of
from redimnet2_lobes.pretrained.model_folder import write_model_folder
from redimnet2_lobes.pretrained.provenance import NOT_STATED
from redimnet2_lobes.pretrained.published_layout import (
    load_published,
    published_checkpoint,
)
from redimnet2_lobes.pretrained.releases import RELEASED, load_released


def convert(checkpoint: str | Path, output: str | Path) -> None:
    """Converts a published checkpoint to a model folder.

    Arguments
    ---------
    checkpoint
        Its name (it is downloaded once) or file. A ValueError says that there
        is none, that it is damaged or that its architecture is not supported.
    output
        Folder to write; it must not exist, or be empty.

    Example
    -------
    >>> convert("no/such/file.pt", getfixture("tmp_path"))
    Traceback (most recent call last):
    ValueError: no/such/file.pt: no such file, and no published checkpoint ...
    """
    output = Path(output)
    if not output.is_dir() or any(output.iterdir()):
        check_absent(output, "--output")
    checkpoint = os.fspath(checkpoint)
    name = os.path.basename(checkpoint)
    if checkpoint in RELEASED or not os.path.exists(checkpoint):
        network = load_released(checkpoint)
        name = RELEASED[checkpoint].file_name
    elif os.path.isdir(checkpoint):
        raise ValueError(
            f"{checkpoint}: is a folder, not a checkpoint file; with --to "
            "published a model folder becomes one"
        )
    else:
        try:
            network = load_published(checkpoint)
        except ValueError as error:
            raise ValueError(f"{checkpoint}: {error}") from error
    _write(network, name, output)


def released_folder(name: str) -> str:
    """The model folder of a checkpoint of ``RELEASED``, made once and kept.

    It is beside torch's own downloads. Errors are those of ``convert``.
    """
    folder = Path(torch.hub.get_dir(), "redimnet2", name)
    if not (folder / "hyperparams.yaml").is_file():  # which is written last
        _write(load_released(name), RELEASED[name].file_name, folder)
    return str(folder)


def _write(network: ReDimNet2, name: str, folder: Path) -> None:
    released = RELEASED.get(name.removesuffix(".pt"))
    write_model_folder(
        folder,
        network,
        title=f"ReDimNet2 converted from {name}",
        variant=variant_of(network),
        provenance=released.provenance if released else NOT_STATED,
    )


def convert_back(source: str | Path, output: str | Path) -> None:
    """Converts a model folder or hub name to a new published file.

    The authors' code loads it. Speaker classes are left behind.

    Example
    -------
    >>> from redimnet2_lobes.models.front_end import LogMel
    >>> stage = dict(blocks=1, expansion=1, reduction=8)
    >>> stages = [dict(frequency_stride=2, time_stride=2, **stage)]
    >>> folder = getfixture("tmp_path")
    >>> write_model_folder(folder / "a", ReDimNet2(LogMel(), 4, stages), "A")
    >>> convert_back(folder / "a", folder / "a.pt")
    >>> sorted(torch.load(folder / "a.pt", weights_only=True))
    ['model_config', 'state_dict']
    """
    check_new_file(output, "--output")
    output = Path(output)
    network = network_of(load_model(source), source)
    # In memory first: of a full disk torch makes an error of its own.
    content = io.BytesIO()
    torch.save(published_checkpoint(network), content)
    output.parent.mkdir(parents=True, exist_ok=True)
    with complete_or_absent(output) as partial:
        partial.write_bytes(content.getbuffer())
