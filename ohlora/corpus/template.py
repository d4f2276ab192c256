"""What is where on the neutral head: lips, brows, nose, hairline, neck, and the class of every face.

Each subdivided vertex keeps its coordinate on the neutral head. All semantics are functions of that
coordinate, so that labels are exact, static and independent of who is drawn. Units are decimetres
of the neutral head.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import scipy.sparse as sp
from scipy.spatial import cKDTree

from ohlora.attributes import FaceClass
from ohlora.corpus.geometry import (
    Bools,
    Floats,
    HeadData,
    Ints,
    Surface,
    load_head,
    smoothstep,
    vertex_normals,
)
from ohlora.corpus.parameters import Collar

STRANDS = 15000
GUIDES = 1100
BROW_HAIRS = 420
LASH_ROWS = ("lash_lower_left", "lash_upper_left", "lash_lower_right", "lash_upper_right")


class Template:
    """The head with everything that does not depend on the person."""

    def __init__(self, head: HeadData) -> None:
        self.head = head
        self.body = Surface(head, head.quads_of("head"), 2)
        self.eye_right = Surface(head, head.quads_of("eye_subject_left"), 3)  # of the image
        self.eye_left = Surface(head, head.quads_of("eye_subject_right"), 3)
        self.teeth = Surface(head, head.quads_of("teeth_upper", "teeth_lower"), 1)
        self.tongue = Surface(head, head.quads_of("tongue"), 1)
        self.upper_teeth: Ints = head.vertices_of("teeth_upper")
        self.eye_vertices: Ints = head.vertices_of("eye_subject_left", "eye_subject_right")

        body = self.body
        self.normals = vertex_normals(body.template, body.triangles)
        self.ear: Floats = body.operator @ head.masks["ear"]
        self.inner_mouth: Floats = body.operator @ head.masks["inner_mouth"]
        self.eyelid: Floats = body.operator @ head.masks["eyelid"]
        self.is_ear: Bools = self.ear > 0.3
        self.lip = self._lips()
        self.nose = self._nose()
        self.brow_distance = self._brows()
        self.above_hairline = self._hairline()
        self.scalp: Bools = (self.above_hairline > 0) & ~self.is_ear & (self.inner_mouth < 0.3)
        self.lash_distance, self.near_upper_lid = self._lashes()
        self.classes = self._classes()
        # The back of head and body is never seen within the range of yaw.
        away = body.quad_mean(self.normals[:, 2]) < -0.75
        self.seen: Bools = ~np.concatenate([away, away])  # [triangles of the body]
        # Every third vertex outside the mouth is enough to keep hair off the head. The shoulders do not push:
        # what falls into them is hidden, which looks like hair that lies behind.
        collides = (body.template[:, 1] > 6.0) & (self.inner_mouth < 0.3)
        self.collision: Ints = np.flatnonzero(collides)[::3]

        rng = np.random.default_rng(0)  # part of the model: strands start at the same places on every head
        on_scalp = body.triangles[self.scalp[body.triangles].all(1)]
        self.strand_roots = self._scatter(on_scalp, STRANDS, rng)
        self.guide_roots = self._scatter(on_scalp, GUIDES, rng)
        on_brow = body.triangles[(self.brow_distance < 0.95)[body.triangles].all(1)]
        self.brow_roots = self._scatter(on_brow, BROW_HAIRS, rng)

    def collar(self, style: Collar, depth: float) -> Floats:
        """Height above the neckline, [n]; negative is under cloth. `depth` is how deep it is in front, dm."""
        x, y, z = self.body.template.T
        front = smoothstep(0.1, 1.0, z)
        base = 5.86 + 0.10 * smoothstep(0.5, -0.3, z) - 0.02 * smoothstep(0.45, 1.0, np.abs(x))
        if style is Collar.HIGH:
            return y - (base + 0.30 - 0.02 * front)
        if style is Collar.V:
            return y - (base + 0.02 - front * (depth + 0.55) * np.clip(1 - np.abs(x) / 0.55, 0, 1))
        if style is Collar.SHIRT:
            return y - (base + 0.26 - front * 0.85 * np.clip(1 - np.abs(x) / 0.42, 0, 1))
        return y - (base - depth * front)

    def _lips(self) -> Floats:
        """1 inside the red of the lips, 0 outside, soft between."""
        x, y, z = self.body.template.T
        half_width = 0.262
        arch = np.clip(1 - (x / half_width) ** 2, 0, 1)
        upper = 6.612 + 0.072 * arch**0.7 - 0.016 * np.exp(-((x / 0.022) ** 2))  # with the cupid's bow
        lower = 6.612 - 0.098 * arch**0.62
        inside = np.minimum(smoothstep(-0.012, 0.012, upper - y), smoothstep(-0.012, 0.012, y - lower))
        return np.where((np.abs(x) < half_width) & (z > 1.25), inside, 0) * (1 - self.inner_mouth.clip(0, 1))

    def _nose(self) -> Bools:
        x, y, z = self.body.template.T
        half_width = np.interp(
            y, [6.84, 6.88, 6.98, 7.1, 7.25, 7.36], [0.135, 0.165, 0.15, 0.10, 0.065, 0.05]
        )
        return (np.abs(x) < half_width) & (y > 6.845) & (y < 7.36) & (z > 1.2)

    def _brows(self) -> Floats:
        """Distance to the arc of the brow in half widths; below 1 is brow."""
        x, y, z = self.body.template.T
        arc_x = np.linspace(0.135, 0.50, 60)
        bend = 0.055 * np.sin(np.clip((arc_x - 0.10) / 0.40, 0, 1) * 2.2)
        arc_y = 7.435 + bend - 0.035 * smoothstep(0.42, 0.52, arc_x)
        half_width = np.interp(arc_x, [0.135, 0.2, 0.35, 0.50], [0.030, 0.036, 0.028, 0.008])
        near = (z > 1.0) & (y > 7.3) & (y < 7.7)
        distance = np.full(len(x), 9.0)
        offset = np.hypot(np.abs(x[near])[:, None] - arc_x, y[near][:, None] - arc_y) / half_width
        distance[near] = offset.min(1)
        return distance

    def _hairline(self) -> Floats:
        """Height above the hairline, which is a function of the angle around the head."""
        x, y, z = self.body.template.T
        angle = np.arctan2(np.abs(x), z - 0.4)
        knots = [0, 0.3, 0.6, 0.8, 1.0, 1.12, 1.25, 1.35, 1.75, 1.95, 2.3, math.pi]
        heights = [7.80, 7.81, 7.74, 7.58, 7.42, 7.22, 7.22, 7.40, 7.38, 7.0, 6.78, 6.66]
        uneven = 0.018 * np.sin(x * 31) * np.sin(x * 13 + 1) + 0.012 * np.sin(x * 67 + 2)
        return y - np.interp(angle, knots, heights) - uneven

    def _lashes(self) -> tuple[Floats, Bools]:
        """Distance of each vertex to the roots of the lashes, and whether those are of the upper lid."""
        roots, upper = [], []
        for name in LASH_ROWS:
            index, near, _ = self.lash_row(name)
            roots.append(self.head.vertices[index[near]])
            upper.append(np.full(int(near.sum()), "upper" in name))
        distance, nearest = cKDTree(np.concatenate(roots)).query(self.body.template)
        return distance, np.concatenate(upper)[nearest]

    def lash_row(self, name: str) -> tuple[Ints, Bools, Bools]:
        """Vertices of a lash card; which of them are roots and which are tips, by distance to the eyeball."""
        side = "eye_subject_left" if name.endswith("left") else "eye_subject_right"
        index = self.head.vertices_of(name)
        centre = self.head.vertices[self.head.vertices_of(side)].mean(0)
        distance = np.linalg.norm(self.head.vertices[index] - centre, axis=1)
        return index, distance < np.percentile(distance, 35), distance > np.percentile(distance, 65)

    def _classes(self) -> Ints:
        """`FaceClass` of each quad of the body."""
        body = self.body
        y, z = body.template[:, 1], body.template[:, 2]
        jaw_line = np.interp(z, [0.2, 0.5, 0.65, 1.1, 1.35], [7.3, 6.82, 6.5, 6.24, 6.185])
        neck = (y < jaw_line) & ~self.is_ear
        jaw = np.zeros((len(self.head.vertices), 3))
        index, offset = self.head.targets["unit/jawOpen"]
        jaw[index] = offset
        drop = body.quad_mean(-(body.operator @ jaw)[:, 1])  # the lower lip moves with the jaw

        image_right = body.quad_mean(body.template[:, 0]) > 0
        classes = np.where(body.quad_mean(neck) > 0.5, FaceClass.NECK, FaceClass.SKIN).astype(np.int64)
        classes[body.quad_mean(self.ear) > 0.3] = FaceClass.EARS
        classes[body.quad_mean(self.nose) > 0.5] = FaceClass.NOSE
        lips = body.quad_mean(self.lip) > 0.5
        classes[lips] = np.where(drop[lips] < 0.12, FaceClass.UPPER_LIP, FaceClass.LOWER_LIP)
        classes[body.quad_mean(self.inner_mouth) > 0.4] = FaceClass.INNER_MOUTH
        brows = body.quad_mean(self.brow_distance) < 1
        classes[brows] = np.where(image_right[brows], FaceClass.RIGHT_BROW, FaceClass.LEFT_BROW)
        hair = (body.quad_mean(self.scalp) > 0.5) & (body.quad_mean(self.above_hairline) > 0.05)
        classes[hair] = FaceClass.HAIR
        return classes

    def _scatter(self, triangles: Ints, count: int, rng: np.random.Generator) -> sp.csr_matrix:
        """Random points on triangles, uniform in area, as barycentric operator [count, vertices]."""
        a, b, c = (self.body.template[triangles[:, k]] for k in range(3))
        area = np.linalg.norm(np.cross(b - a, c - a), axis=1)
        chosen = rng.choice(len(triangles), count, p=area / area.sum())
        uv = rng.random((count, 2))
        folded = uv.sum(1) > 1
        uv[folded] = 1 - uv[folded]
        weights = np.stack([1 - uv.sum(1), uv[:, 0], uv[:, 1]], 1)
        rows = np.repeat(np.arange(count), 3)
        shape = (count, len(self.body.template))
        return sp.csr_matrix((weights.ravel(), (rows, triangles[chosen].ravel())), shape)


@lru_cache(maxsize=1)
def load_template() -> Template:
    """Build the template once per process (about a second)."""
    return Template(load_head())
