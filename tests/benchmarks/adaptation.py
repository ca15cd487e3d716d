"""What adapting PLDA, and a cohort of the domain, do to the EER.

    python tests/benchmarks/adaptation.py --model=demo/trained/model \
        --corpus=demo/corpus

PLDA is trained on the training voices of some packages of the demo corpus, and
adapted to those of another one, without their labels; trials are of voices that
are in neither. Once more with the other domain on the telephone: between 300
and 3,400 Hz. Cohorts are the utterances that PLDA is trained on, or is adapted
to.
"""

import argparse
import json
from pathlib import Path

import torch
from benchmark import ROOT, commit, processor_name
from matplotlib.figure import Figure
from torchaudio.functional import highpass_biquad
from tqdm import tqdm

from redimnet2_lobes.data.audio import load_waveform
from redimnet2_lobes.data.augment import low_pass
from redimnet2_lobes.data.trial_files import (
    TrialList,
    files_of,
    read_trial_lists,
    trial_speakers,
)
from redimnet2_lobes.data.utterances import Utterance, limit_per_speaker
from redimnet2_lobes.inference.embedding_cache import Embeddings
from redimnet2_lobes.inference.encode import encode_utterances
from redimnet2_lobes.models.front_end import SAMPLE_RATE
from redimnet2_lobes.pretrained.loading import load_model
from redimnet2_lobes.scoring.adaptation import ADAPTATIONS
from redimnet2_lobes.scoring.backends import CosineBackend
from redimnet2_lobes.scoring.bootstrap import bootstrap, eer
from redimnet2_lobes.scoring.evaluate import score_trials
from redimnet2_lobes.scoring.plda import train_plda
from redimnet2_lobes.scoring.tables import markdown_table, with_interval

UTTERANCES = 40  # of a voice, at most

OTHERS = ("hedgewars", "ktuberling", "tuxpaint")
# Packages that PLDA is trained on, and adapted to; whether the latter, and the
# trials, are on the telephone; of which voices trials are, None for all.
EXPERIMENTS = {
    "ktuberling to klettres": (("ktuberling",), "klettres", False, "klettres"),
    "all others to klettres": (OTHERS, "klettres", False, "klettres"),
    "all others to klettres on the telephone": (OTHERS, "klettres", True, None),
}
NORMS = ("none", "cohort of the training", "cohort of the target")


def main(arguments=None):
    options = parse_arguments(arguments)
    embed = Embedder(load_model(options.model).encode_batch)
    lines = [
        f"{processor_name()}, torch {torch.__version__}, commit "
        f"{commit(ROOT)}. EER in percent, with 95 % confidence intervals by "
        "bootstrap over speakers. In brackets behind the packages: voices and "
        "utterances.",
        "",
    ]
    found = {}
    for name, experiment in EXPERIMENTS.items():
        text, found[name] = measure(options.corpus, embed, name, *experiment)
        lines += text
        print("\n".join(text))
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "adaptation.md").write_text("\n".join(lines))
    (options.output / "adaptation.json").write_text(json.dumps(found))
    plot(found, options.output / "adaptation_eer.png")


def parse_arguments(arguments):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument(
        "--corpus", type=Path, required=True, help="wav/ and veri_test2.txt"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("results/adaptation")
    )
    return parser.parse_args(arguments)


def measure(corpus, embed, name, source, target, telephone, tested):
    """Lines of a table, and {back-end: {normalization: EER, low, high}}."""
    (trials,) = read_trial_lists(str(corpus / "veri_test2.txt"), corpus, ".")
    unseen = {file.split("/")[0] for file in files_of([trials])}
    if tested is not None:
        trials = only_of(trials, tested)
    paths = {
        each: str(path) for each, path in sorted(files_of([trials]).items())
    }
    vectors = embed(paths.values(), telephone)
    seconds = torch.ones(len(paths))
    embeddings = Embeddings(list(paths), vectors, seconds)
    sources, speakers = voices_of(corpus, source, unseen)
    targets, others = voices_of(corpus, (target,), unseen)
    trained = embed(sources, False)
    unlabelled = embed(targets, telephone)
    plda = train_plda(trained, speakers)
    backends = {
        "cosine": CosineBackend(),
        "cosine, in-domain mean": CosineBackend(unlabelled.mean(dim=0)),
        "PLDA": plda,
        **{
            f"PLDA, {each.title}": each.adapt(plda, unlabelled)
            for each in ADAPTATIONS.values()
        },
    }
    found = {}
    pairs = trial_speakers(trials)
    for backend in tqdm(backends, desc=name):
        scores = list(
            score_trials(
                trials, embeddings, {backend: backends[backend]}
            ).values()
        )
        for cohort in (trained, unlabelled):
            *_, scored = score_trials(
                trials,
                embeddings,
                {backend: backends[backend]},
                cohort,
                ["adaptive_s"],
                cohort_top=100,
            ).values()
            scores.append(scored)
        found[backend] = {
            norm: bootstrap(each["score"], trials.labels, pairs, {"EER": eer})[
                "EER"
            ]
            for norm, each in zip(NORMS, scores, strict=True)
        }
    table = [["back-end", *NORMS]]
    for backend, of_norms in found.items():
        cells = [
            with_interval(*percent(interval)) for interval in of_norms.values()
        ]
        table.append([backend, *cells])
    voices = len({file.split("/")[0] for file in paths})
    lines = [
        f"### {name[0].upper()}{name[1:]}",
        "",
        f"Trained on {', '.join(source)} ({len(set(speakers))}, "
        f"{len(sources)}), adapted to {target}"
        f"{' on the telephone' if telephone else ''} ({len(set(others))}, "
        f"{len(targets)}); {len(trials.trials):,} trials of {voices} other "
        f"voices{' on the telephone' if telephone else ''}.",
        "",
        markdown_table(table, names=1),
    ]
    return lines, found


def percent(interval):
    value, low, high = (100 * float(each) for each in interval)
    return value, (low, high)


def only_of(trials, package):
    """The trials whose voices are both of a package."""
    kept = [
        trial
        for trial in trials.trials
        if all(name.startswith(f"{package}-") for name in trial[1:])
    ]
    enrolments = {trial[1]: trials.enrolments[trial[1]] for trial in kept}
    names = {name for _, *pair in kept for name in pair}
    paths = {name: trials.paths[name] for name in names}
    return TrialList(trials.name, kept, enrolments, paths)


def voices_of(corpus, packages, unseen):
    """Files of the voices of packages that trials do not have, and whose."""
    files = [
        path
        for package in packages
        for path in sorted((corpus / "wav").glob(f"{package}-*/**/*.wav"))
    ]
    utterances = [
        Utterance(str(path), str(path), voice)
        for path in files
        if (voice := path.relative_to(corpus / "wav").parts[0]) not in unseen
    ]
    kept = limit_per_speaker(utterances, UTTERANCES)
    return [each.path for each in kept], [each.speaker for each in kept]


class Embedder:
    """Embeds files, on the telephone or as they are, each once."""

    def __init__(self, encode_batch):
        self.encode_batch = encode_batch
        self.known = {}

    def __call__(self, files, telephone):
        load = on_telephone if telephone else load_waveform
        new = [file for file in files if (file, telephone) not in self.known]
        with tqdm(desc="embeddings", total=len(new), unit="file") as progress:
            found = encode_utterances(
                self.encode_batch, new, load=load, progress=progress
            )
        for file, embedding in found.items():
            self.known[file, telephone] = embedding
        return torch.stack([self.known[file, telephone] for file in files])


def on_telephone(file):
    waveform = low_pass(load_waveform(file), 3400 / (SAMPLE_RATE / 2), 0.08)
    return highpass_biquad(waveform, SAMPLE_RATE, 300.0)


def plot(found, path):
    """The EER of each back-end, a panel for each experiment."""
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    panels = figure.subplots(1, len(found), sharey=True)
    for axes, (name, of_backends) in zip(panels, found.items(), strict=True):
        for shift, norm in enumerate(NORMS):
            rates = [percent(each[norm]) for each in of_backends.values()]
            values = [value for value, _ in rates]
            below = [value - low for value, (low, _) in rates]
            above = [high - value for value, (_, high) in rates]
            axes.errorbar(
                values,
                [row + (shift - 1) / 4 for row in range(len(rates))],
                xerr=[below, above],
                fmt="o",
                markersize=4,
                capsize=2,
                label=f"s-norm: {norm}",
            )
        axes.set_yticks(range(len(of_backends)), list(of_backends))
        axes.set_xlabel("EER (%), 95 % interval")
        axes.set_title(name, fontsize=9)
        axes.grid(color="0.9")
        axes.set_axisbelow(True)
        axes.set_xlim(0)
    panels[0].invert_yaxis()
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=90)


if __name__ == "__main__":
    main()
