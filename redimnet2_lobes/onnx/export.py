"""Exports a network to ONNX, for runtimes other than torch.

> redimnet2 export redimnet2_b3 --output redimnet2_b3.onnx

The file holds the whole of it, front-end included: padded waveforms and their
lengths in, embeddings out, for any batch and any length (see ``graph``).
It is run beside the network before it gets its name. ``OnnxEncoder`` runs it
from Python.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.nn.utils.rnn import pad_sequence

from redimnet2_lobes.files.atomic import check_new_file, complete_or_absent
from redimnet2_lobes.models.folding import fold
from redimnet2_lobes.models.front_end import SAMPLE_RATE, WINDOW
from redimnet2_lobes.models.redimnet2 import ReDimNet2
from redimnet2_lobes.models.variants import variant_of
from redimnet2_lobes.pretrained.loading import not_finite
from redimnet2_lobes.scoring.operating_point import OperatingPoint

if TYPE_CHECKING:
    from onnx import ModelProto

# Largest difference of embeddings, relative to the largest value.
TOLERANCE = 1e-4
INT8_TOLERANCE = 1e-1  # measured: 1e-2
# Below and above half a second, up to which utterances are repeated.
VERIFIED_SAMPLES = ((48000,), (WINDOW, 7999, 30001, 16160), (128000, 8000))
VERIFIED_FRAMES = ((300,), (50, 51, 197), (800, 99))
UNKNOWN = OperatingPoint()


def export_onnx(
    network: ReDimNet2,
    path: str | os.PathLike,
    features: bool = False,
    int8: bool = False,
    operating_point: OperatingPoint = UNKNOWN,
) -> float:
    """Writes a network as an ONNX file and verifies it.

    The file has opset 20. Its inputs are ``waveforms`` [batch, samples] at
    16 kHz, float32, and ``lengths`` [batch], int64, the samples of each
    utterance, from 400 on; its output is ``embeddings`` [batch, embedding].
    What lies beyond an utterance's length is not read. With ``features`` the
    inputs are log-mel features ``features`` [batch, frames, mel bins] and
    ``frames`` [batch]. The file's metadata say all of this.

    Arguments
    ---------
    network
        The network in evaluation mode, on the CPU, not folded; it is not
        changed.
    path
        A new file. It is not written, and a ValueError says why, if it exists,
        a package is missing, a weight is not finite, or the difference is above
        1e-4 (int8: 0.1).
    features
        Whether to leave out the front-end.
    int8
        Whether to store the weights in eight bits, see ``quantization``.
    operating_point
        For the metadata, unless it has no value.

    Returns
    -------
    float
        The largest difference between embeddings by ONNX Runtime and by torch
        of several batches, relative to the largest value.

    Example
    -------
    >>> path = getfixture("tmp_path") / "b0.onnx"
    >>> export_onnx(ReDimNet2.from_variant("b0").eval(), path) < 1e-4
    True
    """
    check_export(path)
    if name := not_finite(network.state_dict()):
        raise ValueError(
            f"{path}: nothing was written, since {name} of the network holds "
            "values that are not finite; export another one"
        )
    from redimnet2_lobes.models.onnx_graph import over_batch, write_graph
    from redimnet2_lobes.onnx.quantization import quantize_weights

    folded = fold(network)
    model = write_graph(folded, features)
    if int8:
        model = quantize_weights(model)
        if operating_point.value is not None:
            origin = f"{operating_point.origin}, before quantization"
            operating_point = operating_point._replace(origin=origin)
    model = over_batch(model)
    tolerance = INT8_TOLERANCE if int8 else TOLERANCE
    with complete_or_absent(path) as partial:
        write_model(model, network, partial, operating_point)
        difference = _largest_difference(folded, partial, features)
        if not difference <= tolerance:
            raise ValueError(
                f"{path}: nothing was written, since embeddings by ONNX "
                f"Runtime differ by {difference:.1e} of the largest value; "
                "check the weights and the version of onnxruntime"
            )
    return difference


def check_export(path: str | os.PathLike) -> None:
    """Refuses, by a ValueError, what would fail when the work is done.

    Example
    -------
    >>> check_export(getfixture("tmp_path"))
    Traceback (most recent call last):
    ValueError: output: ... is a folder; name a file in it
    """
    check_new_file(path)
    path = Path(path)
    if not path.parent.is_dir():
        raise ValueError(f"{path.parent} is no folder; create it first")
    for package in ("onnx", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise ValueError(
                f"an export needs {package}: pip install onnx onnxruntime"
            )


def write_model(
    model: "ModelProto",
    network: ReDimNet2,
    path: Path,
    operating_point: OperatingPoint = UNKNOWN,
) -> None:
    """Writes a model with what a user of the file has to know of its network.

    Example
    -------
    >>> from onnx import ModelProto
    >>> path = getfixture("tmp_path") / "network.onnx"
    >>> write_model(ModelProto(), ReDimNet2.from_variant("b0"), path)
    """
    from onnx.helper import set_model_props

    properties = {
        "model": "ReDimNet2",
        "variant": variant_of(network) or "custom",
        "sample_rate": str(SAMPLE_RATE),
        "minimum_samples": str(WINDOW),
        "embedding_size": str(network.projection.out_features),
    }
    if operating_point.value is not None:
        properties["threshold"] = repr(operating_point.value)
        properties["threshold_origin"] = operating_point.origin or ""
    set_model_props(model, properties)
    path.write_bytes(model.SerializeToString())


def _largest_difference(
    network: ReDimNet2, path: Path, features: bool
) -> float:
    """Of embeddings, relative to the largest value; NaN if a value is.

    Over batches of one and of several utterances, with NaN as padding.
    """
    from onnxruntime import InferenceSession, SessionOptions

    options = SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = InferenceSession(
        path, options, providers=["CPUExecutionProvider"]
    )
    names = [value.name for value in session.get_inputs()]
    generator = torch.Generator().manual_seed(0)
    shape = [network.front_end.mel_bins] if features else []
    worst = 0.0
    for sizes in VERIFIED_FRAMES if features else VERIFIED_SAMPLES:
        rows = [torch.randn(n, *shape, generator=generator) for n in sizes]
        batch = pad_sequence(rows, batch_first=True, padding_value=torch.nan)
        lengths = torch.tensor(sizes)
        feed = dict(zip(names, (batch.numpy(), lengths.numpy()), strict=True))
        (found,) = session.run(None, feed)
        with torch.no_grad():
            if features:
                expected = network.encode_features(batch, lengths)
            else:
                expected = network(batch, lengths / max(sizes)).squeeze(1)
        difference = (torch.from_numpy(found) - expected).abs().max()
        difference = (difference / expected.abs().max()).item()
        if not difference <= worst:  # or NaN
            worst = difference
    return worst
