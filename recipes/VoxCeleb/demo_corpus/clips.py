"""Clips: reading, trimming, dividing and joining them.

A clip is a word or a short sentence, as a mono waveform at 16 kHz.

Authors
-------
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import collections
from multiprocessing.pool import ThreadPool
from pathlib import Path

import torch
from settings import SETTINGS
from speakers import Source
from speechbrain.dataio import audio_io
from speechbrain.utils.parallel import get_available_cpu_count
from torchaudio.functional import resample
from tqdm import tqdm

HOP = SETTINGS["sample_rate"] // 100  # samples; 10 ms


class DroppedFile(ValueError):
    """A source file is of no use; the message is the reason to count."""


def read_clips(
    sources: list[Source],
) -> tuple[dict[str, dict[str, list[torch.Tensor]]], dict[Path, str]]:
    """Reads the clips of all speakers.

    Returns
    -------
    speakers
        Speaker to session to clips.
    dropped_files
        Path of each file of no use to the reason.
    """

    def read(source: Source) -> torch.Tensor | str:
        try:
            return read_clip(source.path)
        except DroppedFile as error:
            return str(error)

    speakers = collections.defaultdict(lambda: collections.defaultdict(list))
    dropped_files = {}
    # Decoding and resampling run outside Python, so threads share the work.
    with ThreadPool(get_available_cpu_count()) as pool:
        bar = tqdm(sources, desc="reading clips", unit="file")
        for source, clip in zip(bar, pool.imap(read, sources), strict=True):
            if isinstance(clip, str):
                dropped_files[source.path] = clip
            else:
                speakers[source.speaker][source.session].append(clip)
    return speakers, dropped_files


def read_clip(path: Path) -> torch.Tensor:
    """Reads a source file, mono at 16 kHz, without silence at both ends [time].

    Raises
    ------
    DroppedFile
        If the file is unreadable, empty, silent, too short, of too low a
        sampling rate, or holds values that are not finite.
    """
    try:
        waveform, sample_rate = audio_io.load(path, dtype=torch.float32)
    except RuntimeError:
        raise DroppedFile("unreadable") from None
    if waveform.shape[1] == 0:
        raise DroppedFile("empty")
    if sample_rate < SETTINGS["lowest_source_rate"]:
        raise DroppedFile("sampling rate under 16 kHz")
    if not torch.isfinite(waveform).all():
        raise DroppedFile("values not finite")
    waveform = waveform.mean(dim=0)
    if waveform.abs().max() < SETTINGS["silent_peak"]:
        raise DroppedFile("silent")
    # The filter grows with the smallest common period of the two rates. A rate
    # such as 22254 Hz, taken as 22250 Hz, keeps it short and sounds the same.
    sample_rate = 50 * round(sample_rate / 50)
    clip = trim_silence(
        resample(waveform, sample_rate, SETTINGS["sample_rate"])
    )
    if len(clip) < _samples("shortest_clip_seconds"):
        raise DroppedFile("too short")
    return clip


def _samples(setting: str) -> int:
    return round(SETTINGS[setting] * SETTINGS["sample_rate"])


def _frame_powers(waveform: torch.Tensor) -> torch.Tensor:
    """Mean power of frames of 20 ms every 10 ms [frames]."""
    frames = waveform.unfold(0, min(len(waveform), 2 * HOP), HOP)
    # The variance: a constant offset and its slow drift are no sound.
    return frames.var(dim=1, correction=0)


def trim_silence(waveform: torch.Tensor) -> torch.Tensor:
    """Cuts silence and background noise off both ends of a clip.

    Silence is what lies 35 dB under the loudest part of the clip. Where the
    background is noisier than that, the limit is 10 dB over the noise (the
    level that a tenth of the clip stays under), but at least 20 dB under the
    loudest part. Levels are medians over 80 ms, so that clicks of a switch or a
    mouse are no sound. A margin of 100 ms stays at both ends, for the short or
    soft sounds at the ends of a word.
    """
    powers = _frame_powers(waveform)
    around = 3
    padded = torch.nn.functional.pad(powers, (around, around))
    levels = padded.unfold(0, 2 * around + 1, 1).median(dim=1).values
    loudest = levels.max()
    highest, lowest = (
        loudest * 10.0 ** (-decibels / 10.0)
        for decibels in SETTINGS["trim_decibels_under_peak"]
    )
    over_noise = 10.0 ** (SETTINGS["trim_decibels_over_noise"] / 10.0)
    threshold = (levels.quantile(0.1) * over_noise).clamp(lowest, highest)
    loud = torch.nonzero(levels >= threshold).flatten()
    margin = _samples("trim_margin_seconds")
    start = int(loud[0]) * HOP - margin
    stop = (int(loud[-1]) + 2) * HOP + margin
    return waveform[max(0, start) : stop]


def split_long_clip(clip: torch.Tensor) -> list[torch.Tensor]:
    """Cuts a clip of more than 8 s into shorter ones, at its silent places."""
    if len(clip) <= _samples("longest_clip_seconds"):
        return [clip]
    # Cut at the most silent frame of the middle half, then again if need be.
    powers = _frame_powers(clip)
    first = len(powers) // 4
    middle = powers[first : 3 * first]
    cut = (first + int(middle.argmin()) + 1) * HOP
    return [*split_long_clip(clip[:cut]), *split_long_clip(clip[cut:])]


def join_clips(clips: list[torch.Tensor]) -> list[torch.Tensor]:
    """Joins clips of one speaker and session into utterances of about 3 s.

    They lie within -1 and 1 and last at least 3 s, unless all clips together
    are shorter.
    """
    target = _samples("utterance_seconds")
    gap = torch.zeros(_samples("gap_seconds"))
    groups = []
    for clip in clips:
        if not groups or sum(map(len, groups[-1])) >= target:
            groups.append([clip])
        else:
            groups[-1] += [gap, clip]
    if len(groups) > 1 and sum(map(len, groups[-1])) < target:
        short = groups.pop()
        groups[-1] += [gap, *short]
    utterances = [torch.cat(group) for group in groups]
    # Resampling may overshoot the full scale of a loud recording.
    return [
        utterance / max(1.0, float(utterance.abs().max()))
        for utterance in utterances
    ]
