"""Global batches: the same on any number of processes and when resumed."""

import numpy as np
import pytest

from redimnet2_lobes.training.batches import EpochProgress, GlobalBatches

ONE_SHARD = np.zeros(50, dtype=int)


def global_batches(shards, processes, batch_size, epoch=1, first_step=0):
    """The set of utterances of each step, over all processes."""
    parts = []
    for process in range(processes):
        batches = GlobalBatches(shards, 12, batch_size, 7, process, processes)
        batches.set_epoch(epoch)
        batches.first_step = first_step
        mine = list(batches)
        assert {len(batch) for batch in mine} == {batches.batch_size}
        assert len(batches) == batches.steps * batches.accumulation
        per_step = batches.accumulation
        parts.append(
            [
                sum(mine[start : start + per_step], [])
                for start in range(0, len(mine), per_step)
            ]
        )
    return [sum(step, []) for step in zip(*parts, strict=True)]


@pytest.mark.parametrize("processes, batch_size", [(1, 5), (2, 6), (4, 1)])
def test_global_batches_do_not_depend_on_how_they_are_divided(
    processes, batch_size
):
    whole = global_batches(ONE_SHARD, 1, 12)
    divided = global_batches(ONE_SHARD, processes, batch_size)
    assert list(map(sorted, divided)) == list(map(sorted, whole))
    # No utterance twice, and fewer than a global batch left out.
    seen = sum(divided, [])
    assert len(seen) == len(set(seen)) == 48


def test_every_epoch_has_another_order_and_the_seed_repeats_it():
    first = global_batches(ONE_SHARD, 1, 12, epoch=1)
    assert first == global_batches(ONE_SHARD, 1, 12, epoch=1)
    assert first != global_batches(ONE_SHARD, 1, 12, epoch=2)


def test_goes_on_from_a_step():
    whole = global_batches(ONE_SHARD, 2, 3)
    assert global_batches(ONE_SHARD, 2, 3, first_step=2) == whole[2:]


def test_few_shards_at_a_time(monkeypatch):
    monkeypatch.setattr("redimnet2_lobes.training.batches.SHARDS_AT_ONCE", 2)
    shards = np.repeat(np.arange(6), 8)
    order = sum(global_batches(shards, 1, 12), [])
    for start in range(0, 48, 16):
        window = shards[order[start : start + 16]]
        assert len(set(window)) == 2
        # Mixed, not one after the other.
        assert np.count_nonzero(np.diff(window)) > 1
    other = sum(global_batches(shards, 1, 12, epoch=2), [])
    assert set(shards[order[:16]]) != set(shards[other[:16]])


def test_32_shards_at_a_time_in_one_process():
    shards = np.repeat(np.arange(96), 5)
    batches = GlobalBatches(shards, 32, 32, seed=7)
    order = sum(batches, [])
    assert len(set(order)) == len(order) == 480
    assert {len(set(shards[order[at : at + 160]])) for at in (0, 160, 320)} == {
        32
    }
    # A window's utterances stay in the order that they were drawn in.
    random = np.random.default_rng([7, 1])
    turns = random.permutation(96).tolist()
    drawn = random.permutation(480).tolist()
    assert order == sorted(drawn, key=lambda at: turns.index(at // 5) // 32)


def test_as_many_utterances_as_one_global_batch():
    batches = GlobalBatches(np.zeros(12, dtype=int), 12, 6, seed=1)
    assert sorted(sum(batches, [])) == list(range(12))


@pytest.mark.parametrize(
    "global_batch_size, processes, message",
    [
        (12, 5, "global_batch_size: 12 cannot be divided among 5"),
        (100, 1, "global_batch_size: 100 is more than the 50 training"),
    ],
)
def test_impossible_sizes_name_the_key(global_batch_size, processes, message):
    with pytest.raises(ValueError, match=message):
        GlobalBatches(
            ONE_SHARD, global_batch_size, 4, seed=1, processes=processes
        )


# 30 new utterances; of 12 crops a step 0.3 * 12, rounded, are of replay.
NEW, REPLAYED = 30, 70
SHARDS = np.concatenate([np.zeros(NEW, int), np.arange(1, 71) // 10])


def with_replay(epoch=1, processes=1, batch_size=12, first_step=0, share=0.3):
    """The batches of each process."""
    parts = []
    for process in range(processes):
        batches = GlobalBatches(
            SHARDS, 12, batch_size, 7, process, processes, REPLAYED, share
        )
        batches.set_epoch(epoch)
        batches.first_step = first_step
        parts.append(list(batches))
    return parts


def test_each_step_has_its_share_of_replay():
    (steps,) = with_replay()
    assert len(steps) == NEW // 8
    assert [sum(each >= NEW for each in step) for step in steps] == [4] * 3
    seen = sum(steps, [])
    assert len(set(seen)) == len(seen)  # none twice
    # Mixed, since a step is divided among processes and parts.
    places = {
        place
        for step in steps
        for place, each in enumerate(step)
        if each >= NEW
    }
    assert len(places) > 4


def test_replay_is_drawn_anew_in_every_epoch():
    def drawn(epoch):
        return {each for each in sum(*with_replay(epoch), []) if each >= NEW}

    assert with_replay(1) == with_replay(1)
    assert drawn(1) != drawn(2)
    # All take their turns.
    assert set().union(*map(drawn, range(40))) == set(range(NEW, 100))


def test_replay_does_not_depend_on_how_it_is_divided_or_resumed():
    (whole,) = with_replay()
    halves = with_replay(processes=2, batch_size=3)
    for step, expected in enumerate(whole):
        pieces = [each for half in halves for each in half[2 * step :][:2]]
        assert {len(piece) for piece in pieces} == {3}
        assert sorted(sum(pieces, [])) == sorted(expected)
    assert with_replay(first_step=2) == [whole[2:]]


@pytest.mark.parametrize(
    "sizes, message",
    [
        ((100, 70, 12, 0.02), "replay_share: 0.02 of 12 crops is 0; pass"),
        ((100, 70, 12, 0.98), "replay_share: 0.98 of 12 crops is 12; pass"),
        ((100, 70, 80, 0.5), "40 of 80 is more than the 30 training utter"),
        ((100, 30, 10, 0.5), "takes 70 utterances .* which have 30; pass a l"),
    ],
)
def test_impossible_replay_names_the_key(sizes, message):
    utterances, replayed, crops, share = sizes
    with pytest.raises(ValueError, match=message) as error:
        GlobalBatches(
            np.zeros(utterances, int),
            crops,
            crops,
            seed=1,
            replayed=replayed,
            replay_share=share,
        )
    assert "\n" not in str(error.value)


def test_progress_of_a_whole_epoch_is_not_kept(tmp_path):
    progress = EpochProgress()
    assert set(vars(progress).values()) == {0}
    progress.utterances = 5
    progress.save(tmp_path / "progress")
    resumed = EpochProgress()
    resumed.load(tmp_path / "progress", end_of_epoch=True)
    assert resumed.utterances == 0
