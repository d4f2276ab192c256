"""Drawn faces with known answers: ellipses for the parts, flat colours for the pixels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ohlora.attributes import FaceClass

Mask = NDArray[np.uint8]


def ellipse(
    mask: Mask, label: FaceClass, x: float, y: float, rx: float, ry: float, tilt: float = 0.0
) -> None:
    """Fill an ellipse into mask [h, w]; centre, radii and tilt in pixels and radians."""
    rows, columns = np.mgrid[: mask.shape[0], : mask.shape[1]] + 0.5
    dx, dy = columns - x, rows - y
    along, across = dx * np.cos(tilt) + dy * np.sin(tilt), dy * np.cos(tilt) - dx * np.sin(tilt)
    mask[(along / rx) ** 2 + (across / ry) ** 2 <= 1] = label


def face(
    size: int = 224,
    *,
    eyes: float = 0.4,  # height over width
    mouth: float = 0.3,  # inner mouth's half height, of the lips' half height
    nose: float = 0.0,  # offset to the image's right, in eye distances
    hair_to: float = 0.7,  # lowest hair row over the height
    tilt: float = 0.0,  # of the eyes, radians
) -> Mask:
    """One face [size, size]; `eyes` 0 leaves none."""
    s = size / 224
    mask = np.zeros((size, size), dtype=np.uint8)
    hair_rows = round(hair_to * size)
    mask[round(30 * s) : hair_rows, round(50 * s) : round(174 * s)] = FaceClass.HAIR
    ellipse(mask, FaceClass.CLOTHES, 112 * s, 235 * s, 50 * s, 45 * s)
    ellipse(mask, FaceClass.SKIN, 112 * s, 112 * s, 45 * s, 62 * s)
    for x, brow, eye in (
        (92, FaceClass.LEFT_BROW, FaceClass.LEFT_EYE),
        (132, FaceClass.RIGHT_BROW, FaceClass.RIGHT_EYE),
    ):
        ellipse(mask, brow, x * s, 84 * s, 12 * s, 2.5 * s)
        if eyes > 0:
            ellipse(mask, eye, x * s, 98 * s, 13 * s, 13 * s * eyes, tilt)
    ellipse(mask, FaceClass.NOSE, (112 + nose * 40) * s, 116 * s, 8 * s, 16 * s)
    ellipse(mask, FaceClass.UPPER_LIP, 112 * s, 144 * s, 18 * s, 9 * s)
    lower = np.zeros_like(mask)
    ellipse(lower, FaceClass.LOWER_LIP, 112 * s, 144 * s, 18 * s, 9 * s)
    lower[: round(144 * s)] = 0
    mask[lower > 0] = FaceClass.LOWER_LIP
    if mouth > 0:
        ellipse(mask, FaceClass.INNER_MOUTH, 112 * s, 144 * s, 14 * s, 9 * s * mouth)
    return mask


def painted(mask: Mask, hair: int = 60, background: int = 200, rest: int = 150) -> NDArray[np.uint8]:
    """An image [h, w, 3] of flat greys."""
    grey = np.full(mask.shape, rest, dtype=np.uint8)
    grey[mask == FaceClass.HAIR] = hair
    grey[mask == FaceClass.BACKGROUND] = background
    return np.repeat(grey[..., None], 3, axis=2)
