"""Embeddings by ONNX Runtime, from an exported file.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from redimnet2_lobes.data.audio import LARGEST_SAMPLE, AudioError
from redimnet2_lobes.files.error_lines import one_line
from redimnet2_lobes.files.same_space import KEY
from redimnet2_lobes.files.settings import require_positive
from redimnet2_lobes.inference.encode import check_finite
from redimnet2_lobes.models.lengths import (
    check_not_shorter,
    length_of_each,
    valid_samples,
)
from redimnet2_lobes.models.threads import check_threads, usable_threads
from redimnet2_lobes.scoring.operating_point import OperatingPoint

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

    from redimnet2_lobes.models.onnx_sessions import OnnxSessions

# The input of files for sherpa-onnx.
SHERPA_INPUT = "sherpa_features"


class OnnxEncoder:
    """Runs a file of ``redimnet2_lobes.onnx.export``.

    On the CPU the utterances of a batch run side by side, each on one thread;
    one of 2 s or more that is alone runs on all. Another provider gets them one
    by one. The ``operating_point`` is that of the model folder, if that had the
    results of an evaluation when it was exported, and ``space`` that of its
    embeddings.

    Arguments
    ---------
    path
        A file that takes waveforms. A ValueError says that it is another or
        damaged, or that onnxruntime is missing.
    threads
        Of the CPU, at most one on each core; None for as many as torch may use,
        all by default.
    provider
        What it runs on: cpu, cuda, tensorrt, openvino, directml, coreml or qnn,
        for some with a device, as ``cuda:1``, ``openvino:GPU`` or ``qnn:gpu``.
        A ValueError says that it is missing, does not start, or does not take
        this form of file (see ``providers``). The CPU never takes its place.
    engine_cache
        A folder in which tensorrt, openvino or coreml keeps what it compiles,
        for the next time.

    Example
    -------
    >>> from redimnet2_lobes.onnx.export import export_onnx
    >>> from redimnet2_lobes.models.redimnet2 import ReDimNet2
    >>> path = getfixture("tmp_path") / "b0.onnx"
    >>> _ = export_onnx(ReDimNet2.from_variant("b0").eval(), path)
    >>> encoder = OnnxEncoder(path, threads=1)
    >>> encoder.encode_batch(torch.randn(2, 9000), torch.tensor([1, 0.5])).shape
    torch.Size([2, 1, 192])
    """

    def __init__(
        self,
        path: str | os.PathLike,
        threads: int | None = None,
        provider: str = "cpu",
        engine_cache: str | os.PathLike | None = None,
    ) -> None:
        check_threads(threads)
        self._sessions, known = open_export(path)
        self._session = self._sessions.session(1)
        takes = self._session.get_inputs()[0].name
        if takes == SHERPA_INPUT:
            raise ValueError(
                f"{path}: takes sherpa-onnx's features; export --for=onnx"
            )
        if not takes.startswith("waveform"):
            raise ValueError(
                f"{path}: takes features; export without --features"
            )
        if KEY not in known:
            raise ValueError(
                f"{path}: from before embedding spaces had names; export it "
                "again"
            )
        self.space = known[KEY]
        self.threads = threads
        self.path = path
        self.operating_point = OperatingPoint()
        self.fixed_samples = None
        try:
            self.minimum_samples = int(known["minimum_samples"])
            require_positive("minimum_samples", self.minimum_samples)
            if "fixed_samples" in known:
                self.fixed_samples = int(known["fixed_samples"])
            if "threshold" in known:
                value = float(known["threshold"])
                if not math.isfinite(value):
                    raise ValueError(f"threshold is {value}")
                self.operating_point = OperatingPoint(
                    value, known["threshold_origin"]
                )
        except (LookupError, ValueError) as error:
            raise ValueError(
                f"{path}: its metadata are damaged ({one_line(error)}); export "
                "it again"
            ) from error
        if provider == "cpu":
            if engine_cache is not None:
                raise ValueError(
                    "engine_cache: the CPU keeps nothing; leave it out"
                )
            return
        from redimnet2_lobes.onnx.providers import provider_session

        target = "onnx" if takes == "waveforms" else "plain"
        self._sessions = None  # but for the metadata
        self._session = provider_session(
            Path(path).read_bytes(),
            target if self.fixed_samples is None else "fixed",
            provider,
            usable_threads(threads),
            engine_cache,
        )

    def encode_batch(
        self, wavs: torch.Tensor, wav_lens: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Computes embeddings [batch, 1, embedding].

        As for ``EncoderClassifier.encode_batch``, ``wavs`` are waveforms at
        16 kHz, padded at the end [batch, time], or one [time], and ``wav_lens``
        their lengths relative to ``time`` [batch]. A ValueError says that these
        are others, that an utterance has less than 25 ms, that it or its
        embedding is not finite, or that gradients are wanted, which there are
        none.
        """
        if wavs.requires_grad and torch.is_grad_enabled():
            raise ValueError(
                "wavs: an .onnx file gives no gradients; load the model folder "
                "for them, or pass wavs.detach()"
            )
        if wavs.dim() == 1:  # as EncoderClassifier
            wavs = wavs.unsqueeze(0)
        samples = valid_samples(wavs, wav_lens)
        check_not_shorter(wavs, samples, self.minimum_samples)
        lengths = length_of_each(wavs, samples)
        for length in set(lengths):
            if self.fixed_samples not in (None, length):
                raise ValueError(
                    f"{self.path}: takes utterances of {self.fixed_samples} "
                    f"samples, not {length}; cut or repeat them, or export "
                    "--for=onnx"
                )
        waveforms = wavs.detach().cpu().float()
        for row, length in enumerate(lengths):
            samples = waveforms[row, :length]
            lowest, highest = (x.item() for x in torch.aminmax(samples))
            # Here, since not all providers make NaN of NaN. See data/audio.py.
            if not -LARGEST_SAMPLE <= lowest <= highest <= LARGEST_SAMPLE:
                raise AudioError(
                    "not finite",
                    "it holds NaN, infinite or absurdly large samples, so "
                    "leave it out",
                    f"wavs[{row}]",
                )
        feeds = [
            inputs_by_name(
                self._session,
                waveforms[row : row + 1, :length].numpy(),
                [length],
            )
            for row, length in enumerate(lengths)
        ]
        try:
            if self._sessions is None:
                rows = [self._session.run(None, feed)[0] for feed in feeds]
                embeddings = torch.from_numpy(np.stack(rows))
            else:
                embeddings = self._sessions.run(
                    feeds, lengths, usable_threads(self.threads)
                )
        except Exception as error:
            raise ValueError(
                f"{self.path}: cannot be run ({one_line(error)}); export it "
                "again"
            ) from error
        for row, embedding in enumerate(embeddings):
            check_finite(f"wavs[{row}]", embedding)
        return embeddings


def inputs_by_name(
    session: "InferenceSession", utterances: np.ndarray, lengths: Sequence[int]
) -> dict[str, np.ndarray]:
    """What to run an exported file on; one of one utterance takes no lengths.

    Example
    -------
    >>> from onnxruntime import InferenceSession
    >>> from redimnet2_lobes.models.folding import fold
    >>> from redimnet2_lobes.models.onnx_graph import write_graph
    >>> from redimnet2_lobes.models.redimnet2 import ReDimNet2
    >>> model = write_graph(fold(ReDimNet2.from_variant("b0")))
    >>> session = InferenceSession(model.SerializeToString())
    >>> list(inputs_by_name(session, np.zeros((1, 400), np.float32), [400]))
    ['waveform']
    """
    names = [value.name for value in session.get_inputs()]
    inputs = utterances, np.array(lengths, np.int64)
    return dict(zip(names, inputs[: len(names)], strict=True))


def open_export(
    path: str | os.PathLike,
) -> "tuple[OnnxSessions, dict[str, str]]":
    """A file of ``redimnet2 export``, ready to run, and its metadata.

    A ValueError says that it is another file or damaged, or that onnxruntime is
    missing.

    Example
    -------
    >>> open_export("b3.onnx")
    Traceback (most recent call last):
    ValueError: b3.onnx: no such file
    """
    try:
        from redimnet2_lobes.models.onnx_sessions import OnnxSessions
    except ImportError:
        raise ValueError(
            "to run .onnx files, pip install onnxruntime"
        ) from None
    if not Path(path).is_file():
        raise ValueError(f"{path}: no such file")
    try:
        sessions = OnnxSessions(Path(path).read_bytes())
        known = sessions.session(1).get_modelmeta().custom_metadata_map
    except Exception as error:  # ONNX Runtime raises kinds of its own
        raise ValueError(
            f"{path}: not an ONNX file, or damaged; export it again"
        ) from error
    if known.get("model") != "ReDimNet2":
        raise ValueError(f"{path}: not a file of redimnet2 export")
    return sessions, known
