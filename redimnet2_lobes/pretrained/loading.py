"""Reading weights, from model folders and from single files.

Weights are kept as SpeechBrain's ``.ckpt`` and beside it as ``.safetensors``,
a format that holds tensors only. Either will do. Nothing is unpickled.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import contextlib
import importlib.util
import os
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import EntryNotFoundError, HFValidationError
from huggingface_hub.utils import validate_repo_id
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from speechbrain.dataio.encoder import CategoricalEncoder
from speechbrain.inference.classifiers import EncoderClassifier
from speechbrain.utils.checkpoints import PARAMFILE_EXT
from speechbrain.utils.distributed import main_process_only
from speechbrain.utils.fetching import (
    FetchConfig,
    FetchFrom,
    FetchSource,
    LocalStrategy,
    fetch,
    guess_source,
)
from speechbrain.utils.parameter_transfer import Pretrainer
from speechbrain.utils.run_opts import RunOptions
from torch import nn

from redimnet2_lobes.files.error_lines import one_line
from redimnet2_lobes.files.same_space import FILE, check_same_space
from redimnet2_lobes.models.embedding_space import embedding_space
from redimnet2_lobes.models.redimnet2 import ReDimNet2
from redimnet2_lobes.pretrained.savedir import CODE_FILE, Savedir

SAFETENSORS_EXTENSION = ".safetensors"


class ModelPretrainer(Pretrainer):
    """SpeechBrain's `Pretrainer`, for weights in either format.

    Of each network the ``.safetensors`` file is taken, or else the ``.ckpt``.
    Weights that do not fit exactly are an error, where SpeechBrain warns.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> there, here = nn.Linear(2, 3), nn.Linear(2, 3)
    >>> torch.save(there.state_dict(), folder / "layer.ckpt")
    >>> pretrainer = ModelPretrainer({"layer": here})
    >>> _ = pretrainer.collect_files(folder)
    >>> pretrainer.load_collected()
    >>> torch.equal(there.weight, here.weight)
    True
    """

    def __init__(self, loadables: dict):
        hooks = {
            name: hook
            for name, loadable in loadables.items()
            for kind, hook in (
                (nn.Module, _load_tensors),
                (CategoricalEncoder, load_labels),
            )
            if isinstance(loadable, kind)
        }
        super().__init__(loadables=loadables, custom_hooks=hooks)
        # Where other files of the model are: a folder or a hub name.
        self.origin: tuple[str, FetchConfig] | None = None

    def collect_files(
        self,
        default_source: str | Path | FetchSource | None = None,
        local_strategy: LocalStrategy = LocalStrategy.SYMLINK,
        fetch_config: FetchConfig | None = None,
    ) -> dict[str, str]:
        """Finds the files, as `Pretrainer.collect_files` does.

        Where they are collected (``savedir``), what lies there is replaced
        unless it is that of the source. A ValueError says that it is another
        model, whose hyperparams.yaml has been read, or may be somebody's own.
        """
        config = fetch_config or FetchConfig()
        options = {"local_strategy": local_strategy, "fetch_config": config}
        if default_source is None or self.paths:
            return self._collect(default_source, **options)
        source = FetchSource(*guess_source(default_source))
        if source.FetchFrom is FetchFrom.URI:  # which nothing else keeps
            options["local_strategy"] = local_strategy = LocalStrategy.COPY
        self.origin = str(source.path), config
        folder = self.collect_in
        if folder is None:
            return self._collect(source, **options)
        # What is fetched anew goes elsewhere first, so nothing is in its way.
        savedir = Savedir(
            folder, source, local_strategy, replace(config, overwrite=False)
        )
        if savedir.is_local or local_strategy is LocalStrategy.NO_LINK:
            # Read where they are: what the savedir has is a copy.
            self.collect_in = None
            files = self._collect(source, **options)
            self.collect_in = folder
            self._keep(savedir, is_new=True)
            return files
        is_new = config.overwrite or config.allow_updates
        self._keep(savedir, is_new)
        self.origin = str(folder), config
        self.paths = {
            name: str(folder / (name + PARAMFILE_EXT))
            for name in self.loadables
        }
        return super().collect_files()

    @main_process_only
    def _keep(self, savedir: Savedir, is_new: bool) -> None:
        """Has a savedir hold the files of its source.

        ``is_new`` says that these may have changed since they were put there.
        """
        files = {name: name + PARAMFILE_EXT for name in self.loadables}
        if not is_new and savedir.is_known(files.values()):
            return
        if savedir.is_source():
            return
        savedir.check()
        savedir.check(CODE_FILE)
        if savedir.strategy is LocalStrategy.NO_LINK:
            return
        if savedir.is_local and savedir.matches(
            {files[name]: path for name, path in self.paths.items()}
        ):
            return
        with savedir.refilled() as partial:
            pretrainer = ModelPretrainer(self.loadables)
            pretrainer.set_collect_in(partial)
            pretrainer._collect(
                savedir.source,
                local_strategy=savedir.strategy,
                fetch_config=savedir.config,
            )

    def _collect(
        self, source: str | Path | FetchSource | None, **options: Any
    ) -> dict[str, str]:
        # SpeechBrain alone does not bring it.
        if importlib.util.find_spec("safetensors") is not None:
            for name, loadable in self.loadables.items():
                if isinstance(loadable, nn.Module) and name not in self.paths:
                    self._find_safetensors(name, source, **options)
        return super().collect_files(source, **options)

    def _find_safetensors(
        self, name: str, source: str | Path | FetchSource | None, **options: Any
    ) -> None:
        filename = name + SAFETENSORS_EXTENSION
        where, place = guess_source(source)
        if where is FetchFrom.LOCAL and not (Path(place) / filename).is_file():
            return
        with contextlib.suppress(EntryNotFoundError, ValueError):
            path = fetch(
                filename,
                source,
                savedir=self.collect_in,
                save_filename=name + PARAMFILE_EXT,
                **options,
            )
            self.paths[name] = str(path)


def read_tensors(path: str | os.PathLike) -> dict[str, torch.Tensor]:
    """Reads a file of tensors by name, onto the CPU. No code in it is run.

    It is a state dict as torch or safetensors writes it: its content tells
    which, since SpeechBrain gives both the same name. A ValueError says that it
    is anything else, or damaged.

    Example
    -------
    >>> path = getfixture("tmp_path") / "weights.ckpt"
    >>> torch.save({"weight": torch.ones(2)}, path)
    >>> read_tensors(path)
    {'weight': tensor([1., 1.])}
    """
    with open(path, "rb") as file:
        # safetensors: the size of the header, then the header, in JSON.
        is_safetensors = file.read(9)[8:] == b"{"
    try:
        if is_safetensors:
            from safetensors.torch import load_file

            return load_file(path)
        tensors = load_whole(path)
    except ImportError:
        raise ValueError(
            f"{path}: to read it, pip install safetensors"
        ) from None
    except Exception as error:
        raise ValueError(
            f"{path} is not a file of weights, or it is damaged"
        ) from error
    if isinstance(tensors, dict) and "model_config" in tensors:
        raise ValueError(
            f"{path} is a published checkpoint; convert it first: "
            f"redimnet2 convert {path} --output FOLDER"
        )
    if not isinstance(tensors, dict) or not all(
        isinstance(tensor, torch.Tensor) for tensor in tensors.values()
    ):
        raise ValueError(
            f"{path} holds something else than the weights of a network; pass "
            "embedding_model.ckpt"
        )
    return tensors


def load_whole(path: str | os.PathLike) -> Any:
    """Reads what ``torch.save`` has written, onto the CPU.

    It is a ValueError, without the path, if the file is anything else, damaged,
    or would run code. Only files of torch before 1.6 have no checksums to tell.

    Example
    -------
    >>> path = getfixture("tmp_path") / "one.ckpt"
    >>> torch.save({"weight": torch.ones(2)}, path)
    >>> content = path.read_bytes()
    >>> _ = path.write_bytes(content.replace(torch.ones(1).numpy(), b"abcd"))
    >>> load_whole(path)
    Traceback (most recent call last):
    ValueError: damaged, or not a file of torch
    """
    with open(path, "rb") as file:
        try:
            # torch does not compare the checksums that it writes.
            if file.read(2) == b"PK":
                with zipfile.ZipFile(file) as archive:
                    if archive.testzip() is not None:
                        raise zipfile.BadZipFile
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # of many kinds
            raise ValueError("damaged, or not a file of torch") from error


def check_tensors(
    tensors: dict[str, torch.Tensor],
    network: nn.Module,
    path: str | os.PathLike,
    origin: str,
) -> None:
    """Checks that weights fit a network exactly, and are finite.

    The ValueError names the first tensor that is missing, surplus, of another
    shape or not finite, ``path``, which the weights are from, and ``origin``,
    from which the network was built.

    Example
    -------
    >>> check_tensors({}, nn.Linear(2, 3, bias=False), "a.ckpt", "a.yaml")
    Traceback (most recent call last):
    ValueError: a.ckpt does not fit a.yaml: weight is missing
    """
    expected = network.state_dict()
    faults = [f"{name} is missing" for name in expected if name not in tensors]
    faults += [f"{name} is surplus" for name in tensors if name not in expected]
    faults += [
        f"{name} has the shape {list(tensor.shape)}, "
        f"not {list(expected[name].shape)}"
        for name, tensor in tensors.items()
        if name in expected and tensor.shape != expected[name].shape
    ]
    if faults:
        others = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise ValueError(f"{path} does not fit {origin}: {faults[0]}{others}")
    if name := not_finite(tensors):
        raise ValueError(
            f"{path}: {name} holds values that are not finite, since its "
            "training diverged; take another checkpoint"
        )


def not_finite(tensors: Mapping[str, torch.Tensor]) -> str | None:
    """Names the first tensor that holds NaN or infinity, if one does.

    Example
    -------
    >>> not_finite({"weight": torch.ones(2), "bias": torch.tensor([torch.inf])})
    'bias'
    """
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            return name
    return None


def _load_tensors(network: nn.Module, path: str | os.PathLike) -> None:
    tensors = read_tensors(path)
    check_tensors(tensors, network, path, "its hyperparams.yaml")
    network.load_state_dict(tensors)


def load_labels(labels: CategoricalEncoder, path: str | os.PathLike) -> None:
    r"""Reads the names of classes, as ``CategoricalEncoder.load``.

    It is a ValueError if the file is damaged, or has not one name for each
    class.

    Example
    -------
    >>> path = getfixture("tmp_path") / "label_encoder.ckpt"
    >>> _ = path.write_text("'anna' => 0\n'bert' => 2\n")
    >>> load_labels(CategoricalEncoder(), path)
    Traceback (most recent call last):
    ValueError: ...label_encoder.ckpt: damaged, or a file that names no ...
    """
    try:
        labels.load(path)
        if set(map(type, labels.lab2ind)) - {str}:
            raise ValueError("a name is no text")
        names = {index: name for name, index in labels.lab2ind.items()}
        if names != labels.ind2lab or sorted(names) != list(range(len(labels))):
            raise ValueError("its numbers are not those of classes")
        if labels.lab2ind:
            labels.encode_label(labels.ind2lab[0])  # compares their count
    except OSError:
        raise
    except Exception as error:
        raise ValueError(
            f"{path}: damaged, or a file that names no speakers; copy or train "
            "it again"
        ) from error


def load_model(
    source: str | os.PathLike, run_opts: RunOptions | dict | None = None
) -> EncoderClassifier:
    """Loads a model that SpeechBrain's `EncoderClassifier` can load.

    Arguments
    ---------
    source
        A model folder, the output folder of a training, or a hub name
        ``user/name``. A ValueError says that there is none, that it cannot be
        fetched, is damaged, or that its weights do not fit its network.
    run_opts
        SpeechBrain's run options, such as ``device``.

    Returns
    -------
    EncoderClassifier
        In evaluation mode; its network is ``mods.embedding_model``.

    Example
    -------
    >>> load_model("no/such/folder")
    Traceback (most recent call last):
    ValueError: no file or folder no/such/folder
    """
    source = find_model(source)
    try:
        # No savedir: nothing is copied or linked, so that a second run never
        # meets the files of another model. The token is that of the login.
        encoder = EncoderClassifier.from_hparams(
            source=source,
            run_opts=run_opts,
            fetch_config=FetchConfig(token=None),
        )
    except Exception as error:
        reason = one_line(error)[:400]
        what = f"{source} is no file or folder, and as a hub name it"
        if os.path.isdir(source):
            what = f"the model folder {source}"
            reason = fault_of_hyperparams(source) or reason
        raise ValueError(f"{what} cannot be loaded ({reason})") from error
    for name in ("compute_features", "mean_var_norm", "embedding_model"):
        if name not in encoder.mods:  # SpeechBrain does not look
            raise ValueError(
                f"{source}: its modules lack {name}, so it is no speaker "
                "encoder; name another model"
            )
    # Of tensors that do not fit SpeechBrain's own only warns.
    pretrainer = encoder.hparams.pretrainer
    if not isinstance(pretrainer, ModelPretrainer):
        for name, network in pretrainer.loadables.items():
            if network is encoder.mods.embedding_model:
                path = pretrainer.paths[name]
                check_tensors(
                    read_tensors(path), network, path, "its hyperparams.yaml"
                )
    named = Path(source, FILE)
    if named.is_file():
        stated = " ".join(named.read_text("utf-8", "replace").split())
        check_same_space(named, stated, source, embedding_space(encoder.mods))
    return encoder


def fault_of_hyperparams(folder: str | os.PathLike) -> str | None:
    """What is wrong with hyperparams.yaml, if it has no pretrainer.

    It is a ValueError if it is that of a training.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> _ = (folder / "hyperparams.yaml").write_text("lr: 0.1")
    >>> fault_of_hyperparams(folder)
    'hyperparams.yaml has no pretrainer, so it is of something else'
    """
    name = "hyperparams.yaml"
    try:
        with open(os.path.join(folder, name), encoding="utf-8") as file:
            keys = YAML().load(file)
    except (YAMLError, ValueError, RecursionError) as error:
        return f"{name} is damaged, for it is no YAML: {one_line(error)}"
    if not isinstance(keys, dict):
        return f"{name} is damaged, for it has no keys"
    if keys.get("pretrainer") is not None:
        return None
    if "checkpointer" in keys:
        raise ValueError(
            f"{folder}: the training in this folder has not ended, so it has "
            "no model/ yet; let it end by the same command"
        )
    return f"{name} has no pretrainer, so it is of something else"


def network_of(
    encoder: EncoderClassifier, source: str | os.PathLike
) -> ReDimNet2:
    """The network of a model that ``load_model`` has loaded from a source.

    Example
    -------
    >>> from argparse import Namespace
    >>> other = Namespace(mods=Namespace(embedding_model=nn.Identity()))
    >>> network_of(other, "folder")
    Traceback (most recent call last):
    ValueError: folder: holds a Identity, not a ReDimNet2
    """
    network = encoder.mods.embedding_model
    if not isinstance(network, ReDimNet2):
        raise ValueError(
            f"{source}: holds a {type(network).__name__}, not a ReDimNet2"
        )
    return network


def find_model(source: str | os.PathLike) -> str:
    """The model folder in the output of a training, or a hub name.

    What exists is a path, and what cannot be a hub name is one too: it begins
    with ``.``, ``/`` or ``~``, or has not exactly one slash. Anything else is a
    hub name, whatever else lies in the working folder. A ValueError says that
    it is neither.

    Example
    -------
    >>> find_model("speechbrain/spkrec-ecapa-voxceleb")
    'speechbrain/spkrec-ecapa-voxceleb'
    >>> find_model("user/../name")
    Traceback (most recent call last):
    ValueError: no file or folder user/../name
    """
    source = os.fspath(source)
    try:
        validate_repo_id(source)
        is_name = "/" in source
    except HFValidationError:
        is_name = False
    otherwise = (
        "; for the model of this name on the hub, rename it or run this in "
        "another folder"
        if is_name
        else ""
    )
    if os.path.isdir(source):
        # The output of a training has its model folder in it, and a
        # hyperparams.yaml of its own.
        if os.path.isdir(os.path.join(source, "model")):
            source = os.path.join(source, "model")
        if not os.path.isfile(os.path.join(source, "hyperparams.yaml")):
            raise ValueError(
                f"{source} has no hyperparams.yaml, so it is no model folder"
                f"{otherwise}"
            )
        return source
    if os.path.lexists(source):
        raise ValueError(f"{source} is no folder{otherwise}")
    if not is_name:
        raise ValueError(f"no file or folder {source}")
    return source
