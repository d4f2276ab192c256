from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from ohlora.attributes import FaceClass
from ohlora.corpus.portraits import SCHEMA, TRUTH_NAMES, encode_image, encode_mask, write


def draw(shade: int, mouth: float, pose: float) -> tuple[np.ndarray, np.ndarray]:
    """Image [64, 64, 3] and mask [64, 64]: boxes; the face moves sideways, the mouth opens downwards."""
    mask = np.zeros((64, 64), np.uint8)
    x = 32 + round(10 * pose)
    mask[8:60, x - 18 : x + 18] = FaceClass.HAIR
    mask[14:56, x - 13 : x + 13] = FaceClass.SKIN
    mask[24:28, x - 10 : x - 3] = FaceClass.LEFT_EYE
    mask[24:28, x + 3 : x + 10] = FaceClass.RIGHT_EYE
    mask[30:36, x - 2 : x + 2] = FaceClass.NOSE
    mask[40:50, x - 8 : x + 8] = FaceClass.UPPER_LIP
    mask[45:50, x - 8 : x + 8] = FaceClass.LOWER_LIP
    mask[43 : 43 + round(6 * mouth), x - 6 : x + 6] = FaceClass.INNER_MOUTH
    colors = np.full((len(FaceClass), 3), 180, np.uint8)
    colors[FaceClass.HAIR] = shade
    colors[FaceClass.INNER_MOUTH] = (60, 0, 0)
    colors[[FaceClass.LEFT_EYE, FaceClass.RIGHT_EYE]] = (20, 40, 120)
    colors[[FaceClass.UPPER_LIP, FaceClass.LOWER_LIP]] = (200, 60, 80)
    return colors[mask], mask


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 drawn portraits of 12 people, 4 of them held out."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    rows = []
    for number in range(48):
        person = number // 4
        mouth, pose = rng.uniform(0, 1), rng.uniform(-1, 1)
        image, mask = draw(20 + 18 * person, mouth, pose)
        truth = dict.fromkeys(TRUTH_NAMES, float("nan"))
        truth |= {"eyes": 0.5, "mouth": mouth, "pose": 30 * pose, "gender": float(person % 2)}
        truth |= {"hair_color": 20.0 + 18 * person, "background_mean": 180.0, "background_std": 0.0}
        rows.append(
            {
                "image": encode_image(image),
                "mask": encode_mask(mask),
                "identity": person,
                "seed": person,
                "moment": number % 4,
                "variant": "sample",
                "split": "test" if person % 3 == 2 else "train",
                **truth,
            }
        )
    write(folder, pa.Table.from_pylist(rows, SCHEMA), {"generator": "tests"})
    return folder
