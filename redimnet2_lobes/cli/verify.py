"""``redimnet2 verify``: are two recordings of one speaker?

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

from __future__ import annotations

import json

import click

from redimnet2_lobes.cli.encoder import (
    ModelOptions,
    cosines,
    describe_threshold,
    embed_files,
    embedded_seconds,
    embedding_options,
    find_operating_point,
    find_own_operating_points,
    load_encoder,
    operating_points_option,
    seconds_of,
    threshold_option,
    vad_option,
)
from redimnet2_lobes.cli.group import command, json_option
from redimnet2_lobes.cli.recordings import check_file
from redimnet2_lobes.cli.score_meaning import score_meaning
from redimnet2_lobes.cli.voices import kept_voice
from redimnet2_lobes.files.same_space import KEY, check_same_space


@command("a.wav b.mp3 --model=redimnet2_b3")
@click.argument("enrolment")
@click.argument("test")
@embedding_options
@vad_option
@click.option(
    "--store",
    metavar="FILE",
    help="A store of voices, of which the enrolment is a name.",
)
@threshold_option
@operating_points_option
@json_option
def verify(
    enrolment: str,
    test: str,
    options: ModelOptions,
    seconds_per_piece: float,
    vad: bool,
    store: str | None,
    threshold: float | None,
    operating_points: str | None,
    as_json: bool,
) -> str:
    """Says whether two recordings are of the same speaker."""
    paths = [enrolment, test]
    space_of_voice, voice, seconds = None, None, 0.0
    if store is not None:
        space_of_voice, voice, seconds = kept_voice(store, enrolment)
        paths = [test]
    for path in paths:
        check_file(path)
    loaded = load_encoder(options)
    if store is not None:
        check_same_space(store, space_of_voice, loaded.name, loaded.space)
    own = find_own_operating_points(operating_points, store, loaded)
    operating_point = find_operating_point(threshold, own, loaded, vad)
    speech = {} if vad else None
    embeddings = embed_files(
        loaded.encoder, paths, seconds_per_piece, speech=speech
    )
    if voice is None:
        voice = embeddings[enrolment]
        seconds = embedded_seconds(enrolment, speech)
    score = cosines([voice], [embeddings[test]]).item()
    decision, words = None, "none, without a threshold"
    if operating_point.value is not None:
        decision = score > operating_point.value
        words = "same speaker" if decision else "different speakers"
    meaning = score_meaning(
        own, score, [seconds, embedded_seconds(test, speech)], vad
    )
    if as_json:
        enrolment_seconds = seconds_of("enrolment_", enrolment, speech)
        if store is not None:  # where a name is no path
            enrolment_seconds = {
                "enrolment_speech_seconds": seconds,
                "enrolment_seconds": None,
            }
        result = {
            "enrolment": enrolment,
            "test": test,
            **enrolment_seconds,
            **seconds_of("test_", test, speech),
            "score": score,
            "threshold": operating_point.value,
            "threshold_origin": operating_point.origin,
            "same_speaker": decision,
            KEY: loaded.space,
            **meaning.values,
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
    return "\n".join([*lines, *meaning.lines])
