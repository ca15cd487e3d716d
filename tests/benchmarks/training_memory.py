"""What a training step of ReDimNet2 keeps for its backward pass, per option.

    OMP_NUM_THREADS=1 python training_memory.py [--variants b0 b3 b5 b6]
        [--batch 8] [--frames 200] [--precision bf16]

Of each variant, trained as the recipe does it, with half_precision_maps, with
activation_checkpointing and with both:

- the MiB that the forward pass leaves for the backward pass: distinct storages
  of saved tensors, without the weights;
- by how much the peak of a fresh process grows in a step (VmHWM), MiB;
- what the backward pass computes again, as a share of the forward pass's
  arithmetic, beyond the depthwise convolutions that it computes again on a CPU
  without options.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import argparse
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import torch
from measurements import MEBIBYTE, forget_peak_memory, grown, process_memory
from torch.utils.flop_counter import FlopCounterMode

from redimnet2_lobes.models.front_end import HOP, WINDOW
from redimnet2_lobes.models.redimnet2 import ReDimNet2
from redimnet2_lobes.models.variants import VARIANTS

OPTIONS = ("half_precision_maps", "activation_checkpointing")
CHOICES = ((), OPTIONS[:1], OPTIONS[1:], OPTIONS)


def bytes_kept(forward, weights):
    """What a forward pass keeps beside weights, and what it returns."""
    of_weights = {weight.untyped_storage().data_ptr() for weight in weights}
    sizes = {}

    def pack(x):
        storage = x.untyped_storage()
        if storage.data_ptr() not in of_weights:
            sizes[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        result = forward()
    return sum(sizes.values()), result


def measure(variant, options, batch, frames, precision):
    """MiB kept, MiB of the peak, arithmetic backward / forward."""
    torch.manual_seed(0)
    network = ReDimNet2.from_variant(
        variant, aggregation_norm=True, **dict.fromkeys(options, True)
    ).train()
    wavs = torch.randn(batch, (frames - 1) * HOP + WINDOW)

    def forward(wavs=wavs):
        with torch.autocast("cpu", torch.bfloat16, precision == "bf16"):
            return network(wavs).float().square().mean()

    forward(wavs[:2, : 20 * HOP]).backward()  # the first step brings libraries
    forget_peak_memory()
    before = process_memory("VmRSS")
    forward().backward()
    peak = grown(process_memory("VmHWM"), before)
    with FlopCounterMode(display=False) as once:
        kept, loss = bytes_kept(forward, network.parameters())
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    ratio = backward.get_total_flops() / once.get_total_flops()
    return kept / MEBIBYTE, peak, ratio


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variants", nargs="+", default=VARIANTS)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--frames", type=int, default=200)
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    options = parser.parse_args()
    job = options.batch, options.frames, options.precision
    print("| variant | options | kept, MiB | peak, MiB | again, % |")
    print("|---|---|---:|---:|---:|")
    for variant in options.variants:
        plain = None
        for choice in CHOICES:
            with ProcessPoolExecutor(
                1, multiprocessing.get_context("spawn")
            ) as fresh:
                kept, peak, ratio = fresh.submit(
                    measure, variant, choice, *job
                ).result()
            plain = plain or ratio
            print(
                f"| {variant} | {', '.join(choice) or 'none'} | {kept:.0f} "
                f"| {peak:.0f} | {100 * (ratio - plain):.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
