"""What a teacher's embeddings gain a small network, over several seeds.

    make demo
    python tests/benchmarks/distillation.py demo/corpus results/distillation \
        --plain demo/trained/model \
        --teacher results/teacher/1.0.npz results/teacher/0.8.npz ...

B0 is trained on the demo corpus by hparams/demo_redimnet2_b0.yaml, as `make
demo` does, but with a teacher, and tested on the corpus' trials. The files of
the teacher are those of the speeds in that configuration, in their order, such
as tests/runtimes/peers/teacher.py makes of CAM++. OUTPUT/distillation.md has
the table, OUTPUT/distillation.png the plot. What is finished is used again.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import torch
from benchmark import ROOT, commit, processor_name
from torch.nn.functional import normalize

from redimnet2_lobes.data.trial_files import read_trial_lists, trial_speakers
from redimnet2_lobes.inference.encode import encode_utterances
from redimnet2_lobes.pretrained.loading import load_model
from redimnet2_lobes.scoring.comparison import compare
from redimnet2_lobes.scoring.interval_plots import plot_eer_of_conditions
from redimnet2_lobes.scoring.tables import markdown_table, with_interval

RECIPE = ROOT / "recipes" / "VoxCeleb" / "SpeakerRec"
EER = "eer_percent"


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--plain", required=True, help="trained without")
    parser.add_argument("--teacher", nargs="+", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 42])
    options = parser.parse_args(arguments)
    models = {"without a teacher": options.plain}
    for seed in options.seeds:
        folder = options.output / f"seed_{seed}"
        if not (folder / "model").is_dir():
            train(
                data_folder=options.corpus,
                output_folder=folder,
                device="cpu",
                seed=seed,
                teacher_embeddings=f"[{', '.join(options.teacher)}]",
            )
        models[f"with a teacher, seed {seed}"] = folder / "model"
    path = str(options.corpus / "veri_test2.txt")
    (trials,) = read_trial_lists(path, str(options.corpus), "")
    scores = {name: score(model, trials) for name, model in models.items()}
    report(scores, trials, options.output)


def train(**overrides):
    """Runs the recipe, as a user would."""
    command = [
        sys.executable,
        RECIPE / "train_speaker_embeddings.py",
        RECIPE / "hparams" / "demo_redimnet2_b0.yaml",
        *(f"--{key}={value}" for key, value in overrides.items()),
    ]
    subprocess.run(list(map(str, command)), check=True)


def score(model, trials):
    """The cosines of the trials [trials]."""
    embeddings = encode_utterances(
        load_model(model).encode_batch, trials.paths.values()
    )
    units = {
        name: normalize(embeddings[path], dim=0)
        for name, path in trials.paths.items()
    }
    return torch.stack([units[a] @ units[b] for _, a, b in trials.trials])


def report(scores, trials, output):
    """The table and the plot; each is compared with the first."""
    plain, *distilled = scores.values()
    speakers = trial_speakers(trials)
    found = [
        compare(plain, each, trials.labels, speakers)[EER] for each in distilled
    ]
    rates = [found[0].first, *(each.second for each in found)]
    p_values = ["", *(f"{each.p_value:.3f}" for each in found)]
    table = [["training", "EER (%)", "p"]]
    for name, rate, p_value in zip(scores, rates, p_values, strict=True):
        table.append([name, with_interval(rate.value, rate.limits), p_value])
    mean = sum(rate.value for rate in rates[1:]) / len(distilled)
    text = (
        f"{processor_name()}, torch {torch.__version__}, commit "
        f"{commit(ROOT)}. 95 % intervals, and p of the difference from the "
        f"first, by bootstrap over speakers\n\n"
        f"{markdown_table(table, names=1)}\n"
        f"Mean with a teacher: {mean:.2f} %\n"
    )
    print(text)
    (output / "distillation.md").write_text(text, encoding="utf-8")
    plot_eer_of_conditions(
        dict(zip(scores, rates, strict=True)),
        output / "distillation.png",
        "EER of unseen voices, B0 on the demo corpus",
    )


if __name__ == "__main__":
    main()
