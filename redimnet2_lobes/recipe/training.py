"""What a training refuses before it begins, and what it leaves.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

from collections.abc import Mapping

import torch
from speechbrain.dataio.encoder import CategoricalEncoder
from speechbrain.utils.logger import get_logger
from speechbrain.utils.run_opts import RunOptions

from redimnet2_lobes.files.settings import check_at_least, check_types
from redimnet2_lobes.models.variants import check_variant
from redimnet2_lobes.pretrained.model_folder import write_model_folder
from redimnet2_lobes.pretrained.provenance import after_fine_tuning
from redimnet2_lobes.recipe.command_line import refuse_run_options
from redimnet2_lobes.training.brain import GlobalBatchBrain, unwrap
from redimnet2_lobes.training.losses import (
    AdditiveAngularMarginLoss,
    SphereFace2,
)
from redimnet2_lobes.training.schedules import MarginSchedule

logger = get_logger(__name__)

UNUSED_RUN_OPTIONS = {
    "test_only": "a trained model is for speaker_verification_cosine.py",
    "grad_accumulation_factor": (
        "it follows from --global_batch_size and --batch_size"
    ),
    "remove_vector_weight_decay": "set --weight_decay and --loss_weight_decay",
    "data_parallel_backend": "start it with torchrun for several GPUs",
    "optimizer_step_limit": "set --number_of_epochs",
    "log_config": "the variable SB_LOG_LEVEL sets how much is logged",
}
# SpeechBrain says that it uses run options that are keys of the YAML.
UNUSED_HPARAMS = {
    **UNUSED_RUN_OPTIONS,
    "distributed_backend": "pass --distributed_backend on the command line",
}
LOWEST = {
    "number_of_epochs": 1,
    "batch_size": 1,
    "global_batch_size": 1,
    "checkpoints_kept": 1,
    "num_workers": 0,
    "crop_frames": 10,
    "minimum_seconds": 0.1,
    "loss_weight_decay": 0.0,
    "validation_seconds": 0.1,
    "validation_seconds_per_batch": 0.1,
    "teacher_weight": 0.0,
    "teacher_pairs_weight": 0.0,
    "label_weight": 0.0,
}
TYPES = {
    "training_lists": dict[str, str],
    "teacher_embeddings": list[str] | list[dict[str, str]] | None,
    "replay_lists": dict[str, str],
    "replay_share": float,
    "classes_from_embeddings": bool,
    "corpora": list[str] | None,
    "validation_folder": str,
    "validation_trials": str,
    "test_trials": str | list[str],
    "musan_folder": str | None,
    "rirs_folder": str | None,
    "pretrained_folder": str | None,
    "allow_incomplete": bool,
    "half_precision_maps": bool,
    "activation_checkpointing": bool,
    "check_audio": bool,
    "shard_classes": bool,
    "preparation_workers": int | None,
    "seed": int,
    "output_folder": str,
    "save_folder": str,
    "model_folder": str,
    "train_log": str,
    "training_curves": str,
    "tensorboard": bool,
    "wandb_project": str | None,
    "title": str,
    **{key: type(lowest) for key, lowest in LOWEST.items()},
}


def check_options(run_opts: RunOptions) -> None:
    """Refuses, with a ValueError, run options that do nothing in a training."""
    refuse_run_options(run_opts.overridden_args, UNUSED_RUN_OPTIONS)


def check_hparams(hparams: Mapping) -> None:
    """Refuses wrong settings with a ValueError, so that none fails later."""
    refuse_run_options(hparams, UNUSED_HPARAMS)
    if not hparams.get("training_lists"):
        check_types(hparams, data_folder=str)
    for key in (*LOWEST, "teacher_embeddings"):
        if key not in hparams:
            raise ValueError(
                f"{key}: missing; copy it from a configuration in hparams/"
            )
    present = {key: kind for key, kind in TYPES.items() if key in hparams}
    check_types(hparams, **present)
    check_at_least(hparams, **LOWEST)
    if not 0 < hparams.get("replay_share", 0.5) < 1:
        raise ValueError(
            f"replay_share: {hparams['replay_share']} is not between 0 and 1; "
            "leave out replay by --replay_lists={}"
        )
    check_variant(hparams["variant"], hparams["embedding_model"])
    if hparams["teacher_embeddings"] is not None:
        files, speeds = hparams["teacher_embeddings"], hparams["crop"].speeds
        if len(files) != len(speeds):
            raise ValueError(
                f"teacher_embeddings: {len(files)} files for the speeds "
                f"{', '.join(map(str, speeds))}; pass one for each, in their "
                "order, or fewer speeds"
            )
        if not all(files):
            raise ValueError(
                "teacher_embeddings: one of the entries names no file; name "
                "one for each prefix of the training lists"
            )
        if not (hparams["teacher_weight"] or hparams["teacher_pairs_weight"]):
            raise ValueError(
                "teacher_weight: 0 leaves nothing to learn from "
                "teacher_embeddings with teacher_pairs_weight: 0; pass a "
                "number above 0, or no teacher_embeddings"
            )
    elif not hparams["label_weight"]:
        raise ValueError(
            "label_weight: 0 leaves nothing to learn; pass teacher_embeddings "
            "or a number above 0"
        )
    if not hparams.get("shard_classes"):
        return
    loss = hparams["compute_cost"]
    if not isinstance(loss, SphereFace2 | AdditiveAngularMarginLoss):
        raise ValueError(
            f"shard_classes: True is not for {type(loss).__name__}; pass "
            "False, or take SphereFace2 or AdditiveAngularMarginLoss as "
            "compute_cost"
        )


def warn_of_margin(schedule: MarginSchedule, epochs: int) -> None:
    """Warns where a training is over before its margin is the final one."""
    steps = schedule.steps_per_epoch or 1
    last = schedule.value_at(epochs * steps - 1)
    if last != schedule.final_margin:
        logger.warning(
            f"The margin ends at {last:.4f}, not at final_margin "
            f"{schedule.final_margin}, since margin_final_epoch comes after "
            f"the {epochs} of number_of_epochs"
        )


def write_model(
    brain: GlobalBatchBrain,
    speakers: CategoricalEncoder,
    class_weights: torch.Tensor,
    folder: str,
    title: str,
    variant: str | None,
) -> None:
    """Writes the model folder of what was trained, in the main process."""
    classes = {}
    if brain.hparams.label_weight:
        classes = {
            # Faster and slower versions of them were for training only.
            "class_weights": class_weights[: len(speakers)],
            "speakers": [speakers.decode_ndim(i) for i in range(len(speakers))],
            "loss": unwrap(brain.modules.compute_cost),
        }
    write_model_folder(
        folder,
        brain.hparams.embedding_model,
        title,
        variant=variant,
        **classes,
        provenance=after_fine_tuning(brain.hparams.pretrained_folder),
    )
    print(f"Model folder: {folder}")
