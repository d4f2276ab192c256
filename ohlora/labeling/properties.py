"""The seven conditions read off pictures by a trained network, in the units of `Attributes`.

`ohlora.labeling.property_training` makes the model folder: weights (`properties.safetensors`), the people it
was trained on (`people.json`) and a manifest with the areas and the scales.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from ohlora.artifacts import ArtifactError, verify, write_manifest
from ohlora.attributes import CONDITION_NAMES
from ohlora.labeling.classifier import folded
from ohlora.labeling.parser import as_input, pick_device
from ohlora.labeling.property_network import AREAS, FINE, PropertyNetwork

KIND = "properties"
WEIGHTS = "properties.safetensors"
PEOPLE = "people.json"
PROPERTY_BATCH = 16  # images at a time; what they compute stays in the cache

LIMITS = {
    "eyes": (0.0, 1.0),
    "mouth": (0.0, 1.0),
    "pose": (-90.0, 90.0),
    "hair_color": (0.0, 255.0),
    "hair_length": (0.0, 1.0),
    "background_mean": (0.0, 255.0),
    "background_std": (0.0, 128.0),
}
NEEDS = {  # column of Answer.seen that must not be empty
    "eyes": 0,
    "mouth": 0,
    "pose": 0,
    "hair_color": 1,
    "hair_length": 1,
    "background_mean": 2,
    "background_std": 2,
}
LEAST_SEEN = 0.002  # of the picture; of less nothing can be said


class Properties:
    """A trained property network, always in `eval()`."""

    def __init__(
        self,
        network: PropertyNetwork,
        device: torch.device,
        people: Sequence[int] = (),
        digest: str = "",
    ) -> None:
        self.network = network.eval()  # as trained
        self._fast = folded(network).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.device = device
        self.people = tuple(people)  # identities that it was trained on
        self.digest = digest  # of the manifest

    @classmethod
    def load(cls, folder: Path, device: str = "auto") -> Properties:
        """Load a model folder of kind `properties`.

        Raises:
            ArtifactError: a file is missing or corrupt, or the weights are of another network.
        """
        manifest = verify(folder, KIND)
        try:
            settings = manifest.settings
            left_top_right_bottom = {name: tuple(int(e) for e in settings["boxes"][name]) for name in AREAS}
            scales = {n: (float(settings["scales"][n][0]), float(settings["scales"][n][1])) for n in LIMITS}
            network = PropertyNetwork(int(settings["resolution"]), left_top_right_bottom, scales)  # type: ignore[arg-type]
            stored = load_file(folder / WEIGHTS)
            network.load_state_dict(
                {name: w.float() if w.is_floating_point() else w for name, w in stored.items()}
            )
            people = [int(i) for i in json.loads((folder / PEOPLE).read_text("utf-8"))]
        except (TypeError, KeyError, ValueError, IndexError, RuntimeError) as error:
            raise ArtifactError(
                f"{folder}: settings or weights do not make a property network: {error}"
            ) from error
        return cls(network, pick_device(device), people, manifest.digest)

    @torch.no_grad()
    def values(self, images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """What images uint8 [n, h, w, 3] show: name of `CONDITION_NAMES` -> float32 [n].

        In the units of `Attributes`. NaN is unknown: eyes, mouth and pose where no face is seen, the colour
        and length of hair where there is none, the background's where the upper half shows none.

        Raises:
            ValueError: not an array of RGB images.
        """
        if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8:
            raise ValueError(f"images must be uint8 [n, h, w, 3], got {images.dtype} {images.shape}")
        standardised = np.empty((len(images), len(CONDITION_NAMES)), np.float32)
        seen = np.empty((len(images), 3), np.float32)
        for start in range(0, len(images), PROPERTY_BATCH):
            rows = slice(start, start + PROPERTY_BATCH)
            pixels = as_input(images[rows], FINE * self.network.resolution)
            answer = self._fast(pixels.to(self.device, memory_format=torch.channels_last))
            standardised[rows] = answer.values.float().cpu().numpy()
            seen[rows] = answer.seen.float().cpu().numpy()
        values = {}
        for i, name in enumerate(CONDITION_NAMES):
            mean, deviation = self.network.scales[name]
            value = np.clip(standardised[:, i] * deviation + mean, *LIMITS[name])
            values[name] = np.where(seen[:, NEEDS[name]] < LEAST_SEEN, np.nan, value).astype(np.float32)
        return values


def save(properties: Properties, folder: Path, provenance: dict[str, Any]) -> None:
    """Write a model folder: learned weights in half precision, running statistics as they are."""
    folder.mkdir(parents=True, exist_ok=True)
    network = properties.network
    learned = dict(network.named_parameters())
    weights = {
        name: (value.half() if name in learned else value).cpu().contiguous()
        for name, value in network.state_dict().items()
    }
    save_file(weights, folder / WEIGHTS)
    (folder / PEOPLE).write_text(json.dumps(sorted(properties.people)) + "\n", encoding="utf-8")
    settings = {
        "resolution": network.resolution,
        "boxes": {name: list(box) for name, box in network.boxes.items()},
        "scales": {name: list(scale) for name, scale in network.scales.items()},
    }
    write_manifest(folder, KIND, files=[WEIGHTS, PEOPLE], settings=settings, provenance=provenance)
