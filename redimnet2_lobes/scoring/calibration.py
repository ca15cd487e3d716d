"""Calibration: from scores to log-likelihood ratios.

Logistic regression on the score and, if wanted, on measures of the quality of
both utterances, trained on trials apart from those that it is applied to.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import json
import os
import sys
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import minimize

from redimnet2_lobes.files.atomic import write_text
from redimnet2_lobes.files.error_lines import one_line
from redimnet2_lobes.files.json_files import read_json
from redimnet2_lobes.files.settings import require_number

# Keeps weights finite where trials can be told apart without an error.
PENALTY = 1e-6


def quality_measures(**measures: tuple[torch.Tensor, torch.Tensor]) -> dict:
    """Measures of both utterances of each trial as features of the trial.

    Each has values for the enrolment and for the test utterance, [trials] each.
    It gives the smaller and the larger of the two, so that it does not matter
    which utterance enrols.

    Example
    -------
    >>> enrolment, test = torch.tensor([1.0, 4.0]), torch.tensor([3.0, 2.0])
    >>> quality_measures(duration=(enrolment, test))
    {'lower duration': tensor([1., 2.]), 'higher duration': tensor([3., 4.])}
    """
    features = {}
    for measure, (enrolment, test) in measures.items():
        features[f"lower {measure}"] = torch.minimum(enrolment, test)
        features[f"higher {measure}"] = torch.maximum(enrolment, test)
    return features


class Calibration(NamedTuple):
    """A weighted sum of features that is a log-likelihood ratio.

    Example
    -------
    >>> calibration = Calibration(-2.0, {"score": 10.0})
    >>> calibration({"score": torch.tensor([0.1, 0.5])})
    tensor([-1.,  3.])
    """

    offset: float
    weights: dict[str, float]  # of each feature; ``score`` is among them
    embedding_space: str | None = None  # of what was compared, once saved

    def __call__(self, features: dict[str, torch.Tensor]) -> torch.Tensor:
        """Log-likelihood ratios (natural logarithm) of trials [trials].

        From the values of each feature [trials]; ValueError if they are not
        those that it was trained on.
        """
        if set(features) != set(self.weights):
            raise ValueError(
                "calibration: it was trained on "
                f"{', '.join(sorted(self.weights))}, not on "
                f"{', '.join(sorted(features))}; set quality_measures alike"
            )
        terms = [self.weights[name] * features[name] for name in self.weights]
        return self.offset + torch.stack(terms).sum(dim=0)


def train_calibration(
    features: dict[str, torch.Tensor], labels: torch.Tensor
) -> Calibration:
    """Fits a calibration to trials, by the values of their features [trials].

    It minimizes their Cllr, the cost of log-likelihood ratios: Brümmer and du
    Preez, "Application-independent evaluation of speaker detection", Computer
    Speech & Language, 2006. Both kinds of trials count the same, whatever their
    numbers. Labels [trials] are True for trials of one speaker.

    Raises
    ------
    ValueError
        If there are not both kinds of trials, or a value is not finite.

    Example
    -------
    >>> scores = torch.tensor([0.1, 0.3, 0.2, 0.5, 0.7, 0.25])
    >>> labels = torch.tensor([False, False, False, True, True, True])
    >>> calibration = train_calibration({"score": scores}, labels)
    >>> (calibration({"score": scores}) > 0).tolist()
    [False, True, False, True, True, False]
    """
    labels = torch.as_tensor(labels)
    if labels.all() or not labels.any():
        raise ValueError(
            "calibration: the trials to train on are all of one kind, but both "
            "are needed"
        )
    for name, value in features.items():
        if not value.isfinite().all():
            raise ValueError(f"calibration: {name} is not finite in a trial")
    values = torch.stack([value.double() for value in features.values()], dim=1)
    # On one scale, so that the search is well conditioned. A feature that is
    # the same in all trials gets no weight.
    deviations, means = torch.std_mean(values, dim=0)
    deviations = deviations.where(deviations > 0, 1)
    scaled = (values - means) / deviations
    scaled = torch.cat([scaled, torch.ones_like(scaled[:, :1])], dim=1)
    # The sum of a trial's row is positive where the decision is right.
    signed = scaled * torch.where(labels, 1.0, -1.0).unsqueeze(1)
    shares = torch.where(
        labels, 0.5 / labels.sum(), 0.5 / (~labels).sum()
    ).double()

    def cost_and_gradient(weights: np.ndarray) -> tuple[float, np.ndarray]:
        point = torch.from_numpy(weights).requires_grad_()
        losses = torch.nn.functional.softplus(-(signed @ point))
        value = shares @ losses + PENALTY * point.square().sum()
        (gradient,) = torch.autograd.grad(value, point)
        return value.item(), gradient.numpy()

    found = minimize(cost_and_gradient, np.zeros(scaled.shape[1]), jac=True).x
    weights = torch.from_numpy(found[:-1]) / deviations
    offset = found[-1] - (weights @ means).item()
    named = zip(features, weights.tolist(), strict=True)
    return Calibration(offset, dict(named))


def held_out_ratios(
    features: dict[str, torch.Tensor],
    labels: torch.Tensor,
    speakers: torch.Tensor,
    folds: int = 5,
    seed: int = 0,
) -> torch.Tensor:
    """Log-likelihood ratios [trials] by calibrations that know neither speaker.

    The speakers are split into so many folds. The trials between two of these,
    or within one, get the ratios of a calibration that is trained on trials of
    the other folds alone. So their cost is what to expect of other people.

    Arguments
    ---------
    features, labels
        As for ``train_calibration``.
    speakers
        The numbers, from 0 on, of the two speakers of each trial [trials, 2].
    folds
        At least 3. It is a ValueError if those for the training of one have not
        both kinds of trials.
    seed
        Of the split.

    Example
    -------
    >>> speakers = torch.combinations(torch.arange(9), with_replacement=True)
    >>> labels = speakers[:, 0] == speakers[:, 1]
    >>> scores = labels + torch.linspace(0, 0.1, 45)
    >>> ratios = held_out_ratios({"score": scores}, labels, speakers, folds=3)
    >>> torch.equal(ratios > 0, labels)
    True
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(int(speakers.max()) + 1, generator=generator)
    fold_of = (order % folds)[speakers].sort(dim=1).values  # [trials, 2]
    ratios = torch.empty(len(labels), dtype=torch.float64)
    for pair in fold_of.unique(dim=0):
        tested = (fold_of == pair).all(dim=1)
        apart = ~torch.isin(fold_of, pair).any(dim=1)
        calibration = train_calibration(
            {name: values[apart] for name, values in features.items()},
            labels[apart],
        )
        ratios[tested] = calibration(
            {name: values[tested].double() for name, values in features.items()}
        )
    return ratios


def save_calibrations(
    calibrations: dict[str, Calibration], path: str | os.PathLike
) -> None:
    """Writes calibrations, by the names of back-ends, as JSON."""
    entries = {name: each._asdict() for name, each in calibrations.items()}
    write_text(path, json.dumps(entries, indent=2) + "\n")


def load_calibrations(path: str | os.PathLike) -> dict[str, Calibration]:
    """Reads what ``save_calibrations`` wrote; ValueError if it is damaged.

    Example
    -------
    >>> path = getfixture("tmp_path") / "calibration.json"
    >>> calibration = Calibration(-2.0, {"score": 10.0})
    >>> save_calibrations({"cosine": calibration}, path)
    >>> load_calibrations(path)["cosine"].weights
    {'score': 10.0}
    """
    try:
        return {
            name: calibration_from(entry)
            for name, entry in read_json(path).items()
        }
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise ValueError(
            f"calibration: {path} is not a calibration.json of a verification, "
            f"or it is damaged ({one_line(error)})"
        ) from error


def calibration_from(entry: dict) -> Calibration:
    """The calibration that a JSON object has the fields of.

    If it is anything else, it is one of the errors that say so: ValueError,
    TypeError, LookupError or AttributeError.

    Example
    -------
    >>> calibration_from({"offset": 1, "weights": {"score": 2}}).offset
    1.0
    """
    return Calibration(
        _finite("offset", entry["offset"]),
        {key: _finite(key, value) for key, value in entry["weights"].items()},
        _text(entry.get("embedding_space")),
    )


def _text(value: object) -> str | None:
    if not isinstance(value, str | None):
        raise ValueError(f"embedding_space is {value!r}")
    return value


def _finite(name: str, value: float) -> float:
    require_number(name, value, -sys.float_info.max, sys.float_info.max)
    return float(value)
