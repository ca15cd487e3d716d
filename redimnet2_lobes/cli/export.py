"""``redimnet2 export``: one file for other runtimes.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import click

from redimnet2_lobes.cli.group import command, number
from redimnet2_lobes.scoring.operating_point import evaluated_operating_point

if TYPE_CHECKING:
    from redimnet2_lobes.onnx.export import Target


@command("redimnet2_b3 --output=b3.onnx")
@click.argument("model")
@click.option("--output", required=True, metavar="FILE")
@click.option(
    "--for",
    "target",
    type=click.Choice(["onnx", "plain", "fixed", "sherpa-onnx", "executorch"]),
    default="onnx",
    show_default=True,
    help="Padded batches with their lengths; one utterance of any length, "
    "without loops; one of a fixed length, with all shapes known; what "
    "sherpa-onnx computes, see docs/sherpa_onnx.md; or a fixed length as a "
    ".pte file.",
)
@click.option(
    "--seconds",
    metavar="SECONDS",
    type=number(float, 0.025, 120, "a number from 0.025 to 120"),
    help="The length of --for=fixed and --for=executorch.",
)
@click.option(
    "--speech",
    metavar="FOLDER",
    help="Recordings to measure a file --for=sherpa-onnx on; their speakers "
    "need not be known.",
)
@click.option(
    "--trials",
    metavar="FILE",
    help="A trial list of these recordings, to measure error rates too.",
)
@click.option(
    "--features",
    is_flag=True,
    help="Take log-mel features in place of waveforms.",
)
@click.option(
    "--int8",
    is_flag=True,
    help="Store the weights in eight bits: a half to a third of the size.",
)
def export(
    model: str,
    output: str,
    target: Target | Literal["sherpa-onnx", "executorch"],
    seconds: float | None,
    speech: str | None,
    trials: str | None,
    features: bool,
    int8: bool,
) -> str:
    """Exports a model to ONNX, or to ExecuTorch, and verifies the file.

    MODEL is a model folder, the output folder of a training, the name of a
    published checkpoint, or a name on the hub.
    """
    from redimnet2_lobes import door
    from redimnet2_lobes.executorch.export import check_new_pte, export_pte
    from redimnet2_lobes.onnx.export import check_new_export, export_onnx
    from redimnet2_lobes.pretrained.loading import load_model, network_of
    from redimnet2_lobes.pretrained.provenance import provenance_of

    if (target in ("fixed", "executorch")) != (seconds is not None):
        raise click.UsageError(
            "--seconds belongs to --for=fixed and --for=executorch, which need "
            "it"
        )
    if (target == "sherpa-onnx") != (speech is not None):
        raise click.UsageError(
            "--speech belongs to --for=sherpa-onnx, which needs it: a folder "
            "of recordings such as demo/corpus, which make demo builds"
        )
    if trials is not None and speech is None:
        raise click.UsageError("--trials belongs to --for=sherpa-onnx")
    if features and speech is not None:
        raise click.UsageError("--features is not for --for=sherpa-onnx")
    if target == "executorch":
        check_new_pte(output)
    else:
        check_new_export(output)
    model = door.find(model)
    encoder = load_model(model)
    network = network_of(encoder, model)
    provenance = provenance_of(encoder)
    if target == "sherpa-onnx":
        from redimnet2_lobes.onnx.sherpa import export_sherpa

        accuracy = export_sherpa(
            network, output, speech or "", trials, int8, provenance
        )
        return f"{output}: {accuracy}"
    point = evaluated_operating_point(model, door.space_of(encoder))
    if target == "executorch":
        assert seconds is not None  # as above
        difference = export_pte(
            network, output, seconds, features, int8, point, provenance
        )
    else:
        difference = export_onnx(
            *(network, output, features, int8, point),
            *(target, seconds, provenance),
        )
    return f"{output}: within {difference:.1e} of torch's embeddings"
