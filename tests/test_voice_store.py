"""The store of voices: what it keeps, for whom, and through what faults."""

import contextlib
import itertools
import os
import random
import signal
import sqlite3
import stat
import sys
import threading
from datetime import datetime, timedelta

import numpy as np
import pytest
import torch
from full_disk import full_disk
from processes import SERVER
from torch.nn.functional import normalize

from redimnet2_lobes.voices import store as module
from redimnet2_lobes.voices.store import VoiceStore

SPACE = "redimnet2-b0-1"
SIZE = 192


def embeddings(number, count=1, size=SIZE):
    """Other ones of each number, of any length."""
    generator = torch.Generator().manual_seed(number)
    return 5 * torch.randn(count, size, generator=generator)


def fill(store, names):
    for number, name in enumerate(names):
        count = number % 3 + 1
        store.add(name, embeddings(number, count), [1.5] * count)


@pytest.fixture
def path(tmp_path):
    """In a folder of its own, to see what lies beside it."""
    (tmp_path / "kept").mkdir()
    return tmp_path / "kept" / "voices.sqlite"


@pytest.fixture
def store(path):
    with VoiceStore(path, SPACE) as store:
        yield store


def test_what_is_kept(store, path):
    first, second = embeddings(1, 2), embeddings(2)
    store.add("Zoë", first, [1.5, 2], consent="form 7")
    store.add("Bert", embeddings(3), [3.0])
    # Composed or not, it is the same name.
    store.add("Zoe\u0308", second.double(), torch.tensor([0.5]).tolist())
    for opened in (store, VoiceStore(path), VoiceStore(str(path), SPACE)):
        assert opened.space == SPACE
        assert opened.names() == ["Zoë", "Bert"]
        kept = opened.prototypes("Zoë")
        assert torch.equal(kept, torch.cat([first, second]))
        assert kept.dtype == torch.float32
        zoe, bert = opened.voices()
        assert zoe[:3] == ("Zoë", 3, 4.0) and bert[:3] == ("Bert", 1, 3.0)
        assert (zoe.consent, bert.consent) == ("form 7", None)
        for date in (zoe.added, zoe.changed, bert.added):
            assert datetime.fromisoformat(date).utcoffset() == timedelta(0)
        assert zoe.added <= bert.added <= zoe.changed
        if opened is not store:
            opened.close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(path.parent) == [path.name]


def test_a_note_is_replaced(store):
    store.add("anna", embeddings(1), [1], "by telephone")
    store.add("anna", embeddings(2), [1], "form 7")
    assert store.voices()[0].consent == "form 7"


def test_a_voice_is_read_as_of_one_moment(store):
    fill(store, ["anna", "bert"])
    for name in store.names():
        voice, prototypes = store.read(name)
        assert voice == store.find(name)
        assert torch.equal(prototypes, store.prototypes(name))
        assert voice.prototypes == len(prototypes)


def test_a_voice_is_added_to_if_it_is_as_it_was(store, path):
    first, second = embeddings(1), embeddings(2)
    store.add("anna", first, [1.0], known=None)
    with VoiceStore(path) as other:
        for known in (None, second, embeddings(3, 2)):
            with pytest.raises(
                module.VoiceChangedError,
                match="sqlite: the voice of anna was changed meanwhile by",
            ):
                other.add("anna", second, [1.0], known=known)
        assert torch.equal(store.prototypes("anna"), first)
        other.add("anna", second, [1.0], known=first)
        other.remove("anna")
    with pytest.raises(module.VoiceChangedError):
        store.add("anna", second, [1.0], known=torch.cat([first, second]))
    assert store.names() == []


def test_embeddings_are_little_endian_float32(store, path):
    store.add("anna", torch.tensor([[1.0, -2.5]]), [1])
    ((blob,),) = sqlite3.connect(path).execute(
        "SELECT embedding FROM prototypes"
    )
    assert blob == np.array([1, -2.5], "<f4").tobytes()


def test_operating_points(store, path):
    assert store.read_operating_points() is None
    points = {"threshold": 0.25, "counts": [1, None, "é"]}
    store.write_operating_points({"old": 1})
    store.write_operating_points(points)
    with VoiceStore(path) as again:
        assert again.read_operating_points() == points


# Identification


def by_hand(store, test):
    """Names and cosines, the best first."""
    scores = {
        name: torch.cosine_similarity(
            normalize(store.prototypes(name), dim=1).mean(0), test, dim=0
        ).item()
        for name in store.names()
    }
    return sorted(scores.items(), key=lambda pair: -pair[1])


@pytest.mark.parametrize("index", ["exact", "faiss"])
def test_identification_is_by_the_mean_prototype(path, index, monkeypatch):
    monkeypatch.setattr(module, "READ_AT_ONCE", 7)  # several blocks
    names = [f"voice {number}" for number in range(60)]
    tests = torch.cat([embeddings(number) for number in range(0, 60, 7)])
    tests += embeddings(99, len(tests))
    with VoiceStore(path, SPACE, index) as store:
        fill(store, names)
        store.add("voice 0", embeddings(90, 2), [1, 1])  # not beside the first
        for top in (1, 2, 5, 100):
            found = store.identify(tests, top=top)
            for test, one in zip(tests, found, strict=True):
                expected = by_hand(store, test)
                assert [name for name, _ in one.candidates] == [
                    name for name, _ in expected[:top]
                ]
                for ours, theirs in zip(
                    one.candidates, expected[:top], strict=True
                ):
                    assert ours[1] == pytest.approx(theirs[1], abs=1e-5)
                (best, score), (_, second), *_ = expected
                assert one.name == best
                assert one.score == pytest.approx(score, abs=1e-5)
                assert one.margin == pytest.approx(score - second, abs=1e-5)


def test_unknown_voices(store):
    store.add("anna", torch.tensor([[1.0, 0.0]]), [1])
    test = torch.tensor([[3.0, 4.0]])
    (one,) = store.identify(test)
    assert (one.name, one.margin) == ("anna", None)
    assert one.score == pytest.approx(0.6)
    (unknown,) = store.identify(test, threshold=one.score)
    assert unknown.name is None and unknown[1:] == one[1:]
    assert store.identify(test, one.score - 1e-6)[0].name == "anna"


def test_prototypes_of_a_name_leave_the_margin(store):
    """It is that to the second name, not to the second prototype."""
    store.add("anna", torch.tensor([[1.0, 0.0], [1.0, 0.01]]), [1, 1])
    store.add("bert", torch.tensor([[0.0, 1.0]]), [1])
    (one,) = store.identify(torch.tensor([[1.0, 0.0]]))
    assert one.margin == pytest.approx(1, abs=0.01)


def test_order_and_number_of_tests_do_not_matter(store):
    fill(store, "abcdef")
    tests = embeddings(50, 9)
    together = store.identify(tests)
    alone = [store.identify(test[None])[0] for test in tests.flip(0)][::-1]
    for one, other in zip(together, alone, strict=True):
        assert one.name == other.name
        assert one.score == pytest.approx(other.score, abs=1e-6)


def test_own_changes_are_seen(store):
    test = embeddings(1)
    fill(store, ["anna", "bert"])
    assert store.identify(test)[0].name == "bert"
    store.add("carl", test, [1])
    assert store.identify(test)[0].name == "carl"
    store.remove("carl")
    assert store.identify(test)[0].name == "bert"


def test_changes_by_other_processes_are_seen(store, path):
    """Another connection is as another process to SQLite."""
    test = embeddings(1)
    fill(store, ["anna", "bert"])
    assert store.identify(test)[0].name == "bert"
    with VoiceStore(path, SPACE) as other:
        other.add("carl", test, [1])
        assert store.identify(test)[0].name == "carl"
        other.remove("carl")
        assert store.identify(test)[0].name == "bert"
        store.remove("bert")
        (one,) = other.identify(test)
        assert [name for name, _ in one.candidates] == ["anna"]
        other.add("bert", test, [1])
        other.remove("anna")
        store.add("dora", embeddings(7), [1])
        (one,) = store.identify(test)
        assert [name for name, _ in one.candidates] == ["bert", "dora"]
        assert one.score == pytest.approx(1)


def test_nothing_is_read_again_without_a_change(store, monkeypatch):
    fill(store, ["anna", "bert"])
    found = store.identify(embeddings(1))
    store.names()
    monkeypatch.setattr(store, "_read_means", None)
    assert store.identify(embeddings(1)) == found


def test_faiss_is_asked_for_by_name(path, monkeypatch):
    with pytest.raises(ValueError, match="^index: unknown value 'annoy'"):
        VoiceStore(path, SPACE, "annoy")
    assert not path.exists()
    monkeypatch.setitem(sys.modules, "faiss", None)
    with VoiceStore(path, SPACE, "faiss") as store:
        fill(store, ["anna"])
        with pytest.raises(ValueError, match="pip install faiss-cpu"):
            store.identify(embeddings(1))


# What is refused


@pytest.mark.parametrize(
    "name",
    [
        *("", " ", "anna ", "\nanna", "an\na", "a\x00", "\x1b[31m", "\u202ea"),
        *("\ud800", "x" * 201, None, 7, b"anna"),
    ],
)
def test_names_that_are_none(store, name):
    for use in (
        lambda: store.add(name, embeddings(1), [1]),
        lambda: store.prototypes(name),
        lambda: store.remove(name),
    ):
        with pytest.raises(ValueError, match="^name: expected one line") as it:
            use()
        assert str(it.value).isprintable()
    assert store.names() == []


def test_names_of_many_kinds(store):
    names = [
        "a",
        "x" * 200,
        "O'Neil; DROP TABLE voices",
        "张 伟",
        "می\u200cخواهم",
    ]
    fill(store, names)
    assert store.names() == names


WRONG = {
    "nan": torch.full((1, SIZE), torch.nan),
    "inf": torch.full((1, SIZE), -torch.inf),
    "too large": torch.full((1, SIZE), 1e30),
    "zero": torch.zeros(1, SIZE),
    "none": torch.zeros(0, SIZE),
    "one axis": torch.ones(SIZE),
    "another size": torch.ones(1, SIZE - 1),
}


@pytest.mark.parametrize("kind", WRONG)
def test_embeddings_that_are_none(store, kind):
    fill(store, ["anna"])
    before = store.voices()
    for name in ("anna", "bert"):
        with pytest.raises(ValueError) as caught:
            wrong = WRONG[kind]
            if len(wrong) == 1:  # one that is right does not help
                wrong = torch.cat([torch.ones_like(wrong), wrong])
            store.add(name, wrong, [1] * len(wrong))
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="embeddings"):
        store.identify(WRONG[kind])
    assert store.voices() == before


@pytest.mark.parametrize(
    "seconds", [[], [1], [1, 0], [1, -1], [1, float("nan")], [1, float("inf")]]
)
def test_seconds_that_are_none(store, seconds):
    with pytest.raises(ValueError, match="^seconds: expected 2 numbers"):
        store.add("anna", embeddings(1, 2), seconds)
    assert store.names() == []


def test_notes_that_are_none(store):
    with pytest.raises(ValueError, match="^consent: expected one line"):
        store.add("anna", embeddings(1), [1], "two\nlines")
    with pytest.raises(ValueError, match="JSON"):
        store.write_operating_points({"threshold": float("nan")})


def test_nobody(store, path):
    for use in (store.remove, store.prototypes, store.read):
        with pytest.raises(module.NoVoiceError, match="sqlite: no voice 'anna"):
            use("anna")
    with pytest.raises(module.NoVoiceError, match="sqlite: holds no voices"):
        store.identify(embeddings(1))
    with pytest.raises(ValueError, match="voices.sqlite: holds no voices"):
        store.export(path.parent / "voices.npz")


def test_another_space(store, path):
    line = (
        f"{path}: of the embedding space {SPACE}, but the model gives "
        "embeddings of redimnet2-b0-2, which"
    )
    with pytest.raises(ValueError, match=line):
        VoiceStore(path, "redimnet2-b0-2")


def refused(path, kind=ValueError, **space):
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(kind) as caught:
        VoiceStore(path, **space)
    line = str(caught.value)
    assert "\n" not in line and path.name in line
    assert before is None or path.read_bytes() == before
    return line


def changed(path, *statements):
    file = sqlite3.connect(path)
    for statement in statements:
        file.execute(statement)
    file.commit()
    file.close()


def test_files_that_are_no_store(path):
    assert "no such store" in refused(path)
    path.touch()  # as a process leaves it that is killed when it has made it
    assert "no store of voices" in refused(path)
    with VoiceStore(path, SPACE) as store:
        assert store.names() == []
    path.write_text("text " * 1000)
    for space in ({}, {"space": SPACE}):
        assert "not a database" in refused(path, **space)
    path.unlink()
    changed(path, "CREATE TABLE voices (voice)")
    for space in ({}, {"space": SPACE}):
        assert "no store of voices" in refused(path, **space)
    refused(path.parent, OSError, space=SPACE)
    refused(path.parent / "no" / "voices.sqlite", OSError, space=SPACE)


def test_newer_format(store, path):
    changed(path, "PRAGMA user_version = 2")
    for space in ({}, {"space": SPACE}):
        assert "of format 2, not 1; a newer" in refused(path, **space)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE prototypes SET embedding = 'text' WHERE prototype = 2",
        "UPDATE prototypes SET embedding = zeroblob(768) WHERE prototype = 2",
        "UPDATE prototypes SET embedding = zeroblob(4) WHERE prototype = 2",
        "UPDATE prototypes SET embedding = zeroblob(0)",
        "UPDATE prototypes SET embedding = randomblob(7)",
        "UPDATE voices SET name = 'an' || char(10) || 'a' WHERE voice = 1",
        "UPDATE voices SET name = x'ff' WHERE voice = 1",
    ],
)
def test_damaged_entries(store, path, statement):
    fill(store, ["anna", "bert"])
    changed(path, statement)
    with pytest.raises(
        ValueError, match="voices.sqlite: no store of voices, or"
    ):
        store.identify(embeddings(1))


def test_a_page_that_is_lost(store, path):
    fill(store, [f"voice {number}" for number in range(30)])
    store.close()
    content = bytearray(path.read_bytes())
    assert len(content) > 8 * 4096
    content[5 * 4096 : 7 * 4096] = bytes(2 * 4096)
    path.write_bytes(content)
    with (
        pytest.raises(
            ValueError, match="voices.sqlite: no store of voices, or"
        ),
        VoiceStore(path) as store,
    ):
        store.identify(embeddings(1))


def test_a_full_disk(store, path):
    fill(store, ["anna", "bert"])
    before = path.read_bytes(), store.voices()
    with full_disk(len(before[0])):
        with pytest.raises(OSError, match="voices.sqlite: "):
            store.add("carl", embeddings(1, 100), [1] * 100)
        assert store.names() == ["anna", "bert"]
    assert (path.read_bytes(), store.voices()) == before
    assert os.listdir(path.parent) == [path.name]
    store.add("carl", embeddings(1, 100), [1] * 100)
    with full_disk(1000):
        with pytest.raises(OSError, match="voices.npz"):
            store.export(path.parent / "voices.npz")
        new = path.parent / "new.sqlite"
        with pytest.raises(OSError, match="new.sqlite: "):
            VoiceStore(new, SPACE)
    assert {*os.listdir(path.parent)} <= {path.name, new.name}
    with VoiceStore(new, SPACE) as made:
        assert made.names() == []


def test_a_folder_that_cannot_be_written():
    with pytest.raises(OSError) as caught:
        VoiceStore("/proc/voices.sqlite", SPACE)
    assert caught.value.filename == "/proc/voices.sqlite"


def test_a_store_that_can_only_be_read(store, path, monkeypatch):
    """As SQLite opens it where it may not write."""
    fill(store, ["anna", "bert"])
    monkeypatch.setattr(module, "PRAGMAS", "PRAGMA query_only = ON")
    for space in (None, SPACE):
        with VoiceStore(path, space) as opened:
            assert opened.identify(embeddings(0))[0].name == "anna"
            with pytest.raises(OSError, match="voices.sqlite: attempt to wri"):
                opened.add("carl", embeddings(1), [1])
            with pytest.raises(OSError, match="voices.sqlite: attempt to wri"):
                opened.remove("anna")
            assert opened.names() == ["anna", "bert"]


# Really gone


def traces(folder, parts):
    content = b"".join(file.read_bytes() for file in folder.iterdir())
    return [part for part in parts if part in content]


def parts_of(name, rows):
    """Pieces of what is kept of a voice, which nothing else has."""
    parts = [name.encode()]
    for row in rows:
        blob = row.numpy().tobytes()
        places = (0, len(blob) // 2, len(blob) - 16)
        parts += [blob[at : at + 16] for at in places]
    return parts


def leave_copies(path, parts):
    """In free parts of pages, as SQLite does now and then."""
    file = sqlite3.connect(path)
    file.execute("PRAGMA secure_delete = OFF")
    file.execute("CREATE TABLE copies (copy)")
    file.execute("INSERT INTO copies VALUES (?)", (b"".join(parts),))
    file.commit()
    file.execute("DROP TABLE copies")
    file.commit()
    file.close()
    assert traces(path.parent, parts) == parts


def test_copies_of_what_is_removed_are_gone(store, path):
    fill(store, ["anna", "bert"])
    parts = parts_of("bert", embeddings(1, 2))
    leave_copies(path, parts)
    store.remove("bert")
    assert traces(path.parent, parts) == []


def test_what_is_removed_leaves_no_byte(path, monkeypatch):
    """With names and numbers of prototypes of many lengths.

    SQLite moves rows between pages, and leaves copies behind.
    """
    quick = module.PRAGMAS.replace("synchronous = EXTRA", "synchronous = OFF")
    assert quick != module.PRAGMAS
    monkeypatch.setattr(module, "PRAGMAS", quick)
    store = VoiceStore(path, SPACE)
    choice = random.Random(1)
    here, gone = {}, []
    for number in range(120):
        if here and choice.random() < 0.4:
            name = choice.choice([*here])
            store.remove(name)
            gone += parts_of(name, here.pop(name))
            assert traces(path.parent, gone) == []
        name = f"{number:05}" + "-" * choice.randint(0, 190)
        here[name] = embeddings(number, choice.randint(1, 6))
        store.add(name, here[name], [1] * len(here[name]), f"note of {number}")
    assert len(gone) > 200
    kept = [part for name in here for part in parts_of(name, here[name])]
    assert traces(path.parent, kept) == kept
    assert {*store.names()} == {*here}
    for name, rows in here.items():
        assert torch.equal(store.prototypes(name), rows)
    store.close()


def end_here(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def remove_and_end(path, name):
    """Killed after the removal, before the file is written anew."""
    VoiceStore._overwrite_removed = end_here
    VoiceStore(path).remove(name)


def test_a_removal_that_is_killed_is_finished_later(store, path):
    names = [f"voice {number}" for number in range(40)]
    fill(store, names)
    store.close()
    process = SERVER.Process(target=remove_and_end, args=(path, names[17]))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    parts = parts_of(names[17], embeddings(17, 3))
    leave_copies(path, parts)
    with VoiceStore(path) as store:
        assert store.names() == names[:17] + names[18:]
    assert traces(path.parent, parts) == []


def test_a_removal_is_not_called_finished_by_another(store, path, monkeypatch):
    """Another process removes a voice after this one has written anew."""
    names = ["anna", "bert", "carl"]
    fill(store, names)
    parts = parts_of("carl", embeddings(2, 3))
    writing = store._writing
    writes = []

    def ended():
        raise OSError("killed")

    def removed_meanwhile():
        writes.append(1)
        if len(writes) == 2:  # the file is written anew
            with pytest.raises(OSError, match="killed"):
                other.remove("carl")
            leave_copies(path, parts)
        return writing()

    with VoiceStore(path) as other:
        monkeypatch.setattr(store, "_writing", removed_meanwhile)
        monkeypatch.setattr(other, "_overwrite_removed", ended)
        store.remove("anna")
    store.close()
    assert traces(path.parent, parts) == parts
    with VoiceStore(path) as store:
        assert store.names() == ["bert"]
    assert traces(path.parent, parts) == []


def test_a_removal_that_waits_in_vain_says_so(store, path, monkeypatch):
    fill(store, ["anna", "bert"])

    def locked():
        raise OSError(f"{path}: database is locked")

    with monkeypatch.context() as patch:
        patch.setattr(store, "_overwrite_removed", locked)
        with pytest.raises(OSError, match="locked; the voice is removed, but"):
            store.remove("anna")
    assert store.names() == ["bert"]


# Several processes


def whole(store):
    """All voices are as `entry` makes them."""
    for voice in store.voices():
        number = int(voice.name.split()[-1])
        rows = store.prototypes(voice.name)
        assert voice.prototypes == len(rows) == number % 4 + 1
        assert torch.equal(rows, embeddings(number, len(rows), 16))


def add_entry(store, number):
    count = number % 4 + 1
    rows = embeddings(number, count, 16)
    store.add(f"voice {number}", rows, [1] * count)


def write_without_end(path, start, pipe):
    """Adds, now and then removes, and tells what is there after each step."""
    with VoiceStore(path, SPACE) as store:
        there = {*store.names()}
        for number in itertools.count(start):
            add_entry(store, number)
            there.add(f"voice {number}")
            pipe.send(there)
            if number % 3 == 0:
                store.remove(f"voice {number}")
                there.remove(f"voice {number}")
                pipe.send(there)


def integrity(path):
    file = sqlite3.connect(path)
    ((found,),) = file.execute("PRAGMA integrity_check")
    file.close()
    return found


@pytest.mark.slow
def test_kill_9_at_any_moment(path):
    there = set()
    for turn in range(10):
        ours, theirs = SERVER.Pipe()
        process = SERVER.Process(
            target=write_without_end, args=(path, 1000 * turn, theirs)
        )
        process.start()
        theirs.close()
        for _ in range(turn):
            there = ours.recv()
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        with contextlib.suppress(EOFError):
            while True:  # what it told before it was killed
                there = ours.recv()
        with VoiceStore(path, SPACE) as store:
            whole(store)
            names = {*store.names()}
        assert integrity(path) == "ok"
        # A step may be done and not told.
        assert len(names ^ there) <= 1
        there = names
    assert len(there) > 20
    with VoiceStore(path, SPACE) as store:
        add_entry(store, 0)
    assert os.listdir(path.parent) == [path.name]


def test_a_journal_that_says_nothing(store, path):
    """SQLite begins it with zeros, until all of it is on the disk.

    A process killed before has not touched the store: readers leave what is
    there, the next who writes removes it.
    """
    add_entry(store, 1)
    journal = path.with_name(f"{path.name}-journal")
    journal.write_bytes(bytes(512) + path.read_bytes()[:4096])
    with VoiceStore(path, SPACE) as other:
        whole(other)
        assert other.names() == ["voice 1"]
        add_entry(other, 2)
        whole(other)
    assert os.listdir(path.parent) == [path.name]


def add_new(path, number, pipe):
    with VoiceStore(path) as store:
        pipe.recv()
        try:
            store.add("anna", embeddings(number), [1.0], known=None)
        except module.VoiceChangedError:
            pipe.send(None)
        else:
            pipe.send(number)


def test_one_of_many_processes_has_a_new_name(store, path):
    pipes = []
    processes = []
    for number in range(4):
        ours, theirs = SERVER.Pipe()
        pipes.append(ours)
        processes.append(
            SERVER.Process(target=add_new, args=(path, number, theirs))
        )
        processes[-1].start()
    for pipe in pipes:
        pipe.send("go")
    added = [number for pipe in pipes if (number := pipe.recv()) is not None]
    for process in processes:
        process.join()
    (number,) = added
    assert torch.equal(store.prototypes("anna"), embeddings(number))


def add_many(path, start, count):
    with VoiceStore(path, SPACE) as store:
        for number in range(start, start + count):
            add_entry(store, number)


def test_processes_at_once(path):
    """They make the store together, and a reader sees whole voices."""
    processes = [
        SERVER.Process(target=add_many, args=(path, 100 * number, 15))
        for number in range(4)
    ]
    for process in processes:
        process.start()
    with VoiceStore(path, SPACE) as store:
        while any(process.is_alive() for process in processes):
            whole(store)
            if store.names():
                store.identify(embeddings(1, size=16))
        for process in processes:
            process.join()
            assert process.exitcode == 0
        whole(store)
        assert len(store.names()) == 60


def test_threads_at_once(store):
    """As those of a server."""
    faults = []

    def use(start):
        try:
            for number in range(start, start + 8):
                add_entry(store, number)
                store.identify(embeddings(number, size=16))
                whole(store)
        except Exception as error:
            faults.append(error)

    threads = [
        threading.Thread(target=use, args=(100 * number,))
        for number in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    assert len(store.names()) == 32


def test_another_process_that_does_not_end_writing(path, monkeypatch):
    monkeypatch.setattr(module, "PATIENCE", 0.01)
    store = VoiceStore(path, SPACE)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(OSError, match="voices.sqlite: database is locked"):
        store.add("anna", embeddings(1), [1])
    assert store.names() == []
    other.execute("COMMIT")
    store.add("anna", embeddings(1), [1])
    store.close()


# Export and import


@pytest.fixture
def exported(store, path, tmp_path):
    fill(store, ["anna", "Zoë", "张 伟"])
    store.add("anna", embeddings(9), [2.25], "form 7")
    store.remove("Zoë")
    # Dates of which none is another's.
    changed(
        path,
        "UPDATE voices SET added = '2020-01-0' || voice || 'T00:00:00+00:00'",
        "UPDATE prototypes SET added = "
        "'2021-01-0' || prototype || 'T00:00:00+00:00'",
    )
    store.export(tmp_path / "voices.npz")
    return tmp_path / "voices.npz"


def rows_of(path):
    file = sqlite3.connect(path)
    rows = file.execute(
        "SELECT name, consent, voices.added, changed, embedding, seconds, "
        "prototypes.added FROM voices JOIN prototypes USING (voice) "
        "ORDER BY voice, prototype"
    ).fetchall()
    file.close()
    return rows


def test_all_is_exported_and_imported(exported, path, tmp_path):
    assert stat.S_IMODE(exported.stat().st_mode) == 0o600
    other = tmp_path / "other.sqlite"
    with VoiceStore(other, SPACE) as store:
        assert store.import_(exported) == 2
        store.export(tmp_path / "again.npz")
    assert rows_of(other) == rows_of(path)
    assert (tmp_path / "again.npz").read_bytes()[:4] == b"PK\3\4"
    with np.load(exported) as one, np.load(tmp_path / "again.npz") as two:
        assert {*one} == {*two}
        for key in one:  # without pickle
            assert np.array_equal(one[key], two[key])


def test_import_beside_others(exported, tmp_path):
    with VoiceStore(tmp_path / "other.sqlite", SPACE) as store:
        fill(store, ["dora", "emil"])
        store.import_(exported)
        assert store.names() == ["dora", "emil", "anna", "张 伟"]
        assert store.identify(embeddings(1, 2)[:1])[0].name == "emil"
        assert store.voices()[2].seconds == 3.75


def test_imports_that_are_refused_add_nothing(exported, tmp_path):
    other = tmp_path / "other.sqlite"
    with VoiceStore(other, SPACE) as store:
        fill(store, ["bert", "张 伟"])
        before = rows_of(other)
        with pytest.raises(ValueError, match=r"1 of its names are in .*张 伟"):
            store.import_(exported)
        with pytest.raises(ValueError, match="no.npz: no such file"):
            store.import_(tmp_path / "no.npz")
        assert rows_of(other) == before
    with (
        VoiceStore(tmp_path / "b3.sqlite", "redimnet2-b3-1") as store,
        pytest.raises(ValueError, match="voices.npz: of the embedding space"),
    ):
        store.import_(exported)
    with VoiceStore(tmp_path / "small.sqlite", SPACE) as store:
        store.add("bert", torch.ones(1, 8), [1])
        with pytest.raises(ValueError, match="values, not of 8"):
            store.import_(exported)
        assert store.names() == ["bert"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("names", ["anna", "anna"]),
        ("names", ["anna", "an\na"]),
        ("names", ["anna", "Zoe\u0308"]),
        ("names", ["anna"]),
        ("names", [1, 2]),
        ("consents", ["", "\x1b[31m"]),
        ("added", ["2020-01-01T00:00:00+00:00", "yesterday"]),
        ("changed", ["2020-01-01T00:00:00+00:00", "2020-01-01T00:00:00"]),
        ("owners", [0, 0, 0, 0]),
        ("owners", [0, 0, 1, -1, 1]),
        ("owners", [0.0, 0.5, 1.0, 1.0, 1.0]),
        ("embeddings", np.zeros((5, SIZE), np.float32)),
        ("embeddings", np.ones((5, SIZE))),
        ("embeddings", np.ones((4, SIZE), np.float32)),
        ("seconds", [1, 1, 1, 1, np.nan]),
        ("embedding_space", ""),
        ("names", np.array(["anna", None], object)),
    ],
)
def test_exports_that_are_damaged(exported, tmp_path, key, value):
    with np.load(exported) as file:
        arrays = {**file, key: np.array(value)}
    np.savez(exported, **arrays)
    with VoiceStore(tmp_path / "other.sqlite", SPACE) as store:
        with pytest.raises(ValueError, match="voices.npz: no export of voices"):
            store.import_(exported)
        assert store.names() == []


def test_exports_replace_nothing(exported, store):
    before = exported.read_bytes()
    with pytest.raises(ValueError, match="voices.npz exists already"):
        store.export(exported)
    assert exported.read_bytes() == before
