"""The original's test: its labels, its six thresholds, its report."""

import numpy as np
import pytest

from ohlora.attributes import CONDITION_NAMES
from ohlora.evaluation.face import silently
from ohlora.evaluation.original_test import Agreement, agreement, grid, original_test
from ohlora.evaluation.units import Units
from tests.evaluation.fakes import FakeFace, read

# as in the corpus: mouth -1.2 and pose 3.6 lie outside, and so does eyes 1.8
UNITS = Units(
    mean=np.array([0.66, 0.3, -0.65, 70, 0.7, 113, 6]),
    std=np.array([0.28, 0.33, 12.7, 43, 0.24, 36, 4.8]),
    low=np.zeros(7),
    high=np.ones(7),
)
AT_THRESHOLDS = {
    "correlation": {"eyes": 0.77, "mouth": 0.85, "pose": 0.82},
    "mae": {"eyes": 1.0, "mouth": 0.6, "pose": 1.4},
}


def test_fifty_labels_with_all_others_at_zero() -> None:
    wishes = grid()
    assert wishes.shape == (50, 7)
    assert len(np.unique(wishes, axis=0)) == 50
    assert not wishes[:, 3:].any()
    assert set(wishes[:, 0]) == {-1.8, 1.8}
    assert set(wishes[:, 1]) == {-1.2, -0.6, 0, 0.8, 1.6}
    assert set(wishes[:, 2]) == {-1.2, 0, 1.2, 2.4, 3.6}


def test_exactly_the_thresholds_pass() -> None:
    assert Agreement(AT_THRESHOLDS["correlation"], AT_THRESHOLDS["mae"]).passes_original


@pytest.mark.parametrize("kind", ["correlation", "mae"])
@pytest.mark.parametrize("name", ["eyes", "mouth", "pose"])
def test_each_of_the_six_thresholds_decides(kind: str, name: str) -> None:
    figures = {key: dict(values) for key, values in AT_THRESHOLDS.items()}
    figures[kind][name] += -0.001 if kind == "correlation" else 0.001
    assert not Agreement(figures["correlation"], figures["mae"]).passes_original


def test_who_obeys_passes_and_clamped_wishes_are_counted() -> None:
    face = FakeFace()
    result = original_test(face, read, UNITS, [5, 6, 7], silently)
    assert face.drawn == 150
    assert face.seeds == [5, 6, 7]
    assert result.pass_share == 1
    for latent in result.latents:
        for name in ("eyes", "mouth", "pose"):
            assert latent.correlation[name] == pytest.approx(1, abs=1e-4)
            assert latent.mae[name] == pytest.approx(0, abs=1e-3)
    assert result.clamped == {"eyes": 25, "mouth": 10, "pose": 10}
    assert result.used["pose"][-1] == pytest.approx((35 + 0.65) / 12.7, abs=1e-4)
    assert result.used["mouth"][0] == pytest.approx(-0.3 / 0.33, abs=1e-4)
    figures = result.metrics()
    assert figures["original_test_pose_clamped_share"] == 0.2
    assert figures["original_test_pass_share"] == 1


def test_who_ignores_a_request_fails_and_the_best_is_one_that_passes() -> None:
    ignoring = original_test(FakeFace(ignores=("mouth",)), read, UNITS, [5], silently)
    assert ignoring.pass_share == 0
    assert ignoring.latents[0].correlation["mouth"] == 0
    result = original_test(FakeFace(rebels=frozenset({5, 7})), read, UNITS, [5, 6, 7], silently)
    assert [row["passes"] for row in result.table()] == [False, True, False]
    assert result.best == 1
    assert result.pass_share == pytest.approx(1 / 3)
    assert result.table()[0]["eyes_correlation"] == pytest.approx(-1, abs=1e-4)


def test_agreement_by_hand() -> None:
    asked = np.tile(np.array([[0.0], [1.0], [2.0]]), 7)
    found = agreement(asked, 0.5 * asked)
    assert set(found.correlation) == set(CONDITION_NAMES)
    assert found.correlation["eyes"] == pytest.approx(1)
    assert found.mae["eyes"] == pytest.approx(0.5)
