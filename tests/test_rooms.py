"""The rooms of the package: what imports what, and what its root offers."""

import operator
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import redimnet2_lobes
from redimnet2_lobes import HOMES

ROOT = Path(__file__).parent.parent


def test_imports_go_downwards():
    # In a process of its own, since it disables all loggers.
    program = (
        "import sys; from importlinter.cli import lint_imports; "
        "sys.exit(lint_imports(cache_dir=None))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", HOMES)
def test_the_root_offers(name):
    assert name in dir(redimnet2_lobes)
    found = getattr(redimnet2_lobes, name)
    if callable(found):
        assert found.__name__ == name
        assert found.__module__ == f"redimnet2_lobes.{HOMES[name]}"


def test_what_the_root_does_not_offer():
    with pytest.raises(AttributeError, match="no attribute 'ReDimNet3'"):
        operator.attrgetter("ReDimNet3")(redimnet2_lobes)


def test_the_root_imports_nothing():
    program = (
        "import sys, redimnet2_lobes; "
        "assert redimnet2_lobes.__version__; "
        "print(*[name for name in ('torch', 'numpy', 'speechbrain') "
        "if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def nodes(node):
    """A YAML document's nodes."""
    yield node
    for child in node.value if isinstance(node.value, list) else []:
        for each in child if isinstance(child, tuple) else (child,):
            yield from nodes(each)


@pytest.mark.parametrize(
    "path",
    sorted((ROOT / "hparams").glob("*.yaml")),
    ids=lambda path: path.stem,
)
def test_yaml_names_classes_by_the_root(path):
    """So that modules may move without breaking what is written down."""
    tags = {node.tag for node in nodes(yaml.compose(path.read_text()))}
    ours = {tag for tag in tags if "redimnet2_lobes" in tag}
    assert {tag.split(":", 1)[1] for tag in ours} <= {
        f"redimnet2_lobes.{name}" for name in HOMES
    }


def test_the_library_sets_no_log_levels():
    """That is for programs: the command, and where a script starts."""
    package = Path(redimnet2_lobes.__file__).parent
    found = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if ".setLevel(" in path.read_text()
    }
    assert found == {
        *("cli/encoder.py", "cli/serve.py", "recipe/command_line.py")
    }
