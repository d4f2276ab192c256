"""What the filters learn from: portraits as tensors, defects added on purpose, and disguises.

Notable:
- Whether a person is a woman must not be read off her hair: in a share of the pictures hair and background
  are painted over in one colour, in some everything but the face is.
- Pictures that came from elsewhere were resampled and compressed on their way and are still clean: most
  pictures, clean and degraded ones alike, are handled like that.
- Other small changes are the same for both, and none of them could be taken for a defect.
"""

from __future__ import annotations

import io
import math
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ohlora.attributes import FaceClass
from ohlora.corpus.defects import draw_defect
from ohlora.corpus.portraits import Portraits
from ohlora.labeling.classifier import FINE, views
from ohlora.labeling.parser import as_input

COPIES = 4  # degraded copies per portrait at most
MOST_COPIES = 4096  # of all portraits; bounds the memory
CHUNK = 64  # pictures at a time; bounds the memory of float copies

HIDDEN_HAIR = 0.5  # share of the pictures in which hair and background are painted over
HIDDEN_BODY = 0.15  # share in which everything but the face is
FACE, BODY, AROUND = 0, 1, 2  # layers: what is painted over last, earlier and first
LAYERS = torch.full((256,), FACE, dtype=torch.uint8)
LAYERS[[FaceClass.EARS, FaceClass.NECK, FaceClass.CLOTHES]] = BODY
LAYERS[[FaceClass.BACKGROUND, FaceClass.HAIR]] = AROUND
HANDLED = 0.7  # share of the pictures that were resampled or compressed before
RESCALED = (0.97, 1.04)  # of a resampled picture
MAX_TURN = 6.0  # degrees in the plane
MAX_SHIFT = 0.05  # of the picture
ZOOM = (0.85, 1.08)  # share of the picture that is seen


def handled(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """A picture [h, w, 3] after what careful software does to it: resampled a little, compressed."""
    if rng.random() >= HANDLED:
        return image
    height, width = image.shape[:2]
    picture = Image.fromarray(image)
    scale, (right, down) = rng.uniform(*RESCALED), rng.uniform(-1.5, 1.5, 2)
    across, along = (1 - scale) * width / 2 + right, (1 - scale) * height / 2 + down
    if rng.random() < 0.7:
        cells = (scale, 0.0, across, 0.0, scale, along)
        bicubic = Image.Resampling.BICUBIC
        picture = picture.transform((width, height), Image.Transform.AFFINE, cells, bicubic)
    kind = rng.choice(["PNG", "JPEG", "WEBP"])
    if kind != "PNG":
        stored = io.BytesIO()
        picture.save(stored, kind, quality=int(rng.integers(80, 98)))
        picture = Image.open(stored)
    return np.asarray(picture.convert("RGB"))


@dataclass(frozen=True)
class Examples:
    """Views of portraits, and of degraded copies of the clean ones; views are kept in bytes."""

    views: Tensor  # uint8 [n, 12, r, r], quality views; their first three channels are the gender views
    layers: Tensor  # uint8 [n, r, r], FACE, BODY or AROUND; all FACE where nobody knows
    gender: NDArray[np.float32]  # [n] 1 woman, 0 man, NaN unknown
    clean: NDArray[np.float32]  # [n] 1 clean, 0 degraded, NaN unknown
    identity: NDArray[np.int64]  # [n]
    degraded: Tensor  # uint8 [m, 12, r, r], quality views of copies of clean portraits
    source: NDArray[np.intp]  # [m] row of each copy's portrait

    def __len__(self) -> int:
        return len(self.identity)


def to_bytes(images: NDArray[np.uint8], resolution: int) -> Tensor:
    """Images uint8 [n, h, w, 3] -> quality views uint8 [n, 12, r, r]; a byte holds -1..1, of details 0..1."""
    answer = torch.empty((len(images), 12, resolution, resolution), dtype=torch.uint8)
    for start in range(0, len(images), CHUNK):
        view = views(as_input(images[start : start + CHUNK], FINE * resolution), "quality")
        view[:, :3] = (view[:, :3] + 1) / 2
        answer[start : start + CHUNK] = (view * 255).round()
    return answer


def from_bytes(view: Tensor, task: str) -> Tensor:
    """Views uint8 [n, 12, r, r] -> what the classifier of a task sees, float32."""
    if task == "gender":
        return view[:, :3].float() / 127.5 - 1
    pixels = view.float() / 255
    pixels[:, :3] = 2 * pixels[:, :3] - 1
    return pixels


def examples(portraits: Portraits, resolution: int, copies: int, seed: int) -> Examples:
    """Portraits as tensors, with about `copies` degraded copies of the clean ones, a function of the seed.

    Args:
        portraits: of one split.
        resolution: r of the views.
        copies: how many degraded copies are wanted; at least one per clean portrait is made as long as memory
            allows, each with a defect and a strength as in the corpus.
        seed: of the defects.
    """
    masks = torch.from_numpy(portraits.masks)[:, None].float()
    coarse = F.interpolate(masks, (resolution, resolution), mode="nearest-exact")[:, 0].long()
    layers = torch.where(torch.from_numpy(portraits.has_mask)[:, None, None], LAYERS[coarse], FACE)
    gender, clean = portraits.truth["gender"], portraits.truth["quality"]
    sound = np.flatnonzero(clean > 0.5)
    wanted = min(max(copies, len(sound)), COPIES * len(sound), MOST_COPIES)
    rng = np.random.default_rng([seed, 1])
    rounds = -(-wanted // max(len(sound), 1))
    source = np.concatenate([rng.permutation(sound) for _ in range(rounds)] or [sound])[:wanted]
    return Examples(
        views=to_bytes(np.stack([handled(image, rng) for image in portraits.images]), resolution)
        if len(portraits)
        else to_bytes(portraits.images, resolution),
        layers=layers.to(torch.uint8),
        gender=np.where(np.isnan(gender), gender, gender >= 0.5).astype(np.float32),
        clean=np.where(np.isnan(clean), clean, clean > 0.5).astype(np.float32),
        identity=portraits.identity,
        degraded=_degraded(portraits.images, source, resolution, rng),
        source=source,
    )


def _degraded(
    images: NDArray[np.uint8], source: NDArray[np.intp], resolution: int, rng: np.random.Generator
) -> Tensor:
    """Views uint8 [m, 12, r, r] of copies of the rows `source` [m] with a defect each."""
    defects = [defect for _ in source if (defect := draw_defect(1.0, rng))]

    seeds = rng.integers(1 << 31, size=len(source))

    def degrade(k: int) -> NDArray[np.uint8]:
        return handled(defects[k].applied(images[source[k]]), np.random.default_rng(int(seeds[k])))

    answer = torch.empty((len(source), 12, resolution, resolution), dtype=torch.uint8)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:  # numpy and scipy release the lock
        for start in range(0, len(source), CHUNK):
            copies = list(pool.map(degrade, range(start, min(start + CHUNK, len(source)))))
            answer[start : start + CHUNK] = to_bytes(np.stack(copies), resolution)
    return answer


def person_weights(identity: NDArray[np.int64]) -> NDArray[np.float64]:
    """Weights of portraits [n]: a person with four times as many counts twice as much, not four times."""
    _, inverse, count = np.unique(identity, return_inverse=True, return_counts=True)
    return np.asarray(1 / np.sqrt(count[inverse]))


def draw(
    pool: NDArray[np.intp], weights: NDArray[np.float64], count: int, generator: torch.Generator
) -> Tensor:
    """Draw `count` of the row numbers `pool` [k] with the weights [n] of all rows, with replacement."""
    chosen = torch.multinomial(torch.from_numpy(weights[pool]), count, replacement=True, generator=generator)
    return torch.from_numpy(pool)[chosen]


def gender_batch(data: Examples, rows: Tensor, generator: torch.Generator) -> Tensor:
    """Disguised, moved and relit gender views of some rows, float32 [k, 3, r, r] in [-1, 1]."""
    pictures = disguise(from_bytes(data.views[rows], "gender"), data.layers[rows], generator)
    n = len(pictures)
    contrast = 0.75 + 0.5 * torch.rand(n, 1, 1, 1, generator=generator)
    light = 0.3 * (2 * torch.rand(n, 1, 1, 1, generator=generator) - 1)
    tint = 0.1 * (2 * torch.rand(n, 3, 1, 1, generator=generator) - 1)
    return _moved(torch.addcmul(light + tint, pictures, contrast).clamp_(-1, 1), generator)


def disguise(pictures: Tensor, layers: Tensor, generator: torch.Generator) -> Tensor:
    """Paint over what is around the face, or the whole body too, in one random colour per picture.

    Args:
        pictures: float32 [n, 3, h, w] in [-1, 1].
        layers: uint8 [n, h, w] of FACE, BODY and AROUND.
        generator: decides which and how.
    """
    n = len(pictures)
    luck = torch.rand(n, 1, 1, 1, generator=generator)
    colour = 2 * torch.rand(n, 3, 1, 1, generator=generator) - 1
    nothing = torch.full_like(luck, AROUND + 1)
    least = torch.where(luck < HIDDEN_HAIR, AROUND, nothing)
    least = torch.where(luck < HIDDEN_BODY, BODY, least).to(torch.uint8)
    return torch.where(layers[:, None] >= least, colour, pictures)


def _moved(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Mirrored, turned, shifted and cropped by chance."""
    n = len(pictures)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, generator=generator)

    flip = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    turn, zoom = uniform(-1, 1) * math.radians(MAX_TURN), uniform(*ZOOM)
    cos, sin = turn.cos() * zoom, turn.sin() * zoom
    across, down = 2 * uniform(-MAX_SHIFT, MAX_SHIFT), 2 * uniform(-MAX_SHIFT, MAX_SHIFT)
    rows = [torch.stack([cos * flip, -sin, across], 1), torch.stack([sin * flip, cos, down], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), list(pictures.shape), align_corners=False)
    return F.grid_sample(pictures, grid, padding_mode="border", align_corners=False)


def quality_batch(view: Tensor, generator: torch.Generator) -> Tensor:
    """Quality views uint8 [k, 12, r, r] as float32, some mirrored, a little brighter or darker."""
    n = len(view)
    flip = torch.rand(n, 1, 1, 1, generator=generator) < 0.5
    contrast = 0.92 + 0.16 * torch.rand(n, 1, 1, 1, generator=generator)
    light = 0.1 * (torch.rand(n, 1, 1, 1, generator=generator) - 0.5)
    scale = torch.cat([contrast.expand(n, 3, 1, 1) / 127.5, contrast.sqrt().expand(n, 9, 1, 1) / 255], 1)
    offset = torch.cat([(light - contrast).expand(n, 3, 1, 1), torch.zeros(n, 9, 1, 1)], 1)
    return torch.addcmul(offset, torch.where(flip, view.flip(3), view).float(), scale).clamp_(-1, 1)
