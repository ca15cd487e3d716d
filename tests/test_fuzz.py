"""All readers, with inputs that showed a fault and some that are new."""

import numpy as np
import pytest
from fuzz.oracle import Target
from fuzz.targets import CORPUS, TARGETS
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

KEPT = sorted(str(path.relative_to(CORPUS)) for path in CORPUS.glob("*/*"))


@pytest.mark.parametrize("name", KEPT)
def test_kept_input(name):
    target = TARGETS[name.split("/")[0]]
    target.check((CORPUS / name).read_bytes())


@pytest.mark.parametrize("name", TARGETS)
def test_new_inputs(name):
    accepted = []

    @given(TARGETS[name].inputs())
    @settings(
        max_examples=24,
        derandomize=True,
        database=None,
        deadline=None,
        print_blob=False,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def check(data):
        accepted.append(TARGETS[name].check(data))

    check()
    assert any(accepted)


def leave_a_file(path):
    path.with_name("half.part").touch()


def name_nothing(path):
    raise ValueError("damaged")


def take_two_lines(path):
    raise ValueError(f"{path}:\ndamaged")


def raise_another_kind(path):
    {}[path]


def ask_for_memory(path):
    np.ones(2**31)


@pytest.mark.parametrize(
    ("read", "fault"),
    [
        (leave_a_file, "left behind: {'half.part'}"),
        (name_nothing, "names no file: damaged"),
        (take_two_lines, "not one line"),
        (raise_another_kind, "a.txt"),
        (ask_for_memory, "Unable to allocate"),
    ],
)
def test_what_a_fault_is(read, fault):
    target = Target("wrong", "a.txt", st.binary, read)
    kinds = AssertionError, KeyError, MemoryError
    with pytest.raises(kinds) as caught:
        target.check(b"")
    assert fault in str(caught.value)
