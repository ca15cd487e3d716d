"""The cosine verification script: its results, its files and its errors."""

import importlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from matplotlib.image import imread
from speechbrain.dataio import audio_io
from speechbrain.inference.classifiers import EncoderClassifier
from speechbrain.utils import metric_stats

from redimnet2_lobes.audio import load_waveform
from redimnet2_lobes.front_end import LogMel
from redimnet2_lobes.model_folder import write_model_folder
from redimnet2_lobes.redimnet2 import ReDimNet2

REPOSITORY = Path(__file__).resolve().parent.parent
SCRIPTS = REPOSITORY / "recipes" / "VoxCeleb" / "SpeakerRec"
HPARAMS = REPOSITORY / "hparams" / "verification_redimnet2.yaml"
sys.path.insert(0, str(SCRIPTS))
command_line = importlib.import_module("command_line")
verification = importlib.import_module("speaker_verification_cosine")

SPEAKERS, UTTERANCES = 3, 4

# A training YAML cut down to what verification reads, with the network below.
SMALL_VARIANT = """\
data_folder: !PLACEHOLDER
output_folder: !PLACEHOLDER
base_channels: 4
embedding_model: !new:redimnet2_lobes.redimnet2.ReDimNet2
    front_end: !new:redimnet2_lobes.front_end.LogMel
    base_channels: !ref <base_channels>
    stages:
        - {frequency_stride: 2, time_stride: 2,
           blocks: 1, expansion: 1, reduction: 8}
trainer: !apply:builtins.open [!ref <output_folder>/opened, w]
"""

# Another architecture of SpeechBrain's, whose front-end is a module apart.
ECAPA = """\
variant: b2
compute_features: !new:speechbrain.lobes.features.Fbank
    n_mels: 24
mean_var_norm: !new:speechbrain.processing.features.InputNormalization
    norm_type: sentence
    std_norm: False
embedding_model: !new:speechbrain.lobes.models.ECAPA_TDNN.ECAPA_TDNN
    input_size: 24
    channels: [8, 8, 8, 8, 24]
    kernel_sizes: [5, 3, 3, 3, 1]
    dilations: [1, 2, 3, 4, 1]
    attention_channels: 8
    lin_neurons: 16
    res2net_scale: 2
    se_channels: 8
classifier: !new:torch.nn.Identity
modules:
    compute_features: !ref <compute_features>
    mean_var_norm: !ref <mean_var_norm>
    embedding_model: !ref <embedding_model>
    classifier: !ref <classifier>
pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer
    loadables:
        embedding_model: !ref <embedding_model>
"""


def small_network():
    torch.manual_seed(0)
    stage = {"blocks": 1, "expansion": 1, "reduction": 8}
    return ReDimNet2(
        LogMel(), 4, [{"frequency_stride": 2, "time_stride": 2, **stage}]
    )


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Buzzes of a pitch for each speaker, in noise, and all pairs as trials."""
    folder = tmp_path_factory.mktemp("corpus")
    generator = torch.Generator().manual_seed(0)
    names = []
    for speaker in range(SPEAKERS):
        for utterance in range(UTTERANCES):
            time = torch.arange(4000 * (1 + utterance)) / 16000
            pitch = 110 + 12 * speaker + 7 * utterance
            wav = sum(torch.sin(6.2832 * pitch * k * time) for k in range(1, 9))
            wav = wav / 20 + 0.1 * torch.randn(len(time), generator=generator)
            name = f"id{speaker}/video/{utterance}.wav"
            (folder / "wav" / name).parent.mkdir(parents=True, exist_ok=True)
            audio_io.save(folder / "wav" / name, wav.unsqueeze(0), 16000)
            names.append(name)
    lines = [
        f"{int(enrolment[:3] == test[:3])} {enrolment} {test}"
        for enrolment, test in itertools.combinations(names, 2)
    ]
    (folder / "veri_test2.txt").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "small"
    write_model_folder(folder, small_network(), "A small network")
    return folder


@pytest.fixture
def verify(corpus, tmp_path):
    """Runs the script's main function in this process."""

    def run(hparams=HPARAMS, **keys):
        keys = {
            "data_folder": corpus,
            "output_folder": tmp_path / "results",
            "device": "cpu",
            **keys,
        }
        arguments = [f"--{key}={value}" for key, value in keys.items()]
        verification.main([str(hparams), *arguments])
        return tmp_path / "results"

    return run


def test_results_agree_with_speechbrain_file_by_file(
    verify, corpus, model, capsys
):
    results = verify(checkpoint=model, seconds_per_batch=1.5)

    encoder = EncoderClassifier.from_hparams(source=str(model))
    embeddings = {
        str(path.relative_to(corpus / "wav")): encoder.encode_batch(
            load_waveform(path)
        )
        for path in (corpus / "wav").rglob("*.wav")
    }
    similarity = torch.nn.CosineSimilarity(dim=-1)
    lines = (results / "scores.txt").read_text().splitlines()
    trials = (corpus / "veri_test2.txt").read_text().splitlines()
    scores = {0: [], 1: []}
    for line, trial in zip(lines, trials, strict=True):
        enrolment, test, label, score = line.split()
        assert f"{label} {enrolment} {test}" == trial
        expected = similarity(embeddings[enrolment], embeddings[test])
        assert float(score) == pytest.approx(expected.item(), abs=1e-5)
        scores[int(label)].append(float(score))
    positive, negative = torch.tensor(scores[1]), torch.tensor(scores[0])

    written = json.loads((results / "results.json").read_text())
    eer, eer_threshold = metric_stats.EER(positive, negative)
    min_dcf, min_dcf_threshold = metric_stats.minDCF(positive, negative)
    assert 0 < eer < 0.5, "trials that tell nothing"
    assert written == {
        "verification_file": "veri_test2.txt",
        "checkpoint": "small",
        "files": SPEAKERS * UTTERANCES,
        "same_speaker_trials": len(positive),
        "different_speakers_trials": len(negative),
        "eer_percent": 100 * eer,
        "eer_threshold": eer_threshold,
        "min_dcf": min_dcf,
        "min_dcf_normalized": min_dcf / 0.01,
        "min_dcf_threshold": min_dcf_threshold,
        "min_dcf_p_target": 0.01,
    }
    table = capsys.readouterr().out
    for shown in (f"EER      {100 * eer:.2f} %", f"{min_dcf / 0.01:.4f}", "66"):
        assert shown in table
    for plot in ("det.png", "score_histogram.png"):
        assert imread(results / plot).shape[0] > 500


def test_nothing_else_is_written_anywhere(
    verify, corpus, model, tmp_path, monkeypatch
):
    working_folder = tmp_path / "elsewhere"
    working_folder.mkdir()
    monkeypatch.chdir(working_folder)

    def everything():
        return {
            path
            for folder in (corpus, model, tmp_path)
            for path in folder.rglob("*")
        }

    before = everything()
    results = verify(checkpoint=model)
    assert everything() - before == {
        results,
        *(
            results / name
            for name in (
                "scores.txt",
                "results.json",
                "det.png",
                "score_histogram.png",
            )
        ),
    }
    for name in ("scores.txt", "results.json"):
        assert str(tmp_path) not in (results / name).read_text()
        assert str(corpus) not in (results / name).read_text()


def test_another_model_never_meets_the_files_of_the_last_one(
    verify, model, tmp_path
):
    scores = verify(checkpoint=model) / "scores.txt"
    first = scores.read_text()
    network = small_network()
    torch.nn.init.normal_(network.projection.weight)
    write_model_folder(tmp_path / "other", network, "Another network")
    verify(checkpoint=tmp_path / "other")
    assert scores.read_text() != first
    verify(checkpoint=model)
    assert scores.read_text() == first


def test_a_model_folder_of_another_architecture(verify, tmp_path):
    folder = tmp_path / "ecapa"
    folder.mkdir()
    (folder / "hyperparams.yaml").write_text(ECAPA)
    network = command_line.build_hparam(
        folder / "hyperparams.yaml", "embedding_model"
    )
    torch.save(network.state_dict(), folder / "embedding_model.ckpt")
    results = verify(checkpoint=folder, variant="b2")
    assert len((results / "scores.txt").read_text().splitlines()) == 66
    with pytest.raises(ValueError, match="variant: b3 was given, .* says b2"):
        verify(checkpoint=folder, variant="b3")


@pytest.fixture
def weights_file(tmp_path, model):
    """Bare weights, beside a verification YAML with a small variant b0."""
    shutil.copy(HPARAMS, tmp_path)
    (tmp_path / "redimnet2_b0.yaml").write_text(SMALL_VARIANT)
    checkpoint = tmp_path / "CKPT+last" / "embedding_model.ckpt"
    checkpoint.parent.mkdir()
    shutil.copy(model / "embedding_model.ckpt", checkpoint)
    return checkpoint


def test_bare_weights_score_as_the_model_folder(
    verify, model, weights_file, tmp_path
):
    expected = (verify(checkpoint=model) / "scores.txt").read_text()
    shutil.rmtree(tmp_path / "results")
    results = verify(
        tmp_path / HPARAMS.name, checkpoint=weights_file, variant="b0"
    )
    assert (results / "scores.txt").read_text() == expected


def test_bare_weights_of_b0(verify, tmp_path):
    network = command_line.build_hparam(
        HPARAMS.parent / "redimnet2_b0.yaml", "embedding_model"
    )
    torch.save(network.state_dict(), tmp_path / "embedding_model.ckpt")
    given = {"checkpoint": tmp_path / "embedding_model.ckpt"}
    results = verify(**given, variant="b0")
    assert len((results / "scores.txt").read_text().splitlines()) == 66
    with pytest.raises(ValueError, match=r"not fit redimnet2_b1\.yaml"):
        verify(**given, variant="b1")


def test_bare_weights_need_their_variant(verify, weights_file, tmp_path):
    hparams = tmp_path / HPARAMS.name
    with pytest.raises(ValueError, match="variant: missing"):
        verify(hparams, checkpoint=weights_file)
    with pytest.raises(ValueError, match="variant: .*redimnet2_b1.yaml is"):
        verify(hparams, checkpoint=weights_file, variant="b1")


class Payload:
    """Code that would run if weights were unpickled."""

    def __init__(self, trace):
        self.trace = str(trace)

    def __reduce__(self):
        return os.mkdir, (self.trace,)


def damage_missing(weights):
    del weights["projection.weight"]
    return weights


def damage_surplus(weights):
    return {**weights, "stowaway": torch.zeros(1)}


def damage_shape(weights):
    return {**weights, "projection.weight": torch.zeros(3, 4)}


@pytest.mark.parametrize("as_folder", [False, True])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_missing, "projection.weight is missing"),
        (damage_surplus, "stowaway is surplus"),
        (damage_shape, r"projection\.weight.*\[3, 4\]"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    damage, message, as_folder, verify, model, weights_file, tmp_path
):
    weights = torch.load(weights_file, weights_only=True)
    torch.save(damage(weights), weights_file)
    given = {"checkpoint": weights_file, "variant": "b0"}
    if as_folder:
        shutil.copy(model / "hyperparams.yaml", weights_file.parent)
        given = {"checkpoint": weights_file.parent}
    with pytest.raises(ValueError, match=message) as caught:
        verify(tmp_path / HPARAMS.name, **given)
    assert str(caught.value).startswith("checkpoint: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("as_folder", [False, True])
def test_pickled_code_in_weights_is_never_run(
    as_folder, verify, model, weights_file, tmp_path
):
    torch.save({"weight": Payload(tmp_path / "trace")}, weights_file)
    given = {"checkpoint": weights_file, "variant": "b0"}
    if as_folder:
        shutil.copy(model / "hyperparams.yaml", weights_file.parent)
        given = {"checkpoint": weights_file.parent}
    with pytest.raises(ValueError, match="^checkpoint: "):
        verify(tmp_path / HPARAMS.name, **given)
    assert not (tmp_path / "trace").exists()


def test_other_files_than_weights_are_named(verify, weights_file, tmp_path):
    def message(content):
        torch.save(content, weights_file)
        with pytest.raises(ValueError, match="^checkpoint: ") as caught:
            verify(
                tmp_path / HPARAMS.name, checkpoint=weights_file, variant="b0"
            )
        return str(caught.value)

    assert "redimnet2_lobes.convert" in message(
        {"model_config": {}, "state_dict": {}}
    )
    assert "something else" in message([1, 2])
    weights_file.write_bytes(b"neither")
    with pytest.raises(ValueError, match="not a file of weights"):
        verify(tmp_path / HPARAMS.name, checkpoint=weights_file, variant="b0")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"variant": "b9"}, "variant: unknown value 'b9'.* b0, b1"),
        ({"seconds_per_batch": "many"}, "seconds_per_batch: expected a number"),
        ({"seconds_per_batch": 0}, "seconds_per_batch: must be above 0"),
        ({"output_folder": 7}, "output_folder: expected text, not 7"),
        ({"chekpoint": "x"}, "chekpoint: not a key .* mean checkpoint"),
        ({"device": "toaster"}, "device: 'toaster' cannot be used"),
        ({"precision": "fp7"}, "--precision"),
        ({"verification_file": "none.txt"}, "verification_file: .*none.txt"),
        ({"verification_file": "[a"}, r"command line, line \d .*\[a"),
        ({"data_folder": "nowhere"}, "data_folder: .* nowhere"),
        ({"checkpoint": "./nowhere"}, r"checkpoint: no file .*\./nowhere"),
        ({"checkpoint": HPARAMS.parent}, "checkpoint: .* no hyperparams.yaml"),
    ],
)
def test_wrong_values_are_named_by_key(keys, message, verify, model, tmp_path):
    with pytest.raises(ValueError, match=message) as caught:
        verify(**{"checkpoint": model, **keys})
    assert "\n" not in command_line.one_line(caught.value)
    assert not (tmp_path / "results" / "scores.txt").exists()


@pytest.mark.parametrize(
    ("trials", "message"),
    [
        ("1 id0/video/0.wav id0/video/1.wav", "label 1, but .* both"),
        (
            "1 id0/video/0.wav lost/0.wav\n0 lost/1.wav lost/0.wav",
            r"data_folder: 2 of the 3 files .* first is .*lost/0\.wav",
        ),
        ("1 id0/video/0.wav", "list.txt, line 1"),
        ("", "list.txt"),
    ],
)
def test_faulty_trial_lists_are_named(trials, message, verify, model, tmp_path):
    (tmp_path / "list.txt").write_text(trials)
    with pytest.raises(ValueError, match=message):
        verify(checkpoint=model, verification_file=tmp_path / "list.txt")


def test_scores_are_cosines_over_all_blocks(monkeypatch):
    monkeypatch.setattr(verification, "TRIALS_PER_BLOCK", 7)
    generator = torch.Generator().manual_seed(0)
    embeddings = {
        name: torch.randn(5, generator=generator) for name in "abcdef"
    }
    trials = [(1, *pair) for pair in itertools.product("abcdef", repeat=2)]
    scores = verification.cosine_scores(trials, embeddings)
    expected = torch.nn.functional.cosine_similarity(
        torch.stack([embeddings[enrolment] for _, enrolment, _ in trials]),
        torch.stack([embeddings[test] for _, _, test in trials]),
    )
    torch.testing.assert_close(scores, expected)


def test_an_interrupted_report_leaves_the_old_file(verify, model, monkeypatch):
    results = verify(checkpoint=model)
    before = (results / "scores.txt").read_bytes()
    write_text = Path.write_text

    def full_disk(path, text, **options):
        write_text(path, text[:100], **options)
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_text", full_disk)
    with pytest.raises(OSError, match="No space left"):
        verify(checkpoint=model)
    assert (results / "scores.txt").read_bytes() == before


YAML = """\
rate: 0.1
model: !new:torch.nn.Linear
    in_features: 3
    out_features: !ref <width>
width: 4
double: !ref <width> * 2
"""


@pytest.mark.parametrize(
    ("edit", "overrides", "message"),
    [
        ("", "width: wide", r"^model \(built from width\): .*Linear"),
        (("in_features", "in_feature"), "", r"^model \(built from width\): "),
        (("torch.nn.Linear", "torch.nn.Lunar"), "", "^model .*torch.nn.Lunar"),
        (("<width> *", "<with> *"), "", "with"),
        (("rate: 0.1", "rate: [0.1"), "", r"hparams.yaml, line 1 .*\[0.1"),
        (("rate: 0.1", "rate: !PLACEHOLDER"), "", "^rate: missing.*--rate"),
        ("", "wdth: 3", "^wdth: not a key of hparams.yaml.* width"),
        ("", "nonsense", "command line: expected keys"),
    ],
)
def test_faults_of_a_yaml_are_named_by_key(edit, overrides, message, tmp_path):
    path = tmp_path / "hparams.yaml"
    path.write_text(YAML.replace(*edit) if edit else YAML)
    with pytest.raises(ValueError, match=message) as caught:
        command_line.load_hparams(path, overrides)
    assert "\n" not in command_line.one_line(caught.value)


def test_a_right_yaml_is_loaded_as_by_hyperpyyaml(tmp_path):
    path = tmp_path / "hparams.yaml"
    path.write_text(YAML)
    hparams = command_line.load_hparams(path, "width: 5")
    assert hparams["model"].weight.shape == (5, 3)
    assert hparams["double"] == 10


def run_script(*arguments, folder):
    return subprocess.run(
        [
            sys.executable,
            SCRIPTS / "speaker_verification_cosine.py",
            *map(str, arguments),
        ],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_script_ends_in_one_line(tmp_path):
    done = run_script(HPARAMS, folder=tmp_path)
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert re.match("error: data_folder: missing; .*make demo", line)
    assert list(tmp_path.iterdir()) == []


def test_missing_files_are_all_named(verify, model, tmp_path):
    trials = tmp_path / "trials.txt"
    trials.write_text("1 a/x/1.wav a/x/2.wav\n0 a/x/1.wav b/x/1.wav\n")
    with pytest.raises(ValueError, match="data_folder: 3 of the 3 .* names"):
        verify(checkpoint=model, verification_file=trials)
    (listed,) = tmp_path.rglob("missing_files.txt")
    names = ["a/x/1.wav", "a/x/2.wav", "b/x/1.wav"]
    lines = listed.read_text().splitlines()
    assert [line.split("/wav/")[1] for line in lines] == names


def test_speakers_of_the_training_are_no_unseen_ones(
    verify, corpus, tmp_path, capsys
):
    trials = (corpus / "veri_test2.txt").read_text().split()
    speaker = trials[1].split("/")[0]
    model = tmp_path / "model"
    write_model_folder(
        model,
        small_network(),
        title="trained on a speaker of the test",
        class_weights=torch.ones(2, 192),
        speakers=[speaker, "another"],
    )
    verify(checkpoint=model)
    assert (
        f"1 of the {SPEAKERS} speakers were in the" in capsys.readouterr().out
    )


def test_the_script_verifies(corpus, model, tmp_path):
    done = run_script(
        HPARAMS,
        f"--data_folder={corpus}",
        f"--checkpoint={model}",
        "--output_folder=results",
        "--device=cpu",
        folder=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("trials   66")
    assert (tmp_path / "results" / "results.json").exists()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([HPARAMS], "error: data_folder: missing"),
        (["none.yaml"], "error: none.yaml: No such file"),
        ([], "error: .* a YAML file"),
    ],
)
def test_errors_of_users_are_printed_in_one_line(
    arguments, line, monkeypatch, capsys
):
    monkeypatch.setattr(sys, "argv", ["script", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        command_line.main_with_one_line_errors(verification.main)
    assert caught.value.code == 1
    (printed,) = capsys.readouterr().err.splitlines()
    assert re.match(line, printed)


def test_a_bug_keeps_its_traceback():
    def main(arguments):
        raise AttributeError("a bug")

    with pytest.raises(AttributeError, match="a bug"):
        command_line.main_with_one_line_errors(main)
