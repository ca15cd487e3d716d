"""Files read by threads while others are computed: order, bounds, errors."""

import threading
import weakref
from concurrent.futures import ThreadPoolExecutor, wait

import numpy as np
import pytest
import soundfile
import torch
from torch.nn.utils.rnn import pad_sequence

from redimnet2_lobes.data.audio import (
    AudioError,
    load_waveform,
    thread_safe_open,
)
from redimnet2_lobes.inference import long_files, prefetch
from redimnet2_lobes.inference.encode import encode_utterances, load_source
from redimnet2_lobes.inference.long_files import encode_files
from redimnet2_lobes.models.redimnet2 import ReDimNet2

RATE = 16000
LIMIT = 60  # seconds until a test gives up


class Pool(ThreadPoolExecutor):
    """Notes what is not done, and when nothing more of it begins."""

    def __init__(self, threads):
        super().__init__(threads)
        self.not_done = set()
        self.ended = threading.Event()

    def submit(self, *arguments):
        future = super().submit(*arguments)
        self.not_done.add(future)
        future.add_done_callback(self.not_done.discard)
        return future

    def shutdown(self, wait=True, *, cancel_futures=False):
        super().shutdown(False, cancel_futures=cancel_futures)
        self.ended.set()
        super().shutdown(wait)


@pytest.fixture
def pool(monkeypatch, request):
    """The threads that are used: two, or as many as the test says."""
    pool = Pool(getattr(request, "param", 2))
    monkeypatch.setattr(prefetch, "single_threads", lambda _: pool)
    return pool


def sums(wavs, wav_lens):
    """In place of a network."""
    return torch.stack([wavs.sum(1), wav_lens], dim=1).unsqueeze(1)


class Seconds:
    """In place of files: names with their seconds, which no header says."""

    def __init__(self, *seconds):
        self.seconds = {f"{i:03}": value for i, value in enumerate(seconds)}
        self.loads = []

    def __call__(self, name):
        self.loads.append(name)
        return torch.full((round(self.seconds[name] * RATE),), 0.5)


def one_after_the_other(encode_batch, paths, seconds, load):
    """Batches and embeddings, with nothing read ahead."""
    waveforms = {path: load(path) for path in paths}
    batches = [[]]
    for path in sorted(paths, key=lambda x: (-len(waveforms[x]), x)):
        longest = len(waveforms[(batches[-1] or [path])[0]])
        if longest * (len(batches[-1]) + 1) > seconds * RATE and batches[-1]:
            batches.append([])
        batches[-1].append(path)
    found = {}
    for batch in batches:
        wavs = [waveforms[path] for path in batch]
        lengths = torch.tensor([len(wav) for wav in wavs])
        with torch.no_grad():
            embeddings = encode_batch(
                pad_sequence(wavs, batch_first=True), lengths / lengths.max()
            )
        found.update(zip(batch, embeddings.squeeze(1), strict=True))
    return batches, found


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Eleven short files in two formats and rates, some of one length."""
    folder = tmp_path_factory.mktemp("files")
    random = np.random.default_rng(0)
    paths = []
    for index in range(11):
        form = ("flac", "mp3")[index % 2]
        rate = (16000, 44100)[index // 2 % 2]
        path = folder / f"{index:02}.{form}"
        seconds = 0.3 + 0.2 * (index * 7 % 5)
        noise = random.uniform(
            -0.5, 0.5, (round(seconds * rate), 1 + index % 2)
        )
        soundfile.write(path, noise, rate)
        paths.append(str(path))
    return paths


@pytest.mark.parametrize(
    ("pool", "seconds", "variant"),
    [
        (2, 2.5, "b0"),
        *((threads, 2.5, None) for threads in (1, 2, 5)),
        *((2, seconds, None) for seconds in (0.5, 60)),
    ],
    indirect=["pool"],
)
def test_to_the_bit_what_one_after_the_other_gives(
    files, pool, seconds, variant
):
    torch.manual_seed(0)
    network = ReDimNet2.from_variant(variant).eval() if variant else sums
    calls = []

    def encode_batch(wavs, wav_lens):
        calls.append((threading.current_thread(), len(wavs)))
        return network(wavs, wav_lens)

    batches, expected = one_after_the_other(
        network, files, seconds, load_waveform
    )
    found = encode_utterances(encode_batch, files[::-1], seconds)
    assert list(found) == list(expected)
    assert all(torch.equal(found[path], expected[path]) for path in files)
    here = threading.current_thread()
    assert calls == [(here, len(batch)) for batch in batches]
    assert pool.ended.is_set()


def test_the_next_batch_is_loaded_while_one_is_computed(pool):
    load = Seconds(*[2.0] * 9)  # three batches of three
    batches = []

    def encode_batch(wavs, wav_lens):
        batches.append(len(wavs))
        wait(set(pool.not_done))
        # Once for its length, once to use it.
        assert len(load.loads) == 9 + min(9, 3 * (len(batches) + 1))
        return sums(wavs, wav_lens)

    encode_utterances(encode_batch, load.seconds, 6, load)
    assert batches == [3, 3, 3]


@pytest.mark.parametrize(
    ("lengths", "most"),
    [
        ([2.0] * 40, 12),
        ([3.5, 2.0, 1.0, 0.5] * 40, 12),
        ([9.0, 8.0, 7.0, 2.0, 1.0], 17),  # longer than a batch: one ahead
    ],
)
@pytest.mark.parametrize("maximum", [None, 3.0])
def test_about_two_batches_are_in_memory(pool, lengths, most, maximum):
    names, alive, seen, meanwhile = Seconds(*lengths), [], [], []

    def load(name):
        waveform = names(name)
        alive.append(len(waveform))
        if names.loads.count(name) == 2:  # and not for its length
            meanwhile.append(sum(alive) / RATE)
        weakref.finalize(
            waveform.untyped_storage(), alive.remove, len(waveform)
        )
        return waveform

    def encode_batch(wavs, wav_lens):
        wait(set(pool.not_done))
        seen.append(sum(alive) / RATE)
        return sums(wavs, wav_lens)

    found = encode_utterances(encode_batch, names.seconds, 6, load, maximum)
    assert len(found) == len(lengths)
    if maximum is None:
        assert 6 < max(seen) <= most
        # One may be forgotten a moment later than another is loaded.
        assert max(meanwhile) <= most + max(lengths)
    else:  # what is cut off is not kept
        assert max(seen) == 0


def test_headers_without_a_length_do_not_let_all_be_read(pool, tmp_path):
    paths = [str(tmp_path / f"{index}.wav") for index in range(50)]
    for path in paths:
        soundfile.write(path, np.zeros(0), RATE)
    loads, seen = [], []

    def load(path):
        loads.append(path)
        return torch.ones(8000)

    def encode_batch(wavs, wav_lens):
        wait(set(pool.not_done))
        seen.append(len(loads))
        return sums(wavs, wav_lens)

    encode_utterances(encode_batch, paths, 0.5, load)
    assert seen[0] <= 1 + 0.5 / 0.025


@pytest.mark.parametrize("pool", [5], indirect=True)
def test_headers_are_read_side_by_side(pool):
    names, together = Seconds(*[1.0] * 5), threading.Barrier(5)

    def load(name):
        together.wait(LIMIT)
        return names(name)

    assert len(encode_utterances(sums, names.seconds, 6, load)) == 5


@pytest.mark.parametrize("kept", [False, True])
def test_the_first_in_order_is_raised_whichever_was_first(pool, kept):
    names = Seconds(*[2.0] * 30)
    later = threading.Event()

    def load(name):
        waveform = names(name)
        if names.loads.count(name) == 2 and name in ("004", "005"):
            if name == "005":
                later.set()
            assert later.wait(LIMIT)
            raise AudioError("bad", "mend it", name)
        return waveform

    faults = {} if kept else None
    if kept:
        found = encode_utterances(sums, names.seconds, 6, load, faults=faults)
        assert list(faults) == ["004", "005"]
        assert set(found) == set(names.seconds) - set(faults)
        return
    with pytest.raises(AudioError, match="^004: bad"):
        encode_utterances(sums, names.seconds, 6, load)
    assert pool.ended.is_set()
    assert not pool.not_done
    assert len(names.loads) < 30 + 12


@pytest.mark.parametrize("error", [KeyError, RuntimeError, MemoryError])
def test_other_errors_of_load_pass_through(pool, error):
    names, faults, raised = Seconds(*[2.0] * 9), {}, error("x")

    def load(name):
        if names.loads.count(name) == 1 and name == "004":
            raise raised
        return names(name)

    with pytest.raises(error) as caught:
        encode_utterances(sums, names.seconds, 6, load, faults=faults)
    assert caught.value is raised and faults == {}
    assert not pool.not_done


@pytest.mark.parametrize("pool", [1], indirect=True)
def test_an_interrupt_waits_for_no_load_that_has_not_begun(pool):
    names, begun = Seconds(*[2.0] * 30), threading.Event()

    def load(name):
        waveform = names(name)
        if len(names.loads) == 30 + 4:  # the first of the next batch
            begun.set()
            assert pool.ended.wait(LIMIT)
        return waveform

    def interrupted(wavs, wav_lens):
        assert begun.wait(LIMIT)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode_utterances(interrupted, names.seconds, 6, load)
    assert len(names.loads) == 30 + 4
    assert not pool.not_done


def test_the_next_piece_is_read_while_one_is_computed(
    pool, tmp_path, monkeypatch
):
    read, pieces = [], long_files.read_pieces

    def noted(*arguments):
        for piece in pieces(*arguments):
            read.append(piece)
            yield piece

    def encode_batch(wavs, wav_lens):
        assert torch.equal(wavs[0], read[len(computed)])
        computed.append(wavs)
        wait(set(pool.not_done))
        assert len(read) == min(3, len(computed) + 1)
        return wavs[:, None, :2]

    computed = []
    path = str(tmp_path / "long.wav")
    soundfile.write(path, torch.rand(5 * RATE).numpy(), RATE)
    # One for the lengths, one for whole files, one for the pieces.
    monkeypatch.setattr(
        prefetch, "single_threads", lambda _: pool.__init__(2) or pool
    )
    monkeypatch.setattr(long_files, "read_pieces", noted)
    assert encode_files(encode_batch, [path], 2.0)[1] == {path: 3}
    assert len(computed) == 3


def test_what_is_wrong_is_asked_while_no_other_file_is_opened():
    opening, failed, opened = (threading.Event() for _ in range(3))
    tries = []

    def open_slowly():
        opening.set()
        assert failed.wait(LIMIT)
        opened.set()

    def open_bad():
        tries.append(opened.is_set())
        failed.set()
        raise soundfile.LibsndfileError(len(tries))

    with ThreadPoolExecutor(1) as other:
        slow = other.submit(thread_safe_open, open_slowly)
        assert opening.wait(LIMIT)
        with pytest.raises(soundfile.LibsndfileError) as caught:
            thread_safe_open(open_bad)
        slow.result()
    assert tries == [False, True] and caught.value.code == 2


def test_a_part_is_tried_again_from_its_start(tmp_path):
    soundfile.write(tmp_path / "whole.wav", np.linspace(-0.5, 0.5, 8000), RATE)
    content = (tmp_path / "whole.wav").read_bytes()[:36]
    path = tmp_path / "a.wav"
    path.write_bytes(content)
    (tmp_path / "a.tar").write_bytes(b"head" + content + b"tail")
    with pytest.raises(AudioError) as whole:
        load_waveform(path)
    assert "No 'data' chunk" in whole.value.remedy
    for source in (f"{path}[0:10]", f"{tmp_path}/a.tar:4:{len(content)}"):
        with pytest.raises(AudioError) as caught:
            load_source(source)
        assert caught.value.remedy == whole.value.remedy


@pytest.mark.parametrize("pool", [8], indirect=True)
def test_each_of_many_bad_files_has_its_own_reason(pool, files, tmp_path):
    whole = tmp_path / "whole.wav"
    soundfile.write(whole, np.linspace(-0.5, 0.5, 8000), RATE)
    contents = {
        "a.wav": b"\0\0\0 ftypM4A ",
        "b.wav": whole.read_bytes()[:36],
        "c.wav": whole.read_bytes(),
    }
    for index in range(300):
        for name, content in contents.items():
            (tmp_path / f"{index:03}{name}").write_bytes(content)
    paths = sorted(map(str, tmp_path.iterdir()))
    faults, alone = {}, {}
    encode_utterances(sums, paths, faults=faults)
    for path in paths:
        try:
            load_waveform(path)
        except AudioError as error:
            alone[path] = str(error)
    assert {path: str(fault) for path, fault in faults.items()} == alone
    assert len(alone) == 600
