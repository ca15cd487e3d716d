"""Embeddings of files of any length, in bounded memory.

A recording of hours is neither decoded nor embedded as a whole: it is read in
order, piece by piece, and the embeddings of its pieces are averaged.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import math
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import soundfile
import torch
from tqdm import tqdm

from redimnet2_lobes.data.audio import (
    CUT_SHORT,
    LARGEST_DENOMINATOR,
    LOWEST_RATE,
    AudioError,
    CheckedAudioNormalizer,
    check_mix,
    check_whole,
    load_waveform,
    open_descriptor,
    thread_safe_open,
    unreadable,
)
from redimnet2_lobes.data.speech import (
    Speech,
    find_speech,
    load_detector,
)
from redimnet2_lobes.files.settings import check_at_least
from redimnet2_lobes.inference.averaged_pieces import AveragedPieces
from redimnet2_lobes.inference.encode import (
    EncodeBatch,
    check_finite,
    encode_utterances,
    noted,
)
from redimnet2_lobes.inference.prefetch import (
    loading_threads,
    prefetch,
    prefetch_next,
)
from redimnet2_lobes.models.front_end import SAMPLE_RATE, WINDOW

# Of MP3 that lacks a length libsndfile's estimate may be off.
LEAST_SHARE = 0.95

# Seconds of a long file in which speech is found at once: a word that lies
# across two of them is cut.
SEARCHED_AT_ONCE = 60.0


def encode_files(
    encode_batch: EncodeBatch,
    paths: Iterable[str],
    seconds_per_piece: float = 60.0,
    faults: dict[str, AudioError] | None = None,
    speech: dict[str, Speech] | None = None,
) -> tuple[dict[str, torch.Tensor], dict[str, int]]:
    """Embeds files; the long ones in pieces, so that memory is bounded.

    Files of up to ``seconds_per_piece``, which is at least 1, are embedded
    whole, by `encode_utterances`. Of a longer one the pieces are embedded each
    on its own, and the directions of their embeddings are averaged, weighted by
    their seconds. The average is multiplied by the mean length of the pieces'
    embeddings, so that it counts as much as others in an enrolment.

    ``speech``, if it is given, receives where somebody speaks in each file, and
    the speech alone is embedded. That of a long file is searched for in every
    minute on its own, and fills pieces. A file without any cannot be used.

    Returns the embedding of each path [embedding], float32 on the CPU, and of
    each path that was cut the number of its pieces. It is an AudioError if a
    file cannot be used or an embedding is zero or not finite; ``faults``
    collects these, if it is given, and the other files get their embeddings.

    Example
    -------
    >>> path = str(getfixture("tmp_path") / "long.wav")
    >>> soundfile.write(path, torch.rand(5 * 8000).numpy(), 8000)
    >>> def encode_batch(wavs, wav_lens):  # in place of a network
    ...     return wavs[:, None, :2]
    >>> embeddings, pieces = encode_files(encode_batch, [path], 2.0)
    >>> embeddings[path].shape, pieces[path]
    (torch.Size([2]), 3)
    """
    check_at_least(
        {"seconds_per_piece": seconds_per_piece}, seconds_per_piece=1
    )
    load = _load
    if speech is not None:
        load_detector()  # not in a thread: torch is imported with it

        def load(path: str) -> torch.Tensor:
            return _load_speech(path, speech)

    whole, long = [], []
    with loading_threads() as pool:
        for path, seconds in prefetch(pool, file_seconds, dict.fromkeys(paths)):
            with noted(faults, path):
                is_long = seconds.result() > seconds_per_piece
                (long if is_long else whole).append(path)
    # None: only where somebody watches.
    with tqdm(
        total=len(whole),
        desc="embeddings",
        unit="file",
        disable=None,
        leave=False,
    ) as progress:
        embeddings = encode_utterances(
            *(encode_batch, whole),
            load=load,
            progress=progress,
            faults=faults,
        )
    pieces = {}
    for path in long:
        with noted(faults, path), loading_threads() as pool:
            embeddings[path], pieces[path] = _encode_long(
                encode_batch, pool, path, seconds_per_piece, speech
            )
    return embeddings, pieces


def read_pieces(
    path: str, seconds: float, keep_silence: bool = False
) -> Iterator[torch.Tensor]:
    """Yields pieces [samples] of an audio file, mono, 16 kHz, float32.

    They are of about the same length, so many ``seconds`` at most, and together
    what `load_waveform` gives, without gap or overlap: before a piece is
    resampled, it gets what surrounds it. The file is read once, in order, since
    seeking is not exact in every format. Silent pieces (all samples equal) are
    left out, or zeros with ``keep_silence``. It is an AudioError if the file
    cannot be decoded, is cut short or silent all over, its channels cancel each
    other in a piece, or `CheckedAudioNormalizer` refuses a piece of it.

    Example
    -------
    >>> path = str(getfixture("tmp_path") / "long.wav")
    >>> soundfile.write(path, torch.rand(5 * 8000).numpy(), 8000)
    >>> [len(piece) for piece in read_pieces(path, seconds=2.0)]
    [26666, 26666, 26668]
    """
    normalizer = CheckedAudioNormalizer(SAMPLE_RATE)
    sounding = False
    try:
        with thread_safe_open(lambda: _InOrder(open_descriptor(path))) as file:
            for waveform in _normalized_pieces(file, seconds, normalizer):
                sounding = sounding or bool(waveform.any())
                if keep_silence or waveform.any():
                    yield waveform
        if not sounding:
            raise AudioError(
                "silent", "it is all over, so record it again or leave it out"
            )
    except (soundfile.LibsndfileError, OSError) as error:
        raise unreadable(path, error) from None
    except AudioError as error:
        raise AudioError(error.reason, error.remedy, path) from None


def file_seconds(path: str) -> float:
    """Seconds of a file by its header, which must not promise more.

    Example
    -------
    >>> path = str(getfixture("tmp_path") / "a.wav")
    >>> soundfile.write(path, torch.rand(12000).numpy(), 8000)
    >>> file_seconds(path)
    1.5
    """
    try:
        with thread_safe_open(
            lambda: soundfile.SoundFile(open_descriptor(path))
        ) as file:
            check_whole(file, path)
            frames, rate = file.frames, file.samplerate
    except (soundfile.LibsndfileError, OSError):
        # `load_waveform` knows better what is wrong.
        return len(load_waveform(path)) / SAMPLE_RATE
    if rate < LOWEST_RATE:
        return 0.0  # `load_waveform` refuses it
    return frames / rate


def read_in_order(path: str, seconds: float) -> Iterator[torch.Tensor]:
    """Yields the waveform of a file of any length [samples].

    It is whole, or as by `read_pieces` where it is longer than ``seconds``; an
    AudioError if the file cannot be used.

    Example
    -------
    >>> path = str(getfixture("tmp_path") / "short.wav")
    >>> soundfile.write(path, torch.rand(8000).numpy(), 8000)
    >>> [len(waveform) for waveform in read_in_order(path, seconds=60.0)]
    [16000]
    """
    if file_seconds(path) > seconds:
        yield from read_pieces(path, seconds)
    else:
        yield _load(path)


class _InOrder(soundfile.SoundFile):
    """A file that is never sought in.

    After each read soundfile seeks to where it is already. That restarts the
    decoder, which does no harm but in MP3.
    """

    def seekable(self) -> bool:
        """No."""
        return False


def _normalized_pieces(
    file: soundfile.SoundFile,
    seconds: float,
    normalizer: CheckedAudioNormalizer,
) -> Iterator[torch.Tensor]:
    """Yields the pieces of an open file at 16 kHz, zeros for silent ones."""
    ratio = Fraction(file.samplerate, SAMPLE_RATE)
    ratio = ratio.limit_denominator(LARGEST_DENOMINATOR)
    # A piece that begins at a multiple of `step` is resampled as in the whole.
    step = ratio.numerator
    # The filter reaches over six samples of the lower rate to each side; the
    # rest is for its rolloff and its rounding to whole steps.
    reach = math.ceil(8 * max(1, ratio)) + step
    margin = math.ceil(reach / step) * step
    held, held_from, start = torch.empty(0), 0, 0
    for end in _ends(file, seconds, step):
        read_to = min(end + margin, file.frames)
        missing = read_to - held_from - len(held)
        read = file.read(missing, dtype="float32", always_2d=True)
        channels = torch.from_numpy(read)
        mixed = channels.mean(1)
        if len(mixed):
            check_mix(channels, mixed)
        held = torch.cat([held, mixed])
        if held_from + len(held) < LEAST_SHARE * read_to:
            raise AudioError(*CUT_SHORT)
        core = held[start - held_from : end - held_from]
        samples = math.ceil(len(core) / ratio)
        if start and samples < WINDOW:  # a little less than expected
            return
        if core.min() == core.max():
            yield torch.zeros(samples)
        else:
            before = int((start - held_from) / ratio)
            waveform = normalizer(held, file.samplerate)
            yield waveform[before : before + samples].clone()
        start = end
        surplus = max(0, start - margin - held_from)
        held, held_from = held[surplus:].clone(), held_from + surplus


def _ends(
    file: soundfile.SoundFile, seconds: float, step: int
) -> Iterator[int]:
    """Yields where the pieces of a file end, in its own samples."""
    longest = max(step, int(seconds * file.samplerate) // step * step)
    # Rounding to steps may add one.
    pieces = math.ceil(file.frames / max(1, longest - step))
    for piece in range(1, pieces):
        yield file.frames * piece // pieces // step * step
    yield file.frames


def _encode_long(
    encode_batch: EncodeBatch,
    pool: ThreadPoolExecutor,
    path: str,
    seconds_per_piece: float,
    speech: dict[str, Speech] | None,
) -> tuple[torch.Tensor, int]:
    """The embedding of a long file, and the number of its pieces."""
    if speech is None:
        waveforms = read_pieces(path, seconds_per_piece)
    else:
        waveforms = _speech_pieces(path, seconds_per_piece, speech)
    waveforms = prefetch_next(pool, waveforms)
    average = AveragedPieces()
    for waveform in tqdm(
        waveforms, desc=path, unit="piece", disable=None, leave=False
    ):
        try:
            with torch.no_grad():
                embedding = encode_batch(waveform.unsqueeze(0), torch.ones(1))
        except AudioError as error:
            raise AudioError(error.reason, error.remedy, path) from None
        embedding = embedding.flatten().float().cpu()
        check_finite(path, embedding)
        average = average.plus(embedding, len(waveform))
    return average.embedding(), average.pieces


def _speech_pieces(
    path: str, seconds: float, speech: dict[str, Speech]
) -> Iterator[torch.Tensor]:
    """Yields the speech of a long file, in pieces of so many seconds.

    The last one is what is left. In the end the file has its ``speech``.
    """
    longest = round(seconds * SAMPLE_RATE)
    held, spans, samples, pieces = torch.empty(0), [], 0, 0
    for searched in read_pieces(path, SEARCHED_AT_ONCE, keep_silence=True):
        found = find_speech(searched).spans
        spans += [(samples + start, samples + stop) for start, stop in found]
        samples += len(searched)
        parts = [searched[start:stop] for start, stop in found]
        held = torch.cat([held, *parts])
        while len(held) >= longest:
            yield held[:longest].clone()
            held = held[longest:].clone()
            pieces += 1
    speech[path] = Speech(spans, samples)
    if not pieces:
        speech[path].check(path)
    if len(held) >= WINDOW:
        yield held


def _load(path: str) -> torch.Tensor:
    """The waveform of a short file, which must not be cut."""
    waveform = load_waveform(path)
    if len(waveform) < LEAST_SHARE * file_seconds(path) * SAMPLE_RATE:
        raise AudioError(*CUT_SHORT, path)
    return waveform


def _load_speech(path: str, speech: dict[str, Speech]) -> torch.Tensor:
    """The speech of a short file, and where it is."""
    waveform = _load(path)
    speech[path] = find_speech(waveform)
    return speech[path].of(waveform, path)
