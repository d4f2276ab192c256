"""What is in a portrait, as numbers: three algorithms that read the seven conditions off a mask and an image.

- `original_1`, `original_2`: the two formulas of the original Oh-LoRA project, kept to compare with. They
  answer at 224 x 224 in their own units (pixels, ratios, slopes) and with the original's fallbacks (0, 127.5,
  192) where a part is missing; where it defines none the answer is NaN.
- `ours`: independent of the resolution, with yaw instead of roll for `pose`, and NaN wherever a part cannot
  be seen: a missing eye is closed (0) only where the skin that covers it can be seen. `eyes`, `mouth` and
  `pose` are proportions of the face; `ohlora.labeling.calibration` maps them to the units of `Attributes`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ohlora.attributes import CONDITION_NAMES, FaceClass
from ohlora.corpus.brightness import background_brightness, brightness_histograms, trimmed_statistics
from ohlora.corpus.lengths import hair_length
from ohlora.labeling.regions import (
    Floats,
    Images,
    Masks,
    Moments,
    Parts,
    median,
)

Algorithm = Literal["original_1", "original_2", "ours"]
ALGORITHMS: tuple[Algorithm, ...] = get_args(Algorithm)

Keep = Callable[[Floats, Floats], NDArray[np.bool_]]  # of the x and y of pixels

ORIGINAL_SIZE = 224
ORIGINAL_TRIM = 0.05  # of the background's brightness
CHUNK = 32  # masks at a time, so that temporaries stay in the cache

L_EYE, R_EYE = FaceClass.LEFT_EYE, FaceClass.RIGHT_EYE
NOSE, INNER, HAIR = FaceClass.NOSE, FaceClass.INNER_MOUTH, FaceClass.HAIR
LIPS = (FaceClass.UPPER_LIP, FaceClass.LOWER_LIP)


def measure(masks: Masks, images: Images, algorithm: Algorithm = "ours") -> dict[str, NDArray[np.float32]]:
    """Read the seven conditions off portraits.

    Args:
        masks: uint8 [n, h, w] of `FaceClass`.
        images: uint8 [n, h, w, 3] RGB, the same pixels as the masks.
        algorithm: one of `ALGORITHMS`; the original ones resample to 224 x 224 (nearest) first.

    Returns:
        Name of `CONDITION_NAMES` -> float32 [n]; NaN is unknown.

    Raises:
        ValueError: shapes do not belong together, or there is no such algorithm.
    """
    if masks.ndim != 3 or images.shape != (*masks.shape, 3):
        raise ValueError(f"masks {masks.shape} and images {images.shape} are not [n, h, w] and [n, h, w, 3]")
    if algorithm not in ALGORITHMS:
        raise ValueError(f"unknown algorithm {algorithm!r}; there are: {', '.join(ALGORITHMS)}")
    formula = {"original_1": _original_1, "original_2": _original_2, "ours": _ours}[algorithm]
    parts: list[dict[str, Floats]] = []
    for start in range(0, len(masks), CHUNK):
        some_masks, some_images = masks[start : start + CHUNK], images[start : start + CHUNK]
        if algorithm != "ours":
            some_masks, some_images = _at_original_size(some_masks), _at_original_size(some_images)
        parts.append(formula(some_masks, some_images))
    return {
        name: np.concatenate([np.empty(0), *(part[name] for part in parts)]).astype(np.float32)
        for name in CONDITION_NAMES
    }


def _at_original_size(pictures: NDArray[np.uint8]) -> NDArray[np.uint8]:
    rows, columns = (
        ((np.arange(ORIGINAL_SIZE) + 0.5) * size / ORIGINAL_SIZE).astype(np.intp)
        for size in pictures.shape[1:3]
    )
    if pictures.shape[1:3] == (ORIGINAL_SIZE, ORIGINAL_SIZE):
        return pictures
    return pictures[:, rows][:, :, columns]


# --- ours ---------------------------------------------------------------------------------------------------

HAIR_TRIM = 0.1
LEAST_EYE = 3 / 224**2  # of the image: a region of fewer pixels has no shape
# Proportions of a face in nose heights, measured on rendered faces, between brows and mouth:
BAND = 0.85  # rows this far above and below the nose's centroid
EYE_LINE = 0.45  # up from the nose's centroid
EYE_OFFSET = 0.56  # from the middle of the face
LID_WINDOW = (0.2, 0.12)  # half width and half height of where an eye should be
LID_SHARE = 0.5  # of that window: more skin than this means a closed lid


@dataclass(frozen=True)
class Frame:
    """Where the face is, [n] each; NaN without a nose."""

    nose: Moments
    nose_height: Floats  # pixels
    x: Floats  # middle of the face between brows and mouth, pixels
    width: Floats  # of the face there, pixels


def _ours(masks: Masks, images: Images) -> dict[str, Floats]:
    parts = Parts(masks)
    frame = _frame(masks, parts)
    color, _ = trimmed_statistics(brightness_histograms(images, masks == HAIR), HAIR_TRIM)
    mean, std = background_brightness(images, masks)
    return {
        "eyes": _openness(masks, parts, frame),
        "mouth": _mouth_opening(parts),
        "pose": (frame.nose.x - frame.x) / frame.width,
        "hair_color": color,
        "hair_length": hair_length(masks),
        "background_mean": mean,
        "background_std": std,
    }


def _frame(masks: Masks, parts: Parts) -> Frame:
    h, w = masks.shape[1:]
    nose = parts.moments(NOSE)
    height = 4 * np.sqrt(nose.yy)
    rows = np.arange(h) + 0.5
    band = np.abs(rows - nose.y[:, None]) <= BAND * height[:, None]  # all false without a nose
    is_face = (masks - np.uint8(FaceClass.SKIN)) <= FaceClass.LOWER_LIP - FaceClass.SKIN
    columns = (is_face & band[:, :, None]).sum(1).astype(np.float64)
    x = np.arange(w) + 0.5
    with np.errstate(invalid="ignore", divide="ignore"):
        area = columns.sum(1)
        middle = columns @ x / area
        variance = columns @ x**2 / area - middle**2
    return Frame(nose=nose, nose_height=height, x=middle, width=np.sqrt(12 * variance))


def _openness(masks: Masks, parts: Parts, frame: Frame) -> Floats:
    """Height of the more open eye across its tilt, in widths of the face, [n]; 0 where lids cover both.

    The eye's own width is no good measure: it shrinks when the lids close and when the head turns.
    """
    least = LEAST_EYE * masks.shape[1] * masks.shape[2]
    sides = []
    for eye, side in ((parts.moments(L_EYE), -1), (parts.moments(R_EYE), 1)):
        seen = eye.area >= least
        height = np.where(seen, eye.thickness, np.nan)
        for i in np.flatnonzero(~seen):
            if _lid_is_seen(masks[i], frame, int(i), side):
                height[i] = 0.0
        sides.append(height / frame.width)
    return np.fmax(sides[0], sides[1])


def _lid_is_seen(mask: NDArray[np.uint8], frame: Frame, i: int, side: int) -> bool:
    """Whether skin covers the place where this eye should be; hair there hides the eye."""
    unit = frame.nose_height[i]
    if not np.isfinite(unit):
        return False
    centre = np.array([frame.x[i] + side * EYE_OFFSET * unit, frame.nose.y[i] - EYE_LINE * unit])
    half = np.maximum(np.array(LID_WINDOW) * unit, 1)
    left, top = np.maximum(np.floor(centre - half).astype(int), 0)
    right, bottom = np.maximum(np.ceil(centre + half).astype(int), 0)
    window = mask[top:bottom, left:right]
    return bool(window.size and np.isin(window, (FaceClass.SKIN, L_EYE, R_EYE)).mean() >= LID_SHARE)


def _mouth_opening(parts: Parts) -> Floats:
    """Inner mouth over lips by area, [n]: both shrink alike when the head turns."""
    lips, inner = parts.moments(*LIPS).area, parts.moments(INNER).area
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(lips + inner > 0, inner / (lips + 1), np.nan)


# --- the original's -----------------------------------------------------------------------------------------


def _background(masks: Masks, images: Images) -> tuple[Floats, Floats]:
    half = masks.shape[1] // 2
    region = masks[:, :half] == FaceClass.BACKGROUND
    return trimmed_statistics(brightness_histograms(images[:, :half], region), ORIGINAL_TRIM)


def _original_1(masks: Masks, images: Images) -> dict[str, Floats]:
    h, w = masks.shape[1:]
    parts = Parts(masks)
    left = _extent(parts, (L_EYE,), lambda x, y: (x < 0.75 * w) & _rows(y, h / 4, h * 5 / 8))
    right = _extent(parts, (R_EYE,), lambda x, y: (x - 0.5 > 0.25 * w) & _rows(y, h / 4, h * 5 / 8))
    nose = parts.all_moments(NOSE)
    square = 1 / 12  # regions.Moments counts pixels as squares, a correlation as points
    with np.errstate(invalid="ignore", divide="ignore"):
        pearson = nose.xy / np.sqrt((nose.xx - square) * (nose.yy - square))
    hair = masks == HAIR
    lowest = _lowest(hair.any(2))
    mean, std = _background(masks, images)
    return {
        "eyes": (left + right) / 2,
        "pose": np.where(np.isfinite(pearson), -pearson, np.nan),
        "mouth": _extent(parts, LIPS) + _extent(parts, (INNER,)),
        "hair_color": median(brightness_histograms(images, hair)),
        "hair_length": np.where(lowest == h - 1, lowest + hair[:, -1].sum(1) / 2, lowest),
        "background_mean": np.where(np.isnan(mean), 192.0, mean),
        "background_std": np.where(np.isnan(std), 0.0, std),
    }


def _original_2(masks: Masks, images: Images) -> dict[str, Floats]:
    h, w = masks.shape[1:]
    parts = Parts(masks)
    left, right = parts.all_moments(L_EYE), parts.all_moments(R_EYE)
    with np.errstate(invalid="ignore", divide="ignore"):
        slope = (right.y - left.y) / (right.x - left.x)
    lips = sum((masks == c).sum((1, 2)) for c in LIPS)
    inner = (masks == INNER).sum((1, 2))
    hair = masks == HAIR
    color, _ = trimmed_statistics(brightness_histograms(images, hair), 0.1)
    long_enough = hair.sum(2) >= 20
    long_enough[:, : h // 4] = False
    lowest = _lowest(long_enough)
    halves = hair[:, -1].reshape(len(masks), 2, w // 2).sum(2)
    below = (np.maximum(halves - 10, 0) / 2).sum(1)
    mean, std = _background(masks, images)
    return {
        "eyes": np.maximum(_tilted_height(masks == L_EYE), _tilted_height(masks == R_EYE)),
        "pose": np.where(np.isfinite(slope), slope, 0.0),
        "mouth": inner / np.maximum(inner + lips, 1),
        "hair_color": np.where(np.isnan(color), 127.5, color),
        "hair_length": np.where(long_enough[:, -1], lowest + below, lowest),
        "background_mean": np.where(np.isnan(mean), 192.0, mean),
        "background_std": np.where(np.isnan(std), 0.0, std),
    }


def _rows(y: Floats, first: float, last: float) -> NDArray[np.bool_]:
    return (y > first) & (y < last)


def _extent(parts: Parts, classes: tuple[FaceClass, ...], keep: Keep | None = None) -> Floats:
    """Largest minus smallest row of a union of classes, [n]; 0 where it is empty."""
    image, x, y = parts.pixels(*classes)
    if keep is not None:
        kept = keep(x, y)
        image, y = image[kept], y[kept]
    top, bottom = np.full(parts.count, np.inf), np.full(parts.count, -np.inf)
    np.minimum.at(top, image, y)
    np.maximum.at(bottom, image, y)
    return np.where(bottom >= top, bottom - top, 0.0)


def _lowest(rows: NDArray[np.bool_]) -> Floats:
    """Index of the last true row, [n]; NaN where there is none."""
    h = rows.shape[1]
    return np.where(rows.any(1), h - 1 - np.argmax(rows[:, ::-1], axis=1), np.nan)


def _tilted_height(eyes: NDArray[np.bool_]) -> Floats:
    """Largest extent of one column times the cosine of the tilt of the farthest pixel pair, [n].

    The original compares all pixels with all; the pair lies on the ends of rows, so that those suffice.
    """
    h = eyes.shape[1]
    eyes = eyes[:, h // 4 : h * 3 // 4]
    answer = np.zeros(len(eyes))
    for i in np.flatnonzero(eyes.any((1, 2))):
        eye = eyes[i]
        columns = np.flatnonzero(eye.any(0))
        extent = _last(eye[:, columns], 0) - np.argmax(eye[:, columns], 0)
        rows = np.flatnonzero(eye.any(1))
        ends = np.concatenate(
            [
                np.stack([np.argmax(eye[rows], 1), rows], 1),
                np.stack([_last(eye[rows], 1), rows], 1),
            ]
        ).astype(np.float64)
        between = ends[:, None] - ends[None]
        dx, dy = between.reshape(-1, 2)[np.argmax((between**2).sum(-1))]
        distance = float(np.hypot(dx, dy))
        answer[i] = extent.max() * (abs(dx) / distance if distance else 1.0)
    return answer


def _last(values: NDArray[np.bool_], axis: int) -> NDArray[np.intp]:
    return values.shape[axis] - 1 - np.argmax(np.flip(values, axis), axis)
