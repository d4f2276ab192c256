"""Is this a woman, is this a clean picture? Two ensembles of small networks with calibrated probabilities.

A model folder holds the networks of all folds (`filters.safetensors`), who was in which fold (`folds.json`)
and a manifest with the Platt scaling of each question. `ohlora.labeling.filter_training` makes it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ohlora.artifacts import ArtifactError, verify, write_manifest
from ohlora.config import FiltersConfig
from ohlora.labeling.classifier import CHANNELS, FINE, TASKS, Classifier, folded, views
from ohlora.labeling.parser import as_input, pick_device
from ohlora.labeling.reliability import Scaling

KIND = "filters"
WEIGHTS = "filters.safetensors"
FOLDS = "folds.json"
FILTER_BATCH = 32  # images at a time

Probabilities = Mapping[str, NDArray[np.floating]]


class Filters:
    """Trained gender and quality classifiers, always in `eval()`."""

    def __init__(
        self,
        networks: Mapping[str, list[Classifier]],
        scaling: Mapping[str, Scaling],
        resolution: int,
        device: torch.device,
        folds: Mapping[int, int] | None = None,
        digest: str = "",
    ) -> None:
        self.networks = {task: [n.eval() for n in networks[task]] for task in TASKS}  # as trained
        self._fast = {
            task: [folded(n).to(device, memory_format=torch.channels_last) for n in networks[task]]  # type: ignore[call-overload]
            for task in TASKS
        }
        self.scaling = dict(scaling)
        self.resolution = resolution  # of the views, pixels
        self.device = device
        self.folds = dict(folds or {})  # identity -> fold; everyone these networks were trained on
        self.digest = digest  # of the manifest

    @classmethod
    def load(cls, folder: Path, device: str = "auto") -> Filters:
        """Load a model folder of kind `filters`.

        Raises:
            ArtifactError: a file is missing or corrupt, or the weights are of other networks.
        """
        manifest = verify(folder, KIND)
        try:
            resolution, count = int(manifest.settings["resolution"]), int(manifest.settings["folds"])
            scaling = {task: Scaling.model_validate(manifest.settings["scaling"][task]) for task in TASKS}
            folds = {int(i): int(f) for i, f in json.loads((folder / FOLDS).read_text("utf-8")).items()}
            stored = load_file(folder / WEIGHTS)
            networks = {}
            for task in TASKS:
                networks[task] = [Classifier(CHANNELS[task]) for _ in range(count)]
                for fold, network in enumerate(networks[task]):
                    network.load_state_dict(_part(stored, f"{task}.{fold}."))
        except (TypeError, KeyError, ValueError, AttributeError, RuntimeError, ValidationError) as error:
            raise ArtifactError(f"{folder}: settings or weights do not make filters: {error}") from error
        return cls(networks, scaling, resolution, pick_device(device), folds, manifest.digest)

    @torch.no_grad()
    def logits(self, images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """What each network of each task says about images uint8 [n, h, w, 3]: float32 [folds, n].

        Raises:
            ValueError: not an array of RGB images.
        """
        if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8:
            raise ValueError(f"images must be uint8 [n, h, w, 3], got {images.dtype} {images.shape}")
        answer = {task: np.empty((len(self.networks[task]), len(images)), np.float32) for task in TASKS}
        for start in range(0, len(images), FILTER_BATCH):
            rows = slice(start, start + FILTER_BATCH)
            pixels = as_input(images[rows], FINE * self.resolution).to(self.device)
            for task in TASKS:
                view = views(pixels, task).contiguous(memory_format=torch.channels_last)
                for fold, network in enumerate(self._fast[task]):
                    answer[task][fold, rows] = network(view).float().cpu().numpy()
        return answer

    def probabilities(self, images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """Probability of a woman (`gender`) and of a clean picture (`quality`), float32 [n] each.

        The mean over the folds of their calibrated probabilities.

        Args:
            images: uint8 [n, h, w, 3] RGB of any size.

        Raises:
            ValueError: not an array of RGB images.
        """
        return {
            task: self.scaling[task](logits).mean(0).astype(np.float32)
            for task, logits in self.logits(images).items()
        }


def passes(probabilities: Probabilities, config: FiltersConfig) -> NDArray[np.bool_]:
    """Which portraits the thresholds of the settings keep, bool [n]; unknown (NaN) is not kept.

    Args:
        probabilities: `gender` and `quality`, [n] each.
    """
    gender, quality = (np.asarray(probabilities[task]) for task in TASKS)
    return (gender >= config.gender_at_least) & (quality >= config.quality_at_least)


def save(filters: Filters, folder: Path, provenance: dict[str, Any]) -> None:
    """Write a model folder: learned weights in half precision, running statistics as they are."""
    folder.mkdir(parents=True, exist_ok=True)
    weights: dict[str, Tensor] = {}
    for task in TASKS:
        for fold, network in enumerate(filters.networks[task]):
            learned = dict(network.named_parameters())
            for name, value in network.state_dict().items():
                kept = value.half() if name in learned else value
                weights[f"{task}.{fold}.{name}"] = kept.cpu().contiguous()
    save_file(weights, folder / WEIGHTS)
    (folder / FOLDS).write_text(json.dumps(filters.folds) + "\n", encoding="utf-8")
    settings = {
        "resolution": filters.resolution,
        "folds": len(filters.networks[TASKS[0]]),
        "scaling": {task: filters.scaling[task].model_dump() for task in TASKS},
    }
    write_manifest(folder, KIND, files=[WEIGHTS, FOLDS], settings=settings, provenance=provenance)


def _part(stored: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): value.float() if value.is_floating_point() else value
        for name, value in stored.items()
        if name.startswith(prefix)
    }
