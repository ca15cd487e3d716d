"""``redimnet2 enrol``: keeps the voice of a person in a store.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from typing import TYPE_CHECKING, NamedTuple

import click

from redimnet2_lobes.cli.encoder import (
    ModelOptions,
    any_length,
    describe_threshold,
    encoder_options,
    find_operating_point,
    find_own_operating_points,
    load_encoder,
    threshold_option,
    vad_option,
)
from redimnet2_lobes.cli.group import (
    LeftOut,
    command,
    json_option,
    left_out_as_json,
    note,
    number,
)
from redimnet2_lobes.cli.recordings import (
    check_files,
    files_argument,
    find_files,
    strict_option,
)
from redimnet2_lobes.files.same_space import KEY

if TYPE_CHECKING:
    import torch

    from redimnet2_lobes.cli.group import Faults
    from redimnet2_lobes.voices.enrolment import Enrolment, Piece
    from redimnet2_lobes.voices.store import VoiceStore


ENOUGH = 12  # that of voices.enrolment, which takes long to import
SECONDS_AT_ONCE = 60.0  # of a file that are brought to a usual level


class Heard(NamedTuple):
    """What was judged of a file."""

    seconds: float  # of all of it
    pieces: list[Piece]

    def speech(self, *, taken: bool) -> float:
        """Seconds of speech that were taken, or were not."""
        return sum(
            piece.quality.speech_seconds
            for piece in self.pieces
            if (piece.problem is None) is taken
        )

    @property
    def problems(self) -> list[str]:
        """Why some was not taken, each once."""
        problems = [piece.problem for piece in self.pieces if piece.problem]
        return [*dict.fromkeys(problems)]


@command("anna anna/ --store=voices.sqlite --model=redimnet2_b3")
@click.argument("name")
@files_argument
@encoder_options
@vad_option
@click.option(
    "--store",
    required=True,
    metavar="FILE",
    help="The voices that are known; it is made if it is not there.",
)
@click.option(
    "--consent",
    metavar="TEXT",
    help="What to keep about the consent of the person, such as where it is "
    "written down.",
)
@click.option(
    "--seconds",
    default=ENOUGH,
    metavar="SECONDS",
    type=number(float, 1, sys.float_info.max, "a number from 1 on"),
    help=f"How much speech is enough; the default is {ENOUGH}. With less "
    "nothing is written.",
)
@threshold_option
@strict_option
@json_option
def enrol(
    name: str,
    files: tuple[str, ...],
    options: ModelOptions,
    vad: bool,
    store: str,
    consent: str | None,
    seconds: float,
    threshold: float | None,
    strict: bool,
    as_json: bool,
) -> str:
    """Enrols the voice of NAME from recordings, or adds some to it.

    A folder stands for all recordings below it. Speech that is too little,
    clipped, noisy or of another voice than before is not taken.
    """
    from redimnet2_lobes.voices.checks import LONGEST_NOTE, checked_text

    name = checked_text("NAME", name)
    if consent is not None:
        consent = checked_text("--consent", consent, LONGEST_NOTE)
    paths = find_files(files)
    faults = None if strict else {}
    check_files(paths, faults)
    if len(faults or {}) == len(paths):
        raise LeftOut(faults or {})
    loaded = load_encoder(options)
    kept = store if os.path.exists(store) else None
    own = find_own_operating_points(None, kept, loaded)

    from redimnet2_lobes.scoring.operating_point import OperatingPoint
    from redimnet2_lobes.voices.enrolment import VOICE_LIMIT, Enrolment, at_eer
    from redimnet2_lobes.voices.store import NoVoiceError, VoiceStore

    operating_point = find_operating_point(
        threshold, own and at_eer(own), loaded, vad
    )
    limit = operating_point.value
    if limit is None:
        limit = VOICE_LIMIT
        operating_point = OperatingPoint(limit, "SpeechBrain's default")
        note(
            f"no threshold known: speech is of another voice where its score "
            f"is not above {limit}, which was not made for this model; give "
            "--threshold"
        )
    known, known_seconds = None, 0.0
    if os.path.exists(store):
        with (
            VoiceStore(store, loaded.space) as voices,
            contextlib.suppress(NoVoiceError),
        ):
            voice, known = voices.read(name)
            known_seconds = voice.seconds
    enrolment = Enrolment(
        any_length(loaded.encoder),
        *(seconds, limit, known, known_seconds),
        speech_only=vad,
    )
    heard = _feed(enrolment, paths, faults)
    _find_faults(enrolment, name, heard, faults)
    with VoiceStore(store, loaded.space) as voices:
        _note_others(voices, name, enrolment.prototypes, limit, store)
        voices.add(
            name, enrolment.prototypes, enrolment.seconds, consent, known
        )
    count = len(enrolment.prototypes)
    percent = enrolment.progress.percent
    if as_json:
        result = {
            "name": name,
            "percent": percent,
            "speech_seconds": sum(enrolment.seconds),
            "prototypes": count,
            "threshold": limit,
            "threshold_origin": operating_point.origin,
            KEY: loaded.space,
            "files": [
                {
                    "name": path,
                    "seconds": found.seconds,
                    "taken_seconds": found.speech(taken=True),
                    "refused_seconds": found.speech(taken=False),
                    "problems": found.problems,
                }
                for path, found in heard.items()
            ],
            "left_out": left_out_as_json(faults),
        }
        text = json.dumps(result, indent=2)
    else:
        lines = [
            _as_line(path, found)
            for path, found in heard.items()
            if path not in (faults or {})
        ]
        lines.append(describe_threshold(operating_point))
        lines.append(
            f"enrolled  {name}: {percent} %, {sum(enrolment.seconds):.1f} s of "
            f"speech in {count} prototype{'s' * (count > 1)}"
            f"{f' added to {known_seconds:.1f} s' * bool(known_seconds)}; "
            f"{store}"
        )
        text = "\n".join(lines)
    if faults:
        raise LeftOut(faults, text)
    return text


def _feed(
    enrolment: Enrolment,
    paths: list[str],
    faults: Faults | None,
) -> dict[str, Heard]:
    """Feeds each file that can be read, and says what was heard of it."""
    from tqdm import tqdm

    from redimnet2_lobes.data.speech import at_usual_level
    from redimnet2_lobes.inference.encode import noted
    from redimnet2_lobes.inference.long_files import read_in_order
    from redimnet2_lobes.models.front_end import SAMPLE_RATE

    parts = {}
    paths = [path for path in paths if path not in (faults or {})]
    with tqdm(paths, unit="file", disable=None, leave=False) as progress:
        for path in progress:
            with noted(faults, path):
                # All of it, before any is fed: its end may be damaged.
                waveforms = [*read_in_order(path, SECONDS_AT_ONCE)]
            if path in (faults or {}):
                continue
            first = len(enrolment.pieces)
            for waveform in waveforms:
                enrolment.feed(at_usual_level(waveform))
            percent = enrolment.finish().percent
            progress.set_description(f"{percent} % enrolled")
            seconds = sum(map(len, waveforms)) / SAMPLE_RATE
            parts[path] = seconds, slice(first, len(enrolment.pieces))
    # At the end, since the first prototype may have given way.
    return {
        path: Heard(seconds, enrolment.pieces[part])
        for path, (seconds, part) in parts.items()
    }


def _find_faults(
    enrolment: Enrolment,
    name: str,
    heard: dict[str, Heard],
    faults: Faults | None,
) -> None:
    """Names the files that nothing was taken of, and refuses an enrolment."""
    from redimnet2_lobes.data.audio import AudioError
    from redimnet2_lobes.voices.enrolment import REMEDIES

    for path, found in heard.items():
        if found.speech(taken=True):
            continue
        problem = found.problems[-1]
        remedy = (
            f"{found.speech(taken=False):.1f} s of speech in "
            f"{found.seconds:.1f} s; {REMEDIES[problem]}"
        )
        fault = AudioError(problem, remedy, path)
        if faults is None:
            raise fault
        faults[path] = fault
    taken = sum(enrolment.seconds)
    if not taken:
        raise LeftOut(faults or {})
    percent = enrolment.progress.percent
    if enrolment.is_mostly_others:
        remedy = (
            f"{enrolment.seconds_of_others:.1f} s of speech are of "
            f"another voice than before, only {taken:.1f} s are not; give "
            "recordings of one person"
        )
    elif percent < 100:
        remedy = (
            f"{taken:.1f} s of speech were taken, which makes {percent} %; "
            "give more recordings, or ask for less by --seconds"
        )
    else:
        return
    fault = AudioError("not enrolled", remedy, f"speaker {name}")
    raise LeftOut({**(faults or {}), f"speaker {name}": fault})


def _note_others(
    voices: VoiceStore,
    name: str,
    prototypes: torch.Tensor,
    limit: float,
    store: str,
) -> None:
    """Says that the voice is known by another name."""
    from redimnet2_lobes.voices.search import mean_voice

    if not voices.names():
        return
    mean = mean_voice(prototypes)
    (found,) = voices.identify(mean[None], threshold=limit, top=2)
    for other, score in found.candidates:
        if other != name and score > limit:
            note(
                f"{store}: the voice of {name} may be that of {other} (score "
                f"{score:.4f}); if it is the same person, remove one"
            )


def _as_line(path: str, found: Heard) -> str:
    line = (
        f"{path}: {found.speech(taken=True):.1f} s of speech in "
        f"{found.seconds:.1f} s"
    )
    if found.problems:
        refused = found.speech(taken=False)
        line += f", {refused:.1f} s refused ({', '.join(found.problems)})"
    return line
