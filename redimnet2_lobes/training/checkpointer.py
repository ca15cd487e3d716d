"""Checkpoints that are either complete or not there.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import json
import logging
import os
import shutil
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

from speechbrain.core import INTRA_EPOCH_CKPT_FLAG
from speechbrain.dataio.encoder import CategoricalEncoder
from speechbrain.utils.checkpoints import CKPT_PREFIX, Checkpoint, Checkpointer
from speechbrain.utils.distributed import (
    ddp_barrier,
    if_main_process,
    run_on_main,
)
from speechbrain.utils.logger import get_logger

from redimnet2_lobes.files.atomic import complete_or_absent, replace_when_synced
from redimnet2_lobes.files.error_lines import one_line
from redimnet2_lobes.files.json_files import read_json

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
    ``before_saving`` is called in all processes before a checkpoint is written;
    where it raises, none is. The folder is made when something is written.

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

    def __init__(self, checkpoints_dir: str | os.PathLike, *args, **kwargs):
        # SpeechBrain makes the folder at once, before settings are checked.
        super().__init__(os.curdir, *args, **kwargs)
        self.checkpoints_dir = Path(checkpoints_dir)
        self.settings: Mapping[str, object] = {}
        self.before_saving: Callable[[], None] = lambda: None

    def keep_settings(self, settings: Mapping[str, object]) -> None:
        """Notes what must not change, or compares it with the checkpoints.

        The settings go into each checkpoint, as JSON. It is a ValueError if the
        newest checkpoint has other ones.

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
            except (OSError, ValueError):
                continue  # set_damaged_aside has more to say
            changed = {
                key: json.dumps(before.get(key))
                for key in {**settings, **before}
                if settings.get(key) != before.get(key)
            }
            if changed:
                values = (f"{key}: {value}" for key, value in changed.items())
                raise ValueError(
                    f"{', '.join(changed)}: not as in the checkpoints of "
                    f"{self.checkpoints_dir}; choose another --output_folder, "
                    f"or take again {', '.join(values)}"
                )
            break
        self.settings = settings

    def keep_speakers(self, speakers: CategoricalEncoder) -> None:
        """Notes the speakers, or compares them with the checkpoints'.

        It is a ValueError if they are others, or if the file that names them is
        damaged.

        Example
        -------
        >>> checkpointer = CompleteCheckpointer(getfixture("tmp_path") / "save")
        >>> speakers = CategoricalEncoder()
        >>> speakers.update_from_iterable(["anna", "bert"], False)
        >>> checkpointer.keep_speakers(speakers)
        >>> saved = checkpointer.save_checkpoint()
        >>> speakers.update_from_iterable(["carl"], False)
        >>> checkpointer.keep_speakers(speakers)
        Traceback (most recent call last):
        ValueError: output_folder: ... holds a run on other speakers; choose \
another, or delete it
        """
        path = self.checkpoints_dir / "label_encoder.txt"
        if not self.list_checkpoints():
            path.parent.mkdir(parents=True, exist_ok=True)
            with complete_or_absent(path) as partial:
                speakers.save(partial)
        try:
            before = CategoricalEncoder.from_saved(path)
        except Exception as error:
            raise ValueError(
                f"{path}: missing or damaged, so the classes of the "
                "checkpoints are unknown; bring back a copy, or choose another "
                "--output_folder"
            ) from error
        if before.lab2ind != speakers.lab2ind:
            raise ValueError(
                f"output_folder: {path.parent.parent} holds a run on other "
                "speakers; choose another, or delete it"
            )

    def list_checkpoints(self) -> list[Checkpoint]:
        """Lists the checkpoints, as ``Checkpointer`` does."""
        exists = self.checkpoints_dir.is_dir()
        return super().list_checkpoints() if exists else []

    def set_damaged_aside(self) -> None:
        """Renames damaged checkpoints, with a warning that names the file.

        If none would be left, it is a ValueError, and none is renamed.
        """
        folders = self._folders()
        faults = {folder: _fault(folder) for folder in folders}
        damaged = [folder for folder in folders if faults[folder]]
        if damaged and damaged == folders:
            raise ValueError(
                f"{damaged[0]}: {faults[damaged[0]]}, and there is no other "
                "undamaged checkpoint; bring back a copy, or choose "
                "another --output_folder to start anew"
            )
        for folder in damaged:
            aside = folder.with_name(f"DAMAGED+{folder.name}")
            # Its copy, brought back, may be damaged as well.
            shutil.rmtree(aside, ignore_errors=True)
            os.replace(folder, aside)
            logger.warning(
                f"{folder}: {faults[folder]}; renamed to {aside.name}, and the "
                "newest undamaged checkpoint counts"
            )

    def recover_if_possible(self, *args, **kwargs) -> Checkpoint | None:
        """Goes on from the newest complete checkpoint, if there is one.

        Takes what SpeechBrain's takes. It is a ValueError if all are damaged,
        or it is one of another training.
        """
        run_on_main(self.set_damaged_aside)
        return super().recover_if_possible(*args, **kwargs)

    def load_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Loads a checkpoint; ValueError if it is of another training."""
        try:
            super().load_checkpoint(checkpoint)
        except OSError:
            raise
        # Its files are undamaged, so this run has other objects.
        except Exception as error:
            raise ValueError(
                f"{checkpoint.path}: a checkpoint of another training; choose "
                "another --output_folder, or take its settings again "
                f"({one_line(error)})"
            ) from error

    def save_checkpoint(
        self,
        meta: Mapping[str, object] | None = None,
        end_of_epoch: bool = True,
        name: str | None = None,
        verbosity: int = logging.INFO,
    ) -> Checkpoint | None:
        """Saves a checkpoint, which the main process gets returned.

        When it returns, all processes find the checkpoint. Takes what
        SpeechBrain's takes. If it cannot be written, it is an OSError, and
        earlier checkpoints stay as they are.
        """
        self.before_saving()
        folder = self.checkpoints_dir
        if name is None:
            new = self._new_checkpoint_dirpath().name
            name = new.removeprefix(f"{CKPT_PREFIX}+")
        partial = folder / ".partial"
        if if_main_process():
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        self.checkpoints_dir = partial
        try:
            saved = super().save_checkpoint(
                meta or {}, end_of_epoch, name, logging.DEBUG
            )
            if saved is None:
                ddp_barrier()  # the main process is not ready yet
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
        # Otherwise processes may list other checkpoints, and SpeechBrain waits
        # in each for the deletion of those that it has found.
        ddp_barrier()
        logger.log(verbosity, f"Saved a checkpoint in {path}")
        return Checkpoint(
            path,
            saved.meta,
            {key: path / file.name for key, file in saved.paramfiles.items()},
        )

    def keep_best_and_last(self, number: int, min_key: str) -> None:
        """Deletes all checkpoints but the best and those of the last epochs.

        The best has the lowest ``min_key`` in its ``meta``; beside it a number
        of the last epochs stay.

        Example
        -------
        >>> checkpointer = CompleteCheckpointer(getfixture("tmp_path"))
        >>> for eer in (3.0, 1.0, 4.0, 2.0):
        ...     saved = checkpointer.save_checkpoint({"EER": eer})
        >>> checkpointer.keep_best_and_last(1, min_key="EER")
        >>> sorted(c.meta["EER"] for c in checkpointer.list_checkpoints())
        [1.0, 2.0]
        """
        best = self.find_checkpoint(min_key=min_key).path
        for within_epoch, kept in ((False, number), (True, 0)):
            self.delete_checkpoints(
                num_to_keep=kept,
                ckpt_predicate=lambda saved, within_epoch=within_epoch: (
                    saved.path != best
                    and (INTRA_EPOCH_CKPT_FLAG in saved.meta) == within_epoch
                ),
            )

    def _write_checks(self, folder: Path) -> None:
        checks = {
            "settings": self.settings,
            "crc32": {path.name: _crc32(path) for path in folder.iterdir()},
        }
        (folder / CHECKS).write_text(json.dumps(checks), encoding="utf-8")

    def _folders(self) -> list[Path]:
        """The checkpoints' folders, the newest first, damaged or not."""
        folders = self.checkpoints_dir.glob(f"{CKPT_PREFIX}+*")
        return sorted(folders, key=lambda folder: folder.name, reverse=True)


def training_settings(hparams: Mapping) -> dict:
    """The hyperparameters that must be the same in all runs of a training.

    A checkpoint would be refused by the network or the optimizer, or put on
    other classes, or bring back its own value, such as the weight decay.
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
        "teacher_embeddings": hparams["teacher_embeddings"],
        # Without speakers there are other classes.
        "unlabelled": hparams["label_weight"] == 0 or None,
        "pretrained_folder": pretrained and os.path.abspath(pretrained),
    }


def _read_checks(folder: Path) -> dict[str, dict]:
    checks = read_json(folder / CHECKS)
    for key in ("settings", "crc32"):
        if not isinstance(checks, dict) or not isinstance(
            checks.get(key), dict
        ):
            raise ValueError(f"{key} is missing")
    return checks


def _fault(folder: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    name = CHECKS
    try:
        for name, checksum in _read_checks(folder)["crc32"].items():
            if _crc32(folder / name) != checksum:
                return f"{name} is damaged"
    except FileNotFoundError:
        return f"{name} is missing"
    # Another OSError says nothing of the file: the disk may be back tomorrow.
    except (ValueError, IsADirectoryError, NotADirectoryError):
        return f"{name} is damaged"
    return None


def _crc32(path: Path) -> int:
    checksum = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            checksum = zlib.crc32(block, checksum)
    return checksum
