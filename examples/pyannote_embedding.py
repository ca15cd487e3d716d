"""ReDimNet2 as the speaker embedding of a pyannote.audio pipeline.

    pip install pyannote.audio==4.0.7
    python pyannote_embedding.py redimnet2_b3 meeting.wav segmentation

prints who speaks when. The first argument is a model folder, the last a
segmentation model of pyannote.audio: a folder, a checkpoint or a hub name.

pyannote.audio 4.0 hands SpeechBrain arguments that SpeechBrain 1.1 does not
take, so its wrapper loads no SpeechBrain model. Its pipelines also take a
`Model` in place of a name, and here is one.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import sys

import torch
from pyannote.audio import Model
from pyannote.audio.core.plda import PLDA
from pyannote.audio.pipelines import SpeakerDiarization
from torch.nn.functional import interpolate
from torch.nn.utils.rnn import pad_sequence

from redimnet2_lobes.data.audio import load_waveform
from redimnet2_lobes.models.front_end import SAMPLE_RATE, WINDOW
from redimnet2_lobes.pretrained.loading import load_model


class SpeakerEncoder(Model):
    """The network of a model folder, as a model of pyannote.audio.

    Arguments
    ---------
    folder : str
        A model folder, as for `load_model`.
    """

    def __init__(self, folder):
        super().__init__(sample_rate=SAMPLE_RATE)
        self.network = load_model(folder).mods.embedding_model

    @property
    def dimension(self):
        """Size of the embedding."""
        return self.network.projection.out_features

    def forward(self, waveforms, weights=None):
        """Computes the embeddings of what a mask keeps.

        Arguments
        ---------
        waveforms : torch.Tensor
            Waveforms [batch, 1, time].
        weights : torch.Tensor or None
            For each frame of any rate whether the speaker is heard: above 0.5
            [batch, frames]. None keeps everything.

        Returns
        -------
        torch.Tensor
            Embeddings [batch, embedding]; NaN where less than 25 ms are kept,
            which the clustering leaves out.
        """
        waveforms = waveforms.squeeze(1)
        if weights is None:
            return self.network(waveforms).squeeze(1)
        size = waveforms.shape[1]
        kept = interpolate(weights.unsqueeze(1).float(), size).squeeze(1) > 0.5
        samples = kept.sum(dim=1)
        enough = samples >= WINDOW
        embeddings = waveforms.new_full(
            (len(waveforms), self.dimension), torch.nan
        )
        if enough.any():
            wavs = [
                wav[mask]
                for wav, mask in zip(
                    waveforms[enough], kept[enough], strict=True
                )
            ]
            wavs = pad_sequence(wavs, batch_first=True)
            lengths = samples[enough] / wavs.shape[1]
            embeddings[enough] = self.network(wavs, lengths).squeeze(1)
        return embeddings


class NoPLDA(PLDA):
    """Keeps the pipeline from fetching a PLDA that it would not use."""

    def __init__(self):
        pass


def diarization_pipeline(folder, segmentation):
    """Builds a pipeline that clusters ReDimNet2's embeddings.

    Arguments
    ---------
    folder : str
        A model folder.
    segmentation : str or pyannote.audio.Model
        The segmentation model.

    Returns
    -------
    pyannote.audio.pipelines.SpeakerDiarization
        The pipeline. Tune the threshold, a cosine distance, on your own data.
    """
    pipeline = SpeakerDiarization(
        segmentation=segmentation,
        embedding=SpeakerEncoder(folder),
        embedding_batch_size=16,
        embedding_exclude_overlap=True,
        # The default, VBx, needs a PLDA trained on these embeddings.
        clustering="AgglomerativeClustering",
        plda=NoPLDA(),
    )
    parameters = {
        "segmentation": {"min_duration_off": 0.0},
        "clustering": {
            "method": "centroid",
            "min_cluster_size": 12,
            "threshold": 0.7,
        },
    }
    pipeline.instantiate(parameters)
    return pipeline


def main(folder, audio, segmentation):
    """Prints the turns of a recording: start and end in seconds, speaker."""
    # Read here, since pyannote.audio needs FFmpeg's libraries to read a file.
    waveform = load_waveform(audio).unsqueeze(0)
    pipeline = diarization_pipeline(folder, segmentation)
    output = pipeline({"waveform": waveform, "sample_rate": SAMPLE_RATE})
    turns = output.speaker_diarization.itertracks(yield_label=True)
    for turn, _, speaker in turns:
        print(f"{turn.start:8.2f} {turn.end:8.2f}  {speaker}")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(
            "expected: pyannote_embedding.py MODEL_FOLDER AUDIO SEGMENTATION"
        )
    try:
        main(*sys.argv[1:])
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
