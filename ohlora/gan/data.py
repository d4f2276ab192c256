"""What the generator learns from: portraits with conditions, and which of them it must never see.

Also home of the "free areas": eyes change nothing outside the eyes, a mouth nothing above the nose. A row may
therefore be shown with another eye openness and its eye area excused from the loss, which tells the generator
that the rest of the picture has nothing to do with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ohlora.attributes import CONDITION_NAMES, FaceClass
from ohlora.corpus import Portraits
from ohlora.errors import UserError
from ohlora.gan.losses import emphasis
from ohlora.gan.networks import NUISANCE_NAMES, Normalisation
from ohlora.gan.repaint import Ranges, repaint_background, repaint_hair
from ohlora.gan.walls import sure_walls

PERSONA = 0  # identity number of Oh-LoRA in a corpus
EYES, MOUTH, POSE = (CONDITION_NAMES.index(name) for name in ("eyes", "mouth", "pose"))
MOVING = 3  # eyes, mouth and pose come first and vary; the other conditions belong to a person
LOOK_RESOLUTION = 16  # of the pictures whose components are the first latents
HELD_OUT = 0.1  # share of the persona's portraits that judge the generator

Labels = Literal["truth", "network", "formulas"]


class CorpusUnusable(UserError, ValueError):
    """A corpus cannot train a generator; the message says what is missing."""


def persona_identity(identity: NDArray[np.integer]) -> int:
    """Oh-LoRA's identity number, or the person with most portraits in a corpus without her."""
    if (identity == PERSONA).any():
        return PERSONA
    values, counts = np.unique(identity, return_counts=True)
    return int(values[counts.argmax()])


def held_out(portraits: Portraits) -> NDArray[np.bool_]:
    """Portraits of the persona that only judge: every tenth in the order of yaw, never the outermost.

    A function of the corpus alone, so that training and scoring agree in any process. Without a known yaw the
    corpus's own order serves.

    Returns:
        bool [n].
    """
    rows = np.flatnonzero(portraits.identity == persona_identity(portraits.identity))
    rows = rows[np.argsort(portraits.truth["pose"][rows], kind="stable")]
    period = round(1 / HELD_OUT)
    chosen = np.zeros(len(portraits.identity), bool)
    chosen[rows[period // 2 :: period]] = True
    return chosen


def conditions_of(portraits: Portraits, labels: Path | None, source: Labels) -> NDArray[np.float32]:
    """Raw conditions, float32 [n, 7] in the order of `CONDITION_NAMES`; NaN where nothing is known.

    Args:
        portraits: the corpus.
        labels: folder of the labels stage, with `labels.parquet` in the corpus's row order, or None.
        source: whose values win: the corpus's truth, the property network or the formulas. Gaps of the truth
            are filled by the network, those of the others by the truth.

    Raises:
        CorpusUnusable: the labels have another number of rows than the corpus.
    """
    n = len(portraits.images)
    truth = np.full((n, len(CONDITION_NAMES)), np.nan, np.float32)
    for column, name in enumerate(CONDITION_NAMES):
        truth[:, column] = portraits.truth[name]
    read = np.full_like(truth, np.nan)
    if labels is not None:
        table = pd.read_parquet(labels / "labels.parquet")
        if len(table) != n:
            raise CorpusUnusable(
                f"{labels} has {len(table)} rows, the corpus {n}; run the labels stage again"
            )
        prefix = "formula_" if source == "formulas" else ""
        for column, name in enumerate(CONDITION_NAMES):
            if prefix + name in table:
                read[:, column] = table[prefix + name].to_numpy(np.float32, na_value=np.nan)
    first, second = (truth, read) if source == "truth" else (read, truth)
    return np.where(np.isnan(first), second, first)


def kept_of(portraits: Portraits, labels: Path | None) -> NDArray[np.bool_]:
    """Portraits that may train a generator: those that the labels stage keeps, and no known defect; bool [n].

    Args:
        portraits: the corpus.
        labels: folder of the labels stage, in the corpus's row order, or None.
    """
    kept = ~(portraits.truth["quality"] == 0)
    if labels is not None:
        table = pd.read_parquet(labels / "labels.parquet")
        if "kept" in table:
            kept = kept & table["kept"].to_numpy(bool)
    return np.asarray(kept)


@dataclass(frozen=True)
class Boxes:
    """Free areas of each portrait as rows and columns: int64 [n, 4] of top, bottom, left, right at 256."""

    eyes: Tensor
    mouth: Tensor

    @classmethod
    def measure(cls, masks: NDArray[np.uint8]) -> Boxes:
        """Boxes around eyes with brows, and from the nose down; empty where nothing is seen."""
        size = masks.shape[1]
        unit = size / 256
        eyes, mouth = np.zeros((len(masks), 4), np.int64), np.zeros((len(masks), 4), np.int64)
        upper = [FaceClass.LEFT_EYE, FaceClass.RIGHT_EYE, FaceClass.LEFT_BROW, FaceClass.RIGHT_BROW]
        lips = [FaceClass.UPPER_LIP, FaceClass.INNER_MOUTH, FaceClass.LOWER_LIP]
        for i, mask in enumerate(masks):
            found = _extent(np.isin(mask, upper))
            nose = _extent(mask == FaceClass.NOSE)
            face = _extent(np.isin(mask, [FaceClass.SKIN, *lips]))
            if found and nose:
                # closed eyes leave no eye pixels: reach down to half of the nose, wherever the lids ended
                bottom = max(found[1] + 8 * unit, (nose[0] + nose[1]) / 2)
                eyes[i] = np.clip(
                    [found[0] - 8 * unit, bottom, found[2] - 8 * unit, found[3] + 8 * unit], 0, size
                )
            if nose and face:
                mouth[i] = np.clip(
                    [nose[1] - 14 * unit, size, face[2] - 8 * unit, face[3] + 8 * unit], 0, size
                )
        scale = 256 / size
        return cls(
            torch.from_numpy((eyes * scale).astype(np.int64)),
            torch.from_numpy((mouth * scale).astype(np.int64)),
        )


def _extent(area: NDArray[np.bool_]) -> tuple[int, int, int, int] | None:
    rows, columns = np.flatnonzero(area.any(1)), np.flatnonzero(area.any(0))
    if not len(rows):
        return None
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


@dataclass(frozen=True)
class Batch:
    """What one step of training sees."""

    images: Tensor  # float32 [n, 3, r, r] in [-1, 1]
    weights: Tensor  # float32 [n, 1, r, r]
    codes: Tensor  # int64 [n], rows of the table of latents
    conditions: Tensor  # normalised, float32 [n, 7]
    nuisance: Tensor  # standardised, float32 [n, 3]
    walls: Tensor  # where the background certainly is, bool [n, r, r]


class TrainingSet:
    """The rows of a corpus that a generator may learn from, in memory, with the ones that judge it apart."""

    def __init__(
        self,
        portraits: Portraits,
        conditions: NDArray[np.float32],
        persona_share: float,
        kept: NDArray[np.bool_] | None = None,
        repainted: float = 0.0,
    ) -> None:
        """
        Args:
            portraits: the corpus.
            conditions: raw, float32 [n, 7] as of `conditions_of`; rows with a gap are dropped.
            persona_share: share of a batch that shows the persona.
            kept: bool [n] as of `kept_of`; the persona's portraits train whatever it says. None keeps all.
            repainted: share of portraits shown with another background, and of those with other hair.

        Raises:
            CorpusUnusable: nothing is left to train on.
        """
        identity = np.asarray(portraits.identity)
        persona = persona_identity(identity)
        judged = held_out(portraits)
        known = ~np.isnan(conditions).any(1)
        # the persona is what the product shows: all her portraits train, in whatever split her identity fell
        split = np.asarray(portraits.split)
        fit: NDArray[np.bool_] = np.full(len(identity), True) if kept is None else kept
        train = known & ~judged & ((fit & (split == "train")) | (identity == persona))
        if not train.any() or not (train & (identity == persona)).any():
            raise CorpusUnusable(
                f"no portrait to train on: {len(identity)} portraits, {int(known.sum())} with all labels, "
                f"{int((identity == persona).sum())} of the persona"
            )
        rows = np.flatnonzero(train)
        self.held_rows = np.flatnonzero(judged & known)
        self.rows = rows
        self.numbers = np.unique(identity[rows])  # identity number of each latent
        self.persona = int(np.searchsorted(self.numbers, persona))
        self.share = persona_share
        code = np.searchsorted(self.numbers, identity)
        # what belongs to a person is measured with noise in each portrait: take the person's mean
        self.raw = conditions.astype(np.float32).copy()
        swept = np.isin(portraits.swept, CONDITION_NAMES[MOVING:])  # a counterfactual of what a person has
        self.person = np.zeros((len(self.numbers), len(CONDITION_NAMES)), np.float32)
        for k, number in enumerate(self.numbers):
            own = rows[(identity[rows] == number) & ~swept[rows]]
            mean = self.raw[own if len(own) else rows[identity[rows] == number]].mean(0)
            self.person[k] = mean
            self.raw[(identity == number) & ~swept, MOVING:] = mean[MOVING:]
        static = self.person[:, MOVING:]
        mean, scale = np.zeros(len(NUISANCE_NAMES)), np.ones(len(NUISANCE_NAMES))
        self.raw_nuisance = np.zeros((len(identity), len(NUISANCE_NAMES)), np.float32)
        for column, name in enumerate(NUISANCE_NAMES):
            values = portraits.truth[name]
            if np.isnan(values[rows]).any():
                continue  # a corpus without this truth: the generator averages over it
            self.raw_nuisance[:, column] = values
            mean[column] = values[rows[code[rows] == self.persona]].mean()  # 0 is Oh-LoRA's usual way
            scale[column] = max(float(values[rows].std()), 1e-3)
        self.normalisation = Normalisation(
            condition_mean=torch.tensor([0.5, 0.5, 0.0, *static.mean(0)]).float(),
            condition_scale=torch.tensor([0.5, 0.5, 30.0, *np.maximum(static.std(0), 1e-3)]).float(),
            nuisance_mean=torch.tensor(mean).float(),
            nuisance_scale=torch.tensor(scale).float(),
        )
        self.code = torch.from_numpy(code.astype(np.int64))
        self.hers = rows[code[rows] == self.persona]
        self.others = rows[code[rows] != self.persona]
        self._rows_of = [rows[code[rows] == k] for k in range(len(self.numbers))]
        self._images = portraits.images
        self._masks = portraits.masks
        self.boxes = Boxes.measure(portraits.masks)
        self.repainted = repainted
        self.ranges = Ranges.of(self.person)
        self.device = "cpu"
        self._cache: tuple[int, Tensor, Tensor, Tensor] | None = None

    def to(self, device: str) -> TrainingSet:
        """Keep the pictures where they are learnt from, and paint the batches there."""
        self.device, self._cache = device, None
        return self

    @property
    def codes(self) -> int:
        """Number of latents: one for each person and one for each mirror image."""
        return 2 * len(self.numbers)

    @property
    def full_resolution(self) -> int:
        """Pixels per side of the portraits."""
        return int(self._images.shape[1])

    def rows_of(self, person: int) -> NDArray[np.int64]:
        """Training rows of one person, by the row of her latent."""
        return self._rows_of[person]

    def at(self, resolution: int) -> tuple[Tensor, Tensor, Tensor]:
        """All portraits at a resolution: images uint8 [n, 3, r, r], weights float16 [n, 1, r, r], and what
        share of each pixel is background and hair, uint8 [n, 2, r, r] in 255ths.
        """
        if self._cache is None or self._cache[0] != resolution:
            n, device = len(self._images), self.device
            images = torch.empty(n, 3, resolution, resolution, dtype=torch.uint8, device=device)
            weights = torch.ones(n, 1, resolution, resolution, dtype=torch.float16, device=device)
            areas = torch.empty(n, 2, resolution, resolution, dtype=torch.uint8, device=device)
            for start in range(0, n, 64):
                part = slice(start, start + 64)
                full = torch.from_numpy(np.ascontiguousarray(self._images[part])).to(device)
                full = full.permute(0, 3, 1, 2).float()
                images[part] = F.interpolate(full, (resolution, resolution), mode="area").round().byte()
                mask = torch.from_numpy(np.ascontiguousarray(self._masks[part])).to(device)
                weight = emphasis(mask)
                weights[part] = F.interpolate(weight, (resolution, resolution), mode="area").half()
                area = torch.stack([mask == FaceClass.BACKGROUND, mask == FaceClass.HAIR], 1).float() * 255
                areas[part] = F.interpolate(area, (resolution, resolution), mode="area").round().byte()
            self._cache = (resolution, images, weights, areas)
        return self._cache[1:]

    def looks(self) -> Tensor:
        """How each person and each mirror image looks, beside what the conditions say: float32 [2k, d].

        The mean of a person's small pictures, after a regression (least squares on the conditions and their
        squares, each person with the same weight) has taken out what comes from expression, pose, hair
        colour and length, and the background's brightness.
        """
        pixels = self.at(min(LOOK_RESOLUTION, self.full_resolution))[0][torch.from_numpy(self.rows)]
        pictures = pixels.float().cpu() / 127.5 - 1
        person = self.code[torch.from_numpy(self.rows)]
        raw, nuisance = self.raw[self.rows].copy(), self.raw_nuisance[self.rows].copy()
        seen = []
        for mirrored in (False, True):
            if mirrored:
                raw[:, POSE] *= -1
                nuisance[:, NUISANCE_NAMES.index("roll")] *= -1
            known = torch.cat(self.normalisation(torch.from_numpy(raw), torch.from_numpy(nuisance)), 1)
            told = torch.cat([torch.ones(len(known), 1), known, known.square()], 1)
            seen.append(
                (told, pictures.flip(3) if mirrored else pictures, person + mirrored * len(self.numbers))
            )
        told, shown, owner = (torch.cat(parts) for parts in zip(*seen, strict=True))
        shown = shown.flatten(1)
        count = torch.bincount(owner, minlength=self.codes).float()
        weight = count[owner].rsqrt()[:, None]  # squared, it sums to 1 for each person
        explained = torch.linalg.lstsq(told * weight, shown * weight, driver="gelsd").solution
        rest = shown - told @ explained
        return torch.zeros(self.codes, rest.shape[1]).index_add_(0, owner, rest) / count[:, None]

    def batch(self, step: int, size: int, resolution: int, seed: int, swap: float = 0.5) -> Batch:
        """The batch of a step: a function of its arguments, so that a resumed training sees the same.

        Args:
            step: number of the step.
            size: portraits in the batch.
            resolution: of the images.
            seed: of the order.
            swap: share of rows shown with a foreign eye or mouth openness and its free area excused.
        """
        rng = np.random.default_rng([seed, step])
        hers = min(size, int(np.floor(size * self.share + rng.random()))) if len(self.others) else size
        rows = np.concatenate(
            [rng.choice(self.hers, hers, hers > len(self.hers)), rng.choice(self.others, size - hers)]
            if len(self.others)
            else [rng.choice(self.hers, size)]
        )
        mirror = rng.random(size) < 0.5
        mirror[:hers] = False
        raw = self.raw[rows].copy()
        images, weights, areas = self.at(resolution)
        picked = torch.from_numpy(rows).to(self.device)
        image = images[picked].float() / 127.5 - 1
        weight = weights[picked].float()
        kind = rng.random(size)
        for i in np.flatnonzero(kind < swap).tolist():
            column, boxes = (EYES, self.boxes.eyes) if kind[i] < swap / 2 else (MOUTH, self.boxes.mouth)
            top, bottom, left, right = (boxes[rows[i]] * resolution / 256).round().long().tolist()
            if bottom > top and right > left:
                raw[i, column] = rng.random()
                weight[i, :, top:bottom, left:right] = 0
        luck = rng.random((2, size)) < self.repainted
        for k, paint in enumerate((repaint_background, repaint_hair)):
            lucky = np.flatnonzero(luck[k])
            if not len(lucky):
                continue
            where = torch.from_numpy(lucky).to(self.device)
            share, values = areas[picked[where], k].float() / 255, raw[lucky]
            image[where], outline = paint(image[where], share, values, self.ranges, rng)
            raw[lucky] = values
            weight[where] = weight[where].masked_fill(outline[:, None], 0)
        walls = sure_walls(areas[picked, 0].float() / 255)
        nuisance = self.raw_nuisance[rows]
        flipped = torch.from_numpy(mirror)
        if mirror.any():
            turned = flipped.to(self.device)
            image[turned] = image[turned].flip(3)
            weight[turned] = weight[turned].flip(3)
            walls[turned] = walls[turned].flip(2)
            raw[mirror, POSE] *= -1
            nuisance[mirror, NUISANCE_NAMES.index("roll")] *= -1
        codes = self.code[torch.from_numpy(rows)] + len(self.numbers) * flipped
        return Batch(
            image.contiguous(memory_format=torch.channels_last),
            weight,
            codes,
            *self.normalisation(torch.from_numpy(raw), torch.from_numpy(nuisance)),
            walls,
        )

    def judged(self, resolution: int) -> Batch:
        """The held-out portraits of the persona."""
        images, weights, areas = self.at(resolution)
        rows = torch.from_numpy(self.held_rows)
        there = rows.to(self.device)
        return Batch(
            images[there].float() / 127.5 - 1,
            weights[there].float(),
            self.code[rows],
            *self.normalisation(
                torch.from_numpy(self.raw[self.held_rows]),
                torch.from_numpy(self.raw_nuisance[self.held_rows]),
            ),
            sure_walls(areas[there, 0].float() / 255),
        )
