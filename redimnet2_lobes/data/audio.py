"""Reading audio files so that bad ones are named, not embedded.

A network turns anything into an embedding: silence, an empty file, a file of
NaNs. The two readers here refuse what holds no speech at all, and turn
everything else into one format, mono at one sampling rate.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import functools
import os
from collections.abc import Iterable
from fractions import Fraction

import torch
from speechbrain.augment.time_domain import Resample
from speechbrain.dataio import audio_io
from speechbrain.dataio.preprocess import AudioNormalizer

from redimnet2_lobes.models.front_end import SAMPLE_RATE, WINDOW

# Outside these rates (in Hz), a header is damaged or the file is not speech.
LOWEST_RATE, HIGHEST_RATE = 4000, 768000

# Float files may hold unscaled 32-bit integers. Larger values are damage, and
# their power spectrum would leave the range of float32.
LARGEST_SAMPLE = 2.0**31

# Enough for the exact ratio of every usual rate to 16 kHz (11025 Hz: 441/640).
# torchaudio's filter grows with the square of the ratio's terms: the exact one
# for 44099 Hz takes minutes. The nearest small ratio is at most 0.08 % off.
LARGEST_DENOMINATOR = 640

# The usual ones first. libsndfile does not decode the last three: they are
# reported, not overlooked.
AUDIO_EXTENSIONS = (
    *(".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif", ".aifc"),
    *(".au", ".snd", ".caf", ".w64", ".rf64", ".sph", ".voc"),
    *(".m4a", ".aac", ".wma"),
)
RANK = {extension: rank for rank, extension in enumerate(AUDIO_EXTENSIONS)}

EMPTY = ("empty", "it holds no samples, so export or record it again")


class AudioError(ValueError):
    """Audio that cannot be used, described in one line.

    ``reason`` is in a few words that are the same for all such files,
    ``remedy`` may have details of this one.

    Example
    -------
    >>> print(AudioError("silent", "record it again", "take1.wav"))
    take1.wav: silent; record it again
    """

    def __init__(self, reason: str, remedy: str, path: str | None = None):
        super().__init__(reason, remedy, path)
        self.reason = reason
        self.remedy = remedy
        self.path = path

    def __str__(self) -> str:
        return f"{self.path or 'audio'}: {self.reason}; {self.remedy}"


def utterance_name(file: str) -> str:
    """The name of an utterance, which its file may have in any format.

    That is ``file`` without an extension of audio files, in capitals or not.

    Example
    -------
    >>> utterance_name("anna/x/1.FLAC"), utterance_name("anna/x/take.1")
    ('anna/x/1', 'anna/x/take.1')
    """
    stem, extension = os.path.splitext(file)
    return stem if extension.lower() in RANK else file


def audio_rank(file: str) -> int | None:
    """Which of several files of one utterance to take.

    The lowest is the most usual format; None if it is no audio file.

    Example
    -------
    >>> audio_rank("1.wav") < audio_rank("1.Flac"), audio_rank("1.txt")
    (True, None)
    """
    return RANK.get(os.path.splitext(file)[1].lower())


def match_utterances(
    names: Iterable[str], files: Iterable[str]
) -> dict[str, str]:
    """The file of each utterance that has one, in any format.

    Trial lists name ``.wav`` files, which a corpus may have as ``.flac``. Of
    files that differ from a name in the extension, the most usual is taken.

    Example
    -------
    >>> match_utterances(["1.wav", "2", "3.wav"], ["1.ogg", "1.FLAC", "2.wav"])
    {'1.wav': '1.FLAC', '2': '2.wav'}
    """
    files = set(files)
    best = {}
    for file in sorted(files, key=lambda file: (audio_rank(file) or 0, file)):
        best.setdefault(utterance_name(file), file)
    matches = {}
    for name in names:
        if name in files:
            matches[name] = name
        elif utterance_name(name) in best:
            matches[name] = best[utterance_name(name)]
    return matches


def find_audio(folder: str | os.PathLike) -> list[str]:
    """The paths of all audio files below a folder, sorted.

    Hidden files and folders are left out, links are followed.

    Raises
    ------
    ValueError
        If there is none.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> _ = (folder / "a.wav").write_bytes(b"audio")
    >>> find_audio(folder) == [f"{folder}/a.wav"]
    True
    """
    found = []
    for path, folders, files in os.walk(
        folder, onerror=_raise, followlinks=True
    ):
        folders[:] = [name for name in folders if name[0] != "."]
        found += [
            os.path.join(path, name)
            for name in files
            if name[0] != "." and audio_rank(name) is not None
        ]
    if not found:
        raise ValueError(
            f"{folder}: there is no audio file in it; name the folder that "
            "holds them"
        )
    return sorted(found)


def _raise(error: OSError) -> None:
    raise error


def check_name(path: str) -> None:
    """Refuses a name that is not UTF-8, which no list could hold."""
    try:
        path.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{path!a}: not a name in UTF-8; rename it") from None


class CheckedAudioNormalizer(AudioNormalizer):
    """SpeechBrain's `AudioNormalizer`, but bad audio raises an `AudioError`.

    Named as ``audio_normalizer`` in the hyperparams.yaml of a model folder, it
    guards every method of `EncoderClassifier` that reads a file. SpeechBrain
    does not tell it which; ``load_waveform`` names it.

    The channels are mixed before resampling (SpeechBrain: after it), which
    gives the same waveform for less work and shows silence that resampling
    would hide behind ripples.

    Example
    -------
    >>> normalizer = CheckedAudioNormalizer(sample_rate=16000)
    >>> normalizer(torch.rand(44100, 2), 44100).shape
    torch.Size([16000])
    >>> normalizer(torch.zeros(16000, 1), 16000)
    Traceback (most recent call last):
    ...
    redimnet2_lobes.data.audio.AudioError: audio: silent; all samples are \
equal, so record it again or leave it out
    """

    def __call__(self, audio: torch.Tensor, sample_rate: int) -> torch.Tensor:
        """Checks, mixes and resamples [time] or [time, channels].

        Raises
        ------
        AudioError
            If the audio is empty, shorter than one window of the front-end
            (25 ms) or silent (all samples equal), holds NaN, infinite or
            absurdly large samples, or its sampling rate is absurd.
        """
        if audio.numel() == 0:
            raise AudioError(*EMPTY)
        if not LOWEST_RATE <= sample_rate <= HIGHEST_RATE:
            raise AudioError(
                "absurd sampling rate",
                f"it is {sample_rate} Hz, but must lie within {LOWEST_RATE} "
                f"and {HIGHEST_RATE} Hz, so correct it or export it again",
            )
        audio = self._mix(audio)
        lowest, highest = (value.item() for value in torch.aminmax(audio))
        # Both are NaN if any sample is, and then no comparison holds.
        if not -LARGEST_SAMPLE <= lowest <= highest <= LARGEST_SAMPLE:
            raise AudioError(
                "not finite",
                "it holds NaN, infinite or absurdly large samples, so export "
                "or record it again",
            )
        if lowest == highest:
            raise AudioError(
                "silent",
                "all samples are equal, so record it again or leave it out",
            )
        ratio = Fraction(sample_rate, self.sample_rate)
        if ratio.denominator > LARGEST_DENOMINATOR:
            ratio = ratio.limit_denominator(LARGEST_DENOMINATOR)
            self._cached_resamplers.setdefault(
                sample_rate, Resample(ratio.numerator, ratio.denominator)
            )
        audio = super().__call__(audio, sample_rate)
        seconds = len(audio) / self.sample_rate
        if seconds < WINDOW / SAMPLE_RATE:
            raise AudioError(
                "shorter than 25 ms",
                f"it lasts {1000 * seconds:.1f} ms, so record it again or "
                "leave it out",
            )
        return audio


@functools.lru_cache
def _normalizer(sample_rate: int) -> CheckedAudioNormalizer:
    """One for each rate, since it caches its resamplers."""
    return CheckedAudioNormalizer(sample_rate)


def normalize_audio(
    audio: torch.Tensor, rate: int, path: str, sample_rate: int = SAMPLE_RATE
) -> torch.Tensor:
    """What `CheckedAudioNormalizer` makes of the audio of a file [samples].

    The audio is [time] or [time, channels], at ``rate``; what is wrong with it
    is an AudioError that names ``path``.

    Example
    -------
    >>> normalize_audio(torch.rand(8000, 2), 8000, "a.wav").shape
    torch.Size([16000])
    """
    try:
        return _normalizer(sample_rate)(audio, rate)
    except AudioError as error:
        raise AudioError(error.reason, error.remedy, path) from None


def load_waveform(
    path: str | os.PathLike, sample_rate: int = 16000
) -> torch.Tensor:
    """Reads an audio file of any format that libsndfile knows.

    Gives a mono waveform at ``sample_rate``, float32 [samples].

    Raises
    ------
    AudioError
        If there is no such file, it is a folder, it cannot be decoded, or
        `CheckedAudioNormalizer` refuses what it holds.

    Example
    -------
    >>> path = getfixture("tmpdir") / "stereo.wav"
    >>> audio_io.save(str(path), torch.rand(2, 8000) - 0.5, 8000)
    >>> load_waveform(path).shape
    torch.Size([16000])
    """
    path = os.fspath(path)
    if os.path.isdir(path):
        raise AudioError("a folder", "name an audio file in it", path)
    if not os.path.exists(path):
        raise AudioError("missing", "check the path", path)
    if os.path.getsize(path) == 0:
        raise AudioError(*EMPTY, path)
    try:
        # torch's default type could be changed by the caller.
        audio, rate = audio_io.load(
            path, channels_first=False, dtype=torch.float32
        )
    except RuntimeError as error:
        cause = error.__cause__
        detail = " ".join(getattr(cause, "error_string", str(cause)).split())
        raise AudioError(
            "unreadable",
            f"libsndfile says {detail!r}, so convert it to WAV or FLAC "
            "(for example with ffmpeg) or leave it out",
            path,
        ) from None
    return normalize_audio(audio, rate, path, sample_rate)
