"""Measures who spoke when on conversations of the demo corpus's unseen voices.

    make demo test-runtimes RUNTIMES=pyannote
    build/runtimes/pyannote/bin/python tests/runtimes/pyannote/diarization.py \\
        demo/corpus demo/trained/model demo/untrained/model diarization.md

Twelve conversations of two to four speakers, half of them overlapping, by
``redimnet2 diarize`` and by senko; then an hour of audio, each in a process of
its own.
"""

import json
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import soundfile
import torch
from conversations import RATE, converse, unseen_voices
from pyannote.core import Annotation, Segment, Timeline
from pyannote.metrics.diarization import DiarizationErrorRate

SEEDS = (1, 2)
FEWEST_UTTERANCES = 6
HOUR = 3600
COLUMNS = ("DER (missed, false alarm, confusion)", "with a collar of 0.25 s")


def ours(model):
    from redimnet2_lobes import load
    from redimnet2_lobes.voices.diarization import diarize

    encoder = load(model)

    def run(path, speakers):
        bounds = (speakers, speakers) if speakers else (1, 10)
        return diarize(encoder.encode_batch, path, bounds).turns

    return run


def senko(_):
    from senko import Diarizer

    diarizer = Diarizer(device="cpu", warmup=False)

    def run(path, _):
        found = diarizer.diarize(path)
        segments = found["merged_segments"] if found else []
        return [
            (each["start"], each["end"], each["speaker"]) for each in segments
        ]

    return run


def annotation(turns):
    marked = Annotation()
    for number, (start, end, speaker) in enumerate(turns):
        marked[Segment(start, end), number] = speaker
    return marked


def write(path, waveform):
    soundfile.write(path, waveform.numpy().clip(-1, 1), RATE, subtype="PCM_16")


def conversations(corpus, folder):
    """Files, who speaks when in them, and their seconds."""
    voices = {
        speaker: names
        for speaker, names in unseen_voices(corpus).items()
        if len(names) >= FEWEST_UTTERANCES
    }
    made = []
    for seed in SEEDS:
        for count in (2, 3, 4):
            for overlapping in (False, True):
                number = 100 * seed + 10 * count + overlapping
                who = random.Random(number).sample(sorted(voices), count)
                waveform, reference = converse(
                    corpus,
                    {name: voices[name] for name in who},
                    number,
                    overlapping,
                )
                path = folder / f"{number}.wav"
                write(path, waveform)
                seconds = len(waveform) / RATE
                made.append((str(path), reference, seconds, count, overlapping))
    return made


def measure(name, run, made, known):
    """A row of the table for conversations without and with overlap."""
    hypotheses = [
        run(path, count if known else None) for path, *_, count, _ in made
    ]
    cells = []
    for overlapping in (False, True):
        chosen = [
            (each, turns)
            for each, turns in zip(made, hypotheses, strict=True)
            if each[4] == overlapping
        ]
        for collar in (0.0, 0.5):  # 0.25 s on each side of a border
            errors = DiarizationErrorRate(collar=collar)
            for (_, reference, seconds, *_), turns in chosen:
                whole = Timeline([Segment(0, seconds)])
                errors(annotation(reference), annotation(turns), uem=whole)
            text = f"{100 * abs(errors):.1f}"
            if not collar:
                parts = [
                    100 * errors[part] / errors["total"]
                    for part in ("missed detection", "false alarm", "confusion")
                ]
                text += f" ({', '.join(f'{part:.1f}' for part in parts)})"
            cells.append(text)
    right = sum(
        len({speaker for *_, speaker in turns}) == each[3]
        for each, turns in zip(made, hypotheses, strict=True)
    )
    told = "given" if known else f"found in {right} of {len(made)}"
    row = f"| {name} | {told} | {' | '.join(cells)} |"
    print(row, flush=True)
    return row


def peak_memory():
    """The most MiB of this process: ru_maxrss has those of its parent, too."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status).group(1)) / 1024


def hour(system, model, path):
    """Time and memory of a file, in this process, as JSON."""
    run = SYSTEMS[system](model)
    before = peak_memory()
    start, used = time.perf_counter(), time.process_time()
    turns = run(path, None)
    wall, used = time.perf_counter() - start, time.process_time() - used
    speakers = len({speaker for *_, speaker in turns})
    print(json.dumps([wall, used, before, peak_memory(), speakers]))


def long_conversation(corpus, folder):
    """An hour of four speakers, who say what they say again and again."""
    voices = unseen_voices(corpus)
    who = random.Random(1).sample(
        sorted(name for name in voices if len(voices[name]) >= 12), 4
    )
    parts, seconds, seed = [], 0, 1000
    while seconds < HOUR:
        waveform, _ = converse(corpus, {n: voices[n] for n in who}, seed, False)
        parts.append(waveform)
        seconds += len(waveform) / RATE
        seed += 1
    path = folder / "hour.wav"
    write(path, torch.cat(parts)[: HOUR * RATE])
    return path


def time_an_hour(system, model, path):
    """A row of the table of times, by a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "hour", system, model, path],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    line = done.stdout.splitlines()[-1]
    wall, used, before, peak, speakers = json.loads(line)
    row = (
        f"| {system} | {wall:.0f} s, {used:.0f} s of a core | "
        f"{used / HOUR:.3f} | {before:.0f} | {peak:.0f} | {speakers} |"
    )
    print(row, flush=True)
    return row


SYSTEMS = {"ours": ours, "senko": senko}


def main(corpus, model, untrained, output):
    with tempfile.TemporaryDirectory() as folder:
        made = conversations(corpus, Path(folder))
        seconds = sum(each[2] for each in made)
        rows = [
            measure("the demo's B0", ours(model), made, False),
            measure("the demo's B0", ours(model), made, True),
            measure("the demo's B0, untrained", ours(untrained), made, True),
            measure("senko 0.2.2", senko(model), made, False),
        ]
        path = long_conversation(corpus, Path(folder))
        times = [time_an_hour(name, model, path) for name in ("ours", "senko")]
    heads = [
        ["", "speakers", *COLUMNS, *(f"overlapping: {c}" for c in COLUMNS)],
        ["an hour of four", "time", "to real time", "MiB before", "at most"],
    ]
    heads[1].append("speakers found")
    tables = [
        "\n".join([f"| {' | '.join(head)} |", "|---" * len(head) + "|", *body])
        for head, body in zip(heads, (rows, times), strict=True)
    ]
    text = (
        f"{len(made)} conversations, {seconds / 60:.0f} minutes, half of them "
        f"overlapping.\n\n{tables[0]}\n\n{tables[1]}\n"
    )
    Path(output).write_text(text)


if __name__ == "__main__":
    if sys.argv[1] == "hour":
        hour(*sys.argv[2:])
    else:
        main(*sys.argv[1:])
