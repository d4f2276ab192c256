"""A corpus of drawn people: 64 x 64, every truth known, the men with beards."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa

from ohlora.attributes import FaceClass
from ohlora.corpus.defects import draw_defect
from ohlora.corpus.portraits import SCHEMA, TRUTH_NAMES, encode_image, encode_mask, write
from ohlora.labeling.pictures import COLORS
from tests.labeling.drawn_faces import face

SIZE = 64


def write_people(folder: Path, people: int = 24, each: int = 4, seed: int = 0, degraded: int = 3) -> Path:
    """Write `people` times `each` portraits; a third of people is held out, every `degraded`-th is spoilt."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(people * each):
        identity, woman = number // each, float(number // each % 2)
        eyes, mouth, nose = rng.uniform(0, 0.8), rng.uniform(0, 0.8), rng.uniform(-0.8, 0.8)
        mask = face(SIZE, eyes=eyes, mouth=mouth, nose=nose, hair_to=rng.uniform(0.4, 0.9))
        image = COLORS[mask].astype(np.float64)
        image[mask == FaceClass.HAIR] = rng.uniform(10, 90)
        clouds = rng.uniform(0, 40) * np.sin(np.linspace(0, 9, SIZE))[None, :, None]
        image = np.where((mask == FaceClass.BACKGROUND)[..., None], rng.uniform(130, 200) + clouds, image)
        if not woman:
            chin = (mask == FaceClass.SKIN) & (np.arange(SIZE)[:, None] > 0.55 * SIZE)
            image[chin] = (110, 80, 60)
        image = np.clip(image, 0, 255).astype(np.uint8)
        truth = dict.fromkeys(TRUTH_NAMES, 0.0) | {"quality": 1.0, "gender": woman}
        truth |= {"eyes": eyes, "mouth": mouth, "pose": 40 * nose, **measured(image, mask)}
        if degraded and number % degraded == 2 and (defect := draw_defect(1.0, rng)):
            image = defect.applied(image)
            truth |= {"quality": 0.0, defect.name: defect.strength}
        rows.append(
            {
                "image": encode_image(image),
                "mask": encode_mask(mask),
                "identity": identity + 1,
                "seed": identity,
                "moment": number % each,
                "variant": "sample",
                "split": "test" if identity % 3 == 2 else "train",
                "set": -1,
                "swept": "",
                "parameters": json.dumps({"look": {"hair": {"length": float(rng.random())}}}),
                **truth,
            }
        )
    write(folder, pa.Table.from_pylist(rows, SCHEMA), {"generator": "tests"})
    return folder


def measured(image: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """What the renderer measures, of image uint8 [h, w, 3] and mask uint8 [h, w]."""
    gray = image.astype(np.float64).mean(-1)
    half = len(mask) // 2
    behind = gray[:half][mask[:half] == FaceClass.BACKGROUND]
    rows = np.flatnonzero((mask == FaceClass.HAIR).any(1))
    return {
        "hair_color": float(gray[mask == FaceClass.HAIR].mean()),
        "hair_length": float(rows[-1] + 1) / len(mask),
        "background_mean": float(behind.mean()),
        "background_std": float(behind.std()),
    }
