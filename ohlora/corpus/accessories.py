"""Glasses and earrings: tubes and balls at places that the head gives. They have no class in the mask."""

from __future__ import annotations

import numpy as np

from ohlora.corpus.geometry import Floats, Ints, normalized
from ohlora.corpus.parameters import Earrings, Glasses

Piece = tuple[Floats, Ints]  # vertices [n, 3] dm and triangles [m, 3]
SIDES = 8


def tube(path: Floats, radius: float, closed: bool = False) -> Piece:
    """A round tube along points [k, 3]."""
    count = len(path)
    ahead, behind = np.roll(path, -1, 0), np.roll(path, 1, 0)
    if not closed:
        ahead[-1], behind[0] = path[-1], path[0]
    tangent = normalized(ahead - behind)
    first = normalized(np.cross(tangent, np.array([0.13, 0.21, 0.97])))
    second = np.cross(tangent, first)
    angle = np.linspace(0, 2 * np.pi, SIDES, endpoint=False)
    ring = first[:, None] * np.cos(angle)[None, :, None] + second[:, None] * np.sin(angle)[None, :, None]
    vertices = (path[:, None] + radius * ring).reshape(-1, 3)
    rows = np.arange(count if closed else count - 1)[:, None] * SIDES
    after = (rows + SIDES) % (count * SIDES)
    at, beside = np.arange(SIDES)[None], (np.arange(SIDES)[None] + 1) % SIDES
    upper = np.stack([rows + at, rows + beside, after + at], -1)
    lower = np.stack([rows + beside, after + beside, after + at], -1)
    return vertices, np.concatenate([upper, lower]).reshape(-1, 3)


def joined(pieces: list[Piece]) -> Piece:
    """Several pieces as one."""
    starts = np.cumsum([0] + [len(v) for v, _ in pieces])
    triangles = [t + start for (_, t), start in zip(pieces, starts, strict=False)]
    return np.concatenate([v for v, _ in pieces]), np.concatenate(triangles)


def glasses(shape: Glasses, eyes: tuple[Floats, Floats], front: float, ears: tuple[Floats, Floats]) -> Piece:
    """A frame without lenses.

    Args:
        eyes: centres of the eyeballs, the image's left one first.
        front: z of the surface that the frame must clear, dm.
        ears: where the temples end, in the same order.
    """
    middle = (eyes[0] + eyes[1]) / 2
    angle = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    power = 2 / (2 + 3.5 * shape.squareness)  # of a superellipse
    x, y = (np.sign(f(angle)) * np.abs(f(angle)) ** power for f in (np.cos, np.sin))
    apart = max(float(np.abs(eyes[1] - eyes[0])[0]) / 2, shape.width / 2 + 0.09)  # half, between the lenses

    def wrapped(points: Floats) -> Floats:
        """Frames follow the face a little."""
        return points - np.array([0, 0, 0.10]) * (((points[..., :1] - middle[0]) / 0.5) ** 2)

    pieces: list[Piece] = []
    for side, eye, ear in zip((-1.0, 1.0), eyes, ears, strict=True):
        centre = np.array([middle[0] + side * apart, eye[1] - 0.03, front])
        outline = np.stack([x * shape.width / 2, y * shape.height / 2, np.zeros(48)], 1)
        pieces.append(tube(wrapped(centre + outline), shape.thickness, closed=True))
        hinge = wrapped(centre + np.array([side * shape.width / 2, 0.175 * shape.height, 0]))
        end = ear + np.array([0, 0.10, 0])
        corner = np.array([ear[0] + side * 0.01, end[1], hinge[2] - 0.10])
        temple = np.stack([hinge, 0.7 * corner + 0.3 * hinge, (corner + end) / 2, end])
        at = np.linspace(0, 2, 14)
        path = np.stack([np.interp(at, [0, 0.35, 1.2, 2], temple[:, axis]) for axis in range(3)], 1)
        pieces.append(tube(path, shape.thickness * 0.8))
    inner = apart - shape.width / 2
    arch = 0.02 * np.sin(np.linspace(0, np.pi, 8))
    across = middle[0] + np.linspace(-inner, inner, 8)
    bridge = np.stack([across, middle[1] + 0.02 + arch, front + arch], 1)
    return joined([*pieces, tube(bridge, shape.thickness)])


def earrings(shape: Earrings, lobes: tuple[Floats, Floats]) -> Piece:
    """A pair of studs or hoops at the ear lobes [3]."""
    pieces = []
    for lobe in lobes:
        if shape.hoop:
            angle = np.linspace(0, 2 * np.pi, 28, endpoint=False)
            centre = lobe - np.array([0, shape.size, 0])
            ring = np.stack([0.25 * np.cos(angle), np.sin(angle), 0.97 * np.cos(angle)], 1)
            pieces.append(tube(centre + shape.size * ring, 0.009, closed=True))
        else:
            pieces.append(_ball(lobe + np.array([np.sign(lobe[0]) * 0.02, 0, 0.02]), min(shape.size, 0.045)))
    return joined(pieces)


def _ball(centre: Floats, radius: float) -> Piece:
    rows, columns = 8, 12
    polar = np.linspace(0, np.pi, rows)[:, None]
    around = np.linspace(0, 2 * np.pi, columns, endpoint=False)[None]
    height = np.cos(polar) * np.ones_like(around)
    points = np.stack([np.sin(polar) * np.cos(around), height, np.sin(polar) * np.sin(around)], -1)
    at = np.arange(rows - 1)[:, None] * columns + np.arange(columns)[None]
    beside = np.arange(rows - 1)[:, None] * columns + (np.arange(columns)[None] + 1) % columns
    upper = np.stack([at, beside, at + columns], -1)
    lower = np.stack([beside, beside + columns, at + columns], -1)
    return centre + radius * points.reshape(-1, 3), np.concatenate([upper, lower]).reshape(-1, 3)
