"""Exported files for the tests of the web package, and what Python makes."""

from pathlib import Path

import torch

from redimnet2_lobes.onnx.encoder import OnnxEncoder

ROOT = Path(__file__).parents[3]
WEB = ROOT / "web"
VOICES = Path("/usr/share/sounds/alsa")  # recordings of one woman, 48 kHz
FORMS = ("onnx", "plain", "fixed", "int8", "features")
FIXED_SECONDS = 1.5
# Of embeddings, where the browser resamples by its own filter: up to 6e-3 here.
RESAMPLED = 2e-2


def embedding_of(path, waveform):
    """The embedding [embedding] by ONNX Runtime from Python."""
    return OnnxEncoder(path).encode_batch(waveform).flatten()


def close(found, expected, tolerance=1e-4):
    """Whether embeddings are equal, relative to the largest value."""
    difference = (torch.tensor(found) - expected).abs().max()
    return bool(difference <= tolerance * expected.abs().max())
