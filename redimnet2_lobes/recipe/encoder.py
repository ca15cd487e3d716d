"""Loading networks from any of the forms that they are kept in.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import os
from pathlib import Path

from speechbrain.inference.classifiers import EncoderClassifier
from speechbrain.utils.autocast import AMPConfig, TorchAutocast
from speechbrain.utils.distributed import infer_device

from redimnet2_lobes.inference.embedding_cache import network_fingerprint
from redimnet2_lobes.models.folding import fold
from redimnet2_lobes.models.front_end import SAMPLE_RATE, WINDOW
from redimnet2_lobes.models.redimnet2 import PassThrough, ReDimNet2
from redimnet2_lobes.models.variants import VARIANTS
from redimnet2_lobes.pretrained.loading import (
    check_tensors,
    load_model,
    read_tensors,
)
from redimnet2_lobes.recipe.command_line import RUN_OPTIONS, refuse_run_options
from redimnet2_lobes.recipe.hparams import build_hparam
from redimnet2_lobes.recipe.settings import check_at_least, check_types

WEIGHTS_FILE = "embedding_model.ckpt"  # of a training checkpoint

PRECISIONS = ("fp32", "bf16", "fp16")
# What SpeechBrain calls the precision of training.
TRAINING_PRECISIONS = ("precision", "auto_mix_prec", "bfloat16_mix_prec")


def check_embedding_options(run_opts, *others):
    """Refuses run options that say nothing of how embeddings are computed.

    Arguments
    ---------
    run_opts : RunOptions
        SpeechBrain's run options.
    *others : str
        Those that the script uses besides ``device`` and ``eval_precision``.

    Raises
    ------
    ValueError
        If one is given.
    """
    unused = dict.fromkeys(RUN_OPTIONS, "leave it out, it is for training")
    for name in ("device", "eval_precision", *others):
        del unused[name]
    for name in TRAINING_PRECISIONS:
        unused[name] = "pass --eval_precision, since this is that of training"
    refuse_run_options(run_opts.overridden_args, unused)


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
    if hparams["variant"] not in (None, *VARIANTS):
        raise ValueError(
            f"variant: unknown value {hparams['variant']!r}, expected one of "
            f"{', '.join(VARIANTS)}"
        )
    if hparams.get("eval_precision") not in (None, *PRECISIONS):
        raise ValueError(
            f"eval_precision: unknown value {hparams['eval_precision']!r}, "
            f"expected one of {', '.join(PRECISIONS)}"
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
        The hyperparameters. ``eval_precision`` becomes that which is used.
    hparams_file : str
        Their file.
    run_opts : RunOptions
        SpeechBrain's run options.

    Returns
    -------
    encoder : EncoderClassifier
        The network, folded if it is a ReDimNet2.
    encode_batch : callable
        That of the encoder, in the precision that ``eval_precision`` asks for,
        on the command line or in the hyperparameters.
    fingerprint : str
        Stands for its weights, ``network_fingerprint``, and the precision.
    """
    precision = run_opts.eval_precision
    if "eval_precision" not in run_opts.overridden_args:
        precision = hparams.get("eval_precision") or precision
    hparams["eval_precision"] = precision
    if precision == "fp16" and (run_opts.device or infer_device()) == "cpu":
        raise ValueError(
            "eval_precision: fp16 is for GPUs; pass bf16, or another --device"
        )
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
    if precision == "fp32":
        return encoder, encoder.encode_batch, fingerprint
    context = TorchAutocast(
        device_type=encoder.device_type,
        dtype=AMPConfig.from_name(precision).dtype,
    )

    def encode_batch(wavs, wav_lens):
        with context:
            return encoder.encode_batch(wavs, wav_lens)

    return encoder, encode_batch, f"{fingerprint} {precision}"


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
    try:
        if os.path.isfile(checkpoint):
            tensors = read_tensors(checkpoint)
        else:
            encoder = load_model(checkpoint, run_opts)
    except ValueError as error:
        remedy = ""
        if os.path.isfile(os.path.join(checkpoint, WEIGHTS_FILE)):
            remedy = f"; pass the file {WEIGHTS_FILE} in it, with --variant"
        raise ValueError(f"checkpoint: {error}{remedy}") from error
    if os.path.isfile(checkpoint):
        return _build(tensors, checkpoint, variant, hparams_folder, run_opts)
    found = getattr(encoder.hparams, "variant", None)
    if variant is not None and variant != found:
        raise ValueError(
            f"variant: {variant} was given, but the checkpoint {checkpoint} "
            f"says {found or 'nothing of its variant'}; leave out --variant"
        )
    return encoder


def _build(tensors, path, variant, hparams_folder, run_opts):
    """The network of a variant, with the tensors of a file."""
    if variant is None:
        raise ValueError(
            f"variant: missing; for the weights in {path} pass --variant=..., "
            f"one of {', '.join(VARIANTS)}"
        )
    hparams_file = Path(hparams_folder) / f"redimnet2_{variant}.yaml"
    if not hparams_file.is_file():
        raise ValueError(f"variant: {hparams_file} is missing")
    network = build_hparam(hparams_file, "embedding_model")
    try:
        check_tensors(tensors, network, path, hparams_file.name)
    except ValueError as error:
        raise ValueError(f"checkpoint: {error}") from error
    network.load_state_dict(tensors)
    return EncoderClassifier(
        modules={
            "compute_features": PassThrough(),
            "mean_var_norm": PassThrough(),
            "embedding_model": network,
        },
        hparams={},
        run_opts=run_opts,
    )
