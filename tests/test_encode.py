"""Embeddings of many utterances: batching, memory, order and errors."""

import os
import random
import threading

import pytest
import soundfile
import torch
from speechbrain.dataio import audio_io
from speechbrain.inference.classifiers import EncoderClassifier

from redimnet2_lobes.data.audio import AudioError, load_waveform
from redimnet2_lobes.inference.averaged_pieces import AveragedPieces
from redimnet2_lobes.inference.encode import (
    check_finite,
    encode_utterances,
    load_source,
)
from redimnet2_lobes.inference.long_files import encode_files, read_pieces
from redimnet2_lobes.models.front_end import LogMel
from redimnet2_lobes.models.pass_through import PassThrough
from redimnet2_lobes.models.redimnet2 import ReDimNet2

RATE = 16000


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two dozen files of 0.2 to 2 s, some of the same length."""
    folder = tmp_path_factory.mktemp("utterances")
    generator = torch.Generator().manual_seed(0)
    paths = []
    for index in range(24):
        path = folder / f"{index:02}.wav"
        samples = 3200 * (1 + index * 7 % 10)
        wav = torch.rand(1, samples, generator=generator) - 0.5
        audio_io.save(path, wav, RATE)
        paths.append(str(path))
    return paths


class Recorder:
    """In place of a network: moments over the valid samples, and a diary."""

    def __init__(self, load=load_waveform):
        self.load_file = load
        self.batches = []
        self.loaded = []
        self.waiting = self.most_waiting = 0
        self.lock = threading.Lock()

    def load(self, path):
        waveform = self.load_file(path)
        with self.lock:
            self.loaded.append(path)
            self.waiting += len(waveform)
            self.most_waiting = max(self.most_waiting, self.waiting)
        return waveform

    def __call__(self, wavs, wav_lens):
        assert not torch.is_grad_enabled()
        assert wav_lens.max() == 1
        samples = (wav_lens * wavs.shape[1]).round().long()
        self.batches.append((wavs.shape[1], samples.tolist()))
        with self.lock:
            self.waiting -= int(samples.sum())
        return torch.stack(
            [
                torch.stack([wav[:n].mean(), wav[:n].std(), wav[n - 1]])
                for wav, n in zip(wavs, samples, strict=True)
            ]
        ).unsqueeze(1)


def test_each_utterance_is_read_once_and_gets_its_own_embedding(files):
    network = Recorder()
    embeddings = encode_utterances(network, files + files[::2], 5, network.load)
    assert sorted(network.loaded) == files
    assert set(embeddings) == set(files)
    for path, embedding in embeddings.items():
        wav = load_waveform(path)
        expected = torch.stack([wav.mean(), wav.std(), wav[-1]])
        torch.testing.assert_close(embedding, expected)
        assert embedding.dtype == torch.float32
        assert embedding.untyped_storage().nbytes() == 12  # not the batch


@pytest.mark.parametrize("seconds", [0.1, 1.5, 5, 1000])
def test_batches_keep_to_the_budget_and_hold_little_padding(files, seconds):
    network = Recorder()
    encode_utterances(network, files, seconds, network.load)
    for longest, samples in network.batches:
        assert longest == max(samples)
        assert longest * len(samples) <= seconds * RATE or len(samples) == 1
    audio = sum(sum(samples) for _, samples in network.batches)
    padded = sum(longest * len(samples) for longest, samples in network.batches)
    if seconds <= 5:
        assert padded < 1.25 * audio
    # Two batches (2 s is the longest file) are held, no more.
    assert network.most_waiting <= 2 * max(seconds, 2) * RATE


def test_segments_are_sorted_by_their_own_length(files):
    lengths = (500, 3200, 900, 1600, 2500)
    sources = [
        f"{path}[0:{samples}]"
        for path, samples in zip(files, lengths, strict=False)
    ]
    network = Recorder(load_source)
    encode_utterances(network, sources, 0.1, network.load)
    assert [longest for longest, _ in network.batches] == sorted(
        lengths, reverse=True
    )


def test_the_order_of_the_utterances_does_not_matter(files):
    first, second = Recorder(), Recorder()
    shuffled = random.Random(0).sample(files, len(files))
    embeddings = encode_utterances(first, files, 5)
    again = encode_utterances(second, shuffled, 5)
    assert first.batches == second.batches
    for path in files:
        assert torch.equal(embeddings[path], again[path])


def test_the_budget_holds_even_if_headers_lie(files):
    # Headers say 0.2 to 2 s; what is read has 0.5 s, or 3 s for every fifth.
    def load(path):
        return torch.rand(48000 if path in files[::5] else 8000) - 0.5

    network = Recorder(load)
    encode_utterances(network, files, 4, network.load)
    assert len(network.batches) > 1
    for longest, samples in network.batches:
        assert longest * len(samples) <= 4 * RATE


@pytest.mark.parametrize("headers_lie", [False, True])
@pytest.mark.parametrize("seconds", [0.1, 4, 60])
def test_processes_share_the_batches_of_one(files, seconds, headers_lie):
    def load(path):
        random_seconds = 1 + int(path[-5]) % 3
        return torch.full((8000 * random_seconds,), int(path[-6:-4]) + 1.0)

    load = load if headers_lie else load_waveform

    def shares(processes):
        parts, batches = [], []
        for process in range(processes):
            network = Recorder(load)
            parts.append(
                encode_utterances(
                    network,
                    files,
                    seconds,
                    network.load,
                    share=(process, processes),
                )
            )
            batches.append(network.batches)
        return parts, batches

    (whole,), (batches,) = shares(1)
    if not headers_lie:
        network = Recorder()
        encode_utterances(network, files, seconds)
        assert batches == network.batches
    for processes in (2, 3, 5):
        parts, divided = shares(processes)
        assert sorted(path for part in parts for path in part) == files
        for part in parts:
            assert all(torch.equal(part[path], whole[path]) for path in part)
        assert sorted(sum(divided, [])) == sorted(batches)
        if len(batches) >= processes:
            assert all(parts)


def test_maximum_seconds_keeps_the_start_of_each_utterance(files):
    network = Recorder()
    embeddings = encode_utterances(
        network, files, 5, network.load, maximum_seconds=0.5
    )
    assert max(longest for longest, _ in network.batches) == 8000
    for path, embedding in embeddings.items():
        wav = load_waveform(path)[:8000]
        expected = torch.stack([wav.mean(), wav.std(), wav[-1]])
        torch.testing.assert_close(embedding, expected)


def test_paths_come_back_as_they_were_given(files, tmp_path):
    stereo = tmp_path / "stereo.wav"
    audio_io.save(stereo, torch.rand(2, 4000) - 0.5, 8000)
    network = Recorder()
    embeddings = encode_utterances(network, [stereo])
    assert list(embeddings) == [stereo]
    assert network.batches == [(8000, [8000])]
    assert encode_utterances(network, []) == {}


def test_batched_embeddings_of_the_network_equal_single_ones(files):
    torch.manual_seed(0)
    stage = {"blocks": 1, "expansion": 1, "reduction": 8}
    network = ReDimNet2(
        LogMel(), 4, [{"frequency_stride": 2, "time_stride": 2, **stage}]
    )
    encoder = EncoderClassifier(
        modules={
            "compute_features": PassThrough(),
            "mean_var_norm": PassThrough(),
            "embedding_model": network,
        },
        hparams={},
        run_opts={"device": "cpu"},
    )
    embeddings = encode_utterances(encoder.encode_batch, files[:8], 20)
    for path in files[:8]:
        single = encoder.encode_batch(load_waveform(path)).flatten()
        error = (embeddings[path] - single).abs().max()
        assert error <= 1e-5 * single.abs().max()


@pytest.mark.parametrize("fault", ["missing", "damaged", "empty"])
def test_unreadable_files_are_named_before_anything_is_encoded(
    files, tmp_path, fault
):
    path = tmp_path / "bad.wav"
    if fault == "damaged":
        path.write_bytes(b"RIFF of something else")
    elif fault == "empty":
        path.touch()
    network = Recorder()
    with pytest.raises(AudioError, match=r"bad\.wav") as caught:
        encode_utterances(network, [*files, path])
    assert "\n" not in str(caught.value)
    assert network.batches == []


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_embedding_that_is_not_finite_names_its_file(files, value):
    def encode_batch(wavs, wav_lens):
        embeddings = torch.ones(len(wavs), 1, 4)
        embeddings[wav_lens.argmin(), 0, 2] = value
        return embeddings

    shortest = min(files[:4], key=lambda path: len(load_waveform(path)))
    with pytest.raises(ValueError, match="not finite") as caught:
        encode_utterances(encode_batch, files[:4])
    assert str(caught.value).startswith(shortest)


def test_an_embedding_of_zeros_names_its_file(files):
    def encode_batch(wavs, wav_lens):
        embeddings = torch.ones(len(wavs), 1, 4)
        embeddings[wav_lens.argmin()] = 0
        return embeddings

    shortest = min(files[:4], key=lambda path: len(load_waveform(path)))
    faults = {}
    found = encode_utterances(encode_batch, files[:4], faults=faults)
    assert set(found) == set(files[:4]) - {shortest}
    assert str(faults[shortest]).startswith(
        f"{shortest}: its embedding is zero; "
    )


def test_a_row_of_zeros_is_not_hidden_by_others():
    embeddings = torch.eye(3)
    check_finite("a.wav", embeddings)
    embeddings[1, 1] = 0
    with pytest.raises(AudioError, match="a.wav: its embedding is zero"):
        check_finite("a.wav", embeddings)


def test_the_embedding_of_a_long_file_is_the_average_of_its_pieces(tmp_path):
    path = str(tmp_path / "long.wav")
    audio = torch.rand(5 * RATE) - 0.5
    soundfile.write(path, audio.numpy(), RATE, subtype="FLOAT")

    def encode_batch(wavs, wav_lens):
        return wavs[:, None, :8]

    average = AveragedPieces()
    for piece in read_pieces(path, 2.0):
        average = average.plus(piece[:8], len(piece))
    found, pieces = encode_files(encode_batch, [path], 2.0)
    assert torch.equal(found[path], average.embedding())
    assert pieces == {path: average.pieces} == {path: 3}


@pytest.mark.parametrize("name", ["seconds_per_batch", "maximum_seconds"])
@pytest.mark.parametrize("value", [0, -1.0, float("nan")])
def test_seconds_must_be_above_zero(files, name, value):
    with pytest.raises(ValueError, match=name):
        encode_utterances(Recorder(), files, **{name: value})


def cut_short(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def write_cut_flac(path):
    samples = torch.rand(32000).numpy() - 0.5
    soundfile.write(path, samples, RATE, format="FLAC")
    cut_short(path)


def silence(path):
    soundfile.write(path, torch.zeros(16000).numpy(), RATE)


def spoil(path, value):
    samples = torch.rand(8000) - 0.5
    samples[5000] = value
    soundfile.write(path, samples.numpy(), RATE, subtype="FLOAT")


# Name, how to make it, and the reason; those with a header are noticed late.
BAD = [
    ("empty.wav", lambda path: path.touch(), "empty"),
    ("missing.wav", lambda path: None, "missing"),
    ("link.wav", lambda path: path.symlink_to("nowhere"), "missing"),
    ("a.wav", lambda path: path.mkdir(), "a folder"),
    ("pipe.wav", os.mkfifo, "a pipe or the like"),
    ("a.m4a", lambda path: path.write_bytes(b"\0\0\0 ftypM4A "), "unreadable"),
    ("a.raw", lambda path: path.write_bytes(bytes(99)), "has no header"),
    ("nan.wav", lambda path: spoil(path, float("nan")), "not finite"),
    ("silent.wav", silence, "silent"),
    ("cut.flac", write_cut_flac, "unreadable"),
]


@pytest.mark.parametrize("where", ["first", "middle", "last"])
@pytest.mark.parametrize("seconds", [1.5, 60])
def test_what_is_wrong_is_kept_and_the_rest_is_as_without_it(
    files, tmp_path, where, seconds
):
    bad = {}
    for name, make, reason in BAD:
        path = tmp_path / name
        make(path)
        bad[str(path)] = reason
    place = {"first": 0, "middle": 12, "last": 24}[where]
    mixed = [*files[:place], *bad, *bad, *files[place:]]
    without, among, faults = Recorder(), Recorder(), {}
    expected = encode_utterances(without, files, seconds)
    found = encode_utterances(among, mixed, seconds, faults=faults)
    assert among.batches == without.batches
    assert list(found) == list(expected)
    assert all(torch.equal(found[path], expected[path]) for path in files)
    assert {path: fault.reason for path, fault in faults.items()} == bad
    for path, fault in faults.items():
        assert str(fault).startswith(f"{path}: ")
    with pytest.raises(AudioError):
        encode_utterances(Recorder(), mixed, seconds)


def test_nothing_but_bad_files(tmp_path):
    network, faults = Recorder(), {}
    paths = [tmp_path / "1.wav", tmp_path / "2.wav"]
    assert encode_utterances(network, paths, faults=faults) == {}
    assert list(faults) == paths and network.batches == []


def test_embeddings_that_are_not_finite_are_kept(files):
    def encode_batch(wavs, wav_lens):
        embeddings = wavs.sum(1)[:, None, None].repeat(1, 1, 4)
        embeddings[wav_lens == wav_lens.min(), 0, 2] = float("inf")
        return embeddings

    lengths = {path: len(load_waveform(path)) for path in files[:10]}
    shortest = {path for path in lengths if lengths[path] == 3200}
    faults = {}
    found = encode_utterances(encode_batch, lengths, faults=faults)
    assert set(faults) == shortest
    assert set(found) == set(lengths) - shortest
    for path, fault in faults.items():
        assert str(fault).startswith(f"{path}: its embedding is not finite; ")


@pytest.mark.parametrize("seconds", [1, 60])
def test_long_files_that_are_bad_are_kept(files, tmp_path, seconds):
    bad = {}
    for name, make, reason in BAD:
        make(tmp_path / name)
        bad[str(tmp_path / name)] = reason
    # In pieces, it is noticed in the middle, or where its header is read.
    late = torch.rand(4 * RATE) - 0.5
    late[3 * RATE] = float("nan")
    for name, reason in (("late.wav", "not finite"), ("cut.wav", "cut short")):
        path = tmp_path / name
        soundfile.write(path, late.numpy(), RATE, subtype="FLOAT")
        bad[str(path)] = reason
    cut_short(tmp_path / "cut.wav")
    mixed = [*bad, *files]
    faults = {}
    found, pieces = encode_files(Recorder(), mixed, seconds, faults)
    expected, in_pieces = encode_files(Recorder(), files, seconds)
    assert pieces == in_pieces
    assert list(found) == list(expected)
    assert all(torch.equal(found[path], expected[path]) for path in files)
    assert {path: fault.reason for path, fault in faults.items()} == bad
    with pytest.raises(AudioError):
        encode_files(Recorder(), mixed, seconds)
