"""What needs other projects; tests/runtimes has the tests with them."""

import importlib
import sys

import pytest


@pytest.mark.parametrize(
    "name, module, remedy",
    [
        ("pyannote", "pyannote.audio", "pip install pyannote.audio"),
        ("case_benchmark", "case_benchmark", "install case-benchmark as docs/"),
    ],
)
def test_without_the_other_project(name, module, remedy, monkeypatch):
    name = f"redimnet2_lobes.integrations.{name}"
    monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=remedy) as error:
        importlib.import_module(name)
    assert "\n" not in str(error.value)
