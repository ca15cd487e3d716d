"""Exports a network to ExecuTorch, for phones and other small devices.

> redimnet2 export redimnet2_b3 --for=executorch --seconds=6 --output b3.pte

The file takes one utterance of a fixed length, front-end included, and computes
it by XNNPACK, on the CPU. It is run beside the network before it gets its name.
Beside ``forward`` it has methods that return what a user has to know, with the
names of the metadata of ONNX files; among them are a test input and the
embedding of it (``redimnet2_lobes.onnx.golden_vector``).

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

# executorch is in an environment of its own.
# pyright: reportMissingImports=false

import copy
import functools
import importlib.util
import math
import os
import warnings
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram, export

from redimnet2_lobes.executorch.operations import substitutes
from redimnet2_lobes.executorch.running import TEST_LIMIT, PteFile
from redimnet2_lobes.files.atomic import check_new_file, complete_or_absent
from redimnet2_lobes.files.same_space import KEY
from redimnet2_lobes.files.settings import require_number
from redimnet2_lobes.models.embedding_space import embedding_space
from redimnet2_lobes.models.folding import fold
from redimnet2_lobes.models.front_end import (
    FFT_LENGTH,
    HOP,
    SAMPLE_RATE,
    spectrum_basis,
)
from redimnet2_lobes.models.lengths import repeat_short
from redimnet2_lobes.models.redimnet2 import ReDimNet2
from redimnet2_lobes.models.variants import variant_of
from redimnet2_lobes.onnx.export import (
    LONGEST,
    SHORTEST,
    UNKNOWN,
    check_difference,
    check_place,
    check_weights,
    stated,
)
from redimnet2_lobes.onnx.golden_vector import (
    EMBEDDING,
    FORMULA,
    INPUT,
    SHAPE,
    input_by_formula,
)
from redimnet2_lobes.onnx.golden_vector import TOLERANCE as TEST_TOLERANCE
from redimnet2_lobes.pretrained.provenance import NOT_STATED, Provenance
from redimnet2_lobes.scoring.operating_point import OperatingPoint

if TYPE_CHECKING:
    from executorch.exir import EdgeProgramManager

# Smaller weights are not worth what eight bits cost.
MINIMUM_SIZE = 1024
# Of the embedding of the test input, elsewhere: where what is multiplied is
# rounded to eight bits, the last bit of a float moves it by 5e-3.
INT8_TEST_TOLERANCE = 2e-2


def export_pte(
    network: ReDimNet2,
    path: str | os.PathLike,
    seconds: float,
    features: bool = False,
    int8: bool = False,
    operating_point: OperatingPoint = UNKNOWN,
    provenance: Provenance = NOT_STATED,
) -> float:
    """Writes a network as a .pte file and verifies it.

    Its ``forward`` takes a waveform [1, samples] at 16 kHz, float32, or with
    ``features`` log-mel features [1, frames, mel bins], and gives the embedding
    [1, embedding]; of an input that is not finite all of it is NaN.

    Arguments
    ---------
    network
        The network in evaluation mode, on the CPU, not folded; it is not
        changed.
    path
        A new file. It is not written, and a ValueError says why, if it exists,
        a package is missing, a weight is not finite, or the difference is above
        1e-4 (int8: 0.1).
    seconds
        The length that the file takes, up to two minutes.
    features
        Whether to leave out the front-end.
    int8
        Whether to store large weights in eight bits. What they are multiplied
        by is rounded to eight bits as well, in each run by its largest value.
    operating_point, provenance
        To be kept in the file, what is known of them.

    Returns
    -------
    float
        The largest difference between embeddings by ExecuTorch and by torch,
        relative to the largest value.

    Example
    -------
    >>> network = ReDimNet2.from_variant("b0").eval()
    >>> path = getfixture("tmp_path") / "missing" / "b0.pte"
    >>> export_pte(network, path, seconds=6)
    Traceback (most recent call last):
    ValueError: ...missing is no folder; create it first
    """
    check_new_pte(path)
    require_number("seconds", seconds, SHORTEST, LONGEST)
    check_weights(network, path)
    folded = fold(network)
    example = _example(folded, seconds, features)
    # ExecuTorch wants weights in this order; torch's annotations lack the form.
    folded.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
    # ExecuTorch lacks complex numbers; the copy is of no other use.
    folded.front_end.power_spectrum = functools.partial(
        _power_spectrum, window=folded.front_end.window
    )
    encoder = _FiniteOrNaN(folded, features)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is to be, for programmers
        lowered = _lower(_program(encoder, example, int8))
        operating_point = operating_point.but(f"not of {seconds:g} s each")
        if int8:
            operating_point = operating_point.but("before quantization")
        with complete_or_absent(path) as partial:
            space = embedding_space(network)
            if int8:
                space = f"{space}-int8-executorch"
            known = {
                **_known(network, example),
                KEY: space,
                **stated(operating_point, provenance),
                TEST_LIMIT: INT8_TEST_TOLERANCE if int8 else TEST_TOLERANCE,
            }
            _write(lowered, known, partial)
            # The embedding of the test input is that by the file itself.
            test_input = torch.from_numpy(input_by_formula(example.shape))
            known[EMBEDDING] = PteFile(partial).encode(test_input)[0]
            _write(lowered, known, partial)
            with torch.no_grad():
                expected = encoder(example)
            difference = (PteFile(partial).encode(example) - expected).abs()
            difference = (difference.max() / expected.abs().max()).item()
            check_difference(difference, path, int8, "ExecuTorch", "executorch")
    return difference


def check_new_pte(path: str | os.PathLike) -> None:
    """Refuses, by a ValueError, what would fail when the work is done.

    Example
    -------
    >>> check_new_pte(getfixture("tmp_path"))
    Traceback (most recent call last):
    ValueError: output: ... is a folder; name a file in it
    """
    check_new_file(path)
    path = Path(path)
    if path.suffix != ".pte":
        raise ValueError(f"output: {path} does not end in .pte")
    check_place(path)
    if importlib.util.find_spec("executorch") is None:
        raise ValueError(
            "an export for ExecuTorch needs executorch: pip install "
            "executorch==1.2.0 in an environment of its own"
        )


def _power_spectrum(wavs: Tensor, window: Tensor) -> Tensor:
    """As in the front-end, by convolutions."""
    basis = spectrum_basis(window, FFT_LENGTH // 2 + 1).to(wavs.dtype)
    kernels = basis.T[:, None]
    spectrum = nn.functional.conv1d(wavs[:, None], kernels, stride=HOP)
    real, imaginary = spectrum.transpose(1, 2).chunk(2, dim=2)
    return real.square() + imaginary.square()


class _FiniteOrNaN(nn.Module):
    """A network that gives NaN for an input that is not finite.

    The maxima of XNNPACK drop NaN, and would give an embedding of nothing.
    """

    def __init__(self, network: ReDimNet2, features: bool) -> None:
        super().__init__()
        self.network = network
        self.features = features

    def forward(self, x: Tensor) -> Tensor:
        """Computes the embedding [1, embedding] of an utterance."""
        if self.features:
            embedding = self.network.encode_features(x)
        else:
            embedding = self.network(x).squeeze(1)
        return embedding + 0 * x.flatten(1).sum(1, keepdim=True)


def _example(network: ReDimNet2, seconds: float, features: bool) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, round(seconds * SAMPLE_RATE), generator=generator)
    if not features:
        return x
    # What is shorter is repeated before there are features of it.
    x = repeat_short(x, None, network.minimum_samples)[0]
    with torch.no_grad():
        return network.front_end(x)[0]


@torch.no_grad()
def _program(
    encoder: nn.Module, example: Tensor, int8: bool
) -> ExportedProgram:
    """The encoder in operations that XNNPACK has, for one shape."""
    from executorch.exir.passes.constant_prop_pass import constant_prop_pass

    program = export(encoder, (example,)).run_decompositions(substitutes())
    program = constant_prop_pass(program)
    if not int8:
        return program
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.quantize_pt2e import (
        convert_pt2e,
        prepare_pt2e,
    )

    quantizer = XNNPACKQuantizer()
    quantizer.set_global(
        get_symmetric_quantization_config(is_per_channel=True, is_dynamic=True)
    )
    quantizer.set_filter_function(_is_large)
    prepared = prepare_pt2e(program.module(), quantizer)
    prepared(example)
    return export(convert_pt2e(prepared), (example,))


def _is_large(node: torch.fx.Node) -> bool:
    """Whether eight bits are worth it: not for depthwise layers and sums.

    Beside layers the quantizer asks for their weights.
    """
    if node.op != "call_function":
        return True
    weight = node.args[1]
    if not isinstance(weight, torch.fx.Node):
        return False
    shape = weight.meta["val"].shape
    return math.prod(shape) >= MINIMUM_SIZE and min(shape[:2]) > 1


def _lower(program: ExportedProgram) -> "EdgeProgramManager":
    import executorch.data.bin
    from executorch.backends.xnnpack.partition.config import (
        ALL_PARTITIONER_CONFIGS,
        generic_node_configs,
    )
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import (
        XnnpackPartitioner,
    )
    from executorch.exir import to_edge_transform_and_lower

    # Its own, which it looks for on PATH.
    flatc = files(executorch.data.bin) / "flatc"
    os.environ.setdefault("FLATC_EXECUTABLE", str(flatc))
    # Without ViewCopyConfig every change of shape would cut the graph.
    view_copy = generic_node_configs.ViewCopyConfig
    configs = [*ALL_PARTITIONER_CONFIGS, view_copy]
    partitioner = XnnpackPartitioner(configs=configs)
    return to_edge_transform_and_lower(program, partitioner=[partitioner])


def _known(network: ReDimNet2, example: Tensor) -> dict[str, Any]:
    """What a user of the file has to know: names of methods, their results."""
    unit = "samples" if example.dim() == 2 else "frames"
    return {
        "model": "ReDimNet2",
        "variant": variant_of(network) or "custom",
        "sample_rate": SAMPLE_RATE,
        f"fixed_{unit}": example.shape[1],
        "embedding_size": network.projection.out_features,
        INPUT: FORMULA,
        SHAPE: torch.tensor(example.shape),
    }


def _write(
    lowered: "EdgeProgramManager", known: dict[str, Any], path: Path
) -> None:
    from executorch.exir import EdgeProgramManager

    # A copy, which becomes the file.
    program = copy.deepcopy(lowered.exported_program())
    program = EdgeProgramManager(program, known)
    path.write_bytes(program.to_executorch().buffer)
