"""A tiny corpus whose pictures depend on the conditions in a way a small generator learns in seconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from ohlora.attributes import CONDITION_NAMES, FaceClass
from ohlora.config import Config, load_config
from ohlora.corpus import Portraits
from ohlora.corpus.portraits import TRUTH_NAMES

ROOT = Path(__file__).parents[2]


def toy_portraits(seed: int = 0, hers: int = 20, people: int = 4, each: int = 3, size: int = 64) -> Portraits:
    """Faces of rectangles: eyes open by `eyes`, a mouth by `mouth`, all moves sideways with `pose`."""
    rng = np.random.default_rng(seed)
    identity = np.repeat(np.arange(people + 1), [hers] + [each] * people)
    n = len(identity)
    truth = {name: np.full(n, np.nan, np.float32) for name in TRUTH_NAMES}
    truth |= {"eyes": rng.random(n).astype(np.float32), "mouth": rng.random(n).astype(np.float32)}
    truth["pose"] = rng.uniform(-30, 30, n).astype(np.float32)
    for name in CONDITION_NAMES[3:]:
        truth[name] = rng.uniform(20, 60, people + 1)[identity].astype(np.float32)
    for name in ("pitch", "roll", "smile"):
        truth[name] = rng.normal(size=n).astype(np.float32)
    images, masks = np.full((n, size, size, 3), 40, np.uint8), np.zeros((n, size, size), np.uint8)
    skin = rng.integers(120, 220, (people + 1, 3))

    def paint(i: int, top: int, bottom: int, left: int, right: int, label: FaceClass, color: object) -> None:
        shift = round(float(truth["pose"][i]) / 5)
        area = (i, slice(top, bottom), slice(left + shift, right + shift))
        images[area], masks[area] = color, label

    for i, who in enumerate(identity):
        paint(i, 10, 56, 14, 50, FaceClass.SKIN, skin[who])
        paint(i, 18, 20, 18, 28, FaceClass.LEFT_BROW, 20)
        paint(i, 18, 20, 36, 46, FaceClass.RIGHT_BROW, 20)
        height = round(6 * float(truth["eyes"][i]))
        paint(i, 24, 24 + height, 19, 27, FaceClass.LEFT_EYE, 250)
        paint(i, 24, 24 + height, 37, 45, FaceClass.RIGHT_EYE, 250)
        paint(i, 28, 40, 30, 34, FaceClass.NOSE, skin[who] - 30)
        paint(i, 44, 45 + round(8 * float(truth["mouth"][i])), 26, 38, FaceClass.INNER_MOUTH, (120, 20, 20))
    return Portraits(images, masks, truth, identity.astype(np.int64), np.full(n, "train"))


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tiny tensors gain nothing from threads, and on a busy machine wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def portraits() -> Portraits:
    return toy_portraits()


@pytest.fixture(scope="session")
def tiny() -> Callable[..., Config]:
    """Configuration of a generator that trains in a second; keyword arguments change the face section."""

    def make(**face: object) -> Config:
        base = {"resolution": 64, "z_dim": 8, "w_dim": 32, "channel_base": 512, "channel_max": 32}
        base |= {"mapping_layers": 2, "steps": 6, "batch_size": 4}
        overrides = [f"face.{key}={value}" for key, value in (base | face).items()]
        return load_config(ROOT, "smoke", [*overrides, "runtime.device=cpu", "runtime.threads=1"])

    return make
