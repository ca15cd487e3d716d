"""PLDA in Kaldi's files, against other readers of them and Kaldi's formulas."""

import struct

import kaldiio
import numpy as np
import pytest
import torch
from test_plda import SIZE, dot_products, draw

from redimnet2_lobes.scoring.kaldi_plda import (
    read_kaldi_plda,
    write_kaldi_plda,
)
from redimnet2_lobes.scoring.plda import ARRAYS, train_plda

SPACE = "b3-1"


@pytest.fixture(scope="module", params=[12, 8])
def backend(request):
    return train_plda(*draw(60, 8), lda_dimension=12, rank=request.param)


@pytest.fixture
def folder(backend, tmp_path):
    write_kaldi_plda(tmp_path / "plda", backend, SPACE)
    return tmp_path / "plda"


def binary(*parts, kind="<f8"):
    """Kaldi's binary form, built here from what its documentation says."""
    content = b"\0B"
    for part in parts:
        if isinstance(part, str):
            content += f"{part} ".encode()
            continue
        content += (b"D" if kind == "<f8" else b"F") + b" VM"[part.ndim :][:1]
        content += b" "
        for size in part.shape:
            content += b"\4" + struct.pack("<i", size)
        content += part.astype(kind).tobytes()
    return content


def text(*parts):
    content = ""
    for part in parts:
        if isinstance(part, str):
            content += f"{part} "
        elif part.ndim == 1:
            content += f" [ {' '.join(map(repr, part.tolist()))} ]\n"
        else:
            rows = (" ".join(map(repr, row)) for row in part.tolist())
            content += " [" + "".join(f"\n  {row} " for row in rows) + "]\n"
    return content.encode()


def parts_of(path):
    """Mean, transform and psi, from where they must be in a binary file."""
    content = path.read_bytes()
    (size,) = struct.unpack_from("<i", content, 13)
    arrays = []
    place = 9
    for shape in ((size,), (size, size), (size,)):
        place += 3 + 5 * len(shape)
        count = size ** len(shape)
        array = np.frombuffer(content, "<f8", count, place).reshape(shape)
        arrays.append(array)
        place += array.nbytes
    assert binary("<Plda>", *arrays, "</Plda>") == content
    return arrays


def scores_of_kaldi(folder, enrolments, tests):
    """Scores of Kaldi's programs, one trial after another, in numpy.

    ivector-subtract-global-mean, transform-vec, ivector-normalize-length and
    ivector-plda-scoring --normalize-length=false.
    """
    mean = kaldiio.load_mat(str(folder / "mean.vec"))
    lda = kaldiio.load_mat(str(folder / "transform.mat"))
    plda_mean, transform, psi = parts_of(folder / "plda")

    def transformed(vector):
        vector = lda @ (vector - mean)
        vector = vector * np.sqrt(len(vector)) / np.linalg.norm(vector)
        return transform @ (vector - plda_mean)

    def log_density(vector, mean, variance):
        squares = (vector - mean) ** 2 / variance
        return -0.5 * np.sum(np.log(2 * np.pi * variance) + squares)

    scores = np.empty((len(enrolments), len(tests)))
    for row, enrolment in enumerate(map(transformed, enrolments.numpy())):
        # What Ioffe's equation says of a test utterance of that speaker.
        expected = psi / (psi + 1) * enrolment
        variance = 1 + psi / (psi + 1)
        for column, test in enumerate(map(transformed, tests.numpy())):
            scores[row, column] = log_density(
                test, expected, variance
            ) - log_density(test, 0, 1 + psi)
    return torch.from_numpy(scores)


def test_scores_of_kaldis_formula_are_ours(backend, folder):
    sides = draw(7, 3, seed=1)[0], draw(5, 2, seed=2)[0]
    expected = dot_products(backend, *sides)
    found = scores_of_kaldi(folder, *sides)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    again = dot_products(read_kaldi_plda(folder, SPACE), *sides)
    torch.testing.assert_close(again, expected, rtol=1e-9, atol=1e-9)


def test_written_and_read_again(backend, folder):
    loaded = read_kaldi_plda(folder, SPACE)
    assert np.array_equal(loaded.mean, backend.mean)
    assert np.array_equal(loaded.lda, backend.lda)
    for found, expected in (
        (loaded.plda_mean, backend.plda_mean),
        (loaded.Sigma, backend.Sigma),
        (loaded.F @ loaded.F.T, backend.F @ backend.F.T),
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
    psi = parts_of(folder / "plda")[2]
    assert np.array_equal(psi, np.sort(psi)[::-1]) and psi[-1] >= 0


def test_files_of_kaldi_are_read_in_each_form(folder, tmp_path):
    other = tmp_path / "by_kaldi"
    other.mkdir()
    mean = kaldiio.load_mat(str(folder / "mean.vec"))
    lda = kaldiio.load_mat(str(folder / "transform.mat"))
    plda = "<Plda>", *parts_of(folder / "plda"), "</Plda>"
    expected = read_kaldi_plda(folder, SPACE)
    for pack in (binary, text):
        for name, parts in (
            ("mean.vec", [mean]),
            ("transform.mat", [lda]),
            ("plda", plda),
        ):
            (other / name).write_bytes(pack(*parts))
        # Without the name of a space, as from Kaldi.
        found = read_kaldi_plda(other, "any")
        for name in ARRAYS:
            assert np.array_equal(getattr(found, name), getattr(expected, name))
    # In float32, as ivector-compute-lda writes it.
    packed = binary(lda, kind="<f4")
    (other / "transform.mat").write_bytes(packed)
    found = read_kaldi_plda(other, SPACE).lda
    assert np.array_equal(found, expected.lda.astype("<f4"))


def test_files_written_by_kaldiio_are_read(folder):
    expected = read_kaldi_plda(folder, SPACE)
    for name, array in (
        ("mean.vec", expected.mean),
        ("transform.mat", expected.lda.T),
    ):
        kaldiio.save_mat(str(folder / name), array)
    found = read_kaldi_plda(folder, SPACE)
    assert np.array_equal(found.mean, expected.mean)
    assert np.array_equal(found.lda, expected.lda)


def test_offset_of_an_affine_lda_counts(folder):
    embeddings = draw(5, 2)[0]
    expected = read_kaldi_plda(folder, SPACE).project(embeddings)
    lda = kaldiio.load_mat(str(folder / "transform.mat"))
    mean = kaldiio.load_mat(str(folder / "mean.vec"))
    offset = np.linspace(-1, 1, len(lda))
    affine = np.column_stack([lda, offset])
    (folder / "transform.mat").write_bytes(binary(affine))
    vectors = (embeddings.numpy() - mean) @ lda.T + offset
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    found = read_kaldi_plda(folder, SPACE).project(embeddings)
    np.testing.assert_allclose(found, vectors, atol=1e-9)
    assert np.abs(found - expected).max() > 0.01


def test_one_dimension(tmp_path):
    backend = train_plda(*draw(2, SIZE // 2 + 1))
    write_kaldi_plda(tmp_path, backend, SPACE)
    loaded = read_kaldi_plda(tmp_path, SPACE)
    sides = draw(2, 2)[0], draw(2, 2, seed=1)[0]
    torch.testing.assert_close(
        dot_products(loaded, *sides), dot_products(backend, *sides)
    )


def test_interrupted_writing_leaves_the_old_files(folder, monkeypatch):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    other = train_plda(*draw(60, 8, seed=9), lda_dimension=12, rank=3)

    def full_disk(self, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_kaldi_plda(folder, other, SPACE)
    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert after == before


def test_another_space_is_refused(folder):
    message = "^.*plda: of the embedding space b3-1, but .* of b0-1"
    with pytest.raises(ValueError, match=message):
        read_kaldi_plda(folder, "b0-1")


def test_missing_file(folder):
    (folder / "transform.mat").unlink()
    message = "plda: no PLDA of Kaldi's, for it has no file transform.mat; give"
    with pytest.raises(ValueError, match=message):
        read_kaldi_plda(folder, SPACE)


def test_an_empty_space_is_refused(folder):
    (folder / "embedding_space.txt").write_text("\n")
    with pytest.raises(ValueError, match="embedding_space.txt: empty; write"):
        read_kaldi_plda(folder, SPACE)


ONES = np.ones(2)
EYE = np.eye(2)
GOOD = binary("<Plda>", ONES, EYE, ONES, "</Plda>")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "0 parts in place of 5"),
        (binary("<Plda>", ONES, EYE, ONES), "4 parts in place of 5"),
        (GOOD[:40], "it ends too early"),
        (GOOD[:12], "it ends too early"),
        (GOOD + b"more ", "6 parts"),
        (GOOD.replace(b"\4\2", b"\5\2"), "an array without its size"),
        (
            GOOD.replace(b"\4\2\0\0\0", b"\4\xff\xff\xff\xff"),
            "an array without its size",
        ),
        (
            GOOD.replace(b"\4\2\0\0\0", b"\4\xff\xff\xff\x7f"),
            "it ends too early",
        ),
        (b"\0B\xff\xfe ", "can't decode"),
        ("<Plda> é".encode(), "can't decode"),
        (GOOD.replace(b"<Plda>", b"<Plde>"), "in place of <Plda>"),
        (binary(ONES, "<Plda>", EYE, ONES, "</Plda>"), "in place of <Plda>"),
        (
            binary("<Plda>", EYE, EYE, ONES, "</Plda>"),
            "a vector in place of a matrix",
        ),
        (
            binary("<Plda>", "a", EYE, ONES, "</Plda>"),
            "something else in place of 1",
        ),
        (
            binary("<Plda>", ONES, EYE * np.nan, ONES, "</Plda>"),
            "some values are NaN",
        ),
        (text("<Plda>", ONES, EYE, ONES) + b"[", "brackets do not match"),
        (b"<Plda> [ 1 x ] [ 1 ] [ 1 ] </Plda>", "could not convert"),
        (b"<Plda> [ 1 ] [ 1 2\n3 ] [ 1 ] </Plda>", "rows of a matrix differ"),
        (b"<Plda> [ ] [ ] [ ] </Plda>", "or none"),
        (b"\0B<Plda> CM 1 2 3 4", "in place of 5"),
    ],
)
def test_damaged_files_are_one_line_errors(folder, content, reason):
    (folder / "plda").write_bytes(content)
    with pytest.raises(ValueError, match="not such a file of Kal") as caught:
        read_kaldi_plda(folder, SPACE)
    message = str(caught.value)
    assert message.startswith(f"{folder / 'plda'}: ")
    assert reason in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("name", "parts", "reason"),
    [
        ("mean.vec", [np.ones(SIZE - 2)], "mean: its shape is"),
        ("transform.mat", [np.ones((11, SIZE))], "shape"),
        ("plda", ["<Plda>", ONES, EYE, ONES, "</Plda>"], "shape"),
        ("plda", ["<Plda>", ONES, 0 * EYE, ONES, "</Plda>"], "singular"),
        ("plda", ["<Plda>", ONES, EYE[:1], ONES, "</Plda>"], "square"),
        ("plda", ["<Plda>", ONES, EYE, -ONES, "</Plda>"], "psi: no variances"),
        ("plda", ["<Plda>", ONES, EYE, 0 * ONES, "</Plda>"], "psi: no var"),
        ("plda", ["<Plda>", ONES, EYE, np.ones(3), "</Plda>"], "shape"),
    ],
)
def test_files_that_do_not_fit_are_one_line_errors(folder, name, parts, reason):
    (folder / name).write_bytes(binary(*parts))
    with pytest.raises(ValueError, match="make no PLDA back-end") as caught:
        read_kaldi_plda(folder, SPACE)
    message = str(caught.value)
    assert message.startswith(f"{folder}: ")
    assert reason in message
    assert "\n" not in message
