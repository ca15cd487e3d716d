"""``redimnet2 identify``: who speaks in recordings.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING

import click

from redimnet2_lobes.cli.encoder import (
    cosines,
    describe_threshold,
    embed_files,
    embedding_options,
    find_operating_point,
    load_encoder,
    seconds_of,
    space_of,
    threshold_option,
    vad_option,
)
from redimnet2_lobes.cli.group import (
    LeftOut,
    command,
    json_option,
    note,
    number,
)
from redimnet2_lobes.cli.recordings import (
    check_files,
    files_argument,
    find_files,
    strict_option,
)
from redimnet2_lobes.files.same_space import KEY, check_same_space

if TYPE_CHECKING:
    from redimnet2_lobes.cli.encoder import Embeddings
    from redimnet2_lobes.cli.group import Faults


@command("--enrol=speakers calls/*.wav --model=redimnet2_b3")
@files_argument
@embedding_options
@vad_option
@click.option(
    "--enrol",
    required=True,
    metavar="PATH",
    help="The speakers: for each a folder with recordings, or one recording, "
    "that has the speaker's name. Or a file of embed --output or of the "
    "extraction script (.npz, .json, .parquet): each embedding is a speaker, "
    "but where .parquet names speakers.",
)
@threshold_option
@click.option(
    "--top",
    default=3,
    metavar="N",
    type=number(int, 1, sys.maxsize, "a whole number from 1 on"),
    help="How many of the closest speakers to show; the default is 3.",
)
@strict_option
@json_option
def identify(
    files: tuple[str, ...],
    model: str | None,
    device: str | None,
    threads: int | None,
    engine_cache: str | None,
    seconds_per_piece: float,
    vad: bool,
    enrol: str,
    threshold: float | None,
    top: int,
    strict: bool,
    as_json: bool,
) -> str:
    """Says which of the enrolled speakers each recording is of.

    A folder stands for all recordings below it.
    """
    faults = None if strict else {}
    enrolled, speakers = None, {}
    if os.path.isfile(enrol):
        from redimnet2_lobes.inference.embedding_files import read_embeddings

        enrolled = read_embeddings(enrol)
    else:
        speakers = enrolled_speakers(enrol, faults)
    tests = find_files(files)
    paths = [path for paths in speakers.values() for path in paths]
    paths = list(dict.fromkeys([*paths, *tests]))
    check_files(paths, faults)
    if faults and all(path in faults for path in tests):
        raise LeftOut(faults)
    model, encoder = load_encoder(model, device, threads, engine_cache)
    space = space_of(encoder)
    if enrolled:
        check_same_space(enrol, enrolled.space, model, space)
    operating_point = find_operating_point(
        threshold, model, encoder, space, vad
    )
    speech = {} if vad else None
    embeddings = embed_files(encoder, paths, seconds_per_piece, faults, speech)
    tests = [path for path in tests if path in embeddings]
    known = embeddings
    if enrolled:
        known = dict(zip(enrolled.names, enrolled.vectors, strict=True))
        for name, speaker in zip(known, enrolled.speakers, strict=True):
            speakers.setdefault(speaker, []).append(name)
        count = enrolled.vectors.shape[1]
        for tested in embeddings.values():
            if len(tested) != count:
                raise ValueError(
                    f"{enrol}: damaged, its embeddings have {count} values and "
                    f"not {len(tested)}; embed the recordings again"
                )
    voices = mean_voices(speakers, known, faults)
    if not (tests and voices):
        raise LeftOut(faults or {})
    scores = cosines(voices.values(), [embeddings[path] for path in tests])
    found = []
    for path, row in zip(tests, scores.tolist(), strict=True):
        candidates = sorted(
            zip(voices, row, strict=True), key=lambda pair: -pair[1]
        )
        best, score = candidates[0]
        limit = operating_point.value
        if limit is not None and not score > limit:
            best = None
        found.append((path, best, candidates[:top]))
    if as_json:
        rows = []
        for path, best, candidates in found:
            closest = [
                {"speaker": speaker, "score": score}
                for speaker, score in candidates
            ]
            rows.append(
                {
                    "name": path,
                    **seconds_of("", path, speech),
                    "speaker": best,
                    "candidates": closest,
                }
            )
        result = {
            "threshold": operating_point.value,
            "threshold_origin": operating_point.origin,
            KEY: space,
            "files": rows,
            "left_out": [
                {"name": name, "reason": f"{fault.reason}; {fault.remedy}"}
                for name, fault in (faults or {}).items()
            ],
        }
        text = json.dumps(result, indent=2)
    else:
        lines = [describe_threshold(operating_point)]
        for path, best, candidates in found:
            closest = ", ".join(
                f"{speaker} {score:.4f}" for speaker, score in candidates
            )
            found_speech = f"; {speech[path]}" if speech else ""
            lines.append(
                f"{path}: {best or 'unknown'} (closest: {closest}"
                f"{found_speech})"
            )
        text = "\n".join(lines)
    if faults:
        raise LeftOut(faults, text)
    return text


def enrolled_speakers(
    folder: str, faults: Faults | None
) -> dict[str, list[str]]:
    """The recordings of each speaker; none of one with an empty folder."""
    from redimnet2_lobes.data.audio import (
        AudioError,
        audio_rank,
        find_audio,
        leads_back,
        utterance_name,
    )

    speakers, others, notes = {}, [], []
    for entry in sorted(os.listdir(folder)):
        path = os.path.join(folder, entry)
        if entry[0] == ".":
            continue
        if os.path.isdir(path):
            speaker = entry
            is_other = os.path.islink(path) and leads_back(path)
        else:  # a link to nowhere may be of a speaker's folder
            speaker = utterance_name(entry)
            is_other = audio_rank(entry) is None and os.path.exists(path)
        if is_other:
            others.append(entry)
            continue
        if speaker in speakers:
            raise ValueError(
                f"--enrol: {path}: there is a speaker {speaker} already; "
                "rename one, or put all recordings into one folder"
            )
        speakers[speaker] = [path]
        if not os.path.isdir(path):
            continue
        try:
            speakers[speaker], left_out = find_audio(path)
            notes += [left_out] * bool(left_out)
        except AudioError as error:
            if faults is None:
                raise
            speakers[speaker] = []
            faults[f"speaker {speaker}"] = error
    if notes:
        more = len(notes) - 1
        others_too = f"; the like in {more} more folder{'s' * (more > 1)}"
        note(notes[0] + others_too * bool(more))
    if others:
        shown = others[:5] + ["..."] * (len(others) > 5)
        note(
            f"--enrol: {len(others)} left out, neither recordings nor folders "
            f"of a speaker's own: {', '.join(shown)}"
        )
    if not speakers:
        raise ValueError(
            f"--enrol: {folder} holds no speakers; it needs a folder with "
            "recordings, or a recording, for each"
        )
    return speakers


def mean_voices(
    speakers: dict[str, list[str]],
    embeddings: Embeddings,
    faults: Faults | None,
) -> Embeddings:
    """The mean embedding of each speaker with recordings that can be used."""
    import torch

    from redimnet2_lobes.data.audio import AudioError

    voices = {}
    for speaker, paths in speakers.items():
        name = f"speaker {speaker}"
        if embedded := [path for path in paths if path in embeddings]:
            rows = [embeddings[path] for path in embedded]
            voices[speaker] = torch.stack(rows).mean(0)
        elif faults is not None and name not in faults:
            remedy = "none of the recordings can be used"
            faults[name] = AudioError("not enrolled", remedy, name)
    return voices
