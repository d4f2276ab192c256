"""How a face moves: easing, blinks, the frames between two expressions, sweeps, and their files.

Everything but `encode` is pure, and everything is deterministic: with the same versions of the libraries the
same arguments give the same bytes.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ohlora.attributes import CONDITION_NAMES, Expression

CLOSING, SHUT, OPENING = 0.10, 0.04, 0.15  # seconds of a natural blink
BLINK_INTERVAL = 3.5  # median seconds between blinks: 17 a minute at rest (Bentivoglio et al., 1997)
SHORTEST_INTERVAL = 1.0
SWEEP_RANGES = {"eyes": (0.0, 1.0), "mouth": (0.0, 1.0), "pose": (-30.0, 30.0)}
ANIMATIONS = (".gif", ".webp", ".mp4")
FRAME_NAME = "frame-{:04d}.png"
FRAME_PATTERN = re.compile(r"frame-\d{4,}\.png")
GIF_MAX_FPS = 50  # a GIF counts in 1/100 s, and players slow down what is shown for less than 2 of them
PALETTE_FRAMES = 12  # that an animation's palette is made of, every second row and column of each
DITHER = 5.0  # grey levels between the extremes of the ordered dither: hides bands of skin, stays unseen


def ease(t: float) -> float:
    """Progress of a movement at the share `t` (0..1) of its time: the minimum-jerk curve.

    It starts and ends without velocity or acceleration, as a hand or a head does (Flash and Hogan, 1985).

    >>> ease(0.0), ease(0.5), ease(1.0)
    (0.0, 0.5, 1.0)
    """
    t = min(max(t, 0.0), 1.0)
    return min(t * t * t * (10 + t * (6 * t - 15)), 1.0)  # rounding can pass 1 just before the end


def lid(seconds: float) -> float:
    """Share of the eye's opening that a blink leaves, `seconds` after the lids met (negative: before)."""
    if seconds < 0:
        return ease(-seconds / CLOSING)
    return ease((seconds - SHUT) / OPENING)


def blink(frames: int, fps: float, seed: int) -> list[float]:
    """What eye openness is multiplied by in each frame, 0..1.

    The lids meet exactly on a frame, so that no frame rate misses a blink. The first one comes within
    seconds, the next at log-normal intervals. The first and the last frame are always open; a clip that is
    shorter than a blink has none.
    """
    earliest = math.floor(CLOSING * fps) + 1
    latest = frames - 2 - math.floor((SHUT + OPENING) * fps)
    factors = [1.0] * frames
    if latest < earliest:
        return factors
    rng = np.random.default_rng(seed)
    shut = int(rng.integers(earliest, min(latest, earliest + round(BLINK_INTERVAL * fps)) + 1))
    while shut <= latest:
        for i in range(frames):
            factors[i] = min(factors[i], lid((i - shut) / fps))
        interval = max(SHORTEST_INTERVAL, BLINK_INTERVAL * math.exp(0.4 * rng.standard_normal()))
        shut += max(1, round(interval * fps))
    return factors


def transition(
    start: Expression, end: Expression, frames: int, fps: float, seed: int = 0, blinking: bool = True
) -> list[Expression]:
    """The eased way from one expression to another; the first frame is `start`, the last one `end`.

    Args:
        start: expression of the first frame.
        end: expression of the last frame.
        frames: at least 2.
        fps: frames per second; the blinks depend on it.
        seed: of the blinks.
        blinking: whether she blinks on the way.

    Raises:
        ValueError: fewer than 2 frames.
    """
    if frames < 2:
        raise ValueError(f"a transition needs at least 2 frames, got {frames}")
    lids = blink(frames, fps, seed) if blinking else [1.0] * frames
    shares = [ease(i / (frames - 1)) for i in range(frames)]
    return [
        Expression(
            eyes=_between(start.eyes, end.eyes, share) * open_,
            mouth=_between(start.mouth, end.mouth, share),
            pose=_between(start.pose, end.pose, share),
        )
        for share, open_ in zip(shares, lids, strict=True)
    ]


def _between(a: float, b: float, share: float) -> float:
    """Exact at both ends and never beyond them, whatever the rounding."""
    return min(max((1 - share) * a + share * b, min(a, b)), max(a, b))


def sweep(name: str, steps: int, base: Tensor, people: Tensor) -> Tensor:
    """Conditions in which one attribute goes through its range in equal steps.

    Args:
        name: one of `CONDITION_NAMES`. Eyes, mouth and pose go through `SWEEP_RANGES`, what belongs to a
            person (hair, background) through the range of the known people.
        steps: at least 2.
        base: raw conditions of everything else, float32 [7].
        people: raw conditions of the known people, float32 [k, 7].

    Returns:
        float32 [steps, 7].

    Raises:
        ValueError: the attribute is unknown, or there are fewer than 2 steps.
    """
    if name not in CONDITION_NAMES:
        raise ValueError(f"unknown attribute {name!r}; there are: {', '.join(CONDITION_NAMES)}")
    if steps < 2:
        raise ValueError(f"a sweep needs at least 2 steps, got {steps}")
    column = CONDITION_NAMES.index(name)
    seen = people[:, column]
    low, high = SWEEP_RANGES.get(name, (float(seen.min()), float(seen.max())))
    rows = base.repeat(steps, 1)
    rows[:, column] = torch.linspace(low, high, steps)
    return rows


def encode(images: NDArray[np.uint8], path: Path, fps: float) -> None:
    """Write frames as an endless GIF or WebP, as an MP4 (H.264), or as PNG files into a folder.

    A GIF or WebP shows a frame that equals the one before it by showing that one longer, so it may hold fewer
    pictures than there are frames; it lasts equally long. An older frame sequence in the folder is replaced.

    Args:
        images: uint8 [n, h, w, 3].
        path: its suffix says which; without one it is a folder.
        fps: frames per second.

    Raises:
        ValueError: no frames, an unknown suffix, sides that H.264 cannot hold, or a GIF that is too fast.
    """
    if not len(images):
        raise ValueError("there are no frames to write")
    suffix = path.suffix.lower()
    path.parent.mkdir(parents=True, exist_ok=True)
    if suffix == ".gif":
        _encode_gif(images, path, fps)
    elif suffix == ".webp":
        first, *rest = [Image.fromarray(frame) for frame in images]
        durations = _durations(len(images), fps, 1000)
        first.save(path, save_all=True, append_images=rest, duration=durations, loop=0, quality=90, method=4)
    elif suffix == ".mp4":
        _encode_mp4(images, path, fps)
    elif not suffix:
        _write_frames(images, path)
    else:
        raise ValueError(f"unknown format {suffix!r}; there are: {', '.join(ANIMATIONS)}, or a folder")


def _durations(frames: int, fps: float, unit: int) -> list[int]:
    """How long each frame is shown in 1/`unit` seconds; rounding never adds up."""
    edges = [round(i * unit / fps) for i in range(frames + 1)]
    return [after - before for before, after in pairwise(edges)]


def _encode_gif(images: NDArray[np.uint8], path: Path, fps: float) -> None:
    """One palette for the whole animation and an ordered dither.

    With a palette of its own each frame would flicker, and error diffusion lets the grain crawl over parts
    that stand still; an ordered dither changes a pixel only where the picture changes.
    """
    if fps > GIF_MAX_FPS:
        raise ValueError(f"a GIF shows at most {GIF_MAX_FPS} frames per second, asked for {fps:g}")
    chosen = np.unique(np.linspace(0, len(images) - 1, PALETTE_FRAMES).round().astype(int))
    mosaic = Image.fromarray(np.concatenate(list(images[chosen, ::2, ::2])))
    palette = mosaic.quantize(256, Image.Quantize.MEDIANCUT, kmeans=1)
    threshold = _bayer(images.shape[1], images.shape[2])[..., None] * DITHER
    pictures = [
        Image.fromarray((frame + threshold).round().clip(0, 255).astype(np.uint8)).quantize(
            palette=palette, dither=Image.Dither.NONE
        )
        for frame in images
    ]
    durations = [10 * hundredths for hundredths in _durations(len(images), fps, 100)]
    first, *rest = pictures
    first.save(path, save_all=True, append_images=rest, duration=durations, loop=0, optimize=False)


def _bayer(height: int, width: int) -> NDArray[np.float64]:
    """Bayer's 8x8 threshold matrix tiled over a picture, centred on 0, within ±0.5."""
    matrix = np.zeros((1, 1))
    for _ in range(3):
        matrix = np.block([[4 * matrix, 4 * matrix + 2], [4 * matrix + 3, 4 * matrix + 1]])
    tile = (matrix + 0.5) / 64 - 0.5
    return np.tile(tile, (-(-height // 8), -(-width // 8)))[:height, :width]


def _encode_mp4(images: NDArray[np.uint8], path: Path, fps: float) -> None:
    """H.264 in 4:2:0, which every browser plays; the same frames give the same bytes.

    That takes one thread, and no macroblock tree: with AVX-512, x264's reads past the end of a picture
    narrower than 16 macroblocks, so that what lies there in memory decides on the quantisers.
    """
    import av
    from av.video.reformatter import ColorRange, Colorspace

    height, width = images.shape[1:3]
    if height % 2 or width % 2:
        raise ValueError(f"an MP4 needs even sides, got {width}x{height}; write a .gif or .webp")
    with av.open(str(path), "w", options={"movflags": "+faststart", "fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"crf": "17", "preset": "medium", "threads": "1", "x264-params": "mbtree=0"}
        stream.codec_context.colorspace = Colorspace.ITU601
        stream.codec_context.color_range = ColorRange.MPEG
        for image in images:
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame = frame.reformat(
                format="yuv420p", dst_colorspace=Colorspace.ITU601, dst_color_range=ColorRange.MPEG
            )
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _write_frames(images: NDArray[np.uint8], folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        if FRAME_PATTERN.fullmatch(path.name):
            path.unlink()
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / FRAME_NAME.format(number))
