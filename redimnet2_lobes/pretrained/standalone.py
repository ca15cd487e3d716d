"""The code that a model needs, as one file beside its weights.

SpeechBrain loads code that is shipped with a model from a single file
(``pymodule_file`` of ``speechbrain.inference.interfaces.foreign_class``). The
file written here stands in for this package where it is not installed: it holds
the sources of ``SpeakerRecognition``, of the modules that a hyperparams.yaml
names and of those that they import, and nothing else.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import ast
import importlib
import inspect
import pprint
import re
from collections.abc import Iterable

from redimnet2_lobes import HOMES
from redimnet2_lobes.pretrained.savedir import CODE_FILE as FILE_NAME

PACKAGE = "redimnet2_lobes"

HEADER = '''\
"""What this model needs of {package}, for machines without it.

Written by `redimnet2 push` from the package's own sources. Load it with

    from speechbrain.inference.interfaces import foreign_class

    model = foreign_class(
        source="USER/NAME",
        pymodule_file="{file_name}",
        classname="SpeakerRecognition",
    )

Where {package} is installed, that is used and this is not.
"""

import importlib
import importlib.abc
import importlib.util
import sys

HOMES = {homes}
SOURCES = {{}}
'''
FOOTER = '''

class _Sources(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports the modules above, and the packages they are in."""

    def find_spec(self, name, path=None, target=None):
        """See importlib.abc.MetaPathFinder."""
        package = any(module.startswith(name + ".") for module in SOURCES)
        if package or name in SOURCES:
            return importlib.util.spec_from_loader(
                name, self, is_package=package
            )
        return None

    def exec_module(self, module):
        """See importlib.abc.Loader."""
        name = module.__name__
        source = SOURCES.get(name, "")
        exec(compile(source, f"<{name}>", "exec"), module.__dict__)


def __getattr__(name):
    if name not in HOMES:
        raise AttributeError(name)
    return getattr(importlib.import_module(HOMES[name]), name)


# This file is imported as a package, whose modules the finder has. It stands
# last, so that an installed package comes before it.
__path__ = []
sys.meta_path.append(_Sources())

# ruff: noqa: E402, F401
from speechbrain.inference.classifiers import EncoderClassifier
'''


def single_file(hyperparams: str) -> str:
    """The source of a module ``redimnet2_lobes`` with what a model needs.

    Its class ``SpeakerRecognition`` is that of this package, its
    ``EncoderClassifier`` SpeechBrain's. ``hyperparams`` is the text of its
    hyperparams.yaml.

    Example
    -------
    >>> text = single_file("norm: !new:redimnet2_lobes.PassThrough")
    >>> "SOURCES['redimnet2_lobes.models.pass_through']" in text
    True
    >>> "SOURCES['redimnet2_lobes.scoring.plda']" in text
    False
    """
    names = {
        *re.findall(rf":{PACKAGE}\.(\w+)", hyperparams),
        "SpeakerRecognition",
    }
    homes = {name: f"{PACKAGE}.{HOMES[name]}" for name in sorted(names)}
    sources = {}
    _collect(homes.values(), sources)
    parts = [
        HEADER.format(
            package=PACKAGE, file_name=FILE_NAME, homes=pprint.pformat(homes)
        )
    ]
    for name, source in sorted(sources.items()):
        # Readable, in triple quotes, which no source holds.
        if "'''" in source:
            raise ValueError(f"{name}: holds three single quotes")
        parts.append(f"\nSOURCES['{name}'] = r'''\n{source}'''\n")
    return "".join(parts) + FOOTER


def _collect(names: Iterable[str], sources: dict[str, str]) -> None:
    """Adds the sources of modules and of what they import of the package."""
    for name in names:
        if name in sources:
            continue
        sources[name] = inspect.getsource(importlib.import_module(name))
        imported = [
            node.module or ""
            for node in ast.walk(ast.parse(sources[name]))
            if isinstance(node, ast.ImportFrom)
        ]
        of_package = [x for x in imported if x.startswith(f"{PACKAGE}.")]
        _collect(of_package, sources)
