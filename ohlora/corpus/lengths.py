"""How far down the hair reaches. One definition for the renderer's truth and for what is read off a mask."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ohlora.attributes import FaceClass

STRAY = 0.03  # of the width: hair of a row that covers less is strays, which at a glance have no length


def hair_length(masks: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Lower edge of the lowest row with hair over the height of the picture, [n] in 0..1.

    Single strands do not count: masks that a network draws have none of them, and with them hair that ends at
    the jaw counts as long.

    Args:
        masks: uint8 [n, h, w] of `FaceClass`.

    Returns:
        float64 [n]; NaN where there is no hair.
    """
    h, w = masks.shape[1:]
    covered = (masks == FaceClass.HAIR).sum(2) >= max(1, round(STRAY * w))
    lowest = h - np.argmax(covered[:, ::-1], axis=1)
    return np.where(covered.any(1), lowest / h, np.nan)
