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

from redimnet2_lobes.files.atomic import check_absent
from redimnet2_lobes.files.settings import check_at_least
from redimnet2_lobes.pretrained.model_folder import write_model_folder
from redimnet2_lobes.pretrained.provenance import after_fine_tuning
from redimnet2_lobes.recipe.command_line import main_with_one_line_errors
from redimnet2_lobes.recipe.hparams import build_hparam
from redimnet2_lobes.training.averaging import average_weights, last_epochs
from redimnet2_lobes.training.fine_tuning import read_speakers


def main(arguments: list[str]) -> None:
    """Averages, and writes the model folder, as the command line says."""
    parser = argparse.ArgumentParser(description=main.__doc__)
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
    if not output.is_dir() or any(output.iterdir()):
        check_absent(output, "output_folder")

    save_folder = options.training_folder / "save"
    checkpoints = last_epochs(save_folder, options.last)
    network = build_hparam(hparams_file, "embedding_model")
    average_weights(checkpoints, "embedding_model", network)
    speakers = read_speakers(save_folder / "label_encoder.txt")
    speakers.expect_len(len(speakers))
    speeds = build_hparam(hparams_file, "crop").speeds
    classifier = build_hparam(hparams_file, "classifier")(
        out_neurons=len(speakers) * len(speeds)
    )
    average_weights(checkpoints, "classifier", classifier)
    loss = build_hparam(hparams_file, "compute_cost")
    if loss.state_dict():  # most losses have none
        if "compute_cost" in checkpoints[0].paramfiles:
            average_weights(checkpoints, "compute_cost", loss)
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
        provenance=after_fine_tuning(
            build_hparam(hparams_file, "pretrained_folder")
        ),
    )
    print(f"Model folder: {output}")


if __name__ == "__main__":
    main_with_one_line_errors(main)
