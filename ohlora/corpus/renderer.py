"""From parameters to a portrait and its exact mask, with Mitsuba 3 (`scalar_rgb`).

Few paths a pixel are traced; Open Image Denoise finishes the picture, led by the noise-free colours and
normals that `first_hit` knows. The background is composited after that, so that its statistics are exact. A
render is a function of its parameters: block size and box filter are fixed and the denoiser runs in one
thread, which makes it independent of the number of cores.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import mitsuba as mi
import numpy as np
import pyoidn
from drjit.scalar import ArrayXf
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from ohlora.attributes import FaceClass
from ohlora.corpus.first_hit import FirstHit, first_hit
from ohlora.corpus.geometry import Floats
from ohlora.corpus.meshes import Mesh, Scene, build_scene, visible_part
from ohlora.corpus.parameters import Look, Pattern, PortraitParameters

GENERATOR_VERSION = 2  # raise it when the same parameters give other pixels: it names caches and samples
SATURATION = 1.15
VERTEX_COLOR = {"type": "mesh_attribute", "name": "vertex_color"}
SKIN_CLASSES = [
    FaceClass.SKIN,
    FaceClass.NOSE,
    FaceClass.UPPER_LIP,
    FaceClass.LOWER_LIP,
    FaceClass.EARS,
    FaceClass.NECK,
]

Image = NDArray[np.uint8]
Pixels = NDArray[np.float32]


def render_portrait(
    parameters: PortraitParameters, resolution: int = 256, samples_per_pixel: int = 4
) -> tuple[Image, Image]:
    """Render one portrait.

    Args:
        parameters: who and which moment.
        resolution: pixels per side.
        samples_per_pixel: paths per pixel; 4 is enough after denoising.

    Returns:
        image uint8 [resolution, resolution, 3] RGB, and mask uint8 [resolution, resolution] of `FaceClass`.
    """
    if mi.variant() != "scalar_rgb":
        mi.set_variant("scalar_rgb")
        mi.set_log_level(mi.LogLevel.Error)
    scene = build_scene(parameters)
    seen = first_hit(scene, resolution)
    look = parameters.look
    description = _lights(look, scene)
    description["sensor"] = _sensor(scene, resolution, samples_per_pixel)
    for mesh, triangles in zip(scene.meshes, seen.seen, strict=True):
        description[mesh.name] = _upload(visible_part(mesh, triangles))
    loaded: Any = mi.load_dict(description)
    traced = np.array(mi.render(loaded, seed=mi.UInt32(look.seed & 0xFFFF)), dtype=np.float32)
    background = paint_background(look, resolution)
    behind = _undeveloped(background)
    light = _denoised(traced[..., :3] + behind * (1 - traced[..., 3:]), behind, seen)
    picture = _developed(_subsurface(light, seen))
    picture = np.where(seen.empty[..., None], background, picture)
    return (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8), seen.mask


def _sensor(scene: Scene, resolution: int, samples: int) -> dict[str, Any]:
    transform = mi.ScalarTransform4f().look_at(scene.camera.tolist(), scene.target.tolist(), [0, 1, 0])
    return {
        "type": "perspective",
        "fov": scene.field_of_view,
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
    """A key, a rim light behind the other shoulder and a constant fill."""
    light = look.light
    azimuth = np.radians(light.azimuth)
    side = -1.0 if light.azimuth >= 0 else 1.0
    warm = np.array([1 + 0.06 * light.warmth, 0.97, 0.93 - 0.09 * light.warmth])
    strength = 4.3 * light.contrast * (2.6 / light.size) ** 2

    def area(offset: Floats, size: float, radiance: Floats) -> dict[str, Any]:
        origin = (scene.target + offset).tolist()
        look_at = mi.ScalarTransform4f().look_at(origin, scene.target.tolist(), [0, 1, 0])
        return {
            "type": "rectangle",
            "to_world": look_at @ mi.ScalarTransform4f().scale([size, size, 1]),
            "emitter": {"type": "area", "radiance": {"type": "rgb", "value": radiance.tolist()}},
        }

    fill = np.array([0.31, 0.305, 0.32]) * (1.7 - 0.7 * light.contrast)
    return {
        "type": "scene",
        "integrator": {
            "type": "path",
            "max_depth": 3,
            "rr_depth": 9,
            "hide_emitters": True,
            "block_size": 32,
        },
        "fill": {"type": "constant", "radiance": {"type": "rgb", "value": fill.tolist()}},
        "key": area(
            np.array([5 * np.sin(azimuth), light.height, 6 * np.cos(azimuth)]), light.size, warm * strength
        ),
        "rim": area(np.array([5.0 * side, 3.0, -4.0]), 1.4, np.array([10.0, 10.0, 10.8]) * light.rim),
    }


def _upload(mesh: Mesh) -> Any:
    properties = mi.Properties()
    material = {"type": "principled", "base_color": VERTEX_COLOR, **mesh.surface}
    properties["material"] = mi.load_dict({"type": "twosided", "bsdf": material})
    target: Any = mi.Mesh(
        mesh.name, len(mesh.vertices), len(mesh.triangles), has_vertex_normals=True, props=properties
    )
    target.add_attribute("vertex_color", 3, ArrayXf(mesh.colors.astype(np.float32).ravel()))
    values = mi.traverse(target)
    for name, rows in (
        ("vertex_positions", mesh.vertices),
        ("faces", mesh.triangles),
        ("vertex_normals", mesh.normals),
    ):
        # In place: Mitsuba compares what is assigned with what was there, number by number.
        values[name].numpy()[:] = rows.ravel()
        values.set_dirty(name)
    values.update()
    return target


@lru_cache(maxsize=1)
def _denoiser() -> tuple[pyoidn.Device, pyoidn.Filter]:
    """Made once a process: a new filter would unpack its network again."""
    device = pyoidn.Device(pyoidn.OIDN_DEVICE_TYPE_CPU)
    device.set_int("numThreads", 1)
    device.commit()
    step = pyoidn.Filter(device, pyoidn.OIDN_FILTER_TYPE_RT)
    step.set_bool("hdr", True)
    step.set_bool("cleanAux", True)
    step.set_quality(pyoidn.OIDN_QUALITY_BALANCED)
    return device, step


def _denoised(light: Pixels, behind: Pixels, seen: FirstHit) -> Pixels:
    """Open Image Denoise with exact auxiliary pictures (Afra, "Intel Open Image Denoise", 2019-).

    The background is in the picture already, so that strands before it are smooth as well.

    Args:
        light: [h, w, 3] linear.
        behind: [h, w, 3] the background alone, linear.

    Raises:
        RuntimeError: the library reports an error.
    """
    device, step = _denoiser()
    bare = 1 - seen.coverage[..., None]
    albedo = np.ascontiguousarray(np.clip(seen.albedo + behind * bare, 0, 1), np.float32)
    noisy, result = np.ascontiguousarray(light), np.empty_like(light)
    step.set_image(pyoidn.OIDN_IMAGE_COLOR, noisy, pyoidn.OIDN_FORMAT_FLOAT3)
    step.set_image(pyoidn.OIDN_IMAGE_ALBEDO, albedo, pyoidn.OIDN_FORMAT_FLOAT3)
    step.set_image(pyoidn.OIDN_IMAGE_NORMAL, seen.normals, pyoidn.OIDN_FORMAT_FLOAT3)
    step.set_image(pyoidn.OIDN_IMAGE_OUTPUT, result, pyoidn.OIDN_FORMAT_FLOAT3)
    step.commit()
    step.execute()
    if (problem := device.get_error()) is not None:
        raise RuntimeError(f"Open Image Denoise: {problem}")
    return result


def _subsurface(light: Pixels, seen: FirstHit) -> Pixels:
    """Light that travels under skin, in screen space: red reaches further than green and blue.

    What arrives is spread, not what leaves, so that lashes and make-up keep their colour.
    Jimenez et al., "Screen-Space Perceptual Rendering of Human Skin", 2009.
    """
    scale = seen.mask.shape[0] / 256
    skin = np.isin(seen.mask, SKIN_CLASSES).astype(np.float32)
    albedo = np.maximum(seen.albedo, 0.02)
    arriving = light / albedo
    result = light.copy()
    for channel, (reach, share) in enumerate(((2.6, 0.55), (1.3, 0.35), (0.8, 0.25))):
        weight = skin * albedo[..., channel]
        spread = gaussian_filter(arriving[..., channel] * weight, reach * scale)
        spread = spread / np.maximum(gaussian_filter(weight, reach * scale), 1e-4)
        result[..., channel] += skin * share * albedo[..., channel] * (spread - arriving[..., channel])
    return result


def paint_background(look: Look, resolution: int) -> Pixels:
    """A vertical gradient with what the pattern paints over it, sRGB [h, w, 3] in 0..1."""
    background = look.background
    rng = np.random.default_rng([look.seed, 7])
    rows = np.linspace(0, 1, resolution)[:, None, None]
    base = np.array(background.top) * (1 - rows) + np.array(background.bottom) * rows
    coarse = _PATTERNS[background.pattern](rng)  # at its own resolution: every size shows the same
    at = np.linspace(0, 127, resolution)
    across = np.array([np.interp(at, np.arange(128), line) for line in coarse])
    glow = np.array([np.interp(at, np.arange(128), line) for line in across.T]).T[..., None]
    share = background.glow_amount * np.clip(glow, 0, 1)
    painted = base * (1 - share) + np.array(background.glow) * share
    return np.asarray(np.clip(painted, 0, 1), np.float32)


def _normal_range(values: Floats) -> Floats:
    return (values - values.min()) / (np.ptp(values) + 1e-9)


def _clouds(rng: np.random.Generator) -> Floats:
    return _normal_range(gaussian_filter(rng.normal(0, 1, (128, 128)), 10)) ** 1.5


def _bands(rng: np.random.Generator) -> Floats:
    """Wide slanted curtains of light."""
    coarse = gaussian_filter(rng.normal(0, 1, (128, 128)), (18, 6), mode="wrap")
    coarse = np.stack([np.roll(line, round(0.45 * k)) for k, line in enumerate(coarse)])
    return _normal_range(gaussian_filter(coarse, 3)) ** 1.5


def _bokeh(rng: np.random.Generator) -> Floats:
    """Discs of lights out of focus."""
    rows, columns = np.mgrid[0:128, 0:128]
    picture = np.zeros((128, 128))
    for _ in range(26):
        y, x, radius = rng.uniform(0, 128), rng.uniform(0, 128), rng.uniform(3, 11)
        disc = np.hypot(rows - y, columns - x) < radius
        picture += disc * rng.uniform(0.15, 0.7)
    return np.asarray(np.clip(gaussian_filter(picture, 1.2), 0, 1))


def _room(rng: np.random.Generator) -> Floats:
    """Upright and level planes out of focus: doors, shelves, windows."""
    picture = np.zeros((128, 128))
    for _ in range(7):
        left, top = rng.integers(-20, 120), rng.integers(-20, 110)
        width, height = rng.integers(10, 60), rng.integers(12, 100)
        picture[max(0, top) : top + height, max(0, left) : left + width] += rng.uniform(-0.5, 0.6)
    return _normal_range(gaussian_filter(picture, rng.uniform(2.0, 5.0)))


_PATTERNS = {
    Pattern.CLOUDS: _clouds,
    Pattern.BANDS: _bands,
    Pattern.BOKEH: _bokeh,
    Pattern.ROOM: _room,
}


EXPOSURE = 0.80
LUMINANCE = np.array([0.2126, 0.7152, 0.0722], np.float32)


def _developed(light: Pixels) -> Pixels:
    """Linear light as an sRGB picture [h, w, 3] in 0..1: saturation, Narkowicz's fit of the ACES curve."""
    u = np.clip(light, 0, None) * EXPOSURE
    grey = (u @ LUMINANCE)[..., None]
    u = np.clip(grey + SATURATION * (u - grey), 0, None)  # the curve takes some away
    toned = np.clip(u * (2.51 * u + 0.03) / (u * (2.43 * u + 0.59) + 0.14), 1e-6, 1)
    return np.where(toned <= 0.0031308, 12.92 * toned, 1.055 * toned ** (1 / 2.4) - 0.055)


def _undeveloped(picture: Pixels) -> Pixels:
    """The linear light that `_developed` would show as this picture."""
    encoded = np.clip(picture, 0, 0.98)
    toned = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    # u (2.51 u + 0.03) = toned (2.43 u^2 + 0.59 u + 0.14), solved for the positive u.
    a, b, c = 2.51 - 2.43 * toned, 0.03 - 0.59 * toned, -0.14 * toned
    u = (-b + np.sqrt(b * b - 4 * a * c)) / (2 * a)
    grey = (u @ LUMINANCE)[..., None]
    return np.asarray((grey + (u - grey) / SATURATION) / EXPOSURE, np.float32)
