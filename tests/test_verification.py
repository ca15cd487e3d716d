"""The verification scripts: their results, their files and their errors."""

import itertools
import json
import os
import re
import runpy
import shutil
import sys
from pathlib import Path

import pytest
import soundfile
import speaker_verification_cosine as verification
import speaker_verification_plda as plda
import torch
from conftest import exit_code, join_files
from matplotlib.image import imread
from speechbrain.dataio import audio_io
from speechbrain.inference.classifiers import EncoderClassifier
from speechbrain.utils import metric_stats

from redimnet2_lobes import door
from redimnet2_lobes.data.audio import load_waveform
from redimnet2_lobes.data.trial_files import read_trial_lists
from redimnet2_lobes.files.error_lines import one_line
from redimnet2_lobes.models.embedding_space import embedding_space
from redimnet2_lobes.models.front_end import LogMel
from redimnet2_lobes.models.redimnet2 import ReDimNet2
from redimnet2_lobes.models.variants import VARIANTS
from redimnet2_lobes.pretrained.model_folder import write_model_folder
from redimnet2_lobes.recipe.command_line import main_with_one_line_errors
from redimnet2_lobes.recipe.hparams import build_hparam, load_hparams
from redimnet2_lobes.scoring import report
from redimnet2_lobes.scoring.bootstrap import bootstrap, cllr, min_dcf
from redimnet2_lobes.scoring.bootstrap import eer as eer_of
from redimnet2_lobes.scoring.metrics import Cllr, actDCF, minCllr

REPOSITORY = Path(__file__).resolve().parent.parent
HPARAMS = REPOSITORY / "hparams" / "verification_redimnet2.yaml"

SPEAKERS, UTTERANCES = 3, 4

# In place of b0: the network below.
SMALL_VARIANT = {
    "base_channels": 4,
    "stages": [
        {
            "frequency_stride": 2,
            "time_stride": 2,
            "blocks": 1,
            "expansion": 1,
            "reduction": 8,
        }
    ],
    "embedding_size": 16,
}

# Another architecture of SpeechBrain's, whose front-end is a module apart.
ECAPA = """\
variant: b2
compute_features: !new:speechbrain.lobes.features.Fbank
    n_mels: 24
mean_var_norm: !new:speechbrain.processing.features.InputNormalization
    norm_type: sentence
    std_norm: False
embedding_model: !new:speechbrain.lobes.models.ECAPA_TDNN.ECAPA_TDNN
    input_size: 24
    channels: [8, 8, 8, 8, 24]
    kernel_sizes: [5, 3, 3, 3, 1]
    dilations: [1, 2, 3, 4, 1]
    attention_channels: 8
    lin_neurons: 16
    res2net_scale: 2
    se_channels: 8
classifier: !new:torch.nn.Identity
modules:
    compute_features: !ref <compute_features>
    mean_var_norm: !ref <mean_var_norm>
    embedding_model: !ref <embedding_model>
    classifier: !ref <classifier>
pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer
    loadables:
        embedding_model: !ref <embedding_model>
"""


def small_network():
    torch.manual_seed(1)
    return ReDimNet2(LogMel(), **SMALL_VARIANT)


def other_network():
    network = small_network()
    torch.nn.init.normal_(network.projection.weight)
    return network


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Buzzes of a pitch for each speaker, in noise, and all pairs as trials."""
    folder = tmp_path_factory.mktemp("corpus")
    generator = torch.Generator().manual_seed(0)
    names = []
    for speaker in range(SPEAKERS):
        for utterance in range(UTTERANCES):
            time = torch.arange(4000 * (1 + utterance)) / 16000
            pitch = 110 + 12 * speaker + 7 * utterance
            wav = sum(torch.sin(6.2832 * pitch * k * time) for k in range(1, 9))
            wav = wav / 20 + 0.1 * torch.randn(len(time), generator=generator)
            name = f"id{speaker}/video/{utterance}.wav"
            (folder / "wav" / name).parent.mkdir(parents=True, exist_ok=True)
            audio_io.save(folder / "wav" / name, wav.unsqueeze(0), 16000)
            names.append(name)
    lines = [
        f"{int(enrolment[:3] == test[:3])} {enrolment} {test}"
        for enrolment, test in itertools.combinations(names, 2)
    ]
    (folder / "veri_test2.txt").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "small"
    write_model_folder(folder, small_network(), "A small network")
    return folder


@pytest.fixture
def plots():
    """Asked for by tests that look at plots; others do without, for speed."""


@pytest.fixture(autouse=True)
def no_plots(request, monkeypatch):
    if "plots" not in request.fixturenames:
        for name in ("plot_det", "plot_score_histogram"):
            monkeypatch.setattr(report, name, lambda *args, **kwargs: None)


@pytest.fixture(scope="module")
def kept_embeddings(tmp_path_factory):
    """Where tests find the embeddings that one of them has computed."""
    return tmp_path_factory.mktemp("embeddings")


@pytest.fixture
def verify(corpus, kept_embeddings, tmp_path):
    """Runs the script's main function in this process; None for a default."""

    def run(hparams=HPARAMS, **keys):
        keys = {
            "data_folder": corpus,
            "output_folder": tmp_path / "results",
            "embeddings_folder": kept_embeddings,
            "bootstrap_resamples": 9,
            "device": "cpu",
            **keys,
        }
        arguments = [
            f"--{key}={value}"
            for key, value in keys.items()
            if value is not None
        ]
        verification.main([str(hparams), *arguments])
        return tmp_path / "results"

    return run


def scores_of(results, name="cosine"):
    """Scores by (enrolment, test), as written."""
    lines = (results / "veri_test2" / f"{name}_scores.txt").read_text()
    rows = [line.split() for line in lines.splitlines()]
    return {(row[0], row[1]): float(row[3]) for row in rows}


@pytest.mark.usefixtures("plots")
def test_results_agree_with_speechbrain_file_by_file(
    verify, corpus, model, capsys, monkeypatch
):
    batches = []
    encode_batch = EncoderClassifier.encode_batch

    def spy(self, wavs, *lengths):
        batches.append(wavs.numel() / 16000)
        return encode_batch(self, wavs, *lengths)

    monkeypatch.setattr(EncoderClassifier, "encode_batch", spy)
    results = verify(
        checkpoint=model,
        seconds_per_batch=1.5,
        embeddings_folder=None,
        bootstrap_resamples=None,
    )
    assert 1 < max(batches) <= 1.5

    encoder = EncoderClassifier.from_hparams(source=str(model))
    embeddings = {
        str(path.relative_to(corpus / "wav")): encoder.encode_batch(
            load_waveform(path)
        )
        for path in (corpus / "wav").rglob("*.wav")
    }
    similarity = torch.nn.CosineSimilarity(dim=-1)
    lines = (results / "veri_test2" / "cosine_scores.txt").read_text()
    trials = (corpus / "veri_test2.txt").read_text().splitlines()
    scores = {0: [], 1: []}
    for line, trial in zip(lines.splitlines(), trials, strict=True):
        enrolment, test, label, score = line.split()
        assert f"{label} {enrolment} {test}" == trial
        expected = similarity(embeddings[enrolment], embeddings[test])
        assert float(score) == pytest.approx(expected.item(), abs=1e-5)
        scores[int(label)].append(float(score))
    positive, negative = torch.tensor(scores[1]), torch.tensor(scores[0])

    written = json.loads((results / "results.json").read_text())
    eer, eer_threshold = metric_stats.EER(positive, negative)
    costs = {
        prior: metric_stats.minDCF(positive, negative, p_target=prior)
        for prior in (0.01, 0.05)
    }
    assert 0 < eer < 0.5, "trials that tell nothing"
    (row,) = written.pop("results")
    assert written == {
        "checkpoint": "small",
        "seconds_used": None,
        "crops": None,
        "eval_precision": "fp32",
        "embedding_space": embedding_space(small_network()),
        "bootstrap_resamples": 1000,
    }
    pairs = [
        [line.split()[k][:3] for k in (0, 1)] for line in lines.split("\n")[:-1]
    ]
    intervals = bootstrap(
        torch.tensor([float(line.split()[3]) for line in lines.splitlines()]),
        torch.tensor([one == other for one, other in pairs]),
        pairs,
        {
            "eer_percent": lambda curve: 100 * eer_of(curve),
            "min_dcf_0.01": lambda curve: 100 * min_dcf()(curve),
            "min_dcf_0.05": lambda curve: 20 * min_dcf(p_target=0.05)(curve),
            "cllr": cllr,
        },
    )
    for key, (value, *limits) in intervals.items():
        assert row[key] == pytest.approx(value, abs=1e-4)
        assert row.pop(f"{key}_interval") == pytest.approx(limits, abs=1e-6)
    assert row == {
        "list": "veri_test2",
        "back_end": "cosine",
        "trials": len(trials),
        "same_speaker_trials": len(positive),
        "different_speakers_trials": len(negative),
        "files": SPEAKERS * UTTERANCES,
        "eer_percent": 100 * eer,
        "eer_threshold": eer_threshold,
        "min_dcf_0.01": costs[0.01][0] / 0.01,
        "min_dcf_0.01_threshold": costs[0.01][1],
        "min_dcf_0.05": costs[0.05][0] / 0.05,
        "min_dcf_0.05_threshold": costs[0.05][1],
        "act_dcf_0.01": actDCF(positive, negative, p_target=0.01) / 0.01,
        "act_dcf_0.05": actDCF(positive, negative, p_target=0.05) / 0.05,
        "cllr": pytest.approx(Cllr(positive, negative)),
        "min_cllr": pytest.approx(minCllr(positive, negative)),
        "speakers": SPEAKERS,
    }
    shown = capsys.readouterr().out
    assert shown.startswith((results / "results.txt").read_text())
    markdown = (results / "results.md").read_text().splitlines()[2]
    _, low, high = intervals["eer_percent"]
    written_eer = f"{100 * eer:.3f} [{low:.3f}, {high:.3f}]"
    assert "Intervals: 95 %, 1,000 resamples over 3 speakers.\n" in shown
    for cell in ("veri_test2", "cosine", written_eer, "66"):
        assert f" {cell} " in markdown
        assert cell in shown
    for plot in ("det.png", "cosine_histogram.png"):
        assert imread(results / "veri_test2" / plot).shape[0] > 500


def test_the_worst_trials_are_listed_with_their_files(verify, model):
    results = verify(checkpoint=model)
    scores = scores_of(results)
    same = {
        trial: s for trial, s in scores.items() if trial[0][:3] == trial[1][:3]
    }
    other = {trial: s for trial, s in scores.items() if trial not in same}
    path = results / "veri_test2" / "cosine_worst_trials.txt"
    headings, rows = [], []
    for line in path.read_text().splitlines():
        (headings if line.startswith("#") else rows).append(line.split())
    assert len(headings) == 2
    assert len(rows) == len(same) + 20
    assert tuple(rows[0][1:]) == min(same, key=same.get)
    assert tuple(rows[len(same)][1:]) == max(other, key=other.get)


@pytest.mark.usefixtures("plots")
def test_nothing_else_is_written_anywhere(
    verify, corpus, model, tmp_path, monkeypatch
):
    working_folder = tmp_path / "elsewhere"
    working_folder.mkdir()
    monkeypatch.chdir(working_folder)

    def everything():
        return {
            path
            for folder in (corpus, model, tmp_path)
            for path in folder.rglob("*")
            if path.is_file()
        }

    before = everything()
    results = verify(checkpoint=model, embeddings_folder=None)
    written = everything() - before
    (cache,) = (path for path in written if path.suffix == ".npz")
    assert cache.is_relative_to(results / "embeddings")
    assert written - {cache} == {
        *(results / f"results.{end}" for end in ("json", "md", "txt")),
        *(
            results / "veri_test2" / name
            for name in (
                "det.png",
                "cosine_scores.txt",
                "cosine_worst_trials.txt",
                "cosine_histogram.png",
            )
        ),
    }
    for path in written:
        content = path.read_bytes()
        assert str(tmp_path).encode() not in content
        assert str(corpus).encode() not in content


def test_results_are_kept_with_the_model(verify, model, tmp_path, monkeypatch):
    trained = tmp_path / "b0" / "42"
    shutil.copytree(model, trained / "model")
    before = {path.name for path in (trained / "model").iterdir()}
    # Results.json itself names a relative checkpoint as it was given.
    monkeypatch.chdir(tmp_path)
    results = verify(checkpoint="b0/42/", keep_results_with_model=True)
    kept = trained / "model" / "results.json"
    content = json.loads(kept.read_text())
    written = json.loads((results / "results.json").read_text())
    assert written.pop("checkpoint") == "b0/42"
    assert content.pop("checkpoint") == "42"
    assert content == written
    after = {path.name for path in (trained / "model").iterdir()}
    assert after - before == {"results.json"}
    # Its folder is still the one that is loaded, and a later run replaces it.
    verify(checkpoint=trained / "model", keep_results_with_model=True)
    assert json.loads(kept.read_text())["checkpoint"] == "model"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"checkpoint": "user/name"}, "user/name is no model folder"),
        ({"checkpoint": "{weights}", "variant": "b0"}, "is no model folder"),
        ({"mean_list": "{corpus}"}, "with mean_list"),
        ({"keep_results_with_model": "perhaps"}, "expected True or False"),
    ],
)
def test_results_that_cannot_be_kept_are_refused_first(
    keys, message, verify, corpus, model, monkeypatch
):
    def no_encoding(*arguments):
        raise AssertionError("embedded first")

    monkeypatch.setattr(EncoderClassifier, "encode_batch", no_encoding)
    weights = model / "embedding_model.ckpt"
    keys = {
        key: value.format(weights=weights, corpus=corpus)
        for key, value in keys.items()
    }
    keys = {
        "checkpoint": model,
        "embeddings_folder": None,
        "keep_results_with_model": True,
        **keys,
    }
    with pytest.raises(ValueError, match=f"^keep_results_with.*{message}"):
        verify(**keys)
    assert not (model / "results.json").exists()


def test_results_without_the_cosine_are_not_kept(corpus, model, tmp_path):
    path = corpus / "veri_test2.txt"
    (trial_list,) = read_trial_lists(str(path), corpus, tmp_path)
    result = report.Result(trial_list, "another", torch.arange(66.0))
    with pytest.raises(ValueError, match="^keep_results.* only another"):
        report.report([result], {}, tmp_path, "model", "b3-1", keep_in=model)
    assert list(tmp_path.iterdir()) == []


def test_embeddings_are_computed_once(verify, model, monkeypatch):
    given = {"checkpoint": model, "embeddings_folder": None}
    expected = scores_of(verify(**given))

    def no_encoding(*arguments):
        raise AssertionError("embedded again")

    monkeypatch.setattr(EncoderClassifier, "encode_batch", no_encoding)
    assert scores_of(verify(**given)) == expected
    with pytest.raises(AssertionError, match="embedded again"):
        verify(**given, maximum_seconds=0.2)


def test_several_lists_and_forms_in_one_run(verify, corpus, model, tmp_path):
    lines = (corpus / "veri_test2.txt").read_text().splitlines()
    rows = [line.split() for line in lines]
    kinds = ("nontarget", "target")
    (tmp_path / "kaldi.txt").write_text(
        "\n".join(f"{row[1]} {row[2]} {kinds[int(row[0])]}" for row in rows)
    )
    (tmp_path / "table.csv").write_text(
        "\ufefflabel,test,enrol\r\n"
        + "\r\n".join(f"{row[0]},{row[2]},{row[1]}" for row in rows),
        encoding="utf-8",
    )
    lists = [corpus / "veri_test2.txt", tmp_path / "kaldi.txt"]
    lists += [tmp_path / "table.csv"]
    results = verify(
        checkpoint=model,
        verification_file=f"[{', '.join(map(str, lists))}]",
    )
    found = json.loads((results / "results.json").read_text())["results"]
    assert [row.pop("list") for row in found] == [
        "veri_test2",
        "kaldi",
        "table",
    ]
    assert found[0] == found[1] == found[2]
    copy = tmp_path / "copy" / "kaldi.txt"
    copy.parent.mkdir()
    shutil.copy(tmp_path / "kaldi.txt", copy)
    with pytest.raises(ValueError, match="two lists are called kaldi"):
        verify(checkpoint=model, verification_file=f"[{copy}, {lists[1]}]")


def test_the_mean_of_crops(verify, corpus, model):
    results = verify(checkpoint=model, crops=2, maximum_seconds=0.15)
    encoder = EncoderClassifier.from_hparams(source=str(model))

    def embed(name):
        wav = load_waveform(corpus / "wav" / name)
        crops = torch.stack([wav[:2400], wav[-2400:]])
        vectors = encoder.encode_batch(crops)
        return torch.nn.functional.normalize(vectors, dim=-1).mean(0)[0]

    for (enrolment, test), score in list(scores_of(results).items())[::9]:
        expected = torch.cosine_similarity(embed(enrolment), embed(test), dim=0)
        assert score == pytest.approx(expected.item(), abs=1e-5)


def test_names_of_a_wav_scp(verify, corpus, model, tmp_path):
    expected = list(scores_of(verify(checkpoint=model)).values())
    trials = (corpus / "veri_test2.txt").read_text()
    names = sorted(
        {name for line in trials.splitlines() for name in line.split()[1:]}
    )
    number = {name: f"utterance{row}" for row, name in enumerate(names)}
    (tmp_path / "wav.scp").write_text(
        "".join(f"{number[name]} {corpus / 'wav' / name}\n" for name in names)
    )
    for name in names:
        trials = trials.replace(name, number[name])
    (tmp_path / "veri_test2.txt").write_text(trials)
    given = {
        "checkpoint": model,
        "verification_file": tmp_path / "veri_test2.txt",
        "utterance_list": tmp_path / "wav.scp",
    }
    results = verify(**given)
    scores = list(scores_of(results).values())
    assert scores == pytest.approx(expected, abs=1e-6)
    (tmp_path / "veri_test2.txt").write_text(trials + "\n1 utterance0 lost")
    with pytest.raises(ValueError, match="wav.scp does not say where lost is"):
        verify(**given)


def write_segments(path, wavs, speakers, joined):
    """Lists files as segments of one, a CSV file or a wav.scp with segments."""
    borders = join_files(wavs.values(), joined)
    named = zip(wavs, borders, speakers, strict=True)
    if path.suffix == ".csv":
        rows = [f"{n},0,{joined},{a},{b},{s}" for n, (a, b), s in named]
        header = "ID,duration,wav,start,stop,spk_id"
        path.write_text("\n".join([header, *rows]))
        return path
    path.parent.mkdir()
    lines = {"wav.scp": [f"r {joined}"], "segments": [], "utt2spk": []}
    for name, (start, stop), speaker in named:
        lines["segments"].append(f"{name} r {start / 16000} {stop / 16000}")
        lines["utt2spk"].append(f"{name} {speaker}")
    for file, content in lines.items():
        (path.parent / file).write_text("\n".join(content))
    return path


@pytest.mark.parametrize("form", ["{}.csv", "{}/wav.scp"])
def test_trials_cohorts_and_training_lists_of_segments(
    form, corpus, model, cohort, plda_speech, tmp_path
):
    """The same scores as from files of them."""
    lists = {}
    for key, folder in (
        ("utterance_list", corpus / "wav"),
        ("cohort_list", cohort),
        ("train_list", plda_speech),
    ):
        wavs = {
            path.relative_to(folder).as_posix(): path
            for path in sorted(folder.rglob("*.wav"))
        }
        lists[key] = write_segments(
            tmp_path / form.format(key),
            wavs,
            [name.split("/")[0] for name in wavs],
            tmp_path / f"{key}.wav",
        )
    scores = []
    for name, given in (
        ("files", {"cohort_list": cohort, "train_list": plda_speech}),
        ("segments", lists),
    ):
        results = run_plda(
            corpus,
            model,
            tmp_path / name,
            cohort_top=4,
            **given,
        )
        scores.append(
            [
                scores_of(results, each)
                for each in ("cosine", "plda", "plda_adaptive_s_norm_top_4")
            ]
        )
    for found, wanted in zip(*scores, strict=True):
        assert found == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("suffix", ["csv", "scp"])
def test_a_segment_beyond_its_file_stops(suffix, verify, model, tmp_path):
    soundfile.write(tmp_path / "a.wav", torch.rand(16000).numpy(), 16000)
    if suffix == "csv":
        rows = "ID,wav,start,stop\na,a.wav,0,8000\nb,$data_root/a.wav,0,16001"
        (tmp_path / "list.csv").write_text(
            rows.replace(",a.wav", ",$data_root/a.wav")
        )
    else:
        (tmp_path / "list.scp").write_text(f"a {tmp_path}/a.wav\n")
        (tmp_path / "segments").write_text("a a 0 0.5\nb a 0 1.6\n")
    (tmp_path / "trials.txt").write_text("1 a b\n0 b a\n")
    with pytest.raises(ValueError, match=r"a.wav\[0.*: a segment beyond"):
        verify(
            checkpoint=model,
            data_folder=tmp_path,
            verification_file=tmp_path / "trials.txt",
            utterance_list=tmp_path / f"list.{suffix}",
        )


def test_enrolments_that_are_no_models_are_refused(
    verify, corpus, model, tmp_path
):
    names = tmp_path / "enrolments.txt"
    names.write_text("speaker0 id0/video/0.wav id0/video/1.wav\n")
    path = tmp_path / "veri_test2.txt"
    path.write_text("1 speaker0 id0/video/2.wav\n0 nobody id0/video/2.wav\n")
    with pytest.raises(
        ValueError, match="enrolment_file: .*txt has no model nobody, .*2.txt"
    ):
        verify(checkpoint=model, verification_file=path, enrolment_file=names)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Noises of eight speakers, two utterances each."""
    folder = tmp_path_factory.mktemp("cohort")
    generator = torch.Generator().manual_seed(1)
    for speaker in range(8):
        for utterance in range(2):
            wav = torch.randn(4000, generator=generator).cumsum(0)
            wav = wav - wav.roll(1 + speaker)
            path = folder / f"other{speaker}" / "video" / f"{utterance}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            wav = wav / wav.abs().max() / 2
            audio_io.save(path, wav.unsqueeze(0), 16000)
    return folder


def test_calibration_is_trained_saved_and_applied(
    verify, corpus, cohort, model, tmp_path
):
    given = {
        "checkpoint": model,
        "cohort_list": cohort,
        "cohort_top": 5,
        "quality_measures": "[durations, magnitudes, cohort_means]",
    }
    results = verify(**given, calibration_trials=corpus / "veri_test2.txt")
    rows = json.loads((results / "results.json").read_text())["results"]
    of = {row["back_end"]: row for row in rows}
    for name in ("cosine", "cosine, adaptive s-norm (top 5)"):
        # Trained on the very trials, it cannot be worse than a constant.
        assert of[f"{name}, calibrated"]["cllr"] < min(1, of[name]["cllr"])
    expected = scores_of(results, "cosine_calibrated")
    saved = tmp_path / "saved.json"
    shutil.copy(results / "calibration.json", saved)
    weights = json.loads(saved.read_text())["cosine"]["weights"]
    assert set(weights) == {
        "score",
        *(
            f"{side} {measure}"
            for side in ("lower", "higher")
            for measure in ("duration", "magnitude", "cohort mean")
        ),
    }
    (results / "calibration.json").unlink()
    again = verify(**given, calibration=saved)
    assert scores_of(again, "cosine_calibrated") == expected
    assert not (again / "calibration.json").exists()
    with pytest.raises(ValueError, match="trained on .* set quality_measures"):
        verify(
            **{**given, "quality_measures": "[durations]"}, calibration=saved
        )
    with pytest.raises(ValueError, match=r"has none for .*\(top 6\), only"):
        verify(**{**given, "cohort_top": 6}, calibration=saved)
    entries = json.loads(saved.read_text())
    entries["cosine"]["embedding_space"] = "redimnet2-b3-1"
    saved.write_text(json.dumps(entries))
    with pytest.raises(ValueError, match="saved.json: .* redimnet2-b3-1, but"):
        verify(**given, calibration=saved)


def test_cohorts_that_do_not_fit_are_refused(
    verify, cohort, model, tmp_path, monkeypatch
):
    def no_encoding(*arguments):
        raise AssertionError("embedded before the check")

    monkeypatch.setattr(EncoderClassifier, "encode_batch", no_encoding)
    (tmp_path / "empty").mkdir()
    wavs = sorted(cohort.rglob("*.wav"))
    (tmp_path / "list.scp").write_text(
        "".join(f"{row} {wav}\n" for row, wav in enumerate(wavs))
    )
    for source, message in (
        (cohort, "cohort_top: 300 is more than the 8 entries"),
        (tmp_path / "empty", "empty"),
        (tmp_path / "list.scp", r"list\.scp does not say whose utterance 0 is"),
    ):
        with pytest.raises(ValueError, match=message):
            verify(checkpoint=model, cohort_list=source, embeddings_folder=None)


def test_tested_speakers_in_cohort_and_calibration_are_reported(
    verify, corpus, model, capsys
):
    verify(
        checkpoint=model,
        cohort_list=corpus,
        cohort_top=3,
        calibration_trials=corpus / "veri_test2.txt",
    )
    shown = capsys.readouterr().out
    assert "3 of the 3 speakers are in the cohort" in shown
    assert "3 of the 3 speakers are in the calibration trials" in shown


@pytest.mark.usefixtures("plots")
def test_no_files_of_other_back_ends_are_left(verify, cohort, model):
    given = {"checkpoint": model, "cohort_list": cohort, "cohort_top": 3}
    folder = verify(**given) / "veri_test2"
    assert len(list(folder.glob("*_scores.txt"))) == 2
    (folder / "notes.txt").write_text("of the user's own")
    verify(checkpoint=model, maximum_seconds=0.2)
    assert {path.name for path in folder.iterdir()} == {
        "cosine_scores.txt",
        "cosine_worst_trials.txt",
        "cosine_histogram.png",
        "det.png",
        "notes.txt",
    }
    text = (folder.parent / "results.txt").read_text()
    assert "its first 0.2 s.\n" in text


def test_figures_without_intervals(verify, corpus, model, tmp_path):
    results = verify(checkpoint=model, bootstrap_resamples=0)
    (plain,) = json.loads((results / "results.json").read_text())["results"]
    assert plain["speakers"] == SPEAKERS
    assert plain["eer_percent_interval"] is None
    text = (results / "results.txt").read_text()
    assert "nterval" not in text and "[" not in text
    with pytest.raises(ValueError, match="^bootstrap_resamples"):
        verify(checkpoint=model, bootstrap_resamples=-1)


@pytest.mark.usefixtures("plots")
def test_two_speakers_are_too_few_for_intervals(
    verify, corpus, model, tmp_path
):
    """All resamples of two are the same, as if the figures were exact."""
    lines = (corpus / "veri_test2.txt").read_text().splitlines()
    few = tmp_path / "few.txt"
    few.write_text("\n".join(line for line in lines if "id2/" not in line))
    results = verify(checkpoint=model, verification_file=few)
    (row,) = json.loads((results / "results.json").read_text())["results"]
    assert row["speakers"] == 2 and row["eer_percent_interval"] is None
    text = (results / "results.txt").read_text()
    assert text.endswith("No intervals of few: 2 speakers are too few.\n")
    assert "[" not in text


@pytest.mark.usefixtures("plots")
def test_a_list_that_does_not_tell_its_speakers(
    verify, corpus, model, tmp_path
):
    lines = (corpus / "veri_test2.txt").read_text().splitlines()
    wrong = tmp_path / "wrong.txt"  # one and two speakers link the same
    wrong.write_text("\n".join(["0" + lines[0][1:], *lines[1:]]))
    results = verify(
        checkpoint=model,
        verification_file=f"[{wrong}, {corpus / 'veri_test2.txt'}]",
    )
    rows = json.loads((results / "results.json").read_text())["results"]
    assert [row["speakers"] for row in rows] == [None, SPEAKERS]
    assert rows[0]["cllr_interval"] is None
    low, high = rows[1]["cllr_interval"]
    assert low < rows[1]["cllr"] < high
    # Of the EER and one minDCF on a screen, of all that have one elsewhere.
    *_, last, _, _ = (results / "results.txt").read_text().splitlines()
    assert last.count("[") == 2 and len(last) <= 120
    *_, last = (results / "results.md").read_text().splitlines()
    assert last.count("[") == 4
    assert (
        (results / "results.txt")
        .read_text()
        .endswith(
            "Intervals: 95 %, 9 resamples over 3 speakers of veri_test2. No "
            "intervals of wrong: names and labels do not tell the speakers of "
            "trials.\n"
        )
    )


@pytest.fixture(scope="module")
def plda_speech(tmp_path_factory):
    """Short noises, as many as LDA needs for embeddings of 16 values."""
    folder = tmp_path_factory.mktemp("plda")
    generator = torch.Generator().manual_seed(2)
    for speaker in range(6):
        for utterance in range(4):
            wav = torch.randn(800, generator=generator)
            wav = wav + wav.roll(1 + speaker)
            path = folder / f"other{speaker}" / "video" / f"{utterance}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            audio_io.save(path, wav.unsqueeze(0) / 20, 16000)
    return folder


def run_plda(corpus, model, folder, **keys):
    keys = {
        "data_folder": corpus,
        "checkpoint": model,
        "output_folder": folder,
        "device": "cpu",
        "lda_dimension": 4,
        "plda_rank": 3,
        **keys,
    }
    plda.main(
        [
            str(HPARAMS.with_name("verification_plda_redimnet2.yaml")),
            *(f"--{key}={value}" for key, value in keys.items()),
        ]
    )
    return folder


def test_plda_is_trained_saved_and_taken_again(
    corpus, model, cohort, plda_speech, tmp_path
):
    first = run_plda(
        corpus,
        model,
        tmp_path / "first",
        train_list=plda_speech,
        cohort_list=cohort,
        cohort_top=4,
    )
    rows = json.loads((first / "results.json").read_text())["results"]
    assert [row["back_end"] for row in rows] == [
        "cosine",
        "cosine, adaptive s-norm (top 4)",
        "PLDA",
        "PLDA, adaptive s-norm (top 4)",
    ]
    second = run_plda(
        corpus, model, tmp_path / "second", plda_file=first / "plda.npz"
    )
    scores = scores_of(first, "plda")
    assert scores_of(second, "plda") == scores
    write_model_folder(tmp_path / "other", other_network(), "Another network")
    message = "plda.npz: of the embedding space .* cannot be compared"
    with pytest.raises(ValueError, match=message):
        run_plda(
            corpus,
            tmp_path / "other",
            tmp_path / "third",
            plda_file=first / "plda.npz",
        )


def test_plda_is_adapted_to_unlabelled_utterances(
    corpus, model, cohort, plda_speech, tmp_path
):
    # A list without speakers, as of a domain that nobody has labelled. It is
    # the cohort as well, of which PLDA has no other use than the cosine.
    unlabelled = tmp_path / "target.scp"
    wavs = sorted(cohort.rglob("*.wav"))
    lines = (f"{row} {wav}\n" for row, wav in enumerate(wavs))
    unlabelled.write_text("".join(lines))
    results = run_plda(
        corpus,
        model,
        tmp_path / "all",
        train_list=plda_speech,
        adaptation_list=unlabelled,
        cohort_list=unlabelled,
        cohort_entries="utterances",
        cohort_top=4,
    )
    rows = json.loads((results / "results.json").read_text())["results"]
    ways = "in-domain mean", "Kaldi adaptation", "CORAL+"
    names = ["cosine", "PLDA", *(f"PLDA, {way}" for way in ways)]
    assert [row["back_end"] for row in rows] == [
        f"{name}{norm}"
        for name in names
        for norm in ("", ", adaptive s-norm (top 4)")
    ]
    scores = {
        name: scores_of(results, name)
        for name in (
            *("plda", "plda_in_domain_mean", "plda_kaldi_adaptation"),
            *("plda_coral", "plda_coral_adaptive_s_norm_top_4"),
        )
    }
    assert len({tuple(each.values()) for each in scores.values()}) == 5
    # What is saved gives these scores again, and weights are heard.
    for name, file in (
        ("plda_kaldi_adaptation", "plda_kaldi"),
        ("plda_coral", "plda_coral_plus"),
    ):
        again = run_plda(
            corpus, model, tmp_path / name, plda_file=results / f"{file}.npz"
        )
        assert scores_of(again, "plda") == scores[name]
    other = run_plda(
        corpus,
        model,
        tmp_path / "weights",
        plda_file=results / "plda.npz",
        adaptation_list=unlabelled,
        adaptation="[coral_plus, kaldi]",
        within_weight=0,
        between_weight=0,
        within_covar_scale=0,
        between_covar_scale=0,
    )
    for name in ("plda_coral", "plda_kaldi_adaptation"):
        assert scores_of(other, name) == pytest.approx(
            scores["plda_in_domain_mean"], abs=1e-8
        )


def test_plda_is_kept_in_files_of_kaldi(
    corpus, model, cohort, plda_speech, tmp_path
):
    results = run_plda(
        corpus,
        model,
        tmp_path / "kaldi",
        train_list=plda_speech,
        adaptation_list=cohort,
        adaptation="[coral_plus]",
        plda_format="kaldi",
    )
    assert not list(results.glob("*.npz"))
    for name, file in (("plda", "plda"), ("plda_coral", "plda_coral_plus")):
        again = run_plda(
            corpus, model, tmp_path / name, plda_file=results / file
        )
        assert scores_of(again, "plda") == pytest.approx(
            scores_of(results, name), abs=1e-6
        )


def test_tested_speakers_in_lists_of_plda_are_reported(
    corpus, model, plda_speech, tmp_path, capsys
):
    speech = shutil.copytree(plda_speech, tmp_path / "speech")
    (speech / "other0").rename(speech / "id0")
    run_plda(
        corpus,
        model,
        tmp_path / "results",
        train_list=speech,
        adaptation_list=corpus / "wav",
        adaptation="[mean]",
    )
    shown = capsys.readouterr().out
    assert "1 of the 3 speakers are in train_list, which should be" in shown
    assert "3 of the 3 speakers are in adaptation_list, which" in shown


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "train_list: give either"),
        ({"train_list": "nowhere.csv"}, "nowhere.csv"),
        ({"plda_file": "model"}, "^plda_file: .*not a PLDA back-end"),
        ({"plda_file": "gone.npz"}, "^plda_file: gone.npz: No such file"),
        ({"train_list": "speech", "plda_rank": 40}, "plda_rank"),
        ({"train_list": "speech", "plda_iterations": 0}, "0 is less than 1"),
        ({"train_list": "speech", "plda_iterations": "x"}, "iterations: exp"),
        ({"train_list": "speech", "lda_dimension": "x"}, "lda_dimension: exp"),
        ({"train_list": "scp"}, "train_list: .*scp does not say whose utt"),
        ({"plda_file": "nothing"}, "^plda_file: .*no file mean.vec; give"),
        ({"train_list": "speech", "plda_format": "x"}, "plda_format: unknown"),
        (
            {"train_list": "speech", "adaptation": "[kaldi]"},
            "adaptation: it needs an adaptation_list",
        ),
        (
            {"train_list": "speech", "adaptation_list": "nowhere.csv"},
            "nowhere.csv",
        ),
        (
            {"train_list": "speech", "adaptation": "[coral]"},
            "adaptation: unknown value 'coral', expected one of mean, kaldi",
        ),
        (
            {"train_list": "speech", "within_weight": -1},
            "within_weight: -1 is less than 0",
        ),
        (
            {"train_list": "speech", "mean_diff_scale": "x"},
            "mean_diff_scale: expected a number",
        ),
    ],
)
def test_faults_of_plda_are_named(
    keys, message, corpus, model, plda_speech, tmp_path
):
    scp = tmp_path / "list.scp"
    wavs = sorted(plda_speech.rglob("*.wav"))
    scp.write_text("".join(f"{row} {wav}\n" for row, wav in enumerate(wavs)))
    paths = {
        "speech": plda_speech,
        "scp": scp,
        "nothing": tmp_path,
        "model": model / "hyperparams.yaml",
    }
    keys = {key: paths.get(value, value) for key, value in keys.items()}
    with pytest.raises((ValueError, OSError), match=message) as caught:
        run_plda(corpus, model, tmp_path / "results", **keys)
    assert "\n" not in one_line(caught.value)


def test_another_model_never_meets_the_files_of_the_last_one(
    verify, model, tmp_path
):
    results = verify(checkpoint=model, embeddings_folder=None)
    scores = results / "veri_test2" / "cosine_scores.txt"
    first = scores.read_text()
    write_model_folder(tmp_path / "other", other_network(), "Another network")
    verify(checkpoint=tmp_path / "other", embeddings_folder=None)
    assert scores.read_text() != first
    verify(checkpoint=model, embeddings_folder=None)
    assert scores.read_text() == first


def test_a_model_folder_of_another_architecture(verify, tmp_path):
    folder = tmp_path / "ecapa"
    folder.mkdir()
    (folder / "hyperparams.yaml").write_text(ECAPA)
    network = build_hparam(folder / "hyperparams.yaml", "embedding_model")
    torch.save(network.state_dict(), folder / "embedding_model.ckpt")
    results = verify(checkpoint=folder, variant="b2")
    assert len(scores_of(results)) == 66
    with pytest.raises(ValueError, match="variant: b3 was given, .* says b2"):
        verify(checkpoint=folder, variant="b3")


@pytest.fixture
def weights_file(tmp_path, model, monkeypatch):
    """Bare weights of a small variant b0."""
    monkeypatch.setitem(VARIANTS, "b0", SMALL_VARIANT)
    checkpoint = tmp_path / "CKPT+last" / "embedding_model.ckpt"
    checkpoint.parent.mkdir()
    shutil.copy(model / "embedding_model.ckpt", checkpoint)
    return checkpoint


def test_bare_weights_score_as_the_model_folder(verify, model, weights_file):
    expected = scores_of(verify(checkpoint=model))
    results = verify(
        checkpoint=weights_file, variant="b0", embeddings_folder=None
    )
    assert scores_of(results) == expected


def test_a_published_checkpoint_by_its_name(verify, model, monkeypatch):
    monkeypatch.setattr(door, "released_folder", lambda name: str(model))
    expected = scores_of(verify(checkpoint=model))
    assert scores_of(verify(checkpoint="b3-vox2-lm")) == expected
    with pytest.raises(ValueError, match="no file or folder b3-vox2-lx"):
        verify(checkpoint="b3-vox2-lx")


def test_bare_weights_of_b0(verify, corpus, tmp_path):
    network = build_hparam(
        HPARAMS.parent / "redimnet2_b0.yaml", "embedding_model"
    )
    torch.save(network.state_dict(), tmp_path / "embedding_model.ckpt")
    lines = (corpus / "veri_test2.txt").read_text().splitlines()
    (tmp_path / "veri_test2.txt").write_text("\n".join([lines[0], lines[3]]))
    given = {
        "checkpoint": tmp_path / "embedding_model.ckpt",
        "verification_file": tmp_path / "veri_test2.txt",
    }
    results = verify(**given, variant="b0")
    assert len(scores_of(results)) == 2
    with pytest.raises(ValueError, match="not fit variant b1"):
        verify(**given, variant="b1")


def test_bare_weights_need_their_variant(verify, weights_file):
    with pytest.raises(ValueError, match="variant: missing"):
        verify(checkpoint=weights_file)


class Payload:
    """Code that would run if weights were unpickled."""

    def __init__(self, trace):
        self.trace = str(trace)

    def __reduce__(self):
        return os.mkdir, (self.trace,)


def damage_missing(weights):
    del weights["projection.weight"]
    return weights


def damage_surplus(weights):
    return {**weights, "stowaway": torch.zeros(1)}


def damage_shape(weights):
    return {**weights, "projection.weight": torch.zeros(3, 4)}


@pytest.mark.parametrize("as_folder", [False, True])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_missing, "projection.weight is missing"),
        (damage_surplus, "stowaway is surplus"),
        (damage_shape, r"projection\.weight.*\[3, 4\]"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    damage, message, as_folder, verify, model, weights_file
):
    weights = torch.load(weights_file, weights_only=True)
    torch.save(damage(weights), weights_file)
    given = {"checkpoint": weights_file, "variant": "b0"}
    if as_folder:
        shutil.copy(model / "hyperparams.yaml", weights_file.parent)
        given = {"checkpoint": weights_file.parent}
    with pytest.raises(ValueError, match=message) as caught:
        verify(**given)
    assert str(caught.value).startswith("checkpoint: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("as_folder", [False, True])
def test_pickled_code_in_weights_is_never_run(
    as_folder, verify, model, weights_file, tmp_path
):
    torch.save({"weight": Payload(tmp_path / "trace")}, weights_file)
    given = {"checkpoint": weights_file, "variant": "b0"}
    if as_folder:
        shutil.copy(model / "hyperparams.yaml", weights_file.parent)
        given = {"checkpoint": weights_file.parent}
    with pytest.raises(ValueError, match="^checkpoint: "):
        verify(**given)
    assert not (tmp_path / "trace").exists()


def test_other_files_than_weights_are_named(verify, weights_file):
    def message(content):
        torch.save(content, weights_file)
        with pytest.raises(ValueError, match="^checkpoint: ") as caught:
            verify(checkpoint=weights_file, variant="b0")
        return str(caught.value)

    assert "redimnet2 convert" in message(
        {"model_config": {}, "state_dict": {}}
    )
    assert "something else" in message([1, 2])
    weights_file.write_bytes(b"neither")
    with pytest.raises(ValueError, match="not a file of weights"):
        verify(checkpoint=weights_file, variant="b0")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"variant": "b9"}, "variant: unknown value 'b9'.* b0, b1"),
        ({"seconds_per_batch": "many"}, "seconds_per_batch: expected a number"),
        ({"seconds_per_batch": 0}, "seconds_per_batch: 0 is less than 0.025"),
        ({"output_folder": 7}, "output_folder: expected text, not 7"),
        ({"chekpoint": "x"}, "chekpoint: not a key .* mean checkpoint"),
        ({"device": "toaster"}, "device: 'toaster' cannot be used"),
        ({"precision": "fp7"}, "--precision"),
        ({"verification_file": "none.txt"}, "verification_file: .*none.txt"),
        ({"verification_file": "[a"}, r"^verification_file: '\[a' is not val"),
        ({"data_folder": "nowhere"}, "data_folder: .* nowhere"),
        ({"checkpoint": "./nowhere"}, r"checkpoint: no file .*\./nowhere"),
        ({"checkpoint": HPARAMS.parent}, "checkpoint: .* no hyperparams.yaml"),
        ({"cohort_list": "nowhere"}, "nowhere"),
        ({"cohort_entries": "files"}, "cohort_entries: unknown value 'files'"),
        ({"score_norms": "[x]"}, "score_norms: unknown value 'x'.* z, t, s"),
        ({"score_norms": "z"}, "score_norms: expected a list"),
        ({"score_norms": "[z]"}, "score_norms: they need a cohort_list"),
        ({"cohort_top": "many"}, "cohort_top: expected a whole number"),
        ({"crops": 3}, "maximum_seconds: missing; crops needs it"),
        ({"crops": 0, "maximum_seconds": 1}, "crops: 0 is less than 1"),
        ({"quality_measures": "[durations]"}, "quality_measures: they need"),
        ({"quality_measures": "[loudness]"}, "unknown value 'loudness'"),
        ({"calibration": "none.json"}, "calibration: no file none.json"),
        ({"calibration": HPARAMS}, "not a calibration.json"),
        (
            {"calibration": HPARAMS, "calibration_trials": "b"},
            "calibration: give either",
        ),
        ({"verification_file": 3}, "verification_file: expected text or a li"),
        ({"verification_file": "null"}, "verification_file: expected .*null"),
        ({"verification_file": "[a, 3]"}, "verification_file: expected text"),
        ({"calibration_trials": 3}, "calibration_trials: expected text or a l"),
        ({"calibration_folder": 3}, "calibration_folder: expected text"),
        ({"mean_list": 3}, "mean_list: expected text"),
        ({"calibration": 3}, "calibration: expected text"),
        ({"data_folder": 3}, "data_folder: expected text"),
        (
            {"data_folder": HPARAMS.parent},
            "data_folder: there is no folder wav",
        ),
        ({"embeddings_folder": 3}, "embeddings_folder: expected text"),
        ({"cohort_list": 3}, "cohort_list: expected text"),
        ({"list_folder": 3}, "list_folder: expected text"),
        ({"enrolment_file": 3}, "enrolment_file: expected text"),
        ({"enrolment_file": "none.txt"}, "enrolment_file: no file none.txt"),
        ({"utterance_list": 3}, "utterance_list: expected text"),
        ({"utterances_per_speaker": "x"}, "utterances_per_speaker: expected"),
        ({"utterances_per_speaker": 0}, "utterances_per_speaker: 0 is less"),
        (
            {"quality_measures": "[cohort_means]", "calibration_trials": "b"},
            "cohort_means needs a cohort_list",
        ),
    ],
)
def test_wrong_values_are_named_by_key(keys, message, verify, model, tmp_path):
    with pytest.raises(ValueError, match=message) as caught:
        verify(**{"checkpoint": model, **keys})
    assert "\n" not in one_line(caught.value)
    assert not (tmp_path / "results" / "results.json").exists()


@pytest.mark.parametrize(
    ("trials", "message"),
    [
        (
            "1 id0/video/0.wav id0/video/1.wav",
            r"verification_file: all .*list\.txt have label 1, but .* both",
        ),
        (
            "1 id0/video/0.wav lost/0.wav\n0 lost/1.wav lost/0.wav",
            r"data_folder: 2 of the 3 files .* first is .*lost/0\.wav",
        ),
        ("1 id0/video/0.wav", "list.txt, line 1"),
        ("", "list.txt"),
    ],
)
def test_faulty_trial_lists_are_named(trials, message, verify, model, tmp_path):
    (tmp_path / "list.txt").write_text(trials)
    with pytest.raises(ValueError, match=message):
        verify(checkpoint=model, verification_file=tmp_path / "list.txt")


def test_missing_files_of_calibration_are_named_by_their_folder(
    verify, corpus, model, tmp_path
):
    with pytest.raises(ValueError, match="calibration_folder: 12 of the 12"):
        verify(
            checkpoint=model,
            calibration_trials=corpus / "veri_test2.txt",
            calibration_folder=tmp_path,
        )


def test_an_interrupted_report_leaves_the_old_file(verify, model, monkeypatch):
    results = verify(checkpoint=model)
    before = (results / "results.json").read_bytes()
    write_text = Path.write_text

    def full_disk(path, text, **options):
        write_text(path, text[:100], **options)
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_text", full_disk)
    with pytest.raises(OSError, match="No space left"):
        verify(checkpoint=model)
    assert (results / "results.json").read_bytes() == before


def test_the_output_of_a_training_that_has_not_ended(verify, tmp_path):
    training = tmp_path / "training"
    training.mkdir()
    shutil.copy(
        HPARAMS.with_name("demo_redimnet2_b0.yaml"),
        training / "hyperparams.yaml",
    )
    end = f"checkpoint: {training}: the training in this folder has not ended"
    with pytest.raises(ValueError, match=f"^{end}.* by the same command$"):
        verify(checkpoint=training)
    network = ReDimNet2.from_variant("b0", aggregation_norm=True)
    for name in ("CKPT+1", "CKPT+2"):
        (training / "save" / name).mkdir(parents=True)
        path = training / "save" / name / "embedding_model.ckpt"
        torch.save(network.state_dict(), path)
    remedy = re.escape(f"command, or pass {path} with --variant")
    with pytest.raises(ValueError, match=f"^{end}.*{remedy}$"):
        verify(checkpoint=training)
    verify(checkpoint=path, variant="b0")

    with torch.no_grad():
        network.projection.bias[1] = torch.inf
    torch.save(network.state_dict(), path)
    expected = f"^checkpoint: {re.escape(str(path))}: projection.bias holds "
    with pytest.raises(ValueError, match=expected):
        verify(checkpoint=path, variant="b0")


YAML = """\
rate: 0.1
model: !new:torch.nn.Linear
    in_features: 3
    out_features: !ref <width>
width: 4
double: !ref <width> * 2
"""


@pytest.mark.parametrize(
    ("edit", "overrides", "message"),
    [
        ("", {"width": "wide"}, r"^model \(built from width\): .*Linear"),
        (("in_features", "in_feature"), {}, r"^model \(built from width\): "),
        (("torch.nn.Linear", "torch.nn.Lunar"), {}, "^model .*torch.nn.Lunar"),
        (("<width> *", "<with> *"), {}, "with"),
        (("rate: 0.1", "rate: [0.1"), {}, r"hparams.yaml, line 1 .*\[0.1"),
        (("rate: 0.1", "rate: !PLACEHOLDER"), {}, "^rate: missing.*--rate"),
        ("", {"wdth": 3}, "^wdth: not a key of hparams.yaml.* width"),
        ((YAML, "nonsense"), {}, "hparams.yaml: expected keys"),
    ],
)
def test_faults_of_a_yaml_are_named_by_key(edit, overrides, message, tmp_path):
    path = tmp_path / "hparams.yaml"
    path.write_text(YAML.replace(*edit) if edit else YAML)
    with pytest.raises(ValueError, match=message) as caught:
        load_hparams(path, overrides)
    assert "\n" not in one_line(caught.value)


def test_a_right_yaml_is_loaded_as_by_hyperpyyaml(tmp_path):
    path = tmp_path / "hparams.yaml"
    path.write_text(YAML)
    hparams = load_hparams(path, {"width": 5})
    assert hparams["model"].weight.shape == (5, 3)
    assert hparams["double"] == 10


def test_missing_files_are_all_named(verify, model, tmp_path):
    trials = tmp_path / "trials.txt"
    trials.write_text("1 a/x/1.wav a/x/2.wav\n0 a/x/1.wav b/x/1.wav\n")
    with pytest.raises(ValueError, match="data_folder: 3 of the 3 .* names"):
        verify(checkpoint=model, verification_file=trials)
    (listed,) = tmp_path.rglob("missing_files.txt")
    names = ["a/x/1.wav", "a/x/2.wav", "b/x/1.wav"]
    lines = listed.read_text().splitlines()
    assert [line.split("/wav/")[1] for line in lines] == names


@pytest.mark.parametrize("with_list", [False, True])
def test_a_corpus_in_another_format_than_its_list(
    verify, corpus, model, tmp_path, with_list
):
    """As voxceleb_unpack.py --format=flac writes it."""
    in_flac = tmp_path / "flac"
    for path in (corpus / "wav").rglob("*.wav"):
        other = (in_flac / path.relative_to(corpus)).with_suffix(".flac")
        other.parent.mkdir(parents=True, exist_ok=True)
        samples, rate = soundfile.read(path, dtype="int16")
        soundfile.write(other, samples, rate)
    shutil.copy(corpus / "veri_test2.txt", in_flac)
    expected = scores_of(verify(checkpoint=model))
    given = {"utterance_list": in_flac} if with_list else {}
    # The embeddings are kept by their files, so that these are new.
    found = scores_of(verify(checkpoint=model, data_folder=in_flac, **given))
    assert found == pytest.approx(expected, abs=1e-3)


def test_speakers_of_the_training_are_no_unseen_ones(
    verify, corpus, tmp_path, capsys
):
    trials = (corpus / "veri_test2.txt").read_text().split()
    speaker = trials[1].split("/")[0]
    model = tmp_path / "model"
    write_model_folder(
        model,
        small_network(),
        title="trained on a speaker of the test",
        class_weights=torch.ones(2, 16),
        speakers=[speaker, "another"],
    )
    verify(checkpoint=model)
    assert (
        f"1 of the {SPEAKERS} speakers were in the" in capsys.readouterr().out
    )


def test_the_script_verifies(corpus, model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = [
        str(HPARAMS),
        f"--data_folder={corpus}",
        f"--checkpoint={model}",
        "--output_folder=results",
        "--device=cpu",
    ]
    monkeypatch.setattr(sys, "argv", ["script", *arguments])
    runpy.run_path(verification.__file__, run_name="__main__")
    shown = capsys.readouterr().out.splitlines()
    assert shown[1].startswith("veri_test2  cosine ")
    assert (tmp_path / "results" / "results.json").exists()


def test_the_script_ends_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["script", str(HPARAMS)])
    code = exit_code(runpy.run_path, verification.__file__, None, "__main__")
    assert code == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    (line,) = shown.err.splitlines()
    assert re.match("error: data_folder: missing; .*make demo", line)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([HPARAMS], "error: data_folder: missing"),
        (["none.yaml"], "error: none.yaml: No such file"),
        ([], "error: .* a YAML file"),
    ],
)
def test_errors_of_users_are_printed_in_one_line(
    arguments, line, monkeypatch, capsys
):
    monkeypatch.setattr(sys, "argv", ["script", *map(str, arguments)])
    assert exit_code(main_with_one_line_errors, verification.main) == 1
    (printed,) = capsys.readouterr().err.splitlines()
    assert re.match(line, printed)


def test_a_bug_keeps_its_traceback():
    def main(arguments):
        raise AttributeError("a bug")

    with pytest.raises(AttributeError, match="a bug"):
        main_with_one_line_errors(main)
