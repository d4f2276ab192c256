"""The two original algorithms once more, pixel by pixel and for one mask: what the fast ones are held to."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

Mask, Image = NDArray[np.uint8], NDArray[np.uint8]
SIZE = 224
LEFT, RIGHT, NOSE, UPPER, INNER, LOWER, HAIR = 4, 5, 6, 7, 8, 9, 10


def points(mask: Mask, *classes: int) -> list[tuple[int, int]]:
    """(x, y) of the pixels of classes."""
    return [(int(x), int(y)) for y, x in np.argwhere(np.isin(mask, classes))]


def extent(some: list[tuple[int, int]]) -> int:
    return max(y for _, y in some) - min(y for _, y in some) if some else 0


def greys(mask: Mask, image: Image, label: int, rows: int = SIZE) -> list[float]:
    return sorted(float(image[y, x].astype(float).mean()) for x, y in points(mask[:rows], label))


def trimmed(values: list[float], share: float) -> list[float]:
    drop = int(len(values) * share)
    return values[drop : len(values) - drop]


def background(mask: Mask, image: Image) -> tuple[float, float]:
    kept = trimmed(greys(mask, image, 0, SIZE // 2), 0.05)
    return (float(np.mean(kept)), float(np.std(kept))) if kept else (192.0, 0.0)


def first(mask: Mask, image: Image) -> dict[str, float]:
    eyes = 0.0
    for label, inside in ((LEFT, lambda x: x < SIZE * 3 / 4), (RIGHT, lambda x: x > SIZE / 4)):
        seen = [(x, y) for x, y in points(mask, label) if inside(x) and SIZE / 4 <= y < SIZE * 5 / 8]
        eyes += extent(seen) / 2
    nose = points(mask, NOSE)
    xs, ys = [x for x, _ in nose], [y for _, y in nose]
    defined = len(set(xs)) > 1 and len(set(ys)) > 1
    hair = points(mask, HAIR)
    length = max((y for _, y in hair), default=math.nan)
    if length == SIZE - 1:
        length += sum(y == SIZE - 1 for _, y in hair) / 2
    colors = greys(mask, image, HAIR)
    mean, std = background(mask, image)
    return {
        "eyes": eyes,
        "pose": -float(np.corrcoef(xs, ys)[0, 1]) if defined else math.nan,
        "mouth": extent(points(mask, UPPER, LOWER)) + extent(points(mask, INNER)),
        "hair_color": float(np.median(colors)) if colors else math.nan,
        "hair_length": float(length),
        "background_mean": mean,
        "background_std": std,
    }


def tilted_heights(mask: Mask, label: int) -> list[float]:
    """What an eye may measure; several farthest pairs may tie."""
    eye = [(x, y) for x, y in points(mask, label) if SIZE / 4 <= y < SIZE * 3 / 4]
    if len(eye) < 2:
        return [0.0]
    height = max(extent([p for p in eye if p[0] == x]) for x in {x for x, _ in eye})
    farthest = max(math.dist(a, b) for a, b in combinations(eye, 2))
    pairs = [(a, b) for a, b in combinations(eye, 2) if math.dist(a, b) == farthest]
    return [height * abs(a[0] - b[0]) / farthest for a, b in pairs]


def second(mask: Mask, image: Image) -> dict[str, float]:
    """As `first`; `eyes` is left to `tilted_heights`."""
    left, right = points(mask, LEFT), points(mask, RIGHT)
    pose = 0.0
    if left and right:
        (lx, ly), (rx, ry) = np.mean(left, 0), np.mean(right, 0)
        pose = (ry - ly) / (rx - lx) if rx != lx else 0.0
    inner, lips = len(points(mask, INNER)), len(points(mask, UPPER, LOWER))
    hair = mask == HAIR
    rows = [y for y in range(SIZE // 4, SIZE) if hair[y].sum() >= 20]
    length = float(max(rows, default=math.nan))
    if length == SIZE - 1:
        halves = hair[-1, : SIZE // 2].sum(), hair[-1, SIZE // 2 :].sum()
        length += sum(max(int(count) - 10, 0) / 2 for count in halves)
    colors = trimmed(greys(mask, image, HAIR), 0.1)
    mean, std = background(mask, image)
    return {
        "pose": float(pose),
        "mouth": inner / (inner + lips) if inner + lips else 0.0,
        "hair_color": float(np.mean(colors)) if colors else 127.5,
        "hair_length": length,
        "background_mean": mean,
        "background_std": std,
    }
