"""Hair: guides grown over the head, strands between them, ribbons to draw.

Guides follow a combing direction, gravity and the head, which pushes them out and holds them in. Strands are
blends of three guides. Ribbons are strips of triangles that face the camera, with normals bent outwards so
that a few thousand of them shade like a volume.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree

from ohlora.corpus.geometry import Bools, Floats, Ints, normalized, smoothstep
from ohlora.corpus.parameters import Hair
from ohlora.corpus.template import Template

GUIDE_POINTS = 26
STRAND_POINTS = 12
SHORT = 0.35  # lengths below it are combed hair cuts, above it hair that falls
DOWN = np.array([0.0, -1.0, 0.0])


def grow_strands(
    template: Template, vertices: Floats, normals: Floats, eyes: Floats, hair: Hair, rng: np.random.Generator
) -> Floats:
    """Strands of a head that is not turned, [strands, points, 3] dm.

    Args:
        vertices, normals: of the subdivided body, [n, 3].
        eyes: [3] centre between the eyeballs.
    """
    guides, bangs = _grow_guides(template, vertices, normals, eyes, hair, rng)
    body = template.body.template
    at_guide, at_strand = template.guide_roots @ body, template.strand_roots @ body
    # Strands do not blend guides across the parting, nor bangs with the rest.
    guide_key = np.column_stack([at_guide, 0.6 * (at_guide[:, 0] > hair.part)])
    strand_key = np.column_stack([at_strand, 0.6 * (at_strand[:, 0] > hair.part)])
    distance, nearest = cKDTree(guide_key).query(strand_key, k=3)
    weights = 1 / (distance + 0.03) ** 2 * (bangs[nearest] == bangs[nearest[:, :1]])
    weights /= weights.sum(1, keepdims=True)
    offsets = guides - guides[:, :1]
    strands = (template.strand_roots @ vertices)[:, None] + np.einsum(
        "nk,nkcd->ncd", weights, offsets[nearest]
    )

    along = np.linspace(0, 1, GUIDE_POINTS)[None, :, None]
    spread = 0.026 if hair.length > SHORT else 0.014
    strands = strands + rng.normal(0, 1, (len(strands), 1, 3)) * spread * along
    strays = rng.random(len(strands)) < 0.06
    strands[strays] += rng.normal(0, 0.03, (int(strays.sum()), 1, 3)) * along**1.5
    if hair.wave:
        phase = (at_strand[:, 0] * 9 + at_strand[:, 2] * 7)[:, None]
        steps = np.linalg.norm(np.diff(strands.mean(0), axis=0), axis=1)
        turns = phase + np.cumsum(np.r_[0, steps])[None] * 5.5
        curl = np.stack([np.sin(turns), np.zeros_like(turns), np.cos(turns)], -1)
        strands = strands + hair.wave * 0.05 * curl * np.clip(2 * along - 0.3, 0, 1)

    shortest = np.where(bangs[nearest[:, 0]], 0.86, 0.70)
    cut = shortest + (1 - shortest) * rng.random(len(strands)) ** 0.6
    position = cut[:, None] * np.linspace(0, 1, STRAND_POINTS)[None] * (GUIDE_POINTS - 1)
    before = np.floor(position).astype(int).clip(0, GUIDE_POINTS - 2)
    rest = (position - before)[..., None]
    row = np.arange(len(strands))[:, None]
    return strands[row, before] * (1 - rest) + strands[row, before + 1] * rest


def _grow_guides(
    template: Template, vertices: Floats, normals: Floats, eyes: Floats, hair: Hair, rng: np.random.Generator
) -> tuple[Floats, Bools]:
    """Guides [guides, points, 3] dm and which of them are bangs."""
    roots = template.guide_roots @ vertices
    outward = normalized(template.guide_roots @ normals)
    t = template.guide_roots @ template.body.template
    count = len(roots)
    is_long = hair.length > SHORT
    tree = cKDTree(vertices[template.collision])
    skin, skin_normals = vertices[template.collision], normals[template.collision]

    side = np.where(t[:, 0] > hair.part, 1.0, -1.0)
    from_part = smoothstep(0.0, 0.35, np.abs(t[:, 0] - hair.part))
    front = smoothstep(0.7, 1.15, t[:, 2]) * smoothstep(7.70, 7.95, t[:, 1])
    bangs = (front > 0.35) & hair.bangs & (rng.random(count) < 0.95)

    if is_long:
        length = np.full(count, 0.7 + 2.7 * hair.length)
    else:
        top = 0.75 + 0.6 * smoothstep(7.4, 8.2, t[:, 1])
        length = np.interp(hair.length, [0, SHORT], [0.16, 0.70]) * top
    length = length * rng.uniform(0.92, 1.05, count)
    to_brows = (t[:, 1] - 7.50).clip(0.1) * 0.80 + (1.5 - t[:, 2]).clip(0) * 0.62
    # Bangs arc: a little longer at the temples, where they meet the sides.
    bang_length = (to_brows + 0.03 + 0.2 * np.abs(t[:, 0]) ** 1.5) * rng.uniform(0.92, 1.06, count)
    length = np.where(bangs, bang_length, length)

    if is_long:
        back = -0.35 - 0.35 * rng.random(count)
        comb = np.stack([side * 0.9, np.full(count, -0.25), back], 1)
    else:
        comb = np.stack(
            [
                0.35 * np.sign(0.01 + hair.part) + 0.3 * t[:, 0],
                0.15 - 0.9 * smoothstep(8.0, 7.3, t[:, 1]),
                0.75 * smoothstep(-0.2, 0.6, t[:, 2]) - 0.35,
            ],
            1,
        )
        if not hair.bangs:  # swept back
            comb[:, 2] = np.where(front > 0.2, -0.5, comb[:, 2])
            comb[:, 1] += front * 0.5
    sweep = t[:, 0] * 0.6 + 0.12 * np.sign(hair.part + 1e-3)
    comb = np.where(bangs[:, None], np.stack([sweep, np.full(count, -0.35), np.ones(count)], 1), comb)

    # Distance that the head keeps and allows, dm.
    least = rng.uniform(0.02, 0.12 if is_long else 0.08, count) * np.where(bangs, 0.7, 1)
    if is_long:
        least = least * (0.45 + 0.55 * from_part)
        most = least + 0.08
        least = least + 0.02 * smoothstep(8.0, 8.4, t[:, 1])
    else:
        most = least + 0.03 + 0.10 * hair.length
    most = np.where(bangs, least + 0.04, most)
    lift = np.where(bangs, 0.4, 0.22 if is_long else 0.36) * (0.2 + 0.8 * from_part if is_long else 1.0)

    points = np.zeros((count, GUIDE_POINTS, 3))
    points[:, 0] = roots - outward * 0.01
    tangent = comb - outward * (comb * outward).sum(1, keepdims=True) * 0.8
    direction = normalized(tangent + outward * lift[:, None] * rng.uniform(0.7, 1.2, (count, 1)))
    step = (length / (GUIDE_POINTS - 1))[:, None]
    bend = np.clip(step * (2.2 if is_long else 0.8), 0, 0.5)
    for k in range(1, GUIDE_POINTS):
        direction = normalized(direction * (1 - bend) + DOWN * bend)
        q = points[:, k - 1] + direction * step
        if is_long:
            q = _off_the_face(q, eyes, t, bangs)
        along = k / (GUIDE_POINTS - 1)
        for _ in range(2):
            nearest = tree.query(q)[1]
            height = ((q - skin[nearest]) * skin_normals[nearest]).sum(1)
            push = np.clip(least * min(1, 0.35 + 3 * along) - height, 0, 0.4)
            hold = 0.22 * smoothstep(eyes[1] - 1.15, eyes[1] - 0.75, q[:, 1]) if is_long else 0.6
            push = push - np.clip(height - most, 0, 0.2) * np.where(bangs, 0.6, hold)
            q = q + skin_normals[nearest] * push[:, None]
        direction = normalized(q - points[:, k - 1])
        points[:, k] = points[:, k - 1] + direction * step
    return points, bangs


def _off_the_face(q: Floats, eyes: Floats, root: Floats, bangs: Bools) -> Floats:
    """Move falling hair beside the face, and over or behind the shoulder."""
    below_eyes = eyes[1] - q[:, 1]
    on_face = ~bangs & (below_eyes > -0.62) & (below_eyes < 1.3) & (np.abs(q[:, 0]) < 0.78) & (q[:, 2] > 0.35)
    sign = np.where(q[:, 0] >= 0, 1.0, -1.0)
    shoulder = smoothstep(1.15, 1.7, below_eyes)
    forward = np.where(root[:, 2] > 0.15, 0.06, -0.07)
    x = q[:, 0] + on_face * sign * 0.028 - 0.045 * shoulder * sign
    z = q[:, 2] - on_face * 0.030 + forward * shoulder
    return np.stack([x, q[:, 1], z], 1)


def ribbons(
    strands: Floats, half_width: Floats, camera: Floats, volume_centre: Floats, bend: float = 0.75
) -> tuple[Floats, Floats, Ints]:
    """Strips of triangles that face the camera.

    Args:
        strands: [n, k, 3] dm.
        half_width: [k] dm along a strand.
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
    width = half_width[None, :, None]
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
