"""How much speech an enrolment needs, and what it should refuse.

    python tests/benchmarks/enrolment.py --model=demo/trained/model \
        --corpus=demo/corpus

On the voices of the corpus' trials, which the model has not seen: the EER by
seconds of enrolment, by clipping and by noise, and how often a piece of speech
is taken for another voice, or another voice's for the person's.
"""

import argparse
import itertools
from collections import Counter
from pathlib import Path

import torch
from torch.nn.functional import normalize
from tqdm import tqdm

from redimnet2_lobes import load, space_of
from redimnet2_lobes.data.audio import load_waveform
from redimnet2_lobes.data.quality import measure_quality
from redimnet2_lobes.data.speech import find_speech
from redimnet2_lobes.data.trials import read_trials
from redimnet2_lobes.models.front_end import SAMPLE_RATE
from redimnet2_lobes.scoring.metrics import EER
from redimnet2_lobes.scoring.operating_point import operating_point_of
from redimnet2_lobes.voices.enrolment import ANOTHER_VOICE, Enrolment

PIECE = 3 * SAMPLE_RATE
CLIPPED = 1, 2, 5, 10
SNRS = 0, 3, 5, 8, 10, 15


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--corpus", type=Path, required=True)
    arguments = parser.parse_args()
    encoder = load(arguments.model)

    def embed(waveform):
        with torch.no_grad():
            found = encoder.encode_batch(
                waveform[None], torch.ones(1)
            ).flatten()
        return normalize(found, dim=0)

    trials = read_trials(arguments.corpus / "veri_test2.txt")
    files = sorted({file for trial in trials for file in trial[1:]})
    speakers = {}
    for file in files:
        speakers.setdefault(file.split("/")[0], []).append(file)
    waveforms = {
        file: load_waveform(arguments.corpus / "wav" / file) for file in files
    }
    speech = {file: find_speech(waveforms[file]) for file in files}
    seconds = sum(found.seconds for found in speech.values())
    print(f"{len(speakers)} speakers, {len(files)} files, {seconds:.0f} s")
    spoken = {
        file: found.of(waveforms[file])
        for file, found in speech.items()
        if found.seconds >= 0.5
    }
    clean = {file: embed(wav) for file, wav in tqdm(spoken.items())}
    by_seconds(speakers, spoken, clean, embed)
    other_voices(speakers, spoken, embed)
    by_damage(speakers, waveforms, speech, clean, embed)
    limit = operating_point_of(arguments.model, space_of(encoder)).value
    mixed_enrolments(speakers, waveforms, encoder.encode_batch, limit)


def eer_percent(scores, same):
    eer, _ = EER(scores[same], scores[~same])
    return 100 * float(eer)


def by_seconds(speakers, spoken, clean, embed):
    """Each third of a speaker's files is tested, the others are enrolled."""
    for limit in (1, 2, 3, 4, 6, 9, 12, 15, 20):
        scores, same = [], []
        for third in range(3):
            profiles, tests = {}, []
            for speaker, files in speakers.items():
                files = [file for file in files if file in spoken]
                enrolled = [f for i, f in enumerate(files) if i % 3 != third]
                pieces = torch.cat([spoken[file] for file in enrolled])
                pieces = pieces[: limit * SAMPLE_RATE].split(PIECE)
                pieces = [p for p in pieces if len(p) >= SAMPLE_RATE]
                profiles[speaker] = torch.stack([embed(p) for p in pieces])
                tests += [(speaker, f) for f in files if f not in enrolled]
            for (speaker, file), name in itertools.product(tests, profiles):
                profile = normalize(profiles[name].mean(0), dim=0)
                scores.append((profile @ clean[file]).item())
                same.append(name == speaker)
        eer = eer_percent(torch.tensor(scores), torch.tensor(same))
        print(f"enrolled {limit:2d} s: EER {eer:.2f} %", flush=True)


def other_voices(speakers, spoken, embed):
    """A piece against as many prototypes as there are of others."""
    for seconds in (1, 1.5, 2, 3):
        pieces = {}
        for speaker, files in speakers.items():
            files = [file for file in files if file in spoken]
            whole = torch.cat([spoken[file] for file in files])
            parts = whole.split(int(seconds * SAMPLE_RATE))[:-1][:12]
            pieces[speaker] = torch.stack([embed(part) for part in parts])
        for count in (1, 3):
            scores, same = [], []
            for name, speaker in itertools.product(pieces, pieces):
                for index, piece in enumerate(pieces[speaker]):
                    others = [
                        (index + 1 + step) % len(pieces[name])
                        for step in range(count)
                    ]
                    profile = normalize(pieces[name][others].mean(0), dim=0)
                    scores.append((profile @ piece).item())
                    same.append(name == speaker)
            scores, same = torch.tensor(scores), torch.tensor(same)
            eer, threshold = EER(scores[same], scores[~same])
            print(
                f"pieces of {seconds} s against {count}: EER "
                f"{100 * float(eer):.2f} % at {float(threshold):.3f}"
            )
            for limit in (0.25, 0.4, 0.518, 0.6):
                refused = (scores[same] <= limit).float().mean()
                taken = (scores[~same] > limit).float().mean()
                print(
                    f"  limit {limit}: own refused {100 * refused:.1f} %, "
                    f"others taken {100 * taken:.1f} %",
                    flush=True,
                )


def by_damage(speakers, waveforms, speech, clean, embed):
    """Damaged recordings are tested against undamaged profiles."""
    speaker_of = {f: s for s, files in speakers.items() for f in files}
    random = torch.Generator().manual_seed(0)

    def clipped(gain):
        def damage(file):
            limit = waveforms[file].abs().max() / gain
            return waveforms[file].clamp(-limit, limit)

        return damage

    def noisy(snr, make_noise):
        def damage(file):
            noise = make_noise(file)
            spoken = speech[file].of(waveforms[file]).square().mean()
            power = spoken / noise.square().mean() / 10 ** (snr / 10)
            return waveforms[file] + noise * power.sqrt()

        return damage

    def white(file):
        return torch.randn(len(waveforms[file]), generator=random)

    def babble(file):
        """Six others speak at once."""
        others = [f for f in clean if speaker_of[f] != speaker_of[file]]
        chosen = torch.randperm(len(others), generator=random)[:6]
        size = len(waveforms[file])
        parts = [waveforms[others[index]] for index in chosen]
        parts = [normalize(p, dim=0).repeat(size // len(p) + 1) for p in parts]
        return sum(part[:size] for part in parts)

    damages = {"none": waveforms.get}
    damages |= {f"clipped x{gain}": clipped(gain) for gain in (2, 4, 8, 16)}
    for make_noise in (white, babble):
        for snr in (20, 10, 5, 0):
            name = f"{make_noise.__name__} noise, {snr} dB"
            damages[name] = noisy(snr, make_noise)
    for name, damage in damages.items():
        scores, same, figures, lost = [], [], [], 0
        for file in clean:
            damaged = damage(file)
            found = find_speech(damaged)
            if found.seconds < 0.5:
                lost += 1
                continue
            quality = measure_quality(damaged, found)
            figures.append((100 * quality.clipped, quality.snr_db))
            tested = embed(found.of(damaged))
            for speaker, files in speakers.items():
                others = [f for f in files if f in clean and f != file]
                profile = torch.stack([clean[f] for f in others]).mean(0)
                scores.append((normalize(profile, dim=0) @ tested).item())
                same.append(speaker == speaker_of[file])
        eer = eer_percent(torch.tensor(scores), torch.tensor(same))
        shares, snrs = torch.tensor(figures).T
        refused = [f"{100 * (shares > k).float().mean():.0f}" for k in CLIPPED]
        refused += [f"{100 * (snrs < k).float().mean():.0f}" for k in SNRS]
        print(
            f"{name}: EER {eer:.2f} %, refused by clipping over {CLIPPED} % "
            f"and an SNR below {SNRS} dB: {' '.join(refused)} %, without "
            f"speech {lost}",
            flush=True,
        )


def mixed_enrolments(speakers, waveforms, encode_batch, limit):
    """Utterances of a speaker, with one of another among them."""
    print(f"limit {limit:.3f}")
    for name, files in speakers.items():
        enrolment = Enrolment(encode_batch, limit=limit)
        for file in files:
            enrolment.add(waveforms[file])
        problems = Counter(piece.problem for piece in enrolment.pieces)
        print(f"all of {name}: {dict(problems)}", flush=True)
    # Of these each gives a piece, so that nobody else comes first.
    speakers = {
        name: [
            file
            for file in files
            if Enrolment(encode_batch).add(waveforms[file]).percent
        ]
        for name, files in speakers.items()
    }
    speakers = {s: files for s, files in speakers.items() if len(files) > 3}
    print(f"{len(speakers)} speakers with 4 usable files")
    pairs = [*itertools.permutations(speakers, 2)]
    for place in range(4):
        counts = Counter()
        for number, (own, other) in enumerate(tqdm(pairs)):
            chosen = [
                (own, speakers[own][(number + step) % len(speakers[own])])
                for step in range(3)
            ]
            file = speakers[other][number % len(speakers[other])]
            chosen.insert(place, (other, file))
            enrolment = Enrolment(encode_batch, limit=limit)
            whose = []
            for speaker, file in chosen:
                enrolment.add(waveforms[file])
                more = len(enrolment.pieces) - len(whose)
                whose += [speaker == own] * more
            for is_own, piece in zip(whose, enrolment.pieces, strict=True):
                if piece.problem in (None, ANOTHER_VOICE):
                    counts[is_own, piece.problem is None] += 1
        own_share, other_share = (
            100 * counts[who, taken] / (counts[who, True] + counts[who, False])
            for who, taken in ((True, False), (False, True))
        )
        print(
            f"another voice in place {place + 1} of 4: of the pieces judged, "
            f"own refused {own_share:.1f} %, others' taken {other_share:.1f} %",
            flush=True,
        )


if __name__ == "__main__":
    main()
