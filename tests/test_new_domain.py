"""Fine-tuning to few new speakers: what is frozen, and what is replayed."""

import csv
import itertools
import re
from pathlib import Path

import pytest
import torch
from training_runs import HPARAMS, TRAINING, command_line, run, write_corpus

from redimnet2_lobes.files.error_lines import one_line
from redimnet2_lobes.pretrained.loading import read_tensors
from redimnet2_lobes.recipe.command_line import parse_command_line
from redimnet2_lobes.recipe.hparams import load_hparams
from redimnet2_lobes.recipe.training import check_hparams

EPOCHS = 3
# Of 4 crops a step 3 are of the 12 utterances of three new speakers (the fourth
# has but utterances for validation).
STEPS = 4


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A training on four speakers."""
    folder = tmp_path_factory.mktemp("pretrained")
    corpus = write_corpus(folder / "corpus")
    with pytest.MonkeyPatch.context() as monkeypatch:
        return run(
            monkeypatch,
            command_line(corpus, folder / "output", number_of_epochs=1),
        )


@pytest.fixture(scope="module")
def replay_list(pretrained, tmp_path_factory):
    """Its list of utterances, which names the files."""
    path = tmp_path_factory.mktemp("lists") / "replay.csv"
    text = Path(pretrained.hparams["save_folder"], "train.csv").read_text()
    root = pretrained.hparams["data_folder"]
    path.write_text(text.replace("$data_root", str(root)))
    return path


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Other speakers: new_anna and so on."""
    folder = write_corpus(tmp_path_factory.mktemp("new"))
    for path in (folder / "wav").iterdir():
        path.rename(path.with_name(f"new_{path.name}"))
    for path in folder.glob("*.txt"):
        path.write_text(re.sub(r"(?<= )(?=\w)", "new_", path.read_text()))
    for path in (folder / "wav" / "new_dora").rglob("*.wav"):
        if path.stem > "00001":
            path.unlink()
    return folder


def arguments(corpus, output, pretrained, replay_list, **overrides):
    overrides = {
        "data_folder": corpus,
        "output_folder": output,
        "pretrained_folder": pretrained.hparams["model_folder"],
        "replay_lists": f'{{"": "{replay_list}"}}',
        "replay_share": 0.25,
        "frozen_stages": 1,
        "musan_folder": "null",
        "rirs_folder": "null",
        "augment": "{steps: [], probabilities: []}",
        "number_of_epochs": EPOCHS,
        "margin_final_epoch": 3,
        "batch_size": 4,
        "global_batch_size": 4,
        "crop_frames": 40,
        "num_workers": 0,
        "precision": "fp32",
        "device": "cpu",
        **overrides,
    }
    options = [f"--{key}={value}" for key, value in overrides.items()]
    return [str(HPARAMS / "finetune_redimnet2.yaml"), *options]


@pytest.fixture(scope="module")
def tuned(corpus, pretrained, replay_list, tmp_path_factory):
    """A fine-tuning, and the class weights that it began with."""
    output = tmp_path_factory.mktemp("tuned")
    with pytest.MonkeyPatch.context() as monkeypatch:
        return run(
            monkeypatch,
            arguments(corpus, output, pretrained, replay_list),
            note_classes,
        )


def note_classes(watch):
    watch.first_classes = watch.brain.modules.classifier.weight.detach().clone()


def tensors(watch):
    folder = watch.hparams["model_folder"]
    return read_tensors(f"{folder}/embedding_model.safetensors")


def same(items, others):
    return len(items) == len(others) and all(
        a[0] == b[0] and torch.equal(a[1], b[1]) and a[2] == b[2]
        for a, b in zip(items, others, strict=True)
    )


def is_replayed(name):
    return not name.startswith("new_")


def test_what_is_frozen_is_as_before_to_the_bit(pretrained, tuned):
    before, after = tensors(pretrained), tensors(tuned)
    assert before.keys() == after.keys()
    same = {name for name in before if torch.equal(before[name], after[name])}
    frozen = {n for n in before if n.startswith(("stem.", "stages.0."))}
    assert any("running_mean" in name for name in frozen)
    assert frozen <= same
    moving = {n for n in before if n.startswith("stages.1.")}
    assert any("running_mean" in name for name in moving - same)
    assert "projection.weight" not in same
    # The optimizer has nothing of what is frozen.
    states = tuned.brain.optimizer.state
    trained = [w for w in states if "exp_avg" in states[w]]
    assert trained and all(weight.requires_grad for weight in trained)


def test_each_step_has_its_share_of_old_speakers(tuned):
    log = Path(tuned.hparams["output_folder"], "log.txt").read_text()
    assert "The margin" not in log
    assert len(tuned.items) == EPOCHS * STEPS * 4
    replayed = [is_replayed(name) for name, *_ in tuned.items]
    steps = [sum(replayed[i : i + 4]) for i in range(0, len(replayed), 4)]
    assert steps == [1] * EPOCHS * STEPS
    drawn = set()
    for epoch in range(EPOCHS):
        items = tuned.items[16 * epoch :][:16]
        names = [name for name, *_ in items]
        assert len(set(names)) == 16  # none twice
        drawn.add(frozenset(filter(is_replayed, names)))
    assert len(drawn) == EPOCHS  # others in each epoch


def test_old_speakers_keep_their_class_weights(pretrained, tuned):
    folder = pretrained.hparams["model_folder"]
    before = read_tensors(f"{folder}/classifier.safetensors")["weight"]
    assert len(tuned.first_classes) == len(TRAINING) + 3
    for name in TRAINING:
        theirs = pretrained.speakers.encode_label(name)
        ours = tuned.speakers.encode_label(name)
        assert torch.equal(tuned.first_classes[ours], before[theirs])


def test_without_lists_nothing_is_replayed(
    corpus, pretrained, replay_list, monkeypatch, tmp_path
):
    watch = run(
        monkeypatch,
        arguments(
            corpus,
            tmp_path / "output",
            pretrained,
            replay_list,
            replay_lists="{}",
            number_of_epochs=1,
            frozen_stages=0,
        ),
    )
    log = Path(watch.hparams["output_folder"], "log.txt").read_text()
    assert "The margin ends at 0.0000, not at final_margin 0.2, since" in log
    names = [name for name, *_ in watch.items]
    assert len(names) == 12 and not any(map(is_replayed, names))
    assert not set(watch.speakers.lab2ind) & set(TRAINING)
    assert not torch.equal(
        tensors(watch)["stem.convolution.weight"],
        tensors(pretrained)["stem.convolution.weight"],
    )


class Stop(Exception):
    pass


@pytest.mark.parametrize("step", [2, 6, 9])
def test_resumed_as_if_never_stopped(
    step, tuned, corpus, pretrained, replay_list, monkeypatch, tmp_path
):
    """A checkpoint after every second step; stopped in the step after."""

    def stop(watch):
        steps = itertools.count(1)

        def before_step(*_):
            if next(steps) > step:
                raise Stop

        watch.brain.optimizer.register_step_pre_hook(before_step)

    command = arguments(
        corpus,
        tmp_path / "output",
        pretrained,
        replay_list,
        ckpt_interval_steps=2,
    )
    with pytest.raises(Stop):
        run(monkeypatch, command, stop)
    watch = run(monkeypatch, command)
    done = step // 2 * 2
    assert same(watch.items, tuned.items[4 * done :])
    assert watch.losses == tuned.losses[done:]
    after, expected = tensors(watch), tensors(tuned)
    for name in expected:
        assert torch.equal(after[name], expected[name]), name


def test_stages_may_be_unfrozen_later(
    tuned, corpus, pretrained, replay_list, monkeypatch, tmp_path
):
    """An epoch with the first stage frozen, then one with none."""
    common = (corpus, tmp_path / "output", pretrained, replay_list)
    run(monkeypatch, arguments(*common, number_of_epochs=1))
    watch = run(
        monkeypatch, arguments(*common, number_of_epochs=2, frozen_stages=0)
    )
    stem = "stem.convolution.weight"
    assert not torch.equal(tensors(watch)[stem], tensors(tuned)[stem])


# Wrong values


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"frozen_stages": 3}, "frozen_stages: 3 is not one of 0 to 2"),
        ({"frozen_stages": "most"}, "frozen_stages: 'most' is not one of"),
        ({"pretrained_folder": "here"}, "here/hyperparams.yaml: No such file"),
        ({"replay_share": 1}, "^replay_share: 1 is not between 0 and 1"),
        ({"replay_share": 0}, "^replay_share: 0 is not between 0 and 1"),
        ({"replay_share": "half"}, "^replay_share: expected a number"),
        ({"replay_lists": "{A: 3}"}, "^replay_lists: expected a mapping"),
        ({"replay_lists": "{A: no.csv}"}, "^no.csv: cannot read the list"),
        ({"replay_share": 0.01}, "^replay_share: 0.01 of 4 crops is 0; pass"),
        (
            {"replay_share": 0.75},
            "^replay_share: 0.75 takes 36 utterances of replay_lists an epoch, "
            "which have 16; pass a lower one",
        ),
    ],
)
def test_wrong_values_are_one_line(
    changes, message, corpus, pretrained, replay_list, monkeypatch, tmp_path
):
    command = arguments(
        corpus, tmp_path / "output", pretrained, replay_list, **changes
    )
    with pytest.raises(ValueError, match=message) as error:
        run(monkeypatch, command)
    assert "\n" not in one_line(error.value)


def test_a_speaker_of_both_lists(
    corpus, pretrained, replay_list, monkeypatch, tmp_path
):
    """Two speakers of one name would be one class."""
    with open(replay_list, newline="") as file:
        rows = [
            {**row, "ID": f"new_{row['ID']}", "spk_id": f"new_{row['spk_id']}"}
            for row in csv.DictReader(file)
        ]
    path = tmp_path / "replay.csv"
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    command = arguments(corpus, tmp_path / "output", pretrained, path)
    with pytest.raises(ValueError, match="^replay_lists: the speaker new_anna"):
        run(monkeypatch, command)


def test_any_model_folder_says_which_network_it_is(
    corpus, pretrained, replay_list, tmp_path
):
    command = arguments(corpus, tmp_path / "output", pretrained, replay_list)
    path, _, overrides = parse_command_line(command)
    hparams = load_hparams(path, overrides)
    check_hparams(hparams)
    network = hparams["embedding_model"]
    assert network.arguments() == (
        pretrained.hparams["embedding_model"].arguments()
    )
    assert network.frozen_stages == 1
