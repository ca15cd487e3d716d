"""Lengths of the utterances in a padded batch.

SpeechBrain hands a padded batch around as waveforms [batch, time] and lengths
[batch] relative to the longest utterance. The network needs them as counts of
samples and frames, and as masks. Where every utterance fills the batch there
is nothing to mask, and ``None`` says so: no mask, no cost.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import torch
from torch import Tensor

from redimnet2_lobes.models.precision import at_least_float32


def valid_samples(wavs: Tensor, wav_lens: Tensor | None) -> Tensor | None:
    """Turns relative lengths into counts of samples.

    Arguments
    ---------
    wavs
        Padded waveforms [batch, time] in floating point; a ValueError if not.
    wav_lens
        Lengths relative to ``time``, in (0, 1], [batch]; None where none is
        padded. Lengths in samples or seconds are a ValueError, and so is any
        other shape of either.

    Returns
    -------
    torch.Tensor or None
        Samples of each utterance [batch], int64; None where every utterance
        is as long as the batch.

    Example
    -------
    >>> valid_samples(torch.zeros(2, 16000), torch.tensor([1.0, 0.25]))
    tensor([16000,  4000])
    >>> valid_samples(torch.zeros(2, 16000), torch.ones(2)) is None
    True
    """
    if wavs.dim() != 2 or not len(wavs):
        raise ValueError(
            f"wavs: expected one or more waveforms [batch, time], not a tensor "
            f"of shape {list(wavs.shape)}"
        )
    if not wavs.is_floating_point():
        raise ValueError(
            f"wavs: expected samples from -1 to 1 in floating point, not "
            f"{wavs.dtype}; divide those of 16 bits by 32768"
        )
    if wav_lens is None:
        return None
    shape = list(wav_lens.shape)
    if shape != [len(wavs)] or not bool(
        ((wav_lens > 0) & (wav_lens <= 1)).all()
    ):
        raise ValueError(
            f"wav_lens: expected the length of each of the {len(wavs)} "
            "waveforms [batch] relative to the batch's, above 0 and at most 1, "
            f"not {wav_lens.flatten().tolist()[:3]} of shape {shape}; divide "
            f"samples by {wavs.shape[1]}"
        )
    # float32 holds 24 bits: sample counts up to 17 minutes come back exactly.
    samples = at_least_float32(wav_lens) * wavs.shape[1]
    samples = samples.round().long()
    if bool((samples == wavs.shape[1]).all()):
        return None
    return samples.to(wavs.device)


def check_not_shorter(
    wavs: Tensor, samples: Tensor | None, minimum: int
) -> None:
    """Refuses, with a ValueError, a batch with utterances that are too short.

    Waveforms and samples are those of `valid_samples`.

    Example
    -------
    >>> check_not_shorter(torch.zeros(1, 399), None, 400)
    Traceback (most recent call last):
    ValueError: an utterance has 399 samples at 16 kHz; at least 400 (25 ms) \
are needed
    """
    shortest = wavs.shape[1] if samples is None else int(samples.min())
    if shortest < minimum:
        raise ValueError(
            f"an utterance has {shortest} samples at 16 kHz; at least "
            f"{minimum} (25 ms) are needed"
        )


def repeat_short(
    wavs: Tensor, samples: Tensor | None, minimum: int
) -> tuple[Tensor, Tensor | None]:
    """Repeats utterances that are shorter than a minimum until they reach it.

    Arguments
    ---------
    wavs
        Padded waveforms [batch, time]; they become [batch, max(time, minimum)].
    samples
        Samples of each utterance [batch]; None where none is padded.
    minimum
        Samples that every utterance gets at least.

    Example
    -------
    >>> repeat_short(torch.tensor([[1.0, 2.0, 3.0]]), None, 5)[0]
    tensor([[1., 2., 3., 1., 2.]])
    """
    if samples is None:
        times = -(-minimum // wavs.shape[1])
        if times > 1:
            wavs = wavs.repeat(1, times)[:, :minimum]
        return wavs, None
    if bool((samples >= minimum).all()):
        return wavs, samples
    position = torch.arange(max(wavs.shape[1], minimum), device=wavs.device)
    position = position.expand(wavs.shape[0], -1)
    length = samples.unsqueeze(1)
    # Only short utterances wrap around; the others keep their padding.
    wrapped = torch.where(length < minimum, position % length, position)
    wavs = wavs.gather(1, wrapped.clamp(max=wavs.shape[1] - 1))
    return wavs, samples.clamp(min=minimum)


def length_of_each(wavs: Tensor, samples: Tensor | None) -> list[int]:
    """Samples of each utterance of a batch, as numbers of the host.

    Waveforms and samples are those of `valid_samples`.

    Example
    -------
    >>> length_of_each(torch.zeros(2, 800), None)
    [800, 800]
    """
    return [wavs.shape[1]] * len(wavs) if samples is None else samples.tolist()


def valid_mask(lengths: Tensor, size: int) -> Tensor:
    """Where each utterance is valid [batch, size].

    Arguments
    ---------
    lengths
        Valid samples or frames of each utterance [batch].
    size
        Samples or frames of the padded batch.

    Example
    -------
    >>> valid_mask(torch.tensor([1, 3]), 3)
    tensor([[ True, False, False],
            [ True,  True,  True]])
    """
    positions = torch.arange(size, device=lengths.device)
    return positions < lengths.unsqueeze(1)
