"""The npm package in Node: the example, its reader of metadata, its types."""

import json
import struct
import subprocess
from pathlib import Path

import onnx
import pytest
import soundfile
import torch
from web_models import FORMS, ROOT, VOICES, WEB, embedding_of

from redimnet2_lobes.data.audio import load_waveform

EXAMPLE = ROOT / "examples" / "javascript" / "embed.mjs"
READ = """
import { readFileSync } from "node:fs";
import { readMetadata } from "./metadata.js";
try {
  const bytes = readFileSync(0);
  console.log(JSON.stringify(readMetadata(bytes)));
} catch (error) {
  console.log(JSON.stringify(error.message));
}
"""


def node(*arguments, stdin=b""):
    return subprocess.run(
        ["node", *map(str, arguments)],
        input=stdin,
        capture_output=True,
        cwd=WEB,
    )


def read_metadata(content):
    done = node("--input-type=module", "--eval", READ, stdin=content)
    return json.loads(done.stdout)


@pytest.mark.parametrize("form", ["onnx", "plain"])
def test_the_example(form, models, tmp_path):
    waveform = load_waveform(VOICES / "Front_Center.wav")
    path = tmp_path / "voice.wav"
    soundfile.write(path, waveform, 16000)
    done = node(EXAMPLE, models[form], path)
    assert done.returncode == 0, done.stderr
    found = torch.tensor(json.loads(done.stdout))
    expected = embedding_of(models[form], load_waveform(path))
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
    assert b"model as exported, within" in done.stderr


def test_the_example_refuses_other_files(models, tmp_path):
    text = tmp_path / "text.wav"
    text.write_text("not a sound" * 9)
    for arguments, message in [
        ((), "give a model.onnx and a file.wav"),
        ((models["onnx"], text), "no WAV file of 16 bits, 16 kHz"),
        ((models["onnx"], VOICES / "Front_Left.wav"), "no WAV file of 16"),
        ((text, text), "model: not a"),
    ]:
        done = node(EXAMPLE, *arguments)
        assert done.returncode == 1 and done.stdout == b""
        (line,) = done.stderr.decode().splitlines()[-1:]
        assert line.startswith("error: ") and message in line


@pytest.mark.parametrize("form", FORMS)
def test_metadata_are_those_that_onnx_reads(form, models):
    props = onnx.load(models[form]).metadata_props
    assert read_metadata(Path(models[form]).read_bytes()) == {
        prop.key: prop.value for prop in props
    }


def test_other_fields_are_skipped():
    numbers = b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"  # -1
    eight, four = b"\x11" + bytes(8), b"\x1d" + bytes(4)
    large = b"\xa2\x06\x80\x02" + bytes(256)  # field 100
    pair = "\n\x03kü\x12\x03vé".encode()
    wanted = b"r" + bytes([len(pair)]) + pair
    empty = b"r\x03\n\x01e"
    content = numbers + eight + wanted + four + large + empty
    assert read_metadata(content) == {"kü": "vé", "e": ""}


@pytest.mark.parametrize(
    "content",
    [
        b"\x0b",  # a group
        b"\x0a\x05abc",
        b"\x08" + b"\xff" * 11,
        b"\x08",
        b"<!doctype html>",
        b"\x0a" + struct.pack("<Q", 2**63),
    ],
)
def test_what_is_no_protobuf(content):
    assert read_metadata(content) == "no protobuf message"


def test_a_cut_file_ends(models):
    content = Path(models["onnx"]).read_bytes()
    assert read_metadata(content[: len(content) // 2]) == "no protobuf message"


def test_types_and_sources_agree():
    done = node(WEB / "node_modules" / "typescript" / "bin" / "tsc", "-p", WEB)
    assert done.returncode == 0, done.stdout


def test_the_lock_file_names_no_registry():
    lock = json.loads((WEB / "package-lock.json").read_text())
    packages = lock["packages"]
    assert not any("resolved" in package for package in packages.values())
    assert packages["node_modules/onnxruntime-web"]["version"] == "1.30.0"


def test_the_package_holds_the_page():
    done = subprocess.run(
        ["npm", "pack", "--dry-run", "--json"],
        cwd=WEB,
        capture_output=True,
        check=True,
    )
    listing = json.loads(done.stdout)
    entry = (
        listing[0] if isinstance(listing, list) else listing["redimnet2-web"]
    )
    packed = {file["path"] for file in entry["files"]}
    own = {
        name
        for name in json.loads((WEB / "files.json").read_text())
        if not name.startswith("node_modules/")
    }
    assert own | {"files.json", "redimnet2.d.ts", "README.md"} <= packed
