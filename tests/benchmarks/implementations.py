"""The networks to compare, their weights and their input."""

import contextlib
import io
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from speechbrain.lobes.features import Fbank
from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN
from speechbrain.lobes.models.ResNet import ResNet
from speechbrain.processing.features import InputNormalization
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from redimnet2_lobes.models.folding import fold
from redimnet2_lobes.models.front_end import SAMPLE_RATE
from redimnet2_lobes.models.tiles import keep_freed_memory
from redimnet2_lobes.pretrained.published_layout import (
    build_network,
    take_weights,
)

sys.path.insert(0, str(Path(__file__).parents[1]))
from conftest import ParityCase

PUBLISHED_VARIABLE = "REDIMNET2_PUBLISHED"


@dataclass(frozen=True)
class Implementation:
    """One thing to measure: a network and how it is run."""

    name: str
    family: str  # "published", "ours" or "ecapa"
    compiled: bool = False
    bfloat16: bool = False
    lengths: bool = False
    torch_only: bool = False


PUBLISHED = Implementation("published", "published")
OURS = Implementation("ours", "ours")
ECAPA = Implementation("ECAPA-TDNN", "ecapa")
PUBLISHED_COMPILED = Implementation(
    "published, compiled", "published", compiled=True
)
OURS_COMPILED = Implementation("ours, compiled", "ours", compiled=True)
OURS_TORCH = Implementation("ours, torch", "ours", torch_only=True)
OURS_BFLOAT16 = Implementation("ours, bfloat16", "ours", bfloat16=True)
OURS_WITH_LENGTHS = Implementation("ours, with lengths", "ours", lengths=True)
IMPLEMENTATIONS = {
    implementation.name: implementation
    for implementation in (
        PUBLISHED,
        OURS,
        ECAPA,
        PUBLISHED_COMPILED,
        OURS_COMPILED,
        OURS_TORCH,
        OURS_BFLOAT16,
        OURS_WITH_LENGTHS,
    )
}


class SpeechBrainEncoder(nn.Module):
    """A network of SpeechBrain's behind its features."""

    def __init__(self, network):
        super().__init__()
        self.features = Fbank(n_mels=80)
        self.normalization = InputNormalization(
            norm_type="sentence", std_norm=False
        )
        self.network = network

    def forward(self, waveforms, lengths=None):
        if lengths is None:
            lengths = torch.ones(len(waveforms), device=waveforms.device)
        features = self.normalization(self.features(waveforms), lengths)
        return self.network(features, lengths)


class Ecapa(SpeechBrainEncoder):
    """ECAPA-TDNN as in spkrec-ecapa-voxceleb, with fresh weights.

    Its paper has 512 ``channels``, too.
    """

    def __init__(self, channels=1024):
        super().__init__(
            ECAPA_TDNN(
                input_size=80,
                channels=[*[channels] * 4, 3 * channels],
                kernel_sizes=[5, 3, 3, 3, 1],
                dilations=[1, 2, 3, 4, 1],
                attention_channels=128,
                lin_neurons=192,
            )
        )


class ResNetEncoder(SpeechBrainEncoder):
    """ResNet as in spkrec-resnet-voxceleb, with fresh weights."""

    def __init__(self):
        super().__init__(
            ResNet(
                input_size=80,
                channels=[128, 128, 256, 256],
                strides=[1, 2, 2, 2],
                block_sizes=[3, 4, 6, 3],
                lin_neurons=256,
            )
        )
        # The same network; on a CPU it is faster in this layout.
        self.network.to(memory_format=torch.channels_last)


def published_checkout():
    """Folder of the published code, or None where none is named."""
    name = os.environ.get(PUBLISHED_VARIABLE)
    return Path(name) if name else None


def build(implementation, variant, training):
    """A network, ready to be run."""
    if implementation.family == "ecapa":
        torch.manual_seed(0)
        network = Ecapa()
    else:
        checkpoint = ParityCase(f"{variant}-vox2").checkpoint()
        if implementation.family == "ours":
            network = build_ours(checkpoint)
            torch_only = implementation.torch_only or implementation.compiled
            if torch_only and not training:
                network = fold(network.eval())
        else:
            network = build_published(checkpoint)
    network.train(training)
    if implementation.compiled:
        network = compiled(network, implementation)
    return network


def build_ours(checkpoint):
    network = build_network(checkpoint["model_config"])
    take_weights(network, checkpoint["state_dict"])
    keep_freed_memory()
    return network


def build_published(checkpoint):
    sys.path.insert(0, str(published_checkout()))
    from redimnet2.redimnet2 import ReDimNet2Custom

    # The constructor prints.
    with contextlib.redirect_stdout(io.StringIO()):
        network = ReDimNet2Custom(**checkpoint["model_config"])
    # The constants of the front-end are not part of the weights.
    network.load_state_dict(checkpoint["state_dict"], strict=False)
    return network


def compiled(network, implementation):
    if implementation.family == "published":
        return torch.compile(network, dynamic=True)
    # The front-end stays eager: it computes complex spectra.
    network.encode_features = torch.compile(
        network.encode_features, dynamic=True
    )
    return network


def waveforms(variant, batch, samples):
    """Speech-like input; each row is another part of one long signal."""
    signal = ParityCase(f"{variant}-vox2").waveform(batch * samples)
    return signal.view(batch, samples)


def multiply_accumulates(variant, seconds):
    """Of one utterance, front-end excluded."""
    network = build_network(
        ParityCase(f"{variant}-vox2").manifest["model_config"]
    )
    waveform = waveforms(variant, 1, round(seconds * SAMPLE_RATE))
    features, _ = network.front_end(waveform)
    network.eval().to("meta")
    counter = FlopCounterMode(display=False)
    # The counter knows the plain form of attention only.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        network.encode_features(features.to("meta"))
    return counter.get_total_flops() / 2
