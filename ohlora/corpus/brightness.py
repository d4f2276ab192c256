"""How bright a part of a picture is, and what counts as its background.

Brightness is the mean of red, green and blue, 0..255. The background is measured in the upper half, away from
everything else: a mask of classes has no class for glasses, and a pixel beside a strand of hair shows some of
it; a few such pixels are a large deviation.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import minimum_filter

from ohlora.attributes import FaceClass

Images = NDArray[np.uint8]  # [n, h, w, 3]
Masks = NDArray[np.uint8]  # [n, h, w]
Floats = NDArray[np.float64]

LEVELS = 766  # sums of red, green and blue
REACH = 3 / 256  # of the height: what counts as background has nothing else this near
TRIM = 0.02  # share of the darkest and of the brightest pixels that do not count: glasses, stray hair
LEAST_BACKGROUND = 0.01  # of the upper half; less is no background that could be measured


def background_brightness(images: Images, masks: Masks) -> tuple[Floats, Floats]:
    """Mean and standard deviation of the background's brightness, [n] each.

    NaN where too little of it is seen.
    """
    h = masks.shape[1]
    window = 2 * round(REACH * h) + 1
    behind = (masks == FaceClass.BACKGROUND).view(np.uint8)
    region = minimum_filter(behind, (1, window, window), mode="nearest")[:, : h // 2].astype(bool)
    mean, std = trimmed_statistics(brightness_histograms(images[:, : h // 2], region), TRIM)
    hidden = region.mean((1, 2)) < LEAST_BACKGROUND
    return np.where(hidden, np.nan, mean), np.where(hidden, np.nan, std)


def brightness_histograms(images: Images, region: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Count of pixels at each sum of red, green and blue, [n, 766], over `region` [n, h, w] of `images`."""
    counts = np.zeros((len(images), LEVELS), dtype=np.int64)
    for i in range(len(images)):  # one image at a time stays in the cache
        pixels = images[i][region[i]]
        total = pixels[:, 0].astype(np.int64) + pixels[:, 1] + pixels[:, 2]
        counts[i] = np.bincount(total, minlength=LEVELS)
    return counts


def trimmed_statistics(counts: NDArray[np.int64], share: float) -> tuple[Floats, Floats]:
    """Mean and standard deviation of brightness (0..255) without a share of the darkest and of the brightest.

    Args:
        counts: [n, 766], see `brightness_histograms`.
        share: 0.05 drops `int(0.05 * pixels)` pixels at either end.

    Returns:
        Mean and population standard deviation, [n]; NaN where there is no pixel.
    """
    total = counts.sum(1)
    drop = (total * share).astype(np.int64)
    above = np.cumsum(counts, 1)
    inside = np.clip(above, drop[:, None], (total - drop)[:, None])
    kept = np.diff(inside, axis=1, prepend=drop[:, None])
    level = np.arange(counts.shape[1]) / 3
    with np.errstate(invalid="ignore", divide="ignore"):
        size = (total - 2 * drop).astype(np.float64)
        mean = kept @ level / size
        variance = kept @ level**2 / size - mean**2
    return mean, np.sqrt(np.maximum(variance, 0))
