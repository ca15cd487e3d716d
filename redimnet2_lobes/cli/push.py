"""``redimnet2 push``: a model on the Hugging Face hub.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import click

from redimnet2_lobes.cli.group import command, print_result


@command("results/redimnet2_b3/42 USER/NAME --dry_run")
@click.argument("folder")
@click.argument("repository", metavar="USER/NAME")
@click.option(
    "--results",
    metavar="FILE",
    help="results.json of a verification; by default the folder's own.",
)
@click.option(
    "--training_data",
    metavar="TEXT",
    help="For the card, in words; by default what the folder says.",
)
@click.option(
    "--dataset",
    "datasets",
    multiple=True,
    metavar="NAME",
    help="For the card, the name of a dataset on the hub; may be repeated.",
)
@click.option(
    "--license",
    metavar="NAME",
    help="For the card, as the hub calls it. By default that of the folder "
    "(mit for converted weights), or else apache-2.0.",
)
@click.option(
    "--revision", metavar="BRANCH", help="A branch, made if there is none."
)
@click.option("--private", is_flag=True, help="Make a new repository private.")
@click.option(
    "--space",
    is_flag=True,
    help="Push a Space of the same name too: a page that runs the model in the "
    "browser. It is at main, whatever --revision.",
)
@click.option(
    "--onnxruntime_web",
    metavar="FOLDER",
    help="The npm package onnxruntime-web, for --space; by default that of "
    "`npm ci` in the folder web.",
)
@click.option(
    "--dry_run",
    is_flag=True,
    help="List the files and print the card, and upload nothing.",
)
def push(
    folder: str,
    repository: str,
    results: str | None,
    training_data: str | None,
    datasets: tuple[str, ...],
    license: str | None,
    revision: str | None,
    private: bool,
    space: bool,
    onnxruntime_web: str | None,
    dry_run: bool,
) -> str:
    """Pushes a model folder to the Hugging Face hub, in one commit.

    FOLDER is a model folder, or the output folder of a training. The token is
    that of `hf auth login` or of the variable HF_TOKEN.
    """
    if onnxruntime_web is not None and not space:
        raise click.UsageError("--onnxruntime_web belongs to --space")
    from redimnet2_lobes.pretrained.push import (
        CARD_FILE,
        collect,
        list_files,
        push,
    )

    files, left_out = collect(
        folder, repository, results, license, training_data, list(datasets)
    )
    with tempfile.TemporaryDirectory() as scratch:
        page = {}
        if space:
            from redimnet2_lobes.onnx.space import collect_space
            from redimnet2_lobes.pretrained.provenance import Provenance

            page = collect_space(
                folder,
                repository,
                Provenance(license, training_data),
                files,
                Path(scratch, "model.onnx"),
                onnxruntime_web,
            )
        if dry_run:
            card = files[CARD_FILE]
            assert isinstance(card, bytes)  # made here, no file
            listing = list_files(files, left_out)
            if page:
                listing += f"\nSpace {repository}:\n\n{list_files(page, [])}"
            return f"{listing}\n{CARD_FILE}:\n\n{card.decode()}"
        for name in left_out:
            print(f"left out: {name}", file=sys.stderr)
        address = push(files, repository, private, revision)
        if not page:
            return address
        print_result(address)  # is there, even if the next is refused
        return push(page, repository, private, is_space=True)
