"""Embeddings of a stream, beside those of the whole recording."""

import numpy as np
import pytest
import soundfile
import torch
from test_speech_stream import SpokenProbabilities, random_chunks

import redimnet2_lobes
from redimnet2_lobes import OnlineEncoder, ReDimNet2
from redimnet2_lobes.data import speech
from redimnet2_lobes.data.speech import find_speech
from redimnet2_lobes.data.speech_stream import MARGIN
from redimnet2_lobes.inference.long_files import encode_files
from redimnet2_lobes.onnx.export import export_onnx

SECOND = 16000


class Spectrum:
    """In place of a network: the mean spectrum; counts what it is given."""

    def __init__(self):
        self.lengths = []

    def encode_batch(self, wavs, wav_lens):
        assert len(wavs) == 1 and wav_lens.tolist() == [1]
        self.lengths.append(wavs.shape[1])
        spectrum = torch.stft(
            *(wavs, 256, 160),
            window=torch.hann_window(256),
            return_complex=True,
        )
        return spectrum.abs().clamp(min=1e-5).log().mean(2).unsqueeze(1)


def noise(seconds, seed=1):
    """Noise whose spectrum changes every second."""
    random = torch.Generator().manual_seed(seed)
    parts = torch.randn(round(seconds * SECOND), generator=random).split(SECOND)
    return torch.cat([part.cumsum(0) % (i + 1) for i, part in enumerate(parts)])


def offline(encode_batch, folder, waveform, **options):
    path = str(folder / "whole.wav")
    soundfile.write(path, waveform.numpy(), SECOND, subtype="FLOAT")
    return encode_files(encode_batch, [path], **options)[0][path]


def held(encoder):
    """Samples in an online encoder, and in what finds speech for it."""
    parts = [*vars(encoder).values(), *vars(encoder._speech).values()]
    return sum(len(x) for x in parts if isinstance(x, torch.Tensor))


def feed_by_seconds(encoder, waveform):
    return [encoder.feed(part) for part in waveform.split(SECOND)]


@pytest.mark.parametrize("form", ["folder", "onnx"])
@pytest.mark.parametrize("seconds", [0.03, 0.7, 3.2, 11.5])
def test_the_end_is_what_files_give(tmp_path, form, seconds):
    torch.manual_seed(1)
    network = ReDimNet2.from_variant("b0").eval()
    encode_batch = network.forward
    if form == "onnx":
        export_onnx(network, tmp_path / "b0.onnx")
        encode_batch = redimnet2_lobes.load(tmp_path / "b0.onnx").encode_batch
    waveform = noise(seconds)
    encoder = OnlineEncoder(encode_batch)
    for chunk in random_chunks(np.random.default_rng(1), waveform):
        encoder.feed(chunk)
    final = encoder.finish()
    expected = offline(encode_batch, tmp_path, waveform)
    assert (final.embedding - expected).abs().max() < 1e-5
    assert final.exact
    assert final.seconds == final.speech_seconds == len(waveform) / SECOND


def test_before_a_window_is_full_each_second_is_what_files_give(tmp_path):
    encode_batch = Spectrum().encode_batch
    waveform = noise(4)
    encoder = OnlineEncoder(encode_batch, seconds_per_window=3)
    results = feed_by_seconds(encoder, waveform)
    for seconds, online in enumerate(results, start=1):
        so_far = waveform[: seconds * SECOND]
        expected = offline(encode_batch, tmp_path, so_far)
        error = (online.embedding - expected).abs().max()
        assert (error < 1e-5) == online.exact == (seconds <= 3)
        assert online.seconds == online.speech_seconds == seconds


def test_windows_are_averaged_as_files_average_pieces(tmp_path):
    """Pieces of equal length, as where the windows fill the stream."""
    encode_batch = Spectrum().encode_batch
    waveform = noise(9)
    expected = offline(
        encode_batch, tmp_path, waveform, seconds_per_piece=3.001
    )
    encoder = OnlineEncoder(
        encode_batch, seconds_per_window=3, seconds_per_piece=8
    )
    online = feed_by_seconds(encoder, waveform)[-1]
    assert (online.embedding - expected).abs().max() < 1e-5
    assert not online.exact
    # The whole is longer than what is kept.
    final = encoder.finish()
    assert final.embedding.equal(online.embedding) and not final.exact


@pytest.fixture
def spoken_probabilities(monkeypatch):
    monkeypatch.setattr(speech, "_session", SpokenProbabilities)
    monkeypatch.setattr(speech, "at_usual_level", lambda waveform: waveform)


def with_pauses(random, seconds):
    """Speech and pauses, as `SpokenProbabilities` finds them."""
    said = torch.from_numpy(random.choice([0.1, 0.8], 2 * seconds)).float()
    waveform = said.repeat_interleave(SECOND // 2)
    return waveform + 0.01 * noise(seconds).clamp(-9, 9)


@pytest.mark.parametrize("seconds", [3, 12])
def test_speech_only_ends_with_that_of_the_whole(
    spoken_probabilities, tmp_path, seconds
):
    encode_batch = Spectrum().encode_batch
    waveform = with_pauses(np.random.default_rng(3), seconds)[:-100]
    encoder = OnlineEncoder(encode_batch, speech_only=True)
    feed_by_seconds(encoder, waveform)
    final = encoder.finish()
    found = find_speech(waveform)
    assert 0 < found.seconds < seconds - 1
    expected = offline(encode_batch, tmp_path, found.of(waveform))
    assert (final.embedding - expected).abs().max() < 1e-5
    assert final[1:] == (len(waveform) / SECOND, found.seconds, True)


def test_over_a_piece_little_speech_is_not_exact_either(spoken_probabilities):
    """Of a file it is searched for at the usual level, in every minute."""
    waveform = torch.full((8 * SECOND,), 0.1)
    waveform[SECOND : 3 * SECOND] = 0.8 + 0.01 * noise(2).clamp(-9, 9)
    exact = []
    for piece in (7, 8):
        encoder = OnlineEncoder(
            Spectrum().encode_batch, speech_only=True, seconds_per_piece=piece
        )
        feed_by_seconds(encoder, waveform)
        exact.append(encoder.finish().exact)
    assert exact == [False, True]


def test_without_enough_speech_there_is_no_embedding(spoken_probabilities):
    spectrum = Spectrum()
    encoder = OnlineEncoder(spectrum.encode_batch, speech_only=True)
    waveform = torch.full((2 * SECOND,), 0.1)
    waveform[8192:16384] = 0.9 + 0.01 * noise(2)[8192:16384].clamp(-9, 9)
    assert feed_by_seconds(encoder, waveform) == [None, None]
    assert spectrum.lengths == []
    # Half a second is enough where no more will come.
    assert encoder.finish().speech_seconds == (8192 + 2 * MARGIN) / SECOND
    feed_by_seconds(encoder, 0.1 + 0.01 * torch.rand(3 * SECOND))
    assert encoder.finish() is None


@pytest.mark.parametrize("samples", [0, 399, 2 * SECOND])
def test_silence_and_next_to_nothing_have_no_embedding(samples):
    spectrum = Spectrum()
    encoder = OnlineEncoder(spectrum.encode_batch)
    assert encoder.feed(torch.zeros(samples)) is None
    assert encoder.finish() is None
    assert spectrum.lengths == []


def test_what_is_fed_after_the_end_is_another_stream():
    encoder = OnlineEncoder(Spectrum().encode_batch, seconds_per_window=2)
    feed_by_seconds(encoder, noise(7.5, seed=1))
    encoder.finish()
    second = noise(7.5, seed=2)
    online = feed_by_seconds(encoder, second)[6]
    fresh = OnlineEncoder(Spectrum().encode_batch, seconds_per_window=2)
    expected = feed_by_seconds(fresh, second)[6]
    assert online.embedding.equal(expected.embedding)
    final, expected = encoder.finish(), fresh.finish()
    assert final.embedding.equal(expected.embedding)
    assert final[1:] == expected[1:]


def test_a_second_costs_a_window_and_a_pause_nothing(spoken_probabilities):
    """However long the stream is; and it is not kept."""
    spectrum = Spectrum()
    encoder = OnlineEncoder(
        spectrum.encode_batch,
        speech_only=True,
        seconds_per_window=3,
        seconds_per_piece=10,
    )
    second = 0.8 + 0.01 * noise(1).clamp(-9, 9)
    costs = []
    for _ in range(300):
        spectrum.lengths.clear()
        encoder.feed(second)
        costs.append(sum(spectrum.lengths))
    assert max(costs) < 4.5 * SECOND
    assert max(costs[-10:]) == max(costs[10:20])
    assert held(encoder) < 5 * SECOND
    for _ in range(20):
        spectrum.lengths.clear()
        encoder.feed(torch.full((SECOND,), 0.1))
    assert spectrum.lengths == []


@pytest.mark.parametrize("speech_only", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_chunks_do_not_matter(spoken_probabilities, speech_only, seed):
    random = np.random.default_rng(seed)
    waveform = with_pauses(random, 20)[:-100]

    def feed(chunks):
        encoder = OnlineEncoder(
            Spectrum().encode_batch,
            speech_only=speech_only,
            seconds_per_window=2,
            seconds_per_piece=6,
        )
        results = [encoder.feed(chunk) for chunk in chunks]
        return {
            result.seconds: result
            for result in [*results, encoder.finish()]
            if result is not None
        }

    by_seconds = feed(waveform.split(SECOND))
    assert len(by_seconds) > 15
    for chunks in (
        random_chunks(random, waveform),
        waveform.split(480),
        [waveform],
    ):
        results = feed(chunks)
        assert results.keys() <= by_seconds.keys()
        assert max(results) == max(by_seconds)
        for seconds, result in results.items():
            expected = by_seconds[seconds]
            assert result.embedding.equal(expected.embedding)
            assert result[1:] == expected[1:]


@pytest.mark.parametrize(
    ("chunk", "message"),
    [
        (torch.tensor([0.1, float("nan")]), "chunk: not finite; "),
        (torch.tensor([0.1, float("inf")]), "chunk: not finite; "),
        (torch.tensor([0.1, 1e300]).double(), "chunk: not finite; "),
        (torch.zeros(1, 160), r"not torch.float32 \[1, 160\]"),
        (torch.zeros(160).short(), r"not torch.int16 \[160\]"),
        (np.zeros(160), "not ndarray"),
    ],
)
def test_a_bad_chunk_gets_a_line_and_is_left_out(
    spoken_probabilities, chunk, message
):
    waveform = with_pauses(np.random.default_rng(1), 6)

    def feed(with_bad_ones):
        encoder = OnlineEncoder(Spectrum().encode_batch, speech_only=True)
        for part in waveform.split(5000):
            encoder.feed(part)
            if with_bad_ones:
                with pytest.raises(ValueError, match=message) as caught:
                    encoder.feed(chunk)
                assert "\n" not in str(caught.value)
        return encoder.finish()

    without, with_bad_ones = feed(False), feed(True)
    assert with_bad_ones.embedding.equal(without.embedding)
    assert with_bad_ones[1:] == without[1:]


def test_a_failing_network_loses_no_audio():
    """A GPU out of memory, say, for the moment."""
    spectrum = Spectrum()
    waveform = noise(7)
    failing = [False]

    def encode_batch(wavs, wav_lens):
        if failing[0]:
            raise RuntimeError("out of memory")
        return spectrum.encode_batch(wavs, wav_lens)

    encoder = OnlineEncoder(encode_batch, seconds_per_window=2)
    for number, part in enumerate(waveform.split(SECOND)):
        failing[0] = number in (2, 3)
        if failing[0]:
            with pytest.raises(RuntimeError):
                encoder.feed(part)
        else:
            online = encoder.feed(part)
    fresh = OnlineEncoder(spectrum.encode_batch, seconds_per_window=2)
    expected = feed_by_seconds(fresh, waveform)[-1]
    assert online.embedding.equal(expected.embedding)
    assert encoder.finish().embedding.equal(fresh.finish().embedding)


def test_an_embedding_that_is_not_finite_is_refused():
    encoder = OnlineEncoder(lambda wavs, _: wavs[:, None, :2] / 0)
    with pytest.raises(ValueError, match="the stream: its embedding is not"):
        encoder.feed(torch.rand(SECOND))


@pytest.mark.parametrize("key", ["seconds_per_window", "seconds_per_piece"])
def test_seconds_below_one_are_refused(key):
    with pytest.raises(ValueError, match=f"{key}: 0.5 is less than 1"):
        OnlineEncoder(Spectrum().encode_batch, **{key: 0.5})
