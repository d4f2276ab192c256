"""Can a probability be believed? Area under the ROC curve, Platt scaling, calibration error and its plot.

>>> labels = np.array([0, 0, 1, 1], dtype=np.float64)
>>> area_under_roc(np.array([0.1, 0.4, 0.35, 0.8]), labels)
0.75
>>> brier_score(np.array([0.0, 0.5, 1.0, 1.0]), labels)
0.0625
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from scipy.optimize import minimize
from scipy.special import expit
from scipy.stats import rankdata

Floats = NDArray[np.floating]

BINS = 10
LEAST_SLOPE = 1e-3  # a scaling never turns an order round


class Scaling(BaseModel):
    """Platt scaling: probability = sigmoid(slope * logit + bias)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    slope: float = 1.0
    bias: float = 0.0

    def __call__(self, logits: Floats) -> NDArray[np.float64]:
        """Probabilities of logits, same shape."""
        return np.asarray(expit(self.slope * logits.astype(np.float64) + self.bias))


def fit_scaling(logits: Floats, labels: Floats) -> Scaling:
    """Platt scaling (Platt 1999) of out-of-fold predictions, each class weighing the same.

    Platt's targets, a little inside 0 and 1, keep the slope finite where the classes separate. Equal weights
    keep the rarer class from being thought rare elsewhere too.

    Args:
        logits: [n].
        labels: [n], 0 or 1.

    Raises:
        ValueError: only one of the classes occurs.
    """
    positive = labels > 0.5
    counts = np.array([(~positive).sum(), positive.sum()], dtype=np.float64)
    if not counts.all():
        raise ValueError("a scaling needs examples of both classes")
    x = logits.astype(np.float64)
    targets = np.where(positive, (counts[1] + 1) / (counts[1] + 2), 1 / (counts[0] + 2))
    weights = np.where(positive, 0.5 / counts[1], 0.5 / counts[0])
    unit = max(float(x.std()), 1e-6)  # well conditioned for the optimiser, whatever the network's scale

    def loss(parameters: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        z = parameters[0] * x / unit + parameters[1]
        error = weights * (expit(z) - targets)
        value = weights * (np.logaddexp(0, z) - targets * z)
        return float(value.sum()), np.array([(error * x).sum() / unit, error.sum()])

    bounds = [(LEAST_SLOPE * unit, None), (None, None)]
    best = minimize(loss, np.array([unit, 0.0]), jac=True, method="L-BFGS-B", bounds=bounds).x
    return Scaling(slope=float(best[0] / unit), bias=float(best[1]))


def area_under_roc(scores: Floats, labels: Floats) -> float:
    """Probability that a random positive scores above a random negative, ties half; NaN without both.

    Args:
        scores: [n].
        labels: [n], 0 or 1.
    """
    positive = labels > 0.5
    many, few = int(positive.sum()), int((~positive).sum())
    if not many or not few:
        return float("nan")
    ranks = rankdata(scores)
    return float((ranks[positive].sum() - many * (many + 1) / 2) / (many * few))


def brier_score(probabilities: Floats, labels: Floats) -> float:
    """Mean squared difference of probabilities [n] and labels [n]; 0.25 is what a coin gets."""
    return float(np.mean((probabilities - labels) ** 2))


def reliability(
    probabilities: Floats, labels: Floats, bins: int = BINS
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Mean probability, share of positives and count in each of `bins` equal intervals of 0..1, [bins] each.

    NaN where an interval is empty.
    """
    where = np.clip((probabilities * bins).astype(int), 0, bins - 1)
    count = np.bincount(where, minlength=bins)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.bincount(where, probabilities, bins) / count
        share = np.bincount(where, labels, bins) / count
    return mean, share, count


def calibration_error(probabilities: Floats, labels: Floats, bins: int = BINS) -> float:
    """Expected calibration error (Naeini et al. 2015): mean |share - probability| over the intervals."""
    mean, share, count = reliability(probabilities, labels, bins)
    return float(np.nansum(np.abs(share - mean) * count) / max(count.sum(), 1))


def plot(curves: Mapping[str, Mapping[str, tuple[Floats, Floats]]], path: Path) -> None:
    """Write a PNG: one reliability plot per title, the distribution of the last curve below it.

    Args:
        curves: title -> name of a curve -> probabilities [n] and labels [n].
        path: where to write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # pyplot would touch global state
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(curves), 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = np.atleast_2d(figure.subplots(2, len(curves), height_ratios=(3, 1), sharex=True)).reshape(2, -1)
    for (title, named), (upper, lower) in zip(curves.items(), axes.T, strict=True):
        upper.plot([0, 1], [0, 1], color="#999999", linewidth=1, linestyle="--")
        for name, (probabilities, labels) in named.items():
            mean, share, _ = reliability(probabilities, labels)
            known = np.isfinite(mean)
            error = calibration_error(probabilities, labels)
            upper.plot(mean[known], share[known], marker="o", label=f"{name}, ECE {error:.3f}")
        upper.set_title(title)
        upper.set_ylabel("share that is")
        upper.legend(fontsize=8, loc="upper left")
        parts = [probabilities[labels < 0.5], probabilities[labels > 0.5]]
        lower.hist(parts, bins=np.linspace(0, 1, 21), stacked=True, label=["is not", "is"])
        lower.set_yscale("log")
        lower.set_xlabel("probability")
        lower.legend(fontsize=7)
    figure.savefig(path, dpi=90)
