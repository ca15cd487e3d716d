"""Checkpoints that are either complete or not there.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import logging
import os
import shutil

from speechbrain.utils.checkpoints import CKPT_PREFIX, Checkpoint, Checkpointer
from speechbrain.utils.distributed import if_main_process
from speechbrain.utils.logger import get_logger

logger = get_logger(__name__)


class CompleteCheckpointer(Checkpointer):
    """SpeechBrain's ``Checkpointer``, safe against a kill while it saves.

    SpeechBrain writes the files into the checkpoint's folder one by one, and
    the file that marks it as a checkpoint first: after a kill in between, it
    tries to load what is not there. Here a checkpoint grows in the folder
    ``.partial`` and is moved when it is complete.

    Arguments
    ---------
    See ``speechbrain.utils.checkpoints.Checkpointer``.

    Example
    -------
    >>> import torch
    >>> folder = getfixture("tmp_path")
    >>> layer = torch.nn.Linear(2, 2)
    >>> checkpointer = CompleteCheckpointer(folder, {"layer": layer})
    >>> checkpoint = checkpointer.save_checkpoint()
    >>> sorted(path.name for path in checkpoint.path.iterdir())
    ['CKPT.yaml', 'layer.ckpt']
    """

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
        except (OSError, RuntimeError) as error:  # torch's is a RuntimeError
            shutil.rmtree(partial, ignore_errors=True)
            reason = str(error).splitlines()[0]
            raise OSError(
                f"{folder}: cannot write a checkpoint ({reason}); free some "
                "space, and the same command goes on from the last one"
            ) from error
        finally:
            self.checkpoints_dir = folder
        if saved is None:
            return None
        path = folder / saved.path.name
        os.replace(saved.path, path)
        partial.rmdir()
        logger.log(verbosity, f"Saved a checkpoint in {path}")
        return Checkpoint(
            path,
            saved.meta,
            {key: path / file.name for key, file in saved.paramfiles.items()},
        )
