"""A pytest plugin for mutants.py, which tells mutmut what to run and in which
order.

mutmut notes which functions each test reaches, but those that a fixture of
several tests reaches for the first test alone; here they count for all.

Most mutants are killed by a test of their own function: of the tests under a
second those that reach few functions go first. Among equals test files keep the
order of TEST_FILES, so that the fixtures of a file are made once; in each the
tests go by the time that they took for mutmut.

What torch imports when it is first needed is imported here once, not again for
each mutant.
"""

import itertools
import json
import os
from collections import Counter
from pathlib import Path

import pytest
import torch._dynamo  # noqa: F401
from mutmut.state import state

TIMES = Path("mutmut-stats.json")
FILES = os.environ.get("TEST_FILES", "").split()
reached = {}  # by each fixture


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef):
    noted = state()._stats
    before = set(noted)
    noted.clear()
    try:
        return (yield)
    finally:
        reached[fixturedef] = set(noted)
        noted |= before


def pytest_runtest_call(item):
    for fixtures in item._fixtureinfo.name2fixturedefs.values():
        for fixture in fixtures:
            state()._stats.update(reached.get(fixture, ()))


def pytest_collection_modifyitems(items):
    if not TIMES.exists():
        return
    stats = json.loads(TIMES.read_text())
    seconds = stats["duration_by_test"]
    functions = Counter(
        itertools.chain(*stats["tests_by_mangled_function_name"].values())
    )

    def turn(item):
        name, took = item.nodeid, seconds.get(item.nodeid, 0)
        file = FILES.index(name.split("::")[0])
        return took >= 1, functions[name], file, took

    items.sort(key=turn)
