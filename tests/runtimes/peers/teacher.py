"""CAM++ as a teacher: its embeddings of a list at each speed of a training.

    build/runtimes/peers/bin/python tests/runtimes/peers/teacher.py \\
        demo/corpus demo/trained/save/train.csv results/teacher \\
        1.0 0.8 0.9 1.1 1.2

OUTPUT/<speed>.npz are files for teacher_embeddings, in the order of speeds.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from peers import cam_plus_plus
from tqdm import tqdm

from redimnet2_lobes.data.audio import load_waveform
from redimnet2_lobes.data.conditions import Speed
from redimnet2_lobes.data.utterances import read_utterances
from redimnet2_lobes.files.atomic import complete_or_absent


@torch.inference_mode()
def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("utterances", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("speeds", type=float, nargs="+")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    utterances = read_utterances(options.utterances, options.corpus)
    teacher = cam_plus_plus()
    for speed in options.speeds:
        change = Speed(speed)
        embeddings = [
            teacher.encode(change(load_waveform(each.path), None))
            for each in tqdm(utterances, desc=f"speed {speed}", unit="file")
        ]
        path = options.output / f"{speed}.npz"
        with complete_or_absent(path) as partial, open(partial, "wb") as file:
            np.savez(
                file,
                names=[each.name for each in utterances],
                embeddings=torch.stack(embeddings).numpy(),
                embedding_space="campplus-zh-en-common-advanced",
            )


if __name__ == "__main__":
    main()
