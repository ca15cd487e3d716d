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
    ModelOptions,
    describe_threshold,
    embed_files,
    embedding_options,
    find_operating_point,
    find_own_operating_points,
    load_encoder,
    operating_points_option,
    seconds_of,
    threshold_option,
    vad_option,
)
from redimnet2_lobes.cli.group import (
    LeftOut,
    command,
    json_option,
    left_out_as_json,
    number,
)
from redimnet2_lobes.cli.recordings import (
    check_files,
    enrolled_speakers,
    files_argument,
    find_files,
    strict_option,
)
from redimnet2_lobes.cli.voices import space_of_store
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
    metavar="PATH",
    help="The speakers: for each a folder with recordings, or one recording, "
    "that has the speaker's name. Or a file of embed --output or of the "
    "extraction script (.npz, .json, .parquet): each embedding is a speaker, "
    "but where .parquet names speakers.",
)
@click.option(
    "--store",
    metavar="FILE",
    help="The speakers, in place of --enrol: a store of voices.",
)
@threshold_option
@operating_points_option
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
    options: ModelOptions,
    seconds_per_piece: float,
    vad: bool,
    enrol: str | None,
    store: str | None,
    threshold: float | None,
    operating_points: str | None,
    top: int,
    strict: bool,
    as_json: bool,
) -> str:
    """Says which of the enrolled speakers each recording is of.

    A folder stands for all recordings below it.
    """
    source = enrol or store
    if source is None or (enrol and store):
        context = click.get_current_context()
        raise click.UsageError("give one of --enrol and --store", context)
    import torch
    from torch.nn.functional import normalize

    from redimnet2_lobes.voices.search import exact_search, identify_by
    from redimnet2_lobes.voices.store import VoiceStore

    faults = None if strict else {}
    enrolled, speakers, known_space = None, {}, None
    if store:
        known_space = space_of_store(store)
    elif os.path.isfile(source):
        from redimnet2_lobes.inference.embedding_files import read_embeddings

        enrolled = read_embeddings(source)
        known_space = enrolled.space
    else:
        speakers = enrolled_speakers(source, "--enrol", faults)
    tests = find_files(files)
    paths = [path for paths in speakers.values() for path in paths]
    paths = list(dict.fromkeys([*paths, *tests]))
    check_files(paths, faults)
    if faults and all(path in faults for path in tests):
        raise LeftOut(faults)
    loaded = load_encoder(options)
    check_same_space(source, known_space, loaded.name, loaded.space)
    own = find_own_operating_points(operating_points, store, loaded)
    operating_point = find_operating_point(threshold, own, loaded, vad)
    speech = {} if vad else None
    embeddings = embed_files(
        loaded.encoder, paths, seconds_per_piece, faults, speech
    )
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
                    f"{source}: damaged, its embeddings have {count} values "
                    f"and not {len(tested)}; embed the recordings again"
                )
    voices = mean_voices(speakers, known, faults)
    if not (tests and (voices or store)):
        raise LeftOut(faults or {})
    rows = torch.stack([embeddings[path] for path in tests])
    limit = operating_point.value
    if store:
        with VoiceStore(store) as opened:
            identified = opened.identify(rows, limit, top)
    else:
        among = exact_search(normalize(torch.stack([*voices.values()]), dim=1))
        identified = identify_by(
            among, [*voices], normalize(rows, dim=1), limit, top
        )
    found = dict(zip(tests, identified, strict=True))
    if as_json:
        rows = []
        for path, (speaker, score, margin, candidates) in found.items():
            rows.append(
                {
                    "name": path,
                    **seconds_of("", path, speech),
                    "speaker": speaker,
                    "score": score,
                    "margin": margin,
                    "candidates": [
                        {"speaker": name, "score": score}
                        for name, score in candidates
                    ],
                }
            )
        result = {
            "threshold": operating_point.value,
            "threshold_origin": operating_point.origin,
            KEY: loaded.space,
            "files": rows,
            "left_out": left_out_as_json(faults),
        }
        text = json.dumps(result, indent=2)
    else:
        lines = [describe_threshold(operating_point)]
        for path, (speaker, _, margin, candidates) in found.items():
            closest = ", ".join(
                f"{name} {score:.4f}" for name, score in candidates
            )
            if margin is not None:
                closest += f"; margin {margin:.4f}"
            if speech:
                closest += f"; {speech[path]}"
            lines.append(f"{path}: {speaker or 'unknown'} (closest: {closest})")
        text = "\n".join(lines)
    if faults:
        raise LeftOut(faults, text)
    return text


def mean_voices(
    speakers: dict[str, list[str]],
    embeddings: Embeddings,
    faults: Faults | None,
) -> Embeddings:
    """The mean direction of each speaker with recordings that can be used."""
    import torch

    from redimnet2_lobes.data.audio import AudioError
    from redimnet2_lobes.voices.search import mean_voice

    voices = {}
    for speaker, paths in speakers.items():
        name = f"speaker {speaker}"
        if embedded := [path for path in paths if path in embeddings]:
            rows = [embeddings[path] for path in embedded]
            voices[speaker] = mean_voice(torch.stack(rows))
        elif faults is not None and name not in faults:
            remedy = "none of the recordings can be used"
            faults[name] = AudioError("not enrolled", remedy, name)
    return voices
