"""What makes a drawn portrait close to the rendered one: colours, edges and both at coarser scales.

Pure functions of tensors. Weights come from the mask, so that eyes and mouth, a few percent of the pixels,
count as much as they matter in a face.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from ohlora.attributes import FaceClass
from ohlora.gan.walls import brightness

EVEN = 0.3  # grey levels: walls more even than this are all alike

# class -> (weight, growth of its area as a share of the picture's width)
EMPHASIS: Mapping[tuple[FaceClass, ...], tuple[float, float]] = {
    (FaceClass.LEFT_EYE, FaceClass.RIGHT_EYE): (4.0, 0.02),
    (FaceClass.LEFT_BROW, FaceClass.RIGHT_BROW): (2.5, 0.02),
    (FaceClass.UPPER_LIP, FaceClass.INNER_MOUTH, FaceClass.LOWER_LIP): (3.0, 0.02),
    (FaceClass.NOSE,): (1.6, 0.0),
    (FaceClass.SKIN,): (1.2, 0.0),
    (FaceClass.BACKGROUND,): (0.6, 0.0),
    (FaceClass.CLOTHES,): (0.6, 0.0),
}


def emphasis(masks: Tensor) -> Tensor:
    """Weight of each pixel.

    Args:
        masks: classes of `FaceClass`, uint8 [n, h, w].

    Returns:
        float32 [n, 1, h, w], 1 where no class asks for more or less.
    """
    weights = torch.ones(len(masks), 1, *masks.shape[1:], device=masks.device)
    for classes, (weight, growth) in EMPHASIS.items():
        area = torch.zeros_like(weights)
        for face_class in classes:
            area[:, 0] += masks == int(face_class)
        radius = round(growth * masks.shape[-1])
        if radius:
            size = 2 * radius + 1  # rows, then columns: the same maximum at a fifth of the time
            area = F.max_pool2d(area, (size, 1), 1, (radius, 0))
            area = F.max_pool2d(area, (1, size), 1, (0, radius))
        chosen = torch.full_like(weights, weight)
        if weight > 1:
            weights = torch.where(area > 0, torch.maximum(weights, chosen), weights)
        else:
            weights = torch.where((area > 0) & (weights == 1), chosen, weights)
    return weights


def weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Mean of values [n, c, h, w] under weights [n, 1, h, w]; 0 if all weights are."""
    return (values * weights).sum() / (values.shape[1] * weights.sum()).clamp_min(1e-8)


def edge_difference(difference: Tensor, weights: Tensor) -> Tensor:
    """Mean absolute difference of the horizontal and vertical gradients of two pictures.

    Args:
        difference: of the pictures, [n, c, h, w]; the gradient is linear, so theirs is the gradient of this.
        weights: [n, 1, h, w].
    """
    across = (difference[..., 1:] - difference[..., :-1]).abs()
    down = (difference[..., 1:, :] - difference[..., :-1, :]).abs()
    return weighted_mean(across, weights[..., 1:]) + weighted_mean(down, weights[..., 1:, :])


def reconstruction(
    output: Tensor, target: Tensor, weights: Tensor, *, edges: float = 1.0, scales: int = 4
) -> Tensor:
    """Distance of pictures over a pyramid: weighted L1 of colours and of gradients at each scale.

    The coarse scales carry the gradient where a feature is misplaced by more than its own width, which plain
    L1 answers with a blur.

    Args:
        output: float32 [n, 3, h, w].
        target: float32 [n, 3, h, w].
        weights: float32 [n, 1, h, w]; 0 where anything may be drawn.
        edges: weight of the gradients against the colours.
        scales: number of scales, each half of the one before.

    Returns:
        A scalar; 0 for equal pictures.
    """
    difference = (output - target) * (
        weights > 0
    )  # what may be anything must not leak in through the pyramid
    total = output.new_zeros(())
    for scale in range(scales):
        if scale:
            difference, weights = F.avg_pool2d(difference, 2), F.avg_pool2d(weights, 2)
        total = total + 0.5**scale * weighted_mean(difference.abs(), weights)
        total = total + edges * 0.7**scale * edge_difference(difference, weights)
    return total


def wall_difference(output: Tensor, target: Tensor, walls: Tensor, scales: Tensor) -> Tensor:
    """Difference in mean and deviation of the brightness of known walls, which pixels hardly show.

    A wall that should be even and is blotched by three grey levels costs next to nothing in `reconstruction`,
    and is a deviation off in the condition that says how even it is.

    Args:
        output: float32 [n, 3, h, w] in [-1, 1].
        target: float32 [n, 3, h, w] in [-1, 1].
        walls: pixels that certainly show background, bool [n, h, w].
        scales: grey levels that count as a difference of 1 in the mean and in the deviation, float32 [2].

    Returns:
        A scalar: smooth L1, mean over pictures; 0 where no picture has enough such pixels.
    """
    drawn, known = brightness(output, walls), brightness(target, walls)
    statistics = [torch.stack([b.mean, (b.variance + EVEN**2).sqrt()], 1) / scales for b in (drawn, known)]
    difference = F.smooth_l1_loss(statistics[0], statistics[1], beta=0.3, reduction="none").mean(1)
    return (difference * known.known).sum() / known.known.sum().clamp_min(1)


def psnr(output: Tensor, target: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each picture, float32 [n, 3, h, w] in [-1, 1] to [n]."""
    error = (output - target).square().mean((1, 2, 3)).clamp_min(1e-10)
    return 10 * torch.log10(4 / error)
