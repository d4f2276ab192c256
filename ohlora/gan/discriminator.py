"""Is this patch of a portrait rendered or drawn? The network that a generator is sharpened against.

A patch discriminator (Isola et al. 2017, arXiv:1611.07004): its field of view covers a lock of hair or an
eye, not a face. What a face looks like is learned from pairs; what is missing after that is texture. R1 on
rendered pictures, applied lazily (Mescheder et al. 2018, arXiv:1801.04406; Karras et al. 2020, section 3.1).
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SHUFFLE = 2  # neighbouring pixels side by side as channels: a quarter of the cost, nothing lost


class Discriminator(nn.Module):
    """float32 [n, 3, r, r] in [-1, 1] to logits [n, 1, r/16, r/16]; positive is rendered."""

    def __init__(
        self,
        width: int = 32,  # channels at half the resolution; doubled at each halving, four times at most
    ) -> None:
        super().__init__()
        widths = [width, width, 2 * width, 4 * width, 4 * width]
        layers: list[nn.Module] = [nn.PixelUnshuffle(SHUFFLE), nn.Conv2d(3 * SHUFFLE**2, width, 3, 1, 1)]
        for before, after in itertools.pairwise(widths[1:]):
            layers += [nn.LeakyReLU(0.2), nn.Conv2d(before, after, 3, 2, 1)]
        layers += [nn.LeakyReLU(0.2), nn.Conv2d(widths[-1], widths[-1], 3, 1, 1)]
        layers += [nn.LeakyReLU(0.2), nn.Conv2d(widths[-1], 1, 1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.layers(images)
        return logits


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Non-saturating logistic loss of logits (Goodfellow et al. 2014)."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def generator_loss(fake: Tensor) -> Tensor:
    """Non-saturating: high where the discriminator is not fooled."""
    return F.softplus(-fake).mean()


def r1_penalty(discriminator: nn.Module, images: Tensor) -> Tensor:
    """Squared gradient of the logits' sum with respect to rendered images, mean over the batch."""
    images = images.detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(discriminator(images).mean((1, 2, 3)).sum(), images, create_graph=True)
    return gradient.square().sum((1, 2, 3)).mean()
