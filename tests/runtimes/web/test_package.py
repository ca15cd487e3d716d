"""The npm package in Chromium: what Python gives, and errors, not numbers."""

import json

import numpy as np
import onnx
import pytest
import soundfile
import torch
from browser import Page, Site, base64_of, lay_site
from onnx import numpy_helper
from web_models import FIXED_SECONDS, RESAMPLED, VOICES, close, embedding_of

from redimnet2_lobes.data.audio import load_waveform
from redimnet2_lobes.inference.long_files import encode_files
from redimnet2_lobes.onnx.encoder import OnnxEncoder
from redimnet2_lobes.scoring.backends import CosineBackend, average

SETUP = """
const { load } = await import("/redimnet2.js");
const bytes = (text) => Uint8Array.from(atob(text), (x) => x.charCodeAt(0));
const samples = (text) => new Float32Array(bytes(text).buffer);
const recognition = await load(values.model, values.options);
"""
NAMES = ("Front_Center", "Front_Left", "Rear_Left", "Side_Right", "Rear_Center")


def waveform(name):
    return load_waveform(VOICES / f"{name}.wav")


@pytest.fixture(scope="module")
def site(models, tmp_path_factory):
    """Without a model, so that the page computes nothing meanwhile."""
    folder = tmp_path_factory.mktemp("site")
    lay_site(folder)
    site = Site(folder)
    yield site
    site.stop()


@pytest.fixture(scope="module")
def page(driver, site):
    page = Page(driver, site.address)
    page.wait("#error", "model.onnx")
    return page


@pytest.fixture
def served(site, models):
    """Copies a form of the model to the site; gives its address there."""

    def serve(form):
        (site.folder / f"{form}.onnx").write_bytes(models[form].read_bytes())
        return f"/{form}.onnx"

    return serve


@pytest.mark.parametrize("form", ["onnx", "plain", "int8", "fixed"])
def test_embeddings_are_those_of_python(form, page, served, models):
    wav = waveform("Front_Center")
    if form == "fixed":
        wav = wav.repeat(2)[: int(FIXED_SECONDS * 16000)]
    found = page.call(
        f"{SETUP} return [Array.from(await recognition.embed(samples("
        "values.wav))), await recognition.check()]",
        model=served(form),
        wav=base64_of(wav),
    )
    assert close(found[0], embedding_of(models[form], wav))
    assert found[1] < 1e-4


def test_a_model_may_be_bytes_or_a_buffer(page, served):
    source = """
    const { load } = await import("/redimnet2.js");
    const url = new URL(values.model, location);
    const buffer = await (await fetch(url)).arrayBuffer();
    const sizes = [];
    for (const given of [buffer, new Uint8Array(buffer), buffer, url]) {
      sizes.push((await load(given)).embeddingSize);
    }
    return sizes;
    """
    assert page.call(source, model=served("plain")) == [192] * 4


@pytest.fixture
def wav_files(tmp_path):
    """Files of the same voice, and what may be lost by resampling."""
    mono, rate = soundfile.read(VOICES / "Front_Center.wav", dtype="float32")
    other, _ = soundfile.read(VOICES / "Front_Left.wav", dtype="float32")
    at_44100 = torch.nn.functional.interpolate(
        torch.from_numpy(mono)[None, None], int(len(mono) * 44100 / rate)
    )[0, 0].numpy()
    quiet = 0.3 * np.resize(other, len(at_44100))
    soundfile.write(
        tmp_path / "stereo.wav", np.stack([at_44100, quiet], 1), 44100
    )
    soundfile.write(tmp_path / "flac.flac", mono, rate)
    soundfile.write(tmp_path / "16k.wav", waveform("Front_Center"), 16000)
    floats = tmp_path / "floats.wav"
    soundfile.write(floats, waveform("Front_Center"), 16000, subtype="FLOAT")
    return {
        "floats.wav": 1e-4,
        # Chromium divides positive samples of 16 bits by 32767, not 32768.
        "16k.wav": 1e-3,
        "stereo.wav": RESAMPLED,
        "flac.flac": RESAMPLED,
    }


def test_files_are_decoded_mixed_and_resampled(
    page, served, models, wav_files, tmp_path
):
    for name, tolerance in wav_files.items():
        path = tmp_path / name
        found = page.call(
            f"{SETUP} return Array.from(await recognition.embed(new Blob(["
            "bytes(values.file)])))",
            model=served("onnx"),
            file=base64_of(path.read_bytes()),
        )
        expected = embedding_of(models["onnx"], load_waveform(path))
        assert close(found, expected, tolerance), name


def test_samples_at_another_rate(page, served, models):
    wav, rate = soundfile.read(VOICES / "Rear_Left.wav", dtype="float32")
    found = page.call(
        f"{SETUP} return Array.from(await recognition.embed("
        "{samples: samples(values.wav), sampleRate: values.rate}))",
        **{"model": served("onnx"), "wav": base64_of(wav), "rate": rate},
    )
    assert close(
        found, embedding_of(models["onnx"], waveform("Rear_Left")), RESAMPLED
    )


def test_long_audio_is_embedded_in_pieces(page, served, models, tmp_path):
    joined = torch.cat([waveform(name) for name in NAMES])
    wav = joined.repeat(12)
    assert len(wav) > 61 * 16000
    path = str(tmp_path / "long.wav")
    soundfile.write(path, wav, 16000, subtype="FLOAT")
    encoder = OnnxEncoder(models["onnx"])
    embeddings, pieces = encode_files(encoder.encode_batch, [path])
    assert pieces[path] == 2
    found = page.call(
        f"{SETUP} return Array.from(await recognition.embed(samples("
        "values.wav)))",
        model=served("onnx"),
        wav=base64_of(wav),
    )
    assert close(found, embeddings[path])


def test_scores_and_decisions(page, served, models):
    """Those of the command: two recordings of Anna, one of another."""
    wavs = [waveform(name) for name in NAMES[:4]]
    rows = torch.stack([embedding_of(models["onnx"], wav) for wav in wavs])
    enrolled = average(rows[:3], [[0, 1], [2]])
    backend = CosineBackend()
    units = backend.enrolment_side(enrolled) @ backend.test_side(rows[3:]).T
    anna, bert = units.flatten().tolist()
    between = (anna + bert) / 2
    source = f"""{SETUP}
    const [a, b, c, test] = values.wavs.map(samples);
    await recognition.enrol("Anna", a);
    await recognition.enrol("Anna", b);
    await recognition.enrol("Bert", c);
    return [
      recognition.names,
      await recognition.verify("Anna", test),
      await recognition.verify("Bert", test),
      await recognition.identify(test),
    ];"""
    values = {
        "model": served("onnx"),
        "wavs": [base64_of(wav) for wav in wavs],
    }
    names, of_anna, of_bert, identified = page.call(
        source, options={"threshold": between}, **values
    )
    assert names == ["Anna", "Bert"]
    assert abs(of_anna["score"] - anna) < 1e-5
    assert abs(of_bert["score"] - bert) < 1e-5
    assert of_anna["sameSpeaker"] == (anna > between)
    assert of_bert["sameSpeaker"] == (bert > between)
    assert (of_anna["threshold"], of_anna["thresholdOrigin"]) == (
        between,
        "given",
    )
    best = "Anna" if anna > bert else "Bert"
    assert identified["speaker"] == best
    scores = [each["score"] for each in identified["candidates"]]
    assert scores == sorted(scores, reverse=True)
    # The threshold of the file, and one that nobody reaches.
    _, of_anna, _, _ = page.call(source, **values)
    assert (of_anna["threshold"], of_anna["thresholdOrigin"]) == (
        0.3,
        "that of a test",
    )
    _, of_anna, _, identified = page.call(
        source, options={"threshold": 1}, **values
    )
    assert of_anna["sameSpeaker"] is False and identified["speaker"] is None
    # None at all: the best, and no decision.
    values["model"] = served("plain")
    _, of_anna, _, identified = page.call(source, **values)
    assert of_anna["threshold"] is None and of_anna["sameSpeaker"] is None
    assert identified["speaker"] == best


def test_enrolments_are_kept_as_json(page, served):
    kept = page.call(
        f"""{SETUP}
        await recognition.enrol("Anna", samples(values.wav));
        const text = JSON.stringify(recognition);
        const again = await load(values.model);
        again.restore(JSON.parse(text));
        const before = await recognition.verify("Anna", samples(values.wav));
        const after = await again.verify("Anna", samples(values.wav));
        again.remove("Anna");
        await again.release();
        return [before.score === after.score, again.names, text];""",
        model=served("onnx"),
        wav=base64_of(waveform("Front_Left")),
    )
    assert kept[:2] == [True, []]
    assert set(json.loads(kept[2])) == {"embeddingSpace", "speakers"}


BAD_AUDIO = {
    "new Float32Array(0)": "empty",
    "new Blob([])": "empty",
    "noise(399)": "shorter than 25 ms",
    "new Float32Array(16000)": "silent",
    "noise(16000).fill(NaN, 9, 10)": "not finite",
    "noise(16000).fill(Infinity, 9, 10)": "not finite",
    "{samples: noise(9999).fill(NaN, 9, 10), sampleRate: 8000}": "not finite",
    "{samples: noise(9999), sampleRate: 0}": "0 is not a whole number",
    "{samples: noise(9999), sampleRate: -16000}": "-16000 is not a whole",
    "{samples: noise(9999), sampleRate: NaN}": "NaN is not a whole number",
    "{samples: noise(9999), sampleRate: 3999}": "from 4000 to 768000",
    "{samples: noise(9999)}": "undefined is not a whole number",
    "{samples: noise(100), sampleRate: 8000}": "shorter than 25 ms",
    "[0.1, 0.2]": "neither a Float32Array",
    "new Float64Array(16000)": "neither a Float32Array",
    "new Int16Array(16000)": "neither a Float32Array",
    "null": "neither a Float32Array",
    "undefined": "neither a Float32Array",
    "'a.wav'": "neither a Float32Array",
    "new Blob(['no sound'])": "cannot be decoded",
    "wavFile([noise(4000).fill(NaN, 9, 10)], 16000)": "not finite",
    "wavFile([noise(4000).fill(0)], 44100)": "silent",
    "opposed()": "channels cancel each other",
}
BAD_CALLS = {
    "recognition.verify('nobody', noise(9999))": "nobody: not enrolled",
    "recognition.identify(noise(9999))": "nobody is enrolled",
    "recognition.remove('nobody')": "nobody: not enrolled",
    "recognition.enrol('', noise(9999))": "name: empty",
    "recognition.enrol(7, noise(9999))": "name: empty",
    "recognition.enrol('Anna')": "Anna: no audio",
    "recognition.enrol('Anna', noise(9999), noise(9))": "shorter than",
    "recognition.threshold = NaN": "NaN is not a number from -1 to 1",
    "recognition.threshold = '0.5'": "0.5 is not a number",
    "recognition.threshold = 1.1": "1.1 is not a number from -1 to 1",
    "recognition.restore(null)": "space undefined, but the model gives",
    "recognition.restore({embeddingSpace: 'redimnet2-b3-1', speakers: []})": (
        "of the embedding space redimnet2-b3-1, but the model gives "
        "embeddings of redimnet2-b0-"
    ),
    "recognition.restore({...recognition.toJSON(), speakers: 3})": "damaged",
    "recognition.restore({...recognition.toJSON(), speakers: [{name: 'a',"
    " embeddings: [[1]]}]})": "damaged",
    "load(3)": "neither an address",
    "load(new Uint8Array(0))": "not a file of redimnet2 export",
    "load(bytes('bm8gb25ueA=='))": "not an ONNX file",
    "load('/none.onnx')": "HTTP 404",
    "load('/index.html')": "not an ONNX file",
    "load(values.model, {threshold: 2})": "2 is not a number",
}


def errors(page, model, expressions, before=""):
    """The errors of expressions; null for one that gave a value."""
    source = f"""{SETUP}
    const {{ wavFile }} = await import("/audio.js");
    const noise = (n) => Float32Array.from({{length: n}}, Math.random);
    const opposed = () => {{
      const both = Float32Array.from(
        {{length: 8000}}, (_, n) => Math.sin(n >> 1) * (1 - 2 * (n % 2)));
      const bytes = wavFile([both], 16000);
      // Two channels in place of one.
      return new Blob([bytes.slice(0, 22), Uint8Array.of(2, 0),
        bytes.slice(24, 32), Uint8Array.of(8, 0), bytes.slice(34)]);
    }};
    const errors = [];
    {before}
    const attempts = [{",".join(f"async () => {x}" for x in expressions)}];
    for (const attempt of attempts) {{
      errors.push(await attempt().then(() => null, (error) => error.message));
    }}
    return [errors, recognition.names];"""
    messages, names = page.call(source, model=model)
    assert names == []
    assert not any("\n" in (message or "") for message in messages)
    return dict(zip(expressions, messages, strict=True))


def test_bad_input_is_an_error_and_never_a_number(page, served):
    wanted = {
        **{f"recognition.embed({x})": text for x, text in BAD_AUDIO.items()},
        **BAD_CALLS,
    }
    found = errors(page, served("onnx"), list(wanted))
    for expression, text in wanted.items():
        assert text in (found[expression] or ""), expression


def test_a_fixed_file_takes_its_length_only(page, served):
    samples = int(FIXED_SECONDS * 16000)
    for count in (samples - 1, samples + 1, 70 * 16000):
        call = f"recognition.embed(noise({count}))"
        message = errors(page, served("fixed"), [call])[call]
        assert f"has {count} samples, but the model takes {samples}" in message


def changed(path, change, target):
    model = onnx.load(path)
    change(model)
    onnx.save(model, target)


def spoil_weights(model):
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.size > 1000:
            spoilt = numpy_helper.from_array(values * np.nan, tensor.name)
            tensor.CopyFrom(spoilt)


def set_metadata(**values):
    def change(model):
        kept = {x.key: x.value for x in model.metadata_props}
        onnx.helper.set_model_props(model, {**kept, **values})

    return change


@pytest.mark.parametrize(
    ("change", "work", "message"),
    [
        (spoil_weights, "recognition.embed(noise(9999))", "not finite"),
        (spoil_weights, "recognition.check()", "not finite"),
        (
            set_metadata(test_embedding=json.dumps([0.1] * 192)),
            "recognition.check()",
            "differs by",
        ),
        (
            set_metadata(test_input="another"),
            "recognition.check()",
            "of another version",
        ),
        (set_metadata(threshold="nan"), None, "threshold of its metadata"),
        (set_metadata(minimum_samples=""), None, "minimum_samples of its"),
        (set_metadata(model="Another"), None, "not a file of redimnet2"),
    ],
)
def test_damaged_files(change, work, message, page, site, models):
    # The browser may keep what has a name already.
    name = f"changed{len(list(site.folder.iterdir()))}.onnx"
    changed(models["plain"], change, site.folder / name)
    if work is None:
        assert message in page.error(SETUP, model=f"/{name}")
    else:
        assert message in errors(page, f"/{name}", [work])[work]


def test_other_files(page, served, site, models):
    assert "takes features" in page.error(SETUP, model=served("features"))
    content = models["plain"].read_bytes()
    (site.folder / "cut.onnx").write_bytes(content[: len(content) // 2])
    assert "damaged" in page.error(SETUP, model="/cut.onnx")
    (site.folder / "odd.onnx").write_bytes(
        onnx.helper.make_model(
            onnx.helper.make_graph([], "none", [], []),
            ir_version=10,
        ).SerializeToString()
        + b"r\x12\n\x05model\x12\x09ReDimNet2"
    )
    assert page.error(SETUP, model="/odd.onnx").startswith("model: ")
