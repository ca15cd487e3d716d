"""A classifier whose classes are divided among processes.

With hundreds of thousands of classes their weights, gradients and momentum fill
a GPU, and adding up their gradients the network. Here each process holds a
share of the classes, and compares the embeddings of all processes with it.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from speechbrain.lobes.models.ECAPA_TDNN import Classifier
from speechbrain.utils.checkpoints import (
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
)
from torch import nn
from torch.distributed.nn.functional import all_gather


class ShardedClassifier(nn.Module):
    """A process's share of the classes of a ``Classifier``.

    It trains as ``Classifier`` does in DistributedDataParallel, but must not be
    wrapped in that itself. All processes have as many utterances in a batch.
    The loss gets the number of shares, as ``redimnet2_lobes.SphereFace2`` and
    ``AdditiveAngularMarginLoss`` take it.

    Checkpoints hold all classes, as those of ``Classifier`` do: they are saved
    by all processes together, and may be loaded by any number of them.

    Arguments
    ---------
    classifier
        The classifier of all classes, the same in all processes. It is a
        ValueError if it has layers of its own, or fewer classes than processes.
    process
        Number of this process, from 0.

    Example
    -------
    >>> classifier = Classifier(input_size=2, out_neurons=5)
    >>> second = ShardedClassifier(classifier, process=1, processes=2)
    >>> torch.equal(second.weight, classifier.weight[3:])
    True
    """

    def __init__(self, classifier: Classifier, process: int, processes: int):
        super().__init__()
        whole = classifier.weight.detach()
        if len(classifier.blocks):
            raise ValueError(
                "shard_classes: True is for a classifier without lin_blocks"
            )
        if len(whole) < processes:
            raise ValueError(
                f"shard_classes: {len(whole)} classes cannot be divided among "
                f"{processes} processes; pass False"
            )
        self.process = process
        self.shares = processes
        self.sizes = [len(share) for share in whole.tensor_split(processes)]
        self.first_class = sum(self.sizes[:process])
        self.weight = nn.Parameter(self._own(whole))
        # The losses are scaled for the mean over the processes, which
        # DistributedDataParallel takes of the other gradients.
        self.weight.register_hook(lambda gradient: gradient / processes)

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Cosines of all processes' utterances and the own classes.

        From the embeddings [batch, 1, embedding] of this process's utterances,
        [batch of all processes, 1, own classes].
        """
        everyones = torch.cat(all_gather(embeddings.squeeze(1)))
        cosines = F.linear(F.normalize(everyones), F.normalize(self.weight))
        return cosines.unsqueeze(1)

    def own_labels(self, labels: torch.Tensor) -> torch.Tensor:
        """Labels of all processes' utterances, from the first own class on.

        Where an utterance is of another process's class, its label is none of
        the own classes.
        """
        return torch.cat(all_gather(labels)) - self.first_class

    def correct(
        self, cosines: torch.Tensor, own_labels: torch.Tensor
    ) -> torch.Tensor:
        """How many utterances of own classes are classified rightly."""
        best, classes = cosines.detach().squeeze(1).max(1)
        best_of_all = best.clone()
        torch.distributed.all_reduce(
            best_of_all, torch.distributed.ReduceOp.MAX
        )
        return ((classes == own_labels) & (best == best_of_all)).sum()

    def whole(self, share: torch.Tensor) -> torch.Tensor | None:
        """Rows of all classes, on the main process's CPU; None elsewhere.

        From what holds a row for each own class; called in all processes.
        """
        share = share.detach().contiguous()
        shape = (sum(self.sizes), *share.shape[1:])
        whole = share.new_empty(shape, device="cpu") if self._is_main else None
        first = 0
        for process, size in enumerate(self.sizes):
            rows = share
            if process != self.process:
                rows = share.new_empty(size, *share.shape[1:])
            torch.distributed.broadcast(rows, process)
            if whole is not None:
                whole[first : first + size] = rows
            first += size
        return whole

    @mark_as_saver
    def save(self, path: Path) -> None:
        """Saves what ``Classifier`` would, for SpeechBrain's Checkpointer."""
        weight = self.whole(self.weight)
        if self._is_main:
            torch.save({"weight": weight}, path)

    @mark_as_loader
    def load(self, path: Path, end_of_epoch: bool = False) -> None:
        """Takes its share of what ``Classifier`` or this class has saved."""
        del end_of_epoch
        weights = torch.load(path, map_location="cpu")
        self.load_state_dict(
            {**weights, "weight": self._own(weights["weight"])}
        )

    def save_optimizer(
        self, optimizer: torch.optim.Optimizer, path: Path
    ) -> None:
        """Saves the state of the optimizer of all classes.

        The optimizer treats each weight by itself, as SGD and AdamW do.
        """
        state = self._change_rows(optimizer, optimizer.state_dict(), self.whole)
        if self._is_main:
            torch.save(state, path)

    def load_optimizer(
        self,
        optimizer: torch.optim.Optimizer,
        path: Path,
        end_of_epoch: bool = False,
    ) -> None:
        """Gives the optimizer this process's share of a saved state."""
        del end_of_epoch
        state = torch.load(path, map_location="cpu")
        optimizer.load_state_dict(
            self._change_rows(optimizer, state, self._own)
        )

    @property
    def _is_main(self) -> bool:
        return self.process == 0

    def _own(self, whole: torch.Tensor) -> torch.Tensor:
        # A copy, lest all rows stay in memory.
        return whole.split(self.sizes)[self.process].clone()

    def _change_rows(
        self,
        optimizer: torch.optim.Optimizer,
        state_dict: dict,
        change: Callable[[torch.Tensor], torch.Tensor | None],
    ) -> dict:
        """The state of an optimizer, where that of the classes is changed."""
        weights = [
            weight
            for group in optimizer.param_groups
            for weight in group["params"]
        ]
        number = [weight is self.weight for weight in weights].index(True)
        states = {**state_dict["state"]}
        if number in states:
            states[number] = {
                key: change(value) if self._has_rows(value) else value
                for key, value in states[number].items()
            }
        return {**state_dict, "state": states}

    def _has_rows(self, value: object) -> bool:
        """Whether a value of an optimizer's state is there for each weight."""
        return (
            isinstance(value, torch.Tensor)
            and value.shape[1:] == self.weight.shape[1:]
        )


# All processes save, since each has a share.
register_checkpoint_hooks(ShardedClassifier, save_on_main_only=False)
