"""Random changes of portraits and masks for training the parser, a function of a generator alone.

Light, colour, noise, blur and affine moves; a mirrored portrait swaps its left and right classes, because
"left" is the image's left. The moves are what makes held-out identities easy: a face seen at many sizes and
angles is a face of many shapes.
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

MAX_TURN = 10.0  # degrees in the plane
MAX_SHIFT = 0.05  # of the image
MAX_ZOOM = 0.15  # the sampled window is this much larger or smaller
MAX_STRETCH = 0.08  # of width against height
MAX_NOISE = 0.1  # deviation, of the half range
SHRUNK = 0.25  # share of portraits that lose detail as if they had been enlarged


def augment(
    images: Tensor, targets: Tensor, generator: torch.Generator, plain: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Change each portrait of a batch in its own way.

    Args:
        images: float32 [n, 3, h, w] in [-1, 1].
        targets: masks uint8 [n, H, W] of `FaceClass`, or class shares float32 [n, classes, H, W] of all
            classes or of the first few; the size may differ from that of the images.
        generator: CPU generator; the batch is a function of its state.
        plain: share of portraits that are mirrored at most: a warped picture is softer than a real one.

    Returns:
        The changed batch, same shapes, types and ranges.
    """
    flips = _flips(len(images), generator)
    moves = _moves(flips, generator)
    untouched = torch.rand(len(images), generator=generator) < plain
    moves[untouched] = torch.eye(2, 3)[None].repeat(int(untouched.sum()), 1, 1)
    moves[untouched, 0, 0] = flips[untouched]
    mirrored = moves[:, 0, 0] < 0
    if targets.dtype == torch.uint8:
        swap = torch.tensor(MIRRORED, dtype=torch.uint8, device=targets.device)
        swapped = torch.where(mirrored.to(targets.device)[:, None, None], swap[targets.long()], targets)
        changed = _warp(swapped[:, None].float(), moves, "nearest")[:, 0].to(torch.uint8)
    else:
        swapped = targets[:, MIRRORED[: targets.shape[1]]]
        shares = torch.where(mirrored.to(targets.device)[:, None, None, None], swapped, targets)
        changed = _warp(shares, moves, "bilinear")
    moved = _warp(images, moves, "bilinear")
    kept = untouched.to(moved.device)[:, None, None, None]
    return torch.where(kept, moved, recolor(moved, generator)), changed


def _flips(n: int, generator: torch.Generator) -> Tensor:
    """Float32 [n]: -1 for a portrait that is mirrored, 1 for another."""
    return torch.where(torch.rand(n, generator=generator) < 0.5, -1.0, 1.0)


def _moves(flip: Tensor, generator: torch.Generator) -> Tensor:
    """Affine maps float32 [n, 2, 3] from changed to original coordinates in [-1, 1], mirrored by `flip`."""
    n = len(flip)
    turn = _spread(n, generator) * math.radians(MAX_TURN)
    zoom = 1 + _spread(n, generator) * MAX_ZOOM
    stretch = 1 + _spread(n, generator) * MAX_STRETCH
    shift = 2 * MAX_SHIFT * torch.stack([_spread(n, generator), _spread(n, generator)], 1)
    cos, sin = turn.cos() * zoom, turn.sin() * zoom
    rows = [
        torch.stack([cos * flip * stretch, -sin, shift[:, 0]], 1),
        torch.stack([sin * flip * stretch, cos, shift[:, 1]], 1),
    ]
    return torch.stack(rows, 1)


def _warp(pictures: Tensor, moves: Tensor, mode: str) -> Tensor:
    grid = F.affine_grid(moves, list(pictures.shape), align_corners=False).to(pictures.device)
    return F.grid_sample(pictures, grid, mode=mode, padding_mode="border", align_corners=False)


def recolor(images: Tensor, generator: torch.Generator) -> Tensor:
    """Random light, colour, sharpness and noise of images float32 [n, 3, h, w] in [-1, 1]."""
    n, device = len(images), images.device

    def spread(size: float, channels: int = 1) -> Tensor:
        return (size * (2 * torch.rand(n, channels, 1, 1, generator=generator) - 1)).to(device)

    grey = images.mean(1, keepdim=True)
    images = torch.lerp(grey, images, 1 + spread(0.5))
    bright = (images + 1) / 2
    images = 2 * bright.clamp(min=1e-3) ** torch.exp(spread(0.35)) - 1
    images = images * (1 + spread(0.25)) + spread(0.25) + spread(0.12, 3)
    size = images.shape[2:]
    share = 0.25 + 0.5 * float(torch.rand((), generator=generator))
    small = F.interpolate(images, scale_factor=share, mode="bilinear", antialias=True)
    coarse = F.interpolate(small, size, mode="bilinear", align_corners=False)
    shrunk = (torch.rand(n, 1, 1, 1, generator=generator) < SHRUNK).to(device)
    images = torch.where(shrunk, coarse, images)
    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    images = torch.lerp(images, blurred, (1.5 * spread(1.0)).clamp(0, 1))
    sigma = MAX_NOISE * torch.rand(n, 1, 1, 1, generator=generator) ** 2
    noise = (sigma * torch.randn(images.shape, generator=generator)).to(device)
    return (images + noise).clamp(-1, 1)


def _spread(n: int, generator: torch.Generator) -> Tensor:
    return 2 * torch.rand(n, generator=generator) - 1
