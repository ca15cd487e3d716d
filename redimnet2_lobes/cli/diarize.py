"""``redimnet2 diarize``: who speaks when in recordings.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

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
)
from redimnet2_lobes.cli.group import (
    LeftOut,
    command,
    json_option,
    left_out_as_json,
    note,
)
from redimnet2_lobes.cli.recordings import (
    check_files,
    files_argument,
    find_files,
    strict_option,
)
from redimnet2_lobes.files.atomic import check_absent, write_text
from redimnet2_lobes.files.same_space import KEY
from redimnet2_lobes.scoring.operating_point import OperatingPoint

if TYPE_CHECKING:
    from redimnet2_lobes.voices.diarization import Diarization, Turn

    Scores = dict[str, float]  # of each speaker, none without a store


def _bounds(text: str) -> tuple[int, int]:
    with contextlib.suppress(ValueError):
        fewest, dash, most = text.partition("-")
        bounds = int(fewest), int(most if dash else fewest)
        if 1 <= bounds[0] <= bounds[1]:
            return bounds
    raise click.BadParameter(
        f"{text!r} is neither a number from 1 on, such as 3, nor two, such as "
        "2-4"
    )


@command("meeting.wav --output=meeting.rttm --model=redimnet2_b3")
@files_argument
@encoder_options
@click.option(
    "--store",
    metavar="FILE",
    help="Voices that have been enrolled: a speaker who is among them gets the "
    "name, by the threshold.",
)
@threshold_option
@click.option(
    "--speakers",
    default="1-10",
    metavar="N",
    type=_bounds,
    help="How many speakers there are, such as 3, or the fewest and the most, "
    "such as 2-4. By default the number is found, up to 10.",
)
@click.option(
    "--output",
    metavar="PATH",
    help="Where to write the turns as well: a new file .rttm for one "
    "recording, or a folder, with a file for each. Beside it is a picture, "
    ".png.",
)
@strict_option
@json_option
def diarize(
    files: tuple[str, ...],
    options: ModelOptions,
    store: str | None,
    threshold: float | None,
    speakers: tuple[int, int],
    output: str | None,
    strict: bool,
    as_json: bool,
) -> str:
    """Says who speaks when in each recording.

    A folder stands for all recordings below it. One speaks at a time: where
    two do, one of them is named.
    """
    from redimnet2_lobes.data.audio import AudioError
    from redimnet2_lobes.voices import diarization

    if threshold is not None and store is None:
        raise click.UsageError("--threshold is for the names of a --store")
    paths = find_files(files)
    outputs = _outputs(output, paths) if output else {}
    # Of one recording there is nothing to go on with.
    faults = None if strict or len(paths) == 1 else {}
    check_files(paths, faults)
    if faults and len(faults) == len(paths):
        raise LeftOut(faults)
    loaded = load_encoder(options)
    encode_batch = any_length(loaded.encoder)
    found: dict[str, tuple[Diarization, Scores]] = {}
    with contextlib.ExitStack() as stack:
        voices, operating_point = None, OperatingPoint()
        if store is not None:
            from redimnet2_lobes.files.same_space import check_same_space
            from redimnet2_lobes.voices.store import VoiceStore

            voices = stack.enter_context(VoiceStore(store))
            check_same_space(store, voices.space, loaded.name, loaded.space)
            voices.check_not_empty()
            own = find_own_operating_points(None, store, loaded)
            operating_point = find_operating_point(
                threshold, own, loaded, vad=True
            )
            if operating_point.value is None:
                raise ValueError(
                    f"--threshold: missing, and {loaded.name} has none; "
                    "without it everybody would get the name of somebody"
                )
        for path in paths:
            if path in (faults or {}):
                continue
            try:
                result, scores = (
                    diarization.diarize(encode_batch, path, speakers),
                    {},
                )
            except AudioError as error:
                if faults is None:
                    raise
                faults[path] = error
                continue
            if len(result.voices) < speakers[0] and result.voices:
                note(
                    f"{path}: {len(result.voices)} speakers, not "
                    f"{speakers[0]}: there is too little speech"
                )
            if voices is not None:
                assert operating_point.value is not None  # as above
                result, scores = diarization.name_speakers(
                    result, voices, operating_point.value
                )
            found[path] = result, scores
            if output:
                _write(outputs[path], path, result)
    if not found:
        raise LeftOut(faults or {})
    if as_json:
        text = json.dumps(
            {
                "threshold": operating_point.value,
                "threshold_origin": operating_point.origin,
                KEY: loaded.space,
                "files": [
                    _as_dictionary(path, *result)
                    for path, result in found.items()
                ],
                "left_out": left_out_as_json(faults),
            },
            indent=2,
        )
    else:
        lines = [describe_threshold(operating_point)] if store else []
        for path, result in found.items():
            lines += _as_lines(path, *result)
        text = "\n".join(lines)
    if faults:
        raise LeftOut(faults, text)
    return text


def _outputs(output: str, paths: list[str]) -> dict[str, Path]:
    """The new file of each recording, whose folder is made."""
    if output.lower().endswith(".rttm"):
        if len(paths) != 1:
            raise ValueError(
                f"--output: {output} is for one recording, and here are "
                f"{len(paths)}; name a folder"
            )
        outputs = {paths[0]: Path(output)}
    elif os.path.isfile(output):
        raise ValueError(
            f"--output: {output} is a file; name a folder, or a new file .rttm"
        )
    else:
        outputs = {
            path: Path(output, f"{Path(path).stem}.rttm") for path in paths
        }
    seen = {}
    for path, file in outputs.items():
        if file in seen:
            raise ValueError(
                f"--output: {seen[file]} and {path} would both be {file}; "
                "rename one, or take a folder for each"
            )
        seen[file] = path
        check_absent(file, "--output")
        check_absent(file.with_suffix(".png"), "--output")
    for file in outputs.values():
        file.parent.mkdir(parents=True, exist_ok=True)
    return outputs


def _write(output: Path, path: str, result: Diarization) -> None:
    from redimnet2_lobes.models.front_end import SAMPLE_RATE
    from redimnet2_lobes.scoring.plots import plot_turns
    from redimnet2_lobes.voices.diarization import to_rttm

    name = Path(path).stem
    plot_turns(
        result.turns,
        result.speech.samples / SAMPLE_RATE,
        output.with_suffix(".png"),
        f"Who spoke when in {name}",
    )
    write_text(output, to_rttm(name, result.turns))


def _seconds_of(turns: list[Turn]) -> dict[str, float]:
    seconds = {}
    for turn in turns:
        before = seconds.get(turn.speaker, 0)
        seconds[turn.speaker] = before + turn.end - turn.start
    return seconds


def _as_dictionary(path: str, result: Diarization, scores: Scores) -> dict:
    from redimnet2_lobes.models.front_end import SAMPLE_RATE

    return {
        "name": path,
        "seconds": result.speech.samples / SAMPLE_RATE,
        "speech_seconds": result.speech.seconds,
        "speakers": [
            {
                "speaker": speaker,
                "seconds": seconds,
                "score": scores.get(speaker),
            }
            for speaker, seconds in _seconds_of(result.turns).items()
        ],
        "turns": [turn._asdict() for turn in result.turns],
    }


def _as_lines(path: str, result: Diarization, scores: Scores) -> list[str]:
    speakers = []
    for speaker, seconds in _seconds_of(result.turns).items():
        score = f", score {scores[speaker]:.4f}" if scores else ""
        speakers.append(f"{speaker} ({seconds:.1f} s{score})")
    lines = [
        f"{path}: {result.speech}; " + (", ".join(speakers) or "nobody speaks"),
    ]
    lines += [
        f"{turn.start:10.2f} {turn.end:10.2f}  {turn.speaker}"
        for turn in result.turns
    ]
    return lines
