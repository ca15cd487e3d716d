"""Conversations simulated from utterances of a corpus, with who speaks when."""

import random
from pathlib import Path

import torch

from redimnet2_lobes.data.audio import load_waveform
from redimnet2_lobes.data.trials import read_trials

RATE = 16000


def unseen_voices(corpus):
    """The utterances [paths below wav/] of each speaker of the test trials."""
    voices = {}
    for _, *names in read_trials(Path(corpus) / "veri_test2.txt"):
        for name in names:
            voices.setdefault(name.split("/")[0], set()).add(name)
    return {speaker: sorted(names) for speaker, names in voices.items()}


def training_voices(corpus):
    """Those of each speaker that the demo's model was trained on."""
    unseen, voices = unseen_voices(corpus), {}
    for path in sorted((Path(corpus) / "wav").glob("*/*/*.wav")):
        name = path.relative_to(Path(corpus) / "wav").as_posix()
        if (speaker := name.split("/")[0]) not in unseen:
            voices.setdefault(speaker, []).append(name)
    return voices


def converse(corpus, voices, seed, overlapping, most_utterances=12):
    """A conversation [time] of all voices, and its (start, end, speaker).

    Each speaks all of up to so many utterances once, one or two in a turn. A
    fifth of the turns is cut to 0.8 to 1.6 s. Between turns are 0.1 to 0.8 s;
    where it is overlapping, half of them begin 0.3 to 1.5 s before the one
    before has ended. Each voice has a loudness of its own, within 6 dB.
    """
    draw = random.Random(seed)
    turns = []
    gains = {}
    for speaker in sorted(voices):
        gains[speaker] = 10 ** draw.uniform(-0.3, 0)
        names = list(voices[speaker])
        names = draw.sample(names, min(most_utterances, len(names)))
        while names:
            size = draw.choice([1, 2])
            turns.append((speaker, names[:size]))
            names = names[size:]
    draw.shuffle(turns)
    parts, reference, end = [], [], 0
    for speaker, names in turns:
        waveform = torch.cat(
            [load_waveform(Path(corpus) / "wav" / name) for name in names]
        )
        if draw.random() < 0.2:
            waveform = waveform[: round(draw.uniform(0.8, 1.6) * RATE)]
        start = end + round(draw.uniform(0.1, 0.8) * RATE)
        another = bool(reference) and reference[-1][2] != speaker
        if overlapping and another and draw.random() < 0.5:
            # Not so far that a third speaks, too.
            before = end - round(reference[-1][0] * RATE)
            least = reference[-2][1] * RATE if len(reference) > 1 else 0
            start = end - round(draw.uniform(0.3, 1.5) * RATE)
            start = max(start, end - min(before, len(waveform)) // 2)
            start = max(start, round(least))
        parts.append((start, gains[speaker] * waveform))
        reference.append(
            (start / RATE, (start + len(waveform)) / RATE, speaker)
        )
        end = max(end, start + len(waveform))
    generator = torch.Generator().manual_seed(seed)
    conversation = 1e-4 * torch.randn(end + RATE // 2, generator=generator)
    for start, waveform in parts:
        conversation[start : start + len(waveform)] += waveform
    return conversation, reference
