"""Lists of utterances: folders, CSV files and wav.scp."""

import os

import pytest

from redimnet2_lobes.data.audio import AudioError
from redimnet2_lobes.data.utterances import (
    Utterance,
    limit_per_speaker,
    read_utterances,
    write_left_out,
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
        ("a.scp", "1 x\n".encode("utf-16-le"), "line 1: not UTF-8"),
        ("a.csv", "ID,wav\n1,{alone}\n2,x\n3,y", "2 of the 3 .* x .line 3"),
        ("a.scp", "1 {alone}\n2\n", "line 2: expected 'name path', found '2'"),
        ("a.scp", "\n\n", "no utterances"),
        ("a.scp", "1 {alone}\n1 {alone}\n", "line 2: .* 1 is in line 1"),
        ("a.scp", b"1 x\n\xe9 y\n", "line 2: not UTF-8"),
        ("a.scp", "1 {alone}\n2 lost.wav\n", "1 of the 2 .* lost.wav .line 2"),
        ("a.txt", "1 {alone}\n", "neither a folder nor a file .csv, .scp"),
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


def test_a_csv_with_segments(corpus):
    """In SpeechBrain's form, with spaces as it allows them, and whole files."""
    (corpus / "s.tar").write_bytes(b"tar")
    path = write(
        corpus,
        "list.csv",
        "ID, duration, wav, start, stop, spk_id\n"
        "a_0.0_1.5,9.9,$data_root/a/1.ogg,0,24000,a\n"
        "a_1.5_3.0, 9.9, $data_root/a/1.ogg, 24000, 48000, a\n"
        'b,9.9,"$data_root/alone.wav",,,b\n'
        "c,9.9,$data_root/s.tar:512:99, ,,c\n",
    )
    assert read_utterances(path) == [
        Utterance("a_0.0_1.5", f"{corpus}/a/1.ogg[0:24000]", "a"),
        Utterance("a_1.5_3.0", f"{corpus}/a/1.ogg[24000:48000]", "a"),
        Utterance("b", f"{corpus}/alone.wav", "b"),
        Utterance("c", f"{corpus}/s.tar:512:99", "c"),
    ]


@pytest.mark.parametrize(
    ("header", "row", "message"),
    [
        ("start", "1,{}/alone.wav,0", "line 1: column start stands alone"),
        ("stop", "1,{}/alone.wav,9", "line 1: column stop stands alone"),
        ("start,end", "1,{}/alone.wav,0,9", "line 1: column 'end' looks like"),
        ("offset,secs", "1,{}/alone.wav,0,9", "line 1: column 'offset' looks"),
        ("Start,Stop", "1,{}/alone.wav,0,9", "line 1: column 'Start' looks"),
        ("start_time,x", "1,{}/alone.wav,0,9", "line 1: column 'start_time'"),
        ("start,stop ", "1,{}/alone.wav,0,9", "line 1: column 'stop ' looks"),
        ("END,x", "1,{}/alone.wav,0,9", "line 1: column 'END' looks"),
        ("start,stop", "1,{}/alone.wav,0,", "line 2: start '0' and stop ''"),
        ("start,stop", "1,{}/alone.wav,,9", "line 2: start '' and stop '9'"),
        ("start,stop", "1,{}/alone.wav,0", "line 2: expected 4 columns"),
        ("start,stop", "1,{}/alone.wav,0.0,9.5", "line 2: .* whole numbers"),
        ("start,stop", "1,{}/alone.wav,-1,9", "line 2: .* whole numbers"),
        ("start,stop", "1,{}/alone.wav,0,-1", "line 2: .* whole numbers"),
        ("start,stop", "1,{}/alone.wav,zero,9", "line 2: .* whole numbers"),
        ("start,stop", "1,{}/alone.wav,9,9", "line 2: start 9 is not before"),
        ("start,stop", "1,{}/alone.wav,10,9", "line 2: start 10 is not befo"),
        ("start,stop", "1,{}/s.tar:5:6,0,9", "line 2: .*s.tar:5:6 is a part"),
        ("start,stop", "1,{}/alone.wav[0:9],0,9", "line 2: .* is a part of a"),
        ("start,stop", "1,{}/alone.wav[0:9],,", "line 2: .*like a segment"),
        ("x", "1,{}/alone.wav[0:9],", "line 2: .*like a segment; .* columns"),
        ("x", "1,{}/alone.wav[0s:1.5s],", "line 2: .*like a segment"),
        ("x", "1,{}/alone.wav[0:9],\n", "line 2: .*like a segment"),
        ("start,stop", "1,{}/lost.wav,0,9", r"lost.wav\[0:9\] \(line 2\)"),
    ],
)
def test_faulty_segments_of_a_csv_are_named(header, row, message, corpus):
    (corpus / "s.tar").write_bytes(b"tar")
    path = write(corpus, "list.csv", f"ID,wav,{header}\n{row.format(corpus)}\n")
    with pytest.raises(ValueError, match=message) as caught:
        read_utterances(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_segments_of_a_wav_scp(corpus):
    """Segments are the utterances, and utt2spk speaks of them."""
    scp = write(
        corpus,
        "wav.scp",
        f"rec1 {corpus}/alone.wav\nrec2 {corpus}/a/1.ogg\nrec3 lost.wav\n",
    )
    write(
        corpus,
        "segments",
        "\ufeffrec1-b rec1 1.5 3.0\r\n\n  rec2-a\trec2  .25 -1 \r\n"
        "rec1-a rec1 0 1.50\nrec2-b rec2 1e-05 2\nrec2-c rec2 0.5 -1.00\n",
    )
    expected = [
        ("rec1-b", f"{corpus}/alone.wav[1.5s:3.0s]"),
        ("rec2-a", f"{corpus}/a/1.ogg[.25s:]"),
        ("rec1-a", f"{corpus}/alone.wav[0s:1.50s]"),
        ("rec2-b", f"{corpus}/a/1.ogg[1e-05s:2s]"),
        ("rec2-c", f"{corpus}/a/1.ogg[0.5s:]"),
    ]
    assert read_utterances(scp) == [Utterance(*each) for each in expected]
    # A line that stands there twice says nothing new.
    write(
        corpus,
        "utt2spk",
        "".join(f"{name} {name[:4]}\n" for name, _ in expected * 2),
    )
    assert read_utterances(scp) == [
        Utterance(name, source, name[:4]) for name, source in expected
    ]
    write(corpus, "utt2spk", "rec1-a rec1\nrec1-b rec1\n")
    with pytest.raises(
        ValueError, match=r"utt2spk: no speaker for rec2-a \(segments, line 3"
    ):
        read_utterances(scp)


@pytest.mark.parametrize(
    ("segments", "message"),
    [
        ("a rec1 0 1\nb rec3 0 1\n", "line 2: recording rec3 is not in wav"),
        ("a rec1 0 1 A\n", "line 1: a is of channel A, but all channels"),
        ("a rec1 0 1 1\n", "line 1: a is of channel 1, but all channels"),
        ("a rec1 0\n", "line 1: expected 'name recording start end', found"),
        ("a rec1 0 1 A x\n", "line 1: expected 'name recording start end'"),
        ("a\n", "line 1: expected 'name recording start end', found 'a'"),
        ("a rec1 zero 1\n", "line 1: .* are not numbers of seconds"),
        ("a rec1 0,5 1\n", "line 1: .* are not numbers of seconds"),
        ("a rec1 -0.5 1\n", "line 1: .* are not numbers of seconds"),
        ("a rec1 0 nan\n", "line 1: .* are not numbers of seconds"),
        ("a rec1 0 inf\n", "line 1: .* are not numbers of seconds"),
        ("a rec1 0 -2\n", "line 1: .* are not numbers of seconds"),
        ("a rec1 0:00 0:01\n", "line 1: .* are not numbers of seconds"),
        ("a rec1 1 1\n", "line 1: start 1 is not before stop 1"),
        ("a rec1 2.5 1\n", "line 1: start 2.5 is not before stop 1"),
        ("a rec1 0 1\na rec1 1 2\n", "line 2: utterance a is in line 1"),
        ("a rec1 0 1\nb rec2 0 1\n", r"1 of the 2 .*lost.wav\[0s:1s\] .line 2"),
        ("\n", "no utterances"),
        (b"a rec1 0 1\n\xff rec1 0 1\n", "line 2: not UTF-8"),
    ],
)
def test_faulty_segments_of_kaldi_are_named(segments, message, corpus):
    scp = write(
        corpus, "wav.scp", f"rec1 {corpus}/alone.wav\nrec2 {corpus}/lost.wav\n"
    )
    path = write(corpus, "segments", segments)
    with pytest.raises(ValueError, match=message) as caught:
        read_utterances(scp)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("with_segments", [False, True])
@pytest.mark.parametrize(
    ("audio", "message"),
    [
        ("sph2pipe -f wav a.sph |", "a command, and none is run"),
        ("|cat a.wav", "a command, and none is run"),
        ("a.wav|", "a command, and none is run"),
        ("-", "standard input, which is not read"),
        ("raw.ark:123", "a place in an archive"),
        ("/data/shard.tar:512:900", "a place in an archive"),
        ("raw.ark:123[0:10]", "a range of a file"),
        ("{}/alone.wav[0:10]", "a range of a file"),
        ("{}/alone.wav[0s:1.5s]", "a range of a file"),
        ("{}/alone.wav[:,0:9]", "a range of a file"),
    ],
)
def test_what_is_no_file_in_a_wav_scp_is_refused(
    audio, message, with_segments, corpus
):
    audio = audio.format(corpus)
    lines = f"rec1 {corpus}/alone.wav\nrec2 {audio}\n"
    path = write(corpus, "wav.scp", lines)
    if with_segments:
        write(corpus, "segments", "a rec1 0 1\n")
    with pytest.raises(ValueError, match=f"line 2: rec2 is {message}; write"):
        read_utterances(path)


def test_what_else_a_kaldi_folder_may_say(corpus):
    scp = write(corpus, "wav.scp", f"r {corpus}/alone.wav\nr a.wav\n")
    write(corpus, "segments", "a r 0 1\nb r 1 2\n")
    with pytest.raises(ValueError, match="wav.scp, line 2: recording r is in"):
        read_utterances(scp)
    write(corpus, "wav.scp", f"r {corpus}/alone.wav\n")
    write(corpus, "utt2spk", "a anna\nb bob\na bob\n")
    with pytest.raises(ValueError, match="utt2spk, line 3: a has the speaker"):
        read_utterances(scp)
    write(corpus, "reco2file_and_channel", "r r A\n")
    with pytest.raises(ValueError, match="reco2file_and_channel: channels can"):
        read_utterances(scp)


def test_a_kaldi_folder_without_audio_names_its_list(corpus, tmp_path):
    folder = tmp_path / "kaldi"
    (folder / "wav").mkdir(parents=True)
    for name in ("segments", "wav.scp"):
        with pytest.raises(ValueError, match="kaldi.*: there is no audio file"):
            read_utterances(folder)
        write(folder, name, f"r {corpus}/alone.wav\n")
    with pytest.raises(ValueError, match=f"of them; name {folder}/wav.scp$"):
        read_utterances(folder)


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


def test_a_folder_has_each_file_once_and_says_what_it_leaves_out(
    corpus, caplog
):
    (corpus / "loop").symlink_to(".")
    (corpus / "b" / "up").symlink_to("..")
    (corpus / "notes.txt").write_text("text")
    (corpus / "carl.oga").write_bytes(b"audio")
    names = [utterance.name for utterance in read_utterances(corpus)]
    assert names == ["a/1.ogg", "alone.wav", "b/x/10.FLAC", "b/x/2.wav"] + [
        "carl.oga"
    ]
    (record,) = caplog.records
    assert record.getMessage() == (
        f"note: {corpus}: 3 left out: 1 file without an ending of audio "
        "(.txt), 2 links to what is there already"
    )


@pytest.mark.parametrize("name", ["a.csv", "a.scp"])
def test_missing_files_pass_unless_all_are(name, corpus, tmp_path):
    head = "ID,wav\n" * name.endswith("csv")
    between = "," if head else " "
    lost = f"1{between}lost.wav\n2{between}{corpus}/b\n"
    path = write(tmp_path, name, f"{head}{lost}3{between}{corpus}/alone.wav\n")
    with pytest.raises(ValueError, match="2 of the 3 files are missing"):
        read_utterances(path)
    found = read_utterances(path, strict=False)
    assert [each.name for each in found] == ["1", "2", "3"]
    path = write(tmp_path, name, f"{head}{lost}")
    with pytest.raises(ValueError, match="2 of the 2 files are missing"):
        read_utterances(path, strict=False)


def test_a_list_of_what_was_left_out_is_one_to_read(corpus, tmp_path):
    names = ["$5.wav", "a,b.wav", 'a"b.wav', "two\nlines.wav", "c\rr.wav"]
    utterances = [Utterance("good", str(corpus / "alone.wav"))]
    for name in names:
        (corpus / name).write_bytes(b"audio")
        utterances.append(Utterance(f" {name}", str(corpus / name), "anna"))
    utterances.append(Utterance("shard", f"{corpus}/alone.wav.tar:5:6"))
    utterances.append(Utterance("samples", f"{corpus}/a/1.ogg[5:60]", "bea"))
    utterances.append(Utterance("seconds", f"{corpus}/$5.wav[.5s:]"))
    (corpus / "alone.wav.tar").write_bytes(b"tar")
    faults = {
        each.name: AudioError("empty", "record it", each.path)
        for each in utterances[1:]
    }
    path = tmp_path / "report.csv"
    write_left_out(path, utterances, faults)
    assert read_utterances(path) == utterances[1:]
    assert path.read_text().count(',"empty; record it",') == 8
    write_left_out(path, utterances[:3], faults)
    assert path.read_text().startswith('"ID","wav","spk_id","reason"\n')
    write_left_out(path, utterances, {})
    assert not path.exists()


def test_paths_in_the_list_are_absolute(corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(corpus)
    fault = AudioError("empty", "record it")
    write_left_out(
        tmp_path / "a.csv", [Utterance("1", "alone.wav")], {"1": fault}
    )
    monkeypatch.chdir(tmp_path)
    assert read_utterances("a.csv")[0].path == f"{corpus}/alone.wav"
