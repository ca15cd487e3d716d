"""All that is read, by name, and where inputs that showed a fault are kept."""

from pathlib import Path

from fuzz import archives, audio, models, settings, shards, texts

CORPUS = Path(__file__).parent / "corpus"
TARGETS = {
    target.name: target
    for module in (texts, archives, models, audio, shards, settings)
    for target in module.TARGETS
}
