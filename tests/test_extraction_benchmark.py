"""The benchmark of extraction: its files, its table; no figure is judged."""

import dataclasses

import extraction as benchmark
import pytest
import soundfile
import torch

from redimnet2_lobes.models.front_end import LogMel
from redimnet2_lobes.models.redimnet2 import ReDimNet2

STAGE = {"frequency_stride": 2, "time_stride": 2, "reduction": 8}


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs it with a small network in place of B0; gives status and lines."""
    network = ReDimNet2(LogMel(), 4, [{**STAGE, "blocks": 1, "expansion": 1}])
    monkeypatch.setattr(
        benchmark.ReDimNet2, "from_variant", {"b0": network}.__getitem__
    )
    monkeypatch.setattr(benchmark, "DIFFERENT", 8)

    def run(files):
        output = tmp_path / "results" / "table.md"
        status = benchmark.main(
            [
                *(str(tmp_path / "files"), "--variants", "b0", "--turn=5"),
                *(f"--files={files}", "--threads=1", f"--output={output}"),
            ]
        )
        text = output.read_text()
        assert capsys.readouterr().out == text
        return status, text.splitlines()

    threads = torch.get_num_threads()
    yield run
    torch.set_num_threads(threads)


def test_the_table_and_the_files(run, tmp_path):
    status, lines = run(9)
    assert status == 0 and "threads: 1" in lines[0]
    assert lines[2] == "9 files in turns of 5, 240 s per batch"
    assert lines[-1] == "Embeddings are the same."
    cells = [[cell.strip() for cell in x.split("|")[1:-1]] for x in lines[6:9]]
    assert [row[:2] for row in cells] == [
        ["b0", work] for work in ("computing", "extraction", "loading")
    ]
    assert cells[0][4:6] == ["100.0", "100.0"] and cells[2][6] == ""
    assert all(float(figure) >= 0 for row in cells for figure in row[2:6])
    files = sorted((tmp_path / "files").iterdir())
    kinds = [(soundfile.info(file).format, file.suffix) for file in files]
    assert kinds == [("FLAC", ".flac"), ("MP3", ".mp3")] * 4 + [kinds[0]]
    rates = [soundfile.info(file).samplerate for file in files]
    assert rates == [16000, 16000, 44100, 44100] * 2 + [16000]
    assert all(3 <= soundfile.info(file).duration <= 20.1 for file in files)
    assert len({file.read_bytes() for file in files}) == 8
    written = [file.stat().st_mtime_ns for file in files]
    assert len(benchmark.write_files(tmp_path / "files", 10)) == 10
    assert [file.stat().st_mtime_ns for file in files] == written


def test_other_embeddings_fail(run, monkeypatch):
    extract = benchmark.extract_embeddings

    def changed(*arguments, **options):
        kept = extract(*arguments, **options)
        vectors = kept.vectors.clone()
        vectors[1, 0] += 1e-3
        return dataclasses.replace(kept, vectors=vectors)

    monkeypatch.setattr(benchmark, "extract_embeddings", changed)
    status, lines = run(3)
    assert status == 1 and lines[-1] == "Embeddings ARE NOT the same."
