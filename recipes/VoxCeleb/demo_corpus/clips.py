"""Clips: reading, trimming, dividing and joining them.

A clip is a word or a short sentence, as a mono waveform at 16 kHz.

Authors
-------
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import collections
import concurrent.futures
from pathlib import Path

import torch
from settings import SETTINGS
from speakers import Source
from speechbrain.dataio import audio_io
from speechbrain.utils.parallel import get_available_cpu_count, parallel_map
from torchaudio.functional import resample

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
        speaker -> session -> list of clips.
    dropped_files
        path -> reason of each file of no use.
    """

    def read(source: Source) -> tuple[Source, torch.Tensor | None, str | None]:
        try:
            return source, read_clip(source.path), None
        except DroppedFile as error:
            return source, None, str(error)

    speakers = collections.defaultdict(lambda: collections.defaultdict(list))
    dropped_files = {}
    # Decoding and resampling run outside Python, so threads share the work.
    workers = get_available_cpu_count()
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        for source, clip, reason in parallel_map(
            read,
            sources,
            process_count=workers,
            executor=pool,
            progress_bar_kwargs={"desc": "reading clips", "unit": "file"},
        ):
            if reason:
                dropped_files[source.path] = reason
            else:
                speakers[source.speaker][source.session].append(clip)
    return speakers, dropped_files


def read_clip(path: Path) -> torch.Tensor:
    """Reads a source file as a trimmed clip.

    Arguments
    ---------
    path
        An audio file that soundfile reads, of any rate, mono or stereo.

    Returns
    -------
    torch.Tensor
        Mono waveform at 16 kHz without the silence at both ends [time].

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

    Arguments
    ---------
    waveform
        Mono, at 16 kHz, not empty [time].
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
    """Cuts a long clip into pieces at its most silent places.

    One of no more than 8 s stays whole; the pieces of others are shorter than
    that.

    Arguments
    ---------
    clip
        Mono waveform at 16 kHz [time].
    """
    if len(clip) <= _samples("longest_clip_seconds"):
        return [clip]
    # Cut at the most silent frame of the middle half, then again if need be.
    powers = _frame_powers(clip)
    first = len(powers) // 4
    middle = powers[first : 3 * first]
    cut = (first + int(middle.argmin()) + 1) * HOP
    return [*split_long_clip(clip[:cut]), *split_long_clip(clip[cut:])]


def join_clips(clips: list[torch.Tensor]) -> list[torch.Tensor]:
    """Joins clips, in the order given, into utterances of about 3 s.

    Arguments
    ---------
    clips
        Mono waveforms at 16 kHz of one speaker and session [time].

    Returns
    -------
    list[torch.Tensor]
        Waveforms within -1 and 1 of at least 3 s, but one shorter one if all
        clips together are shorter [time].
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
