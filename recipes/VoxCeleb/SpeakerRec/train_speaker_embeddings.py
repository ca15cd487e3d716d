#!/usr/bin/env python3
"""Recipe for training ReDimNet2 speaker embeddings on VoxCeleb.

To run it:

> python train_speaker_embeddings.py hparams/redimnet2_b3.yaml \
    --data_folder /path/to/VoxCeleb2 --validation_folder /path/to/VoxCeleb1

On several GPUs, on one or more nodes, start it with torchrun instead of python.
The learning rate follows global_batch_size, which stays the same on any number
of GPUs.

The network learns to classify the speakers of short crops. After every epoch
the equal error rate on a validation trial list is logged; the checkpoints of
the best and of the last epochs are kept. The same command resumes an
interrupted run. At the end <output_folder>/model holds what
``EncoderClassifier.from_hparams(source=...)`` loads.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import contextlib
import logging
import math
import os
import time
from pathlib import Path

import numpy as np
import speechbrain as sb
import torch
from speechbrain.core import INTRA_EPOCH_CKPT_FLAG
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.dataio.encoder import CategoricalEncoder
from speechbrain.utils.distributed import if_main_process, run_on_main
from speechbrain.utils.logger import get_logger
from speechbrain.utils.train_logger import TensorboardLogger, WandBLogger
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from voxceleb_prepare import prepare_voxceleb

from redimnet2_lobes.data.audio import utterance_name
from redimnet2_lobes.data.training_set import TrainingCrops, UtteranceList
from redimnet2_lobes.data.trial_files import check_labels, find_files
from redimnet2_lobes.data.trials import read_trials
from redimnet2_lobes.files.folder_lock import only_writer
from redimnet2_lobes.inference.encode import encode_utterances
from redimnet2_lobes.models.precision import at_least_float32
from redimnet2_lobes.models.variants import VARIANTS, difference
from redimnet2_lobes.pretrained.model_folder import write_model_folder
from redimnet2_lobes.recipe.command_line import (
    main_with_one_line_errors,
    parse_command_line,
    refuse_run_options,
)
from redimnet2_lobes.recipe.hparams import load_hparams
from redimnet2_lobes.recipe.settings import check_at_least, check_types
from redimnet2_lobes.scoring.backends import CosineBackend, trial_scores
from redimnet2_lobes.scoring.metrics import EER
from redimnet2_lobes.scoring.plots import plot_training_curves
from redimnet2_lobes.training.batches import (
    EpochProgress,
    GlobalBatches,
    check_batch_norm,
)
from redimnet2_lobes.training.checkpointer import (
    keep_speakers,
    training_settings,
)
from redimnet2_lobes.training.fine_tuning import load_pretrained

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


class SpeakerBrain(sb.core.Brain):
    """Trains the embedding model by classifying speakers.

    Arguments
    ---------
    trials : list of tuple
        Validation trials (label, enrolment, test).
    paths : dict
        Each name in the trials to its path.
    batches : GlobalBatches
        Order of the training utterances.
    loggers : list of speechbrain.utils.train_logger.TrainLogger
        Receive the figures of each epoch.
    **kwargs : dict
        Passed to ``Brain``.
    """

    def __init__(self, *, trials, paths, batches, loggers, **kwargs):
        super().__init__(**kwargs)
        self.trials = trials
        self.paths = paths
        self.train_sampler = batches
        self.loggers = loggers
        self.progress = EpochProgress()
        self.checkpointer.add_recoverable("progress", self.progress)

    def init_optimizers(self):
        """One optimizer; class weights have a weight decay of their own."""
        loss_weights = [
            *self.modules.classifier.parameters(),
            *self.modules.compute_cost.parameters(),
        ]
        self.optimizer = self.opt_class(
            [
                {"params": list(self.modules.embedding_model.parameters())},
                {
                    "params": loss_weights,
                    "weight_decay": self.hparams.loss_weight_decay,
                },
            ]
        )
        self.optimizers_dict = {"opt_class": self.optimizer}
        self.checkpointer.add_recoverable("optimizer", self.optimizer)

    def on_fit_start(self):
        """Validates the untrained network: a bad file shows before training."""
        super().on_fit_start()
        counter = self.hparams.epoch_counter
        if counter.current >= counter.limit:
            logger.info(
                f"Trained for {counter.current} epochs already; raise "
                "--number_of_epochs to go on"
            )
        if counter.current == 0 and not self.step:
            run_on_main(self._validate_untrained)

    def _validate_untrained(self):
        logger.info(f"EER before training: {self.validate():.2f} %")

    def _wrap_distributed(self):
        on_cpu = self.device_type == "cpu"
        # SpeechBrain's own makes every BatchNorm a synchronized one.
        if not self.distributed_launch or self.hparams.synchronize_batchnorm:
            if self.distributed_launch and on_cpu:
                raise ValueError(
                    "synchronize_batchnorm: True is for GPUs; pass False"
                )
            super()._wrap_distributed()
            return
        devices = None if on_cpu else [self.device]
        for name, module in self.modules.items():
            if any(weight.requires_grad for weight in module.parameters()):
                self.modules[name] = DistributedDataParallel(
                    module,
                    devices,
                    find_unused_parameters=self.find_unused_parameters,
                )

    def on_stage_start(self, stage, epoch=None):
        """Other crops and noises in every epoch, from where it was left."""
        self.hparams.epoch_random.epoch = epoch
        # In steps and batches of today: global batch size and number of
        # processes may have been others before.
        steps = self.progress.utterances // self.train_sampler.global_batch_size
        self.train_sampler.first_step = steps
        self.step = steps * self.grad_accumulation_factor
        self.batch_ended = time.perf_counter()

    def on_fit_batch_start(self, batch, should_step):
        """Moves the learning rate and the margin, step by step."""
        self.batch_started = time.perf_counter()
        # With the first part of a global batch, as its loss has a margin too.
        if (self.step - 1) % self.grad_accumulation_factor == 0:
            self.hparams.lr_schedule(self.optimizer)
            self.hparams.margin_schedule(unwrap(self.modules.compute_cost))

    def compute_forward(self, batch, stage):
        """Waveforms to the cosines of all classes [batch, 1, classes]."""
        wavs, wav_lens = batch.to(self.device).sig
        embeddings = self.modules.embedding_model(wavs, wav_lens)
        # The loss works in float32 at least, whatever the precision.
        with torch.autocast(embeddings.device.type, enabled=False):
            return self.modules.classifier(at_least_float32(embeddings))

    def compute_objectives(self, cosines, batch, stage):
        """Loss of a batch."""
        labels = batch.label.to(self.device)
        predictions = cosines.detach().squeeze(1).argmax(1)
        self.correct = (predictions == labels).sum()
        # [batch, 1], as SpeechBrain's LogSoftmaxWrapper wants them.
        return self.modules.compute_cost(cosines, labels.unsqueeze(1))

    def fit_batch(self, batch):
        """Trains on a batch.

        Returns
        -------
        torch.Tensor
            Mean loss over the batches of all processes.
        """
        loss = super().fit_batch(batch)
        sums = torch.tensor(
            [loss, self.correct, len(batch.id), sum(batch.replaced)],
            device=self.device,
        )
        processes = 1
        if self.distributed_launch:
            torch.distributed.all_reduce(sums)
            processes = torch.distributed.get_world_size()
        loss, correct, utterances, replaced = sums.tolist()
        if not math.isfinite(loss):
            self._end_unless_skipped()
        self.progress.correct += round(correct)
        self.progress.utterances += round(utterances)
        self.progress.replaced += round(replaced)
        now = time.perf_counter()
        self.progress.seconds_waiting += self.batch_started - self.batch_ended
        self.progress.seconds += now - self.batch_ended
        self.batch_ended = now
        return torch.tensor(loss / processes)

    def check_loss_isfinite(self, loss):
        """Left to ``fit_batch``, where all processes see the same loss."""

    def _end_unless_skipped(self):
        """Ends a training whose loss is not finite, if the weights saw it."""
        self.nonfinite_count += 1
        skipped = self.scaler.is_enabled() or self.skip_nonfinite_grads
        if not skipped or self.nonfinite_count > self.nonfinite_patience:
            raise self._diverged("the loss")

    def _check_weights(self):
        """Ends the training before weights are saved that are no numbers."""
        for key, module in self.modules.items():
            for name, weight in unwrap(module).state_dict().items():
                if not weight.isfinite().all():
                    raise self._diverged(f"{key}: {name}")

    def _diverged(self, what):
        step = math.ceil(self.step / self.grad_accumulation_factor)
        precision = "" if self.precision == "fp32" else " or --precision=fp32"
        go_on = "there is no checkpoint from before: start again"
        if self.checkpointer.list_checkpoints():
            go_on = (
                f"the checkpoints in {self.hparams.save_folder} are from "
                "before: go on from them"
            )
        return ValueError(
            f"epoch {self.hparams.epoch_counter.current}, step {step}: {what} "
            f"is not finite; {go_on} with a lower --initial_lr{precision}"
        )

    def _save_intra_epoch_ckpt(self):
        self._check_weights()
        super()._save_intra_epoch_ckpt()

    def _should_save_intra_epoch_ckpt(self, *args):
        # Not between the parts of a global batch: gradients are not saved.
        whole = self.step % self.grad_accumulation_factor == 0
        return whole and super()._should_save_intra_epoch_ckpt(*args)

    def on_stage_end(self, stage, loss, epoch=None):
        """Validates, logs and saves a checkpoint."""
        self._check_weights()
        run_on_main(self._end_epoch, args=[loss, epoch])
        self.progress.reset()

    def _end_epoch(self, loss, epoch):
        eer = self.validate()
        margin = self.hparams.margin_schedule
        progress = self.progress
        # Nothing was done if a run resumes at the very end of an epoch that
        # had a checkpoint there.
        seconds = max(progress.seconds, 1e-9)
        stats = {
            "stats_meta": {
                "epoch": epoch,
                "lr": self.optimizer.param_groups[0]["lr"],
                "margin": margin.value_at(margin.step - 1),
            },
            "train_stats": {
                "loss": loss,
                "accuracy": progress.correct / max(progress.utterances, 1),
                "crops per second": progress.utterances / seconds,
                "share of time waiting": progress.seconds_waiting / seconds,
                "unusable files": progress.replaced,
            },
            "valid_stats": {"EER": eer},
        }
        for train_logger in self.loggers:
            if isinstance(train_logger, TensorboardLogger):
                # It counts from 0 in every run, but this may be a resumed one.
                train_logger.global_step = {
                    "train": dict.fromkeys(stats["train_stats"], epoch - 1),
                    "valid": dict.fromkeys(stats["valid_stats"], epoch - 1),
                    "meta": epoch - 1,
                }
            train_logger.log_stats(**stats)
        plot_training_curves(
            self.hparams.train_log, self.hparams.training_curves
        )
        checkpointer = self.checkpointer
        checkpointer.save_checkpoint(meta={"EER": eer, "epoch": epoch})
        best = checkpointer.find_checkpoint(min_key="EER").path
        for kept, in_epoch in (
            (self.hparams.checkpoints_kept, False),
            (0, True),
        ):
            checkpointer.delete_checkpoints(
                num_to_keep=kept,
                ckpt_predicate=lambda saved, in_epoch=in_epoch: (
                    saved.path != best
                    and (INTRA_EPOCH_CKPT_FLAG in saved.meta) == in_epoch
                ),
            )

    def validate(self):
        """Equal error rate on the validation trials, per cent."""
        network = unwrap(self.modules.embedding_model).eval()

        def encode_batch(wavs, wav_lens):
            with torch.no_grad(), self.evaluation_ctx:
                embeddings = network(
                    wavs.to(self.device), wav_lens.to(self.device)
                )
            # All of them: that is not a file's fault.
            if not embeddings.isfinite().any():
                raise self._diverged("what the network gives")
            return embeddings

        embeddings = encode_utterances(
            encode_batch,
            self.paths.values(),
            seconds_per_batch=self.hparams.validation_seconds_per_batch,
            maximum_seconds=self.hparams.validation_seconds,
        )
        network.train()
        units = CosineBackend().test_side(
            torch.stack([embeddings[path] for path in self.paths.values()])
        )
        row = {name: row for row, name in enumerate(self.paths)}
        enrolments = torch.tensor([row[name] for _, name, _ in self.trials])
        tests = torch.tensor([row[name] for _, _, name in self.trials])
        scores = trial_scores(units, units, enrolments, tests)
        same = torch.tensor([label for label, *_ in self.trials]) == 1
        return 100 * EER(scores[same], scores[~same])[0]


def unwrap(module):
    """The module inside DistributedDataParallel and torch.compile's."""
    module = getattr(module, "module", module)
    return getattr(module, "_orig_mod", module)


def load_utterances(hparams, validation_trials):
    """Lists the training utterances, without those of the trials.

    Arguments
    ---------
    hparams : dict
        Hyperparameters.
    validation_trials : list of tuple
        Trials (label, enrolment, test); their utterances are left out.

    Returns
    -------
    utterances : UtteranceList
        The utterances.
    speakers : CategoricalEncoder
        Their speakers.
    """
    lists = hparams.get("training_lists")
    if not lists:
        shards = Path(hparams["data_folder"]) / "train.csv"
        lists = {"": shards} if shards.exists() else None
    replacements = {}
    if not lists:
        run_on_main(
            prepare_voxceleb,
            kwargs={
                "data_folder": hparams["data_folder"],
                "save_folder": hparams["save_folder"],
                "test_trials": hparams["test_trials"],
                "validation_trials": hparams["validation_trials"],
                "minimum_seconds": hparams["minimum_seconds"],
                "check_audio": hparams["check_audio"],
                "corpora": hparams["corpora"],
                "allow_incomplete": hparams["allow_incomplete"],
                "workers": hparams["preparation_workers"],
            },
        )
        lists = {"": Path(hparams["save_folder"]) / "train.csv"}
        replacements = {
            "data_root": hparams["data_folder"],
            "save_root": hparams["save_folder"],
        }
    test_trials = hparams["test_trials"]
    if isinstance(test_trials, str):
        test_trials = [test_trials]
    left_out_speakers = {
        name.split("/")[0]
        for path in test_trials
        for _, *pair in read_trials(path)
        for name in pair
    }
    left_out_utterances = {
        utterance_name(name) for _, *pair in validation_trials for name in pair
    }
    utterances = UtteranceList()
    for prefix, path in lists.items():
        utterances.add(
            path,
            replacements or {"data_root": Path(path).parent},
            prefix,
            hparams["minimum_seconds"],
            left_out_speakers,
            left_out_utterances,
        )
    if not len(utterances):
        raise ValueError(
            f"{', '.join(map(str, lists.values()))}: no utterance is left for "
            "training"
        )
    speakers = CategoricalEncoder()
    names = [os.fsdecode(name) for name in np.unique(utterances.speakers)]
    if len(names) == 1:
        raise ValueError(
            f"{', '.join(map(str, lists.values()))}: {names[0]} is the only "
            "speaker that is left for training; more are needed in "
            "data_folder or the lists, beside those of test_trials"
        )
    speakers.expect_len(len(names))
    for index, name in enumerate(names):  # update_from_iterable is quadratic
        speakers.insert_label(name, index)
    logger.info(
        f"Training on {len(utterances)} utterances of {len(names)} speakers"
    )
    return utterances, speakers


def build_loggers(hparams):
    """The loggers that are asked for.

    Arguments
    ---------
    hparams : dict
        Hyperparameters.

    Returns
    -------
    list of speechbrain.utils.train_logger.TrainLogger
    """
    loggers = [hparams["train_logger"]]
    folder = hparams["output_folder"]
    try:
        if hparams["tensorboard"]:
            loggers.append(TensorboardLogger(f"{folder}/tensorboard"))
        if hparams["wandb_project"] is not None:
            import wandb

            loggers.append(
                WandBLogger(
                    wandb.init,
                    project=hparams["wandb_project"],
                    dir=folder,
                    resume="allow",
                    id=Path(folder).name,
                )
            )
    except ImportError as error:
        raise ValueError(
            f"{error.name} is not installed; pip install {error.name}, or set "
            "tensorboard: False and wandb_project: null"
        ) from None
    return loggers


def check_settings(hparams):
    """Refuses wrong settings, so that none fails later.

    Arguments
    ---------
    hparams : dict
        Hyperparameters.
    """
    check_types(
        hparams,
        **({} if "training_lists" in hparams else {"data_folder": str}),
        validation_folder=str,
        validation_trials=str,
        output_folder=str,
        number_of_epochs=int,
        batch_size=int,
        global_batch_size=int,
        checkpoints_kept=int,
        num_workers=int,
        crop_frames=int,
        minimum_seconds=float,
        loss_weight_decay=float,
        validation_seconds=float,
        validation_seconds_per_batch=float,
    )
    check_at_least(
        hparams,
        number_of_epochs=1,
        batch_size=1,
        global_batch_size=1,
        checkpoints_kept=1,
        num_workers=0,
        crop_frames=10,
        minimum_seconds=0.1,
        loss_weight_decay=0,
        validation_seconds=0.1,
        validation_seconds_per_batch=0.1,
    )
    check_variant(hparams["variant"], hparams["embedding_model"])


def check_variant(variant, network):
    """Refuses the name of a variant for a network that is not one of it.

    Arguments
    ---------
    variant : str or None
        The name; None for other networks.
    network : torch.nn.Module
        The network.
    """
    if variant is None:
        return
    differing = "this network"
    if variant in VARIANTS:
        differing = difference(network, variant)
    if differing is not None:
        raise ValueError(
            f"variant: {variant!r} does not go with {differing}; the variants "
            f"are {', '.join(VARIANTS)}, and null is for other networks"
        )


def load_validation(hparams):
    """Reads the validation trials and finds their files.

    Arguments
    ---------
    hparams : dict
        Hyperparameters.

    Returns
    -------
    trials : list of tuple
        Trials (label, enrolment, test).
    paths : dict
        Each name in the trials to its path.
    """
    if not os.path.isfile(hparams["validation_trials"]):
        raise ValueError(
            f"validation_trials: no file {hparams['validation_trials']}; pass "
            "--validation_folder=..., the folder that holds wav/ and the trial "
            "list of VoxCeleb1"
        )
    trials = read_trials(hparams["validation_trials"])
    check_labels(trials, "validation_trials", hparams["validation_trials"])
    paths = find_files(
        (name for _, *pair in trials for name in pair),
        hparams["validation_folder"],
        hparams["output_folder"],
        key="validation_folder",
    )
    return trials, paths


def build_brain(hparams, run_opts):
    """Reads the lists and puts together all that trains.

    Arguments
    ---------
    hparams : dict
        Hyperparameters.
    run_opts : RunOptions
        SpeechBrain's run options, such as ``device``.

    Returns
    -------
    brain : SpeakerBrain
        Trains by ``brain.fit(hparams["epoch_counter"], loader)``.
    loader : torch.utils.data.DataLoader
        Batches of crops.
    speakers : CategoricalEncoder
        The speakers.
    """
    trials, paths = load_validation(hparams)
    hparams["augment"].check()
    run_on_main(hparams["checkpointer"].set_damaged_aside)
    utterances, speakers = load_utterances(hparams, trials)
    run_on_main(keep_speakers, args=[speakers, hparams["checkpointer"]])

    batches = GlobalBatches(
        utterances.shards,
        hparams["global_batch_size"],
        hparams["batch_size"],
        hparams["seed"],
        # Set by torchrun.
        process=int(os.environ.get("RANK", 0)),
        processes=int(os.environ.get("WORLD_SIZE", 1)),
    )
    check_batch_norm(
        batches, hparams["embedding_model"], hparams["synchronize_batchnorm"]
    )
    hparams["lr_schedule"].steps_per_epoch = batches.steps
    hparams["lr_schedule"].scale = batches.global_batch_size / 64
    hparams["margin_schedule"].steps_per_epoch = batches.steps

    classifier = hparams["classifier"](
        out_neurons=len(speakers) * len(hparams["crop"].speeds)
    )
    hparams["checkpointer"].add_recoverable("classifier", classifier)
    fresh = not hparams["checkpointer"].list_checkpoints()
    if fresh and hparams["pretrained_folder"] is not None:
        matched, unmatched = load_pretrained(
            hparams["pretrained_folder"],
            hparams["embedding_model"],
            classifier,
            speakers,
            hparams["compute_cost"],
        )
        logger.info(
            f"Fine-tuning: {matched} speakers have the class weights of the "
            f"pretraining, {unmatched} are new"
        )
    if run_opts.ckpt_interval_steps > 0:
        hparams["ckpt_interval_minutes"] = 0  # SpeechBrain takes one of them
    brain = SpeakerBrain(
        modules={**hparams["modules"], "classifier": classifier},
        opt_class=hparams["opt_class"],
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=hparams["checkpointer"],
        trials=trials,
        paths=paths,
        batches=batches,
        loggers=build_loggers(hparams),
    )
    brain.grad_accumulation_factor = batches.accumulation
    crops = TrainingCrops(
        utterances,
        speakers,
        hparams["crop"],
        hparams["augment"],
        hparams["epoch_random"],
        hparams["on_bad_audio"],
    )
    loader = DataLoader(
        crops,
        batch_sampler=batches,
        num_workers=hparams["num_workers"],
        collate_fn=PaddedBatch,
        pin_memory=brain.device_type == "cuda",
    )
    return brain, loader, speakers


def main(arguments):
    """Prepares the data, trains, and writes the model folder.

    Arguments
    ---------
    arguments : list of str
        The command line.
    """
    hparams_file, run_opts, overrides = parse_command_line(arguments)
    refuse_run_options(run_opts.overridden_args, UNUSED_RUN_OPTIONS)
    sb.utils.distributed.ddp_init_group(run_opts)
    hparams = load_hparams(hparams_file, overrides)
    refuse_run_options(hparams, UNUSED_HPARAMS)
    check_settings(hparams)
    # The main process alone, for it writes.
    with (
        only_writer(hparams["output_folder"], "training")
        if if_main_process()
        else contextlib.nullcontext()
    ):
        train(hparams, hparams_file, run_opts, overrides)


def train(hparams, hparams_file, run_opts, overrides):
    """Trains in an output folder that is this training's own.

    Arguments
    ---------
    hparams : dict
        Hyperparameters.
    hparams_file : str
        The file they are from.
    run_opts : RunOptions
        SpeechBrain's run options, such as ``device``.
    overrides : str
        What the command line replaced in the file, as YAML.
    """
    # Before hyperparams.yaml in the output folder is replaced.
    settings = training_settings(hparams)
    run_on_main(hparams["checkpointer"].keep_settings, args=[settings])
    sb.core.create_experiment_directory(
        experiment_directory=hparams["output_folder"],
        hyperparams_to_save=hparams_file,
        overrides=overrides,
    )
    # They write their details into log.txt.
    for name in ("matplotlib", "filelock"):
        logging.getLogger(name).setLevel(logging.WARNING)
    brain, loader, speakers = build_brain(hparams, run_opts)
    brain.fit(hparams["epoch_counter"], loader)
    if brain.debug and not brain.debug_persistently:
        return  # there may be the model of a whole training

    # Faster and slower versions of the speakers were for training only.
    class_weights = unwrap(brain.modules.classifier).weight[: len(speakers)]
    run_on_main(
        write_model_folder,
        kwargs={
            "folder": hparams["model_folder"],
            "network": unwrap(brain.modules.embedding_model),
            "title": hparams["title"],
            "variant": hparams["variant"],
            "class_weights": class_weights,
            "speakers": [
                speakers.decode_ndim(index) for index in range(len(speakers))
            ],
            "loss": unwrap(brain.modules.compute_cost),
        },
    )
    run_on_main(print, args=[f"Model folder: {hparams['model_folder']}"])


if __name__ == "__main__":
    main_with_one_line_errors(main)
