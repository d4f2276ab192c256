from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from ohlora.evaluation.intervals import bootstrap, macro_f1, pearson, share


def test_wilson_interval_of_a_known_case() -> None:
    """8 of 10: 0.4902 to 0.9433 (Brown, Cai and DasGupta 2001, table of Wilson intervals)."""
    figure = share(8, 10)
    assert (figure.value, figure.count) == (0.8, 10)
    assert figure.low == pytest.approx(0.4902, abs=1e-4)
    assert figure.high == pytest.approx(0.9433, abs=1e-4)


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_interval_holds_the_share(case: tuple[int, int]) -> None:
    figure = share(*case)
    assert 0 <= figure.low <= figure.value + 1e-12
    assert figure.value - 1e-12 <= figure.high <= 1


def test_nothing_has_no_share() -> None:
    assert math.isnan(share(0, 0).value)
    assert math.isnan(bootstrap(lambda i: float(len(i)), 0).value)


def test_bootstrap_is_seeded_and_covers_the_mean() -> None:
    values = np.random.default_rng(3).normal(2.0, 1.0, 200)

    def mean(i: np.ndarray) -> float:
        return float(values[i].mean())

    first = bootstrap(mean, 200, seed=1)
    assert first == bootstrap(mean, 200, seed=1)
    assert first.low < first.value < first.high
    assert first.high - first.low == pytest.approx(2 * 1.96 / np.sqrt(200), rel=0.25)


def test_bootstrap_leaves_out_what_is_undefined() -> None:
    figure = bootstrap(lambda i: math.nan, 5)
    assert math.isnan(figure.low)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abc")), min_size=1, max_size=30))
def test_macro_f1_is_that_of_scikit_learn(pairs: list[tuple[str, str]]) -> None:
    truth, predicted = [t for t, _ in pairs], [p for _, p in pairs]
    expected = f1_score(truth, predicted, average="macro", zero_division=0)
    assert macro_f1(truth, predicted) == pytest.approx(expected)


def test_correlation_is_undefined_without_variation() -> None:
    assert math.isnan(pearson(np.ones(4), np.arange(4.0)))
    assert pearson(np.arange(4.0), 3 - np.arange(4.0)) == pytest.approx(-1.0)
