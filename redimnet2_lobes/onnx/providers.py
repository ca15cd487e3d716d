"""Execution providers: what ONNX Runtime computes on, other than its CPU code.

ONNX Runtime goes on with the CPU, unasked, where a provider does not start or
takes nothing of a graph. Here that is an error.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import functools
import hashlib
import importlib
import importlib.util
import os
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import onnxruntime
from speechbrain.utils.logger import get_logger

from redimnet2_lobes.files.error_lines import one_line

logger = get_logger(__name__)

NOTHING: Mapping[str, str] = MappingProxyType({})
CUDA = "CUDAExecutionProvider"
# Operations in which nearly all of the time goes.
HEAVY = {"Conv", "Gemm", "MatMul"}


class Provider(NamedTuple):
    """A provider as ONNX Runtime knows it.

    ``name`` is ONNX Runtime's, ``remedy`` what brings it, ``targets`` the forms
    of files that it takes. ``options`` are always given. ``device_option`` is
    the one that names a device, ``threads_option`` the one with the number of
    threads, and ``cache_options`` are those with which it keeps what it has
    compiled in a folder. A ``plugin`` is a package with a provider for any
    onnxruntime.
    """

    name: str
    remedy: str
    targets: tuple[str, ...] = ("onnx", "plain", "fixed")
    options: Mapping[str, str] = NOTHING
    device_option: str | None = None
    threads_option: str | None = None
    cache_options: Mapping[str, str] = NOTHING
    plugin: str | None = None


PROVIDERS = {
    "cuda": Provider(
        CUDA,
        "pip install onnxruntime-gpu in place of it",
        # Or else each new length is measured with all algorithms.
        options={"cudnn_conv_algo_search": "HEURISTIC"},
        device_option="device_id",
    ),
    "tensorrt": Provider(
        "TensorrtExecutionProvider",
        "pip install onnxruntime-gpu in place of it, and tensorrt",
        targets=("fixed",),
        device_option="device_id",
        cache_options={
            "trt_engine_cache_enable": "True",
            "trt_engine_cache_path": "{folder}",
        },
    ),
    "openvino": Provider(
        "OpenVINOExecutionProvider",
        "pip install onnxruntime-openvino in place of it",
        targets=("plain", "fixed"),
        options={"device_type": "CPU"},
        device_option="device_type",
        threads_option="num_of_threads",
        cache_options={"cache_dir": "{folder}"},
    ),
    "directml": Provider(
        "DmlExecutionProvider",
        "on Windows, pip install onnxruntime-directml in place of it",
        device_option="device_id",
    ),
    "coreml": Provider(
        "CoreMLExecutionProvider",
        "it is in the onnxruntime for macOS",
        targets=("fixed",),
        options={"ModelFormat": "MLProgram"},
        cache_options={"ModelCacheDirectory": "{folder}"},
    ),
    "qnn": Provider(
        "QNNExecutionProvider",
        "pip install 'onnxruntime-qnn>=2'",
        targets=("fixed",),
        options={"backend_type": "htp"},
        device_option="backend_type",
        plugin="onnxruntime_qnn",
    ),
}


def find_provider(device: str) -> tuple[Provider, str | None]:
    """The provider of a name such as ``cuda``, and the device after a colon.

    A ValueError says that there is none of this name, or that it is not in this
    onnxruntime.

    Example
    -------
    >>> find_provider("abacus")
    Traceback (most recent call last):
    ValueError: device 'abacus': a .onnx file runs on cpu, cuda, tensorrt, \
openvino, directml, coreml or qnn, on some with a device, as cuda:1
    """
    match = re.fullmatch(r"(\w+)(?::([\w.]+))?", device)
    provider = PROVIDERS.get(match[1]) if match else None
    if not match or not provider or (match[2] and not provider.device_option):
        *names, last = ("cpu", *PROVIDERS)
        raise ValueError(
            f"device {device!r}: a .onnx file runs on {', '.join(names)} or "
            f"{last}, on some with a device, as cuda:1"
        )
    there = onnxruntime.get_available_providers()
    if provider.plugin:
        has_it = importlib.util.find_spec(provider.plugin) is not None
    else:
        has_it = provider.name in there
    if not has_it:
        raise ValueError(
            f"device {device!r}: not in this onnxruntime, which has "
            f"{', '.join(there)}; {provider.remedy}"
        )
    return provider, match[2]


def provider_session(
    model: bytes,
    target: str,
    device: str,
    threads: int,
    engine_cache: str | os.PathLike | None = None,
) -> onnxruntime.InferenceSession:
    """A graph on a provider, which takes all or most of it.

    Arguments
    ---------
    model
        The bytes of a file.
    target
        Its form: onnx, plain or fixed.
    device
        A key of ``PROVIDERS``, for some followed by a colon and a device.
    threads
        For what the CPU has to do.
    engine_cache
        A folder in which the provider keeps what it compiles. There each file
        has a folder of its own, by its content, since not all providers see
        that weights have changed.

    Raises
    ------
    ValueError
        If the provider is missing, does not take this form, has no cache, does
        not start, or takes no convolution or matrix product. Of what it leaves
        to others if it takes some, a warning is logged.

    Example
    -------
    >>> provider_session(b"", "fixed", "abacus", threads=1)
    Traceback (most recent call last):
    ValueError: device 'abacus': a .onnx file runs on cpu, ...
    """
    provider, part = find_provider(device)
    if target not in provider.targets:
        raise ValueError(
            f"device {device!r}: takes no file of --for={target}; export "
            f"--for={' or --for='.join(provider.targets)}"
        )
    options = dict(provider.options)
    if provider.device_option and part:
        options[provider.device_option] = part
    if provider.threads_option:
        options[provider.threads_option] = str(threads)
    if engine_cache is not None:
        # That of its CPU device OpenVINO writes, but does not read (1.24.1).
        if not provider.cache_options or options.get("device_type") == "CPU":
            raise ValueError(
                f"engine_cache: device {device!r} has no use for it, only "
                "tensorrt, coreml and openvino:GPU or NPU; leave it out"
            )
        folder = _cache_folder(model, engine_cache)
        for option, value in provider.cache_options.items():
            options[option] = value.format(folder=folder)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    # Or else every new length keeps a block of memory of its own. DirectML
    # has no such pattern.
    settings.enable_mem_pattern = False
    settings.log_severity_level = 4  # what is raised says the same
    settings.add_session_config_entry(
        "session.record_ep_graph_assignment_info", "1"
    )
    try:
        if provider.plugin:
            devices = _devices(provider.plugin, provider.name)
            settings.add_provider_for_devices(devices, options)
            providers = None
        else:
            providers = [(provider.name, options)]
            if provider is PROVIDERS["tensorrt"]:  # what it does not take
                providers.append((CUDA, {"device_id": part or "0"}))
        session = onnxruntime.InferenceSession(
            model, settings, providers=providers, enable_fallback=False
        )
    except Exception as error:  # ONNX Runtime raises kinds of its own
        raise ValueError(
            f"device {device!r}: cannot be used here ({one_line(error)[:400]})"
        ) from error
    _check_assignment(session, provider.name, device)
    return session


def _cache_folder(model: bytes, engine_cache: str | os.PathLike) -> Path:
    """The folder of a file in the cache, which is created."""
    content = hashlib.sha256(model).hexdigest()[:16]
    folder = Path(engine_cache, f"{content}-{onnxruntime.__version__}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"engine_cache: {engine_cache} cannot be used ({error.strerror}); "
            "name a folder that can be written"
        ) from error
    return folder


@functools.cache
def _devices(plugin: str, name: str) -> list:
    """The devices that a plug-in finds; ONNX Runtime loads it once."""
    library = importlib.import_module(plugin).get_library_path()
    onnxruntime.register_execution_provider_library(name, library)
    return [x for x in onnxruntime.get_ep_devices() if x.ep_name == name]


def _check_assignment(
    session: onnxruntime.InferenceSession, name: str, device: str
) -> None:
    """Refuses a session that computes on the CPU instead.

    Providers are in its list even if they have failed to set up their device.
    """
    if name not in session.get_providers():
        raise ValueError(
            f"device {device!r}: did not start, and onnxruntime says why "
            "above; check its drivers and libraries, or leave the device out"
        )
    if not hasattr(session, "get_provider_graph_assignment_info"):
        raise ValueError(
            f"device {device!r}: needs onnxruntime 1.24 or newer, which says "
            "what runs where"
        )
    places = Counter(
        part.ep_name
        for part in session.get_provider_graph_assignment_info()
        for node in part.get_nodes()
        if node.op_type in HEAVY
    )
    taken, count = places[name], places.total()
    what = f"{taken} of {count} convolutions and matrix products"
    if not taken:
        raise ValueError(
            f"device {device!r}: takes {what}; see what onnxruntime says "
            "above, or leave the device out"
        )
    if taken < count:
        others = ", ".join(sorted({*places} - {name}))
        logger.warning(f"{device} takes {what}; the others run on {others}")
