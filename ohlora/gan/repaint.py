"""Exact counterfactuals of colours: the same portrait before another background, or with other hair.

A renderer would take seconds for each; where the mask says what is hair and what is behind it, arithmetic on
the pixels gives the picture and, measured again, the truth. Without them a person's colours never change, and
the generator would take them from her latent instead of from the conditions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ohlora.attributes import CONDITION_NAMES
from ohlora.gan.walls import SURE, brightness, least_around, sure_walls

HAIR_COLOR, BACKGROUND_MEAN, BACKGROUND_STD = (
    CONDITION_NAMES.index(name) for name in ("hair_color", "background_mean", "background_std")
)
MOST_HAIR_GAIN = 2.2  # beyond it the noise of dark hair shows
LEAST_STD = 0.3  # grey levels: a wall flatter than this counts as this flat
MOST_CONTRAST = 4.0  # of the background against what it was
EDGE = 0.02  # a pixel whose neighbours differ by more belongs to an outline


@dataclass(frozen=True)
class Ranges:
    """What is drawn: lowest and highest grey level of hair, of the background, and of its deviation."""

    hair_color: tuple[float, float]
    background_mean: tuple[float, float]
    background_std: tuple[float, float]

    @classmethod
    def of(cls, conditions: np.ndarray) -> Ranges:
        """The middle 96 percent of conditions float [n, 7]."""
        low, high = np.percentile(conditions, [2, 98], axis=0)
        pairs = [(float(low[i]), float(high[i])) for i in (HAIR_COLOR, BACKGROUND_MEAN, BACKGROUND_STD)]
        return cls(*pairs)


def repaint_background(
    images: Tensor, behind: Tensor, raw: np.ndarray, ranges: Ranges, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Another brightness and contrast of what is behind; `raw` is changed with it.

    Args:
        images: float32 [n, 3, r, r] in [-1, 1].
        behind: share of background, float32 [n, r, r].
        raw: conditions of the portraits, float32 [n, 7].
        ranges: of the new values.
        rng: all randomness.

    Returns:
        The new images and their outlines bool [n, r, r], on which the old background still shows. A portrait
        with too little background comes back as it was, without an outline.
    """
    wanted = rng.uniform(*ranges.background_mean, len(raw))
    low, high = np.log(ranges.background_std)
    deviation = np.exp(rng.uniform(low, high, len(raw)))
    sure = sure_walls(behind)
    mean, std, enough = _measured(images, sure)
    contrast = _column(np.minimum(MOST_CONTRAST, deviation / np.maximum(std, LEAST_STD)), images)
    fresh = _column(wanted / 127.5 - 1, images) + (images - _column(mean / 127.5 - 1, images)) * contrast
    images, outline = _painted(images, fresh, behind, enough)
    new_mean, new_std, _ = _measured(images, sure)
    raw[enough, BACKGROUND_MEAN] += (new_mean - mean)[enough]
    raw[enough, BACKGROUND_STD] *= (new_std / np.maximum(std, LEAST_STD))[enough]
    return images, outline


def repaint_hair(
    images: Tensor, hair: Tensor, raw: np.ndarray, ranges: Ranges, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Lighter or darker hair; as `repaint_background`."""
    wanted = rng.uniform(*ranges.hair_color, len(raw))
    sure = hair >= SURE
    mean, _, enough = _measured(images, sure)
    gain = np.clip(wanted / np.maximum(mean, 1.0), 1 / MOST_HAIR_GAIN, MOST_HAIR_GAIN)
    images, outline = _painted(images, (images + 1) * _column(gain, images) - 1, hair, enough)
    raw[enough, HAIR_COLOR] *= (_measured(images, sure)[0] / np.maximum(mean, 1.0))[enough]
    return images, outline


def _column(values: np.ndarray, like: Tensor) -> Tensor:
    """float [n] to a tensor [n, 1, 1, 1] that goes with images."""
    return torch.from_numpy(values.astype(np.float32)).to(like.device)[:, None, None, None]


def _painted(images: Tensor, fresh: Tensor, share: Tensor, enough: np.ndarray) -> tuple[Tensor, Tensor]:
    """`fresh` where `share` says so, in the portraits that have `enough` of it, bool [n]; and its outline."""
    chosen = torch.from_numpy(enough).to(images.device)[:, None, None]
    return torch.lerp(images, fresh.clamp(-1, 1), (share * chosen)[:, None]), _outline(share) & chosen


def _measured(images: Tensor, where: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean and deviation of the brightness, float64 [n], and whether enough was measured, bool [n]."""
    found = brightness(images, where)
    values = torch.stack([found.mean, found.variance.sqrt(), found.known.float()]).cpu().double().numpy()
    return values[0], values[1], values[2] > 0


def _outline(share: Tensor) -> Tensor:
    return F.max_pool2d(share[:, None], 3, 1, 1)[:, 0] - least_around(share) > EDGE
