"""Distillation: a small network learns the embeddings of a larger one.

The teacher is whatever made a file of embeddings: a larger ReDimNet2, or a
network of another kind. Its embedding of a whole utterance is what the student
shall give for each crop of it, as in Wang et al., "Knowledge distillation for
small foot-print deep speaker embedding", ICASSP 2019, where the distance is a
cosine. The cosines of two embeddings are all that counts, so that the teacher's
may be of any size.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import os
from collections.abc import Mapping, Sequence

import torch
from speechbrain.utils.logger import get_logger
from torch.nn.functional import normalize, pad

from redimnet2_lobes.files.same_space import check_same_space
from redimnet2_lobes.inference.embedding_files import read_embeddings
from redimnet2_lobes.models.precision import at_least_float32

logger = get_logger(__name__)

Files = str | os.PathLike | Mapping[str, str | os.PathLike]


def distillation_loss(
    embeddings: torch.Tensor,
    targets: torch.Tensor,
    weight: float = 10.0,
    pairs_weight: float = 30.0,
) -> torch.Tensor:
    """How far embeddings are from the teacher's, and their cosines from its.

    Both are [batch, embedding], the targets of length 1. The first part is the
    mean of one minus the cosine of both. The second is the mean squared
    difference between the cosines of all pairs of the batch and those of the
    teacher (Park et al., "Relational knowledge distillation", CVPR 2019; Tung
    and Mori, "Similarity-preserving knowledge distillation", ICCV 2019): what
    scores will be made of is learned long before the embeddings themselves.

    Example
    -------
    >>> targets = torch.eye(2)
    >>> distillation_loss(3 * targets.flip(0), targets, weight=1.0)
    tensor(1.)
    >>> distillation_loss(targets[[0, 0]], targets, 0.0, pairs_weight=1.0)
    tensor(0.5000)
    """
    units = normalize(at_least_float32(embeddings), dim=1)
    distance = 1 - (units * targets).sum(dim=1)
    pairs = units @ units.T - targets @ targets.T
    return weight * distance.mean() + pairs_weight * pairs.square().mean()


def read_teacher(
    files: Sequence[Files], names: Sequence[str], size: int
) -> torch.Tensor:
    """What the student shall give, [speeds, utterances, size], of length 1.

    The teacher's mean, over all utterances and speeds, is subtracted: what all
    its embeddings have in common says nothing of a speaker, but would be most
    of a cosine. Larger embeddings than the student's are reduced to their
    principal components, which changes cosines least; smaller ones are filled
    up with zeros, which changes none.

    Arguments
    ---------
    files
        For each speed a file of `read_embeddings`, or files by the prefixes of
        training lists. All are of one embedding space.
    names
        The utterances, in the order wanted, with their prefixes.
    size
        Of the student's embeddings.

    Raises
    ------
    ValueError
        If a file cannot be used or lacks an utterance, the files are of several
        spaces or sizes, two speeds or utterances would have the same targets,
        or most embeddings say the same.

    Example
    -------
    >>> import numpy as np
    >>> path = getfixture("tmp_path") / "teacher.npz"
    >>> embeddings = np.array([[3.0, 1.0], [1.0, 1.0]], np.float32)
    >>> arrays = dict(names=["a", "b"], embedding_space="larger")
    >>> np.savez(path, embeddings=embeddings, **arrays)
    >>> read_teacher([path], ["b", "a"], size=3)
    tensor([[[-1.,  0.,  0.],
             [ 1.,  0.,  0.]]])
    """
    by_speed = [
        entry if isinstance(entry, Mapping) else {"": entry} for entry in files
    ]
    first = next(iter(by_speed[0].values()))
    if len(set(names)) < len(names):
        raise ValueError(
            f"teacher_embeddings: of {len(names)} training utterances only "
            f"{len(set(names))} have names of their own; give the training "
            "lists prefixes"
        )
    space = dimension = None
    vectors = []
    for by_prefix in by_speed:
        row, parts = {}, []
        for prefix, path in by_prefix.items():
            stored = read_embeddings(path)
            space = space or stored.space
            check_same_space(path, stored.space, first, space)
            found = stored.vectors.shape[1]
            dimension = dimension or found
            if found != dimension:
                raise ValueError(
                    f"{path}: embeddings of {found} numbers, but {first} has "
                    f"{dimension}; pass files of one teacher"
                )
            start = sum(map(len, parts))
            row.update(
                (prefix + name, start + index)
                for index, name in enumerate(stored.names)
            )
            parts.append(stored.vectors)
        missing = [name for name in names if name not in row]
        if missing:
            raise ValueError(
                f"teacher_embeddings: {', '.join(map(str, by_prefix.values()))}"
                f" lacks {len(missing)} of the {len(names)} training "
                f"utterances, the first is {missing[0]}; embed them too"
            )
        found = torch.cat(parts)[[row[name] for name in names]]
        if any(torch.equal(found, other) for other in vectors):
            raise ValueError(
                f"{path}: the same embeddings as of another speed; embed each "
                "speed, or pass fewer speeds"
            )
        vectors.append(found)
    targets = torch.stack(vectors)
    targets /= targets.abs().max()  # of any scale: only cosines count
    targets -= targets.mean(dim=(0, 1), dtype=torch.float64).float()
    if targets.abs().max() < 1e-6:
        raise ValueError(
            f"teacher_embeddings: the embeddings of {first} are all the same; "
            "check what made them"
        )
    targets = _of_size(targets, size)
    # About 0, unless a few that are far larger than others made up the mean.
    if targets.mean(dim=(0, 1)).norm() > 0.5:
        raise ValueError(
            f"teacher_embeddings: most embeddings of {first} say the same "
            "once their mean is subtracted, since a few are far larger; give "
            "all the length 1, or leave those out"
        )
    return targets


def _of_size(vectors: torch.Tensor, size: int) -> torch.Tensor:
    """Centred vectors [..., teacher's size] as ones of length 1 [..., size]."""
    surplus = vectors.shape[-1] - size
    if surplus > 0:
        rows = vectors.flatten(end_dim=-2)
        variances, directions = torch.linalg.eigh((rows.T @ rows).double())
        kept = (variances[surplus:].sum() / variances.sum()).item()
        logger.info(
            f"Teacher: its {size} principal components of "
            f"{vectors.shape[-1]} keep {100 * kept:.1f} % of the variance"
        )
        vectors = vectors @ directions[:, surplus:].float()
    return normalize(pad(vectors, (0, max(0, -surplus))), dim=-1)
