"""Trainings in the test's own process, watched from inside.

``run`` is the recipe's ``main``; what reaches the network, the loss and the
optimizer is noted in a ``Watch``.
"""

import contextlib
import functools
import itertools
import logging
import os
import sys
from pathlib import Path

import soundfile
import torch
import train_speaker_embeddings as recipe
from synthetic_voices import synthetic_utterance

from redimnet2_lobes.recipe.hparams import build_hparam

HPARAMS = Path(__file__).parent.parent / "hparams"
TRAINING = ("anna", "bert", "carl", "dora")
TEST = ("emil", "fred")
SMALL = (
    "[{frequency_stride: 2, time_stride: 2, blocks: 1, expansion: 1, "
    "reduction: 18}, {frequency_stride: 3, time_stride: 2, blocks: 1, "
    "expansion: 1, reduction: 18}]"
)


def write_corpus(folder, utterances=6, seconds=1.2, extension="wav"):
    """Six synthetic speakers in VoxCeleb's layout, two of them for tests.

    The first two utterances of each training speaker are for validation.
    """
    names = {}
    for seed, speaker in enumerate(TRAINING + TEST):
        names[speaker] = []
        for utterance in range(utterances):
            session = f"session{utterance % 2}"
            name = f"{speaker}/{session}/{utterance:05d}.{extension}"
            path = folder / "wav" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            waveform = synthetic_utterance(seed, utterance, seconds)
            soundfile.write(path, waveform, 16000)
            names[speaker].append(name)
    validation = [name for each in TRAINING for name in names[each][:2]]
    write_trials(
        folder / "veri_test2.txt",
        [name for each in TEST for name in names[each]],
    )
    write_trials(folder / "veri_validation.txt", validation)
    return folder


def stages_of(hparams):
    """The stages of a shipped configuration, for the command line."""
    with open(HPARAMS / hparams, encoding="utf-8") as file:
        return build_hparam(file.name, "stages")


def write_trials(path, names):
    """All pairs of utterances, named speaker/session/utterance."""
    path.write_text(
        "".join(
            f"{int(a.split('/')[0] == b.split('/')[0])} {a} {b}\n"
            for a, b in itertools.combinations(names, 2)
        )
    )


def command_line(
    corpus, output, hparams="demo_redimnet2_b0.yaml", flags=(), **overrides
):
    """Arguments of a training of a small network.

    ``hparams`` is a file of ``hparams/`` or a path; ``flags`` are options
    without a value.
    """
    overrides = {
        "data_folder": corpus,
        "output_folder": output,
        "device": "cpu",
        "variant": "null",
        "base_channels": 4,
        "out_channels": "null",
        "stages": SMALL,
        "batch_size": 4,
        "global_batch_size": 4,
        "num_workers": 0,
        "crop_frames": 40,
        "noprogressbar": True,
        **overrides,
    }
    noprogressbar = ["--noprogressbar"] * bool(overrides.pop("noprogressbar"))
    options = [f"--{key}={value}" for key, value in overrides.items()]
    return [str(HPARAMS / hparams), *options, *noprogressbar, *flags]


class Watch:
    """What reaches the network, the loss and the optimizer of a training."""

    def __init__(self):
        self.brain = None
        self.items = []  # ids, waveforms and labels of each training batch
        self.forwards = []  # of the network: training, gradients, autocast
        self.losses = []  # margin, learning rate and value as the loss saw
        self.correct = []  # how many of each batch are told
        self.plots = []  # what was drawn, and where
        self.steps = []  # of the optimizer: settings of each parameter

    def attach(self, brain):
        """Starts to watch."""
        self.brain = brain
        modules = {
            name: recipe.unwrap(module)
            for name, module in brain.modules.items()
        }
        modules["embedding_model"].register_forward_hook(self._forward)
        modules["compute_cost"].register_forward_hook(self._loss)
        self.names = {
            id(weight): f"{name}.{key}"
            for name, module in modules.items()
            for key, weight in module.named_parameters()
        }
        objectives = brain.compute_objectives

        def compute_objectives(predictions, batch, stage):
            wavs = batch.sig.data.clone().cpu()
            self.items += zip(batch.id, wavs, batch.label.tolist(), strict=True)
            _, cosines = predictions
            if len(cosines) == len(batch.id):  # not divided among processes
                told = cosines.squeeze(1).argmax(1).cpu()
                self.correct.append((told == batch.label.cpu()).sum().item())
            return objectives(predictions, batch, stage)

        brain.compute_objectives = compute_objectives

    def attach_optimizer(self):
        """Once the optimizer is there."""
        self.brain.optimizer.register_step_pre_hook(self._step)

    def _forward(self, module, inputs, output):
        self.forwards.append(
            {
                "training": {each.training for each in module.modules()},
                "gradients": torch.is_grad_enabled(),
                "autocast": torch.is_autocast_enabled("cpu"),
                "dtype": output.dtype,
                "shape": tuple(inputs[0].shape),
            }
        )

    def _loss(self, module, inputs, output):
        inner = getattr(module, "loss_fn", module)
        self.losses.append(
            {
                "margin": inner.margin,
                "lr": self.brain.optimizer.param_groups[0]["lr"],
                "value": output.item(),
                "dtype": inputs[0].dtype,
                "training": module.training,
            }
        )

    def _step(self, optimizer, *_):
        self.steps.append(
            {
                self.names[id(weight)]: {
                    key: group[key] for key in ("lr", "weight_decay")
                }
                for group in optimizer.param_groups
                for weight in group["params"]
            }
        )


@contextlib.contextmanager
def logging_restored():
    """SpeechBrain sets up the logging of the whole process."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    hook, log_level = sys.excepthook, os.environ.get("SB_LOG_LEVEL")
    try:
        yield
    finally:
        for handler in set(root.handlers) - set(handlers):
            handler.close()
        root.handlers[:], sys.excepthook = handlers, hook
        root.setLevel(level)
        os.environ.pop("SB_LOG_LEVEL", None)
        if log_level is not None:
            os.environ["SB_LOG_LEVEL"] = log_level


def run(monkeypatch, arguments, before=lambda watch: None):
    """The recipe's ``main``, watched.

    ``before(watch)`` is called when all is loaded, before the first step.
    """
    watch = Watch()
    build_brain = recipe.build_brain

    def build(hparams, run_opts):
        brain, loader, speakers = build_brain(hparams, run_opts)
        watch.attach(brain)
        watch.hparams, watch.loader = hparams, loader
        watch.speakers = speakers
        on_fit_start = brain.on_fit_start

        def start():
            on_fit_start()
            watch.attach_optimizer()
            before(watch)

        brain.on_fit_start = start
        return brain, loader, speakers

    core = recipe.sb.core
    with monkeypatch.context() as patched, logging_restored():
        patched.setattr(recipe, "build_brain", build)
        # A list of all packages takes longer than the training.
        patched.setattr(
            core,
            "create_experiment_directory",
            functools.partial(
                core.create_experiment_directory, save_env_desc=False
            ),
        )
        # Drawing it takes longer than the epoch.
        patched.setattr(
            recipe,
            "plot_training_curves",
            lambda log, path: watch.plots.append((log, path)),
        )
        recipe.main(arguments)
    return watch
