"""Who spoke when in a recording.

Speech is found, cut into windows and embedded; the windows are clustered, and
those of one speaker in a row are a turn. One speaker at a time: where two speak
at once, the turn is of one of them.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from redimnet2_lobes.data.audio import AudioError
from redimnet2_lobes.data.speech import Speech, SpeechDetector
from redimnet2_lobes.inference.encode import EncodeBatch, check_finite
from redimnet2_lobes.inference.long_files import read_pieces
from redimnet2_lobes.models.front_end import SAMPLE_RATE
from redimnet2_lobes.voices.clustering import (
    MOST_SPEAKERS,
    cluster_windows,
    mean_directions,
)

if TYPE_CHECKING:
    from redimnet2_lobes.voices.store import VoiceStore

WINDOW = round(1.5 * SAMPLE_RATE)
HOP = WINDOW // 2
# Seconds without speech that windows reach over, and turns.
BRIDGED_BY_WINDOWS = 0.3
BRIDGED_BY_TURNS = 0.5
WINDOWS_AT_ONCE = 32


class Turn(NamedTuple):
    """Seconds in which somebody speaks."""

    start: float
    end: float
    speaker: str


class Diarization(NamedTuple):
    """Who spoke when."""

    turns: list[Turn]  # in the order of time
    voices: dict[str, torch.Tensor]  # of each speaker the embedding
    speech: Speech


def diarize(
    encode_batch: EncodeBatch,
    path: str,
    speakers: tuple[int, int] = (1, MOST_SPEAKERS),
    seconds_per_piece: float = 60.0,
) -> Diarization:
    """Finds who spoke when in an audio file of any length.

    The file is read twice, in pieces, so that memory is bounded. Speakers are
    called ``speaker_1`` and so on, as they begin to speak. It is an AudioError
    if the file cannot be used.

    Arguments
    ---------
    encode_batch
        Such as ``EncoderClassifier.encode_batch``.
    path
        The audio file.
    speakers
        The fewest and the most there may be.
    seconds_per_piece
        Seconds of audio in memory, from 1 on.

    Example
    -------
    >>> import soundfile
    >>> path = str(getfixture("tmp_path") / "hum.wav")
    >>> soundfile.write(path, torch.arange(48000).div(9).sin().numpy(), 16000)
    >>> diarize(lambda wavs, wav_lens: wavs[:, None, :9], path).turns
    []
    """
    speech = _find_speech(path, seconds_per_piece)
    windows = cut_windows(speech.spans)
    if not windows:
        return Diarization([], {}, speech)
    embeddings = _embed(encode_batch, path, windows, seconds_per_piece)
    numbers = cluster_windows(embeddings, speakers)
    means = mean_directions(embeddings, numbers)
    names = [f"speaker_{number + 1}" for number in range(len(means))]
    return Diarization(
        join_windows(windows, [names[number] for number in numbers]),
        dict(zip(names, means, strict=True)),
        speech,
    )


def name_speakers(
    found: Diarization, store: VoiceStore, threshold: float
) -> tuple[Diarization, dict[str, float]]:
    """Gives speakers that are in a store their names, and says their scores.

    A speaker whose score is not above the threshold stays as it is. Speakers
    that get one name are taken for one, with the embedding and the score of
    that which is most like it.
    """
    if not found.voices:
        return found, {}
    identified = store.identify(
        torch.stack(list(found.voices.values())), threshold
    )
    names, scores, voices = {}, {}, {}
    for speaker, known in zip(found.voices, identified, strict=True):
        name = known.name
        names[speaker] = name = speaker if name is None else name
        if name not in scores or known.score > scores[name]:
            scores[name] = known.score
            voices[name] = found.voices[speaker]
    turns = [turn._replace(speaker=names[turn.speaker]) for turn in found.turns]
    return found._replace(turns=join_turns(turns), voices=voices), scores


def to_rttm(name: str, turns: list[Turn]) -> str:
    """Turns as lines of RTTM, NIST's format, which has no spaces in names.

    Example
    -------
    >>> print(to_rttm("a meeting", [Turn(0.5, 2, "Ann")]), end="")
    SPEAKER a_meeting 1 0.500 1.500 <NA> <NA> Ann <NA> <NA>
    """
    return "".join(
        f"SPEAKER {_one_word(name)} 1 {turn.start:.3f} "
        f"{turn.end - turn.start:.3f} <NA> <NA> {_one_word(turn.speaker)} "
        "<NA> <NA>\n"
        for turn in turns
    )


def _one_word(name: str) -> str:
    return "_".join(name.split()) or "_"


def cut_windows(spans: list[tuple[int, int]]) -> list[list[tuple[int, int]]]:
    """Cuts speech into windows, by the samples that they begin and end at.

    Spans with little between them are a stretch. Returned are the windows of
    each: of 1.5 s, half of which the next one has as well, the last at its end;
    of a shorter one it is the only window.

    Example
    -------
    >>> cut_windows([(0, 30000), (33000, 40000), (90000, 99000)])
    [[(0, 24000), (12000, 36000), (16000, 40000)], [(90000, 99000)]]
    """
    bridged = round(BRIDGED_BY_WINDOWS * SAMPLE_RATE)
    stretches: list[tuple[int, int]] = []
    for start, stop in spans:
        if stretches and start - stretches[-1][1] <= bridged:
            start, _ = stretches.pop()
        stretches.append((start, stop))
    windows = []
    for start, stop in stretches:
        last = max(start, stop - WINDOW)
        starts = [*range(start, last, HOP), last]
        windows.append([(at, min(at + WINDOW, stop)) for at in starts])
    return windows


def join_windows(
    stretches: list[list[tuple[int, int]]], speakers: list[str]
) -> list[Turn]:
    """The turns of windows, whose speakers are given one after the other.

    What two windows share is halved between them.

    Example
    -------
    >>> join_windows([[(0, 24000), (12000, 36000)]], ["Ann", "Bo"])
    [Turn(start=0.0, end=1.125, speaker='Ann'), \
Turn(start=1.125, end=2.25, speaker='Bo')]
    """
    turns = []
    of_window = iter(speakers)
    for windows in stretches:
        borders = [
            (before[1] + after[0]) / 2
            for before, after in zip(windows, windows[1:], strict=False)
        ]
        borders = [windows[0][0], *borders, windows[-1][1]]
        turns += [
            Turn(start / SAMPLE_RATE, end / SAMPLE_RATE, next(of_window))
            for start, end in zip(borders, borders[1:], strict=False)
        ]
    return join_turns(turns)


def join_turns(turns: list[Turn]) -> list[Turn]:
    """Joins turns of a speaker in a row that have little between them.

    Example
    -------
    >>> join_turns([Turn(0, 1, "Ann"), Turn(1.2, 2, "Ann"), Turn(3, 4, "Ann")])
    [Turn(start=0, end=2, speaker='Ann'), Turn(start=3, end=4, speaker='Ann')]
    """
    joined: list[Turn] = []
    for turn in turns:
        if (
            joined
            and joined[-1].speaker == turn.speaker
            and turn.start - joined[-1].end <= BRIDGED_BY_TURNS
        ):
            turn = turn._replace(start=joined.pop().start)
        joined.append(turn)
    return joined


def _pieces(path: str, seconds: float, task: str) -> Iterable[torch.Tensor]:
    return tqdm(
        read_pieces(path, seconds, silence=True),
        desc=f"{task} {path}",
        unit="piece",
        disable=None,
        leave=False,
    )


def _find_speech(path: str, seconds_per_piece: float) -> Speech:
    detector = SpeechDetector()
    for piece in _pieces(path, seconds_per_piece, "speech"):
        detector.feed(piece)
    return detector.finish()


def _embed(
    encode_batch: EncodeBatch,
    path: str,
    stretches: list[list[tuple[int, int]]],
    seconds_per_piece: float,
) -> torch.Tensor:
    """Embeddings of windows [windows, embedding], float32."""
    windows = [window for windows in stretches for window in windows]
    embeddings = []
    held, held_from = torch.empty(0), 0
    for piece in _pieces(path, seconds_per_piece, "voices"):
        held = torch.cat([held, piece])
        held_to = held_from + len(held)
        ready = []
        for start, stop in windows[len(embeddings) :]:
            if stop > held_to:
                break
            ready.append(held[start - held_from : stop - held_from])
        embeddings += _encode(encode_batch, ready, path)
        # The next piece may have the rest of a window.
        keep_from = held_to
        if len(embeddings) < len(windows):
            keep_from = min(held_to, windows[len(embeddings)][0])
        held = held[keep_from - held_from :].clone()
        held_from = keep_from
    return torch.stack(embeddings)


def _encode(
    encode_batch: EncodeBatch, windows: list[torch.Tensor], path: str
) -> list[torch.Tensor]:
    """Embeds windows in batches of like lengths, in their order."""
    embeddings = [torch.empty(0)] * len(windows)
    order = sorted(range(len(windows)), key=lambda row: -len(windows[row]))
    for start in range(0, len(order), WINDOWS_AT_ONCE):
        rows = order[start : start + WINDOWS_AT_ONCE]
        lengths = torch.tensor([len(windows[row]) for row in rows])
        batch = pad_sequence([windows[row] for row in rows], batch_first=True)
        try:
            with torch.no_grad():
                found = encode_batch(batch, lengths / lengths.max())
        except AudioError as error:
            raise AudioError(error.reason, error.remedy, path) from None
        found = found.squeeze(1).float().cpu()
        check_finite(path, found)
        for row, embedding in zip(rows, found, strict=True):
            embeddings[row] = embedding
    return embeddings
