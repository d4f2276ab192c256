"""A small network that answers one yes-or-no question about a portrait, and the two views that it gets.

Notable:
- The quality view splits the full resolution into a half-size picture and the magnitudes of its Haar
  details (square roots, so that faint grain counts): noise and blur are bright and dark there, where a
  network that sees pixels would first have to find filters for them.
- Mean and maximum are pooled side by side: a defect may cover all of the picture or one patch of it.
- Batch normalisation is folded into the convolutions for inference (`folded`).
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ohlora.attributes import ATTRIBUTE_NAMES

TASKS: tuple[str, ...] = ATTRIBUTE_NAMES[:2]
"""gender, quality: what the filters tell."""

WIDTHS = (16, 24, 48, 96)  # channels after each halving
DROPOUT = 0.2
FINE = 2  # the views are cut from pictures of this many times their resolution
CHANNELS = {"gender": 3, "quality": 12}


class Classifier(nn.Module):
    """float32 [n, channels, r, r] -> logits float32 [n]."""

    def __init__(
        self,
        channels: int,  # of the view
        widths: tuple[int, ...] = WIDTHS,  # channels after each halving
    ) -> None:
        super().__init__()
        self.channels = channels
        layers: list[nn.Module] = []
        for i, width in enumerate(widths):
            layers.append(ConvNorm(channels if i == 0 else widths[i - 1], width, stride=2))
            if i >= 2:
                layers.append(Residual(width))
        self.body = nn.Sequential(*layers)
        self.dropout = nn.Dropout(DROPOUT)
        self.head = nn.Linear(2 * widths[-1], 1)

    def forward(self, view: Tensor) -> Tensor:
        assert view.shape[1] == self.channels, view.shape
        features = self.body(view)
        pooled = torch.cat([features.mean((2, 3)), features.amax((2, 3))], 1)
        logits: Tensor = self.head(self.dropout(pooled))[:, 0]
        return logits


class ConvNorm(nn.Sequential):
    """3 x 3 convolution, batch normalisation, ReLU."""

    def __init__(self, channels: int, width: int, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(channels, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )


class Residual(nn.Module):
    """x + f(x) with one convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = ConvNorm(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def folded(network: nn.Module) -> nn.Module:
    """A copy in `eval()` with batch normalisations inside the convolutions: the same answers, faster."""
    copied = copy.deepcopy(network).eval()
    for module in copied.modules():
        if isinstance(module, ConvNorm) and isinstance(module[1], nn.BatchNorm2d):
            convolution = module[0]
            assert isinstance(convolution, nn.Conv2d)
            module[0] = nn.utils.fuse_conv_bn_eval(convolution, module[1])
            module[1] = nn.Identity()
    return copied.requires_grad_(False)


def views(pixels: Tensor, task: str) -> Tensor:
    """What the classifier of a task sees of fine pictures.

    Args:
        pixels: float32 [n, 3, 2r, 2r] in [-1, 1].
        task: one of `TASKS`.

    Returns:
        float32 [n, CHANNELS[task], r, r].
    """
    return F.avg_pool2d(pixels, FINE) if task == "gender" else _haar(pixels)


def _haar(pixels: Tensor) -> Tensor:
    """Half-size picture [n, 3] and the roots of the magnitudes of its details [n, 9], each [r, r]."""
    upper_left, upper_right = pixels[:, :, ::2, ::2], pixels[:, :, ::2, 1::2]
    lower_left, lower_right = pixels[:, :, 1::2, ::2], pixels[:, :, 1::2, 1::2]
    left, right = upper_left + lower_left, upper_right + lower_right
    vertical = upper_left - lower_left, upper_right - lower_right
    details = torch.cat([left - right, vertical[0] + vertical[1], vertical[0] - vertical[1]], 1) / 4
    return torch.cat([(left + right) / 4, details.abs().sqrt()], 1)
