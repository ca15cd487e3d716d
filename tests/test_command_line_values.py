"""Values on the command line: what is written lands there, or is refused."""

import math
import os
import random

import extract_speaker_embeddings as extraction
import numpy as np
import pytest
import soundfile
import speaker_verification_cosine as cosine
import speaker_verification_plda as plda
import speechbrain as sb
import train_speaker_embeddings as training
from test_verification import HPARAMS, small_network
from training_runs import command_line, logging_restored, run, write_corpus

from redimnet2_lobes.cli import redimnet2
from redimnet2_lobes.files.settings import check_types
from redimnet2_lobes.pretrained.convert import convert_back
from redimnet2_lobes.pretrained.model_folder import write_model_folder
from redimnet2_lobes.recipe.command_line import parse_command_line
from redimnet2_lobes.recipe.hparams import load_hparams

YAML = """\
output_folder: results/here
seed: 42
lists: {}
same: !ref <output_folder>
save_folder: !ref <output_folder>/save
several: [!ref <output_folder>/a, !ref <seed>]
"""
# Each of these YAML, HyperPyYAML or SpeechBrain would read as something else.
TEXTS = [
    *("results/lr=0.1,seed=1", "=", "a=", "==b", "--x", "-", "- x", "-1.2.3"),
    *("o #1", "#1", "results/3 #x", "'o'", '"o"', "it's", "'", '"', "'a' b"),
    *("a: b", "a:", "a?", "|", "> x", "!x", "!!int 3", "!ref x"),
    *("&x", "*x", "@x", "%x", "`x", ",x", "a, b", "}", "]", "~x", "<<", "<x"),
    *("x>", "> <", "2024-01-01", "2024-13-45", "12:30:45", "1-2", "1/2", "a*b"),
    *("yes", "no", "off", "nul", "0x", "1.2.3", "3 ", " 3", " ", "a  b", " x "),
    *("---", "--- a", "...", "{}x"[2:], "a\\nb", "\\", "x\\", "$x", "${x}"),
    *("ä", "日本", "😀", "\u2028x", "\ufeffx", "e\u0301", "\xa0", "x" * 300),
    *("long " * 60 + "#1", "(x", "x (1)", "(a) (b", "None", "./2024", "./(x)"),
]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working folder, where what is misplaced shows."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def hparams_file(tmp_path):
    path = tmp_path / "hparams.yaml"
    path.write_text(YAML)
    return path


def files_below(folder):
    """Files and empty folders."""
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() or not any(path.iterdir())
    )


def check_arrives(text, hparams_file, tmp_path):
    """Before, behind and in references, and in the file that is kept."""
    expected = {
        "output_folder": text,
        "seed": 42,
        "lists": {},
        "same": text,
        "save_folder": f"{text}/save",
        "several": [f"{text}/a", 42],
    }
    _, _, overrides = parse_command_line(
        [str(hparams_file), f"--output_folder={text}", "--device=cpu"]
    )
    assert load_hparams(hparams_file, overrides) == expected
    with logging_restored():
        sb.core.create_experiment_directory(
            tmp_path / "kept", hparams_file, overrides, save_env_desc=False
        )
    assert load_hparams(tmp_path / "kept" / "hyperparams.yaml", {}) == expected


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_arrives_letter_by_letter(text, hparams_file, tmp_path):
    check_arrives(text, hparams_file, tmp_path)


def random_text(generator):
    """Of the signs that mean something to YAML, Python or a shell."""
    signs = " '\"#:-,=@!&*%?|>[]{}()~`$\\/.+^;_aZ09é\u2003\u200d😀"
    return "".join(generator.choices(signs, k=generator.randint(1, 12)))


def test_any_text_arrives_or_is_refused(hparams_file):
    generator = random.Random(18)
    arrived = 0
    for _ in range(400):
        text = random_text(generator)
        try:
            _, _, overrides = parse_command_line(
                [str(hparams_file), f"--output_folder={text}"]
            )
        except ValueError as error:
            assert str(error).startswith("output_folder: ")
            assert "\n" not in str(error)
            continue
        if text[0] in "[{" or not isinstance(overrides["output_folder"], str):
            continue  # YAML's
        hparams = load_hparams(hparams_file, overrides)
        assert hparams["output_folder"] == hparams["same"] == text
        assert hparams["save_folder"] == f"{text}/save"
        assert hparams["several"] == [f"{text}/a", 42]
        arrived += 1
    assert arrived > 250


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("3", 3), ("-3", -3), ("007", 7), ("0x1F", 31), ("1_000", 1000)),
        *(("1e-3", 0.001), ("1e3", 1000.0), (".5", 0.5), (".inf", math.inf)),
        *(("true", True), ("False", False), ("null", None), ("~", None)),
        *(("[1.0]", [1.0]), ("[a.txt, b.txt]", ["a.txt", "b.txt"])),
        *(("[]", []), ("[null, '1']", [None, "1"])),
    ],
)
def test_yaml_reads_numbers_words_and_flow(text, value, hparams_file):
    """As the next word, too."""
    for words in ([f"--seed={text}"], ["--seed", text]):
        _, _, overrides = parse_command_line([*words, str(hparams_file)])
        found = load_hparams(hparams_file, overrides)["seed"]
        assert found == value
        assert type(found) is type(value)


def test_mappings_are_for_keys_that_hold_one(hparams_file):
    line = [str(hparams_file), "--lists={A_: a.csv}"]
    overrides = parse_command_line(line)[2]
    assert load_hparams(hparams_file, overrides)["lists"] == {"A_": "a.csv"}
    overrides = parse_command_line([line[0], "--seed={A_: a.csv}"])[2]
    with pytest.raises(ValueError, match="^seed: a mapping, but in hparams"):
        load_hparams(hparams_file, overrides)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--output_folder="], "output_folder: no value; write --output_f"),
        (["--output_folder"], "output_folder: no value"),
        (["--output_folder", "--seed=3"], "output_folder: no value"),
        (["--seed=1", "--seed=2"], "seed: given twice"),
        (["--seed", "1", "--seed", "1"], "seed: given twice"),
        (["--"], "--: no option"),
        (["--=3"], "--: no option"),
        (["seed=3"], "seed 3: no option is before it"),
        (["--seed", "3", "4"], "4: no option is before it"),
        (["-x"], "-x: no option is before it"),
        (["--same=[1"], r"same: '\[1' is not valid YAML \(expected ','"),
        (["--same={a: [}"], "same: .* is not valid YAML"),
        (["--same=[1] b"], "same: .* is not valid YAML"),
        (["--same=[2024-13-45]"], "same: .* is not valid YAML"),
        (["--same=<seed>"], "same: .* another key"),
        (["--same=a/<same>/b"], "same: .* another key"),
        (["--same=<>"], "same: .* another key"),
        (["--same=3 #x"], r"same: .* '3 #x'; .* \./"),
        (["--same='a' # b"], "same: HyperPyYAML would make something else"),
        (["--same=9**9**9 #"], "same: HyperPyYAML would make something else"),
        (["--same=(x)"], "same: HyperPyYAML would make something else"),
        (["--same=(1, 2)"], "same: HyperPyYAML would make something else"),
        (["--same=? x"], "same: HyperPyYAML would make something else"),
        (["--same=:x"], "same: HyperPyYAML would make something else"),
        (["--same=a\nb"], r"same: 'a\\nb' has a control character"),
        (["--same=a\tb"], "same: .* has a control character"),
        (["--same=\x85"], "same: .* has a control character"),
        (["--same=a\udcff"], "same: .* is not UTF-8"),
        (["--device"], "argument --device: expected one argument"),
        (["--debug=True"], "argument --debug: ignored explicit argument"),
    ],
)
def test_refused_in_one_line(words, message, hparams_file):
    with pytest.raises(ValueError, match=f"^{message}") as caught:
        parse_command_line([str(hparams_file), *words])
    assert "\n" not in str(caught.value)
    str(caught.value).encode()


def test_keys_that_are_not_there(hparams_file):
    for key, message in (
        ("output-folder", "did you mean output_folder"),
        ("no.such[key]", "not a key"),
    ):
        overrides = parse_command_line([str(hparams_file), f"--{key}=3"])[2]
        with pytest.raises(ValueError, match=message):
            load_hparams(hparams_file, overrides)


def test_run_options_anywhere(hparams_file):
    path, run_opts, overrides = parse_command_line(
        [
            *("--seed", "3", "--device", "cpu", "--noprogressbar"),
            *(str(hparams_file), "--precision=bf16", "--same=--device=x"),
        ]
    )
    assert path == str(hparams_file)
    assert (run_opts.device, run_opts.precision) == ("cpu", "bf16")
    assert run_opts.overridden_args == {"device", "precision", "noprogressbar"}
    assert overrides == {"seed": 3, "same": "--device=x"}


def test_types_of_what_lists_and_mappings_hold():
    good = {"a": ["x"], "b": {"k": "x"}, "c": "x", "d": None, "e": [3]}
    kinds = {
        "a": str | list[str],
        "b": dict[str, str],
        "c": str | list[str],
        "d": list[str] | None,
        "e": list,
    }
    check_types(good, **kinds)
    for key, value in (
        *(("a", ["x", 3]), ("a", [""]), ("a", 3), ("b", {"k": 3})),
        *(("b", {3: "x"}), ("b", []), ("c", None), ("d", [None]), ("e", "x")),
    ):
        with pytest.raises(ValueError, match=f"^{key}: expected "):
            check_types({**good, key: value}, **kinds)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"), seconds=1.0)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "small"
    write_model_folder(folder, small_network(), "A small network")
    return folder


@pytest.fixture(scope="module")
def two_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("audio")
    generator = np.random.default_rng(0)
    for name in ("a.wav", "b.wav"):
        soundfile.write(folder / name, generator.uniform(-1, 1, 8000), 16000)
    return folder


def extract(two_files, model, **keys):
    keys = {"utterances": two_files, "checkpoint": model, **keys}
    extraction.main(
        [
            str(HPARAMS.with_name("extract_redimnet2.yaml")),
            "--device=cpu",
            *(f"--{key}={value}" for key, value in keys.items()),
        ]
    )


@pytest.mark.parametrize(
    ("keys", "files"),
    [
        ({"output": "lr=0.1,seed=1"}, ["lr=0.1,seed=1.npz"]),
        ({"output": "o #1"}, ["o #1.npz"]),
        ({"output": "'o'.npz"}, ["'o'.npz"]),
        ({"output": "a: b/- c"}, ["a: b/- c.npz"]),
        ({"output": "./2024"}, ["2024.npz"]),
        ({"output": "v1.2"}, ["v1.2.npz"]),
        ({"output": "2024-01-01"}, ["2024-01-01.npz"]),
        ({"output": "~x", "output_folder": "null #"}, ["null #/~x.npz"]),
        ({"output": " x "}, [" x .npz"]),
        ({"output": "x.npz.npz"}, ["x.npz.npz"]),
        (
            {"output": "*[1] #2", "format": "kaldi"},
            ["*[1] #2.ark", "*[1] #2.embedding_space.txt", "*[1] #2.scp"],
        ),
        (
            {"output": "x.scp.ark", "format": "kaldi"},
            ["x.scp.ark", "x.scp.embedding_space.txt", "x.scp.scp"],
        ),
        ({"output": "x", "output_folder": "d=1/e"}, ["d=1/e/x.npz"]),
    ],
)
def test_embeddings_land_where_they_should(keys, files, two_files, model, here):
    if keys.get("format") == "kaldi":
        kaldiio = pytest.importorskip("kaldiio")
    extract(two_files, model, **keys)
    assert files_below(here) == files
    if keys.get("format") == "kaldi":
        assert len(kaldiio.load_scp(str(here / files[-1]))["a.wav"]) == 16


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"output": "out3/"}, "output: .*out3/ is a folder; name a file in it"),
        ({"output": "out3//"}, "output: .* is a folder"),
        ({"output": "."}, "output: .* is a folder"),
        ({"output": ".."}, "output: .* is a folder"),
        ({"output": "a/.."}, "output: .* is a folder"),
        ({"output": ".npz"}, "output: .* is a folder"),
        ({"output": "a/.npz"}, "output: .* is a folder"),
        ({"output": "...npz"}, "output: .* is a folder"),
        ({"output": "there"}, "output: .* is a folder"),
        ({"output": ".scp", "format": "kaldi"}, "output: .* is a folder"),
        ({"output": "file"}, r"output: .*file\.npz exists already"),
        ({"output": "2024"}, r"output: expected text, not 2024; .*\./"),
        ({"output": "null"}, r"output: expected text, not null; .*\./"),
        ({"output": "007"}, "output: expected text, not 7"),
        ({"output": "[a]"}, r"output: expected text, not \['a'\]"),
        ({"output": "x", "output_folder": "1e3"}, "output_folder: expected"),
        ({"output": "x", "utterances": "3"}, "utterances: expected text"),
        ({"output": "x", "checkpoint": "3"}, "checkpoint: expected text"),
        ({"output": "x", "output_folder": ""}, "output_folder: no value"),
    ],
)
def test_no_file_appears_when_an_output_is_refused(
    keys, message, two_files, model, here
):
    (here / "there").mkdir()
    (here / "file.npz").touch()
    before = files_below(here)
    with pytest.raises(ValueError, match=f"^{message}") as caught:
        extract(two_files, model, **keys)
    assert "\n" not in str(caught.value)
    assert files_below(here) == before
    assert not (here.parent / ".npz").exists()


def verify(script, corpus, model, **keys):
    yaml = HPARAMS if script is cosine else "verification_plda_redimnet2.yaml"
    keys = {"data_folder": corpus, "checkpoint": model, **keys}
    script.main(
        [
            str(HPARAMS.with_name(yaml) if script is plda else yaml),
            "--device=cpu",
            *(f"--{key}={value}" for key, value in keys.items()),
        ]
    )


def test_results_land_where_they_should(corpus, model, here):
    verify(cosine, corpus, model, output_folder="lr=0.1,seed=1/o #1: 'x'")
    assert os.listdir() == ["lr=0.1,seed=1"]
    (folder,) = (here / "lr=0.1,seed=1").iterdir()
    assert folder.name == "o #1: 'x'"
    names = {path.name for path in folder.iterdir()}
    assert names > {"results.json", "results.md", "embeddings", "veri_test2"}


@pytest.mark.parametrize(
    ("script", "keys"),
    [
        *((cosine, {"output_folder": 2024}), (cosine, {"data_folder": "7"})),
        *((cosine, {"embeddings_folder": "1e3"}), (cosine, {"mean_list": 3})),
        *((cosine, {"cohort_list": "true"}), (cosine, {"list_folder": 0})),
        *((cosine, {"checkpoint": "null"}), (cosine, {"calibration": 1})),
        *((cosine, {"verification_file": 0}), (cosine, {"cohort_top": "x"})),
        *((plda, {"train_list": 3}), (plda, {"plda_file": 3})),
        *((plda, {"output_folder": "null"}), (plda, {"enrolment_file": 5})),
        (cosine, {"calibration_trials": "[a, 0]"}),
        (cosine, {"checkpoint": "./none"}),
        (cosine, {"variant": "2"}),
    ],
)
def test_no_file_appears_when_a_verification_is_refused(
    script, keys, corpus, model, here
):
    (key,) = keys
    with pytest.raises(ValueError, match=f"^{key}: ") as caught:
        verify(script, corpus, model, **keys)
    assert "\n" not in str(caught.value)
    assert files_below(here) == []


def test_a_training_lands_where_it_should(monkeypatch, corpus, here):
    output, title = "lr=0.1,seed=1/o #1", "A 'title': #1 = {x}"
    arguments = command_line(corpus, output, title=title, number_of_epochs=1)
    run(monkeypatch, arguments)
    assert os.listdir() == ["lr=0.1,seed=1"]
    assert os.listdir("lr=0.1,seed=1") == ["o #1"]
    readme = (here / output / "model" / "README.md").read_text()
    assert readme.startswith(f"# {title}\n")
    kept = load_hparams(here / output / "hyperparams.yaml", {})
    assert (kept["output_folder"], kept["title"]) == (output, title)


@pytest.mark.parametrize(
    "keys",
    [
        *({"output_folder": "2024"}, {"output_folder": "null"}),
        *({"save_folder": "1e3"}, {"model_folder": "[a]"}, {"train_log": "7"}),
        *({"training_curves": "true"}, {"title": "1e3"}, {"title": "null"}),
        *({"data_folder": "007"}, {"validation_folder": "3"}, {"seed": "1.5"}),
        *({"validation_trials": "0"}, {"test_trials": "[a, 0]"}),
        *({"pretrained_folder": "3"}, {"wandb_project": "3"}),
        *({"training_lists": "{A_: 0}"}, {"training_lists": "a.csv"}),
        *({"tensorboard": "yes"}, {"corpora": "voxceleb2-dev"}),
        *({"crop_frames": "1"}, {"variant": "b3"}, {"batch_size": "4.5"}),
        {"check_audio": "maybe"},
    ],
)
def test_no_file_appears_when_a_training_is_refused(keys, corpus, here):
    (key,) = keys
    # SpeechBrain's own objects name the key as what they are built from.
    with pytest.raises(
        ValueError, match=f"^(.*built from )?{key}\\b"
    ) as caught:
        training.main(command_line(corpus, "out", **keys))
    assert "\n" not in str(caught.value)
    assert files_below(here) == []


@pytest.mark.parametrize("key", ["musan_folder", "rirs_folder"])
@pytest.mark.parametrize("value", ["2024", "null", "none"])
def test_folders_of_noises_are_looked_at_first(key, value, noise_corpora, here):
    folders = {**noise_corpora, key: value}
    given = {"data_folder": "d", "output_folder": "out", **folders}
    options = [f"--{name}={folder}" for name, folder in given.items()]
    path = str(HPARAMS.with_name("redimnet2_b0.yaml"))
    with pytest.raises(ValueError, match=f"{key}: |built from {key}") as error:
        training.main([path, "--device=cpu", *options])
    assert "\n" not in str(error.value)
    assert files_below(here) == []


@pytest.mark.parametrize("output", ["new/", "there", ".", "..", "new/."])
def test_commands_name_a_file_in_a_folder(output, model, two_files, here):
    (here / "there").mkdir()
    audio = str(two_files / "a.wav")
    for arguments in (
        ["hparams", "b3", f"--output={output}"],
        ["export", str(model), f"--output={output}"],
        ["convert", str(model), "--to=published", f"--output={output}"],
    ):
        with pytest.raises(SystemExit, match="is a folder; name a file in it"):
            redimnet2(arguments, standalone_mode=False)
        assert files_below(here) == ["there"]
    with pytest.raises(Exception, match="is a folder; name a file in it"):
        redimnet2(
            ["embed", audio, f"--model={model}", f"--output={output}"],
            standalone_mode=False,
        )
    with pytest.raises(ValueError, match="is a folder; name a file in it"):
        convert_back(model, output)
    assert files_below(here) == ["there"]
