"""Where the time of inference goes: the share of each part, per variant.

    python tests/benchmarks/parts.py

prints the table of README.md. Timers around the parts cost some time
themselves, most where the network is small.
"""

import argparse
import re
import statistics
import time
from collections import defaultdict

import torch
from implementations import OURS_TORCH, build, waveforms
from tqdm import tqdm

from redimnet2_lobes.models.front_end import SAMPLE_RATE
from redimnet2_lobes.models.variants import VARIANTS

# The first that fits a module's name; parts lie side by side.
PARTS = {
    "front-end": r"front_end",
    "stem": r"stem",
    "aggregation": r"(.*\.)?aggregation",
    "strided convolution": r".*\.reshape",
    "block: depthwise": r".*\.depthwise_\d",
    "block: pointwise": r".*\.pointwise_\d",
    "contraction": r"stages\.\d\.contract",
    "context: convolutions": r".*\.convolutions\.\d",
    "context: attention": r".*\.attention",
    "context: in and out": r".*\.time_context\.(contract|norm|expand)",
    "head and pooling": r"head|pooling|projection",
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=3)
    options = parser.parse_args()
    torch.set_num_threads(2)
    shares = {
        variant: measure(variant, options.batch, options.seconds)
        for variant in tqdm(VARIANTS, unit="variant")
    }
    print(f"| part, % of {options.batch} x {options.seconds:g} s |", end="")
    print("".join(f" {variant} |" for variant in shares))
    print("|---" * (len(shares) + 1) + "|")
    for part in (*PARTS, "rest"):
        row = " | ".join(f"{100 * x[part]:.0f}" for x in shares.values())
        print(f"| {part} | {row} |")


def measure(variant, batch, seconds):
    """Share of each part, median over several calls."""
    network = build(OURS_TORCH, variant, training=False)
    samples = round(seconds * SAMPLE_RATE)
    batch = waveforms(variant, batch, samples)
    spent = time_parts(network)
    shares = defaultdict(list)
    with torch.no_grad():
        network(batch)
        for _ in range(5):
            spent.clear()
            start = time.perf_counter()
            network(batch)
            total = time.perf_counter() - start
            for part in PARTS:
                shares[part].append(spent[part] / total)
            shares["rest"].append(1 - sum(spent.values()) / total)
    return {part: statistics.median(x) for part, x in shares.items()}


def time_parts(network):
    """Adds up the seconds in each part as the network is called."""
    spent = defaultdict(float)
    for name, module in network.named_modules():
        part = next(
            (part for part, x in PARTS.items() if re.fullmatch(x, name)), None
        )
        if part is None or "pooling." in name:
            continue

        def start(module, inputs):
            module.started = time.perf_counter()

        def stop(module, inputs, output, part=part):
            spent[part] += time.perf_counter() - module.started

        module.register_forward_pre_hook(start)
        module.register_forward_hook(stop)
    return spent


if __name__ == "__main__":
    main()
