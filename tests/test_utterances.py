"""Lists of utterances: folders, CSV files and wav.scp."""

import os

import pytest

from redimnet2_lobes.data.utterances import (
    Utterance,
    limit_per_speaker,
    read_utterances,
)


@pytest.fixture
def corpus(tmp_path):
    """Files that only need to exist."""
    for name in ("b/x/2.wav", "b/x/10.FLAC", "a/1.ogg", "alone.wav"):
        path = tmp_path / "corpus" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"audio")
    return tmp_path / "corpus"


def write(folder, name, content):
    path = folder / name
    if isinstance(content, str):
        content = content.encode()
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("below_wav", [False, True])
def test_a_folder(corpus, below_wav):
    for name in ("notes.txt", "._alone.wav", "b/.hidden.wav"):
        (corpus / name).write_bytes(b"other")
    (corpus / ".git").mkdir()
    (corpus / ".git" / "c.wav").write_bytes(b"other")
    audio = corpus
    if below_wav:
        audio = corpus.rename(corpus.with_name("moved"))
        corpus.mkdir()
        audio = audio.rename(corpus / "wav")
        (corpus / "beside.wav").write_bytes(b"other")
    assert read_utterances(corpus) == [
        Utterance("a/1.ogg", str(audio / "a/1.ogg"), "a"),
        Utterance("alone.wav", str(audio / "alone.wav"), None),
        Utterance("b/x/10.FLAC", str(audio / "b/x/10.FLAC"), "b"),
        Utterance("b/x/2.wav", str(audio / "b/x/2.wav"), "b"),
    ]


def test_linked_folders(corpus, tmp_path):
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "speaker").symlink_to(corpus / "b")
    (utterance, _) = read_utterances(tmp_path / "linked")
    assert utterance.name == "speaker/x/10.FLAC"


def test_a_csv(corpus, tmp_path):
    # A byte-order mark, Windows line ends, quotes and columns of no concern.
    path = write(
        tmp_path,
        "list.CSV",
        "\ufeffduration,ID,wav,spk_id\r\n"
        '1,"z,1",$data_root/b/x/2.wav,bob\r\n'
        "\r\n"
        f"2,y1,{corpus}/a/1.ogg,\r\n",
    )
    assert read_utterances(path, corpus) == [
        Utterance("z,1", f"{corpus}/b/x/2.wav", "bob"),
        Utterance("y1", f"{corpus}/a/1.ogg", None),
    ]


def test_a_csv_in_the_folder_of_its_files(corpus):
    path = write(
        corpus,
        "list.csv",
        "ID,wav\n1,$data_root/alone.wav\n2,$save_root/a/1.ogg\n",
    )
    assert [utterance.path for utterance in read_utterances(path)] == [
        f"{corpus}/alone.wav",
        f"{corpus}/a/1.ogg",
    ]


def test_a_csv_of_shards(corpus):
    (corpus / "shard-0.tar").write_bytes(b"tar")
    path = write(corpus, "train.csv", "ID,wav\n1,$data_root/shard-0.tar:5:6")
    (utterance,) = read_utterances(path)
    assert utterance.path == f"{corpus}/shard-0.tar:5:6"
    path = write(corpus, "train.csv", "ID,wav\n1,$data_root/shard-1.tar:5:6")
    with pytest.raises(ValueError, match=r"1 of the 1 .*shard-1\.tar:5:6"):
        read_utterances(path)


def test_a_wav_scp(corpus):
    (corpus / "with space.wav").write_bytes(b"audio")
    path = write(
        corpus,
        "wav.scp",
        f"\ufeffu2  {corpus}/alone.wav \r\n\nu1\t{corpus}/with space.wav",
    )
    expected = [
        Utterance("u2", f"{corpus}/alone.wav"),
        Utterance("u1", f"{corpus}/with space.wav"),
    ]
    assert read_utterances(path) == expected
    write(corpus, "utt2spk", "u0 zoe\nu1 anna\nu2 bob\n")
    assert [u.speaker for u in read_utterances(path)] == ["bob", "anna"]
    write(corpus, "utt2spk", "u2 bob\n")
    with pytest.raises(
        ValueError, match="utt2spk: no speaker for u1 .* line 3"
    ):
        read_utterances(path)


def test_no_command_of_a_wav_scp_is_run(corpus):
    path = write(corpus, "wav.scp", f"u1 touch {corpus}/run; cat a.wav |\n")
    with pytest.raises(ValueError, match="line 1: u1 is a command"):
        read_utterances(path)
    assert not (corpus / "run").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "ID,path\n1,x", "line 1: column wav is missing"),
        ("a.csv", "", "line 1: column ID is missing"),
        ("a.csv", "ID;wav\n1;x", "line 1: column ID is missing"),
        ("a.csv", "ID,wav\n", "no utterances"),
        ("a.csv", "ID,wav\n1,x\n\n2\n", "line 4: expected 2 columns"),
        ("a.csv", "ID,wav\n1,x,y\n", "line 2: expected 2 columns"),
        ("a.csv", "ID,wav\n,x\n", "line 2: ID or wav is empty"),
        ("a.csv", 'ID,wav\n1,"x\n', "line 2: not a row .*quotes"),
        ("a.csv", "ID,wav\n1,$corpus/x\n", r"line 2: wav: .*corpus/x.*\$\$"),
        ("a.csv", "ID,wav\n1,{alone}\n2,{alone}\n1,x", "line 4: .* in line 2"),
        ("a.csv", b"ID,wav\n1,x\n2,\xff\n", "line 3: not UTF-8"),
        ("a.csv", "ID,wav\n1,{alone}\n2,x\n3,y", "2 of the 3 .* x .line 3"),
        ("a.scp", "1 {alone}\n2\n", "line 2: expected 'name path', found '2'"),
        ("a.scp", "\n\n", "no utterances"),
        ("a.scp", "1 {alone}\n1 {alone}\n", "line 2: .* 1 is in line 1"),
        ("a.scp", b"1 x\n\xe9 y\n", "line 2: not UTF-8"),
        ("a.scp", "1 {alone}\n2 lost.wav\n", "1 of the 2 .* lost.wav .line 2"),
        ("a.txt", "1 {alone}\n", "neither a folder nor a file .csv or .scp"),
    ],
)
def test_faulty_lists_are_named(name, content, message, corpus, tmp_path):
    if isinstance(content, str):
        content = content.replace("{alone}", str(corpus / "alone.wav"))
    path = write(tmp_path, name, content)
    with pytest.raises(ValueError, match=message) as caught:
        read_utterances(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_faulty_folders_are_named(corpus, tmp_path):
    with pytest.raises(ValueError, match="nowhere: neither a folder"):
        read_utterances(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.csv"):
        read_utterances(tmp_path / "nowhere.csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty: there is no audio file"):
        read_utterances(tmp_path / "empty")
    try:
        (corpus / "caf\udce9.wav").write_bytes(b"audio")
    except OSError:
        pytest.skip("a file system that has only names in UTF-8")
    with pytest.raises(ValueError, match="not a name in UTF-8") as caught:
        read_utterances(corpus)
    assert str(caught.value).encode()


def test_some_utterances_of_each_speaker():
    utterances = [
        Utterance(f"{speaker}{index}", "", speaker)
        for index in range(7)
        for speaker in ("a", "b", "c")
        if speaker != "c" or index < 2
    ]
    kept = limit_per_speaker(utterances, 3)
    assert [utterance.name for utterance in kept] == [
        *("a0", "b0", "c0", "c1", "a2", "b2", "a4", "b4"),
    ]
    assert limit_per_speaker(utterances, 7) == utterances
    with pytest.raises(ValueError, match="0 is less than 1"):
        limit_per_speaker(utterances, 0)
    with pytest.raises(ValueError, match="x: its speaker is not known"):
        limit_per_speaker([Utterance("x", "x.wav")], 1)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_ends_of_any_system(corpus, tmp_path, end):
    lines = ["ID,wav", f"one,{corpus}/alone.wav", f"two,{corpus}/a/1.ogg"]
    table = write(tmp_path, "list.csv", end.join(lines))
    assert [each.name for each in read_utterances(table)] == ["one", "two"]
    lines = [f"one {corpus}/alone.wav", f"two {corpus}/a/1.ogg"]
    table = write(tmp_path, "list.scp", end.join(lines) + end)
    assert [each.name for each in read_utterances(table)] == ["one", "two"]


def test_a_corpus_below_a_folder_of_another_encoding(corpus, tmp_path):
    """Names are those below the corpus; only they are written anywhere."""
    parent = os.fsdecode(os.path.join(os.fsencode(tmp_path), b"caf\xe9"))
    try:
        os.mkdir(parent)
    except OSError:
        pytest.skip("a file system that has only names in UTF-8")
    corpus.rename(os.path.join(parent, "corpus"))
    utterances = read_utterances(os.path.join(parent, "corpus"))
    assert [each.name for each in utterances][:2] == ["a/1.ogg", "alone.wav"]
