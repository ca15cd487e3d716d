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
    find_own_operating_points,
    load_encoder,
    operating_points_option,
    space_of,
    threshold_option,
)
from redimnet2_lobes.cli.group import command, json_option
from redimnet2_lobes.cli.recordings import check_file
from redimnet2_lobes.cli.score_meaning import score_meaning
from redimnet2_lobes.files.same_space import KEY


@command("a.wav b.mp3 --model=redimnet2_b3")
@click.argument("enrolment")
@click.argument("test")
@embedding_options
@threshold_option
@operating_points_option
@json_option
def verify(
    enrolment: str,
    test: str,
    model: str | None,
    device: str | None,
    threads: int | None,
    engine_cache: str | None,
    seconds_per_piece: float,
    threshold: float | None,
    operating_points: str | None,
    as_json: bool,
) -> str:
    """Says whether two recordings are of the same speaker."""
    paths = [enrolment, test]
    for path in paths:
        check_file(path)
    model, encoder = load_encoder(model, device, threads, engine_cache)
    space = space_of(encoder)
    own = find_own_operating_points(operating_points, model, space)
    operating_point = find_operating_point(
        threshold, own, model, encoder, space
    )
    embeddings = embed_files(encoder, paths, seconds_per_piece)
    score = cosines([embeddings[enrolment]], [embeddings[test]]).item()
    decision, words = None, "none, without a threshold"
    if operating_point.value is not None:
        decision = score > operating_point.value
        words = "same speaker" if decision else "different speakers"
    meaning = score_meaning(own, score, paths)
    if as_json:
        result = {
            "enrolment": enrolment,
            "test": test,
            "score": score,
            "threshold": operating_point.value,
            "threshold_origin": operating_point.origin,
            "same_speaker": decision,
            KEY: space,
            **meaning.values,
        }
        return json.dumps(result, indent=2)
    threshold_line = describe_threshold(operating_point)
    lines = [f"score      {score:.4f}", threshold_line, f"decision   {words}"]
    return "\n".join([*lines, *meaning.lines])
