r"""ONNX Runtime beside torch and the published code: speed, size, accuracy.

    python tests/benchmarks/runtimes.py --variants b0 b3 b6
    python tests/benchmarks/runtimes.py --model=demo/trained \
        --corpus=demo/corpus

The first measures the speed of the variants, the second the accuracy of a
trained model with quantized weights and arithmetic. All implementations take
turns in one process, round by round, on the same input; the median counts.
"""

import argparse
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from benchmark import ROOT, VARIANTS, commit, positive, processor_name
from conftest import ParityCase
from implementations import (
    OURS_TORCH,
    PUBLISHED,
    PUBLISHED_VARIABLE,
    build,
    published_checkout,
    waveforms,
)
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_static,
)
from tqdm import tqdm

from redimnet2_lobes.data.audio import load_waveform
from redimnet2_lobes.files.same_space import KEY
from redimnet2_lobes.inference.encode import encode_utterances
from redimnet2_lobes.models.folding import fold
from redimnet2_lobes.models.front_end import SAMPLE_RATE
from redimnet2_lobes.models.onnx_graph import over_batch, write_graph
from redimnet2_lobes.onnx.encoder import OnnxEncoder
from redimnet2_lobes.onnx.export import write_model
from redimnet2_lobes.onnx.quantization import quantize_weights
from redimnet2_lobes.pretrained.loading import load_model
from redimnet2_lobes.pretrained.published_layout import (
    build_network,
    take_weights,
)
from redimnet2_lobes.scoring.metrics import EER

CASES = (("one file of 3 s", 1, 3), ("8 files of 3 s", 8, 3))
CASES += (("one file of 20 s", 1, 20),)
TURN = 0.5  # seconds; short calls are repeated
FLOAT = "ONNX Runtime"
WEIGHTS = "ONNX Runtime, weights int8"
POINTWISE = "ONNX Runtime, static int8, pointwise convolutions"
CONVOLUTIONS = "ONNX Runtime, static int8, 2-D convolutions"
CALIBRATION_UTTERANCES = 30


def main(arguments=None):
    options = parse_arguments(arguments)
    checkout = published_checkout()
    if checkout and not (checkout / "redimnet2" / "redimnet2.py").is_file():
        print(f"error: {PUBLISHED_VARIABLE} names no checkout", file=sys.stderr)
        return 2
    torch.set_num_threads(options.threads)
    lines = [
        f"{processor_name()}, threads: {options.threads}, torch "
        f"{torch.__version__}, onnxruntime {onnxruntime.__version__}, commit "
        f"{commit(ROOT)}",
        "",
    ]
    with tempfile.TemporaryDirectory() as folder:
        if options.model:
            lines += accuracy(options, Path(folder))
        else:
            lines += speed(options, Path(folder))
    text = "\n".join(lines) + "\n"
    print(text, end="")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(text)
    return 0


def parse_arguments(arguments):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--variants", nargs="+", choices=VARIANTS, default=["b0", "b3", "b6"]
    )
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--threads", type=positive, default=2)
    parser.add_argument("--model", help="model folder, to measure accuracy")
    parser.add_argument("--corpus", type=Path, help="wav/ and veri_test2.txt")
    parser.add_argument(
        "--output", type=Path, default=Path("results/runtimes.md")
    )
    options = parser.parse_args(arguments)
    if bool(options.model) != bool(options.corpus):
        parser.error("--model and --corpus go together")
    return options


def speed(options, folder):
    """Lines of a table of times, a row for each variant and implementation."""
    names = [name for name, _, _ in CASES]
    lines = [
        "| variant | implementation | MB | difference | "
        + " | ".join(f"{name} (ms), times as fast" for name in names)
        + " |",
        "|---|---|---:|---:" + "|---:" * len(names) + "|",
    ]
    for variant in tqdm(options.variants, unit="variant", dynamic_ncols=True):
        runs, sizes = implementations(variant, options, folder)
        times = {name: [] for name in runs}
        for _, batch, seconds in CASES:
            wavs = waveforms(variant, batch, seconds * SAMPLE_RATE)
            medians, embeddings = take_turns(runs, wavs, options.rounds)
            for name, median in medians.items():
                times[name].append(median)
        expected = embeddings[OURS_TORCH.name]
        for name, found in embeddings.items():
            difference = (found - expected).abs().max() / expected.abs().max()
            base = times.get(PUBLISHED.name, times[OURS_TORCH.name])
            columns = [
                f"{1000 * x:.1f}, {y / x:.2f}"
                for x, y in zip(times[name], base, strict=True)
            ]
            size = f"{sizes[name] / 1e6:.1f}" if name in sizes else ""
            first = f"| {variant} | {name} | {size} | {difference:.0e} | "
            lines.append(first + " | ".join(columns) + " |")
    base = "the published code" if published_checkout() else "ours"
    return [
        *lines,
        "",
        f"Times as fast as {base}; `difference` is that of embeddings to ours "
        "in torch, relative to the largest value, of the last case. Weights as "
        "in tests/parity.",
    ]


def implementations(variant, options, folder):
    """Callables from waveforms to embeddings, and the sizes of their files."""
    runs = {}
    if published_checkout():
        runs[PUBLISHED.name] = build(PUBLISHED, variant, training=False)
    runs[OURS_TORCH.name] = build(OURS_TORCH, variant, training=False)
    checkpoint = ParityCase(f"{variant}-vox2").checkpoint()
    network = build_network(checkpoint["model_config"])
    take_weights(network, checkpoint["state_dict"])
    calibration = waveforms(variant, 3, 3 * SAMPLE_RATE)
    encoders, sizes = exported(
        network.eval(), calibration, options.threads, folder
    )
    for name, encoder in encoders.items():
        runs[name] = encoder.encode_batch
    return runs, sizes


def exported(network, calibration, threads, folder):
    """Encoders of all kinds of files of a network, and their sizes."""
    graph = write_graph(fold(network))
    graphs = {
        FLOAT: graph,
        WEIGHTS: quantize_weights(graph),
        POINTWISE: quantize_activations(graph, calibration, folder, True),
        CONVOLUTIONS: quantize_activations(graph, calibration, folder, False),
    }
    encoders, sizes = {}, {}
    for name, each in graphs.items():
        path = folder / "network.onnx"
        write_model(over_batch(each), network, path, {KEY: name})
        encoders[name] = OnnxEncoder(path, threads)
        sizes[name] = path.stat().st_size
    return encoders, sizes


def quantize_activations(graph, calibration, folder, pointwise):
    """ONNX Runtime's static quantization of the 2-D convolutions."""

    class Reader(CalibrationDataReader):
        rows = iter(calibration)

        def get_next(self):
            row = next(self.rows, None)
            if row is not None:
                row = {"waveform": row.unsqueeze(0).numpy()}
            return row

    ranks = {
        x.name: (len(x.dims), *x.dims[2:]) for x in graph.graph.initializer
    }
    wanted = [
        node.name
        for node in graph.graph.node
        if node.op_type == "Conv"
        and ranks[node.input[1]][0] == 4
        and (not pointwise or ranks[node.input[1]] == (4, 1, 1))
    ]
    source, target = folder / "float.onnx", folder / "int8.onnx"
    source.write_bytes(graph.SerializeToString())
    quantize_static(
        source,
        target,
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        nodes_to_quantize=wanted,
        op_types_to_quantize=["Conv"],
    )
    quantized = type(graph)()
    quantized.ParseFromString(target.read_bytes())
    return quantized


@torch.no_grad()
def take_turns(runs, wavs, rounds):
    """Median seconds of each, and their embeddings [batch, embedding]."""
    embeddings, calls = {}, {}
    for name, run in runs.items():
        embeddings[name] = run(wavs).flatten(1)  # the first call takes longer
        calls[name] = max(1, round(TURN / timed(run, wavs)))
    samples = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            turn = [timed(run, wavs) for _ in range(calls[name])]
            samples[name].append(statistics.median(turn))
    return {k: statistics.median(v) for k, v in samples.items()}, embeddings


def timed(run, wavs):
    start = time.perf_counter()
    run(wavs)
    return time.perf_counter() - start


def accuracy(options, folder):
    """Lines of a table of a trained model: sizes, cosines and EER."""
    trials = [
        line.split()
        for line in (options.corpus / "veri_test2.txt").read_text().splitlines()
    ]
    names = sorted({name for _, *pair in trials for name in pair})
    wav = options.corpus / "wav"
    tested = {name.split("/")[0] for name in names}
    others = sorted(
        path
        for path in wav.rglob("*.wav")
        if path.relative_to(wav).parts[0] not in tested
    )
    count = min(CALIBRATION_UTTERANCES, len(others))
    chosen = random.Random(0).sample(others, count)
    network = load_model(options.model).mods.embedding_model.eval()
    encoders, sizes = exported(
        network, [load_waveform(path) for path in chosen], 1, folder
    )
    paths = [wav / name for name in names]
    rows = np.array([[names.index(x) for x in pair] for _, *pair in trials])
    same = np.array([label == "1" for label, *_ in trials])
    reference = None
    lines = ["| form | MB | mean cosine | smallest cosine | EER % |"]
    lines.append("|---|---:|---:|---:|---:|")
    runs = {OURS_TORCH.name: fold(network)}
    runs.update({k: v.encode_batch for k, v in encoders.items()})
    for name, run in runs.items():
        found = encode_utterances(run, paths)
        found = torch.stack([found[path] for path in paths])
        found = torch.nn.functional.normalize(found).numpy()
        reference = found if reference is None else reference
        scores = (found[rows[:, 0]] * found[rows[:, 1]]).sum(1)
        scores = torch.from_numpy(scores)
        rate, _ = EER(scores[same], scores[~same])
        cosines = (found * reference).sum(1)
        size = f"{sizes[name] / 1e6:.2f}" if name in sizes else ""
        lines.append(
            f"| {name} | {size} | {cosines.mean():.5f} | {cosines.min():.5f} "
            f"| {100 * rate:.2f} |"
        )
    note = f"{len(trials):,} trials of {len(names)} files; static calibration "
    note += f"on {count} files of other speakers."
    return [*lines, "", note]


if __name__ == "__main__":
    sys.exit(main())
