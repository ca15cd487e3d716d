"""The command ``redimnet2``.

``redimnet2 verify a.wav b.wav`` says whether two recordings are of one speaker,
``redimnet2 embed FILES`` writes embeddings, and ``redimnet2 identify --enrol
FOLDER FILES`` says who speaks, ``diarize FILES`` who speaks when. ``enrol NAME
FILES`` keeps a voice in a store, ``voices`` shows and moves what it holds,
``calibrate`` finds a threshold for recordings of one's own, ``serve`` does all
that over HTTP. ``convert``, ``push`` and ``export`` take models from one form
to another, ``check`` runs an exported one, ``compare`` says whether two systems
differ on the same trials, ``reproduce`` measures a published checkpoint on
VoxCeleb1. ``--help`` explains each.

Results go to stdout, everything else to stderr. The exit code is 0 if there is
a result, whatever it is; 1 with one line on stderr if something is wrong with
the input, or if ``reproduce`` does not find what is published; 2 if the command
line itself is wrong; 130 after Ctrl-C.

``embed``, ``enrol``, ``identify``, ``calibrate`` and ``diarize`` go on where a
recording cannot be used. They print the results of the others, then a line on
stderr for each that was left out, with the reason, and the exit code is 1.
``--strict`` stops at the first. ``embed --output=x.npz`` also writes
``x.left_out.csv``, with the columns ID, wav, spk_id (empty) and reason.

With ``--json`` the results are one JSON value, floats in full precision:

- verify: an object with ``enrolment``, ``test``, ``score``, ``threshold``,
  ``threshold_origin``, ``same_speaker`` (these three are null where no
  threshold is known), ``embedding_space``, ``enrolment_speech_seconds``,
  ``enrolment_seconds``, ``test_speech_seconds`` and ``test_seconds`` (these
  four are null with ``--no_vad``); with operating points of one's own
  recordings also ``false_accepts`` (``value``, ``low``, ``high``, the share of
  other speakers that scores higher, and ``is_upper_limit``) and
  ``log_likelihood_ratio``, each where the recordings are enough for it;
- calibrate: what operating_points.json holds, where an interval is a list of
  the figure and its two limits;
- compare: an object with ``first`` and ``second``, as they were given,
  ``resamples`` and ``comparisons``, a list of objects with ``list`` and
  ``back_end`` (both null for two files), ``trials``, ``speakers`` and
  ``figures``, an object by the keys of results.json with objects of ``first``,
  ``second`` and ``difference`` (of the second less the first), each a list of
  the figure and its two limits, and ``p_value``;
- embed: a list of objects with ``name``, ``embedding`` and
  ``embedding_space``;
- enrol: an object with ``name``, ``percent``, ``speech_seconds`` and
  ``prototypes`` (those that were added), ``threshold``, ``threshold_origin``,
  ``embedding_space``, ``files``, a list of objects with ``name``, ``seconds``,
  ``taken_seconds`` and ``refused_seconds`` (of speech) and ``problems``, and
  ``left_out`` as of identify;
- identify: an object with ``threshold``, ``threshold_origin``,
  ``embedding_space``, ``files``, a list of objects with ``name``,
  ``speech_seconds`` and ``seconds`` (null with ``--no_vad``), ``speaker``
  (null if it is none of the enrolled), ``score``, that of the best speaker,
  ``margin``, how far the second is behind (null without one), and
  ``candidates``, a list of objects with ``speaker`` and ``score``, the best
  first, and ``left_out``, a list of objects with ``name`` and ``reason``. Its
  names are those of recordings, or ``speaker NAME`` for a speaker without any
  that can be used;
- voices list: an object with ``embedding_space`` and ``voices``, a list of
  objects with ``name``, ``prototypes`` (how many), ``seconds``, ``added``,
  ``changed`` and ``consent`` (null if there is none);
- diarize: an object with ``threshold``, ``threshold_origin`` (both null
  without a store), ``embedding_space``, ``files``, a list of objects with
  ``name``, ``seconds``, ``speech_seconds``, ``speakers``, a list of objects
  with ``speaker``, ``seconds`` and ``score`` (null without a store), and
  ``turns``, a list of objects with ``start``, ``end`` and ``speaker``, and
  ``left_out`` as of identify;
- reproduce: an object with ``checkpoint``, ``embedding_space``, ``protocol``
  and ``lists``, a list of objects with ``list``, ``trials``, ``eer_percent``,
  ``eer_percent_interval`` (two limits), ``published_eer_percent``,
  ``tolerance_percent`` and ``within_tolerance`` (these three are null where no
  figure is published).

If no recording can be used, nothing is printed on stdout, and of the files of
``--output`` only that list is written.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

from __future__ import annotations

import sys
from importlib import import_module

import click

from redimnet2_lobes.cli.group import redimnet2

COMMANDS = (
    *("calibrate", "check", "compare", "convert", "diarize", "embed"),
    *("enrol", "export", "hparams", "identify", "push", "reproduce"),
    *("serve", "verify", "voices"),
)
for name in COMMANDS:
    import_module(f"{__name__}.{name}")


def main(arguments: list[str] | None = None) -> None:
    """Runs a command, or prints one line that says why not.

    Without ``arguments`` they are those of the command line.

    Example
    -------
    >>> main(["verify", "no.wav", "b.wav", "--model=redimnet2_b3"])
    Traceback (most recent call last):
    SystemExit: error: no.wav: missing; check the path
    """
    try:
        redimnet2(arguments, prog_name="redimnet2", standalone_mode=False)
    except click.UsageError as error:
        message = error.format_message().rstrip(".")
        if isinstance(error, click.MissingParameter) and error.param:
            message = f"missing {error.param.opts[-1]}"
        program = error.ctx.command_path if error.ctx else "redimnet2"
        print(f"error: {message}; see {program} --help", file=sys.stderr)
        sys.exit(2)
