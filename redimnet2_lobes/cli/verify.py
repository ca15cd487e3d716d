"""``redimnet2 verify``: are two recordings of one speaker?

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

from __future__ import annotations

import json

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
from redimnet2_lobes.cli.group import command, json_option
from redimnet2_lobes.cli.recordings import check_file
from redimnet2_lobes.files.same_space import KEY


@command("a.wav b.mp3 --model=redimnet2_b3")
@click.argument("enrolment")
@click.argument("test")
@embedding_options
@vad_option
@threshold_option
@json_option
def verify(
    enrolment: str,
    test: str,
    model: str | None,
    device: str | None,
    threads: int | None,
    engine_cache: str | None,
    seconds_per_piece: float,
    vad: bool,
    threshold: float | None,
    as_json: bool,
) -> str:
    """Says whether two recordings are of the same speaker."""
    paths = [enrolment, test]
    for path in paths:
        check_file(path)
    model, encoder = load_encoder(model, device, threads, engine_cache)
    space = space_of(encoder)
    operating_point = find_operating_point(
        threshold, model, encoder, space, vad
    )
    speech = {} if vad else None
    embeddings = embed_files(encoder, paths, seconds_per_piece, speech=speech)
    score = cosines([embeddings[enrolment]], [embeddings[test]]).item()
    decision, words = None, "none, without a threshold"
    if operating_point.value is not None:
        decision = score > operating_point.value
        words = "same speaker" if decision else "different speakers"
    if as_json:
        result = {
            "enrolment": enrolment,
            "test": test,
            **seconds_of("enrolment_", enrolment, speech),
            **seconds_of("test_", test, speech),
            "score": score,
            "threshold": operating_point.value,
            "threshold_origin": operating_point.origin,
            "same_speaker": decision,
            KEY: space,
        }
        return json.dumps(result, indent=2)
    lines = []
    if speech is not None:
        for path in dict.fromkeys(paths):
            lines.append(f"speech     {path}: {speech[path]}")
    lines += [
        f"score      {score:.4f}",
        describe_threshold(operating_point),
        f"decision   {words}",
    ]
    return "\n".join(lines)
