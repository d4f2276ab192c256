"""Figures with what sampling alone could make of them: 95 % confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Z = NormalDist().inv_cdf(0.975)
RESAMPLES = 1000


@dataclass(frozen=True)
class Figure:
    """A measured value and its 95 % interval."""

    value: float
    low: float
    high: float
    count: int  # of what it was measured on


def share(hits: int, count: int) -> Figure:
    """A share with Wilson's score interval (Wilson 1927), which stays within 0 and 1; NaN of nothing.

    >>> share(10, 10)
    Figure(value=1.0, low=0.7224..., high=1.0, count=10)
    """
    if count == 0:
        return Figure(math.nan, math.nan, math.nan, 0)
    p, z2 = hits / count, Z * Z
    centre = (p + z2 / (2 * count)) / (1 + z2 / count)
    reach = Z * math.sqrt(p * (1 - p) / count + z2 / (4 * count * count)) / (1 + z2 / count)
    return Figure(p, max(0.0, centre - reach), min(1.0, centre + reach), count)


def bootstrap(
    statistic: Callable[[NDArray[np.intp]], float], count: int, seed: int = 0, resamples: int = RESAMPLES
) -> Figure:
    """Any statistic of rows with its percentile bootstrap interval (Efron 1979).

    Args:
        statistic: of the rows with these indices [n], which may repeat; may be NaN.
        count: rows.
        seed: of the resampling.
        resamples: how many.
    """
    if count == 0:
        return Figure(math.nan, math.nan, math.nan, 0)
    value = statistic(np.arange(count))
    rng = np.random.default_rng(seed)
    drawn = np.array([statistic(rng.integers(0, count, count)) for _ in range(resamples)])
    known = drawn[np.isfinite(drawn)]
    if not len(known):
        return Figure(value, math.nan, math.nan, count)
    low, high = np.percentile(known, [2.5, 97.5])
    return Figure(value, float(low), float(high), count)


def macro_f1(truth: Sequence[str], predicted: Sequence[str]) -> float:
    """Mean F1 over the classes that occur in either list; NaN of nothing.

    >>> macro_f1(["a", "a", "b"], ["a", "b", "b"])
    0.6666...
    """
    return macro_f1_of_codes(*codes(truth, predicted))


def codes(truth: Sequence[str], predicted: Sequence[str]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Two lists of classes as numbers from 0 on."""
    number = {name: i for i, name in enumerate(sorted({*truth, *predicted}))}
    return np.array([number[t] for t in truth], np.intp), np.array([number[p] for p in predicted], np.intp)


def macro_f1_of_codes(truth: NDArray[np.intp], predicted: NDArray[np.intp]) -> float:
    """`macro_f1` of `codes`."""
    if not len(truth):
        return math.nan
    size = int(max(truth.max(), predicted.max())) + 1
    hits = np.bincount(truth[truth == predicted], minlength=size)
    total = np.bincount(truth, minlength=size) + np.bincount(predicted, minlength=size)
    known = total > 0
    return float((2 * hits[known] / total[known]).mean())


def macro_f1_figure(truth: Sequence[str], predicted: Sequence[str]) -> Figure:
    """`macro_f1` with its bootstrap interval over rows."""
    t, p = codes(truth, predicted)
    return bootstrap(lambda i: macro_f1_of_codes(t[i], p[i]), len(t))


def pearson(x: NDArray[np.floating], y: NDArray[np.floating]) -> float:
    """Pearson's correlation; NaN where one side does not vary."""
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return math.nan
    return float(np.corrcoef(x, y)[0, 1])
