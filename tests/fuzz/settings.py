"""YAML files of hyperparameters, and what a command line changes of them."""

import contextlib

from fuzz.inputs import shallow, text
from fuzz.oracle import Target
from redimnet2_lobes.recipe.command_line import parse_command_line
from redimnet2_lobes.recipe.hparams import load_hparams

HPARAMS = """\
seed: 1
lr: 0.1
variant: null
name: !ref results/<variant>/<seed>
speeds: [1.0, 0.9]
folder: !PLACEHOLDER
layer: !new:torch.nn.Dropout
    p: !ref <lr>
copy: !copy <speeds>
# Values in one line.
stage: {blocks: 1, reduction: 8}
"""
KEYS = [
    line.split(":")[0] for line in HPARAMS.splitlines() if line[0].isalpha()
]
ARGUMENTS = (
    "--folder=/a b\n--seed=2\n--device=cpu",
    "--folder\nc\n--speeds=[1.0]\n--name=lr=0.1,x: y #1",
    "--folder='1'\n--stage={blocks: 2}\n--variant=b0\n--lr=1e-3",
)


@contextlib.contextmanager
def keys_are_named(path):
    """Adds the file, where the key is enough of a name."""
    try:
        yield
    except ValueError as error:
        assert "\n" not in str(error)
        raise ValueError(f"{path}: {error}") from error


def read_file(path):
    with keys_are_named(path):
        hparams = load_hparams(path, {"folder": "corpus"})
    assert hparams["folder"] == "corpus"


def read_arguments(path):
    given = path.read_bytes().decode(errors="surrogateescape")
    given = given.replace("\0", "")  # which no command line can hold
    lines = given.split("\n")
    if any(line.startswith(("-h", "--h")) for line in lines):
        return  # it prints the help, and ends
    arguments = [str(path.parent / "hparams.yaml"), *lines]
    with keys_are_named(path):
        _, _, overrides = parse_command_line(arguments)
        hparams = load_hparams(arguments[0], overrides)
    assert set(hparams) == set(KEYS)
    for key, value in overrides.items():
        if isinstance(value, str):  # the others are YAML
            assert hparams[key] == value and value in given


TARGETS = (
    Target(
        "hparams", "hparams.yaml", lambda: shallow(text(HPARAMS)), read_file
    ),
    Target(
        "command-line",
        "arguments.txt",
        lambda: shallow(text(*ARGUMENTS)),
        read_arguments,
        lambda folder: (folder / "hparams.yaml").write_text(HPARAMS),
    ),
)
