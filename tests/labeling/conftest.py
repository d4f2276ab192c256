from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from ohlora.corpus.portraits import SCHEMA, TRUTH_NAMES, encode_image, encode_mask, write
from ohlora.labeling.parser import train
from ohlora.labeling.pictures import COLORS
from ohlora.stage import Journal
from tests.labeling.drawn_faces import face
from tests.labeling.tiny_parser import Trained, tiny_config


@pytest.fixture(scope="session")
def trained(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A parser that was trained for a moment on the drawn portraits."""
    folder, config = tmp_path_factory.mktemp("parser"), tiny_config()
    return Trained(folder, train(config, {"corpus": corpus}, {"output": folder}, Journal(folder)), config)


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
        truth |= {"eyes": eyes, "mouth": mouth, "pose": 60 * nose, "gender": float(number % 2)}
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
