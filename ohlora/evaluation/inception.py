"""Inception features for the distances of the image-generation test, where a hub is at hand.

The weights are torchvision's for ImageNet, not the ones of the published FID: compare figures only with each
other.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

SIZE = 299  # pixels that Inception sees
BATCH = 16
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as the weights expect


class InceptionMissing(RuntimeError):
    """The weights cannot be had; the message says why."""


def inception_features(device: str = "auto") -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
    """Pictures uint8 [n, h, w, 3] -> pooled features float32 [n, 2048].

    Raises:
        InceptionMissing: the weights are not cached and cannot be fetched.
    """
    from torchvision.models import Inception_V3_Weights, inception_v3

    try:
        weights = Inception_V3_Weights.IMAGENET1K_V1.get_state_dict(
            progress=False, check_hash=True, weights_only=True
        )
    except (OSError, RuntimeError) as error:
        raise InceptionMissing(f"torchvision's weights are not to be had: {error}") from error
    network = inception_v3(weights=None, init_weights=False, transform_input=False)
    network.load_state_dict(weights)
    network.fc = nn.Identity()
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    network.to(device).eval()
    mean, deviation = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (MEAN, DEVIATION))

    @torch.inference_mode()
    def features(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        parts = []
        for start in range(0, len(images), BATCH):
            batch = torch.from_numpy(np.ascontiguousarray(images[start : start + BATCH])).to(device)
            pixels = batch.permute(0, 3, 1, 2).float() / 255
            fine = F.interpolate(pixels, (SIZE, SIZE), mode="bilinear", antialias=True)
            parts.append(network((fine - mean) / deviation).float().cpu().numpy())
        found: NDArray[np.float32] = np.concatenate(parts)
        return found

    return features
