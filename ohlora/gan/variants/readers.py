"""Networks that say what a picture shows and pass gradients to it: property network and gender classifier.

They belong to labeling; the judge that decides about champions is another network, which no training sees.
Both are in `eval()`, frozen, and get pictures in the range and at the size that they were trained on.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ohlora.attributes import CONDITION_NAMES
from ohlora.gan.networks import Normalisation
from ohlora.labeling.classifier import FINE as GENDER_FINE
from ohlora.labeling.classifier import folded, views
from ohlora.labeling.filters import Filters
from ohlora.labeling.properties import Properties
from ohlora.labeling.property_network import FINE, PropertyNetwork


def resized(images: Tensor, side: int) -> Tensor:
    """Pictures float32 [n, 3, r, r] as people see them, clamped to [-1, 1], at another size."""
    if images.shape[-1] != side:
        images = F.interpolate(images, (side, side), mode="bilinear", antialias=images.shape[-1] > side)
    return images.clamp(-1, 1)


class PropertyReader(nn.Module):
    """Pictures to the z-scores of the seven conditions."""

    def __init__(self, network: PropertyNetwork, normalisation: Normalisation) -> None:
        super().__init__()
        self.side = FINE * network.resolution
        self.network = folded(network)
        scales = torch.tensor([network.scales[name] for name in CONDITION_NAMES])
        self.register_buffer("gain", scales[:, 1] / normalisation.condition_scale)
        offset = (scales[:, 0] - normalisation.condition_mean) / normalisation.condition_scale
        self.register_buffer("offset", offset)
        self.eval().requires_grad_(False)

    @classmethod
    def load(cls, folder: Path, normalisation: Normalisation) -> PropertyReader:
        """Read a model folder of kind `properties`.

        Raises:
            ArtifactError: it is missing or corrupt.
        """
        return cls(Properties.load(folder, "cpu").network, normalisation)

    def forward(self, images: Tensor) -> Tensor:
        """float32 [n, 3, r, r] in [-1, 1] to z-scores float32 [n, 7]."""
        values = self.network(resized(images, self.side)).values.float()
        scores: Tensor = values * self.gain + self.offset
        return scores


class GenderReader(nn.Module):
    """Pictures to the calibrated probability of a woman."""

    def __init__(self, network: nn.Module, resolution: int, slope: float, bias: float) -> None:
        super().__init__()
        self.side = GENDER_FINE * resolution
        self.network = folded(network)
        self.slope, self.bias = slope, bias
        self.eval().requires_grad_(False)

    @classmethod
    def load(cls, folder: Path) -> GenderReader:
        """The first fold's classifier of a model folder of kind `filters`, as the original took it.

        Raises:
            ArtifactError: it is missing or corrupt.
        """
        filters = Filters.load(folder, "cpu")
        scaling = filters.scaling["gender"]
        return cls(filters.networks["gender"][0], filters.resolution, scaling.slope, scaling.bias)

    def forward(self, images: Tensor) -> Tensor:
        """float32 [n, 3, r, r] in [-1, 1] to probabilities float32 [n]."""
        logits = self.network(views(resized(images, self.side), "gender")).float()
        return torch.sigmoid(self.slope * logits + self.bias)
