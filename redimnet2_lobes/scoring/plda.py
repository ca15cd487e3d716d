"""Probabilistic linear discriminant analysis (PLDA) as a scoring back-end.

Training is SpeechBrain's (``speechbrain.processing.PLDA_LDA``), with the same
results, in time linear in the number of utterances. Scores are those of its
``fast_PLDA_scoring``, but as dot products of one row for each utterance: a list
of trials needs no matrix of all enrolments against all test utterances, and
what works with cosines (``backends``) works with PLDA too.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from scipy import linalg
from speechbrain.processing.PLDA_LDA import LDA, PLDA, StatObject_SB

from redimnet2_lobes.files.arrays import read_arrays
from redimnet2_lobes.files.atomic import complete_or_absent
from redimnet2_lobes.files.same_space import KEY, check_same_space

LARGEST_RANK = 150  # unless a larger one is asked for
ARRAYS = ("mean", "lda", "plda_mean", "F", "Sigma")


class PldaBackend:
    """A trained chain: mean subtraction, LDA, length normalization, PLDA.

    What the first three make of an utterance is ``plda_mean + F h + e``, where
    ``h`` is its speaker's, standard normal, and ``e`` the utterance's own,
    normal with covariance ``Sigma``. ValueError if shapes do not fit, a value
    is NaN or infinite, or ``Sigma`` is no covariance.

    Arguments
    ---------
    mean
        Mean of the training set [embedding].
    lda
        Projection of LDA [embedding, lda_dimension].
    plda_mean
        Mean of the projected, length-normalized training set [lda_dimension].
    F
        Directions in which speakers differ [lda_dimension, rank].
    Sigma
        Covariance within speakers [lda_dimension, lda_dimension].

    Example
    -------
    >>> backend = PldaBackend(
    ...     mean=np.zeros(2),
    ...     lda=np.eye(2),
    ...     plda_mean=np.zeros(2),
    ...     F=np.array([[1.0], [0.0]]),
    ...     Sigma=0.1 * np.eye(2),
    ... )
    >>> embeddings = torch.tensor([[2.0, 0.0], [2.0, 0.1], [-2.0, 0.0]])
    >>> enrolment = backend.enrolment_side(embeddings)
    >>> test = backend.test_side(embeddings)
    >>> enrolment @ test.T > 0
    tensor([[ True,  True, False],
            [ True,  True, False],
            [False, False,  True]])
    """

    def __init__(
        self,
        mean: np.ndarray,
        lda: np.ndarray,
        plda_mean: np.ndarray,
        F: np.ndarray,
        Sigma: np.ndarray,
    ):
        self.mean, self.lda, self.plda_mean, self.F, self.Sigma = (
            _as_float64(name, array)
            for name, array in zip(
                ARRAYS, (mean, lda, plda_mean, F, Sigma), strict=True
            )
        )
        self._check_shapes()
        for name in ARRAYS:
            if not np.isfinite(getattr(self, name)).all():
                raise ValueError(f"{name}: some values are NaN or infinite")
        # In these directions the covariance within speakers is the identity,
        # that between them is diagonal, and zero in all but rank of them.
        try:
            between, directions = linalg.eigh(self.F @ self.F.T, self.Sigma)
        except linalg.LinAlgError:
            problem = "Sigma: not positive definite, so no covariance"
            raise ValueError(problem) from None
        rank = self.F.shape[1]
        between = between[-rank:].clip(min=0)
        # The log-likelihood ratio of two scalars, one direction after another.
        total = (1 + between) * (1 + 2 * between)
        self._directions = directions[:, -rank:]
        self._product = between / (1 + 2 * between)
        self._squares = -(between**2) / (2 * total)
        logarithms = np.log1p(between) - np.log1p(2 * between) / 2
        self._constant = logarithms.sum()

    def enrolment_side(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Rows of enrolments [enrolments, rank + 2], float64.

        The dot product of a row with one of :meth:`test_side` is the
        log-likelihood ratio of the trial. It is a ValueError if the embeddings
        have another size than those of the training, or NaN or infinite values.
        """
        rows, own, ones = self._parts(embeddings)
        return torch.cat([rows, own, ones], dim=1)

    def test_side(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Rows of test utterances, see :meth:`enrolment_side`."""
        rows, own, ones = self._parts(embeddings)
        return torch.cat([rows, ones, own], dim=1)

    def project(self, embeddings: torch.Tensor) -> np.ndarray:
        """What is modelled of embeddings [utterances, lda_dimension], float64.

        That is after the mean, LDA and length normalization. Errors are those
        of :meth:`enrolment_side`.
        """
        vectors = _as_array(embeddings).astype(np.float64)
        if vectors.ndim != 2 or vectors.shape[1] != len(self.mean):
            raise ValueError(
                f"embeddings: their shape is {vectors.shape}, but this PLDA "
                f"back-end was trained on [utterances, {len(self.mean)}]; take "
                "those of the network that it was trained on"
            )
        _check_finite(vectors)
        statistics = StatObject_SB()
        statistics.stat1 = (vectors - self.mean) @ self.lda
        statistics.norm_stat1()
        return statistics.stat1

    def save(self, path: str | os.PathLike, space: str) -> None:
        """Writes the back-end, as NumPy's ``.npz`` under any name.

        ``space`` is that of the embeddings that it was trained on.

        Example
        -------
        >>> one = np.eye(1)
        >>> backend = PldaBackend([0.0], one, [0.0], one, one)
        >>> path = getfixture("tmp_path") / "plda.npz"
        >>> backend.save(path, "redimnet2-b3-1")
        >>> PldaBackend.load(path, "redimnet2-b3-1").Sigma
        array([[1.]])
        """
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with complete_or_absent(path) as partial, open(partial, "wb") as file:
            arrays = {name: getattr(self, name) for name in ARRAYS}
            arrays[KEY] = np.array(space)
            np.savez(file, **arrays)

    @classmethod
    def load(cls, path: str | os.PathLike, space: str) -> "PldaBackend":
        """Reads what :meth:`save` wrote, for embeddings of a space.

        It is a ValueError if it is damaged or of another space. No code from
        the file is run.
        """
        try:
            backend = cls(*read_arrays(path, *ARRAYS))
        except ValueError as error:
            raise ValueError(
                f"{path}: not a PLDA back-end, or a damaged one ({error}); "
                "train it again"
            ) from error
        try:
            (found,) = read_arrays(path, KEY)
        except ValueError:
            raise ValueError(
                f"{path}: from before embedding spaces had names; train it "
                "again"
            ) from None
        found = " ".join(str(found).split())  # in one line, whatever it is
        check_same_space(path, found, "the checkpoint", space)
        return backend

    def _check_shapes(self):
        size, dimension, rank = *self.lda.shape[:2], *self.F.shape[1:2]
        expected = {
            "mean": (size,),
            "lda": (size, dimension),
            "plda_mean": (dimension,),
            "F": (dimension, rank),
            "Sigma": (dimension, dimension),
        }
        for name, shape in expected.items():
            found = getattr(self, name).shape
            if found != shape:
                raise ValueError(f"{name}: its shape is {found}, not {shape}")

    def _parts(
        self, embeddings: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What a row is made of: coordinates, own part, and ones."""
        rows = (self.project(embeddings) - self.plda_mean) @ self._directions
        own = rows**2 @ self._squares + self._constant / 2
        _check_finite(own[:, np.newaxis])  # an embedding may be the mean
        rows *= np.sqrt(self._product)
        own = torch.from_numpy(own).unsqueeze(1)
        return torch.from_numpy(rows), own, torch.ones_like(own)


def train_plda(
    embeddings: torch.Tensor,
    speakers: Sequence[str | None],
    lda_dimension: int | None = None,
    rank: int | None = None,
    iterations: int = 10,
) -> PldaBackend:
    """Trains a PLDA back-end by SpeechBrain's ``LDA`` and ``PLDA``.

    SpeechBrain's LDA takes the lower triangle of a matrix for the whole, which
    it is not where speakers differ in other directions than their utterances:
    it may then drop directions that matter. So by default all are kept.

    Peak memory is about three times that of the embeddings in float64, or what
    the moments of the speakers need, ``8 * speakers * rank**2`` bytes (1.1 GB
    for VoxCeleb2's 5,994 speakers and rank 150).

    Arguments
    ---------
    embeddings
        As the network makes them [utterances, embedding].
    speakers
        The speaker of each utterance [utterances], in any order.
    lda_dimension
        Dimension that LDA leaves; None for all that it can: the size of the
        embeddings, or one less than the speakers.
    rank
        Number of directions in which speakers differ, at most
        ``lda_dimension``; None for 150, or that if it is less.

    Raises
    ------
    ValueError
        If the training set is too small for this or holds NaN, or the
        dimensions do not fit.

    Example
    -------
    >>> generator = torch.Generator().manual_seed(0)
    >>> speakers = [f"speaker{number}" for number in range(20)] * 5
    >>> voices = torch.randn(20, 4, generator=generator).repeat(5, 1)
    >>> noise = torch.randn(100, 4, generator=generator)
    >>> backend = train_plda(voices + 0.1 * noise, speakers, 3, rank=2)
    >>> backend.enrolment_side(voices).shape
    torch.Size([100, 4])
    """
    vectors = _as_array(embeddings)
    if vectors.ndim != 2 or len(vectors) != len(speakers):
        raise ValueError(
            f"embeddings: their shape is {vectors.shape}, but there are "
            f"{len(speakers)} speaker names; PLDA needs one for each utterance"
        )
    _check_finite(vectors)
    _, speaker_numbers, utterances_of_speakers = np.unique(
        np.asarray(speakers), return_inverse=True, return_counts=True
    )
    speaker_count = len(utterances_of_speakers)
    size: int = vectors.shape[1]
    dimension = lda_dimension
    if dimension is None:
        dimension = min(size, speaker_count - 1)
    if rank is None:
        rank = min(dimension, LARGEST_RANK)
    _check_dimensions(len(vectors), size, speaker_count, dimension, rank)
    statistics = _SortedStatistics(
        vectors, speaker_numbers, utterances_of_speakers
    )
    mean = statistics.get_mean_stat1()
    statistics.stat1 -= mean
    lda, plda = LDA(), PLDA(rank_f=rank, nb_iter=iterations)
    try:
        statistics = lda.do_lda(statistics, reduced_dim=dimension)
        statistics.norm_stat1()
        plda.plda(statistics)
        parts = lda.transform_mat, plda.mean, plda.F, plda.Sigma
        return PldaBackend(mean, *parts)
    except (linalg.LinAlgError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"PLDA cannot be trained on these {len(vectors)} embeddings "
            f"({reason}): are many of them equal, or do they differ in fewer "
            f"than {dimension} directions? Reduce lda_dimension and "
            "plda_rank, or take more utterances"
        ) from error


class _SortedStatistics(StatObject_SB):
    """Embeddings sorted by speaker, so that each speaker's are a slice.

    ``StatObject_SB`` compares the names of all utterances with each speaker's.
    """

    def __init__(
        self,
        embeddings: np.ndarray,
        speaker_numbers: np.ndarray,
        utterances_of_speakers: np.ndarray,
    ):
        # Stable, so that a speaker's utterances are added up as upstream.
        order = np.argsort(speaker_numbers, kind="stable")
        super().__init__(
            modelset=speaker_numbers[order],
            stat0=np.ones((len(order), 1)),
            stat1=embeddings[order].astype(np.float64),
        )
        self.ends = np.cumsum(utterances_of_speakers)
        self.starts = self.ends - utterances_of_speakers

    def get_model_stat0(self, mod_id: int) -> np.ndarray:
        """Ones, for each utterance of a speaker."""
        return self.stat0[self.starts[mod_id] : self.ends[mod_id]]

    def get_model_stat1(self, mod_id: int) -> np.ndarray:
        """The embeddings of a speaker."""
        return self.stat1[self.starts[mod_id] : self.ends[mod_id]]


def _as_float64(name: str, values: np.ndarray) -> np.ndarray:
    array = np.asarray(values)
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{name}: holds {array.dtype}, not numbers")
    return array.astype(np.float64)


def _as_array(embeddings: torch.Tensor | np.ndarray) -> np.ndarray:
    return torch.as_tensor(embeddings).detach().cpu().numpy()


def _check_finite(embeddings: np.ndarray) -> None:
    unusable = len(embeddings) - np.isfinite(embeddings).all(axis=1).sum()
    if unusable:
        raise ValueError(
            f"embeddings: {unusable} of {len(embeddings)} have NaN or infinite "
            "values; leave those utterances out, or look at their audio"
        )


def _check_dimensions(
    utterances: int, size: int, speakers: int, lda_dimension: int, rank: int
) -> None:
    if speakers < 2:
        raise ValueError(
            f"PLDA needs the embeddings of at least 2 speakers, not {speakers}"
        )
    if speakers == utterances:
        raise ValueError(
            "PLDA needs several utterances of a speaker, but all "
            f"{speakers} speakers have only one"
        )
    if utterances - speakers < size:
        raise ValueError(
            f"PLDA on embeddings of {size} numbers needs at least {size} more "
            f"utterances than speakers, not {utterances} of {speakers}"
        )
    below = f"one less than the {speakers} speakers"
    for name, value, largest, what in (
        ("lda_dimension", lda_dimension, size, "the size of embeddings"),
        ("lda_dimension", lda_dimension, speakers - 1, below),
        ("plda_rank", rank, lda_dimension, "lda_dimension"),
    ):
        if not 1 <= value <= largest:
            raise ValueError(
                f"{name}: {value} is not from 1 to {largest}, {what}"
            )
