"""PLDA as Kaldi's own code reads and writes it."""

import numpy as np
import pytest
from pydrobert.kaldi import io

from redimnet2_lobes.scoring.kaldi_plda import (
    read_kaldi_plda,
    write_kaldi_plda,
)
from redimnet2_lobes.scoring.plda import ARRAYS, PldaBackend

SPACE = "b3-1"
# What a file of PLDA holds: words, vectors and a matrix of doubles.
KINDS = ("t", "dv", "dm", "dv", "t")


@pytest.fixture
def folder(tmp_path):
    random = np.random.default_rng(0)
    backend = PldaBackend(
        mean=random.normal(size=6),
        lda=random.normal(size=(6, 4)),
        plda_mean=random.normal(size=4),
        F=random.normal(size=(4, 3)),
        Sigma=np.eye(4) + 0.5,
    )
    write_kaldi_plda(tmp_path / "plda", backend, SPACE)
    return tmp_path / "plda"


def read(path, *kinds):
    with io.open(str(path)) as file:
        return [file.read(kind) for kind in kinds]


def test_kaldi_reads_what_is_written(folder):
    backend = read_kaldi_plda(folder, SPACE)
    (mean,) = read(folder / "mean.vec", "dv")
    (lda,) = read(folder / "transform.mat", "dm")
    assert np.array_equal(mean, backend.mean)
    assert np.array_equal(lda, backend.lda.T)
    # In the single precision of its programs, too.
    (single,) = read(folder / "transform.mat", "fm")
    assert np.array_equal(single, lda.astype(np.float32))
    start, plda_mean, transform, psi, end = read(folder / "plda", *KINDS)
    assert (start, end) == ("<Plda>", "</Plda>")
    np.testing.assert_allclose(plda_mean / 2, backend.plda_mean)
    within = transform @ backend.Sigma @ transform.T
    np.testing.assert_allclose(within, np.eye(4) / 4, atol=1e-12)
    assert psi.shape == (4,)


@pytest.mark.parametrize("binary", [True, False])
def test_what_kaldi_writes_is_read(folder, tmp_path, binary):
    by_kaldi = tmp_path / "by_kaldi"
    by_kaldi.mkdir()
    for name, kinds in (
        ("mean.vec", ["dv"]),
        ("transform.mat", ["dm"]),
        ("plda", KINDS),
    ):
        values = read(folder / name, *kinds)
        with io.open(str(by_kaldi / name), mode="w", header=binary) as file:
            for value, kind in zip(values, kinds, strict=True):
                file.write(value, kind, write_binary=binary)
    expected = read_kaldi_plda(folder, SPACE)
    found = read_kaldi_plda(by_kaldi, SPACE)
    for name in ARRAYS:
        # Its texts have six digits.
        np.testing.assert_allclose(
            getattr(found, name),
            getattr(expected, name),
            rtol=0 if binary else 1e-4,
            atol=0 if binary else 1e-4,
        )
