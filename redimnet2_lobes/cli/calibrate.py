"""``redimnet2 calibrate``: thresholds for one's own recordings.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from redimnet2_lobes.cli.encoder import (
    ModelOptions,
    embed_files,
    embedded_seconds,
    embedding_options,
    load_encoder,
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
    enrolled_speakers,
    strict_option,
)
from redimnet2_lobes.files.atomic import check_new_file
from redimnet2_lobes.scoring.operating_point import OWN_FILE

if TYPE_CHECKING:
    from redimnet2_lobes.cli.group import Faults
    from redimnet2_lobes.scoring.operating_points import OperatingPoints
    from redimnet2_lobes.scoring.own_trials import OwnTrials


@command("speakers/ --far=0.01 --model=redimnet2_b3")
@click.argument("folder")
@embedding_options
@vad_option
@click.option(
    "--far",
    "rates",
    multiple=True,
    default=(0.01, 0.001),
    metavar="RATE",
    type=number(float, 1e-6, 0.5, "a number from 0.000001 to 0.5"),
    help="A false-accept rate to find the threshold of; may be repeated. "
    "Decisions go by the first. The default is 0.01 and 0.001.",
)
@click.option(
    "--enrolment_utterances",
    default=1,
    metavar="N",
    type=number(int, 1, sys.maxsize, "a whole number from 1 on"),
    help="How many recordings will enrol a voice; the default is 1, whose "
    "threshold is too low for voices of several.",
)
@click.option(
    "--output",
    metavar="FILE",
    help=f"A new file to write; by default {OWN_FILE} in the model folder, in "
    "place of an earlier one. Three plots appear beside it.",
)
@click.option(
    "--store",
    metavar="FILE",
    help="The store of voices to write into, instead; it is made if there is "
    "none.",
)
@strict_option
@json_option
def calibrate(
    folder: str,
    options: ModelOptions,
    seconds_per_piece: float,
    vad: bool,
    rates: tuple[float, ...],
    enrolment_utterances: int,
    output: str | None,
    store: str | None,
    strict: bool,
    as_json: bool,
) -> str:
    """Finds thresholds for recordings such as those in a folder.

    The folder has one for each speaker, with recordings as they will be made in
    use. All are compared with each other.
    """
    from redimnet2_lobes.voices.store import VoiceStore

    if output is not None and store is not None:
        raise click.UsageError("--store is not allowed with --output")
    if not os.path.isdir(folder):
        raise ValueError(
            f"folder: {folder} is none; give one with a folder of recordings "
            "for each speaker"
        )
    if output is not None:
        check_new_file(output, "--output")
    faults = None if strict else {}
    speakers = enrolled_speakers(folder, "folder", faults)
    of_path = {
        path: speaker for speaker, paths in speakers.items() for path in paths
    }
    check_files([*of_path], faults)
    _leave_out_copies(of_path, faults)
    loaded = load_encoder(options)
    written = _where(output, store, loaded.name)
    if store is not None:  # what is no store should not be found out at the end
        VoiceStore(store, loaded.space).close()
    speech = {} if vad else None
    embeddings = embed_files(
        loaded.encoder, [*of_path], seconds_per_piece, faults, speech
    )

    from redimnet2_lobes.scoring.operating_points import (
        describe_operating_points,
        find_operating_points,
        to_json,
        write_operating_points,
    )
    from redimnet2_lobes.scoring.own_trials import score_all

    if not embeddings:
        raise LeftOut(faults or {})
    import torch

    names = [of_path[path] for path in embeddings]
    try:
        trials = score_all(
            torch.stack([*embeddings.values()]),
            names,
            [embedded_seconds(path, speech) for path in embeddings],
            enrolment_utterances,
        )
    except ValueError as error:
        raise ValueError(f"folder: {folder}: {error}") from None
    different = int((~trials.labels).sum())
    if rates[0] * different < 1:
        raise ValueError(
            f"--far: {different} trials of different speakers cannot show a "
            f"false-accept rate of {100 * rates[0]:g} %; add recordings and "
            "speakers, or give a higher rate"
        )
    found = find_operating_points(
        trials,
        loaded.space,
        names,
        rates,
        speech_only=vad,
        enrolment_utterances=enrolment_utterances,
    )
    if store is None:
        written.parent.mkdir(parents=True, exist_ok=True)
        write_operating_points(found, written)
    else:
        with VoiceStore(store, loaded.space) as voices:
            voices.write_operating_points(to_json(found))
    plots = _draw(trials, found, written)
    if as_json:
        text = json.dumps(to_json(found), indent=2)
    else:
        text = (
            f"{describe_operating_points(found)}\n"
            f"written  {', '.join(map(str, [written, *plots]))}"
        )
    if faults:
        raise LeftOut(faults, text)
    return text


def _leave_out_copies(of_path: dict[str, str], faults: Faults | None) -> None:
    """Leaves out copies: compared with itself a recording says nothing."""
    from redimnet2_lobes.files.download import md5_of

    seen = {}
    for path in [path for path in of_path if path not in (faults or {})]:
        first = seen.setdefault(md5_of(path), path)
        if first != path:
            note(f"{path}: left out, a copy of {first}")
            del of_path[path]


def _where(output: str | None, store: str | None, model: str) -> Path:
    """The file that is written, or the store that is written into."""
    if given := output or store:
        return Path(given)
    if not os.path.isdir(model):
        raise ValueError(
            f"--output: missing; {model} is no folder to write {OWN_FILE} into"
        )
    return Path(model) / OWN_FILE


def _draw(
    trials: OwnTrials, found: OperatingPoints, written: Path
) -> list[Path]:
    """Draws what is found beside what is written."""
    import numpy as np

    from redimnet2_lobes.scoring.bootstrap import (
        Interval,
        bootstrap,
        det_rates,
        far_at,
        frr_at,
        frr_at_far,
    )
    from redimnet2_lobes.scoring.metrics import det_curve
    from redimnet2_lobes.scoring.plots import (
        plot_det,
        plot_error_rates,
        plot_score_histogram,
    )

    same, different = (
        trials.scores[trials.labels],
        trials.scores[~trials.labels],
    )
    histogram, det, error_rates = (
        written.with_suffix(f".{name}.png")
        for name in ("scores", "det", "error_rates")
    )
    point = found.points[0]
    plot_score_histogram(
        *(same, different, point.threshold.value, histogram),
        title=f"Scores of own recordings, and the threshold for {point.name}",
    )
    rates = det_rates(len(different))
    name = f"own recordings ({found.speakers} speakers), with its interval"
    low, high = trials.scores.double().aminmax()
    thresholds = np.linspace(low, high, 200)
    bands = bootstrap(
        *(trials.scores, trials.labels, trials.speakers.numpy()),
        {
            "det": frr_at_far(rates),
            "far": far_at(thresholds),
            "frr": frr_at(thresholds),
        },
    )
    far, frr, _ = det_curve(same, different)
    plot_det(
        *({name: (far, frr)}, det, {name: (rates, bands["det"])}),
        {name: [100 * limit for limit in found.eer[1:]]},
    )
    far_rates, frr_rates = (
        [Interval(*row) for row in zip(*bands[kind], strict=True)]
        for kind in ("far", "frr")
    )
    plot_error_rates(
        *(thresholds.tolist(), far_rates, frr_rates),
        {each.name: each.threshold.value for each in found.points},
        error_rates,
    )
    return [histogram, det, error_rates]
