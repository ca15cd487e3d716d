"""The script that extracts embeddings: its outputs, resumption, errors."""

import csv
import os
import signal
import subprocess
import sys
from pathlib import Path

import extract_speaker_embeddings as extraction
import kaldiio
import numpy as np
import pytest
import soundfile
import torch
from conftest import exit_code, join_files
from pyarrow import parquet
from speechbrain.inference.classifiers import EncoderClassifier

from redimnet2_lobes.data.audio import load_waveform
from redimnet2_lobes.files.error_lines import one_line
from redimnet2_lobes.inference import embedding_files
from redimnet2_lobes.models.front_end import LogMel
from redimnet2_lobes.models.redimnet2 import ReDimNet2
from redimnet2_lobes.pretrained.model_folder import write_model_folder
from redimnet2_lobes.recipe.command_line import main_with_one_line_errors

REPOSITORY = Path(__file__).resolve().parent.parent
SCRIPT = Path(extraction.__file__)
HPARAMS = REPOSITORY / "hparams" / "extract_redimnet2.yaml"

# Runs the script, notes how many utterances each process embeds, and kills it
# in the middle of writing a part if one is given.
PROGRAM = """\
import os, runpy, signal, sys
import numpy
from redimnet2_lobes.inference import embedding_cache

killed_at, folder, script, *arguments = sys.argv[1:]
encode, save = embedding_cache.encode_utterances, numpy.savez
saved = 0

def noted(encode_batch, paths, **options):
    with open(f"{folder}/process{os.environ.get('RANK', '')}", "a") as file:
        file.writelines(f"{path}\\n" for path in paths)
    return encode(encode_batch, paths, **options)

def killed(file, **arrays):
    global saved
    saved += 1
    if saved == int(killed_at):
        file.write(b"half a part")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    save(file, **arrays)

embedding_cache.encode_utterances, numpy.savez = noted, killed
sys.argv = [script, *arguments]
sys.path.insert(0, os.path.dirname(script))
runpy.run_path(script, run_name="__main__")
"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Seven short files of two speakers, and a wav.scp of them."""
    folder = tmp_path_factory.mktemp("corpus")
    random = np.random.default_rng(0)
    lines = []
    for index in range(7):
        path = folder / "wav" / f"speaker{index % 2}" / f"{index}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, random.uniform(-0.5, 0.5, 8000), 16000)
        lines.append(f"utterance{index} {path}\n")
    lines.reverse()
    (folder / "wav.scp").write_text("".join(lines))
    return folder


def write_model(folder, seed):
    torch.manual_seed(seed)
    stage = {"blocks": 1, "expansion": 1, "reduction": 8}
    network = ReDimNet2(
        LogMel(), 4, [{"frequency_stride": 2, "time_stride": 2, **stage}]
    )
    write_model_folder(folder, network, "A small network")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("models") / "small", seed=0)


@pytest.fixture
def arguments(corpus, model, tmp_path):
    """Makes the command line."""

    def make(**keys):
        keys = {
            "utterances": corpus,
            "checkpoint": model,
            "output": tmp_path / "results" / "embeddings",
            "utterances_per_part": 2,
            "device": "cpu",
            **keys,
        }
        return [
            str(HPARAMS),
            *(f"--{key}={value}" for key, value in keys.items()),
        ]

    return make


@pytest.fixture
def extract(arguments, tmp_path):
    """Runs the script's main function in this process."""

    def run(**keys):
        extraction.main(arguments(**keys))
        return tmp_path / "results"

    return run


def expected(corpus, model):
    """Each path to its embedding, file by file."""
    encoder = EncoderClassifier.from_hparams(source=str(model))
    return {
        path: encoder.encode_batch(load_waveform(path)).flatten().numpy()
        for path in corpus.rglob("*.wav")
    }


def check(found, wanted):
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, atol=1e-5 * abs(wanted).max())


def test_numpy(extract, corpus, model, capsys):
    results = extract()
    with np.load(results / "embeddings.npz", allow_pickle=False) as arrays:
        assert set(arrays) == {"names", "embeddings", "embedding_space"}
        names = arrays["names"].tolist()
        embeddings = arrays["embeddings"]
    assert names == sorted(names) and len(names) == 7
    wanted = expected(corpus, model)
    for name, embedding in zip(names, embeddings, strict=True):
        check(embedding, wanted[corpus / "wav" / name])
    # The parts are gone, and no other file is there.
    assert [path.name for path in results.iterdir()] == ["embeddings.npz"]
    assert "written  7 embeddings" in capsys.readouterr().out


def test_kaldi(extract, corpus, model, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    results = extract(
        utterances=corpus / "wav.scp",
        format="kaldi",
        output="results/embeddings.scp",
    )
    assert {path.name for path in results.iterdir()} == {
        "embeddings.ark",
        "embeddings.embedding_space.txt",
        "embeddings.scp",
    }
    lines = (results / "embeddings.scp").read_text().splitlines()
    assert [line.split()[0] for line in lines] == [
        f"utterance{index}" for index in reversed(range(7))
    ]
    assert all(" results/embeddings.ark:" in line for line in lines)
    embeddings = kaldiio.load_scp("results/embeddings.scp")
    in_order = dict(kaldiio.load_ark("results/embeddings.ark"))
    wanted = expected(corpus, model)
    for line in (corpus / "wav.scp").read_text().splitlines():
        name, path = line.split()
        check(embeddings[name], wanted[Path(path)])
        assert np.array_equal(in_order[name], embeddings[name])


def test_parquet(extract, corpus, model, monkeypatch):
    monkeypatch.setattr(embedding_files, "ROWS_PER_GROUP", 3)
    results = extract(format="parquet", maximum_seconds=0.25)
    table = parquet.read_table(results / "embeddings.parquet")
    assert (
        parquet.ParquetFile(results / "embeddings.parquet").num_row_groups == 3
    )
    assert str(table.schema.field("embedding").type).startswith("list<")
    rows = table.to_pylist()
    assert len(rows) == 7
    encoder = EncoderClassifier.from_hparams(source=str(model))
    for row in rows:
        wav = load_waveform(corpus / "wav" / row["name"])[:4000]
        embedding = np.array(row["embedding"], np.float32)
        check(embedding, encoder.encode_batch(wav).flatten().numpy())
        assert row["speaker"] == row["name"].split("/")[0]
        assert row["seconds"] == 0.25


def test_speakers_that_are_not_known_are_null(extract, corpus):
    results = extract(utterances=corpus / "wav.scp", format="parquet")
    table = parquet.read_table(results / "embeddings.parquet")
    assert table["speaker"].to_pylist() == [None] * 7


def test_averaged_crops(extract, corpus, model):
    results = extract(maximum_seconds=0.1, crops=2)
    with np.load(results / "embeddings.npz") as arrays:
        name, embedding = arrays["names"][0], arrays["embeddings"][0]
    wav = load_waveform(corpus / "wav" / name)
    encoder = EncoderClassifier.from_hparams(source=str(model))
    crops = encoder.encode_batch(torch.stack([wav[:1600], wav[-1600:]]))
    wanted = torch.nn.functional.normalize(crops, dim=-1).mean(dim=0)
    check(embedding, wanted.flatten().numpy())


def run_script(*command, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    position = command.index("PROGRAM")
    killed_at = command[position + 1]
    return subprocess.run(
        [
            sys.executable,
            *command[:position],
            program,
            killed_at,
            tmp_path,
            SCRIPT,
            *command[position + 2 :],
        ],
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(REPOSITORY),
        },
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_a_killed_run_goes_on_in_two_processes(
    extract, arguments, corpus, tmp_path
):
    command = arguments()
    results = tmp_path / "results"
    process = run_script("PROGRAM", "2", *command, tmp_path=tmp_path)
    assert process.returncode == -signal.SIGKILL, process.stderr
    (parts,) = results.iterdir()
    assert parts.name == "embeddings.embedding_parts"
    assert len(list(parts.glob("*/*.npz"))) == 1
    process = run_script(
        *("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"),
        *("PROGRAM", "0"),
        *command,
        "--distributed_backend=gloo",
        tmp_path=tmp_path,
    )
    assert process.returncode == 0, process.stderr
    assert [path.name for path in results.iterdir()] == ["embeddings.npz"]
    # Of four parts one was there; each process made what was left of its own.
    first, second = (
        (tmp_path / f"process{rank}").read_text().split() for rank in (0, 1)
    )
    assert (len(first), len(second)) == (2, 3)
    assert len({*first, *second}) == 5

    extract(output=tmp_path / "results" / "alone")
    with (
        np.load(results / "embeddings.npz") as together,
        np.load(results / "alone.npz") as alone,
    ):
        assert np.array_equal(together["names"], alone["names"])
        for found, wanted in zip(
            together["embeddings"], alone["embeddings"], strict=True
        ):
            check(found, wanted)


def test_another_checkpoint_never_meets_the_parts_of_the_last(
    extract, corpus, tmp_path, monkeypatch
):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(extraction, "run_on_main", interrupt)
        with pytest.raises(KeyboardInterrupt):
            extract()
    assert list((tmp_path / "results").glob("*/*/part-*.npz"))
    other = write_model(tmp_path / "other", seed=1)
    results = extract(checkpoint=other)
    wanted = expected(corpus, other)
    with np.load(results / "embeddings.npz") as arrays:
        names, embeddings = arrays["names"], arrays["embeddings"]
        for name, embedding in zip(names, embeddings, strict=True):
            check(embedding, wanted[corpus / "wav" / name])
    assert [path.name for path in results.iterdir()] == ["embeddings.npz"]


@pytest.fixture(scope="module")
def recordings(corpus, tmp_path_factory):
    """The files of the corpus in two longer ones, with lists of segments.

    All lists have the same utterances under the same names.
    """
    folder = tmp_path_factory.mktemp("recordings")
    rows = ["ID,duration,wav,start,stop,spk_id"]
    recordings, segments, files = [], [], {}
    for number in range(2):
        paths = sorted(corpus.rglob("*.wav"))[number::2]
        joined = folder / f"{number}.wav"
        recordings.append(f"{number} {joined}\n")
        for path, (start, stop) in zip(
            paths, join_files(paths, joined), strict=True
        ):
            name = path.stem
            rows.append(f"{name},99,$data_root/{joined.name},{start},{stop},x")
            borders = f"{start / 16000:.6f} {stop / 16000:.6f}"
            segments.append(f"{name} {number} {borders}\n")
            files[name] = path
    (folder / "list.csv").write_text("\n".join(rows))
    (folder / "wav.scp").write_text("".join(recordings))
    (folder / "segments").write_text("".join(segments))
    return folder, files


@pytest.mark.parametrize("name", ["list.csv", "wav.scp"])
def test_segments_are_embedded_as_files_of_them(
    name, extract, recordings, corpus, model
):
    folder, files = recordings
    results = extract(utterances=folder / name, format="parquet")
    rows = parquet.read_table(results / "embeddings.parquet").to_pylist()
    wanted = expected(corpus, model)
    assert [row["name"] for row in rows] == list(files)
    embeddings = [np.array(row["embedding"], np.float32) for row in rows]
    for row, embedding in zip(rows, embeddings, strict=True):
        check(embedding, wanted[files[row["name"]]])
        assert row["seconds"] == 0.5
    assert len({tuple(embedding) for embedding in embeddings}) == 7


def test_an_output_is_not_overwritten(extract):
    (written,) = extract().iterdir()
    before = written.read_bytes()
    with pytest.raises(ValueError, match=r"output: .*embeddings\.npz exists"):
        extract(maximum_seconds=0.1)
    assert written.read_bytes() == before


@pytest.mark.parametrize("form", ["numpy", "kaldi"])
def test_a_full_disk_leaves_no_output_but_the_parts(
    form, extract, monkeypatch, tmp_path
):
    def full_disk(file, *_, **__):
        file.write(b"half a file")
        raise OSError(28, "No space left on device")

    whole = np.savez
    with monkeypatch.context() as patched:
        patched.setattr(kaldiio, "save_ark", full_disk)
        patched.setattr(
            np,
            "savez",
            lambda file, **arrays: (
                full_disk if "embeddings" in arrays else whole
            )(file, **arrays),
        )
        with pytest.raises(OSError, match="No space left.*same command"):
            extract(format=form)
    (left,) = (tmp_path / "results").iterdir()
    assert left.name == "embeddings.embedding_parts"
    # The rest needs no network.
    monkeypatch.setattr(ReDimNet2, "forward", None)
    assert "embeddings.embedding_parts" not in os.listdir(extract(format=form))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"format": "matlab"}, "format: unknown value 'matlab'.* kaldi, parq"),
        ({"variant": "b9"}, "variant: unknown value 'b9'.* b0, b1"),
        ({"crops": 3}, "maximum_seconds: missing; crops"),
        ({"crops": 0, "maximum_seconds": 1}, "crops: 0 is less than 1"),
        ({"crops": 1.5, "maximum_seconds": 1}, "crops: expected a whole"),
        ({"maximum_seconds": 0}, "maximum_seconds: 0 is less than 0.025"),
        ({"maximum_seconds": "long"}, "maximum_seconds: expected a number"),
        ({"seconds_per_batch": 0}, "seconds_per_batch: 0 is less"),
        ({"utterances_per_part": 0}, "utterances_per_part: 0 is less"),
        ({"utterances": "nowhere"}, "^nowhere: neither a folder"),
        ({"data_folder": 7}, "data_folder: expected text"),
        ({"output": 7}, "output: expected text"),
        ({"checkpoint": "./nowhere"}, "checkpoint: no file or folder"),
    ],
)
def test_wrong_values_are_named_by_key(keys, message, extract, tmp_path):
    with pytest.raises(ValueError, match=message) as caught:
        extract(**keys)
    assert "\n" not in one_line(caught.value)
    assert not (tmp_path / "results").exists()


def test_missing_keys_say_what_to_pass():
    for given, missing in (
        ([], "utterances: missing; pass .*wav.scp"),
        (["--utterances=x", "--checkpoint=x"], "output: missing; pass .*file"),
    ):
        with pytest.raises(ValueError, match=missing):
            extraction.main([str(HPARAMS), *given])


@pytest.mark.parametrize(
    "form, package", [("kaldi", "kaldiio"), ("parquet", "pyarrow")]
)
def test_a_package_that_is_not_installed(form, package, extract, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=f"format: .* pip install {package}$"):
        extract(format=form)


def test_kaldi_has_no_names_with_white_space(extract, corpus, tmp_path):
    (path, *_) = corpus.rglob("*.wav")
    (tmp_path / "list.csv").write_text(f"ID,wav\na b,{path}\n")
    with pytest.raises(ValueError, match="white space in names.* 'a b'"):
        extract(utterances=tmp_path / "list.csv", format="kaldi")
    extract(utterances=tmp_path / "list.csv")


@pytest.fixture
def mixed(corpus, tmp_path):
    """A wav.scp with speakers of seven good files and of bad ones."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    soundfile.write(folder / "silent.wav", np.zeros(8000), 16000)
    (folder / "a.m4a").write_bytes(b"\0\0\0\x20ftypM4A ")
    (folder / "a.wav").mkdir()
    (folder / "empty $1.wav").touch()
    bad = {
        "x/silent": folder / "silent.wav",
        "x/a": folder / "a.m4a",
        "y/folder": folder / "a.wav",
        "y/empty": folder / "empty $1.wav",
        "y/lost": folder / "lost.wav",
    }
    lines = (corpus / "wav.scp").read_text().splitlines()
    added = [f"{name} {path}" for name, path in bad.items()]
    lines = [added[0], *lines[:3], *added[1:3], *lines[3:], *added[3:]]
    (folder / "wav.scp").write_text("\n".join(lines))
    names = [line.split()[0] for line in lines]
    (folder / "utt2spk").write_text(
        "".join(f"{name} speaker-{name[0]}\n" for name in names)
    )
    return folder / "wav.scp", bad


REASONS = {
    "x/silent": "silent; ",
    "x/a": "unreadable; ",
    "y/folder": "a folder; ",
    "y/empty": "empty; ",
    "y/lost": "missing; check the path",
}


def read_report(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("form", ["numpy", "kaldi", "parquet"])
def test_bad_files_are_left_out_and_named(
    form, arguments, mixed, corpus, model, capsys, tmp_path
):
    listed, bad = mixed
    line = extraction.main(arguments(utterances=listed, format=form))
    report = tmp_path / "results" / "embeddings.left_out.csv"
    assert line == (
        f"error: 5 of the 12 utterances cannot be used, {report} names them"
    )
    captured = capsys.readouterr()
    assert captured.out.startswith("written  7 embeddings: ")
    lines = captured.err.splitlines()[-5:]
    rows = read_report(report)
    assert list(rows[0]) == ["ID", "wav", "spk_id", "reason"]
    assert [row["ID"] for row in rows] == list(bad)
    for row, shown in zip(rows, lines, strict=True):
        path = bad[row["ID"]]
        assert row["wav"].replace("$$", "$") == str(path)
        assert row["spk_id"] == f"speaker-{row['ID'][0]}"
        assert row["reason"].startswith(REASONS[row["ID"]])
        assert shown == f"left out  {path}: {row['reason']}"
    assert "embeddings.embedding_parts" not in os.listdir(tmp_path / "results")
    if form == "parquet":
        table = parquet.read_table(tmp_path / "results/embeddings.parquet")
        rows = table.to_pylist()
        found = {row["name"]: row["embedding"] for row in rows}
        assert set(table["speaker"].to_pylist()) == {"speaker-u"}
    elif form == "kaldi":
        found = kaldiio.load_scp(str(tmp_path / "results/embeddings.scp"))
    else:
        with np.load(tmp_path / "results/embeddings.npz") as arrays:
            pair = arrays["names"], arrays["embeddings"]
            found = dict(zip(*pair, strict=True))
    wanted = expected(corpus, model)
    for line in (corpus / "wav.scp").read_text().splitlines():
        name, path = line.split()
        check(np.array(found[name], np.float32), wanted[Path(path)])
    assert len(found) == 7


def test_what_was_mended_is_extracted_by_the_report(
    arguments, mixed, corpus, extract, tmp_path
):
    listed, bad = mixed
    extraction.main(arguments(utterances=listed))
    report = tmp_path / "results" / "embeddings.left_out.csv"
    (good, *_) = corpus.rglob("*.wav")
    for name in ("x/silent", "y/empty"):
        bad[name].write_bytes(good.read_bytes())
    with pytest.raises(ValueError, match="choose another output"):
        (tmp_path / "results" / "embeddings.npz").unlink()
        extract(utterances=report)
    assert len(read_report(report)) == 5
    results = extract(utterances=report, output=tmp_path / "results" / "more")
    with np.load(results / "more.npz") as arrays:
        assert arrays["names"].tolist() == ["x/silent", "y/empty"]
    left = read_report(results / "more.left_out.csv")
    assert [row["ID"] for row in left] == ["x/a", "y/folder", "y/lost"]
    assert {row["spk_id"] for row in left} == {"speaker-x", "speaker-y"}


def test_strict_stops_at_the_first(extract, mixed, tmp_path):
    listed, bad = mixed
    results = tmp_path / "results"

    def message(*without):
        lines = listed.read_text().splitlines()
        lines = [line for line in lines if not line.startswith(without)]
        listed.write_text("\n".join(lines))
        with pytest.raises(ValueError) as caught:
            extract(utterances=listed, strict=True)
        assert "\n" not in str(caught.value)
        assert not list(results.glob("embeddings.*.csv"))
        assert not (results / "embeddings.npz").exists()
        return str(caught.value)

    assert "2 of the 12 files are missing" in message("none")
    found = message("y/lost", "y/folder")
    assert found.startswith(f"{bad['x/a']}: unreadable; ")
    assert found.count(".wav") == 0
    # Nor does it take what a run that goes on has kept.
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(extraction, "run_on_main", None)
        with pytest.raises(TypeError):
            extract(utterances=listed)
    assert list(results.glob("*/*/part-*.npz"))
    assert message("none") == found


def test_every_file_is_bad(arguments, corpus, tmp_path, capsys):
    folder = tmp_path / "bad"
    folder.mkdir()
    for index in range(25):
        (folder / f"{index:02}.wav").touch()
    command = arguments(utterances=folder)
    line = extraction.main(command)
    report = tmp_path / "results" / "embeddings.left_out.csv"
    assert line.startswith("error: 25 of the 25 utterances cannot be used, ")
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()[-21:]
    assert [line.split(":")[0] for line in lines[:20]] == [
        f"left out  {folder}/{index:02}.wav" for index in range(20)
    ]
    assert lines[20] == f"and 5 more, see {report}"
    assert os.listdir(report.parent) == [report.name]
    assert len(read_report(report)) == 25
    # Mended, by the same command; the report is of no more use.
    (good, *_) = corpus.rglob("*.wav")
    for path in folder.iterdir():
        path.write_bytes(good.read_bytes())
    assert extraction.main(command) is None
    assert os.listdir(report.parent) == ["embeddings.npz"]


@pytest.mark.slow
def test_a_killed_run_with_bad_files_goes_on_in_two_processes(
    arguments, mixed, tmp_path
):
    listed, bad = mixed
    command = arguments(utterances=listed)
    process = run_script("PROGRAM", "5", *command, tmp_path=tmp_path)
    assert process.returncode == -signal.SIGKILL, process.stderr
    before = set((tmp_path / "process").read_text().splitlines())
    process = run_script(
        *("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"),
        *("PROGRAM", "0"),
        *command,
        "--distributed_backend=gloo",
        tmp_path=tmp_path,
    )
    assert process.returncode == 1
    assert process.stdout.count("written  7 embeddings") == 1
    for path in bad.values():
        assert process.stderr.count(f"left out  {path}: ") == 1
    assert process.stderr.count("error: 5 of the 12 utterances") == 1
    # Of six parts four were there, and nothing in them is tried again.
    after = set()
    for rank in (0, 1):
        if (tmp_path / f"process{rank}").exists():
            text = (tmp_path / f"process{rank}").read_text()
            after |= set(text.splitlines())
    assert len(after) == 4 and len(before | after) == 12
    results = tmp_path / "results"
    assert sorted(os.listdir(results)) == [
        "embeddings.left_out.csv",
        "embeddings.npz",
    ]
    assert len(read_report(results / "embeddings.left_out.csv")) == 5


def test_the_exit_status_says_that_something_is_left_out(
    arguments, mixed, corpus, monkeypatch, capsys
):
    for utterances, code in ((mixed[0], 1), (corpus, 0)):
        output = f"{utterances}.out"
        command = arguments(utterances=utterances, output=output)
        monkeypatch.setattr(sys, "argv", ["script", *command])
        assert exit_code(main_with_one_line_errors, extraction.main) == code
