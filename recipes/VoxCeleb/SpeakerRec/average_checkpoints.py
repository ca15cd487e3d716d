#!/usr/bin/env python3
"""Recipe for averaging the weights of the last epochs of a training.

To run it:

> python average_checkpoints.py results/redimnet2_b3/42 \
    results/redimnet2_b3/42/average --last=10

The second folder is then a model folder, as ``model`` in the first one is:
evaluate it, load it or go on from it in the same way. The checkpoints are those
at the ends of epochs; ``checkpoints_kept`` in training says how many stay.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import argparse
from functools import partial
from pathlib import Path

import torch
from command_line import (
    build_hparam,
    check_at_least,
    main_with_one_line_errors,
)
from speechbrain.dataio.encoder import CategoricalEncoder
from speechbrain.utils.checkpoints import Checkpointer, average_checkpoints
from tqdm import tqdm

from redimnet2_lobes.model_folder import write_model_folder

_load_tensors = partial(torch.load, weights_only=True)


def main(arguments):
    """Averages, and writes the model folder.

    Arguments
    ---------
    arguments : list of str
        The command line without the script's name.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "training_folder", type=Path, help="output_folder of a training"
    )
    parser.add_argument(
        "output_folder", type=Path, help="where to write the model folder"
    )
    parser.add_argument(
        "--last", type=int, default=10, help="number of epochs (10)"
    )
    options = parser.parse_args(arguments)
    check_at_least(vars(options), last=1)
    hparams_file = options.training_folder / "hyperparams.yaml"
    if not hparams_file.is_file():
        raise ValueError(
            f"{options.training_folder}: no output_folder of a training, for "
            "it has no hyperparams.yaml"
        )
    output = options.output_folder
    if output.exists() and (output.is_file() or any(output.iterdir())):
        raise ValueError(f"{output}: exists already; choose another")

    save_folder = options.training_folder / "save"
    checkpoints = last_epochs(save_folder, options.last)
    network = build_hparam(hparams_file, "embedding_model")
    network.load_state_dict(average(checkpoints, "embedding_model"))
    loss = build_hparam(hparams_file, "compute_cost")
    loss.load_state_dict(average(checkpoints, "compute_cost"))
    # Faster and slower versions of the speakers were for training only.
    speakers = CategoricalEncoder.from_saved(save_folder / "label_encoder.txt")
    speakers.expect_len(len(speakers))
    class_weights = average(checkpoints, "classifier")["weight"]
    first, last = (checkpoints[i].meta["epoch"] for i in (-1, 0))
    title = build_hparam(hparams_file, "title")
    write_model_folder(
        output,
        network,
        f"{title}, average of epochs {first} to {last}",
        variant=build_hparam(hparams_file, "variant"),
        class_weights=class_weights[: len(speakers)],
        speakers=[speakers.decode_ndim(i) for i in range(len(speakers))],
        loss=loss,
    )
    print(f"Model folder: {output}")


def last_epochs(folder, count):
    """Finds the checkpoints of the last epochs.

    Arguments
    ---------
    folder : pathlib.Path
        The folder of the checkpoints.
    count : int
        How many epochs.

    Returns
    -------
    list of speechbrain.utils.checkpoints.Checkpoint
        Checkpoints, the last epoch first. Checkpoints from within an epoch, and
        the best one where it is older, are not among them.

    Raises
    ------
    ValueError
        If there are fewer.

    Example
    -------
    >>> checkpointer = Checkpointer(getfixture("tmp_path"))
    >>> for epoch in (1, 3, 4):
    ...     saved = checkpointer.save_checkpoint(meta={"epoch": epoch})
    >>> saved = checkpointer.save_checkpoint(end_of_epoch=False)
    >>> found = last_epochs(checkpointer.checkpoints_dir, 2)
    >>> [checkpoint.meta["epoch"] for checkpoint in found]
    [4, 3]
    """
    found = Checkpointer(folder).find_checkpoints(
        max_key="epoch", max_num_checkpoints=count
    )
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


def average(checkpoints, name):
    """Averages the weights of a module.

    Arguments
    ---------
    checkpoints : list of speechbrain.utils.checkpoints.Checkpoint
        Checkpoints, the newest first.
    name : str
        Name of the module in the checkpoints.

    Returns
    -------
    dict of str to torch.Tensor
        Its state: means, but counters as in the newest checkpoint.
    """
    means = average_checkpoints(
        tqdm(checkpoints, desc=name), name, parameter_loader=_load_tensors
    )
    newest = _load_tensors(checkpoints[0].paramfiles[name], map_location="cpu")
    return {
        key: means[key] if tensor.is_floating_point() else tensor
        for key, tensor in newest.items()
    }


if __name__ == "__main__":
    main_with_one_line_errors(main)
