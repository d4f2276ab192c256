"""How fast are the label formulas? Prints a table and one JSON line.

python benchmarks/label_formulas.py --masks 5000
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
from numpy.typing import NDArray

from ohlora.attributes import FaceClass
from ohlora.labeling import ALGORITHMS, measure

ELLIPSES: tuple[tuple[FaceClass, float, float, float, float], ...] = (  # centre x, y, half width, half height
    (FaceClass.HAIR, 0.5, 0.45, 0.32, 0.42),
    (FaceClass.CLOTHES, 0.5, 1.05, 0.45, 0.2),
    (FaceClass.NECK, 0.5, 0.78, 0.1, 0.14),
    (FaceClass.SKIN, 0.5, 0.5, 0.2, 0.28),
    (FaceClass.LEFT_BROW, 0.41, 0.4, 0.06, 0.012),
    (FaceClass.RIGHT_BROW, 0.59, 0.4, 0.06, 0.012),
    (FaceClass.LEFT_EYE, 0.41, 0.46, 0.045, 0.02),
    (FaceClass.RIGHT_EYE, 0.59, 0.46, 0.045, 0.02),
    (FaceClass.NOSE, 0.5, 0.54, 0.04, 0.07),
    (FaceClass.UPPER_LIP, 0.5, 0.65, 0.08, 0.035),
    (FaceClass.LOWER_LIP, 0.5, 0.67, 0.07, 0.03),
    (FaceClass.INNER_MOUTH, 0.5, 0.66, 0.05, 0.015),
)


def faces(count: int, size: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Masks [count, size, size] of jittered ellipses with about a portrait's share of each class."""
    y, x = np.mgrid[:size, :size] / size
    masks = np.zeros((count, size, size), dtype=np.uint8)
    for mask in masks:
        for label, cx, cy, rx, ry in ELLIPSES:
            dx, dy = rng.normal(0, 0.004, 2)
            mask[((x - cx - dx) / rx) ** 2 + ((y - cy - dy) / (ry * rng.uniform(0.6, 1.4))) ** 2 < 1] = label
    return masks


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--masks", type=int, default=5000)
    arguments.add_argument("--size", type=int, default=224)
    options = arguments.parse_args()
    rng = np.random.default_rng(0)
    some = faces(min(options.masks, 50), options.size, rng)
    masks = some[np.arange(options.masks) % len(some)]
    images = rng.integers(0, 256, (*masks.shape, 3), dtype=np.uint8)
    seconds = {}
    print(f"{options.masks} masks of {options.size} x {options.size}")
    print(f"{'algorithm':<12} {'seconds':>8} {'masks/s':>8}")
    for algorithm in ALGORITHMS:
        start = time.perf_counter()
        measure(masks, images, algorithm)
        seconds[algorithm] = round(time.perf_counter() - start, 2)
        print(f"{algorithm:<12} {seconds[algorithm]:>8} {options.masks / seconds[algorithm]:>8.0f}")
    print(
        json.dumps({"benchmark": "label_formulas", "masks": options.masks, "size": options.size, **seconds})
    )


if __name__ == "__main__":
    main()
