from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from ohlora.attributes import ATTRIBUTE_NAMES, CONDITION_NAMES
from ohlora.corpus.portraits import Portraits
from ohlora.labeling import ALGORITHMS, Calibration, Labeler
from ohlora.labeling.stage import correlation, run
from ohlora.stage import Journal, Report
from tests.labeling.tiny_parser import tiny_config


@pytest.fixture(scope="module")
def labels(
    corpus: Path, models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Report]:
    out = tmp_path_factory.mktemp("labels")
    config = tiny_config(f"state={out / 'state'}", "filters.gender_at_least=0.5", "runtime.threads=1")
    return out, run(config, {"corpus": corpus, **models}, {"output": out}, Journal(out))


def test_there_is_one_row_per_portrait_in_the_corpus_order(labels: tuple[Path, Report], corpus: Path) -> None:
    table = pq.read_table(labels[0] / "labels.parquet")
    portraits = Portraits.load(corpus)
    assert table["identity"].to_pylist() == portraits.identity.tolist()
    assert table["split"].to_pylist() == portraits.split.tolist()
    wanted = {*ATTRIBUTE_NAMES, *(f"{name}_z" for name in ATTRIBUTE_NAMES)}
    wanted |= {f"{kind}_{name}" for kind in ("formula", *ALGORITHMS) for name in CONDITION_NAMES}
    assert wanted <= set(table.schema.names)


def test_attributes_are_what_the_labeler_answers(
    labels: tuple[Path, Report], corpus: Path, models: dict[str, Path]
) -> None:
    table = pq.read_table(labels[0] / "labels.parquet")
    reading = Labeler.load(models, "cpu").read(Portraits.load(corpus).images)
    for name in ATTRIBUTE_NAMES:
        stored = np.array([np.nan if v is None else v for v in table[name].to_pylist()], np.float32)
        np.testing.assert_allclose(stored, reading.attributes[name], rtol=1e-4, atol=1e-5)


def test_who_passes_both_filters_is_kept(labels: tuple[Path, Report]) -> None:
    table = pq.read_table(labels[0] / "labels.parquet").to_pandas()
    wanted = (table["gender"] >= 0.5) & (table["quality"] >= 0.9)
    assert table["kept"].tolist() == wanted.tolist()
    assert labels[1].metrics["kept"] == wanted.sum()


def test_every_source_is_held_against_the_truth(labels: tuple[Path, Report]) -> None:
    rows, classes = labels[1].tables.values()
    assert [(row["source"], row["masks"]) for row in rows] == [
        *((algorithm, masks) for algorithm in ALGORITHMS for masks in ("true", "predicted")),
        ("network", "-"),
    ]
    ours = rows[4]
    assert ours["mouth"] > 0.9
    assert ours["pose"] > 0.9
    assert {row["class"] for row in classes} >= {"background", "hair", "skin"}
    assert all(0 <= row["iou"] <= 1 for row in classes)


def test_the_report_shows_pictures(labels: tuple[Path, Report]) -> None:
    out, report = labels
    assert set(report.pictures.values()) == {
        "histograms.png",
        "agreement.png",
        "overlays.png",
        "worst.png",
    }
    for picture in report.pictures.values():
        assert (out / picture).read_bytes().startswith(b"\x89PNG")


def test_scores_are_against_the_train_split(labels: tuple[Path, Report]) -> None:
    table = pq.read_table(labels[0] / "labels.parquet").to_pandas()
    assert set(Calibration.load(labels[0]).scales) == set(ATTRIBUTE_NAMES)
    train = table[table["split"] == "train"]["hair_length_z"]
    assert train.mean() == pytest.approx(0, abs=1e-3)
    assert train.std() == pytest.approx(1, abs=1e-2)


def test_formulas_are_in_the_units_of_the_truth(labels: tuple[Path, Report], corpus: Path) -> None:
    table = pq.read_table(labels[0] / "labels.parquet").to_pandas()
    truth = Portraits.load(corpus).truth["pose"]
    assert np.nanmean(np.abs(table["formula_pose"] - truth)) < 4


def test_correlation_skips_the_unknown() -> None:
    a = np.array([1, 2, np.nan, 4], np.float32)
    b = np.array([2, 4, 100, 8], np.float32)
    assert correlation(a, b) == pytest.approx(1)
    assert np.isnan(correlation(a, np.ones(4, np.float32)))
