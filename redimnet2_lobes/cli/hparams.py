"""``redimnet2 hparams``: where hyperparameters are.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

from __future__ import annotations

from pathlib import Path

import click

from redimnet2_lobes.cli.group import command
from redimnet2_lobes.files.atomic import check_new_file, complete_or_absent


@command("b3 --output=my_b3.yaml")
@click.argument("name", required=False)
@click.option("--output", metavar="FILE.yaml", help="Copy it to a new file.")
def hparams(name: str | None, output: str | None) -> str:
    """Shows where the hyperparameters of a configuration are.

    NAME is that of a file of hparams/, such as verification_redimnet2, or a
    variant, such as b3 or b3_lm; without it all are listed.
    """
    from redimnet2_lobes.files.shipped import shipped_folder

    folder = shipped_folder("hparams")
    names = sorted(path.stem for path in folder.glob("*.yaml"))
    if name is None:
        return "\n".join(names)
    stem = name if name in names else f"redimnet2_{name}"
    if stem not in names:
        raise ValueError(
            f"{name}: no such configuration; there are {', '.join(names)}"
        )
    path = folder / f"{stem}.yaml"
    if output is None:
        return str(path)
    check_new_file(output, "--output")
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    with complete_or_absent(Path(output)) as partial:
        partial.write_bytes(path.read_bytes())
    return f"Hyperparameters: {output}"
