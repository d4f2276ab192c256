"""The head as geometry: packed MakeHuman data, shape targets, Catmull-Clark subdivision, normals, pose.

Coordinates are MakeHuman's: decimetres, y up, the face towards +z. The subject's left is +x, which is the
image's right: a name with "left" or "right" in the packed file is the subject's, everywhere else the image's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from ohlora.artifacts import ArtifactError, sha256_file

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

PACKED_HEAD = Path(__file__).parent / "data" / "head.npz"
PACKED_SHA256 = "d48f34754690b0b4267927a70798ef64e5898286a234e1b345161ab6038986e6"


@dataclass(frozen=True)
class HeadData:
    """The packed file: neutral vertices and what moves them."""

    vertices: Floats  # [n, 3] dm
    quads: Ints  # [m, 4]
    part: NDArray[np.str_]  # [m] name of the part of each quad
    masks: dict[str, Floats]  # name -> [n] in 0..1: ear, inner_mouth, eyelid
    targets: dict[str, tuple[Ints, Floats]]  # name -> vertex indices [k], offsets [k, 3] dm

    def quads_of(self, *parts: str) -> Ints:
        """Quads of the named parts, [k, 4]."""
        return self.quads[np.isin(self.part, parts)]

    def vertices_of(self, *parts: str) -> Ints:
        """Indices of the vertices of the named parts, [k]."""
        return np.unique(self.quads_of(*parts))

    def shaped(self, weights: Mapping[str, float]) -> Floats:
        """Neutral vertices plus the weighted targets, [n, 3] dm.

        Raises:
            KeyError: a target has no such name.
        """
        vertices = self.vertices.copy()
        for name, weight in weights.items():
            index, offset = self.targets[name]
            vertices[index] += weight * offset
        return vertices


@lru_cache(maxsize=1)
def load_head() -> HeadData:
    """Read the packed head once per process.

    Raises:
        ArtifactError: the file is missing or not the one that this code was written for.
    """
    if not PACKED_HEAD.is_file() or sha256_file(PACKED_HEAD) != PACKED_SHA256:
        raise ArtifactError(
            f"{PACKED_HEAD} is missing or corrupt; restore it with: git checkout, or scripts/pack_geometry.py"
        )
    with np.load(PACKED_HEAD, allow_pickle=False) as packed:
        starts = packed["target_starts"]
        indices = packed["target_indices"].astype(np.int64)
        offsets = packed["target_offsets"]
        targets = {
            str(name): (
                indices[starts[i] : starts[i + 1]],
                offsets[starts[i] : starts[i + 1]] * float(packed["target_scales"][i]),
            )
            for i, name in enumerate(packed["target_names"])
        }
        return HeadData(
            vertices=packed["vertices"].astype(np.float64),
            quads=packed["quads"].astype(np.int64),
            part=packed["part_names"][packed["part"]],
            masks={name: packed[f"mask_{name}"] / 255.0 for name in ("ear", "inner_mouth", "eyelid")},
            targets=targets,
        )


def smoothstep(low: float, high: float, x: Floats) -> Floats:
    """0 below `low`, 1 above `high`, smooth between; `low` may be the larger one."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def normalized(vectors: Floats) -> Floats:
    """Vectors [..., 3] at unit length; zero stays zero."""
    # Three columns are added much faster than `np.linalg.norm` reduces rows of three, to the same bits.
    x, y, z = (vectors[..., k] for k in range(3))
    length = np.sqrt(x * x + y * y + z * z)
    return vectors / (length + 1e-12)[..., None]


def vertex_normals(vertices: Floats, triangles: Ints) -> Floats:
    """Area-weighted normals, [n, 3]."""
    a, b, c = (vertices.take(triangles[:, k], 0) for k in range(3))
    face = np.cross(b - a, c - a)
    total = np.zeros_like(vertices)
    for axis in range(3):
        for corner in range(3):
            total[:, axis] += np.bincount(triangles[:, corner], face[:, axis], len(vertices))
    return normalized(total)


def subdivide(count: int, quads: Ints) -> tuple[sp.csr_matrix, Ints]:
    """One step of Catmull and Clark (1978) as a sparse operator.

    Args:
        count: number of vertices.
        quads: [m, 4] vertex indices.

    Returns:
        The operator [new vertices, count] and the new quads [4m, 4].
    """
    faces = len(quads)
    sides = np.sort(np.stack([quads, np.roll(quads, -1, 1)], -1).reshape(-1, 2), 1)
    edges, edge_of_side = np.unique(sides, axis=0, return_inverse=True)
    edge_of_side = edge_of_side.reshape(faces, 4)
    n_edges = len(edges)
    face_of_side = np.repeat(np.arange(faces), 4)

    def matrix(values: Floats | float, rows: Ints, columns: Ints, shape: tuple[int, int]) -> sp.csr_matrix:
        return sp.csr_matrix((np.broadcast_to(values, rows.shape).astype(float), (rows, columns)), shape)

    face_points = matrix(0.25, face_of_side, quads.ravel(), (faces, count))
    edge_rows, edge_ends = np.repeat(np.arange(n_edges), 2), edges.ravel()
    edge_middles = matrix(0.5, edge_rows, edge_ends, (n_edges, count))
    faces_of_edge = matrix(1.0, edge_of_side.ravel(), face_of_side, (n_edges, faces))
    interior = np.bincount(edge_of_side.ravel(), minlength=n_edges) == 2
    edge_points = sp.diags(np.where(interior, 0.5, 1.0)) @ edge_middles
    edge_points = edge_points + sp.diags(np.where(interior, 0.25, 0.0)) @ (faces_of_edge @ face_points)

    faces_of_vertex = matrix(1.0, quads.ravel(), face_of_side, (count, faces))
    edges_of_vertex = matrix(1.0, edge_ends, edge_rows, (count, n_edges))
    n_faces_at = np.asarray(faces_of_vertex.sum(1)).ravel()
    used = n_faces_at > 0
    n_faces_at = np.maximum(n_faces_at, 1)
    n_edges_at = np.maximum(np.asarray(edges_of_vertex.sum(1)).ravel(), 1)
    smooth = (
        sp.diags(1 / n_faces_at**2) @ (faces_of_vertex @ face_points)
        + sp.diags(2 / (n_faces_at * n_edges_at)) @ (edges_of_vertex @ edge_middles)
        + sp.diags((n_faces_at - 3) / n_faces_at)
    )
    border_edges = matrix((~interior)[edge_rows].astype(float), edge_ends, edge_rows, (count, n_edges))
    border_rule = 0.25 * (border_edges @ edge_middles) + 0.5 * sp.identity(count)
    on_border = np.zeros(count, bool)
    on_border[edges[~interior].ravel()] = True
    vertex_points = (
        sp.diags((used & ~on_border).astype(float)) @ smooth
        + sp.diags((used & on_border).astype(float)) @ border_rule
        + sp.diags((~used).astype(float))
    )
    operator = sp.vstack([vertex_points, edge_points, face_points]).tocsr()
    edge_ids = count + edge_of_side
    centre_ids = count + n_edges + np.arange(faces)
    corners = [np.stack([quads[:, k], edge_ids[:, k], centre_ids, edge_ids[:, k - 1]], 1) for k in range(4)]
    return operator, np.stack(corners, 1).reshape(-1, 4)


class Surface:
    """A subdivided part of the head: `operator @ head vertices` are its vertices, for every shape."""

    def __init__(self, head: HeadData, quads: Ints, levels: int) -> None:
        used, inverse = np.unique(quads, return_inverse=True)
        quads = inverse.reshape(quads.shape)
        rows = np.arange(len(used))
        operator = sp.csr_matrix((np.ones(len(used)), (rows, used)), (len(used), len(head.vertices)))
        for _ in range(levels):
            step, quads = subdivide(operator.shape[0], quads)
            operator = step @ operator
        self.operator = operator.tocsr()
        self.quads = quads  # [m, 4]
        self.triangles = np.concatenate(
            [quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]]
        )  # [2m, 3], first halves first
        self.template: Floats = self.operator @ head.vertices  # [n, 3] on the neutral head

    def quad_mean(self, values: Floats | Bools) -> Floats:
        """Mean over the corners of each quad, [m]."""
        return values[self.quads].mean(1)


def clip_triangles(
    vertices: Floats, normals: Floats, triangles: Ints, field: Floats
) -> tuple[Floats, Floats, Ints, Floats]:
    """The part of a mesh where a linear per-vertex field is negative, cut exactly along its zero.

    Returns:
        vertices, normals, triangles and field of the cut mesh.
    """
    inside = field[triangles] < 0
    count = inside.sum(1)
    all_vertices, all_normals, all_fields = [vertices], [normals], [field]
    kept = [triangles[count == 3]]
    size = len(vertices)

    def cut(p: Ints, q: Ints) -> Ints:
        nonlocal size
        t = (field[p] / (field[p] - field[q]))[:, None]
        all_vertices.append(vertices[p] * (1 - t) + vertices[q] * t)
        all_normals.append(normals[p] * (1 - t) + normals[q] * t)
        all_fields.append(np.zeros(len(p)))
        index = np.arange(size, size + len(p))
        size += len(p)
        return index

    for corners_inside in (1, 2):
        chosen = triangles[count == corners_inside]
        if not len(chosen):
            continue
        is_inside = inside[count == corners_inside]
        lone = np.argmax(is_inside if corners_inside == 1 else ~is_inside, 1)
        rows = np.arange(len(chosen))
        a, b, c = (chosen[rows, (lone + k) % 3] for k in range(3))
        ab, ac = cut(a, b), cut(a, c)
        if corners_inside == 1:
            kept.append(np.stack([a, ab, ac], 1))
        else:
            kept += [np.stack([ab, b, c], 1), np.stack([ab, c, ac], 1)]
    return (
        np.concatenate(all_vertices),
        np.concatenate(all_normals),
        np.concatenate(kept),
        np.concatenate(all_fields),
    )


def turn_head(
    points: Floats, height: Floats, centre: Floats, *, yaw: float, pitch: float, roll: float
) -> Floats:
    """Turn the head on the neck; the body follows a third of the yaw.

    Args:
        points: [n, 3] dm.
        height: [n] height of each point on the neutral template, which says how much it belongs to the head.
        centre: [3] of the rotation, in the neck.
        yaw: degrees, positive towards the image's right.
        pitch: degrees, positive looks up.
        roll: degrees, positive tilts towards the image's right.
    """
    head = smoothstep(5.75, 6.5, height)
    x, y, z = (points[:, k] - centre[k] for k in range(3))

    def cos_sin(angle: Floats) -> tuple[Floats, Floats]:
        return np.cos(angle), np.sin(angle)

    cos, sin = cos_sin(np.radians(roll) * head)
    x, y = x * cos + y * sin, y * cos - x * sin
    cos, sin = cos_sin(np.radians(-pitch) * head)
    y, z = y * cos - z * sin, y * sin + z * cos
    cos, sin = cos_sin(np.radians(yaw) * (0.35 + 0.65 * head))
    return np.stack([x * cos + z * sin, y, z * cos - x * sin], 1) + centre
