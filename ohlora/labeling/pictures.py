"""Pictures of what the labeling sees: mask overlays side by side and histograms of attributes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ohlora.attributes import FaceClass

PALETTE: dict[FaceClass, tuple[int, int, int]] = {
    FaceClass.BACKGROUND: (40, 44, 52),
    FaceClass.SKIN: (255, 205, 178),
    FaceClass.LEFT_BROW: (120, 80, 40),
    FaceClass.RIGHT_BROW: (170, 120, 60),
    FaceClass.LEFT_EYE: (30, 120, 255),
    FaceClass.RIGHT_EYE: (0, 210, 230),
    FaceClass.NOSE: (255, 160, 90),
    FaceClass.UPPER_LIP: (230, 40, 70),
    FaceClass.INNER_MOUTH: (90, 0, 30),
    FaceClass.LOWER_LIP: (255, 90, 150),
    FaceClass.HAIR: (130, 60, 190),
    FaceClass.EARS: (250, 220, 80),
    FaceClass.NECK: (200, 150, 120),
    FaceClass.CLOTHES: (70, 160, 90),
}
COLORS = np.array([PALETTE[c] for c in FaceClass], dtype=np.uint8)
CAPTION = 14  # pixels above each row


def overlay(image: NDArray[np.uint8], mask: NDArray[np.uint8], share: float = 0.55) -> NDArray[np.uint8]:
    """Image uint8 [h, w, 3] with `share` of the classes' colours of mask uint8 [h, w] over it."""
    return (image * (1 - share) + COLORS[mask] * share).astype(np.uint8)


def sheet(
    columns: Sequence[Sequence[NDArray[np.uint8]]], captions: Sequence[str], path: Path, tile: int = 160
) -> None:
    """Write a PNG: one column per item, its pictures uint8 [h, w, 3] below each other, a caption above.

    Args:
        columns: items; each has the same number of pictures.
        captions: one short text per item.
        path: where to write.
        tile: width and height of each picture in the sheet, pixels.
    """
    rows = max((len(column) for column in columns), default=1)
    canvas = Image.new("RGB", (tile * max(len(columns), 1), CAPTION + tile * rows), (24, 26, 30))
    draw = ImageDraw.Draw(canvas)
    for i, (column, caption) in enumerate(zip(columns, captions, strict=True)):
        draw.text((tile * i + 3, 1), caption, fill=(230, 230, 230))
        for j, picture in enumerate(column):
            shrunk = Image.fromarray(picture).resize((tile, tile), Image.Resampling.LANCZOS)
            canvas.paste(shrunk, (tile * i, CAPTION + tile * j))
    canvas.save(path)


def histograms(columns: Mapping[str, NDArray[np.float32]], path: Path) -> None:
    """Write a PNG with one histogram per attribute; unknown values (NaN) are counted in the title."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # pyplot would touch global state
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.6 * len(columns), 2.6), layout="constrained")
    FigureCanvasAgg(figure)
    for axis, (name, values) in zip(
        np.atleast_1d(figure.subplots(1, len(columns))), columns.items(), strict=True
    ):
        known = values[np.isfinite(values)]
        axis.hist(known, bins=24, color="#6b5bd2")
        axis.set_title(f"{name} ({len(values) - len(known)} unknown)", fontsize=9)
        axis.tick_params(labelsize=7)
    figure.savefig(path, dpi=90)


def bars(values: Mapping[str, float], title: str, path: Path) -> None:
    """Write a PNG with one horizontal bar per name, values 0..1 written beside them."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 0.8 + 0.28 * len(values)), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    drawn = axis.barh(list(values), list(values.values()), color="#6b5bd2")
    axis.bar_label(drawn, fmt="%.3f", fontsize=7, padding=2)
    axis.set(xlim=(0, 1.12), title=title)
    axis.invert_yaxis()
    axis.tick_params(labelsize=7)
    figure.savefig(path, dpi=90)


def agreement(
    measured: Mapping[str, Mapping[str, NDArray[np.float32]]],
    truth: Mapping[str, NDArray[np.float32]],
    path: Path,
) -> None:
    """Write a PNG of scatter plots: a row per source of values, a column per attribute, truth to the right.

    Args:
        measured: source -> attribute -> [n]; NaN is left out.
        truth: attribute -> [n].
        path: where to write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = list(truth)
    figure = Figure(figsize=(2 * len(names), 2 * len(measured)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(measured), len(names), squeeze=False)
    for row, (source, columns) in zip(axes, measured.items(), strict=True):
        for axis, name in zip(row, names, strict=True):
            axis.plot(truth[name], columns[name], ".", markersize=1.5, color="#6b5bd2", alpha=0.6)
            axis.set_title(f"{source}: {name}", fontsize=7)
            axis.tick_params(labelsize=6)
    figure.savefig(path, dpi=90)


def scatter(
    columns: Mapping[str, tuple[NDArray[np.float32], NDArray[np.float32]]], path: Path, width: int = 4
) -> None:
    """Write a PNG with one panel per name: measured values [n] over true ones [n], unknown ones left out."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # pyplot would touch global state
    from matplotlib.figure import Figure

    height = -(-len(columns) // width)
    figure = Figure(figsize=(2.9 * width, 2.9 * height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(height, width, squeeze=False).ravel()
    for axis in axes[len(columns) :]:
        axis.set_axis_off()
    for axis, (name, (truth, measured)) in zip(axes, columns.items(), strict=False):
        known = np.isfinite(truth) & np.isfinite(measured)
        if known.any():
            ends = [float(truth[known].min()), float(truth[known].max())]
            axis.plot(ends, ends, color="#999999", linewidth=1, linestyle="--")
        axis.scatter(truth[known], measured[known], s=9, alpha=0.6, color="#6b5bd2", linewidths=0)
        axis.set_title(name, fontsize=9)
        axis.set_xlabel("truth", fontsize=7)
        axis.tick_params(labelsize=7)
    figure.savefig(path, dpi=90)
