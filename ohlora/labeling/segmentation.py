"""Segmentation metrics and losses: a confusion matrix first, everything else in one line on top.

>>> truth = np.array([[[0, 1], [1, 1]]], dtype=np.uint8)
>>> predicted = np.array([[[0, 1], [0, 1]]], dtype=np.uint8)
>>> intersection_over_union(confusion(truth, predicted, classes=2)).round(2).tolist()
[0.5, 0.67]
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ohlora.attributes import FaceClass

CLASSES = len(FaceClass)


def confusion(
    truth: NDArray[np.uint8], predicted: NDArray[np.uint8], classes: int = CLASSES
) -> NDArray[np.int64]:
    """Pixel counts [classes, classes]: rows are the truth's class, columns the predicted one.

    Raises:
        ValueError: the shapes differ.
    """
    if truth.shape != predicted.shape:
        raise ValueError(f"masks of different shapes: {truth.shape} and {predicted.shape}")
    pair = truth.reshape(-1).astype(np.int64) * classes + predicted.reshape(-1)
    return np.bincount(pair, minlength=classes**2).reshape(classes, classes)


def intersection_over_union(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """IoU of each class, [classes]; NaN for a class that neither truth nor prediction has."""
    hit = np.diag(counts).astype(np.float64)
    union = counts.sum(0) + counts.sum(1) - hit
    return np.where(union > 0, hit / np.maximum(union, 1), np.nan)


def iou_metrics(truth: NDArray[np.uint8], predicted: NDArray[np.uint8]) -> dict[str, float]:
    """`mean_iou` and `iou_<class>` of masks uint8 [n, h, w] over all pixels, without absent classes."""
    values = intersection_over_union(confusion(truth, predicted))
    named = {f"iou_{c.name.lower()}": float(values[c]) for c in FaceClass if np.isfinite(values[c])}
    return {"mean_iou": float(np.mean(list(named.values()))), **named}


def each_mean_iou(truth: NDArray[np.uint8], predicted: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Mean IoU of each of the masks uint8 [n, h, w] over the classes that it or its truth has, [n]."""
    return np.array(
        [
            np.nanmean(intersection_over_union(confusion(t, p)))
            for t, p in zip(truth[:, None], predicted[:, None], strict=True)
        ]
    )


def soft_cross_entropy(logits: Tensor, shares: Tensor, weights: Tensor) -> Tensor:
    """Cross entropy against class shares: a coarse pixel may be half eye, half skin.

    Args:
        logits: float32 [n, classes, h, w].
        shares: float32 [n, classes, h, w], summing to 1 over the classes.
        weights: float32 [classes].
    """
    return -(weights[:, None, None] * shares * F.log_softmax(logits, 1)).sum(1).mean()


def class_weights(frequency: Tensor) -> Tensor:
    """Weights of the classes by the inverse fourth root of their share of all pixels; their pixel mean is 1.

    Without weights a short training finds hair and skin and never gets to the eyes, a 300th of the pixels.
    With the inverse root it finds too much of them: weights move the outline towards the common class, where
    the weighted losses of both sides are equal (logit adjustment, Menon et al. 2021, arXiv:2007.07314). On a
    network trained with the inverse root, undoing half of it raised the held-out mean IoU from .831 to .848.

    Args:
        frequency: float32 [classes], summing to 1; a class that never occurs weighs nothing.
    """
    weights = torch.where(frequency > 0, frequency.clamp(min=1e-6) ** -0.25, torch.zeros_like(frequency))
    return weights / (weights * frequency).sum()


def soft_dice_loss(logits: Tensor, shares: Tensor) -> Tensor:
    """One minus the Dice coefficient, mean over the classes in the batch (Milletari et al. 2016).

    It weighs an eye of forty pixels as much as the background. Shapes as in `soft_cross_entropy`.
    """
    probability = logits.softmax(1)
    hit = (probability * shares).sum((0, 2, 3))
    size = (probability**2 + shares**2).sum((0, 2, 3))
    present = shares.sum((0, 2, 3)) > 0
    dice = (2 * hit + 1) / (size + 1)
    return 1 - dice[present].mean()


def class_shares(masks: Tensor, resolution: int) -> Tensor:
    """Share of each class in each pixel of a coarser grid.

    Args:
        masks: uint8 [n, h, w] of class indices.
        resolution: height and width of the answer.

    Returns:
        float32 [n, classes, resolution, resolution], summing to 1 over the classes.
    """
    classes = torch.arange(CLASSES, dtype=torch.uint8, device=masks.device)
    one_hot = (masks[:, None] == classes[:, None, None]).float()
    cell, rest = divmod(masks.shape[-1], resolution)
    if rest == 0 and masks.shape[-1] == masks.shape[-2]:
        return F.avg_pool2d(one_hot, cell) if cell > 1 else one_hot
    return F.interpolate(one_hot, (resolution, resolution), mode="area")
