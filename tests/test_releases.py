"""Published checkpoints by name: downloaded, kept, and what can go wrong."""

import functools
import io
import os
import re
import signal

import numpy as np
import onnx
import pytest
import soundfile
import torch
from conftest import ParityCase
from file_server import serve_files
from full_disk import full_disk

from redimnet2_lobes import cli, load
from redimnet2_lobes.pretrained import releases
from redimnet2_lobes.pretrained.loading import load_model, read_tensors
from redimnet2_lobes.pretrained.provenance import (
    Provenance,
    after_fine_tuning,
    with_provenance,
)
from redimnet2_lobes.pretrained.published_layout import (
    build_network,
    published_checkpoint,
)

NAME = "b0-vox2-lm"
FILE = f"{NAME}.pt"


def main(arguments):
    """``redimnet2 convert``."""
    cli.main(["convert", *arguments])


@functools.cache
def published_file(case):
    content = io.BytesIO()
    torch.save(ParityCase(case).checkpoint(), content)
    return content.getvalue()


def damaged(content):
    """As if a block of the disk had gone bad."""
    middle = len(content) // 2
    return content[:middle] + bytes(512) + content[middle + 512 :]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch" / "hub" / "checkpoints"


@pytest.fixture
def server(cache, monkeypatch):
    with serve_files({FILE: published_file("b0-vox2")}) as server:
        monkeypatch.setattr(releases, "ADDRESS", server.address)
        yield server


def refuse(tmp_path, name=NAME):
    """The one line that a failing command ends with."""
    with pytest.raises(SystemExit) as end:
        main([name, "--output", str(tmp_path / "model")])
    message = end.value.code
    assert message.startswith("error: ") and "\n" not in message
    assert not (tmp_path / "model").exists()
    return message


def test_a_name_is_downloaded_once(server, cache, tmp_path, capsys):
    for output in ("first", "second"):
        main([NAME, "--output", str(tmp_path / output)])
    assert server.ranges == [None]
    assert FILE.removesuffix(".pt") in capsys.readouterr().err  # the progress
    assert os.listdir(cache) == [FILE]
    assert (cache / FILE).read_bytes() == server.files[FILE]
    network = load_model(tmp_path / "second").mods.embedding_model
    weights = published_checkpoint(network)["state_dict"]
    for name, tensor in (
        ParityCase("b0-vox2").checkpoint()["state_dict"].items()
    ):
        assert torch.equal(weights[name], tensor)
    assert FILE in (tmp_path / "first" / "README.md").read_text()


def test_load_takes_a_name(server, cache, monkeypatch):
    for _ in range(2):
        network = load(NAME, {"device": "cpu"}).mods.embedding_model
    assert server.ranges == [None]
    expected = build_network(ParityCase("b0-vox2").checkpoint()["model_config"])
    assert network.arguments() == expected.arguments()
    # Converted once: the download is not needed any more.
    (cache / FILE).unlink()
    server.server_close()
    load(NAME)
    # One that was interrupted is made anew.
    (cache.parent / "redimnet2" / NAME / "hyperparams.yaml").unlink()
    with pytest.raises(OSError, match="cannot be fetched"):
        load(NAME)


def test_the_command_takes_a_name(server, tmp_path, capsys):
    path = tmp_path / "noise.wav"
    soundfile.write(path, np.random.default_rng(1).normal(0, 0.1, 16000), 16000)
    cli.main(["verify", "--no_vad", str(path), str(path), f"--model={NAME}"])
    assert "score      1.0000" in capsys.readouterr().out


def test_a_name_with_plus_signs(server, tmp_path):
    name = "b3-vb2+vox2+cnc2_v0-ptn"
    server.files[f"{name}.pt"] = published_file("b3-vb2+vox2+cnc2")
    main([name, "--output", str(tmp_path / "model")])
    tensors = read_tensors(tmp_path / "model" / "embedding_model.ckpt")
    assert "stem.map_norm.weight" in tensors


def test_licence_and_training_data_go_along(server, tmp_path, capsys):
    name = "b3-vb2+vox2+cnc2_v0-ptn"
    server.files[f"{name}.pt"] = published_file("b3-vb2+vox2+cnc2")
    model, exported = tmp_path / "model", tmp_path / "b3.onnx"
    main([name, "--output", str(model)])
    data = "VoxBlink2 (CC BY-NC-SA), VoxCeleb2 and CN-Celeb2"
    hyperparams = (model / "hyperparams.yaml").read_text()
    assert f'\nlicense: "mit"\ntraining_data: "{data}"\n' in hyperparams
    cli.main(["export", str(model), f"--output={exported}"])
    known = {x.key: x.value for x in onnx.load(exported).metadata_props}
    assert (known["license"], known["training_data"]) == ("mit", data)
    capsys.readouterr()
    cli.main(["push", str(model), "user/name", "--dry_run"])
    card = capsys.readouterr().out
    assert "\nlicense: mit\n" in card and f"| training data | {data} |" in card
    given = ["--license=cc-by-4.0", "--training_data=Mine"]
    cli.main(["push", str(model), "user/name", "--dry_run", *given])
    card = capsys.readouterr().out
    assert "\nlicense: cc-by-4.0\n" in card and "| Mine |" in card
    trained_further = after_fine_tuning(model)
    assert trained_further == ("mit", f"{data}, then trained further")
    stated = Provenance("other", None)
    text = with_provenance(hyperparams, stated)
    assert text.count("license:") == 1 and '\nlicense: "other"\n' in text
    (tmp_path / "hyperparams.yaml").write_text("- license")
    for nothing in (None, tmp_path / "gone", tmp_path):
        assert after_fine_tuning(nothing) == (None, None)


def test_files_of_torch_hub_are_used(server, cache, tmp_path):
    torch.hub.load_state_dict_from_url(
        f"{server.address}/{FILE}", progress=False, weights_only=True
    )
    assert len(server.ranges) == 1
    main([NAME, "--output", str(tmp_path / "model")])
    assert len(server.ranges) == 1
    assert os.listdir(cache) == [FILE]


def test_a_cut_connection_is_resumed(server, cache, tmp_path):
    total = len(server.files[FILE])
    server.cut_at = total // 3
    message = refuse(tmp_path)
    assert f"the connection ended at {total // 3} of {total} bytes" in message
    assert "run the same command again" in message
    assert not (cache / FILE).exists()
    server.cut_at = None
    main([NAME, "--output", str(tmp_path / "model")])
    assert server.ranges == [None, f"bytes={total // 3}-"]
    assert (tmp_path / "model" / "hyperparams.yaml").exists()


def test_an_interrupted_download_is_resumed(server, cache, tmp_path, capsys):
    server.cut_at = 1000
    refuse(tmp_path)
    server.before_answer = lambda: os.kill(os.getpid(), signal.SIGINT)
    # Whatever runs the tests in the background may have SIGINT ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(SystemExit) as end:
            main([NAME, "--output", str(tmp_path / "model")])
    finally:
        signal.signal(signal.SIGINT, before)
    assert end.value.code == 130
    assert capsys.readouterr().err.endswith("interrupted\n")
    server.before_answer = server.cut_at = None
    main([NAME, "--output", str(tmp_path / "model")])
    assert server.ranges[-1].startswith("bytes=1000")


def test_offline_it_says_what_goes_where(server, cache, tmp_path):
    server.server_close()
    message = refuse(tmp_path)
    assert f"{server.address}/{FILE}: cannot be fetched" in message
    assert message.endswith(f"fetch it by hand and save it as {cache / FILE}")
    # And that helps.
    (cache / FILE).write_bytes(server.files[FILE])
    main([NAME, "--output", str(tmp_path / "model")])


@pytest.mark.parametrize("status", [404, 403, 500])
def test_http_errors(server, cache, tmp_path, status):
    server.error = status
    assert f"HTTP Error {status}" in refuse(tmp_path)
    assert not os.listdir(cache)


OTHER_CONTENT = {
    "page": (lambda: b"<html>Log in</html>", "not a complete checkpoint"),
    "cut": (lambda: published_file("b0-vox2")[:-1000], "not a complete check"),
    "damaged": (
        lambda: damaged(published_file("b0-vox2")),
        "not a complete checkpoint",
    ),
    "other variant": (
        lambda: published_file("b1-vox2"),
        "model_config.C: 16 is not that of b0",
    ),
}


@pytest.mark.parametrize("kind", OTHER_CONTENT)
def test_other_content_never_takes_the_name(server, cache, tmp_path, kind):
    content, expected = OTHER_CONTENT[kind]
    server.files[FILE] = content()
    message = refuse(tmp_path)
    assert message.startswith(f"error: {server.address}/{FILE}: {expected}")
    assert not os.listdir(cache)


def test_another_architecture_of_the_variant(server, cache, tmp_path):
    name = "b3-vb2+vox2+cnc2_v0-lm"
    server.files[f"{name}.pt"] = published_file("b3-vox2")
    message = refuse(tmp_path, name)
    assert f"model_config.agg_gnorm: False is not that of {name}" in message
    assert not os.listdir(cache)


def test_another_network_of_as_many_channels(server, cache, tmp_path):
    """Damaged on the way, or of another author."""
    case = ParityCase("b3-vox2")
    config = {**case.manifest["model_config"], "embed_dim": 256}
    content = io.BytesIO()
    network = build_network(config)
    torch.save(published_checkpoint(network), content)
    server.files["b3-vox2-lm.pt"] = content.getvalue()
    message = refuse(tmp_path, "b3-vox2-lm")
    assert "model_config.embed_dim: 256 is not that of b3" in message
    assert not os.listdir(cache)


@pytest.mark.parametrize("kind", OTHER_CONTENT)
def test_other_content_in_the_cache_is_named(server, cache, tmp_path, kind):
    content, expected = OTHER_CONTENT[kind]
    cache.mkdir(parents=True)
    (cache / FILE).write_bytes(content())
    message = refuse(tmp_path)
    assert message.startswith(f"error: {cache / FILE}: {expected}")
    assert message.endswith("(delete it and run the same command again)")
    assert not server.ranges
    (cache / FILE).unlink()
    main([NAME, "--output", str(tmp_path / "model")])


def test_a_full_disk(server, cache, tmp_path):
    with full_disk(100_000):
        assert "File too large" in refuse(tmp_path)
    assert os.listdir(cache) == [f"{FILE}.partial"]
    main([NAME, "--output", str(tmp_path / "model")])
    assert server.ranges == [None, "bytes=100000-"]


def test_a_cache_that_cannot_be_made(server, tmp_path):
    (tmp_path / "torch").write_text("a file")
    assert str(tmp_path / "torch") in refuse(tmp_path)
    assert not server.ranges


@pytest.mark.parametrize(
    "name, hint",
    [
        ("b3-vox2-ml", "did you mean b3-vox2-lm?"),
        ("B6-vox2_lm.pt", "did you mean b6-vox2-lm?"),
        ("../b0-vox2-lm", "did you mean b0-vox2-lm?"),
        ("../../secret", "See redimnet2"),
        ("b7", "See redimnet2"),
    ],
)
def test_wrong_names(server, cache, tmp_path, name, hint):
    message = refuse(tmp_path, name)
    assert message.startswith(f"error: {name}: no such file, and no published")
    assert hint in message and message.endswith("--list")
    assert not server.ranges and not cache.exists()


def test_the_list(capsys):
    main(["--list"])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    rows = {line.split()[0]: line for line in lines if re.match(r"b\d-", line)}
    assert list(rows) == list(releases.RELEASED) and len(rows) == 20
    assert len({len(line) for line in rows.values()}) == 1
    figures = ["lm", "12,394,784", "13.05", "0.287", "0.52", "0.99"]
    assert rows["b6-vox2-lm"].split()[1:] == figures
    none_given = ["ptn", "-", "-", "-", "-", "-"]
    assert rows["b3-vb2+vox2+cnc2_v0-ptn"].split()[1:] == none_given
