"""The average of the weights of a training's last epochs.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

from pathlib import Path

import torch
from speechbrain.utils.checkpoints import (
    PARAMFILE_EXT,
    Checkpoint,
    average_checkpoints,
)
from torch import nn
from tqdm import tqdm

from redimnet2_lobes.files.error_lines import one_line
from redimnet2_lobes.pretrained.loading import check_tensors, read_tensors
from redimnet2_lobes.training.checkpointer import CompleteCheckpointer


def last_epochs(folder: Path, count: int) -> list[Checkpoint]:
    """Finds the checkpoints of the last epochs, the last epoch first.

    Checkpoints from within an epoch, and the best one where it is older, are
    not among them. It is a ValueError if there are fewer than ``count``.

    Example
    -------
    >>> checkpointer = CompleteCheckpointer(getfixture("tmp_path"))
    >>> for epoch in (1, 3, 4):
    ...     saved = checkpointer.save_checkpoint(meta={"epoch": epoch})
    >>> saved = checkpointer.save_checkpoint(end_of_epoch=False)
    >>> found = last_epochs(checkpointer.checkpoints_dir, 2)
    >>> [checkpoint.meta["epoch"] for checkpoint in found]
    [4, 3]
    """
    try:
        found = CompleteCheckpointer(folder).find_checkpoints(
            max_key="epoch", max_num_checkpoints=count
        )
    except OSError:
        raise
    except Exception as error:
        raise ValueError(
            f"{folder}: CKPT.yaml of a checkpoint is damaged; move that "
            f"checkpoint elsewhere ({one_line(error)})"
        ) from error
    successive = [
        checkpoint
        for age, checkpoint in enumerate(found)
        if checkpoint.meta["epoch"] == found[0].meta["epoch"] - age
    ]
    if len(successive) < count:
        raise ValueError(
            f"{folder}: checkpoints of the last {len(successive)} epochs are "
            f"there, but {count} were asked for; pass a smaller --last, or "
            "train with a larger --checkpoints_kept"
        )
    return successive


def average_weights(
    checkpoints: list[Checkpoint], name: str, module: nn.Module
) -> None:
    """Gives a module the mean of its weights in checkpoints.

    Its counters become those of the first checkpoint, which is the newest. It
    is a ValueError if a checkpoint has no module of the name, is damaged, or is
    of another architecture or number of speakers.
    """
    for checkpoint in checkpoints:
        if name not in checkpoint.paramfiles:
            raise ValueError(
                f"{checkpoint.path}: has no {name}{PARAMFILE_EXT}; pass the "
                "output_folder of a training whose checkpointer has it among "
                "its recoverables"
            )

    def read(path: str, map_location: None) -> dict[str, torch.Tensor]:
        tensors = read_tensors(path)
        check_tensors(tensors, module, path, "hyperparams.yaml of the training")
        return tensors

    with tqdm(checkpoints, desc=name) as bar:
        means = average_checkpoints(bar, name, parameter_loader=read)
    newest = read_tensors(checkpoints[0].paramfiles[name])
    module.load_state_dict(
        {
            key: means[key] if tensor.is_floating_point() else tensor
            for key, tensor in newest.items()
        }
    )
