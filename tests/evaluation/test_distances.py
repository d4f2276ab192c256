import numpy as np
import pytest
from scipy.linalg import sqrtm

from ohlora.evaluation.distances import frechet_distance, kernel_distance, squared_mmd, standardised

RNG = np.random.default_rng(0)


def test_the_kernel_distance_is_the_sum_over_pairs() -> None:
    x, y = RNG.normal(size=(5, 3)), RNG.normal(0.5, 1, (4, 3))

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return float((a @ b / 3 + 1) ** 3)

    within_x = np.mean([kernel(x[i], x[j]) for i in range(5) for j in range(5) if i != j])
    within_y = np.mean([kernel(y[i], y[j]) for i in range(4) for j in range(4) if i != j])
    across = np.mean([kernel(a, b) for a in x for b in y])
    assert squared_mmd(x, y) == pytest.approx(within_x + within_y - 2 * across)


def test_equal_distributions_are_at_zero_on_average_and_others_are_not() -> None:
    x, y = RNG.normal(size=(400, 6)), RNG.normal(size=(400, 6))
    near, spread = kernel_distance(x, y)
    far, _ = kernel_distance(x, y + 1)
    assert abs(near) < 3 * spread / np.sqrt(50) + 0.02
    assert far > 10 * abs(near)
    assert kernel_distance(x, y, seed=3) == kernel_distance(x, y, seed=3)
    assert kernel_distance(x, y, seed=3) != kernel_distance(x, y, seed=4)


def test_the_frechet_distance_of_two_gaussians() -> None:
    x = RNG.normal(0, 1, (4000, 1))
    y = 2 * (x - x.mean()) / x.std() + 3 + x.mean()
    wanted = 9 + (2 - x.std()) ** 2
    assert frechet_distance(x, y) == pytest.approx(wanted, rel=0.01)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    a, b = RNG.normal(size=(50, 4)) @ RNG.normal(size=(4, 4)), RNG.normal(size=(60, 4)) + 0.3
    covariances = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    cross = np.trace(sqrtm(covariances[0] @ covariances[1]).real)
    direct = ((a.mean(0) - b.mean(0)) ** 2).sum() + sum(map(np.trace, covariances)) - 2 * cross
    assert frechet_distance(a, b) == pytest.approx(direct)


def test_features_that_never_vary_are_left_out() -> None:
    reference = np.stack([np.arange(4.0), np.full(4, 7.0)], 1)
    scaled = standardised(reference + np.array([0, 5]), reference)
    assert scaled[:, 0].std() == pytest.approx(1)
    assert not scaled[:, 1].any()


def test_too_few_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="two samples"):
        squared_mmd(np.ones((1, 2)), np.ones((5, 2)))
    with pytest.raises(ValueError, match="two samples"):
        frechet_distance(np.ones((1, 2)), np.ones((5, 2)))
