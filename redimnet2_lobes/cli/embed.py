"""``redimnet2 embed``: the embeddings of recordings.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from redimnet2_lobes.cli.encoder import (
    ModelOptions,
    embed_files,
    embedding_options,
    load_encoder,
)
from redimnet2_lobes.cli.group import LeftOut, command, json_option
from redimnet2_lobes.cli.recordings import (
    check_files,
    files_argument,
    find_files,
    strict_option,
)
from redimnet2_lobes.files.atomic import (
    check_absent,
    complete_or_absent,
    is_folder,
)
from redimnet2_lobes.files.same_space import KEY

if TYPE_CHECKING:
    from redimnet2_lobes.cli.encoder import Embeddings


def _output(text: str) -> Path:
    if is_folder(text):
        raise click.BadParameter(f"{text!r} is a folder; name a file in it")
    path = Path(text)
    if path.suffix not in (".npz", ".json"):
        raise click.BadParameter(f"{text!r} ends neither in .npz nor in .json")
    return path


@command("recordings/ --output=embeddings.npz --model=redimnet2_b3")
@files_argument
@embedding_options
@click.option(
    "--vad/--no_vad",
    default=False,
    help="Embed the speech of a recording alone, which silero-vad finds, or "
    "all of it. The default is --no_vad.",
)
@click.option(
    "--output",
    metavar="PATH",
    type=_output,
    help="A new file to write: .npz with the arrays names, embeddings and "
    "embedding_space, or .json. By default a line is printed for each "
    "recording, with its name, a tab, and the numbers.",
)
@strict_option
@json_option
def embed(
    files: tuple[str, ...],
    options: ModelOptions,
    seconds_per_piece: float,
    vad: bool,
    output: Path | None,
    strict: bool,
    as_json: bool,
) -> str:
    """Computes the embeddings of recordings.

    A folder stands for all recordings below it.
    """
    if output is not None and as_json:
        raise click.UsageError("--json is not allowed with --output")
    from redimnet2_lobes.data.utterances import Utterance, write_left_out

    paths = find_files(files)
    # Of one recording there is nothing to go on with.
    faults = None if strict or len(paths) == 1 else {}
    check_files(paths, faults)

    def compute() -> tuple[Embeddings, str]:
        if len(faults or {}) == len(paths):
            return {}, ""
        loaded = load_encoder(options)
        speech = {} if vad else None
        embeddings = embed_files(
            loaded.encoder, paths, seconds_per_piece, faults, speech
        )
        return embeddings, loaded.space

    if output is None:
        embeddings, space = compute()
        if as_json:
            text = _rows_as_json(embeddings, space)
        else:
            text = "\n".join(
                f"{path}\t"
                f"{' '.join(f'{value:.9g}' for value in values.tolist())}"
                for path, values in embeddings.items()
            )
    else:
        check_absent(output, "--output")
        output.parent.mkdir(parents=True, exist_ok=True)
        with complete_or_absent(output) as partial:
            # What cannot be written should not be computed first.
            _write(output, partial, b"")
            embeddings, space = compute()
            write_left_out(
                output.with_suffix(".left_out.csv"),
                [Utterance(path, path) for path in paths],
                faults or {},
            )
            if not embeddings:
                raise LeftOut(faults or {})
            if output.suffix == ".json":
                content = f"{_rows_as_json(embeddings, space)}\n".encode()
            else:
                content = _rows_as_npz(embeddings, space)
            _write(output, partial, content)
        text = f"written  {len(embeddings)} embeddings: {output}"
    if faults:
        raise LeftOut(faults, text if embeddings else None)
    return text


def _rows_as_json(embeddings: Embeddings, space: str) -> str:
    rows = (
        json.dumps({"name": path, "embedding": values.tolist(), KEY: space})
        for path, values in embeddings.items()
    )
    return "[\n" + ",\n".join(rows) + "\n]"


def _rows_as_npz(embeddings: Embeddings, space: str) -> bytes:
    import torch

    from redimnet2_lobes.inference.embedding_files import write_npz

    content = io.BytesIO()
    vectors = torch.stack([*embeddings.values()]).numpy()
    write_npz(content, [*embeddings], vectors, space)
    return content.getvalue()


def _write(output: Path, partial: Path, content: bytes) -> None:
    try:
        partial.write_bytes(content)
    except OSError as error:
        raise OSError(
            f"--output: {output} cannot be written ({error.strerror or error})"
        ) from None
