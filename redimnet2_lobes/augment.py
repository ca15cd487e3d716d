"""Augmentation of training crops.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import numpy as np
import torch


class NoiseAndGain:
    """Adds coloured noise to some utterances and a gain to all.

    Needs no corpus of noises: the noise is Gaussian, with a power that falls
    by a random slope between white (0 dB per octave) and brown (6 dB).

    Arguments
    ---------
    noise_probability : float
        Share of the utterances that get noise.
    snr : list of float
        Lowest and highest signal-to-noise ratio, dB.
    gain : list of float
        Lowest and highest gain, dB. What would exceed full scale is scaled
        down to it.

    Example
    -------
    >>> augment = NoiseAndGain(noise_probability=1.0)
    >>> augment(torch.randn(16000) / 10, np.random.default_rng(1)).shape
    torch.Size([16000])
    """

    def __init__(
        self, noise_probability=0.6, snr=(0.0, 15.0), gain=(-18.0, 6.0)
    ):
        if not 0 <= noise_probability <= 1:
            raise ValueError(
                f"noise_probability: {noise_probability!r} is not in [0, 1]"
            )
        for key, limits in (("snr", snr), ("gain", gain)):
            if len(limits) != 2 or limits[0] > limits[1]:
                raise ValueError(
                    f"{key}: {limits!r} is not [lowest, highest] in dB"
                )
        self.noise_probability = noise_probability
        self.snr = snr
        self.gain = gain

    def __call__(self, waveform, random):
        """Augments one utterance.

        Arguments
        ---------
        waveform : torch.Tensor
            Waveform [samples], full scale at 1.
        random : numpy.random.Generator
            Makes the choices.

        Returns
        -------
        torch.Tensor
            Waveform [samples].
        """
        if random.random() < self.noise_probability:
            noise = coloured_noise(len(waveform), random.uniform(0, 2), random)
            ratio = 10 ** (random.uniform(*self.snr) / 20)
            level = waveform.square().mean().sqrt() / ratio
            waveform = waveform + level * noise
        waveform = waveform * 10 ** (random.uniform(*self.gain) / 20)
        return waveform / waveform.abs().max().clamp(min=1.0)


def coloured_noise(samples, slope, random):
    """Gaussian noise with unit power.

    Arguments
    ---------
    samples : int
        Length.
    slope : float
        The power falls with this power of the frequency: 0 is white noise, 1
        pink, 2 brown.
    random : numpy.random.Generator
        Draws the noise.

    Returns
    -------
    torch.Tensor
        Noise [samples].

    Example
    -------
    >>> noise = coloured_noise(16000, 1.0, np.random.default_rng(1))
    >>> round(noise.square().mean().item(), 3)
    1.0
    """
    spectrum = np.fft.rfft(random.standard_normal(samples))
    spectrum /= np.maximum(np.arange(len(spectrum)), 1) ** (slope / 2)
    noise = np.fft.irfft(spectrum, samples)
    noise /= np.sqrt(np.mean(noise**2))
    return torch.from_numpy(noise.astype(np.float32))
