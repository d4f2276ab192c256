"""A portrait as coloured triangle meshes with a class for every triangle."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from ohlora.attributes import FaceClass
from ohlora.corpus.appearance import brow_color, cloth_colors, eye_colors, hair_colors, skin_colors
from ohlora.corpus.geometry import (
    Floats,
    Ints,
    clip_triangles,
    normalized,
    smoothstep,
    turn_head,
    vertex_normals,
)
from ohlora.corpus.hair import grow_strands, ribbons
from ohlora.corpus.parameters import Look, PortraitParameters, expression_weights, shape_weights
from ohlora.corpus.template import LASH_ROWS, load_template

CAMERA_DISTANCE = 11.0  # dm


@dataclass(frozen=True)
class Mesh:
    name: str
    vertices: Floats  # [n, 3] dm
    normals: Floats  # [n, 3]
    triangles: Ints  # [m, 3]
    colors: Floats  # [n, 3] linear RGB
    surface: dict[str, Any]  # roughness and specular of the material
    classes: Ints | None  # [m] FaceClass; None is not in the mask and takes the class behind it


@dataclass(frozen=True)
class Person:
    """What does not change between two portraits of one look."""

    weights: dict[str, float]
    strands: Floats  # of the head that is not turned
    skin: Floats  # colours of the body


@dataclass(frozen=True)
class Scene:
    meshes: list[Mesh]
    target: Floats  # [3] what the camera looks at
    camera: Floats  # [3]


def _rng(look: Look, purpose: int) -> np.random.Generator:
    return np.random.default_rng([look.seed, purpose])


def look_key(look: Look) -> str:
    return look.model_dump_json()


@lru_cache(maxsize=2)
def _person(key: str) -> Person:
    look = Look.model_validate_json(key)
    template = load_template()
    weights = shape_weights(look)
    vertices = template.head.shaped(weights)
    body = template.body.operator @ vertices
    normals = vertex_normals(body, template.body.triangles)
    eyes = vertices[template.eye_vertices].mean(0)
    strands = grow_strands(template, body, normals, eyes, look.hair, _rng(look, 1))
    return Person(weights, strands, skin_colors(template, look, _rng(look, 2)))


def build_scene(parameters: PortraitParameters) -> Scene:
    """All meshes of a portrait, head turned, and the camera in front of it."""
    look = parameters.look
    template = load_template()
    person = _person(look_key(look))
    vertices = template.head.shaped(person.weights | expression_weights(parameters))
    # The lip covers the upper teeth; an open mouth shows them.
    vertices[template.upper_teeth] += np.array([0, -0.045, 0.03]) * min(1.0, 2 * parameters.mouth)
    eyes = vertices[template.eye_vertices].mean(0)
    pivot = np.array([0, eyes[1] - 1.1, 0.35])
    angles = {"yaw": parameters.yaw, "pitch": parameters.pitch, "roll": parameters.roll}

    def turn(points: Floats, height: Floats | float) -> Floats:
        flat = points.reshape(-1, 3)
        heights = np.broadcast_to(height, points.shape[:-1]).ravel()
        return turn_head(flat, heights, pivot, **angles).reshape(points.shape)

    turned_eyes = turn(eyes[None], 8.0)[0]
    # The crop follows the face, as an aligned photograph does, but not all the way.
    target = np.array([0.65 * turned_eyes[0], 0.5 * (turned_eyes[1] + eyes[1]) - 0.15, eyes[2] - 0.2])
    camera = target + np.array([0, 0.05, CAMERA_DISTANCE])

    body_shape = template.body.operator @ vertices
    shape_normals = vertex_normals(body_shape, template.body.triangles)
    height = template.body.template[:, 1]
    body = turn(body_shape, height)
    body_normals = vertex_normals(body, template.body.triangles)
    seen = template.seen
    twice = np.concatenate([template.classes, template.classes])[seen]
    skin = {"roughness": 0.5, "specular": 0.42}
    meshes = [Mesh("skin", body, body_normals, template.body.triangles[seen], person.skin, skin, twice)]

    meshes.append(_cloth(look, body_shape, shape_normals, body_normals, turn))
    for name, eye, label in (
        ("eye_left", template.eye_left, FaceClass.LEFT_EYE),
        ("eye_right", template.eye_right, FaceClass.RIGHT_EYE),
    ):
        ball = turn(eye.operator @ vertices, eye.template[:, 1])
        meshes.append(
            _uniform(
                name, ball, eye.triangles, eye_colors(eye, look), {"roughness": 0.08, "specular": 0.7}, label
            )
        )
    for name, part, color in (
        ("teeth", template.teeth, (0.80, 0.77, 0.70)),
        ("tongue", template.tongue, (0.58, 0.20, 0.20)),
    ):
        points = turn(part.operator @ vertices, part.template[:, 1])
        material = {"roughness": 0.25, "specular": 0.45}
        colors = np.tile(np.array(color), (len(points), 1))
        meshes.append(_uniform(name, points, part.triangles, colors, material, FaceClass.INNER_MOUTH))

    fibre = {"roughness": 0.6, "specular": 0.2}
    brow = brow_color(look)
    brows, on_right = _brow_hairs(look, body_shape, shape_normals)
    brows = turn(brows, 7.4)
    for name, side, label in (
        ("brow_right", on_right, FaceClass.RIGHT_BROW),
        ("brow_left", ~on_right, FaceClass.LEFT_BROW),
    ):
        v, n, t = ribbons(brows[side], np.array([0.0022, 0.0026, 0.0022, 0.0006]), camera, target, 0.6)
        meshes.append(Mesh(name, v, n, t, np.tile(brow, (len(v), 1)), fibre, np.full(len(t), int(label))))
    width = np.array([0.0034, 0.0032, 0.0026, 0.0018, 0.0008])
    v, n, t = ribbons(turn(_lashes(look, vertices), 7.3), width, camera, target, 0.3)
    meshes.append(Mesh("lashes", v, n, t, np.tile([0.015, 0.012, 0.01], (len(v), 1)), fibre, None))

    # Strands are as long as they fall: below the chin they belong to the body and turn less.
    strand_height = np.minimum(8.0, person.strands[..., 1] - eyes[1] + 7.63)
    strands = turn(person.strands, strand_height)
    count, points_per_strand = strands.shape[:2]
    width = np.interp(np.linspace(0, 1, points_per_strand), [0, 0.1, 0.65, 1], [0.7, 1, 0.85, 0.12]) * 0.0092
    centre = turn((eyes + np.array([0, 0.15, -0.95]))[None], 8.0)[0]
    v, n, t = ribbons(strands, width, camera, centre)
    colors = hair_colors(template, look, count, points_per_strand, _rng(look, 3))
    gloss = {"roughness": 0.40, "specular": 0.30, "anisotropic": 0.4}
    meshes.append(Mesh("hair", v, n, t, colors, gloss, np.full(len(t), int(FaceClass.HAIR))))
    return Scene(meshes, target, camera)


def _uniform(
    name: str, vertices: Floats, triangles: Ints, colors: Floats, surface: dict[str, Any], label: FaceClass
) -> Mesh:
    normals = vertex_normals(vertices, triangles)
    return Mesh(name, vertices, normals, triangles, colors, surface, np.full(len(triangles), int(label)))


def _cloth(look: Look, body: Floats, normals: Floats, turned_normals: Floats, turn: Any) -> Mesh:
    """A shell over the shoulders, cut exactly at the neckline."""
    template = load_template()
    collar = template.collar(look.neckline)
    thickness = (0.045 + 0.02 * smoothstep(-0.10, -0.02, collar)) * smoothstep(0.02, 0.0, collar)
    shell = turn(body + normals * thickness[:, None], template.body.template[:, 1])
    under = template.body.triangles[(collar < 0)[template.body.triangles].any(1)]
    v, n, t, field = clip_triangles(shell, turned_normals, under, collar)
    colors = cloth_colors(look, v, field, _rng(look, 4))
    return Mesh(
        "cloth", v, n, t, colors, {"roughness": 0.85, "specular": 0.15}, np.full(len(t), FaceClass.CLOTHES)
    )


def _brow_hairs(look: Look, body: Floats, normals: Floats) -> tuple[Floats, np.ndarray]:
    """Hairs of both brows [n, 4, 3], and which are on the image's right."""
    template, rng = load_template(), _rng(look, 5)
    root, t = template.brow_roots @ body, template.brow_roots @ template.body.template
    outward = normalized(template.brow_roots @ normals)
    sign, ax = np.sign(t[:, 0]), np.abs(t[:, 0])
    sideways = sign * np.interp(ax, [0.13, 0.2, 0.5], [0.15, 0.75, 1.0])
    upwards = np.interp(ax, [0.13, 0.22, 0.40, 0.5], [1.0, 0.45, 0.02, -0.35])
    direction = np.stack([sideways, upwards, np.zeros(len(t))], 1)
    direction = direction - outward * (direction * outward).sum(1, keepdims=True) * 0.95 + outward * 0.12
    length = rng.uniform(0.035, 0.065, len(t)) * np.interp(ax, [0.13, 0.3, 0.5], [0.75, 1, 0.8])
    along = np.linspace(0, 1, 4)[None, :, None]
    hairs = (
        root[:, None]
        + outward[:, None] * 0.004
        + normalized(direction)[:, None] * length[:, None, None] * along
    )
    return hairs, sign > 0


def _lashes(look: Look, vertices: Floats) -> Floats:
    """Lashes of all four lids, [n, 5, 3]."""
    template, rng = load_template(), _rng(look, 6)
    along = np.linspace(0, 1, 5)[None, :, None]
    rows = []
    for name in LASH_ROWS:
        index, near, far = template.lash_row(name)
        points, upper = vertices[index], "upper" in name
        count = 46 if upper else 26
        at = np.linspace(0.03, 0.97, count)

        def row(chosen: np.ndarray, points: Floats = points, at: Floats = at) -> Floats:
            line = points[chosen][np.argsort(points[chosen, 0])]
            knots = np.linspace(0, 1, len(line))
            return np.stack([np.interp(at, knots, line[:, k]) for k in range(3)], 1)

        root, tip = row(near), row(far)
        reach = (0.5 + 0.5 * look.female) * (0.62 if upper else 0.22)
        jitter = rng.normal(0, 0.0035, (count, 1, 3))
        curl = np.array([0, 0.018 if upper else -0.004, 0])
        rows.append(
            root[:, None] + (tip - root)[:, None] * along * reach + jitter * along + curl * along**2 * reach
        )
    return np.concatenate(rows)
