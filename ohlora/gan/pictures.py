"""Pictures of a face model for people: sweeps of each attribute, and renders beside their redrawing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ohlora.attributes import Expression
from ohlora.gan.face import Face

EYES_SWEEP = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
MOUTH_SWEEP = (0.25, 0.5, 0.75, 1.0)
POSE_SWEEP = (-30.0, -15.0, 0.0, 15.0, 30.0)


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
    height, width = len(rows) * size, max(len(row) for row in rows) * size
    sheet = Image.new("RGB", (width, height), "white")
    for y, row in enumerate(rows):
        for x, pixels in enumerate(row):
            tile = Image.fromarray(pixels).resize((size, size), Image.Resampling.LANCZOS)
            sheet.paste(tile, (x * size, y * size))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, optimize=True)
