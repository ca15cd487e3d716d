r"""What `OnlineEncoder` costs and how good its embeddings are.

    python tests/benchmarks/online.py --model=demo/trained/model \
        --corpus=demo/corpus

Cost: a stream that begins and one that is ten minutes old get seconds in turns,
in one process; both are speech of the corpus' voices, of which the network
embeds everything, or the speech alone.

Accuracy: the utterances of each voice of the corpus' trials are halved at
random, some times. Those of one half are enrolled, each as a whole; those of
the other, one after the other, are a stream. Its embedding after some seconds,
and by windows of some lengths, is compared with those enrolled and with that of
the whole. Streams of 90 s are of the voices that have so much.
"""

import argparse
import collections
import os
import random
import statistics
import sys
import time
from pathlib import Path

import soundfile
import torch
from benchmark import ROOT, commit, positive, processor_name
from measurements import (
    forget_peak_memory,
    grown,
    process_memory,
)
from torch.nn.functional import cosine_similarity
from tqdm import tqdm

from redimnet2_lobes import OnlineEncoder, load
from redimnet2_lobes.data.audio import load_waveform
from redimnet2_lobes.inference.long_files import encode_files
from redimnet2_lobes.models.front_end import SAMPLE_RATE
from redimnet2_lobes.models.tiles import keep_freed_memory
from redimnet2_lobes.scoring.metrics import EER

OLD = 600  # seconds of the old stream
FIRST = (1, 2, 3, 5)  # seconds of a stream
WINDOWS = (2, 3, 5, 10)
LONG = 90
LONG_VOICES = 8


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo/trained/model")
    parser.add_argument("--corpus", type=Path, default=Path("demo/corpus"))
    parser.add_argument("--turns", type=positive, default=60)
    parser.add_argument("--halvings", type=positive, default=3)
    parser.add_argument(
        "--output", type=Path, default=Path("results/online.md")
    )
    options = parser.parse_args(arguments)
    keep_freed_memory()
    encode_batch = load(options.model).encode_batch
    voices = tested_voices(options.corpus)
    lines = [
        f"{processor_name()}, threads: {torch.get_num_threads()}, torch "
        f"{torch.__version__}, commit {commit(ROOT)}, load "
        f"{os.getloadavg()[0]:.1f} at the start",
        "",
        *cost(encode_batch, voices, options.turns),
        "",
        *accuracy(encode_batch, voices, options.halvings),
        "",
        *long_streams(encode_batch, options.corpus),
    ]
    text = "\n".join(lines) + "\n"
    print(text, end="")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(text)


def tested_voices(corpus):
    """The utterances [samples] of each voice of the trials."""
    lines = (corpus / "veri_test2.txt").read_text().splitlines()
    voices = collections.defaultdict(list)
    for path in sorted({path for line in lines for path in line.split()[1:]}):
        waveform = load_waveform(corpus / "wav" / path)
        voices[path.split("/")[0]].append(waveform)
    return voices


def cost(encode_batch, voices, turns):
    speech = torch.cat([part for parts in voices.values() for part in parts])
    seconds = speech.repeat(2)[: OLD * SAMPLE_RATE].split(SAMPLE_RATE)
    yield (
        "| stream | begins: ms | embedded, s | ten minutes old: ms "
        "| embedded, s | ratio of ms per embedded s | held, MiB |"
    )
    yield "|---|---:|---:|---:|---:|---:|---:|"
    for speech_only in (False, True):
        embedded = []

        def counted(wavs, wav_lens, embedded=embedded):
            embedded.append(wavs.shape[1] / SAMPLE_RATE)
            return encode_batch(wavs, wav_lens)

        begins = OnlineEncoder(counted, speech_only)
        old = OnlineEncoder(counted, speech_only)
        old.feed(torch.cat(seconds))
        rows = {begins: [], old: []}
        for second in seconds[:turns]:
            for encoder, row in rows.items():
                embedded.clear()
                start = time.perf_counter()
                encoder.feed(second)
                taken = 1000 * (time.perf_counter() - start)
                row.append((taken, sum(embedded)))
        (first, first_s), (last, last_s) = (
            map(statistics.mean, zip(*row, strict=True))
            for row in rows.values()
        )
        name = "the speech alone" if speech_only else "everything"
        memory = memory_of(encode_batch, speech_only, seconds)
        yield (
            f"| {name} | {first:.1f} | {first_s:.2f} | {last:.1f} "
            f"| {last_s:.2f} | {last / last_s * first_s / first:.2f} "
            f"| {memory:.1f} |"
        )
    yield ""
    yield (
        f"Means of {turns} seconds each, in turns. Held: by what the process "
        "has grown at most in ten minutes of stream, with a sum in place of "
        "the network."
    )


def memory_of(encode_batch, speech_only, seconds):
    """MiB that a stream of ten minutes takes, without the network."""
    width = encode_batch(torch.rand(1, SAMPLE_RATE), torch.ones(1)).shape[-1]
    encoder = OnlineEncoder(
        lambda wavs, _: wavs.sum() + torch.arange(width), speech_only
    )
    encoder.feed(seconds[0])
    forget_peak_memory()
    before = process_memory("VmRSS")
    for second in seconds:
        encoder.feed(second)
    return grown(process_memory("VmHWM"), before)


def accuracy(encode_batch, voices, halvings):
    order = random.Random(1)
    enrolled = {
        name: torch.stack([at_once(encode_batch, part) for part in parts])
        for name, parts in tqdm(voices.items(), desc="enrolment")
    }
    scores, cosines = (collections.defaultdict(list) for _ in range(2))
    labels = []
    for _ in tqdm(range(halvings), desc="halvings"):
        halves = {}
        for name, parts in voices.items():
            numbers = order.sample(range(len(parts)), len(parts))
            halves[name] = numbers[::2], numbers[1::2]
        for name, (_, tested) in halves.items():
            stream = torch.cat([voices[name][number] for number in tested])
            embeddings = {"the whole": at_once(encode_batch, stream)}
            for seconds in FIRST:
                first = stream[: seconds * SAMPLE_RATE]
                label = f"its first {seconds} s"
                embeddings[label] = at_once(encode_batch, first)
            for seconds in WINDOWS:
                label = f"windows of {seconds} s"
                embeddings[label] = by_windows(encode_batch, stream, seconds)
            rows = [enrolled[other][halves[other][0]] for other in voices]
            labels += [
                other == name
                for other, row in zip(voices, rows, strict=True)
                for _ in row
            ]
            for label, embedding in embeddings.items():
                scores[label] += [
                    cosine_similarity(torch.cat(rows), embedding[None])
                ]
                cosines[label].append(
                    cosine_similarity(
                        embedding, embeddings["the whole"], dim=0
                    ).item()
                )
    labels = torch.tensor(labels)
    yield (
        "| embedding of a stream | EER, % | cosine with the whole, mean "
        "| least |"
    )
    yield "|---|---:|---:|---:|"
    for label, values in scores.items():
        values = torch.cat(values)
        error, _ = EER(values[labels], values[~labels])
        yield (
            f"| {label} | {100 * error:.2f} "
            f"| {statistics.mean(cosines[label]):.4f} "
            f"| {min(cosines[label]):.4f} |"
        )
    yield ""
    yield (
        f"{len(cosines['the whole'])} streams of {len(voices)} voices, "
        f"{int(labels.sum()):,} target and {int((~labels).sum()):,} other "
        "trials."
    )


def at_once(encode_batch, waveform):
    with torch.no_grad():
        embedding = encode_batch(waveform[None], torch.ones(1))
    return embedding.flatten().float().cpu()


def by_windows(encode_batch, stream, seconds):
    encoder = OnlineEncoder(
        encode_batch, seconds_per_window=seconds, seconds_per_piece=1
    )
    encoder.feed(stream)
    return encoder.finish().embedding


def long_streams(encode_batch, corpus):
    """Streams that are longer than a piece, of which no whole is kept."""
    paths = collections.defaultdict(list)
    for path in sorted((corpus / "wav").glob("*/*/*.wav")):
        paths[path.relative_to(corpus / "wav").parts[0]].append(path)
    cosines = collections.defaultdict(list)
    path = Path("results/online_stream.wav")
    path.parent.mkdir(exist_ok=True)
    for files in tqdm(paths.values(), desc="long streams"):
        if len(cosines[WINDOWS[0]]) == LONG_VOICES:
            break
        if sum(soundfile.info(file).duration for file in files) < LONG:
            continue
        stream = torch.cat([load_waveform(file) for file in files[:60]])
        stream = stream[: LONG * SAMPLE_RATE]
        soundfile.write(path, stream.numpy(), SAMPLE_RATE)
        embeddings, _ = encode_files(encode_batch, [str(path)])
        for seconds in WINDOWS:
            online = by_windows(encode_batch, stream, seconds)
            cosines[seconds].append(
                cosine_similarity(online, embeddings[str(path)], dim=0).item()
            )
    path.unlink()
    yield f"| a stream of {LONG} s | cosine with encode_files, mean | least |"
    yield "|---|---:|---:|"
    for seconds, values in cosines.items():
        yield (
            f"| windows of {seconds} s | {statistics.mean(values):.4f} "
            f"| {min(values):.4f} |"
        )


if __name__ == "__main__":
    sys.exit(main())
