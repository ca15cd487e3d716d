"""An ONNX graph in ONNX Runtime: utterances side by side, or a long one on all.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import contextlib
import functools
from collections.abc import Mapping, Sequence

import numpy as np
import onnxruntime
import torch

from redimnet2_lobes.models.front_end import SAMPLE_RATE
from redimnet2_lobes.models.threads import side_by_side

# From so many samples on, threads gain more on an utterance than they cost.
LONG_FOR_THREADS = 2 * SAMPLE_RATE
# From so many on, memory that an utterance has needed is given back.
LONG_FOR_MEMORY = 20 * SAMPLE_RATE
# Bytes of address space for the maps of a graph. Only what is used of it
# becomes memory (on Linux), and in one piece they fit closer than in many.
RESERVED = 1 << 30
# Free pieces larger than what is wanted by so many bytes are split.
LEFT_OVER = 1 << 20

Feed = Mapping[str, np.ndarray]


class OnnxSessions:
    """Runs a graph on the CPU, any number of utterances at a time.

    A session has a number of threads for good, so that there is one for single
    utterances and one for several, each made at its first use. ``model`` are
    the bytes of the file. What ONNX Runtime raises passes through, here for
    what is no graph.

    Example
    -------
    >>> from redimnet2_lobes.models.folding import fold
    >>> from redimnet2_lobes.models.onnx_graph import write_graph
    >>> from redimnet2_lobes.models.redimnet2 import ReDimNet2
    >>> graph = write_graph(fold(ReDimNet2.from_variant("b0")))
    >>> sessions = OnnxSessions(graph.SerializeToString())
    >>> feeds = [{"waveform": np.ones((1, n), np.float32)} for n in (400, 900)]
    >>> sessions.run(feeds, [400, 900], threads=2).shape
    torch.Size([2, 1, 192])
    """

    def __init__(self, model: bytes) -> None:
        self._model = model
        self._sessions: dict[int, onnxruntime.InferenceSession] = {}
        # Memory is reserved in the size registered once it was given back.
        self._give_back = True
        self.session(1)

    def session(self, threads: int) -> onnxruntime.InferenceSession:
        """The session of a number of threads."""
        if threads not in self._sessions:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = threads
            # What waits for work leaves the core to others. Beside busy
            # processes that is 1.6 times as fast, alone hardly slower.
            options.add_session_config_entry(
                "session.intra_op.allow_spinning", "0"
            )
            # Or else every new length keeps a block of memory of its own.
            options.enable_mem_pattern = False
            _register_memory()
            options.add_session_config_entry("session.use_env_allocators", "1")
            self._sessions[threads] = onnxruntime.InferenceSession(
                self._model, options, providers=["CPUExecutionProvider"]
            )
        return self._sessions[threads]

    def run(
        self, feeds: Sequence[Feed], samples: Sequence[int], threads: int
    ) -> torch.Tensor:
        """Embeddings [batch, 1, embedding]: the first output for each feed.

        A feed is an utterance of so many samples.

        Several run side by side on so many threads at most, each on one; a
        single one runs on all, unless it is short.
        """
        alone = len(feeds) == 1
        inside = threads if alone and samples[0] >= LONG_FOR_THREADS else 1
        session = self.session(inside)

        def run(position: int) -> torch.Tensor:
            options = onnxruntime.RunOptions()
            if self._give_back or samples[position] >= LONG_FOR_MEMORY:
                self._give_back = False
                options.add_run_config_entry(
                    "memory.enable_memory_arena_shrinkage", "cpu:0"
                )
            outputs = session.run(None, feeds[position], options)
            # A copy, or else an embedding that somebody keeps would keep the
            # memory that it lies in.
            return torch.from_numpy(outputs[0].copy())

        if alone:
            return run(0).unsqueeze(0)
        # The longest first, so that no thread is left alone with it.
        order = sorted(range(len(feeds)), key=lambda i: -samples[i])
        outputs = dict(
            zip(order, side_by_side(run, order, threads), strict=True)
        )
        return torch.stack([outputs[i] for i in range(len(feeds))])


@functools.cache
def _register_memory() -> None:
    """The memory of all sessions here, in place of one for each.

    A session's own is doubled whenever it ends, by more than is needed.
    """
    memory = onnxruntime.OrtMemoryInfo(
        "Cpu",
        onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR,
        0,
        onnxruntime.OrtMemType.DEFAULT,
    )
    settings = {
        "initial_growth_chunk_size_bytes": RESERVED,
        "max_power_of_two_extend_bytes": RESERVED,
        "max_dead_bytes_per_chunk": LEFT_OVER,
    }
    # What the program around has registered before is as good.
    with contextlib.suppress(RuntimeError):
        onnxruntime.create_and_register_allocator(
            memory, onnxruntime.OrtArenaCfg(settings)
        )
