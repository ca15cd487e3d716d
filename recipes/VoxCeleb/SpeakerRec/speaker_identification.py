#!/usr/bin/env python3
"""Recipe for open-set identification: who of the enrolled, or none of them?

To run it:

> python speaker_identification.py hparams/identification_redimnet2.yaml \
    --utterances /path/to/VoxCeleb1 --checkpoint /path/to/model

Galleries of several sizes are drawn from the speakers; the others are
strangers. <output_folder> holds identification.json, identification.txt and
identification.png: how often an enrolled speaker is not found
(FNIR) where strangers are given a name at some rate (FPIR).

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import json
import math
from pathlib import Path

from redimnet2_lobes.data.trials import read_trials
from redimnet2_lobes.data.utterances import Utterance, paths_of
from redimnet2_lobes.files.atomic import write_text
from redimnet2_lobes.files.same_space import KEY
from redimnet2_lobes.files.settings import check_at_least, check_types
from redimnet2_lobes.inference.embedding_cache import extract_embeddings
from redimnet2_lobes.recipe.command_line import main_with_one_line_errors
from redimnet2_lobes.recipe.encoder import load_encoder, parse_arguments
from redimnet2_lobes.recipe.verification import (
    read_list,
    warn_of_trained_speakers,
)
from redimnet2_lobes.scoring.identification import (
    check_gallery_size,
    identification_table,
    open_set_figures,
    search_galleries,
)
from redimnet2_lobes.scoring.identification_plot import plot_open_set
from redimnet2_lobes.scoring.results import shown_checkpoint
from redimnet2_lobes.scoring.tables import text_table


def main(arguments: list[str]) -> None:
    """Embeds, searches and reports, as the command line says."""
    hparams, run_opts = parse_arguments(arguments)
    check_types(
        hparams,
        utterances=str,
        trial_list=str | None,
        data_folder=str | None,
        utterances_per_speaker=int | None,
        gallery_sizes=list[int],
        thresholds=list[float],
        galleries=int,
        seed=int,
        enrolment_utterances=int,
        output_folder=str,
        embeddings_folder=str,
    )
    check_at_least(
        hparams,
        utterances_per_speaker=2,
        galleries=1,
        seed=0,
        enrolment_utterances=1,
    )
    for threshold in hparams["thresholds"]:
        if not -math.inf < threshold < math.inf:
            raise ValueError(
                f"thresholds: {threshold} is no finite number; leave it out"
            )
    utterances = read_list(
        "utterances",
        hparams["utterances"],
        hparams["data_folder"],
        hparams["utterances_per_speaker"],
        speakers=True,
    )
    if hparams["trial_list"] is not None:
        utterances = tested_only(utterances, hparams["trial_list"])
    speakers = [str(each.speaker) for each in utterances]
    sizes = sorted(set(hparams["gallery_sizes"]))
    if not sizes:
        raise ValueError("gallery_sizes: there are none; give at least one")
    try:
        for size in sizes:
            check_gallery_size(speakers, size, hparams["enrolment_utterances"])
    except ValueError as error:
        raise ValueError(f"gallery_sizes: {error}") from None

    encoder = load_encoder(hparams["checkpoint"], hparams["variant"], run_opts)
    folder = Path(hparams["output_folder"])
    # Before anything is computed that could then not be written.
    folder.mkdir(parents=True, exist_ok=True)
    warn_of_trained_speakers(set(speakers), encoder.speakers)
    embeddings = extract_embeddings(
        encoder.encode_batch,
        paths_of(utterances),
        hparams["embeddings_folder"],
        encoder.fingerprint,
        seconds_per_batch=hparams["seconds_per_batch"],
        maximum_seconds=hparams["maximum_seconds"],
        crops=hparams["crops"],
    )
    searches = [
        search_galleries(
            embeddings.vectors,
            speakers,
            size,
            enrolment_utterances=hparams["enrolment_utterances"],
            galleries=hparams["galleries"],
            seed=hparams["seed"],
        )
        for size in sizes
    ]
    figures = [
        open_set_figures(each, thresholds=hparams["thresholds"])
        for each in searches
    ]
    summary = {
        "checkpoint": shown_checkpoint(hparams["checkpoint"]),
        "seconds_used": hparams["maximum_seconds"],
        "crops": hparams["crops"],
        "eval_precision": encoder.precision,
        KEY: encoder.space,
        "speakers": len(set(speakers)),
        "utterances": len(utterances),
        "enrolment_utterances": hparams["enrolment_utterances"],
        "galleries": hparams["galleries"],
        "seed": hparams["seed"],
        "results": [
            {
                "gallery_size": each.gallery_size,
                "searches": len(each.scores),
                "distinct_stranger_probes": each.strangers,
                **at_points,
            }
            for each, (_, at_points) in zip(searches, figures, strict=True)
        ],
    }
    text = text_table(identification_table(summary["results"]), names=1)
    for name, content in (
        ("identification.json", json.dumps(summary, indent=2) + "\n"),
        ("identification.txt", text),
    ):
        write_text(folder / name, content)
    plot_open_set(
        [curve for curve, _ in figures],
        {
            each["gallery_size"]: each["operating_points"]
            for each in summary["results"]
        },
        folder / "identification.png",
        f"Open-set identification: {len(set(speakers))} speakers, "
        f"{hparams['enrolment_utterances']} utterances enrol",
    )
    print(
        f"{text}FPIR: strangers who are given a name; FNIR: enrolled speakers "
        "who are not, or another's;\nin percent, in brackets the 95 % interval "
        f"for other speakers. Written: {folder}/identification.json, .txt, .png"
    )


def tested_only(
    utterances: list[Utterance], trial_list: str
) -> list[Utterance]:
    """The utterances that a list of trials names."""
    tested = {name for _, *names in read_trials(trial_list) for name in names}
    kept = [each for each in utterances if each.name in tested]
    if not kept:
        raise ValueError(
            f"trial_list: {trial_list} names none of the utterances, such as "
            f"{utterances[0].name}"
        )
    return kept


if __name__ == "__main__":
    main_with_one_line_errors(main)
