"""A test input by a formula, and the embedding that a file has of it.

Both are in the metadata of each exported file, so that whoever runs it anywhere
can see whether it computes what it should. The formula has integers below 2**53
and single operations in float64, which all languages round alike.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import json
import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from redimnet2_lobes.files.error_lines import one_line
from redimnet2_lobes.onnx.encoder import inputs_by_name, open_export

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

FORMULA = (
    "value n, from 0, is (s / 2147483647 - 0.5) * ((n % 4000 + 1) / 4000) in "
    "float64, as float32; before each s = 16807 * s % 2147483647, at first "
    "s = 1"
)
INPUT, SHAPE, EMBEDDING = "test_input", "test_shape", "test_embedding"
# Seconds of it, where a file takes any length.
SECONDS = 2
# Of its embedding, relative to the largest value.
TOLERANCE = 1e-4


def input_by_formula(shape: Sequence[int]) -> np.ndarray:
    """Values of ``FORMULA``, in the order of memory, float32.

    Example
    -------
    >>> input_by_formula([1, 2])
    array([[-0.000125  , -0.00018423]], dtype=float32)
    """
    values, s = [], 1
    for n in range(math.prod(shape)):
        s = 16807 * s % 2147483647
        values.append((s / 2147483647 - 0.5) * ((n % 4000 + 1) / 4000))
    return np.array(values, np.float32).reshape(shape)


def embed_by_formula(
    session: "InferenceSession", shape: Sequence[int]
) -> np.ndarray:
    """A file's embedding [embedding] of the input of a shape.

    That is [1, samples], or [1, frames, mel bins].
    """
    feed = inputs_by_name(session, input_by_formula(shape), shape[1:2])
    return session.run(None, feed)[0].squeeze(0)


def golden_vector(
    session: "InferenceSession", shape: Sequence[int]
) -> dict[str, str]:
    """Metadata: the formula, the shape and the embedding.

    Example
    -------
    >>> from redimnet2_lobes.models.folding import fold
    >>> from redimnet2_lobes.models.onnx_graph import write_graph
    >>> from redimnet2_lobes.models.redimnet2 import ReDimNet2
    >>> from onnxruntime import InferenceSession
    >>> model = write_graph(fold(ReDimNet2.from_variant("b0")))
    >>> session = InferenceSession(model.SerializeToString())
    >>> sorted(golden_vector(session, [1, 16000]))
    ['test_embedding', 'test_input', 'test_shape']
    """
    embedding = embed_by_formula(session, shape)
    return {
        INPUT: FORMULA,
        SHAPE: json.dumps(list(shape)),
        EMBEDDING: as_json(embedding),
    }


def as_json(embedding: np.ndarray) -> str:
    """An embedding [embedding] in as many digits as float32 has.

    Example
    -------
    >>> as_json(np.array([0.1, 2], np.float32))
    '[0.100000001, 2.0]'
    """
    return json.dumps([float(f"{value:.9g}") for value in embedding])


def check_export(path: str | os.PathLike) -> float:
    """Runs a file on its test input here.

    A ValueError says that it is damaged, or that its embedding is not the one
    that it was exported with.

    Returns
    -------
    float
        The largest difference, relative to the largest value.

    Example
    -------
    >>> from redimnet2_lobes.models.redimnet2 import ReDimNet2
    >>> from redimnet2_lobes.onnx.export import export_onnx
    >>> path = getfixture("tmp_path") / "b0.onnx"
    >>> _ = export_onnx(ReDimNet2.from_variant("b0").eval(), path)
    >>> check_export(path) < 1e-6
    True
    """
    sessions, known = open_export(path)
    if INPUT not in known:
        raise ValueError(
            f"{path}: has no test input, since it is of an earlier version; "
            "export it again"
        )
    try:
        if known[INPUT] != FORMULA:
            raise ValueError(f"{INPUT} is another formula")
        expected = np.array(json.loads(known[EMBEDDING]), np.float32)
        shape = json.loads(known[SHAPE])
        found = embed_by_formula(sessions.session(1), shape)
        difference = np.abs(found - expected).max() / np.abs(expected).max()
    except Exception as error:  # ONNX Runtime raises kinds of its own
        raise ValueError(
            f"{path}: its test input cannot be run ({one_line(error)}); export "
            "it again"
        ) from error
    return within(TOLERANCE, float(difference), path, "onnxruntime")


def within(
    tolerance: float, difference: float, path: str | os.PathLike, package: str
) -> float:
    """The difference of a file's embedding, if it is no larger than allowed.

    If it is, or is NaN, a ValueError says so.

    Example
    -------
    >>> within(1e-4, 1e-6, "b3.onnx", "onnxruntime")
    1e-06
    """
    if not difference <= tolerance:
        raise ValueError(
            f"{path}: its embedding of the test input differs by "
            f"{difference:.1e} of the largest value from the one that it was "
            f"exported with; export it again, or use another {package}"
        )
    return difference
