"""Scorer of the face: does it do what it is told, does a person stay that person, is Oh-LoRA herself?

Pictures are drawn for many people under a quasi-random set of eyes, mouth and pose, and an independent judge,
that never took part in training the generator, says what they show. Oh-LoRA's redrawn portraits are compared
with renders that the generator has never seen.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import qmc

from ohlora.attributes import Expression
from ohlora.config import Config
from ohlora.corpus import Portraits
from ohlora.evaluation.judge import Judge
from ohlora.gan.data import MOVING, held_out
from ohlora.gan.face import Face
from ohlora.gan.networks import NUISANCE_NAMES

PEOPLE = 24  # sampled latents
EXPRESSIONS = 8  # of each sampled latent
PERSONA_EXPRESSIONS = 32
FIRST_SEED = 50_000  # of the sampled people, far from the seeds a person would type
POSE_RANGE = 28.0  # degrees; beyond it the corpus has few portraits
UNIT = {"eyes": 1.0, "mouth": 1.0, "pose": 30.0}  # what counts as an error of 1 in `attribute_error`


def score(model_folder: Path, inputs: dict[str, Path], config: Config) -> dict[str, float]:
    """Score a face model.

    Args:
        model_folder: of kind `face`.
        inputs: `corpus` and `judge`.
        config: unused but for the signature that all scorers share.

    Returns:
        For each of eyes, mouth and pose: `{name}_correlation` and `{name}_mae` (pose in degrees) of what was
        asked for against what the judge sees, over sampled people; `_correlation_p10` and `_p50` over
        people; the same figures of Oh-LoRA as `persona_{name}_...`. `attribute_error`: mean of the errors in
        units of `UNIT`, the mean of Oh-LoRA's and the sampled people's. `identity_within` and
        `identity_between`: mean cosine of the judge's embeddings within and between people. `persona_psnr`
        (dB) and `persona_l1` (grey levels) against her held-out renders.

    Raises:
        ArtifactError: a model is corrupt.
    """
    torch.set_num_threads(config.runtime.threads or torch.get_num_threads())
    face, judge = Face.load(model_folder), Judge.load(inputs["judge"])
    portraits = Portraits.load(inputs["corpus"])
    latents = [face.sample_latent(FIRST_SEED + k) for k in range(PEOPLE)]
    asked = moments(EXPRESSIONS * PEOPLE, seed=0).reshape(PEOPLE, EXPRESSIONS, 3)
    hers = moments(PERSONA_EXPRESSIONS, seed=1)
    drawn = np.concatenate([_draw(face, z, a) for z, a in zip(latents, asked, strict=True)])
    drawn_hers = _draw(face, None, hers)
    seen, seen_hers = _see(judge, drawn), _see(judge, drawn_hers)
    metrics = _people(asked, seen.reshape(asked.shape))
    mine = _agreement(hers, seen_hers)
    metrics |= {f"persona_{key}": value for key, value in mine.items()}
    metrics["persona_attribute_error"] = _error(hers, seen_hers)
    metrics["sampled_attribute_error"] = _error(asked.reshape(-1, 3), seen)
    metrics["attribute_error"] = (metrics["persona_attribute_error"] + metrics["sampled_attribute_error"]) / 2
    metrics |= identity(judge.embed(drawn).reshape(PEOPLE, EXPRESSIONS, -1))
    return metrics | fidelity(face, portraits)


def moments(count: int, seed: int) -> NDArray[np.float64]:
    """Eyes, mouth and pose that fill their ranges evenly: a scrambled Sobol sequence, float [count, 3]."""
    points = qmc.Sobol(3, rng=np.random.default_rng(seed)).random(2 ** (count - 1).bit_length())[:count]
    scaled: NDArray[np.float64] = qmc.scale(points, [0, 0, -POSE_RANGE], [1, 1, POSE_RANGE])
    return scaled


def fidelity(face: Face, portraits: Portraits) -> dict[str, float]:
    """PSNR (dB) and L1 (grey levels) of Oh-LoRA redrawn against renders held out from training.

    Empty if the corpus has no such render or does not know what they show.
    """
    rows = np.flatnonzero(held_out(portraits))
    asked = np.stack([portraits.truth[name][rows] for name in UNIT], 1)
    known = ~np.isnan(asked).any(1)
    if not known.any():
        return {}
    truth = portraits.resized(256).images[rows[known]].astype(np.float64)
    tilt = np.stack([portraits.truth[name][rows[known]] for name in NUISANCE_NAMES], 1)
    nuisance = None if np.isnan(tilt).any() else torch.from_numpy(tilt)
    difference = _draw(face, None, asked[known], nuisance).astype(np.float64) - truth
    error = (difference**2).mean((1, 2, 3))
    return {
        "persona_psnr": float((10 * np.log10(255**2 / error)).mean()),
        "persona_l1": float(np.abs(difference).mean()),
    }


def identity(embeddings: NDArray[np.floating]) -> dict[str, float]:
    """Mean cosine of unit embeddings [people, pictures, d] within one person and between two."""
    people, pictures, _ = embeddings.shape
    flat = embeddings.reshape(people * pictures, -1)
    cosine = flat @ flat.T
    person = np.repeat(np.arange(people), pictures)
    same = person[:, None] == person[None]
    within = float(cosine[same & ~np.eye(len(flat), dtype=bool)].mean())
    between = float(cosine[~same].mean())
    return {"identity_within": within, "identity_between": between, "identity_margin": within - between}


def correlation(asked: NDArray[np.floating], seen: NDArray[np.floating]) -> float:
    """Pearson's r; 0 if either does not vary, which is what a generator deserves that ignores the request."""
    if asked.std() < 1e-6 or seen.std() < 1e-6:
        return 0.0
    return float(np.corrcoef(asked, seen)[0, 1])


def _draw(
    face: Face,
    latent: torch.Tensor | None,
    asked: NDArray[np.floating],
    nuisance: torch.Tensor | None = None,
) -> NDArray[np.uint8]:
    conditions = face.conditions(Expression(), latent).repeat(len(asked), 1)
    conditions[:, :MOVING] = torch.from_numpy(asked.astype(np.float32))
    z = face.persona_latent if latent is None else latent
    return face.images(z.expand(len(asked), -1), conditions, nuisance)


def _see(judge: Judge, images: NDArray[np.uint8]) -> NDArray[np.float64]:
    attributes = judge.attributes(images)
    return np.stack([attributes[name] for name in UNIT], 1).astype(np.float64)


def _agreement(asked: NDArray[np.floating], seen: NDArray[np.floating]) -> dict[str, float]:
    result = {}
    for column, name in enumerate(UNIT):
        result[f"{name}_correlation"] = correlation(asked[:, column], seen[:, column])
        result[f"{name}_mae"] = float(np.abs(asked[:, column] - seen[:, column]).mean())
    return result


def _people(asked: NDArray[np.floating], seen: NDArray[np.floating]) -> dict[str, float]:
    """Figures over all pictures [people, pictures, 3], and how the correlations spread over people."""
    result = _agreement(asked.reshape(-1, 3), seen.reshape(-1, 3))
    for column, name in enumerate(UNIT):
        each = [correlation(a, s) for a, s in zip(asked[..., column], seen[..., column], strict=True)]
        result[f"{name}_correlation_p10"] = float(np.percentile(each, 10))
        result[f"{name}_correlation_p50"] = float(np.percentile(each, 50))
    return result


def _error(asked: NDArray[np.floating], seen: NDArray[np.floating]) -> float:
    return float((np.abs(asked - seen) / np.array(list(UNIT.values()))).mean())
