"""What each pixel sees first: its class, its colour without light and its normal.

Mitsuba's own passes for that cost more than the light does, so Embree is asked directly: four rays a pixel,
all at once. The class of a pixel is the one that most of its rays meet, which makes masks exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import numpy as np
from embreex.mesh_construction import TriangleMesh
from embreex.rtcore_scene import EmbreeScene
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, maximum_filter

from ohlora.attributes import FaceClass
from ohlora.corpus.geometry import Floats
from ohlora.corpus.meshes import Scene

RAYS = 2  # per pixel and side
UNLABELLED = 255


@dataclass(frozen=True)
class FirstHit:
    """Of a picture with h x h pixels."""

    mask: NDArray[np.uint8]  # [h, h] FaceClass
    albedo: NDArray[np.float32]  # [h, h, 3] linear, mean over the rays of a pixel; 0 where nothing is hit
    normals: NDArray[np.float32]  # [h, h, 3]
    coverage: NDArray[np.float32]  # [h, h] share of rays that meet anything
    empty: NDArray[np.bool_]  # [h, h] neither this pixel nor its neighbours meet anything
    seen: list[NDArray[np.bool_]]  # of each mesh of the scene: the triangles that a ray meets


def first_hit(scene: Scene, resolution: int) -> FirstHit:
    """Cast four rays through each pixel of a `resolution` x `resolution` picture."""
    side = resolution * RAYS
    directions = _directions(scene, side)
    origins = np.broadcast_to(scene.camera.astype(np.float32), directions.shape).copy()
    tracer = EmbreeScene()
    # Everything is handed over, what no ray can meet as well: which of two triangles at the same depth a ray
    # meets depends on how Embree has sorted the others. embreex rounds to float32 itself, and reads float64
    # faster.
    for mesh in scene.meshes:
        TriangleMesh(tracer, mesh.vertices, mesh.triangles)
    hit = tracer.run(origins, directions, query="INTERSECT", output=True)
    met, triangle = hit["geomID"], hit["primID"]

    labels = np.full(side * side, FaceClass.BACKGROUND, np.uint8)
    albedo = np.zeros((side * side, 3), np.float32)
    normals = np.zeros((side * side, 3), np.float32)
    seen = [np.zeros(len(mesh.triangles), bool) for mesh in scene.meshes]
    for number, mesh in enumerate(scene.meshes):
        here = np.flatnonzero((met == number) & (triangle >= 0))
        if not len(here):
            continue
        seen[number][triangle[here]] = True
        corners = mesh.triangles[triangle[here]]
        u, v = hit["u"][here, None], hit["v"][here, None]
        share = np.concatenate([1 - u - v, u, v], 1)
        shading = np.concatenate([mesh.colors, mesh.normals], 1, dtype=np.float32)
        mixed = np.einsum("nkc,nk->nc", shading[corners], share)
        albedo[here], normals[here] = mixed[:, :3], mixed[:, 3:]
        labels[here] = UNLABELLED if mesh.classes is None else mesh.classes[triangle[here]]
    coverage = _mean((met >= 0).astype(np.float32), resolution)[..., 0]
    return FirstHit(
        mask=_vote(_filled(labels.reshape(side, side)), resolution),
        albedo=_mean(albedo, resolution),
        normals=_mean(normals, resolution),
        coverage=coverage,
        empty=maximum_filter(coverage, 3) == 0,
        seen=seen,
    )


def _directions(scene: Scene, side: int) -> NDArray[np.float32]:
    """Through the middle of each cell of a side x side raster, row by row, [side^2, 3]."""
    forward = scene.target - scene.camera
    forward = forward / np.linalg.norm(forward)
    right = np.cross(forward, [0.0, 1.0, 0.0])
    right /= np.linalg.norm(right)
    up = np.cross(right, forward)
    reach = np.tan(np.radians(scene.field_of_view / 2))
    at = ((np.arange(side) + 0.5) / side * 2 - 1) * reach
    columns, rows = forward + at[:, None] * right, at[:, None] * up
    rays: Floats = columns[None] - rows[:, None]
    return rays.reshape(-1, 3).astype(np.float32)


def _mean(values: NDArray[np.float32], resolution: int) -> NDArray[np.float32]:
    """Mean over the rays of each pixel, [h, h, channels], of [rays] or [rays, channels]."""
    rays = values.reshape(resolution, RAYS, resolution, RAYS, -1)
    total = reduce(np.add, [rays[:, row, :, column] for row in range(RAYS) for column in range(RAYS)])
    return np.ascontiguousarray(total / RAYS**2)


def _filled(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Lashes, glasses and earrings are no class: they take the nearest one."""
    unlabelled = labels == UNLABELLED
    if not unlabelled.any():
        return labels
    # What is around them and one pixel more is enough: that rim is nearer than all beyond it.
    around = tuple(slice(max(0, at.min() - 1), at.max() + 2) for at in np.nonzero(unlabelled))
    part = labels[around]
    nearest = distance_transform_edt(unlabelled[around], return_distances=False, return_indices=True)
    filled = labels.copy()
    filled[around] = part[nearest[0], nearest[1]]
    return filled


def _vote(labels: NDArray[np.uint8], resolution: int) -> NDArray[np.uint8]:
    """The most frequent label of each pixel's rays; of equally frequent ones the first."""
    cells = labels.reshape(resolution, RAYS, resolution, RAYS).transpose(0, 2, 1, 3)
    rays = cells.reshape(resolution, resolution, RAYS * RAYS)
    winner = rays[..., 0].copy()
    disputed = (rays != rays[..., :1]).any(-1)
    voters = rays[disputed]
    votes = (voters[:, :, None] == voters[:, None, :]).sum(-1)
    winner[disputed] = np.take_along_axis(voters, votes.argmax(-1)[:, None], -1)[:, 0]
    return winner
