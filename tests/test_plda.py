"""The PLDA back-end: SpeechBrain's results, as dot products."""

import io
import pickle

import numpy as np
import pytest
import torch
from speechbrain.processing.PLDA_LDA import (
    LDA,
    PLDA,
    Ndx,
    StatObject_SB,
    fast_PLDA_scoring,
)

from redimnet2_lobes.scoring.metrics import EER, Cllr
from redimnet2_lobes.scoring.plda import PldaBackend, train_plda

SIZE = 16


def draw(speakers, utterances, seed=0):
    """Utterances from a PLDA model, the speakers' in no order.

    Half of the directions carry most of what varies within speakers, which
    misleads a cosine.
    """
    random = np.random.default_rng(seed)
    spread = np.repeat([0.3, 3.0], SIZE // 2)
    numbers = random.permutation(np.repeat(np.arange(speakers), utterances))
    embeddings = random.normal(size=(speakers, SIZE))[numbers]
    embeddings += spread * random.normal(size=embeddings.shape) + 0.5
    return torch.from_numpy(embeddings), [f"id{n:05d}" for n in numbers]


def statistics_of(embeddings, names):
    """The same as SpeechBrain takes it."""
    names = np.array(names, dtype="|O")
    ones = np.ones((len(names), 1))
    segments = np.array([f"{n:06d}" for n in range(len(names))], dtype="|O")
    return StatObject_SB(names, segments, segments, segments, ones, embeddings)


def train_by_speechbrain(embeddings, speakers, dimension, rank, iterations):
    statistics = statistics_of(embeddings, speakers)
    mean = statistics.get_mean_stat1()
    statistics.center_stat1(mean)
    lda, plda = LDA(), PLDA(rank_f=rank, nb_iter=iterations)
    statistics = lda.do_lda(statistics, dimension)
    statistics.norm_stat1()
    plda.plda(statistics)
    return mean, lda.transform_mat, plda.mean, plda.F, plda.Sigma


def scores_by_speechbrain(backend, enrolments, tests):
    sides = []
    for embeddings in (enrolments, tests):
        names = [f"{n:06d}" for n in range(len(embeddings))]
        statistics = statistics_of(embeddings.numpy(), names)
        statistics.center_stat1(backend.mean)
        statistics.rotate_stat1(backend.lda)
        statistics.norm_stat1()
        sides.append(statistics)
    ndx = Ndx(models=sides[0].modelset, testsegs=sides[1].segset)
    plda = backend.plda_mean, backend.F, backend.Sigma
    return torch.from_numpy(fast_PLDA_scoring(*sides, ndx, *plda).scoremat)


def dot_products(backend, enrolments, tests):
    return backend.enrolment_side(enrolments) @ backend.test_side(tests).T


@pytest.fixture(scope="module")
def backend():
    return train_plda(*draw(60, 8), lda_dimension=12, rank=8)


@pytest.mark.parametrize(
    ("dimension", "rank", "iterations", "given"),
    [
        (SIZE, SIZE, 3, (None, None, 3)),
        (12, 8, 10, (12, 8)),
        (5, 1, 2, (5, 1, 2)),
    ],
)
def test_training_gives_speechbrains_results(
    dimension, rank, iterations, given
):
    embeddings, speakers = draw(40, 8)
    # Unequal numbers of utterances, and speakers with one only.
    embeddings, speakers = embeddings[:230], speakers[:230]
    speakers[3], speakers[4] = "alone", "another"
    ours = train_plda(embeddings, speakers, *given)
    theirs = train_by_speechbrain(
        embeddings.numpy(), speakers, dimension, rank, iterations
    )
    mean, lda, plda_mean, F, Sigma = theirs
    # Eigenvectors are the same with either sign.
    signs = np.sign((ours.lda * lda).sum(axis=0))
    between = np.outer(signs, signs) * (F @ F.T)
    for found, expected in (
        (ours.mean, mean),
        (ours.lda, lda * signs),
        (ours.plda_mean, plda_mean * signs),
        (ours.F @ ours.F.T, between),
        (ours.Sigma, np.outer(signs, signs) * Sigma),
    ):
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() <= 1e-9 * np.abs(expected).max()
    assert ours.F.shape == (dimension, rank)


def test_the_least_that_can_be_trained_on():
    backend = train_plda(*draw(2, SIZE // 2 + 1))
    assert backend.lda.shape == (SIZE, 1)
    assert backend.F.shape == (1, 1)
    scores = dot_products(backend, draw(2, 2)[0], draw(2, 2, seed=1)[0])
    assert torch.isfinite(scores).all()


def test_speakers_differ_in_150_directions_at_most_by_default():
    random = np.random.default_rng(0)
    embeddings = random.normal(size=(160, 1, 152))
    embeddings = embeddings + 0.5 * random.normal(size=(160, 2, 152))
    speakers = [str(number) for number in np.repeat(np.arange(160), 2)]
    backend = train_plda(embeddings.reshape(320, 152), speakers, iterations=1)
    assert backend.F.shape == (152, 150)


def test_training_does_not_touch_its_input():
    embeddings, speakers = draw(40, 8)
    before = embeddings.clone()
    train_plda(embeddings, speakers, 12, 8, iterations=1)
    assert torch.equal(embeddings, before)


@pytest.mark.parametrize(("dimension", "rank"), [(SIZE, SIZE), (12, 5), (1, 1)])
def test_scores_are_speechbrains(dimension, rank):
    backend = train_plda(*draw(60, 8), dimension, rank)
    enrolments, tests = draw(7, 3, seed=1)[0], draw(5, 2, seed=2)[0]
    ours = dot_products(backend, enrolments, tests)
    theirs = scores_by_speechbrain(backend, enrolments, tests)
    assert ours.dtype == torch.float64
    assert ours.shape == (21, 10)
    assert (ours - theirs).abs().max() <= 1e-10 * theirs.abs().max()


def test_score_of_scalars_is_the_ratio_of_densities():
    # One dimension after LDA, where length normalization leaves the sign: two
    # normal densities of the pair (1, 1), correlated or not.
    one = np.eye(1)
    backend = PldaBackend([0.0], one, [0.0], 2 * one, one)

    def log_density(covariance):
        pair = np.ones(2)
        inverse = np.linalg.inv(covariance)
        return -(pair @ inverse @ pair + np.linalg.slogdet(covariance)[1]) / 2

    same = log_density(np.array([[5.0, 4.0], [4.0, 5.0]]))
    different = log_density(np.array([[5.0, 0.0], [0.0, 5.0]]))
    score = dot_products(backend, torch.ones(1, 1), torch.full((1, 1), 3.0))
    assert score.item() == pytest.approx(same - different, rel=1e-12)


def test_parameters_in_float32_are_computed_with_in_float64(backend):
    names = ("mean", "lda", "plda_mean", "F", "Sigma")
    single = {name: getattr(backend, name).astype("float32") for name in names}
    double = {name: array.astype("float64") for name, array in single.items()}
    embeddings = draw(5, 2)[0]
    rows = PldaBackend(**single).test_side(embeddings)
    assert torch.equal(rows, PldaBackend(**double).test_side(embeddings))


def test_directions_in_which_speakers_differ_may_depend_on_each_other():
    random = np.random.default_rng(0)
    parameters = {
        "mean": np.zeros(SIZE),
        "lda": random.normal(size=(SIZE, 12)),
        "plda_mean": np.zeros(12),
        "Sigma": np.eye(12) / 10,
    }
    direction = random.normal(size=(12, 1))
    one = PldaBackend(**parameters, F=np.sqrt(8) * direction)
    equal = PldaBackend(**parameters, F=np.repeat(direction, 8, axis=1))
    sides = draw(7, 3, seed=1)[0], draw(5, 2, seed=2)[0]
    torch.testing.assert_close(
        dot_products(equal, *sides), dot_products(one, *sides)
    )


def test_scores_are_symmetric(backend):
    one, other = draw(5, 2, seed=1)[0], draw(5, 2, seed=2)[0]
    there = dot_products(backend, one, other)
    back = dot_products(backend, other, one)
    torch.testing.assert_close(there, back.T, rtol=0, atol=1e-12)


def test_scores_separate_better_than_cosines():
    # LDA of full size, for that drops no direction.
    backend = train_plda(*draw(60, 8), lda_dimension=SIZE, rank=SIZE)
    embeddings, speakers = draw(20, 5, seed=3)
    first, second = torch.triu_indices(100, 100, offset=1)
    speakers = np.array(speakers)
    same = torch.from_numpy(speakers[first] == speakers[second])
    scores = dot_products(backend, embeddings, embeddings)[first, second]
    cosines = torch.cosine_similarity(embeddings[first], embeddings[second])
    rate, _ = EER(scores[same], scores[~same])
    cosine_rate, _ = EER(cosines[same], cosines[~same])
    assert rate < cosine_rate / 3
    assert Cllr(scores[same], scores[~same]) < 0.5


def test_takes_float32_with_gradients(backend):
    embeddings = draw(5, 2, seed=1)[0]
    rows = backend.test_side(embeddings.float().requires_grad_())
    assert not rows.requires_grad
    torch.testing.assert_close(
        rows, backend.test_side(embeddings), rtol=1e-4, atol=1e-4
    )


def test_embedding_equal_to_the_mean_has_a_score(backend):
    mean = torch.from_numpy(backend.mean).unsqueeze(0)
    assert torch.isfinite(dot_products(backend, mean, mean)).all()
    theirs = scores_by_speechbrain(backend, mean, mean)
    torch.testing.assert_close(dot_products(backend, mean, mean), theirs)


def test_saved_and_loaded(backend, tmp_path):
    path = tmp_path / "plda"  # NumPy would append a suffix
    path.write_text("what stood there before")
    backend.save(path, "b3-1")
    assert [entry.name for entry in tmp_path.iterdir()] == ["plda"]
    embeddings = draw(5, 2)[0]
    loaded = PldaBackend.load(path, "b3-1")
    for side in ("enrolment_side", "test_side"):
        expected = getattr(backend, side)(embeddings)
        assert torch.equal(getattr(loaded, side)(embeddings), expected)


def test_interrupted_saving_leaves_the_old_file(backend, tmp_path, monkeypatch):
    path = tmp_path / "plda.npz"
    backend.save(path, "b3-1")
    before = path.read_bytes()

    def full_disk(file, **arrays):
        file.write(b"PK")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full_disk)
    with pytest.raises(OSError, match="No space"):
        backend.save(path, "b3-1")
    assert path.read_bytes() == before


def archive(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def damaged(kind, whole):
    arrays = dict(np.load(io.BytesIO(whole)))
    if kind == "cut":
        return whole[: len(whole) // 2]
    if kind == "flipped":
        middle = whole.index(arrays["F"].tobytes()) + 3
        return whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    if kind == "empty":
        return b""
    if kind == "text":
        return b"id00012 0.1 0.2\n"
    if kind == "pickle":
        return pickle.dumps(arrays)
    if kind == "one array":
        file = io.BytesIO()
        np.save(file, arrays["F"])
        return file.getvalue()
    if kind == "incomplete":
        return archive(**{k: v for k, v in arrays.items() if k != "Sigma"})
    if kind == "objects":
        return archive(**arrays | {"F": np.array([{}], dtype=object)})
    if kind == "shapes":
        return archive(**arrays | {"F": arrays["F"][1:]})
    if kind == "directions":
        return archive(**arrays | {"F": arrays["F"][..., np.newaxis]})
    if kind == "projections":
        return archive(**arrays | {"lda": arrays["lda"][..., np.newaxis]})
    if kind == "NaN":
        return archive(**arrays | {"mean": arrays["mean"] * np.nan})
    if kind == "dates":
        return archive(**arrays | {"mean": arrays["mean"].astype("M8[s]")})
    assert kind == "no covariance"
    return archive(**arrays | {"Sigma": -arrays["Sigma"]})


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("cut", ""),
        ("flipped", "CRC"),
        ("empty", ""),
        ("text", ""),
        ("pickle", ""),
        ("one array", ""),
        ("incomplete", "Sigma is missing"),
        ("objects", "allow_pickle=False"),
        ("shapes", "F: its shape is"),
        ("directions", "F: its shape is"),
        ("projections", "lda: its shape is"),
        ("dates", "mean: holds datetime64[s], not numbers"),
        ("NaN", "mean: some values are NaN"),
        ("no covariance", "Sigma: not positive definite"),
    ],
)
def test_other_files_are_one_line_errors(backend, tmp_path, kind, reason):
    path = tmp_path / "plda.npz"
    backend.save(path, "b3-1")
    path.write_bytes(damaged(kind, path.read_bytes()))
    with pytest.raises(ValueError, match="not a PLDA back-end") as caught:
        PldaBackend.load(path, "b3-1")
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert reason in message
    assert "\n" not in message


def test_another_space_is_refused(backend, tmp_path):
    backend.save(tmp_path / "plda.npz", "b0-1")
    message = "^.*plda.npz: of the embedding space b0-1, but .* of b3-1"
    with pytest.raises(ValueError, match=message):
        PldaBackend.load(tmp_path / "plda.npz", "b3-1")


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.npz"):
        PldaBackend.load(tmp_path / "nowhere.npz", "b3-1")


def spoilt(embeddings):
    embeddings = embeddings.clone()
    embeddings[3, 2] = float("nan")
    return embeddings


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda e, s: (e, ["a"] * len(s)), {}, "at least 2 speakers, not 1"),
        (
            lambda e, s: (e, [str(n) for n in range(len(s))]),
            {},
            "all 240 speakers have only one",
        ),
        (lambda e, s: (spoilt(e), s), {}, "1 of 240 have NaN"),
        (lambda e, s: (e, s[1:]), {}, "there are 239 speaker names"),
        (lambda e, s: (e[:20], s[:20]), {}, "at least 16 more"),
        (
            lambda e, s: (e, s),
            {"lda_dimension": 17},
            "lda_dimension: 17 is not from 1 to 16, the size of embeddings",
        ),
        (
            lambda e, s: (e, [name[-1] for name in s]),
            {"lda_dimension": 10},
            "lda_dimension: 10 is not from 1 to 9, one less than the 10 sp",
        ),
        (lambda e, s: (e, s), {"lda_dimension": 0}, "lda_dimension: 0 is not"),
        (
            lambda e, s: (e, s),
            {"rank": 9},
            "plda_rank: 9 is not from 1 to 8, lda_dimension",
        ),
        (lambda e, s: (e[:1].expand(240, -1), s), {}, "cannot be trained"),
    ],
)
def test_unusable_training_sets_are_one_line_errors(change, options, message):
    embeddings, speakers = change(*draw(30, 8))
    options = {"lda_dimension": 8, "rank": 4} | options
    with pytest.raises(ValueError, match=message) as caught:
        train_plda(embeddings, speakers, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("side", ["enrolment_side", "test_side"])
@pytest.mark.parametrize(
    ("embeddings", "message"),
    [
        (torch.ones(3, SIZE + 1), r"\(3, 17\), but .* \[utterances, 16\]"),
        (torch.ones(SIZE), "their shape is"),
        (spoilt(torch.ones(4, SIZE)), "1 of 4 have NaN"),
    ],
)
def test_unusable_embeddings_are_one_line_errors(
    backend, side, embeddings, message
):
    with pytest.raises(ValueError, match=message) as caught:
        getattr(backend, side)(embeddings)
    assert "\n" not in str(caught.value)
