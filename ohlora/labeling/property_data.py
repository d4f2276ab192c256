"""What the property network learns from: pictures, masks and truths, and random changes of all three at once.

Notable: a change whose effect on an attribute can be computed changes the truth with it (new hair and
background colours are measured again under the mask, a shift moves the end of the hair); where it cannot, the
truth becomes unknown, and the loss leaves it out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ohlora.attributes import CONDITION_NAMES, FaceClass
from ohlora.corpus.portraits import Portraits
from ohlora.labeling.augmentation import MIRRORED
from ohlora.labeling.filter_data import person_weights
from ohlora.labeling.parser import as_input
from ohlora.labeling.property_network import AREAS, FINE, GRID, Box
from ohlora.labeling.segmentation import class_shares

CHUNK = 32  # portraits at a time; bounds the memory of float copies
AT = {name: i for i, name in enumerate(CONDITION_NAMES)}
CLASSES_OF = {
    "eyes": (FaceClass.LEFT_EYE, FaceClass.RIGHT_EYE),
    "mouth": (FaceClass.UPPER_LIP, FaceClass.INNER_MOUTH, FaceClass.LOWER_LIP),
}
DEFAULT_BOXES: dict[str, Box] = {"eyes": (14, 22, 50, 38), "mouth": (20, 38, 44, 54)}
MARGIN = 2  # parts of GRID around where an area was ever seen

REPAINTED = 0.4  # share of pictures with other hair, and of those with another background
MOVED = 0.5  # share of pictures that are shifted and zoomed
MAX_SHIFT, MAX_ZOOM = 0.08, 0.08  # in -1..1 coordinates; of the size
CUT_OFF = 0.999  # hair this long goes on below the picture


@dataclass(frozen=True)
class Examples:
    """Portraits with masks, as tensors."""

    images: Tensor  # uint8 [n, 3, 2r, 2r]
    masks: Tensor  # uint8 [n, 2r, 2r]
    shares: Tensor  # uint8 [n, classes, r/2, r/2], 255ths
    truth: Tensor  # float32 [n, 7] of CONDITION_NAMES, NaN is unknown
    weights: NDArray[np.float64]  # [n] of drawing
    identity: NDArray[np.int64]  # [n]

    def __len__(self) -> int:
        return len(self.identity)


@dataclass(frozen=True)
class Batch:
    """Changed pictures of n portraits."""

    pixels: Tensor  # float32 [n, 3, 2r, 2r] in [-1, 1]
    shares: Tensor  # float32 [n, classes, r/2, r/2]
    behind: Tensor  # float32 [n, r, 2r], share of background in the pixels of the upper half
    truth: Tensor  # float32 [n, 7], NaN is unknown


def examples(portraits: Portraits, resolution: int) -> Examples:
    """The portraits that have a mask, as tensors.

    Args:
        portraits: of one split.
        resolution: r of the network.
    """
    rows = np.flatnonzero(portraits.has_mask)
    size = FINE * resolution
    images, masks, shares = [], [], []
    for start in range(0, len(rows), CHUNK):
        some = rows[start : start + CHUNK]
        fine = as_input(portraits.images[some], size)
        images.append(((fine + 1) * 127.5).round().to(torch.uint8))
        mask = torch.from_numpy(portraits.masks[some])
        nearest = F.interpolate(mask[:, None].float(), (size, size), mode="nearest-exact")[:, 0]
        masks.append(nearest.to(torch.uint8))
        shares.append((class_shares(mask, resolution // 2) * 255).round().to(torch.uint8))
    truth = np.stack([portraits.truth[name][rows] for name in CONDITION_NAMES], 1)
    return Examples(
        images=torch.cat(images) if images else torch.empty((0, 3, size, size), dtype=torch.uint8),
        masks=torch.cat(masks) if masks else torch.empty((0, size, size), dtype=torch.uint8),
        shares=torch.cat(shares) if shares else torch.empty((0, 0, 0, 0), dtype=torch.uint8),
        truth=torch.from_numpy(truth),
        weights=person_weights(portraits.identity[rows]),
        identity=portraits.identity[rows],
    )


def scales_of(truth: Tensor) -> dict[str, tuple[float, float]]:
    """Mean and standard deviation of each attribute of truth [n, 7] without the unknown."""
    mean = torch.nanmean(truth, 0)
    deviation = torch.nanmean((truth - mean).square(), 0).sqrt()
    mean, deviation = torch.nan_to_num(mean), torch.nan_to_num(deviation, nan=1.0).clamp(min=1e-3)
    return {name: (float(mean[i]), float(deviation[i])) for name, i in AT.items()}


def boxes_of(masks: Tensor) -> dict[str, Box]:
    """Where eyes and mouth are in nearly all masks uint8 [n, h, w], with a margin, alike on both sides."""
    boxes = {}
    unit = masks.shape[1] / GRID
    for name in AREAS:
        part = torch.isin(masks, torch.tensor(CLASSES_OF[name], dtype=torch.uint8)).float()
        rows, columns = (part.amax(2).mean(0) > 0.01).nonzero(), (part.amax(1).mean(0) > 0.01).nonzero()
        if not len(rows) or not len(columns):
            boxes[name] = DEFAULT_BOXES[name]
            continue
        top = int(float(rows.min()) / unit) - MARGIN
        bottom = int(float(rows.max()) / unit) + 1 + MARGIN
        aside = min(int(float(columns.min()) / unit), GRID - 1 - int(float(columns.max()) / unit)) - MARGIN
        aside = min(max(aside, 0), GRID // 2 - 4)
        top = min(max(top, 0), GRID - 8)
        boxes[name] = (aside, top, GRID - aside, max(min(bottom, GRID), top + 8))
    return boxes


def draw_batch(data: Examples, size: int, generator: torch.Generator) -> Batch:
    """Draw portraits and change them: colours of hair and background, light, side, place."""
    rows = torch.multinomial(
        torch.from_numpy(data.weights), size, replacement=size > len(data), generator=generator
    )
    pixels = data.images[rows].float() / 127.5 - 1
    masks, truth = data.masks[rows], data.truth[rows].clone()
    shares = data.shares[rows].float() / 255
    _repaint(pixels, masks, truth, generator)
    pixels = _relight(pixels, truth, generator)
    flipped = torch.rand(size, generator=generator) < 0.5
    pixels[flipped] = pixels[flipped].flip(3)
    shares[flipped] = shares[flipped][:, MIRRORED].flip(3)
    behind = (masks == FaceClass.BACKGROUND).float()[:, None]
    behind[flipped] = behind[flipped].flip(3)
    truth[flipped, AT["pose"]] *= -1
    moved = torch.rand(size, generator=generator) < MOVED
    _move((pixels, shares, behind), truth, moved.nonzero()[:, 0], generator)
    return Batch(pixels, shares, behind[:, 0, : behind.shape[2] // 2], truth)


def _repaint(pixels: Tensor, masks: Tensor, truth: Tensor, generator: torch.Generator) -> None:
    """New hair colours and backgrounds for some pictures, in place, and the truth measured again."""
    n, _, height, width = pixels.shape
    luck = torch.rand(2, n, generator=generator)
    upper = height // 2
    for i in (luck[0] < REPAINTED).nonzero()[:, 0].tolist():
        hair = masks[i] == FaceClass.HAIR
        gain = torch.exp(1.6 * torch.rand((), generator=generator) - 0.8)
        tint = 0.1 * torch.randn(3, 1, 1, generator=generator)
        if hair.any():
            painted = ((pixels[i] + 1) * gain * (1 + tint) - 1).clamp(-1, 1)
            pixels[i] = torch.where(hair, painted, pixels[i])
            truth[i, AT["hair_color"]] = (pixels[i].mean(0)[hair].mean() + 1) * 127.5
    for i in (luck[1] < REPAINTED).nonzero()[:, 0].tolist():
        behind = masks[i] == FaceClass.BACKGROUND
        cells = int(torch.randint(2, 9, (), generator=generator))
        contrast = 0.25 * torch.rand((), generator=generator) ** 2
        clouds = contrast * torch.randn(1, 3, cells, cells, generator=generator)
        clouds = clouds + 1.8 * torch.rand(1, 3, 1, 1, generator=generator) - 0.9
        fresh = F.interpolate(clouds, (height, width), mode="bilinear")[0].clamp(-1, 1)
        pixels[i] = torch.where(behind, fresh, pixels[i])
        seen = pixels[i, :, :upper].mean(0)[behind[:upper]]
        if len(seen):
            truth[i, AT["background_mean"]] = (seen.mean() + 1) * 127.5
            truth[i, AT["background_std"]] = seen.std(correction=0) * 127.5


def _relight(pixels: Tensor, truth: Tensor, generator: torch.Generator) -> Tensor:
    """Other contrast, light and tint; truths of brightness follow, in place."""
    n = len(pixels)
    contrast = 0.85 + 0.3 * torch.rand(n, generator=generator)
    light = 0.2 * torch.rand(n, generator=generator) - 0.1
    tint = 0.1 * torch.randn(n, 3, generator=generator)
    tint = tint - tint.mean(1, keepdim=True)  # keeps the brightness
    for name in ("hair_color", "background_mean"):
        truth[:, AT[name]] = (((truth[:, AT[name]] / 127.5 - 1) * contrast + light).clamp(-1, 1) + 1) * 127.5
    truth[:, AT["background_std"]] *= contrast
    offset = (light[:, None] + tint)[:, :, None, None]
    return torch.addcmul(offset, pixels, contrast[:, None, None, None]).clamp_(-1, 1)


def _move(maps: Sequence[Tensor], truth: Tensor, rows: Tensor, generator: torch.Generator) -> None:
    """Shift and zoom some pictures, in place, all maps [n, c, h, w] of them and what is known after it."""
    n = len(rows)
    zoom = 1 + MAX_ZOOM * (2 * torch.rand(n, generator=generator) - 1)
    across, down = MAX_SHIFT * (2 * torch.rand(2, n, generator=generator) - 1)
    if not n:
        return
    nothing = torch.zeros(n)
    theta = torch.stack([torch.stack([zoom, nothing, across], 1), torch.stack([nothing, zoom, down], 1)], 1)
    for pictures in maps:
        grid = F.affine_grid(theta, [n, *pictures.shape[1:]], align_corners=False)
        pictures[rows] = F.grid_sample(pictures[rows], grid, padding_mode="border", align_corners=False)
    length = truth[rows, AT["hair_length"]]
    ended = (((2 * length - 1 - down) / zoom + 1) / 2).clamp(0, 1)
    truth[rows, AT["hair_length"]] = torch.where(length < CUT_OFF, ended, length)
    for name in ("hair_color", "background_mean", "background_std"):  # other pixels are in the picture now
        truth[rows, AT[name]] = torch.nan
