"""All that is read, by name, and where inputs that showed a fault are kept."""

from pathlib import Path

from fuzz import archives, audio, models, texts

CORPUS = Path(__file__).parent / "corpus"
TARGETS = {
    target.name: target
    for module in (texts, archives, models, audio)
    for target in module.TARGETS
}
