"""Utterances side by side: the same bits on any number of threads."""

import os
import subprocess
import sys
import threading

import pytest
import torch
from test_redimnet2 import PADDINGS, build, pad, speech
from torch.utils.flop_counter import FlopCounterMode

from redimnet2_lobes.models import threads
from redimnet2_lobes.models.redimnet2 import LONG_FOR_THREADS
from redimnet2_lobes.onnx.encoder import OnnxEncoder
from redimnet2_lobes.onnx.export import export_onnx


@pytest.fixture
def set_threads(monkeypatch):
    """Sets torch's threads, on a machine with at least as many cores."""
    before = torch.get_num_threads()

    def set_threads(count):
        monkeypatch.setattr("joblib.cpu_count", lambda: max(count, 2))
        torch.set_num_threads(count)

    yield set_threads
    torch.set_num_threads(before)


@torch.no_grad()
def test_the_same_bits(runtime, set_threads):
    network = build(aggregation_norm=True)
    sizes = [33000, 9000, 400, 33000, 21234]
    waveforms = [speech(size, seed) for seed, size in enumerate(sizes)]
    batch, lengths = pad(waveforms, PADDINGS["NaN"])
    set_threads(1)
    expected = network(batch, lengths)
    for count in (2, 3, 2):
        set_threads(count)
        again = network(batch, lengths)
        # torch forms other groups, and so sums in another order.
        exact = runtime == "onnxruntime"
        torch.testing.assert_close(again, expected, atol=2e-6, rtol=0)
        assert torch.equal(again, expected) or not exact
        assert torch.equal(network(batch, lengths), again)


@torch.no_grad()
def test_files(tmp_path, set_threads):
    network = build()
    path = tmp_path / "small.onnx"
    export_onnx(network, path)
    encoder = OnnxEncoder(path)
    sizes = [33000, 400, 21234]
    batch, lengths = pad([speech(size) for size in sizes], PADDINGS["NaN"])
    set_threads(1)
    expected = encoder.encode_batch(batch, lengths)
    set_threads(3)
    assert torch.equal(encoder.encode_batch(batch, lengths), expected)
    one = OnnxEncoder(path, threads=1)
    assert torch.equal(one.encode_batch(batch, lengths), expected)


def test_each_has_one_thread_and_one_only(set_threads):
    set_threads(3)
    together = threading.Barrier(3)

    def work(item):
        together.wait(timeout=60)
        return torch.get_num_threads(), threading.get_ident()

    seen = threads.side_by_side(work, range(3), threads=3)
    assert [count for count, _ in seen] == [1, 1, 1]
    assert len({thread for _, thread in seen}) == 3
    assert torch.get_num_threads() == 3
    # Nor do threads that start later have fewer.
    later = []
    thread = threading.Thread(
        target=lambda: later.append(torch.get_num_threads())
    )
    thread.start()
    thread.join()
    assert later == [3]


def test_the_first_error_is_raised(set_threads):
    set_threads(2)

    def fail(item):
        raise ValueError(item)

    with pytest.raises(ValueError, match="1"):
        threads.side_by_side(fail, [1, 2], threads=2)
    assert threads.side_by_side(abs, [-1, -2], threads=2) == [1, 2]


@pytest.mark.parametrize(
    "given, quota, used", [(8, 2, 2), (1, 2, 1), (2, 8, 2)]
)
def test_no_more_than_there_are_cores(monkeypatch, given, quota, used):
    monkeypatch.setattr("joblib.cpu_count", lambda: quota)
    monkeypatch.setattr("torch.get_num_threads", lambda: given)
    assert threads.usable_threads() == used


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="not Linux")
def test_affinity_counts():
    program = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from redimnet2_lobes.models.threads import usable_threads\n"
        "print(usable_threads())"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "4"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "1\n"


@torch.no_grad()
def test_a_long_utterance_that_is_alone(torch_only, set_threads, monkeypatch):
    """All threads are for it only; side by side is for the others."""
    network = build()
    seen = []

    def watch(*call):
        seen.append(torch.get_num_threads())
        return encode(*call)

    set_threads(2)
    network(speech(16000).unsqueeze(0))  # makes the copy that is used
    copy = network._folded_copy._network
    encode = copy.front_end.features
    monkeypatch.setattr(copy.front_end, "features", watch)
    network(speech(LONG_FOR_THREADS).unsqueeze(0))
    network(speech(16000).unsqueeze(0))
    network(speech(LONG_FOR_THREADS).expand(2, -1))
    assert seen == [2, 1, 1, 1]


def in_mixed_precision(network, *batch):
    with torch.autocast("cpu", torch.bfloat16):
        return network(*batch)


@torch.no_grad()
def test_mixed_precision_reaches_each_thread(set_threads):
    network = build()
    batch = torch.stack([speech(16000, seed) for seed in range(4)])
    exact = network(batch)
    set_threads(1)
    expected = in_mixed_precision(network, batch)
    set_threads(2)
    found = in_mixed_precision(network, batch)
    assert found.dtype == expected.dtype == torch.bfloat16
    assert not torch.equal(found.float(), exact)
    torch.testing.assert_close(found, expected, atol=0.02, rtol=0.02)


def test_inference_mode(runtime, set_threads):
    set_threads(2)
    network = build()
    batch = torch.stack([speech(16000, seed) for seed in range(3)])
    with torch.no_grad():
        expected = network(batch)
    with torch.inference_mode():
        assert torch.equal(network(batch.clone()), expected)


@torch.no_grad()
def test_who_watches_sees_every_operation(runtime):
    network = build()
    waveform = speech(16000).unsqueeze(0)
    network(waveform)
    with FlopCounterMode(display=False) as counter:
        network(waveform)
    assert counter.get_total_flops() > 1e6


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_has_threads_of_its_own(runtime, tmp_path):
    """As a worker of a DataLoader, whose parent has embedded before."""
    program = """if True:
        import os, sys, torch
        torch.set_num_threads(2)
        from redimnet2_lobes.models import folded_copy
        if sys.argv[1] == "torch":
            folded_copy.HAS_ONNX_RUNTIME = False
        from redimnet2_lobes.models.redimnet2 import ReDimNet2
        network = ReDimNet2.from_variant("b0").eval()
        batch = torch.randn(3, 9000, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            expected = network(batch)
            child = os.fork()
            if child == 0:
                torch.set_num_threads(1)
                found = network(batch)
                os._exit(not torch.allclose(found, expected, atol=1e-5))
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    subprocess.run(
        [sys.executable, "-c", program, runtime], check=True, timeout=300
    )
