"""Loading networks from any of the forms that they are kept in.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import logging
import os
import re
from pathlib import Path

import torch
from command_line import (
    build_hparam,
    check_at_least,
    check_types,
    one_line,
)
from speechbrain.inference.classifiers import EncoderClassifier

from redimnet2_lobes.embeddings import network_fingerprint
from redimnet2_lobes.folding import fold
from redimnet2_lobes.front_end import SAMPLE_RATE, WINDOW
from redimnet2_lobes.published import VARIANTS
from redimnet2_lobes.redimnet2 import PassThrough, ReDimNet2


def check_embedding_hparams(hparams):
    """Checks what says which network embeds what of an utterance.

    Arguments
    ---------
    hparams : dict
        The hyperparameters.

    Raises
    ------
    ValueError
        If a value is wrong.
    """
    known = tuple(VARIANTS.values())
    if hparams["variant"] not in (None, *known):
        raise ValueError(
            f"variant: unknown value {hparams['variant']!r}, expected one of "
            f"{', '.join(known)}"
        )
    check_types(hparams, checkpoint=str, seconds_per_batch=float)
    window = WINDOW / SAMPLE_RATE
    check_at_least(hparams, seconds_per_batch=window)
    if hparams["maximum_seconds"] is not None:
        check_types(hparams, maximum_seconds=float)
        check_at_least(hparams, maximum_seconds=window)
    if hparams["crops"] is not None:
        check_types(hparams, crops=int)
        check_at_least(hparams, crops=1)
        if hparams["maximum_seconds"] is None:
            raise ValueError(
                "maximum_seconds: missing; crops needs it, the seconds of each"
            )


def load_folded_encoder(hparams, hparams_file, run_opts):
    """Loads the network that the hyperparameters name, for many utterances.

    Arguments
    ---------
    hparams : dict
        The hyperparameters.
    hparams_file : str
        Their file.
    run_opts : RunOptions
        SpeechBrain's run options.

    Returns
    -------
    encoder : EncoderClassifier
        The network, folded if it is a ReDimNet2.
    fingerprint : str
        Stands for its weights: ``network_fingerprint``.
    """
    encoder = load_encoder(
        hparams["checkpoint"],
        hparams["variant"],
        Path(hparams_file).parent,
        run_opts,
    )
    fingerprint = network_fingerprint(encoder.mods)
    network = encoder.mods.embedding_model
    if isinstance(network, ReDimNet2):  # others may be used as well
        encoder.mods.embedding_model = fold(network)
    return encoder, fingerprint


def load_encoder(checkpoint, variant, hparams_folder, run_opts):
    """Loads a network from any of the forms that it is kept in.

    Arguments
    ---------
    checkpoint : str
        A model folder, the output folder of a training, a hub name, or a file
        ``embedding_model.ckpt``.
    variant : str or None
        b0 to b6. A file of weights needs it; what a model folder
        says of itself must agree with it.
    hparams_folder : str or Path
        Where ``redimnet2_<variant>.yaml`` is.
    run_opts : RunOptions or dict
        SpeechBrain's run options, such as ``device``.

    Returns
    -------
    EncoderClassifier
        The network, in evaluation mode.

    Raises
    ------
    ValueError
        If it cannot be loaded, its weights do not fit the network exactly, or
        the variant is another one.
    """
    if os.path.isfile(checkpoint):
        return _load_weights_file(checkpoint, variant, hparams_folder, run_opts)
    if os.path.isdir(checkpoint):
        # The output of a training has its model folder in it, and a
        # hyperparams.yaml of its own.
        if os.path.isdir(os.path.join(checkpoint, "model")):
            checkpoint = os.path.join(checkpoint, "model")
        if not os.path.isfile(os.path.join(checkpoint, "hyperparams.yaml")):
            raise ValueError(
                f"checkpoint: {checkpoint} has no hyperparams.yaml, so it is "
                "no model folder; for a training checkpoint pass the file "
                "embedding_model.ckpt in it, with --variant"
            )
    elif os.path.isdir(checkpoint.split("/")[0]) or not re.fullmatch(
        r"\w[\w.-]*/\w[\w.-]*", checkpoint
    ):
        raise ValueError(f"checkpoint: no file or folder {checkpoint}")
    return _load_model_folder(checkpoint, variant, run_opts)


def _load_model_folder(source, variant, run_opts):
    # For tensors that do not fit SpeechBrain warns, with a picture of the
    # whole network, and goes on. Here they are an error, see the end.
    logging.getLogger("speechbrain.utils.checkpoints").setLevel(logging.ERROR)
    try:
        # No savedir: nothing is copied or linked, so that a second run never
        # meets the files of another model.
        encoder = EncoderClassifier.from_hparams(
            source=source, run_opts=run_opts
        )
    except Exception as error:
        what = f"the model folder {source}"
        if not os.path.isdir(source):
            what = f"{source} is no file or folder, and as a hub name it"
        raise ValueError(
            f"checkpoint: {what} cannot be loaded ({one_line(error)})"
        ) from error
    found = getattr(encoder.hparams, "variant", None)
    if variant is not None and variant != found:
        raise ValueError(
            f"variant: {variant} was given, but the checkpoint {source} says "
            f"{found or 'nothing of its variant'}; leave out --variant"
        )
    pretrainer = encoder.hparams.pretrainer
    path = pretrainer.paths["embedding_model"]
    network = pretrainer.loadables["embedding_model"]
    check_weights(read_weights(path), network, path, "its hyperparams.yaml")
    return encoder


def _load_weights_file(path, variant, hparams_folder, run_opts):
    weights = read_weights(path)
    if variant is None:
        raise ValueError(
            f"variant: missing; for the weights in {path} pass --variant=..., "
            f"one of {', '.join(VARIANTS.values())}"
        )
    hparams_file = Path(hparams_folder) / f"redimnet2_{variant}.yaml"
    if not hparams_file.is_file():
        raise ValueError(f"variant: {hparams_file} is missing")
    network = build_hparam(hparams_file, "embedding_model")
    check_weights(weights, network, path, hparams_file.name)
    network.load_state_dict(weights)
    return EncoderClassifier(
        modules={
            "compute_features": PassThrough(),
            "mean_var_norm": PassThrough(),
            "embedding_model": network,
        },
        hparams={},
        run_opts=run_opts,
    )


def read_weights(path):
    """Reads a file of tensors by name. No code in it is run.

    Arguments
    ---------
    path : str
        A state dict, as SpeechBrain's checkpointer writes it.

    Returns
    -------
    dict
        Tensors by name.

    Raises
    ------
    ValueError
        If it is anything else.
    """
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:
        raise ValueError(
            f"checkpoint: {path} is not a file of weights, or it is damaged"
        ) from error
    if isinstance(weights, dict) and "model_config" in weights:
        raise ValueError(
            f"checkpoint: {path} is a published checkpoint; convert it first: "
            f"python -m redimnet2_lobes.convert {path} --output FOLDER"
        )
    if not isinstance(weights, dict) or not all(
        isinstance(tensor, torch.Tensor) for tensor in weights.values()
    ):
        raise ValueError(
            f"checkpoint: {path} holds something else than the weights of a "
            "network; pass embedding_model.ckpt"
        )
    return weights


def check_weights(weights, network, path, origin):
    """Checks that weights fit a network exactly.

    Arguments
    ---------
    weights : dict
        Tensors by name.
    network : torch.nn.Module
        The network.
    path : str
        The file that the weights are from.
    origin : str
        The file that the network was built from.

    Raises
    ------
    ValueError
        If a tensor is missing, surplus, or has another shape.
    """
    expected = network.state_dict()
    faults = [f"{name} is missing" for name in expected if name not in weights]
    faults += [f"{name} is surplus" for name in weights if name not in expected]
    faults += [
        f"{name} has the shape {list(tensor.shape)}, "
        f"not {list(expected[name].shape)}"
        for name, tensor in weights.items()
        if name in expected and tensor.shape != expected[name].shape
    ]
    if faults:
        others = f" (and {len(faults) - 1} others)" if len(faults) > 1 else ""
        raise ValueError(
            f"checkpoint: {path} does not fit {origin}: {faults[0]}{others}"
        )
