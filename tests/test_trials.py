"""Trial and enrolment lists in all their forms, and their faults."""

import logging

import pytest

from redimnet2_lobes.data.trials import read_enrolments, read_trials

TRIALS = [(1, "a/1.wav", "a/2.wav"), (0, "a/1.wav", "b/1.wav")]
FORMS = {
    "VoxCeleb": "1 a/1.wav a/2.wav\n0 a/1.wav b/1.wav\n",
    "tabs": "1\ta/1.wav\ta/2.wav\n0\ta/1.wav\tb/1.wav",
    "Kaldi": "a/1.wav a/2.wav target\na/1.wav b/1.wav nontarget\n",
    "CSV": "enrol,test,label\na/1.wav,a/2.wav,1\na/1.wav,b/1.wav,0\n",
    "CSV, other order": "label,x,test, enrol\n"
    "target,9,a/2.wav,a/1.wav\nnontarget,9,b/1.wav, a/1.wav\n",
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\n\n"])
def test_all_forms_say_the_same(form, mark, line_end, tmp_path):
    path = tmp_path / "trials.txt"
    path.write_bytes((mark + FORMS[form].replace("\n", line_end)).encode())
    assert read_trials(path) == TRIALS


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "trial list is empty"),
        (" \n\n", "trial list is empty"),
        ("enrol,test,label\n", "trial list is empty"),
        ("1;a;b\n", r"line 1: found '1;a;b', expected .*Kaldi"),
        ("1,a,b\n", "line 1: found the columns 1, a, b, expected"),
        ("2 a b\n", "line 1: found '2 a b'"),
        ("1 a b\n\n0 a\n", "line 3: found '0 a'"),
        ("1 a b\na b target\n", "line 2: .* all lines alike"),
        ("a b target\na b maybe\n", "line 2: found 'a b maybe'"),
        ("enrol,test,label\na,b,1,2\n", "line 2: expected enrol,test,label"),
        ("enrol,test,label\na,b,yes\n", "line 2: .* labels 0, 1, nontarget"),
        ("1 a b\n1 a c\n0 a b\n", "line 3: a b has the label 0, but 1 in"),
        (b"1 a \xff\xfe\n", "not UTF-8"),
        (None, r"cannot read the list \(No such file"),
    ],
)
def test_faults_are_named_by_line(text, message, tmp_path):
    path = tmp_path / "trials.txt"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message) as caught:
        read_trials(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_repeated_trials_are_kept_and_counted(tmp_path, caplog):
    path = tmp_path / "trials.txt"
    path.write_text("1 a b\n0 a c\n1 a b\n")
    with caplog.at_level(logging.WARNING):
        assert len(read_trials(path)) == 3
    assert "1 trials stand there more than once" in caplog.text


def test_enrolments_of_several_utterances(tmp_path):
    path = tmp_path / "enrolments.txt"
    path.write_text("\ufeffanna a/1.wav a/2.wav\r\nbob b/1.wav\nanna a/3.wav\n")
    assert read_enrolments(path) == {
        "anna": ["a/1.wav", "a/2.wav", "a/3.wav"],
        "bob": ["b/1.wav"],
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "there are no enrolments"),
        ("anna a\nbob\n", "line 2: bob has no utterance"),
        ("anna a\nanna b a\n", "line 2: anna has a twice"),
    ],
)
def test_faults_of_enrolments_are_named_by_line(text, message, tmp_path):
    path = tmp_path / "enrolments.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_enrolments(path)
