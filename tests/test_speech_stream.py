"""The speech of a stream, beside that of the whole recording."""

import numpy as np
import pytest
import torch

from redimnet2_lobes.data import speech
from redimnet2_lobes.data.speech import CONTEXT, FRAME, find_speech
from redimnet2_lobes.data.speech_stream import MARGIN, SpeechStream


class SpokenProbabilities:
    """A network for which the samples of a frame are its probability."""

    def run(self, outputs, inputs):
        assert outputs == ["speech_probs", "hn", "cn"]
        return inputs["input"][:, CONTEXT], inputs["h"], inputs["c"]


@pytest.fixture
def spoken_probabilities(monkeypatch):
    monkeypatch.setattr(speech, "_session", SpokenProbabilities)
    monkeypatch.setattr(speech, "at_usual_level", lambda waveform: waveform)


def random_probabilities(random):
    """Each lasts some frames, so that there are pauses and speech."""
    values = random.choice(
        [0, 0.1, 0.34, 0.35, 0.4, 0.49, 0.5, 0.9], random.integers(1, 40)
    )
    lengths = random.integers(1, 12, len(values))
    return torch.from_numpy(values.repeat(lengths)).float()


def random_chunks(random, waveform):
    sizes = random.integers(0, 5000, 100)
    sizes = sizes[: np.searchsorted(np.cumsum(sizes), len(waveform))]
    return waveform.split([*sizes.tolist(), len(waveform) - sizes.sum()])


@pytest.mark.parametrize("seed", range(100))
def test_the_stream_gives_the_speech_of_the_whole(spoken_probabilities, seed):
    random = np.random.default_rng(seed)
    waveform = random_probabilities(random).repeat_interleave(FRAME)
    # That samples are told apart.
    waveform += 1e-6 * (torch.arange(len(waveform)) % 1000)
    waveform = waveform[: len(waveform) - random.integers(FRAME)]
    spans = find_speech(waveform).spans
    expected = [waveform[start:stop] for start, stop in spans]
    stream = SpeechStream()
    parts = [stream.feed(chunk) for chunk in random_chunks(random, waveform)]
    parts.append(stream.finish())
    assert torch.cat(parts).equal(torch.cat([waveform[:0], *expected]))


@pytest.mark.parametrize("probability", [0.0, 0.4, 0.9])
def test_little_is_held_of_a_long_stream(spoken_probabilities, probability):
    stream = SpeechStream()
    stream.feed(torch.full((FRAME,), 0.9))
    parts = [stream.feed(torch.full((16000,), probability)) for _ in range(60)]
    assert len(stream._held) < MARGIN + 2 * FRAME
    assert len(stream._detector.probabilities) < 32
    assert (sum(map(len, parts)) > 0) == (probability > 0.35)


def test_speech_is_given_without_delay(spoken_probabilities):
    stream = SpeechStream()
    stream.feed(torch.zeros(10 * FRAME))
    assert not len(stream.feed(torch.full((7 * FRAME,), 0.9)))
    assert len(stream.feed(torch.full((FRAME,), 0.9))) == 8 * FRAME + MARGIN
    assert len(stream.feed(torch.full((FRAME,), 0.9))) == FRAME
