"""`directions`: support-vector normals in the space of styles, and edits along them.

Pictures of many latents are scored by the property network; for each attribute a linear classifier separates
the styles of the top and the bottom 15 %, and its normal is the direction to move in (Shen et al. 2020,
arXiv:1907.10786; the later versions of the original). Normals are not independent: moving along one changes
other attributes as well. How much is measured on edited pictures, and an edit solves for the steps along all
normals that make what a style lacks of what was asked. No network is trained.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ohlora.gan.importing import StyleGAN
from ohlora.gan.stylegan import StyleGenerator
from ohlora.gan.variant_face import Editor, VariantFace
from ohlora.gan.variants.data import PortraitSet
from ohlora.gan.variants.method import Method, VariantUnusable, base_generator, columns
from ohlora.gan.variants.readers import PropertyReader
from ohlora.gan.variants.training import SAVE_EVERY_S
from ohlora.stage import Journal
from ohlora.variants_config import VariantsConfig

CONTROLLED = ("eyes", "mouth", "pose")
BATCH = 16  # pictures scored at once
RIDGE = 1e-2  # of the regression, in variances of a style


def svm_normal(
    styles: NDArray[np.floating], scores: NDArray[np.floating], share: float, penalty: float, seed: int = 0
) -> NDArray[np.float32]:
    """Unit normal of the plane between the styles of the highest and of the lowest scores.

    Args:
        styles: [n, w].
        scores: [n].
        share: of the styles at each end.
        penalty: C of the classifier.
        seed: of the classifier.

    Returns:
        float32 [w], pointing to high scores.

    Raises:
        VariantUnusable: all scores are equal.
    """
    from sklearn.svm import LinearSVC

    count = max(2, round(share * len(scores)))
    order = np.argsort(scores, kind="stable")
    ends = np.concatenate([order[:count], order[-count:]])
    if scores[order[0]] == scores[order[-1]]:
        raise VariantUnusable("all pictures of the base score the same: train it longer, or import another")
    deviation = styles.std(0) + 1e-8  # a classifier's penalty means something in standardised styles only
    side = np.repeat([0, 1], count)
    classifier = LinearSVC(C=penalty, dual="auto", max_iter=5000, random_state=seed)
    classifier.fit((styles[ends] - styles.mean(0)) / deviation, side)
    normal = classifier.coef_[0] / deviation
    return np.asarray(normal / np.linalg.norm(normal), np.float32)


def regression(styles: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """Linear prediction of scores [n, k] from styles [n, w], by ridge regression: [w, k] and [k]."""
    center, mean = styles.double().mean(0), scores.double().mean(0)
    x, y = styles.double() - center, scores.double() - mean
    gram = x.t() @ x
    ridge = RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    weights = torch.linalg.solve(gram + ridge, x.t() @ y)
    return weights.float(), (mean - center @ weights).float()


class Scorer:
    """Styles of a base, and what the property network sees in their pictures."""

    def __init__(self, generator: StyleGenerator, reader: PropertyReader, device: torch.device) -> None:
        self.generator, self.reader = generator.to(device).eval(), reader.to(device)
        self.device = device
        self.columns = columns(CONTROLLED)

    @torch.no_grad()
    def styles(self, first: int, count: int, seed: int) -> Tensor:
        """Styles number `first` to `first + count` of a seed, float32 [count, w] on the CPU."""
        z = np.stack(
            [
                np.random.default_rng([seed, number]).standard_normal(self.generator.config.z_dim, np.float32)
                for number in range(first, first + count)
            ]
        )
        w: Tensor = self.generator.mapping(torch.from_numpy(z).to(self.device)).cpu()
        return w

    @torch.no_grad()
    def scores(self, styles: Tensor) -> Tensor:
        """z-scores of the pictures of styles [n, w], float32 [n, k] on the CPU."""
        parts = []
        for start in range(0, len(styles), BATCH):
            w = styles[start : start + BATCH].to(self.device)
            image = self.generator.synthesis(self.generator.truncation(w))
            parts.append(self.reader(image)[:, self.columns].cpu())
        return torch.cat(parts)


def response(scorer: Scorer, styles: Tensor, normals: Tensor, steps: Tensor) -> Tensor:
    """Change of z-score i per unit along normal j, mean over styles [n, w], float32 [k, k].

    Args:
        scorer: draws and reads.
        styles: to edit, both ways.
        normals: unit vectors [k, w].
        steps: length of the edit along each, [k].
    """
    changes = []
    for normal, step in zip(normals, steps, strict=True):
        up, down = scorer.scores(styles + step * normal), scorer.scores(styles - step * normal)
        changes.append((up - down).mean(0) / (2 * step))
    return torch.stack(changes, 1)


class Directions(Method):
    """Edits of the base's styles for eyes, mouth and pose."""

    name = "directions"

    def train(
        self, data: PortraitSet, base: StyleGAN, config: VariantsConfig, journal: Journal
    ) -> VariantFace:
        started = time.monotonic()
        settings = config.directions
        generator = base_generator(base)
        scorer = Scorer(generator, self.properties(), self.bench.device)
        styles, scores = self._score(scorer, settings.samples, config.seed, journal)
        normals = torch.from_numpy(
            np.stack(
                [
                    svm_normal(
                        styles.numpy(), scores[:, k].numpy(), settings.share, settings.penalty, config.seed
                    )
                    for k in range(len(CONTROLLED))
                ]
            )
        )
        spread = (styles @ normals.t()).std(0)
        weights, intercept = regression(styles, scores)
        probes = styles[: settings.probes]
        effect = response(scorer, probes, normals, spread)
        editor = Editor(normals, effect, weights, intercept, settings.reach * spread).to(self.bench.device)
        generator.truncation.w_avg.copy_(styles.mean(0))  # an import may have none
        self.seconds = time.monotonic() - started
        journal.log(
            settings.samples,
            **{f"directions_{name}_response": float(effect[k, k]) for k, name in enumerate(CONTROLLED)},
        )
        return self.face(generator, data, config, control="directions", controlled=CONTROLLED, editor=editor)

    def _score(self, scorer: Scorer, count: int, seed: int, journal: Journal) -> tuple[Tensor, Tensor]:
        """Styles [count, w] and z-scores [count, k]; what an earlier run has scored is kept."""
        path = self.bench.checkpoint(self.name)
        scores = _read(path, len(CONTROLLED)) if path else torch.empty(0, len(CONTROLLED))
        parts, done, saved = [scores], len(scores), time.monotonic()
        starts = range(done, count, BATCH)
        for start in journal.progress(starts, "variants: directions, scoring pictures"):
            parts.append(scorer.scores(scorer.styles(start, min(BATCH, count - start), seed)))
            if path and (time.monotonic() - saved > SAVE_EVERY_S or start + BATCH >= count):
                _write(path, torch.cat(parts))
                saved = time.monotonic()
        return scorer.styles(0, count, seed), torch.cat(parts)[:count]


def _write(path: Path, scores: Tensor) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".tmp")
    save_file({"scores": scores.contiguous()}, draft, {"rows": json.dumps(len(scores))})
    draft.replace(path)


def _read(path: Path, width: int) -> Tensor:
    try:
        with safe_open(path, "pt") as f:
            scores: Tensor = f.get_tensor("scores")
    except (SafetensorError, OSError):
        return torch.empty(0, width)
    return scores
