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

HAIR_COLOR, BACKGROUND_MEAN, BACKGROUND_STD = (
    CONDITION_NAMES.index(name) for name in ("hair_color", "background_mean", "background_std")
)
SURE = 0.99  # share of a pixel from which it counts as hair or background
FEWEST = 24  # sure pixels that a measurement needs
MOST_HAIR_GAIN = 2.2  # beyond it the noise of dark hair shows
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
    image: Tensor, behind: Tensor, raw: np.ndarray, ranges: Ranges, rng: np.random.Generator
) -> tuple[Tensor, Tensor] | None:
    """Another brightness and contrast of what is behind; `raw` is changed with it.

    Args:
        image: float32 [3, r, r] in [-1, 1].
        behind: share of background, float32 [r, r].
        raw: conditions of the portrait, float32 [7].
        ranges: of the new values.
        rng: all randomness.

    Returns:
        The new image and its outline bool [r, r], on which the old background still shows; None where too
        little background is seen.
    """
    sure = (behind >= SURE) & (_least(behind) >= SURE)
    sure[len(sure) // 2 :] = False
    if int(sure.sum()) < FEWEST:
        return None
    mean, std = _measured(image, sure)
    wanted = rng.uniform(*ranges.background_mean)
    contrast = min(MOST_CONTRAST, np.exp(rng.uniform(*np.log(ranges.background_std))) / max(std, 0.3))
    fresh = (wanted / 127.5 - 1) + (image - (mean / 127.5 - 1)) * contrast
    image = torch.lerp(image, fresh.clamp(-1, 1), behind)
    new_mean, new_std = _measured(image, sure)
    raw[BACKGROUND_MEAN] += new_mean - mean
    raw[BACKGROUND_STD] *= new_std / max(std, 0.3)
    return image, _outline(behind)


def repaint_hair(
    image: Tensor, hair: Tensor, raw: np.ndarray, ranges: Ranges, rng: np.random.Generator
) -> tuple[Tensor, Tensor] | None:
    """Lighter or darker hair; as `repaint_background`."""
    sure = hair >= SURE
    if int(sure.sum()) < FEWEST:
        return None
    mean, _ = _measured(image, sure)
    gain = float(
        np.clip(rng.uniform(*ranges.hair_color) / max(mean, 1.0), 1 / MOST_HAIR_GAIN, MOST_HAIR_GAIN)
    )
    image = torch.lerp(image, ((image + 1) * gain - 1).clamp(-1, 1), hair)
    raw[HAIR_COLOR] *= _measured(image, sure)[0] / max(mean, 1.0)
    return image, _outline(hair)


def _measured(image: Tensor, where: Tensor) -> tuple[float, float]:
    """Mean and deviation of the brightness in 0..255."""
    values = image.mean(0)[where]
    return float((values.mean() + 1) * 127.5), float(values.std(correction=0) * 127.5)


def _least(share: Tensor) -> Tensor:
    return -F.max_pool2d(-share[None, None], 3, 1, 1)[0, 0]


def _outline(share: Tensor) -> Tensor:
    return F.max_pool2d(share[None, None], 3, 1, 1)[0, 0] - _least(share) > EDGE
