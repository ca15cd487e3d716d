"""Audio files of all formats, alone and in shards."""

import functools
import io

import numpy as np
import soundfile
import torch

from fuzz.inputs import mutated, text
from fuzz.oracle import Target
from redimnet2_lobes.data.audio import AudioError, load_waveform
from redimnet2_lobes.data.crops import RandomCrop
from redimnet2_lobes.inference.encode import load_source
from redimnet2_lobes.inference.long_files import encode_files, read_pieces
from redimnet2_lobes.voices.uploads import decode_upload

FORMATS = (
    *(("WAV", "PCM_16"), ("WAV", "PCM_U8"), ("WAV", "FLOAT")),
    *(("WAV", "IMA_ADPCM"), ("WAV", "GSM610"), ("WAVEX", "PCM_24")),
    *(("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("OGG", "OPUS")),
    *(("MP3", "MPEG_LAYER_III"), ("AIFF", "PCM_16"), ("AIFF", "ULAW")),
    *(("AU", "ULAW"), ("CAF", "PCM_16"), ("CAF", "ALAC_16")),
    *(("W64", "PCM_16"), ("RF64", "PCM_16"), ("NIST", "PCM_16")),
    *(("VOC", "PCM_16"), ("SVX", "PCM_16"), ("IRCAM", "PCM_16")),
    *(("PAF", "PCM_16"), ("MAT5", "PCM_16"), ("SDS", "PCM_16")),
)


@functools.cache
def audio(seconds, rate=16000, channels=1):
    """Noise of some length in each format, by its name."""
    random = np.random.default_rng(0)
    samples = random.uniform(-0.5, 0.5, (round(seconds * rate), channels))
    files = {}
    for kind, subtype in FORMATS:
        content = io.BytesIO()
        # Some know one channel only, or few rates.
        try:
            soundfile.write(
                content, samples, rate, format=kind, subtype=subtype
            )
        except soundfile.LibsndfileError:
            continue
        files[f"{kind} {subtype}"] = content.getvalue()
    return files


def mutations(*sets):
    return mutated([file for files in sets for file in files.values()])


def waveforms():
    return mutations(audio(0.1), audio(0.1, 44100, 2), audio(0.05, 8000))


def check(waveform):
    assert waveform.ndim == 1 and waveform.dtype == torch.float32
    assert len(waveform) >= 400 and waveform.isfinite().all()


def load(path):
    waveform = load_waveform(path)
    check(waveform)


def receive(path):
    try:
        waveform = decode_upload(path.read_bytes(), longest=0.2)
    except AudioError as error:  # it knows no file
        raise AudioError(error.reason, error.remedy, str(path)) from None
    check(waveform)
    assert len(waveform) <= 3300


def moments(wavs, wav_lens):
    """In place of a network."""
    samples = (wav_lens * wavs.shape[1]).round().long()
    rows = [
        torch.stack([wav[:n].mean(), wav[:n].std()])
        for wav, n in zip(wavs, samples, strict=True)
    ]
    return torch.stack(rows).unsqueeze(1)


def embed(path):
    embeddings, pieces = encode_files(moments, [str(path)], 1)
    found = embeddings[str(path)]
    assert found.shape == (2,) and found.isfinite().all()
    whole = load_waveform(path)
    if not pieces:
        lengths = torch.ones(1)
        assert torch.equal(
            found, moments(whole.unsqueeze(0), lengths).flatten()
        )
    else:
        read = list(read_pieces(str(path), 1))
        for piece in read:
            check(piece)
        assert len(read) == pieces[str(path)]
        assert sum(map(len, read)) <= len(whole) + 400


def crop(path):
    crops = RandomCrop(20, [1.0, 0.9])
    for number in range(3):
        waveform, speed = crops(str(path), np.random.default_rng(number))
        assert waveform.shape == (3440,) and speed in (0, 1)
        check(waveform)


# Places in a shard and segments, as lists name them.


def write_sources(folder):
    content = audio(0.1)["WAV PCM_16"]
    (folder / "a.tar").write_bytes(512 * b"\0" + content + content)
    (folder / "a.wav").write_bytes(content)
    (folder / "a.mp3").write_bytes(audio(0.1)["MP3 MPEG_LAYER_III"])


def read_place(path):
    place = path.read_bytes().decode(errors="surrogateescape")
    place = place.replace("\0", "").replace("\n", "")  # as in no list
    check(load_source(f"{path.parent}/a{place}"))


def places():
    size = len(audio(0.1)["WAV PCM_16"])
    return text(
        f".tar:512:{size}",
        f".tar:{512 + size}:{size}",
        ".wav[0:800]",
        ".wav[0.05s:]",
        ".mp3[.01s:5e-2s]",
    )


TARGETS = (
    Target("waveform", "a.wav", waveforms, load),
    Target("upload", "a.wav", waveforms, receive),
    Target("long-file", "a.wav", lambda: mutations(audio(1.3, 8000)), embed),
    Target(
        "crop",
        "a.wav",
        lambda: mutations(audio(0.3), audio(0.1)),
        crop,
    ),
    Target("source", "place.txt", places, read_place, write_sources),
)
