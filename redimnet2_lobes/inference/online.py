"""Embeddings of what was said so far, while the audio arrives.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

from typing import NamedTuple

import torch

from redimnet2_lobes.data.audio import checked_chunk
from redimnet2_lobes.data.speech import find_speech
from redimnet2_lobes.data.speech_stream import SpeechStream
from redimnet2_lobes.files.settings import check_at_least
from redimnet2_lobes.inference.averaged_pieces import AveragedPieces
from redimnet2_lobes.inference.encode import EncodeBatch, check_finite
from redimnet2_lobes.models.front_end import SAMPLE_RATE, WINDOW

LEAST_SECONDS = 1.0  # of what is embedded, before there is an embedding


class OnlineEmbedding(NamedTuple):
    """The embedding of a stream so far."""

    embedding: torch.Tensor  # [embedding], float32 on the CPU
    seconds: float  # of the stream
    speech_seconds: float  # of what is embedded; without speech_only of it all
    exact: bool  # of all at once; if not, averaged over windows


class OnlineEncoder:
    """Embeds what was said so far, every second, while the audio arrives.

    The audio is embedded in windows. Every second the last one is embedded as
    far as it has come, and its embedding is averaged with those of the windows
    before, as `encode_files` averages pieces. So a second costs one embedding
    of a window at most, however long the stream is, and a pause nothing. Where
    the audio is cut does not depend on the chunks in which it arrives.

    Arguments
    ---------
    encode_batch
        Such as ``EncoderClassifier.encode_batch`` or that of an `OnnxEncoder`.
    speech_only
        Embeds the speech alone, which silero-vad finds (extra ``vad``). In a
        stream quiet speech may be overlooked, as by `SpeechStream`; up to
        ``seconds_per_piece`` the end has it.
    seconds_per_window
        At least 1. A window ends with the first second in which it is full.
    seconds_per_piece
        So much is kept, at 64 kB a second, to be embedded at once at the end.

    Example
    -------
    >>> def encode_batch(wavs, wav_lens):  # in place of a network
    ...     return wavs[:, None, :2]
    >>> encoder = OnlineEncoder(encode_batch)
    >>> for _ in range(4):
    ...     online = encoder.feed(torch.rand(4000))
    >>> online.embedding.shape, online.seconds, online.exact
    (torch.Size([2]), 1.0, True)
    >>> encoder.finish().seconds
    1.0
    """

    def __init__(
        self,
        encode_batch: EncodeBatch,
        speech_only: bool = False,
        seconds_per_window: float = 5.0,
        seconds_per_piece: float = 60.0,
    ) -> None:
        check_at_least(
            {
                "seconds_per_window": seconds_per_window,
                "seconds_per_piece": seconds_per_piece,
            },
            seconds_per_window=1,
            seconds_per_piece=1,
        )
        self._encode_batch = encode_batch
        self._speech_only = speech_only
        self._window = round(seconds_per_window * SAMPLE_RATE)
        self._piece = round(seconds_per_piece * SAMPLE_RATE)
        self._begin()

    def _begin(self) -> None:
        """Begins a stream."""
        self._speech = SpeechStream() if self._speech_only else None
        self._waiting = torch.zeros(0)  # less than a second
        self._samples = 0  # of the stream, without those
        self._embedded = 0  # what of them is embedded
        self._kept = torch.zeros(0)  # all of the stream, while it fits a piece
        self._open = torch.zeros(0)  # and the window that is not finished
        self._finished = AveragedPieces()
        self._latest: AveragedPieces | None = None  # with the open window

    def feed(self, chunk: torch.Tensor) -> OnlineEmbedding | None:
        """Takes the next chunk [samples], mono, 16 kHz, of any length.

        Gives the embedding after the last second of the stream that the chunk
        completes. None says that it completes none, or that what is to be
        embedded is less than a second or silent so far. A ValueError says what
        is wrong with a chunk, which then is left out of the stream.
        """
        self._waiting = torch.cat([self._waiting, checked_chunk(chunk)])
        if len(self._waiting) < SAMPLE_RATE:
            return None
        while len(self._waiting) >= SAMPLE_RATE:
            if len(self._open) >= self._window:
                self._finished = self._average()
                self._open = torch.zeros(0)
            second = self._waiting[:SAMPLE_RATE]
            self._waiting = self._waiting[SAMPLE_RATE:]
            self._keep(second)
            self._add(self._speech.feed(second) if self._speech else second)
        self._waiting = self._waiting.clone()  # not to keep all of the chunk
        if self._embedded < LEAST_SECONDS * SAMPLE_RATE:
            return None
        return self._online_embedding(self._average())

    def finish(self) -> OnlineEmbedding | None:
        """The embedding of the whole stream; what is fed next is another one.

        Up to ``seconds_per_piece`` it is that of the whole, as `encode_files`
        gives it; after more it is the average over windows, and with
        ``speech_only`` never exact. None says that there is nothing to embed:
        less than 25 ms, silence or no speech.
        """
        try:
            self._keep(self._waiting)
            if self._samples <= self._piece:
                whole = self._kept
                if self._speech:
                    spans = find_speech(whole).spans
                    parts = [whole[start:stop] for start, stop in spans]
                    whole = torch.cat([torch.zeros(0), *parts])
                self._embedded = len(whole)
                average = self._plus(AveragedPieces(), whole)
                return self._online_embedding(average)
            self._add(
                torch.cat(
                    [self._speech.feed(self._waiting), self._speech.finish()]
                )
                if self._speech
                else self._waiting
            )
            online = self._online_embedding(self._average())
            if online and self._speech:
                # Of a file the speech is found at the usual level.
                online = online._replace(exact=False)
            return online
        finally:
            self._begin()

    def _keep(self, audio: torch.Tensor) -> None:
        """Keeps audio [samples] to the end of a stream that fits a piece."""
        self._samples += len(audio)
        fits = self._samples <= self._piece
        self._kept = torch.cat([self._kept, audio]) if fits else torch.zeros(0)

    def _add(self, audio: torch.Tensor) -> None:
        """Takes audio [samples] that is to be embedded."""
        if not len(audio):
            return
        self._embedded += len(audio)
        self._open = torch.cat([self._open, audio])
        self._latest = None

    def _average(self) -> AveragedPieces:
        """Of all windows, computed once for as long as no audio is added."""
        if self._latest is None:
            self._latest = self._plus(self._finished, self._open)
        return self._latest

    def _plus(
        self, average: AveragedPieces, audio: torch.Tensor
    ) -> AveragedPieces:
        """With one more piece [samples], unless it is too short or silent."""
        if len(audio) < WINDOW or audio.min() == audio.max():
            return average
        with torch.no_grad():
            embedding = self._encode_batch(audio.unsqueeze(0), torch.ones(1))
        embedding = embedding.flatten().float().cpu()
        check_finite("the stream", embedding)
        return average.plus(embedding, len(audio))

    def _online_embedding(
        self, average: AveragedPieces
    ) -> OnlineEmbedding | None:
        if not average.pieces:
            return None
        return OnlineEmbedding(
            average.embedding(),
            self._samples / SAMPLE_RATE,
            self._embedded / SAMPLE_RATE,
            average.pieces == 1 and average.samples == self._embedded,
        )
