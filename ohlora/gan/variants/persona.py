"""Oh-LoRA's latent of a variant: the one whose pictures resemble her renders most.

Variants know no identities, so she is looked for: many latents are drawn under the conditions of some of her
portraits and compared with them, the best one is refined by gradient. The distance is of colours at a coarse
resolution (what catches the eye: hair, skin, background, where things are) and of what the property network
reads of hair and background.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ohlora.attributes import CONDITION_NAMES
from ohlora.gan.face import MOVING
from ohlora.gan.variant_face import VariantFace
from ohlora.gan.variants.data import PortraitSet
from ohlora.gan.variants.readers import PropertyReader
from ohlora.stage import Journal
from ohlora.variants_config import VariantsConfig

COARSE = 16  # pixels per side that are compared
REFERENCES = 4  # of her portraits
FINALISTS = 8  # of the candidates, compared with all references
READ_WEIGHT = 0.05  # of a deviation of an attribute, against a unit of colour in [-1, 1]
RATE = 0.03  # learning rate of the refinement
READ = tuple(range(MOVING, len(CONDITION_NAMES)))  # hair and background


@dataclass(frozen=True)
class Likeness:
    """Compares pictures with Oh-LoRA's."""

    portraits: Tensor  # float32 [k, 3, r, r] in [-1, 1]
    conditions: Tensor  # raw, float32 [k, 7]
    reader: PropertyReader | None

    @classmethod
    def of(cls, data: PortraitSet, reader: PropertyReader | None) -> Likeness:
        """With her portraits spread evenly over yaw, nearest to the front first."""
        pose = data.raw[data.hers, CONDITION_NAMES.index("pose")]
        order = data.hers[np.argsort(pose, kind="stable")]
        rows = order[np.unique(np.linspace(0, len(order) - 1, REFERENCES).round().astype(int))]
        rows = rows[np.argsort(np.abs(data.raw[rows, CONDITION_NAMES.index("pose")]), kind="stable")]
        return cls(data.pixels(rows), torch.from_numpy(data.raw[rows]), reader)

    def distance(self, face: VariantFace, latents: Tensor, references: int, detail: int = COARSE) -> Tensor:
        """Of each latent [n, z] from the first references, float32 [n]; differentiable."""
        count = min(references, len(self.portraits))
        target = self.portraits[:count].to(face.device)
        drawn = face.pixels(
            latents.repeat_interleave(count, 0), self.conditions[:count].repeat(len(latents), 1)
        )
        wanted = target.repeat(len(latents), 1, 1, 1)
        size = min(detail, drawn.shape[-1])
        difference = _small(drawn.clamp(-1, 1), size) - _small(wanted, size)
        distance = difference.abs().mean((1, 2, 3))
        if self.reader is not None:
            with torch.no_grad():
                hers = self.reader(target)[:, READ].repeat(len(latents), 1)
            distance = distance + READ_WEIGHT * (self.reader(drawn)[:, READ] - hers).abs().mean(1)
        return distance.view(len(latents), count).mean(1)


def _small(images: Tensor, size: int) -> Tensor:
    return F.interpolate(images, (size, size), mode="area")


def find_persona(
    face: VariantFace,
    data: PortraitSet,
    reader: PropertyReader | None,
    config: VariantsConfig,
    journal: Journal,
    suggested: Tensor | None = None,
) -> VariantFace:
    """The face with the latent that resembles Oh-LoRA most.

    Args:
        face: trained.
        data: has her portraits.
        reader: of hair and background, on the face's device; None compares colours only.
        config: how many latents are tried, and how long the best is refined.
        journal: shows progress.
        suggested: more latents to try, float32 [n, z], e.g. an encoder's.
    """
    likeness = Likeness.of(data, reader)
    seeds = range(config.persona_candidates)
    candidates = torch.stack([face.sample_latent(seed, 1.0) for seed in seeds])
    if suggested is not None:
        candidates = torch.cat([candidates, unit(suggested)])
    with torch.no_grad():
        first = [
            likeness.distance(face, candidates[start : start + 8], 1).cpu()
            for start in journal.progress(
                range(0, len(candidates), 8), f"variants: {face.method}, looking for Oh-LoRA"
            )
        ]
        finalists = candidates[torch.cat(first).argsort()[:FINALISTS]]
        distances = likeness.distance(face, finalists, REFERENCES).cpu()
    best, nearest = finalists[distances.argmin()], float(distances.min())
    refined, distance = _refine(face, likeness, best, config.persona_steps)
    notes = {
        "candidates": len(candidates),
        "references": len(likeness.portraits),
        "distance_sampled": round(nearest, 4),
        "distance": round(min(nearest, distance), 4),
    }
    return face.with_persona(refined if distance < nearest else best, notes)


def _refine(face: VariantFace, likeness: Likeness, start: Tensor, steps: int) -> tuple[Tensor, float]:
    """Descend from a latent [z]; returns the best one met and its distance."""
    z = start[None].clone().to(face.device).requires_grad_(True)
    optimizer = torch.optim.Adam([z], lr=RATE)
    best, nearest = start, float("inf")
    for step in range(steps + 1):
        point = unit(z)
        distance = likeness.distance(face, point, REFERENCES)[0]
        if float(distance.detach()) < nearest:
            best, nearest = point[0].detach().cpu(), float(distance.detach())
        if step == steps:
            break
        optimizer.zero_grad(set_to_none=True)
        distance.backward()
        optimizer.step()
    return best, nearest


def unit(latents: Tensor) -> Tensor:
    """Latents [n, z] of unit mean square: people without truncation."""
    return latents / latents.square().mean(1, keepdim=True).sqrt().clamp_min(1e-6)


def requested_and_read(
    face: VariantFace, reader: PropertyReader, seeds: NDArray[np.integer], data: PortraitSet
) -> tuple[Tensor, Tensor]:
    """z-scores that were asked for and that a reader sees, float32 [n, 7] each.

    Every person of a seed is drawn under the same conditions, which span what portraits show.
    """
    rng = np.random.default_rng(0)
    low, high = np.quantile(data.raw, 0.05, 0), np.quantile(data.raw, 0.95, 0)
    raw = torch.from_numpy(rng.uniform(low, high, (12, len(low))).astype(np.float32))
    asked, seen = [], []
    with torch.no_grad():
        for seed in seeds:
            z = face.sample_latent(int(seed)).expand(len(raw), -1)
            seen.append(reader(face.pixels(z, raw)).cpu())
            asked.append(data.normalisation(raw, None)[0])
    return torch.cat(asked), torch.cat(seen)
