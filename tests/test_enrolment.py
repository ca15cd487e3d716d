"""Enrolment: what is taken, what is refused and why, and what is kept."""

import gc
import json
import math
import shutil
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
from synthetic_voices import synthetic_utterance
from test_cli import small_network

from redimnet2_lobes.cli import main
from redimnet2_lobes.cli.encoder import Loaded
from redimnet2_lobes.data.audio import AudioError
from redimnet2_lobes.data.speech import at_usual_level
from redimnet2_lobes.models.front_end import SAMPLE_RATE
from redimnet2_lobes.pretrained.model_folder import write_model_folder
from redimnet2_lobes.scoring.bootstrap import Interval
from redimnet2_lobes.scoring.operating_point import OperatingPoint
from redimnet2_lobes.scoring.operating_points import (
    find_operating_points,
    to_json,
)
from redimnet2_lobes.scoring.own_trials import score_all
from redimnet2_lobes.voices.enrolment import (
    ANOTHER_VOICE,
    CLIPPED,
    ENOUGH_SECONDS,
    LONGEST_SECONDS,
    NO_SPEECH,
    REMEDIES,
    TOO_LITTLE,
    TOO_NOISY,
    Enrolment,
    Progress,
    at_eer,
)
from redimnet2_lobes.voices.store import VoiceStore

enrol_module = sys.modules["redimnet2_lobes.cli.enrol"]

VOICES = 4
# For three recordings of each voice.
OPTIONS = "--seconds=9", "--threshold=0.8"


def spoken(voice, seconds=4.0, utterance=1, silence=0.0):
    """Speech with pauses, and a faint tone by which the encoder knows it."""
    speech = synthetic_utterance(voice, utterance, seconds)
    speech = torch.from_numpy(speech)
    speech = 0.5 * speech / speech.abs().max()
    parts = []
    for part in speech.split(SAMPLE_RATE):
        parts += [part, torch.zeros(SAMPLE_RATE // 4)]
    speech = torch.cat([*parts, torch.zeros(round(silence * SAMPLE_RATE))])
    time = torch.arange(len(speech)) / SAMPLE_RATE
    tone = torch.sin(2 * math.pi * frequency_of(voice) * time)
    return speech + 0.002 * tone


def frequency_of(voice):
    return 7000 + 200 * voice


def encode_batch(wavs, wav_lens):
    """How loud the tone of each voice is."""
    time = torch.arange(wavs.shape[1]) / SAMPLE_RATE
    rows = [
        torch.exp(2j * math.pi * frequency_of(voice) * time)
        for voice in range(VOICES)
    ]
    return (wavs.to(torch.complex64) @ torch.stack(rows).T).abs().unsqueeze(1)


def enrolment_of(**options):
    return Enrolment(encode_batch, **{"seconds": 9, "limit": 0.8, **options})


def voices_of(enrolment):
    return enrolment.prototypes.argmax(1).tolist()


def test_it_fills_up_as_somebody_speaks():
    enrolment = enrolment_of()
    percents = [0]
    for chunk in spoken(0, 12.0).split(1600):
        progress = enrolment.feed(chunk)
        assert progress.problem is None
        percents.append(progress.percent)
    assert percents == sorted(percents)
    assert percents[-1] == 100 and len({*percents}) > 3
    assert voices_of(enrolment) == [0] * len(enrolment.seconds)
    assert sum(enrolment.seconds) >= 9


@pytest.mark.parametrize("speech_only", [True, False])
def test_chunks_make_no_difference(speech_only):
    audio = torch.cat([spoken(0, 4.0, silence=5), spoken(1, 3.5)])
    whole = enrolment_of(speech_only=speech_only)
    end = whole.add(audio)
    assert len(whole.pieces) > 1
    for seed, largest in enumerate((300, 3000, 30000, 100000)):
        random = np.random.default_rng(seed)
        chunked = enrolment_of(speech_only=speech_only)
        start = 0
        while start < len(audio):
            size = random.integers(largest)  # 0 as well
            chunk = audio[start : start + size]
            chunked.feed(chunk.numpy() if seed % 2 else chunk)
            start += size
        assert chunked.finish() == end
        assert chunked.pieces == whole.pieces
        assert torch.equal(chunked.prototypes, whole.prototypes)


def test_nobody_speaks():
    enrolment = enrolment_of()
    second = torch.zeros(SAMPLE_RATE)
    problems = [enrolment.feed(second).problem for _ in range(4)]
    assert problems == [None, None, NO_SPEECH, NO_SPEECH]
    assert enrolment.finish() == Progress(0, NO_SPEECH)
    noise = 0.1 * torch.randn(
        30 * SAMPLE_RATE, generator=torch.Generator().manual_seed(1)
    )
    assert enrolment.add(noise) == Progress(0, NO_SPEECH)
    assert {piece.problem for piece in enrolment.pieces} == {NO_SPEECH}
    with pytest.raises(ValueError, match="nothing is enrolled yet"):
        _ = enrolment.prototypes
    # Then somebody does.
    assert enrolment.add(spoken(0)).problem is None
    assert voices_of(enrolment) == [0]


def test_digital_silence_that_is_taken_for_speech():
    enrolment = enrolment_of(speech_only=False)
    assert enrolment.add(torch.zeros(80000)).problem == NO_SPEECH


def test_too_little_speech():
    enrolment = enrolment_of()
    assert enrolment.add(spoken(0, 1.0)) == Progress(0, TOO_LITTLE)
    # In a stream: a word every ten seconds.
    word = spoken(0, 0.8, silence=LONGEST_SECONDS)
    assert enrolment.feed(word).problem == TOO_LITTLE
    # The rest of an utterance that was taken is no problem.
    enrolment = enrolment_of()
    progress = enrolment.add(spoken(0, 4.0))
    assert progress.problem is None
    assert len(enrolment.pieces) == 1


def test_clipped():
    audio = spoken(0)
    level = audio.abs().quantile(0.8).item()
    enrolment = enrolment_of()
    assert enrolment.add(audio.clamp(-level, level)) == Progress(0, CLIPPED)
    assert enrolment.pieces[0].quality.clipped > 0.05
    # Speech that is good again is no longer called clipped.
    assert enrolment.feed(spoken(0)[:60000]).problem is None


def test_too_noisy():
    audio = spoken(0)
    noise = torch.randn(len(audio), generator=torch.Generator().manual_seed(1))
    enrolment = enrolment_of()
    progress = enrolment.add(audio + audio.std() * noise)
    assert progress == Progress(0, TOO_NOISY)


def test_another_voice_never_gets_into_the_profile():
    """Neither at once, nor by speaking often, once two prototypes agree."""
    enrolment = enrolment_of(seconds=30)
    enrolment.add(spoken(0))
    enrolment.add(spoken(0, utterance=2))
    before = enrolment.progress.percent
    for utterance in range(4):
        progress = enrolment.add(spoken(1, utterance=utterance))
        assert progress == Progress(before, ANOTHER_VOICE)
    assert voices_of(enrolment) == [0, 0]
    # Nor has it moved the voice: what is compared with is as before.
    assert enrolment.add(spoken(0, utterance=3)).problem is None
    assert voices_of(enrolment) == [0, 0, 0]
    assert len(enrolment.prototypes) == len(enrolment.seconds)


@pytest.mark.parametrize(
    ("order", "taken"),
    [
        ([1, 0, 0], [0, 0]),  # two against the first
        ([1, 0, 0, 1], [0, 0]),
        ([0, 1, 0, 1, 1], [0, 0]),  # two agree before the others do
        ([1, 0, 2, 0, 0], [0, 0]),
        ([0, 1, 2, 3], [0]),  # nobody agrees with anybody
    ],
)
def test_the_first_may_be_the_outlier(order, taken):
    enrolment = enrolment_of(seconds=30)
    for utterance, voice in enumerate(order):
        enrolment.add(spoken(voice, utterance=utterance))
    assert voices_of(enrolment) == taken
    kept = [piece.problem is None for piece in enrolment.pieces]
    assert sum(kept) == len(taken) == len(enrolment.seconds)
    assert all(
        piece.problem in (None, ANOTHER_VOICE) for piece in enrolment.pieces
    )
    by_figures = [
        voice for voice, good in zip(order, kept, strict=True) if good
    ]
    assert by_figures == taken


def test_known_prototypes_never_give_way():
    known = encode_batch(spoken(0)[None], torch.ones(1))[0]
    enrolment = enrolment_of(known=known, known_seconds=6.0)
    for utterance in range(3):
        progress = enrolment.add(spoken(1, utterance=utterance))
        assert progress == Progress(66, ANOTHER_VOICE)
    assert enrolment.add(spoken(0)).percent == 100
    assert voices_of(enrolment) == [0]


def test_more_of_another_voice_than_was_taken():
    enrolment = enrolment_of(seconds=30)
    assert not enrolment.is_mostly_others  # of nobody
    for voice in (0, 0, 1, 1, 1):
        enrolment.add(spoken(voice))
        others = sum(
            piece.quality.speech_seconds
            for piece in enrolment.pieces
            if piece.problem
        )
        assert enrolment.seconds_of_others == others
        taken = sum(enrolment.seconds)
        assert enrolment.is_mostly_others == (others > taken)
    assert others > taken


def test_quiet_speech_is_heard_when_it_is_louder():
    """What the documentation advises for streams."""
    quiet = spoken(0) / 3000
    assert enrolment_of().add(quiet).problem == NO_SPEECH
    assert enrolment_of().add(at_usual_level(quiet)).problem is None


def tensors_within(thing, seen):
    """All tensors and arrays that an object holds, at any depth."""
    if id(thing) in seen or isinstance(thing, type):
        return
    seen.add(id(thing))
    if isinstance(thing, torch.Tensor | np.ndarray):
        yield thing
        return
    for inner in gc.get_referents(thing):
        if not callable(inner) and inner is not sys.modules:
            yield from tensors_within(inner, seen)


def bytes_of(tensor):
    """Of what a tensor keeps alive, which a view does not show."""
    if isinstance(tensor, torch.Tensor):
        return tensor.untyped_storage().nbytes()
    base = tensor.base
    return (base if isinstance(base, np.ndarray) else tensor).nbytes


def test_no_audio_is_kept():
    enrolment = enrolment_of(seconds=100)
    longest = 0
    for _ in range(2):
        enrolment.feed(torch.cat([spoken(0, 10.0, silence=9.0)] * 2))
        sizes = [bytes_of(t) for t in tensors_within(vars(enrolment), set())]
        longest = max(longest, sum(sizes))
    # A piece, what is searched for speech, and embeddings.
    assert 0 < longest < 2 * 4 * LONGEST_SECONDS * SAMPLE_RATE
    enrolment.finish()
    sizes = [bytes_of(t) for t in tensors_within(vars(enrolment), set())]
    assert len(sizes) > len(enrolment.seconds) > 5
    assert max(sizes) <= 4 * 256  # an embedding, the state of the detector


@pytest.mark.parametrize(
    ("chunk", "words"),
    [
        (torch.zeros(2, 100), r"not torch.float32 \[2, 100\]; mix its"),
        (np.zeros(100, np.int16), "divide 16-bit integers by 32768"),
        (torch.tensor([0.0, math.nan]), "not finite"),
        (torch.tensor([0.0, -1e30]), "absurdly large"),
        (np.array([0.0, 1e300]), "absurdly large"),
    ],
)
def test_chunks_that_are_no_audio(chunk, words):
    enrolment = enrolment_of()
    enrolment.feed(spoken(0)[:20000])
    with pytest.raises(ValueError, match=words):
        enrolment.feed(chunk)
    # It goes on as if the chunk had not been.
    enrolment.feed(spoken(0)[20000:])
    undisturbed = enrolment_of()
    undisturbed.feed(spoken(0))
    assert enrolment.finish() == undisturbed.finish()
    assert torch.equal(enrolment.prototypes, undisturbed.prototypes)


def test_a_network_that_gives_nan():
    enrolment = Enrolment(lambda wavs, wav_lens: wavs[:, None, :2] * math.nan)
    with pytest.raises(AudioError, match="embedding is not finite"):
        enrolment.add(spoken(0))


@pytest.mark.parametrize(
    ("options", "words"),
    [({"seconds": 0}, "seconds must be"), ({"limit": 2}, "limit must be")],
)
def test_settings_that_make_no_sense(options, words):
    with pytest.raises(ValueError, match=words):
        enrolment_of(**options)


def test_each_problem_has_a_remedy():
    problems = {NO_SPEECH, TOO_LITTLE, CLIPPED, TOO_NOISY, ANOTHER_VOICE}
    assert problems == REMEDIES.keys()


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """Three recordings of each voice, in a folder of its own."""
    folder = tmp_path_factory.mktemp("recordings")
    for voice, name in enumerate(("anna", "bea", "carl")):
        (folder / name).mkdir()
        for utterance in range(3):
            audio = spoken(voice, 4.0, utterance, silence=1.0)
            path = folder / name / f"{utterance}.wav"
            soundfile.write(path, audio.numpy(), SAMPLE_RATE)
    return folder


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A store that is not there yet; the model is the encoder above."""

    class Encoder:
        encode_batch = staticmethod(encode_batch)

    loaded = Loaded("model", Encoder(), "tones")
    monkeypatch.setattr(enrol_module, "load_encoder", lambda _: loaded)
    return tmp_path / "voices.sqlite"


@pytest.fixture
def refusal_of(capsys):
    """Runs a command that leaves something out: stdout, lines of stderr."""

    def run(*arguments):
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main(["enrol", *OPTIONS, *map(str, arguments)])
        captured = capsys.readouterr()
        lines = captured.err.splitlines()
        if isinstance(caught.value.code, str):  # which Python prints
            return captured.out, [*lines, caught.value.code]
        assert caught.value.code == 1
        return captured.out, lines

    return run


def enrol(run, *arguments):
    return run("enrol", *OPTIONS, *arguments)


def content_of(store):
    with VoiceStore(store, "tones") as voices:
        return {
            name: voices.prototypes(name).argmax(1).tolist()
            for name in voices.names()
        }


def test_a_folder_is_enrolled(run, recordings, store, capsys):
    text = enrol(
        *(run, "anna", recordings / "anna", f"--store={store}"),
        "--consent=form 17",
    )
    *lines, threshold, last = text.splitlines()
    assert threshold == "threshold  0.8000 (given by --threshold)"
    assert [line.split(": ")[0] for line in lines] == [
        str(recordings / "anna" / f"{utterance}.wav") for utterance in range(3)
    ]
    assert all(line.endswith(" s of speech in 6.0 s") for line in lines)
    assert last.startswith("enrolled  anna: 100 %, ")
    assert last.endswith(f" s of speech in 3 prototypes; {store}")
    assert content_of(store) == {"anna": [0, 0, 0]}
    with VoiceStore(store, "tones") as voices:
        (voice,) = voices.voices()
    assert voice.consent == "form 17"
    assert voice.seconds >= 9


def test_what_it_prints_for_programs(run, recordings, store):
    found = json.loads(
        enrol(run, "anna", recordings / "anna", f"--store={store}", "--json")
    )
    files = found.pop("files")
    assert found.pop("speech_seconds") == pytest.approx(
        sum(row["taken_seconds"] for row in files)
    )
    assert found == {
        "name": "anna",
        "percent": 100,
        "prototypes": 3,
        "threshold": 0.8,
        "threshold_origin": "given by --threshold",
        "embedding_space": "tones",
        "left_out": [],
    }
    assert [row["name"] for row in files] == [
        str(recordings / "anna" / f"{utterance}.wav") for utterance in range(3)
    ]
    for row in files:
        assert row["seconds"] == 6.0
        assert 3 <= row["taken_seconds"] < 4
        assert row["refused_seconds"] == 0 and row["problems"] == []


def test_a_wrong_recording_does_not_pollute(recordings, store, refusal_of):
    """In any place among the others; it is named."""
    anna = [recordings / "anna" / f"{number}.wav" for number in range(3)]
    wrong = recordings / "bea" / "0.wav"
    for place in range(4):
        files = [*anna[:place], wrong, *anna[place:]]
        text, (line,) = refusal_of(f"anna{place}", *files, f"--store={store}")
        assert text.splitlines()[-1].startswith(f"enrolled  anna{place}: 100")
        assert str(wrong) not in text
        assert line.startswith(f"left out: {wrong}: another voice than before")
        assert content_of(store).pop(f"anna{place}") == [0, 0, 0]
        store.unlink()
    text, (line,) = refusal_of("anna", *files, f"--store={store}", "--strict")
    assert text == "" and not store.exists()
    assert line.startswith(f"error: {wrong}: another voice than before; ")


def test_two_voices_in_equal_parts(recordings, store, refusal_of):
    files = [recordings / "anna" / "0.wav", recordings / "anna" / "1.wav"]
    text, lines = refusal_of(
        *("anna", *files, recordings / "bea", f"--store={store}"),
        "--seconds=3",
    )
    assert text == "" and not store.exists()
    assert lines[-1].startswith("left out: speaker anna: not enrolled; ")
    assert " s of speech are of another voice than before" in lines[-1]


def test_too_little_for_an_enrolment(recordings, store, run, refusal_of):
    one = recordings / "anna" / "0.wav"
    text, (line,) = refusal_of("anna", one, f"--store={store}")
    assert text == "" and not store.exists()
    assert line.startswith("error: speaker anna: not enrolled; 3.")
    assert " s of speech were taken, which makes 3" in line
    enrol(run, "anna", one, f"--store={store}", "--seconds=3")
    # What is in the store counts.
    two = recordings / "anna" / "1.wav"
    text, (line,) = refusal_of("anna", two, f"--store={store}")
    assert "which makes 6" in line or "which makes 7" in line
    assert content_of(store) == {"anna": [0]}
    three = recordings / "anna" / "2.wav"
    enrol(run, "anna", two, three, f"--store={store}")
    assert content_of(store) == {"anna": [0] * 3}


def test_a_name_in_the_store_keeps_its_voice(
    recordings, store, run, refusal_of
):
    enrol(run, "anna", recordings / "anna", f"--store={store}")
    before = content_of(store)
    text, lines = refusal_of("anna", recordings / "bea", f"--store={store}")
    assert text == "" and content_of(store) == before
    assert len(lines) == 3
    assert all(": another voice than before; " in line for line in lines)
    # With one of the voice, too.
    files = [recordings / "anna" / "0.wav", recordings / "bea"]
    text, lines = refusal_of("anna", *files, f"--store={store}")
    assert text == "" and content_of(store) == before
    assert lines[-1].startswith("left out: speaker anna: not enrolled; ")


def test_a_voice_that_has_another_name(recordings, store, run, capsys):
    enrol(run, "anna", recordings / "anna", f"--store={store}")
    enrol(run, "bea", recordings / "bea", f"--store={store}")
    arguments = ["enrol", "eve", str(recordings / "anna"), f"--store={store}"]
    capsys.readouterr()
    main([*arguments, *OPTIONS])
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith(f"note: {store}: the voice of eve may be that of an")
    assert content_of(store)["eve"] == [0, 0, 0]


def test_recordings_that_cannot_be_used(
    recordings, store, refusal_of, tmp_path
):
    folder = tmp_path / "mixed"
    shutil.copytree(recordings / "anna", folder)
    (folder / "empty.wav").touch()
    audio = spoken(0).numpy()
    soundfile.write(folder / "cut.wav", audio, SAMPLE_RATE)
    cut = (folder / "cut.wav").read_bytes()
    (folder / "cut.wav").write_bytes(cut[: len(cut) // 2])
    soundfile.write(folder / "silent.wav", 0 * audio, SAMPLE_RATE)
    noise = np.random.default_rng(1).normal(0, 0.1, 48000)
    soundfile.write(folder / "hiss.wav", noise, SAMPLE_RATE)
    text, lines = refusal_of("anna", folder, f"--store={store}")
    assert {tuple(line.split("; ")[0].split(": ")[1:]) for line in lines} == {
        (f"{folder}/empty.wav", "empty"),
        (f"{folder}/cut.wav", "cut short"),
        (f"{folder}/silent.wav", "silent"),
        (f"{folder}/hiss.wav", "no speech"),
    }
    assert len(text.splitlines()) == 5
    # Nothing of the file that is cut short, though it begins well.
    assert content_of(store) == {"anna": [0, 0, 0]}
    store.unlink()
    text, (line,) = refusal_of("anna", folder / "hiss.wav", f"--store={store}")
    assert line.startswith(f"error: {folder / 'hiss.wav'}: no speech; 0.0 s of")
    assert text == "" and not store.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["", "a.wav"], "NAME: expected one line"),
        (["anna", "a.wav", "--consent= "], "--consent: expected one line"),
        (["anna", "lost.wav"], "lost.wav: missing; check the path"),
    ],
)
def test_what_is_wrong_is_said_before_a_model_is_loaded(
    arguments, words, error_of, store, monkeypatch
):
    monkeypatch.delattr(enrol_module, "load_encoder")
    line = error_of("enrol", *arguments, f"--store={store}")
    assert words in line and not store.exists()


def test_names_of_equal_letters_are_one(recordings, store, run):
    for name in ("Zoe\u0308", "Zo\u00eb"):
        enrol(run, name, recordings / "anna", f"--store={store}")
    assert content_of(store) == {"Zo\u00eb": [0] * 6}


def test_without_voice_activity(recordings, store, run):
    text = enrol(
        run, "anna", recordings / "anna", f"--store={store}", "--no_vad"
    )
    assert text.count("6.0 s of speech in 6.0 s") == 3


def test_a_model_without_threshold(recordings, store, capsys, monkeypatch):
    monkeypatch.setattr(
        enrol_module, "find_operating_point", lambda *_: OperatingPoint()
    )
    main(
        [
            *("enrol", "anna", str(recordings / "anna")),
            *(f"--store={store}", "--seconds=9"),
        ]
    )
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith("note: no threshold known: ")
    assert "0.25" in line
    assert "threshold  0.2500 (SpeechBrain's default)" in captured.out


def test_the_limit_is_that_of_the_eer_on_own_recordings(recordings, store, run):
    """Not the first operating point, which few utterances reach."""
    rows = torch.randn(12, 9, generator=torch.Generator().manual_seed(0))
    trials = score_all(rows, [*"aaabbbcccddd"], [3.0] * 12)
    found = find_operating_points(
        *(trials, "tones", [*"aaabbbcccddd"]),
        speech_only=True,
        resamples=10,
    )
    points = [
        point._replace(
            threshold=Interval(*[0.3 if point.name == "EER" else 0.9] * 3)
        )
        for point in found.points
    ]
    found = found._replace(points=points)
    with VoiceStore(store, "tones") as voices:
        voices.write_operating_points(to_json(found))
    arguments = "enrol", "anna", recordings / "anna", f"--store={store}"
    text = run(*arguments, "--seconds=9")
    (line,) = [each for each in text.splitlines() if "threshold" in each]
    assert line.startswith("threshold  0.3000 (EER on own recordings of 4 ")
    rest = found._replace(points=points[:1])
    assert at_eer(rest) == rest
    text = run(*arguments, "--threshold=0.7")
    assert "threshold  0.7000 (given by --threshold)" in text


def test_as_much_is_enough_for_the_command_as_in_python():
    assert enrol_module.ENOUGH == ENOUGH_SECONDS


def test_another_process_changes_the_store(
    recordings, store, run, error_of, monkeypatch
):
    """While the recordings are listened to."""
    enrol(run, "anna", recordings / "anna", f"--store={store}")
    prototype = encode_batch(spoken(3)[None], torch.ones(1))[0]
    listen = enrol_module._feed

    def changing(change):
        def feed(*arguments):
            pieces = listen(*arguments)
            program = (
                "import sys, torch\n"
                "from redimnet2_lobes.voices.store import VoiceStore\n"
                "with VoiceStore(sys.argv[1], 'tones') as voices:\n"
                f"    {change}\n"
            )
            subprocess.run(
                [sys.executable, "-c", program, str(store)], check=True
            )
            return pieces

        monkeypatch.setattr(enrol_module, "_feed", feed)

    def adding_last(prototype):
        """As the voice is about to be written."""

        def note(voices, *arguments):
            with VoiceStore(store, "tones") as other:
                other.add("eve", prototype, [3.0])

        monkeypatch.setattr(enrol_module, "_note_others", note)

    arguments = [
        *("enrol", "anna", recordings / "anna", f"--store={store}"),
        *OPTIONS,
    ]
    row = prototype[0].tolist()
    add = f"voices.add('{{}}', torch.tensor([{row}]), [3.0])"
    changing(add.format("anna"))
    line = error_of(*arguments)
    assert line.startswith(f"error: {store}: the voice of anna was changed ")
    assert content_of(store) == {"anna": [0, 0, 0, 3]}
    changing("voices.remove('anna')")
    assert "was changed meanwhile" in error_of(*arguments)
    assert content_of(store) == {}
    # Another name is nobody's business.
    changing(add.format("dora"))
    run(*arguments)
    assert content_of(store) == {"anna": [0, 0, 0], "dora": [3]}
    changing("pass")
    adding_last(prototype)
    arguments[1] = "eve"
    assert "was changed meanwhile" in error_of(*arguments)
    assert content_of(store)["eve"] == [3]


def test_a_store_of_another_space(recordings, store, run, error_of):
    with VoiceStore(store, "others"):
        pass
    line = error_of(
        *("enrol", "anna", recordings / "anna", f"--store={store}"),
        *OPTIONS,
    )
    assert line.startswith(f"error: {store}: ") and "others" in line


def test_with_a_model_folder(recordings, tmp_path, run):
    """As a user does, with a real if untrained network."""
    folder = tmp_path / "small"
    write_model_folder(folder, small_network(), "A small network")
    store = tmp_path / "voices.sqlite"
    text = run(
        *("enrol", "anna", recordings / "anna", f"--store={store}"),
        *(f"--model={folder}", "--threshold=-1", "--seconds=9"),
    )
    assert "enrolled  anna: 100 %" in text
