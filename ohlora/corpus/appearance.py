"""Colours: skin, lips, lids, eyes, cloth, teeth and hair, all as functions of template coordinates.

Everything is procedural, so no texture and no licence of one is involved. Colours are linear RGB, [n, 3].
"""

from __future__ import annotations

import numpy as np

from ohlora.corpus.geometry import Bools, Floats, Surface, smoothstep
from ohlora.corpus.parameters import Look
from ohlora.corpus.template import Template

DEEP = np.array([0.105, 0.048, 0.027])
TAN = np.array([0.46, 0.245, 0.145])
FAIR = np.array([0.83, 0.540, 0.41])
DARK_LINE = np.array([0.06, 0.035, 0.03])
LID_SHADE = np.array([0.80, 0.68, 0.66])
BLUSH = np.array([1.0, 0.78, 0.76])


def waves(points: Floats, frequency: float, rng: np.random.Generator) -> Floats:
    """Smooth noise of about unit size: a sum of ten random plane waves, [n]."""
    total = np.zeros(len(points))
    for _ in range(10):
        phase = points @ rng.normal(0, frequency, 3)
        phase += rng.uniform(0, 2 * np.pi)
        total += np.sin(phase, out=phase)
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

    tone = np.stack([np.interp(look.skin, [0, 0.5, 1], [DEEP[k], TAN[k], FAIR[k]]) for k in range(3)])
    c = np.tile(tone, (len(t), 1))
    old = float(np.clip((look.age - 30) / 30, 0, 1))
    blush = 0.22 + 0.12 * female + 0.5 * look.makeup
    red = blush * spot(0.40, 6.98, 0.18) + 0.45 * spot(0, 6.93, 0.09) + 0.2 * spot(0.3, 7.28, 0.16)
    c = tint(c, BLUSH, np.clip(red + 0.35 * template.is_ear, 0, 1))
    c = tint(c, LID_SHADE, np.clip(0.5 * template.eyelid.clip(0, 1) + 0.25 * spot(0.30, 7.36, 0.07), 0, 1))
    mottled = 0.018 + 0.022 * old
    pores = 0.012 * waves(t, 38, rng) + rng.normal(0, 0.018, len(t))
    c = c * (1 + mottled * waves(t, 7, rng) + pores)[:, None]
    c = tint(c, np.array([1.0, 0.90, 0.88]), np.clip(0.35 * waves(t, 5, rng), 0, 0.6))
    if look.freckles:
        where = (spot(0.36, 7.02, 0.24) + spot(0, 7.0, 0.16)).clip(0, 1)
        speckle = smoothstep(1.25, 1.9, waves(t, 55, rng)) * where
        c = tint(c, np.array([0.62, 0.46, 0.36]), look.freckles * speckle)
    creases = spot(0.44, 7.27, 0.06) + spot(0.27, 7.10, 0.07) + spot(0.30, 6.72, 0.05)
    c = tint(c, np.array([0.78, 0.68, 0.64]), np.clip(0.5 * old * creases, 0, 1))
    lines = np.exp(-((np.sin((y - 7.62) * 40) - 1) ** 2) * 4) * smoothstep(7.56, 7.62, y)
    forehead = smoothstep(0.42, 0.2, ax) * (z > 1.0)
    c = tint(c, np.array([0.86, 0.78, 0.75]), 0.5 * old * lines * forehead)
    shadow = look.makeup * (np.exp(-(((ax - 0.31) / 0.15) ** 2 + ((y - 7.33) / 0.05) ** 2)) * (z > 0.6))
    c = tint(c, np.array([0.66, 0.50, 0.52]), np.clip(shadow, 0, 1))
    stubble = 0.35 * (1 - female) * smoothstep(6.85, 6.6, y) * (z > 0.5) * smoothstep(6.1, 6.3, y)
    c = tint(c, np.array([0.84, 0.86, 0.88]), stubble)

    lips = np.array(look.lips) * (0.9 + 0.1 * smoothstep(0.2, 0, ax))[:, None]
    c = paint(c, lips, template.lip * (0.55 + 0.13 * female + 0.25 * look.makeup))
    c = paint(c, np.array([0.30, 0.07, 0.07]), template.inner_mouth.clip(0, 1))
    c = paint(
        c, brow_color(look), 0.28 * smoothstep(1.25, 0.2, template.brow_distance) * smoothstep(0.12, 0.20, ax)
    )
    line = 0.8 * smoothstep(0.030, 0.006, template.lash_distance) * np.where(template.near_upper_lid, 1, 0.4)
    c = paint(c, DARK_LINE, line * (0.45 + 0.25 * female + 0.3 * look.makeup))
    nostril = 0.85 * np.exp(-(((ax - 0.072) / 0.034) ** 2 + ((y - 6.862) / 0.022) ** 2))
    c = paint(
        c, np.array([0.10, 0.03, 0.025]), nostril * (z > 1.3) * smoothstep(0, -0.5, template.normals[:, 1])
    )
    shadow = 0.5 * smoothstep(0.11, 0.03, template.lash_distance) * template.near_upper_lid
    c = tint(c, np.array([0.78, 0.66, 0.64]), shadow)
    rooted = template.scalp | ((template.above_hairline > -0.03) & ~template.is_ear)
    under_hair = 0.95 * smoothstep(-0.03, 0.10, template.above_hairline) * rooted
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
    side = 1.0 if look.light.azimuth >= 0 else -1.0
    main = smoothstep(0.021, 0.012, np.hypot(q[:, 0] - side * 0.030, q[:, 1] - 0.034))
    fill = 0.5 * smoothstep(0.011, 0.006, np.hypot(q[:, 0] + side * 0.03, q[:, 1] + 0.03))
    return paint(c, np.ones(3), front * np.maximum(main, fill))


def strand_tones(template: Template, look: Look, rng: np.random.Generator) -> tuple[Floats, Bools]:
    """How light the strand of each root is, about 1, and whether it is a white one, both [roots]."""
    at_root = template.strand_roots @ template.body.template
    locks = 0.12 * waves(at_root, 9, rng) + 0.06 * waves(at_root, 30, rng)
    tone = np.exp(rng.normal(0, 0.11, len(locks)) + locks)
    grey = np.clip((look.age - 40) / 50, 0, 0.4)  # single white hairs come with the years
    return tone, rng.random(len(locks)) < grey


def hair_colors(look: Look, tone: Floats, white: Bools, drop: Floats) -> Floats:
    """Two colours (left and right edge) per point of each strand, [2 * strands * points, 3].

    Args:
        tone, white: [strands] of `strand_tones`.
        drop: [strands, points] how low each point hangs, 0 above the eyes to 1 at the shoulders.
    """
    along = np.linspace(0, 1, drop.shape[1])
    depth = np.interp(along, [0, 0.15, 1], [0.62, 0.95, 1.08])
    share = (look.hair.tint_amount * smoothstep(0.15, 0.85, drop))[..., None]
    color = np.array(look.hair.color) * (1 - share) + np.array(look.hair.tint) * share
    c = color * (tone[:, None] * depth[None])[..., None]
    c[white] = 0.75 * c[white] + 0.25 * np.array([0.50, 0.49, 0.47])
    return np.clip(np.repeat(c[:, :, None], 2, 2).reshape(-1, 3), 0, 0.95)
