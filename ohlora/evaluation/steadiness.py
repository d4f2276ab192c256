"""What must not change when an expression does: who it is, her hair and the background behind her.

Both are measured on generated pictures and, in the same way, on renders, which hold a person and a room
perfectly still. So a figure says how far the generator is from what can be reached: a light that moves with
the head, or a judge that sees a profile with other eyes, costs both sides the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import qmc

from ohlora.attributes import FaceClass
from ohlora.corpus.portraits import Portraits
from ohlora.evaluation.units import EXPRESSION_RANGE, LIMITS, clean_women, training_people
from ohlora.evaluation.witness import Images
from ohlora.gan.networks import NUISANCE_NAMES

MOVING = tuple(EXPRESSION_RANGE)  # eyes, mouth and pose: the first of CONDITION_NAMES
Masker = Callable[[Images], NDArray[np.bool_]]
"""Pictures uint8 [n, h, w, 3] -> bool [n, h, w]: hair and background, or what lies outside the face."""

# eyes, mouth and pose: a neutral picture first, then one change at a time, as wide as the corpus sweeps it
NEUTRAL = (1.0, 0.0, 0.0)
EXPRESSION_CHANGES = ((0.0, 0.0, 0.0), (1.0, 1.0, 0.0))
POSE_CHANGES = ((1.0, 0.0, -30.0), (1.0, 0.0, 30.0))
CHANGES = np.array([NEUTRAL, *EXPRESSION_CHANGES, *POSE_CHANGES])

ELLIPSE = (0.5, 0.54, 0.33, 0.42)  # centre x, y and half axes of a frontal face, shares of the picture


@dataclass(frozen=True)
class Moments:
    """Expressions to draw a person under."""

    asked: NDArray[np.float64]  # eyes, mouth and pose, [n, 3]
    nuisance: NDArray[np.float64] | None  # pitch, roll and smile, [n, 3]


class RenderedMoments:
    """Expressions of rendered people, so that drawn people show the same spread of them."""

    def __init__(self, portraits: Portraits) -> None:
        rows = reference_rows(portraits)
        self._asked = np.stack([portraits.truth[name][rows] for name in MOVING], 1).astype(np.float64)
        nuisance = np.stack([portraits.truth[name][rows] for name in NUISANCE_NAMES], 1)
        known = np.isfinite(self._asked).all(1)
        self._asked, self._nuisance = self._asked[known], nuisance[known].astype(np.float64)

    def sample(self, count: int, seed: list[int]) -> Moments:
        """Expressions at random, without repetition while there are enough; a Sobol set if none are known."""
        rng = np.random.default_rng(seed)
        bounds = np.array([LIMITS[name] for name in MOVING])
        if not len(self._asked):
            low, high = np.array(list(EXPRESSION_RANGE.values())).T
            points = qmc.Sobol(3, rng=rng).random(2 ** (count - 1).bit_length())[:count]
            return Moments(qmc.scale(points, low, high), None)
        rows = rng.choice(len(self._asked), count, replace=count > len(self._asked))
        nuisance = self._nuisance[rows]
        return Moments(
            np.clip(self._asked[rows], bounds[:, 0], bounds[:, 1]),
            nuisance if np.isfinite(nuisance).all() else None,
        )


def reference_rows(portraits: Portraits) -> NDArray[np.intp]:
    """Renders of women whom the judge has never seen, each at her own expressions; row numbers.

    These are the people of the train split: the judge learns from the others. Counterfactual sets are left
    out, in which hair or background changes as well. Everybody of them, where that leaves nothing.
    """
    people = training_people(portraits)
    chosen = people & clean_women(portraits) & (portraits.swept == "")
    return np.flatnonzero(chosen if chosen.any() else people)


def within(embeddings: NDArray[np.floating]) -> float:
    """Mean cosine of all pairs of unit embeddings [n, d]; NaN with fewer than two."""
    n = len(embeddings)
    if n < 2:
        return float("nan")
    total = np.asarray(embeddings, np.float64).sum(0)
    return float((total @ total - n) / (n * (n - 1)))


def between(people: list[NDArray[np.floating]]) -> float:
    """Mean cosine of pairs of unit embeddings of two people; NaN with fewer than two people."""
    if len(people) < 2:
        return float("nan")
    means = np.stack([np.asarray(person, np.float64).mean(0) for person in people])
    cosine = means @ means.T
    return float(cosine[~np.eye(len(people), dtype=bool)].mean())


def identities(embeddings: NDArray[np.floating], identity: NDArray[np.integer]) -> list[NDArray[np.floating]]:
    """Embeddings [n, d] of each person with at least two pictures."""
    groups = [embeddings[identity == number] for number in np.unique(identity)]
    return [group for group in groups if len(group) > 1]


def outside_ellipse(images: Images) -> NDArray[np.bool_]:
    """What lies outside a central ellipse that covers a face, bool [n, h, w]: for want of a parser."""
    h, w = images.shape[1:3]
    x, y, a, b = ELLIPSE
    across = ((np.arange(w) + 0.5) / w - x) / a
    down = ((np.arange(h) + 0.5) / h - y) / b
    return np.broadcast_to(across[None] ** 2 + down[:, None] ** 2 > 1, images.shape[:3])


def hair_and_background(masks: Callable[[Images], NDArray[np.uint8]]) -> Masker:
    """A masker from a face parser's `masks`."""

    def mask(images: Images) -> NDArray[np.bool_]:
        found = masks(images)
        return np.asarray((found == FaceClass.HAIR) | (found == FaceClass.BACKGROUND))

    return mask


@dataclass(frozen=True)
class OutsideChange:
    """Mean absolute change of colour in grey levels (0..255) of hair and background; NaN is unknown."""

    expression: float  # when eyes or mouth change
    pose: float  # when the head turns by 30 degrees


def change(images: Images, outside: NDArray[np.bool_], first: int, others: list[int]) -> float:
    """Mean absolute difference of pictures to the first, where both are outside the face; grey levels."""
    differences = []
    for other in others:
        both = outside[first] & outside[other]
        if both.any():
            a, b = images[first][both].astype(np.float64), images[other][both].astype(np.float64)
            differences.append(np.abs(a - b).mean())
    return float(np.mean(differences)) if differences else float("nan")


def outside_change(images: Images, masker: Masker) -> OutsideChange:
    """The change between pictures uint8 [5, h, w, 3] of one person under `CHANGES`."""
    outside = masker(images)
    split = 1 + len(EXPRESSION_CHANGES)
    return OutsideChange(
        change(images, outside, 0, list(range(1, split))),
        change(images, outside, 0, list(range(split, len(CHANGES)))),
    )


def outside_change_of_renders(portraits: Portraits, masker: Masker) -> OutsideChange:
    """The same of counterfactual renders: the ends of sets that sweep eyes or mouth, and the middle of the
    pose against its ends; NaN where the corpus has no such set."""
    found: dict[str, list[float]] = {name: [] for name in MOVING}
    for name in MOVING:
        for number in np.unique(portraits.sets[portraits.swept == name]):
            rows = np.flatnonzero((portraits.sets == number) & (portraits.swept == name))
            rows = rows[np.argsort(portraits.truth[name][rows])]
            if len(rows) < (3 if name == "pose" else 2):
                continue
            ends = [rows[0], rows[-1]]
            rows = np.array([rows[len(rows) // 2], *ends] if name == "pose" else ends)
            images = portraits.images[rows]
            found[name].append(change(images, masker(images), 0, list(range(1, len(rows)))))
    return OutsideChange(_mean([*found["eyes"], *found["mouth"]]), _mean(found["pose"]))


def _mean(values: list[float]) -> float:
    known = [value for value in values if np.isfinite(value)]
    return float(np.mean(known)) if known else float("nan")
