"""Exports a network for sherpa-onnx, which computes features of its own.

> redimnet2 export redimnet2_b3 --for=sherpa-onnx --speech=recordings \
    --output redimnet2_b3.onnx

Of the features that sherpa-onnx offers, those of NeMo's models can be had with
our window and at twice our frame rate, on whose grid our frames lie too: it has
188 narrow filters, of which the graph makes our mel bins, then the network's
embedding. Whoever calls sherpa-onnx has to ``prepare`` the samples. What is
lost is small then, but not nothing, so that the embeddings are a space of their
own, and the file is compared with the network on recordings before it gets its
name.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor
from torchaudio.functional import melscale_fbanks
from tqdm import tqdm

from redimnet2_lobes.data.audio import find_audio, load_waveform
from redimnet2_lobes.data.trial_files import (
    TrialList,
    read_trial_lists,
    trial_speakers,
)
from redimnet2_lobes.files.atomic import complete_or_absent
from redimnet2_lobes.files.same_space import KEY
from redimnet2_lobes.models.embedding_space import embedding_space
from redimnet2_lobes.models.folding import fold
from redimnet2_lobes.models.front_end import (
    FFT_LENGTH,
    HIGHEST_FREQUENCY,
    HOP,
    PRE_EMPHASIS,
    SAMPLE_RATE,
    WINDOW,
    LogMel,
    TorchaudioLogMel,
)
from redimnet2_lobes.models.redimnet2 import ReDimNet2
from redimnet2_lobes.onnx.encoder import SHERPA_INPUT
from redimnet2_lobes.onnx.export import check_new_export, stated, write_model
from redimnet2_lobes.onnx.golden_vector import (
    SECONDS,
    as_json,
    input_by_formula,
)
from redimnet2_lobes.pretrained.provenance import NOT_STATED, Provenance
from redimnet2_lobes.scoring.bootstrap import REPORTED, bootstrap
from redimnet2_lobes.scoring.metrics import EER
from redimnet2_lobes.scoring.operating_point import OperatingPoint
from redimnet2_lobes.scoring.tables import with_interval

if TYPE_CHECKING:
    from onnx import ModelProto
    from onnxruntime import InferenceSession

FILTERS = 188  # with more, some would hold no bin of the spectrum
STRIDE = HOP // 2  # samples
# sherpa-onnx raises lower energies to this one.
FLOOR = float(np.finfo(np.float32).eps)
# What such an energy is taken for, relative to the floor, times the share of
# its frame's energies that are above. So it is on average in quiet recordings,
# whatever the share, and zero in digital silence.
BELOW_FLOOR = 0.27
LEAST_COSINE = 0.99
LONGEST = 60  # seconds of each recording that are measured
# Of samples from -1 to 1, so that energies in speech are above the floor.
SCALE = 2**15

# `length` and `embedding_again` are there because sherpa-onnx counts: it gives
# two inputs, the second of which says what the first shows, and takes the
# second output.
FRONT_END = """
<ir_version: 9, opset_import: ["": 20]>
sherpa_front_end (float[1, FILTERS, frames] sherpa_features, int64[1] length)
    => (float[1, count, MEL_BINS] log_mel)
{
    is_below = LessOrEqual(sherpa_features, log_floor)
    is_above = Not(is_below)
    above = CastLike(is_above, log_floor)
    share = ReduceMean(above, filter_axis)
    below = Mul(share, below_floor)
    above_floor = Exp(sherpa_features)
    energies = Where(is_below, below, above_floor)
    extended = Pad<mode = "edge">(energies, margins)
    at_frames = AveragePool<kernel_shape = [KERNEL], strides = [2]>(extended)
    mel = MatMul(front_end_mel, at_frames)
    power_of_frames = MatMul(front_end_power, energies)
    power = ReduceMean(power_of_frames)
    deviation = Sqrt(power)
    gain = Add(deviation, least_deviation)
    gain_of_power = Mul(gain, gain)
    normalized = Div(mel, gain_of_power)
    floored = Add(normalized, mel_floor)
    log_floored = Log(floored)
    count = Shape<start = 2>(log_floored)
    almost = Add(count, minimum_less_one)
    repeats = Div(almost, count)
    times = Concat<axis = 0>(one, one, repeats)
    repeated = Tile(log_floored, times)
    wanted = Max(count, minimum)
    enough = Slice(repeated, zero, wanted, frame_axis)
    mean = ReduceMean(enough, frame_axis)
    centred = Sub(enough, mean)
    log_mel = Transpose<perm = [0, 2, 1]>(centred)
}
"""


class Accuracy(NamedTuple):
    """How close a file's embeddings come to the network's.

    Cosines between the two of each recording: the median, and what 5 % are
    below. Error rates are in per cent, None without trials, as are intervals
    (95 %) where the speakers of trials cannot be told.

    Example
    -------
    >>> print(Accuracy(120, 0.9978, 0.994))
    cosine to the network's embeddings 0.9978 (median of 120 recordings; 5 % \
are below 0.9940)
    """

    recordings: int
    median: float
    low: float
    eer_percent: float | None = None
    eer_percent_of_network: float = 0.0
    eer_interval: Sequence[float] | None = None
    eer_interval_of_network: Sequence[float] | None = None
    threshold: float | None = None  # where the file has its EER

    def __str__(self) -> str:
        text = (
            f"cosine to the network's embeddings {self.median:.4f} (median of "
            f"{self.recordings} recordings; 5 % are below {self.low:.4f})"
        )
        if self.eer_percent is not None:
            of_network = with_interval(
                self.eer_percent_of_network, self.eer_interval_of_network
            )
            text += (
                f", EER {with_interval(self.eer_percent, self.eer_interval)} % "
                f"at the threshold {self.threshold:.4f} (the network's "
                f"{of_network} %)"
            )
        return text


def export_sherpa(
    network: ReDimNet2,
    path: str | os.PathLike,
    speech: str | os.PathLike,
    trials: str | os.PathLike | None = None,
    int8: bool = False,
    provenance: Provenance = NOT_STATED,
) -> Accuracy:
    """Writes a network as a file that sherpa-onnx loads, and measures it.

    The file is an embedding space of its own: compare its embeddings with one
    another only.

    Arguments
    ---------
    network
        The network in evaluation mode, on the CPU, not folded; it is not
        changed. Its front-end is `LogMel`, or `TorchaudioLogMel` where that
        normalizes waveforms.
    path
        A new file. It is not written, and a ValueError says why, if it exists,
        a package is missing, a recording cannot be used, or the median cosine
        between its embeddings and the network's is below 0.99.
    speech
        A folder with recordings to measure it on, at any depth.
    trials
        A list of trials of them, in a form of `read_trials`, for error rates:
        only the recordings that it names are taken.
    int8
        Whether to store the weights in eight bits, see ``quantization``.
    provenance
        For the metadata, what is stated of it.

    Example
    -------
    >>> import soundfile
    >>> folder = getfixture("tmp_path")
    >>> soundfile.write(folder / "a.wav", input_by_formula([32000]), 16000)
    >>> network = ReDimNet2.from_variant("b0").eval()
    >>> export_sherpa(network, folder / "b0.onnx", folder).median > 0.99
    True
    """
    check_new_export(path)
    _fbank_options()
    front_end = network.front_end
    if not (
        isinstance(front_end, LogMel)
        or (isinstance(front_end, TorchaudioLogMel) and front_end.normalize)
    ):
        raise ValueError(
            f"{path}: nothing was written, since the front-end, "
            f"{type(front_end).__name__}, does not normalize waveforms, or is "
            "not known; export --for=onnx"
        )
    trial_list = None
    if trials is None:
        names = {name: name for name in find_audio(speech).paths}
    else:
        with tempfile.TemporaryDirectory() as unread:  # lists of what lacks
            (trial_list,) = read_trial_lists(
                os.fspath(trials),
                os.fspath(speech),
                unread,
                keys=("trials", "speech"),
            )
        names = trial_list.paths
    from redimnet2_lobes.models.onnx_sessions import OnnxSessions
    from redimnet2_lobes.onnx.quantization import quantize_weights

    model = sherpa_graph(network)
    space = embedding_space(network)
    if int8:
        model = quantize_weights(model)
        space = f"{space}-int8"
    session = OnnxSessions(model.SerializeToString()).session(
        torch.get_num_threads()
    )
    accuracy = _measure(network, session, names, trial_list)
    if not accuracy.median >= LEAST_COSINE:  # or NaN
        raise ValueError(
            f"{path}: nothing was written, since the median cosine to the "
            f"network's embeddings is {accuracy.median:.4f}, below "
            f"{LEAST_COSINE}; check the recordings and the weights"
        )
    operating_point = OperatingPoint()
    if trial_list is not None:
        count = f"{len(trial_list.trials):,} trials"
        operating_point = OperatingPoint(
            accuracy.threshold, f"that of the EER on {trial_list.name}, {count}"
        )
    waveform = input_by_formula([1, SECONDS * SAMPLE_RATE])
    known = {
        KEY: f"{space}-sherpa-onnx",
        **stated(operating_point, provenance),
        "prepare": f"samples from -1 to 1 less their mean, times {SCALE}",
        "framework": "nemo",
        "language": "any",
        "output_dim": str(network.projection.out_features),
        "feat_dim": str(FILTERS),
        "window_size_ms": str(1000 * WINDOW // SAMPLE_RATE),
        "window_stride_ms": str(1000 * STRIDE // SAMPLE_RATE),
        "window_type": "hamming",
        "median_cosine": f"{accuracy.median:.4f}",
        "test_waveform_shape": json.dumps(waveform.shape),
        "test_waveform_embedding": as_json(
            _embed(session, prepare(waveform[0]))
        ),
    }
    with complete_or_absent(path) as partial:
        write_model(model, network, partial, known)
    return accuracy


def sherpa_graph(network: ReDimNet2) -> "ModelProto":
    """The graph from sherpa-onnx's features to the embedding.

    Inputs are ``sherpa_features`` [1, 188, frames] and ``length`` [1], int64,
    which is not read; the outputs, ``embedding`` and ``embedding_again``
    [1, embedding], are equal.

    Example
    -------
    >>> model = sherpa_graph(ReDimNet2.from_variant("b0"))
    >>> [value.name for value in model.graph.input]
    ['sherpa_features', 'length']
    """
    from onnx import compose, helper, numpy_helper, parser

    from redimnet2_lobes.models.onnx_graph import write_graph

    folded = fold(network)
    front_end = network.front_end
    ours = isinstance(front_end, LogMel)
    filters = front_end.mel_filters.double().numpy()  # [spectrum, mel bins]
    spectrum = FFT_LENGTH // 2 + 1
    filters = np.pad(filters, ((0, spectrum - len(filters)), (0, 0)))
    sherpa_filters = _sherpa_filters()

    def recombined(weights: np.ndarray) -> np.ndarray:
        """Weights of filters for those of bins of the spectrum."""
        return nnls(sherpa_filters, weights)[0]

    # Frames of `LogMel` start half a hop before every second one of
    # sherpa-onnx's, those of `TorchaudioLogMel` in the middle between two. At
    # the ends, where there is none, stands the outermost.
    kernel, margin = (1, 1) if ours else (2, 3)
    mel_floor = np.full(front_end.mel_bins, 1e-6)
    if ours:
        mel_floor = np.maximum(1e-8 * filters.sum(0), 1e-8) + 1e-8
    with torch.no_grad():
        shortest = torch.zeros(1, network.minimum_samples)
        minimum = front_end(shortest)[0].shape[1]
    floats = {
        "log_floor": np.log(FLOOR) + 1e-4,  # of which others are no multiple
        "below_floor": BELOW_FLOOR * FLOOR,
        # Exempt from quantization.
        "front_end_mel": np.stack([recombined(x) for x in filters.T]),
        "front_end_power": recombined(_power_weights())[None],
        "least_deviation": 1e-8 if ours else 1e-6,
        "mel_floor": mel_floor[:, None],
    }
    integers = {
        "filter_axis": [1],
        "frame_axis": [2],
        "margins": [0, 0, margin, 0, 0, margin],
        "minimum": [minimum],
        "minimum_less_one": [minimum - 1],
        "zero": [0],
        "one": [1],
    }
    text = FRONT_END
    for name, value in {
        "FILTERS": FILTERS,
        "MEL_BINS": front_end.mel_bins,
        "KERNEL": kernel,
    }.items():
        text = text.replace(name, str(value))
    model = parser.parse_model(text)
    for values, kind in ((floats, np.float32), (integers, np.int64)):
        model.graph.initializer.extend(
            numpy_helper.from_array(np.array(value, kind), name)
            for name, value in values.items()
        )
    network_graph = write_graph(folded, features=True)
    merged = compose.merge_models(
        model,
        network_graph,
        [("log_mel", network_graph.graph.input[0].name)],
        producer_name=network_graph.producer_name,
    )
    graph = merged.graph
    (embedding,) = graph.output
    again = graph.output.add()
    again.CopyFrom(embedding)
    again.name = f"{embedding.name}_again"
    graph.node.append(
        helper.make_node("Identity", [embedding.name], [again.name])
    )
    return merged


def prepare(waveform: np.ndarray) -> np.ndarray:
    """A waveform [samples] as sherpa-onnx should get it.

    Less its mean, as in the network, which sherpa-onnx does not subtract, and
    2**15 times as loud: sherpa-onnx has a lowest energy, which faint sounds of
    samples from -1 to 1 are below. The gain itself has no effect.

    Example
    -------
    >>> prepare(np.array([0.25, 0.75]))
    array([-8192.,  8192.])
    """
    return SCALE * (waveform - waveform.mean())


def sherpa_features(waveform: np.ndarray) -> np.ndarray:
    """What sherpa-onnx gives to a file of this module [1, 188, frames].

    The waveform [samples] is at 16 kHz. A ValueError says that
    kaldi-native-fbank is missing, which sherpa-onnx computes them with.

    Example
    -------
    >>> sherpa_features(np.zeros(16000)).shape
    (1, 188, 196)
    """
    from kaldi_native_fbank import OnlineFbank

    fbank = OnlineFbank(_fbank_options())
    fbank.accept_waveform(SAMPLE_RATE, waveform.tolist())
    fbank.input_finished()
    frames = [fbank.get_frame(i) for i in range(fbank.num_frames_ready)]
    return np.stack(frames, 1)[None]


def _fbank_options() -> Any:
    """The settings by which sherpa-onnx computes them."""
    try:
        from kaldi_native_fbank import FbankOptions
    except ImportError:
        raise ValueError(
            "--for=sherpa-onnx needs kaldi-native-fbank: pip install "
            "kaldi-native-fbank"
        ) from None
    options = FbankOptions()
    frame, mel = options.frame_opts, options.mel_opts
    frame.dither = 0
    frame.samp_freq = SAMPLE_RATE
    frame.frame_length_ms = 1000 * WINDOW / SAMPLE_RATE
    frame.frame_shift_ms = 1000 * STRIDE / SAMPLE_RATE
    frame.window_type = "hamming"
    frame.preemph_coeff = PRE_EMPHASIS
    frame.remove_dc_offset = False
    mel.num_bins = FILTERS
    mel.low_freq = 0
    mel.high_freq = HIGHEST_FREQUENCY
    mel.is_librosa = True
    return options


def _sherpa_filters() -> np.ndarray:
    """Weights [bins of the spectrum, filters]."""
    return (
        melscale_fbanks(
            FFT_LENGTH // 2 + 1,
            f_min=0.0,
            f_max=HIGHEST_FREQUENCY,
            n_mels=FILTERS,
            sample_rate=SAMPLE_RATE,
            norm="slaney",
            mel_scale="slaney",
        )
        .double()
        .numpy()
    )


def _power_weights() -> np.ndarray:
    """Of bins of the spectrum, whose sum is the power of a waveform.

    Its mean over frames comes close to the variance, as the pre-emphasis is
    undone, and the mean of the waveform, in the lowest bin, is left out.
    """
    frequencies = np.linspace(0, np.pi, FFT_LENGTH // 2 + 1)
    weights = 2 / np.abs(1 - PRE_EMPHASIS * np.exp(-1j * frequencies)) ** 2
    weights[0] = 0
    window = np.hamming(WINDOW)
    return weights / (FFT_LENGTH * (window**2).sum())


def _embed(session: "InferenceSession", waveform: np.ndarray) -> np.ndarray:
    """The embedding [embedding] of a waveform [samples]."""
    features = sherpa_features(waveform)
    length = np.array([features.shape[2]])
    feed = {SHERPA_INPUT: features, "length": length}
    return session.run(["embedding"], feed)[0][0]


@torch.no_grad()
def _measure(
    network: ReDimNet2,
    session: "InferenceSession",
    paths: Mapping[str, str],
    trial_list: TrialList | None,
) -> Accuracy:
    found, exact = [], []
    for path in tqdm(paths.values(), desc="measuring", unit="recording"):
        waveform = load_waveform(path)[: LONGEST * SAMPLE_RATE]
        prepared = prepare(waveform.numpy())
        found.append(torch.from_numpy(_embed(session, prepared)))
        exact.append(network(waveform.unsqueeze(0))[0, 0])
    found, exact = torch.stack(found), torch.stack(exact)
    cosines = torch.cosine_similarity(found, exact)
    low, median = cosines.quantile(torch.tensor([0.05, 0.5])).tolist()
    accuracy = Accuracy(len(paths), median, low)
    if trial_list is None:
        return accuracy
    rows = {name: row for row, name in enumerate(paths)}
    pairs = [[rows[x], rows[y]] for _, x, y in trial_list.trials]
    first, second = torch.tensor(pairs).T
    labels = trial_list.labels
    speakers = trial_speakers(trial_list)

    def equal_error_rate(
        embeddings: Tensor,
    ) -> tuple[float, Sequence[float] | None, float]:
        scores = torch.cosine_similarity(embeddings[first], embeddings[second])
        rate, threshold = EER(scores[labels], scores[~labels])
        limits = None
        if speakers is not None:
            figures = {"eer": REPORTED["eer_percent"]}
            limits = bootstrap(scores, labels, speakers, figures)["eer"][1:]
        return 100 * rate, limits, threshold

    rate, limits, threshold = equal_error_rate(found)
    rate_of_network, limits_of_network, _ = equal_error_rate(exact)
    return accuracy._replace(
        eer_percent=rate,
        eer_percent_of_network=rate_of_network,
        eer_interval=limits,
        eer_interval_of_network=limits_of_network,
        threshold=threshold,
    )
