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
from pathlib import Path

from speechbrain.utils.checkpoints import (
    PARAMFILE_EXT,
    Checkpointer,
    average_checkpoints,
)
from tqdm import tqdm

from redimnet2_lobes.files.error_lines import one_line
from redimnet2_lobes.pretrained.loading import check_tensors, read_tensors
from redimnet2_lobes.pretrained.model_folder import write_model_folder
from redimnet2_lobes.recipe.command_line import main_with_one_line_errors
from redimnet2_lobes.recipe.hparams import build_hparam
from redimnet2_lobes.recipe.settings import check_at_least
from redimnet2_lobes.training.fine_tuning import read_speakers


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
    average(checkpoints, "embedding_model", network)
    speakers = read_speakers(save_folder / "label_encoder.txt")
    speakers.expect_len(len(speakers))
    speeds = build_hparam(hparams_file, "crop").speeds
    classifier = build_hparam(hparams_file, "classifier")(
        out_neurons=len(speakers) * len(speeds)
    )
    average(checkpoints, "classifier", classifier)
    loss = build_hparam(hparams_file, "compute_cost")
    if loss.state_dict():  # most losses have none
        if "compute_cost" in checkpoints[0].paramfiles:
            average(checkpoints, "compute_cost", loss)
        else:
            print("compute_cost: not in the checkpoints, so it is left out")
            loss = None
    first, last = (checkpoints[i].meta["epoch"] for i in (-1, 0))
    title = build_hparam(hparams_file, "title")
    write_model_folder(
        output,
        network,
        f"{title}, average of epochs {first} to {last}",
        variant=build_hparam(hparams_file, "variant"),
        # Faster and slower versions of them were for training only.
        class_weights=classifier.weight[: len(speakers)],
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
    try:
        found = Checkpointer(folder).find_checkpoints(
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


def average(checkpoints, name, module):
    """Gives a module the mean of its weights.

    Arguments
    ---------
    checkpoints : list of speechbrain.utils.checkpoints.Checkpoint
        Checkpoints, the newest first.
    name : str
        Name of the module in the checkpoints.
    module : torch.nn.Module
        The module. Counters become those of the newest checkpoint.

    Raises
    ------
    ValueError
        If a checkpoint is without it, is damaged, or is of another
        architecture or number of speakers.
    """
    for checkpoint in checkpoints:
        if name not in checkpoint.paramfiles:
            raise ValueError(
                f"{checkpoint.path}: has no {name}{PARAMFILE_EXT}; pass the "
                "output_folder of a training whose checkpointer has it among "
                "its recoverables"
            )

    def read(path, map_location):
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


if __name__ == "__main__":
    main_with_one_line_errors(main)
