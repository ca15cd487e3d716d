"""Reading audio files so that bad ones are named, not embedded.

A network turns anything into an embedding: silence, an empty file, a file of
NaNs. The two readers here refuse what holds no speech at all, and turn
everything else into one format, mono at one sampling rate.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import contextlib
import functools
import os
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from typing import NamedTuple, TypeVar

import soundfile
import torch
from speechbrain.augment.time_domain import Resample
from speechbrain.dataio.encoder import CategoricalEncoder
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

# What libsndfile reads, the usual ones first.
DECODED = (
    *(".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif", ".aifc"),
    *(".au", ".snd", ".caf", ".w64", ".rf64", ".sph", ".voc", ".wave", ".bwf"),
    *(".oga", ".nist", ".wv1", ".wv2", ".mp2", ".mp1", ".amb", ".avr", ".htk"),
    *(".ircam", ".sf", ".paf", ".pvf", ".sds", ".svx", ".8svx", ".wve"),
)
# Samples and nothing else: nobody knows at which rate.
HEADERLESS = (
    *(".raw", ".pcm", ".lpcm", ".sln", ".ulaw", ".alaw", ".ul", ".al"),
    ".vox",
)
# What it does not read is reported, not overlooked.
AUDIO_EXTENSIONS = (
    *DECODED,
    *(".m4a", ".aac", ".wma", ".m4b", ".mp4", ".m4v", ".mov", ".3gp", ".3g2"),
    *(".webm", ".weba", ".mka", ".mkv", ".amr", ".awb", ".ac3", ".eac3"),
    *(".dts", ".ape", ".wv", ".mpc", ".tta", ".spx", ".ra", ".rm", ".wmv"),
    *(".asf", ".flv", ".avi", ".mpg", ".mpeg", ".adts", ".gsm", ".dsf", ".sd2"),
    *HEADERLESS,
)
RANK = {extension: rank for rank, extension in enumerate(AUDIO_EXTENSIONS)}

# What `list_audio` leaves out.
REPEATED = "link", "to what is there already"
BROKEN = "link", "to nowhere"
SPECIAL = "pipe", "or the like"

# Of the channels' loudness; two microphones in a room leave half and more.
LEAST_MIXED = 0.01

EMPTY = ("empty", "it holds no samples, so export or record it again")
CUT_SHORT = (
    "cut short",
    "it ends before its header says, so copy or export it again",
)

# For a header without a length, such as of FLAC from a pipe: 2**63 - 1.
UNKNOWN_FRAMES = 2**62

# What libsndfile notes where a WAV or AIFF file ends before its header says.
SHORTENED = re.compile(r"^ *(?:data|SSND) : (\d+) \(should be \d+\)", re.M)
# Sizes from here on stand for "unknown" in files from a pipe.
UNKNOWN_BYTES = 2**31 - 2**16

Opened = TypeVar("Opened")
# Files that may be opened at once.
OPENINGS = 64
_opening = threading.Semaphore(OPENINGS)
_repeating = threading.Lock()


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


class AudioFiles(NamedTuple):
    """The audio files below a folder, and what else is there."""

    paths: list[str]  # sorted
    left_out: str  # how many other files and why, in one line; "" for none


def find_audio(folder: str | os.PathLike) -> AudioFiles:
    """All audio files below a folder, each once: `list_audio`.

    Raises
    ------
    AudioError
        If there is none.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> for name in ("a.wav", "a.txt"):
    ...     _ = (folder / name).write_bytes(b"audio")
    >>> found = find_audio(folder)
    >>> found.paths == [f"{folder}/a.wav"]
    True
    >>> found.left_out.removeprefix(f"{folder}: ")
    '1 left out: 1 file without an ending of audio (.txt)'
    """
    found = list_audio(folder)
    if not found.paths:
        left_out = found.left_out.removeprefix(f"{folder}: ")
        raise AudioError(
            f"there is no audio file in it{left_out and f' ({left_out})'}",
            "name the folder that holds them",
            str(folder),
        )
    return found


def list_audio(
    folder: str | os.PathLike, without: Iterable[str] = ()
) -> AudioFiles:
    """All audio files below a folder, by their endings; there may be none.

    Links are followed, but no folder is entered twice and no file taken twice:
    a link is left out where its target is found without it, or where it leads
    back to a folder that holds it. One that leads nowhere is a path like
    others, so that whoever reads it says that the file is missing. Hidden files
    and folders, and the folders ``without``, are left out without a word.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> (folder / "again").symlink_to(folder)
    >>> list_audio(folder).left_out.removeprefix(f"{folder}: ")
    '1 left out: 1 link to what is there already'
    """
    paths, file_links = [], []
    endings, left_out = Counter(), Counter()
    seen = {os.path.realpath(path) for path in without}
    tops = [os.fspath(folder)]
    while tops:  # the folder, then those that links in it lead to, and so on
        links = []
        for top in sorted(tops):
            if os.path.realpath(top) in seen:
                left_out[REPEATED] += 1
            for entry in _entries_below(top, seen):
                if entry.is_symlink():
                    links.append(entry.path)
                elif audio_rank(entry.name) is None:
                    endings[_ending(entry.name)] += 1
                elif entry.is_file():
                    paths.append(entry.path)
                else:
                    left_out[SPECIAL] += 1
        tops = []
        for link in links:
            if not os.path.isdir(link):
                file_links.append(link)
            elif leads_back(link):
                left_out[REPEATED] += 1
            else:
                tops.append(link)
    targets = set()
    for link in sorted(file_links):
        target = os.path.realpath(link)
        is_there = os.path.exists(target)
        where, name = os.path.split(target)
        if audio_rank(link) is None and is_there:
            endings[_ending(link)] += 1
        elif audio_rank(link) is None:
            left_out[BROKEN] += 1
        elif is_there and not os.path.isfile(target):
            left_out[SPECIAL] += 1
        elif target in targets or (
            is_there
            and where in seen
            and name[0] != "."
            and audio_rank(name) is not None
        ):
            left_out[REPEATED] += 1
        else:
            targets.add(target)
            paths.append(link)
    if endings:
        shown = sorted(endings, key=lambda ending: (-endings[ending], ending))
        shown[3:] = ["..."] * (len(endings) > 3)
        reason = "file", f"without an ending of audio ({', '.join(shown)})"
        left_out[reason] = endings.total()
    reasons = ", ".join(
        f"{count} {noun}{'s' * (count > 1)} {rest}"
        for (noun, rest), count in sorted(left_out.items())
    )
    note = f"{folder}: {left_out.total()} left out: {reasons}"
    return AudioFiles(sorted(paths), " ".join(note.split()) if reasons else "")


def _entries_below(top: str, seen: set[str]) -> Iterator[os.DirEntry]:
    """Yields what is at any depth below a folder, and is none itself.

    Links are yielded, not followed; ``seen`` are the real paths of folders that
    are not entered, and gets those that are. Hidden ones are left out.
    """
    to_visit = [(top, os.path.realpath(top))]
    while to_visit:
        path, real = to_visit.pop()
        if real in seen:
            continue
        seen.add(real)
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.name[0] == ".":
                    continue
                if entry.is_dir(follow_symlinks=False):
                    real_path = os.path.join(real, entry.name)
                    to_visit.append((entry.path, real_path))
                else:
                    yield entry


def leads_back(link: str) -> bool:
    """Whether a link leads to a folder that holds it, at any depth.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> (folder / "up").symlink_to("..")
    >>> leads_back(f"{folder}/up")
    True
    """
    target = os.path.realpath(link)
    holder = os.path.realpath(os.path.dirname(link) or ".")
    return os.path.commonpath([target, holder]) == target


def _ending(file: str) -> str:
    """The ending of a name, as it is shown."""
    ending = os.path.splitext(file)[1].lower()
    return ending if 1 < len(ending) <= 10 else "none"


def check_name(path: str) -> None:
    """Refuses a name that is not UTF-8, which no list could hold."""
    try:
        path.encode()
    except UnicodeEncodeError:
        raise AudioError(
            "not a name in UTF-8", "rename it", f"{path!a}"
        ) from None


def check_speaker(name: str, where: str | os.PathLike) -> None:
    """Refuses, with a ValueError, a name that SpeechBrain cannot keep.

    Its label encoder splits lines where a name would be split too. ``where`` is
    what has the name, for the message.

    Example
    -------
    >>> check_speaker("a => b", "train.csv")
    Traceback (most recent call last):
    ValueError: train.csv: speaker 'a => b' has ' => ' in the name, which \
SpeechBrain's label encoder cannot keep; rename the speaker
    """
    separator = CategoricalEncoder.VALUE_SEPARATOR
    if separator in name:
        raise ValueError(
            f"{where}: speaker {name!r} has {separator!r} in the name, which "
            "SpeechBrain's label encoder cannot keep; rename the speaker"
        )


def check_mix(channels: torch.Tensor, mixed: torch.Tensor) -> None:
    """Refuses, by an AudioError, channels that leave nothing when mixed.

    One may be the other upside down, by a wrong cable or as a trick of stereo;
    what a lossy format leaves of their mix is noise. The channels are
    [time, channels], their mix is [time].

    Example
    -------
    >>> noise = torch.randn(16000)
    >>> check_mix(torch.stack([noise, -noise], dim=1), torch.zeros(16000))
    Traceback (most recent call last):
    ...
    redimnet2_lobes.data.audio.AudioError: audio: channels cancel each other; \
one is the other upside down, so export one of them alone
    """
    deviation = channels.var(dim=0, correction=0).mean().sqrt()
    if mixed.std(correction=0) < LEAST_MIXED * deviation:
        raise AudioError(
            "channels cancel each other",
            "one is the other upside down, so export one of them alone",
        )


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
            (25 ms) or silent (all samples equal), its channels cancel each
            other, it holds NaN, infinite or absurdly large samples, or its
            sampling rate is absurd.
        """
        if audio.numel() == 0:
            raise AudioError(*EMPTY)
        if not LOWEST_RATE <= sample_rate <= HIGHEST_RATE:
            raise AudioError(
                "absurd sampling rate",
                f"it is {sample_rate} Hz, but must lie within {LOWEST_RATE} "
                f"and {HIGHEST_RATE} Hz, so correct it or export it again",
            )
        channels, audio = audio, self._mix(audio)
        if channels.ndim == 2 and channels.shape[1] > 1:
            check_mix(channels, audio)
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


def open_descriptor(path: str) -> int:
    """Opens a file for soundfile, as a number in place of its name.

    A name in .raw would make soundfile ask for a rate, whatever the file holds.
    A pipe is not waited for.
    """
    flags = getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
    return os.open(path, os.O_RDONLY | flags)


def thread_safe_open(open_file: Callable[[], Opened]) -> Opened:
    """Calls what opens a file with libsndfile, so that the error is its own.

    libsndfile keeps what is wrong in one place for all threads, where opening
    another file deletes it. So a file that cannot be opened is tried again
    while no other is being opened.

    Example
    -------
    >>> path = getfixture("tmp_path") / "a.wav"
    >>> soundfile.write(path, [0.0, 0.5], 16000)
    >>> with thread_safe_open(lambda: soundfile.SoundFile(path)) as file:
    ...     file.frames
    2
    """
    try:
        with _opening:
            return open_file()
    except soundfile.LibsndfileError:
        with _repeating, contextlib.ExitStack() as stack:
            for _ in range(OPENINGS):
                stack.enter_context(_opening)
            return open_file()


def check_whole(file: soundfile.SoundFile, path: str) -> None:
    """Refuses, with an AudioError, a file whose header does not say its length,
    or that ends before it.

    libsndfile reads what is there, and notes it of WAV and AIFF.

    Example
    -------
    >>> path = getfixture("tmp_path") / "a.wav"
    >>> soundfile.write(path, [0.0, 0.5] * 400, 16000)
    >>> _ = path.write_bytes(path.read_bytes()[:-100])
    >>> with soundfile.SoundFile(path) as file:
    ...     check_whole(file, "a.wav")
    Traceback (most recent call last):
    ...
    redimnet2_lobes.data.audio.AudioError: a.wav: cut short; it ends before \
its header says, so copy or export it again
    """
    if file.frames >= UNKNOWN_FRAMES:
        raise AudioError(
            "of unknown length",
            "its header does not say, so convert it (for example with ffmpeg) "
            "into a file, not through a pipe",
            path,
        )
    shortened = SHORTENED.search(file.extra_info)
    if shortened and int(shortened[1]) < UNKNOWN_BYTES:
        raise AudioError(*CUT_SHORT, path)


def unreadable(path: str, error: BaseException) -> AudioError:
    """What is wrong with a file that libsndfile cannot open or decode.

    Example
    -------
    >>> print(unreadable("a.wav", soundfile.LibsndfileError(1)))
    a.wav: unreadable; libsndfile says 'Format not recognised.', so convert it \
to WAV or FLAC (for example with ffmpeg) or leave it out
    >>> print(unreadable("a.raw", soundfile.LibsndfileError(1)))
    a.raw: has no header; convert it, for example with sox -r RATE -e signed \
-b 16 -c 1
    """
    if isinstance(error, OSError):
        remedy = f"the system says {error.strerror!r}, so mend that"
        return AudioError("unreadable", f"{remedy} or leave it out", path)
    if os.path.splitext(path)[1].lower() in HEADERLESS:
        remedy = "convert it, for example with sox -r RATE -e signed -b 16 -c 1"
        return AudioError("has no header", remedy, path)
    detail = " ".join(getattr(error, "error_string", str(error)).split())
    return AudioError(
        "unreadable",
        f"libsndfile says {detail!r}, so convert it to WAV or FLAC (for "
        "example with ffmpeg) or leave it out",
        path,
    )


def load_waveform(
    path: str | os.PathLike, sample_rate: int = 16000
) -> torch.Tensor:
    """Reads an audio file of any format that libsndfile knows.

    Gives a mono waveform at ``sample_rate``, float32 [samples].

    Raises
    ------
    AudioError
        If there is no such file, it is a folder, it cannot be decoded or is
        cut short, or `CheckedAudioNormalizer` refuses what it holds.

    Example
    -------
    >>> path = getfixture("tmpdir") / "stereo.wav"
    >>> soundfile.write(str(path), torch.rand(8000, 2).numpy() - 0.5, 8000)
    >>> load_waveform(path).shape
    torch.Size([16000])
    """
    path = os.fspath(path)
    if os.path.isdir(path):
        raise AudioError("a folder", "name an audio file in it", path)
    if not os.path.exists(path):
        raise AudioError("missing", "check the path", path)
    if not os.path.isfile(path):
        raise AudioError(
            "a pipe or the like", "write the audio to a file, name that", path
        )
    if os.path.getsize(path) == 0:
        raise AudioError(*EMPTY, path)
    try:
        with thread_safe_open(
            lambda: soundfile.SoundFile(open_descriptor(path))
        ) as file:
            check_whole(file, path)
            # Not all codecs can seek, and then it must be told how many.
            audio = file.read(file.frames, "float32", always_2d=True)
            rate = file.samplerate
    except (OSError, soundfile.LibsndfileError, MemoryError) as error:
        raise unreadable(path, error) from None
    return normalize_audio(torch.from_numpy(audio), rate, path, sample_rate)


def checked_chunk(chunk: torch.Tensor) -> torch.Tensor:
    """A chunk of a stream [samples] as float32 on the CPU.

    A ValueError says that it is something else, or an AudioError that a sample
    is not finite or above `LARGEST_SAMPLE`.

    Example
    -------
    >>> checked_chunk(torch.zeros(1, 160))
    Traceback (most recent call last):
    ValueError: chunk: expected samples from -1 to 1 [samples] in floating \
point, mono, not torch.float32 [1, 160]; mix its channels, and divide 16-bit \
integers by 32768
    """
    if not (
        isinstance(chunk, torch.Tensor)
        and chunk.dim() == 1
        and chunk.is_floating_point()
    ):
        shown = type(chunk).__name__
        if isinstance(chunk, torch.Tensor):
            shown = f"{chunk.dtype} {list(chunk.shape)}"
        raise ValueError(
            "chunk: expected samples from -1 to 1 [samples] in floating point, "
            f"mono, not {shown}; mix its channels, and divide 16-bit integers "
            "by 32768"
        )
    chunk = chunk.detach().float().cpu()
    # Both are NaN if any sample is, and then no comparison holds.
    if len(chunk):
        lowest, highest = (value.item() for value in chunk.aminmax())
        if not -LARGEST_SAMPLE <= lowest <= highest <= LARGEST_SAMPLE:
            raise AudioError(
                "not finite",
                "it holds NaN, infinite or absurdly large samples, so leave "
                "it out",
                "chunk",
            )
    return chunk
