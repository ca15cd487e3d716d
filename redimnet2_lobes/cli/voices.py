"""``redimnet2 voices``: what a store of voices holds.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from redimnet2_lobes.cli.group import command, json_option, redimnet2
from redimnet2_lobes.files.same_space import KEY

if TYPE_CHECKING:
    import torch


@redimnet2.group(no_args_is_help=False)
def voices() -> None:
    """Shows, removes and moves the voices of a store."""


store_option = click.option(
    "--store", required=True, metavar="FILE", help="The store of voices."
)


def space_of_store(store: str) -> str:
    """The space of a store; refuses what is none, or holds no voices."""
    from redimnet2_lobes.voices.store import VoiceStore

    with VoiceStore(store) as opened:
        opened.check_not_empty()
        return opened.space


def kept_voice(store: str, name: str) -> tuple[str, torch.Tensor, float]:
    """The space of a store, and a voice: its mean and its seconds of speech."""
    from redimnet2_lobes.voices.search import mean_voice
    from redimnet2_lobes.voices.store import VoiceStore

    with VoiceStore(store) as opened:
        kept, prototypes = opened.read(name)
        return opened.space, mean_voice(prototypes), kept.seconds


@command("--store=voices.sqlite", voices)
@store_option
@json_option
def list_(store: str, as_json: bool) -> str:
    """Lists the voices, and what is kept of each."""
    from redimnet2_lobes.voices.store import VoiceStore

    with VoiceStore(store) as opened:
        found = opened.voices()
    if as_json:
        rows = [voice._asdict() for voice in found]
        return json.dumps({KEY: opened.space, "voices": rows}, indent=2)
    lines = [f"{len(found)} voices of the embedding space {opened.space}"]
    for voice in found:
        lines.append(
            f"{voice.name}: {voice.prototypes} "
            f"prototype{'s' * (voice.prototypes > 1)} of "
            f"{voice.seconds:.1f} s of speech, added {voice.added}, changed "
            f"{voice.changed}, consent: {voice.consent or 'no note'}"
        )
    return "\n".join(lines)


@command("anna --store=voices.sqlite", voices)
@click.argument("name")
@store_option
def remove(name: str, store: str) -> str:
    """Removes a voice, of which no byte stays in the file."""
    from redimnet2_lobes.voices.store import VoiceStore

    with VoiceStore(store) as opened:
        opened.remove(name)
    return f"{name} is removed from {store}"


@command("voices.npz --store=voices.sqlite", voices)
@click.argument("file")
@store_option
def export(file: str, store: str) -> str:
    """Writes all voices to a new file, for import elsewhere."""
    from redimnet2_lobes.voices.store import VoiceStore

    with VoiceStore(store) as opened:
        opened.export(file)
        count = len(opened.names())
    return f"{count} voices written to {file}"


@command("voices.npz --store=other.sqlite", voices)
@click.argument("file")
@store_option
def import_(file: str, store: str) -> str:
    """Adds the voices of an exported file: all of them, or none.

    The store is made if there is none.
    """
    from redimnet2_lobes.voices.store import VoiceStore
    from redimnet2_lobes.voices.transfer import read_voices

    # Read before there is a store that would stay empty.
    space = read_voices(file).embedding_space
    with VoiceStore(store, space) as opened:
        count = opened.import_(file)
    return f"{count} voices added to {store}"
