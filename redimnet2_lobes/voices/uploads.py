"""Audio that somebody sends, of which nothing is believed.

It is decoded in memory. A few kilobytes may decode to hours, or to a thousand
channels, so that what their header promises is checked before.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import io

import soundfile
import torch

from redimnet2_lobes.data.audio import (
    CUT_SHORT,
    EMPTY,
    AudioError,
    check_whole,
    normalize_audio,
    thread_safe_open,
    unreadable,
)
from redimnet2_lobes.inference.long_files import LEAST_SHARE

NAME = "audio"  # in messages, in place of a path
# Samples of all channels in a second: two at 192 kHz, or eight at 48 kHz.
HIGHEST_DENSITY = 2 * 192_000

TOO_LONG = "too long"
TOO_MANY_SAMPLES = "too many samples"


def decode_upload(content: bytes, longest: float) -> torch.Tensor:
    """Decodes a file of any format that libsndfile knows.

    Gives a mono waveform at 16 kHz, float32 [samples].

    Raises
    ------
    AudioError
        If it lasts more than ``longest`` seconds, holds too many samples for
        its seconds, cannot be decoded or is cut short, or
        `CheckedAudioNormalizer` refuses what it holds.

    Example
    -------
    >>> file = io.BytesIO()
    >>> soundfile.write(file, [0.0, 0.5] * 8000, 16000, format="FLAC")
    >>> decode_upload(file.getvalue(), longest=1.0).shape
    torch.Size([16000])
    >>> decode_upload(file.getvalue(), longest=0.5)
    Traceback (most recent call last):
    ...
    redimnet2_lobes.data.audio.AudioError: audio: too long; it lasts 1.0 s, \
and 0.5 s are allowed, so send a part of it
    """
    if not content:
        raise AudioError(*EMPTY, NAME)
    try:
        with thread_safe_open(
            lambda: soundfile.SoundFile(io.BytesIO(content))
        ) as file:
            check_whole(file, NAME)
            _check_size(file, longest)
            rate = file.samplerate
            audio = file.read(file.frames, "float32", always_2d=True)
            if len(audio) < LEAST_SHARE * file.frames:
                raise AudioError(*CUT_SHORT, NAME)
    except (soundfile.LibsndfileError, MemoryError) as error:
        raise unreadable(NAME, error) from None
    return normalize_audio(torch.from_numpy(audio), rate, NAME)


def _check_size(file: soundfile.SoundFile, longest: float) -> None:
    seconds = file.frames / file.samplerate
    if seconds > longest:
        raise AudioError(
            TOO_LONG,
            f"it lasts {seconds:.1f} s, and {longest:g} s are allowed, so send "
            "a part of it",
            NAME,
        )
    density = file.samplerate * file.channels
    if density > HIGHEST_DENSITY:
        raise AudioError(
            TOO_MANY_SAMPLES,
            f"it holds {density} in a second, and {HIGHEST_DENSITY} are "
            "allowed, so send one channel at 16 kHz",
            NAME,
        )
