"""What embedding the speech alone does to the EER, in silence and in noise.

    python tests/benchmarks/speech_only.py --model=demo/trained/model \
        --corpus=demo/corpus

Each recording of the corpus' trials gets silence before and after it, or noise,
or both: always the same. Then the trials are scored twice: of all audio, and of
the speech that silero-vad finds.
"""

import argparse
import functools
from pathlib import Path

import torch
from benchmark import ROOT, commit, processor_name
from torch.nn.functional import normalize
from tqdm import tqdm

from redimnet2_lobes.data.audio import load_waveform
from redimnet2_lobes.data.speech import Speech, find_speech
from redimnet2_lobes.data.trials import read_trials
from redimnet2_lobes.inference.encode import encode_utterances
from redimnet2_lobes.models.front_end import SAMPLE_RATE
from redimnet2_lobes.pretrained.loading import load_model
from redimnet2_lobes.scoring.metrics import EER

ROOM = 30  # dB of the speech over the noise of a quiet room
# Of speech, in seconds: by silero-vad itself, others, and what is taken here.
BORDERS = ((0.1, 0.03), (0.1, 0.1), (0.3, 0.15), (0.5, 0.2), (1, 0.2))


def main(arguments=None):
    options = parse_arguments(arguments)
    trials = Trials(options.corpus)
    encode_batch = load_model(options.model).encode_batch
    lines = [
        f"{processor_name()}, torch {torch.__version__}, commit "
        f"{commit(ROOT)}; {len(trials.same):,} trials of {len(trials.names)} "
        "recordings. Where no speech is found, a recording has no trials of "
        "speech alone.",
        "",
        "| recordings | of all audio, EER % | of speech alone, EER % | speech, "
        "% of the time | without speech |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, change in tqdm(conditions().items()):
        random = torch.Generator().manual_seed(0)
        waveforms = [change(waveform, random) for waveform in trials.waveforms]
        found = [find_speech(each) for each in waveforms]
        alone = speech_of(waveforms, found)
        rates = [
            f"{100 * trials.eer(encode_batch, each):.2f}"
            for each in (waveforms, alone)
        ]
        lines.append(
            f"| {name} | {' | '.join(rates)} | {100 * share(found):.0f} | "
            f"{alone.count(None)} |"
        )
    lines += ["", *by_speech_found(trials, encode_batch)]
    lines += ["", *other_borders(trials, encode_batch)]
    lines += ["", *little_speech(trials, encode_batch)]
    text = "\n".join(lines) + "\n"
    print(text, end="")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(text)


def parse_arguments(arguments):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument(
        "--corpus", type=Path, required=True, help="wav/ and veri_test2.txt"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("results/speech_only.md")
    )
    return parser.parse_args(arguments)


class Trials:
    """The trials of a corpus, and their recordings."""

    def __init__(self, corpus):
        trials = read_trials(corpus / "veri_test2.txt")
        self.names = sorted({name for _, *pair in trials for name in pair})
        places = {name: place for place, name in enumerate(self.names)}
        self.pairs = torch.tensor(
            [[places[enrolment], places[test]] for _, enrolment, test in trials]
        )
        self.same = torch.tensor([label == 1 for label, *_ in trials])
        self.waveforms = [
            load_waveform(corpus / "wav" / name) for name in self.names
        ]

    def eer(self, encode_batch, waveforms):
        """The EER of the trials whose recordings are there (not None)."""
        there = [i for i, each in enumerate(waveforms) if each is not None]
        found = encode_utterances(
            encode_batch,
            [str(place) for place in there],
            load=lambda place: waveforms[int(place)],
        )
        embeddings = torch.full((len(waveforms), 1), torch.nan)
        embeddings = embeddings.expand(-1, len(next(iter(found.values()))))
        embeddings = embeddings.clone()
        for place, embedding in found.items():
            embeddings[int(place)] = normalize(embedding, dim=0)
        scores = (
            embeddings[self.pairs[:, 0]] * embeddings[self.pairs[:, 1]]
        ).sum(1)
        known = ~scores.isnan()
        same, scores = self.same[known], scores[known]
        return EER(scores[same], scores[~same])[0]


def conditions():
    """What is done to recordings, by what the table calls it."""
    made = {"as they are": lambda waveform, random: waveform}
    for percent in (50, 90):
        made[f"{percent} % silence, digital"] = functools.partial(
            with_silence, share=percent / 100
        )
        made[f"{percent} % silence, in a quiet room ({ROOM} dB)"] = (
            lambda waveform, random, percent=percent: with_noise(
                with_silence(waveform, random, percent / 100),
                *(random, ROOM, waveform),
            )
        )
    for decibel in (20, 10, 0):
        made[f"pink noise, {decibel} dB"] = (
            lambda waveform, random, decibel=decibel: with_noise(
                waveform, random, decibel, waveform
            )
        )
    return made


def with_silence(waveform, random, share):
    """The waveform with so much silence around it, split by chance."""
    samples = round(len(waveform) * share / (1 - share))
    before = int(samples * torch.rand(1, generator=random))
    return torch.nn.functional.pad(waveform, (before, samples - before))


def with_noise(waveform, random, decibel, speech):
    """The waveform in pink noise, so many decibels below the speech."""
    spectrum = torch.fft.rfft(torch.randn(len(waveform), generator=random))
    spectrum[0] = 0
    spectrum[1:] /= torch.arange(1, len(spectrum)).sqrt()
    noise = torch.fft.irfft(spectrum, len(waveform))
    level = speech.square().mean().sqrt() * 10 ** (-decibel / 20)
    return waveform + noise * (level / noise.square().mean().sqrt())


def share(found: list[Speech]):
    seconds = sum(speech.samples for speech in found) / SAMPLE_RATE
    return sum(speech.seconds for speech in found) / seconds


def speech_of(waveforms, found):
    """The speech of each, None where there is none."""
    return [
        speech.of(waveform) if speech.spans else None
        for speech, waveform in zip(found, waveforms, strict=True)
    ]


def by_speech_found(trials, encode_batch):
    """Lines of a table: where noise hides speech, the EER by what is found."""
    random = torch.Generator().manual_seed(0)
    waveforms = [
        with_noise(each, random, 20, each) for each in trials.waveforms
    ]
    found = [find_speech(each) for each in waveforms]
    lines = [
        "| speech found in pink noise of 20 dB, s, at least | recordings | of "
        "all audio, EER % | of speech alone, EER % |",
        "|---:|---:|---:|---:|",
    ]
    for seconds in (0.25, 1, 2, 2.5, 3):
        alone = [
            speech.of(waveform) if speech.seconds >= seconds else None
            for speech, waveform in zip(found, waveforms, strict=True)
        ]
        whole = [
            None if speech is None else waveform
            for speech, waveform in zip(alone, waveforms, strict=True)
        ]
        rates = [
            f"{100 * trials.eer(encode_batch, each):.2f}"
            for each in (whole, alone)
        ]
        count = len(alone) - alone.count(None)
        lines.append(f"| {seconds:g} | {count} | {' | '.join(rates)} |")
    return lines


def other_borders(trials, encode_batch):
    """Lines of a table: the EER by what counts as a pause, and the padding."""
    lines = ["| pause, s | padding, s | EER % |", "|---:|---:|---:|"]
    for pause, padding in BORDERS:
        found = [find_speech(each, pause, padding) for each in trials.waveforms]
        rate = trials.eer(encode_batch, speech_of(trials.waveforms, found))
        lines.append(f"| {pause:g} | {padding:g} | {100 * rate:.2f} |")
    return lines


def little_speech(trials, encode_batch):
    """Lines of a table: the EER of the first seconds of speech."""
    found = [find_speech(each) for each in trials.waveforms]
    speech = speech_of(trials.waveforms, found)
    lines = ["| the first seconds of speech, at most | EER % |", "|---|---:|"]
    for seconds in (0.5, 1, 1.5, 2, 3):
        samples = round(seconds * SAMPLE_RATE)
        rate = trials.eer(
            encode_batch,
            [None if each is None else each[:samples] for each in speech],
        )
        lines.append(f"| {seconds:g} | {100 * rate:.2f} |")
    return lines


if __name__ == "__main__":
    main()
