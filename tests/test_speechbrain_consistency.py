"""What SpeechBrain asks of the files in its repository, asked of ours.

tests/recipes/VoxCeleb.csv has the columns of SpeechBrain's file of that name.
Its debug flags work in a folder like SpeechBrain's own: ``tests/samples`` with
small audio, each row's output in ``tests/tmp``.
"""

import ast
import csv
import importlib
import itertools
import re
import shlex
from pathlib import Path

import pytest
import soundfile
import yaml
from speechbrain.utils.run_opts import RunOptions
from synthetic_voices import synthetic_utterance

from redimnet2_lobes.models.redimnet2 import ReDimNet2
from redimnet2_lobes.pretrained.model_folder import write_model_folder
from redimnet2_lobes.recipe.command_line import parse_command_line
from redimnet2_lobes.recipe.hparams import load_hparams

ROOT = Path(__file__).parent.parent
SOURCES = sorted(
    path
    for folder in ("redimnet2_lobes", "recipes")
    for path in (ROOT / folder).rglob("*.py")
)
COLUMNS = [
    *("Task", "Dataset", "Script_file", "Hparam_file", "Data_prep_file"),
    *("Readme_file", "Result_url", "HF_repo", "test_debug_flags"),
    *("test_debug_checks", "performance"),
]
with open(ROOT / "tests/recipes/VoxCeleb.csv", newline="") as file:
    READER = csv.DictReader(file)
    # SpeechBrain numbers them by the lines of the file.
    ROWS = {f"VoxCeleb_row_{n:02d}": row for n, row in enumerate(READER, 2)}
SCRIPTS = sorted({row["Script_file"] for row in ROWS.values()})
FIRST_ROWS = [
    min(name for name in ROWS if ROWS[name]["Script_file"] == script)
    for script in SCRIPTS
]


def without_docstring(node):
    """Classes, functions and methods, but not what a function defines."""
    definitions = [
        child
        for child in node.body
        if isinstance(child, ast.ClassDef | ast.FunctionDef)
    ]
    documented = {  # a property's getter speaks for its setter
        child.name for child in definitions if ast.get_docstring(child)
    }
    for child in definitions:
        if child.name not in documented and child.name[0] != "_":
            yield child.name
        if isinstance(child, ast.ClassDef):
            yield from without_docstring(child)


@pytest.mark.parametrize(
    "path", SOURCES, ids=lambda path: str(path.relative_to(ROOT))
)
def test_docstrings(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree)
    assert list(without_docstring(tree)) == []


def test_columns():
    assert READER.fieldnames == COLUMNS


def test_rows_name_each_yaml_once():
    listed = [Path(row["Hparam_file"]).name for row in ROWS.values()]
    assert sorted(listed) == sorted(
        path.name for path in (ROOT / "hparams").glob("*.yaml")
    )


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_files_of_a_row_exist(row):
    for column in COLUMNS:
        if column.endswith("_file"):
            assert (ROOT / row[column]).is_file(), row[column]


def keys_of(script):
    """What a script takes of hparams, modules and self.hparams."""
    for node in ast.walk(ast.parse(script)):
        match node:
            case ast.Subscript(ast.Name("hparams"), ast.Constant(key)):
                yield key
            case ast.Call(
                ast.Attribute(ast.Name("hparams"), "get"),
                [ast.Constant(key), *_],
            ):
                yield key
            case ast.Attribute(
                ast.Attribute(_, "hparams" | "modules"), key
            ) | ast.Attribute(ast.Name("modules"), key):
                yield key


def test_keys_of():
    script = (
        'hparams["a"], hparams.get("b", 1), self.hparams.c, brain.modules.d'
    )
    assert set(keys_of(script)) == {"a", "b", "c", "d"}


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_each_key_is_used_in_yaml_or_script(row):
    text = (ROOT / row["Hparam_file"]).read_text()
    used = set(keys_of((ROOT / row["Script_file"]).read_text()))
    used |= RunOptions().as_dict().keys()  # SpeechBrain's Brain takes those
    seen = set()
    for key, value in yaml.compose(text).value:
        if not value.tag.startswith("!apply:"):
            seen.add(key.value)
        of_value = text[value.start_mark.index : value.end_mark.index]
        # As SpeechBrain counts: a reference that stands below its key.
        for reference in re.findall(r"!ref .*", of_value):
            seen -= set(re.findall(r"<(\w+)", reference))
    assert seen - used == set()


def arguments(name):
    """The command line with which SpeechBrain tests a row."""
    row = ROWS[name]
    return [
        row["Hparam_file"],
        f"--output_folder=tests/tmp/{name}",
        *shlex.split(row["test_debug_flags"]),
        "--device=cpu",
    ]


@pytest.mark.parametrize("name", ROWS)
def test_debug_flags_are_understood(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    # Fine-tuning asks the model folder which network it is.
    model_folder = tmp_path / "tests" / "tmp" / "VoxCeleb_row_02" / "model"
    write_model_folder(model_folder, ReDimNet2.from_variant("b0"), "A test")
    hparams_file, _, overrides = parse_command_line(arguments(name))
    assert load_hparams(hparams_file, overrides)


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A folder in which the rows work, as they would in SpeechBrain's."""
    folder = tmp_path_factory.mktemp("repository")
    (folder / "recipes").symlink_to(ROOT / "recipes")
    samples = folder / "tests" / "samples"
    (samples / "ASR").mkdir(parents=True)
    (samples / "annotation").mkdir()
    rows = {"train": ["ID,duration,wav,spk_id"], "test": ["ID,wav"]}
    for speaker in (1, 2):
        for sentence in range(1, 7):
            name = f"spk{speaker}_snt{sentence}"
            wav = f"tests/samples/ASR/{name}.wav"
            waveform = synthetic_utterance(speaker, sentence, 1.0)
            soundfile.write(folder / wav, waveform, 16000)
            if sentence <= 4:
                rows["train"].append(f"{name},1.0,{wav},spk{speaker}")
            else:
                rows["test"].append(f"{name},{wav}")
    for part, lines in rows.items():
        path = samples / "annotation" / f"speaker_{part}.csv"
        path.write_text("\n".join(lines))
    names = [line.split(",")[0] for line in rows["test"][1:]]
    (samples / "annotation" / "speaker_trials.txt").write_text(
        "".join(
            f"{int(a[:4] == b[:4])} {a} {b}\n"
            for a, b in itertools.combinations(names, 2)
        )
    )
    return folder


@pytest.mark.slow
def test_debug_flags_run_the_scripts(repository, monkeypatch):
    monkeypatch.chdir(repository)
    # The others take the checkpoint that the first one trains.
    assert min(FIRST_ROWS) == "VoxCeleb_row_02"
    for name in sorted(FIRST_ROWS):
        script = importlib.import_module(Path(ROWS[name]["Script_file"]).stem)
        script.main(arguments(name))
        checks = ROWS[name]["test_debug_checks"]
        (files,) = re.findall(r"^file_exists=\[(.+)\]$", checks)
        for file in files.split(","):
            assert Path("tests/tmp", name, file).is_file(), (name, file)
