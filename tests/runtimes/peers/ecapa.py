"""Trains SpeechBrain's ECAPA-TDNN as the demo trains ReDimNet2-B0.

    make demo test-runtimes RUNTIMES=peers
    build/runtimes/peers/bin/python tests/runtimes/peers/ecapa.py demo/corpus \
        results/ecapa

The demo's recipe with the same crops, steps, augmentation, loss and optimizer.
The learning rate is that of SpeechBrain's VoxCeleb recipe for ECAPA-TDNN; it
falls by the same ratio. With 512 channels, the smaller size of its paper, a
step costs as much time as one of B0. Interrupted, it goes on by the same
command. Other options go to the recipe.
"""

import sys
from pathlib import Path

import speechbrain as sb
from safetensors.torch import load_file, save_file

from redimnet2_lobes.files.atomic import complete_or_absent
from redimnet2_lobes.recipe.command_line import parse_command_line
from redimnet2_lobes.recipe.hparams import load_hparams
from redimnet2_lobes.recipe.training import check_hparams

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import learning
from implementations import Ecapa

WEIGHTS = "ecapa.safetensors"
CHANNELS = 512


def load_trained(folder):
    """What a training has left in its folder."""
    network = Ecapa(CHANNELS).eval()
    network.load_state_dict(load_file(Path(folder) / WEIGHTS))
    return network


def write_hparams(path):
    """The demo's configuration with this network."""
    demo = learning.HPARAMS / "demo_redimnet2_b0.yaml"
    text = demo.read_text(encoding="utf-8")
    for pattern, replacement in (
        (
            r"embedding_model: !new:redimnet2.*?(?=# One class)",
            "embedding_model: !new:implementations.Ecapa\n"
            f"    channels: {CHANNELS}\n",
        ),
        (r"variant: b0", "variant: null"),
        # They are for a global batch of 64, and the demo has 32.
        (r"initial_lr: 0.01\b", "initial_lr: 0.002"),
        (r"final_lr: 0.00005\b", "final_lr: 0.00001"),
    ):
        text = learning.replace(pattern, replacement, text)
    path.write_text(text, encoding="utf-8")


def main(corpus, output, *options):
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    write_hparams(folder / "hparams.yaml")
    hparams_file, run_opts, overrides = parse_command_line(
        [
            str(folder / "hparams.yaml"),
            f"--data_folder={corpus}",
            f"--output_folder={folder}",
            "--device=cpu",
            *options,
        ]
    )
    hparams = load_hparams(hparams_file, overrides)
    check_hparams(hparams)
    sb.core.create_experiment_directory(folder)
    brain, loader, _ = learning.recipe.build_brain(hparams, run_opts)
    brain.fit(hparams["epoch_counter"], loader)
    with complete_or_absent(folder / WEIGHTS) as partial:
        save_file(brain.modules.embedding_model.state_dict(), partial)


if __name__ == "__main__":
    main(*sys.argv[1:])
