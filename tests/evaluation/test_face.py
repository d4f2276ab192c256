import shutil
from pathlib import Path

import numpy as np
import pytest

from ohlora.config import load_config
from ohlora.evaluation.evidence import Plan
from ohlora.evaluation.face import PARTS, fidelity, figures, moments, score, silently
from ohlora.evaluation.generation_test import generation_test
from ohlora.evaluation.judge import Judge, train
from ohlora.evaluation.units import EXPRESSION_RANGE
from ohlora.evaluation.witness import reader
from ohlora.stage import Journal
from tests.evaluation.fakes import FakeFace, evidence, portraits, read

ROOT = Path(__file__).parents[2]
NAMES = (  # what the gate's floors and its history are made of
    *(f"{name}_correlation" for name in ("eyes", "mouth", "pose")),
    *(f"persona_{name}_{kind}" for name in ("eyes", "mouth", "pose") for kind in ("correlation", "mae")),
    "attribute_error",
    "identity_margin",
    "identity_within",
    "identity_between",
)


def test_moments_fill_the_range_and_follow_the_seed() -> None:
    points = moments(24, seed=0)
    assert points.shape == (24, 3)
    np.testing.assert_array_equal(points, moments(24, seed=0))
    assert not np.array_equal(points, moments(24, seed=1))
    assert points[:, :2].min() >= 0
    assert points[:, :2].max() <= 1
    assert np.abs(points[:, 2]).max() <= EXPRESSION_RANGE["pose"][1]
    for column in range(3):  # each quarter of each range is visited
        edges = np.quantile([points[:, column].min(), points[:, column].max()], [0, 0.25, 0.5, 0.75, 1])
        assert (np.histogram(points[:, column], edges)[0] > 2).all()


def test_oh_lora_is_asked_as_herself_and_counts_half_of_the_error() -> None:
    corpus = portraits()
    face = FakeFace(ignores=("mouth",))
    result = generation_test(face, evidence(corpus), Plan(latents=4), silently)
    metrics = figures(face, read, result, corpus)
    assert set(NAMES) <= set(metrics)
    assert metrics["persona_eyes_correlation"] == pytest.approx(1, abs=1e-4)
    assert metrics["persona_mouth_correlation"] == 0
    assert metrics["persona_mouth_mae"] == pytest.approx(0.25, abs=0.02)
    error = (metrics["persona_attribute_error"] + metrics["sampled_attribute_error"]) / 2
    assert metrics["attribute_error"] == pytest.approx(error)


def test_fidelity_needs_a_known_truth() -> None:
    corpus = portraits()
    assert fidelity(FakeFace(), corpus)["persona_l1"] < 10
    corpus.truth["eyes"][:] = np.nan
    assert fidelity(FakeFace(), corpus) == {}


@pytest.fixture(scope="module")
def judge(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("quick-judge")
    config = load_config(ROOT, "smoke", ["judge.steps=3", "runtime.device=cpu"])
    train(config, {"corpus": corpus}, {"output": out}, Journal(out))
    return out


def test_one_pass_of_the_judge_says_what_its_two_questions_say(judge: Path) -> None:
    images = portraits(people=13).images  # more than one batch
    network = Judge.load(judge, "cpu")
    sight = reader(network)(images)
    attributes = network.attributes(images)
    np.testing.assert_allclose(sight.attributes[:, 0], attributes["eyes"], atol=1e-5)
    np.testing.assert_allclose(sight.attributes[:, 6], attributes["background_std"], atol=1e-4)
    np.testing.assert_allclose(sight.gender, attributes["gender"], atol=1e-5)
    np.testing.assert_allclose(sight.embeddings, network.embed(images), atol=1e-6)
    assert sight.features.shape == (len(images), 384)
    assert not network.network.whole_features._forward_hooks


def test_the_score_of_a_real_model_is_repeatable(judge: Path, corpus: Path, tiny_product: Path) -> None:
    config = load_config(ROOT, "smoke", ["runtime.threads=1", "runtime.device=cpu"])
    inputs = {"corpus": corpus, "judge": judge}
    metrics = score(tiny_product / "face", inputs, config)
    assert metrics == score(tiny_product / "face", inputs, config)
    assert set(NAMES) <= set(metrics)
    assert {"eyes_correlation_p5", "hair_color_correlation", "original_pass_share", "identity_ratio"} <= set(
        metrics
    )
    assert {"outside_change", "hair_length_correlation_p5", "female_share_judge"} <= set(metrics)
    assert np.isfinite(list(metrics.values())).all()


def test_the_gate_scores_again_when_a_part_of_the_test_changes() -> None:
    from ohlora.evaluation.gate import EVIDENCE
    from ohlora.pipeline import STAGES

    names = {part.__name__.rpartition(".")[2] for part in PARTS}
    assert {"generation_test", "evidence", "units", "witness", "steadiness", "distances"} <= names
    assert set(EVIDENCE["face"]) <= set(STAGES["package"].inputs)


def test_the_stage_compares_candidates_and_names_the_best(
    judge: Path, corpus: Path, tiny_product: Path, tmp_path: Path
) -> None:
    import json

    from ohlora.artifacts import write_manifest
    from ohlora.evaluation.face_stage import run

    variants = tmp_path / "variants"
    shutil.copytree(tiny_product / "face", variants / "v1")
    (variants / "other").mkdir()
    write_manifest(variants / "other", "judge", files=[])
    config = load_config(
        ROOT, "smoke", ["runtime.threads=1", "runtime.device=cpu", "face_test.quick_latents=2"]
    )
    inputs = {"corpus": corpus, "judge": judge, "face": tiny_product / "face", "variants": variants}
    out = tmp_path / "out"
    report = run(config, inputs, {"output": out}, Journal(tmp_path / "journal"))
    assert [row["candidate"] for row in report.tables["candidates"]] == ["ours", "v1"]
    best = json.loads((out / "best.json").read_text())
    assert best["candidate"] == "ours"  # of equals the first
    assert best["primary"] == "attribute_error"
    assert best["value"] == report.metrics["attribute_error"]
    assert (out / "candidates.csv").read_text().count("\n") == 3
    assert "| pass_share |" in (out / "candidates.md").read_text()
    for picture in report.pictures.values():
        assert (out / picture).is_file()
    assert any("No face parser" in note for note in report.notes)


def test_the_best_breaks_fewest_floors_and_then_leads() -> None:
    from ohlora.config import Floor, GateRule
    from ohlora.evaluation.face_stage import choose

    rule = GateRule(primary="error", higher_is_better=False, floors=[Floor(metric="r", at_least=0.9)])
    tested = {
        "a": {"error": 0.1, "r": 0.5},
        "b": {"error": 0.3, "r": 0.95},
        "c": {"error": 0.2, "r": 0.95},
        "d": {"r": 1.0},
    }
    assert choose(tested, rule) == "c"


def test_missing_weights_of_inception_are_a_note(
    judge: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ohlora.evaluation import evidence as module
    from ohlora.evaluation.inception import InceptionMissing

    def missing(_device: str) -> None:
        raise InceptionMissing("no hub here")

    monkeypatch.setattr(module, "inception_features", missing)
    config = load_config(ROOT, "smoke", ["face_test.inception=true", "runtime.device=cpu"])
    found = module.gather({"corpus": corpus, "judge": judge}, config)
    assert found.inception is None
    assert any("no hub here" in note for note in found.notes)


@pytest.mark.hub
def test_inception_features_of_a_hub() -> None:
    from ohlora.evaluation.inception import InceptionMissing, inception_features

    try:
        features = inception_features("cpu")
    except InceptionMissing as error:
        pytest.skip(str(error))
    assert features(np.zeros((2, 64, 64, 3), np.uint8)).shape == (2, 2048)


def test_the_command_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from ohlora.cli import app

    for name in ("params.yaml", "dvc.yaml"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "data/starters/face", tmp_path / "face")
    found = CliRunner().invoke(app, ["gan", "test", "--model", "face"])
    assert found.exit_code == 1
    assert "there is no corpus" in found.output
    assert "ohlora run --target judge" in found.output
    (tmp_path / "taken").touch()
    assert "is a file" in CliRunner().invoke(app, ["gan", "test", "--out", "taken"]).output
