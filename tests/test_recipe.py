"""The training recipe, end to end on synthetic voices."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import exit_code
from speechbrain.inference.classifiers import EncoderClassifier
from speechbrain.inference.speaker import SpeakerRecognition
from training_runs import TEST, TRAINING, command_line, run, write_corpus

from redimnet2_lobes.files.folder_lock import only_writer
from redimnet2_lobes.recipe.command_line import main_with_one_line_errors

TESTS = Path(__file__).parent
RECIPE = TESTS.parent / "recipes" / "VoxCeleb" / "SpeakerRec"
SCRIPT = RECIPE / "train_speaker_embeddings.py"
TWO_PROCESSES = [
    "-m",
    "torch.distributed.run",
    "--standalone",
    "--nproc_per_node=2",
    # A tenth of a second after the first one has ended, torchrun would kill the
    # other, which may not have said why it ends yet.
    "--monitor_interval=3",
]
MARGIN = {"final_margin": 0}  # so that losses can be compared


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"))


def train_here(*arguments, **overrides):
    """Runs the script's main function in this process."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        run(monkeypatch, command_line(*arguments, **MARGIN | overrides))


def refused(capsys, *arguments, **overrides):
    """The one line that a training in this process ends with."""
    code = exit_code(
        main_with_one_line_errors,
        lambda _: train_here(*arguments, **overrides),
    )
    assert code == 1
    errors = capsys.readouterr().err
    assert "Traceback" not in errors
    return errors.strip().splitlines()[-1]


def train(*arguments, launcher=(), **overrides):
    """Runs the script as a user would."""
    return subprocess.run(
        [
            sys.executable,
            *launcher,
            SCRIPT,
            *command_line(*arguments, **MARGIN | overrides),
        ],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(
                [str(TESTS), os.environ.get("PYTHONPATH", "")]
            ),
        },
    )


def losses(output):
    """Losses and error rates by epoch, as logged."""
    log = (output / "train_log.txt").read_text()
    return {
        int(epoch): (float(loss), float(eer))
        for epoch, loss, eer in re.findall(
            r"epoch: (\d+),.*train loss: (\S+),.*valid EER: (\S+)", log
        )
    }


def epochs(output):
    """The last entry of each epoch, without what clocks say."""
    log = (output / "train_log.txt").read_text()
    log = re.sub(
        "train (crops per second|share of time waiting): [^,]*, ", "", log
    )
    return {line.split(",")[0]: line for line in log.splitlines()}


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory):
    output = tmp_path_factory.mktemp("trained")
    process = train(corpus, output, number_of_epochs=4)
    assert process.returncode == 0, process.stderr
    return output


def test_outputs(trained):
    files = {path.name for path in trained.iterdir()}
    assert {"train_log.txt", "training_curves.png", "model", "save"} <= files
    assert sorted(losses(trained)) == [1, 2, 3, 4]
    # The best and the last epoch's weights; one may be both.
    curve = losses(trained)
    best = min(eer for _, eer in curve.values())
    kept = {
        int(re.search(r"epoch: (\d+)", path.read_text()).group(1))
        for path in (trained / "save").glob("CKPT*/CKPT.yaml")
    }
    assert 4 in kept and len(kept) <= 2
    assert best in {curve[epoch][1] for epoch in kept}


def test_loss_falls(trained):
    curve = losses(trained)
    assert curve[4][0] < curve[1][0]


def test_gradients_reach_the_network(trained):
    # SpeechBrain clips gradients always: a wrong limit freezes the network.
    last = max((trained / "save").glob("CKPT*"))
    optimizer = torch.load(last / "optimizer.ckpt", weights_only=True)
    network = optimizer["param_groups"][0]["params"]
    moving = [
        optimizer["state"][index]["exp_avg"].abs().max() > 1e-8
        for index in network
        if index in optimizer["state"]
    ]
    assert len(moving) == len(network) - 1  # one aggregation is frozen
    assert sum(moving) > 0.9 * len(moving)


def test_test_speakers_stay_out(trained):
    train_csv = (trained / "save" / "train.csv").read_text()
    assert not [name for name in TEST if name in train_csv]
    assert "anna/session0/00002" in train_csv
    # Validation utterances stay out as well.
    assert "anna/session0/00000" not in train_csv


def test_model_folder(trained, corpus):
    source = str(trained / "model")
    encoder = EncoderClassifier.from_hparams(source=source)
    utterance = corpus / "wav" / "bert" / "session0" / "00000.wav"
    cosines, _, index, names = encoder.classify_file(str(utterance))
    # One class for each speaker: the other speeds were for training only.
    assert cosines.shape == (1, len(TRAINING))
    assert names[0] == sorted(TRAINING)[index]
    assert cosines.abs().max() <= 1
    assert encoder.encode_batch(torch.randn(2, 16000)).shape == (2, 1, 192)

    recognition = SpeakerRecognition.from_hparams(source=source)
    score, _ = recognition.verify_files(str(utterance), str(utterance))
    assert score.item() == pytest.approx(1, abs=1e-5)


def test_model_folder_holds_the_last_epoch(trained):
    last = max((trained / "save").glob("CKPT*"))
    saved = torch.load(last / "embedding_model.ckpt", weights_only=True)
    exported = torch.load(
        trained / "model" / "embedding_model.ckpt", weights_only=True
    )
    assert saved.keys() == exported.keys()
    assert all(torch.equal(saved[name], exported[name]) for name in saved)


def test_no_paths_in_the_model_folder(trained, corpus):
    for path in (trained / "model").iterdir():
        content = path.read_bytes()
        assert str(corpus).encode() not in content
        assert str(Path.home()).encode() not in content


@pytest.mark.slow
def test_interrupted_runs_go_on_as_the_uninterrupted_one(
    trained, corpus, tmp_path
):
    """Killed within an epoch and within a checkpoint; the disk full.

    Four steps an epoch, a checkpoint after every second.
    """
    settings = {
        "number_of_epochs": 4,
        "ckpt_interval_steps": 2,
        "num_workers": 1,
    }
    full = "error: .*save: cannot write a checkpoint .*; free some space"
    for moment, returncode, message in (
        (["step", "3"], -signal.SIGKILL, ""),
        (["save", "2"], -signal.SIGKILL, ""),
        (["disk", "8"], 1, full),
    ):
        process = train(
            corpus,
            tmp_path,
            launcher=[TESTS / "faulty.py", *moment],
            **settings,
        )
        assert process.returncode == returncode, process.stderr
        assert re.match(message, process.stderr.splitlines()[-1])
        assert not (tmp_path / "model").exists()
    assert losses(tmp_path).keys() < {1, 2, 3, 4}
    process = train(corpus, tmp_path, **settings)
    assert process.returncode == 0, process.stderr
    assert epochs(tmp_path) == epochs(trained)
    checkpoints = list((tmp_path / "save").glob("CKPT*"))
    assert len(checkpoints) <= 2  # of the last epoch and the best


def test_a_file_that_went_bad_after_preparation(
    trained, corpus, tmp_path, capsys
):
    broken = tmp_path / "corpus"
    shutil.copytree(corpus, broken)
    output = tmp_path / "output"
    shutil.copytree(trained, output)
    bad = broken / "wav" / "anna" / "session0" / "00002.wav"
    before = bad.stat()
    with open(bad, "r+b") as file:
        file.write(bytes(100))
    os.utime(bad, ns=(before.st_atime_ns, before.st_mtime_ns))
    checkpoints = sorted((output / "save").glob("CKPT*"))

    line = refused(capsys, broken, output, number_of_epochs=5, num_workers=1)
    assert re.match(f"error: {bad}: .*--on_bad_audio=skip$", line)
    assert sorted((output / "save").glob("CKPT*")) == checkpoints
    train_here(broken, output, number_of_epochs=5, on_bad_audio="skip")
    assert f"Skipped: {bad}" in (output / "log.txt").read_text()
    assert re.search("unusable files: [1-9]", epochs(output)["epoch: 5"])


@pytest.fixture(scope="module")
def frozen_norms(tmp_path_factory):
    """Hyperparameters of a network without batch statistics."""
    text = (RECIPE / "hparams" / "demo_redimnet2_b0.yaml").read_text()
    network = "redimnet2_lobes.ReDimNet2"
    assert network in text
    path = tmp_path_factory.mktemp("hparams") / "frozen_norms.yaml"
    path.write_text(text.replace(network, "frozen_norms.FrozenNorms"))
    return path


@pytest.fixture(scope="module")
def one_process(frozen_norms, corpus, tmp_path_factory):
    output = tmp_path_factory.mktemp("one_process")
    train_here(corpus, output, frozen_norms, number_of_epochs=2)
    return losses(output)


@pytest.mark.parametrize("batch_size", [2, 1])
def test_global_batch_may_be_divided(
    batch_size, frozen_norms, one_process, corpus, tmp_path
):
    train_here(
        corpus,
        tmp_path,
        frozen_norms,
        number_of_epochs=2,
        batch_size=batch_size,
    )
    assert_same_losses(losses(tmp_path), one_process)


@pytest.mark.slow
def test_global_batch_may_be_divided_among_processes(
    frozen_norms, one_process, corpus, tmp_path
):
    process = train(
        corpus,
        tmp_path,
        frozen_norms,
        launcher=TWO_PROCESSES,
        distributed_backend="gloo",
        number_of_epochs=2,
        batch_size=1,
    )
    assert process.returncode == 0, process.stderr
    assert_same_losses(losses(tmp_path), one_process)


def assert_same_losses(divided, whole):
    assert divided.keys() == whole.keys()
    for epoch, loss in whole.items():
        assert divided[epoch] == pytest.approx(loss, rel=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("g++") is None, reason="torch compiles with g++"
)
def test_a_training_compiled_to_machine_code(corpus, tmp_path):
    process = train(
        corpus,
        tmp_path / "compiled",
        flags=["--compile"],
        number_of_epochs=2,
    )
    assert process.returncode == 0, process.stderr
    train_here(corpus, tmp_path / "eager", number_of_epochs=2)
    compiled, eager = (
        losses(tmp_path / name) for name in ("compiled", "eager")
    )
    assert compiled.keys() == eager.keys()
    for epoch, loss in eager.items():
        assert compiled[epoch] == pytest.approx(loss, rel=1e-3)


@pytest.mark.slow
def test_all_processes_end_where_the_loss_of_one_is_not_finite(
    corpus, tmp_path
):
    process = train(
        corpus,
        tmp_path,
        launcher=[*TWO_PROCESSES, TESTS / "faulty.py", "nan", "1"],
        distributed_backend="gloo",
        batch_size=2,
        number_of_epochs=1,
    )
    assert process.returncode == 1
    line = "error: epoch 1, step 2: the loss is not finite; "
    assert process.stderr.count(line) == 2
    assert not list((tmp_path / "save").glob("CKPT*"))
    assert not (tmp_path / "model").exists()


@pytest.mark.slow
def test_all_processes_end_where_one_cannot_read_a_file(corpus, tmp_path):
    """Of the validation, on whose second batch the second process works."""
    broken = tmp_path / "corpus"
    shutil.copytree(corpus, broken)
    bad = broken / "wav" / "anna" / "session1" / "00001.wav"
    samples, rate = soundfile.read(bad)
    soundfile.write(bad, samples * np.nan, rate, subtype="FLOAT")
    process = train(
        broken,
        tmp_path / "output",
        launcher=TWO_PROCESSES,
        distributed_backend="gloo",
        batch_size=2,
        validation_seconds_per_batch=1.5,
    )
    assert process.returncode == 1
    assert process.stderr.count(f"error: {bad}: not finite; ") == 2
    assert not list((tmp_path / "output" / "save").glob("CKPT*"))


@pytest.mark.slow
def test_all_processes_end_where_the_main_one_fails(corpus, tmp_path):
    with only_writer(tmp_path, "training"):
        process = train(
            corpus,
            tmp_path,
            launcher=TWO_PROCESSES,
            distributed_backend="gloo",
            batch_size=2,
        )
    assert process.returncode == 1
    ours = process.stderr.split("torch/distributed/run.py")[0]
    errors = re.findall("^error: .*", process.stderr, re.MULTILINE)
    assert len(errors) == 2, process.stderr
    assert any(str(tmp_path) in error for error in errors)
    assert "error: another process of this run has ended; its own" in (
        process.stderr
    )
    assert 'train_speaker_embeddings.py", line' not in ours


@pytest.fixture(scope="module")
def pretrained(corpus, noise_corpora, tmp_path_factory):
    """SphereFace2 with its learnable bias, SGD, the published augmentation."""
    output = tmp_path_factory.mktemp("pretrained")
    train_here(
        corpus,
        output,
        hparams="redimnet2_b0.yaml",
        number_of_epochs=2,
        corpora="null",
        ckpt_interval_steps=3,
        **noise_corpora,
    )
    return output


def test_published_recipe(pretrained):
    assert sorted(losses(pretrained)) == [1, 2]
    assert len(list((pretrained / "save").glob("CKPT*"))) == 2
    last = max((pretrained / "save").glob("CKPT*"))
    cost = torch.load(last / "compute_cost.ckpt", weights_only=True)
    assert cost["bias"].item() != 0


def test_fine_tuning(pretrained, corpus, noise_corpora, tmp_path):
    train_here(
        corpus,
        tmp_path,
        hparams="redimnet2_b0_lm.yaml",
        number_of_epochs=1,
        corpora="null",
        initial_lr=1e-9,  # so that nothing moves
        final_lr=1e-9,
        pretrained_folder=pretrained / "model",
        **noise_corpora,
    )
    log = (tmp_path / "log.txt").read_text()
    assert "4 speakers have the class weights of the pretraining, 0 are" in log
    for file in ("classifier.ckpt", "compute_cost.ckpt"):
        before, after = (
            torch.load(folder / "model" / file, weights_only=True)
            for folder in (pretrained, tmp_path)
        )
        for name in before:
            assert torch.allclose(before[name], after[name], atol=1e-6)


@pytest.mark.slow
def test_shards_train_as_files_do(trained, corpus, tmp_path):
    make_shards = RECIPE.parent / "make_shards.py"
    shards = tmp_path / "shards"
    subprocess.run(
        [
            sys.executable,
            make_shards,
            trained / "save" / "train.csv",
            shards,
            f"--data_folder={corpus}",
            "--workers=1",
        ],
        check=True,
        capture_output=True,
    )
    train_here(
        shards,
        tmp_path / "output",
        number_of_epochs=1,
        validation_folder=corpus,
        validation_trials=corpus / "veri_validation.txt",
        test_trials=corpus / "veri_test2.txt",
    )
    assert not (tmp_path / "output" / "save" / "train.csv").exists()


def test_a_mixture_of_corpora(trained, corpus, noise_corpora, tmp_path):
    """Lists in place of a folder; speakers of all have the same names."""
    text = (trained / "save" / "train.csv").read_text()
    path = tmp_path / "list.csv"
    path.write_text(text.replace("$data_root", str(corpus)))
    train_here(
        "null",
        tmp_path / "output",
        hparams="redimnet2_b3_mixture.yaml",
        number_of_epochs=1,
        validation_folder=corpus,
        voxceleb2_list=path,
        voxblink2_list=path,
        cnceleb2_list=path,
        **noise_corpora,
    )
    names = (tmp_path / "output" / "model" / "label_encoder.ckpt").read_text()
    for name in TRAINING:
        for prefix in "ABC":
            assert f"'{prefix}_{name}'" in names


def test_other_speakers_need_another_folder(corpus, trained, tmp_path, capsys):
    changed = tmp_path / "corpus"
    shutil.copytree(corpus, changed)
    (changed / "wav" / "dora").rename(changed / "wav" / "dana")
    for name in ("veri_test2.txt", "veri_validation.txt"):
        text = (changed / name).read_text().replace("dora/", "dana/")
        (changed / name).write_text(text)
    output = tmp_path / "output"
    shutil.copytree(trained, output)
    assert re.search(
        "error: output_folder: .* holds a run on other speakers",
        refused(capsys, changed, output, number_of_epochs=5),
    )


def test_speechbrains_additive_margin(corpus, tmp_path):
    """A loss of SpeechBrain's in a copy of the YAML, as users would do it."""
    text = (RECIPE / "hparams" / "demo_redimnet2_b0.yaml").read_text()
    ours = """!new:redimnet2_lobes.AdditiveAngularMarginLoss
    scale: 32.0
"""
    theirs = """!new:speechbrain.nnet.losses.LogSoftmaxWrapper
    loss_fn: !new:speechbrain.nnet.losses.AngularMargin
        scale: 32.0
"""
    assert ours in text
    hparams = tmp_path / "additive_margin.yaml"
    hparams.write_text(text.replace(ours, theirs))
    train_here(corpus, tmp_path / "output", hparams=hparams, number_of_epochs=1)
    assert sorted(losses(tmp_path / "output")) == [1]


def test_bfloat16(corpus, tmp_path):
    train_here(corpus, tmp_path, number_of_epochs=1, precision="bf16")
    assert losses(tmp_path)[1][0] > 0


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"data_folder": ""}, "error: data_folder: "),
        ({"global_batch_size": 99}, "error: global_batch_size: 99"),
        (
            {"global_batch_size": 7},
            "error: global_batch_size: 7 for .* batch_size 4 .* BatchNorm",
        ),
        ({"batch_size": 1}, "error: global_batch_size: 4 for .* batch_size 1 "),
        ({"number_of_epoch": 3}, "error: number_of_epoch: not a key"),
        ({"validation_trials": "none.txt"}, "error: .*none.txt"),
        ({"device": "cuda:99"}, "error: device: 'cuda:99'"),
        ({"variant": "b9"}, "error: variant: 'b9' does not go with"),
        ({"batch_size": 0}, "error: batch_size: 0 is less than 1"),
        ({"num_workers": "two"}, "error: num_workers: expected a whole"),
    ],
)
def test_errors_are_one_line(corpus, tmp_path, capsys, overrides, message):
    assert re.search(message, refused(capsys, corpus, tmp_path, **overrides))
    assert not (tmp_path / "model").exists()


def test_without_data_folder():
    process = subprocess.run(
        [sys.executable, SCRIPT, RECIPE / "hparams" / "redimnet2_b3.yaml"],
        capture_output=True,
        text=True,
    )
    assert process.returncode == 1
    assert "Traceback" not in process.stderr
    assert re.match(
        r"error: data_folder: missing; pass --data_folder=.*make demo",
        process.stderr.strip().splitlines()[-1],
    )
