import numpy as np
import pytest

from ohlora.evaluation.face import POSE_RANGE, _people, correlation, identity, moments


def test_moments_fill_the_range_and_follow_the_seed() -> None:
    points = moments(24, seed=0)
    assert points.shape == (24, 3)
    np.testing.assert_array_equal(points, moments(24, seed=0))
    assert not np.array_equal(points, moments(24, seed=1))
    assert points[:, :2].min() >= 0
    assert points[:, :2].max() <= 1
    assert np.abs(points[:, 2]).max() <= POSE_RANGE
    for column in range(3):  # each quarter of each range is visited
        edges = np.quantile([points[:, column].min(), points[:, column].max()], [0, 0.25, 0.5, 0.75, 1])
        assert (np.histogram(points[:, column], edges)[0] > 2).all()


def test_a_generator_that_obeys_scores_one_and_one_that_ignores_scores_zero() -> None:
    asked = moments(32, seed=0).reshape(4, 8, 3)
    good = _people(asked, 0.5 * asked)
    assert good["eyes_correlation"] == pytest.approx(1)
    assert good["pose_correlation_p10"] == pytest.approx(1)
    assert good["pose_mae"] == pytest.approx(0.5 * np.abs(asked[..., 2]).mean())
    ignored = _people(asked, np.full_like(asked, 0.4))
    assert ignored["eyes_correlation"] == 0
    assert ignored["mouth_correlation_p50"] == 0


def test_one_disobedient_person_shows_in_the_tenth_percentile() -> None:
    asked = moments(32, seed=0).reshape(4, 8, 3)
    seen = asked.copy()
    seen[0] = -seen[0]
    figures = _people(asked, seen)
    assert figures["eyes_correlation_p50"] == pytest.approx(1)
    assert figures["eyes_correlation_p10"] < 0.5


def test_correlation_sign() -> None:
    x = np.arange(5.0)
    assert correlation(x, -x) == pytest.approx(-1)


def test_identity_by_hand() -> None:
    vectors = np.array([[[1.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [0.0, 1.0]]])
    assert identity(vectors) == {"identity_within": 1.0, "identity_between": 0.0, "identity_margin": 1.0}
