"""What the pages say: links, code and command lines."""

import ast
import importlib
import itertools
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
import yaml

from redimnet2_lobes import cli
from redimnet2_lobes.recipe.command_line import RUN_OPTIONS

ROOT = Path(__file__).parent.parent
RECIPE = ROOT / "recipes" / "VoxCeleb"
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    RECIPE / "README.md",
    RECIPE / "SpeakerRec" / "README.md",
    RECIPE / "demo_corpus" / "README.md",
    *sorted(set(ROOT.glob("recipes/*/README.md")) - {RECIPE / "README.md"}),
]


def title(page):
    return f"{page.parent.name}/{page.stem}"


def python_blocks(page):
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S)


def commands(page):
    """The command lines of indented blocks, one string each."""
    text = page.read_text().replace("\\\n", " ")
    for line in re.findall(r"^    (\S.*)$", text, re.M):
        yield re.sub(r"\s+#.*", "", line)


def with_program(program):
    return [
        pytest.param(shlex.split(line), id=f"{title(page)}: {line[:60]}")
        for page in PAGES
        for line in commands(page)
        if re.match(program, line)
    ]


@pytest.mark.parametrize(
    "page",
    # tests/runtimes runs the code of these.
    [
        page
        for page in PAGES
        if page.name not in ("pyannote.md", "case_benchmark.md")
    ],
    ids=title,
)
def test_python_blocks_name_what_there_is(page):
    for block in python_blocks(page):
        tree = ast.parse(block)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module)
                for alias in node.names:
                    assert hasattr(module, alias.name), alias.name
            if (
                isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and node.value.id == "redimnet2_lobes"
            ):
                package = importlib.import_module("redimnet2_lobes")
                assert hasattr(package, node.attr), node.attr


@pytest.mark.parametrize("words", with_program("redimnet2 "))
def test_commands_of_redimnet2(words):
    _, name, *arguments = words
    command = cli.redimnet2.commands[name]
    with click.Context(cli.redimnet2) as parent:
        command.make_context(name, arguments, parent)


@pytest.mark.parametrize(
    "words", with_program(r"(python|torchrun) .*hparams/\w+\.yaml")
)
def test_commands_of_the_recipe(words):
    at = next(i for i, word in enumerate(words) if word.endswith(".yaml"))
    script, hparams, *rest = words[at - 1 :]
    assert (RECIPE / "SpeakerRec" / script).is_file()
    keys = yaml.compose((ROOT / hparams).read_text()).value
    known = {key.value for key, _ in keys} | {*RUN_OPTIONS}
    for word in rest:
        if word != "...":
            assert re.fullmatch(r"--\w+=.+", word)
            assert word[2:].split("=")[0] in known


@pytest.mark.parametrize(
    "words", with_program(r"python (?!.*hparams/)(?!-)\S+\.py")
)
def test_commands_of_other_scripts(words):
    """Their options are in their help."""
    _, script, *rest = words
    folders = (RECIPE / "SpeakerRec", *sorted(ROOT.glob("recipes/*")))
    path = next(each / script for each in folders if (each / script).is_file())
    done = subprocess.run(
        [sys.executable, path, "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for option in re.findall(r"--\w+", " ".join(rest)):
        assert option in done.stdout


def test_the_site_is_built(tmp_path):
    """Strictly: a link or a name that leads nowhere is an error."""
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--site-dir", tmp_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "api.html").read_text()
    assert "from_variant" in page and "Raises" in page


def test_links_of_the_readmes():
    readmes = (page for page in PAGES if page.name == "README.md")
    pages = itertools.chain(readmes, ROOT.glob("tests/**/README.md"))
    for page in pages:
        for link in re.findall(r"\]\(([^)#]+)", page.read_text()):
            if "://" not in link:
                assert (page.parent / link).exists(), f"{page}: {link}"
