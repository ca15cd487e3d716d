"""Exports a network to ONNX, for runtimes other than torch.

> redimnet2 export redimnet2_b3 --output redimnet2_b3.onnx

The file holds the whole of it, front-end included, in one of three forms (see
``export_onnx``). It is run beside the network before it gets its name, and has
a test input with its embedding (``golden_vector``). ``OnnxEncoder`` runs it
from Python.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch.nn.utils.rnn import pad_sequence

from redimnet2_lobes.files.atomic import check_new_file, complete_or_absent
from redimnet2_lobes.files.same_space import KEY
from redimnet2_lobes.files.settings import check_choices, require_number
from redimnet2_lobes.models.embedding_space import embedding_space
from redimnet2_lobes.models.folding import fold
from redimnet2_lobes.models.front_end import SAMPLE_RATE, WINDOW
from redimnet2_lobes.models.redimnet2 import ReDimNet2
from redimnet2_lobes.models.variants import variant_of
from redimnet2_lobes.onnx.encoder import inputs_by_name
from redimnet2_lobes.pretrained.loading import not_finite
from redimnet2_lobes.pretrained.provenance import NOT_STATED, Provenance
from redimnet2_lobes.scoring.operating_point import OperatingPoint

if TYPE_CHECKING:
    from onnx import ModelProto
    from onnxruntime import InferenceSession

# Largest difference of embeddings, relative to the largest value.
TOLERANCE = 1e-4
INT8_TOLERANCE = 1e-1  # measured: 2e-2
# Below and above half a second, up to which utterances are repeated.
VERIFIED_SAMPLES = ((48000,), (WINDOW, 7999, 30001, 16160), (128000, 8000))
VERIFIED_FRAMES = ((300,), (50, 51, 197), (800, 99))

# Seconds of a fixed length: a window; what attention takes is 0.6 GB (B0).
SHORTEST, LONGEST = WINDOW / SAMPLE_RATE, 120

Target = Literal["onnx", "plain", "fixed"]
TARGETS = get_args(Target)
UNKNOWN = OperatingPoint()


def export_onnx(
    network: ReDimNet2,
    path: str | os.PathLike,
    features: bool = False,
    int8: bool = False,
    operating_point: OperatingPoint = UNKNOWN,
    target: Target = "onnx",
    seconds: float | None = None,
    provenance: Provenance = NOT_STATED,
) -> float:
    """Writes a network as an ONNX file and verifies it.

    The file has opset 20. What it takes depends on the ``target``:

    - onnx: ``waveforms`` [batch, samples] at 16 kHz, float32, and ``lengths``
      [batch], int64, the samples of each utterance, from 400 on; the output is
      ``embeddings`` [batch, embedding]. What lies beyond an utterance's length
      is not read.
    - plain: one ``waveform`` [1, samples], 400 or more; the output is
      ``embedding`` [1, embedding]. There are no branches and no loops, which
      some runtimes lack, but memory grows with the square of the length.
    - fixed: the same for one length, up to two minutes, with all shapes known,
      as compilers for small devices want it.

    With ``features`` the inputs are log-mel features: ``features`` [batch,
    frames, mel bins] and ``frames`` [batch], or ``features_of_one`` [1, frames,
    mel bins].

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
    target
        What the file is for, as above.
    seconds
        The length of ``fixed``, for which it is needed.
    provenance
        For the metadata, what is stated of it.

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
    check_new_export(path)
    check_choices({"for": target}, **{"for": TARGETS})
    if (target == "fixed") != (seconds is not None):
        raise ValueError("seconds: belongs to --for=fixed, which needs it")
    if seconds is not None:
        require_number("seconds", seconds, SHORTEST, LONGEST)
    check_weights(network, path)
    from redimnet2_lobes.models.onnx_graph import over_batch, write_graph
    from redimnet2_lobes.onnx.fixed_length import with_fixed_length
    from redimnet2_lobes.onnx.quantization import quantize_weights

    folded = fold(network)
    space = embedding_space(network)
    model = write_graph(folded, features, blockwise=target == "onnx")
    length = None
    if seconds is not None:
        length = _length(folded, seconds, features)
        operating_point = operating_point.but(f"not of {seconds:g} s each")
        model = with_fixed_length(model, length)
    if int8:
        model = quantize_weights(model)
        space = f"{space}-int8"
        operating_point = operating_point.but("before quantization")
    if target == "onnx":
        model = over_batch(model)
    with complete_or_absent(path) as partial:
        known = {KEY: space, **stated(operating_point, provenance)}
        write_model(model, network, partial, known, length)
        difference = _largest_difference(folded, partial, features, length)
        check_difference(difference, path, int8, "ONNX Runtime", "onnxruntime")
    return difference


def check_weights(network: ReDimNet2, path: str | os.PathLike) -> None:
    """Refuses, by a ValueError, a network that is not to become a file.

    Example
    -------
    >>> network = ReDimNet2.from_variant("b0")
    >>> _ = network.projection.bias.data.fill_(torch.inf)
    >>> check_weights(network, "b0.onnx")
    Traceback (most recent call last):
    ValueError: b0.onnx: nothing was written, since projection.bias of the ...
    """
    if name := not_finite(network.state_dict()):
        raise ValueError(
            f"{path}: nothing was written, since {name} of the network holds "
            "values that are not finite; export another one"
        )


def check_difference(
    difference: float,
    path: str | os.PathLike,
    int8: bool,
    runtime: str,
    package: str,
) -> None:
    """Refuses, by a ValueError, a file whose embeddings differ from torch's.

    ``difference`` is relative to the largest value, and may be NaN.

    Example
    -------
    >>> check_difference(1e-5, "b0.onnx", False, "ONNX Runtime", "onnxruntime")
    """
    if not difference <= (INT8_TOLERANCE if int8 else TOLERANCE):
        raise ValueError(
            f"{path}: nothing was written, since embeddings by {runtime} "
            f"differ by {difference:.1e} of the largest value; check the "
            f"weights and the version of {package}"
        )


def check_new_export(path: str | os.PathLike) -> None:
    """Refuses, by a ValueError, what would fail when the work is done.

    Example
    -------
    >>> check_new_export(getfixture("tmp_path"))
    Traceback (most recent call last):
    ValueError: output: ... is a folder; name a file in it
    """
    check_new_file(path)
    path = Path(path)
    if path.suffix.lower() != ".onnx":
        raise ValueError(f"output: {path} does not end in .onnx")
    check_place(path)
    for package in ("onnx", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise ValueError(
                f"an export needs {package}: pip install onnx onnxruntime"
            )


def check_place(path: Path) -> None:
    """Refuses, by a ValueError, a file in a folder that does not exist.

    Example
    -------
    >>> check_place(Path("missing/b0.onnx"))
    Traceback (most recent call last):
    ValueError: missing is no folder; create it first
    """
    if not path.parent.is_dir():
        raise ValueError(f"{path.parent} is no folder; create it first")


def write_model(
    model: "ModelProto",
    network: ReDimNet2,
    path: Path,
    known: Mapping[str, str],
    length: int | None = None,
) -> None:
    """Writes a model with what a user of the file has to know of its network.

    ``known`` goes into its metadata, in place of what else would be there.
    ``length`` is the one that it takes, in samples, or frames, if it is fixed.

    Example
    -------
    >>> from redimnet2_lobes.models.folding import fold
    >>> from redimnet2_lobes.models.onnx_graph import write_graph
    >>> path = getfixture("tmp_path") / "network.onnx"
    >>> network = ReDimNet2.from_variant("b0")
    >>> write_model(write_graph(fold(network)), network, path, {})
    """
    from onnx.helper import set_model_props

    from redimnet2_lobes.onnx.golden_vector import SECONDS, golden_vector

    source = model.graph.input[0]
    features = "features" in source.name
    count = length or _length(network, SECONDS, features)
    dimensions = source.type.tensor_type.shape.dim[1:]
    shape = [1, *(x.dim_value or count for x in dimensions)]
    properties = {
        "model": "ReDimNet2",
        "variant": variant_of(network) or "custom",
        "sample_rate": str(SAMPLE_RATE),
        "minimum_samples": str(WINDOW),
        "embedding_size": str(network.projection.out_features),
        **golden_vector(_session(model.SerializeToString()), shape),
    }
    if length is not None:
        unit = "frames" if features else "samples"
        properties[f"fixed_{unit}"] = str(length)
    set_model_props(model, {**properties, **known})
    path.write_bytes(model.SerializeToString())


def stated(point: OperatingPoint, provenance: Provenance) -> dict[str, str]:
    """Metadata of what is known of a model besides its network.

    Example
    -------
    >>> stated(UNKNOWN, Provenance("mit"))
    {'license': 'mit'}
    """
    known = {k: v for k, v in provenance._asdict().items() if v}
    if point.value is not None:
        known["threshold"] = repr(point.value)
        known["threshold_origin"] = point.origin or ""
    return known


def _length(network: ReDimNet2, seconds: float, features: bool) -> int:
    """Samples, or frames, of so many seconds."""
    samples = round(seconds * SAMPLE_RATE)
    if not features:
        return samples
    # What is shorter is repeated before there are features of it.
    samples = max(samples, network.minimum_samples)
    with torch.no_grad():
        return network.front_end(torch.zeros(1, samples))[0].shape[1]


def _session(model: bytes | Path) -> "InferenceSession":
    from onnxruntime import InferenceSession, SessionOptions

    options = SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _largest_difference(
    network: ReDimNet2, path: Path, features: bool, length: int | None
) -> float:
    """Of embeddings, relative to the largest value; NaN if a value is.

    Over batches of one and of several utterances, with NaN as padding, or over
    the same one by one, or over one of a length.
    """
    session = _session(path)
    generator = torch.Generator().manual_seed(0)
    shape = [network.front_end.mel_bins] if features else []
    batches = VERIFIED_FRAMES if features else VERIFIED_SAMPLES
    if length is not None:
        batches = ((length,),)
    elif len(session.get_inputs()) == 1:
        batches = [(size,) for batch in batches for size in batch]
    worst = 0.0
    for sizes in batches:
        rows = [torch.randn(n, *shape, generator=generator) for n in sizes]
        batch = pad_sequence(rows, batch_first=True, padding_value=torch.nan)
        lengths = torch.tensor(sizes)
        feed = inputs_by_name(session, batch.numpy(), sizes)
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
