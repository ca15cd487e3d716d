"""The HTTP service: answers, refusals, load, and what a killed one leaves."""

import contextlib
import http.client
import io
import json
import logging
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

import httpx
import numpy as np
import pytest
import soundfile
import torch
import uvicorn
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient
from synthetic_voices import synthetic_utterance
from test_cli import small_network

from redimnet2_lobes import load, space_of
from redimnet2_lobes.pretrained.model_folder import write_model_folder
from redimnet2_lobes.scoring.bootstrap import Interval
from redimnet2_lobes.scoring.operating_point import OperatingPoint
from redimnet2_lobes.scoring.operating_points import (
    find_operating_points,
    to_json,
)
from redimnet2_lobes.scoring.own_trials import score_all
from redimnet2_lobes.voices.requests import Limits
from redimnet2_lobes.voices.service import make_app
from redimnet2_lobes.voices.store import VoiceStore

SPACE = "tones"
TOKEN = "a-token-of-the-tests"
WAV = {"Content-Type": "audio/wav"}
BEARER = {"Authorization": f"Bearer {TOKEN}"}
VOICES = 8
DEADLINE = 60  # seconds, far more than anything takes here


def spoken(voice, seconds=4.0, utterance=1):
    """Speech with pauses, and a faint tone by which the encoder knows it."""
    speech = synthetic_utterance(voice, utterance, seconds)
    parts = []
    for part in np.array_split(0.5 * speech / abs(speech).max(), 4):
        parts += [part, np.zeros(4000)]
    speech = np.concatenate(parts)
    time = np.arange(len(speech)) / 16000
    return speech + 0.002 * np.sin(2 * np.pi * (7000 + 100 * voice) * time)


def encode_batch(wavs, wav_lens):
    """How loud the tone of each voice is."""
    time = torch.arange(wavs.shape[1]) / 16000
    rows = [
        torch.exp(2j * math.pi * (7000 + 100 * voice) * time)
        for voice in range(VOICES)
    ]
    return (wavs.to(torch.complex64) @ torch.stack(rows).T).abs().unsqueeze(1)


def as_file(waveform, rate=16000, format="WAV", subtype=None):
    file = io.BytesIO()
    soundfile.write(file, waveform, rate, format=format, subtype=subtype)
    return file.getvalue()


def recording(voice, seconds=4.0, utterance=1):
    return as_file(spoken(voice, seconds, utterance))


def app_of(store, **options):
    options = {"operating_point": OperatingPoint(0.5, "of the test"), **options}
    encode = options.pop("encode_batch", encode_batch)
    return make_app(encode, store, SPACE, **options)


@contextlib.contextmanager
def client_of(app):
    with TestClient(app, base_url="http://localhost") as client:
        yield client


@pytest.fixture
def store(tmp_path):
    return tmp_path / "voices.sqlite"


@pytest.fixture
def client(store):
    with client_of(app_of(store)) as client:
        yield client


def post(client, path, content, **headers):
    return client.post(path, content=content, headers={**WAV, **headers})


def enrol(client, name, voice, utterance=1):
    path = f"/voices/{quote(name, safe='')}"
    return post(client, path, recording(voice, utterance=utterance))


def names_in(client, **headers):
    return [
        voice["name"]
        for voice in client.get("/voices", headers=headers).json()["voices"]
    ]


def refused(response, status):
    """The line of an error."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    (line,) = response.json().values()
    assert "\n" not in line
    return line


def test_a_voice_comes_and_goes(client):
    assert client.get("/voices").json() == {
        "voices": [],
        "embedding_space": SPACE,
    }
    answer = enrol(client, "anna", 0).json()
    assert answer["name"] == "anna" and answer["prototypes"] >= 1
    assert 2 < answer["speech_seconds"] < answer["seconds"] == 5.0
    assert 0 < answer["percent"] < 100 and answer["problems"] == []
    more = enrol(client, "anna", 0, utterance=2).json()
    assert more["percent"] > answer["percent"]
    assert enrol(client, "bert", 1).status_code == 200
    anna, bert = client.get("/voices").json()["voices"]
    assert (anna["name"], bert["name"]) == ("anna", "bert")
    assert anna["prototypes"] == answer["prototypes"] + more["prototypes"]
    assert bert["consent"] is None

    test = recording(1, utterance=3)
    verified = post(client, "/verify/bert", test).json()
    assert verified.pop("same_speaker") is True
    assert verified.pop("score") > 0.8
    assert 2 < verified.pop("speech_seconds") <= verified.pop("seconds")
    assert verified == {
        "name": "bert",
        "threshold": 0.5,
        "threshold_origin": "of the test",
        "false_accepts": None,
        "embedding_space": SPACE,
    }
    assert post(client, "/verify/anna", test).json()["same_speaker"] is False
    found = post(client, "/identify", test).json()
    assert found["name"] == "bert" and found["margin"] > 0.4
    assert [each["name"] for each in found["candidates"]] == ["bert", "anna"]
    stranger = post(client, "/identify", recording(5)).json()
    assert stranger["name"] is None and len(stranger["candidates"]) == 2

    assert client.delete("/voices/bert").status_code == 204
    assert names_in(client) == ["anna"]
    refused(client.delete("/voices/bert"), 404)
    refused(post(client, "/verify/bert", test), 404)


def test_nothing_is_decided_without_a_threshold(store):
    with client_of(app_of(store, operating_point=OperatingPoint())) as client:
        enrol(client, "anna", 0)
        answer = post(client, "/verify/anna", recording(1)).json()
        assert answer["threshold"] is answer["same_speaker"] is None
        assert post(client, "/identify", recording(1)).json()["name"] == "anna"


@pytest.mark.parametrize("format", ["FLAC", "OGG", "MP3", "AIFF"])
def test_formats_and_rates(client, format):
    enrol(client, "anna", 0)
    speech = spoken(0)
    content = as_file(speech, format=format)
    answer = client.post(
        "/verify/anna",
        content=content,
        headers={"Content-Type": "application/octet-stream"},
    ).json()
    assert answer["seconds"] == pytest.approx(len(speech) / 16000, abs=0.1)


def test_equal_letters_are_one_name(client):
    enrol(client, "Zoe\u0308", 0)
    assert enrol(client, "Zo\u00eb", 0, utterance=2).status_code == 200
    assert names_in(client) == ["Zo\u00eb"]


@pytest.mark.parametrize("path", ["", "%FF", "%0A", "a%00", "%20", "x" * 300])
def test_no_names(client, path):
    refused(post(client, f"/voices/{path}", recording(0)), 400)
    assert names_in(client) == []


def test_consent(client):
    path = "/voices/anna?consent=form%2012,%20signed"
    assert post(client, path, recording(0)).status_code == 200
    (anna,) = client.get("/voices").json()["voices"]
    assert anna["consent"] == "form 12, signed"
    line = refused(post(client, "/voices/bert?concent=x", recording(1)), 400)
    assert "consent" in line
    refused(post(client, "/voices/bert?consent=%0A", recording(1)), 400)
    assert names_in(client) == ["anna"]


def noisy(waveform):
    random = np.random.default_rng(0)
    return waveform + random.normal(0, 0.5, len(waveform))


SPEECH = spoken(0)
WRONG = {
    "empty": (b"", 400, "empty"),
    "text": (b"hello", 400, "unreadable"),
    "half": (as_file(SPEECH)[:50_000], 400, "cut short"),
    "header": (as_file(SPEECH)[:30], 400, "unreadable"),
    "NaN": (as_file(SPEECH * np.nan, subtype="FLOAT"), 400, "not finite"),
    "silent": (as_file(np.zeros(48000)), 400, "silent"),
    "click": (as_file(SPEECH[:200]), 400, "shorter than 25 ms"),
    "hours": (
        as_file(np.zeros(40_000_000, np.int16), 8000, "FLAC"),
        413,
        "too long",
    ),
    "wide": (as_file(np.zeros((16000, 255)), 16000), 413, "too many samples"),
    "nobody": (as_file(noisy(np.zeros(64000)) / 4), 422, "no speech"),
    "short": (as_file(SPEECH[:12000]), 422, "too little speech"),
    "clipped": (
        as_file(np.clip(SPEECH * 20, -0.5, 0.5)),
        422,
        "clipped",
    ),
    "another": (recording(1), 422, "another voice"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_recording_that_cannot_be_used(client, store, name):
    content, status, words = WRONG[name]
    enrol(client, "anna", 0)
    before = store.read_bytes()
    assert words in refused(post(client, "/voices/anna", content), status)
    assert store.read_bytes() == before
    if status != 422:
        assert words in refused(post(client, "/identify", content), status)
    assert post(client, "/verify/anna", recording(0)).status_code == 200


@pytest.mark.parametrize("name", ["nobody", "short"])
def test_too_little_speech_for_a_decision(client, name):
    enrol(client, "anna", 0)
    content = as_file(SPEECH[:8000]) if name == "short" else WRONG[name][0]
    line = refused(post(client, "/verify/anna", content), 422)
    assert "of speech in" in line


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/voice", 404),
        ("POST", "/voices", 405),
        ("PUT", "/voices/anna", 405),
        ("GET", "/identify", 405),
        ("POST", "/verify/bert", 404),
        ("POST", "/identify", 404),
    ],
)
def test_requests_for_nothing(client, method, path, status):
    refused(
        client.request(method, path, content=recording(0), headers=WAV), status
    )


@pytest.mark.parametrize(
    "kind",
    [
        "text/plain",
        "multipart/form-data; boundary=x",
        "application/x-www-form-urlencoded",
        "",
    ],
)
def test_what_a_page_may_send_unasked_is_refused(client, kind):
    line = refused(
        client.post(
            "/voices/anna",
            content=recording(0),
            headers={"Content-Type": kind},
        ),
        415,
    )
    assert "audio/wav" in line
    assert names_in(client) == []


def test_without_a_token_only_localhost_is_answered(store):
    with TestClient(app_of(store), base_url="http://evil.example") as client:
        refused(client.get("/voices"), 421)
        assert client.get("/health").json() == {"status": "ok"}


def test_a_token(store):
    routes = [
        *(("GET", "/voices"), ("GET", "/metrics"), ("DELETE", "/voices/anna")),
        *(("POST", "/voices/anna"), ("POST", "/identify"), ("GET", "/no")),
    ]
    app = app_of(store, token=TOKEN)
    with TestClient(app, base_url="http://voices.example") as client:
        for method, path in routes:
            for wrong in (
                {},
                {"Authorization": TOKEN},
                {"Authorization": f"Basic {TOKEN}"},
                {"Authorization": f"Bearer {TOKEN}x"},
                {"Authorization": f"Bearer {TOKEN[:-1]}"},
                {"Authorization": "Bearer "},
                {"Authorization": b"Bearer \xff\xfe"},
            ):
                answer = client.request(method, path, headers={**WAV, **wrong})
                assert TOKEN not in refused(answer, 401)
                assert answer.headers["www-authenticate"] == "Bearer"
        assert client.get("/health").status_code == 200
        assert client.get("/voices", headers=BEARER).status_code == 200
        answer = post(client, "/voices/anna", recording(0), **BEARER)
        assert answer.status_code == 200


def metrics_of(client):
    text = client.get("/metrics").text
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_metrics(client):
    enrol(client, "anna", 0)
    for _ in range(3):
        post(client, "/verify/anna", recording(0))
    post(client, "/verify/bert", recording(0))
    post(client, "/identify", b"text")
    client.get("/no")
    found = metrics_of(client)
    counts = {
        key[1:]: value
        for key, value in found.items()
        if key[0] == "redimnet2_requests_total"
    }
    assert counts == {
        ("POST /voices/{name}", "200"): 1,
        ("POST /verify/{name}", "200"): 3,
        ("POST /verify/{name}", "404"): 1,
        ("POST /identify", "400"): 1,
        ("none", "404"): 1,
    }
    seconds = "redimnet2_request_seconds_count"
    assert found[seconds, "POST /verify/{name}"] == 4
    assert found[("redimnet2_requests_in_flight",)] == 1  # this one
    assert "anna" not in client.get("/metrics").text


def test_two_voices_in_a_recording(client):
    def of_two(seconds, seconds_of_other):
        other = spoken(1, seconds_of_other, utterance=2)
        return as_file(np.concatenate([other, spoken(0, seconds, 2)]))

    enrol(client, "anna", 0)
    more_of_the_other = post(client, "/voices/anna", of_two(4, 10))
    assert "another voice" in refused(more_of_the_other, 422)
    less = post(client, "/voices/anna", of_two(10, 4)).json()
    assert "another voice than before" in less["problems"]
    assert less["speech_seconds"] < 12 < less["seconds"]


def test_no_name_is_logged(store, caplog):
    name = "anna"

    def fail(wavs, wav_lens):
        raise KeyError(name)

    caplog.set_level(logging.DEBUG)
    with client_of(app_of(store, encode_batch=fail)) as client:
        line = refused(enrol(client, name, 0), 500)
        refused(post(client, f"/verify/{name}", recording(0)), 404)
    ours = [
        record.getMessage()
        for record in caplog.records
        if record.name.startswith("redimnet2_lobes")
    ]
    assert any("KeyError" in line for line in ours)
    assert any("POST /voices/{name} 500" in line for line in ours)
    assert name not in line + "".join(ours)


def test_audio_is_written_nowhere(client, store):
    opened = []

    def watch(event, arguments):
        if watching and event == "open":
            path, mode, flags = arguments
            if flags & (os.O_WRONLY | os.O_RDWR):
                opened.append(path)

    watching = False
    sys.addaudithook(watch)
    watching = True
    enrol(client, "anna", 0)
    post(client, "/identify", recording(0))
    watching = False
    assert opened == []
    assert [path.name for path in store.parent.iterdir()] == [store.name]


def changed_while_computing(store, change):
    """An encoder while which somebody else changes the store."""

    def encode(wavs, wav_lens):
        with VoiceStore(store, SPACE) as other:
            change(other)
        return encode_batch(wavs, wav_lens)

    return encode


def test_a_voice_that_is_enrolled_twice_at_once(store):
    def change(other):
        if "anna" not in other.names():
            other.add("anna", torch.eye(VOICES)[5:6], [3.0])

    encode = changed_while_computing(store, change)
    with client_of(app_of(store, encode_batch=encode)) as client:
        refused(enrol(client, "anna", 0), 409)
        (anna,) = client.get("/voices").json()["voices"]
        assert anna["prototypes"] == 1
        refused(enrol(client, "anna", 0), 422)  # another voice


def test_a_voice_that_goes_meanwhile(store):
    with VoiceStore(store, SPACE) as other:
        other.add("anna", torch.eye(VOICES)[:1], [3.0])
        other.add("bert", torch.eye(VOICES)[1:2], [3.0])

    def change(other):
        if "anna" in other.names():
            other.remove("anna")

    encode = changed_while_computing(store, change)
    with client_of(app_of(store, encode_batch=encode)) as client:
        refused(post(client, "/verify/anna", recording(0)), 404)


def removed_after(monkeypatch, method):
    """Another process removes each voice that a store has just found."""
    found = getattr(VoiceStore, method)

    def find(store, name):
        result = found(store, name)
        with VoiceStore(store.path) as other, contextlib.suppress(ValueError):
            other.remove(name)
        return result

    monkeypatch.setattr(VoiceStore, method, find)


@pytest.mark.parametrize("method", ["find", "read"])
def test_a_voice_that_goes_between_two_steps(store, method, monkeypatch):
    """Each answer is as if it had gone before or afterwards."""
    with VoiceStore(store, SPACE) as other:
        for name in ("anna", "bert", "carl"):
            other.add(name, torch.eye(VOICES)[:1], [3.0])
    removed_after(monkeypatch, method)
    with client_of(app_of(store)) as client:
        answers = [
            enrol(client, "anna", 0),
            post(client, "/verify/bert", recording(0)),
            client.delete("/voices/carl"),
        ]
        for answer in answers:
            assert answer.status_code in (200, 204, 404, 409), answer.text


def test_the_limit_of_enrolments(store):
    rows = torch.randn(4, 9, generator=torch.Generator().manual_seed(0))
    found = find_operating_points(
        score_all(rows, [*"aabb"], [3.0] * 4),
        *(SPACE, [*"aabb"]),
        resamples=10,
    )
    first, *others, equal = found.points
    own = found._replace(
        points=[
            first._replace(threshold=Interval(0.999, 0.9, 1.0)),
            *others,
            equal._replace(threshold=Interval(0.5, 0.4, 0.6)),
        ]
    )
    known = torch.eye(VOICES)[:2].sum(0, keepdim=True)  # cosine 0.7
    for name, point, status in (
        ("anna", own.operating_point, 200),
        ("bert", OperatingPoint(0.9, "given by --threshold"), 422),
    ):
        with VoiceStore(store, SPACE) as other:
            other.add(name, known, [3.0])
        app = app_of(store, own=own, operating_point=point)
        with client_of(app) as client:
            assert enrol(client, name, 0).status_code == status


def test_one_voice_scores_as_among_all(store):
    random = torch.Generator().manual_seed(0)
    with VoiceStore(store, SPACE) as voices:
        for number in range(5):
            rows = torch.randn(3, VOICES, generator=random)
            voices.add(str(number), rows, [3.0] * 3)
        tests = torch.randn(4, VOICES, generator=random)
        found = [
            dict(each.candidates) for each in voices.identify(tests, top=5)
        ]
        for number in range(5):
            scores = voices.score(str(number), tests).tolist()
            expected = [each[str(number)] for each in found]
            assert scores == pytest.approx(expected, abs=1e-6)
            assert voices.find(str(number)) == voices.voices()[number]
        assert voices.find("5") is None


def test_another_space(store):
    with VoiceStore(store, "other"):
        pass
    with (
        pytest.raises(ValueError, match="embedding space"),
        client_of(app_of(store)),
    ):
        pass


# With connections.


@contextlib.contextmanager
def serving(app):
    """Serves an application on localhost; its port."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        server = uvicorn.Server(uvicorn.Config(app, log_config=None))
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            wait_until(lambda: server.started)
            yield port
        finally:
            server.should_exit = True
            thread.join()


@contextlib.contextmanager
def connected(app):
    """A client that is connected to an application."""
    with (
        serving(app) as port,
        httpx.Client(
            base_url=f"http://127.0.0.1:{port}", timeout=DEADLINE
        ) as client,
    ):
        yield client


def wait_until(condition):
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, "it has not come"
        threading.Event().wait(0.01)


def head(path="/identify", *lines):
    return "\r\n".join(
        [f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: audio/wav"]
        + [*lines, "", ""]
    ).encode()


def all_of(connection):
    connection.settimeout(DEADLINE)
    received = b""
    with contextlib.suppress(ConnectionError):
        while block := connection.recv(65536):
            received += block
    return received


def test_names_in_paths(store):
    names = [
        "Zoë",
        "a/b",
        "a%2Fb",
        "李 明",
        "..",
        "a?b#c",
        "/",
        "a&b=c+d",
        "%00",
    ]
    with serving(app_of(store)) as port:

        def ask(method, path, content=None):
            connection = http.client.HTTPConnection("127.0.0.1", port)
            # httpx would tidy up the paths.
            connection.request(method, path, content, WAV)
            with contextlib.closing(connection):
                answer = connection.getresponse()
                return answer.status, answer.read()

        for name in names:
            path = quote(name, safe="")
            status, body = ask("POST", f"/voices/{path}", recording(0))
            assert status == 200 and json.loads(body)["name"] == name
            status, body = ask("POST", f"/verify/{path}", recording(0))
            assert json.loads(body)["name"] == name
        body = ask("GET", "/voices")[1]
        assert [each["name"] for each in json.loads(body)["voices"]] == names
        for name in names:
            assert ask("DELETE", f"/voices/{quote(name, safe='')}")[0] == 204
        assert json.loads(ask("GET", "/voices")[1])["voices"] == []


@pytest.mark.parametrize("length", ["Content-Length: 99", "chunked"])
def test_a_body_that_never_ends_is_cut_off(store, length):
    with serving(app_of(store, limits=Limits(timeout=0.2))) as port:
        line = "Transfer-Encoding: chunked" if length == "chunked" else length
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(head("/identify", line))
            answer = all_of(connection)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"connection: close" in answer.lower()


def test_a_body_that_is_too_large_whatever_it_says(store):
    limits = Limits(megabytes=0.1, timeout=1)
    content = bytes(300_000)

    def chunks():
        yield from (content[start : start + 1000] for start in range(300))

    with serving(app_of(store, limits=limits)) as port:
        url = f"http://127.0.0.1:{port}/identify"
        for body in (content, chunks()):
            assert "0.1 MB" in refused(
                httpx.post(url, content=body, headers=WAV), 413
            )
        # More than it says: the rest would be another request.
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(head("/identify", "Content-Length: 10"))
            with contextlib.suppress(ConnectionError):
                connection.sendall(content)
            answer = all_of(connection)
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b"unreadable" in answer
        # It is still there.
        assert httpx.get(url.replace("identify", "health")).is_success


def test_a_connection_that_is_cut(store):
    content = recording(0)
    gone = ("redimnet2_requests_total", "POST /voices/{name}", "0")
    with connected(app_of(store, limits=Limits(requests=1))) as client:
        address = ("127.0.0.1", client.base_url.port)
        for count in (1, 2, 3):
            with socket.create_connection(address) as connection:
                length = f"Content-Length: {len(content)}"
                connection.sendall(head("/voices/anna", length))
                connection.sendall(content[: len(content) // 2])
            wait_until(lambda n=count: metrics_of(client).get(gone) == n)
        # The place of each is given back.
        assert enrol(client, "bert", 0).status_code == 200
        assert names_in(client) == ["bert"]


class Held:
    """An encoder that waits until it may go on."""

    def __init__(self):
        self.calls = 0
        self.go_on = threading.Event()

    def __call__(self, wavs, wav_lens):
        self.calls += 1
        assert self.go_on.wait(DEADLINE)
        return encode_batch(wavs, wav_lens)


def test_more_than_there_is_place_for(store):
    held = Held()
    limits = Limits(requests=2, timeout=DEADLINE)
    with VoiceStore(store, SPACE) as voices:
        voices.add("anna", torch.eye(VOICES)[:1], [3.0])
    app = app_of(store, encode_batch=held, limits=limits)
    with connected(app) as client, ThreadPoolExecutor(2) as threads:
        identify = (client, "/identify", recording(0))
        waiting = [threads.submit(post, *identify) for _ in range(2)]
        in_flight = ("redimnet2_requests_in_flight",)
        wait_until(lambda: metrics_of(client)[in_flight] == 3)
        wait_until(lambda: held.calls == 1)  # the other has a place, too
        wait_until(lambda: post(*identify).status_code == 503)
        busy = post(*identify)
        assert "busy" in refused(busy, 503)
        assert int(busy.headers["retry-after"]) > 0
        # What needs no place is answered.
        assert names_in(client) == ["anna"]
        held.go_on.set()
        for each in waiting:
            assert each.result().json()["name"] == "anna"
        assert post(*identify).json()["name"] == "anna"


def test_what_is_late_is_neither_stored_nor_computed(store):
    held = Held()
    limits = Limits(timeout=0.5, requests=2)
    app = app_of(store, encode_batch=held, limits=limits)
    with connected(app) as client, ThreadPoolExecutor(2) as threads:
        names = ["anna", "bert"]
        for late in threads.map(lambda name: enrol(client, name, 0), names):
            assert "not computed within" in refused(late, 503)
            assert late.headers["retry-after"]
        # One is computed still, and both have their places.
        assert held.calls == 1
        assert "busy" in refused(enrol(client, "carl", 0), 503)
        held.go_on.set()
        wait_until(lambda: enrol(client, "carl", 0).status_code == 200)
        (carl,) = client.get("/voices").json()["voices"]
        assert carl["name"] == "carl"
        # Each prototype is a call: only one of those that were late had any.
        assert held.calls == 2 * carl["prototypes"]


# With processes.


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "small"
    write_model_folder(folder, small_network(), "A small network")
    return folder


class Server:
    """A process that serves."""

    def __init__(self, model, store, *options, threshold=-1):
        if threshold is not None:
            options = (*options, f"--threshold={threshold}")
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-c"),
                "from redimnet2_lobes.cli import main; main()",
                *("serve", f"--model={model}", f"--store={store}"),
                *("--port=0", "--threads=1", *options),
            ],
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines = []
        for line in self.process.stderr:
            self.lines.append(line)
            if line.startswith("note: listening at "):
                break
        else:
            raise AssertionError("".join(self.lines))
        self.url = line.split()[3].rstrip(",")
        self.reader = threading.Thread(
            target=lambda: self.lines.extend(self.process.stderr)
        )
        self.reader.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.end()

    def end(self):
        self.process.wait(DEADLINE)
        self.reader.join(DEADLINE)
        return self.process.returncode


@pytest.fixture
def server(model, store):
    with Server(model, store) as server:
        yield server


def at_once(count, function, items):
    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(function, items))


def test_hundreds_of_requests_at_once(server):
    contents = [recording(voice) for voice in range(VOICES)]
    with httpx.Client(base_url=server.url, timeout=DEADLINE) as client:
        for voice, content in enumerate(contents):
            assert post(client, f"/voices/{voice}", content).status_code == 200
        alone = [post(client, "/identify", each).json() for each in contents]

        def ask(number):
            return post(client, "/identify", contents[number % VOICES])

        client = httpx.Client(
            base_url=server.url,
            timeout=DEADLINE,
            limits=httpx.Limits(max_connections=None),
        )
        with client:
            counts = Counter()
            for number, answer in enumerate(at_once(200, ask, range(300))):
                counts[answer.status_code] += 1
                if answer.status_code == 503:
                    assert int(answer.headers["retry-after"]) > 0
                else:
                    assert answer.json() == alone[number % VOICES]
            found = metrics_of(client)
        assert counts.keys() <= {200, 503} and counts[200] >= 64
        route = ("redimnet2_requests_total", "POST /identify")
        assert found[(*route, "200")] == counts[200] + len(alone)
        assert found.get((*route, "503"), 0) == counts[503]
        assert found[("redimnet2_requests_in_flight",)] == 1


def test_requests_in_flight_are_answered_at_the_end(server, store):
    content = recording(0)
    length = f"Content-Length: {len(content)}"
    address = server.url.removeprefix("http://").split(":")
    with socket.create_connection(address) as connection:
        connection.sendall(head("/voices/anna", length))
        connection.sendall(content[:1000])
        with httpx.Client(base_url=server.url) as client:
            in_flight = ("redimnet2_requests_in_flight",)
            wait_until(lambda: metrics_of(client)[in_flight] == 2)
        server.process.send_signal(signal.SIGTERM)

        def is_closed():
            try:
                socket.create_connection(address).close()
            except OSError:
                return True
            return False

        wait_until(is_closed)
        assert server.process.poll() is None
        connection.sendall(content[1000:])
        assert all_of(connection).startswith(b"HTTP/1.1 200 ")
    assert server.end() in (0, -signal.SIGTERM)
    assert "Traceback" not in "".join(server.lines)
    with VoiceStore(store) as voices:
        assert voices.names() == ["anna"]


def test_a_server_that_is_killed_leaves_whole_voices(model, store):
    content = recording(0)
    answered = []
    for attempt in range(2):
        with Server(model, store) as server, ThreadPoolExecutor(8) as threads:

            def enrol_some(worker, url=server.url, attempt=attempt):
                with (
                    contextlib.suppress(httpx.TransportError),
                    httpx.Client(base_url=url, timeout=DEADLINE) as client,
                ):
                    for number in range(1000):
                        name = f"{attempt} {worker} {number}"
                        answer = post(client, f"/voices/{name}", content)
                        assert answer.status_code == 200
                        answered.append((name, answer.json()["prototypes"]))

            enough = len(answered) + 10
            workers = [threads.submit(enrol_some, each) for each in range(8)]
            wait_until(lambda enough=enough: len(answered) >= enough)
            server.process.kill()
            for worker in workers:
                worker.result()
        with VoiceStore(store) as voices:
            kept = {voice.name: voice.prototypes for voice in voices.voices()}
            for name, prototypes in answered:
                assert kept.pop(name) == prototypes
            # Of each worker one more at most, whose answer did not come.
            assert len(kept) <= 8 * (attempt + 1)
            for name in kept:
                assert voices.prototypes(name).isfinite().all()


def test_two_processes_have_one_store(model, server, store):
    content = recording(0)
    with Server(model, store) as other:
        urls = [server.url, other.url]

        def enrol_one(number):
            url = f"{urls[number % 2]}/voices/{number}"
            return httpx.post(
                url, content=content, headers=WAV, timeout=DEADLINE
            ).status_code

        assert Counter(at_once(8, enrol_one, range(40))) == {200: 40}
        for url in urls:
            with httpx.Client(base_url=url) as client:
                assert sorted(map(int, names_in(client))) == [*range(40)]
        assert httpx.delete(f"{urls[0]}/voices/7").status_code == 204
        answer = httpx.post(f"{urls[1]}/verify/7", content=content, headers=WAV)
        refused(answer, 404)


def test_a_token_is_not_printed(model, store, tmp_path, monkeypatch):
    path = tmp_path / "token"
    path.write_text(f"{TOKEN}\n")
    monkeypatch.setenv("REDIMNET2_TOKEN", "another-one-of-the-environment")
    with Server(model, store, f"--token_file={path}") as server:
        assert httpx.get(f"{server.url}/voices").status_code == 401
        answer = httpx.get(f"{server.url}/voices", headers=BEARER)
        assert answer.json()["voices"] == []
        server.process.terminate()
        server.end()
    assert TOKEN not in "".join(server.lines)


def test_operating_points_of_the_store(model, store):
    speakers = [str(number // 4) for number in range(48)]
    random = torch.Generator().manual_seed(0)
    centres = torch.randn(12, 16, generator=random).repeat_interleave(4, 0)
    embeddings = centres + torch.randn(48, 16, generator=random)
    trials = score_all(embeddings, speakers, [3.0] * 48)
    space = space_of(load(model))
    found = find_operating_points(
        trials, space, speakers, speech_only=True, resamples=20
    )
    with VoiceStore(store, space) as voices:
        voices.write_operating_points(to_json(found))
    content = recording(0)
    with (
        Server(model, store, threshold=None) as server,
        httpx.Client(base_url=server.url, timeout=DEADLINE) as client,
    ):
        assert post(client, "/voices/anna", content).status_code == 200
        answer = post(client, "/verify/anna", content).json()
    threshold, origin = found.operating_point
    assert answer["threshold"] == threshold
    assert answer["threshold_origin"] == origin
    rate, is_limit = found.false_accepts(answer["score"])
    expected = {**rate._asdict(), "is_upper_limit": is_limit}
    assert answer["false_accepts"] == pytest.approx(expected)


def test_what_cannot_be_served(model, store, tmp_path, error_of, monkeypatch):
    monkeypatch.delenv("REDIMNET2_TOKEN", raising=False)
    command = ("serve", f"--model={model}", f"--store={store}")
    for host in ("0.0.0.0", "::", "192.0.2.1", "voices.example"):
        line = error_of(*command, f"--host={host}")
        assert host in line and "--token_file" in line
    path = tmp_path / "token"
    for text in ("", "short", "two words of a token", "é" * 20):
        path.write_text(text)
        line = error_of(*command, f"--token_file={path}")
        assert "--token_file: a token has at least 16" in line
        assert not text or text not in line
    monkeypatch.setenv("REDIMNET2_TOKEN", "short")
    assert "REDIMNET2_TOKEN" in error_of(*command)
    monkeypatch.delenv("REDIMNET2_TOKEN")
    assert "no.txt" in error_of(*command, "--token_file=no.txt")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"port {port}" in error_of(*command, f"--port={port}")
    with VoiceStore(store, "other"):
        pass
    line = error_of(*command, "--port=0")
    assert "voices.sqlite" in line and "embedding space other" in line
    for option in ("--timeout=0", "--max_seconds=nan", "--port=70000"):
        error_of(*command, option, code=2)
