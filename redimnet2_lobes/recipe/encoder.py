"""The command line of scripts that embed, and the network they embed with.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import dataclasses
import os
from pathlib import Path
from typing import NamedTuple

import torch
from speechbrain.inference.classifiers import EncoderClassifier
from speechbrain.utils.autocast import AMPConfig
from speechbrain.utils.distributed import (
    ddp_init_group,
    infer_device,
    run_on_main,
)
from speechbrain.utils.run_opts import RunOptions

from redimnet2_lobes import door
from redimnet2_lobes.files.settings import (
    check_at_least,
    check_choices,
    check_types,
)
from redimnet2_lobes.inference.encode import EncodeBatch
from redimnet2_lobes.models.embedding_space import embedding_space
from redimnet2_lobes.models.front_end import SAMPLE_RATE, WINDOW
from redimnet2_lobes.models.pass_through import PassThrough
from redimnet2_lobes.models.redimnet2 import ReDimNet2
from redimnet2_lobes.models.tiles import keep_freed_memory
from redimnet2_lobes.models.variants import VARIANTS
from redimnet2_lobes.pretrained.loading import (
    check_tensors,
    load_model,
    read_tensors,
)
from redimnet2_lobes.recipe.command_line import (
    RUN_OPTIONS,
    parse_command_line,
    refuse_run_options,
)
from redimnet2_lobes.recipe.hparams import load_hparams

WEIGHTS_FILE = "embedding_model.ckpt"  # of a training checkpoint

PRECISIONS = ("fp32", "bf16", "fp16")
# What SpeechBrain calls the precision of training.
TRAINING_PRECISIONS = ("precision", "auto_mix_prec", "bfloat16_mix_prec")


class Encoder(NamedTuple):
    """A network that many utterances are embedded with."""

    encode_batch: EncodeBatch
    space: str  # that of its embeddings
    precision: str  # one of PRECISIONS
    speakers: frozenset[str]  # those that it was trained on, if it says so

    @property
    def fingerprint(self) -> str:
        """All that the embeddings of an utterance depend on."""
        return f"{self.space} {self.precision}"


def parse_arguments(
    arguments: list[str], *used: str
) -> tuple[dict, RunOptions]:
    """Reads the command line of a script that embeds, and its YAML.

    The command line is without the script's name; ``used`` are run options that
    the script uses besides ``device`` and ``eval_precision``. In what is
    returned, which network embeds what of an utterance has been checked, and
    ``eval_precision`` is that of the command line, or else of the YAML. It is a
    ValueError if anything is wrong with them.
    """
    hparams_file, run_opts, overrides = parse_command_line(arguments)
    check_embedding_options(run_opts, *used)
    if "distributed_backend" in used:
        ddp_init_group(run_opts)
    hparams = load_hparams(hparams_file, overrides)
    check_choices(hparams, variant=(None, *VARIANTS))
    check_types(
        hparams,
        checkpoint=str,
        seconds_per_batch=float,
        maximum_seconds=float | None,
        crops=int | None,
    )
    window = WINDOW / SAMPLE_RATE
    check_at_least(
        hparams, seconds_per_batch=window, maximum_seconds=window, crops=1
    )
    precision = hparams.get("eval_precision")
    if precision and "eval_precision" not in run_opts.overridden_args:
        check_choices(hparams, eval_precision=PRECISIONS)
        run_opts = dataclasses.replace(run_opts, eval_precision=precision)
    if run_opts.eval_precision == "fp16" and (
        (run_opts.device or infer_device()) == "cpu"
    ):
        raise ValueError(
            "eval_precision: fp16 is for GPUs; pass bf16, or another --device"
        )
    return hparams, run_opts


def check_embedding_options(run_opts: RunOptions, *used: str) -> None:
    """Refuses run options that say nothing of how embeddings are computed."""
    unused: dict[str, str] = dict.fromkeys(
        RUN_OPTIONS, "leave it out, it is for training"
    )
    for name in ("device", "eval_precision", *used):
        del unused[name]
    for name in TRAINING_PRECISIONS:
        unused[name] = "pass --eval_precision, since this is that of training"
    refuse_run_options(run_opts.overridden_args, unused)


def load_encoder(
    checkpoint: str, variant: str | None, run_opts: RunOptions
) -> Encoder:
    """Loads a network; the process then keeps freed memory, to be faster.

    The checkpoint is a model folder, the output folder of a training, a hub
    name, the name of a published checkpoint, or ``embedding_model.ckpt``. The
    last needs the variant; what others say of themselves must agree with it. It
    is a ValueError if it does not, or the network cannot be loaded.
    """
    load = _load_weights if os.path.isfile(checkpoint) else _load_model
    encoder = load(checkpoint, variant, run_opts)
    classes = getattr(encoder.hparams, "label_encoder", None)
    speakers = frozenset(classes.lab2ind if classes else ())
    space = embedding_space(encoder.mods)
    keep_freed_memory()
    encode_batch, precision = encoder.encode_batch, run_opts.eval_precision
    if precision != "fp32":
        dtype = AMPConfig.from_name(precision).dtype
        encode_batch = torch.autocast(encoder.device_type, dtype)(encode_batch)
    return Encoder(encode_batch, space, precision, speakers)


def _load_model(
    checkpoint: str, variant: str | None, run_opts: RunOptions
) -> EncoderClassifier:
    """A model that says of itself what it is."""
    try:
        # One process downloads; the others find it.
        run_on_main(door.find, args=[checkpoint])
        encoder = load_model(door.find(checkpoint), run_opts)
    except ValueError as error:
        remedy = ""
        if os.path.isfile(os.path.join(checkpoint, WEIGHTS_FILE)):
            remedy = f"; pass the file {WEIGHTS_FILE} in it, with --variant"
        elif saved := sorted(
            Path(checkpoint).glob(f"save/CKPT+*/{WEIGHTS_FILE}")
        ):
            remedy = f", or pass {saved[-1]} with --variant"
        raise ValueError(f"checkpoint: {error}{remedy}") from error
    found = getattr(encoder.hparams, "variant", None)
    if variant not in (None, found):
        raise ValueError(
            f"variant: {variant} was given, but the checkpoint {checkpoint} "
            f"says {found or 'nothing of its variant'}; leave out --variant"
        )
    return encoder


def _load_weights(
    path: str, variant: str | None, run_opts: RunOptions
) -> EncoderClassifier:
    """The network of a variant, with the tensors of a file."""
    if variant is None:
        raise ValueError(
            f"variant: missing; for the weights in {path} pass --variant=..., "
            f"one of {', '.join(VARIANTS)}"
        )
    try:
        tensors = read_tensors(path)
        network = ReDimNet2.from_variant(
            variant,
            # A training has it, what is released for VoxCeleb2 has not.
            aggregation_norm="stem.map_norm.weight" in tensors,
        )
        check_tensors(tensors, network, path, f"variant {variant}")
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
