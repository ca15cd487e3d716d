"""A process of devices.py: one form of a model, timed and asked for embeddings.

It is run by the environment of the form's runtime, bound to its cores, takes a
job as JSON and prints what it measured as JSON.
"""

import gc
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

RATE = 16000
TURN = 0.7  # seconds; short calls are repeated
MINIMUM_CALLS = 3
WEB = Path(__file__).with_name("device_worker.mjs")


def load_torch(path, cores, onnx_runtime):
    import torch

    from redimnet2_lobes import load
    from redimnet2_lobes.models import folded_copy

    folded_copy.HAS_ONNX_RUNTIME = onnx_runtime
    torch.set_num_threads(cores)
    model = load(path)

    def embed(waveform):
        return model.encode_batch(torch.from_numpy(waveform[None])).numpy()

    return embed


def load_onnx(path, cores, provider="CPUExecutionProvider", settings=()):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = cores
    session = onnxruntime.InferenceSession(
        path, options, providers=[(provider, dict(settings))]
    )
    assert session.get_providers()[0] == provider
    names = [value.name for value in session.get_inputs()]

    def embed(waveform):
        lengths = np.array([len(waveform)])
        feed = dict(zip(names, (waveform[None], lengths), strict=False))
        return session.run(None, feed)[0]

    return embed


def load_openvino(path, cores):
    settings = {"device_type": "CPU", "num_of_threads": str(cores)}
    return load_onnx(path, cores, "OpenVINOExecutionProvider", settings)


def load_tract(path, cores):
    import tract

    runnable = {}

    def embed(waveform):
        if len(waveform) not in runnable:  # tract wants to know the length
            model = tract.onnx().load(path)
            model.set_input_fact(0, model.fact(f"1,{len(waveform)},f32"))
            runnable[len(waveform)] = model.into_model().into_runnable()
        return runnable[len(waveform)].run([waveform[None]])[0].to_numpy()

    return embed


def load_sherpa(path, cores):
    import sherpa_onnx

    config = sherpa_onnx.SpeakerEmbeddingExtractorConfig(
        model=path, num_threads=cores
    )
    extractor = sherpa_onnx.SpeakerEmbeddingExtractor(config)

    def embed(waveform):
        # As redimnet2_lobes.onnx.sherpa.prepare, without torch.
        waveform = 32768 * (waveform - waveform.mean())
        stream = extractor.create_stream()
        stream.accept_waveform(RATE, waveform)
        stream.input_finished()
        return np.array(extractor.compute(stream))

    return embed


def load_executorch(path, cores):
    import torch
    from executorch.runtime import Runtime

    forward = Runtime.get().load_program(path).load_method("forward")

    def embed(waveform):
        return forward.execute([torch.from_numpy(waveform[None])])[0].numpy()

    return embed


LOADERS = {
    "torch": lambda path, cores: load_torch(path, cores, False),
    "model folder": lambda path, cores: load_torch(path, cores, True),
    "onnx": load_onnx,
    "openvino": load_openvino,
    "tract": load_tract,
    "sherpa": load_sherpa,
    "executorch": load_executorch,
}


def measure(job):
    """Median milliseconds and the peak memory, length after length."""
    random = np.random.default_rng(0)
    measured = {}
    embed = loaded = None
    for seconds, path in job["paths"].items():
        if path != loaded:  # else it takes all lengths
            # What an earlier file took shall not count.
            embed = None
            gc.collect()
            Path("/proc/self/clear_refs").write_text("5")
            embed = LOADERS[job["loader"]](path, job["cores"])
            loaded = path
        shape = round(float(seconds) * RATE)
        waveform = random.normal(0, 0.1, shape).astype(np.float32)
        first = timed(embed, waveform)
        first = min(first, timed(embed, waveform))
        calls = max(MINIMUM_CALLS, round(TURN / first))
        times = [timed(embed, waveform) for _ in range(calls)]
        measured[seconds] = {
            "milliseconds": 1000 * statistics.median(times),
            "mebibytes": peak_memory(),
        }
    return measured


def timed(embed, waveform):
    start = time.perf_counter()
    embed(waveform)
    return time.perf_counter() - start


def peak_memory():
    """What the process has taken at most, in MiB (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise KeyError("VmHWM")


def embeddings(job):
    """Writes the embeddings [files, embedding] of waveforms [files, time]."""
    embed = LOADERS[job["loader"]](job["path"], job["cores"])
    waveforms = np.load(job["waveforms"])
    found = np.stack([np.ravel(embed(each)) for each in waveforms])
    np.save(job["output"], found)
    return {}


def main():
    job = json.loads(sys.argv[1])
    os.sched_setaffinity(
        0, set(sorted(os.sched_getaffinity(0))[: job["cores"]])
    )
    if job["loader"] == "web":
        job["threads"] = job["cores"]
        sys.exit(subprocess.run(["node", WEB, json.dumps(job)]).returncode)
    task = {"measure": measure, "embeddings": embeddings}[job["task"]]
    print(json.dumps(task(job)))


if __name__ == "__main__":
    main()
