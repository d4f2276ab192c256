"""Defects: pure, nothing at strength 0, more with strength, drawn as often as asked."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ohlora.corpus.defects import DEFECTS, LEAST_DRAWN, Defect, draw_defect
from ohlora.corpus.portraits import DEFECT_NAMES

KINDS = st.sampled_from(DEFECT_NAMES)


def picture(seed: int = 0, size: int = 48) -> np.ndarray:
    """A textured picture that is neither black nor white."""
    rng = np.random.default_rng(seed)
    rows = np.linspace(60, 150, size)[:, None, None]
    return np.clip(rows + rng.normal(0, 25, (size, size, 3)), 5, 220).astype(np.uint8)


def change(image: np.ndarray, kind: str, strength: float, seed: int = 3) -> float:
    degraded = DEFECTS[kind](image, strength, np.random.default_rng(seed))
    return float(np.abs(degraded.astype(int) - image).mean())


@settings(max_examples=25)
@given(KINDS, st.integers(0, 1 << 20), st.sampled_from([(1, 1), (7, 31), (40, 40), (33, 12)]))
def test_strength_zero_changes_nothing(kind: str, seed: int, size: tuple[int, int]) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (*size, 3)).astype(np.uint8)
    assert np.array_equal(DEFECTS[kind](image, 0.0, np.random.default_rng(seed)), image)


@settings(max_examples=40)
@given(KINDS, st.floats(0, 1), st.integers(0, 1 << 20))
def test_a_defect_is_a_pure_function(kind: str, strength: float, seed: int) -> None:
    image = picture(seed)
    before = image.copy()
    image.setflags(write=False)
    first, second = (DEFECTS[kind](image, strength, np.random.default_rng(seed)) for _ in range(2))
    assert np.array_equal(image, before)
    assert np.array_equal(first, second)
    assert first.shape == image.shape
    assert first.dtype == np.uint8
    assert not np.shares_memory(first, image)


@settings(max_examples=40)
@given(KINDS, st.floats(LEAST_DRAWN, 0.7), st.floats(0.15, 0.3), st.integers(0, 1 << 20))
def test_more_strength_changes_more(kind: str, strength: float, more: float, seed: int) -> None:
    image = picture(seed)
    weak, strong = change(image, kind, strength, seed), change(image, kind, strength + more, seed)
    assert 0.3 < weak < strong


@settings(max_examples=20)
@given(st.floats(LEAST_DRAWN, 1), st.integers(0, 1000))
def test_blur_is_at_the_top_only_and_removes_detail(strength: float, seed: int) -> None:
    image = picture(seed, 64)
    blurred = DEFECTS["blur"](image, strength, np.random.default_rng(seed))
    assert np.array_equal(blurred[48:], image[48:])
    assert np.diff(blurred[:8].astype(int), axis=1).std() < 0.8 * np.diff(image[:8].astype(int), axis=1).std()


@settings(max_examples=20)
@given(st.floats(0, 1), st.integers(0, 1000))
def test_exposure_darkens_nothing(strength: float, seed: int) -> None:
    image = picture(seed)
    assert (DEFECTS["exposure"](image, strength, np.random.default_rng(seed)) >= image).all()


def test_melting_leaves_part_of_the_picture_alone() -> None:
    image = picture(size=96)
    same = (DEFECTS["melt"](image, 0.6, np.random.default_rng(1)) == image).all(-1).mean()
    assert 0.3 < same < 0.97


@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
def test_draws_happen_as_often_as_asked(share: float) -> None:
    drawn = [draw_defect(share, np.random.default_rng([9, k])) for k in range(2000)]
    defects = [defect for defect in drawn if defect]
    assert abs(len(defects) / 2000 - share) < 0.02
    assert all(LEAST_DRAWN <= defect.strength <= 1 for defect in defects)
    if defects:
        counts = [sum(defect.name == name for defect in defects) for name in DEFECT_NAMES]
        assert min(counts) > 0.6 * len(defects) / len(DEFECT_NAMES)


def test_a_larger_share_keeps_the_defects_of_a_smaller() -> None:
    for k in range(200):
        few, many = (draw_defect(share, np.random.default_rng(k)) for share in (0.2, 0.6))
        assert few is None or few == many


def test_a_defect_repeats_itself() -> None:
    image = picture()
    defect = Defect("melt", 0.7, 5)
    assert np.array_equal(defect.applied(image), defect.applied(image))
    assert not np.array_equal(defect.applied(image), Defect("melt", 0.7, 6).applied(image))
