"""Embeddings of many utterances.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import contextlib
import math
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import TypeVar

import torch
from speechbrain.dataio import audio_io
from speechbrain.utils.distributed import if_main_process
from torch.nn.functional import normalize
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from redimnet2_lobes.data.audio import (
    AudioError,
    load_waveform,
    normalize_audio,
    open_descriptor,
    thread_safe_open,
)
from redimnet2_lobes.data.sources import open_audio, split_source
from redimnet2_lobes.files.settings import check_at_least
from redimnet2_lobes.inference.prefetch import loading_threads, prefetch
from redimnet2_lobes.models.front_end import SAMPLE_RATE, WINDOW
from redimnet2_lobes.models.lengths import repeat_short, valid_samples
from redimnet2_lobes.models.tiles import groups_of_like_length

# Padded waveforms [batch, time] and their lengths relative to the longest
# [batch] to embeddings [batch, 1, embedding].
EncodeBatch = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


AnyPath = TypeVar("AnyPath", bound=str | os.PathLike)


def encode_utterances(
    encode_batch: EncodeBatch,
    utterances: Iterable[AnyPath],
    seconds_per_batch: float = 240.0,
    load: Callable[[AnyPath], torch.Tensor] = load_waveform,
    maximum_seconds: float | None = None,
    progress: tqdm | None = None,
    faults: dict[AnyPath, AudioError] | None = None,
    share: tuple[int, int] | None = None,
) -> dict[AnyPath, torch.Tensor]:
    """Maps each distinct utterance to its embedding [embedding].

    Embeddings are float32 on the CPU, and the keys are the paths as given.
    Utterances are sorted by length, so that batches hold little padding, and
    each batch is filled up to a budget of seconds, so that memory is bounded
    however many files there are. An utterance longer than the budget is a
    batch of its own. The batches depend on the set of utterances only, not on
    their order.

    While a batch is computed, threads read the utterances of about one more, by
    the lengths that their headers say, so that two batches are in memory.

    Arguments
    ---------
    encode_batch
        Such as ``EncoderClassifier.encode_batch``; its arguments are on the
        CPU, and it is called by the calling thread. In training, call
        ``eval()`` on its modules first.
    utterances
        The audio files, or what ``load`` takes in their place.
    seconds_per_batch
        Seconds of audio in a batch, padding included.
    load
        Maps a path to a waveform [samples] at 16 kHz. It is called by several
        threads at once.
    maximum_seconds
        Seconds to use from the start of each utterance; None uses all.
    progress
        Counts the utterances of several calls; None shows those of this one.
    faults
        Receives what is wrong with each utterance that cannot be used, which
        then has no embedding; the others get the same as without it. None stops
        at the first.
    share
        The number of this process, from 0, and that of all: each embeds its
        share of the batches, which are the same for any number. None embeds
        all.

    Raises
    ------
    AudioError
        If ``load`` raises it, or the network gives zeros, NaN or infinite
        values for a file, and ``faults`` is None.
    ValueError
        If a number of seconds is not above 0. What else ``load`` raises passes
        through.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> for name, samples in (("a.wav", 8000), ("b.wav", 24000)):
    ...     audio_io.save(folder / name, torch.rand(1, samples), 16000)
    >>> def encode_batch(wavs, wav_lens):  # in place of a network
    ...     return torch.stack([wavs.sum(1), wav_lens], dim=1).unsqueeze(1)
    >>> embeddings = encode_utterances(
    ...     encode_batch, [folder / "a.wav", folder / "b.wav"]
    ... )
    >>> embeddings[folder / "a.wav"].shape
    torch.Size([2])
    """
    _check_above_zero("seconds_per_batch", seconds_per_batch)
    _check_above_zero("maximum_seconds", maximum_seconds)
    distinct = dict.fromkeys(utterances)
    seconds_used = math.inf if maximum_seconds is None else maximum_seconds
    durations = {}

    def read(path: AnyPath) -> torch.Tensor:
        waveform = load(path)
        if maximum_seconds is None:
            return waveform
        # A copy, so that what is cut off is not kept.
        return waveform[: max(1, round(maximum_seconds * SAMPLE_RATE))].clone()

    with loading_threads() as pool:
        for path, duration in prefetch(
            pool, lambda path: _duration(path, load), distinct
        ):
            with noted(faults, path):
                durations[path] = min(duration.result(), seconds_used)
        # Longest first: if a batch does not fit into memory, it is the first.
        # The path decides between equals, so that no order of the input
        # matters.
        ordered = sorted(
            durations, key=lambda path: (-durations[path], str(path))
        )
        faulty = len(distinct) - len(ordered)
        starts = set()
        if share is not None:
            process, processes = share
            batches = groups_of_like_length(
                [round(durations[path] * SAMPLE_RATE) for path in ordered],
                round(seconds_per_batch * SAMPLE_RATE),
            )[process::processes]
            starts = {ordered[batch[0]] for batch in batches}
            ordered = [ordered[index] for batch in batches for index in batch]
        waveforms = prefetch(
            *(pool, read, ordered, seconds_per_batch),
            # What is shorter is refused, but headers may say anything.
            lambda path: max(durations[path], WINDOW / SAMPLE_RATE),
        )
        embeddings = {}
        with (
            tqdm(
                total=len(ordered) + faulty,
                desc="embeddings",
                unit="file",
                disable=not if_main_process(),
            )
            if progress is None
            else contextlib.nullcontext(progress)
        ) as progress:
            progress.update(faulty)
            for batch in _batches(
                *(waveforms, seconds_per_batch * SAMPLE_RATE, starts),
                *(progress, faults),
            ):
                embeddings.update(_encode(encode_batch, batch, faults))
                progress.update(len(batch))
    return embeddings


@contextlib.contextmanager
def noted(faults: dict | None, path: str | os.PathLike) -> Iterator[None]:
    """Keeps an AudioError about an utterance, if there is where to keep it.

    Example
    -------
    >>> faults = {}
    >>> with noted(faults, "a.wav"):
    ...     _ = load_source("a.wav")
    >>> print(faults["a.wav"])
    a.wav: missing; check the path
    """
    try:
        yield
    except AudioError as error:
        if faults is None:
            raise
        faults[path] = error


def check_finite(path: str | os.PathLike, embedding: torch.Tensor) -> None:
    """Refuses, with an AudioError, what is no embedding [..., embedding].

    That is one with NaN or infinite values, or zero, which has no direction.

    Example
    -------
    >>> check_finite("a.wav", torch.tensor([1.0, 2.0]))
    """
    if not embedding.isfinite().all():
        raise AudioError(
            "its embedding is not finite",
            "check its samples and the weights, or leave it out",
            str(path),
        )
    if not embedding.any(dim=-1).all():
        raise AudioError(
            "its embedding is zero",
            "check the weights, or leave it out",
            str(path),
        )


def load_source(source: str) -> torch.Tensor:
    """Reads an utterance [samples], mono, 16 kHz, float32.

    It is an audio file, a segment of one, ``<path>[<start>:<stop>]``, or its
    place in a shard, ``<shard>.tar:<offset>:<size>``; an AudioError if it
    cannot be used.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> audio_io.save(folder / "a.wav", torch.rand(2, 8000), 8000)
    >>> audio = (folder / "a.wav").read_bytes()
    >>> _ = (folder / "shard.tar").write_bytes(b"header" + audio)
    >>> load_source(f"{folder}/shard.tar:6:{len(audio)}").shape
    torch.Size([16000])
    >>> load_source(f"{folder}/a.wav[0.25s:0.5s]").shape
    torch.Size([4000])
    """
    if not split_source(source)[1]:
        return load_waveform(source)
    with open_audio(source) as file:
        audio, rate = file.read_part(0, file.length), file.samplerate
    return normalize_audio(torch.from_numpy(audio), rate, source)


class AveragedCrops:
    """Embeds evenly spaced crops of each utterance and averages them.

    The crops of an utterance, of so many seconds each, are a batch: the first
    lies at its start, the last at its end. Their embeddings are brought to
    length 1 before they are averaged. An utterance not longer than a crop is
    embedded whole, or with ``repeat`` repeated up to a crop, and its embedding
    has length 1, too. None for ``crops`` takes as many as cover the utterance.

    Example
    -------
    >>> def encode_batch(wavs, wav_lens):  # in place of a network
    ...     return wavs[:, None, :2]
    >>> averaged = AveragedCrops(encode_batch, seconds=2 / SAMPLE_RATE, crops=2)
    >>> averaged(torch.tensor([[3.0, 4.0, 7.0, 1.0, 0.0]]), torch.ones(1))
    tensor([[[0.8000, 0.4000]]])
    """

    def __init__(
        self,
        encode_batch: EncodeBatch,
        seconds: float,
        crops: int | None,
        repeat: bool = False,
    ) -> None:
        _check_above_zero("seconds", seconds)
        check_at_least({"crops": crops}, crops=1)
        self.encode_batch = encode_batch
        self.samples = max(1, round(seconds * SAMPLE_RATE))
        self.crops = crops
        self.repeat = repeat

    def __call__(
        self, wavs: torch.Tensor, wav_lens: torch.Tensor
    ) -> torch.Tensor:
        """Embeds a batch as ``encode_batch`` does."""
        samples = valid_samples(wavs, wav_lens)
        if samples is None:
            return torch.stack([self._average(wav) for wav in wavs])
        pairs = zip(wavs, samples, strict=True)
        return torch.stack([self._average(wav[:n]) for wav, n in pairs])

    def _average(self, waveform: torch.Tensor) -> torch.Tensor:
        """The embedding of a waveform [samples], [1, embedding]."""
        crops = waveform.unsqueeze(0)
        surplus = len(waveform) - self.samples
        if surplus > 0:
            # In whole numbers: float32 would miss samples of long utterances.
            count = self.crops or math.ceil(len(waveform) / self.samples)
            last = max(count - 1, 1)
            starts = [surplus * crop // last for crop in range(count)]
            crops = waveform.unfold(0, self.samples, 1)[starts]
        elif self.repeat:
            crops, _ = repeat_short(crops, None, self.samples)
        embeddings = self.encode_batch(crops, torch.ones(len(crops)))
        return normalize(embeddings.float(), dim=-1).mean(dim=0)


def _check_above_zero(key: str, seconds: float | None) -> None:
    if seconds is not None and not seconds > 0:
        raise ValueError(f"{key}: must be above 0, not {seconds}")


def _duration(path: str | os.PathLike, load: Callable) -> float:
    """Seconds of an utterance, from its header alone where it has one."""
    try:
        if split_source(str(path))[1]:
            with open_audio(os.fspath(path)) as audio:
                return audio.length / audio.samplerate
        return thread_safe_open(
            lambda: audio_io.info(open_descriptor(os.fspath(path)))
        ).duration
    except (RuntimeError, OSError):
        # `load` knows better what is wrong, and names the file.
        return len(load(path)) / SAMPLE_RATE


def _batches(
    waveforms: Iterable[tuple[AnyPath, "Future[torch.Tensor]"]],
    budget: float,
    starts: set[AnyPath],
    progress: tqdm,
    faults: dict[AnyPath, AudioError] | None,
) -> Iterator[dict[AnyPath, torch.Tensor]]:
    """Yields batches of waveforms of so many samples, padding included.

    At each of ``starts`` a batch begins, whether the one before is full or not.
    A batch is emptied before the next one is filled.
    """
    batch, longest = {}, 0
    for path, loaded in waveforms:
        if batch and path in starts:
            yield batch
            batch.clear()
            longest = 0
        waveform = None
        with noted(faults, path):
            waveform = loaded.result()
        if waveform is None:
            progress.update()
            continue
        # Headers may be wrong, so the budget counts what was read.
        longest = max(longest, len(waveform))
        if batch and longest * (len(batch) + 1) > budget:
            yield batch
            batch.clear()
            longest = len(waveform)
        batch[path] = waveform
        # Full whatever comes next, which is not waited for.
        if longest * (len(batch) + 1) > budget:
            yield batch
            batch.clear()
            longest = 0
    if batch:
        yield batch


def _encode(
    encode_batch: EncodeBatch, batch: dict, faults: dict | None
) -> Iterator[tuple]:
    """Yields the keys of waveforms, each with its embedding."""
    lengths = torch.tensor([len(waveform) for waveform in batch.values()])
    try:
        with torch.no_grad():
            embeddings = encode_batch(
                pad_sequence(list(batch.values()), batch_first=True),
                lengths / lengths.max(),
            )
    except AudioError as error:  # of an utterance, whose path is to be named
        for path, waveform in batch.items():
            with noted(faults, path):
                if len(batch) == 1:
                    raise AudioError(
                        error.reason, error.remedy, str(path)
                    ) from None
                yield from _encode(encode_batch, {path: waveform}, faults)
        return
    embeddings = embeddings.squeeze(1).float().cpu()
    for path, embedding in zip(batch, embeddings, strict=True):
        with noted(faults, path):
            check_finite(path, embedding)
            # A copy, so that one kept embedding does not keep a whole batch.
            yield path, embedding.clone()
