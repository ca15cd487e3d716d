#!/usr/bin/env python3
"""Recipe for the embeddings of millions of utterances, by Ray Data.

To run it on all cores of this machine, two to a worker:

> python extract_speaker_embeddings_ray.py hparams/extract_ray_redimnet2.yaml \
    --utterances=/path/to/cuts.jsonl.gz --checkpoint=/path/to/model \
    --output=embeddings.parquet --workers=8 --cpus_per_worker=2

and on a cluster that runs already, from one of its machines, with
``--ray_address=auto``, and ``--gpus_per_worker=1`` for GPUs. Each of its
machines has this package and sees the audio, the model and the output.

The output is a folder of Parquet files. It appears when it is complete; until
then its parts are in OUTPUT.embedding_parts, from which the same command goes
on. A worker that is killed is started again and its part made anew.

Files that cannot be used are left out: OUTPUT.left_out.csv names them with the
reasons, and the exit status is 1.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import contextlib
import dataclasses
import importlib.util
import json
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from redimnet2_lobes.data.audio import AudioError
from redimnet2_lobes.data.utterances import (
    Utterance,
    paths_of,
    read_utterances,
    write_left_out,
)
from redimnet2_lobes.files.atomic import check_absent, replace_when_synced
from redimnet2_lobes.files.error_lines import one_line
from redimnet2_lobes.files.folder_lock import only_writer
from redimnet2_lobes.files.json_files import read_json
from redimnet2_lobes.files.settings import check_at_least, check_types
from redimnet2_lobes.inference.embedding_cache import extraction_key
from redimnet2_lobes.recipe.command_line import main_with_one_line_errors
from redimnet2_lobes.recipe.encoder import load_encoder, parse_arguments
from redimnet2_lobes.recipe.part_embedder import (
    ATTEMPTS_ENDING,
    PartEmbedder,
    faults_file,
    part_file,
)

Part = tuple[int, list[Utterance]]  # the number of its first, and all


def main(arguments: list[str]) -> str | None:
    """Embeds and writes, as the command line says.

    Returns an error line if utterances are left out.
    """
    for package in ("pyarrow", "ray"):
        if importlib.util.find_spec(package) is None:
            raise ValueError(
                f"{package}: missing; pip install 'ray[data]' pyarrow"
            )
    hparams, run_opts = parse_arguments(arguments)
    check_types(
        hparams,
        utterances=str,
        data_folder=str | None,
        output_folder=str,
        output=str,
        utterances_per_part=int,
        workers=int,
        cpus_per_worker=int,
        gpus_per_worker=float,
        ray_address=str | None,
    )
    check_at_least(
        hparams,
        utterances_per_part=1,
        workers=1,
        cpus_per_worker=1,
        gpus_per_worker=0,
    )
    device = "cuda" if hparams["gpus_per_worker"] else "cpu"
    if run_opts.device not in (None, device):
        raise ValueError(
            f"device: {run_opts.device} does not go with gpus_per_worker: "
            f"{hparams['gpus_per_worker']}; leave it out"
        )
    output = Path(hparams["output_folder"], hparams["output"])
    output = output.with_suffix(".parquet")
    check_absent(output)
    utterances = sorted(
        read_utterances(
            hparams["utterances"], hparams["data_folder"], strict=False
        ),
        key=lambda each: each.name,
    )
    settings = {
        "seconds_per_batch": hparams["seconds_per_batch"],
        "maximum_seconds": hparams["maximum_seconds"],
        "crops": hparams["crops"],
    }
    # Which network it is, known here so that parts of another are not taken.
    encoder = load_encoder(
        hparams["checkpoint"],
        hparams["variant"],
        dataclasses.replace(run_opts, device="cpu"),
    )
    size = hparams["utterances_per_part"]
    key = extraction_key(
        paths_of(utterances),
        [encoder.fingerprint, settings, size]
        + [each.speaker for each in utterances],
    )
    work = output.with_suffix(".embedding_parts")
    with only_writer(work, "extraction"):
        parts = work.absolute() / key
        parts.mkdir(exist_ok=True)
        plan = [
            (start, utterances[start : start + size])
            for start in range(0, len(utterances), size)
        ]
        missing = [part for part in plan if not is_complete(parts, part)]
        for path in parts.glob(f"*{ATTEMPTS_ENDING}"):  # of an earlier run
            path.unlink()
        embedder = {
            "folder": str(parts),
            "checkpoint": absolute(hparams["checkpoint"]),
            "variant": hparams["variant"],
            "device": device,
            "precision": run_opts.eval_precision,
            "settings": settings,
        }
        with tqdm(
            total=len(utterances),
            initial=len(utterances) - sum(len(each) for _, each in missing),
            desc="embeddings",
            unit="file",
        ) as progress:
            for count in embed_parts(
                missing,
                embedder,
                hparams["workers"],
                hparams["cpus_per_worker"],
                hparams["gpus_per_worker"],
                hparams["ray_address"],
            ):
                progress.update(count)
        faults = read_faults(parts, plan)
        report = output.with_suffix(".left_out.csv")
        write_left_out(report, utterances, faults)
        # Last, as a part without this file is made anew.
        for start, _ in plan:
            faults_file(part_file(parts, start)).unlink()
        replace_when_synced(parts, output)
        shutil.rmtree(work)
    count = len(utterances) - len(faults)
    print(f"written  {count} embeddings: {output}")
    if not faults:
        return None
    return (
        f"error: {len(faults)} of the {len(utterances)} utterances cannot be "
        f"used, {report} names them"
    )


def absolute(path: str) -> str:
    """A path as workers need it, or a name of the hub as it is."""
    return os.path.abspath(path) if os.path.exists(path) else path


def is_complete(folder: Path, part: Part) -> bool:
    """Whether the file of a part is there, and whole."""
    from pyarrow import ArrowException, parquet

    start, utterances = part
    path = part_file(folder, start)
    try:
        rows = parquet.read_metadata(path).num_rows
        return rows + len(read_json(faults_file(path))) == len(utterances)
    except (OSError, ValueError, ArrowException):
        return False


def embed_parts(
    parts: list[Part],
    embedder: dict[str, Any],
    workers: int,
    cpus: int,
    gpus: float,
    address: str | None,
) -> Iterator[int]:
    """Has the workers make parts; yields how many utterances each was of.

    ``embedder`` are the arguments of `PartEmbedder`. Without an address the
    cluster is of this machine, and ends here.
    """
    if not parts:
        return
    import ray

    here = os.getcwd()
    rows = []
    for start, utterances in parts:
        part = [
            each._replace(path=os.path.join(here, each.path))
            for each in utterances
        ]
        rows.append({"start": start, "utterances": json.dumps(part)})
    with ray_cluster(workers * cpus, workers * gpus, address):
        made = ray.data.from_items(
            rows, override_num_blocks=len(rows)
        ).map_batches(
            PartEmbedder,
            fn_constructor_kwargs=embedder,
            batch_size=1,
            num_cpus=cpus,
            num_gpus=gpus,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=workers),
        )
        try:
            for row in made.iter_rows():
                if row["error"]:
                    raise ValueError(row["error"])
                yield row["count"]
        except ray.exceptions.RayError as error:
            raise OSError(
                f"the cluster failed ({one_line(error)}); run the same command "
                "again, which keeps the parts that are complete"
            ) from error


@contextlib.contextmanager
def ray_cluster(cpus: int, gpus: float, address: str | None) -> Iterator[None]:
    """Joins a cluster, or starts one of this machine, which ends with it."""
    # What others do with Ray is not for us to report.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    start = {"address": address}
    if address is None:
        # Its own threads count as one more.
        start = {"num_cpus": cpus + 1, "include_dashboard": False}
        if gpus:
            start["num_gpus"] = gpus
    try:
        ray.init(**start, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError) as error:
        raise ValueError(f"ray_address: {address} ({error})") from None
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()


def read_faults(folder: Path, plan: list[Part]) -> dict[str, AudioError]:
    """What is wrong with utterances, by name."""
    return {
        name: AudioError(*fault)
        for start, _ in plan
        for name, *fault in read_json(faults_file(part_file(folder, start)))
    }


if __name__ == "__main__":
    main_with_one_line_errors(main)
