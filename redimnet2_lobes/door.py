"""One door: loads a model in any of its forms.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import os

import torch
from speechbrain.inference.classifiers import EncoderClassifier
from speechbrain.utils.run_opts import RunOptions

from redimnet2_lobes.models.embedding_space import embedding_space
from redimnet2_lobes.models.threads import check_threads, usable_threads
from redimnet2_lobes.onnx.encoder import OnnxEncoder
from redimnet2_lobes.pretrained.convert import released_folder
from redimnet2_lobes.pretrained.loading import find_model, load_model
from redimnet2_lobes.pretrained.releases import RELEASED


def load(
    source: str | os.PathLike,
    run_opts: RunOptions | dict | None = None,
    threads: int | None = None,
    engine_cache: str | os.PathLike | None = None,
) -> EncoderClassifier | OnnxEncoder:
    """Loads a model in any of its forms.

    Arguments
    ---------
    source
        A model folder, the output folder of a training, the name of a published
        checkpoint such as ``b3-vox2-lm`` (downloaded once), the name
        ``user/name`` of a model on the Hugging Face hub, or a .onnx file. A
        ValueError, or an OSError of a download, says in one line why there is
        none.
    run_opts
        SpeechBrain's run options, such as ``device``. Of a .onnx file that is
        an execution provider, such as ``cuda`` or ``openvino``; the others do
        nothing there.
    threads
        Of the CPU, at most one on each core; None for as many as torch may use.
        For all but .onnx files they are set by ``torch.set_num_threads``, for
        the whole process.
    engine_cache
        Of a .onnx file, see ``OnnxEncoder``; a ValueError for the others.

    Returns
    -------
    EncoderClassifier or OnnxEncoder
        Its ``encode_batch(wavs, wav_lens)`` gives embeddings
        [batch, 1, embedding].

    Example
    -------
    >>> load("no/such/folder")
    Traceback (most recent call last):
    ValueError: no file or folder no/such/folder
    """
    if is_onnx(source):
        device = str((run_opts or {}).get("device") or "cpu")
        return OnnxEncoder(os.fspath(source), threads, device, engine_cache)
    if engine_cache is not None:
        raise ValueError("engine_cache: belongs to .onnx files; leave it out")
    check_threads(threads)
    encoder = load_model(find(source), run_opts)
    if threads is not None:
        torch.set_num_threads(usable_threads(threads))
    return encoder


def space_of(encoder: EncoderClassifier | OnnxEncoder) -> str:
    """Names the space of the embeddings that ``load`` gives the encoder of.

    Those of two spaces cannot be compared.

    Example
    -------
    >>> from redimnet2_lobes.models.redimnet2 import ReDimNet2
    >>> from redimnet2_lobes.onnx.export import export_onnx
    >>> path = getfixture("tmp_path") / "b0.onnx"
    >>> _ = export_onnx(ReDimNet2.from_variant("b0").eval(), path)
    >>> space_of(load(path))[:13]
    'redimnet2-b0-'
    """
    if isinstance(encoder, OnnxEncoder):
        return encoder.space
    return embedding_space(encoder.mods)


def is_onnx(source: str | os.PathLike) -> bool:
    """Whether a model is a .onnx file, by its name.

    Example
    -------
    >>> is_onnx("b3.onnx")
    True
    """
    return os.fspath(source).lower().endswith(".onnx")


def find(source: str | os.PathLike) -> str:
    """The model folder, or the hub name, of a model that is no .onnx file.

    ``source`` and errors are those of ``load``. A published checkpoint is
    downloaded and converted if it has not been yet.

    Example
    -------
    >>> find("speechbrain/spkrec-ecapa-voxceleb")
    'speechbrain/spkrec-ecapa-voxceleb'
    """
    source = os.fspath(source)
    if source in RELEASED and not os.path.exists(source):
        return released_folder(source)
    return find_model(source)
