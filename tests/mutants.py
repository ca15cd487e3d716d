"""Mutation testing: breaks the code on purpose and counts what tests notice.

python tests/mutants.py [GROUP or MODULE ...]; tests/README.md tells more.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from mutmut.mutation.diff_apply import get_diff_for_mutant
from mutmut.stats import status_by_exit_code

REPOSITORY = Path(__file__).resolve().parent.parent
BUILD = REPOSITORY / "build" / "mutants"
PACKAGE = "redimnet2_lobes"

# Of each group the modules that are broken, and the tests that should notice.
GROUPS = {
    "training": (
        [
            "train_speaker_embeddings",
            "average_checkpoints",
            f"{PACKAGE}/data/training_set",
            f"{PACKAGE}/training/batches",
            f"{PACKAGE}/training/brain",
            f"{PACKAGE}/training/validation",
            f"{PACKAGE}/data/crops",
            f"{PACKAGE}/training/schedules",
            f"{PACKAGE}/training/fine_tuning",
            f"{PACKAGE}/training/distillation",
            f"{PACKAGE}/training/checkpointer",
            f"{PACKAGE}/training/averaging",
        ],
        [
            "training_set",
            "batches",
            "crops",
            "schedules",
            "fine_tuning",
            "new_domain",
            "distillation",
            "checkpointer",
            "shards",
            "training_loop*",
            "resuming",
            "average_checkpoints",
        ],
    ),
    "scoring": (
        [
            "speaker_verification_cosine",
            "speaker_verification_plda",
            f"{PACKAGE}/recipe/verification",
            f"{PACKAGE}/scoring/evaluate",
            f"{PACKAGE}/scoring/backends",
            f"{PACKAGE}/scoring/calibration",
            f"{PACKAGE}/scoring/plda",
        ],
        ["backends", "calibration", "plda", "verification*"],
    ),
    "adaptation": (
        [f"{PACKAGE}/scoring/adaptation", f"{PACKAGE}/scoring/kaldi_plda"],
        ["adaptation", "kaldi_plda"],
    ),
    "evidence": (
        [
            f"{PACKAGE}/scoring/bootstrap",
            f"{PACKAGE}/scoring/comparison",
            f"{PACKAGE}/scoring/conditions",
            f"{PACKAGE}/scoring/identification",
            f"{PACKAGE}/scoring/reproduction",
            f"{PACKAGE}/data/conditions",
        ],
        ["bootstrap", "compar*", "conditions", "identification", "reproduce"],
    ),
    "corpora": (
        [
            f"{PACKAGE}/data/lhotse_manifests",
            f"{PACKAGE}/data/training_list",
            f"{PACKAGE}/data/verification_lists",
        ],
        ["lhotse_manifests", "import_dataset", "corpora"],
    ),
}
KILLED = {"killed", "timeout"}


def files_of_tests(group):
    """The tests of a group, in the order that they should go."""
    return [
        f"tests/{path.name}"
        for name in GROUPS[group][1]
        for path in sorted((REPOSITORY / "tests").glob(f"test_{name}.py"))
    ]


def lay_out(group):
    """Copies the repository's code into one flat folder.

    mutmut tells modules by their path, so a module must be imported by the
    name that its path gives. A file that has not changed keeps its time, by
    which mutmut knows that its mutants are still the same.
    """
    folder = BUILD / group
    recipe = REPOSITORY / "recipes" / "VoxCeleb"
    sources = recipe.rglob("*.py")
    places = {path.name: path for path in sources}
    for path in (REPOSITORY / PACKAGE).rglob("*.py"):
        places[f"{path.relative_to(REPOSITORY)}"] = path
    for place, path in places.items():
        copy = folder / place
        copy.parent.mkdir(parents=True, exist_ok=True)
        if not copy.exists() or copy.read_bytes() != path.read_bytes():
            shutil.copy(path, copy)
    for name in ("tests", "hparams"):
        for copy in (folder / name, folder / "mutants" / name):
            shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(REPOSITORY / name, folder / name)
    # Python forgets a folder of PYTHONPATH that is not there when it starts.
    (folder / "mutants").mkdir(exist_ok=True)
    modules, _ = GROUPS[group]
    settings = {
        "source_paths": sorted({place.split("/")[0] for place in places}),
        "only_mutate": [f"{module}.py" for module in modules],
        "also_copy": ["hparams"],
        # The words of messages.
        "do_not_mutate_patterns": [r"^\s*raise ", r"\blogger\.", r"\bprint\("],
        "pytest_add_cli_args_test_selection": files_of_tests(group),
        "pytest_add_cli_args": [
            "--override-ini=pythonpath=. tests tests/benchmarks",
            "--override-ini=tmp_path_retention_policy=failed",
            "-mnot slow",
            "-pquickest_first",
            "-pno:cacheprovider",
            # Collects garbage at the end, which takes longer than most tests.
            "-pno:unraisableexception",
        ],
        # torch and SpeechBrain are imported once, not for each mutant.
        "process_isolation": "forkserver",
        # Of the seconds that the tests take alone, without their fixtures.
        "timeout_multiplier": 2.0,
        "timeout_constant": 20.0,
    }
    lines = [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
    (folder / "pyproject.toml").write_text(
        (REPOSITORY / "pyproject.toml").read_text()
        + "\n".join(["", "[tool.mutmut]", *lines, ""])
    )
    return folder


def forget_survivors(folder):
    """Lets mutmut test again what no test has killed yet.

    It keeps all results while the code stays the same, even when the tests
    change.
    """
    for path in folder.glob("mutants/**/*.py.meta"):
        content = json.loads(path.read_text())
        codes = content["exit_code_by_key"]
        for name, code in codes.items():
            if status_by_exit_code[code] != "killed":
                codes[name] = None
        path.write_text(json.dumps(content))


def run(group, folder, modules, processes):
    """Runs mutmut on what is left, or on all mutants of the named modules."""
    # Which tests reach which function: they may have changed.
    (folder / "mutants" / "mutmut-stats.json").unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        # mutmut ends its processes without giving pytest time to clean up.
        done = subprocess.run(
            [
                Path(sys.executable).parent / "mutmut",
                "run",
                f"--max-children={processes}",
                *(f"{module.replace('/', '.')}.x*" for module in modules),
            ],
            cwd=folder,
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": f"{folder / 'mutants'}:{folder / 'tests'}",
                "TEST_FILES": " ".join(files_of_tests(group)),
                "PYTEST_DEBUG_TEMPROOT": temporary,
            },
            check=False,
        )
    if done.returncode:
        sys.exit(f"error: mutmut ended with status {done.returncode}")


def summarize(folder, modules):
    """Writes score.md and the difference that each survivor makes."""
    os.chdir(folder)
    survivors = folder / "survivors"
    shutil.rmtree(survivors, ignore_errors=True)
    survivors.mkdir()
    rows = ["| module | mutants | killed | survived | no test | score |"]
    rows.append("|---|---|---|---|---|---|")
    total = Counter()
    for module in modules:
        content = json.loads(Path(f"mutants/{module}.py.meta").read_text())
        differences = []
        found = Counter()
        for name, code in content["exit_code_by_key"].items():
            status = status_by_exit_code[code]
            found["killed" if status in KILLED else status] += 1
            if status not in KILLED:
                difference = get_diff_for_mutant(name, path=f"{module}.py")
                differences.append(f"# {name}: {status}\n{difference}\n")
        name = f"{module.replace('/', '.')}.diff"
        (survivors / name).write_text("\n".join(differences))
        rows.append(row(f"`{module}.py`", found))
        total += found
    rows.append(row("all", total))
    Path("score.md").write_text("\n".join(rows) + "\n")
    print("\n".join(rows))
    print(f"survivors: {survivors.relative_to(REPOSITORY)}")


def row(name, found):
    mutants = found.total()
    survived = mutants - found["killed"] - found["no tests"]
    cells = (mutants, found["killed"], survived, found["no tests"])
    score = f"{found['killed'] / max(mutants, 1):.1%}"
    return f"| {' | '.join(map(str, (name, *cells, score)))} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="a group, or modules of one"
    )
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    names = set(arguments.names or GROUPS)
    known = [*GROUPS, *(name for each in GROUPS.values() for name in each[0])]
    if unknown := names - set(known):
        parser.error(
            f"{', '.join(sorted(unknown))}: expected one of {', '.join(known)}"
        )
    for group, (modules, _) in GROUPS.items():
        named = [module for module in modules if module in names]
        if group not in names and not named:
            continue
        folder = lay_out(group)
        if group in names:
            forget_survivors(folder)
            named = []
        run(group, folder, named, arguments.processes)
        summarize(folder, named or modules)


if __name__ == "__main__":
    main()
