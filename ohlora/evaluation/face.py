"""Scorer of the face: does it do what it is told, does a person stay that person, is Oh-LoRA herself?

It is the quick form of our image-generation test (`ohlora.evaluation.generation_test`) on sampled people, and
the same questions on Oh-LoRA, whose redrawn portraits are compared with renders that the generator has never
seen. The judge never took part in training the generator.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import qmc

from ohlora.attributes import CONDITION_NAMES
from ohlora.config import Config
from ohlora.corpus import Portraits
from ohlora.evaluation import (
    distances,
    evidence,
    generation_test,
    inception,
    original_test,
    steadiness,
    units,
    witness,
)
from ohlora.evaluation.evidence import Plan, gather
from ohlora.evaluation.generation_test import Result
from ohlora.evaluation.original_test import correlation
from ohlora.evaluation.units import EXPRESSION_RANGE
from ohlora.evaluation.witness import Artist, Reader, draw
from ohlora.gan import load_face
from ohlora.gan.data import held_out
from ohlora.gan.networks import NUISANCE_NAMES

PARTS = (distances, evidence, generation_test, inception, original_test, steadiness, units, witness)
"""Modules that the score depends on: a change of one means to score again."""

PERSONA_EXPRESSIONS = 32
LEAST_ERROR = 1e-3  # mean square, so that a perfect copy has a PSNR
UNIT = {"eyes": 1.0, "mouth": 1.0, "pose": 30.0}  # what counts as an error of 1 in `attribute_error`
MOVING = [CONDITION_NAMES.index(name) for name in UNIT]


def score(model_folder: Path, inputs: dict[str, Path], config: Config) -> dict[str, float]:
    """Score a face model.

    Args:
        model_folder: of any kind that `load_face` reads.
        inputs: `corpus` and `judge`; `filters` and `parser` where they are at hand.
        config: settings.

    Returns:
        All figures of `ohlora.evaluation.generation_test` over sampled people. Of the seven attributes
        `{name}_correlation` and `{name}_mae` (units of `Attributes`) over all pictures, the correlation over
        people as `_mean`, `_p5`, `_p10`, `_p50`, the error in z units as `{name}_mae_z`. Shares of people:
        `original_pass_share`, `pass_share`, `seven_pass_share`. `identity_ratio`, `identity_margin`,
        `diversity_ratio`, `outside_change` (grey levels), `female_share`, `quality_share`, `kid`, `frechet`.

        Of Oh-LoRA: `persona_{name}_correlation` and `_mae` of eyes, mouth and pose, `persona_psnr` (dB) and
        `persona_l1` (grey levels) against her held-out renders. `attribute_error`: mean error of eyes, mouth
        and pose in units of `UNIT`, the mean of Oh-LoRA's and the sampled people's.

    Raises:
        ArtifactError: a model is corrupt. CorpusError: the corpus is.
    """
    torch.set_num_threads(config.runtime.threads or torch.get_num_threads())
    found = gather(inputs, config)
    face = load_face(model_folder, config.runtime.device)
    plan = replace(Plan.of(config.face_test, quick=True), original_latents=0)
    result = generation_test.generation_test(face, found, plan, silently)
    return figures(face, found.read, result, found.portraits)


def figures(face: Artist, read: Reader, result: Result, portraits: Portraits) -> dict[str, float]:
    """The scores of `score` from a finished test of sampled people."""
    asked, seen = (
        np.concatenate([getattr(latent, name)[:, MOVING] for latent in result.latents])
        for name in ("asked", "seen")
    )
    hers = moments(PERSONA_EXPRESSIONS, seed=1)
    seen_hers = read(draw(face, None, hers)).attributes[:, MOVING]
    metrics = dict(result.metrics)
    for i, name in enumerate(UNIT):
        metrics[f"persona_{name}_correlation"] = correlation(hers[:, i], seen_hers[:, i])
        metrics[f"persona_{name}_mae"] = float(np.abs(hers[:, i] - seen_hers[:, i]).mean())
    metrics["persona_attribute_error"] = _error(hers, seen_hers)
    metrics["sampled_attribute_error"] = _error(asked, seen)
    metrics["attribute_error"] = (metrics["persona_attribute_error"] + metrics["sampled_attribute_error"]) / 2
    return metrics | fidelity(face, portraits)


def silently(items: Iterable[Any], _description: str, _total: int | None) -> Iterator[Any]:
    """Iterate without a bar."""
    yield from items


def moments(count: int, seed: int) -> NDArray[np.float64]:
    """Eyes, mouth and pose that fill their ranges evenly: a scrambled Sobol sequence, float [count, 3]."""
    points = qmc.Sobol(3, rng=np.random.default_rng(seed)).random(2 ** (count - 1).bit_length())[:count]
    low, high = np.array(list(EXPRESSION_RANGE.values())).T
    scaled: NDArray[np.float64] = qmc.scale(points, low, high)
    return scaled


def fidelity(face: Artist, portraits: Portraits) -> dict[str, float]:
    """PSNR (dB) and L1 (grey levels) of Oh-LoRA redrawn against renders held out from training.

    Empty if the corpus has no such render or does not know what they show.
    """
    rows = np.flatnonzero(held_out(portraits))
    asked = np.stack([portraits.truth[name][rows] for name in UNIT], 1)
    known = ~np.isnan(asked).any(1)
    if not known.any():
        return {}
    tilt = np.stack([portraits.truth[name][rows[known]] for name in NUISANCE_NAMES], 1)
    nuisance = None if np.isnan(tilt).any() else tilt
    drawn = draw(face, None, asked[known], nuisance).astype(np.float64)
    difference = drawn - portraits.select(rows[known]).resized(drawn.shape[1]).images
    error = np.maximum((difference**2).mean((1, 2, 3)), LEAST_ERROR)
    return {
        "persona_psnr": float((10 * np.log10(255**2 / error)).mean()),
        "persona_l1": float(np.abs(difference).mean()),
    }


def _error(asked: NDArray[np.floating], seen: NDArray[np.floating]) -> float:
    return float((np.abs(asked - seen) / np.array(list(UNIT.values()))).mean())
