"""Embeddings computed once: keys, parts, resumption and settings."""

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from redimnet2_lobes.data.audio import AudioError, load_waveform
from redimnet2_lobes.inference import embedding_cache
from redimnet2_lobes.inference.embedding_cache import extract_embeddings
from redimnet2_lobes.inference.encode import AveragedCrops

RATE = 16000
FILES = 10


@pytest.fixture
def utterances(tmp_path):
    """Ten files of 0.1 to 0.4 s, in no order, by name."""
    random = np.random.default_rng(0)
    paths = {}
    for index in random.permutation(FILES).tolist():
        path = tmp_path / f"{index}.wav"
        soundfile.write(
            path, random.uniform(-0.5, 0.5, 1600 * (1 + index % 4)), RATE
        )
        paths[f"speaker/{index}"] = str(path)
    return paths


class Network:
    """In place of a network: moments of each utterance, and a count."""

    def __init__(self, fails_at=None):
        self.embedded = 0
        self.fails_at = fails_at

    def __call__(self, wavs, wav_lens):
        self.embedded += len(wavs)
        if self.fails_at is not None and self.embedded > self.fails_at:
            raise KeyboardInterrupt
        samples = (wav_lens * wavs.shape[1]).round().long()
        return torch.stack(
            [moments(wav[:n]) for wav, n in zip(wavs, samples, strict=True)]
        ).unsqueeze(1)


def moments(wav):
    return torch.stack([wav.mean(), wav.std(), wav[0], wav[-1]])


def extract(utterances, tmp_path, network=None, fingerprint="1", **settings):
    """The embeddings and how many utterances were embedded for them."""
    network = network or Network()
    embeddings = extract_embeddings(
        network,
        utterances,
        tmp_path / "cache",
        fingerprint,
        **{"utterances_per_part": 3, **settings},
    )
    return embeddings, network.embedded


def parts(tmp_path):
    return sorted((tmp_path / "cache").glob("*/part-*.npz"))


def test_embeddings_are_those_of_the_files_in_their_order(utterances, tmp_path):
    embeddings, embedded = extract(utterances, tmp_path)
    assert embedded == FILES
    assert embeddings.names == list(utterances)
    assert embeddings.vectors.dtype == embeddings.seconds.dtype == torch.float32
    for row, path in enumerate(utterances.values()):
        wav = load_waveform(path)
        torch.testing.assert_close(embeddings.vectors[row], moments(wav))
        assert embeddings.seconds[row] == pytest.approx(len(wav) / RATE)
    # Parts of three, and nothing else.
    files = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert sorted(files) == parts(tmp_path)
    assert len(files) == 4


def test_a_complete_cache_needs_no_network(utterances, tmp_path):
    first, _ = extract(utterances, tmp_path)
    again, embedded = extract(utterances, tmp_path, Network(fails_at=0))
    assert embedded == 0
    assert torch.equal(again.vectors, first.vectors)
    assert torch.equal(again.seconds, first.seconds)
    # The same utterances in another order are the same list.
    backwards = dict(reversed(utterances.items()))
    again, embedded = extract(backwards, tmp_path)
    assert embedded == 0
    assert again.names == list(backwards)
    assert torch.equal(again.vectors, first.vectors.flip(0))


def test_an_interrupted_extraction_goes_on(utterances, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        # Batches are of one file, so it ends within the third part.
        extract(
            utterances, tmp_path, Network(fails_at=7), seconds_per_batch=0.1
        )
    assert len(parts(tmp_path)) == 2
    embeddings, embedded = extract(utterances, tmp_path)
    assert embedded == FILES - 6
    whole, _ = extract(utterances, tmp_path / "elsewhere")
    assert torch.equal(embeddings.vectors, whole.vectors)


def cut_short(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def emptied(path):
    path.write_bytes(b"")


def flipped(path):
    content = bytearray(path.read_bytes())
    content[content.find(b"vectors.npy") + 150] ^= 1
    path.write_bytes(content)


def of_others(path):
    (other,) = path.parent.glob("part-*3.npz")
    path.write_bytes(other.read_bytes())


def changed_arrays(path, change):
    with np.load(path) as archive:
        arrays = dict(archive)
    change(arrays)
    with open(path, "wb") as file:
        np.savez(file, **arrays)


def one_row(path):
    changed_arrays(path, lambda a: a.update(vectors=a["vectors"][:1]))


def one_second(path):
    changed_arrays(path, lambda a: a.update(seconds=a["seconds"][:1]))


def in_double_precision(path):
    changed_arrays(path, lambda a: a.update(vectors=a["vectors"].astype("f8")))


def not_finite(path):
    changed_arrays(path, lambda a: a["vectors"].__setitem__(0, np.nan))


@pytest.mark.parametrize(
    "damage",
    [
        *(cut_short, emptied, flipped, of_others),
        *(one_row, one_second, in_double_precision, not_finite),
    ],
)
def test_a_damaged_part_is_made_again(damage, utterances, tmp_path):
    first, _ = extract(utterances, tmp_path)
    damage(parts(tmp_path)[0])
    again, embedded = extract(utterances, tmp_path)
    assert embedded == 3
    assert torch.equal(again.vectors, first.vectors)
    assert extract(utterances, tmp_path)[1] == 0


def changed_file(utterances):
    path = utterances["speaker/3"]
    audio, rate = soundfile.read(path)
    status = os.stat(path)
    soundfile.write(path, audio * 0.5, rate)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


def longer_file(utterances):
    path = utterances["speaker/3"]
    status = os.stat(path)
    soundfile.write(path, np.linspace(-0.5, 0.5, 9999), RATE)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def fewer_files(utterances):
    del utterances["speaker/3"]


def another_name(utterances):
    utterances["speaker/x"] = utterances.pop("speaker/3")


@pytest.mark.parametrize(
    "change", [changed_file, longer_file, fewer_files, another_name]
)
def test_a_changed_list_never_meets_old_embeddings(
    change, utterances, tmp_path
):
    extract(utterances, tmp_path)
    change(utterances)
    embeddings, embedded = extract(utterances, tmp_path)
    assert embedded == len(utterances)
    for row, path in enumerate(utterances.values()):
        torch.testing.assert_close(
            embeddings.vectors[row], moments(load_waveform(path))
        )


@pytest.mark.parametrize(
    "changed",
    [
        {"fingerprint": "2"},
        {"maximum_seconds": 0.2},
        {"maximum_seconds": 0.1, "crops": 2},
        {"maximum_seconds": 0.1, "crops": 3},
    ],
)
def test_changed_settings_never_meet_old_embeddings(
    changed, utterances, tmp_path
):
    settings = {"maximum_seconds": 0.1}
    extract(utterances, tmp_path, **settings)
    _, embedded = extract(utterances, tmp_path, **{**settings, **changed})
    assert embedded >= FILES
    assert extract(utterances, tmp_path, **settings)[1] == 0
    # How work is put together makes no other embeddings.
    assert (
        extract(utterances, tmp_path, seconds_per_batch=1, **settings)[1] == 0
    )


def test_the_start_of_each_utterance(utterances, tmp_path):
    embeddings, _ = extract(utterances, tmp_path, maximum_seconds=0.15)
    for row, path in enumerate(utterances.values()):
        wav = load_waveform(path)[:2400]
        torch.testing.assert_close(embeddings.vectors[row], moments(wav))
        assert embeddings.seconds[row] == pytest.approx(len(wav) / RATE)


def test_averaged_crops(utterances, tmp_path):
    embeddings, _ = extract(utterances, tmp_path, maximum_seconds=0.1, crops=3)
    for row, path in enumerate(utterances.values()):
        wav = load_waveform(path)
        surplus = len(wav) - 1600
        starts = [0, surplus // 2, surplus] if surplus else [0]
        crops = torch.stack([moments(wav[s : s + 1600]) for s in starts])
        units = crops / crops.norm(dim=1, keepdim=True)
        torch.testing.assert_close(embeddings.vectors[row], units.mean(0))
        # 0.4 s are not covered by three crops of 0.1 s.
        seconds = min(len(wav) / RATE, 0.3)
        assert embeddings.seconds[row] == pytest.approx(seconds)


def test_crops_of_a_padded_batch_see_no_padding():
    wavs = torch.rand(2, 3200) + 0.1
    wavs[1, 2400:] = torch.nan
    seen = []

    def encode_batch(crops, lengths):
        assert lengths.tolist() == [1] * len(crops)
        seen.append(crops)
        return crops[:, None, :5]

    averaged = AveragedCrops(encode_batch, 0.1, 2)
    embeddings = averaged(wavs, torch.tensor([1.0, 0.75]))
    assert embeddings.shape == (2, 1, 5)
    assert embeddings.isfinite().all()
    assert torch.equal(
        seen[1], torch.stack([wavs[1, :1600], wavs[1, 800:2400]])
    )


def test_utterances_in_shards(utterances, tmp_path):
    paths = list(utterances.values())[:2]
    audio = [Path(path).read_bytes() for path in paths]
    shard = tmp_path / "shard.tar"
    shard.write_bytes(b"head" + audio[0] + audio[1])
    places = (4, len(audio[0])), (4 + len(audio[0]), len(audio[1]))
    sources = {
        f"{index}": f"{shard}:{start}:{size}"
        for index, (start, size) in enumerate(places)
    }
    embeddings, _ = extract(sources, tmp_path)
    for row, path in enumerate(paths):
        torch.testing.assert_close(
            embeddings.vectors[row], moments(load_waveform(path))
        )
    # Another place in the same shard is another utterance.
    swapped = {"0": sources["1"], "1": sources["0"]}
    again, embedded = extract(swapped, tmp_path)
    assert embedded == 2
    assert torch.equal(again.vectors, embeddings.vectors.flip(0))
    shard.write_bytes(b"head" + bytes(len(audio[0])) + audio[1])
    with pytest.raises(AudioError, match=f"{shard}:4:.* unreadable"):
        extract(sources, tmp_path)


def test_segments_of_one_file(utterances, tmp_path):
    path = utterances["speaker/3"]  # of 0.4 s
    whole = load_waveform(path)
    sources = {
        "0": f"{path}[0:1600]",
        "1": f"{path}[1600:4000]",
        "2": f"{path}[0.1s:0.25s]",
        "3": path,
    }
    embeddings, embedded = extract(sources, tmp_path)
    assert embedded == 4
    pieces = whole[:1600], whole[1600:4000], whole[1600:4000], whole
    for row, wav in enumerate(pieces):
        torch.testing.assert_close(embeddings.vectors[row], moments(wav))
        assert embeddings.seconds[row] == pytest.approx(len(wav) / RATE)
    # Another segment under the same name is another utterance.
    for changed in (f"{path}[0:1601]", f"{path}[1:1600]", f"{path}[0s:.1s]"):
        _, embedded = extract({**sources, "0": changed}, tmp_path)
        assert embedded == 4
    assert extract(sources, tmp_path)[1] == 0
    with pytest.raises(AudioError, match=r"[[]0:9999[]]: a segment beyond"):
        extract({**sources, "4": f"{path}[0:9999]"}, tmp_path)
    with pytest.raises(AudioError, match=r"lost.wav[[]0:9[]]: missing"):
        extract({**sources, "4": f"{tmp_path}/lost.wav[0:9]"}, tmp_path)


def test_keys_are_those_of_earlier_versions(tmp_path):
    """Of whole files and shards; a new VERSION makes others."""
    path, shard = tmp_path / "a.wav", tmp_path / "s.tar"
    soundfile.write(path, np.linspace(-0.5, 0.5, 1600), RATE)
    shard.write_bytes(b"head" + path.read_bytes())
    sources = [str(path), f"{shard}:4:{path.stat().st_size}"]
    keys = []
    for number, file in enumerate((path, shard)):
        os.utime(file, ns=(10**18, 10**18))
        cache = tmp_path / f"cache{number}"
        extract_embeddings(Network(), {"a": sources[number]}, cache, "1")
        keys += os.listdir(cache)
    assert keys == [
        "09e9869062e6659db268f4f33a3e5ea5",
        "2de82e253516426890444c3b21ceb072",
    ]


def test_one_file_under_two_names(utterances, tmp_path):
    name, path = next(iter(utterances.items()))
    embeddings, embedded = extract({name: path, "twin": path}, tmp_path)
    assert embedded == 1
    assert torch.equal(embeddings.vectors[0], embeddings.vectors[1])


def test_rows_by_name(utterances, tmp_path):
    embeddings, _ = extract(utterances, tmp_path)
    names = [embeddings.names[5], embeddings.names[0], embeddings.names[5]]
    assert embeddings.rows(names).tolist() == [5, 0, 5]
    assert embeddings.rows([]).dtype == torch.int64
    with pytest.raises(ValueError, match="^nobody: not among the 10") as caught:
        embeddings.rows(["speaker/1", "nobody"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"crops": 2}, "maximum_seconds: missing"),
        ({"crops": 0, "maximum_seconds": 1}, "crops: 0 is less than 1"),
        ({"crops": 2, "maximum_seconds": -1}, "seconds: must be above 0"),
        ({"maximum_seconds": 0}, "maximum_seconds: must be above 0"),
        ({"utterances_per_part": 0}, "utterances_per_part: 0 is less"),
    ],
)
def test_wrong_settings(settings, message, utterances, tmp_path):
    with pytest.raises(ValueError, match=message):
        extract(utterances, tmp_path, **settings)


def test_no_utterances_and_missing_ones(utterances, tmp_path):
    with pytest.raises(ValueError, match="utterances: there are none"):
        extract({}, tmp_path)
    utterances["lost"] = str(tmp_path / "lost.wav")
    with pytest.raises(AudioError, match=r"lost\.wav: missing; check"):
        extract(utterances, tmp_path)


def test_a_full_disk_is_named_and_keeps_what_is_complete(
    utterances, tmp_path, monkeypatch
):
    save = np.savez
    writes = []

    def full_disk(file, **arrays):
        writes.append(file)
        if len(writes) == 3:
            file.write(b"half a part")
            raise OSError(28, "No space left on device")
        save(file, **arrays)

    monkeypatch.setattr(np, "savez", full_disk)
    with pytest.raises(OSError, match="No space left.*same command again"):
        extract(utterances, tmp_path)
    assert len(list((tmp_path / "cache").glob("*/*"))) == 2
    assert extract(utterances, tmp_path)[1] == FILES - 6


@pytest.fixture
def bad(utterances, tmp_path):
    """Four of the utterances, which are no good any more, in every way."""
    Path(utterances["speaker/2"]).write_bytes(b"")
    soundfile.write(utterances["speaker/5"], np.zeros(1600), RATE)
    Path(utterances["speaker/6"]).unlink()
    Path(utterances["speaker/8"]).write_text("no audio " * 99)
    return {
        "speaker/2": "empty",
        "speaker/5": "silent",
        "speaker/6": "missing",
        "speaker/8": "unreadable",
    }


def test_faults_are_kept_beside_the_embeddings(utterances, bad, tmp_path):
    faults = {}
    embeddings, embedded = extract(utterances, tmp_path, faults=faults)
    good = [name for name in utterances if name not in bad]
    assert embedded == len(good)
    assert embeddings.names == good
    for row, name in enumerate(good):
        wav = load_waveform(utterances[name])
        torch.testing.assert_close(embeddings.vectors[row], moments(wav))
        assert embeddings.seconds[row] == pytest.approx(len(wav) / RATE)
    assert {name: fault.reason for name, fault in faults.items()} == bad
    assert list(faults) == [name for name in utterances if name in bad]
    # From the cache, without a network and without reading a file again.
    again = {}
    same, embedded = extract(
        utterances, tmp_path, Network(fails_at=0), faults=again
    )
    assert embedded == 0
    assert torch.equal(same.vectors, embeddings.vectors)
    assert list(map(str, again.values())) == list(map(str, faults.values()))
    backwards = dict(reversed(utterances.items()))
    same, _ = extract(backwards, tmp_path, Network(fails_at=0), faults={})
    assert same.names == good[::-1]


def test_an_interrupted_extraction_does_not_try_bad_files_again(
    utterances, bad, tmp_path, monkeypatch
):
    with pytest.raises(KeyboardInterrupt):
        extract(
            utterances,
            tmp_path,
            Network(fails_at=4),
            seconds_per_batch=0.1,
            faults={},
        )
    assert len(parts(tmp_path)) == 2
    read = []

    def load(source):
        read.append(source)
        return load_waveform(source)

    monkeypatch.setattr(embedding_cache, "load_source", load)
    faults = {}
    embeddings, _ = extract(utterances, tmp_path, faults=faults)
    first_parts = [utterances[f"speaker/{index}"] for index in range(6)]
    assert read and not set(read) & set(first_parts)
    assert {name: fault.reason for name, fault in faults.items()} == bad
    assert len(embeddings.names) == FILES - len(bad)


def test_a_strict_reader_stops_at_what_the_cache_has_as_a_fault(
    utterances, tmp_path
):
    Path(utterances["speaker/2"]).write_bytes(b"")
    faults = {}
    extract(utterances, tmp_path, faults=faults)
    with pytest.raises(AudioError, match=r"2\.wav: empty; "):
        extract(utterances, tmp_path)
    # What is whole serves both.
    del utterances["speaker/2"]
    extract(utterances, tmp_path)
    assert extract(utterances, tmp_path, faults={})[1] == 0


def test_a_file_that_appears_is_embedded(utterances, tmp_path):
    path = Path(utterances["speaker/4"])
    content = path.read_bytes()
    path.unlink()
    faults = {}
    extract(utterances, tmp_path, faults=faults)
    assert list(faults) == ["speaker/4"]
    path.write_bytes(content)
    faults = {}
    embeddings, _ = extract(utterances, tmp_path, faults=faults)
    assert len(embeddings.names) == FILES and not faults


@pytest.mark.parametrize("per_part", [1, 3, 99])
def test_nothing_but_bad_files(utterances, tmp_path, per_part):
    for path in utterances.values():
        Path(path).write_bytes(b"")
    faults = {}
    for _ in range(2):
        embeddings, embedded = extract(
            utterances, tmp_path, utterances_per_part=per_part, faults=faults
        )
        assert embedded == 0
        assert embeddings.names == [] and len(embeddings.vectors) == 0
        assert list(faults) == list(utterances)


def test_one_bad_file_under_two_names(utterances, tmp_path):
    name, path = next(iter(utterances.items()))
    Path(path).write_bytes(b"")
    faults = {}
    extract({name: path, "twin": path}, tmp_path, faults=faults)
    assert set(faults) == {name, "twin"}


def test_faults_in_shards(utterances, tmp_path):
    audio = Path(utterances["speaker/1"]).read_bytes()
    shard = tmp_path / "shard.tar"
    shard.write_bytes(b"head" + audio + bytes(len(audio)))
    sources = {
        "good": f"{shard}:4:{len(audio)}",
        "bad": f"{shard}:{4 + len(audio)}:{len(audio)}",
        "late": f"{shard}:{4 + len(audio)}:{len(audio) + 9}",
        "lost": f"{tmp_path}/lost.tar:4:{len(audio)}",
    }
    faults = {}
    embeddings, _ = extract(sources, tmp_path, faults=faults)
    assert embeddings.names == ["good"]
    assert {name: fault.reason for name, fault in faults.items()} == {
        "bad": "unreadable",
        "late": "cut short",
        "lost": "missing",
    }
