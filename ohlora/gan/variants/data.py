"""Portraits and their attributes as the variants see them: z-scores over what trains."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ohlora.attributes import CONDITION_NAMES
from ohlora.corpus import Portraits
from ohlora.gan.data import CorpusUnusable, held_out, persona_identity
from ohlora.gan.networks import NUISANCE_NAMES, Normalisation

POSE = CONDITION_NAMES.index("pose")
LEAST_DEVIATION = 1e-3  # of an attribute, in its own unit


@dataclass(frozen=True)
class PortraitBatch:
    """What one step sees."""

    images: Tensor  # float32 [n, 3, r, r] in [-1, 1]
    labels: Tensor  # z-scores in the order of CONDITION_NAMES, float32 [n, 7]


class PortraitSet:
    """The portraits that may train a variant, in memory at one resolution."""

    def __init__(
        self,
        portraits: Portraits,
        conditions: NDArray[np.float32],
        kept: NDArray[np.bool_],
        resolution: int,
    ) -> None:
        """
        Args:
            portraits: the corpus.
            conditions: raw, float32 [n, 7] as of `ohlora.gan.data.conditions_of`; rows with a gap drop out.
            kept: bool [n] as of `ohlora.gan.data.kept_of`; the persona's portraits train whatever it says.
            resolution: pixels of the variants' pictures.

        Raises:
            CorpusUnusable: nothing is left to train on.
        """
        identity = np.asarray(portraits.identity)
        hers = identity == persona_identity(identity)
        known = ~np.isnan(conditions).any(1) & ~held_out(portraits)
        rows = np.flatnonzero(known & (hers | (kept & (np.asarray(portraits.split) == "train"))))
        if not len(rows) or not hers[rows].any():
            raise CorpusUnusable(
                f"no portrait to train variants on: {len(identity)} portraits, {int(known.sum())} with all "
                f"labels and not held out, {int((known & hers).sum())} of them Oh-LoRA's"
            )
        self.images = torch.empty(len(rows), 3, resolution, resolution, dtype=torch.uint8)
        for start in range(0, len(rows), 64):
            part = rows[start : start + 64]
            full = torch.from_numpy(np.ascontiguousarray(portraits.images[part])).permute(0, 3, 1, 2).float()
            small = F.interpolate(full, (resolution, resolution), mode="area")
            self.images[start : start + 64] = small.round().byte()
        self.raw = conditions[rows].astype(np.float32)
        self.hers = np.flatnonzero(hers[rows])  # rows of Oh-LoRA
        deviation = self.raw.std(0, ddof=1) if len(rows) > 1 else np.ones(self.raw.shape[1])
        self.normalisation = Normalisation(
            condition_mean=torch.from_numpy(self.raw.mean(0)).float(),
            condition_scale=torch.from_numpy(np.maximum(deviation, LEAST_DEVIATION)).float(),
            nuisance_mean=torch.zeros(len(NUISANCE_NAMES)),
            nuisance_scale=torch.ones(len(NUISANCE_NAMES)),
        )

    def __len__(self) -> int:
        return len(self.raw)

    def scores(self, raw: NDArray[np.floating]) -> Tensor:
        """z-scores of raw conditions [n, 7], float32."""
        return self.normalisation(torch.from_numpy(raw.astype(np.float32)), None)[0]

    def pixels(self, rows: NDArray[np.integer]) -> Tensor:
        """Portraits, float32 [n, 3, r, r] in [-1, 1]."""
        return self.images[torch.from_numpy(np.asarray(rows, np.int64))].float() / 127.5 - 1

    def batch(self, size: int, rng: np.random.Generator, mirror: bool = True) -> PortraitBatch:
        """Draw portraits without a repetition as far as there are enough; half of them mirrored."""
        rows = rng.choice(len(self), size, replace=size > len(self))
        images, raw = self.pixels(rows), self.raw[rows].copy()
        if mirror:
            flipped = rng.random(size) < 0.5
            images[torch.from_numpy(flipped)] = images[torch.from_numpy(flipped)].flip(3)
            raw[flipped, POSE] *= -1
        return PortraitBatch(images, self.scores(raw))

    def random_labels(self, size: int, rng: np.random.Generator) -> Tensor:
        """z-scores [n, 7] of which each comes from a portrait of its own: all combinations occur."""
        rows = rng.integers(len(self), size=(size, self.raw.shape[1]))
        return self.scores(np.take_along_axis(self.raw, rows, 0))
