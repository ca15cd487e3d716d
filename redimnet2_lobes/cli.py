"""The command ``redimnet2``: verify, embed and identify.

``redimnet2 verify a.wav b.wav`` says whether two recordings are of one speaker,
``redimnet2 embed FILES`` writes embeddings, and ``redimnet2 identify --enrol
FOLDER FILES`` says who speaks. ``--help`` explains each.

Results go to stdout, everything else to stderr. The exit code is 0 if there is
a result, whatever it is; 1 with one line on stderr if something is wrong with
the input; 2 if the command line itself is wrong; 130 after Ctrl-C.

With ``--json`` the results are one JSON value, floats in full precision:

- verify: an object with ``enrolment``, ``test``, ``score``, ``threshold``,
  ``threshold_origin`` and ``same_speaker``; the last three are null where no
  threshold is known;
- embed: a list of objects with ``name`` and ``embedding``;
- identify: an object with ``threshold``, ``threshold_origin`` and ``files``, a
  list of objects with ``name``, ``speaker`` (null if it is none of the
  enrolled) and ``candidates``, a list of objects with ``speaker`` and
  ``score``, the best first.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

# torch and SpeechBrain take seconds to import: not before they are needed.
import argparse
import contextlib
import io
import json
import math
import os
import sys
from pathlib import Path

from redimnet2_lobes.files.atomic import complete_or_absent
from redimnet2_lobes.files.error_lines import one_line, one_line_errors
from redimnet2_lobes.scoring.results import RESULTS_FILE
from redimnet2_lobes.scoring.threshold import Threshold, kept_threshold

MODEL_VARIABLE = "REDIMNET2_MODEL"
OUTPUT_FORMATS = (".npz", ".json")
NO_THRESHOLD = (
    "none known; give --threshold, or have the verification script keep its "
    "results with the model (--keep_results_with_model=True)"
)


def main(arguments=None):
    """Runs a command, or prints one line that says why not.

    Arguments
    ---------
    arguments : list of str or None
        Command line; None for the program's own.

    Example
    -------
    >>> main(["verify", "no.wav", "b.wav", "--model=redimnet2_b3"])
    Traceback (most recent call last):
    SystemExit: error: no.wav: missing; check the path
    """
    options = _parser().parse_args(arguments)
    with one_line_errors():
        _print(options.command(options))


def verify(options):
    """Compares two recordings.

    Arguments
    ---------
    options : argparse.Namespace
        The command line.

    Returns
    -------
    str
        What to print.
    """
    paths = [options.enrolment, options.test]
    for path in paths:
        _check_file(path)
    model, encoder = _load_encoder(options)
    threshold = _threshold(options, model, encoder)
    embeddings = _embed(encoder, paths, options)
    enrolment, test = _directions([embeddings[path] for path in paths])
    score = float(enrolment @ test)
    decision = None
    if threshold.value is not None:
        decision = score > threshold.value
    if options.json:
        return _json(
            enrolment=options.enrolment,
            test=options.test,
            score=score,
            threshold=threshold.value,
            threshold_origin=threshold.origin,
            same_speaker=decision,
        )
    words = {
        True: "same speaker",
        False: "different speakers",
        None: "none, without a threshold",
    }
    return "\n".join(
        (
            f"score      {score:.4f}",
            _threshold_line(threshold),
            f"decision   {words[decision]}",
        )
    )


def embed(options):
    """Writes or prints the embeddings of files.

    Arguments
    ---------
    options : argparse.Namespace
        The command line.

    Returns
    -------
    str
        What to print.
    """
    paths = _find_files(options.files)
    output = options.output
    if output is None:
        embeddings = _embed(_load_encoder(options)[1], paths, options)
        if options.json:
            return _rows_as_json(embeddings)
        return "\n".join(
            f"{path}\t{' '.join(f'{value:.9g}' for value in values.tolist())}"
            for path, values in embeddings.items()
        )
    if output.exists():
        raise ValueError(
            f"--output: {output} exists; choose another, or delete it"
        )
    output.parent.mkdir(parents=True, exist_ok=True)
    with complete_or_absent(output) as partial:
        # What cannot be written should not be computed first.
        _write(output, partial, b"")
        embeddings = _embed(_load_encoder(options)[1], paths, options)
        if output.suffix == ".json":
            content = f"{_rows_as_json(embeddings)}\n".encode()
        else:
            content = _rows_as_npz(embeddings)
        _write(output, partial, content)
    return f"written  {len(paths)} embeddings: {output}"


def identify(options):
    """Finds the enrolled speaker of each recording.

    Arguments
    ---------
    options : argparse.Namespace
        The command line.

    Returns
    -------
    str
        What to print.
    """
    speakers = _enrolled_speakers(options.enrol)
    tests = _find_files(options.files)
    model, encoder = _load_encoder(options)
    threshold = _threshold(options, model, encoder)
    enrolled = [path for paths in speakers.values() for path in paths]
    embeddings = _embed(encoder, [*enrolled, *tests], options)
    scores = _scores(speakers, tests, embeddings)
    files = []
    for path, row in zip(tests, scores.tolist(), strict=True):
        candidates = sorted(
            zip(speakers, row, strict=True), key=lambda pair: -pair[1]
        )
        best, score = candidates[0]
        if threshold.value is not None and not score > threshold.value:
            best = None
        files.append((path, best, candidates[: options.top]))
    if options.json:
        return _json(
            threshold=threshold.value,
            threshold_origin=threshold.origin,
            files=[
                {
                    "name": path,
                    "speaker": best,
                    "candidates": [
                        {"speaker": speaker, "score": score}
                        for speaker, score in candidates
                    ],
                }
                for path, best, candidates in files
            ],
        )
    lines = [str(threshold)]
    for path, best, candidates in files:
        closest = ", ".join(
            f"{speaker} {score:.4f}" for speaker, score in candidates
        )
        lines.append(f"{path}: {best or 'unknown'} (closest: {closest})")
    return "\n".join(lines)


class _Parser(argparse.ArgumentParser):
    """Errors in one line."""

    def error(self, message):
        self.exit(2, f"error: {message}; see {self.prog} --help\n")


def _parser():
    parser = _Parser(
        prog="redimnet2",
        description="Compares voices. Audio may have any format that "
        "libsndfile reads (WAV, FLAC, OGG, MP3, AIFF and more), any sampling "
        "rate and any length.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(function, description, example):
        command = commands.add_parser(
            function.__name__,
            help=description,
            description=f"{description} Results go to stdout; the exit code "
            "is 0 whatever they are, and 1 after an error.",
            epilog=f"Example: redimnet2 {function.__name__} {example}",
            allow_abbrev=False,
        )
        command.set_defaults(command=function)
        command.add_argument(
            "--model",
            help="A model folder, the output folder of a training, the name "
            "USER/NAME of a model on the Hugging Face hub, or a .onnx file. "
            f"By default it is taken from the variable {MODEL_VARIABLE}. The "
            "hyperparams.yaml of a model can run any code, so use only models "
            "that you trust.",
        )
        command.add_argument(
            "--device",
            help="Where PyTorch computes, such as cuda:0; the default is cpu. "
            "A .onnx file runs on the CPU.",
        )
        command.add_argument(
            "--seconds_per_piece",
            type=_seconds,
            default=60.0,
            metavar="SECONDS",
            help="A longer file is embedded in pieces of at most so many "
            "seconds, and their embeddings are averaged; the default is 60. "
            "A lower number needs less memory.",
        )
        return command

    def add_threshold(command):
        command.add_argument(
            "--threshold",
            type=_cosine,
            help="The score, from -1 to 1, above which two voices are one. By "
            f"default it is that of the EER in the {RESULTS_FILE} of the "
            "model, where the verification script has kept one.",
        )

    json_help = "Print JSON instead, with floats in full precision."
    command = add(
        verify,
        "Says whether two recordings are of the same speaker.",
        "a.wav b.mp3 --model=redimnet2_b3",
    )
    command.add_argument("enrolment", help="The first recording.")
    command.add_argument("test", help="The second recording.")
    add_threshold(command)
    command.add_argument("--json", action="store_true", help=json_help)

    command = add(
        embed,
        "Computes the embeddings of recordings.",
        "recordings/ --output=embeddings.npz --model=redimnet2_b3",
    )
    files_help = "Recordings; a folder stands for all those below it."
    command.add_argument("files", nargs="+", metavar="FILE", help=files_help)
    where = command.add_mutually_exclusive_group()
    where.add_argument(
        "--output",
        type=_output,
        metavar="PATH",
        help="A new file to write: .npz with the arrays names and embeddings, "
        "or .json. By default a line is printed for each recording, with its "
        "name, a tab, and the numbers.",
    )
    where.add_argument("--json", action="store_true", help=json_help)

    command = add(
        identify,
        "Says which of the enrolled speakers each recording is of.",
        "--enrol=speakers calls/*.wav --model=redimnet2_b3",
    )
    command.add_argument(
        "--enrol",
        required=True,
        metavar="FOLDER",
        help="The speakers: for each a folder with recordings, or one "
        "recording, that has the speaker's name.",
    )
    command.add_argument("files", nargs="+", metavar="FILE", help=files_help)
    add_threshold(command)
    command.add_argument(
        "--top",
        type=_count,
        default=3,
        metavar="N",
        help="How many of the closest speakers to show; the default is 3.",
    )
    command.add_argument("--json", action="store_true", help=json_help)
    return parser


def _number(text, convert, fits, expected):
    try:
        value = convert(text)
    except ValueError:
        value = None
    if value is None or not fits(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not {expected}")
    return value


def _cosine(text):
    return _number(
        text, float, lambda value: -1 <= value <= 1, "a number from -1 to 1"
    )


def _seconds(text):
    return _number(
        text, float, lambda value: 1 <= value < math.inf, "a number from 1 on"
    )


def _count(text):
    return _number(
        text, int, lambda value: value >= 1, "a whole number from 1 on"
    )


def _output(text):
    path = Path(text)
    if path.suffix not in OUTPUT_FORMATS:
        raise argparse.ArgumentTypeError(
            f"{text!r} ends neither in .npz nor in .json"
        )
    return path


def _find_files(arguments):
    """Files, and those below folders, each once."""
    files = {}
    for argument in arguments:
        if os.path.isdir(argument):
            found = _audio_below(argument)
            if not found:
                raise ValueError(
                    f"{argument}: there is no audio file in it; name the "
                    "folder that holds them"
                )
            files.update(dict.fromkeys(found))
        else:
            files[argument] = None
    for path in files:
        _check_file(path)
    return list(files)


def _audio_below(folder):
    found = []
    for path, folders, files in os.walk(
        folder, onerror=_raise, followlinks=True
    ):
        folders[:] = [name for name in folders if name[0] != "."]
        found += [os.path.join(path, name) for name in files if _is_audio(name)]
    return sorted(found)


def _is_audio(name):
    from redimnet2_lobes.data.audio import audio_rank

    return name[0] != "." and audio_rank(name) is not None


def _raise(error):
    raise error


def _check_file(path):
    """Refuses what is no file, before anything is loaded."""
    try:
        path.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{path!a}: not a name in UTF-8; rename it") from None
    if os.path.isdir(path):
        raise ValueError(f"{path}: a folder; name an audio file in it")
    try:
        with open(path, "rb"):
            pass
    except FileNotFoundError:
        raise ValueError(f"{path}: missing; check the path") from None


def _enrolled_speakers(folder):
    """The recordings of each speaker."""
    speakers = {}
    for entry in sorted(os.listdir(folder)):
        path = os.path.join(folder, entry)
        if os.path.isdir(path) and entry[0] != ".":
            speaker, paths = entry, _find_files([path])
        elif _is_audio(entry):
            speaker, paths = os.path.splitext(entry)[0], _find_files([path])
        else:
            continue
        if speaker in speakers:
            raise ValueError(
                f"--enrol: {path}: there is a speaker {speaker} already; "
                "rename one, or put all recordings into one folder"
            )
        speakers[speaker] = paths
    if not speakers:
        raise ValueError(
            f"--enrol: {folder} holds no speakers; it needs a folder with "
            "recordings, or a recording, for each"
        )
    return speakers


def _is_onnx(model):
    return model.lower().endswith(".onnx")


def _load_encoder(options):
    """The model as SpeechBrain names it, and what embeds."""
    model = options.model or os.environ.get(MODEL_VARIABLE)
    if not model:
        raise ValueError(
            "--model: missing; give a model folder, a hub name or a .onnx "
            f"file, or set {MODEL_VARIABLE}"
        )
    if _is_onnx(model):
        if options.device not in (None, "cpu"):
            raise ValueError(
                f"--device: {options.device} is for PyTorch; leave it out, "
                "since a .onnx file runs on the CPU"
            )
        from redimnet2_lobes.onnx.encoder import OnnxEncoder

        return model, OnnxEncoder(model)
    if os.path.isfile(model):
        raise ValueError(
            f"--model: {model} is a file; give the model folder. Of a "
            "published checkpoint, redimnet2 convert makes one"
        )
    import logging

    import torch

    from redimnet2_lobes.models.folding import fold
    from redimnet2_lobes.models.redimnet2 import ReDimNet2
    from redimnet2_lobes.pretrained.loading import find_model, load_model

    if "SB_LOG_LEVEL" not in os.environ:
        logging.getLogger("speechbrain").setLevel(logging.WARNING)
    device = options.device or "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"--device: {device!r} cannot be used here ({one_line(error)})"
        ) from error
    # Whatever loading prints, stdout is for results.
    with contextlib.redirect_stdout(sys.stderr):
        encoder = load_model(model, {"device": device})
    network = encoder.mods.embedding_model
    if isinstance(network, ReDimNet2):  # others may be used as well
        encoder.mods.embedding_model = fold(network)
    return find_model(model), encoder


def _threshold(options, model, encoder):
    if options.threshold is not None:
        return Threshold(options.threshold, "given by --threshold")
    if _is_onnx(model):
        threshold, holder = encoder.threshold, os.path.basename(model)
    else:
        threshold = kept_threshold(model)
        if os.path.isabs(model):  # where it lies is the user's business
            model = os.path.basename(model)
        holder = f"{RESULTS_FILE} of {model}"
    if threshold.value is None:
        return threshold
    return threshold._replace(origin=f"{threshold.origin}; {holder}")


def _threshold_line(threshold):
    if threshold.value is None:
        return f"threshold  {NO_THRESHOLD}"
    return f"threshold  {threshold.value:.4f} ({threshold.origin})"


def _embed(encoder, paths, options):
    """Each path to its embedding, in the order of the paths."""
    from redimnet2_lobes.inference.long_files import encode_files

    embeddings, pieces = encode_files(
        encoder.encode_batch, paths, options.seconds_per_piece
    )
    for path, count in pieces.items():
        _note(
            f"{path} is longer than {options.seconds_per_piece:g} s: the "
            f"embeddings of {count} pieces were averaged"
        )
    return {path: embeddings[path] for path in paths}


def _directions(embeddings):
    """Rows of length 1 [embeddings, embedding]."""
    import torch

    from redimnet2_lobes.scoring.backends import CosineBackend

    return CosineBackend().test_side(torch.stack(embeddings))


def _scores(speakers, tests, embeddings):
    """Scores [tests, speakers]."""
    import torch

    from redimnet2_lobes.scoring.backends import CosineBackend, average

    enrolled = [
        embeddings[path] for paths in speakers.values() for path in paths
    ]
    rows = iter(range(len(enrolled)))
    groups = [[next(rows) for _ in paths] for paths in speakers.values()]
    voices = average(torch.stack(enrolled), groups)
    enrolments = CosineBackend().enrolment_side(voices)
    return _directions([embeddings[path] for path in tests]) @ enrolments.T


def _json(**values):
    return json.dumps(values, indent=2)


def _rows_as_json(embeddings):
    rows = (
        json.dumps({"name": path, "embedding": values.tolist()})
        for path, values in embeddings.items()
    )
    return "[\n" + ",\n".join(rows) + "\n]"


def _rows_as_npz(embeddings):
    import numpy as np

    content = io.BytesIO()
    np.savez(
        content,
        names=np.array(list(embeddings)),
        embeddings=np.stack([each.numpy() for each in embeddings.values()]),
    )
    return content.getvalue()


def _write(output, partial, content):
    try:
        partial.write_bytes(content)
    except OSError as error:
        raise OSError(
            f"--output: {output} cannot be written ({error.strerror or error})"
        ) from None


def _note(text):
    print(f"note: {' '.join(text.split())}", file=sys.stderr)


def _print(text):
    try:
        print(text, flush=True)
    except OSError as error:
        # Python would try to print the rest at its end, and complain again.
        with contextlib.suppress(OSError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, sys.stdout.fileno())
            os.close(nowhere)
        if not isinstance(error, BrokenPipeError):  # the reader had enough
            raise OSError(f"stdout: {error.strerror}") from None
