"""The log-mel front-end of ReDimNet2.

It turns waveforms [batch, time] at 16 kHz into log-mel features
[batch, frames, mel bins], in the waveforms' precision but at least in float32,
autocast or not. A gradient reaches waveforms that ask for one. It is part of
the embedding model, since it needs the exact lengths in samples, and
SpeechBrain's inference classes hand lengths to the embedding model only.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import torch
from torch import nn

from redimnet2_lobes.models.lengths import valid_mask
from redimnet2_lobes.models.precision import at_least_float32

SAMPLE_RATE = 16000
WINDOW = 400  # samples, 25 ms
HOP = 160  # samples, 10 ms
FFT_LENGTH = 512
LOWEST_FREQUENCY = 20.0  # Hz
HIGHEST_FREQUENCY = 7600.0  # Hz
PRE_EMPHASIS = 0.97
EPSILON = 1e-8  # added to the standard deviation of an utterance


class LogMel(nn.Module):
    """Log-mel features of every released ReDimNet2 checkpoint ("tf").

    Each utterance is normalized to zero mean and unit variance and
    pre-emphasized; its power spectrum (25 ms Hamming windows every 10 ms) is
    weighted by triangles that are linear in mel; the mean of the logarithm
    over the utterance is subtracted. No learnable parameters.

    Arguments
    ---------
    mel_bins : int
        Mel bins.

    Example
    -------
    >>> front_end = LogMel()
    >>> features, frames = front_end(torch.randn(2, 32000))
    >>> features.shape, frames
    (torch.Size([2, 199, 72]), None)
    """

    def __init__(self, mel_bins=72):
        super().__init__()
        self.mel_bins = mel_bins
        window = torch.hamming_window(
            WINDOW, periodic=False, dtype=torch.float64
        )
        self.register_buffer("window", window.float(), persistent=False)
        self.register_buffer(
            "mel_filters", mel_triangles(mel_bins), persistent=False
        )

    def _apply(self, fn, recurse=True):
        # torch's one way to all moves and casts. Of network.half() the
        # constants take no part: they would be rounded to three digits.
        constants = dict(self.named_buffers())
        super()._apply(fn, recurse)
        for name, constant in constants.items():
            moved = getattr(self, name)
            if moved.dtype != constant.dtype:
                setattr(self, name, constant.to(moved.device))
        return self

    def arguments(self):
        """Arguments that build a front-end like this one.

        Returns
        -------
        dict
        """
        return {"mel_bins": self.mel_bins}

    def forward(self, wavs, samples=None):
        """Computes the features.

        Arguments
        ---------
        wavs : torch.Tensor
            Waveforms at 16 kHz [batch, time].
        samples : torch.Tensor or None
            Valid samples of each utterance [batch]; None where none is padded.

        Returns
        -------
        features : torch.Tensor
            Features [batch, frames, mel bins], zero beyond each utterance.
        frames : torch.Tensor or None
            Valid frames of each utterance [batch].
        """
        with torch.autocast(wavs.device.type, enabled=False):
            wavs = at_least_float32(wavs)
            wavs = normalize_waveform(wavs, samples)
            wavs = pre_emphasize(wavs, samples)
            wavs = nn.functional.pad(wavs, (HOP // 2, HOP // 2))
            power = power_spectrum(wavs, self.window)[..., :-1]
            mel = power.clamp(1e-8, 1e8) @ self.mel_filters.to(power.dtype)
            features = (mel.clamp(1e-8, 1e8) + 1e-8).log()
            frames = None
            if samples is not None:
                frames = (samples + HOP - WINDOW) // HOP + 1
            return subtract_mean(features, frames), frames


def mel_triangles(mel_bins):
    """Triangular filters, linear in mel, between 20 and 7600 Hz.

    Arguments
    ---------
    mel_bins : int
        Number of filters.

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

    def mel(frequency):
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


def power_spectrum(wavs, window):
    """Power spectrum of windows every 10 ms.

    Arguments
    ---------
    wavs : torch.Tensor
        Waveforms [batch, time].
    window : torch.Tensor
        Window [samples].

    Returns
    -------
    torch.Tensor
        Power [batch, frames, spectrum bins (257)].

    Example
    -------
    >>> power_spectrum(torch.randn(2, 1600), torch.hamming_window(400)).shape
    torch.Size([2, 8, 257])
    """
    frames = wavs.unfold(1, len(window), HOP) * window
    spectrum = torch.fft.rfft(frames, n=FFT_LENGTH)
    return spectrum.real.square() + spectrum.imag.square()


def normalize_waveform(wavs, samples):
    """Gives each utterance zero mean and unit (biased) variance.

    Arguments
    ---------
    wavs : torch.Tensor
        Waveforms [batch, time].
    samples : torch.Tensor or None
        Valid samples [batch].

    Returns
    -------
    torch.Tensor
        Waveforms [batch, time], zero beyond each utterance.

    Example
    -------
    >>> wavs = torch.tensor([[1.0, 3.0, 5.0, 7.0], [1.0, 3.0, 9.0, 9.0]])
    >>> normalize_waveform(wavs, torch.tensor([4, 2]))[1]
    tensor([-1.,  1.,  0.,  0.])
    """
    # The slope of a root of 0, of a silent utterance, is infinite.
    least = torch.finfo(wavs.dtype).tiny
    if samples is None:
        variance, mean = torch.var_mean(wavs, 1, correction=0, keepdim=True)
        return (wavs - mean) / (variance.clamp(min=least).sqrt() + EPSILON)
    valid = valid_mask(samples, wavs.shape[1])
    count = samples.unsqueeze(1)
    # masked_fill, not a product: the padding may hold NaN.
    mean = wavs.masked_fill(~valid, 0).sum(1, keepdim=True) / count
    wavs = (wavs - mean).masked_fill(~valid, 0)
    variance = wavs.square().sum(1, keepdim=True) / count
    return wavs / (variance.clamp(min=least).sqrt() + EPSILON)


def pre_emphasize(wavs, samples):
    """Subtracts 0.97 times the sample before; the first sees the second.

    Arguments
    ---------
    wavs : torch.Tensor
        Waveforms [batch, time].
    samples : torch.Tensor or None
        Valid samples [batch].

    Returns
    -------
    torch.Tensor
        Waveforms [batch, time], zero beyond each utterance.

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


def subtract_mean(features, frames):
    """Subtracts the mean over the frames of each utterance.

    Arguments
    ---------
    features : torch.Tensor
        Features [batch, frames, mel bins].
    frames : torch.Tensor or None
        Valid frames [batch].

    Returns
    -------
    torch.Tensor
        Features [batch, frames, mel bins], zero beyond each utterance.

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
