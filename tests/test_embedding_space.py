"""Embedding spaces: their names, where they are kept, what is refused."""

import io
import json
import shutil

import numpy as np
import pytest
import soundfile
import torch
from speechbrain.lobes.models.ECAPA_TDNN import Classifier
from test_cli import buzz

from redimnet2_lobes import SpeakerRecognition, load
from redimnet2_lobes.data.audio import load_waveform
from redimnet2_lobes.inference.embedding_cache import Embeddings
from redimnet2_lobes.inference.embedding_files import (
    FORMATS,
    output_files,
    read_embeddings,
    write_embeddings,
)
from redimnet2_lobes.models.embedding_space import embedding_space
from redimnet2_lobes.models.front_end import LogMel, TorchaudioLogMel
from redimnet2_lobes.models.pass_through import PassThrough
from redimnet2_lobes.models.redimnet2 import ReDimNet2
from redimnet2_lobes.models.variants import VARIANTS
from redimnet2_lobes.onnx.export import export_onnx
from redimnet2_lobes.pretrained.loading import load_model
from redimnet2_lobes.pretrained.model_folder import write_model_folder


def network(front_end=None, seed=0, **options):
    torch.manual_seed(seed)
    stage = {"blocks": 1, "expansion": 1, "reduction": 8}
    stages = [{"frequency_stride": 2, "time_stride": 2, **stage}]
    return ReDimNet2(front_end or LogMel(), 4, stages, **options).eval()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two model folders of one architecture, with other weights."""
    both = []
    for seed in (0, 1):
        folder = tmp_path_factory.mktemp("models") / f"seed{seed}"
        write_model_folder(folder, network(seed=seed), "A small network")
        both.append(folder)
    return both


@pytest.fixture
def model_folder(folders):
    return folders[0]


SPACES = [embedding_space(network(seed=seed)) for seed in (0, 1)]


def test_a_space_has_the_same_name_in_every_version():
    """What is stored today is compared with what is computed in years."""
    b0 = ReDimNet2.from_variant("b0")
    for weight in b0.state_dict().values():
        values = torch.arange(weight.numel()) % 7 / 8  # exact everywhere
        weight.copy_(values.view_as(weight))
    assert embedding_space(b0) == "redimnet2-b0-47cf1458586e7dd5"


def test_every_weight_makes_a_space():
    small = network()
    seen = {embedding_space(small)}
    assert seen == {embedding_space(network())}
    weights = [x for x in small.state_dict().values() if x.is_floating_point()]
    for weight in weights:
        weight.view(-1)[-1] += 1
        seen.add(embedding_space(small))
    assert len(seen) == 1 + len(weights)


def test_the_architecture_makes_a_space():
    """Also where it changes no weight."""
    others = [
        network(TorchaudioLogMel()),
        network(TorchaudioLogMel(normalize=True)),
        network(),
    ]
    others[2]._arguments = {**others[2]._arguments, "out_channels": 999}
    spaces = {embedding_space(other) for other in others}
    assert len(spaces) == 3 and SPACES[0] not in spaces
    for one, other in (
        (torch.nn.ReLU(), torch.nn.Tanh()),
        (torch.nn.ELU(1.0), torch.nn.ELU(2.0)),
    ):
        first, second = torch.nn.Sequential(one), torch.nn.Sequential(other)
        assert embedding_space(first) != embedding_space(second)


def test_what_moves_no_embedding_makes_none():
    small = network()
    for name, counter in small.state_dict().items():
        if "num_batches" in name:
            counter += 7
    small.to(memory_format=torch.channels_last).double()
    around = {"compute_features": PassThrough(), "embedding_model": small}
    for classes in (2, 3):
        classifier = Classifier(192, out_neurons=classes)
        mods = torch.nn.ModuleDict({**around, "classifier": classifier})
        assert embedding_space(mods) == SPACES[0]
    parallel = {**around, "embedding_model": torch.nn.DataParallel(small)}
    assert embedding_space(torch.nn.ModuleDict(parallel)) == SPACES[0]
    around["compute_features"] = torch.nn.LayerNorm(2)
    assert embedding_space(torch.nn.ModuleDict(around)) != SPACES[0]


def test_every_form_of_a_model_names_its_space(model_folder, tmp_path):
    paths = [tmp_path / name for name in ("a.onnx", "b.onnx", "c.onnx")]
    export_onnx(network(), paths[0])
    export_onnx(network(), paths[1], target="fixed", seconds=1)
    export_onnx(network(), paths[2], int8=True)
    spaces = [load(path).space for path in paths]
    assert spaces == [SPACES[0], SPACES[0], f"{SPACES[0]}-int8"]
    stated = (model_folder / "embedding_space.txt").read_text()
    assert stated == f"{SPACES[0]}\n"
    assert embedding_space(load(model_folder).mods) == SPACES[0]


def test_variants_are_named():
    for variant in VARIANTS:
        space = embedding_space(ReDimNet2.from_variant(variant))
        assert space.startswith(f"redimnet2-{variant}-")


def test_weights_of_another_space_are_no_model(folders, tmp_path):
    mixed = tmp_path / "mixed"
    shutil.copytree(folders[0], mixed)
    for name in ("ckpt", "safetensors"):
        weights = f"embedding_model.{name}"
        shutil.copy(folders[1] / weights, mixed / weights)
    with pytest.raises(ValueError) as caught:
        load_model(mixed)
    message = str(caught.value)
    assert all(space in message for space in SPACES)
    assert (
        message.startswith(f"{mixed}/embedding_space.txt: ")
        and "\n" not in message
    )


@pytest.fixture(scope="module")
def voice(tmp_path_factory):
    path = tmp_path_factory.mktemp("voices") / "a.wav"
    soundfile.write(path, buzz(180), 16000)
    return path


EMBEDDINGS = Embeddings(["a", "b"], torch.randn(2, 5), torch.ones(2))


@pytest.mark.parametrize("form", FORMATS)
def test_files_keep_it(form, tmp_path):
    outputs = output_files(str(tmp_path / "x.y"), form)
    write_embeddings(form, outputs, EMBEDDINGS, [None, "bea"], "b3-1")
    if form == "kaldi":
        assert outputs[1].name == "x.y.embedding_space.txt"
        assert outputs[1].read_text() == "b3-1\n"
        return
    names, speakers, vectors, space = read_embeddings(outputs[-1])
    assert (names, space) == (EMBEDDINGS.names, "b3-1")
    assert speakers == (["a", "bea"] if form == "parquet" else names)
    assert torch.equal(vectors, EMBEDDINGS.vectors)


ROW = {"name": "a", "embedding": [1.0, 2.0], "embedding_space": "b3-1"}


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.json", b"[", "no JSON"),
        ("a.json", [], "damaged"),
        ("a.json", [{"name": "a", "embedding": [1]}], "embedding_space"),
        ("a.json", [ROW, {**ROW, "embedding_space": "b3-2"}], "too many"),
        ("a.json", [ROW, {**ROW, "embedding": [1.0]}], "damaged"),
        ("a.json", [{**ROW, "name": 1}], "it has no names"),
        ("a.json", [{**ROW, "embedding": []}], "not one for each"),
        ("a.json", [{**ROW, "embedding": [1e999]}], "not finite"),
        ("a.npz", {"names": ["a"], "embeddings": [[1]]}, "embedding_space"),
        (
            "a.npz",
            {"names": ["a"], "embeddings": [1], "embedding_space": "b3-1"},
            "not one for each name",
        ),
        (
            "a.npz",
            {"names": ["a"], "embeddings": [[1]], "embedding_space": 1},
            "does not say",
        ),
        ("a.parquet", b"PAR1", "damaged"),
        ("a.scp", b"a touch run |\n", "no file of embeddings"),
        ("a.json", [ROW, ROW], "a name is there twice"),
        ("a.json", [{**ROW, "embedding": [0.0, 0.0]}], "an embedding is zero"),
        ("a.wav", b"", "no file of embeddings"),
        ("a.npz", None, "no such file"),
    ],
)
def test_other_files_are_refused(name, content, reason, tmp_path):
    path = tmp_path / name
    if isinstance(content, dict):
        file = io.BytesIO()
        np.savez(file, **{k: np.array(v) for k, v in content.items()})
        content = file.getvalue()
    elif isinstance(content, list):
        content = json.dumps(content).encode()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError) as caught:
        read_embeddings(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    assert reason in message


def test_a_parquet_file_of_something_else(tmp_path):
    from pyarrow import parquet, table

    path = tmp_path / "a.parquet"
    columns = {"name": ["a"], "speaker": ["a"], "embedding": [[1.0]]}
    parquet.write_table(table(columns), path)
    with pytest.raises(ValueError, match="it does not say its embedding_space"):
        read_embeddings(path)


@pytest.mark.parametrize(
    "embeddings", [[[1.0, 2.0], [3.0, 4.0, 5.0, 6.0]], [[1.0], None, [2.0] * 2]]
)
def test_a_parquet_file_of_several_sizes(embeddings, tmp_path):
    """As many numbers in all as if each had the same."""
    from pyarrow import parquet, table

    path = tmp_path / "a.parquet"
    names = ["a", "b", "c"][: len(embeddings)]
    columns = {"name": names, "speaker": names, "embedding": embeddings}
    parquet.write_table(
        table(columns, metadata={"embedding_space": "b3-1"}), path
    )
    with pytest.raises(ValueError, match="its embeddings differ in size"):
        read_embeddings(path)


@pytest.fixture
def enrolled(folders, voice, run, tmp_path):
    """Files of a voice and a second one, by the first of the models."""
    soundfile.write(tmp_path / "b.wav", buzz(110), 16000)
    voices = voice, tmp_path / "b.wav"
    paths = [tmp_path / name for name in ("a.npz", "a.json")]
    for path in paths:
        run("embed", *voices, f"--model={folders[0]}", f"--output={path}")
    return paths


def test_speakers_from_a_file(folders, voice, run, enrolled):
    test = str(voice)
    for path in enrolled:
        found = json.loads(
            run(
                *("identify", "--no_vad", test, f"--enrol={path}", "--json"),
                *(f"--model={folders[0]}", "--top=9"),
            )
        )
        assert found["embedding_space"] == SPACES[0]
        best, other = found["files"][0]["candidates"]
        assert best["speaker"] == test
        assert best["score"] == pytest.approx(1, abs=1e-6)
        assert other["score"] < best["score"]


def test_speakers_of_another_space(
    folders,
    voice,
    error_of,
    enrolled,
    tmp_path,
):
    int8 = tmp_path / "int8.onnx"
    export_onnx(network(), int8, int8=True)
    test = voice
    for path in enrolled:
        for model, space in (
            (folders[1], SPACES[1]),
            (int8, f"{SPACES[0]}-int8"),
        ):
            line = error_of(
                *(
                    "identify",
                    "--no_vad",
                    test,
                    f"--enrol={path}",
                    f"--model={model}",
                )
            )
            assert str(path) in line
            assert SPACES[0] in line and space in line


def test_speakers_of_a_table_are_averaged(folders, run, tmp_path, voice):
    model = load(folders[0])
    wavs = torch.randn(3, 8000)
    vectors = model.encode_batch(wavs).squeeze(1)
    (path,) = output_files(str(tmp_path / "x"), "parquet")
    write_embeddings(
        "parquet",
        [path],
        Embeddings(["1", "2", "3"], vectors, torch.ones(3)),
        ["anna", "anna", None],
        SPACES[0],
    )
    found = json.loads(
        run(
            *("identify", "--no_vad", voice, f"--enrol={path}", "--json"),
            f"--model={folders[0]}",
        )
    )
    tested = model.encode_batch(load_waveform(voice)).flatten()
    scores = {
        row["speaker"]: row["score"] for row in found["files"][0]["candidates"]
    }
    anna = torch.nn.functional.normalize(vectors[:2], dim=1).mean(0)
    assert set(scores) == {"anna", "3"}
    for name, enrolled in (("anna", anna), ("3", vectors[2])):
        cosine = torch.cosine_similarity(enrolled, tested, dim=0)
        assert scores[name] == pytest.approx(cosine.item(), abs=1e-5)


def test_speakers_with_too_few_values(folders, error_of, tmp_path, voice):
    path = tmp_path / "x.json"
    path.write_text(json.dumps([{**ROW, "embedding_space": SPACES[0]}]))
    line = error_of(
        "identify",
        "--no_vad",
        voice,
        f"--enrol={path}",
        f"--model={folders[0]}",
    )
    assert f"{path}: damaged, its embeddings have 2 values and not 192" in line


def test_verify_names_the_space(folders, voice, run):
    pair = [voice] * 2
    out = run("verify", "--no_vad", *pair, f"--model={folders[1]}", "--json")
    assert json.loads(out)["embedding_space"] == SPACES[1]


RESULTS = {
    "checkpoint": "b3",
    "seconds_used": None,
    "crops": None,
    "embedding_space": SPACES[1],
    "results": [
        {
            "list": "O",
            "back_end": "cosine",
            "trials": 10,
            "eer_percent": 1.0,
            "eer_threshold": 0.5,
            "min_dcf_0.01": 0.1,
        }
    ],
}


@pytest.fixture
def evaluated(folders, tmp_path):
    """A model folder with the results of another, and with its own."""
    both = []
    for name, space in (("other", SPACES[1]), ("own", SPACES[0])):
        folder = shutil.copytree(folders[0], tmp_path / name)
        results = {**RESULTS, "embedding_space": space}
        (folder / "results.json").write_text(json.dumps(results))
        both.append(folder)
    return both


def test_a_threshold_of_another_space(
    evaluated,
    voice,
    run,
    error_of,
    tmp_path,
):
    other, own = evaluated
    other_results = other / "results.json"
    pair = [voice] * 2
    assert "0.5000" in run("verify", "--no_vad", *pair, f"--model={own}")
    commands = (
        ("verify", "--no_vad", *pair, f"--model={other}"),
        ("export", other, f"--output={tmp_path / 'a.onnx'}"),
        ("push", other, "user/name", "--dry_run"),
        ("push", own, "user/name", "--dry_run", f"--results={other_results}"),
    )
    for command in commands:
        line = error_of(*command)
        assert all(space in line for space in SPACES)
        assert "results.json" in line
    assert not (tmp_path / "a.onnx").exists()
    # Files of an earlier training beside the weights.
    for name, network_of_file, int8 in (
        ("own.onnx", network(), False),
        ("own8.onnx", network(), True),
        ("other.onnx", network(seed=1), False),
    ):
        export_onnx(network_of_file, own / name, int8=int8)
        if name != "other.onnx":
            assert name in run("push", own, "user/name", "--dry_run")
    line = error_of("push", own, "user/name", "--dry_run")
    assert "other.onnx" in line and all(space in line for space in SPACES)
    assert SpeakerRecognition.from_hparams(own).operating_point.value == 0.5
    with pytest.raises(ValueError, match="results.json: of the embedding spa"):
        SpeakerRecognition.from_hparams(other)
