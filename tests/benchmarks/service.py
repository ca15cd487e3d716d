"""Load on the HTTP service: many clients at a time.

    python tests/benchmarks/service.py --model=demo/trained/model \
        --recording=a.wav --seconds=3

starts `redimnet2 serve`, enrols a voice, and has it verified by 1, 8, 32 and
200 clients at a time, each of which sends its next request when the last one is
answered. Those that are sent away (503) are not sent again.
"""

import argparse
import io
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import httpx
import soundfile
import torch
from tqdm import tqdm

from redimnet2_lobes.data.audio import load_waveform
from redimnet2_lobes.models.front_end import SAMPLE_RATE

CLIENTS = 1, 8, 32, 200
HEADERS = {"Content-Type": "audio/wav"}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--recording", required=True)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--requests", type=int, default=200)
    arguments = parser.parse_args()
    waveform = load_waveform(arguments.recording)
    samples = round(arguments.seconds * SAMPLE_RATE)
    repeats = -(-samples // len(waveform))
    waveform = waveform.repeat(repeats)
    test = as_wav(waveform[:samples])
    enrolment = as_wav(torch.cat([waveform] * 3)[: 9 * SAMPLE_RATE])
    print(f"load average before: {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as folder:
        server = subprocess.Popen(
            [
                *(sys.executable, "-c"),
                "from redimnet2_lobes.cli import main; main()",
                *("serve", f"--model={arguments.model}", "--port=0"),
                f"--store={folder}/voices.sqlite",
            ],
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            measure(server, enrolment, test, arguments.requests)
        finally:
            server.terminate()
            server.wait()


def as_wav(waveform):
    file = io.BytesIO()
    soundfile.write(file, waveform.numpy(), SAMPLE_RATE, format="WAV")
    return file.getvalue()


def measure(server, enrolment, test, requests):
    url = None
    for line in server.stderr:
        if found := re.search(r"listening at (\S+),", line):
            url = found[1]
            break
    # What it logs must be read, or else it waits.
    threading.Thread(target=server.stderr.read, daemon=True).start()
    limits = httpx.Limits(max_connections=None)
    with httpx.Client(base_url=url, limits=limits, timeout=600) as client:

        def verify(_=None):
            start = time.perf_counter()
            answer = client.post("/verify/anna", content=test, headers=HEADERS)
            return answer.status_code, time.perf_counter() - start

        client.post(
            "/voices/anna", content=enrolment, headers=HEADERS
        ).raise_for_status()
        for _ in range(5):
            verify()
        print(
            "| clients | answered/s | median, s | 95 %, s | sent away, % | "
            "memory before, MiB | after, MiB |"
        )
        print("|---:|---:|---:|---:|---:|---:|---:|")
        for clients in CLIENTS:
            before = memory(server.pid)
            with ThreadPoolExecutor(clients) as threads:
                start = time.perf_counter()
                found = list(
                    tqdm(
                        threads.map(verify, range(requests)),
                        total=requests,
                        desc=f"{clients} clients",
                        disable=None,
                    )
                )
                seconds = time.perf_counter() - start
            statuses = Counter(status for status, _ in found)
            assert statuses.keys() <= {200, 503}, statuses
            taken = [took for status, took in found if status == 200]
            slowest = statistics.quantiles(taken, n=20)[-1]
            print(
                f"| {clients} | {len(taken) / seconds:.1f} | "
                f"{statistics.median(taken):.3f} | {slowest:.3f} | "
                f"{100 * statuses[503] / requests:.0f} | {before:.0f} | "
                f"{memory(server.pid):.0f} |",
                flush=True,
            )


def memory(process):
    """Resident memory in MiB (Linux)."""
    with open(f"/proc/{process}/status") as file:
        return int(re.search(r"VmRSS:\s+(\d+)", file.read())[1]) / 1024


if __name__ == "__main__":
    main()
