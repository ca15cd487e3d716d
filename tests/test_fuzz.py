"""All readers, with inputs that showed a fault and some that are new."""

import pytest
from fuzz.targets import CORPUS, TARGETS
from hypothesis import HealthCheck, Phase, given, settings

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
