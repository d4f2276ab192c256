"""How bright hair and walls of a batch are. One measurement for what is painted and for what is learnt.

`ohlora.corpus.brightness` is the definition, with its ends trimmed; this one has a gradient and takes whole
batches, on pixels so sure that there is nothing to trim.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F

SURE = 0.99  # share of a pixel from which it counts as hair or background
FEWEST = 24  # sure pixels that a measurement needs


class Brightness(NamedTuple):
    """In grey levels 0..255, float32 [n] each; 0 where no pixel was measured."""

    mean: Tensor
    variance: Tensor
    pixels: Tensor

    @property
    def known(self) -> Tensor:
        """Whether `FEWEST` pixels were measured, bool [n]."""
        return self.pixels >= FEWEST


def brightness(images: Tensor, where: Tensor) -> Brightness:
    """Mean and variance of the brightness of some pixels.

    Args:
        images: float32 [n, 3, h, w] in [-1, 1].
        where: bool [n, h, w].
    """
    grey = (images.mean(1) + 1) * 127.5
    pixels = where.sum((1, 2))
    mean = (grey * where).sum((1, 2)) / pixels.clamp_min(1)
    variance = ((grey - mean[:, None, None]).square() * where).sum((1, 2)) / pixels.clamp_min(1)
    return Brightness(mean, variance, pixels)


def sure_walls(behind: Tensor) -> Tensor:
    """Where the background is measured: in the upper half, and no outline near; bool [n, r, r].

    Args:
        behind: share of background, float32 [n, r, r].
    """
    sure = (behind >= SURE) & (least_around(behind) >= SURE)
    sure[:, sure.shape[1] // 2 :] = False
    return sure


def least_around(share: Tensor) -> Tensor:
    """The smallest value of each pixel and its eight neighbours, [n, r, r]."""
    return -F.max_pool2d(-share[:, None], 3, 1, 1)[:, 0]
