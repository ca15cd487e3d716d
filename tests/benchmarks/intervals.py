"""How long intervals and comparisons take, at the size of VoxCeleb1-E.

    python tests/benchmarks/intervals.py [--trials 579818] [--speakers 1251]

Of made-up scores: the four figures of a report with 1,000 resamples of the
speakers, and the comparison of two systems by them.
"""

import argparse
import time

import numpy as np
import torch
from benchmark import processor_name

from redimnet2_lobes.scoring.bootstrap import REPORTED, bootstrap
from redimnet2_lobes.scoring.comparison import compare


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=579_818)
    parser.add_argument("--speakers", type=int, default=1_251)
    options = parser.parse_args()
    random = np.random.default_rng(1)
    first = random.integers(options.speakers, size=options.trials)
    other = random.integers(options.speakers, size=options.trials)
    speakers = np.stack([first, other], axis=1)
    speakers[::2, 1] = speakers[::2, 0]  # half are of one speaker, as in E
    labels = torch.from_numpy(speakers[:, 0] == speakers[:, 1])
    noise = torch.from_numpy(random.normal(size=(2, options.trials)))
    one, two = noise + 3 * labels
    print(
        f"{processor_name()}: {options.trials:,} trials of "
        f"{options.speakers:,} speakers, 1,000 resamples"
    )
    for name, compute in (
        ("intervals", lambda: bootstrap(one, labels, speakers, REPORTED)),
        ("comparison", lambda: compare(one, two, labels, speakers)),
    ):
        start = time.perf_counter(), time.process_time()
        compute()
        wall = time.perf_counter() - start[0]
        used = time.process_time() - start[1]
        print(f"{name}: {wall:.0f} s, {used:.0f} s of the processor")


if __name__ == "__main__":
    main()
