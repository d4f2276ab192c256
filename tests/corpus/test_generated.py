"""Portraits of a generator: any function from a seed to a picture, in the one format."""

from pathlib import Path

import numpy as np
import pytest

from ohlora.corpus import CorpusError, Portraits
from ohlora.corpus.generated import generated_identity, sample_portraits
from ohlora.corpus.portraits import write
from ohlora.corpus_cli import face_sampler
from ohlora.gan import Face


def drawn(seed: int) -> np.ndarray:
    return np.full((64, 64, 3), 40 + seed, np.uint8)


def test_samples_are_a_folder_of_portraits(tmp_path: Path) -> None:
    table = sample_portraits(drawn, range(5, 11), "abc", 32, 0.5)
    write(tmp_path, table, {})
    portraits = Portraits.load(tmp_path)
    assert portraits.images.shape == (6, 32, 32, 3)
    assert portraits.images.mean((1, 2, 3)) == pytest.approx(np.arange(45, 51), abs=1.5)
    assert set(portraits.variant) == {"generated"}
    assert not portraits.has_mask.any()
    assert all(np.isnan(values).all() for values in portraits.truth.values())
    assert table["seed"].to_pylist() == list(range(5, 11))


def test_a_person_is_a_seed_of_a_model() -> None:
    numbers = {generated_identity(model, seed) for model in ("a", "b") for seed in range(50)}
    assert len(numbers) == 100
    assert generated_identity("a", 3) == generated_identity("a", 3)


@pytest.mark.parametrize("shape", [(64, 64), (64, 64, 4), (64, 32, 3)])
def test_other_pictures_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(CorpusError, match=r"not uint8 \[h, h, 3\]"):
        sample_portraits(lambda seed: np.zeros(shape, np.uint8), [1], "a", 32, 0.5)


def test_a_face_model_is_a_sampler(tiny_product: Path) -> None:
    sampler = face_sampler(Face.load(tiny_product / "face"))
    first, second, other = sampler(3), sampler(3), sampler(4)
    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)
    table = sample_portraits(sampler, [3, 4], "a", 64, 0.5)
    assert table.num_rows == 2
