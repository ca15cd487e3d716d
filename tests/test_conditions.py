"""Conditions: what they do to waveforms, and a verification under them."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import scipy.signal
import soundfile
import speaker_verification_conditions as script
import torch
from synthetic_voices import synthetic_utterance
from test_verification import small_network

from redimnet2_lobes.data import conditions
from redimnet2_lobes.data.augment import Chain, Noise, Step
from redimnet2_lobes.data.conditions import (
    CODECS,
    BandLimit,
    Codec,
    ColouredNoise,
    Condition,
    Excerpt,
    SyntheticRoom,
)
from redimnet2_lobes.inference import embedding_cache
from redimnet2_lobes.inference.embedding_cache import extract_embeddings
from redimnet2_lobes.pretrained.model_folder import write_model_folder
from redimnet2_lobes.recipe.command_line import main_with_one_line_errors
from redimnet2_lobes.scoring import conditions as scoring
from redimnet2_lobes.scoring.metrics import EER

HPARAMS = Path(__file__).parent.parent / "hparams" / "conditions_redimnet2.yaml"
RATE = 16000

BIT_RATES = {"opus": (12, 24), "mp3": (16, 32)}
CODED = [
    Codec(name, kilobits)
    for name in CODECS
    for kilobits in BIT_RATES.get(name, (None,))
]
KEEPING_LENGTH = [
    *CODED,
    BandLimit(300, 3400),
    ColouredNoise(10),
    ColouredNoise(0, "white"),
    SyntheticRoom(0.6),
]


def described(step):
    return " ".join([type(step).__name__, *map(str, vars(step).values())])


def speech(seconds=2.0, seed=1):
    return torch.from_numpy(synthetic_utterance(seed, seed, seconds))


def draw(seed=1):
    return np.random.default_rng(seed)


def power_between(waveform, lowest, highest):
    frequency, power = scipy.signal.welch(waveform.numpy(), RATE, nperseg=2048)
    return power[(frequency >= lowest) & (frequency < highest)].sum()


@pytest.mark.parametrize("step", KEEPING_LENGTH, ids=described)
@pytest.mark.parametrize("samples", [400, 8001, 33333])
def test_length_is_kept_and_the_input_untouched(step, samples):
    waveform = speech(3.0)[:samples]
    before = waveform.clone()
    changed = step(waveform, draw())
    assert changed.shape == waveform.shape
    assert changed.dtype == torch.float32
    assert changed.isfinite().all()
    assert torch.equal(waveform, before)
    assert not torch.equal(changed, waveform)
    assert torch.equal(changed, step(waveform, draw()))


@pytest.mark.parametrize("step", KEEPING_LENGTH, ids=described)
@pytest.mark.parametrize("samples", [16001, 40000])
def test_nothing_is_delayed(step, samples):
    waveform = speech(3.0)[:samples]
    changed = step(waveform, draw())
    correlation = scipy.signal.correlate(changed.numpy(), waveform.numpy())
    assert correlation.argmax() == samples - 1


@pytest.mark.parametrize("codec", CODED, ids=described)
def test_codecs_keep_most_of_the_speech(codec):
    # What they may keep at all.
    highest = CODECS[codec.name].rate / 2 - 600
    waveform = BandLimit(100, highest)(speech(3.0), draw())
    changed = codec(waveform, draw())
    error = (changed - waveform).norm() / waveform.norm()
    assert 0.001 < error < 0.7


@pytest.mark.parametrize(
    "step",
    [Codec("alaw"), Codec("mulaw"), Codec("gsm"), BandLimit(300, 3400)],
    ids=described,
)
def test_narrow_bands(step):
    noise = torch.from_numpy(draw().normal(0, 0.1, 64000).astype(np.float32))
    changed = step(noise, draw())
    within = power_between(noise, 500, 3000)
    assert power_between(changed, 500, 3000) > 0.2 * within
    assert power_between(changed, 4200, 8001) < 1e-3 * within
    if isinstance(step, BandLimit):
        assert power_between(changed, 500, 3000) == pytest.approx(within, 0.01)
        # What the window of the measurement lets through.
        assert power_between(changed, 3500, 8001) < 1e-5 * within
        assert power_between(changed, 0, 230) < 1e-5 * within


def test_g711_is_that_of_the_standard():
    """Of ITU-T G.711: quantized values of 13 (A) and 14 bits (mu)."""
    waveform = speech(1.0)
    for name, bits in (("alaw", 13), ("mulaw", 14)):
        codec = Codec(name)
        decoded = codec._decode(codec.encode(waveform))
        steps = decoded * 2 ** (bits - 1)
        assert np.array_equal(steps, np.round(steps))
        assert len(np.unique(decoded)) <= 256


@pytest.mark.parametrize("name, kilobits", [("opus", 16), ("mp3", 32)])
def test_bit_rates_are_near_those_asked_for(name, kilobits):
    codec = Codec(name, kilobits)
    bits = 8 * len(codec.encode(speech(20.0)))
    assert bits / 20 == pytest.approx(1000 * kilobits, rel=0.25)


def test_fewer_bits_are_worse():
    waveform = speech(3.0)
    for name in BIT_RATES:
        errors = [
            (Codec(name, kilobits)(waveform, draw()) - waveform).norm()
            for kilobits in (64, 32, 16)
        ]
        assert errors == sorted(errors)


def test_loud_speech_is_clipped():
    waveform = 4 * speech() / speech().abs().max()
    changed = Codec("alaw")(waveform, draw())
    # Resampling overshoots at the corners.
    assert 0.9 < changed.abs().max() < 2


@pytest.mark.parametrize("colour", ["pink", "white"])
@pytest.mark.parametrize("snr", [-3, 0, 5.5, 20])
def test_the_ratio_of_noise_is_the_one_asked_for(colour, snr):
    waveform = speech()
    noise = ColouredNoise(snr, colour)(waveform, draw()) - waveform
    ratio = 20 * torch.log10(waveform.norm() / noise.norm())
    assert ratio.item() == pytest.approx(snr, abs=0.1)


def test_noise_has_its_colour():
    silence = torch.zeros(RATE * 20)
    silence[0] = 100.0
    for colour, ratio in (("white", 2), ("pink", 1)):
        noise = ColouredNoise(0, colour)(silence, draw())[1:]
        octaves = [
            power_between(noise, lowest, 2 * lowest)
            for lowest in (125, 250, 500, 1000, 2000, 4000)
        ]
        for lower, upper in itertools.pairwise(octaves):
            assert upper / lower == pytest.approx(ratio, rel=0.25)


@pytest.mark.parametrize("rt60", [0.3, 0.6, 1.0])
def test_rooms_have_their_reverberation_time(rt60):
    """By Schroeder's integration, of the fall from -5 to -25 dB."""
    room = SyntheticRoom(rt60)
    for seed in range(5):
        response = room.impulse_response(draw(seed)).double()
        energy = response.square().flip(0).cumsum(0).flip(0)
        level = 10 * torch.log10(energy / energy[0])
        part = (level < -5) & (level > -25)
        time = torch.arange(len(level))[part] / RATE
        slope, _ = np.polyfit(time.numpy(), level[part].numpy(), 1)
        assert -60 / slope == pytest.approx(rt60, rel=0.1)
        # At the critical distance.
        direct = response[0].square().item()
        others = response[1:].square().sum().item()
        assert direct == pytest.approx(others, rel=0.01)


def test_an_excerpt_is_a_part_of_its_length():
    waveform = torch.arange(RATE * 3).float()
    starts = set()
    for seed in range(20):
        excerpt = Excerpt(1.5)(waveform, draw(seed))
        assert len(excerpt) == 24000
        assert torch.equal(excerpt, torch.arange(24000) + excerpt[0])
        starts.add(excerpt[0].item())
    assert len(starts) > 15
    for shorter in (waveform[:24000], waveform[:999]):
        assert torch.equal(Excerpt(1.5)(shorter, draw()), shorter)


@pytest.mark.parametrize(
    "make, error",
    [
        (lambda: Codec("g729"), "name: 'g729' is no codec; there are alaw, "),
        (lambda: Codec("opus"), "kilobits must be a number from 6 to 256, got"),
        (lambda: Codec("mp3", 999), "kilobits must be a number from 8 to 160"),
        (lambda: Codec("gsm", 13), "kilobits: gsm has one rate only"),
        (lambda: Excerpt(0), "seconds must be a number from 0.025"),
        (lambda: Excerpt("long"), "seconds must be a number from 0.025"),
        (lambda: BandLimit(0, 3400), "lowest must be a number from 50"),
        (lambda: BandLimit(3400, 300), "highest must be a number from 3400"),
        (lambda: ColouredNoise("loud"), "snr must be a number from -100"),
        (lambda: ColouredNoise(5, "red"), "colour: 'red' is neither pink nor"),
        (lambda: SyntheticRoom(0), "rt60 must be a number greater than 0"),
        (lambda: SyntheticRoom(60), "rt60 must be a number from 0 to 10"),
    ],
)
def test_wrong_settings(make, error):
    with pytest.raises(ValueError) as raised:
        make()
    assert str(raised.value).startswith(error)
    assert "\n" not in str(raised.value)


def test_a_codec_that_libsndfile_lacks(monkeypatch):
    monkeypatch.setattr(soundfile, "available_subtypes", lambda format: {})
    with pytest.raises(ValueError, match="this libsndfile has no opus; inst"):
        Codec("opus", 12)


def test_choices_follow_from_seed_and_name():
    waveform = speech()
    condition = Condition(ColouredNoise(5), seed=1)
    noisy = condition("a", waveform)
    condition("b", waveform)
    assert torch.equal(noisy, condition("a", waveform))
    assert torch.equal(noisy, Condition(ColouredNoise(5), 1)("a", waveform))
    for other in (
        condition("b", waveform),
        Condition(ColouredNoise(5), 2)("a", waveform),
    ):
        assert not torch.equal(noisy, other)
    # The same noise at another ratio.
    louder = Condition(ColouredNoise(-5), 1)("a", waveform)
    noises = [each - waveform for each in (noisy, louder)]
    torch.testing.assert_close(
        noises[0] * 10**0.5, noises[1], rtol=1e-3, atol=1e-5
    )


def test_settings_tell_all_that_matters(noise_corpora, tmp_path):
    folder = tmp_path / "musan" / "noise"
    folder.mkdir(parents=True)
    soundfile.write(folder / "a.wav", draw().uniform(-1, 1, 4000), RATE)
    musan = str(tmp_path / "musan")

    def settings(step, seed=1):
        return json.dumps(Condition(step, seed).settings())

    def of_noise(level=5):
        return settings(Noise(musan, {"noise": [level, level]}))

    found = [
        settings(Excerpt(1.0)),
        settings(Excerpt(2.0)),
        settings(Excerpt(1.0), seed=2),
        settings(Chain([Excerpt(1.0)], [1.0])),
        settings(Chain([Excerpt(1.0), Codec("gsm")], [1.0, 1.0])),
        settings(Codec("opus", 12)),
        settings(Codec("opus", 24)),
        of_noise(),
        of_noise(0),
    ]
    assert len(set(found)) == len(found)
    assert found[0] == settings(Excerpt(1.0))
    assert found[-2] == of_noise()
    assert str(tmp_path) not in "".join(found)
    # Another noise.
    soundfile.write(folder / "b.wav", draw().uniform(-1, 1, 4000), RATE)
    assert found[-2] != of_noise()

    class Odd(Step):
        def __init__(self):
            self.filter = torch.nn.Identity()

    with pytest.raises(ValueError, match="Odd: its settings cannot be told"):
        settings(Odd())


@pytest.fixture
def utterances(tmp_path):
    paths = {}
    for index in range(5):
        path = tmp_path / f"{index}.wav"
        soundfile.write(path, speech(0.4 + 0.2 * (index % 3), index), RATE)
        paths[f"speaker/{index}"] = str(path)
    # Two names of one file.
    paths["speaker/again"] = paths["speaker/3"]
    return paths


def moments(wavs, wav_lens):
    """In place of a network, one that no batch matters to."""
    samples = (wav_lens * wavs.shape[1]).round().long()
    return torch.stack(
        [
            torch.stack([wav[0], wav[n // 2], wav[n - 1]])
            for wav, n in zip(wavs, samples, strict=True)
        ]
    ).unsqueeze(1)


def test_no_order_batch_or_part_matters(utterances, tmp_path):
    condition = Condition(
        Chain([Excerpt(0.3), ColouredNoise(5)], [1.0, 1.0]), seed=3
    )

    def embed(utterances, **settings):
        folder = tmp_path / f"cache{len(list(tmp_path.iterdir()))}"
        return extract_embeddings(
            moments, utterances, folder, "1", condition=condition, **settings
        )

    first = embed(utterances)
    for other in (
        embed(dict(reversed(utterances.items()))),
        embed(utterances, seconds_per_batch=0.1),
        embed(utterances, utterances_per_part=1),
    ):
        rows = other.rows(first.names)
        assert torch.equal(other.vectors[rows], first.vectors)
    assert first.seconds.tolist() == pytest.approx([0.3] * 6)
    for row, (name, path) in enumerate(utterances.items()):
        name = {"speaker/again": "speaker/3"}.get(name, name)
        waveform = torch.from_numpy(soundfile.read(path, dtype="float32")[0])
        changed = condition(name, waveform)
        expected = moments(changed[None], torch.ones(1)).flatten()
        assert torch.equal(first.vectors[row], expected)


def test_caches_of_conditions_never_meet(utterances, tmp_path):
    count = 0

    def network(wavs, wav_lens):
        nonlocal count
        count += len(wavs)
        return moments(wavs, wav_lens)

    def embedded(condition):
        nonlocal count
        count = 0
        extract_embeddings(
            network, utterances, tmp_path / "cache", "1", condition=condition
        )
        return count

    steps = [None, Excerpt(0.2), Excerpt(0.3), ColouredNoise(5)]
    conditions = [step and Condition(step, 1) for step in steps]
    conditions.append(Condition(Excerpt(0.2), 2))
    assert [embedded(each) for each in conditions] == [5] * 5
    assert [embedded(each) for each in conditions] == [0] * 5


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Four voices, three utterances each of 0.8 to 1.6 s, and all pairs."""
    folder = tmp_path_factory.mktemp("corpus")
    names = []
    for speaker, utterance in itertools.product(range(4), range(3)):
        name = f"id{speaker}/x/{utterance}.wav"
        (folder / "wav" / name).parent.mkdir(parents=True, exist_ok=True)
        waveform = synthetic_utterance(
            speaker, utterance, 0.8 + 0.4 * utterance
        )
        soundfile.write(folder / "wav" / name, waveform, RATE)
        names.append(name)
    (folder / "trials.txt").write_text(
        "".join(
            f"{int(a[:3] == b[:3])} {a} {b}\n"
            for a, b in itertools.combinations(names, 2)
        )
    )
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "small"
    write_model_folder(folder, small_network(), "A small network")
    return folder


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    original = scoring.bootstrap
    monkeypatch.setattr(
        scoring,
        "bootstrap",
        lambda *arguments, **options: original(
            *arguments, **{"resamples": 20, **options}
        ),
    )


FEW = """\
conditions:
    1 s: !new:redimnet2_lobes.Excerpt
        seconds: 1.0
    GSM: !new:redimnet2_lobes.Codec
        name: gsm
    far away: !new:redimnet2_lobes.Chain
        steps:
            - !new:redimnet2_lobes.SyntheticRoom {rt60: 0.3}
            - !new:redimnet2_lobes.ColouredNoise {snr: 10}
        probabilities: [1.0, 1.0]
"""


@pytest.fixture
def verify(corpus, model, tmp_path):
    """Runs the script with a few conditions in place of the shipped ones."""

    def run(*options, conditions=FEW):
        text = HPARAMS.read_text()
        start = text.index("\nconditions:") + 1
        stop = text.index("\n# The folder of MUSAN")
        hparams = tmp_path / "hparams.yaml"
        hparams.write_text(text[:start] + conditions + text[stop:])
        if not any(each.startswith("--verification_file") for each in options):
            options = (*options, f"--verification_file={corpus}/trials.txt")
        script.main(
            [
                str(hparams),
                f"--data_folder={corpus}",
                f"--checkpoint={model}",
                f"--output_folder={tmp_path}/out",
                "--device=cpu",
                *options,
            ]
        )
        return json.loads((tmp_path / "out" / "conditions.json").read_text())

    return run


def rows_of(content):
    return {row["condition"]: row for row in content["results"]}


def test_a_verification_under_conditions(verify, tmp_path, capsys):
    content = verify()
    rows = rows_of(content)
    assert list(rows) == ["clean", "1 s", "GSM", "far away"]
    assert content["apply_to"] == "test"
    assert content["checkpoint"] == "small"
    assert str(tmp_path) not in json.dumps(content)
    for row in rows.values():
        assert row["trials"] == 66
        for key in ("eer_percent", "min_dcf_0.01", "min_dcf_0.05"):
            low, high = row[f"{key}_interval"]
            assert low <= row[key] <= high or low == pytest.approx(row[key], 2)
        assert row["clean_threshold"] == rows["clean"]["clean_threshold"]
    clean = rows["clean"]
    far = clean["far_percent_at_clean_threshold"]
    frr = clean["frr_percent_at_clean_threshold"]
    assert (far + frr) / 2 == pytest.approx(clean["eer_percent"], abs=5)
    assert rows["GSM"]["settings"] == {
        "seed": 1,
        "redimnet2_lobes.data.conditions.Codec": {
            "name": "gsm",
            "kilobits": None,
            "libsndfile": soundfile.__libsndfile_version__,
        },
    }
    # Of each voice the utterance of 0.8 s; the first is never a test.
    assert rows["1 s"]["test_utterances"] == 11
    assert rows["1 s"]["shorter_than_wanted"] == 3
    assert rows["1 s"]["mean_test_seconds"] < clean["mean_test_seconds"]
    printed = capsys.readouterr().out
    assert "1 s: 3 of the 11 test utterances have less" in printed
    text = (tmp_path / "out" / "conditions.txt").read_text()
    assert text in printed
    assert "resamples over 4 speakers" in text
    assert all(line.count("[") == 2 for line in text.splitlines()[1:5])
    table = (tmp_path / "out" / "conditions.md").read_text()
    assert len(table.splitlines()) == 2 + 4
    for name in ("duration.png", "conditions.png"):
        assert (tmp_path / "out" / "trials" / name).stat().st_size > 5000


def test_scores_are_of_changed_tests_and_clean_enrolments(
    verify, monkeypatch, tmp_path
):
    arms = {}
    original = script.score_arm

    def watched(trial_list, name, condition, enrolled, tested):
        arm = original(trial_list, name, condition, enrolled, tested)
        arms[name] = arm, enrolled, tested
        return arm

    monkeypatch.setattr(script, "score_arm", watched)
    for options in ([], ["--apply_to=both"]):
        arms.clear()
        rows = rows_of(verify(*options))
        clean = arms["clean"][1]
        for name, (arm, enrolled, tested) in arms.items():
            assert (enrolled is clean) == (not options or name == "clean")
            scores = torch.stack(
                [
                    torch.cosine_similarity(
                        enrolled.vectors[enrolled.rows([a])],
                        tested.vectors[tested.rows([b])],
                    )[0]
                    for _, a, b in arm.trial_list.trials
                ]
            )
            torch.testing.assert_close(arm.scores, scores)
            labels = arm.trial_list.labels
            eer, _ = EER(arm.scores[labels], arm.scores[~labels])
            # Of rates that are equally close there may be two.
            near = pytest.approx(100 * eer, abs=5)
            assert rows[name]["eer_percent"] == near
            above = arm.scores > rows["clean"]["clean_threshold"]
            assert rows[name][
                "far_percent_at_clean_threshold"
            ] == pytest.approx(100 * above[~labels].float().mean().item())
            assert rows[name][
                "frr_percent_at_clean_threshold"
            ] == pytest.approx(100 * (~above[labels]).float().mean().item())


def test_a_second_run_embeds_nothing(verify, monkeypatch):
    first = verify()

    def refuse(*arguments):
        raise AssertionError("embedded again")

    with monkeypatch.context() as patched:
        patched.setattr(embedding_cache, "load_source", refuse)
        assert verify() == first
    changed = FEW.replace("seconds: 1.0", "seconds: 0.5")
    loaded = []
    original = embedding_cache.load_source
    monkeypatch.setattr(
        embedding_cache,
        "load_source",
        lambda source: loaded.append(source) or original(source),
    )
    second = rows_of(verify(conditions=changed))
    # Of the changed condition only.
    assert len(loaded) == 11
    for name, row in rows_of(first).items():
        assert (second[name] == row) == (name != "1 s")


def test_intervals_are_null_where_speakers_cannot_be_told(
    verify, corpus, tmp_path
):
    names = [f"id{speaker}/x/0.wav" for speaker in range(3)]
    # a is b and c, which are not each other: a wrong list, but a list.
    trials = tmp_path / "odd.txt"
    trials.write_text(
        "1 {0} {1}\n1 {0} {2}\n0 {1} {2}\n0 {2} {0}\n".format(*names)
    )
    for row in verify(f"--verification_file={trials}")["results"]:
        assert row["eer_percent_interval"] is None
        assert 0 <= row["eer_percent"] <= 100
    assert "[" not in (tmp_path / "out" / "conditions.txt").read_text()


def test_intervals_are_null_of_two_speakers(verify, corpus, tmp_path):
    lines = (corpus / "trials.txt").read_text().splitlines()
    few = [line for line in lines if "id2/" not in line and "id3/" not in line]
    (tmp_path / "few.txt").write_text("\n".join(few))
    for row in verify(f"--verification_file={tmp_path}/few.txt")["results"]:
        assert row["speakers"] == 2 and row["eer_percent_interval"] is None
    text = (tmp_path / "out" / "conditions.txt").read_text()
    assert text.endswith("No intervals of few: 2 speakers are too few.\n")


def test_speakers_of_the_training_are_told(verify, monkeypatch, capsys):
    original = script.load_encoder

    def trained(*arguments):
        encoder = original(*arguments)
        return encoder._replace(speakers=frozenset({"id0", "id3", "other"}))

    monkeypatch.setattr(script, "load_encoder", trained)
    verify()
    assert (
        "warning  2 of the 4 speakers were in the training"
        in capsys.readouterr().out
    )


def test_recordings_of_noises_and_rooms(verify, noise_corpora):
    rows = rows_of(
        verify(*(f"--{key}={path}" for key, path in noise_corpora.items()))
    )
    assert {"MUSAN noise 5 dB", "MUSAN babble 10 dB", "RIRS_NOISES"} < set(rows)


@pytest.mark.parametrize(
    "options, conditions, error",
    [
        (["--apply_to=enrolment"], FEW, "apply_to: unknown value 'enrolment'"),
        (["--seed=-1"], FEW, "seed: -1 is less than 0"),
        (["--seed=1.5"], FEW, "seed: expected a whole number, not 1.5"),
        ([], "conditions: {}\n", "conditions: there are none; name at least"),
        ([], "conditions:\n    a: 3\n", "conditions: a is 3, no step; write"),
        (
            [],
            FEW.replace("GSM:", "clean:"),
            "conditions: clean is what speech without a condition is called",
        ),
        (
            [],
            FEW.replace("GSM:", "GSM | far:"),
            "conditions: 'GSM | far' would break the table; leave out |",
        ),
        (
            [],
            FEW.replace("GSM:", '"G\\nSM":'),
            "conditions: 'G\\nSM' would break the table; leave out |",
        ),
        (
            [],
            FEW.replace("name: gsm", "name: evs"),
            "conditions: name: 'evs' is no codec; there are alaw, mulaw, gsm",
        ),
        (["--musan_folder=none"], FEW, "musan_folder: none has no folder"),
        (["--rirs_folder=none"], FEW, "rirs_folder: none has no folder"),
        (["--verification_file=no.txt"], FEW, "verification_file: no file no"),
    ],
)
def test_wrong_values_are_one_line(
    verify, monkeypatch, options, conditions, error
):
    monkeypatch.setattr("sys.argv", ["script", *options])
    with pytest.raises(SystemExit) as end:
        main_with_one_line_errors(
            lambda arguments: verify(*arguments, conditions=conditions)
        )
    assert str(end.value).startswith(f"error: {error}")
    assert "\n" not in str(end.value)


def test_shipped_conditions_are_distinct():
    """All can be built, and no two are the same."""
    from redimnet2_lobes.recipe.hparams import build_hparam

    steps = build_hparam(HPARAMS, "conditions")
    found = script.prepare(steps, 1)
    described = {json.dumps(each.settings()) for each in found.values()}
    assert len(described) == len(found) == 24
    assert conditions.CODECS.keys() == {
        step.name for step in steps.values() if isinstance(step, Codec)
    }
