"""SpeechBrain's run options: each works, or is refused in one line."""

import json

import numpy as np
import pytest
import soundfile
import speaker_verification_cosine as cosine
import speaker_verification_plda as plda
import torch
import train_speaker_embeddings as training
from extract_speaker_embeddings import main as extract
from speechbrain.utils.run_opts import RunOptions
from test_verification import HPARAMS, scores_of, small_network

from redimnet2_lobes.data.audio import load_waveform
from redimnet2_lobes.models.folding import fold
from redimnet2_lobes.pretrained.model_folder import write_model_folder
from redimnet2_lobes.recipe.command_line import RUN_OPTIONS, parse_command_line
from redimnet2_lobes.recipe.encoder import check_embedding_options
from redimnet2_lobes.recipe.training import UNUSED_HPARAMS

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
USED_TO_EMBED = ("device", "eval_precision")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    random = np.random.default_rng(0)
    names = [f"id{i % 2}/x/{i}.wav" for i in range(4)]
    for name in names:
        (folder / "wav" / name).parent.mkdir(parents=True, exist_ok=True)
        noise = random.uniform(-0.5, 0.5, 8000)
        soundfile.write(folder / "wav" / name, noise, 16000)
    (folder / "veri_test2.txt").write_text(
        "".join(
            f"{int(a[:3] == b[:3])} {a} {b}\n"
            for a in names
            for b in names
            if a < b
        )
    )
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "small"
    write_model_folder(folder, small_network(), "A small network")
    return folder


@pytest.fixture
def verify(corpus, model, tmp_path):
    def run(*options, hparams=HPARAMS, device="cpu", script=cosine):
        script.main(
            [
                str(hparams),
                f"--data_folder={corpus}",
                f"--checkpoint={model}",
                f"--output_folder={tmp_path / 'results'}",
                f"--device={device}",
                *options,
            ]
        )
        return scores_of(tmp_path / "results")

    return run


def expected_scores(corpus, trials, precision):
    """Of folded networks, utterance by utterance."""
    network = fold(small_network())
    units = {}
    for name in {name for pair in trials for name in pair}:
        with torch.no_grad(), torch.autocast("cpu", DTYPES[precision]):
            embedding = network(load_waveform(corpus / "wav" / name)[None])
        assert embedding.dtype == DTYPES[precision]
        units[name] = torch.nn.functional.normalize(
            embedding.flatten().float(), dim=0
        )
    return {(a, b): float(units[a] @ units[b]) for a, b in trials}


def test_precision_of_verification(verify, corpus, tmp_path):
    exact = verify()
    results = tmp_path / "results"
    assert "in fp32" not in (results / "results.txt").read_text()
    mixed = verify("--eval_precision=bf16")
    assert "all of it, in bf16.\n" in (results / "results.txt").read_text()
    written = json.loads((results / "results.json").read_text())
    assert written["eval_precision"] == "bf16"
    expected = expected_scores(corpus, exact, "bf16")
    assert mixed == pytest.approx(expected, abs=1e-3)
    assert mixed != pytest.approx(exact, abs=1e-5)
    # Neither takes the embeddings of the other.
    assert verify() == exact
    assert verify("--eval_precision=fp32") == exact
    assert verify("--eval_precision", "bf16") == mixed
    caches = list((tmp_path / "results" / "embeddings").iterdir())
    assert len(caches) == 2


def test_precision_in_the_yaml(verify, tmp_path):
    """As in SpeechBrain: the command line comes before the YAML."""
    exact = verify()
    mixed = verify("--eval_precision=bf16")
    path = tmp_path / "own.yaml"

    def write(line):
        text = HPARAMS.read_text()
        path.write_text(text.replace("eval_precision: fp32\n", line))

    write("eval_precision: bf16\n")
    assert verify(hparams=path) == mixed
    assert verify("--eval_precision=fp32", hparams=path) == exact
    write("")
    assert verify(hparams=path) == exact
    write("eval_precision: fp8\n")
    with pytest.raises(ValueError, match="eval_precision: unknown value 'fp8'"):
        verify(hparams=path)


def test_half_precision_needs_a_gpu(verify):
    with pytest.raises(ValueError, match="^eval_precision: fp16 .* bf16") as e:
        verify("--eval_precision=fp16")
    assert "\n" not in str(e.value)


def test_precision_of_extraction(corpus, model, tmp_path):
    arrays = []
    for options in ([], ["--eval_precision=bf16"]):
        output = tmp_path / f"{len(options)}.npz"
        extract(
            [
                str(HPARAMS.with_name("extract_redimnet2.yaml")),
                f"--utterances={corpus}",
                f"--checkpoint={model}",
                f"--output={output}",
                "--device=cpu",
                *options,
            ]
        )
        with np.load(output) as content:
            arrays.append(content["embeddings"])
    exact, mixed = arrays
    assert exact.dtype == mixed.dtype == np.float32
    assert not np.allclose(exact, mixed, rtol=1e-5)
    bfloat16 = torch.from_numpy(mixed)
    assert torch.equal(bfloat16, bfloat16.bfloat16().float())
    assert np.abs(exact - mixed).max() < 0.05 * np.abs(exact).max()


@pytest.mark.parametrize(
    "name", [name for name in RUN_OPTIONS if name not in USED_TO_EMBED]
)
def test_what_does_nothing_is_refused(name):
    """Even before the YAML is read, in all scripts that embed."""
    default = getattr(RunOptions(), name)
    value = "" if default is False else f"={default or 1}"
    line = ["no.yaml", f"--{name}{value}"]
    expected = rf"^{name}: it does nothing here; \w+"
    for main in (cosine.main, plda.main, extract):
        if (main, name) == (extract, "distributed_backend"):
            continue
        with pytest.raises(ValueError, match=expected) as error:
            main(line)
        assert "\n" not in str(error.value)
        remedy = "--eval_precision" in str(error.value)
        assert remedy is (
            name in ("precision", "auto_mix_prec", "bfloat16_mix_prec")
        )


def test_the_options_that_embedding_has():
    parsed = parse_command_line(
        ["a.yaml", "--device=cpu", "--eval_precision=bf16"]
    )
    check_embedding_options(parsed[1])
    parsed = parse_command_line(["a.yaml", "--distributed_backend=gloo"])
    check_embedding_options(parsed[1], "distributed_backend")


@pytest.mark.parametrize(
    ("option", "remedy"),
    [
        ("--test_only", "speaker_verification_cosine.py"),
        ("--grad_accumulation_factor=2", "--global_batch_size"),
        ("--remove_vector_weight_decay", "--loss_weight_decay"),
        ("--data_parallel_backend", "torchrun"),
        ("--optimizer_step_limit=9", "set --number_of_epochs"),
        ("--log_config=log.yaml", "SB_LOG_LEVEL"),
    ],
)
def test_what_does_nothing_in_training(option, remedy):
    name = option[2:].split("=")[0]
    with pytest.raises(ValueError, match=f"^{name}: it does noth.*{remedy}"):
        training.main(["no.yaml", option])


@pytest.mark.parametrize("name", UNUSED_HPARAMS)
def test_what_does_nothing_in_the_yaml_of_a_training(name, tmp_path):
    """SpeechBrain would say that it is used."""
    text = HPARAMS.with_name("demo_redimnet2_b0.yaml").read_text()
    path = tmp_path / "own.yaml"
    path.write_text(f"{text}\n{name}: True\n")
    with pytest.raises(ValueError, match=f"^{name}: it does nothing here; "):
        training.main([str(path), "--data_folder=none", "--device=cpu"])


@pytest.mark.parametrize("given", ["--max_grad=3", "--prec=fp32", "--eval"])
def test_abbreviations_are_refused(given):
    """SpeechBrain would read them, and go on as if they were not there."""
    with pytest.raises(ValueError, match="no option; write out --[a-z_]+ if"):
        parse_command_line(["a.yaml", given, "bf16"])
