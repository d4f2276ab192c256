"""Who judges a face, what its pictures are compared with, and how many of them are drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ohlora.artifacts import MANIFEST
from ohlora.config import Config, FaceTestConfig
from ohlora.corpus.portraits import Portraits
from ohlora.evaluation.inception import InceptionMissing, inception_features
from ohlora.evaluation.judge import Judge
from ohlora.evaluation.steadiness import Masker, hair_and_background, outside_ellipse
from ohlora.evaluation.units import Units
from ohlora.evaluation.witness import Images, Reader, reader
from ohlora.labeling import Parser
from ohlora.labeling.filters import Filters
from ohlora.labeling.formulas import measure

FIRST_SEED = 50_000  # of the sampled people, far from the seeds a person would type
SEEDS_APART = 100_003  # between the first people of two test seeds

Filter = Callable[[Images], dict[str, NDArray[np.float32]]]
"""Pictures -> probabilities [n] of a woman (`gender`) and of a clean picture (`quality`)."""
Features = Callable[[Images], NDArray[np.float32]]
Instrument = Callable[[Images], dict[str, NDArray[np.float32]]]
"""Pictures -> raw `MEASURED` attributes [n] each; NaN where too little is seen."""
MEASURED = ("hair_length", "background_std")  # what a mask says and the judge reads worst


@dataclass(frozen=True)
class Plan:
    """How much is drawn."""

    latents: int  # sampled people
    pictures: int = 24  # of each, under quasi-random attributes
    moments: int = 8  # of each, as herself under other expressions
    original_latents: int = 0  # of the original's test; 0 leaves it out
    seed: int = 0  # of everything
    measured: bool = True  # whether `MEASURED` are measured; takes a mask of every picture

    @classmethod
    def of(cls, settings: FaceTestConfig, quick: bool) -> Plan:
        """The plan of the settings, in its full or its quick form."""
        return cls(
            latents=settings.quick_latents if quick else settings.latents,
            pictures=settings.pictures,
            moments=settings.moments,
            original_latents=settings.quick_original_latents if quick else settings.original_latents,
            seed=settings.seed,
            measured=not quick,
        )

    @property
    def seeds(self) -> list[int]:
        """Of the sampled people."""
        return self._seeds(self.latents)

    @property
    def original_seeds(self) -> list[int]:
        """Of the sampled people of the original's test."""
        return self._seeds(self.original_latents)

    def _seeds(self, count: int) -> list[int]:
        return [FIRST_SEED + SEEDS_APART * self.seed + k for k in range(count)]


@dataclass(frozen=True)
class Evidence:
    """Who judges, and what generated pictures are compared with."""

    read: Reader
    portraits: Portraits
    units: Units
    masker: Masker = outside_ellipse
    filter: Filter | None = None
    female_at_least: float = 0.7
    quality_at_least: float = 0.9
    inception: Features | None = None  # other features for the distances
    instrument: Instrument | None = None
    notes: tuple[str, ...] = ()  # what a person should know of it


def gather(inputs: Mapping[str, Path], config: Config) -> Evidence:
    """The evidence in folders.

    Args:
        inputs: `corpus` and `judge`; `filters` and `parser` where they are at hand.
        config: settings.

    Raises:
        CorpusError: the corpus is missing or corrupt. ArtifactError: a model is.
    """
    device = config.runtime.device
    portraits = Portraits.load(inputs["corpus"])
    notes, inception = [], None
    masker: Masker = outside_ellipse
    instrument: Instrument | None = None
    if "parser" in inputs and (inputs["parser"] / MANIFEST).is_file():
        parser = Parser.load(inputs["parser"], device)
        masker, instrument = hair_and_background(parser.masks), under_masks(parser.masks)
    else:
        notes.append(
            "No face parser at hand: change outside the face is measured outside an ellipse, and hair and "
            "background by the judge alone."
        )
    probabilities: Filter | None = None
    if "filters" in inputs and (inputs["filters"] / MANIFEST).is_file():
        probabilities = Filters.load(inputs["filters"], device).probabilities
    else:
        notes.append("No filters at hand: the shares of women and of clean pictures are not measured.")
    if config.face_test.inception:
        try:
            inception = inception_features(device)
        except InceptionMissing as error:
            notes.append(f"Distances on Inception features are left out: {error}")
    return Evidence(
        read=reader(Judge.load(inputs["judge"], device)),
        portraits=portraits,
        units=Units.of(portraits),
        masker=masker,
        filter=probabilities,
        female_at_least=config.filters.gender_at_least,
        quality_at_least=config.filters.quality_at_least,
        inception=inception,
        instrument=instrument,
        notes=tuple(notes),
    )


def under_masks(masks: Callable[[Images], NDArray[np.uint8]]) -> Instrument:
    """By the formula `ours` under the masks of a face parser."""

    def instrument(images: Images) -> dict[str, NDArray[np.float32]]:
        found = measure(masks(images), images)
        return {name: found[name] for name in MEASURED}

    return instrument
