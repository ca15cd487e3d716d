"""A page that runs a model in the browser, as a static Space of the hub.

> redimnet2 push results/redimnet2_b3/42 USER/NAME --space

The page is that of the folder ``web``, the model a file of ``export``.
onnxruntime-web is taken from where npm has put it: nothing is loaded from
elsewhere, so that the page works offline.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import json
import os
from pathlib import Path

from huggingface_hub import SpaceCardData

from redimnet2_lobes.files.json_files import read_json
from redimnet2_lobes.files.shipped import shipped_folder
from redimnet2_lobes.onnx.export import check_new_export, export_onnx
from redimnet2_lobes.pretrained.loading import load_model, network_of
from redimnet2_lobes.pretrained.provenance import Provenance, provenance_of
from redimnet2_lobes.pretrained.push import CARD_FILE, LICENSE, Files
from redimnet2_lobes.scoring.operating_point import (
    OperatingPoint,
    operating_point_in,
)
from redimnet2_lobes.scoring.results import RESULTS_FILE

RUNTIME = "onnxruntime-web"
# Where the page looks for it: as npm lays it.
RUNTIME_FOLDER = f"node_modules/{RUNTIME}"
CARD = """\
---
{data}
---

# {title}

This page compares voices on the device that it is opened on, by the model
{repository}. No recording is sent anywhere. It runs with onnxruntime-web
{version} (Microsoft, MIT licence).
"""


def collect_space(
    folder: str | os.PathLike,
    repository: str,
    given: Provenance,
    files: Files,
    model: Path,
    runtime: str | os.PathLike | None = None,
) -> Files:
    """Exports a model, and lists the files of a Space, as ``push`` takes them.

    Arguments
    ---------
    folder
        A model folder, or the output folder of a training.
    repository
        USER/NAME of the model on the hub.
    given
        What is stated of it, in place of what the folder says.
    files
        Those of ``pretrained.push.collect``: the threshold is that of the
        results among them.
    model
        Where to write the model; it is to be there until the push is done.
    runtime
        The folder of the npm package onnxruntime-web; None for what ``npm ci``
        has put into the folder ``web``. A ValueError says that there is none or
        another version.

    Example
    -------
    >>> path = getfixture("tmp_path") / "model.onnx"
    >>> given = Provenance()
    >>> collect_space("b3", "user/name", given, {}, path, "nowhere")
    Traceback (most recent call last):
    ValueError: nowhere: no onnxruntime-web 1.30.0; get it by npm install \
onnxruntime-web@1.30.0 and give its folder, \
--onnxruntime_web=node_modules/onnxruntime-web
    """
    check_new_export(model)
    web = shipped_folder("web")
    runtime = Path(runtime or web / RUNTIME_FOLDER)
    page = {"files.json": web / "files.json"}
    for name in read_json(web / "files.json"):
        inside = name.removeprefix(f"{RUNTIME_FOLDER}/")
        page[name] = web / name if inside == name else runtime / inside
    version = read_json(web / "package.json")["dependencies"][RUNTIME]
    manifest = runtime / "package.json"
    found = read_json(manifest)["version"] if manifest.is_file() else None
    if found != version or not all(path.is_file() for path in page.values()):
        raise ValueError(
            f"{runtime}: no {RUNTIME} {version}; get it by npm install "
            f"{RUNTIME}@{version} and give its folder, "
            f"--onnxruntime_web={RUNTIME_FOLDER}"
        )
    operating_point = OperatingPoint()
    if isinstance(results := files.get(RESULTS_FILE), bytes):
        operating_point = operating_point_in(json.loads(results))
    encoder = load_model(folder, {"device": "cpu"})
    stated = given.or_else(provenance_of(encoder))
    export_onnx(
        network_of(encoder, folder),
        model,
        operating_point=operating_point,
        provenance=stated,
    )
    title = f"Who speaks? {repository.split('/')[1]}"
    data = SpaceCardData(
        title=title,
        sdk="static",
        license=stated.license or LICENSE,
        models=[repository],
    )
    card = CARD.format(
        data=data.to_yaml(),
        title=title,
        repository=repository,
        version=version,
    )
    return {**page, "model.onnx": model, CARD_FILE: card.encode()}
