"""Small parts of variants for tests: portraits, a base, readers with random weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ohlora.attributes import CONDITION_NAMES
from ohlora.config import load_config
from ohlora.corpus import Portraits
from ohlora.corpus.portraits import TRUTH_NAMES, write
from ohlora.gan.data import conditions_of
from ohlora.gan.importing import StyleGAN
from ohlora.gan.stylegan import StyleGANConfig
from ohlora.gan.variants.data import PortraitSet
from ohlora.gan.variants.method import Bench, new_stylegan
from ohlora.gan.variants.readers import GenderReader, PropertyReader
from ohlora.labeling.classifier import Classifier
from ohlora.labeling.property_network import PropertyNetwork
from ohlora.variants_config import VariantsConfig
from tests.corpus.synthetic_portraits import synthetic_table

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
BOXES = {"eyes": (14, 22, 50, 38), "mouth": (20, 38, 44, 54)}
SCALES = dict.fromkeys(CONDITION_NAMES, (0.5, 0.25))
SHAPE = StyleGANConfig(
    resolution=32, z_dim=12, w_dim=16, mapping_layers=3, mapping_fmaps=16, fmaps_base=256, fmaps_max=8
)


def corpus(folder: Path, people: int = 6, each: int = 8) -> Path:
    """A folder of noise portraits with truth."""
    write(folder, synthetic_table(people, each), {})
    return folder


def portraits(people: int = 5, each: int = 6, size: int = 32, seed: int = 0) -> Portraits:
    """Noise portraits in memory; identity 0 is Oh-LoRA."""
    rng = np.random.default_rng(seed)
    n = people * each
    truth = {name: rng.random(n).astype(np.float32) for name in TRUTH_NAMES}
    truth["pose"] = rng.uniform(-30, 30, n).astype(np.float32)
    truth["quality"] = np.ones(n, np.float32)
    return Portraits(
        rng.integers(0, 256, (n, size, size, 3)).astype(np.uint8),
        np.zeros((n, size, size), np.uint8),
        truth,
        np.repeat(np.arange(people), each).astype(np.int64),
        np.full(n, "train"),
    )


def data(**options: int) -> PortraitSet:
    found = portraits(**options)
    everyone = np.ones(len(found), bool)
    return PortraitSet(found, conditions_of(found, None, "truth"), everyone, SHAPE.resolution)


def base(seed: int = 3) -> StyleGAN:
    """Untrained networks whose latents make different pictures."""
    networks = new_stylegan(SHAPE, seed)
    assert networks.generator is not None
    torch.manual_seed(seed)
    for name, value in networks.generator.state_dict().items():
        if name.endswith("apply_noise.weight"):
            value.normal_(0, 0.1)
    return networks


def readers(some: PortraitSet, seed: int = 5) -> tuple[PropertyReader, GenderReader]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        properties = PropertyNetwork(32, BOXES, SCALES)
        gender = Classifier(3)
    return PropertyReader(properties, some.normalisation), GenderReader(gender, 32, 1.5, 0.2)


def bench(some: PortraitSet, checkpoints: Path | None = None) -> Bench:
    properties, gender = readers(some)
    return Bench(CPU, properties=properties, gender=gender, checkpoints=checkpoints)


def settings(*overrides: str) -> VariantsConfig:
    """The smoke profile's section."""
    return load_config(ROOT, "smoke", [f"variants.{item}" for item in overrides]).variants
