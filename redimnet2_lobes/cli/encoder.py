"""What computes embeddings, and by which threshold they are compared.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from redimnet2_lobes.cli.group import Command, note, number
from redimnet2_lobes.scoring.operating_point import (
    OWN_FILE,
    OperatingPoint,
    evaluated_operating_point,
    own_operating_points,
)
from redimnet2_lobes.scoring.results import RESULTS_FILE

# torch and SpeechBrain take seconds to import: not before they are needed.
if TYPE_CHECKING:
    import torch
    from speechbrain.inference.classifiers import EncoderClassifier

    from redimnet2_lobes.cli.group import Faults
    from redimnet2_lobes.data.speech import Speech
    from redimnet2_lobes.inference.encode import EncodeBatch
    from redimnet2_lobes.onnx.encoder import OnnxEncoder
    from redimnet2_lobes.scoring.operating_points import OperatingPoints

    Encoder = EncoderClassifier | OnnxEncoder
    Embeddings = dict[str, torch.Tensor]  # of each path [embedding]

MODEL_VARIABLE = "REDIMNET2_MODEL"
UNKNOWN = (
    "none known; give --threshold, or find one for recordings of yours by "
    "redimnet2 calibrate"
)


class ModelOptions(NamedTuple):
    """What the command line says of a model."""

    model: str | None
    device: str | None
    threads: int | None
    engine_cache: str | None


class Loaded(NamedTuple):
    """A model that embeds."""

    name: str  # as SpeechBrain names it
    encoder: Encoder
    space: str  # of its embeddings


def embedding_options(function: Command) -> Command:
    """The options of whatever computes embeddings of files."""
    return encoder_options(
        click.option(
            "--seconds_per_piece",
            default=60,
            metavar="SECONDS",
            type=number(float, 1, sys.float_info.max, "a number from 1 on"),
            help="A longer file is embedded in pieces of at most so many "
            "seconds, and their embeddings are averaged; the default is 60. "
            "A lower number needs less memory.",
        )(function)
    )


def encoder_options(function: Command) -> Command:
    """The options of whatever loads a model, which are its ``options``."""

    @functools.wraps(function)
    def run(
        model: str | None,
        device: str | None,
        threads: int | None,
        engine_cache: str | None,
        **others: Any,
    ) -> str | None:
        options = ModelOptions(model, device, threads, engine_cache)
        return function(options=options, **others)

    for option in (
        click.option(
            "--engine_cache",
            metavar="FOLDER",
            help="Where tensorrt, openvino or coreml keeps what it has "
            "compiled of a .onnx file, for the next time.",
        ),
        click.option(
            "--threads",
            metavar="N",
            type=number(int, 1, sys.maxsize, "a whole number from 1 on"),
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
        run = option(run)
    return run


vad_option = click.option(
    "--vad/--no_vad",
    default=True,
    help="Take the speech of a recording alone, which silero-vad finds, or all "
    "of it. The default is --vad.",
)

threshold_option = click.option(
    "--threshold",
    metavar="SCORE",
    type=number(float, -1, 1, "a number from -1 to 1"),
    help="The score, from -1 to 1, above which two voices are one. By default "
    "it is what redimnet2 calibrate has found, or else that of the EER in the "
    f"{RESULTS_FILE} of the model, where the verification script has kept one.",
)
operating_points_option = click.option(
    "--operating_points",
    metavar="FILE",
    help="What redimnet2 calibrate has written; by default what it has left in "
    f"the --store, or else the {OWN_FILE} of the model, if it has one.",
)


def load_encoder(options: ModelOptions) -> Loaded:
    """Loads the model of the options, or of the environment."""
    model, device, threads, engine_cache = options
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
        encoder = door.load(
            model, {"device": device}, engine_cache=engine_cache
        )
        return Loaded(model, encoder, door.space_of(encoder))
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
    return Loaded(model, encoder, door.space_of(encoder))


def find_own_operating_points(
    given: str | None, store: str | None, loaded: Loaded
) -> OperatingPoints | None:
    """Those of a file, or else of a store of voices, or else of the model."""
    from redimnet2_lobes import door
    from redimnet2_lobes.files.same_space import check_same_space

    if given is None:
        if store is not None and (kept := points_of_store(store)):
            return kept
        if door.is_onnx(loaded.name):
            return None
        return own_operating_points(loaded.name, loaded.space)
    from redimnet2_lobes.scoring.operating_points import read_operating_points

    found = read_operating_points(given)
    check_same_space(given, found.embedding_space, "the model", loaded.space)
    return found


def points_of_store(store: str) -> OperatingPoints | None:
    """The operating points that a store of voices keeps, or None."""
    from redimnet2_lobes.scoring.operating_points import from_json
    from redimnet2_lobes.voices.store import VoiceStore

    with VoiceStore(store) as opened:
        content = opened.read_operating_points()
    return None if content is None else from_json(content, store)


def find_operating_point(
    given: float | None,
    own: OperatingPoints | None,
    loaded: Loaded,
    vad: bool,
) -> OperatingPoint:
    """The threshold that is given, of own recordings, or else of the model.

    Its origin says where it is of all audio and scores are of speech alone, or
    the other way round.
    """
    if given is not None:
        return OperatingPoint(given, "given by --threshold")
    if own is not None:
        return own.operating_point.where(
            found_on_speech=own.speech_only, used_on_speech=vad
        )
    from redimnet2_lobes import door

    model = loaded.name
    if door.is_onnx(model):
        operating_point = loaded.encoder.operating_point
        holder = os.path.basename(model)
    else:
        operating_point = evaluated_operating_point(model, loaded.space)
        if os.path.isabs(model):  # where it lies is the user's business
            model = os.path.basename(model)
        holder = f"{RESULTS_FILE} of {model}"
    if operating_point.value is None:
        return operating_point
    # Verification scripts embed all audio.
    operating_point = operating_point.where(
        found_on_speech=False, used_on_speech=vad
    )
    origin = f"{operating_point.origin}; {holder}"
    return operating_point._replace(origin=origin)


def describe_threshold(operating_point: OperatingPoint) -> str:
    """The line about a threshold."""
    if operating_point.value is None:
        return f"threshold  {UNKNOWN}"
    return f"threshold  {operating_point.value:.4f} ({operating_point.origin})"


def any_length(encoder: Encoder) -> EncodeBatch:
    """What embeds waveforms of any length, whatever the encoder takes."""
    from redimnet2_lobes.inference.encode import AveragedCrops
    from redimnet2_lobes.models.front_end import SAMPLE_RATE

    samples = getattr(encoder, "fixed_samples", None)
    if not samples:
        return encoder.encode_batch
    seconds = samples / SAMPLE_RATE
    note(
        f"the .onnx file takes {seconds:g} s: of longer recordings the "
        "embeddings of pieces are averaged, shorter ones are repeated"
    )
    return AveragedCrops(encoder.encode_batch, seconds, None, repeat=True)


def embed_files(
    encoder: Encoder,
    paths: list[str],
    seconds_per_piece: float,
    faults: Faults | None = None,
    speech: dict[str, Speech] | None = None,
) -> Embeddings:
    """The embedding of each path, in the order of the paths.

    Those with faults have none, which are kept if there is where to. ``speech``
    is that of `encode_files`.
    """
    from redimnet2_lobes.inference.long_files import encode_files

    embeddings, pieces = encode_files(
        any_length(encoder),
        [path for path in paths if path not in (faults or {})],
        seconds_per_piece,
        faults,
        speech,
    )
    for path, count in pieces.items():
        if count > 1:
            note(
                f"{path} is longer than {seconds_per_piece:g} s: the "
                f"embeddings of {count} pieces were averaged"
            )
    embeddings = {
        path: embeddings[path] for path in paths if path in embeddings
    }
    if speech is not None:
        _note_little_speech({path: speech[path] for path in embeddings})
    return embeddings


def _note_little_speech(speech: dict[str, Speech]) -> None:
    from redimnet2_lobes.data.speech import LITTLE_SPEECH

    little = [
        f"{path} ({found})"
        for path, found in speech.items()
        if found.seconds < LITTLE_SPEECH
    ]
    if little:
        shown = little[:5] + ["..."] * (len(little) > 5)
        note(
            f"scores of less than {LITTLE_SPEECH:g} s of speech are uncertain: "
            f"{', '.join(shown)}"
        )


def embedded_seconds(path: str, speech: dict[str, Speech] | None) -> float:
    """The seconds of a recording that were embedded."""
    from redimnet2_lobes.inference.long_files import file_seconds

    return file_seconds(path) if speech is None else speech[path].seconds


def seconds_of(
    prefix: str, path: str, speech: dict[str, Speech] | None
) -> dict[str, float | None]:
    """The seconds of a recording, for JSON; null where all of it was taken."""
    from redimnet2_lobes.models.front_end import SAMPLE_RATE

    found = (speech or {}).get(path)
    return {
        f"{prefix}speech_seconds": found and found.seconds,
        f"{prefix}seconds": found and found.samples / SAMPLE_RATE,
    }


def cosines(
    voices: Iterable[torch.Tensor], tests: Iterable[torch.Tensor]
) -> torch.Tensor:
    """Cosines [tests, voices] of embeddings."""
    import torch

    from redimnet2_lobes.scoring.backends import CosineBackend

    cosine = CosineBackend()
    rows = cosine.enrolment_side(torch.stack([*voices]))
    return cosine.test_side(torch.stack([*tests])) @ rows.T
