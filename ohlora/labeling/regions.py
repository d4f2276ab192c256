"""Regions of a mask as numbers: moments of the small face parts and histograms of brightness.

Everything is computed for a whole batch at once from the few pixels that matter: a mask of 224² has some
2,000 pixels of eyes, brows, nose and mouth, and gathering those is far cheaper than one boolean image per
class.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ohlora.attributes import FaceClass

Masks = NDArray[np.uint8]  # [n, h, w] of FaceClass
Images = NDArray[np.uint8]  # [n, h, w, 3] RGB
Floats = NDArray[np.float64]

FIRST_PART, LAST_PART = FaceClass.LEFT_BROW, FaceClass.LOWER_LIP
LEVELS = 3 * 255 + 1  # of the sum of red, green and blue
STRAY_DISTANCE = 9.0  # squared, in standard deviations: the edge of a filled ellipse lies at 4, of a bar at 6
STRAY_ROUNDS = 2


@dataclass(frozen=True)
class Moments:
    """Zeroth to second moments of one region in each mask, of pixels as unit squares; NaN where empty."""

    area: Floats  # [n] pixels, 0 where empty
    x: Floats  # [n] centroid, pixels from the left edge of the image
    y: Floats  # [n] centroid, pixels from the top
    xx: Floats  # [n] variance along x, pixels²
    xy: Floats  # [n] covariance
    yy: Floats  # [n] variance along y

    @property
    def tilt(self) -> Floats:
        """Angle of the long axis against the x axis, radians in (-pi/2, pi/2], positive downwards."""
        return 0.5 * np.arctan2(2 * self.xy, self.xx - self.yy)

    @property
    def length(self) -> Floats:
        """Extent along the long axis of the ellipse with these moments, pixels."""
        return 4 * np.sqrt(self._half_trace + self._root)

    @property
    def thickness(self) -> Floats:
        """Extent across the long axis of the ellipse with these moments, pixels."""
        return 4 * np.sqrt(np.maximum(self._half_trace - self._root, 0))

    @property
    def _half_trace(self) -> Floats:
        return (self.xx + self.yy) / 2

    @property
    def _root(self) -> Floats:
        return np.sqrt(((self.xx - self.yy) / 2) ** 2 + self.xy**2)


class Parts:
    """Pixels of brows, eyes, nose and mouth of a batch of masks, and moments of any union of them."""

    def __init__(self, masks: Masks) -> None:
        n, h, w = masks.shape
        self.count = n
        flat = masks.reshape(-1)
        # One comparison on wrapped unsigned values keeps classes FIRST_PART..LAST_PART only.
        index = np.flatnonzero((flat - np.uint8(FIRST_PART)) <= LAST_PART - FIRST_PART)
        self._label = flat[index]
        self._image = (index // (h * w)).astype(np.int32)
        rest = (index % (h * w)).astype(np.int32)
        self._y = (rest // w).astype(np.float64) + 0.5
        self._x = (rest % w).astype(np.float64) + 0.5

    def pixels(self, *classes: FaceClass) -> tuple[NDArray[np.int32], Floats, Floats]:
        """Image index, x and y of the pixels of the named classes, each [k]."""
        chosen = np.isin(self._label, classes)
        return self._image[chosen], self._x[chosen], self._y[chosen]

    def all_moments(self, *classes: FaceClass) -> Moments:
        """Moments of every pixel of a union of classes."""
        image, x, y = self.pixels(*classes)
        return _moments(image, x, y, self.count)

    def moments(self, *classes: FaceClass) -> Moments:
        """Moments of a union of classes, without stray pixels far from the rest."""
        image, x, y = self.pixels(*classes)
        moments = _moments(image, x, y, self.count)
        for _ in range(STRAY_ROUNDS):
            near = _mahalanobis(moments, image, x, y) <= STRAY_DISTANCE
            if near.all():
                break
            image, x, y = image[near], x[near], y[near]
            moments = _moments(image, x, y, self.count)
        return moments


def _moments(image: NDArray[np.int32], x: Floats, y: Floats, count: int) -> Moments:
    area = np.bincount(image, minlength=count).astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean_x = np.bincount(image, x, count) / area
        mean_y = np.bincount(image, y, count) / area
        dx, dy = x - mean_x[image], y - mean_y[image]
        square = 1 / 12  # variance of a unit square
        return Moments(
            area=area,
            x=mean_x,
            y=mean_y,
            xx=np.bincount(image, dx * dx, count) / area + square,
            xy=np.bincount(image, dx * dy, count) / area,
            yy=np.bincount(image, dy * dy, count) / area + square,
        )


def _mahalanobis(m: Moments, image: NDArray[np.int32], x: Floats, y: Floats) -> Floats:
    dx, dy = x - m.x[image], y - m.y[image]
    determinant = (m.xx * m.yy - m.xy**2)[image]
    return (m.yy[image] * dx**2 - 2 * m.xy[image] * dx * dy + m.xx[image] * dy**2) / determinant


def median(counts: NDArray[np.int64]) -> Floats:
    """Median brightness (0..255), [n]; NaN where there is no pixel."""
    total = counts.sum(1)
    above = np.cumsum(counts, 1)
    low = np.argmax(above > ((total - 1) // 2)[:, None], axis=1)
    high = np.argmax(above > (total // 2)[:, None], axis=1)
    return np.where(total > 0, (low + high) / 6, np.nan)
