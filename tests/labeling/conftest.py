from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from ohlora.attributes import CONDITION_NAMES
from ohlora.corpus.portraits import SCHEMA, TRUTH_NAMES, encode_image, encode_mask, write
from ohlora.labeling import filters, properties
from ohlora.labeling.classifier import CHANNELS, Classifier
from ohlora.labeling.parser_training import train
from ohlora.labeling.pictures import COLORS
from ohlora.labeling.property_network import PropertyNetwork
from ohlora.labeling.reliability import Scaling
from ohlora.stage import Journal
from tests.labeling.drawn_faces import face
from tests.labeling.tiny_parser import Trained, tiny_config


@pytest.fixture(scope="session")
def trained(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A parser that was trained for a moment on the drawn portraits."""
    folder, config = tmp_path_factory.mktemp("parser"), tiny_config()
    return Trained(folder, train(config, {"corpus": corpus}, {"output": folder}, Journal(folder)), config)


@pytest.fixture(scope="session")
def models(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of the parser and of classifiers and a property network with random weights."""
    folder, cpu = tmp_path_factory.mktemp("models"), torch.device("cpu")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        networks = {task: [Classifier(CHANNELS[task]) for _ in range(2)] for task in CHANNELS}
        boxes = {"eyes": (16, 20, 48, 36), "mouth": (20, 36, 44, 52)}
        network = PropertyNetwork(32, boxes, dict.fromkeys(CONDITION_NAMES, (0.5, 0.2)))
    scaling = {task: Scaling(bias=2.0) for task in CHANNELS}
    filters.save(filters.Filters(networks, scaling, 32, cpu), folder / "filters", {})
    properties.save(properties.Properties(network, cpu), folder / "properties", {})
    return {"parser": trained.folder, "filters": folder / "filters", "properties": folder / "properties"}


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 drawn portraits of 12 people at 64 x 64, every class in a colour of its own; a third is held out."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    rows = []
    for number in range(24):
        eyes, mouth, nose = rng.uniform(0, 0.8), rng.uniform(0, 0.8), rng.uniform(-0.4, 0.4)
        mask = face(64, eyes=eyes, mouth=mouth, nose=nose, hair_to=rng.uniform(0.4, 0.9))
        image = np.clip(COLORS[mask] + rng.normal(0, 6, (64, 64, 3)), 0, 255).astype(np.uint8)
        truth = dict.fromkeys(TRUTH_NAMES, 0.0)
        truth |= {
            "quality": 1.0,
            "eyes": eyes,
            "mouth": mouth,
            "pose": 60 * nose,
            "gender": float(number % 2),
        }
        truth |= {"hair_color": 127.0, "hair_length": 0.7, "background_mean": 45.0, "background_std": 6.0}
        rows.append(
            {
                "image": encode_image(image),
                "mask": encode_mask(mask),
                "identity": number // 2,
                "seed": number // 2,
                "moment": number % 2,
                "variant": "sample",
                "split": "test" if number // 2 % 3 == 2 else "train",
                **truth,
            }
        )
    write(folder, pa.Table.from_pylist(rows, SCHEMA), {"generator": "tests"})
    return folder
