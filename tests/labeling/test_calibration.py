from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ohlora.attributes import ATTRIBUTE_NAMES, CONDITION_NAMES
from ohlora.labeling.calibration import Calibration, CalibrationError, fit, fit_curve

finite = st.floats(-100, 100, width=32)


@settings(max_examples=60)
@given(st.lists(st.tuples(finite, finite), min_size=3, max_size=60))
def test_curves_never_fall_and_stay_within_the_truth(pairs: list[tuple[float, float]]) -> None:
    x, y = (np.array(values, dtype=np.float32) for values in zip(*pairs, strict=True))
    curve = fit_curve(x, y)
    answer = curve(np.linspace(-120, 120, 200).astype(np.float32))
    assert (np.diff(answer) >= -1e-4).all()
    assert answer.min() >= y.min() - 1e-3
    assert answer.max() <= y.max() + 1e-3


def test_a_curve_recovers_a_bent_relation() -> None:
    x = np.linspace(0, 1, 400, dtype=np.float32)
    curve = fit_curve(x, np.sqrt(x))
    assert np.abs(curve(x) - np.sqrt(x)).mean() < 0.02


def test_unknown_stays_unknown() -> None:
    x = np.linspace(0, 1, 20, dtype=np.float32)
    assert np.isnan(fit_curve(x, x)(np.array([np.nan, 0.5], np.float32))).tolist() == [True, False]


def test_too_little_truth_is_refused() -> None:
    unknown = np.full(9, np.nan, np.float32)
    unknown[:2] = 1.0
    with pytest.raises(CalibrationError, match="only 2"):
        fit_curve(unknown, np.ones(9, np.float32))


def columns(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=50).astype(np.float32) for name in CONDITION_NAMES}


def test_raw_values_are_all_nine_and_scores_are_standard() -> None:
    measured = columns()
    calibration = fit(measured, {name: 3 * measured[name] + 1 for name in ("eyes", "mouth", "pose")})
    raw = calibration.raw(measured)
    assert tuple(raw) == ATTRIBUTE_NAMES
    assert np.isnan(raw["gender"]).all()
    assert np.isnan(raw["quality"]).all()
    scores = calibration.scores(raw)
    assert set(scores) == set(CONDITION_NAMES)
    for values in scores.values():
        assert values.mean() == pytest.approx(0, abs=1e-4)
        assert values.std(ddof=1) == pytest.approx(1, abs=1e-3)
    assert np.corrcoef(raw["eyes"], measured["eyes"])[0, 1] > 0.95


def test_a_calibration_survives_its_file(tmp_path: Path) -> None:
    calibration = fit(columns(), columns(1))
    calibration.save(tmp_path)
    assert Calibration.load(tmp_path) == calibration


def test_a_missing_or_broken_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="ohlora stage labels"):
        Calibration.load(tmp_path)
    (tmp_path / "calibration.json").write_text("{}")
    with pytest.raises(CalibrationError, match="does not parse"):
        Calibration.load(tmp_path)
