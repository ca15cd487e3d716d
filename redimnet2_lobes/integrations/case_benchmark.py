r"""The protocols of the CASE Benchmark (``case-benchmark``), run on our models.

    python -m redimnet2_lobes.integrations.case_benchmark \
        MODEL BENCHMARK RESULTS.json [PROTOCOL ...]

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch

from redimnet2_lobes.door import load
from redimnet2_lobes.files.error_lines import one_line_errors
from redimnet2_lobes.inference.encode import encode_utterances
from redimnet2_lobes.models.front_end import WINDOW
from redimnet2_lobes.models.tiles import keep_freed_memory

try:
    from case_benchmark.evaluate import (  # pyright: ignore[reportMissingImports]
        BenchmarkResults,
        CASEBenchmark,
    )
    from case_benchmark.models.base import (  # pyright: ignore[reportMissingImports]
        EmbeddingModel,
    )
    from case_benchmark.utils import (  # pyright: ignore[reportMissingImports]
        load_trials,
    )
except ImportError as error:
    raise ImportError(
        "to run its protocols, install case-benchmark as "
        f"docs/case_benchmark.md says ({error})"
    ) from None


class SpeakerEncoder(EmbeddingModel):
    """A model of this project, as the benchmark wants one.

    Arguments
    ---------
    source
        What ``redimnet2_lobes.load`` takes: a model folder, the name of a
        published checkpoint or of a model on the hub, a .onnx file.

    Example
    -------
    >>> from redimnet2_lobes.models.redimnet2 import ReDimNet2
    >>> from redimnet2_lobes.pretrained.model_folder import write_model_folder
    >>> folder = getfixture("tmp_path") / "model"
    >>> network = ReDimNet2.from_variant("b0").eval()
    >>> write_model_folder(folder, network, "An example")
    >>> model = SpeakerEncoder(folder)
    >>> model.load()
    >>> model.embedding_dim
    192
    """

    def __init__(self, source: str | os.PathLike) -> None:
        super().__init__()
        self.source = os.fspath(source)
        self._embeddings: dict[str, np.ndarray] = {}

    def load(self, device: str = "cpu") -> None:
        """Loads the model, with the errors of ``redimnet2_lobes.load``."""
        self._encoder = load(self.source, {"device": device})
        keep_freed_memory()
        shortest = self._encoder.encode_batch(torch.zeros(1, WINDOW))
        self._dimension = shortest.shape[-1]
        self._device = device
        self._loaded = True

    def embed(self, paths: Iterable[str | os.PathLike]) -> None:
        """Embeds files in batches, for ``extract_embedding`` to give.

        It is an AudioError if one of them cannot be used.
        """
        wanted = [os.fspath(path) for path in paths]
        found = encode_utterances(
            self._encoder.encode_batch,
            [path for path in wanted if path not in self._embeddings],
        )
        for path, embedding in found.items():
            self._embeddings[path] = embedding.numpy()

    def extract_embedding(self, audio_path: str | os.PathLike) -> np.ndarray:
        """The embedding of a file [embedding]."""
        self.embed([audio_path])
        return self._embeddings[os.fspath(audio_path)]

    @property
    def embedding_dim(self) -> int:
        """How many values an embedding has."""
        return self._dimension

    @property
    def name(self) -> str:
        """The source, which results are filed under."""
        return self.source


def evaluate(
    model: SpeakerEncoder,
    benchmark_dir: str | os.PathLike,
    protocols: Sequence[str] | None = None,
    device: str = "cpu",
) -> BenchmarkResults:
    """Runs protocols of the benchmark by its own code.

    All files that the trials name are embedded first, in batches. The benchmark
    itself would embed them one by one, and leave out trials whose files are
    missing or damaged without a word.

    Arguments
    ---------
    model
        It is loaded if it has not been yet.
    benchmark_dir
        The folder that ``case-benchmark download`` fills.
    protocols
        Such as ``clean_clean``; None runs all.
    device
        Where the model computes: ``cpu`` or ``cuda``.

    Raises
    ------
    ValueError
        If there is no such protocol or none at all, or a trial list holds no
        trial.
    AudioError
        If a file is missing, or cannot be used.
    FileNotFoundError
        If the folder has no trial lists.
    """
    benchmark = CASEBenchmark(benchmark_dir, device)
    known = benchmark.list_protocols()
    if not known:
        raise ValueError(f"{benchmark.trials_dir}: no trial list (.txt) in it")
    if unknown := sorted(set(protocols or []) - set(known)):
        raise ValueError(
            f"{unknown[0]}: no protocol of {benchmark.trials_dir}, which has "
            f"{', '.join(known)}"
        )
    files = set()
    for protocol in protocols or known:
        path = benchmark.trials_dir / f"{protocol}.txt"
        enrolments, tests, _ = load_trials(path)
        if not enrolments:
            raise ValueError(
                f"{path}: no trial; expected lines of the form 'label enrol "
                "test'"
            )
        files.update(enrolments, tests)
    if not model.is_loaded:
        model.load(device)
    model.embed(Path(benchmark_dir) / name for name in sorted(files))
    return benchmark.evaluate(
        model, list(protocols or known), show_progress=False
    )


def main(arguments: list[str]) -> None:
    """Evaluates a model, prints the figures and writes them as JSON."""
    if len(arguments) < 3:
        raise ValueError(
            "expected MODEL BENCHMARK RESULTS.json and, to run some of them "
            "only, protocols"
        )
    source, benchmark_dir, path, *protocols = arguments
    results = evaluate(SpeakerEncoder(source), benchmark_dir, protocols or None)
    results.print_summary()
    results.save(path)


if __name__ == "__main__":
    with one_line_errors():
        main(sys.argv[1:])
