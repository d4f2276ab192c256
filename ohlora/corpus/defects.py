"""Quality defects, added on purpose to some finished portraits: truth for a quality classifier.

They are those of pictures sampled from a StyleGAN, as the original project sorted them out: blur at the top
of the picture, noise, over-exposure, melted patches. Every defect is a pure function of image, strength and
generator. Strength 0 changes nothing, the change grows with the strength. Masks stay as they are: they say
what was in front of the camera.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates

from ohlora.corpus.portraits import DEFECT_NAMES

Image = NDArray[np.uint8]
DEFECTS_VERSION = 2  # raise it when the same defect gives other pixels: it names cached renders
LEAST_DRAWN = 0.35  # weaker defects are not seen, and quality would be a matter of luck


@dataclass(frozen=True)
class Defect:
    """One defect of one portrait."""

    name: str  # of DEFECT_NAMES
    strength: float  # 0..1
    seed: int  # of its own generator

    def applied(self, image: Image) -> Image:
        """The degraded picture, uint8 [h, w, 3]."""
        return DEFECTS[self.name](image, self.strength, np.random.default_rng(self.seed))


def draw_defect(share: float, rng: np.random.Generator) -> Defect | None:
    """A defect with probability `share`: all kinds alike, strength uniform above `LEAST_DRAWN`."""
    happens, kind, strength = rng.random(), int(rng.integers(len(DEFECT_NAMES))), rng.uniform(LEAST_DRAWN, 1)
    seed = int(rng.integers(1 << 31))
    return Defect(DEFECT_NAMES[kind], float(strength), seed) if happens < share else None


def blur(image: Image, strength: float, rng: np.random.Generator) -> Image:
    """Blur of the top of the picture that fades out downwards, as in badly framed StyleGAN faces.

    Args:
        image: uint8 [h, w, 3].
        strength: 0..1; at 1 the deviation is 1/32 of the height and the blur reaches below the middle.
        rng: moves the lower edge a little.
    """
    height = len(image)
    reach = (0.22 + 0.3 * strength + rng.uniform(-0.04, 0.04)) * height
    rows = np.arange(height)[:, None, None]
    share = np.clip((reach - rows) / (0.15 * height) + 0.5, 0, 1) * min(1.0, 4 * strength)
    soft = gaussian_filter(image.astype(np.float64), (strength * height / 32, strength * height / 32, 0))
    return _mixed(image, soft, share)


def noise(image: Image, strength: float, rng: np.random.Generator) -> Image:
    """Grain: brightness noise and half as much colour noise; at strength 1 a deviation of 45 of 255."""
    height, width, _ = image.shape
    grain = rng.normal(0, 1, (height, width, 1)) + rng.normal(0, 0.5, (height, width, 3))
    return _pixels(image + 45 * strength * grain)


def exposure(image: Image, strength: float, rng: np.random.Generator) -> Image:
    """Over-exposure: up to 2.5 stops more light, which clips, from a side that the generator chooses."""
    width = image.shape[1]
    side = rng.uniform(-0.5, 0.5) * np.linspace(-1, 1, width)[None, :, None]
    stops = 2.5 * strength * (1 + side)
    linear = (image / 255.0) ** 2.2 * 2.0**stops
    return np.maximum(_pixels(np.clip(linear, 0, 1) ** (1 / 2.2) * 255), image)


def melt(image: Image, strength: float, rng: np.random.Generator) -> Image:
    """Patches that look molten: within them the picture is smeared downwards in waves and its detail is gone.

    Nothing moves farther than 1/20 of the height, so that the mask still says where things are.

    Args:
        image: uint8 [h, w, 3].
        strength: 0..1; sets the size of the patches, how many there are (2 to 5) and how far they run.
        rng: their places and waves.
    """
    if strength <= 0:
        return image.copy()
    height, width, _ = image.shape
    y, x = np.mgrid[0:height, 0:width] / height
    patches = np.zeros((height, width))
    for k in range(5):
        cy, cx = rng.uniform(0.1, 0.9, 2)
        size = rng.uniform(0.7, 1.3) * (0.06 + 0.09 * strength)
        if k < 2 + 3 * strength:
            patches = np.maximum(patches, np.exp(-(((y - cy) / (1.4 * size)) ** 2 + ((x - cx) / size) ** 2)))
    phase = rng.uniform(0, 2 * np.pi, 3)
    wave = np.sin(2 * np.pi * (5 * x + 0.7 * np.sin(2 * np.pi * 2 * y + phase[0])) + phase[1])
    share = np.clip(2.5 * patches - 0.5, 0, 1)
    down = share * strength * height * 0.05 * (0.6 + 0.4 * wave)
    across = share * strength * height * 0.02 * np.sin(2 * np.pi * 4 * y + phase[2])
    at = [y * height - down, x * height - across]
    flowing = np.stack(
        [map_coordinates(image[..., c].astype(np.float64), at, order=1, mode="nearest") for c in range(3)], -1
    )
    flowing = gaussian_filter(flowing, (strength * height / 64, strength * height / 128, 0))
    return _mixed(image, flowing, share[..., None])


DEFECTS: dict[str, Callable[[Image, float, np.random.Generator], Image]] = {
    "blur": blur,
    "noise": noise,
    "exposure": exposure,
    "melt": melt,
}
assert tuple(DEFECTS) == DEFECT_NAMES


def _mixed(image: Image, other: NDArray[np.float64], share: NDArray[np.float64]) -> Image:
    return _pixels(image * (1 - share) + other * share)


def _pixels(values: NDArray[np.float64]) -> Image:
    return np.clip(np.round(values), 0, 255).astype(np.uint8)
