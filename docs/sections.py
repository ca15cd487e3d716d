"""SpeechBrain's names of a docstring's sections, in the words of numpydoc."""

import re

import griffe

NAMES = {"Arguments": "Parameters", "Example": "Examples"}


class Sections(griffe.Extension):
    """Renames the sections before they are read."""

    def on_object(self, *, obj, **_):
        """Called with each module, class and function."""
        if obj.docstring is None:
            return
        for ours, theirs in NAMES.items():
            obj.docstring.value = re.sub(
                rf"^{ours}\n-+$",
                f"{theirs}\n{'-' * len(theirs)}",
                obj.docstring.value,
                flags=re.M,
            )
