import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ohlora.attributes import FaceClass
from ohlora.corpus.lengths import hair_length


def bob(size: int, last_row: int) -> np.ndarray:
    """A mask with hair over a third of the width down to a row."""
    mask = np.zeros((size, size), np.uint8)
    mask[: last_row + 1, : size // 3] = FaceClass.HAIR
    return mask


@given(st.integers(0, 63), st.sampled_from([64, 128, 256]))
def test_a_length_is_the_lower_edge_of_the_hair_at_any_size(row: int, size: int) -> None:
    last = (row + 1) * size // 64 - 1
    assert hair_length(bob(size, last)[None])[0] == pytest.approx((row + 1) / 64)


def test_single_strands_below_the_hair_have_no_length() -> None:
    mask = bob(256, 127)
    mask[:, 40:44] = FaceClass.HAIR  # two strands down to the edge, 6 of 256 pixels
    mask[:, 70:72] = FaceClass.HAIR
    assert hair_length(mask[None])[0] == 0.5
    mask[:, 72:76] = FaceClass.HAIR
    assert hair_length(mask[None])[0] == 1


def test_no_hair_has_no_length() -> None:
    masks = np.stack([bob(64, 10), np.full((64, 64), FaceClass.SKIN, np.uint8)])
    assert np.isnan(hair_length(masks)).tolist() == [False, True]
