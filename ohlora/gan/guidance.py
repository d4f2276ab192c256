"""What holds for people whom nobody rendered: they do as they are told, stay themselves and keep their place.

Distillation knows the training people only. Latents between and around them are drawn here in pairs, the same
person and colours with two expressions, and three networks or rules look at them:
- the property network reads the conditions off the picture, and they must be those that were asked for (the
  original's second fine-tuning, with the network in `eval()` and never the one that judges);
- the identity network must see the same person in both;
- hair and background must be as bright, and the background as uneven, as was asked: arithmetic on the pixels
  under the property network's masks. The masks carry no gradient, so that a picture cannot talk them round;
- where only eyes and mouth differ, all pixels outside of the face must not.
On pictures of known people, features of the property network's trunk, which learned to paint masks, say
whether outlines are where the render has them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ohlora.attributes import CONDITION_NAMES
from ohlora.gan.identity import IdentityNetwork
from ohlora.labeling.property_network import FINE, PropertyNetwork, compute

COLOURS = ("hair_color", "background_mean", "background_std")
MOVING = 3  # eyes, mouth and pose come first
YAW = 30.0  # degrees; what training portraits have
INNER = (0.14, 0.2, 0.86, 1.0)  # left, top, right, bottom: where eyes and mouth of any head may be
FEATURE_STAGES = 3  # of the property network's trunk, from fine to coarse
LEAST_FEATURE = 0.1  # deviations below it are not blown up


@dataclass(frozen=True)
class Pairs:
    """Conditions of pairs of pictures: raw, float32 [n, 7] each; `still` where only eyes and mouth differ."""

    first: Tensor
    second: Tensor
    still: Tensor  # bool [n]


def draw_pairs(count: int, low: np.ndarray, high: np.ndarray, rng: np.random.Generator) -> Pairs:
    """Two expressions each of `count` people, hair and background between `low` and `high`, float [4]."""
    static = rng.uniform(low, high, (count, len(CONDITION_NAMES) - MOVING))

    def moment() -> np.ndarray:
        return np.stack([rng.random(count), rng.random(count), rng.uniform(-YAW, YAW, count)], 1)

    one, other = moment(), moment()
    still = rng.random(count) < 0.5
    other[still, 2] = one[still, 2]
    first, second = (torch.from_numpy(np.concatenate([m, static], 1)).float() for m in (one, other))
    return Pairs(first, second, torch.from_numpy(still))


class Guide:
    """Networks in `eval()` that give gradients to pictures and learn nothing."""

    def __init__(self, properties: PropertyNetwork, identity: IdentityNetwork) -> None:
        self.properties = properties.eval().requires_grad_(False)
        self.identity = identity.eval().requires_grad_(False)
        scales = [properties.scales[name] for name in CONDITION_NAMES]
        self.mean, self.deviation = torch.tensor(scales).t()

    def to(self, device: str) -> Guide:
        self.properties.to(device)
        self.identity.to(device)
        self.mean, self.deviation = self.mean.to(device), self.deviation.to(device)
        return self

    def obedience(self, images: Tensor, wanted: Tensor) -> Tensor:
        """Smooth L1 between what pictures [n, 3, r, r] show and raw conditions [n, 7], in deviations."""
        values = self.properties(self._sized(images)).values
        return F.smooth_l1_loss(values, (wanted - self.mean) / self.deviation, beta=0.3)

    def colours(self, images: Tensor, wanted: Tensor) -> Tensor:
        """Smooth L1 of the `COLOURS` of pictures [n, 3, r, r] and raw conditions [n, 7], in deviations."""
        pixels = self._sized(images)
        with torch.no_grad():
            answer = self.properties(pixels)
        computed = compute(pixels, answer.logits.softmax(1), answer.behind.sigmoid())[0]
        shown = torch.stack([computed[name] for name in COLOURS], 1)
        columns = [CONDITION_NAMES.index(name) for name in COLOURS]
        return F.smooth_l1_loss(
            shown / self.deviation[columns], wanted[:, columns] / self.deviation[columns], beta=0.3
        )

    def strangeness(self, images: Tensor, others: Tensor) -> Tensor:
        """One minus the cosine between the identities of pictures, mean over pairs."""
        return (1 - (self.identity(images) * self.identity(others)).sum(1)).mean()

    def feature_difference(self, output: Tensor, target: Tensor) -> Tensor:
        """Mean absolute difference of trunk features, each in its own deviation over the target."""
        x = F.avg_pool2d(self._sized(torch.cat([output, target])), FINE)
        total = output.new_zeros(())
        for stage in self.properties.stages[:FEATURE_STAGES]:
            x = stage(x)
            drawn, rendered = x.chunk(2)
            scale = rendered.detach().std((0, 2, 3), keepdim=True).clamp_min(LEAST_FEATURE)
            total = total + ((drawn - rendered.detach()) / scale).abs().mean() / FEATURE_STAGES
        return total

    def _sized(self, images: Tensor) -> Tensor:
        size = FINE * self.properties.resolution
        if images.shape[-1] == size:
            return images
        return F.interpolate(images, (size, size), mode="bilinear", antialias=images.shape[-1] > size)


def outside_change(images: Tensor, others: Tensor) -> Tensor:
    """Mean absolute difference of pictures [n, 3, r, r] where no eye and no mouth can be."""
    size = images.shape[-1]
    left, top, right, bottom = (round(edge * size) for edge in INNER)
    outside = torch.ones(size, size, dtype=torch.bool, device=images.device)
    outside[top:bottom, left:right] = False
    return (images - others)[..., outside].abs().mean()
