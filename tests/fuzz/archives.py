"""Arrays in NumPy's archives: the cache of embeddings, PLDA; Kaldi's PLDA."""

import contextlib
import functools
import io
import tempfile
from pathlib import Path

import numpy as np
import soundfile
import torch
from hypothesis import strategies as st

from fuzz.inputs import mutated, repacked
from fuzz.oracle import Target
from redimnet2_lobes.inference.embedding_cache import extract_embeddings
from redimnet2_lobes.inference.embedding_files import read_embeddings
from redimnet2_lobes.scoring.kaldi_plda import (
    read_kaldi_plda,
    write_kaldi_plda,
)
from redimnet2_lobes.scoring.plda import ARRAYS, PldaBackend
from redimnet2_lobes.voices.store import VoiceStore

AXES = st.lists(st.integers(0, 3), max_size=3)
KINDS = ("<f8", "<f4", ">f8", "<i8", "?", "<U2", "<c16", "<M8[s]", "i4,f8")
VALUES = (0, 1, -1, np.nan, np.inf, 1e30)


def packed(arrays, save=np.savez):
    content = io.BytesIO()
    save(content, **arrays)
    return content.getvalue()


@st.composite
def other_arrays(draw, arrays):
    """Archives of which one array has other numbers, axes or kinds."""
    name = draw(st.sampled_from(sorted(arrays)))
    shape = draw(st.just(arrays[name].shape) | AXES)
    other = np.full(shape, draw(st.sampled_from(VALUES)))
    with np.errstate(all="ignore"):
        other = other.astype(draw(st.sampled_from(KINDS)))
    return packed({**arrays, name: other})


# Embeddings of two files, by moments in place of a network; a third is empty.


def encode_batch(wavs, wav_lens):
    return torch.stack([wavs.mean(1), wavs.std(1), wav_lens], 1).unsqueeze(1)


def write_utterances(folder):
    for name, frequency in (("a", 0.1), ("b", 0.2)):
        wave = np.sin(frequency * np.arange(800))
        soundfile.write(folder / f"{name}.wav", wave, 16000)
    (folder / "c.wav").touch()


def extract(folder):
    utterances = {name: f"{folder}/{name}.wav" for name in "abc"}
    faults = {}
    embeddings = extract_embeddings(
        encode_batch, utterances, folder / "cache", "1", faults=faults
    )
    return embeddings, {name: error.reason for name, error in faults.items()}


@functools.cache
def whole_cache():
    with tempfile.TemporaryDirectory() as folder:
        write_utterances(Path(folder))
        found = extract(Path(folder))
        (part,) = Path(folder).glob("cache/*/part*")
        return found, part.read_bytes()


def read_cache(path, forged=False):
    # The folder's name tells the times of the files.
    extract(path.parent)
    (part,) = path.parent.glob("cache/*/part*")
    part.write_bytes(path.read_bytes())
    found, faults = extract(path.parent)
    expected, expected_faults = whole_cache()[0]
    for name in ("vectors", "seconds"):
        ours, theirs = getattr(found, name), getattr(expected, name)
        assert len(ours) == len(found.names) and ours.ndim == theirs.ndim
        assert ours.dtype == theirs.dtype and ours.isfinite().all()
        assert forged or torch.equal(ours, theirs)
    assert {*found.names, *faults} == {*"abc"}
    assert forged or (found.names, faults) == (["a", "b"], expected_faults)


def forged_caches():
    part = whole_cache()[1]
    with np.load(io.BytesIO(part)) as arrays:
        return other_arrays(dict(arrays)) | repacked([part])


RANDOM = np.random.default_rng(0)
PLDA = {
    "mean": RANDOM.normal(size=3),
    "lda": RANDOM.normal(size=(3, 2)),
    "plda_mean": RANDOM.normal(size=2),
    "F": RANDOM.normal(size=(2, 1)),
    "Sigma": np.eye(2),
    "embedding_space": np.array("b3-1"),
}


def read_plda(path, forged=False):
    backend = PldaBackend.load(path, "b3-1")
    # An LDA of zeros makes nothing of any embedding.
    with contextlib.suppress(ValueError):
        rows = backend.enrolment_side(torch.ones(1, 3))
        assert rows.isfinite().all() and rows.dtype == torch.float64
    for name in ARRAYS:
        array = getattr(backend, name)
        assert forged or np.array_equal(array, PLDA[name])


# The same in Kaldi's files.


@functools.cache
def kaldi_files():
    with tempfile.TemporaryDirectory() as folder:
        arrays = (PLDA[name] for name in ARRAYS)
        write_kaldi_plda(folder, PldaBackend(*arrays), "b3-1")
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


KALDI_TEXTS = {
    "mean.vec": b" [ 0.5 -1 2e-1 ]\n",
    "transform.mat": b" [\n  1 0 0 0.5 \n  0 1 0 0 ]\n",
    "plda": b"<Plda>  [ 0 0 ]\n [\n  1 0.5 \n  0 1 ]\n [ 2 0 ]\n</Plda> ",
}


def write_kaldi_files(folder):
    for name, content in kaldi_files().items():
        (folder / name).write_bytes(content)


def read_kaldi(path):
    backend = read_kaldi_plda(path.parent, "b3-1")
    with contextlib.suppress(ValueError):
        rows = backend.enrolment_side(torch.ones(1, len(backend.mean)))
        assert rows.isfinite().all() and rows.dtype == torch.float64


def kaldi_target(name):
    return Target(
        f"kaldi-{name}",
        name,
        lambda: mutated([kaldi_files()[name], KALDI_TEXTS[name]]),
        read_kaldi,
        write_kaldi_files,
    )


EMBEDDINGS = {
    "names": np.array(["a", "b"]),
    "embeddings": RANDOM.normal(size=(2, 3)).astype(np.float32),
    "embedding_space": np.array("b3-1"),
}


def read_file(path, forged=False):
    found = read_embeddings(path)
    assert len(found.names) == len(found.vectors) == len(found.speakers)
    assert found.vectors.isfinite().all() and found.space
    if not forged:
        assert (found.names, found.space) == (["a", "b"], "b3-1")
        assert np.array_equal(found.vectors.numpy(), EMBEDDINGS["embeddings"])


# A store of voices, and what it exports.


@functools.cache
def whole_store():
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "voices.sqlite"
        with VoiceStore(path, "b3-1") as store:
            for name in ("anna", "Zoë"):
                rows = torch.from_numpy(EMBEDDINGS["embeddings"])
                store.add(name, rows, [1.5, 2], consent=f"form of {name}")
            store.write_operating_points({"threshold": 0.5})
            store.export(Path(folder) / "voices.npz")
        exported = (Path(folder) / "voices.npz").read_bytes()
        return path.read_bytes(), exported


def check_voices(store):
    voices = store.voices()
    assert [voice.name for voice in voices] == store.names()
    for voice in voices:
        assert all(text.isprintable() for text in voice[3:5] + voice[:1])
        assert voice.prototypes > 0
        rows = store.prototypes(voice.name)
        assert len(rows) == voice.prototypes and rows.isfinite().all()
        store.identify(rows)
    assert isinstance(store.read_operating_points(), dict | None)


def read_store(path):
    with VoiceStore(path) as store:
        check_voices(store)
        for name in store.names()[:1]:
            rows = store.prototypes(name)
            store.add("new", rows, [1] * len(rows))
            store.remove(name)


def import_voices(path):
    with VoiceStore(path.with_name("into.sqlite"), "b3-1") as store:
        assert store.import_(path) == len(store.names())
        check_voices(store)


def forged_exports():
    exported = whole_store()[1]
    with np.load(io.BytesIO(exported)) as arrays:
        return other_arrays(dict(arrays)) | repacked([exported])


CACHE_FILES = r"cache(/\w+(/part-\d+\.npz)?)?"
TARGETS = (
    Target(
        "cache",
        "part.npz",
        lambda: mutated([whole_cache()[1]]),
        read_cache,
        write_utterances,
        CACHE_FILES,
    ),
    Target(
        "cache-forged",
        "part.npz",
        forged_caches,
        functools.partial(read_cache, forged=True),
        write_utterances,
        CACHE_FILES,
    ),
    Target(
        "embeddings",
        "embeddings.npz",
        lambda: mutated([packed(EMBEDDINGS)]),
        read_file,
    ),
    Target(
        "embeddings-forged",
        "embeddings.npz",
        lambda: other_arrays(EMBEDDINGS) | repacked([packed(EMBEDDINGS)]),
        functools.partial(read_file, forged=True),
    ),
    Target(
        "plda",
        "plda.npz",
        lambda: mutated([packed(PLDA), packed(PLDA, np.savez_compressed)]),
        read_plda,
    ),
    Target(
        "plda-forged",
        "plda.npz",
        lambda: other_arrays(PLDA) | repacked([packed(PLDA)]),
        functools.partial(read_plda, forged=True),
    ),
    *map(kaldi_target, KALDI_TEXTS),
    Target(
        "store",
        "voices.sqlite",
        lambda: mutated([whole_store()[0]]),
        read_store,
        writes="voices.sqlite-journal",
    ),
    Target(
        "voices",
        "voices.npz",
        lambda: mutated([whole_store()[1]]),
        import_voices,
        writes="into.sqlite",
    ),
    Target(
        "voices-forged",
        "voices.npz",
        forged_exports,
        import_voices,
        writes="into.sqlite",
    ),
)
