"""What a teacher's embeddings gain a small network, over several seeds.

    make demo
    python tests/benchmarks/distillation.py demo/corpus results/distillation \
        --teacher results/teacher/1.0.npz results/teacher/0.8.npz ...

B0 is trained on the demo corpus by hparams/demo_redimnet2_b0.yaml, without and
with a teacher, and tested on the corpus' trials. The files of the teacher are
those of the speeds in that configuration, in their order, such as
tests/runtimes/peers/teacher.py makes of CAM++. Other options go to the recipe.
OUTPUT/distillation.md has the table, OUTPUT/distillation.png the plot. What is
finished is used again.
"""

import argparse
import subprocess
import sys
import time
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
MINUTES = "minutes.txt"


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--teacher", nargs="+", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 42])
    options, recipe_options = parser.parse_known_args(arguments)
    teacher = f"--teacher_embeddings=[{', '.join(options.teacher)}]"
    for seed in options.seeds:
        for folder, more in (
            (options.output / f"plain_{seed}", []),
            (options.output / f"distilled_{seed}", [teacher]),
        ):
            if not (folder / MINUTES).is_file():
                train(
                    folder,
                    f"--data_folder={options.corpus}",
                    f"--seed={seed}",
                    *more,
                    *recipe_options,
                )
    path = str(options.corpus / "veri_test2.txt")
    (trials,) = read_trial_lists(path, str(options.corpus), "")
    report(options.output, options.seeds, trials)


def train(folder, *options):
    """Runs the recipe, as a user would, and writes down the minutes."""
    start = time.perf_counter()
    command = [
        sys.executable,
        RECIPE / "train_speaker_embeddings.py",
        RECIPE / "hparams" / "demo_redimnet2_b0.yaml",
        f"--output_folder={folder}",
        "--device=cpu",
        *options,
    ]
    subprocess.run(list(map(str, command)), check=True)
    minutes = (time.perf_counter() - start) / 60
    (folder / MINUTES).write_text(f"{minutes:.1f}\n", encoding="utf-8")


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


def report(output, seeds, trials):
    """The table and the plot; each seed's two trainings are compared."""
    speakers = trial_speakers(trials)
    table = [["seed", "without (%)", "with (%)", "p", "minutes"]]
    plain, distilled = {}, {}
    for seed in seeds:
        folders = [output / f"{kind}_{seed}" for kind in ("plain", "distilled")]
        scores = [score(folder / "model", trials) for folder in folders]
        found = compare(*scores, trials.labels, speakers)[EER]
        plain[f"without a teacher, seed {seed}"] = found.first
        distilled[f"with a teacher, seed {seed}"] = found.second
        table.append(
            [
                str(seed),
                with_interval(found.first.value, found.first.limits),
                with_interval(found.second.value, found.second.limits),
                f"{found.p_value:.3f}",
                " and ".join(
                    (folder / MINUTES).read_text().strip() for folder in folders
                ),
            ]
        )
    means = [
        sum(rate.value for rate in rates.values()) / len(seeds)
        for rates in (plain, distilled)
    ]
    table.append(["mean", *(f"{mean:.2f}" for mean in means), "", ""])
    text = (
        f"{processor_name()}, torch {torch.__version__}, commit "
        f"{commit(ROOT)}. EER without and with a teacher, with 95 % intervals, "
        f"and p of their difference by bootstrap over speakers; minutes of the "
        f"two trainings\n\n{markdown_table(table, names=1)}"
    )
    print(text)
    (output / "distillation.md").write_text(text, encoding="utf-8")
    plot_eer_of_conditions(
        plain | distilled,
        output / "distillation.png",
        "EER of unseen voices, B0 on the demo corpus",
    )


if __name__ == "__main__":
    main()
