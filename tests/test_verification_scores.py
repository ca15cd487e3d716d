"""Scores and figures of small verifications, by slow and direct computations.

Embeddings are taken from SpeechBrain's interface, file by file; what is made of
them is computed again in loops over Python's floats, from the definitions.
"""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
import speaker_verification_cosine
import speaker_verification_plda
import torch
from scipy.stats import multivariate_normal
from speechbrain.inference.classifiers import EncoderClassifier
from speechbrain.processing.PLDA_LDA import LDA, PLDA, StatObject_SB

from redimnet2_lobes.data.audio import load_waveform
from redimnet2_lobes.models.front_end import SAMPLE_RATE, LogMel
from redimnet2_lobes.models.redimnet2 import ReDimNet2
from redimnet2_lobes.pretrained.model_folder import write_model_folder
from redimnet2_lobes.scoring import report

HPARAMS = Path(__file__).resolve().parent.parent / "hparams"
SIZE = 6  # of embeddings
TOP = 5
PRIORS = (0.01, 0.05)
LISTS = ("veri_test2", "another")


class Corpus:
    """Buzzes of a pitch for each speaker, in noise.

    What a run is given: the test of two lists, the calibration trials of two
    lists, all of models of one to three utterances; a cohort, and lists for the
    mean and for PLDA.
    """

    def __init__(self, folder):
        torch.manual_seed(0)
        self.folder = folder
        self.random = np.random.default_rng(0)
        self.test = self._speakers("test/wav/id", 4, lambda speaker: 4)
        self.calibration = self._speakers("more/wav/cal", 4, lambda speaker: 4)
        self.cohort = self._speakers("cohort/co", 6, lambda s: 1 + s % 3)
        self.of_mean = self._speakers("mean/of", 2, lambda speaker: 2)
        self.training = self._speakers("plda/tr", 6, lambda s: 2 + s % 3)
        self.models = {}
        self.trials = {
            **self._lists("test", self.test, LISTS),
            **self._lists("more", self.calibration, ("first", "second")),
        }
        (folder / "models.txt").write_text(
            "\n".join(" ".join([n, *u]) for n, u in self.models.items())
        )
        self.model = folder / "model"
        stage = {"blocks": 1, "expansion": 1, "reduction": 8}
        network = ReDimNet2(
            LogMel(),
            4,
            [{"frequency_stride": 2, "time_stride": 2, **stage}],
            embedding_size=SIZE,
            minimum_seconds=0.1,
        )
        write_model_folder(self.model, network, "A small network")
        encoder = EncoderClassifier.from_hparams(source=str(self.model))
        self.vectors, self.seconds = {}, {}
        for path in folder.rglob("*.wav"):
            name = str(path.relative_to(folder)).split("wav/")[-1]
            waveform = load_waveform(path)
            vector = encoder.encode_batch(waveform).flatten().tolist()
            self.vectors[name] = vector
            self.seconds[name] = len(waveform) / SAMPLE_RATE

    def _speakers(self, prefix, speakers, utterances_of):
        """Names of each speaker's utterances."""
        names = []
        for speaker in range(speakers):
            names.append([])
            for utterance in range(utterances_of(speaker)):
                samples = self.random.integers(2000, 6000)
                time = np.arange(samples) / SAMPLE_RATE
                pitch = 200 + 150 * speaker + self.random.normal(0, 60)
                wav = sum(np.sin(2 * np.pi * pitch * k * time) for k in (1, 2))
                wav = wav / 20 + self.random.normal(0, 0.05, samples)
                path = self.folder / f"{prefix}{speaker}/v/{utterance}.wav"
                path.parent.mkdir(parents=True, exist_ok=True)
                soundfile.write(path, wav, SAMPLE_RATE)
                name = str(path.relative_to(self.folder)).split("wav/")[-1]
                names[-1].append(name)
        return names

    def _lists(self, folder, speakers, names):
        trials = {}
        for size, name in enumerate(names, start=1):
            trials[name] = []
            for speaker, utterances in enumerate(speakers):
                for first in range(2):
                    model = f"{name}-{speaker}-{first}"
                    self.models[model] = utterances[first : first + size + 1]
                    trials[name] += [
                        (int(speaker == other), model, test)
                        for other in range(len(speakers))
                        for test in speakers[other][-2:]
                    ]
            (self.folder / folder / f"{name}.txt").write_text(
                "\n".join(" ".join(map(str, t)) for t in trials[name])
            )
        return trials

    def run(self, main, hparams, output_folder, **keys):
        keys = {
            "data_folder": self.folder / "test",
            "verification_file": f"[{self.paths('test', LISTS)}]",
            "enrolment_file": self.folder / "models.txt",
            "checkpoint": self.model,
            "output_folder": output_folder,
            "embeddings_folder": self.folder / "embeddings",
            "bootstrap_resamples": 2,
            "device": "cpu",
            **keys,
        }
        arguments = [f"--{key}={value}" for key, value in keys.items()]
        main([str(HPARAMS / hparams), *arguments])
        return output_folder

    def paths(self, folder, names):
        return ", ".join(str(self.folder / folder / f"{n}.txt") for n in names)

    def model_vector(self, model):
        return mean_vector([self.vectors[name] for name in self.models[model]])


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return Corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(autouse=True)
def curves(monkeypatch):
    """Plots nothing; the names of the curves of each plot instead."""
    curves = []
    monkeypatch.setattr(
        report,
        "plot_det",
        lambda of_backends, *others: curves.append(list(of_backends)),
    )
    monkeypatch.setattr(
        report,
        "plot_score_histogram",
        lambda *arguments, **options: None,
    )
    return curves


def mean(values):
    return math.fsum(values) / len(values)


def deviation(values, less=1):
    middle = mean(values)
    squares = math.fsum((value - middle) ** 2 for value in values)
    return math.sqrt(squares / (len(values) - less))


def mean_vector(vectors):
    return [mean(column) for column in zip(*vectors, strict=True)]


def cosine_without(subtracted):
    def cosine(one, other):
        one, other = (
            [x - y for x, y in zip(side, subtracted, strict=True)]
            for side in (one, other)
        )
        product = math.fsum(x * y for x, y in zip(one, other, strict=True))
        return product / math.hypot(*one) / math.hypot(*other)

    return cosine


def normalizations(score, cohort, enrolment, test, count=TOP):
    """The scores of a trial by the names that their files have."""
    plain = score(enrolment, test)
    sides = [
        [score(side, each) for each in cohort] for side in (enrolment, test)
    ]
    tops = [sorted(side)[-count:] for side in sides]
    z, t = ((plain - mean(side)) / deviation(side) for side in sides)
    adaptive = mean([(plain - mean(top)) / deviation(top) for top in tops])
    return {
        "": plain,
        "_z_norm": z,
        "_t_norm": t,
        "_s_norm": (z + t) / 2,
        f"_adaptive_s_norm_top_{count}": adaptive,
    }


def written(results, trial_list, name):
    """Trials and scores of a file."""
    text = (results / trial_list / f"{name}_scores.txt").read_text()
    rows = [line.split() for line in text.splitlines()]
    trials = [(int(label), model, test) for model, test, label, _ in rows]
    return trials, [float(row[3]) for row in rows]


def figures(results, trial_list, back_end):
    rows = json.loads((results / "results.json").read_text())["results"]
    (row,) = (
        row
        for row in rows
        if (row["list"], row["back_end"]) == (trial_list, back_end)
    )
    return row


def check_figures(found, labels, scores):
    """Error rates at each cut between two scores, and costs."""
    same = [s for label, s in zip(labels, scores, strict=True) if label]
    other = [s for label, s in zip(labels, scores, strict=True) if not label]
    assert found["trials"] == len(scores)
    assert found["same_speaker_trials"] == len(same)
    rates = [
        (
            sum(s <= cut for s in same) / len(same),
            sum(s > cut for s in other) / len(other),
        )
        for cut in sorted(scores)
    ]
    smallest = min(abs(miss - alarm) for miss, alarm in rates)
    closest = [
        100 * (miss + alarm) / 2
        for miss, alarm in rates
        if abs(miss - alarm) <= smallest + 1e-9
    ]
    assert any(found["eer_percent"] == pytest.approx(each) for each in closest)
    for prior in PRIORS:
        costs = [m + a * (1 - prior) / prior for m, a in rates]
        assert found[f"min_dcf_{prior}"] == pytest.approx(min(costs))
        cut = math.log((1 - prior) / prior)
        miss = sum(s <= cut for s in same) / len(same)
        alarm = sum(s > cut for s in other) / len(other)
        cost = miss + alarm * (1 - prior) / prior
        assert found[f"act_dcf_{prior}"] == pytest.approx(cost)
    cllr = (
        mean([math.log2(1 + math.exp(-s)) for s in same])
        + mean([math.log2(1 + math.exp(s)) for s in other])
    ) / 2
    assert found["cllr"] == pytest.approx(cllr, rel=1e-5)


def write_list(path, names, folder):
    """A list as a CSV file, or as a wav.scp that knows of no speakers."""
    if path.suffix == ".scp":
        path.write_text("".join(f"{n} {folder / n}\n" for n in names))
    else:
        rows = [f"{n},$data_root/{n},{n.split('/v/')[0]}" for n in names]
        path.write_text("\n".join(["ID,wav,spk_id", *rows]))
    return path


@pytest.mark.parametrize(
    ("entries", "top", "limit", "suffix"),
    [
        ("speakers", TOP, None, "csv"),
        ("speakers", 6, 1, "csv"),
        ("utterances", 9, None, "scp"),
    ],
)
def test_normalized_cosines(
    entries, top, limit, suffix, corpus, tmp_path, capsys
):
    lists = {
        name: write_list(tmp_path / f"{name}.{suffix}", sum(of, []), folder)
        for name, of, folder in (
            ("test", corpus.test, corpus.folder / "test" / "wav"),
            ("mean", corpus.of_mean, corpus.folder),
            ("cohort", corpus.cohort, corpus.folder),
        )
    }
    results = corpus.run(
        speaker_verification_cosine.main,
        "verification_redimnet2.yaml",
        tmp_path / "some" / "where",
        data_folder=corpus.folder / "test" / "wav",
        utterance_list=lists["test"],
        list_folder=corpus.folder,
        mean_list=lists["mean"],
        cohort_list=lists["cohort"],
        cohort_entries=entries,
        cohort_top=top,
        score_norms="[z, t, s, adaptive_s]",
        **({} if limit is None else {"utterances_per_speaker": limit}),
    )
    assert "warning" not in capsys.readouterr().out
    vectors = corpus.vectors
    cohort = [[vectors[n] for n in names[:limit]] for names in corpus.cohort]
    if entries == "speakers":
        cohort = [mean_vector(each) for each in cohort]
    else:
        cohort = sum(cohort, [])
    of_mean = [vectors[n] for names in corpus.of_mean for n in names[:limit]]
    cosine = cosine_without(mean_vector(of_mean))
    for trial_list in LISTS:
        expected = [
            normalizations(
                cosine, cohort, corpus.model_vector(model), vectors[test], top
            )
            for _, model, test in corpus.trials[trial_list]
        ]
        for suffix in expected[0]:
            trials, scores = written(results, trial_list, f"cosine{suffix}")
            assert trials == corpus.trials[trial_list]
            assert scores == pytest.approx(
                [each[suffix] for each in expected], rel=1e-3, abs=1e-3
            )
        trials, scores = written(results, trial_list, "cosine")
        found = figures(results, trial_list, "cosine")
        check_figures(found, [label for label, *_ in trials], scores)
        assert 0 < found["eer_percent"] < 50, "trials that tell nothing"


def test_each_normalization_alone(corpus, tmp_path):
    def run(**keys):
        return corpus.run(
            speaker_verification_cosine.main,
            "verification_redimnet2.yaml",
            tmp_path,
            cohort_list=corpus.folder / "cohort",
            **keys,
        )

    def scores(results):
        paths = results.glob(f"{LISTS[0]}/*_scores.txt")
        return {path.name: path.read_text() for path in paths}

    together = scores(run(score_norms="[z, t, s, adaptive_s]", cohort_top=TOP))
    for norm in "zts":  # of all of the cohort, however small
        name = f"cosine_{norm}_norm_scores.txt"
        alone = scores(run(score_norms=f"[{norm}]"))
        assert set(alone) == {"cosine_scores.txt", name}
        assert alone[name] == together[name]
    name = f"cosine_adaptive_s_norm_top_{TOP}_scores.txt"
    alone = scores(run(cohort_top=TOP))
    assert set(alone) == {"cosine_scores.txt", name}
    assert alone[name] == together[name]


def calibration_features(corpus, cohort, trials):
    """For each file name of scores the features of the trials."""
    cosine = cosine_without([0.0] * SIZE)
    features = {}
    for _, model, test in trials:
        sides = corpus.model_vector(model), corpus.vectors[test]
        measures = {
            "duration": [
                math.log(sum(corpus.seconds[name] for name in names))
                for names in (corpus.models[model], [test])
            ],
            "magnitude": [math.log(math.hypot(*side)) for side in sides],
            "cohort mean": [
                mean(sorted(cosine(side, each) for each in cohort)[-TOP:])
                for side in sides
            ],
        }
        row = {}
        for name, values in measures.items():
            row[f"lower {name}"] = min(values)
            row[f"higher {name}"] = max(values)
        scores = normalizations(cosine, cohort, *sides)
        for suffix, score in scores.items():
            features.setdefault(suffix, []).append({"score": score, **row})
    return features


@pytest.mark.parametrize(
    ("measures", "norm", "normalized"),
    [
        ("", "adaptive_s", f"adaptive s-norm (top {TOP})"),
        ("durations", "adaptive_s", f"adaptive s-norm (top {TOP})"),
        ("magnitudes, cohort_means", "s", "s-norm"),
    ],
)
def test_calibrated_scores(
    measures, norm, normalized, corpus, tmp_path, curves, capsys
):
    results = corpus.run(
        speaker_verification_cosine.main,
        "verification_redimnet2.yaml",
        tmp_path,
        cohort_list=corpus.folder / "cohort",
        cohort_top=TOP,
        calibration_trials=f"[{corpus.paths('more', ('first', 'second'))}]",
        calibration_folder=corpus.folder / "more",
        quality_measures=f"[{measures}]",
        score_norms=f"[{norm}]",
    )
    assert "warning" not in capsys.readouterr().out
    cohort = [
        mean_vector([corpus.vectors[name] for name in names])
        for names in corpus.cohort
    ]
    calibrations = json.loads((results / "calibration.json").read_text())
    trained_on = corpus.trials["first"] + corpus.trials["second"]
    training = calibration_features(corpus, cohort, trained_on)
    tested = {
        trial_list: calibration_features(
            corpus, cohort, corpus.trials[trial_list]
        )
        for trial_list in LISTS
    }
    names = ["cosine", f"cosine, {normalized}"]
    assert list(calibrations) == names
    # Without a measure the order of the trials stays, and so the curve.
    kinds = ("", ", calibrated") if measures else ("",)
    assert curves == [[n + kind for n in names for kind in kinds]] * 2
    suffixes = ("", f"_adaptive_s_norm_top_{TOP}")
    if norm == "s":
        suffixes = ("", "_s_norm")
    for suffix, (name, calibration) in zip(
        suffixes, calibrations.items(), strict=True
    ):
        offset, weights = calibration["offset"], calibration["weights"]
        assert set(weights) == {
            "score",
            *(
                f"{side} {measure.strip().removesuffix('s').replace('_', ' ')}"
                for measure in filter(None, measures.split(","))
                for side in ("lower", "higher")
            ),
        }

        def ratio(features, offset=offset, weights=weights):
            products = [weights[key] * features[key] for key in weights]
            return offset + sum(products)

        # Cllr of the trials that it was trained on is at its minimum: it does
        # not change to first order with any weight nor with the offset.
        slopes = []
        for features, (label, *_) in zip(
            training[suffix], trained_on, strict=True
        ):
            sign = 1 if label else -1
            count = sum(each[0] == label for each in trained_on)
            slopes.append(
                -sign / (1 + math.exp(sign * ratio(features))) / count
            )
        assert sum(slopes) == pytest.approx(0, abs=2e-3)
        for key in weights:
            values = [features[key] for features in training[suffix]]
            products = [s * v for s, v in zip(slopes, values, strict=True)]
            slope = sum(products) / deviation(values, less=0)
            assert slope == pytest.approx(0, abs=2e-3)
        for trial_list in LISTS:
            trials, scores = written(
                results, trial_list, f"cosine{suffix}_calibrated"
            )
            assert trials == corpus.trials[trial_list]
            assert scores == pytest.approx(
                [ratio(each) for each in tested[trial_list][suffix]],
                rel=2e-3,
                abs=2e-3,
            )
            found = figures(results, trial_list, f"{name}, calibrated")
            check_figures(found, [label for label, *_ in trials], scores)


def log_ratio(backend):
    """The log-likelihood ratio of PLDA from three normal densities."""
    mean, lda, center, F, Sigma = (
        backend[name] for name in ("mean", "lda", "plda_mean", "F", "Sigma")
    )
    between = F @ F.T
    total = between + Sigma
    same = np.block([[total, between], [between, total]])
    of_one = multivariate_normal(cov=total)
    of_pair = multivariate_normal(cov=same)

    def projected(vector):
        vector = (np.array(vector) - mean) @ lda
        return vector / np.sqrt(vector @ vector) - center

    def score(enrolment, test):
        one, other = projected(enrolment), projected(test)
        return (
            of_pair.logpdf(np.concatenate([one, other]))
            - of_one.logpdf(one)
            - of_one.logpdf(other)
        )

    return score


def train_by_speechbrain(corpus, dimension, rank, iterations):
    names = [name for names in corpus.training for name in names]
    speakers = [name.split("/")[1] for name in names]
    segments = np.array(names, dtype="|O")
    statistics = StatObject_SB(
        np.array(speakers, dtype="|O"),
        segments,
        segments,
        segments,
        np.ones((len(names), 1)),
        np.array([corpus.vectors[name] for name in names]),
    )
    mean = statistics.get_mean_stat1()
    statistics.center_stat1(mean)
    lda, plda = LDA(), PLDA(rank_f=rank, nb_iter=iterations)
    statistics = lda.do_lda(statistics, dimension)
    statistics.norm_stat1()
    plda.plda(statistics)
    return {
        "mean": mean,
        "lda": lda.transform_mat,
        "plda_mean": plda.mean,
        "F": plda.F,
        "Sigma": plda.Sigma,
    }


def test_scores_of_plda(corpus, tmp_path):
    given = {
        "cohort_list": corpus.folder / "cohort",
        "cohort_top": TOP,
        "score_norms": "[z, t, s, adaptive_s]",
    }
    results = corpus.run(
        speaker_verification_plda.main,
        "verification_plda_redimnet2.yaml",
        tmp_path / "trained",
        train_list=corpus.folder / "plda",
        lda_dimension=4,
        plda_rank=2,
        plda_iterations=1,
        **given,
    )
    cohort = [
        mean_vector([corpus.vectors[name] for name in names])
        for names in corpus.cohort
    ]
    direct = log_ratio(train_by_speechbrain(corpus, 4, 2, 1))
    with np.load(results / "plda.npz") as arrays:
        saved = log_ratio(dict(arrays))
    cosine = cosine_without([0.0] * SIZE)
    for trial_list in LISTS:
        for back_end, score in (
            ("plda", saved),
            ("plda", direct),
            ("cosine", cosine),
        ):
            expected = [
                normalizations(
                    score,
                    cohort,
                    corpus.model_vector(model),
                    corpus.vectors[test],
                )
                for _, model, test in corpus.trials[trial_list]
            ]
            for suffix in expected[0]:
                trials, scores = written(
                    results, trial_list, f"{back_end}{suffix}"
                )
                assert trials == corpus.trials[trial_list]
                assert scores == pytest.approx(
                    [each[suffix] for each in expected], rel=2e-3, abs=2e-3
                )
    again = corpus.run(
        speaker_verification_plda.main,
        "verification_plda_redimnet2.yaml",
        tmp_path / "again",
        plda_file=results / "plda.npz",
        **given,
    )
    for trial_list in LISTS:
        assert written(again, trial_list, "plda") == written(
            results, trial_list, "plda"
        )
