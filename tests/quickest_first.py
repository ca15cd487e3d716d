"""A pytest plugin for mutants.py, which tells mutmut what to run and in which
order.

mutmut notes which functions each test reaches, but those that a fixture of
several tests reaches for the first test alone; here they count for all.

Most mutants are killed by a quick test: those under a second go first. Test
files keep the order of TEST_FILES, so that the fixtures of a file are made
once; in each the tests go by the time that they took for mutmut.

What torch imports when it is first needed is imported here once, not again for
each mutant.
"""

import json
import os
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
    seconds = json.loads(TIMES.read_text())["duration_by_test"]

    def turn(item):
        took = seconds.get(item.nodeid, 0)
        return took >= 1, FILES.index(item.nodeid.split("::")[0]), took

    items.sort(key=turn)
