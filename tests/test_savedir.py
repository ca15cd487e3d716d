"""SpeechBrain's savedir: it holds the model that was asked for, or says so."""

import json
import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from file_server import serve_files
from hub_server import serve_hub
from huggingface_hub import constants
from speechbrain.dataio.encoder import CategoricalEncoder
from speechbrain.inference.classifiers import EncoderClassifier
from speechbrain.inference.interfaces import foreign_class
from speechbrain.utils.fetching import (
    FetchConfig,
    FetchFrom,
    FetchSource,
    LocalStrategy,
)

from redimnet2_lobes import SpeakerRecognition
from redimnet2_lobes.models.front_end import LogMel
from redimnet2_lobes.models.redimnet2 import ReDimNet2
from redimnet2_lobes.pretrained import savedir
from redimnet2_lobes.pretrained.loading import ModelPretrainer, read_tensors
from redimnet2_lobes.pretrained.model_folder import write_model_folder
from redimnet2_lobes.pretrained.standalone import single_file

STAGE = {"frequency_stride": 2, "time_stride": 2, "reduction": 8}
STRATEGIES = pytest.mark.parametrize(
    "strategy", list(LocalStrategy), ids=lambda strategy: strategy.name
)
KEEPING = pytest.mark.parametrize(
    "strategy",
    [each for each in LocalStrategy if each is not LocalStrategy.NO_LINK],
    ids=lambda strategy: strategy.name,
)
CLASSES = pytest.mark.parametrize(
    "interface",
    [EncoderClassifier, SpeakerRecognition],
    ids=["SpeechBrain's", "ours"],
)


def write(folder, seed, blocks=1, speakers=("anna", "bert")):
    """A model, whose hyperparams.yaml depends on ``blocks`` alone."""
    torch.manual_seed(seed)
    stage = {**STAGE, "blocks": blocks, "expansion": 1}
    write_model_folder(
        folder,
        ReDimNet2(LogMel(), 4, [stage]).eval(),
        "A test",
        class_weights=torch.full((2, 192), float(seed)),
        speakers=speakers,
    )
    return folder


def assert_is(model, folder):
    """Network, classifier and label encoder are those of a model folder."""
    for name in ("embedding_model", "classifier"):
        files = [folder / f"{name}.{end}" for end in ("safetensors", "ckpt")]
        expected = read_tensors(next(file for file in files if file.exists()))
        found = model.mods[name].state_dict()
        assert found.keys() == expected.keys()
        for key, tensor in expected.items():
            assert torch.equal(found[key], tensor), f"{name}.{key}"
    expected = CategoricalEncoder()
    expected.load(folder / "label_encoder.ckpt")
    assert model.hparams.label_encoder.ind2lab == expected.ind2lab


def content(folder):
    """Names and bytes of what is in a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def is_refused(problem, interface=EncoderClassifier, **options):
    with pytest.raises(ValueError, match=rf"^savedir: [^\n]*{problem}"):
        interface.from_hparams(**options)


@pytest.fixture
def models(tmp_path):
    """a and b are alike in all but weights and speakers; c has more blocks."""
    folder = tmp_path / "models"
    write(folder / "a", 1)
    write(folder / "b", 2, speakers=("carl", "dora"))
    write(folder / "c", 3, blocks=2)
    return folder


@pytest.fixture
def hub(models, tmp_path, monkeypatch):
    """A hub with these models as user/a, user/b and user/c."""
    with serve_hub() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(
            constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            server.address + "/{repo_id}/resolve/{revision}/{filename}",
        )
        monkeypatch.setattr("time.sleep", lambda seconds: None)
        for folder in models.iterdir():
            name = f"user/{folder.name}"
            server.repositories[name] = {"main": content(folder)}
            server.private[name] = False
        yield server


@CLASSES
@STRATEGIES
def test_models_from_folders_one_after_another(
    strategy, interface, models, tmp_path
):
    for name in ("a", "b", "b", "a"):
        model = interface.from_hparams(
            source=str(models / name),
            savedir=str(tmp_path / "kept"),
            local_strategy=strategy,
        )
        assert_is(model, models / name)


@CLASSES
@KEEPING
def test_models_from_the_hub_one_after_another(
    strategy, interface, hub, models, tmp_path
):
    for name in ("a", "b", "a"):
        model = interface.from_hparams(
            source=f"user/{name}",
            savedir=str(tmp_path / "kept"),
            local_strategy=strategy,
        )
        assert_is(model, models / name)


@STRATEGIES
def test_models_from_the_web_one_after_another(strategy, models, tmp_path):
    files = {
        f"{folder.name}/{name}": data
        for folder in models.iterdir()
        for name, data in content(folder).items()
    }
    # Either format will do.
    del files["b/embedding_model.safetensors"]
    with serve_files(files) as server:
        for name in ("a", "b", "b", "a"):
            options = {
                "source": f"{server.address}/{name}",
                "savedir": str(tmp_path / "kept"),
                "local_strategy": strategy,
            }
            model = EncoderClassifier.from_hparams(**options)
            assert_is(model, models / name)
        options["source"] = f"{server.address}/c"
        is_refused("holds another model", **options)


def test_from_here_and_from_there(hub, models, tmp_path):
    for source in ("user/a", models / "b", "user/b", models / "a", "user/a"):
        model = EncoderClassifier.from_hparams(
            source=source, savedir=tmp_path / "kept"
        )
        assert_is(model, models / str(source)[-1])


@CLASSES
@STRATEGIES
@pytest.mark.parametrize("where", ["here", "hub"])
def test_another_architecture_is_refused(
    where, strategy, interface, hub, models, tmp_path
):
    def source(name):
        return f"user/{name}" if where == "hub" else str(models / name)

    kept = tmp_path / "kept"
    EncoderClassifier.from_hparams(
        source=source("a"), savedir=str(kept), local_strategy=LocalStrategy.COPY
    )
    before = content(kept)
    is_refused(
        r"kept holds another model \(its hyperparams.yaml is not that of "
        r"[^\n]*c\); choose another savedir, or delete it\Z",
        interface,
        source=source("c"),
        savedir=str(kept),
        local_strategy=strategy,
    )
    assert content(kept) == before
    model = interface.from_hparams(source=source("a"), savedir=str(kept))
    assert_is(model, models / "a")


@pytest.mark.parametrize("where", ["here", "hub"])
@KEEPING
def test_the_same_model_again_writes_and_asks_nothing(
    where, strategy, hub, models, tmp_path
):
    kept = tmp_path / "kept"
    options = {
        "source": "user/a" if where == "hub" else str(models / "a"),
        "savedir": str(kept),
        "local_strategy": strategy,
    }
    EncoderClassifier.from_hparams(**options)
    files = {path.name for path in kept.iterdir()}
    assert not [name for name in files if ".partial" in name]
    stamp = kept.stat().st_mtime_ns
    asked = len(hub.requests)
    model = EncoderClassifier.from_hparams(**options)
    assert_is(model, models / "a")
    assert kept.stat().st_mtime_ns == stamp
    assert len(hub.requests) == asked


def unlink(hub, tmp_path, monkeypatch):
    """There is no hub, nor what was fetched from it."""
    shutil.rmtree(tmp_path / "cache")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}",
    )


@CLASSES
def test_copies_will_do_without_the_hub(
    interface, hub, models, tmp_path, monkeypatch
):
    options = {"source": "user/a", "savedir": str(tmp_path / "kept")}
    interface.from_hparams(
        **options, local_strategy=LocalStrategy.COPY, download_only=True
    )
    unlink(hub, tmp_path, monkeypatch)
    assert_is(interface.from_hparams(**options), models / "a")


def test_files_of_unknown_origin_without_the_hub(
    hub, models, tmp_path, monkeypatch
):
    kept = tmp_path / "kept"
    shutil.copytree(models / "a", kept)  # a clone, say
    EncoderClassifier.from_hparams(source="user/a", savedir=kept)
    (kept / "source.json").unlink()
    unlink(hub, tmp_path, monkeypatch)
    is_refused(
        r"kept is not known to hold user/a, which cannot be fetched \(.*\); to "
        r"load what it holds, make it the source\Z",
        source="user/a",
        savedir=kept,
    )
    model = EncoderClassifier.from_hparams(source=kept, savedir=kept)
    assert_is(model, models / "a")


@STRATEGIES
def test_a_model_trained_anew_in_the_same_folder(strategy, models, tmp_path):
    options = {
        "source": str(models / "a"),
        "savedir": str(tmp_path / "kept"),
        "local_strategy": strategy,
    }
    for seed in (1, 4, 5):
        write(models / "a", seed)
        assert_is(EncoderClassifier.from_hparams(**options), models / "a")
    # What was copied is not left behind.
    if strategy is not LocalStrategy.NO_LINK:
        model = EncoderClassifier.from_hparams(source=options["savedir"])
        assert_is(model, models / "a")


def test_a_model_pushed_anew(hub, models, tmp_path):
    options = {"source": "user/a", "savedir": tmp_path / "kept"}
    configs = (
        FetchConfig(allow_updates=True),
        FetchConfig(overwrite=True),
    )
    for seed, config in enumerate(configs, 4):
        before = models / "before"
        EncoderClassifier.from_hparams(**options)
        shutil.copytree(models / "a", before)
        write(models / "a", seed)
        hub.repositories["user/a"]["main"] = content(models / "a")
        # As SpeechBrain's: what is there is taken, unless it is told to ask.
        model = EncoderClassifier.from_hparams(**options)
        assert_is(model, before)
        model = EncoderClassifier.from_hparams(**options, fetch_config=config)
        assert_is(model, models / "a")
        shutil.rmtree(before)


def test_revisions(hub, models, tmp_path):
    hub.repositories["user/a"]["second"] = content(models / "b")
    hub.repositories["user/a"]["third"] = content(models / "c")
    options = {"source": "user/a", "savedir": tmp_path / "kept"}
    for revision, name in ((None, "a"), ("second", "b"), (None, "a")):
        model = EncoderClassifier.from_hparams(
            **options, fetch_config=FetchConfig(revision=revision)
        )
        assert_is(model, models / name)
    third = FetchConfig(revision="third")
    is_refused("holds another model", fetch_config=third, **options)


@pytest.mark.parametrize("way", ["itself", "link", "relative"])
@pytest.mark.parametrize("removed", [None, "*.ckpt", "*.safetensors"])
def test_the_savedir_is_the_source(way, removed, models, tmp_path, monkeypatch):
    for file in (models / "a").glob(removed or "no such file"):
        if file.stem != "label_encoder":
            file.unlink()
    monkeypatch.chdir(models)
    savedir = {"itself": models / "a", "relative": "a"}.get(way)
    if savedir is None:
        savedir = tmp_path / "link"
        savedir.symlink_to(models / "a")
    before = content(models / "a")
    model = EncoderClassifier.from_hparams(
        source=str(models / "a"), savedir=savedir
    )
    assert_is(model, models / "a")
    assert content(models / "a") == before


@KEEPING
def test_relative_paths(strategy, models, tmp_path, monkeypatch):
    monkeypatch.chdir(models)
    for name in ("a", "b"):
        model = EncoderClassifier.from_hparams(
            source=name, savedir="kept", local_strategy=strategy
        )
        assert_is(model, models / name)
    monkeypatch.chdir(tmp_path)
    model = EncoderClassifier.from_hparams(source="models/kept")
    assert_is(model, models / "b")


def test_a_folder_with_the_name_of_a_model_of_the_hub(
    hub, models, tmp_path, monkeypatch
):
    options = {"source": "user/a", "savedir": tmp_path / "kept"}
    shutil.copytree(models / "b", tmp_path / "user" / "a")
    for place, name in ((tmp_path, "b"), (models, "a"), (tmp_path, "b")):
        monkeypatch.chdir(place)
        model = EncoderClassifier.from_hparams(**options)
        assert_is(model, models / name)


@pytest.mark.parametrize("kind", [FetchFrom.LOCAL, FetchFrom.HUGGING_FACE])
def test_sources_whose_kind_is_said(kind, hub, models, tmp_path):
    for name in ("a", "b"):
        place = f"user/{name}"
        if kind is FetchFrom.LOCAL:
            place = str(models / name)
        model = EncoderClassifier.from_hparams(
            source=FetchSource(kind, place), savedir=tmp_path / "kept"
        )
        assert_is(model, models / name)


@pytest.mark.parametrize("source", ["user/b", "here"])
def test_somebodys_model_folder_is_not_written_over(
    source, hub, models, tmp_path
):
    before = content(models / "a")
    is_refused(
        r"models/a holds another model \(its \w+.ckpt is not that of",
        source=str(models / "b") if source == "here" else source,
        savedir=str(models / "a"),
    )
    assert content(models / "a") == before


def test_a_broken_download_leaves_what_was_there(hub, models, tmp_path):
    options = {
        "savedir": tmp_path / "kept",
        "local_strategy": LocalStrategy.COPY,
    }
    EncoderClassifier.from_hparams(source="user/a", **options)
    for part in ("embedding_model", "classifier", "label_encoder"):
        shutil.rmtree(tmp_path / "cache")
        hub.faults = {f"user/b/resolve/main/{part}": [403] * 100}
        with pytest.raises(OSError):
            EncoderClassifier.from_hparams(source="user/b", **options)
        asked = len(hub.requests)
        model = EncoderClassifier.from_hparams(source="user/a", **options)
        assert_is(model, models / "a")
        assert len(hub.requests) == asked


def test_a_break_between_two_files(hub, models, tmp_path, monkeypatch):
    """What is half replaced is not taken for what was there."""
    options = {"savedir": tmp_path / "kept"}
    EncoderClassifier.from_hparams(source="user/a", **options)
    replace, replaced = os.replace, []

    def break_off(source, target):
        if str(target).startswith(str(options["savedir"])):
            if replaced:
                raise OSError("power failure")
            replaced.append(target)
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", break_off)
        with pytest.raises(OSError, match="power failure"):
            EncoderClassifier.from_hparams(source="user/b", **options)
    for name in ("a", "b"):
        model = EncoderClassifier.from_hparams(source=f"user/{name}", **options)
        assert_is(model, models / name)


def test_hyperparams_of_another_model_are_noticed(hub, models, tmp_path):
    """Even where source.json is right about the rest."""
    options = {"savedir": tmp_path / "kept"}
    EncoderClassifier.from_hparams(source="user/a", **options)
    # Of c only this came before the connection broke.
    hub.faults = {"user/c/resolve/main/embedding": [403] * 100}
    with pytest.raises(OSError):
        EncoderClassifier.from_hparams(
            source="user/c",
            fetch_config=FetchConfig(allow_updates=True),
            **options,
        )
    is_refused("holds another model", source="user/a", **options)


@KEEPING
def test_a_file_that_is_gone_is_fetched_again(strategy, hub, models, tmp_path):
    kept = tmp_path / "kept"
    options = {"savedir": kept, "local_strategy": strategy}
    for name in ("embedding_model.ckpt", "label_encoder.ckpt"):
        EncoderClassifier.from_hparams(source="user/a", **options)
        (kept / name).unlink()
        model = EncoderClassifier.from_hparams(source="user/a", **options)
        assert_is(model, models / "a")


@KEEPING
@pytest.mark.parametrize("where", ["here", "hub"])
def test_many_at_once(where, strategy, hub, models, tmp_path):
    kept = tmp_path / "kept"
    kept.mkdir()

    def load(_):
        network = ReDimNet2(
            LogMel(), 4, [{**STAGE, "blocks": 1, "expansion": 1}]
        )
        pretrainer = ModelPretrainer({"embedding_model": network})
        pretrainer.set_collect_in(kept)
        pretrainer.collect_files(
            "user/a" if where == "hub" else models / "a",
            local_strategy=strategy,
        )
        pretrainer.load_collected()
        return network.state_dict()

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(load, range(16)))
    expected = EncoderClassifier.from_hparams(source=models / "a")
    for key, tensor in expected.mods.embedding_model.state_dict().items():
        assert all(torch.equal(each[key], tensor) for each in found)
    names = {"embedding_model.ckpt", "source.json"}
    assert {path.name for path in kept.iterdir()} == names


def test_another_process_fills_it_between_two_looks(
    models, tmp_path, monkeypatch
):
    kept = tmp_path / "kept"
    is_same, looks = savedir.is_same, []

    def look(first, second):
        found = is_same(first, second)
        looks.append(second.name)
        if looks.count("embedding_model.ckpt") == 2:
            weights = models / "a" / "embedding_model.safetensors"
            shutil.copy(weights, kept / "embedding_model.ckpt")
        return found

    monkeypatch.setattr(savedir, "is_same", look)
    model = EncoderClassifier.from_hparams(
        source=models / "a", savedir=kept, local_strategy=LocalStrategy.COPY
    )
    assert looks.count("embedding_model.ckpt") == 2
    assert_is(model, models / "a")
    assert (kept / "source.json").exists()


def test_results_are_those_of_the_model(hub, models, tmp_path):
    row = {
        "list": "O",
        "back_end": "cosine",
        "trials": 10,
        "eer_percent": 1.0,
        "eer_threshold": 0.5,
        "min_dcf_0.01": 0.1,
    }
    keys = {"checkpoint": "a", "seconds_used": None, "crops": None}
    results = json.dumps({**keys, "results": [row]}).encode()
    hub.repositories["user/a"]["main"]["results.json"] = results
    kept = tmp_path / "kept"
    for name, threshold in (("a", 0.5), ("b", 0.25), ("a", 0.5)):
        model = SpeakerRecognition.from_hparams(
            source=f"user/{name}", savedir=kept
        )
        assert model.operating_point.value == threshold
        assert (kept / "results.json").exists() == (name == "a")
    (models / "b" / "results.json").write_bytes(results.replace(b"0.5", b"0.6"))
    model = SpeakerRecognition.from_hparams(source=models / "b", savedir=kept)
    assert model.operating_point.value == 0.6
    (models / "b" / "results.json").unlink()
    model = SpeakerRecognition.from_hparams(source=models / "b", savedir=kept)
    assert model.operating_point.value == 0.25
    assert not (kept / "results.json").exists()


OTHER = """\
embedding_model: !new:torch.nn.Identity
modules:
    compute_features: !ref <embedding_model>
    mean_var_norm: !ref <embedding_model>
    embedding_model: !ref <embedding_model>
    mean_var_norm_emb: !ref <embedding_model>
    classifier: !ref <embedding_model>
pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer
"""


@pytest.mark.parametrize("hyperparams", [OTHER, "seed: 1", "["])
def test_a_savedir_of_another_kind(hyperparams, hub, models, tmp_path):
    """No code of ours is asked by SpeechBrain's classes, but by our class."""
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "hyperparams.yaml").write_text(hyperparams)
    for source in ("user/a", models / "a"):
        is_refused(
            "holds another model",
            SpeakerRecognition,
            source=source,
            savedir=kept,
        )


@STRATEGIES
def test_folders_of_another_kind_with_the_same_hyperparams(
    strategy, models, tmp_path
):
    theirs = "speechbrain.utils.parameter_transfer.Pretrainer"
    for name in ("a", "b"):
        path = models / name / "hyperparams.yaml"
        text = path.read_text()
        path.write_text(text.replace("redimnet2_lobes.ModelPretrainer", theirs))
    options = {"savedir": tmp_path / "kept", "local_strategy": strategy}
    for _ in range(2):
        model = SpeakerRecognition.from_hparams(models / "a", **options)
        assert_is(model, models / "a")
    if strategy is LocalStrategy.NO_LINK:  # nothing is kept
        model = SpeakerRecognition.from_hparams(models / "b", **options)
        assert_is(model, models / "b")
    else:
        is_refused(
            r"its \w+\.ckpt is not that",
            SpeakerRecognition,
            source=models / "b",
            **options,
        )


def test_the_code_beside_a_model(models, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    hyperparams = (models / "a" / "hyperparams.yaml").read_text()
    code = single_file(hyperparams)
    options = {
        "pymodule_file": "redimnet2_lobes.py",
        "classname": "SpeakerRecognition",
        "savedir": str(tmp_path / "kept"),
    }
    for name in ("a", "b"):
        (models / name / "redimnet2_lobes.py").write_text(code)
        model = foreign_class(source=str(models / name), **options)
        assert_is(model, models / name)
        assert isinstance(model, SpeakerRecognition)
    (models / "a" / "redimnet2_lobes.py").write_text(code + "# newer\n")
    shutil.rmtree(tmp_path / "kept")
    foreign_class(source=str(models / "b"), **options)
    with pytest.raises(
        ValueError, match="^savedir: .*its redimnet2_lobes.py i"
    ):
        foreign_class(
            source=str(models / "a"),
            local_strategy=LocalStrategy.COPY,
            **options,
        )
    # A model without code does not ask for any.
    (models / "a" / "redimnet2_lobes.py").unlink()
    model = EncoderClassifier.from_hparams(
        source=models / "a", savedir=options["savedir"]
    )
    assert_is(model, models / "a")
