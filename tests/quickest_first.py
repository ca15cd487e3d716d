"""A pytest plugin for mutants.py: most mutants are killed by a quick test.

Test files go in the order of TEST_FILES, so that the fixtures of a file are
made once; in each the tests go by the time that they took for mutmut.
"""

import json
import os
from pathlib import Path

TIMES = Path("mutmut-stats.json")
FILES = os.environ["TEST_FILES"].split()


def pytest_collection_modifyitems(items):
    if not TIMES.exists():
        return
    seconds = json.loads(TIMES.read_text())["duration_by_test"]
    items.sort(
        key=lambda item: (
            FILES.index(item.nodeid.split("::")[0]),
            seconds.get(item.nodeid, 0),
        )
    )
