"""A portrait as coloured triangle meshes with a class for every triangle."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from ohlora.attributes import FaceClass
from ohlora.corpus.accessories import earrings, glasses
from ohlora.corpus.appearance import (
    brow_color,
    cloth_colors,
    eye_colors,
    hair_colors,
    skin_colors,
    strand_tones,
)
from ohlora.corpus.geometry import (
    Bools,
    Floats,
    Ints,
    clip_triangles,
    normalized,
    smoothstep,
    turn_head,
    vertex_normals,
)
from ohlora.corpus.hair import Strands, grow_strands, ribbons
from ohlora.corpus.parameters import (
    FALLING_STYLES,
    Look,
    PortraitParameters,
    expression_weights,
    shape_weights,
)
from ohlora.corpus.template import LASH_ROWS, load_template

CAMERA_DISTANCE = 11.0  # dm
FIELD_OF_VIEW = 9.9  # degrees: open eyes are about 36 px wide at 256 px
MARGIN = 1.12  # what lies farther out than this times the frame is not drawn


@dataclass(frozen=True)
class Mesh:
    name: str
    vertices: Floats  # [n, 3] dm
    normals: Floats  # [n, 3]
    triangles: Ints  # [m, 3]
    colors: Floats  # [n, 3] linear RGB
    surface: dict[str, Any]  # roughness and specular of the material
    classes: Ints | None  # [m] FaceClass; None is not in the mask and takes the class behind it
    opaque: bool = False  # trace triangles that no pixel sees as well
    strand: int = 0  # of hair: triangles of one strand, upper halves of all strands first


@dataclass(frozen=True)
class Person:
    """What does not change between two portraits of one look."""

    weights: dict[str, float]
    strands: Strands  # of the head that is not turned
    tones: Floats  # [roots of strands] how light each is
    white: Bools  # [roots of strands]
    skin: Floats  # colours of the body
    pores: Floats  # [n, 3] what makes the normals of the body uneven


@dataclass(frozen=True)
class Scene:
    meshes: list[Mesh]
    target: Floats  # [3] what the camera looks at
    camera: Floats  # [3]
    field_of_view: float = FIELD_OF_VIEW  # degrees, of both sides

    def in_frame(self, points: Floats) -> Bools:
        """Which points [..., 3] fall into the frame, widened by MARGIN."""
        across, up, towards = (points[..., k] - self.camera[k] for k in range(3))
        reach = -towards * np.tan(np.radians(self.field_of_view / 2)) * MARGIN
        return (np.abs(across) < reach) & (np.abs(up) < reach)


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
    tones, white = strand_tones(template, look, _rng(look, 3))
    skin = skin_colors(template, look, _rng(look, 2))
    return Person(weights, strands, tones, white, skin, _pores(look, body.shape, template.body.template))


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
    target = np.array([0.65 * turned_eyes[0], 0.5 * (turned_eyes[1] + eyes[1]) - 0.22, eyes[2] - 0.2])
    camera = target + np.array([0, 0.05, CAMERA_DISTANCE])

    body_shape = template.body.operator @ vertices
    shape_normals = vertex_normals(body_shape, template.body.triangles)
    height = template.body.template[:, 1]
    body = turn(body_shape, height)
    body_normals = vertex_normals(body, template.body.triangles)
    view = Scene([], target, camera)
    facing = (body_normals * normalized(camera - body)).sum(1) > -0.25
    facing |= template.inner_mouth > 0.1
    seen = template.seen & (view.in_frame(body) & facing)[template.body.triangles].any(1)
    twice = np.concatenate([template.classes, template.classes])[seen]
    skin = {"roughness": 0.44, "specular": 0.40}
    rough = normalized(body_normals + person.pores)
    # All of it is traced: a hole that no pixel sees still lets light into the mouth.
    meshes = [Mesh("skin", body, rough, template.body.triangles[seen], person.skin, skin, twice, opaque=True)]

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

    meshes += _accessories(look, vertices, body_shape, turn)

    # Strands are as long as they fall: below the chin they belong to the body and turn less.
    grown = person.strands
    drawn = np.flatnonzero(_towards_camera(grown, body_normals, turned_eyes, camera, look))
    heights = grown.points[drawn, :, 1]
    strands = turn(grown.points[drawn], np.minimum(8.0, heights - eyes[1] + 7.63))
    visible = view.in_frame(strands).any(1)
    drawn, heights, strands = drawn[visible], heights[visible], strands[visible]
    half_width, roots = grown.width[drawn], grown.roots[drawn]
    along = np.linspace(0, 1, strands.shape[1])
    profile = np.interp(along, [0, 0.1, 0.5, 0.85, 1], [0.7, 1, 0.9, 0.42, 0.05])
    centre = turn((eyes + np.array([0, 0.15, -0.95]))[None], 8.0)[0]
    v, n, t = ribbons(strands, half_width[:, None] * profile, camera, centre)
    drop = (eyes[1] - heights) / 1.9 + 0.15  # tips are tinted by how low they hang
    colors = hair_colors(look, person.tones[roots], person.white[roots], drop.clip(0, 1))
    gloss = {"roughness": 0.42, "specular": 0.28, "anisotropic": 0.4}
    classes = np.full(len(t), int(FaceClass.HAIR))
    meshes.append(Mesh("hair", v, n, t, colors, gloss, classes, strand=strands.shape[1] - 1))
    return Scene([_compact(mesh) for mesh in meshes if len(mesh.triangles)], target, camera)


def _towards_camera(
    grown: Strands, body_normals: Floats, eyes: Floats, camera: Floats, look: Look
) -> np.ndarray:
    """Strands that may be seen: all that root on the near side, some of the far side, [n]."""
    normals = load_template().strand_roots @ body_normals
    facing = normalized(normals)[grown.roots] @ normalized(camera - eyes)
    behind = _rng(look, 9).random(len(grown.roots)) < (0.35 if look.hair.style in FALLING_STYLES else 0.06)
    return (facing > -0.25) | behind | (np.arange(len(facing)) >= len(normals))


def visible_part(mesh: Mesh, seen: np.ndarray) -> Mesh:
    """What of a mesh is worth tracing.

    Args:
        seen: [m] triangles that a pixel sees. Neighbours of those are kept, and whole strands of hair.
    """
    if mesh.opaque:
        return mesh
    if mesh.strand:
        per_strand = seen.reshape(2, -1, mesh.strand).any((0, 2))
        kept = np.tile(np.repeat(per_strand, mesh.strand), 2)
    else:
        near = np.zeros(len(mesh.vertices), bool)
        kept = seen
        for _ in range(2):
            near[mesh.triangles[kept].ravel()] = True
            kept = np.asarray(near[mesh.triangles].any(1))
    classes = None if mesh.classes is None else mesh.classes[kept]
    return _compact(replace(mesh, triangles=mesh.triangles[kept], classes=classes))


def _compact(mesh: Mesh) -> Mesh:
    """The mesh without vertices that no triangle uses."""
    used, triangles = _used_vertices(mesh.triangles, len(mesh.vertices))
    if used.all():
        return mesh
    return replace(
        mesh,
        vertices=mesh.vertices[used],
        normals=mesh.normals[used],
        colors=mesh.colors[used],
        triangles=triangles,
    )


def _used_vertices(triangles: Ints, count: int) -> tuple[Bools, Ints]:
    """Which of `count` vertices the triangles use, [count], and the triangles as indices of those alone."""
    used = np.zeros(count, bool)
    used[triangles.ravel()] = True
    return used, (np.cumsum(used) - 1)[triangles]


def _pores(look: Look, shape: tuple[int, ...], template: Floats) -> Floats:
    """What makes normals of the face a little uneven, more so with age: highlights break up as on skin."""
    rng = _rng(look, 8)
    depth = 0.020 + 0.02 * float(np.clip((look.age - 25) / 35, 0, 1)) + 0.012 * (1 - look.female)
    face = smoothstep(6.0, 6.3, template[:, 1]) * smoothstep(0.5, 1.0, template[:, 2])
    return rng.normal(0, 1, shape) * (depth * face)[:, None]


def _accessories(look: Look, vertices: Floats, body: Floats, turn: Any) -> list[Mesh]:
    """Glasses and earrings, if this person wears them."""
    template = load_template()
    ear = template.is_ear
    at = template.body.template
    balls = [(eye.operator @ vertices).mean(0) for eye in (template.eye_left, template.eye_right)]
    sides = [ear & (at[:, 0] < 0), ear & (at[:, 0] > 0)]
    pieces = []
    if look.glasses is not None:
        between = (np.abs(at[:, 0]) < 0.10) & (np.abs(at[:, 1] - 7.25) < 0.06) & (at[:, 2] > 1.0)
        front = float(body[between, 2].max()) + 0.05
        tops = [body[side][body[side][:, 1].argmax()] - np.array([0, 0.12, 0]) for side in sides]
        frame = glasses(look.glasses, (balls[0], balls[1]), front, (tops[0], tops[1]))
        pieces.append(("glasses", frame, look.glasses.color, {"roughness": 0.25, "specular": 0.6}))
    if look.earrings is not None:
        lobes = [body[side][np.argsort(body[side][:, 1])[:12]].mean(0) for side in sides]
        pair = earrings(look.earrings, (lobes[0], lobes[1]))
        shiny = {"roughness": 0.22, "metallic": 0.9, "specular": 0.8}
        pieces.append(("earrings", pair, look.earrings.color, shiny))
    meshes = []
    for name, (points, triangles), color, surface in pieces:
        points = turn(points, 8.0)
        colors = np.tile(np.array(color), (len(points), 1))
        normals = vertex_normals(points, triangles)
        meshes.append(Mesh(name, points, normals, triangles, colors, surface, None))
    return meshes


def _uniform(
    name: str, vertices: Floats, triangles: Ints, colors: Floats, surface: dict[str, Any], label: FaceClass
) -> Mesh:
    normals = vertex_normals(vertices, triangles)
    return Mesh(name, vertices, normals, triangles, colors, surface, np.full(len(triangles), int(label)))


def _cloth(look: Look, body: Floats, normals: Floats, turned_normals: Floats, turn: Any) -> Mesh:
    """A shell over the shoulders, cut exactly at the neckline."""
    template = load_template()
    collar = template.collar(look.collar, look.neckline)
    under = template.body.triangles[(collar < 0)[template.body.triangles].any(1)]
    covered, under = _used_vertices(under, len(body))
    collar = collar[covered]
    thickness = (0.045 + 0.02 * smoothstep(-0.10, -0.02, collar)) * smoothstep(0.02, 0.0, collar)
    shell = body[covered] + normals[covered] * thickness[:, None]
    shell = turn(shell, template.body.template[covered, 1])
    v, n, t, field = clip_triangles(shell, turned_normals[covered], under, collar)
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
    length = (0.75 + 0.5 * look.brows) * rng.uniform(0.035, 0.065, len(t))
    length = length * np.interp(ax, [0.13, 0.3, 0.5], [0.75, 1, 0.8])
    along = np.linspace(0, 1, 4)[None, :, None]
    kept = rng.random(len(t)) < 0.55 + 0.45 * look.brows
    hairs = (
        root[:, None]
        + outward[:, None] * 0.004
        + normalized(direction)[:, None] * length[:, None, None] * along
    )
    return hairs[kept], (sign > 0)[kept]


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
