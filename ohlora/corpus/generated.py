"""Portraits sampled from a generator, as the original project made its corpus from a pretrained StyleGAN.

Any function from a seed to a picture will do: the room that owns the networks passes one in, this room knows
none. Nothing is known of the pictures but the seed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from ohlora.corpus.photos import maskless_row
from ohlora.corpus.portraits import SCHEMA, CorpusError, encode_mask

FIRST_IDENTITY = 1 << 32  # above those of people who are rendered


class Sampler(Protocol):
    """A generator of portraits."""

    def __call__(self, seed: int) -> NDArray[np.uint8]:
        """The picture of a seed, uint8 [h, h, 3] RGB; the same seed gives the same pixels."""
        ...


def generated_identity(model: str, seed: int) -> int:
    """The number of a sampled person: another model or seed is another person.

    Args:
        model: SHA-256 that names the weights.
        seed: of the picture.
    """
    digest = hashlib.sha256(f"{model} {seed}".encode()).digest()
    return FIRST_IDENTITY + int.from_bytes(digest[:4], "big")


def sample_portraits(
    sampler: Sampler, seeds: Iterable[int], model: str, resolution: int, test_fraction: float
) -> pa.Table:
    """Rows of the storage format with variant `generated`, no truth and masks that say background everywhere.

    Args:
        sampler: makes a picture from a seed.
        seeds: one for each portrait.
        model: SHA-256 that names the weights.
        resolution: pixels per side; larger pictures are shrunk, smaller ones enlarged.
        test_fraction: share of people held out.

    Raises:
        CorpusError: the sampler's picture is not uint8 [h, h, 3].
    """
    blank = encode_mask(np.zeros((resolution, resolution), np.uint8))
    rows: list[dict[str, Any]] = []
    for seed in seeds:
        image = sampler(seed)
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or len(set(image.shape[:2])) > 1:
            raise CorpusError(f"the generator draws {image.dtype} {list(image.shape)}, not uint8 [h, h, 3]")
        if len(image) != resolution:
            size = (resolution, resolution)
            image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))
        identity = generated_identity(model, seed)
        rows.append(maskless_row(image, blank, identity, seed, "generated", test_fraction))
    return pa.Table.from_pylist(rows, SCHEMA)
