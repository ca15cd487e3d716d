"""Embeddings of many utterances.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import torch
from speechbrain.dataio import audio_io
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from redimnet2_lobes.audio import load_waveform
from redimnet2_lobes.front_end import SAMPLE_RATE


def encode_utterances(
    encode_batch,
    utterances,
    seconds_per_batch=60.0,
    load=load_waveform,
    maximum_seconds=None,
):
    """Computes the embedding of each distinct utterance once.

    Utterances are sorted by length, so that batches hold little padding, and
    each batch is filled up to a budget of seconds, so that memory is bounded
    however many files there are. An utterance longer than the budget is a
    batch of its own. The batches depend on the set of utterances only, not on
    their order.

    Arguments
    ---------
    encode_batch : callable
        Maps padded waveforms [batch, time] and their lengths relative to the
        longest [batch], both on the CPU, to embeddings [batch, 1, embedding],
        such as ``EncoderClassifier.encode_batch``. In training, call
        ``eval()`` on its modules first.
    utterances : iterable of str or Path
        The audio files.
    seconds_per_batch : float
        Seconds of audio in a batch, padding included.
    load : callable
        Maps a path to a waveform [samples] at 16 kHz.
    maximum_seconds : float or None
        Seconds to use from the start of each utterance; None uses all.

    Returns
    -------
    dict
        Each path, as given, to its embedding [embedding], float32 on the CPU.

    Raises
    ------
    AudioError
        If a file cannot be read. What ``load`` raises passes through.
    ValueError
        If the network gives NaN or infinite values for a file, or if
        ``seconds_per_batch`` or ``maximum_seconds`` is not above 0.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> for name, samples in (("a.wav", 8000), ("b.wav", 24000)):
    ...     audio_io.save(folder / name, torch.rand(1, samples), 16000)
    >>> def encode_batch(wavs, wav_lens):  # in place of a network
    ...     return torch.stack([wavs.sum(1), wav_lens], dim=1).unsqueeze(1)
    >>> embeddings = encode_utterances(
    ...     encode_batch, [folder / "a.wav", folder / "b.wav"]
    ... )
    >>> embeddings[folder / "a.wav"].shape
    torch.Size([2])
    """
    for name, seconds in (
        ("seconds_per_batch", seconds_per_batch),
        ("maximum_seconds", maximum_seconds),
    ):
        if seconds is not None and not seconds > 0:
            raise ValueError(f"{name}: must be above 0, not {seconds}")

    durations = {}
    for path in utterances:
        if path not in durations:
            durations[path] = _duration(path, load)
            if maximum_seconds is not None:
                durations[path] = min(durations[path], maximum_seconds)
    # Longest first: if a batch does not fit into memory, it is the first. The
    # path decides between equals, so that no order of the input matters.
    ordered = sorted(durations, key=lambda path: (-durations[path], str(path)))

    budget = seconds_per_batch * SAMPLE_RATE
    crop = None
    if maximum_seconds is not None:
        crop = max(1, round(maximum_seconds * SAMPLE_RATE))

    embeddings = {}
    batch = {}
    with tqdm(total=len(ordered), desc="embeddings", unit="file") as progress:
        for path in ordered:
            waveform = load(path)[:crop]
            # Headers may be wrong, so the budget counts what was read.
            longest = max(map(len, [waveform, *batch.values()]))
            if batch and longest * (len(batch) + 1) > budget:
                embeddings.update(_encode(encode_batch, batch))
                progress.update(len(batch))
                batch = {}
            batch[path] = waveform
        if batch:
            embeddings.update(_encode(encode_batch, batch))
            progress.update(len(batch))
    return embeddings


def _duration(path, load):
    """Seconds of an audio file, from its header alone where it has one."""
    try:
        return audio_io.info(path).duration
    except RuntimeError:
        # `load` knows better what is wrong, and names the file.
        return len(load(path)) / SAMPLE_RATE


def _encode(encode_batch, batch):
    """Embeddings of a dict of waveforms, under the same keys."""
    lengths = torch.tensor([len(waveform) for waveform in batch.values()])
    with torch.no_grad():
        embeddings = encode_batch(
            pad_sequence(list(batch.values()), batch_first=True),
            lengths / lengths.max(),
        )
    embeddings = embeddings.squeeze(1).float().cpu()
    for path, embedding in zip(batch, embeddings, strict=True):
        if not embedding.isfinite().all():
            raise ValueError(
                f"{path}: its embedding is not finite; check the weights, or "
                "leave the file out"
            )
        # A copy, so that one kept embedding does not keep a whole batch.
        yield path, embedding.clone()
