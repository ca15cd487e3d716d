"""Where the figures of each epoch go.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

from collections.abc import Iterable
from pathlib import Path


def build_loggers(
    train_logger,
    folder: str | Path,
    tensorboard: bool,
    wandb_project: str | None,
) -> list:
    """The given logger, and those of SpeechBrain that are asked for.

    They log to ``<folder>/tensorboard`` and to a project of Weights & Biases.
    It is a ValueError if a package for it is not installed.

    Example
    -------
    >>> from speechbrain.utils.train_logger import FileTrainLogger
    >>> logger = FileTrainLogger(getfixture("tmp_path") / "train_log.txt")
    >>> build_loggers(logger, "results", False, None) == [logger]
    True
    """
    # On import it warns of pictures, which nothing here makes.
    from speechbrain.utils.train_logger import TensorboardLogger, WandBLogger

    loggers = [train_logger]
    try:
        if tensorboard:
            loggers.append(TensorboardLogger(f"{folder}/tensorboard"))
        if wandb_project is not None:
            import wandb  # pyright: ignore[reportMissingImports]

            loggers.append(
                WandBLogger(
                    wandb.init,
                    project=wandb_project,
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


def log_epoch(
    loggers: Iterable,
    meta: dict[str, float],
    train: dict[str, float],
    valid: dict[str, float],
) -> None:
    r"""Logs the figures of an epoch, whose number is ``meta["epoch"]``.

    Example
    -------
    >>> from speechbrain.utils.train_logger import FileTrainLogger
    >>> path = getfixture("tmp_path") / "train_log.txt"
    >>> logger = FileTrainLogger(path)
    >>> log_epoch([logger], {"epoch": 1}, {"loss": 2.0}, {"EER": 3.0})
    >>> path.read_text()
    'epoch: 1 - train loss: 2.00 - valid EER: 3.00\n'
    """
    before = meta["epoch"] - 1
    for logger in loggers:
        if hasattr(logger, "global_step"):
            # TensorboardLogger counts from 0 in every run, but this may be a
            # resumed one.
            logger.global_step = {
                "train": dict.fromkeys(train, before),
                "valid": dict.fromkeys(valid, before),
                "meta": before,
            }
        logger.log_stats(meta, train, valid)
