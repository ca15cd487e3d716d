"""What needs other projects; tests/runtimes has the tests with them."""

import importlib
import sys

import pytest


def test_without_pyannote_audio(monkeypatch):
    name = "redimnet2_lobes.integrations.pyannote"
    monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "pyannote.audio", None)
    with pytest.raises(
        ImportError, match="pip install pyannote.audio"
    ) as error:
        importlib.import_module(name)
    assert "\n" not in str(error.value)
