from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from ohlora.attributes import ATTRIBUTE_NAMES, CONDITION_NAMES
from ohlora.corpus.portraits import Portraits
from ohlora.labeling import Calibration, Parser, attributes_of
from ohlora.labeling.stage import correlation, run
from ohlora.stage import Journal, Report
from tests.labeling.tiny_parser import Trained


@pytest.fixture(scope="module")
def labels(corpus: Path, trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    out = tmp_path_factory.mktemp("labels")
    inputs = {"corpus": corpus, "parser": trained.folder}
    return out, run(trained.config, inputs, {"output": out}, Journal(out))


def test_there_is_one_row_per_portrait_in_the_corpus_order(labels: tuple[Path, Report], corpus: Path) -> None:
    table = pq.read_table(labels[0] / "labels.parquet")
    portraits = Portraits.load(corpus)
    assert table["identity"].to_pylist() == portraits.identity.tolist()
    assert table["split"].to_pylist() == portraits.split.tolist()
    assert set(ATTRIBUTE_NAMES) <= set(table.schema.names)
    assert {f"{name}_z" for name in CONDITION_NAMES} <= set(table.schema.names)
    assert table["gender"].null_count == len(table)


def test_labels_are_what_attributes_of_answers(
    labels: tuple[Path, Report], trained: Trained, corpus: Path
) -> None:
    out, _ = labels
    table = pq.read_table(out / "labels.parquet")
    images = Portraits.load(corpus).images
    answer = attributes_of(images, Parser.load(trained.folder, "cpu"), Calibration.load(out))
    for name in ATTRIBUTE_NAMES:
        stored = np.array([np.nan if v is None else v for v in table[name].to_pylist()], np.float32)
        np.testing.assert_allclose(stored, answer[name], rtol=1e-5)


def test_every_algorithm_is_compared_on_both_kinds_of_masks(labels: tuple[Path, Report]) -> None:
    (rows,) = labels[1].tables.values()
    assert [(row["algorithm"], row["masks"]) for row in rows] == [
        (algorithm, masks)
        for algorithm in ("original_1", "original_2", "ours")
        for masks in ("true masks", "predicted masks")
    ]
    ours = rows[4]
    assert ours["mouth"] > 0.9
    assert ours["pose"] > 0.9


def test_scores_are_against_the_train_split(labels: tuple[Path, Report]) -> None:
    table = pq.read_table(labels[0] / "labels.parquet").to_pandas()
    train = table[table["split"] == "train"]["hair_length_z"]
    assert train.mean() == pytest.approx(0, abs=1e-4)
    assert train.std() == pytest.approx(1, abs=1e-3)


def test_correlation_skips_the_unknown() -> None:
    a = np.array([1, 2, np.nan, 4], np.float32)
    b = np.array([2, 4, 100, 8], np.float32)
    assert correlation(a, b) == pytest.approx(1)
    assert np.isnan(correlation(a, np.ones(4, np.float32)))
