"""Converts published ReDimNet2 checkpoints to SpeechBrain model folders.

> python -m redimnet2_lobes.convert b3-vox2-lm.pt --output redimnet2_b3

The folder is what ``EncoderClassifier.from_hparams(source="redimnet2_b3")``
and ``SpeakerRecognition.from_hparams(source="redimnet2_b3")`` load, offline.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import argparse
import sys
from pathlib import Path

import torch

from redimnet2_lobes.model_folder import write_model_folder
from redimnet2_lobes.published import (
    VARIANTS,
    build_network,
    check_front_end,
    take_weights,
)


def convert(checkpoint, output):
    """Converts one checkpoint.

    Arguments
    ---------
    checkpoint : str or pathlib.Path
        A published file, ``{"model_config": dict, "state_dict": dict}``.
    output : str or pathlib.Path
        Folder to write; it must not exist, or be empty.

    Raises
    ------
    ValueError
        If the file is not a published checkpoint, or one of an architecture
        that is not supported. Nothing is written then.
    """
    output = Path(output)
    if output.exists() and (output.is_file() or any(output.iterdir())):
        raise ValueError(f"--output {output}: exists already; choose another")
    content = _read(checkpoint)
    try:
        network = build_network(content["model_config"])
        weights = dict(content["state_dict"])
        constants = {
            name: weights.pop(name)
            for name in list(weights)
            if name.startswith("spec.")
        }
        check_front_end(network.front_end, constants)
        take_weights(network, weights)
    except ValueError as error:
        raise ValueError(f"{checkpoint}: {error}") from error
    write_model_folder(
        output,
        network,
        title=f"ReDimNet2 converted from {Path(checkpoint).name}",
        variant=VARIANTS.get(content["model_config"]["C"]),
    )


def _read(checkpoint):
    """Reads a file without running code from it."""
    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ValueError(f"{checkpoint}: no such file") from None
    except IsADirectoryError:
        raise ValueError(
            f"{checkpoint}: is a folder, not a checkpoint file"
        ) from None
    except OSError:
        raise
    except Exception:  # torch raises many kinds for what is no checkpoint
        raise ValueError(
            f"{checkpoint}: not a complete checkpoint of tensors only; fetch "
            "it again from where it was published"
        ) from None
    if not isinstance(content, dict) or not all(
        isinstance(content.get(key), dict)
        for key in ("model_config", "state_dict")
    ):
        raise ValueError(
            f"{checkpoint}: not a published ReDimNet2 checkpoint, which is a "
            "dict of model_config and state_dict"
        )
    for name, value in content["state_dict"].items():
        if not isinstance(value, torch.Tensor):
            raise ValueError(f"{checkpoint}: {name} is not a tensor")
    return content


def main(arguments=None):
    """Command line: converts, or prints one line that says why not.

    Arguments
    ---------
    arguments : list of str or None
        Command line; None for the program's own.
    """
    parser = argparse.ArgumentParser(
        prog="python -m redimnet2_lobes.convert",
        description="Converts a published ReDimNet2 checkpoint to a folder "
        "that EncoderClassifier.from_hparams loads.",
    )
    parser.add_argument("checkpoint", metavar="FILE.pt")
    parser.add_argument("--output", metavar="DIR", required=True)
    options = parser.parse_args(arguments)
    try:
        convert(options.checkpoint, options.output)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"Model folder: {options.output}")


if __name__ == "__main__":
    main()
