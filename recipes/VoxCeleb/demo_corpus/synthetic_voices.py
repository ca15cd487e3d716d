"""Synthetic voices: a stand-in for recorded speech that needs no download.

A voice is a source-filter model. The source mixes glottal pulses and noise;
the filter is a row of formant resonances that moves from vowel to vowel, with
noise bursts between them as consonants. What sets one speaker apart from
another (pitch, length of the vocal tract, vowel targets, voice quality,
speaking rate) is drawn from the seed of the speaker; what sets one utterance
apart from another (the sounds spoken, level, background noise) from the seed of
the utterance.

It is no speech: figures measured on these voices say that the programs work
together, nothing about how well a model recognizes people.

Authors
-------
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import dataclasses

import numpy as np

HOP_SECONDS = 0.008
HOPS_PER_FRAME = 4

# Formant targets in Hz of a neutral adult vocal tract for the vowels
# a, e, i, o, u, schwa and the rounded front vowel; rows F1 to F4.
VOWEL_FORMANTS = np.array(
    [
        [730, 1180, 2500, 3500],
        [500, 1850, 2500, 3500],
        [290, 2250, 3000, 3650],
        [480, 880, 2450, 3400],
        [320, 800, 2300, 3300],
        [500, 1450, 2450, 3500],
        [310, 1750, 2200, 3350],
    ],
    dtype=np.float64,
)
FORMANT_BANDWIDTHS = np.array([70.0, 90.0, 140.0, 220.0])

# Centre in Hz and width in Hz of the noise of s, sh, f, t, k, ch.
CONSONANT_NOISE = np.array(
    [
        [6200, 1600],
        [3400, 1300],
        [5000, 4500],
        [4500, 2500],
        [2000, 900],
        [3800, 1600],
    ],
    dtype=np.float64,
)


@dataclasses.dataclass(frozen=True)
class Voice:
    """What stays the same in all utterances of one synthetic speaker."""

    pitch: float  # median of the fundamental frequency, Hz
    pitch_range: float  # standard deviation of its contour, octaves
    jitter: float  # standard deviation of cycle-to-cycle changes, octaves
    vowels: np.ndarray  # formant targets, Hz [vowels, formants]
    bandwidths: np.ndarray  # formant bandwidths, Hz [formants]
    consonants: np.ndarray  # centre and width of noise, Hz [consonants, 2]
    tilt: float  # slope of the source spectrum, dB per octave
    breathiness: float  # level of noise relative to the pulses
    syllables_per_second: float
    pause_probability: float  # of a pause after a syllable


def draw_voice(speaker_seed: int) -> Voice:
    """Draws the voice of one speaker, the same from the same seed.

    Example
    -------
    >>> draw_voice(1).pitch == draw_voice(1).pitch != draw_voice(2).pitch
    True
    """
    random = np.random.default_rng([speaker_seed, 0])
    # One hidden variable moves pitch and vocal tract together, as sex and age
    # do; both also vary on their own, so that neither gives the speaker away.
    size = random.uniform(-1.0, 1.0)
    pitch = 150.0 * 2.0 ** (-0.45 * size + random.normal(0.0, 0.25))
    formant_scale = 1.0 - 0.10 * size + random.normal(0.0, 0.04)
    vowels = VOWEL_FORMANTS * formant_scale
    vowels = vowels * random.normal(1.0, 0.05, size=vowels.shape)
    consonants = CONSONANT_NOISE * random.normal(
        1.0, 0.08, size=CONSONANT_NOISE.shape
    )
    return Voice(
        pitch=float(np.clip(pitch, 75.0, 320.0)),
        pitch_range=random.uniform(0.05, 0.25),
        jitter=random.uniform(0.003, 0.02),
        vowels=vowels,
        bandwidths=FORMANT_BANDWIDTHS * random.uniform(0.7, 1.5, size=4),
        consonants=consonants,
        tilt=random.uniform(-14.0, -7.0),
        breathiness=10.0 ** random.uniform(-2.2, -0.8),
        syllables_per_second=random.uniform(3.0, 6.0),
        pause_probability=random.uniform(0.02, 0.15),
    )


def synthetic_utterance(
    speaker_seed: int,
    utterance_seed: int,
    seconds: float,
    sample_rate: int = 16000,
) -> np.ndarray:
    """Speaks a random sequence of syllables with one synthetic voice.

    Gives a waveform within -1 and 1, float32 [time]. ``utterance_seed`` chooses
    what is spoken, how loud and over how much noise.

    Example
    -------
    >>> waveform = synthetic_utterance(1, 1, seconds=0.5)
    >>> waveform.shape, waveform.dtype
    ((8000,), dtype('float32'))
    """
    voice = draw_voice(speaker_seed)
    random = np.random.default_rng([speaker_seed, 1, utterance_seed])
    samples = max(1, round(seconds * sample_rate))
    hop = round(HOP_SECONDS * sample_rate)
    frame = HOPS_PER_FRAME * hop
    frames = 1 + -(-(samples + frame) // hop)
    padded = frames * hop + frame

    spoken = _syllables(voice, random, frames * HOP_SECONDS)
    track = _frame_track(voice, random, spoken, frames)

    source = _pulses(voice, random, track["pitch"], hop, padded, sample_rate)
    breath = random.standard_normal(padded)
    voiced = source + voice.breathiness * breath
    frequencies = np.fft.rfftfreq(frame, 1.0 / sample_rate)
    filtered = _filter_frames(
        voiced, _vowel_filter(voice, track, frequencies), frame, hop
    )
    filtered += _filter_frames(
        breath, _consonant_filter(voice, track, frequencies), frame, hop
    )
    waveform = filtered[frame : frame + samples]

    level = 10.0 ** random.uniform(-1.3, -0.5)
    waveform = level * waveform / max(1e-9, np.abs(waveform).max())
    noise = 10.0 ** random.uniform(-3.5, -2.3) * level
    waveform += noise * random.standard_normal(samples)
    return np.clip(waveform, -1.0, 1.0).astype(np.float32)


def _syllables(
    voice: Voice, random: np.random.Generator, seconds: float
) -> np.ndarray:
    """Draws sounds until `seconds` are filled, a row for each.

    The columns are the second at which it starts, the kind (0 pause, 1
    consonant, 2 vowel) and the number of the vowel or consonant.
    """
    count = int(np.ceil(seconds * voice.syllables_per_second * 2)) + 1
    syllable = random.uniform(0.7, 1.3, size=count) / voice.syllables_per_second
    consonant = syllable * random.uniform(0.15, 0.4, size=count)
    pause = np.where(
        random.random(count) < voice.pause_probability,
        random.uniform(0.1, 0.3, size=count),
        0.0,
    )
    lengths = np.stack([consonant, syllable - consonant, pause], axis=1)
    starts = np.concatenate([[0.0], np.cumsum(lengths.ravel())[:-1]])
    kinds = np.tile([1, 2, 0], count)
    which = np.stack(
        [
            random.integers(len(CONSONANT_NOISE), size=count),
            random.integers(len(VOWEL_FORMANTS), size=count),
            np.zeros(count, dtype=int),
        ],
        axis=1,
    ).ravel()
    sounding = lengths.ravel() > 0.0
    return np.stack([starts, kinds, which], axis=1)[sounding]


def _frame_track(
    voice: Voice, random: np.random.Generator, spoken: np.ndarray, frames: int
) -> dict[str, np.ndarray]:
    """Turns the sounds into one row of parameters for each frame."""
    times = np.arange(frames) * HOP_SECONDS
    sound = np.searchsorted(spoken[:, 0], times, side="right") - 1
    kinds = spoken[sound, 1]
    which = spoken[sound, 2].astype(int)

    # Formants glide: the targets of the vowels, held and then smoothed.
    is_vowel = spoken[:, 1] == 2
    vowel_starts = spoken[is_vowel, 0]
    vowel_numbers = spoken[is_vowel, 2].astype(int)
    vowel = np.clip(
        np.searchsorted(vowel_starts, times, side="right") - 1, 0, None
    )
    formants = _smooth(voice.vowels[vowel_numbers[vowel]], 9)

    knots = np.arange(0.0, times[-1] + 0.6, 0.3)
    contour = np.interp(
        times, knots, random.normal(0.0, voice.pitch_range, size=len(knots))
    )
    contour = contour + random.normal(0.0, voice.jitter, size=frames)
    stress = random.uniform(0.5, 1.0, size=len(spoken))
    return {
        "pitch": voice.pitch * 2.0**contour,
        "formants": formants,
        "voicing": _smooth(stress[sound] * (kinds == 2), 5),
        "consonant": which * (kinds == 1),
        "friction": _smooth(stress[sound] * (kinds == 1), 3),
    }


def _smooth(values: np.ndarray, width: int) -> np.ndarray:
    """Smooths along the first axis by a Hann window of `width` frames."""
    window = np.hanning(width + 2)[1:-1]
    window /= window.sum()
    padded = np.pad(
        values,
        [(width // 2, width // 2)] + [(0, 0)] * (values.ndim - 1),
        mode="edge",
    )
    windows = np.lib.stride_tricks.sliding_window_view(padded, width, axis=0)
    return windows @ window


def _pulses(
    voice: Voice,
    random: np.random.Generator,
    pitch: np.ndarray,
    hop: int,
    samples: int,
    sample_rate: int,
) -> np.ndarray:
    """Places one pulse per glottal cycle, between samples where need be."""
    per_sample = np.interp(
        np.arange(samples), np.arange(len(pitch)) * hop, pitch
    )
    phase = np.cumsum(per_sample / sample_rate) + random.random()
    cycle = np.floor(phase)
    starts = np.flatnonzero(np.diff(cycle) > 0) + 1
    fraction = (phase[starts] - cycle[starts]) * sample_rate
    fraction = np.clip(fraction / per_sample[starts], 0.0, 1.0)
    strength = random.normal(1.0, 2.0 * voice.jitter, size=len(starts))
    # The power of a pulse train grows with its rate; undo that.
    strength *= np.sqrt(sample_rate / per_sample[starts])
    source = np.zeros(samples)
    source[starts] = strength * (1.0 - fraction)
    source[starts - 1] += strength * fraction
    return source


def _vowel_filter(
    voice: Voice, track: dict[str, np.ndarray], frequencies: np.ndarray
) -> np.ndarray:
    """Magnitude of formants and source tilt [frames, frequencies]."""
    response = np.ones((len(track["voicing"]), len(frequencies)))
    squares = frequencies**2
    for number, bandwidth in enumerate(voice.bandwidths):
        centre = track["formants"][:, number, None]
        response *= centre**2 / np.sqrt(
            (centre**2 - squares) ** 2 + bandwidth**2 * squares
        )
    octaves = np.log2(np.maximum(frequencies, 100.0) / 100.0)
    # The formants above the fourth, which are left out, would lift the upper
    # spectrum by about 6 dB per octave.
    response *= 10.0 ** ((voice.tilt + 6.0) * octaves / 20.0)
    return response * track["voicing"][:, None]


def _consonant_filter(
    voice: Voice, track: dict[str, np.ndarray], frequencies: np.ndarray
) -> np.ndarray:
    """Magnitude of the noise of consonants [frames, frequencies]."""
    centre, width = voice.consonants[track["consonant"]].T[:, :, None]
    response = np.exp(-0.5 * ((frequencies - centre) / width) ** 2)
    return 0.5 * response * track["friction"][:, None]


def _filter_frames(
    signal: np.ndarray, response: np.ndarray, frame: int, hop: int
) -> np.ndarray:
    """Filters each windowed frame by its own response and adds them up."""
    frames = np.lib.stride_tricks.sliding_window_view(signal, frame)[::hop]
    frames = frames[: len(response)] * np.hanning(frame)
    filtered = np.fft.irfft(
        np.fft.rfft(frames) * response[: len(frames)], frame
    )
    output = np.zeros(len(signal))
    for offset in range(0, frame, hop):
        part = filtered[:, offset : offset + hop]
        output[offset : offset + part.size] += part.ravel()
    return output
