"""Random changes of portraits and masks for training the parser, a function of a generator alone.

Light, colour, noise, blur and small affine moves; a mirrored portrait swaps its left and right classes,
because "left" is the image's left.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ohlora.attributes import FaceClass

MIRRORED = list(range(len(FaceClass)))
for _left, _right in (
    (FaceClass.LEFT_BROW, FaceClass.RIGHT_BROW),
    (FaceClass.LEFT_EYE, FaceClass.RIGHT_EYE),
):
    MIRRORED[_left], MIRRORED[_right] = _right, _left

MAX_TURN = 12.0  # degrees in the plane
MAX_SHIFT = 0.08  # of the image
MAX_ZOOM = 0.12


def augment(images: Tensor, shares: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Change each portrait of a batch in its own way.

    Args:
        images: float32 [n, 3, h, w] in [-1, 1].
        shares: float32 [n, classes, h, w], see `segmentation.class_shares`.
        generator: CPU generator; the batch is a function of its state.

    Returns:
        The changed batch, same shapes and ranges.
    """
    n = len(images)
    mirrored = _uniform(n, generator) < 0.5
    shares = torch.where(mirrored.to(shares.device)[:, None, None, None], shares[:, MIRRORED], shares)
    moved = _move(torch.cat([images, shares], 1), mirrored, generator)
    return recolor(moved[:, :3], generator), moved[:, 3:]


def _move(pictures: Tensor, mirrored: Tensor, generator: torch.Generator) -> Tensor:
    n = len(pictures)
    turn = (2 * _uniform(n, generator) - 1) * math.radians(MAX_TURN)
    zoom = 1 + (2 * _uniform(n, generator) - 1) * MAX_ZOOM
    shift = (2 * torch.rand(n, 2, generator=generator) - 1) * 2 * MAX_SHIFT
    flip = 1 - 2 * mirrored.float()
    cos, sin = turn.cos() * zoom, turn.sin() * zoom
    rows = [
        torch.stack([cos * flip, -sin, shift[:, 0]], 1),
        torch.stack([sin * flip, cos, shift[:, 1]], 1),
    ]
    grid = F.affine_grid(torch.stack(rows, 1), list(pictures.shape), align_corners=False)
    return F.grid_sample(
        pictures, grid.to(pictures.device), mode="bilinear", padding_mode="border", align_corners=False
    )


def recolor(images: Tensor, generator: torch.Generator) -> Tensor:
    """Random light, colour, blur and noise of images float32 [n, 3, h, w] in [-1, 1]."""
    n = len(images)
    device = images.device
    contrast = (0.75 + 0.5 * torch.rand(n, 1, 1, 1, generator=generator)).to(device)
    light = (0.3 * (2 * torch.rand(n, 1, 1, 1, generator=generator) - 1)).to(device)
    tint = (0.1 * (2 * torch.rand(n, 3, 1, 1, generator=generator) - 1)).to(device)
    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    blur = torch.rand(n, 1, 1, 1, generator=generator).to(device)
    images = torch.lerp(images, blurred, torch.where(blur < 0.5, torch.zeros_like(blur), 2 * blur - 1))
    sigma = 0.06 * torch.rand(n, 1, 1, 1, generator=generator)
    noise = (sigma * torch.randn(images.shape, generator=generator)).to(device)
    return (images * contrast + light + tint + noise).clamp(-1, 1)


def _uniform(n: int, generator: torch.Generator) -> Tensor:
    return torch.rand(n, generator=generator)
