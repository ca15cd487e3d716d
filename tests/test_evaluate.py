"""Evaluation in one's own code: the same scores as those of the scripts."""

import re
from pathlib import Path

import pytest
import speaker_verification_cosine
import torch
from test_verification_scores import LISTS, TOP, Corpus, written

from redimnet2_lobes import adaptive_s_norm, evaluate, extract_embeddings
from redimnet2_lobes.data.trial_files import read_trial_lists
from redimnet2_lobes.data.utterances import paths_of, read_utterances
from redimnet2_lobes.recipe.command_line import parse_command_line
from redimnet2_lobes.recipe.encoder import load_encoder
from redimnet2_lobes.scoring import report
from redimnet2_lobes.scoring.backends import CosineBackend
from redimnet2_lobes.scoring.evaluate import average_speakers

LIST = LISTS[0]
DOCS = Path(__file__).resolve().parent.parent / "docs"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return Corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def results(corpus, tmp_path, monkeypatch):
    """What the script writes of trials of single utterances."""
    for name in ("plot_det", "plot_score_histogram"):
        monkeypatch.setattr(report, name, lambda *args, **kwargs: None)
    (tmp_path / f"{LIST}.txt").write_text(
        "".join(
            f"{label} {corpus.models[model][0]} {test}\n"
            for label, model, test in corpus.trials[LIST]
        )
    )
    (tmp_path / "models.txt").write_text(
        "".join(f"{n} {n}\n" for names in corpus.test for n in names)
    )
    return corpus.run(
        speaker_verification_cosine.main,
        "verification_redimnet2.yaml",
        tmp_path,
        verification_file=f"[{tmp_path}/{LIST}.txt]",
        enrolment_file=tmp_path / "models.txt",
        cohort_list=corpus.folder / "cohort",
        cohort_top=TOP,
    )


@pytest.fixture
def embed(corpus):
    _, run_opts, _ = parse_command_line(["a.yaml", "--device=cpu"])
    encoder = load_encoder(str(corpus.model), None, run_opts)
    folder = corpus.folder / "embeddings"

    def embed(paths):
        return extract_embeddings(
            encoder.encode_batch, paths, folder, encoder.fingerprint
        )

    return embed


def test_adaptive_s_norm_gives_the_scores_of_the_script(
    corpus, results, embed, tmp_path
):
    (trial_list,) = read_trial_lists(
        str(tmp_path / f"{LIST}.txt"), corpus.folder / "test", tmp_path
    )
    of_cohort = read_utterances(corpus.folder / "cohort")
    cohort = average_speakers(embed(paths_of(of_cohort)).vectors, of_cohort)
    embeddings = embed(trial_list.paths)
    pairs = torch.stack(
        [embeddings.rows(pair) for _, *pair in trial_list.trials]
    )
    scores = adaptive_s_norm(embeddings.vectors, pairs, cohort, TOP)
    name = f"cosine_adaptive_s_norm_top_{TOP}"
    trials, expected = written(results, LIST, name)
    assert trials == trial_list.trials
    assert scores.tolist() == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_evaluate_gives_the_scores_of_the_script(
    corpus, results, embed, tmp_path
):
    lists = read_trial_lists(
        str(tmp_path / f"{LIST}.txt"), corpus.folder / "test", tmp_path
    )
    found, trained = evaluate(
        {"cosine": CosineBackend()},
        lists,
        [],
        {},
        embed,
        read_utterances(corpus.folder / "cohort"),
        cohort_top=TOP,
        score_norms=["adaptive_s"],
    )
    assert trained == {}
    names = ("cosine", f"cosine_adaptive_s_norm_top_{TOP}")
    for result, name in zip(found, names, strict=True):
        _, expected = written(results, LIST, name)
        assert result.scores.tolist() == pytest.approx(expected, rel=1e-7)


def test_the_example_of_the_docs():
    page = (DOCS / "scoring.md").read_text()
    (block,) = re.findall(
        r"^```python\n(.*?adaptive_s_norm.*?)^```", page, re.M | re.S
    )
    names = {}
    exec(block, names)
    units = torch.nn.functional.normalize(names["embeddings"])
    against = units @ torch.nn.functional.normalize(names["cohort"]).T
    top = against.topk(300).values
    deviations, means = torch.std_mean(top, dim=1)
    pairs = names["pairs"]
    cosines = (units @ units.T)[pairs[:, 0], pairs[:, 1]].unsqueeze(1)
    expected = ((cosines - means[pairs]) / deviations[pairs]).mean(dim=1)
    torch.testing.assert_close(names["scores"], expected)
