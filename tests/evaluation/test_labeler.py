from pathlib import Path

import pytest

from ohlora.artifacts import ArtifactError
from ohlora.config import load_config
from ohlora.evaluation.labeler import score
from ohlora.labeling.parser_training import train
from ohlora.stage import Journal
from tests.labeling.tiny_parser import tiny_config

ROOT = Path(__file__).parents[2]


def test_the_score_is_what_training_measured(corpus: Path, tmp_path: Path) -> None:
    config = tiny_config()
    report = train(config, {"corpus": corpus}, {"output": tmp_path}, Journal(tmp_path))
    metrics = score(tmp_path, {"corpus": corpus}, config)
    assert metrics["mean_iou"] == pytest.approx(report.metrics["mean_iou"])
    assert metrics["mean_iou"] > 0.3
    for name in ("eyes", "mouth", "pose"):
        assert -1 <= metrics[f"{name}_correlation"] <= 1


def test_no_model_no_score(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"model\.json"):
        score(tmp_path, {"corpus": corpus}, load_config(ROOT, "smoke"))
