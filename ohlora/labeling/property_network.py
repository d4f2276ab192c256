"""The network that reads the seven conditions off a portrait.

One trunk sees the whole picture and paints a coarse soft mask of the face classes, and a fine one of the
background behind the upper half; training supervises both with the true ones. What the masks can answer is
computed, not guessed:
- brightness of the hair is a weighted mean under the coarse mask, over the moments of the full resolution's
  pixels, so that coarse cells lose no deviation;
- the background's brightness and its deviation are taken under the fine mask: between strands of hair a
  coarse one always has some hair in it, and a little hair is a large deviation;
- the length of hair is the number of rows above the last one that has some;
- positions and sizes of all classes go to the heads as features: yaw is where the nose is in the face.
Eyes and mouth have a small network each that sees their area at twice the trunk's resolution. What is
computed gets a learned gain and offset; to the hair's a head adds a small correction, starting at none.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ohlora.attributes import CONDITION_NAMES, FaceClass
from ohlora.corpus.brightness import REACH
from ohlora.labeling.classifier import ConvNorm, Residual

FINE = 2  # pictures have this many times the resolution of the whole view
GRID = 64  # areas are given in this many parts of the picture
AREAS = ("eyes", "mouth")
COMPUTED = ("hair_color", "hair_length", "background_mean", "background_std")
CORRECTED = ("hair_color", "hair_length")  # the background's brightness leaves nothing to guess
MOST_CORRECTION = 0.3  # standard deviations

TRUNK = (16, 32, 64, 96)  # channels after each halving
AREA_WIDTHS = (16, 24, 48, 64)  # channels after each halving
PYRAMID = 24  # channels of the mask's decoder
FINE_WIDTH = 24  # channels of the fine mask's decoder
CONTEXT = 96  # features that all heads share
AREA_FEATURES = 64
CLASSES = len(FaceClass)
MOMENTS = 5  # features of each class: size, place, spread
STATISTICS = 9
FAR = (3.5, 16.0)  # deviations, and grey levels besides: pixels beyond them hardly count as background

Box = tuple[int, int, int, int]  # left, top, right, bottom in parts of GRID


@dataclass(frozen=True)
class Answer:
    """What the network says about n pictures of 2r x 2r pixels."""

    values: Tensor  # float32 [n, 7] of CONDITION_NAMES, standardised
    logits: Tensor  # float32 [n, classes, r/2, r/2] of the coarse mask
    behind: Tensor  # float32 [n, r, 2r], logits of the background in the upper half of the picture
    seen: Tensor  # float32 [n, 3] shares of the picture: face, hair, background of the upper half


class PropertyNetwork(nn.Module):
    """float32 [n, 3, 2r, 2r] in [-1, 1] -> `Answer`."""

    def __init__(
        self,
        resolution: int,  # r of the whole view
        boxes: dict[str, Box],  # of AREAS
        scales: dict[str, tuple[float, float]],  # of CONDITION_NAMES: mean and deviation of the truth
    ) -> None:
        super().__init__()
        self.resolution = resolution
        self.boxes = boxes
        self.scales = scales
        first, second, third, fourth = TRUNK
        self.stages = nn.ModuleList(
            [
                ConvNorm(3, first, stride=2),
                nn.Sequential(ConvNorm(first, second, stride=2), Residual(second)),
                nn.Sequential(ConvNorm(second, third, stride=2), Residual(third)),
                nn.Sequential(ConvNorm(third, fourth, stride=2), Residual(fourth)),
            ]
        )
        self.lateral = nn.ModuleList([nn.Conv2d(width, PYRAMID, 1) for width in TRUNK])
        self.painter = nn.Sequential(ConvNorm(PYRAMID, PYRAMID), nn.Conv2d(PYRAMID, CLASSES, 1))
        self.fine_painter = nn.Sequential(
            ConvNorm(3 * FINE**2 + PYRAMID, FINE_WIDTH),
            Residual(FINE_WIDTH),
            ConvNorm(FINE_WIDTH, FINE_WIDTH),
            nn.Conv2d(FINE_WIDTH, FINE**2, 1),
            nn.PixelShuffle(FINE),
        )
        self.places = nn.Conv2d(fourth, 8, 1)
        cells = (resolution // 16) ** 2
        measured = CLASSES * MOMENTS + STATISTICS
        self.measured_norm = nn.BatchNorm1d(measured)
        self.context = nn.Sequential(
            nn.Linear(fourth + 8 * cells + measured, CONTEXT), nn.BatchNorm1d(CONTEXT), nn.ReLU()
        )
        self.areas = nn.ModuleDict({name: AreaNetwork(_size(boxes[name], resolution)) for name in AREAS})
        self.heads = nn.ModuleDict()
        self.gain = nn.Parameter(torch.ones(len(COMPUTED)))
        self.offset = nn.Parameter(torch.zeros(len(COMPUTED)))
        for name in CONDITION_NAMES:
            if name in COMPUTED and name not in CORRECTED:
                continue
            inputs = CONTEXT + measured + (AREA_FEATURES if name in AREAS else 0)
            last = nn.Linear(48, 1)
            if name in CORRECTED:
                nn.init.zeros_(last.weight)
                nn.init.zeros_(last.bias)
            self.heads[name] = nn.Sequential(nn.Linear(inputs, 48), nn.ReLU(), last)

    def forward(self, pixels: Tensor) -> Answer:
        side = FINE * self.resolution
        assert pixels.shape[1:] == (3, side, side), pixels.shape
        x = F.avg_pool2d(pixels, FINE)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        painted = self.lateral[-1](maps[-1])
        for i in (2, 1, 0):
            painted = F.interpolate(painted, scale_factor=2.0, mode="nearest") + self.lateral[i](maps[i])
        logits = self.painter(painted)
        shares = logits.float().softmax(1)

        near = F.pixel_unshuffle(pixels[:, :, : self.resolution], FINE)
        rough = F.interpolate(painted[:, :, : self.resolution // 4], scale_factor=2.0, mode="nearest")
        behind = self.fine_painter(torch.cat([near, rough], 1))[:, 0].float()

        computed, statistics, seen = compute(pixels.float(), shares, behind.sigmoid())
        measured = self.measured_norm(torch.cat([moments(shares), statistics], 1))
        coarse = maps[-1].float()
        context = self.context(torch.cat([coarse.mean((2, 3)), self.places(coarse).flatten(1), measured], 1))
        values = []
        for name in CONDITION_NAMES:
            if name in self.heads:
                features = [context, measured]
                if name in AREAS:
                    features.append(self.areas[name](cut(pixels, self.boxes[name])))
                value = self.heads[name](torch.cat(features, 1))[:, 0]
            if name in COMPUTED:
                mean, deviation = self.scales[name]
                i = COMPUTED.index(name)
                exact = self.gain[i] * (computed[name] - mean) / deviation + self.offset[i]
                value = exact + MOST_CORRECTION * value.tanh() if name in CORRECTED else exact
            values.append(value)
        return Answer(torch.stack(values, 1), logits, behind, seen)


class AreaNetwork(nn.Module):
    """float32 [n, 3, h, w] -> features float32 [n, AREA_FEATURES]."""

    def __init__(self, size: tuple[int, int]) -> None:  # height and width, pixels
        super().__init__()
        first, second, third, fourth = AREA_WIDTHS
        self.body = nn.Sequential(
            ConvNorm(3, first, stride=2),
            ConvNorm(first, second, stride=2),
            ConvNorm(second, third, stride=2),
            Residual(third),
            ConvNorm(third, fourth, stride=2),
        )
        height, width = (-(-s // 16) for s in size)
        self.out = nn.Sequential(
            nn.Linear(fourth * height * width, AREA_FEATURES), nn.BatchNorm1d(AREA_FEATURES), nn.ReLU()
        )

    def forward(self, area: Tensor) -> Tensor:
        features: Tensor = self.out(self.body(area).float().flatten(1))
        return features


def _size(box: Box, resolution: int) -> tuple[int, int]:
    """Height and width of an area in pixels of the fine picture."""
    unit = FINE * resolution // GRID
    left, top, right, bottom = box
    return (bottom - top) * unit, (right - left) * unit


def cut(pixels: Tensor, box: Box) -> Tensor:
    """An area of fine pictures [n, 3, 2r, 2r]."""
    unit = pixels.shape[2] // GRID
    left, top, right, bottom = (edge * unit for edge in box)
    return pixels[:, :, top:bottom, left:right]


def compute(pixels: Tensor, shares: Tensor, behind: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """What soft masks answer by themselves.

    Args:
        pixels: float32 [n, 3, 2r, 2r] in [-1, 1].
        shares: float32 [n, classes, r/2, r/2], summing to 1 over the classes.
        behind: probability of the background, float32 [n, r, 2r], of the upper half.

    Returns:
        `COMPUTED` name -> [n] in the units of `Attributes`; the same under laxer weights and sizes as
        features, [n, STATISTICS]; the shares of the picture that are face, hair, and background of the upper
        half, [n, 3].
    """
    gray = pixels.mean(1, keepdim=True)
    cell = gray.shape[2] // shares.shape[2]
    first = F.avg_pool2d(gray, cell)[:, 0]
    second = F.avg_pool2d(gray.square(), cell)[:, 0]
    half = shares.shape[2] // 2
    hair, coarse = shares[:, FaceClass.HAIR], shares[:, FaceClass.BACKGROUND, :half]
    hair_mean, hair_std = _brightness(first, second, hair**4)
    lax_hair_mean, _ = _brightness(first, second, hair)
    # as the truth is defined: what counts has only background around it, if there is any such
    window = 2 * round(REACH * gray.shape[2]) + 1
    around = -F.max_pool2d(-behind[:, None], window, 1, window // 2)[:, 0]
    upper = gray[:, 0, : behind.shape[1]]
    mean, std = _brightness(upper, upper.square(), around**4 + 1e-5 * behind**8, far=FAR)
    lax_mean, lax_std = _brightness(first[:, :half], second[:, :half], coarse**2)
    length = _length(hair, 2)
    seen = torch.stack([1 - _outside(shares).mean((1, 2)), hair.mean((1, 2)), coarse.mean((1, 2)) / 2], 1)
    computed = {
        "hair_color": hair_mean,
        "hair_length": length,
        "background_mean": mean,
        "background_std": std,
    }
    brightness = [hair_mean, hair_std, lax_hair_mean, mean, std, lax_mean, lax_std]
    statistics = torch.stack([*(b / 127.5 for b in brightness), length, _length(hair, 4)], 1)
    return computed, statistics, seen


def _brightness(
    first: Tensor, second: Tensor, weights: Tensor, far: tuple[float, float] | None = None
) -> tuple[Tensor, Tensor]:
    """Mean and deviation in 0..255 of cells [n, h, w] that know their first and second moment in [-1, 1].

    With `far`, in deviations and grey levels, once more without cells that far from the mean: hair that the
    mask takes for background.
    """
    total = weights.sum((1, 2)) + 1e-4
    mean = (first * weights).sum((1, 2)) / total
    variance = (second * weights).sum((1, 2)) / total - mean.square()
    deviation = variance.clamp(min=1e-6).sqrt()
    if far is not None:
        deviations, levels = far
        away = (first - mean[:, None, None]) / (deviations * deviation + levels / 127.5)[:, None, None]
        return _brightness(first, second, weights * torch.exp(-0.5 * away**4))
    return (mean + 1) * 127.5, deviation * 127.5


def _length(hair: Tensor, sharpness: int) -> Tensor:
    """Share of the rows at or above the last one with hair, [n], of shares [n, h, w].

    A row has hair if its cells have some together: powers of shares keep many cells of hardly any from that.
    """
    rows = 1 - torch.exp(-(hair**sharpness).sum(2))
    return rows.flip(1).cummax(1).values.mean(1)


def _outside(shares: Tensor) -> Tensor:
    """Share [n, h, w] of what is no part of a face."""
    outside = (FaceClass.BACKGROUND, FaceClass.HAIR, FaceClass.NECK, FaceClass.CLOTHES, FaceClass.EARS)
    return shares[:, list(outside)].sum(1)


def moments(shares: Tensor) -> Tensor:
    """Size, place and spread of each class in -1..1 coordinates, [n, classes * MOMENTS].

    Args:
        shares: float32 [n, classes, h, w].
    """
    n, classes, h, w = shares.shape
    y = (torch.arange(h, device=shares.device, dtype=shares.dtype) + 0.5) * 2 / h - 1
    x = (torch.arange(w, device=shares.device, dtype=shares.dtype) + 0.5) * 2 / w - 1
    columns, rows = shares.sum(2), shares.sum(3)  # [n, classes, w], [n, classes, h]
    area = columns.sum(2)
    total = area + 1.0  # a class of less than a cell has no place
    mean_x, mean_y = columns @ x / total, rows @ y / total
    spread_x = ((columns @ x.square()) / total - mean_x.square()).clamp(min=1e-5).sqrt()
    spread_y = ((rows @ y.square()) / total - mean_y.square()).clamp(min=1e-5).sqrt()
    size = (area / (h * w)).clamp(min=1e-6).sqrt()
    return torch.stack([size, mean_x, mean_y, spread_x, spread_y], 2).reshape(n, classes * MOMENTS)
