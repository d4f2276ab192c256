"""A face that writes its requests into pixels, and a reader that reads them back: all answers are known."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ohlora.attributes import CONDITION_NAMES, Expression
from ohlora.corpus.portraits import TRUTH_NAMES, Portraits
from ohlora.evaluation.evidence import Evidence
from ohlora.evaluation.units import LIMITS, Units
from ohlora.evaluation.witness import Images, Sight

SIZE = 32
FIRST_ROW, ROWS = 9, 8  # of the codes, inside the face: seven attributes and an angle that is the identity
COLUMNS = slice(15, 17)
WALL = 100  # grey level outside
LOW, HIGH = np.array([LIMITS[name] for name in CONDITION_NAMES]).T
EYES = CONDITION_NAMES.index("eyes")


@dataclass
class FakeFace:
    """Obeys perfectly unless told otherwise."""

    ignores: tuple[str, ...] = ()  # attributes that it draws at a constant
    rebels: frozenset[int] = frozenset()  # seeds that do the opposite
    drift: float = 0.0  # turns of the identity's angle from one end of the pose to the other
    leak: float = 0.0  # grey levels that the wall changes by when the eyes open
    drawn: int = 0
    seeds: list[int] = field(default_factory=list)

    @property
    def persona_latent(self) -> Tensor:
        return torch.tensor([0.0, 0.0])

    def sample_latent(self, seed: int) -> Tensor:
        self.seeds.append(seed)
        angle = np.random.default_rng(seed).random()
        return torch.tensor([angle, float(seed in self.rebels)])

    def conditions(self, expression: Expression, latent: Tensor | None = None) -> Tensor:
        own = [120.0, 0.5, 100.0, 20.0]
        return torch.tensor([expression.eyes, expression.mouth, expression.pose, *own])

    def images(self, latents: Tensor, conditions: Tensor, nuisance: Tensor | None = None) -> Images:
        self.drawn += len(latents)
        level = (conditions.double().numpy() - LOW) / (HIGH - LOW)
        assert level.min() >= -1e-6
        assert level.max() <= 1 + 1e-6
        rebel = latents[:, 1].bool().numpy()
        level = np.where(rebel[:, None], 1 - level, level)
        for name in self.ignores:
            level[:, CONDITION_NAMES.index(name)] = 0.5
        angle = latents[:, 0].double().numpy() + self.drift * level[:, CONDITION_NAMES.index("pose")]
        wall = WALL + self.leak * level[:, EYES]
        return encode(level, angle % 1, wall)


def encode(level: np.ndarray, angle: np.ndarray, wall: np.ndarray) -> Images:
    """Levels [n, 7] and angles [n] in 0..1 with 16 bits each; the rest has the grey level of the wall [n]."""
    images = np.empty((len(level), SIZE, SIZE, 3), np.uint8)
    images[:] = np.round(wall).astype(np.uint8)[:, None, None, None]
    codes = np.round(np.concatenate([level, angle[:, None]], 1).clip(0, 1) * 65535).astype(np.int64)
    rows = slice(FIRST_ROW, FIRST_ROW + ROWS)
    images[:, rows, COLUMNS, 0] = (codes >> 8)[..., None]
    images[:, rows, COLUMNS, 1] = (codes & 255)[..., None]
    return images


def read(images: Images) -> Sight:
    """The requests back; identity is a point on a circle."""
    codes = images[:, FIRST_ROW : FIRST_ROW + ROWS, COLUMNS.start].astype(np.float64)
    values = (codes[..., 0] * 256 + codes[..., 1]) / 65535
    turn = 2 * np.pi * values[:, -1]
    return Sight(
        attributes=values[:, :-1] * (HIGH - LOW) + LOW,
        gender=np.full(len(images), 0.9),
        embeddings=np.stack([np.cos(turn), np.sin(turn)], 1).astype(np.float32),
        features=values[:, :4].astype(np.float32),
    )


def portraits(people: int = 24, each: int = 4, swing: float = 0.0) -> Portraits:
    """Renders of people 1..; every third is held out. Of the first two an eyes, mouth and pose set each.

    Args:
        swing: turns of the identity's angle over the range of the pose.
    """
    rng = np.random.default_rng(1)
    rows = []
    for person in range(1, people + 1):
        for _ in range(each):
            rows.append((person, rng.uniform([0, 0, 0.1, 0, 0, 0, 0], [1, 1, 0.9, 1, 1, 1, 1]), -1, ""))
    for person in (1, 2):
        for name in ("eyes", "mouth", "pose"):
            for step in np.linspace(0, 1, 3):
                level = np.full(7, 0.5)
                level[CONDITION_NAMES.index(name)] = step
                rows.append((person, level, 10 * person + CONDITION_NAMES.index(name), name))
    identity = np.array([row[0] for row in rows])
    level = np.stack([row[1] for row in rows])
    turn = identity / people + swing * level[:, 2]
    wall = WALL + 4 * (level[:, EYES] > 0.9) * np.array([row[3] == "eyes" for row in rows])
    truth = {name: np.full(len(rows), np.nan, np.float32) for name in TRUTH_NAMES}
    for i, name in enumerate(CONDITION_NAMES):
        truth[name] = (level[:, i] * (HIGH - LOW)[i] + LOW[i]).astype(np.float32)
    truth["gender"], truth["quality"] = (np.ones(len(rows), np.float32) for _ in range(2))
    return Portraits(
        images=encode(level, turn % 1, wall),
        masks=np.zeros((len(rows), SIZE, SIZE), np.uint8),
        truth=truth,
        identity=identity,
        split=np.where(identity % 3 == 0, "test", "train"),
        sets=np.array([row[2] for row in rows]),
        swept=np.array([row[3] for row in rows]),
    )


def evidence(corpus: Portraits | None = None, **changes: object) -> Evidence:
    """Evidence with the reader of this module."""
    corpus = corpus or portraits()
    return Evidence(read=read, portraits=corpus, units=Units.of(corpus), **changes)  # type: ignore[arg-type]
