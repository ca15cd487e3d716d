#!/usr/bin/env python3
"""Recipe for training ReDimNet2 speaker embeddings on VoxCeleb.

To run it:

> python train_speaker_embeddings.py hparams/redimnet2_b3.yaml \
    --data_folder /path/to/VoxCeleb2 --validation_folder /path/to/VoxCeleb1

The network learns to classify the speakers of short crops. After every epoch
the equal error rate on a validation trial list is logged; the checkpoints of
the best and of the last epoch are kept. The same command resumes an
interrupted run. At the end <output_folder>/model holds what
``EncoderClassifier.from_hparams(source=...)`` loads.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import os
from pathlib import Path

import speechbrain as sb
import torch
from command_line import (
    check_at_least,
    check_types,
    load_hparams,
    main_with_one_line_errors,
    parse_command_line,
)
from speaker_verification_cosine import (
    check_labels,
    cosine_scores,
    find_files,
)
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.dataio.encoder import CategoricalEncoder
from speechbrain.utils.data_pipeline import provides, takes
from speechbrain.utils.distributed import if_main_process, run_on_main
from speechbrain.utils.logger import get_logger
from trials import read_trials
from voxceleb_prepare import prepare_voxceleb

from redimnet2_lobes.inference import encode_utterances
from redimnet2_lobes.metrics import EER
from redimnet2_lobes.model_folder import write_model_folder
from redimnet2_lobes.plots import plot_training_curves
from redimnet2_lobes.published import VARIANTS

logger = get_logger(__name__)


class SpeakerBrain(sb.core.Brain):
    """Trains the embedding model by classifying speakers.

    Arguments
    ---------
    trials : list of tuple
        Validation trials (label, enrolment, test).
    paths : dict
        Each name in the trials to its path.
    *args : tuple
        Passed to ``Brain``.
    **kwargs : dict
        Passed to ``Brain``.
    """

    def __init__(self, *args, trials, paths, **kwargs):
        super().__init__(*args, **kwargs)
        self.trials = trials
        self.paths = paths

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
        if self.hparams.epoch_counter.current == 0:
            logger.info(f"EER before training: {self.validate():.2f} %")

    def on_stage_start(self, stage, epoch=None):
        """Other crops and noises in every epoch."""
        if stage == sb.Stage.TRAIN:
            self.hparams.epoch_random.epoch = epoch
            self.correct = self.seen = 0

    def on_fit_batch_start(self, batch, should_step):
        """Moves the learning rate and the margin, step by step."""
        if should_step:
            self.hparams.lr_schedule(self.optimizer)
            self.hparams.margin_schedule(self.modules.compute_cost)

    def compute_forward(self, batch, stage):
        """Waveforms to the cosines of all classes [batch, 1, classes]."""
        wavs, wav_lens = batch.to(self.device).sig
        embeddings = self.modules.embedding_model(wavs, wav_lens)
        # The loss works in float32 whatever the precision.
        with torch.autocast(embeddings.device.type, enabled=False):
            return self.modules.classifier(embeddings.float())

    def compute_objectives(self, cosines, batch, stage):
        """Loss of a batch."""
        labels = batch.label.to(self.device)
        predictions = cosines.detach().squeeze(1).argmax(1)
        self.correct += (predictions == labels).sum().item()
        self.seen += len(labels)
        # [batch, 1], as SpeechBrain's LogSoftmaxWrapper wants them.
        return self.modules.compute_cost(cosines, labels.unsqueeze(1))

    def on_stage_end(self, stage, loss, epoch=None):
        """Validates, logs and saves a checkpoint."""
        eer = self.validate()
        if if_main_process():
            margin = self.hparams.margin_schedule
            self.hparams.train_logger.log_stats(
                stats_meta={
                    "epoch": epoch,
                    "lr": self.optimizer.param_groups[0]["lr"],
                    "margin": margin.value_at(margin.step - 1),
                },
                train_stats={
                    "loss": loss,
                    # Nothing is left to see if a run resumes at the very end
                    # of an epoch.
                    "accuracy": self.correct / max(self.seen, 1),
                },
                valid_stats={"EER": eer},
            )
            plot_training_curves(
                self.hparams.train_log, self.hparams.training_curves
            )
        # Brain resets these after this call, but the checkpoint holds them, and
        # a resumed run starts a new epoch.
        self.step, self.avg_train_loss = 0, 0.0
        self.checkpointer.save_and_keep_only(
            meta={"EER": eer, "epoch": epoch}, min_keys=["EER"]
        )

    @torch.no_grad()
    def validate(self):
        """Equal error rate on the validation trials, per cent."""
        network = unwrap(self.modules.embedding_model).eval()

        def encode_batch(wavs, wav_lens):
            with self.evaluation_ctx:
                return network(wavs.to(self.device), wav_lens.to(self.device))

        embeddings = encode_utterances(
            encode_batch,
            self.paths.values(),
            seconds_per_batch=self.hparams.validation_seconds_per_batch,
            maximum_seconds=self.hparams.validation_seconds,
        )
        network.train()
        scores = cosine_scores(
            self.trials,
            {name: embeddings[path] for name, path in self.paths.items()},
        )
        same = torch.tensor([label for label, *_ in self.trials]) == 1
        return 100 * EER(scores[same], scores[~same])[0]


def unwrap(module):
    """The module inside DistributedDataParallel."""
    return getattr(module, "module", module)


def load_training_data(hparams):
    """Builds the training set of random crops.

    Arguments
    ---------
    hparams : dict
        Hyperparameters.

    Returns
    -------
    dataset : DynamicItemDataset
        Items ``sig`` [samples] and ``label`` (class index).
    speakers : CategoricalEncoder
        Speaker names.
    """
    dataset = DynamicItemDataset.from_csv(
        Path(hparams["save_folder"]) / "train.csv",
        replacements={
            "data_root": hparams["data_folder"],
            "save_root": hparams["save_folder"],
        },
    )
    names = sorted({item["spk_id"] for item in dataset.data.values()})
    speakers = CategoricalEncoder()
    speakers.expect_len(len(names))
    speakers.update_from_iterable(names, sequence_input=False)
    crop, augment = hparams["crop"], hparams["augment"]
    epoch_random = hparams["epoch_random"]

    @takes("id", "wav", "spk_id")
    @provides("sig", "label")
    def read_crop(utterance, path, speaker):
        random = epoch_random(utterance)
        waveform, speed = crop(path, random)
        yield augment(waveform, random)
        # Each speed makes a new class of each speaker.
        yield speakers.encode_label(speaker) + speed * len(speakers)

    dataset.add_dynamic_item(read_crop)
    dataset.set_output_keys(["id", "sig", "label"])
    return dataset, speakers


def keep_speakers(speakers, checkpointer):
    """Notes the speakers, or compares them with those of the checkpoints.

    Arguments
    ---------
    speakers : CategoricalEncoder
        Speaker names.
    checkpointer : Checkpointer
        Has the checkpoints that the run may go on from.
    """
    path = checkpointer.checkpoints_dir / "label_encoder.txt"
    if not checkpointer.list_checkpoints():
        partial = path.with_name("label_encoder.txt.part")
        speakers.save(partial)
        os.replace(partial, path)
    before = CategoricalEncoder.from_saved(path)
    if before.lab2ind != speakers.lab2ind:
        raise ValueError(
            f"output_folder: {path.parent.parent} holds a run on other "
            "speakers; choose another, or delete it"
        )


def main(arguments):
    """Prepares the data, trains, and writes the model folder.

    Arguments
    ---------
    arguments : list of str
        The command line.
    """
    hparams_file, run_opts, overrides = parse_command_line(arguments)
    sb.utils.distributed.ddp_init_group(run_opts)
    hparams = load_hparams(hparams_file, overrides)
    check_types(
        hparams,
        data_folder=str,
        validation_folder=str,
        validation_trials=str,
        output_folder=str,
        number_of_epochs=int,
        batch_size=int,
        num_workers=int,
        crop_seconds=float,
        minimum_seconds=float,
        loss_weight_decay=float,
        validation_seconds=float,
        validation_seconds_per_batch=float,
    )
    check_at_least(
        hparams,
        number_of_epochs=1,
        batch_size=1,
        num_workers=0,
        crop_seconds=0.1,
        minimum_seconds=0.1,
        loss_weight_decay=0,
        validation_seconds=0.1,
        validation_seconds_per_batch=0.1,
    )
    if not os.path.isfile(hparams["validation_trials"]):
        raise ValueError(
            f"validation_trials: no file {hparams['validation_trials']}; pass "
            "--validation_folder=..., the folder that holds wav/ and the trial "
            "list of VoxCeleb1"
        )
    trials = read_trials(hparams["validation_trials"])
    check_labels(trials, "validation_trials", hparams["validation_trials"])
    paths = find_files(
        trials, hparams["validation_folder"], key="validation_folder"
    )
    variant = VARIANTS.get(hparams["base_channels"])
    if hparams["variant"] not in (None, variant):
        raise ValueError(
            f"variant: {hparams['variant']!r} does not go with base_channels: "
            f"{hparams['base_channels']}; the variants are "
            f"{', '.join(VARIANTS.values())}, and null is for other networks"
        )
    sb.core.create_experiment_directory(
        experiment_directory=hparams["output_folder"],
        hyperparams_to_save=hparams_file,
        overrides=overrides,
    )
    run_on_main(
        prepare_voxceleb,
        kwargs={
            "data_folder": hparams["data_folder"],
            "save_folder": hparams["save_folder"],
            "test_trials": hparams["test_trials"],
            "validation_trials": hparams["validation_trials"],
            "minimum_seconds": hparams["minimum_seconds"],
            "workers": hparams["preparation_workers"],
        },
    )
    dataset, speakers = load_training_data(hparams)
    run_on_main(keep_speakers, args=[speakers, hparams["checkpointer"]])

    processes = int(os.environ.get("WORLD_SIZE", 1))  # set by torchrun
    accumulated = run_opts.grad_accumulation_factor
    global_batch = hparams["batch_size"] * processes * accumulated
    steps = len(dataset) // global_batch
    if steps == 0:
        raise ValueError(
            f"batch_size: {hparams['batch_size']} for {processes} processes "
            f"and {accumulated} accumulated batches is more than the "
            f"{len(dataset)} training utterances"
        )
    hparams["lr_schedule"].steps_per_epoch = steps
    hparams["lr_schedule"].scale = global_batch / 64
    hparams["margin_schedule"].steps_per_epoch = steps

    classifier = hparams["classifier"](
        out_neurons=len(speakers) * len(hparams["crop"].speeds)
    )
    hparams["checkpointer"].add_recoverable("classifier", classifier)
    brain = SpeakerBrain(
        modules={**hparams["modules"], "classifier": classifier},
        opt_class=hparams["opt_class"],
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=hparams["checkpointer"],
        trials=trials,
        paths=paths,
    )
    brain.fit(
        hparams["epoch_counter"],
        dataset,
        train_loader_kwargs=hparams["train_dataloader_opts"],
    )

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
        },
    )
    print(f"Model folder: {hparams['model_folder']}")


if __name__ == "__main__":
    main_with_one_line_errors(main)
