"""Runs files of ``redimnet2_lobes.executorch.export``.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

# executorch is in an environment of its own.
# pyright: reportMissingImports=false

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from redimnet2_lobes.files.error_lines import one_line
from redimnet2_lobes.onnx.golden_vector import (
    EMBEDDING,
    FORMULA,
    INPUT,
    SHAPE,
    input_by_formula,
    within,
)

# The largest difference of the embedding of the test input that is none.
TEST_LIMIT = "test_tolerance"


class PteFile:
    """A file of ``redimnet2 export --for=executorch``, ready to run.

    A ValueError says that it is another or damaged, or that executorch is
    missing.

    Example
    -------
    >>> PteFile("b3.pte")
    Traceback (most recent call last):
    ValueError: b3.pte: no such file
    """

    def __init__(self, path: str | os.PathLike) -> None:
        if not Path(path).is_file():
            raise ValueError(f"{path}: no such file")
        try:
            from executorch.runtime import Runtime, Verification
        except ImportError:
            raise ValueError(
                "to run .pte files, pip install executorch==1.2.0 in an "
                "environment of its own"
            ) from None
        self.path = path
        try:
            self._program = Runtime.get().load_program(
                Path(path).read_bytes(), verification=Verification.Minimal
            )
        except RuntimeError as error:
            raise ValueError(
                f"{path}: not a .pte file, or damaged; export it again"
            ) from error
        if "model" not in self._program.method_names:
            raise ValueError(f"{path}: not a file of redimnet2 export")

    def known(self, name: str) -> Any:
        """What one of its methods without arguments returns."""
        return self._run(name)

    def encode(self, x: Tensor) -> Tensor:
        """The embedding [1, embedding] of the input that the file takes.

        A ValueError says that it is of another shape.
        """
        shape = self.known(SHAPE).tolist()
        if list(x.shape) != shape:
            raise ValueError(
                f"{self.path}: takes an input of shape {shape}, not "
                f"{list(x.shape)}; cut or repeat it, or export with other "
                "--seconds"
            )
        # A copy, since the next run writes into the same memory.
        return self._run("forward", x.float()).clone()

    def _run(self, method: str, *inputs: Tensor) -> Any:
        try:
            return self._program.load_method(method).execute(inputs)[0]
        except RuntimeError as error:
            raise ValueError(
                f"{self.path}: cannot be run ({one_line(error)}); export it "
                "again"
            ) from error


def check_pte(path: str | os.PathLike) -> float:
    """Runs a file on its test input here.

    A ValueError says that it is damaged, or that its embedding is not the one
    that it was exported with.

    Returns
    -------
    float
        The largest difference, relative to the largest value.

    Example
    -------
    >>> check_pte("b3.pte")
    Traceback (most recent call last):
    ValueError: b3.pte: no such file
    """
    file = PteFile(path)
    if file.known(INPUT) != FORMULA:
        raise ValueError(
            f"{path}: its test input is of another version; export it again"
        )
    shape = file.known(SHAPE).tolist()
    expected = file.known(EMBEDDING)
    found = file.encode(torch.from_numpy(input_by_formula(shape)))[0]
    difference = (found - expected).abs().max() / expected.abs().max()
    limit = file.known(TEST_LIMIT)
    return within(limit, difference.item(), path, "executorch")
