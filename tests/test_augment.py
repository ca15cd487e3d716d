"""Augmentation: what is drawn how often, and what it does to a waveform."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from redimnet2_lobes.data import augment
from redimnet2_lobes.data.augment import (
    MUSAN_FOLDERS,
    Chain,
    Gain,
    LowPass,
    Noise,
    OneOf,
    Recordings,
    Reverberation,
    low_pass,
    reverberate,
)
from redimnet2_lobes.recipe.hparams import build_hparam

HPARAMS = Path(__file__).parent.parent / "hparams"


def write(path, waveform, rate=16000):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, waveform, rate, subtype="FLOAT")


def build(stage, noise_corpora, **overrides):
    """The augmentation of a shipped configuration."""
    path = HPARAMS / f"redimnet2_b3{stage}.yaml"
    return build_hparam(path, "augment", {**noise_corpora, **overrides})


def speech_like(samples=8000, level=0.01, seed=1):
    waveform = np.random.default_rng(seed).standard_normal(samples)
    waveform = np.convolve(waveform, np.hanning(9), "same")
    waveform *= level / waveform.std()
    return torch.from_numpy(waveform.astype(np.float32))


def decibels(signal, other):
    return (
        10 * torch.log10(signal.square().sum() / other.square().sum())
    ).item()


def assert_share(count, draws, probability):
    """Within four standard deviations of the binomial distribution."""
    deviation = (draws * probability * (1 - probability)) ** 0.5
    assert abs(count - draws * probability) <= 4 * deviation


@pytest.fixture
def steps_taken(monkeypatch):
    """Lists what the functions and the reader do, in order."""
    taken = []

    def watch(owner, name, note):
        original = getattr(owner, name)

        def watched(*arguments, **options):
            taken.append(note(*arguments))
            return original(*arguments, **options)

        monkeypatch.setattr(owner, name, watched)

    for name in ("reverberate", "low_pass"):
        watch(augment, name, lambda *_, name=name: name)
    watch(Recordings, "excerpt", lambda recordings, *_: recordings.part)
    return taken


@pytest.mark.parametrize(
    "stage, probabilities",
    [
        (
            "",
            {
                (): 0.4,
                ("reverberate",): 0.6 * 0.10,
                ("reverberate", "noise"): 0.6 * 0.25,
                ("noise",): 0.6 * 0.65,
            },
        ),
        (
            "_mixture",
            {
                (): 0.1 + 0.9 * 0.2 * 0.8 * 0.75,
                ("noise",): 0.9 * 0.8 * 0.8 * 0.75,
                ("reverberate",): 0.9 * 0.2 * 0.2 * 0.75,
                ("low_pass",): 0.9 * 0.2 * 0.8 * 0.25,
                ("noise", "reverberate"): 0.9 * 0.8 * 0.2 * 0.75,
                ("noise", "low_pass"): 0.9 * 0.8 * 0.8 * 0.25,
                ("reverberate", "low_pass"): 0.9 * 0.2 * 0.2 * 0.25,
                ("noise", "reverberate", "low_pass"): 0.9 * 0.8 * 0.2 * 0.25,
            },
        ),
    ],
)
def test_how_often_each_step_is_taken(
    noise_corpora, steps_taken, stage, probabilities
):
    chain = build(stage, noise_corpora)
    clean = speech_like(400)
    random = np.random.default_rng(1)
    draws = 3000
    orders, kinds = Counter(), Counter()
    for _ in range(draws):
        steps_taken.clear()
        chain(clean, random)
        read = [step for step in steps_taken if step in MUSAN_FOLDERS]
        order = ["noise" if step in read else step for step in steps_taken]
        orders[tuple(dict.fromkeys(order))] += 1
        if read:
            kinds[read[0], len(read)] += 1
    assert set(orders) == set(probabilities)
    for order, probability in probabilities.items():
        assert_share(orders[order], draws, probability)
    voices = {kinds["speech", count] for count in range(3, 7)}
    expected = {("noise", 1), ("music", 1), ("speech", 1)}
    if stage == "_mixture":
        expected.remove(("speech", 1))
    noisy = kinds.total()
    for kind in expected:
        assert_share(kinds[kind], noisy, 1 / (len(expected) + 1))
    for count in voices:
        assert_share(count, noisy, 1 / (len(expected) + 1) / 4)
    assert len(kinds) == len(expected) + 4


@pytest.mark.parametrize("kind", ["noise", "music", "speech", "babble"])
@pytest.mark.parametrize("reverberated", [False, True])
def test_noise_ratios(noise_corpora, monkeypatch, kind, reverberated):
    """Against the speech as it is after reverberation."""
    wet = []

    def remember(*arguments):
        wet.append(reverberate(*arguments))
        return wet[-1]

    monkeypatch.setattr(augment, "reverberate", remember)
    noise = Noise(noise_corpora["musan_folder"], {kind: [5.0, 15.0]})
    room = Reverberation(noise_corpora["rirs_folder"])
    chain = Chain([room, noise], [float(reverberated), 1.0])
    clean = speech_like(2000)
    random = np.random.default_rng(2)
    ratios = []
    for _ in range(400):
        wet[:] = [clean]
        noisy = chain(clean, random)
        ratios.append(decibels(wet[-1], noisy - wet[-1]))
    assert 4.99 < min(ratios) < 5.2 and 14.8 < max(ratios) < 15.01
    # Uniform: the mean has a standard deviation of 10 / sqrt(12 * 400).
    assert np.mean(ratios) == pytest.approx(10, abs=0.6)


@pytest.mark.parametrize("samples", [6640, 32240])
def test_noise_rounds_the_same_everywhere(samples):
    """In a loader's worker or not, and wherever it lies in memory."""
    pair = torch.randn(2, samples, generator=torch.Generator().manual_seed(1))
    threads = torch.get_num_threads()
    noisy = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            for offset in range(16):
                moved = torch.cat([torch.zeros(2, offset), pair], 1)
                speech, noise = (each[offset:] for each in moved)
                noisy.append(augment.add_noise(speech, noise, snr=10.0))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(noisy[0], other) for other in noisy)


def test_impulse_responses_have_unit_energy(noise_corpora):
    room = Reverberation(noise_corpora["rirs_folder"])
    impulse = torch.zeros(24000)
    impulse[1000] = 0.5
    random = np.random.default_rng(1)
    wet = [room(impulse, random) for _ in range(40)]
    assert len({waveform[1000].item() for waveform in wet}) == 6  # files
    for waveform in wet:
        assert waveform.square().sum() == pytest.approx(0.25, rel=1e-5)


@pytest.mark.parametrize("taps", [1, 7, 999, 1000, 1001, 30000])
def test_reverberation_keeps_length_and_delay(taps):
    random = np.random.default_rng(1)
    clean = speech_like(1000)
    room = torch.from_numpy(random.standard_normal(taps).astype(np.float32))
    expected = np.convolve(clean.double(), room.double() / room.double().norm())
    found = reverberate(clean, room)
    assert found.shape == (1000,) and found.dtype == torch.float32
    assert found.numpy() == pytest.approx(expected[:1000], abs=1e-6)


def test_gain_range_and_full_scale():
    gain = Gain([-18.0, 6.0])
    clean = speech_like(1600, level=0.1)
    clean *= 0.5 / clean.abs().max()
    random = np.random.default_rng(1)
    outputs = [gain(clean, random) for _ in range(1000)]
    gains = [decibels(output, clean) for output in outputs]
    assert -18.01 < min(gains) < -17.8 and 5.8 < max(gains) < 6.01
    assert np.mean(gains) == pytest.approx(-6, abs=0.9)
    for seed in range(20):
        loud = gain(40 * clean, np.random.default_rng(seed))
        assert loud.abs().max() <= 1
        assert decibels(loud - loud.norm() / clean.norm() * clean, loud) < -80


def test_full_scale_is_never_exceeded(noise_corpora):
    chain = build("", noise_corpora)
    clean = speech_like(1600, level=0.4)
    random = np.random.default_rng(1)
    peaks = [chain(clean, random).abs().max().item() for _ in range(500)]
    assert max(peaks) <= 1 and sum(peak > 0.999 for peak in peaks) > 100


@pytest.mark.parametrize("samples", [16000, 15999])
def test_low_pass(samples):
    clean = torch.zeros(samples)
    clean[100] = 1.0  # all frequencies alike
    filtered = low_pass(clean, cutoff=0.6, transition=0.08)
    assert filtered.shape == clean.shape and filtered.dtype == torch.float32
    gain = torch.fft.rfft(filtered).abs() / torch.fft.rfft(clean).abs()
    frequency = torch.fft.rfftfreq(samples, 1 / 16000)
    assert gain[frequency < 4480] == pytest.approx(1, abs=1e-5)
    assert gain[frequency > 5120].max() < 1e-5
    middle = (frequency - 4800).abs().argmin()
    assert gain[middle].item() == pytest.approx(0.5, abs=1e-2)
    # A cosine is steepest in its middle: pi / 2 over 640 Hz, in steps of 1 Hz.
    steps = gain[(frequency > 4470) & (frequency < 5130)].diff()
    assert steps.max() < 1e-5
    assert steps.min() == pytest.approx(-torch.pi / 2 / 640, rel=0.01)


@pytest.mark.parametrize("stage", ["", "_mixture"])
def test_the_generator_decides_everything(noise_corpora, stage):
    chains = [build(stage, noise_corpora) for _ in range(2)]
    clean = speech_like(4000)
    outputs = [
        [chain(clean, np.random.default_rng(seed)) for seed in range(30)]
        for chain in chains
    ]
    for one, other in zip(*outputs, strict=True):
        assert one.shape == clean.shape and one.dtype == torch.float32
        assert one.isfinite().all() and torch.equal(one, other)
    assert len({output[2000].item() for output in outputs[0]}) > 20
    assert torch.equal(clean, speech_like(4000))  # not changed in place


def test_only_the_needed_part_is_read(tmp_path, monkeypatch):
    ramp = np.arange(160000) / 160000
    write(tmp_path / "noise" / "ramp.wav", ramp)
    recordings = Recordings("musan_folder", tmp_path, "noise")
    read = []
    original = soundfile.SoundFile.read

    def counting_read(file, *arguments, **options):
        waveform = original(file, *arguments, **options)
        read.append(len(waveform))
        return waveform

    monkeypatch.setattr(soundfile.SoundFile, "read", counting_read)
    starts = []
    random = np.random.default_rng(1)
    for _ in range(100):
        excerpt = recordings.excerpt(8000, random)
        starts.append(round(excerpt[0].item() * 160000))
        expected = (starts[-1] + torch.arange(8000)) / 160000
        assert torch.allclose(excerpt, expected)
    assert set(read) == {8000}
    assert min(starts) < 8000 and max(starts) > 144000
    # The whole of it has one place, and is repeated where more is needed.
    whole = recordings.excerpt(160000, random)
    assert torch.allclose(whole, torch.arange(160000) / 160000)
    repeated = recordings.excerpt(400001, random)
    assert torch.equal(repeated[:160000], whole)
    assert torch.equal(repeated[160000:320000], whole)
    assert torch.equal(repeated[:80001], repeated[320000:])


def test_silent_noise_and_silent_speech(tmp_path):
    write(tmp_path / "noise" / "silent.wav", np.zeros(16000))
    write(tmp_path / "noise" / "empty.wav", np.zeros(0))
    write(tmp_path / "noise" / "faint.wav", np.full(8000, 1e-18))
    write(tmp_path / "music" / "music.wav", np.full(8000, 0.5))
    noise = Noise(tmp_path, {"noise": [0, 15], "music": [5, 15]})
    random = np.random.default_rng(1)
    for clean in (speech_like(), torch.zeros(8000)):
        for _ in range(20):
            noisy = noise(clean, random)
            assert noisy.isfinite().all()
            assert noisy.norm() <= 2 * clean.norm()


def test_files_are_listed_once(tmp_path, monkeypatch):
    write(tmp_path / "musan" / "noise" / "a.wav", np.full(800, 0.1))
    write(tmp_path / "rirs" / "simulated_rirs" / "a.wav", np.ones(1))
    noise = Noise(tmp_path / "musan", {"noise": [0, 15]})
    room = Reverberation(tmp_path / "rirs")
    chain = Chain([OneOf([noise, room], [0.5, 0.5]), Gain()], [1.0, 1.0])
    chain.check()
    monkeypatch.setattr("os.scandir", None)
    chain.check()
    for seed in range(8):
        chain(speech_like(), np.random.default_rng(seed))


@pytest.mark.parametrize(
    "step, name, waveform, rate, message",
    [
        (
            "noise",
            "stereo",
            np.zeros((9, 2)),
            16000,
            r"2 channel\(s\) at 16000 Hz",
        ),
        ("room", "fast", np.ones(9), 44100, "at 44100 Hz; convert"),
        ("room", "silent", np.zeros(9), 16000, "silent; remove it"),
        ("noise", "text", None, None, "unreadable (.*); remove it, or make "),
    ],
)
def test_bad_files_are_named(tmp_path, step, name, waveform, rate, message):
    part = {"noise": "noise", "room": "simulated_rirs"}[step]
    path = tmp_path / part / f"{name}.wav"
    if waveform is None:
        path.parent.mkdir()
        path.write_text("no audio")
    else:
        write(path, waveform, rate)
    step = {
        "noise": Noise(tmp_path, {"noise": [0, 15]}),
        "room": Reverberation(tmp_path),
    }[step]
    step.check()
    with pytest.raises(ValueError, match=message) as failure:
        step(speech_like(), np.random.default_rng(1))
    assert str(failure.value).startswith(f"{path}: ")
    assert "\n" not in str(failure.value)


def test_missing_folders_are_named(tmp_path):
    snr = {"music": [5, 15], "babble": [13, 20]}
    (tmp_path / "music").mkdir()
    with pytest.raises(
        ValueError,
        match=f"musan_folder: {tmp_path} has no audio in music/; .*noises",
    ):
        Noise(tmp_path, snr).check()
    write(tmp_path / "music" / "a.wav", np.zeros(9))
    with pytest.raises(
        ValueError, match=f"musan_folder: {tmp_path} has no folder speech/; "
    ):
        Noise(tmp_path, snr).check()
    chain = Chain([OneOf([Reverberation(tmp_path)], [1.0])], [0.0])
    with pytest.raises(ValueError, match="rirs_folder: .* simulated_rirs/; "):
        chain.check()


@pytest.mark.parametrize(
    "build_step, message",
    [
        (lambda: Gain([1]), r"gain: \[1\]"),
        (lambda: Gain([6, -18]), r"gain: \[6, -18\]"),
        (lambda: Noise("", {"noise": [10, 5]}), r"snr of noise: \[10, 5\]"),
        (lambda: Noise("", {"rain": [5, 10]}), r"snr: \['rain'\]"),
        (lambda: Noise("", {}), r"snr: {}"),
        (lambda: LowPass(cutoff=0.99), "cutoff: 0.99"),
        (lambda: Chain([Gain()], [1.5]), r"probabilities: \[1.5\]"),
        (lambda: Chain([Gain()], []), r"probabilities: \[\] must be 1 num"),
        (lambda: OneOf([Gain(), Gain()], [0.5, 0.4]), "shares: .* sum to 1"),
        (lambda: OneOf([Gain()], [0.5, 0.5]), "shares: .* must be 1 num"),
        (lambda: OneOf([Gain(), Gain()], [1.5, -0.5]), "shares: .* from 0"),
    ],
)
def test_wrong_values_name_the_key(build_step, message):
    with pytest.raises(ValueError, match=message):
        build_step()


def test_noises_by_any_ending_and_through_links(tmp_path):
    music = tmp_path / "music"
    write(music / "a.WAV", np.full(800, 0.1))
    write(music / "._a.wav", np.full(800, 0.2))
    (tmp_path / "elsewhere").mkdir()
    soundfile.write(tmp_path / "elsewhere/b.flac", np.full(800, 0.3), 16000)
    (music / "loop").symlink_to(".")
    (music / "more").symlink_to(tmp_path / "elsewhere")
    (music / "README").write_text("text")
    recordings = Recordings("musan_folder", tmp_path, "music")
    found = {
        round(recordings.whole(np.random.default_rng(seed))[0].item(), 1)
        for seed in range(20)
    }
    assert found == {0.1, 0.3}
    (music / "c.m4a").write_bytes(b"audio")
    with pytest.raises(ValueError, match="c.m4a is in a format .*; convert"):
        Recordings("musan_folder", tmp_path, "music").check()
