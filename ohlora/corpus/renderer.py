"""From parameters to a portrait and its exact mask, with Mitsuba 3 (`scalar_rgb`).

The mask is a second pass over the same scene: which triangle does each pixel see, and of which class is it.
The background is composited after rendering, so that its statistics are exact. A render is a function of its
parameters: block size and box filter are fixed, which makes it independent of the number of threads.
"""

from __future__ import annotations

from typing import Any

import mitsuba as mi
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, gaussian_filter, maximum_filter, median_filter

from ohlora.attributes import FaceClass
from ohlora.corpus.geometry import Floats, Ints
from ohlora.corpus.meshes import Mesh, Scene, build_scene
from ohlora.corpus.parameters import Look, PortraitParameters

GENERATOR_VERSION = 1  # raise it when the same parameters give other pixels: it names caches and samples
FIELD_OF_VIEW = 13.6  # degrees
SATURATION = 1.15
VERTEX_COLOR = {"type": "mesh_attribute", "name": "vertex_color"}
SMOOTH_CLASSES = [
    FaceClass.SKIN,
    FaceClass.NOSE,
    FaceClass.UPPER_LIP,
    FaceClass.LOWER_LIP,
    FaceClass.EARS,
    FaceClass.NECK,
    FaceClass.CLOTHES,
]

Image = NDArray[np.uint8]


def render_portrait(
    parameters: PortraitParameters, resolution: int = 256, samples_per_pixel: int = 12
) -> tuple[Image, Image]:
    """Render one portrait.

    Args:
        parameters: who and which moment.
        resolution: pixels per side.
        samples_per_pixel: paths per pixel; 8 to 16 is enough after denoising.

    Returns:
        image uint8 [resolution, resolution, 3] RGB, and mask uint8 [resolution, resolution] of `FaceClass`.
    """
    if mi.variant() != "scalar_rgb":
        mi.set_variant("scalar_rgb")
        mi.set_log_level(mi.LogLevel.Error)
    scene = build_scene(parameters)
    look = parameters.look
    description = _lights(look, scene)
    description["sensor"] = _sensor(scene, resolution, samples_per_pixel)
    for mesh in scene.meshes:
        description[mesh.name] = _upload(mesh)
    loaded: Any = mi.load_dict(description)
    color = np.array(mi.render(loaded, seed=mi.UInt32(look.seed & 0xFFFF)), dtype=np.float64)
    mask, normals = _mask_pass(loaded, scene, resolution)
    color[..., :3] = _denoise(color[..., :3], mask, normals)
    return _develop(color, _background(look, resolution)), mask


def _sensor(scene: Scene, resolution: int, samples: int) -> dict[str, Any]:
    transform = mi.ScalarTransform4f().look_at(scene.camera.tolist(), scene.target.tolist(), [0, 1, 0])
    return {
        "type": "perspective",
        "fov": FIELD_OF_VIEW,
        "to_world": transform,
        "film": {
            "type": "hdrfilm",
            "width": resolution,
            "height": resolution,
            "pixel_format": "rgba",
            "rfilter": {"type": "box"},
        },
        "sampler": {"type": "multijitter", "sample_count": samples},
    }


def _lights(look: Look, scene: Scene) -> dict[str, Any]:
    """A large soft key, a rim light behind the other shoulder and a constant fill."""
    azimuth = np.radians(look.light)
    side = -1.0 if look.light >= 0 else 1.0
    warm = np.array([1 + 0.06 * look.warmth, 0.97, 0.93 - 0.09 * look.warmth])

    def area(offset: Floats, size: float, radiance: Floats) -> dict[str, Any]:
        origin = (scene.target + offset).tolist()
        look_at = mi.ScalarTransform4f().look_at(origin, scene.target.tolist(), [0, 1, 0])
        return {
            "type": "rectangle",
            "to_world": look_at @ mi.ScalarTransform4f().scale([size, size, 1]),
            "emitter": {"type": "area", "radiance": {"type": "rgb", "value": radiance.tolist()}},
        }

    return {
        "type": "scene",
        "integrator": {
            "type": "path",
            "max_depth": 4,
            "rr_depth": 9,
            "hide_emitters": True,
            "block_size": 32,
        },
        "fill": {"type": "constant", "radiance": {"type": "rgb", "value": [0.34, 0.335, 0.35]}},
        "key": area(np.array([5 * np.sin(azimuth), 3.0, 6 * np.cos(azimuth)]), 2.6, warm * 4.3),
        "rim": area(np.array([5.0 * side, 3.0, -4.0]), 1.4, np.array([5.0, 5.0, 5.4])),
    }


def _upload(mesh: Mesh) -> Any:
    properties = mi.Properties()
    material = {"type": "principled", "base_color": VERTEX_COLOR, **mesh.surface}
    properties["material"] = mi.load_dict({"type": "twosided", "bsdf": material})
    target: Any = mi.Mesh(
        mesh.name, len(mesh.vertices), len(mesh.triangles), has_vertex_normals=True, props=properties
    )
    target.add_attribute("vertex_color", 3, mesh.colors.astype(np.float32).ravel())
    values = mi.traverse(target)
    values["vertex_positions"] = mesh.vertices.astype(np.float32).ravel()
    values["faces"] = mesh.triangles.astype(np.uint32).ravel()
    values["vertex_normals"] = mesh.normals.astype(np.float32).ravel()
    values.update()
    return target


def _mask_pass(loaded: Any, scene: Scene, resolution: int) -> tuple[Image, Floats]:
    """Class [h, w] and normal [h, w, 3] of what each pixel sees."""
    description = _sensor(scene, resolution, 1)
    description["film"]["pixel_format"] = "rgb"
    description["sampler"] = {"type": "independent", "sample_count": 1}
    integrator = {
        "type": "aov",
        "aovs": "triangle:prim_index,mesh:shape_index,normal:sh_normal",
        "block_size": 32,
    }
    aov, sensor = mi.load_dict(integrator), mi.load_dict(description)
    seen = np.array(mi.render(loaded, sensor=sensor, integrator=aov, seed=mi.UInt32(0)))
    triangle, shape = seen[..., 0].astype(np.int64), seen[..., 1].astype(np.int64) - 1  # 0 is a miss
    classes: dict[str, Ints | None] = {mesh.name: mesh.classes for mesh in scene.meshes}
    mask = np.zeros((resolution, resolution), np.uint8)
    unlabelled = np.zeros_like(mask, dtype=bool)
    for number, name in enumerate(shape_.id() for shape_ in loaded.shapes()):
        here = shape == number
        if name not in classes or not here.any():
            continue
        table = classes[name]
        if table is None:
            unlabelled |= here
        else:
            mask[here] = table[np.clip(triangle[here], 0, len(table) - 1)]
    if unlabelled.any():
        nearest = distance_transform_edt(unlabelled, return_distances=False, return_indices=True)
        mask = mask[nearest[0], nearest[1]]
    return mask, seen[..., 2:5].astype(np.float64)


def _denoise(color: Floats, mask: Image, normals: Floats) -> Floats:
    """Cross-bilateral filter that stops at classes, normals and luminance; hair is only cleared of outliers.

    Red reaches further than green and blue, a screen-space stand-in for light that travels under skin
    (Jimenez et al., "Screen-Space Perceptual Rendering of Human Skin", 2009).
    """
    scale = mask.shape[0] / 256
    smooth = np.isin(mask, SMOOTH_CLASSES)[..., None]
    # A first pass that ignores most of the luminance makes the guide of the second.
    guide = _cross_bilateral(color, color, mask, normals, np.full(3, 6.0) * scale**2, 0.6, scale)
    guide = np.where(smooth, guide, color)
    reach = np.array([10.0, 6.0, 5.0]) * scale**2
    filtered = _cross_bilateral(color, guide, mask, normals, reach, 0.05, scale)

    rough = np.isin(mask, [FaceClass.HAIR, FaceClass.LEFT_BROW, FaceClass.RIGHT_BROW, FaceClass.INNER_MOUTH])
    median = median_filter(color, (3, 3, 1))
    clamped = np.clip(color, median * 0.62, median * 1.5 + 0.02)
    result = np.where(smooth, filtered, np.where(rough[..., None], 0.6 * clamped + 0.4 * median, color))
    # Where strands end on skin, single pixels are neither; they take what is around them.
    hair = mask == FaceClass.HAIR
    fringe = maximum_filter(hair, 3) & maximum_filter(smooth[..., 0], 3)
    return np.where(fringe[..., None], 0.35 * result + 0.65 * median_filter(result, (3, 3, 1)), result)


def _cross_bilateral(
    color: Floats, guide: Floats, mask: Image, normals: Floats, reach: Floats, tolerance: float, scale: float
) -> Floats:
    """Mean over neighbours of the same class, alike in normal and in log luminance of the guide.

    Args:
        reach: squared distance of influence per channel, px^2.
        tolerance: squared difference of log luminance that counts as alike.
    """
    height, width = mask.shape
    radius = max(1, round(3 * scale))

    def padded(a: Floats) -> Floats:
        return np.pad(a, ((radius, radius), (radius, radius), (0, 0)), "edge")

    label = mask[..., None].astype(float)
    luminance = np.log(guide.mean(-1, keepdims=True) + 0.03)
    colors, all_normals, luminances, labels = padded(color), padded(normals), padded(luminance), padded(label)
    total, weights = np.zeros_like(color), np.zeros_like(color)
    for dy in range(-radius, radius + 1):
        for dx in range(-radius, radius + 1):
            at = (slice(radius + dy, radius + dy + height), slice(radius + dx, radius + dx + width))
            unlike = ((all_normals[at] - normals) ** 2).sum(-1, keepdims=True) / 0.10
            unlike = unlike + (luminances[at] - luminance) ** 2 / tolerance
            weight = np.exp(-unlike - (dx * dx + dy * dy) / reach) * (labels[at] == label)
            total += colors[at] * weight
            weights += weight
    return total / np.maximum(weights, 1e-9)


def _background(look: Look, resolution: int) -> Floats:
    """Vertical gradient with soft clouds or slanted bands, sRGB [h, w, 3] in 0..1."""
    background = look.background
    rng = np.random.default_rng([look.seed, 7])
    rows = np.linspace(0, 1, resolution)[:, None, None]
    base = np.array(background.top) * (1 - rows) + np.array(background.bottom) * rows
    coarse = rng.normal(0, 1, (64, 64))  # at its own resolution, so that every size shows the same clouds
    if background.bands:
        coarse = gaussian_filter(coarse, (9, 3), mode="wrap")
        coarse = np.stack([np.roll(line, round(0.45 * k)) for k, line in enumerate(coarse)])
        coarse = gaussian_filter(coarse, 1.5)
    else:
        coarse = gaussian_filter(coarse, 5)
    coarse = (coarse - coarse.min()) / (np.ptp(coarse) + 1e-9)
    at = np.linspace(0, 63, resolution)
    across = np.array([np.interp(at, np.arange(64), line) for line in coarse])
    cloud = np.array([np.interp(at, np.arange(64), line) for line in across.T]).T[..., None]
    share = background.glow_amount * cloud**1.5
    return np.clip(base * (1 - share) + np.array(background.glow) * share, 0, 1)


def _develop(linear: Floats, background: Floats) -> Image:
    """Filmic tone curve (Narkowicz's fit of ACES), sRGB, over the background."""
    alpha = np.clip(linear[..., 3:4], 0, 1)
    u = np.clip(linear[..., :3] / np.maximum(alpha, 1e-3), 0, None) * 0.80
    grey = u @ np.array([0.2126, 0.7152, 0.0722])
    u = np.clip(grey[..., None] + SATURATION * (u - grey[..., None]), 0, None)  # the curve takes some away
    toned = np.clip(u * (2.51 * u + 0.03) / (u * (2.43 * u + 0.59) + 0.14), 0, 1)
    encoded = np.where(
        toned <= 0.0031308, 12.92 * toned, 1.055 * np.clip(toned, 1e-6, None) ** (1 / 2.4) - 0.055
    )
    return (np.clip(encoded * alpha + background * (1 - alpha), 0, 1) * 255 + 0.5).astype(np.uint8)
