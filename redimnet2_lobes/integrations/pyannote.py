"""Speaker embeddings for the pipelines of pyannote.audio 4.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import os
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from redimnet2_lobes.door import load, space_of
from redimnet2_lobes.models.front_end import SAMPLE_RATE, WINDOW
from redimnet2_lobes.models.lengths import valid_mask
from redimnet2_lobes.onnx.encoder import OnnxEncoder

try:
    from pyannote.audio import Model  # pyright: ignore[reportMissingImports]
    from pyannote.audio.core.plda import (  # pyright: ignore[reportMissingImports]
        PLDA,
    )
except ImportError as error:
    raise ImportError(
        f"to use pyannote.audio, pip install pyannote.audio ({error})"
    ) from None


class SpeakerEncoder(Model):
    """A model of this project, as a speaker embedding of pyannote.audio.

    ``SpeakerDiarization(embedding=SpeakerEncoder(source))`` clusters its
    embeddings. ``PretrainedSpeakerEmbedding(SpeakerEncoder(source))`` gives
    them as NumPy arrays [batch, embedding].

    Arguments
    ---------
    source
        What ``redimnet2_lobes.load`` takes, with its errors: a model folder,
        the name of a published checkpoint or of a model on the hub, a .onnx
        file.

    Example
    -------
    >>> from redimnet2_lobes.models.redimnet2 import ReDimNet2
    >>> from redimnet2_lobes.pretrained.model_folder import write_model_folder
    >>> folder = getfixture("tmp_path") / "model"
    >>> network = ReDimNet2.from_variant("b0").eval()
    >>> write_model_folder(folder, network, "An example")
    >>> encoder = SpeakerEncoder(folder)
    >>> mask = torch.zeros(2, 100)
    >>> mask[0, :50] = 1  # nothing of the second
    >>> embeddings = encoder(torch.randn(2, 1, 32000), weights=mask)
    >>> embeddings.shape, embeddings.isnan().all(dim=1)
    (torch.Size([2, 192]), tensor([False,  True]))
    """

    def __init__(self, source: str | os.PathLike) -> None:
        super().__init__(sample_rate=SAMPLE_RATE)
        self.encoder = load(source)
        self.space = space_of(self.encoder)  # of what it gives
        self.dimension = self._encode(torch.zeros(1, WINDOW)).shape[1]

    def forward(
        self, waveforms: Tensor, weights: Tensor | None = None
    ) -> Tensor:
        """Computes the embeddings of what masks select.

        Each is that of the selected samples alone, one after the other, however
        many are selected of the others.

        Arguments
        ---------
        waveforms
            Waveforms at 16 kHz [batch, 1, time].
        weights
            Masks [batch, frames]: frames of equal duration, of any rate, are
            selected where they are above 0.5. None selects everything.

        Returns
        -------
        torch.Tensor
            Embeddings [batch, embedding]; NaN where a mask selects less than
            25 ms, which pyannote.audio leaves out of its clusters.

        Raises
        ------
        ValueError
            If a shape is not as above, a sample or a mask is not finite, or
            there are less than 25 ms without a mask.
        """
        if waveforms.dim() != 3 or waveforms.shape[1] != 1:
            raise ValueError(
                "waveforms: expected [batch, 1, time], not a tensor of shape "
                f"{list(waveforms.shape)}"
            )
        waveforms = waveforms.squeeze(1)
        _check_finite("waveforms", waveforms)
        if weights is None:
            return self._encode(waveforms)
        if weights.dim() != 2 or len(weights) != len(waveforms):
            raise ValueError(
                f"weights: expected [batch, frames], one mask for each of the "
                f"{len(waveforms)} waveforms, not a tensor of shape "
                f"{list(weights.shape)}"
            )
        _check_finite("weights", weights)
        size = waveforms.shape[1]
        selected = interpolate(weights.unsqueeze(1).float(), size)[:, 0] > 0.5
        samples = selected.sum(dim=1)
        enough = samples >= WINDOW
        embeddings = waveforms.new_full(
            (len(waveforms), self.dimension), torch.nan
        )
        if enough.any():
            samples = samples[enough]
            longest = int(samples.max())
            wavs = waveforms.new_zeros(len(samples), longest)
            # Both sides name the same number of samples in each row.
            wavs[valid_mask(samples, longest)] = waveforms[enough][
                selected[enough]
            ]
            embeddings[enough] = self._encode(wavs, samples / longest)
        return embeddings

    def _encode(self, wavs: Tensor, wav_lens: Tensor | None = None) -> Tensor:
        if not isinstance(self.encoder, OnnxEncoder):
            # An EncoderClassifier moves waveforms to where it was loaded.
            self.encoder.device = wavs.device
        embeddings = self.encoder.encode_batch(wavs, wav_lens)
        return embeddings.squeeze(1).to(wavs.device)


class NoPlda(PLDA):
    """Stands for a PLDA, which pipelines that use none would download.

    Example
    -------
    >>> NoPlda()(np.zeros((1, 192)))
    Traceback (most recent call last):
    ValueError: clustering: VBxClustering needs a PLDA of these embeddings; \
take AgglomerativeClustering
    """

    def __init__(self) -> None:
        pass

    def __call__(self, embeddings: np.ndarray) -> NoReturn:
        """Refuses, with a ValueError, to compare embeddings."""
        raise ValueError(
            "clustering: VBxClustering needs a PLDA of these embeddings; take "
            "AgglomerativeClustering"
        )


def _check_finite(name: str, values: Tensor) -> None:
    if not values.isfinite().all():
        raise ValueError(
            f"{name}: NaN or infinite values; check where they are from"
        )
