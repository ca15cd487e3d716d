"""How near the extraction of embeddings comes to the rate of computing alone.

    python tests/benchmarks/extraction.py FOLDER --variants b0 b3 --files 5000

Writes files of 3 to 20 s into FOLDER, which keeps them for the next call: FLAC
and MP3, at 16 and 44.1 kHz, of noise with the spectrum and the syllables of
speech, 400 of them different, the rest copies. Each turn takes a part of the
list, and on it three take turns in one process:

- extraction: `extract_embeddings`, from files to kept embeddings;
- loading: the same without a network;
- computing: the network alone, on the same batches, in memory already.

The exit status is 1 if the embeddings of extraction and computing are not the
same to the last bit. No time is judged.
"""

import argparse
import math
import shutil
import sys
import tempfile
import time
from pathlib import Path

import joblib
import numpy as np
import soundfile
import torch
from benchmark import ROOT, VARIANTS, commit, positive, processor_name
from measurements import (
    forget_peak_memory,
    grown,
    process_memory,
    synchronize,
)
from speechbrain.inference.classifiers import EncoderClassifier
from tqdm import tqdm

from redimnet2_lobes.inference.embedding_cache import extract_embeddings
from redimnet2_lobes.inference.encode import encode_utterances, load_source
from redimnet2_lobes.models.pass_through import PassThrough
from redimnet2_lobes.models.redimnet2 import ReDimNet2
from redimnet2_lobes.models.tiles import keep_freed_memory

DIFFERENT = 400  # files
SHORTEST, LONGEST = 3.0, 20.0  # seconds
FORMATS = [(name, rate) for rate in (16000, 44100) for name in ("flac", "mp3")]
COMPUTING, EXTRACTION, LOADING = "computing", "extraction", "loading"


def main(arguments=None):
    options = parse_arguments(arguments)
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    paths = write_files(options.folder, options.files)
    device = options.device
    if device == "cuda":
        device = torch.cuda.get_device_name()
    lines = [
        f"{processor_name()}, threads: {options.threads}, device: {device}, "
        f"torch {torch.__version__}, commit {commit(ROOT)}",
        "",
        f"{len(paths):,} files in turns of {options.turn}, "
        f"{options.seconds_per_batch:g} s per batch",
        "",
        "| variant | work | utterances/s | seconds of audio/s | of the rate of "
        "computing, % | least in a turn, % | memory, MiB |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    same = True
    for variant in options.variants:
        rows, equal = measure(variant, paths, options)
        lines += rows
        same &= equal
    lines += ["", f"Embeddings {'are' if same else 'ARE NOT'} the same."]
    text = "\n".join(lines) + "\n"
    print(text, end="")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(text)
    return 0 if same else 1


def parse_arguments(arguments):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="for the files; 2 GB")
    parser.add_argument(
        "--variants", nargs="+", choices=VARIANTS, default=["b0", "b3"]
    )
    parser.add_argument("--files", type=positive, default=5000)
    parser.add_argument(
        "--turn", type=positive, default=500, help="files of a turn"
    )
    parser.add_argument("--seconds_per_batch", type=float, default=240.0)
    parser.add_argument("--threads", type=positive, default=joblib.cpu_count())
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument(
        "--output", type=Path, default=Path("results/extraction.md")
    )
    return parser.parse_args(arguments)


def write_files(folder, count):
    """Writes the files that are missing; gives the paths of all."""
    folder.mkdir(parents=True, exist_ok=True)
    signals = {rate: speech_like(rate, 60) for _, rate in FORMATS}
    paths = []
    for number in tqdm(range(count), desc="files", unit="file"):
        form, rate = FORMATS[number % len(FORMATS)]
        path = folder / f"{number:06}.{form}"
        paths.append(path)
        if path.exists():
            continue
        partial = folder / f"partial.{form}"
        if number < DIFFERENT:
            random = np.random.default_rng(number)
            samples = round(random.uniform(SHORTEST, LONGEST) * rate)
            start = random.integers(len(signals[rate]) - samples)
            excerpt = signals[rate][start : start + samples]
            soundfile.write(partial, excerpt, rate)
        else:
            shutil.copyfile(paths[number % DIFFERENT], partial)
        partial.rename(path)
    return paths


def speech_like(rate, seconds):
    """Noise that falls with the frequency, four syllables in a second."""
    random = np.random.default_rng(0)
    spectrum = np.fft.rfft(random.normal(size=rate * seconds))
    spectrum /= 1 + np.fft.rfftfreq(rate * seconds, 1 / rate) / 500
    noise = np.fft.irfft(spectrum)
    loudness = random.uniform(0.01, 1, 8 * seconds)
    places = np.linspace(0, len(loudness) - 1, len(noise))
    noise *= np.interp(places, np.arange(len(loudness)), loudness)
    return 0.5 * noise / np.abs(noise).max()


def measure(variant, paths, options):
    """Rows of a table, and whether all embeddings were the same."""
    torch.manual_seed(0)
    encoder = EncoderClassifier(
        modules={
            "compute_features": PassThrough(),
            "mean_var_norm": PassThrough(),
            "embedding_model": ReDimNet2.from_variant(variant),
        },
        hparams={},
        run_opts={"device": options.device},
    )
    # The first call takes longer.
    with torch.no_grad():
        encoder.encode_batch(torch.randn(2, 16000), torch.ones(2))
    seconds = {COMPUTING: [], EXTRACTION: [], LOADING: []}
    mebibytes = dict.fromkeys(seconds, 0.0)
    audio, same = 0.0, True
    for start in tqdm(
        range(0, len(paths), options.turn), desc=variant, unit="turn"
    ):
        part = [str(path) for path in paths[start : start + options.turn]]
        results = {}
        for work, run in turn(encoder, part, options).items():
            results[work], taken, growth = measured(run, options.device)
            seconds[work].append(taken)
            mebibytes[work] = max(mebibytes[work], growth)
        kept, computed = results[EXTRACTION], torch.stack(results[COMPUTING])
        same &= torch.equal(kept.vectors[kept.rows(results[LOADING])], computed)
        audio += kept.seconds.sum().item()
    mebibytes[LOADING] = math.nan  # it has kept all of a turn
    rows = []
    base = seconds[COMPUTING]
    for work, taken in seconds.items():
        least = min(x / y for x, y in zip(base, taken, strict=True))
        rows.append(
            f"| {variant} | {work} | {len(paths) / sum(taken):.2f} "
            f"| {audio / sum(taken):.1f} | {100 * sum(base) / sum(taken):.1f} "
            f"| {100 * least:.1f} | {mebibytes[work]:.0f} |".replace("nan", "")
        )
    return rows, same


def turn(encoder, paths, options):
    """What is measured on a part of the list, in the order to call it in."""
    batches = []

    def extraction():
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            return extract_embeddings(
                encoder.encode_batch,
                {path: path for path in paths},
                folder,
                "benchmark",
                seconds_per_batch=options.seconds_per_batch,
                utterances_per_part=len(paths),
            )

    def keep(wavs, wav_lens):
        batches.append((wavs, wav_lens))
        return torch.ones(len(wavs), 1, 1)

    def loading():
        seconds_per_batch = options.seconds_per_batch
        return list(
            encode_utterances(keep, paths, seconds_per_batch, load_source)
        )

    def computing():
        with torch.no_grad():
            return [
                embedding
                for batch in batches
                for embedding in encoder.encode_batch(*batch).squeeze(1).cpu()
            ]

    return {EXTRACTION: extraction, LOADING: loading, COMPUTING: computing}


def measured(run, device):
    """What a call returns, its seconds, and the growth of the peak memory."""
    forget_peak_memory()
    before = process_memory("VmRSS")
    synchronize(device)
    start = time.perf_counter()
    result = run()
    synchronize(device)
    seconds = time.perf_counter() - start
    return result, seconds, grown(process_memory("VmHWM"), before)


if __name__ == "__main__":
    sys.exit(main())
