"""The code that a model needs, as one file beside its weights.

SpeechBrain loads code that is shipped with a model from a single file
(``pymodule_file`` of ``speechbrain.inference.interfaces.foreign_class``). The
file written here stands in for this package where it is not installed: it holds
the sources of the modules that a hyperparams.yaml names and of those that they
import, and nothing else.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import ast
import importlib.util
import re
from pathlib import Path

PACKAGE = __package__
FILE_NAME = f"{PACKAGE}.py"

HEADER = '''\
"""What this model needs of {package}, for machines without it.

Written by {package}.push from the package's own sources. Load it with

    from speechbrain.inference.interfaces import foreign_class

    model = foreign_class(
        source="USER/NAME",
        pymodule_file="{file_name}",
        classname="SpeakerRecognition",
    )

Where {package} is installed, that is used and this is not.
"""

import importlib.abc
import importlib.util
import sys

SOURCES = {{}}
'''
FOOTER = '''

class _Sources(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports the modules above."""

    def find_spec(self, name, path=None, target=None):
        if name in SOURCES:
            return importlib.util.spec_from_loader(name, self)
        return None

    def exec_module(self, module):
        name = module.__name__
        exec(compile(SOURCES[name], f"<{name}>", "exec"), module.__dict__)


# This file is imported as a package, whose modules the finder has. It stands
# last, so that an installed package comes before it.
__path__ = []
sys.meta_path.append(_Sources())

# ruff: noqa: E402, F401
from speechbrain.inference.classifiers import EncoderClassifier
from speechbrain.inference.speaker import SpeakerRecognition
'''


def single_file(hyperparams):
    """Writes the code that a model needs as one module.

    Arguments
    ---------
    hyperparams : str
        The text of its hyperparams.yaml.

    Returns
    -------
    str
        The source of a module ``redimnet2_lobes``, whose classes
        ``EncoderClassifier`` and ``SpeakerRecognition`` are SpeechBrain's.

    Example
    -------
    >>> text = single_file("norm: !new:redimnet2_lobes.redimnet2.PassThrough")
    >>> "SOURCES['redimnet2_lobes.pooling']" in text
    True
    >>> "SOURCES['redimnet2_lobes.plda']" in text
    False
    """
    names = re.findall(rf"{PACKAGE}\.(\w+)\.", hyperparams)
    sources = {}
    _collect(sorted(set(names)), sources)
    parts = [HEADER.format(package=PACKAGE, file_name=FILE_NAME)]
    for name, source in sorted(sources.items()):
        # Readable, in triple quotes, which no source holds.
        if "'''" in source:
            raise ValueError(f"{PACKAGE}.{name}: holds three single quotes")
        parts.append(f"\nSOURCES['{PACKAGE}.{name}'] = r'''\n{source}'''\n")
    return "".join(parts) + FOOTER


def _collect(names, sources):
    """Adds the sources of modules and of what they import of the package."""
    for name in names:
        if name in sources:
            continue
        spec = importlib.util.find_spec(f"{PACKAGE}.{name}")
        sources[name] = Path(spec.origin).read_text(encoding="utf-8")
        _collect(_imports(sources[name]), sources)


def _imports(source):
    return [
        node.module.removeprefix(f"{PACKAGE}.")
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom)
        and (node.module or "").startswith(f"{PACKAGE}.")
    ]
