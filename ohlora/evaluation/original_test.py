"""The image-generation test of the original Oh-LoRA project, as it was, for comparison.

Each of 30 latents is drawn under 2 eyes x 5 mouths x 5 poses in z units, all other labels 0. Per latent and
attribute, Pearson's correlation and the mean absolute error of requested against seen z values over the 50
pictures; a latent passes if all six hold. The original let the network judge that its generator had been
optimised against, and reported the best of its latents; here the independent judge reads, and the table shows
them all. Its mouth of -1.2 and pose of 3.6 lie outside what a face can show (see `ohlora.evaluation.units`):
such wishes are clamped, counted, and compared after clamping.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ohlora.attributes import CONDITION_NAMES
from ohlora.evaluation.units import Units
from ohlora.evaluation.witness import Artist, Reader, draw

T = TypeVar("T")
Progress = Callable[[Iterable[T], str, int | None], Iterator[T]]

LATENTS = 30
GRID: dict[str, tuple[float, ...]] = {  # z units
    "eyes": (-1.8, 1.8),
    "mouth": (-1.2, -0.6, 0.0, 0.8, 1.6),
    "pose": (-1.2, 0.0, 1.2, 2.4, 3.6),
}
CORRELATION_AT_LEAST = {"eyes": 0.77, "mouth": 0.85, "pose": 0.82}
LEAST_SEEN = 4  # pictures; fewer make no correlation
MAE_AT_MOST = {"eyes": 1.0, "mouth": 0.6, "pose": 1.4}  # z units
BEST_OF_ORIGINAL = {  # its epoch 5, latent 21: the one of 30 that passed
    "eyes": (0.8928, 0.9342),
    "mouth": (0.8582, 0.4452),
    "pose": (0.9318, 1.2365),
}


@dataclass(frozen=True)
class Agreement:
    """How well one latent obeys: attribute -> figure, in z units."""

    correlation: dict[str, float]
    mae: dict[str, float]

    @property
    def passes_original(self) -> bool:
        """Whether the original's six thresholds hold."""
        return all(
            self.correlation[name] >= CORRELATION_AT_LEAST[name] and self.mae[name] <= MAE_AT_MOST[name]
            for name in CORRELATION_AT_LEAST
        )


def agreement(
    asked: NDArray[np.floating], seen: NDArray[np.floating], names: Sequence[str] = CONDITION_NAMES
) -> Agreement:
    """Figures of requested against seen z values, [n, len(names)] each; NaN was not to be seen."""
    return Agreement(
        {name: correlation(asked[:, i], seen[:, i]) for i, name in enumerate(names)},
        {name: mean_error(asked[:, i], seen[:, i]) for i, name in enumerate(names)},
    )


def correlation(asked: NDArray[np.floating], seen: NDArray[np.floating]) -> float:
    """Pearson's r; 0 if either does not vary, which is what a generator deserves that ignores the request.

    What could not be seen (NaN) is left out; NaN where that leaves fewer than `LEAST_SEEN`.
    """
    known = np.isfinite(seen)
    if known.sum() < min(LEAST_SEEN, len(seen)):
        return math.nan
    asked, seen = asked[known], seen[known]
    if asked.std() < 1e-6 or seen.std() < 1e-6:
        return 0.0
    return float(np.corrcoef(asked, seen)[0, 1])


def mean_error(asked: NDArray[np.floating], seen: NDArray[np.floating]) -> float:
    """Mean absolute difference of what could be seen; NaN where nothing could."""
    difference = np.abs(asked - seen)
    known = np.isfinite(difference)
    return float(difference[known].mean()) if known.any() else math.nan


def grid() -> NDArray[np.float64]:
    """The 50 wishes of the original in z units, [50, 7] in the order of `CONDITION_NAMES`."""
    wishes = np.zeros((50, len(CONDITION_NAMES)))
    columns = [CONDITION_NAMES.index(name) for name in GRID]
    wishes[:, columns] = list(itertools.product(*GRID.values()))
    return wishes


@dataclass(frozen=True)
class OriginalResult:
    """The original's report over all latents."""

    seeds: list[int]
    latents: list[Agreement]
    clamped: dict[str, int]  # attribute -> how many of the 50 wishes were clamped
    used: dict[str, list[float]]  # attribute -> the z values that were asked for in the end

    @property
    def pass_share(self) -> float:
        """Share of the latents that pass."""
        return float(np.mean([latent.passes_original for latent in self.latents]))

    @property
    def best(self) -> int:
        """Row of the best latent: passing ones first, then by the mean of the three correlations."""
        return max(
            range(len(self.latents)),
            key=lambda i: (
                self.latents[i].passes_original,
                np.mean([self.latents[i].correlation[name] for name in GRID]),
            ),
        )

    def table(self) -> list[dict[str, Any]]:
        """One row per latent."""
        return [
            {
                "seed": seed,
                **{f"{name}_correlation": latent.correlation[name] for name in GRID},
                **{f"{name}_mae_z": latent.mae[name] for name in GRID},
                "passes": latent.passes_original,
            }
            for seed, latent in zip(self.seeds, self.latents, strict=True)
        ]

    def metrics(self) -> Mapping[str, float]:
        """Figures over latents, each name starting with `original_test_`."""
        figures = {"pass_share": self.pass_share, "latents": float(len(self.latents))}
        for name in GRID:
            figures[f"{name}_correlation_mean"] = float(
                np.mean([latent.correlation[name] for latent in self.latents])
            )
            figures[f"{name}_mae_z_mean"] = float(np.mean([latent.mae[name] for latent in self.latents]))
            figures[f"best_{name}_correlation"] = self.latents[self.best].correlation[name]
            figures[f"best_{name}_mae_z"] = self.latents[self.best].mae[name]
            figures[f"{name}_clamped_share"] = self.clamped[name] / len(grid())
        return {f"original_test_{key}": value for key, value in figures.items()}


def original_test(
    face: Artist, read: Reader, units: Units, seeds: Sequence[int], progress: Progress[int]
) -> OriginalResult:
    """Run the original's test.

    Args:
        face: who draws.
        read: the judge.
        units: of the corpus.
        seeds: of the latents; the original took `LATENTS`.
        progress: iterates with a bar.
    """
    wishes = units.requests(grid())
    columns = [CONDITION_NAMES.index(name) for name in GRID]
    latents = []
    for seed in progress(seeds, "the original's test", len(seeds)):
        seen = units.z(read(draw(face, face.sample_latent(seed), wishes.raw)).attributes)
        latents.append(agreement(wishes.z[:, columns], seen[:, columns], tuple(GRID)))
    return OriginalResult(
        seeds=list(seeds),
        latents=latents,
        clamped={name: int(wishes.clamped[:, i].sum()) for name, i in zip(GRID, columns, strict=True)},
        used={
            name: sorted({round(float(z), 4) for z in wishes.z[:, i]})
            for name, i in zip(GRID, columns, strict=True)
        },
    )
