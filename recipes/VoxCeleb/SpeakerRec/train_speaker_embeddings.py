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
import os
from pathlib import Path

import speechbrain as sb
import torch
from speechbrain.utils.distributed import if_main_process, run_on_main
from speechbrain.utils.logger import get_logger
from torch.utils.data import DataLoader
from voxceleb_prepare import prepare_voxceleb

from redimnet2_lobes.data.training_set import (
    TrainingCrops,
    collate_crops,
    read_training_lists,
)
from redimnet2_lobes.data.trial_files import read_trial_lists
from redimnet2_lobes.files.folder_lock import only_writer
from redimnet2_lobes.models.precision import at_least_float32
from redimnet2_lobes.recipe.command_line import (
    main_with_one_line_errors,
    parse_command_line,
)
from redimnet2_lobes.recipe.hparams import load_hparams
from redimnet2_lobes.recipe.training import (
    check_hparams,
    check_options,
    warn_of_margin,
    write_model,
)
from redimnet2_lobes.scoring.plots import plot_training_curves
from redimnet2_lobes.training.batches import GlobalBatches, check_batch_norm
from redimnet2_lobes.training.brain import (
    GlobalBatchBrain,
    broadcast_buffers,
    unwrap,
)
from redimnet2_lobes.training.checkpointer import training_settings
from redimnet2_lobes.training.distillation import (
    distillation_loss,
    read_teacher,
)
from redimnet2_lobes.training.fine_tuning import (
    load_pretrained,
    start_new_classes,
)
from redimnet2_lobes.training.loggers import build_loggers, log_epoch
from redimnet2_lobes.training.sharded_classifier import ShardedClassifier
from redimnet2_lobes.training.validation import equal_error_rate

logger = get_logger(__name__)


class SpeakerBrain(GlobalBatchBrain):
    """Trains the embedding model by classifying speakers."""

    def compute_forward(self, batch, stage):
        """Waveforms to embeddings [batch, 1, embedding] and their cosines.

        These are of all classes [batch, 1, classes]. With classes in shares,
        they are of all processes' utterances and the classes of this process.
        """
        wavs, wav_lens = batch.to(self.device, non_blocking=True).sig
        embeddings = self.modules.embedding_model(wavs, wav_lens)
        # The loss works in float32 at least, whatever the precision.
        with torch.autocast(embeddings.device.type, enabled=False):
            embeddings = at_least_float32(embeddings)
            return embeddings, self.modules.classifier(embeddings)

    def compute_objectives(self, predictions, batch, stage):
        """Loss of a batch: that of speakers, and that of a teacher if any."""
        embeddings, cosines = predictions
        # Of weight 0 as well: gradients of all weights are expected.
        loss = self.hparams.label_weight * self.classification_loss(
            cosines, batch.label
        )
        if self.hparams.teacher_embeddings:
            loss = loss + distillation_loss(
                embeddings.squeeze(1),
                batch.teacher.data,  # none is padded
                self.hparams.teacher_weight,
                self.hparams.teacher_pairs_weight,
            )
        return loss

    def init_optimizers(self):
        """One optimizer; class weights have a weight decay of their own."""
        modules = self.modules
        loss_weights = {
            "params": [
                *modules.classifier.parameters(),
                *modules.compute_cost.parameters(),
            ],
            "weight_decay": self.hparams.loss_weight_decay,
        }
        network_weights = {"params": list(modules.embedding_model.parameters())}
        self.use_optimizer(self.opt_class([network_weights, loss_weights]))

    def on_fit_start(self):
        """Validates the untrained network: a bad file shows before training."""
        super().on_fit_start()
        if self.hparams.epoch_counter.current == 0 and not self.step:
            logger.info(f"EER before training: {self.validate():.2f} %")

    def on_fit_batch_start(self, batch, should_step):
        """Moves the learning rate and the margin, step by step."""
        super().on_fit_batch_start(batch, should_step)
        # With the first part of a global batch, as its loss has a margin too.
        if (self.step - 1) % self.grad_accumulation_factor == 0:
            self.hparams.lr_schedule(self.optimizer)
            self.hparams.margin_schedule(unwrap(self.modules.compute_cost))

    def on_stage_end(self, stage, loss, epoch=None):
        """Validates, logs and saves a checkpoint."""
        # What is checked and validated in all is what the main process saves.
        broadcast_buffers(self.modules.embedding_model)
        self.check_weights()
        eer = self.validate()
        # ``loss`` lacks the last batch, which is read only now.
        run_on_main(self.end_epoch, args=[self.avg_train_loss, epoch, eer])
        # By all processes, as each may hold a share of the classes.
        self.checkpointer.save_checkpoint(meta={"EER": eer, "epoch": epoch})
        run_on_main(
            self.checkpointer.keep_best_and_last,
            args=[self.hparams.checkpoints_kept, "EER"],
        )
        self.progress.reset()

    def end_epoch(self, loss, epoch, eer):
        """Logs an epoch, in the main process."""
        margin = self.hparams.margin_schedule
        meta = {
            "epoch": epoch,
            "lr": self.optimizer.param_groups[0]["lr"],
            "margin": margin.value_at(margin.step - 1),
        }
        train = {"loss": loss, **self.progress.figures()}
        if not self.hparams.label_weight:  # there is no speaker to tell
            del train["accuracy"]
        log_epoch(self.loggers, meta, train, {"EER": eer})
        plot_training_curves(
            self.hparams.train_log, self.hparams.training_curves
        )

    def validate(self):
        """Equal error rate on the validation trials, per cent.

        All processes share the work.
        """
        network = unwrap(self.modules.embedding_model).eval()
        eer = equal_error_rate(
            self.encode_batch,
            self.trials,
            self.hparams.validation_seconds,
            self.hparams.validation_seconds_per_batch,
        )
        network.train()
        return eer


def dataio_prep(hparams, validation_trials):
    """The training utterances, without those of trials, and their speakers."""
    lists = hparams.get("training_lists")
    labelled = hparams["label_weight"] > 0
    replacements = {}
    if not lists:
        folder = Path(hparams["data_folder"])  # shards have their list there
        if not (folder / "train.csv").exists():
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
            replacements = {
                "data_root": hparams["data_folder"],
                "save_root": hparams["save_folder"],
            }
            folder = Path(hparams["save_folder"])
        lists = {"": folder / "train.csv"}
    utterances, speakers = read_training_lists(
        lists,
        replacements,
        hparams["minimum_seconds"],
        hparams["test_trials"],
        validation_trials,
        hparams.get("replay_lists"),
        labelled=labelled,
    )
    known = f"{len(speakers)} speakers" if labelled else "unknown speakers"
    logger.info(f"Training on {len(utterances)} utterances of {known}")
    if utterances.replayed:
        logger.info(f"{utterances.replayed} of the utterances are for replay")
    return utterances, speakers


def build_brain(hparams, run_opts):
    """The Brain, the loader of its batches, and the speakers."""
    checkpointer = hparams["checkpointer"]
    network, loss = hparams["embedding_model"], hparams["compute_cost"]
    (trials,) = read_trial_lists(
        hparams["validation_trials"],
        hparams["validation_folder"],
        hparams["output_folder"],
        keys=("validation_trials", "validation_folder"),
    )
    run_on_main(checkpointer.set_damaged_aside)
    utterances, speakers = dataio_prep(hparams, trials.trials)
    run_on_main(checkpointer.keep_speakers, args=[speakers])

    batches = GlobalBatches(
        utterances.shards,
        hparams["global_batch_size"],
        hparams["batch_size"],
        hparams["seed"],
        process=int(os.environ.get("RANK", 0)),  # set by torchrun
        processes=int(os.environ.get("WORLD_SIZE", 1)),
        replayed=utterances.replayed,
        replay_share=hparams.get("replay_share", 0.0),
    )
    check_batch_norm(batches, network, hparams["synchronize_batchnorm"])
    hparams["lr_schedule"].scale = batches.global_batch_size / 64
    for schedule in (hparams["lr_schedule"], hparams["margin_schedule"]):
        schedule.steps_per_epoch = batches.steps
    if hparams["label_weight"]:
        warn_of_margin(hparams["margin_schedule"], hparams["number_of_epochs"])
    teacher = None
    if hparams["teacher_embeddings"]:
        teacher = read_teacher(
            hparams["teacher_embeddings"],
            [name for name, _, _ in utterances],
            network.arguments()["embedding_size"],
        )
    classes = len(speakers) * len(hparams["crop"].speeds)
    classifier = hparams["classifier"](out_neurons=classes)
    loss.check_labels = False  # there are as many classes as labels
    pretrained = hparams["pretrained_folder"]
    if pretrained is not None and not checkpointer.list_checkpoints():
        load_pretrained(pretrained, network, classifier, speakers, loss)
        if hparams.get("classes_from_embeddings"):
            start_new_classes(
                pretrained, network, classifier, speakers, utterances
            )
    if hparams["shard_classes"] and batches.processes > 1:
        classifier = ShardedClassifier(
            classifier, batches.process, batches.processes
        )
    checkpointer.add_recoverable("classifier", classifier)

    brain = SpeakerBrain(
        modules={**hparams["modules"], "classifier": classifier},
        opt_class=hparams["opt_class"],
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=checkpointer,
        batches=batches,
    )
    brain.trials = trials
    brain.loggers = build_loggers(
        hparams["train_logger"],
        hparams["output_folder"],
        hparams["tensorboard"],
        hparams["wandb_project"],
    )
    loader = DataLoader(
        TrainingCrops(
            utterances,
            speakers,
            hparams["crop"],
            hparams["augment"],
            hparams["epoch_random"],
            hparams["on_bad_audio"],
            teacher,
        ),
        batch_sampler=batches,
        num_workers=hparams["num_workers"],
        collate_fn=collate_crops,
        pin_memory=brain.device_type == "cuda",
    )
    return brain, loader, speakers


def main(arguments):
    """Trains in an output folder that is this training's own."""
    # What these say of themselves would fill log.txt.
    for name in ("matplotlib", "filelock"):
        logging.getLogger(name).setLevel(logging.WARNING)
    hparams_file, run_opts, overrides = parse_command_line(arguments)
    check_options(run_opts)
    sb.utils.distributed.ddp_init_group(run_opts)
    hparams = load_hparams(hparams_file, overrides)
    check_hparams(hparams)
    hparams["augment"].check()
    with contextlib.ExitStack() as stack:
        folder, settings = hparams["output_folder"], training_settings(hparams)
        if if_main_process():  # which alone writes
            stack.enter_context(only_writer(folder, "training"))
        # Before hyperparams.yaml in the output folder is replaced.
        run_on_main(hparams["checkpointer"].keep_settings, args=[settings])
        sb.core.create_experiment_directory(
            experiment_directory=folder,
            hyperparams_to_save=hparams_file,
            overrides=overrides,
        )
        brain, loader, speakers = build_brain(hparams, run_opts)
        brain.fit(hparams["epoch_counter"], loader)
        # In debugging there may be the model of a whole training.
        if not brain.debug or brain.debug_persistently:
            class_weights = brain.class_weights()
            run_on_main(
                write_model,
                args=[brain, speakers, class_weights],
                kwargs={
                    "folder": hparams["model_folder"],
                    "title": hparams["title"],
                    "variant": hparams["variant"],
                },
            )


if __name__ == "__main__":
    main_with_one_line_errors(main)
