"""Hair: guides grown over the head, strands between them, ribbons to draw.

Guides follow the combing of a style, gravity and the head, which pushes them out and holds them in. Strands
are blends of three guides. Ribbons are strips of triangles that face the camera, with normals bent outwards
so that a few thousand of them shade like a volume.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from ohlora.corpus.geometry import Floats, Ints, normalized, smoothstep
from ohlora.corpus.hairstyles import BUN_RADIUS, TIE, Combing, comb
from ohlora.corpus.parameters import FALLING_STYLES, Hair, HairStyle
from ohlora.corpus.template import Template

GUIDE_POINTS = 24
LONG_POINTS, SHORT_POINTS = 10, 7  # of a strand as it is drawn
STRAY_SHARE = 0.045
BUN_STRANDS = 1500
DOWN = np.array([0.0, -1.0, 0.0])


@dataclass(frozen=True)
class Strands:
    """Of a head that is not turned."""

    points: Floats  # [n, LONG_POINTS or SHORT_POINTS, 3] dm
    width: Floats  # [n] half width of the ribbon at its widest, dm
    roots: Ints  # [n] index of the root among the template's, for colours


def grow_strands(
    template: Template, vertices: Floats, normals: Floats, eyes: Floats, hair: Hair, rng: np.random.Generator
) -> Strands:
    """Grow all hair of one person.

    Args:
        vertices, normals: of the subdivided body, [n, 3].
        eyes: [3] centre between the eyeballs.
    """
    body = template.body.template
    at_guide, at_strand = template.guide_roots @ body, template.strand_roots @ body
    plan = comb(hair, at_guide, rng)
    guides = _grow_guides(template, vertices, normals, eyes, hair, plan, rng)
    # Strands do not blend guides across the parting, nor the fringe with the rest.
    parted = 0.6 if hair.style in FALLING_STYLES or hair.style is HairStyle.SIDE_PART else 0.0
    guide_key = np.column_stack([at_guide, parted * (at_guide[:, 0] > hair.part)])
    strand_key = np.column_stack([at_strand, parted * (at_strand[:, 0] > hair.part)])
    distance, nearest = cKDTree(guide_key).query(strand_key, k=3)
    weights = 1 / (distance + 0.03) ** 2 * (plan.fringe[nearest] == plan.fringe[nearest[:, :1]])
    weights /= weights.sum(1, keepdims=True)
    offsets = guides - guides[:, :1]
    roots = (template.strand_roots @ vertices)[:, None]
    strands = roots + np.einsum("nk,nkcd->ncd", weights, offsets[nearest])

    count = len(strands)
    along = np.linspace(0, 1, GUIDE_POINTS)[None, :, None]
    strands = strands + rng.normal(0, 1, (count, 1, 3)) * plan.spread * along**0.8
    stray = rng.random(count) < STRAY_SHARE
    strands[stray] += rng.normal(0, 0.045, (int(stray.sum()), 1, 3)) * along**1.3
    curl = plan.curl[nearest[:, 0]]
    if (curl > 0).any():
        strands = strands + _coil(strands, at_strand, curl, plan.turns, along, rng)

    fringe = plan.fringe[nearest[:, 0]]
    shortest = np.where(fringe, 0.62, 0.70)
    cut = shortest + (1 - shortest) * rng.random(count) ** 0.6
    short = hair.style not in FALLING_STYLES and hair.style is not HairStyle.CURLS
    points = _cut(strands, cut, SHORT_POINTS if short else LONG_POINTS)
    width = np.where(stray, 0.0022, rng.uniform(0.0042, 0.0064, count))
    fine = 0.5 + 0.5 * smoothstep(0.0, 0.12, template.strand_roots @ template.above_hairline)
    width = width * np.where(fringe, 0.72, fine) * (0.8 if hair.style is HairStyle.CREW else 1.0)
    all_roots = np.arange(count)
    if hair.style is HairStyle.BUN:
        bun, bun_width = _bun(eyes, rng)
        points, width = np.concatenate([points, bun]), np.concatenate([width, bun_width])
        all_roots = np.concatenate([all_roots, rng.integers(0, count, len(bun))])  # colours only
    return Strands(points, width, all_roots)


def _coil(
    strands: Floats, roots: Floats, radius: Floats, turns: float, along: Floats, rng: np.random.Generator
) -> Floats:
    """Offsets that wind strands into waves; neighbours wind together."""
    phase = roots[:, 0] * 9 + roots[:, 2] * 7 + (rng.normal(0, 0.35, len(roots)) if turns > 8 else 0)
    steps = np.linalg.norm(np.diff(strands.mean(0), axis=0), axis=1)
    angle = phase[:, None] + np.cumsum(np.r_[0, steps])[None] * turns
    up = 0.6 * np.sin(angle + 1.3) if turns > 8 else np.zeros_like(angle)
    wave = np.stack([np.sin(angle), up, np.cos(angle)], -1)
    return radius[:, None, None] * wave * np.clip(2 * along - 0.25, 0, 1)


def _cut(strands: Floats, share: Floats, count: int) -> Floats:
    """The first `share` [n] of each strand, resampled to `count` points."""
    position = share[:, None] * np.linspace(0, 1, count)[None] * (GUIDE_POINTS - 1)
    before = np.floor(position).astype(int).clip(0, GUIDE_POINTS - 2)
    rest = (position - before)[..., None]
    row = np.arange(len(strands))[:, None]
    return strands[row, before] * (1 - rest) + strands[row, before + 1] * rest


def _bun(eyes: Floats, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Strands wound around a ball above the crown."""
    centre = eyes + TIE[HairStyle.BUN] - np.array([0.0, 7.28, 0.95]) + np.array([0.0, 0.16, -0.85])
    axis = normalized(np.array([0.1, 1.0, 0.25]) + rng.normal(0, 0.5, (BUN_STRANDS, 3)))
    across = normalized(np.cross(axis, rng.normal(0, 1, (BUN_STRANDS, 3))))
    other = np.cross(axis, across)
    height = rng.uniform(-0.75, 0.75, BUN_STRANDS)
    ring = np.sqrt(1 - height**2) * BUN_RADIUS * rng.uniform(0.94, 1.04, BUN_STRANDS)
    angle = rng.uniform(0, 2 * np.pi, (BUN_STRANDS, 1)) + np.linspace(0, 1.5, SHORT_POINTS)[None]
    points = (
        centre
        + axis[:, None] * (height * BUN_RADIUS)[:, None, None]
        + (ring[:, None] * np.cos(angle))[..., None] * across[:, None]
        + (ring[:, None] * np.sin(angle))[..., None] * other[:, None]
    )
    return points, rng.uniform(0.005, 0.008, BUN_STRANDS)


def _grow_guides(
    template: Template,
    vertices: Floats,
    normals: Floats,
    eyes: Floats,
    hair: Hair,
    plan: Combing,
    rng: np.random.Generator,
) -> Floats:
    """Guides [guides, GUIDE_POINTS, 3] dm."""
    roots = template.guide_roots @ vertices
    outward = normalized(template.guide_roots @ normals)
    t = template.guide_roots @ template.body.template
    count = len(roots)
    skin, skin_normals = vertices[template.collision], normals[template.collision]
    tree = cKDTree(skin)
    tie = TIE.get(hair.style)
    goal = None if tie is None else tie + (eyes - np.array([0.0, 7.28, 0.95]))

    points = np.zeros((count, GUIDE_POINTS, 3))
    points[:, 0] = roots - outward * 0.01
    tangent = plan.direction - outward * (plan.direction * outward).sum(1, keepdims=True) * 0.85
    direction = normalized(tangent + outward * plan.lift[:, None] * rng.uniform(0.75, 1.15, (count, 1)))
    step = (plan.length / (GUIDE_POINTS - 1))[:, None]
    bend = np.clip(step * np.abs(plan.fall[:, None]), 0, 0.5)
    for k in range(1, GUIDE_POINTS):
        aim = DOWN
        if goal is not None:
            aim = np.where(plan.fall[:, None] < 0, normalized(goal - points[:, k - 1]), DOWN)
            bend = np.where(plan.fall[:, None] < 0, 0.22, bend)
        direction = normalized(direction * (1 - bend) + aim * bend)
        q = points[:, k - 1] + direction * step
        if plan.beside.any():
            q = _off_the_face(q, eyes, t, plan)
        along = k / (GUIDE_POINTS - 1)
        for _ in range(2):
            nearest = tree.query(q)[1]
            height = ((q - skin[nearest]) * skin_normals[nearest]).sum(1)
            push = np.clip(plan.least * min(1, 0.35 + 3 * along) - height, 0, 0.4)
            let_go = 0.22 * smoothstep(eyes[1] - 1.15, eyes[1] - 0.75, q[:, 1])
            hold = np.where(plan.hold < 0, let_go, plan.hold)
            push = push - np.clip(height - plan.most, 0, 0.2) * hold
            q = q + skin_normals[nearest] * push[:, None]
        direction = normalized(q - points[:, k - 1])
        points[:, k] = points[:, k - 1] + direction * step
    return points


def _off_the_face(q: Floats, eyes: Floats, root: Floats, plan: Combing) -> Floats:
    """Move falling hair beside the face, and over or behind the shoulder."""
    below_eyes = eyes[1] - q[:, 1]
    free = np.where(plan.fringe, 0.30, 0.62)  # a curtain fringe may start over the forehead
    on_face = (
        plan.beside & (below_eyes > -free) & (below_eyes < 1.3) & (np.abs(q[:, 0]) < 0.80) & (q[:, 2] > 0.35)
    )
    sign = np.where(q[:, 0] >= 0, 1.0, -1.0)
    shoulder = smoothstep(1.15, 1.7, below_eyes) * plan.beside
    forward = np.where(root[:, 2] > 0.15, 0.06, -0.07)
    x = q[:, 0] + on_face * sign * 0.030 - 0.045 * shoulder * sign
    z = q[:, 2] - on_face * 0.030 + forward * shoulder
    return np.stack([x, q[:, 1], z], 1)


def ribbons(
    strands: Floats, half_width: Floats, camera: Floats, volume_centre: Floats, bend: float = 0.75
) -> tuple[Floats, Floats, Ints]:
    """Strips of triangles that face the camera.

    Args:
        strands: [n, k, 3] dm.
        half_width: [k] or [n, k] dm along a strand.
        camera: [3].
        volume_centre: [3] point from which the bent normals look away.
        bend: 0 takes normals that face the camera, 1 those of the volume.

    Returns:
        vertices [2nk, 3], normals [2nk, 3], triangles.
    """
    count, points, _ = strands.shape
    tangent = normalized(np.gradient(strands, axis=1))
    view = normalized(camera - strands)
    across = normalized(np.cross(tangent, view))
    width = np.broadcast_to(half_width, (count, points))[..., None]
    vertices = np.stack([strands - across * width, strands + across * width], 2).reshape(-1, 3)

    volume = normalized(strands - volume_centre)
    volume = normalized(volume - tangent * (volume * tangent).sum(-1, keepdims=True) * 0.85)
    normal = normalized(volume * bend + view * (1 - bend))
    away = (normal * view).sum(-1, keepdims=True) < 0.05
    normal = np.where(away, normalized(normal + view * 0.6), normal)
    normals = np.stack([normalized(normal - across * 0.35), normalized(normal + across * 0.35)], 2).reshape(
        -1, 3
    )

    first = (np.arange(count)[:, None] * points * 2 + np.arange(points - 1)[None] * 2).ravel()
    upper = np.stack([first, first + 1, first + 2], 1)
    lower = np.stack([first + 1, first + 3, first + 2], 1)
    return vertices, normals, np.concatenate([upper, lower])
