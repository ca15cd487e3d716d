"""Checkpoints that are either complete or not there.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import json
import logging
import os
import shutil
import zlib

from speechbrain.dataio.encoder import CategoricalEncoder
from speechbrain.utils.checkpoints import CKPT_PREFIX, Checkpoint, Checkpointer
from speechbrain.utils.distributed import if_main_process, run_on_main
from speechbrain.utils.logger import get_logger

from redimnet2_lobes.files.atomic import complete_or_absent, replace_when_synced
from redimnet2_lobes.files.error_lines import one_line

logger = get_logger(__name__)

CHECKS = "checks.json"


class CompleteCheckpointer(Checkpointer):
    """SpeechBrain's ``Checkpointer``, safe against kills and damaged files.

    SpeechBrain writes the files into the checkpoint's folder one by one, and
    the file that marks it as a checkpoint first: after a kill in between, it
    tries to load what is not there. Here a checkpoint grows in the folder
    ``.partial``, is written to the disk, and is moved when it is complete.

    With it goes ``checks.json``: checksums of its files, and the settings that
    must be the same in a run that goes on from it.

    Takes what ``speechbrain.utils.checkpoints.Checkpointer`` takes.

    Example
    -------
    >>> import torch
    >>> folder = getfixture("tmp_path")
    >>> layer = torch.nn.Linear(2, 2)
    >>> checkpointer = CompleteCheckpointer(folder, {"layer": layer})
    >>> checkpoint = checkpointer.save_checkpoint()
    >>> sorted(path.name for path in checkpoint.path.iterdir())
    ['CKPT.yaml', 'checks.json', 'layer.ckpt']
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.settings = {}

    def keep_settings(self, settings):
        """Notes what must not change, or compares it with the checkpoints.

        Arguments
        ---------
        settings : dict
            Values by key; they go into each checkpoint, as JSON.

        Raises
        ------
        ValueError
            If the newest checkpoint has other ones.

        Example
        -------
        >>> checkpointer = CompleteCheckpointer(getfixture("tmp_path"))
        >>> checkpointer.keep_settings({"speeds": [1.0, 0.9]})
        >>> saved = checkpointer.save_checkpoint()
        >>> checkpointer.keep_settings({"speeds": [1.0]})
        Traceback (most recent call last):
        ValueError: speeds: not as in the checkpoints of ...; choose another \
--output_folder, or take again speeds: [1.0, 0.9]
        """
        settings = json.loads(json.dumps(settings, default=str))
        for folder in self._folders():
            try:
                before = _read_checks(folder)["settings"]
            except (OSError, ValueError, LookupError, TypeError):
                continue  # set_damaged_aside has more to say
            changed = [
                key
                for key in {**settings, **before}
                if settings.get(key) != before.get(key)
            ]
            if changed:
                values = (
                    f"{key}: {json.dumps(before.get(key))}" for key in changed
                )
                raise ValueError(
                    f"{', '.join(changed)}: not as in the checkpoints of "
                    f"{self.checkpoints_dir}; choose another --output_folder, "
                    f"or take again {', '.join(values)}"
                )
            break
        self.settings = settings

    def set_damaged_aside(self):
        """Renames damaged checkpoints, with a warning that names the file.

        Raises
        ------
        ValueError
            If none is left; then none is renamed.
        """
        folders = self._folders()
        faults = {folder: _fault(folder) for folder in folders}
        damaged = [folder for folder in folders if faults[folder]]
        if damaged and damaged == folders:
            raise ValueError(
                f"{damaged[0]}: {faults[damaged[0]]}, and there is no other "
                "checkpoint that is whole; bring back a copy, or choose "
                "another --output_folder to start anew"
            )
        for folder in damaged:
            aside = folder.with_name(f"DAMAGED+{folder.name}")
            # Its copy, brought back, may be damaged as well.
            shutil.rmtree(aside, ignore_errors=True)
            os.replace(folder, aside)
            logger.warning(
                f"{folder}: {faults[folder]}; renamed to {aside.name}, and the "
                "newest whole checkpoint counts"
            )

    def recover_if_possible(self, *args, **kwargs):
        """Goes on from the newest checkpoint that is whole.

        Arguments
        ---------
        *args : tuple
            As in SpeechBrain, another choice among the checkpoints.
        **kwargs : dict
            As in SpeechBrain.

        Returns
        -------
        speechbrain.utils.checkpoints.Checkpoint or None
            The checkpoint; None if there is none.

        Raises
        ------
        ValueError
            If all are damaged, or it is one of another training.
        """
        run_on_main(self.set_damaged_aside)
        return super().recover_if_possible(*args, **kwargs)

    def load_checkpoint(self, checkpoint):
        """Loads a checkpoint.

        Arguments
        ---------
        checkpoint : speechbrain.utils.checkpoints.Checkpoint
            The checkpoint.

        Raises
        ------
        ValueError
            If it does not fit what is to be recovered.
        """
        try:
            super().load_checkpoint(checkpoint)
        except OSError:
            raise
        # Its files are whole, so this run has other objects.
        except Exception as error:
            raise ValueError(
                f"{checkpoint.path}: a checkpoint of another training; choose "
                "another --output_folder, or take its settings again "
                f"({one_line(error)})"
            ) from error

    def save_checkpoint(
        self, meta=None, end_of_epoch=True, name=None, verbosity=logging.INFO
    ):
        """Saves a checkpoint.

        Arguments
        ---------
        meta : dict or None
            What to note beside the checkpoint.
        end_of_epoch : bool
            Whether an epoch is complete.
        name : str or None
            Name of the checkpoint; None for one made of the time.
        verbosity : int
            Level of the log message.

        Returns
        -------
        speechbrain.utils.checkpoints.Checkpoint or None
            The checkpoint; None on processes other than the main one.

        Raises
        ------
        OSError
            If it cannot be written; earlier checkpoints stay as they are.
        """
        folder = self.checkpoints_dir
        if name is None:
            name = self._new_checkpoint_dirpath().name
            name = name.removeprefix(f"{CKPT_PREFIX}+")
        partial = folder / ".partial"
        if if_main_process():
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
        self.checkpoints_dir = partial
        try:
            saved = super().save_checkpoint(
                meta or {}, end_of_epoch, name, logging.DEBUG
            )
            if saved is None:
                return None
            path = folder / saved.path.name
            self._write_checks(saved.path)
            replace_when_synced(saved.path, path)
        except (OSError, RuntimeError) as error:  # torch's is a RuntimeError
            if not if_main_process():  # which alone writes
                raise
            shutil.rmtree(partial, ignore_errors=True)
            raise OSError(
                f"{folder}: cannot write a checkpoint ({one_line(error)}); "
                "free some space, and the same command goes on from the last "
                "one"
            ) from error
        finally:
            self.checkpoints_dir = folder
        partial.rmdir()
        logger.log(verbosity, f"Saved a checkpoint in {path}")
        return Checkpoint(
            path,
            saved.meta,
            {key: path / file.name for key, file in saved.paramfiles.items()},
        )

    def _write_checks(self, folder):
        checks = {
            "settings": self.settings,
            "crc32": {path.name: _crc32(path) for path in folder.iterdir()},
        }
        (folder / CHECKS).write_text(json.dumps(checks), encoding="utf-8")

    def _folders(self):
        """The checkpoints' folders, the newest first, damaged or not."""
        folders = self.checkpoints_dir.glob(f"{CKPT_PREFIX}+*")
        return sorted(folders, key=lambda folder: folder.name, reverse=True)


def training_settings(hparams):
    """What must be the same in all runs of a training.

    A checkpoint would be refused by the network or the optimizer, or put on
    other classes, or bring back its own value, such as the weight decay.

    Arguments
    ---------
    hparams : dict
        Hyperparameters of a training.

    Returns
    -------
    dict
        Values by key.
    """
    network = hparams["embedding_model"]
    optimizer = hparams["opt_class"]  # !name makes a functools.partial
    options = getattr(optimizer, "keywords", {})
    pretrained = hparams["pretrained_folder"]
    return {
        "variant": hparams["variant"],
        "embedding_model": type(network).__name__,
        **(network.arguments() if hasattr(network, "arguments") else {}),
        "speeds": list(hparams["crop"].speeds),
        "compute_cost": [
            type(module).__name__
            for module in hparams["compute_cost"].modules()
        ],
        "opt_class": getattr(optimizer, "func", optimizer).__name__,
        # The schedule sets the learning rate anew at every step.
        **{key: value for key, value in options.items() if key != "lr"},
        "loss_weight_decay": hparams["loss_weight_decay"],
        "lr_schedule": type(hparams["lr_schedule"]).__name__,
        "margin_schedule": type(hparams["margin_schedule"]).__name__,
        "seed": hparams["seed"],
        "pretrained_folder": pretrained and os.path.abspath(pretrained),
    }


def keep_speakers(speakers, checkpointer):
    """Notes the speakers, or compares them with those of the checkpoints.

    Arguments
    ---------
    speakers : CategoricalEncoder
        Speaker names.
    checkpointer : Checkpointer
        Has the checkpoints that the run may go on from.

    Raises
    ------
    ValueError
        If they are others, or the file that names them is damaged.

    Example
    -------
    >>> checkpointer = CompleteCheckpointer(getfixture("tmp_path") / "save")
    >>> speakers = CategoricalEncoder()
    >>> speakers.update_from_iterable(["anna", "bert"], sequence_input=False)
    >>> keep_speakers(speakers, checkpointer)
    >>> saved = checkpointer.save_checkpoint()
    >>> speakers.update_from_iterable(["carl"], sequence_input=False)
    >>> keep_speakers(speakers, checkpointer)
    Traceback (most recent call last):
    ValueError: output_folder: ... holds a run on other speakers; choose \
another, or delete it
    """
    path = checkpointer.checkpoints_dir / "label_encoder.txt"
    if not checkpointer.list_checkpoints():
        with complete_or_absent(path) as partial:
            speakers.save(partial)
    try:
        before = CategoricalEncoder.from_saved(path)
    except Exception as error:
        raise ValueError(
            f"{path}: missing or damaged, so the classes of the checkpoints "
            "are unknown; bring back a copy, or choose another --output_folder"
        ) from error
    if before.lab2ind != speakers.lab2ind:
        raise ValueError(
            f"output_folder: {path.parent.parent} holds a run on other "
            "speakers; choose another, or delete it"
        )


def _read_checks(folder):
    return json.loads((folder / CHECKS).read_text(encoding="utf-8"))


def _fault(folder):
    """What is wrong with a checkpoint, or None."""
    name = CHECKS
    try:
        for name, checksum in _read_checks(folder)["crc32"].items():
            if _crc32(folder / name) != checksum:
                return f"{name} is damaged"
    except FileNotFoundError:
        return f"{name} is missing"
    except (IsADirectoryError, NotADirectoryError):
        return f"{name} is damaged"
    # Another OSError says nothing of the file: the disk may be back tomorrow.
    except (ValueError, LookupError, TypeError, AttributeError):
        return f"{name} is damaged"
    return None


def _crc32(path):
    checksum = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            checksum = zlib.crc32(block, checksum)
    return checksum
