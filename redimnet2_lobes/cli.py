"""The command ``redimnet2``.

``redimnet2 verify a.wav b.wav`` says whether two recordings are of one speaker,
``redimnet2 embed FILES`` writes embeddings, and ``redimnet2 identify --enrol
FOLDER FILES`` says who speaks. ``convert``, ``push`` and ``export`` take models
from one form to another, ``check`` runs an exported one. ``--help`` explains
each.

Results go to stdout, everything else to stderr. The exit code is 0 if there is
a result, whatever it is; 1 with one line on stderr if something is wrong with
the input; 2 if the command line itself is wrong; 130 after Ctrl-C.

``embed`` and ``identify`` go on where a recording cannot be used. They print
the results of the others, then a line on stderr for each that was left out,
with the reason, and the exit code is 1. ``--strict`` stops at the first.
``embed --output=x.npz`` also writes ``x.left_out.csv``, with the columns ID,
wav, spk_id (empty) and reason.

With ``--json`` the results are one JSON value, floats in full precision:

- verify: an object with ``enrolment``, ``test``, ``score``, ``threshold``,
  ``threshold_origin``, ``same_speaker`` (these three are null where no
  threshold is known) and ``embedding_space``;
- embed: a list of objects with ``name``, ``embedding`` and
  ``embedding_space``;
- identify: an object with ``threshold``, ``threshold_origin``,
  ``embedding_space``, ``files``, a list of objects with ``name``, ``speaker``
  (null if it is none of the enrolled) and ``candidates``, a list of objects
  with ``speaker`` and ``score``, the best first, and ``left_out``, a list of
  objects with ``name`` and ``reason``. Its names are those of recordings, or
  ``speaker NAME`` for a speaker without any that can be used.

If no recording can be used, nothing is printed on stdout, and of the files of
``--output`` only that list is written.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from redimnet2_lobes import __version__
from redimnet2_lobes.files.atomic import (
    check_absent,
    check_new_file,
    complete_or_absent,
    is_folder,
)
from redimnet2_lobes.files.error_lines import one_line, one_line_errors
from redimnet2_lobes.files.same_space import KEY, check_same_space
from redimnet2_lobes.scoring.operating_point import (
    OperatingPoint,
    operating_point_of,
)
from redimnet2_lobes.scoring.results import RESULTS_FILE

# torch and SpeechBrain take seconds to import: not before they are needed.
if TYPE_CHECKING:
    import torch
    from speechbrain.inference.classifiers import EncoderClassifier

    from redimnet2_lobes.data.audio import AudioError
    from redimnet2_lobes.onnx.encoder import OnnxEncoder
    from redimnet2_lobes.onnx.export import Target

    Encoder = EncoderClassifier | OnnxEncoder
    Embeddings = dict[str, torch.Tensor]  # of each path [embedding]
    Faults = dict[str, AudioError]  # of each path that cannot be used

Command = Callable[..., str | None]  # returns what to print

MODEL_VARIABLE = "REDIMNET2_MODEL"
UNKNOWN = (
    "none known; give --threshold, or have the verification script keep its "
    "results with the model (--keep_results_with_model=True)"
)


class LeftOut(Exception):
    """Raised by a command that cannot use all recordings.

    It has their faults, and the text to print of the others, if there are any.
    """

    def __init__(self, faults: Faults, text: str | None = None):
        super().__init__(faults, text)
        self.faults = faults
        self.text = text


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


@click.group(
    no_args_is_help=False,
    invoke_without_command=True,
    subcommand_metavar="COMMAND [OPTIONS] ...",
)
@click.version_option(__version__)
@click.pass_context
def redimnet2(context: click.Context) -> None:
    """Compares voices, and takes models from one form to another.

    Audio may have any format that libsndfile reads (WAV, FLAC, OGG, MP3, AIFF
    and more), any sampling rate and any length.
    """
    if context.invoked_subcommand is None:
        raise click.UsageError("missing COMMAND", context)


def command(example: str) -> Callable[[Command], click.Command]:
    """Adds a command, which prints what its function returns."""

    def add(function: Command) -> click.Command:
        @functools.wraps(function)
        def run(**options: Any) -> None:
            with one_line_errors():
                faults: Faults = {}
                try:
                    text = function(**options)
                except LeftOut as error:
                    text, faults = error.text, error.faults
                if text is None and len(faults) == 1:
                    raise next(iter(faults.values()))
                if text is not None:
                    _print(text)
                for fault in faults.values():
                    print(f"left out: {one_line(fault)}", file=sys.stderr)
                if faults:
                    sys.exit(1)

        return redimnet2.command(
            epilog=f"Example: redimnet2 {function.__name__} {example}"
        )(run)

    return add


def _number(
    kind: type, lowest: float, highest: float, expected: str
) -> Callable[[str], float]:
    """A type of options: click's ranges take NaN."""

    def convert(text: str) -> float:
        with contextlib.suppress(ValueError):
            value = kind(text)
            if lowest <= value <= highest:
                return value
        raise click.BadParameter(f"{text!r} is not {expected}")

    return convert


def _output(text: str) -> Path:
    if is_folder(text):
        raise click.BadParameter(f"{text!r} is a folder; name a file in it")
    path = Path(text)
    if path.suffix not in (".npz", ".json"):
        raise click.BadParameter(f"{text!r} ends neither in .npz nor in .json")
    return path


def embedding_options(function: Command) -> Command:
    """The options of whatever computes embeddings."""
    for option in (
        click.option(
            "--seconds_per_piece",
            default=60,
            metavar="SECONDS",
            type=_number(float, 1, sys.float_info.max, "a number from 1 on"),
            help="A longer file is embedded in pieces of at most so many "
            "seconds, and their embeddings are averaged; the default is 60. "
            "A lower number needs less memory.",
        ),
        click.option(
            "--engine_cache",
            metavar="FOLDER",
            help="Where tensorrt, openvino or coreml keeps what it has "
            "compiled of a .onnx file, for the next time.",
        ),
        click.option(
            "--threads",
            metavar="N",
            type=_number(int, 1, sys.maxsize, "a whole number from 1 on"),
            help="Threads of the CPU, at most one for each core; the default "
            "is all cores.",
        ),
        click.option(
            "--device",
            help="Where PyTorch computes, such as cuda:0; the default is cpu. "
            "For a .onnx file an execution provider: cpu, cuda, tensorrt, "
            "openvino, directml, coreml or qnn, for some with a device, such "
            "as cuda:1 or openvino:GPU.",
        ),
        click.option(
            "--model",
            help="A model folder, the output folder of a training, the name "
            "USER/NAME of a model on the Hugging Face hub, the name of a "
            "published checkpoint (see redimnet2 convert --list), or a .onnx "
            f"file. By default that of the variable {MODEL_VARIABLE}. The "
            "hyperparams.yaml of a model can run any code, so use only models "
            "that you trust.",
        ),
    ):
        function = option(function)
    return function


files_argument = click.argument("files", nargs=-1, required=True)
strict_option = click.option(
    "--strict",
    is_flag=True,
    help="Stop at the first recording that cannot be used. By default it is "
    "left out, and named at the end.",
)
json_option = click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print JSON instead, with floats in full precision.",
)
threshold_option = click.option(
    "--threshold",
    metavar="SCORE",
    type=_number(float, -1, 1, "a number from -1 to 1"),
    help="The score, from -1 to 1, above which two voices are one. By default "
    f"it is that of the EER in the {RESULTS_FILE} of the model, where the "
    "verification script has kept one.",
)


@command("a.wav b.mp3 --model=redimnet2_b3")
@click.argument("enrolment")
@click.argument("test")
@embedding_options
@threshold_option
@json_option
def verify(
    enrolment: str,
    test: str,
    model: str | None,
    device: str | None,
    threads: int | None,
    engine_cache: str | None,
    seconds_per_piece: float,
    threshold: float | None,
    as_json: bool,
) -> str:
    """Says whether two recordings are of the same speaker."""
    paths = [enrolment, test]
    for path in paths:
        _check_file(path)
    model, encoder = _load_encoder(model, device, threads, engine_cache)
    space = _space(encoder)
    operating_point = _operating_point(threshold, model, encoder, space)
    embeddings = _embed(encoder, paths, seconds_per_piece)
    score = _scores([embeddings[enrolment]], [embeddings[test]]).item()
    decision, words = None, "none, without a threshold"
    if operating_point.value is not None:
        decision = score > operating_point.value
        words = "same speaker" if decision else "different speakers"
    if as_json:
        result = {
            "enrolment": enrolment,
            "test": test,
            "score": score,
            "threshold": operating_point.value,
            "threshold_origin": operating_point.origin,
            "same_speaker": decision,
            KEY: space,
        }
        return json.dumps(result, indent=2)
    threshold_line = _threshold_line(operating_point)
    return f"score      {score:.4f}\n{threshold_line}\ndecision   {words}"


@command("recordings/ --output=embeddings.npz --model=redimnet2_b3")
@files_argument
@embedding_options
@click.option(
    "--output",
    metavar="PATH",
    type=_output,
    help="A new file to write: .npz with the arrays names, embeddings and "
    "embedding_space, or .json. By default a line is printed for each "
    "recording, with its name, a tab, and the numbers.",
)
@strict_option
@json_option
def embed(
    files: tuple[str, ...],
    model: str | None,
    device: str | None,
    threads: int | None,
    engine_cache: str | None,
    seconds_per_piece: float,
    output: Path | None,
    strict: bool,
    as_json: bool,
) -> str:
    """Computes the embeddings of recordings.

    A folder stands for all recordings below it.
    """
    if output is not None and as_json:
        raise click.UsageError("--json is not allowed with --output")
    from redimnet2_lobes.data.utterances import Utterance, write_left_out

    paths = _find_files(files)
    # Of one recording there is nothing to go on with.
    faults = None if strict or len(paths) == 1 else {}
    _check_files(paths, faults)

    def compute() -> tuple[Embeddings, str]:
        if len(faults or {}) == len(paths):
            return {}, ""
        encoder = _load_encoder(model, device, threads, engine_cache)[1]
        embeddings = _embed(encoder, paths, seconds_per_piece, faults)
        return embeddings, _space(encoder)

    if output is None:
        embeddings, space = compute()
        if as_json:
            text = _rows_as_json(embeddings, space)
        else:
            text = "\n".join(
                f"{path}\t"
                f"{' '.join(f'{value:.9g}' for value in values.tolist())}"
                for path, values in embeddings.items()
            )
    else:
        check_absent(output, "--output")
        output.parent.mkdir(parents=True, exist_ok=True)
        with complete_or_absent(output) as partial:
            # What cannot be written should not be computed first.
            _write(output, partial, b"")
            embeddings, space = compute()
            write_left_out(
                output.with_suffix(".left_out.csv"),
                [Utterance(path, path) for path in paths],
                faults or {},
            )
            if not embeddings:
                raise LeftOut(faults or {})
            if output.suffix == ".json":
                content = f"{_rows_as_json(embeddings, space)}\n".encode()
            else:
                content = _rows_as_npz(embeddings, space)
            _write(output, partial, content)
        text = f"written  {len(embeddings)} embeddings: {output}"
    if faults:
        raise LeftOut(faults, text if embeddings else None)
    return text


@command("--enrol=speakers calls/*.wav --model=redimnet2_b3")
@files_argument
@embedding_options
@click.option(
    "--enrol",
    required=True,
    metavar="PATH",
    help="The speakers: for each a folder with recordings, or one recording, "
    "that has the speaker's name. Or a file of embed --output or of the "
    "extraction script (.npz, .json, .parquet): each embedding is a speaker, "
    "but where .parquet names speakers.",
)
@threshold_option
@click.option(
    "--top",
    default=3,
    metavar="N",
    type=_number(int, 1, sys.maxsize, "a whole number from 1 on"),
    help="How many of the closest speakers to show; the default is 3.",
)
@strict_option
@json_option
def identify(
    files: tuple[str, ...],
    model: str | None,
    device: str | None,
    threads: int | None,
    engine_cache: str | None,
    seconds_per_piece: float,
    enrol: str,
    threshold: float | None,
    top: int,
    strict: bool,
    as_json: bool,
) -> str:
    """Says which of the enrolled speakers each recording is of.

    A folder stands for all recordings below it.
    """
    faults = None if strict else {}
    enrolled, speakers = None, {}
    if os.path.isfile(enrol):
        from redimnet2_lobes.inference.embedding_files import read_embeddings

        enrolled = read_embeddings(enrol)
    else:
        speakers = _enrolled_speakers(enrol, faults)
    tests = _find_files(files)
    paths = [path for paths in speakers.values() for path in paths]
    paths = list(dict.fromkeys([*paths, *tests]))
    _check_files(paths, faults)
    if faults and all(path in faults for path in tests):
        raise LeftOut(faults)
    model, encoder = _load_encoder(model, device, threads, engine_cache)
    space = _space(encoder)
    if enrolled:
        check_same_space(enrol, enrolled.space, model, space)
    operating_point = _operating_point(threshold, model, encoder, space)
    embeddings = _embed(encoder, paths, seconds_per_piece, faults)
    tests = [path for path in tests if path in embeddings]
    known = embeddings
    if enrolled:
        known = dict(zip(enrolled.names, enrolled.vectors, strict=True))
        for name, speaker in zip(known, enrolled.speakers, strict=True):
            speakers.setdefault(speaker, []).append(name)
        count = enrolled.vectors.shape[1]
        for tested in embeddings.values():
            if len(tested) != count:
                raise ValueError(
                    f"{enrol}: damaged, its embeddings have {count} values and "
                    f"not {len(tested)}; embed the recordings again"
                )
    voices = _voices(speakers, known, faults)
    if not (tests and voices):
        raise LeftOut(faults or {})
    scores = _scores(voices.values(), [embeddings[path] for path in tests])
    found = []
    for path, row in zip(tests, scores.tolist(), strict=True):
        candidates = sorted(
            zip(voices, row, strict=True), key=lambda pair: -pair[1]
        )
        best, score = candidates[0]
        limit = operating_point.value
        if limit is not None and not score > limit:
            best = None
        found.append((path, best, candidates[:top]))
    if as_json:
        rows = []
        for path, best, candidates in found:
            closest = [
                {"speaker": speaker, "score": score}
                for speaker, score in candidates
            ]
            rows.append({"name": path, "speaker": best, "candidates": closest})
        result = {
            "threshold": operating_point.value,
            "threshold_origin": operating_point.origin,
            KEY: space,
            "files": rows,
            "left_out": [
                {"name": name, "reason": f"{fault.reason}; {fault.remedy}"}
                for name, fault in (faults or {}).items()
            ],
        }
        text = json.dumps(result, indent=2)
    else:
        lines = [_threshold_line(operating_point)]
        for path, best, candidates in found:
            closest = ", ".join(
                f"{speaker} {score:.4f}" for speaker, score in candidates
            )
            lines.append(f"{path}: {best or 'unknown'} (closest: {closest})")
        text = "\n".join(lines)
    if faults:
        raise LeftOut(faults, text)
    return text


@command("b3-vox2-lm --output=redimnet2_b3")
@click.argument("source", required=False)
@click.option("--output", metavar="PATH", help="The folder or file to write.")
@click.option(
    "--to",
    "form",
    type=click.Choice(["folder", "published"]),
    default="folder",
    help="What to make: a model folder (the default), or a file in the "
    "published layout.",
)
@click.option(
    "--list", "list_all", is_flag=True, help="Show the published checkpoints."
)
def convert(
    source: str | None, output: str | None, form: str, list_all: bool
) -> str:
    """Converts a published checkpoint to a model folder, or back.

    SOURCE is the name of a published checkpoint, which is downloaded once, its
    file, or a model folder.
    """
    from redimnet2_lobes.pretrained.convert import convert, convert_back
    from redimnet2_lobes.pretrained.releases import list_released

    if list_all:
        return list_released()
    if source is None or output is None:
        raise click.UsageError("SOURCE and --output are needed, or --list")
    if form == "published":
        convert_back(source, output)
        return f"Published checkpoint: {output}"
    convert(source, output)
    return f"Model folder: {output}"


@command("results/redimnet2_b3/42 USER/NAME --dry_run")
@click.argument("folder")
@click.argument("repository", metavar="USER/NAME")
@click.option(
    "--results",
    metavar="FILE",
    help="results.json of a verification; by default the folder's own.",
)
@click.option(
    "--training_data",
    metavar="TEXT",
    help="For the card, in words; by default what the folder says.",
)
@click.option(
    "--dataset",
    "datasets",
    multiple=True,
    metavar="NAME",
    help="For the card, the name of a dataset on the hub; may be repeated.",
)
@click.option(
    "--license",
    metavar="NAME",
    help="For the card, as the hub calls it. By default that of the folder "
    "(mit for converted weights), or else apache-2.0.",
)
@click.option(
    "--revision", metavar="BRANCH", help="A branch, made if there is none."
)
@click.option("--private", is_flag=True, help="Make a new repository private.")
@click.option(
    "--space",
    is_flag=True,
    help="Push a Space of the same name too: a page that runs the model in the "
    "browser. It is at main, whatever --revision.",
)
@click.option(
    "--onnxruntime_web",
    metavar="FOLDER",
    help="The npm package onnxruntime-web, for --space; by default that of "
    "`npm ci` in the folder web.",
)
@click.option(
    "--dry_run",
    is_flag=True,
    help="List the files and print the card, and upload nothing.",
)
def push(
    folder: str,
    repository: str,
    results: str | None,
    training_data: str | None,
    datasets: tuple[str, ...],
    license: str | None,
    revision: str | None,
    private: bool,
    space: bool,
    onnxruntime_web: str | None,
    dry_run: bool,
) -> str:
    """Pushes a model folder to the Hugging Face hub, in one commit.

    FOLDER is a model folder, or the output folder of a training. The token is
    that of `hf auth login` or of the variable HF_TOKEN.
    """
    if onnxruntime_web is not None and not space:
        raise click.UsageError("--onnxruntime_web belongs to --space")
    from redimnet2_lobes.pretrained.push import (
        CARD_FILE,
        collect,
        list_files,
        push,
    )

    files, left_out = collect(
        folder, repository, results, license, training_data, list(datasets)
    )
    with tempfile.TemporaryDirectory() as scratch:
        page = {}
        if space:
            from redimnet2_lobes.onnx.space import collect_space
            from redimnet2_lobes.pretrained.provenance import Provenance

            page = collect_space(
                folder,
                repository,
                Provenance(license, training_data),
                files,
                Path(scratch, "model.onnx"),
                onnxruntime_web,
            )
        if dry_run:
            card = files[CARD_FILE]
            assert isinstance(card, bytes)  # made here, no file
            listing = list_files(files, left_out)
            if page:
                listing += f"\nSpace {repository}:\n\n{list_files(page, [])}"
            return f"{listing}\n{CARD_FILE}:\n\n{card.decode()}"
        for name in left_out:
            print(f"left out: {name}", file=sys.stderr)
        address = push(files, repository, private, revision)
        if not page:
            return address
        _print(address)  # is there, even if the next is refused
        return push(page, repository, private, is_space=True)


@command("redimnet2_b3 --output=b3.onnx")
@click.argument("model")
@click.option("--output", required=True, metavar="FILE")
@click.option(
    "--for",
    "target",
    type=click.Choice(["onnx", "plain", "fixed", "sherpa-onnx", "executorch"]),
    default="onnx",
    show_default=True,
    help="Padded batches with their lengths; one utterance of any length, "
    "without loops; one of a fixed length, with all shapes known; what "
    "sherpa-onnx computes, see docs/sherpa_onnx.md; or a fixed length as a "
    ".pte file.",
)
@click.option(
    "--seconds",
    metavar="SECONDS",
    type=_number(float, 0.025, 120, "a number from 0.025 to 120"),
    help="The length of --for=fixed and --for=executorch.",
)
@click.option(
    "--speech",
    metavar="FOLDER",
    help="Recordings to measure a file --for=sherpa-onnx on; their speakers "
    "need not be known.",
)
@click.option(
    "--trials",
    metavar="FILE",
    help="A trial list of these recordings, to measure error rates too.",
)
@click.option(
    "--features",
    is_flag=True,
    help="Take log-mel features in place of waveforms.",
)
@click.option(
    "--int8",
    is_flag=True,
    help="Store the weights in eight bits: a half to a third of the size.",
)
def export(
    model: str,
    output: str,
    target: Target | Literal["sherpa-onnx", "executorch"],
    seconds: float | None,
    speech: str | None,
    trials: str | None,
    features: bool,
    int8: bool,
) -> str:
    """Exports a model to ONNX, or to ExecuTorch, and verifies the file.

    MODEL is a model folder, the output folder of a training, the name of a
    published checkpoint, or a name on the hub.
    """
    from redimnet2_lobes import door
    from redimnet2_lobes.executorch.export import check_new_pte, export_pte
    from redimnet2_lobes.onnx.export import check_new_export, export_onnx
    from redimnet2_lobes.pretrained.loading import load_model, network_of
    from redimnet2_lobes.pretrained.provenance import provenance_of

    if (target in ("fixed", "executorch")) != (seconds is not None):
        raise click.UsageError(
            "--seconds belongs to --for=fixed and --for=executorch, which need "
            "it"
        )
    if (target == "sherpa-onnx") != (speech is not None):
        raise click.UsageError(
            "--speech belongs to --for=sherpa-onnx, which needs it: a folder "
            "of recordings such as demo/corpus, which make demo builds"
        )
    if trials is not None and speech is None:
        raise click.UsageError("--trials belongs to --for=sherpa-onnx")
    if features and speech is not None:
        raise click.UsageError("--features is not for --for=sherpa-onnx")
    if target == "executorch":
        check_new_pte(output)
    else:
        check_new_export(output)
    model = door.find(model)
    encoder = load_model(model)
    network = network_of(encoder, model)
    provenance = provenance_of(encoder)
    if target == "sherpa-onnx":
        from redimnet2_lobes.onnx.sherpa import export_sherpa

        accuracy = export_sherpa(
            network, output, speech or "", trials, int8, provenance
        )
        return f"{output}: {accuracy}"
    point = operating_point_of(model, door.space_of(encoder))
    if target == "executorch":
        assert seconds is not None  # as above
        difference = export_pte(
            network, output, seconds, features, int8, point, provenance
        )
    else:
        difference = export_onnx(
            *(network, output, features, int8, point),
            *(target, seconds, provenance),
        )
    return f"{output}: within {difference:.1e} of torch's embeddings"


@command("b3.onnx")
@click.argument("file", metavar="FILE")
def check(file: str) -> str:
    """Checks what an exported file, .onnx or .pte, computes here.

    It holds a test input, by a formula, and the embedding of that when the file
    was written: test_input, test_shape and test_embedding.
    """
    from redimnet2_lobes.executorch.running import check_pte
    from redimnet2_lobes.onnx.golden_vector import check_export

    difference = (check_pte if file.endswith(".pte") else check_export)(file)
    return f"{file}: within {difference:.1e} of the embedding of its export"


@command("b3 --output=my_b3.yaml")
@click.argument("name", required=False)
@click.option("--output", metavar="FILE.yaml", help="Copy it to a new file.")
def hparams(name: str | None, output: str | None) -> str:
    """Shows where the hyperparameters of a configuration are.

    NAME is that of a file of hparams/, such as verification_redimnet2, or a
    variant, such as b3 or b3_lm; without it all are listed.
    """
    from redimnet2_lobes.files.shipped import shipped_folder

    folder = shipped_folder("hparams")
    names = sorted(path.stem for path in folder.glob("*.yaml"))
    if name is None:
        return "\n".join(names)
    stem = name if name in names else f"redimnet2_{name}"
    if stem not in names:
        raise ValueError(
            f"{name}: no such configuration; there are {', '.join(names)}"
        )
    path = folder / f"{stem}.yaml"
    if output is None:
        return str(path)
    check_new_file(output, "--output")
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    with complete_or_absent(Path(output)) as partial:
        partial.write_bytes(path.read_bytes())
    return f"Hyperparameters: {output}"


def _note(text: str) -> None:
    print(f"note: {' '.join(text.split())}", file=sys.stderr)


def _find_files(arguments: Iterable[str]) -> list[str]:
    """Files, and those below folders, each once."""
    from redimnet2_lobes.data.audio import find_audio

    paths = []
    for argument in arguments:
        if os.path.isdir(argument):
            found = find_audio(argument)
            if found.left_out:
                _note(found.left_out)
            paths.append(found.paths)
        else:
            paths.append([argument])
    if len(paths) == 1:
        return paths[0]
    files = {}
    for path in itertools.chain(*paths):
        files.setdefault(os.path.realpath(path), path)
    if repeated := sum(map(len, paths)) - len(files):
        _note(f"{repeated} left out: named more than once")
    return list(files.values())


def _check_files(paths: list[str], faults: Faults | None) -> None:
    """Finds files that cannot be opened, before anything is loaded."""
    from redimnet2_lobes.data.audio import AudioError, unreadable

    for path in paths:
        try:
            _check_file(path)
        except (AudioError, OSError) as error:
            if faults is None:
                raise
            if isinstance(error, OSError):
                error = unreadable(path, error)
            faults[path] = error


def _check_file(path: str) -> None:
    """Refuses what is no file, before anything is loaded."""
    from redimnet2_lobes.data.audio import (
        AudioError,
        check_name,
        open_descriptor,
    )

    check_name(path)
    if os.path.isdir(path):
        raise AudioError("a folder", "name an audio file in it", path)
    try:
        os.close(open_descriptor(path))
    except FileNotFoundError:
        raise AudioError("missing", "check the path", path) from None


def _enrolled_speakers(
    folder: str, faults: Faults | None
) -> dict[str, list[str]]:
    """The recordings of each speaker; none of one with an empty folder."""
    from redimnet2_lobes.data.audio import (
        AudioError,
        audio_rank,
        find_audio,
        leads_back,
        utterance_name,
    )

    speakers, others, notes = {}, [], []
    for entry in sorted(os.listdir(folder)):
        path = os.path.join(folder, entry)
        if entry[0] == ".":
            continue
        if os.path.isdir(path):
            speaker = entry
            is_other = os.path.islink(path) and leads_back(path)
        else:  # a link to nowhere may be of a speaker's folder
            speaker = utterance_name(entry)
            is_other = audio_rank(entry) is None and os.path.exists(path)
        if is_other:
            others.append(entry)
            continue
        if speaker in speakers:
            raise ValueError(
                f"--enrol: {path}: there is a speaker {speaker} already; "
                "rename one, or put all recordings into one folder"
            )
        speakers[speaker] = [path]
        if not os.path.isdir(path):
            continue
        try:
            speakers[speaker], left_out = find_audio(path)
            notes += [left_out] * bool(left_out)
        except AudioError as error:
            if faults is None:
                raise
            speakers[speaker] = []
            faults[f"speaker {speaker}"] = error
    if notes:
        more = len(notes) - 1
        others_too = f"; the like in {more} more folder{'s' * (more > 1)}"
        _note(notes[0] + others_too * bool(more))
    if others:
        shown = others[:5] + ["..."] * (len(others) > 5)
        _note(
            f"--enrol: {len(others)} left out, neither recordings nor folders "
            f"of a speaker's own: {', '.join(shown)}"
        )
    if not speakers:
        raise ValueError(
            f"--enrol: {folder} holds no speakers; it needs a folder with "
            "recordings, or a recording, for each"
        )
    return speakers


def _voices(
    speakers: dict[str, list[str]],
    embeddings: Embeddings,
    faults: Faults | None,
) -> Embeddings:
    """The mean embedding of each speaker with recordings that can be used."""
    import torch

    from redimnet2_lobes.data.audio import AudioError

    voices = {}
    for speaker, paths in speakers.items():
        name = f"speaker {speaker}"
        if embedded := [path for path in paths if path in embeddings]:
            rows = [embeddings[path] for path in embedded]
            voices[speaker] = torch.stack(rows).mean(0)
        elif faults is not None and name not in faults:
            remedy = "none of the recordings can be used"
            faults[name] = AudioError("not enrolled", remedy, name)
    return voices


def _load_encoder(
    model: str | None,
    device: str | None,
    threads: int | None,
    engine_cache: str | None,
) -> tuple[str, Encoder]:
    """The model as SpeechBrain names it, and what embeds."""
    model = model or os.environ.get(MODEL_VARIABLE)
    if not model:
        raise ValueError(
            "--model: missing; give a model folder, a hub name or a .onnx "
            f"file, or set {MODEL_VARIABLE}"
        )
    import torch

    from redimnet2_lobes import door
    from redimnet2_lobes.models.threads import usable_threads

    if threads is not None:
        torch.set_num_threads(usable_threads(threads))
    if door.is_onnx(model):
        return model, door.load(
            model, {"device": device}, engine_cache=engine_cache
        )
    if engine_cache is not None:
        raise ValueError("--engine_cache: belongs to .onnx files; leave it out")
    if os.path.isfile(model):
        raise ValueError(
            f"--model: {model} is a file; give the model folder or a .onnx "
            "file. Of a published checkpoint, redimnet2 convert makes a folder"
        )
    import logging

    from redimnet2_lobes.files.settings import check_device
    from redimnet2_lobes.models.tiles import keep_freed_memory
    from redimnet2_lobes.pretrained.loading import load_model

    if "SB_LOG_LEVEL" not in os.environ:
        logging.getLogger("speechbrain").setLevel(logging.WARNING)
    device = device or "cpu"
    try:
        check_device("--device", device)
    except ValueError as error:
        raise ValueError(
            f"{error}; openvino and other execution providers are for .onnx "
            "files, see redimnet2 export"
        ) from error
    # Whatever loading prints, stdout is for results.
    with contextlib.redirect_stdout(sys.stderr):
        model = door.find(model)
        encoder = load_model(model, {"device": device})
    keep_freed_memory()
    return model, encoder


def _operating_point(
    given: float | None, model: str, encoder: Encoder, space: str
) -> OperatingPoint:
    if given is not None:
        return OperatingPoint(given, "given by --threshold")
    from redimnet2_lobes import door

    if door.is_onnx(model):
        operating_point = encoder.operating_point
        holder = os.path.basename(model)
    else:
        operating_point = operating_point_of(model, space)
        if os.path.isabs(model):  # where it lies is the user's business
            model = os.path.basename(model)
        holder = f"{RESULTS_FILE} of {model}"
    if operating_point.value is None:
        return operating_point
    origin = f"{operating_point.origin}; {holder}"
    return operating_point._replace(origin=origin)


def _threshold_line(operating_point: OperatingPoint) -> str:
    if operating_point.value is None:
        return f"threshold  {UNKNOWN}"
    return f"threshold  {operating_point.value:.4f} ({operating_point.origin})"


def _embed(
    encoder: Encoder,
    paths: list[str],
    seconds_per_piece: float,
    faults: Faults | None = None,
) -> Embeddings:
    """The embedding of each path, in the order of the paths.

    Those with faults have none, which are kept if there is where to.
    """
    from redimnet2_lobes.inference.encode import AveragedCrops
    from redimnet2_lobes.inference.long_files import encode_files
    from redimnet2_lobes.models.front_end import SAMPLE_RATE

    encode_batch = encoder.encode_batch
    if samples := getattr(encoder, "fixed_samples", None):
        seconds = samples / SAMPLE_RATE
        _note(
            f"the .onnx file takes {seconds:g} s: of longer recordings the "
            "embeddings of pieces are averaged, shorter ones are repeated"
        )
        encode_batch = AveragedCrops(encode_batch, seconds, None, repeat=True)
    embeddings, pieces = encode_files(
        encode_batch,
        [path for path in paths if path not in (faults or {})],
        seconds_per_piece,
        faults,
    )
    for path, count in pieces.items():
        _note(
            f"{path} is longer than {seconds_per_piece:g} s: the "
            f"embeddings of {count} pieces were averaged"
        )
    return {path: embeddings[path] for path in paths if path in embeddings}


def _scores(
    voices: Iterable[torch.Tensor], tests: Iterable[torch.Tensor]
) -> torch.Tensor:
    """Cosines [tests, voices] of embeddings."""
    import torch

    from redimnet2_lobes.scoring.backends import CosineBackend

    cosine = CosineBackend()
    rows = cosine.enrolment_side(torch.stack([*voices]))
    return cosine.test_side(torch.stack([*tests])) @ rows.T


def _space(encoder: Encoder) -> str:
    from redimnet2_lobes import door

    return door.space_of(encoder)


def _rows_as_json(embeddings: Embeddings, space: str) -> str:
    rows = (
        json.dumps({"name": path, "embedding": values.tolist(), KEY: space})
        for path, values in embeddings.items()
    )
    return "[\n" + ",\n".join(rows) + "\n]"


def _rows_as_npz(embeddings: Embeddings, space: str) -> bytes:
    import torch

    from redimnet2_lobes.inference.embedding_files import write_npz

    content = io.BytesIO()
    vectors = torch.stack([*embeddings.values()]).numpy()
    write_npz(content, [*embeddings], vectors, space)
    return content.getvalue()


def _write(output: Path, partial: Path, content: bytes) -> None:
    try:
        partial.write_bytes(content)
    except OSError as error:
        raise OSError(
            f"--output: {output} cannot be written ({error.strerror or error})"
        ) from None


def _print(text: str) -> None:
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
