"""``redimnet2 check``: does an exported file compute what it should here?

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

from __future__ import annotations

import click

from redimnet2_lobes.cli.group import command


@command("b3.onnx")
@click.argument("file", metavar="FILE")
def check(file: str) -> str:
    """Checks what an exported file, .onnx or .pte, computes here.

    It holds a test input, by a formula, and the embedding of that when the file
    was written: test_input, test_shape and test_embedding.
    """
    from redimnet2_lobes.executorch.running import check_pte
    from redimnet2_lobes.onnx.golden_vector import check_export

    difference = (check_pte if file.endswith(".pte") else check_export)(file)
    return f"{file}: within {difference:.1e} of the embedding of its export"
