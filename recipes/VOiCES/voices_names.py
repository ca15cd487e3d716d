"""What the names of VOiCES's files say.

A distant recording is called Lab41-SRI-VOiCES-<room>-<distractor>-sp<speaker>
-ch<chapter>-sg<segment>-mc<microphone>-<type>-<place>-dg<degrees>.wav, what
was played Lab41-SRI-VOiCES-src-sp<speaker>-ch<chapter>-sg<segment>.wav.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import functools
import os
import re

from redimnet2_lobes.data.audio import utterance_name

NAME = re.compile(
    r"(?:.*VOiCES-)?"
    r"(?:src|(?P<room>rm\d+)-(?P<distractor>[a-z]+))-(?P<speaker>sp\d+)"
    r"-(?P<sentence>ch\d+-se?g\d+)"
    r"(?:-(?P<mic>mc\d+)-(?P<type>[a-z]+)-(?P<place>[a-z]+)-dg\d+)?"
)
BY = ("room", "distractor", "mic", "type", "place")


@functools.cache  # trials name it many times
def describe(file: str) -> dict[str, str]:
    """What the name of a file says; of an anonymous one all is unknown.

    Example
    -------
    >>> name = "rm1-babb-sp0032-ch021625-sg0005-mc01-stu-clo-dg010.wav"
    >>> found = describe(f"Lab41-SRI-VOiCES-{name}")
    >>> [found[key] for key in (*BY, "speaker")]
    ['rm1', 'babb', 'mc01', 'stu', 'clo', 'sp0032']
    >>> describe("x1.wav")["speaker"]
    'unknown'
    """
    match = NAME.fullmatch(utterance_name(os.path.basename(file)))
    if not match:
        return dict.fromkeys(NAME.groupindex, "unknown")
    return match.groupdict("unknown")


def name_of(file: str, original: str | None = None) -> str:
    """The name of an utterance.

    Example
    -------
    >>> name_of("x/Lab41-SRI-VOiCES-src-sp0032-ch021625-sg0005.wav")
    'sp0032/src-sp0032-ch021625-sg0005'
    """
    stem = utterance_name(os.path.basename(original or file))
    return f"{describe(stem)['speaker']}/{stem.split('VOiCES-')[-1]}"
