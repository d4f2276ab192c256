from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit
from sklearn.metrics import brier_score_loss, roc_auc_score

from ohlora.labeling.reliability import (
    Scaling,
    area_under_roc,
    brier_score,
    calibration_error,
    fit_scaling,
    plot,
    reliability,
)


def drawn(count: int = 4000, slope: float = 1.0, bias: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, count)
    return logits, (rng.random(count) < expit(slope * logits + bias)).astype(np.float64)


def test_scores_agree_with_scikit_learn() -> None:
    logits, labels = drawn(300)
    rounded = logits.round()  # ties
    assert area_under_roc(rounded, labels) == pytest.approx(roc_auc_score(labels, rounded))
    assert brier_score(expit(logits), labels) == pytest.approx(brier_score_loss(labels, expit(logits)))
    assert np.isnan(area_under_roc(logits, np.ones(300)))


def test_scaling_finds_how_overconfident_a_network_is() -> None:
    logits, labels = drawn()
    scaling = fit_scaling(4 * logits, labels)
    assert scaling.slope == pytest.approx(0.25, rel=0.1)
    assert scaling.bias == pytest.approx(0, abs=0.1)
    before, after = expit(4 * logits), scaling(4 * logits)
    assert calibration_error(after, labels) < 0.03 < calibration_error(before, labels)
    assert brier_score(after, labels) < brier_score(before, labels)


def test_scaling_takes_both_classes_for_equally_likely() -> None:
    logits, labels = drawn()
    kept = (labels == 1) | (np.arange(len(labels)) % 5 == 0)
    assert fit_scaling(logits[kept], labels[kept]).bias == pytest.approx(0, abs=0.2)


def test_scaling_stays_finite_where_classes_separate_and_never_inverts() -> None:
    logits = np.array([-3.0, -2.0, 2.0, 3.0])
    labels = np.array([0.0, 0.0, 1.0, 1.0])
    sure = fit_scaling(logits, labels)
    assert 0 < sure.slope < 10
    assert sure(logits)[-1] < 1
    assert fit_scaling(logits, 1 - labels).slope > 0


def test_scaling_needs_both_classes() -> None:
    with pytest.raises(ValueError, match="both classes"):
        fit_scaling(np.zeros(3), np.ones(3))


def test_reliability_counts_every_prediction_once() -> None:
    probabilities = np.array([0.0, 0.05, 0.55, 1.0])
    labels = np.array([0.0, 1.0, 1.0, 1.0])
    mean, share, count = reliability(probabilities, labels)
    assert count.tolist() == [2, 0, 0, 0, 0, 1, 0, 0, 0, 1]
    assert share[0] == 0.5
    assert mean[0] == pytest.approx(0.025)
    assert calibration_error(probabilities, labels) == pytest.approx((2 * 0.475 + 0.45 + 0) / 4)


def test_the_plot_is_a_picture(tmp_path: Path) -> None:
    logits, labels = drawn(100)
    plot({"gender": {"as trained": (expit(logits), labels)}}, tmp_path / "r.png")
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")
    assert Scaling()(np.zeros(2)).tolist() == [0.5, 0.5]
