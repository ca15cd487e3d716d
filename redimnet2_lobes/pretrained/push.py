"""Pushes a model folder to the Hugging Face hub.

> redimnet2 push results/redimnet2_b3/42 USER/NAME

The folder is loaded first. One commit brings the weights, a model card with the
results of the evaluation, the results themselves, and the code for machines
that have SpeechBrain alone (``single_file``). The token is that of
``hf auth login`` or of the variable HF_TOKEN.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import json
import os
from pathlib import Path

import huggingface_hub
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

from redimnet2_lobes.files.same_space import FILE, KEY, check_same_space
from redimnet2_lobes.models.embedding_space import embedding_space
from redimnet2_lobes.models.variants import variant_of
from redimnet2_lobes.pretrained.loading import (
    find_model,
    load_model,
    network_of,
)
from redimnet2_lobes.pretrained.model_card import write_model_card
from redimnet2_lobes.pretrained.provenance import (
    Provenance,
    provenance_of,
    with_provenance,
)
from redimnet2_lobes.pretrained.standalone import FILE_NAME, single_file
from redimnet2_lobes.scoring.results import RESULTS_FILE, read_results

# What is taken from a model folder; the card, the results and the code are
# written anew.
FILES = (
    "hyperparams.yaml",
    *(
        f"{name}.{extension}"
        for name in ("embedding_model", "classifier", "compute_cost")
        for extension in ("ckpt", "safetensors")
    ),
    "label_encoder.ckpt",
    FILE,
)
ONNX_EXTENSION = ".onnx"
CARD_FILE = "README.md"
LICENSE = "apache-2.0"  # where nothing else is stated
# By this file the hub knows which class to show.
CONFIG_FILE = "config.json"
CONFIG = {"speechbrain_interface": "SpeakerRecognition"}

# The content of each file by its name.
Files = dict[str, bytes | Path]

REMEDIES = {
    401: "the token is missing or not valid; log in by `hf auth login`, or set "
    "HF_TOKEN",
    403: "the token may not write there; make one with write access to it",
    404: "not found; check the name, and that the token may see it",
    409: "it was changed at the same time; run the same command again",
    413: "a file is too large for the hub; leave it out",
    429: "too many requests; wait some minutes and run the same command again",
}


def collect(
    folder: str | os.PathLike,
    repository: str,
    results_file: str | os.PathLike | None,
    license: str | None,
    training_data: str | None,
    datasets: list[str],
) -> tuple[Files, list[str]]:
    """Loads a model folder, and lists what a push would upload.

    Arguments
    ---------
    folder
        A model folder, or the output folder of a training.
    repository
        USER/NAME on the hub.
    results_file
        What a verification script has written as results.json; None takes
        that of the folder, if it has one.
    license, training_data, datasets
        As for ``write_model_card``; None for what the folder says, or else
        apache-2.0 and nothing.

    Returns
    -------
    files
        Content by name.
    left_out
        What else is in the folder.

    Example
    -------
    >>> from redimnet2_lobes.models.front_end import LogMel
    >>> from redimnet2_lobes.models.redimnet2 import ReDimNet2
    >>> from redimnet2_lobes.pretrained.model_folder import write_model_folder
    >>> stage = dict(blocks=1, expansion=1, reduction=8)
    >>> stages = [dict(frequency_stride=2, time_stride=2, **stage)]
    >>> folder = getfixture("tmp_path") / "model"
    >>> write_model_folder(folder, ReDimNet2(LogMel(), 4, stages), "A test")
    >>> files, left_out = collect(folder, "user/name", None, "mit", None, [])
    >>> print(*sorted(files))  # doctest: +NORMALIZE_WHITESPACE
    README.md config.json embedding_model.ckpt embedding_model.safetensors
    embedding_space.txt hyperparams.yaml redimnet2_lobes.py
    """
    _check_repository(repository)
    if not os.path.isdir(folder):
        raise ValueError(f"{folder}: no such folder")
    encoder = load_model(folder, {"device": "cpu"})
    network = network_of(encoder, folder)
    folder = Path(find_model(folder))
    if results_file is None and (folder / RESULTS_FILE).is_file():
        results_file = folder / RESULTS_FILE
    results, space = None, embedding_space(network)
    if results_file is not None:
        # Its checkpoint may be a path of this machine.
        results = {**read_results(results_file), "checkpoint": repository}
        check_same_space(results_file, results.get(KEY), folder, space)
    given = Provenance(license, training_data)
    stated = given.or_else(provenance_of(encoder))
    label_encoder = getattr(encoder.hparams, "label_encoder", None)
    card = write_model_card(
        repository,
        network,
        variant=variant_of(network),
        speakers=None if label_encoder is None else len(label_encoder),
        results=results,
        license=stated.license or LICENSE,
        training_data=stated.training_data,
        datasets=datasets,
    )
    files, left_out = {}, []
    for path in sorted(folder.iterdir()):
        if path.suffix == ONNX_EXTENSION:
            _check_export(path, folder, space)
            files[path.name] = path
        elif path.name in FILES:
            files[path.name] = path
        elif path.name not in (CARD_FILE, CONFIG_FILE, FILE_NAME, RESULTS_FILE):
            left_out.append(path.name)
    files[CARD_FILE] = str(card).encode()
    files[CONFIG_FILE] = _json(CONFIG)
    hyperparams = (folder / "hyperparams.yaml").read_text(encoding="utf-8")
    files[FILE_NAME] = single_file(hyperparams).encode()
    files["hyperparams.yaml"] = with_provenance(hyperparams, stated).encode()
    if results is not None:
        files[RESULTS_FILE] = _json(results)
    return files, left_out


def _check_export(path: Path, folder: Path, space: str) -> None:
    """Refuses an exported file of other weights than those of its folder."""
    try:
        from onnx import load
    except ImportError:
        raise ValueError(
            f"{path}: to see what it is, pip install onnx, or move it elsewhere"
        ) from None
    try:
        properties = load(path, load_external_data=False).metadata_props
    except Exception as error:  # onnx raises kinds of its own
        raise ValueError(
            f"{path}: not an ONNX file, or damaged; move it elsewhere"
        ) from error
    known = {entry.key: entry.value for entry in properties}
    found = known.get(KEY, "without a name")
    found = found.removesuffix("-sherpa-onnx").removesuffix("-int8")
    check_same_space(path, found, folder, space)


def _json(content: object) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()


def _check_repository(name: str) -> None:
    try:
        validate_repo_id(name)
        if name.count("/") == 1:
            return
    except HFValidationError:
        pass
    raise ValueError(f"{name}: not a name USER/NAME on the hub")


def push(
    files: Files,
    repository: str,
    private: bool = False,
    revision: str | None = None,
    is_space: bool = False,
) -> str:
    """Uploads the files of ``collect`` in one commit, and gives its address.

    Arguments
    ---------
    files
    repository
        USER/NAME on the hub; made if it does not exist. An OSError without the
        token says why the hub refuses it or cannot be reached.
    private
        Whether a new repository is private.
    revision
        A branch, made if it does not exist; None for the main one.
    is_space
        Whether the repository is a static Space, not a model.
    """
    kind, content = ("space", "page") if is_space else ("model", "model")
    token = huggingface_hub.get_token()
    if token is None:
        raise OSError(f"{repository}: {REMEDIES[401]}")
    api = HfApi(token=token)
    operations = [CommitOperationAdd(*file) for file in files.items()]
    try:
        api.create_repo(
            repository,
            private=private,
            exist_ok=True,
            repo_type=kind,
            space_sdk="static" if is_space else None,
        )
        if revision is not None:
            api.create_branch(
                repository, branch=revision, exist_ok=True, repo_type=kind
            )
        commit = api.create_commit(
            repository,
            operations,
            commit_message=f"Push a ReDimNet2 {content}",
            revision=revision,
            repo_type=kind,
        )
    # The client's transport has exceptions of its own, which its versions
    # change, and wraps some of them in RuntimeError.
    except Exception as error:
        name = f"space {repository}" if is_space else repository
        raise OSError(_explain(error, name, token)) from None
    return str(commit.commit_url)


def _explain(error: Exception, repository: str, token: str) -> str:
    """One line on why a push failed, without the token."""
    refused = error
    while refused is not None and not isinstance(refused, HfHubHTTPError):
        refused = refused.__cause__
    if refused is None:
        reason = " ".join(str(error).split()) or type(error).__name__
        problem = (
            f"the hub cannot be reached or broke off ({reason[:300]}); check "
            "the network and run the same command again"
        )
    else:
        status = refused.response.status_code
        remedy = REMEDIES.get(status)
        if remedy is None:
            remedy = "run the same command again later"
            if status < 500:
                reason = " ".join(str(refused).split())
                remedy = f"it says {reason[:300]}"
        problem = f"the hub refused it (HTTP {status}): {remedy}"
    return f"{repository}: {problem}".replace(token, "<token>")


def list_files(files: Files, left_out: list[str]) -> str:
    """What a push of what ``collect`` gives would upload, a line for each file.

    Example
    -------
    >>> print(list_files({"a.ckpt": bytes(1234)}, ["b"]), end="")
           1,234 bytes  a.ckpt
              left out  b
    """
    lines = []
    for name, content in sorted(files.items()):
        is_path = isinstance(content, Path)
        size = content.stat().st_size if is_path else len(content)
        lines.append(f"{size:>12,} bytes  {name}")
    lines += [f"{'left out':>18}  {name}" for name in left_out]
    return "\n".join(lines) + "\n"
