"""Adaptive augmentation of what a discriminator sees (Karras et al. 2020, arXiv:2006.06676), in short.

Real and drawn pictures are changed alike, each change with a probability that follows how sure the
discriminator is of real pictures: few portraits then do not make it learn them by heart, and as long as the
probability is well below 1 the generator does not draw the changes.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

ROTATION = 8.0  # degrees, largest
SHIFT = 0.06  # share of the side, largest
ZOOM = 0.08  # deviation of the log scale
BRIGHTNESS = 0.1  # deviation, of pixels in [-1, 1]
CONTRAST = 0.15  # deviation of the log factor
SATURATION = 0.3  # deviation of the log factor
MOST = 0.85  # probability above which changes would leak into the drawn pictures


def augment(images: Tensor, probability: float, rng: np.random.Generator, flips: bool = True) -> Tensor:
    """Flip, move and tint pictures.

    Args:
        images: float32 [n, 3, r, r].
        probability: of each of the changes, for each picture on its own.
        rng: draws them.
        flips: mirror pictures; off where labels say left from right.

    Returns:
        float32 [n, 3, r, r]; differentiable.
    """
    if probability <= 0:
        return images
    n = len(images)

    def lucky() -> NDArray[np.bool_]:
        return rng.random(n) < probability

    def column(values: NDArray[np.floating]) -> Tensor:
        return torch.from_numpy(values.astype(np.float32)).to(images.device).view(n, 1, 1, 1)

    if flips:
        mirrored = torch.from_numpy(lucky() & (rng.random(n) < 0.5)).to(images.device)
        images = torch.where(mirrored.view(n, 1, 1, 1), images.flip(3), images)
    moved = lucky()
    angle = np.where(moved, rng.uniform(-ROTATION, ROTATION, n), 0) * math.pi / 180
    scale = np.where(moved, np.exp(rng.normal(0, ZOOM, n)), 1)
    shift = np.where(moved[:, None], rng.uniform(-SHIFT, SHIFT, (n, 2)), 0) * 2
    if moved.any():
        cos, sin = np.cos(angle) / scale, np.sin(angle) / scale
        rows = np.stack([np.stack([cos, -sin, shift[:, 0]], 1), np.stack([sin, cos, shift[:, 1]], 1)], 1)
        matrix = torch.from_numpy(rows.astype(np.float32)).to(images.device)
        where = F.affine_grid(matrix, list(images.shape), align_corners=False)
        images = F.grid_sample(images, where, padding_mode="reflection", align_corners=False)
    tinted = lucky()
    brightness = column(np.where(tinted, rng.normal(0, BRIGHTNESS, n), 0))
    contrast = column(np.where(tinted, np.exp(rng.normal(0, CONTRAST, n)), 1))
    saturation = column(np.where(tinted, np.exp(rng.normal(0, SATURATION, n)), 1))
    gray = images.mean(1, keepdim=True)
    return (gray + (images - gray) * saturation) * contrast + brightness


def adapted(probability: float, sureness: float, target: float, images: int, span: int) -> float:
    """The next probability.

    Args:
        probability: so far.
        sureness: mean sign of the discriminator's logits of real pictures, -1..1.
        target: what that is to be; 0 turns augmentation off.
        images: real pictures since the last change.
        span: pictures over which the probability may go from 0 to 1.
    """
    if target == 0:
        return 0.0
    step = math.copysign(images / span, sureness - target) if sureness != target else 0.0
    return min(max(probability + step, 0.0), MOST)
