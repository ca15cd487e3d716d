"""A network learns the embeddings that a file holds."""

import csv
import re

import extract_speaker_embeddings
import numpy as np
import pytest
import torch
import train_speaker_embeddings as recipe
from speechbrain.inference.classifiers import EncoderClassifier
from torch.nn.functional import cosine_similarity, normalize
from training_runs import (
    command_line,
    logging_restored,
    run,
    write_corpus,
)

from redimnet2_lobes.inference.embedding_files import read_embeddings
from redimnet2_lobes.models.front_end import LogMel
from redimnet2_lobes.models.redimnet2 import ReDimNet2
from redimnet2_lobes.pretrained.model_folder import (
    NoSpeakerClasses,
    write_model_folder,
)
from redimnet2_lobes.training.distillation import (
    distillation_loss,
    read_teacher,
)

NAMES = [f"speaker{number}/x/{number}" for number in range(20)]


def write_teacher(path, vectors, names=NAMES, space="teacher"):
    arrays = {"names": names, "embeddings": vectors.numpy()}
    np.savez(path, **arrays, embedding_space=space)
    return path


def cosines(vectors):
    units = normalize(vectors, dim=-1)
    return units @ units.T


@pytest.fixture
def vectors():
    return torch.randn(20, 6, generator=torch.Generator().manual_seed(1)) + 2


@pytest.mark.parametrize("size", (6, 192))
def test_cosines_are_those_of_the_teacher_without_its_mean(
    vectors, tmp_path, size
):
    path = write_teacher(tmp_path / "teacher.npz", vectors)
    (teacher,) = read_teacher([path], NAMES, size)
    assert teacher.shape == (20, size)
    centred = cosines(vectors - vectors.mean(dim=0))
    torch.testing.assert_close(cosines(teacher), centred)


def test_a_larger_teacher_is_reduced_to_what_matters(vectors, tmp_path):
    """Turned into a space of 50, of which it fills 6."""
    directions, _ = torch.linalg.qr(torch.randn(50, 6))
    path = write_teacher(tmp_path / "teacher.npz", vectors @ directions.T)
    (teacher,) = read_teacher([path], NAMES, 6)
    centred = cosines(vectors - vectors.mean(dim=0))
    torch.testing.assert_close(cosines(teacher), centred, atol=1e-4, rtol=0)


def test_each_speed_has_its_file_and_each_corpus_its_prefix(vectors, tmp_path):
    """In any order, and with utterances that are not wanted."""
    a = write_teacher(tmp_path / "a.npz", vectors[:5], NAMES[:5])
    b = write_teacher(tmp_path / "b.npz", vectors[5:10], NAMES[:5])
    names = [f"B_{NAMES[3]}", f"A_{NAMES[0]}"]
    teacher = read_teacher([{"A_": a, "B_": b}, {"B_": a, "A_": b}], names, 6)
    expected = vectors[torch.tensor([[8, 0], [3, 5]])]
    expected = expected - expected.flatten(end_dim=1).mean(dim=0)
    torch.testing.assert_close(teacher, normalize(expected, dim=-1))


def test_what_is_wrong_with_a_teacher_is_one_line(vectors, tmp_path):
    path = write_teacher(tmp_path / "teacher.npz", vectors)
    other = write_teacher(tmp_path / "other.npz", vectors, space="another")
    lacks = r"lacks 2 of the 22 training utterances, the first is x; embed"
    with pytest.raises(ValueError, match=lacks):
        read_teacher([path], [*NAMES, "x", "y"], 6)
    with pytest.raises(ValueError, match="another"):
        read_teacher([path, other], NAMES, 6)
    narrow = write_teacher(tmp_path / "narrow.npz", vectors[:, :5])
    with pytest.raises(ValueError, match="narrow.npz: embeddings of 5 numb"):
        read_teacher([path, narrow], NAMES, 6)
    with pytest.raises(ValueError, match="nothing.npz: no such file"):
        read_teacher([tmp_path / "nothing.npz"], NAMES, 6)
    narrow = write_teacher(tmp_path / "narrow.npz", vectors[:, :2])
    for files in ([path, narrow], [{"": path, "b-": narrow}]):
        with pytest.raises(ValueError, match="narrow.npz: embeddings of 2 "):
            read_teacher(files, NAMES, 6)
    same = write_teacher(tmp_path / "same.npz", torch.ones_like(vectors))
    with pytest.raises(ValueError, match="same.npz are all the same; check"):
        read_teacher([same], NAMES, 2)
    with pytest.raises(ValueError, match="of 21 training utterances only 20"):
        read_teacher([path], [*NAMES, NAMES[0]], 6)


@pytest.mark.parametrize("size", (4, 6, 8))
def test_targets_that_teach_nothing_are_refused(vectors, tmp_path, size):
    path = write_teacher(tmp_path / "teacher.npz", vectors)
    again = write_teacher(tmp_path / "again.npz", vectors)
    message = "again.npz: the same embeddings as of another speed"
    with pytest.raises(ValueError, match=message):
        read_teacher([path, again], NAMES, size)
    vectors[3] *= 1000
    path = write_teacher(tmp_path / "teacher.npz", vectors)
    with pytest.raises(ValueError, match="teacher.npz say the same once"):
        read_teacher([path], NAMES, size)


@pytest.mark.parametrize("size", (2, 6, 8))
def test_the_scale_of_a_teacher_does_not_matter(vectors, tmp_path, size):
    paths = [
        write_teacher(tmp_path / f"{scale}.npz", vectors * scale)
        for scale in (1.0, 1e37, 1e-30)
    ]
    found = [read_teacher([path], NAMES, size) for path in paths]
    for each in found[1:]:
        similar = cosine_similarity(found[0] @ found[0].mT, each @ each.mT)
        assert similar.min() > 0.9999


def test_the_loss_is_of_directions_and_of_pairs(vectors):
    targets = normalize(vectors.flip(0), dim=1)
    expected = (1 - cosine_similarity(vectors, targets)).mean()
    torch.testing.assert_close(
        distillation_loss(3 * vectors, targets, 1.0, 0.0), expected
    )
    expected = (cosines(vectors) - cosines(targets)).square().mean()
    torch.testing.assert_close(
        distillation_loss(3 * vectors, targets, 0.0, 1.0), expected
    )
    # Pairs do not see how the whole is turned.
    turn, _ = torch.linalg.qr(torch.randn(6, 6))
    assert distillation_loss(targets @ turn, targets, 0.0, 1.0) < 1e-9
    assert distillation_loss(targets, targets) < 1e-5


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def files(corpus, tmp_path_factory):
    """What a larger network makes of the corpus at two speeds."""
    folder = tmp_path_factory.mktemp("teacher")
    torch.manual_seed(1)
    stage = {"blocks": 1, "expansion": 1, "reduction": 8}
    stages = [{"frequency_stride": 2, "time_stride": 2, **stage}]
    network = ReDimNet2(LogMel(), 4, stages, embedding_size=256)
    network(torch.randn(4, 16000))
    write_model_folder(folder / "model", network, "A teacher")
    for speed in ("1.0", "0.9"):
        extract_speaker_embeddings.main(
            [
                "hparams/extract_redimnet2.yaml",
                f"--utterances={corpus}",
                f"--checkpoint={folder / 'model'}",
                f"--output={folder / speed}",
                f"--speed={speed}",
                "--device=cpu",
            ]
        )
    # Names as in train.csv: without the ending of the file.
    paths = [folder / "1.0.npz", folder / "0.9.npz"]
    for path in paths:
        stored = read_embeddings(path)
        names = [name.removesuffix(".wav") for name in stored.names]
        write_teacher(path, stored.vectors, names, stored.space)
    return [str(path) for path in paths]


def settings(files):
    return {
        "teacher_embeddings": f"[{', '.join(files)}]",
        "speeds": f"[{', '.join(['1.0', '0.9'][: len(files)])}]",
        "number_of_epochs": 3,
    }


def test_a_speed_is_another_voice(files):
    usual, slow = (read_embeddings(path).vectors for path in files)
    assert usual.shape == slow.shape == (36, 256)
    assert cosine_similarity(usual, slow).max() < 0.99999


def test_targets_are_of_the_utterance_and_its_speed(
    corpus, files, monkeypatch, tmp_path
):
    watch = run(monkeypatch, command_line(corpus, tmp_path, **settings(files)))
    data = watch.loader.dataset
    names = [name for name, _, _ in data.utterances]
    expected = read_teacher(files, names, 192)
    seen = set()
    for row in range(len(data)):
        crop = data[row]
        speed = crop["label"] // len(data.speakers)
        assert torch.equal(crop["teacher"], expected[speed, row])
        seen.add(speed)
    assert seen == {0, 1}


def test_without_speakers(corpus, files, monkeypatch, tmp_path):
    """Of a list that has none; the model folder says so."""
    labelled = tmp_path / "labelled"
    run(monkeypatch, command_line(corpus, labelled, number_of_epochs=1))
    with open(labelled / "save" / "train.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    unlabelled = tmp_path / "train.csv"
    lines = ["ID,duration,wav"]
    for row in rows:
        path = row["wav"].replace("$data_root", str(corpus))
        lines.append(f"{row['ID']},{row['duration']},{path}")
    unlabelled.write_text("\n".join(lines), encoding="utf-8")

    output = tmp_path / "output"
    arguments = command_line(
        corpus,
        output,
        training_lists=f"{{'': {unlabelled}}}",
        label_weight=0.0,
        initial_lr=0.1,
        margin_final_epoch=20,  # of no concern
        **settings(files[:1]) | {"number_of_epochs": 12},
    )
    run(monkeypatch, arguments)
    assert "margin ends" not in (output / "log.txt").read_text(encoding="utf-8")
    log = (output / "train_log.txt").read_text(encoding="utf-8")
    assert "accuracy" not in log
    losses = [float(loss) for loss in re.findall("train loss: ([^,]*),", log)]
    assert losses[-1] < 0.95 * losses[0]

    classifier = EncoderClassifier.from_hparams(
        source=str(output / "model"), savedir=str(tmp_path / "saved")
    )
    assert isinstance(classifier.mods.classifier, NoSpeakerClasses)


def test_interrupted_runs_go_on(corpus, files, monkeypatch, tmp_path):
    """With the same losses, and only with the same teacher."""

    def log_of(folder):
        text = (folder / "train_log.txt").read_text(encoding="utf-8")
        return re.findall(r"train loss: [^,]*,|EER: \S+", text)

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    # A learning rate that does not depend on the number of epochs.
    constant = {"initial_lr": 0.01, "final_lr": 0.01}
    for folder, epochs in ((whole, 3), (parts, 1), (parts, 3)):
        changes = {"number_of_epochs": epochs, **constant}
        arguments = command_line(corpus, folder, **settings(files) | changes)
        run(monkeypatch, arguments)
    assert log_of(parts) == log_of(whole)

    changes = {"teacher_embeddings": f"[{files[1]}, {files[0]}]"}
    arguments = command_line(corpus, parts, **settings(files) | changes)
    with pytest.raises(ValueError, match="^teacher_embeddings: not as in"):
        run(monkeypatch, arguments)
    changes = {"label_weight": 0.0}
    arguments = command_line(corpus, parts, **settings(files) | changes)
    with pytest.raises(ValueError, match="^unlabelled: not as in"):
        run(monkeypatch, arguments)


@pytest.mark.parametrize(
    ("overrides", "message"),
    (
        ({"teacher_embeddings": "[a.npz]"}, "1 files for the speeds 1.0, 0.8"),
        ({"teacher_embeddings": "a.npz"}, "teacher_embeddings: expected a"),
        ({"label_weight": 0.0}, "label_weight: 0 leaves nothing to learn"),
        ({"teacher_weight": -1.0}, "teacher_weight: -1.0"),
        (
            {
                "teacher_embeddings": "[a.npz]",
                "speeds": "[1.0]",
                "teacher_weight": 0.0,
                "teacher_pairs_weight": 0.0,
            },
            "teacher_weight: 0 leaves nothing to learn from teacher_embed",
        ),
        (
            {"teacher_embeddings": "[{}]", "speeds": "[1.0]"},
            "teacher_embeddings: one of the entries names no file",
        ),
        (
            {"teacher_embeddings": "[a.npz]", "speeds": "[1.0]"},
            "a.npz: no such file",
        ),
    ),
)
def test_wrong_settings(corpus, tmp_path, overrides, message):
    arguments = command_line(corpus, tmp_path / "output", **overrides)
    with logging_restored(), pytest.raises(ValueError, match=message):
        recipe.main(arguments)
