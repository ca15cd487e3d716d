"""Log-mel front-ends of ReDimNet2.

A front-end turns waveforms [batch, time] at 16 kHz into log-mel features
[batch, frames, mel bins], in the waveforms' precision but at least in float32,
autocast or not. A gradient reaches waveforms that ask for one. It is part of
the embedding model, since it needs the exact lengths in samples, and
SpeechBrain's inference classes hand lengths to the embedding model only.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

from collections.abc import Callable
from typing import Any

import torch
import torchaudio
from torch import Tensor, nn

from redimnet2_lobes.models.lengths import valid_mask
from redimnet2_lobes.models.precision import at_least_float32

SAMPLE_RATE = 16000
WINDOW = 400  # samples, 25 ms
HOP = 160  # samples, 10 ms
FFT_LENGTH = 512
LOWEST_FREQUENCY = 20.0  # Hz
HIGHEST_FREQUENCY = 7600.0  # Hz
PRE_EMPHASIS = 0.97


class FrontEnd(nn.Module):
    """Window and mel filters, which keep their precision.

    Arguments
    ---------
    window
        Window [samples].
    mel_filters
        Weights [spectrum bins, mel bins].

    Example
    -------
    >>> FrontEnd(torch.ones(400), torch.ones(257, 72)).half().window.dtype
    torch.float32
    """

    window: Tensor
    mel_filters: Tensor

    def __init__(self, window: Tensor, mel_filters: Tensor) -> None:
        super().__init__()
        self.mel_bins = mel_filters.shape[1]
        self.register_buffer("window", window, persistent=False)
        self.register_buffer("mel_filters", mel_filters, persistent=False)

    def arguments(self) -> dict[str, Any]:
        """Arguments that build a front-end like this one."""
        return {"mel_bins": self.mel_bins}

    def power_spectrum(self, wavs: Tensor) -> Tensor:
        """Power [batch, frames, bins] of windows of waveforms [batch, time]."""
        return power_spectrum(wavs, self.window)

    def forward(
        self, wavs: Tensor, samples: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Computes the features.

        Arguments
        ---------
        wavs
            Waveforms at 16 kHz [batch, time].
        samples
            Valid samples of each utterance [batch]; None where none is padded.

        Returns
        -------
        features
            Features [batch, frames, mel bins], zero beyond each utterance.
        frames
            Valid frames of each utterance [batch]; None where none is padded.
        """
        with torch.autocast(wavs.device.type, enabled=False):
            return self.features(at_least_float32(wavs), samples)

    def features(
        self, wavs: Tensor, samples: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """What ``forward`` gives, of waveforms in float32 or float64."""
        raise NotImplementedError

    def _apply(
        self, fn: Callable[[Tensor], Tensor], recurse: bool = True
    ) -> "FrontEnd":
        # torch's one way to all moves and casts. Of network.half() the
        # constants take no part: they would be rounded to three digits.
        constants = dict(self.named_buffers())
        super()._apply(fn, recurse)
        for name, constant in constants.items():
            moved = getattr(self, name)
            if moved.dtype != constant.dtype:
                setattr(self, name, constant.to(moved.device))
        return self


class LogMel(FrontEnd):
    """Log-mel features of every released ReDimNet2 checkpoint ("tf").

    Each utterance is normalized to zero mean and unit variance and
    pre-emphasized; its power spectrum (25 ms Hamming windows every 10 ms) is
    weighted by triangles that are linear in mel; the mean of the logarithm
    over the utterance is subtracted. No learnable parameters.

    Example
    -------
    >>> front_end = LogMel()
    >>> features, frames = front_end(torch.randn(2, 32000))
    >>> features.shape, frames
    (torch.Size([2, 199, 72]), None)
    """

    def __init__(self, mel_bins: int = 72) -> None:
        window = torch.hamming_window(
            WINDOW, periodic=False, dtype=torch.float64
        )
        super().__init__(window.float(), mel_triangles(mel_bins))

    def features(
        self, wavs: Tensor, samples: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """What ``forward`` gives, of waveforms in float32 or float64."""
        wavs = normalize_waveform(wavs, samples, epsilon=1e-8)
        wavs = pre_emphasize(wavs, samples)
        wavs = nn.functional.pad(wavs, (HOP // 2, HOP // 2))
        power = self.power_spectrum(wavs)[..., :-1]
        mel = power.clamp(1e-8, 1e8) @ self.mel_filters.to(power.dtype)
        features = (mel.clamp(1e-8, 1e8) + 1e-8).log()
        frames = None
        if samples is not None:
            frames = (samples + HOP - WINDOW) // HOP + 1
        return subtract_mean(features, frames), frames


class TorchaudioLogMel(FrontEnd):
    """Log-mel features as torchaudio's MelSpectrogram gives them ("pt").

    Frames are centred and the signal is reflected at both ends of each
    utterance, which in a padded batch are not the ends of the tensor.

    Arguments
    ---------
    mel_bins
        Mel bins.
    normalize
        Whether each utterance is first normalized to zero mean and unit
        variance.

    Example
    -------
    >>> front_end = TorchaudioLogMel()
    >>> features, frames = front_end(torch.randn(2, 32000))
    >>> features.shape, frames
    (torch.Size([2, 201, 72]), None)
    """

    def __init__(self, mel_bins: int = 72, normalize: bool = False) -> None:
        mel_filters = torchaudio.functional.melscale_fbanks(
            n_freqs=FFT_LENGTH // 2 + 1,
            f_min=LOWEST_FREQUENCY,
            f_max=HIGHEST_FREQUENCY,
            n_mels=mel_bins,
            sample_rate=SAMPLE_RATE,
        )
        super().__init__(torch.hamming_window(WINDOW), mel_filters)
        self.normalize = normalize

    def arguments(self) -> dict[str, Any]:
        """Arguments that build a front-end like this one."""
        return {"mel_bins": self.mel_bins, "normalize": self.normalize}

    def features(
        self, wavs: Tensor, samples: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """What ``forward`` gives, of waveforms in float32 or float64."""
        if self.normalize:
            wavs = normalize_waveform(wavs, samples, epsilon=1e-6)
        wavs = pre_emphasize(wavs, samples)
        # Frames of FFT_LENGTH are centred on multiples of HOP; the window
        # stands in the middle of each frame.
        wavs = reflect_ends(wavs, samples, WINDOW // 2)
        power = self.power_spectrum(wavs)
        mel = power @ self.mel_filters.to(power.dtype)
        frames = None if samples is None else samples // HOP + 1
        return subtract_mean((mel + 1e-6).log(), frames), frames


def mel_triangles(mel_bins: int) -> Tensor:
    """Triangular filters, linear in mel, between 20 and 7600 Hz.

    Returns
    -------
    torch.Tensor
        Weights [spectrum bins (256), mel bins]. The bins are taken to be
        spaced evenly from 0 to 8000 Hz inclusive, as in the published code.

    Example
    -------
    >>> mel_triangles(72).shape
    torch.Size([256, 72])
    """

    def mel(frequency: Tensor) -> Tensor:
        return 2595.0 * torch.log10(1.0 + frequency / 700.0)

    frequencies = torch.linspace(
        0, SAMPLE_RATE / 2, FFT_LENGTH // 2, dtype=torch.float64
    )
    limits = torch.tensor(
        [LOWEST_FREQUENCY, HIGHEST_FREQUENCY], dtype=torch.float64
    )
    lowest, highest = mel(limits).tolist()
    edges = torch.linspace(lowest, highest, mel_bins + 2, dtype=torch.float64)
    rising = (mel(frequencies)[:, None] - edges[:-2]) / edges.diff()[:-1]
    falling = (edges[2:] - mel(frequencies)[:, None]) / edges.diff()[1:]
    weights = torch.minimum(rising, falling).clamp(min=0)
    weights[0] = 0
    return weights.float()


def power_spectrum(wavs: Tensor, window: Tensor) -> Tensor:
    """Power [batch, frames, spectrum bins (257)] of waveforms [batch, time].

    Example
    -------
    >>> power_spectrum(torch.randn(2, 1600), torch.hamming_window(400)).shape
    torch.Size([2, 8, 257])
    """
    frames = wavs.unfold(1, len(window), HOP) * window
    spectrum = torch.fft.rfft(frames, n=FFT_LENGTH)
    return spectrum.real.square() + spectrum.imag.square()


def spectrum_basis(window: Tensor, bins: int) -> Tensor:
    """What a window of samples is multiplied by for its spectrum.

    Returns
    -------
    torch.Tensor
        Cosines, then sines, of each bin [window, 2 * bins], float64.

    Example
    -------
    >>> spectrum_basis(torch.hamming_window(400), 257).shape
    torch.Size([400, 514])
    """
    frequency = torch.arange(bins, dtype=torch.float64, device=window.device)
    time = torch.arange(len(window), device=window.device)
    angle = 2 * torch.pi / FFT_LENGTH * time[:, None] * frequency
    return window[:, None] * torch.cat([angle.cos(), angle.sin()], 1)


def normalize_waveform(
    wavs: Tensor, samples: Tensor | None, epsilon: float
) -> Tensor:
    """Gives each utterance zero mean and unit (biased) variance.

    Arguments
    ---------
    wavs
        Waveforms [batch, time].
    samples
        Valid samples [batch]; beyond them the result is zero.
    epsilon
        Added to the standard deviation.

    Example
    -------
    >>> wavs = torch.tensor([[1.0, 3.0, 5.0, 7.0], [1.0, 3.0, 9.0, 9.0]])
    >>> normalize_waveform(wavs, torch.tensor([4, 2]), 1e-8)[1]
    tensor([-1.,  1.,  0.,  0.])
    """
    # The slope of a root of 0, of a silent utterance, is infinite.
    least = torch.finfo(wavs.dtype).tiny
    if samples is None:
        variance, mean = torch.var_mean(wavs, 1, correction=0, keepdim=True)
        return (wavs - mean) / (variance.clamp(min=least).sqrt() + epsilon)
    padding = ~valid_mask(samples, wavs.shape[1])
    count = samples.unsqueeze(1)
    # masked_fill, not a product: the padding may hold NaN.
    mean = wavs.masked_fill(padding, 0).sum(1, keepdim=True) / count
    wavs = (wavs - mean).masked_fill(padding, 0)
    variance = wavs.square().sum(1, keepdim=True) / count
    return wavs / (variance.clamp(min=least).sqrt() + epsilon)


def pre_emphasize(wavs: Tensor, samples: Tensor | None) -> Tensor:
    """Subtracts 0.97 times the sample before; the first sees the second.

    Arguments
    ---------
    wavs
        Waveforms [batch, time].
    samples
        Valid samples [batch]; beyond them the result is zero.

    Example
    -------
    >>> pre_emphasize(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([2]))
    tensor([[-0.9400,  1.0300,  0.0000]])
    """
    before = nn.functional.pad(wavs[:, None], (1, 0), mode="reflect")[:, 0]
    wavs = wavs - PRE_EMPHASIS * before[:, :-1]
    if samples is not None:
        wavs = wavs.masked_fill(~valid_mask(samples, wavs.shape[1]), 0)
    return wavs


def reflect_ends(wavs: Tensor, samples: Tensor | None, size: int) -> Tensor:
    """Extends each utterance by its own reflection on both sides.

    Arguments
    ---------
    wavs
        Waveforms [batch, time]; they become [batch, time + 2 * size].
    samples
        Valid samples [batch], each more than ``size``.
    size
        Samples added on each side.

    Example
    -------
    >>> reflect_ends(torch.arange(4.0).unsqueeze(0), torch.tensor([3]), 1)
    tensor([[1., 0., 1., 2., 1., 0.]])
    """
    if samples is None:
        return nn.functional.pad(
            wavs[:, None], (size, size), mode="reflect"
        ).squeeze(1)
    last = samples.unsqueeze(1) - 1
    position = torch.arange(-size, wavs.shape[1] + size, device=wavs.device)
    reflected = last - (last - position.abs()).abs()
    # Past the reflection stand frames that nothing reads.
    return wavs.gather(1, reflected.clamp(min=0))


def subtract_mean(features: Tensor, frames: Tensor | None) -> Tensor:
    """Subtracts the mean over the frames of each utterance.

    Arguments
    ---------
    features
        Features [batch, frames, mel bins].
    frames
        Valid frames [batch]; beyond them the result is zero.

    Example
    -------
    >>> features = torch.tensor([[[1.0], [3.0], [8.0]]])
    >>> subtract_mean(features, torch.tensor([2])).flatten()
    tensor([-1.,  1.,  0.])
    """
    if frames is None:
        return features - features.mean(1, keepdim=True)
    padding = ~valid_mask(frames, features.shape[1]).unsqueeze(2)
    total = features.masked_fill(padding, 0).sum(1, keepdim=True)
    return (features - total / frames[:, None, None]).masked_fill(padding, 0)
