"""How voices should be compared, and how long it takes among many.

python tests/benchmarks/voice_store.py --model=FOLDER --corpus=FOLDER
"""

import argparse
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch.nn.functional import normalize
from tqdm import tqdm

from redimnet2_lobes import encode_utterances, load
from redimnet2_lobes.data.trials import read_trials
from redimnet2_lobes.scoring.metrics import EER
from redimnet2_lobes.scoring.tables import markdown_table
from redimnet2_lobes.voices.search import mean_voice
from redimnet2_lobes.voices.store import VoiceStore
from redimnet2_lobes.voices.transfer import Voices, write_voices

SIZE = 192
DATE = "2026-11-27T12:00:00+00:00"
DRAWS = 20
RULES = {
    "largest cosine of a prototype": lambda rows, tests: (
        (rows @ tests.T).max(0).values
    ),
    "mean cosine of the prototypes": lambda rows, tests: (rows @ tests.T).mean(
        0
    ),
    "cosine with the mean prototype": lambda rows, tests: (
        normalize(mean_voice(rows), dim=0) @ tests.T
    ),
}


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="compares the rules, with --corpus")
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--list", default="veri_test2.txt")
    parser.add_argument("--tests", type=int, default=50, help="timed, each")
    parser.add_argument("--names", type=int, nargs="*", default=[10_000, 10**6])
    parser.add_argument("--prototypes", type=int, default=10**6, help="at most")
    options = parser.parse_args(arguments)
    if options.model:
        print(markdown_table(rules_table(options)))
    table = [
        ["names", "prototypes", "index", "first (s)", "each (ms)"]
        + ["same name", "same margin"]
    ]
    for names in options.names:
        for each in sorted({1, options.prototypes // names}):
            table += speeds(names, each, options.tests)
    print(markdown_table(table), end="")
    return 0


def rules_table(options):
    """Error rates of each rule, with 1 to 5 utterances of each speaker."""
    paths = sorted(
        {
            name
            for trial in read_trials(options.corpus / options.list)
            for name in trial[1:]
        }
    )
    files = [str(options.corpus / "wav" / path) for path in paths]
    found = encode_utterances(load(options.model).encode_batch, files)
    rows = normalize(torch.stack([found[file] for file in files]), dim=1)
    owners = [Path(path).parts[0] for path in paths]
    table = [["utterances", "score", "EER (%)", "wrong name (%)"]]
    table[0].append("EER, target beside the best of the others (%)")
    for count in range(1, 6):
        rates = {rule: [] for rule in RULES}
        for draw in range(DRAWS):
            for rule, found in drawn(rows, owners, count, draw).items():
                rates[rule].append(found)
        for rule, found in rates.items() if count > 1 else [*rates.items()][:1]:
            means = [statistics.mean(each) for each in zip(*found, strict=True)]
            cells = [f"{100 * mean:.2f}" for mean in means]
            table.append([str(count), rule if count > 1 else "any", *cells])
    return table


def drawn(rows, owners, count, draw):
    """The rates of each rule, with utterances by chance for enrolment."""
    choice = random.Random(draw)
    speakers = sorted(set(owners))
    enrolled = {
        speaker: choice.sample(
            [row for row, owner in enumerate(owners) if owner == speaker], count
        )
        for speaker in speakers
    }
    tests = [
        row for row, owner in enumerate(owners) if row not in enrolled[owner]
    ]
    own = torch.tensor(
        [[owners[row] == speaker for row in tests] for speaker in speakers]
    )
    rates = {}
    for rule, score in RULES.items():
        scores = torch.stack(
            [score(rows[enrolled[each]], rows[tests]) for each in speakers]
        )
        targets = scores.T[own.T]
        others = scores.masked_fill(own, -torch.inf).max(0).values
        rates[rule] = (
            EER(targets, scores[~own])[0],
            (others >= targets).double().mean().item(),
            EER(targets, others)[0],
        )
    return rates


def speeds(names, each, count):
    """Rows of the table for so many names, of so many prototypes each."""
    torch.manual_seed(0)
    centres = torch.randn(names, SIZE)
    # Cosines of two utterances of a voice are about 0.6.
    rows = centres.repeat_interleave(each, dim=0)
    rows += 0.8 * torch.randn(len(rows), SIZE)
    tests = centres[torch.randint(names, (count,))]
    tests += 0.8 * torch.randn(count, SIZE)
    table, exact = [], []
    with tempfile.TemporaryDirectory() as folder:
        file, path = Path(folder) / "v.npz", Path(folder) / "v.sqlite"
        prototypes = range(names * each)
        voices = Voices(
            embedding_space="b0-1",
            names=[f"voice {number}" for number in range(names)],
            consents=[""] * names,
            added=[DATE] * names,
            changed=[DATE] * names,
            owners=[number // each for number in prototypes],
            embeddings=rows,
            seconds=[3.0] * len(prototypes),
            prototypes_added=[DATE] * len(prototypes),
        )
        write_voices(file, voices)
        with VoiceStore(path, "b0-1") as store:
            store.import_(file)
        for index in ("exact", "faiss"):
            with VoiceStore(path, index=index) as store:
                start = time.perf_counter()
                store.identify(tests[:1])
                first = time.perf_counter() - start
                times, found = [], []
                for test in tqdm(tests, desc=f"{names} names, {index}"):
                    start = time.perf_counter()
                    found += store.identify(test[None])
                    times.append(time.perf_counter() - start)
            exact = exact or found
            pairs = [*zip(exact, found, strict=True)]
            table.append(
                [
                    *(f"{names:,}", f"{names * each:,}", index),
                    f"{first:.3g}",
                    f"{1000 * statistics.median(times):.3g}",
                    share(one.name == two.name for one, two in pairs),
                    share(
                        abs(one.margin - two.margin) < 1e-5
                        for one, two in pairs
                    ),
                ]
            )
    return table


def share(them):
    them = [*them]
    return f"{100 * sum(them) / len(them):.0f} %"


if __name__ == "__main__":
    sys.exit(main())
