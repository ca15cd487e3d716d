"""``redimnet2 convert``: published checkpoints and model folders.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

from __future__ import annotations

import click

from redimnet2_lobes.cli.group import command


@command("b3-vox2-lm --output=redimnet2_b3")
@click.argument("source", required=False)
@click.option("--output", metavar="PATH", help="The folder or file to write.")
@click.option(
    "--to",
    "form",
    type=click.Choice(["folder", "published"]),
    default="folder",
    help="What to make: a model folder (the default), or a file in the "
    "published layout.",
)
@click.option(
    "--list", "list_all", is_flag=True, help="Show the published checkpoints."
)
def convert(
    source: str | None, output: str | None, form: str, list_all: bool
) -> str:
    """Converts a published checkpoint to a model folder, or back.

    SOURCE is the name of a published checkpoint, which is downloaded once, its
    file, or a model folder.
    """
    from redimnet2_lobes.pretrained.convert import convert, convert_back
    from redimnet2_lobes.pretrained.releases import list_released

    if list_all:
        return list_released()
    if source is None or output is None:
        raise click.UsageError("SOURCE and --output are needed, or --list")
    if form == "published":
        convert_back(source, output)
        return f"Published checkpoint: {output}"
    convert(source, output)
    return f"Model folder: {output}"
