"""Colours: skin, lips, lids, eyes, cloth, teeth and hair, all as functions of template coordinates.

Everything is procedural, so no texture and no licence of one is involved. Colours are linear RGB, [n, 3].
"""

from __future__ import annotations

import numpy as np

from ohlora.corpus.geometry import Floats, Surface, smoothstep
from ohlora.corpus.parameters import Look
from ohlora.corpus.template import Template

TAN = np.array([0.50, 0.275, 0.165])
FAIR = np.array([0.83, 0.535, 0.40])
DARK_LINE = np.array([0.06, 0.035, 0.03])
LID_SHADE = np.array([0.80, 0.68, 0.66])
BLUSH = np.array([1.0, 0.78, 0.76])


def waves(points: Floats, frequency: float, rng: np.random.Generator) -> Floats:
    """Smooth noise of about unit size: a sum of ten random plane waves, [n]."""
    total = np.zeros(len(points))
    for _ in range(10):
        total += np.sin(points @ rng.normal(0, frequency, 3) + rng.uniform(0, 2 * np.pi))
    return total / 3.2


def paint(colors: Floats, target: Floats, weight: Floats) -> Floats:
    """Blend towards a colour by a per-vertex weight."""
    return colors * (1 - weight[:, None]) + target * weight[:, None]


def tint(colors: Floats, factor: Floats, weight: Floats) -> Floats:
    """Multiply by a colour by a per-vertex weight."""
    return colors * (1 + (factor - 1) * weight[:, None])


def brow_color(look: Look) -> Floats:
    """Brows are never as light or as vivid as hair can be."""
    color = np.array(look.hair.color)
    grey = color.mean()
    vivid = (color.max() - color.min()) / (color.max() + 1e-6) > 0.5 and color.argmax() != 0
    if grey > 0.3 or vivid:
        return np.array([0.20, 0.115, 0.065])
    return color * 0.8 + np.array([0.030, 0.020, 0.016])


def skin_colors(template: Template, look: Look, rng: np.random.Generator) -> Floats:
    """The body without cloth, [n, 3]."""
    t = template.body.template
    x, y, z = t.T
    ax = np.abs(x)
    female = look.female

    def spot(cx: float, cy: float, size: float) -> Floats:
        return np.exp(-((ax - cx) ** 2 + (y - cy) ** 2) / size**2) * (z > 0.6)

    c = np.tile(TAN * (1 - look.skin) + FAIR * look.skin, (len(t), 1))
    blush = 0.25 + 0.35 * female
    red = blush * spot(0.40, 6.98, 0.18) + 0.45 * spot(0, 6.93, 0.09) + 0.2 * spot(0.3, 7.28, 0.16)
    c = tint(c, BLUSH, np.clip(red + 0.35 * template.is_ear, 0, 1))
    c = tint(c, LID_SHADE, np.clip(0.5 * template.eyelid.clip(0, 1) + 0.25 * spot(0.30, 7.36, 0.07), 0, 1))
    c = c * (1 + 0.02 * waves(t, 8, rng) + 0.010 * waves(t, 40, rng))[:, None]
    stubble = 0.35 * (1 - female) * smoothstep(6.85, 6.6, y) * (z > 0.5) * smoothstep(6.1, 6.3, y)
    c = tint(c, np.array([0.84, 0.86, 0.88]), stubble)

    lips = np.array(look.lips) * (0.9 + 0.1 * smoothstep(0.2, 0, ax))[:, None]
    c = paint(c, lips, template.lip * (0.6 + 0.22 * female))
    c = paint(c, np.array([0.30, 0.07, 0.07]), template.inner_mouth.clip(0, 1))
    c = paint(
        c, brow_color(look), 0.28 * smoothstep(1.25, 0.2, template.brow_distance) * smoothstep(0.12, 0.20, ax)
    )
    line = 0.8 * smoothstep(0.030, 0.006, template.lash_distance) * np.where(template.near_upper_lid, 1, 0.4)
    c = paint(c, DARK_LINE, line * (0.55 + 0.45 * female))
    nostril = 0.85 * np.exp(-(((ax - 0.072) / 0.034) ** 2 + ((y - 6.862) / 0.022) ** 2))
    c = paint(
        c, np.array([0.10, 0.03, 0.025]), nostril * (z > 1.3) * smoothstep(0, -0.5, template.normals[:, 1])
    )
    shadow = 0.5 * smoothstep(0.11, 0.03, template.lash_distance) * template.near_upper_lid
    c = tint(c, np.array([0.78, 0.66, 0.64]), shadow)
    rooted = template.scalp | ((template.above_hairline > -0.03) & ~template.is_ear)
    under_hair = smoothstep(-0.02, 0.09, template.above_hairline) * rooted
    return paint(c, np.array(look.hair.color) * 0.45, under_hair)


def cloth_colors(look: Look, points: Floats, collar: Floats, rng: np.random.Generator) -> Floats:
    """Knitted cloth with a darker rib along the neckline, [n, 3]."""
    rib = 0.22 * smoothstep(-0.115, -0.105, collar) * smoothstep(0.01, 0.0, collar)
    return np.array(look.clothes)[None] * ((1 - rib) * (1 + 0.04 * waves(points, 30, rng)))[:, None]


def eye_colors(eye: Surface, look: Look) -> Floats:
    """White, iris, pupil and two painted catch lights, [n, 3]."""
    t = eye.template
    q = t - (t.max(0) + t.min(0)) / 2
    radius = np.hypot(q[:, 0], q[:, 1])
    front = (q[:, 2] > 0).astype(float)
    angle = np.arctan2(q[:, 1], q[:, 0])
    white = np.tile(np.array([0.90, 0.88, 0.87]), (len(t), 1))
    c = white * (1 - 0.25 * smoothstep(0.09, 0.135, radius)[:, None] * np.array([0.3, 1, 1]))
    fibres = 1 + 0.3 * np.sin(angle * 17) * np.sin(angle * 7 + 1)
    glow = 1 + 1.3 * smoothstep(0.028, 0.062, radius) * (1 - smoothstep(0.064, 0.080, radius))
    glow = glow * (1 + 0.35 * smoothstep(0.01, -0.06, q[:, 1]))
    c = c * (1 - front * (1 - smoothstep(0.076, 0.090, radius)))[:, None]
    c = (
        c
        + (np.array(look.iris) * (glow * fibres)[:, None])
        * (front * (1 - smoothstep(0.076, 0.090, radius)))[:, None]
    )
    c = paint(c, np.full(3, 0.004), front * (1 - smoothstep(0.028, 0.036, radius)))
    side = 1.0 if look.light >= 0 else -1.0
    main = smoothstep(0.021, 0.012, np.hypot(q[:, 0] - side * 0.030, q[:, 1] - 0.034))
    fill = 0.5 * smoothstep(0.011, 0.006, np.hypot(q[:, 0] + side * 0.03, q[:, 1] + 0.03))
    return paint(c, np.ones(3), front * np.maximum(main, fill))


def hair_colors(
    template: Template, look: Look, strands: int, points: int, rng: np.random.Generator
) -> Floats:
    """Two colours (left and right edge) per point of each strand, [2 * strands * points, 3]."""
    at_root = template.strand_roots @ template.body.template
    locks = 0.11 * waves(at_root, 9, rng) + 0.05 * waves(at_root, 30, rng)
    tone = np.exp(rng.normal(0, 0.08, strands) + locks)
    along = np.linspace(0, 1, points)
    depth = np.interp(along, [0, 0.15, 1], [0.62, 0.95, 1.08])
    share = look.hair.tint_amount * smoothstep(0.25, 0.95, along)
    color = np.array(look.hair.color) * (1 - share[:, None]) + np.array(look.hair.tint) * share[:, None]
    c = color[None] * (tone[:, None] * depth[None])[..., None]
    return np.clip(np.repeat(c[:, :, None], 2, 2).reshape(-1, 3), 0, 0.95)
