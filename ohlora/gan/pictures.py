"""Pictures of a face model for people: sweeps of each attribute, and renders beside their redrawing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ohlora.attributes import Expression
from ohlora.gan.face import Face

EYES_SWEEP = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
MOUTH_SWEEP = (0.25, 0.5, 0.75, 1.0)
POSE_SWEEP = (-30.0, -15.0, 0.0, 15.0, 30.0)
GAP = 6  # pixels around a label


def sweeps() -> list[Expression]:
    """One row of a sheet: eyes closed to wide, mouth closed to wide, the head from left to right."""
    return [
        *(Expression(eyes=value) for value in EYES_SWEEP),
        *(Expression(mouth=value) for value in MOUTH_SWEEP),
        *(Expression(pose=value) for value in POSE_SWEEP),
    ]


def save_sheet(face: Face, path: Path, sampled: int = 5, size: int = 144) -> None:
    """Oh-LoRA and new people, a row each, under every expression of `sweeps`; tiles of `size` pixels."""
    rows = []
    for person in [None, *range(sampled)]:
        latent = None if person is None else face.sample_latent(person)
        conditions = torch.stack([face.conditions(expression, latent) for expression in sweeps()])
        z = face.persona_latent if latent is None else latent
        rows.append(face.images(z.expand(len(conditions), -1), conditions))
    save_grid(rows, path, size)


def save_grid(rows: list[NDArray[np.uint8]], path: Path, size: int) -> None:
    """Images [columns, h, w, 3] of each row as one PNG, tiles of `size` pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    grid(rows, size).save(path, optimize=True)


def grid(
    rows: Sequence[NDArray[np.uint8]],
    size: int,
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
) -> Image.Image:
    """Images [columns, h, w, 3] of each row on one sheet.

    Args:
        rows: uint8 [columns, h, w, 3] each.
        size: pixels per side of a tile.
        row_labels: written left of the rows.
        column_labels: written above the columns.
    """
    points = max(8, min(size // 9, 20))
    font = ImageFont.load_default(points)
    left = round(max((font.getlength(label) for label in row_labels), default=-2 * GAP)) + 2 * GAP
    top = points + 2 * GAP if column_labels else 0
    width, height = left + max(len(row) for row in rows) * size, top + len(rows) * size
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    for y, label in enumerate(row_labels):
        draw.text((GAP, top + (y + 0.5) * size), label, "black", font, anchor="lm")
    for x, label in enumerate(column_labels):
        draw.text((left + (x + 0.5) * size, top / 2), label, "black", font, anchor="mm")
    for y, row in enumerate(rows):
        for x, pixels in enumerate(row):
            tile = Image.fromarray(pixels).resize((size, size), Image.Resampling.LANCZOS)
            sheet.paste(tile, (left + x * size, top + y * size))
    return sheet
