"""Hair styles: what each one asks of the guides, as functions of where a guide has its root.

Roots are given on the neutral head (dm; x to the image's right, y up, z to the front), so that a style is the
same on every head. The hairline lies at y = 7.87 in front, the ears at |x| = 0.75, the crown at y = 8.5.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ohlora.corpus.geometry import Bools, Floats, normalized, smoothstep
from ohlora.corpus.parameters import FALLING_STYLES, Fringe, Hair, HairStyle

TIE = {HairStyle.PONYTAIL: np.array([0.0, 7.95, -0.75]), HairStyle.BUN: np.array([0.0, 8.46, -0.12])}
BUN_RADIUS = 0.30


@dataclass(frozen=True)
class Combing:
    """What one style asks of `n` guides."""

    length: Floats  # [n] dm
    direction: Floats  # [n, 3] combing direction at the root
    lift: Floats  # [n] how much the root stands up, 0 lies flat
    fall: Floats  # [n] how fast gravity takes over, per dm
    least: Floats  # [n] distance that the head keeps, dm
    most: Floats  # [n] distance that the head allows, dm
    hold: Floats  # [n] how firmly the head holds what is farther away than that, 0..1
    fringe: Bools  # [n] guides in front of the forehead
    beside: Bools  # [n] guides that the face pushes aside
    curl: Floats  # [n] radius of a coil, dm
    turns: float  # of a coil per dm
    spread: float  # distance between the tips of strands of one lock, dm


def comb(hair: Hair, root: Floats, rng: np.random.Generator) -> Combing:
    """What `hair` asks of guides with roots [n, 3] on the neutral head."""
    falls = hair.style in FALLING_STYLES
    plan = _falling(hair, root, rng) if falls else _STYLES[hair.style](hair, root, rng)
    return _with_fringe(plan, hair, root, rng)


def _front(root: Floats) -> Floats:
    return smoothstep(0.72, 1.12, root[:, 2]) * smoothstep(7.66, 7.92, root[:, 1])


def _plan(
    root: Floats,
    direction: Floats,
    *,
    length: Floats,
    lift: Floats | float,
    fall: Floats | float,
    least: Floats | float,
    most: Floats | float,
    spread: float,
    hold: float = 0.6,
    curl: float = 0.0,
    turns: float = 5.5,
) -> Combing:
    """A plan without fringe whose guides the face does not push aside."""
    count = len(root)

    def each(value: Floats | float) -> Floats:
        return np.broadcast_to(np.asarray(value, np.float64), (count,)).copy()

    return Combing(
        length=each(length),
        direction=direction,
        lift=each(lift),
        fall=each(fall),
        least=each(least),
        most=each(most),
        hold=each(hold),
        fringe=np.zeros(count, bool),
        beside=np.zeros(count, bool),
        curl=each(curl),
        turns=turns,
        spread=spread,
    )


def _falling(hair: Hair, root: Floats, rng: np.random.Generator) -> Combing:
    """Parted hair that falls beside the face: long, bob, layered."""
    count = len(root)
    side = np.where(root[:, 0] > hair.part, 1.0, -1.0)
    from_part = smoothstep(0.0, 0.35, np.abs(root[:, 0] - hair.part))
    length = np.full(count, 0.7 + 2.7 * hair.length)
    if hair.style is HairStyle.LAYERED:  # outer layers are shorter
        length = length * (1 - 0.30 * smoothstep(7.7, 8.4, root[:, 1]) * rng.random(count))
    if hair.style is HairStyle.BOB:
        length = np.full(count, 1.75 + 0.55 * hair.length) - 0.62 * smoothstep(8.4, 7.0, root[:, 1])
    back = -0.35 - 0.35 * rng.random(count)
    direction = np.stack([side * 0.9, np.full(count, -0.25), back], 1)
    volume = 0.02 + 0.02 * smoothstep(8.0, 8.4, root[:, 1])
    least = rng.uniform(0.02, 0.11, count) * (0.45 + 0.55 * from_part) + volume
    plan = _plan(
        root,
        direction,
        length=length * rng.uniform(0.90, 1.04, count),
        lift=0.24 * (0.2 + 0.8 * from_part),
        fall=2.2,
        least=least,
        most=least + 0.07,
        hold=-1.0,  # the companion of the head lets go below the jaw: see hair.py
        curl=hair.wave * 0.05,
        spread=0.024,
    )
    plan.beside[:] = True
    return plan


def _crew(hair: Hair, root: Floats, rng: np.random.Generator) -> Combing:
    """Clipped all over, a little longer on top."""
    top = smoothstep(7.6, 8.2, root[:, 1])
    length = (0.07 + 0.10 * hair.length) * (1 + 0.9 * top) * rng.uniform(0.8, 1.1, len(root))
    direction = np.stack([0.4 * root[:, 0], -0.5 * (1 - top), 0.5 * top + 0.1], 1)
    return _plan(
        root, direction, length=length, lift=0.45 + 0.45 * top, fall=0.1, least=0, most=0.4, spread=0.010
    )


def _side_part(hair: Hair, root: Floats, rng: np.random.Generator) -> Combing:
    """Short sides, a top that is combed over with some height in front."""
    top = smoothstep(7.75, 8.05, root[:, 1])
    over = np.where(root[:, 0] > hair.part, 1.0, -1.0)
    length = np.where(top > 0.5, 0.55 + 0.35 * hair.length, 0.20) * rng.uniform(0.85, 1.05, len(root))
    direction = np.stack(
        [
            over * (0.75 * top + 0.1),
            0.30 * top - 0.8 * (1 - top),
            0.05 - 0.45 * top * smoothstep(0.9, 0.3, root[:, 2]) - 0.25 * (1 - top),
        ],
        1,
    )
    least = rng.uniform(0.02, 0.05, len(root)) + 0.10 * _front(root)
    return _plan(
        root,
        direction,
        length=length,
        lift=0.16 + 0.50 * _front(root),
        fall=0.9,
        least=least,
        most=least + 0.06 + 0.06 * top,
        hold=0.5,
        curl=hair.wave * 0.03,
        spread=0.016,
    )


def _crop(hair: Hair, root: Floats, rng: np.random.Generator) -> Combing:
    """Two-block: short sides, a top that falls forward."""
    top = smoothstep(7.62, 7.86, root[:, 1])
    length = np.where(top > 0.5, 0.42 + 0.38 * hair.length, 0.16) * rng.uniform(0.7, 1.08, len(root))
    sweep = 0.30 * root[:, 0] + (0.35 + 0.1 * rng.normal(0, 1, len(root))) * np.sign(hair.part + 1e-3)
    direction = np.stack([sweep, -0.25 - 0.6 * (1 - top), 0.9 * top - 0.2 * (1 - top)], 1)
    least = rng.uniform(0.03, 0.08, len(root)) * (0.4 + 0.6 * top)
    return _plan(
        root,
        direction,
        length=length,
        lift=0.08 + 0.26 * top,
        fall=0.9,
        least=least,
        most=least + 0.05 + 0.07 * top,
        hold=0.6,
        curl=hair.wave * 0.035,
        spread=0.018,
    )


def _slick(hair: Hair, root: Floats, rng: np.random.Generator) -> Combing:
    """Combed straight back, close to the head."""
    top = smoothstep(7.6, 8.0, root[:, 1])
    length = (0.45 + 0.45 * top + 0.3 * hair.length) * rng.uniform(0.85, 1.05, len(root))
    up = 0.45 * _front(root) - 0.25 * (1 - top)
    direction = np.stack([0.12 * root[:, 0], up, np.full(len(root), -1.0)], 1)
    least = 0.012 + 0.02 * rng.random(len(root)) + 0.07 * top * smoothstep(0.2, 0.9, root[:, 2])
    return _plan(
        root,
        direction,
        length=length,
        lift=0.05 + 0.25 * _front(root),
        fall=0.25,
        least=least,
        most=least + 0.03,
        hold=0.8,
        curl=hair.wave * 0.02,
        spread=0.012,
    )


def _pixie(hair: Hair, root: Floats, rng: np.random.Generator) -> Combing:
    """Short and soft all round, swept to one side in front."""
    top = smoothstep(7.7, 8.1, root[:, 1])
    side = np.sign(hair.part + 1e-3)
    backwards = 0.45 * (1 - top) * smoothstep(0.9, 0.2, root[:, 2])
    length = (0.42 + 0.42 * top + 0.25 * hair.length) * rng.uniform(0.78, 1.08, len(root))
    direction = np.stack(
        [
            -side * 0.75 * top + 0.25 * root[:, 0],
            -0.7 * (1 - top) - 0.1,
            0.45 * top * smoothstep(-0.3, 0.5, root[:, 2]) - backwards,
        ],
        1,
    )
    least = rng.uniform(0.03, 0.09, len(root))
    return _plan(
        root,
        direction,
        length=length,
        lift=0.26,
        fall=1.0,
        least=least,
        most=least + 0.05,
        hold=0.6,
        curl=hair.wave * 0.03,
        spread=0.020,
    )


def _curls(hair: Hair, root: Floats, rng: np.random.Generator) -> Combing:
    """A round volume of coils."""
    length = (0.55 + 0.75 * hair.length) * rng.uniform(0.75, 1.1, len(root))
    low = smoothstep(7.6, 7.0, root[:, 1])
    direction = np.stack([0.6 * root[:, 0], -0.25 - 0.3 * low, 0.25 * (root[:, 2] - 0.3)], 1)
    least = rng.uniform(0.05, 0.22, len(root)) * (1 - 0.6 * low)
    return _plan(
        root,
        direction,
        length=length * (1 - 0.4 * low),
        lift=0.8,
        fall=1.1,
        least=least,
        most=least + 0.12,
        hold=0.5,
        curl=0.035 + 0.035 * hair.wave,
        turns=11.0,
        spread=0.020,
    )


def _tied(hair: Hair, root: Floats, rng: np.random.Generator) -> Combing:
    """Drawn back, or up, to one point."""
    towards = TIE[hair.style] - root
    distance = np.linalg.norm(towards, axis=1)
    direction = normalized(towards)
    direction[:, 1] += 0.45 * _front(root)  # over the crown, not through the head
    least = 0.02 + 0.02 * rng.random(len(root)) + 0.03 * smoothstep(7.9, 8.3, root[:, 1])
    return _plan(
        root,
        direction,
        length=np.minimum(distance * 1.10, 1.7),
        lift=0.04 + 0.12 * _front(root),
        fall=-1.0,  # towards the tie instead of down: see hair.py
        least=least,
        most=least + 0.02,
        hold=0.9,
        spread=0.010,
    )


_STYLES = {
    HairStyle.CREW: _crew,
    HairStyle.SIDE_PART: _side_part,
    HairStyle.CROP: _crop,
    HairStyle.SLICK: _slick,
    HairStyle.PIXIE: _pixie,
    HairStyle.CURLS: _curls,
    HairStyle.PONYTAIL: _tied,
    HairStyle.BUN: _tied,
}


def _with_fringe(plan: Combing, hair: Hair, root: Floats, rng: np.random.Generator) -> Combing:
    """The plan with the guides over the forehead combed as the fringe asks."""
    if hair.fringe is Fringe.NONE:
        return plan
    front = _front(root)
    chosen = (front > 0.35) & (rng.random(len(root)) < 0.97)
    x, y, z = root.T
    to_brows = (y - 7.50).clip(0.1) * 0.80 + (1.5 - z).clip(0) * 0.62
    unevenness = rng.uniform(0.86, 1.07, len(root))
    side = np.sign(hair.part + 1e-3)
    if hair.fringe is Fringe.FULL:
        length = (to_brows + 0.03 + 0.26 * np.abs(x) ** 1.5) * rng.uniform(0.72, 1.06, len(x))
        slant = 0.16 * side + 0.14 * np.sin(9 * x + 3 * side) + 0.10 * rng.normal(0, 1, len(x))
        direction = np.stack([0.50 * x + slant, np.full(len(x), -0.40), np.ones(len(x))], 1)
        lift, fall = 0.28, 1.7
    elif hair.fringe is Fringe.SIDE:
        length = (to_brows * 1.18 + 0.30 + 0.30 * (0.5 - side * x).clip(0, 1)) * unevenness
        direction = np.stack([-side * (0.95 + 0.1 * x), np.full(len(x), -0.10), np.full(len(x), 0.55)], 1)
        lift, fall = 0.30, 1.15
    else:  # curtain
        away = np.where(x > hair.part, 1.0, -1.0)
        chosen &= front > 0.5
        length = (to_brows * 1.25 + 0.55 + 0.25 * np.abs(x - hair.part)) * unevenness
        direction = np.stack([away * 0.85, np.full(len(x), 0.05), np.full(len(x), 0.60)], 1)
        lift, fall = 0.42, 1.5
    least = rng.uniform(0.03, 0.075, len(root))

    def swap(old: Floats, new: Floats | float) -> Floats:
        mask = chosen if old.ndim == 1 else chosen[:, None]
        return np.where(mask, new, old)

    return Combing(
        length=swap(plan.length, length),
        direction=swap(plan.direction, direction),
        lift=swap(plan.lift, lift),
        fall=swap(plan.fall, fall),
        least=swap(plan.least, least),
        most=swap(plan.most, least + 0.05),
        hold=swap(plan.hold, 0.6),
        fringe=chosen,
        beside=plan.beside & (~chosen | (hair.fringe is Fringe.CURTAIN)),
        curl=swap(plan.curl, plan.curl * 0.4),
        turns=plan.turns,
        spread=plan.spread,
    )
