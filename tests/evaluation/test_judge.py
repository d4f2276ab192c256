import ast
from pathlib import Path

import numpy as np
import pytest
import torch

from ohlora.artifacts import ArtifactError, verify
from ohlora.config import load_config
from ohlora.corpus.portraits import Portraits
from ohlora.evaluation.judge import (
    TARGETS,
    WEIGHTS,
    Judge,
    agreement,
    disturb,
    examples,
    fine_images,
    look,
    train,
    verification,
)
from ohlora.stage import Journal, Report

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    out = tmp_path_factory.mktemp("judge")
    config = load_config(ROOT, "smoke", ["judge.steps=60", "judge.batch_size=16", "runtime.device=cpu"])
    return out, train(config, {"corpus": corpus}, {"output": out}, Journal(out))


@pytest.mark.parametrize("room", ["gan", "labeling"])
def test_what_is_judged_never_imports_the_judge_or_its_tests(room: str) -> None:
    modules = sorted((ROOT / "ohlora" / room).rglob("*.py"))
    assert modules
    for module in modules:
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            assert not any(name.startswith("ohlora.evaluation") for name in names), f"{module}: {names}"


def test_training_follows_the_mouth_of_people_it_never_saw(model: tuple[Path, Report]) -> None:
    assert model[1].metrics["mouth_correlation"] > 0.5
    assert model[1].metrics["pose_correlation"] > 0.5
    assert 0 <= model[1].metrics["identity_auroc"] <= 1
    assert (model[0] / model[1].pictures["Judge against the truth, people it never saw"]).is_file()


def test_a_loaded_judge_repeats_itself(model: tuple[Path, Report], corpus: Path) -> None:
    images = Portraits.load(corpus).images[:40]
    judge = Judge.load(model[0], "cpu")
    first, second = judge.attributes(images), judge.attributes(images)
    assert set(first) == set(TARGETS)
    for name in TARGETS:
        assert first[name].shape == (40,)
        np.testing.assert_array_equal(first[name], second[name])
    for name in ("eyes", "mouth", "gender"):
        assert first[name].min() >= 0
        assert first[name].max() <= 1
    assert not judge.network.training


def test_answers_do_not_depend_on_the_batch(model: tuple[Path, Report], corpus: Path) -> None:
    images = Portraits.load(corpus).images[:8]
    judge = Judge.load(model[0], "cpu")
    alone = np.concatenate([judge.attributes(images[i : i + 1])["pose"] for i in range(8)])
    np.testing.assert_allclose(alone, judge.attributes(images)["pose"], atol=0.02)


def test_embeddings_have_length_one(model: tuple[Path, Report], corpus: Path) -> None:
    embeddings = Judge.load(model[0], "cpu").embed(Portraits.load(corpus).images)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5)


def test_corrupt_weights_are_refused(model: tuple[Path, Report], tmp_path: Path) -> None:
    for file in model[0].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / WEIGHTS).write_bytes((tmp_path / WEIGHTS).read_bytes()[:-1])
    with pytest.raises(ArtifactError, match="corrupt"):
        Judge.load(tmp_path, "cpu")


def test_the_manifest_is_a_judges(model: tuple[Path, Report]) -> None:
    assert verify(model[0], "judge").provenance["identities"] == 4
    with pytest.raises(ArtifactError, match="expected 'labeler'"):
        verify(model[0], "labeler")


def test_the_truth_follows_the_disturbance(corpus: Path) -> None:
    """Mirrored portraits look the other way; replaced backgrounds are measured, not remembered."""
    data = examples(Portraits.load(corpus), 64)
    images = data.images.float() / 127.5 - 1
    generator = torch.Generator().manual_seed(0)
    views, truth = disturb(images, data.behind, data.truth, 64, generator)
    pose = TARGETS.index("pose")
    torch.testing.assert_close(truth[:, pose].abs(), data.truth[:, pose].abs())
    signs = (truth[:, pose] * data.truth[:, pose]).sign()
    assert (signs == 1).any()
    assert (signs == -1).any()
    std = truth[:, TARGETS.index("background_std")]
    assert (std > 5).any()
    assert (std == 0).any()
    assert torch.equal(truth[:, TARGETS.index("mouth")], data.truth[:, TARGETS.index("mouth")])
    assert views.whole.shape == (48, 3, 64, 64)
    assert views.whole.abs().max() <= 1


def test_an_unmoved_look_is_the_image() -> None:
    image = np.random.default_rng(0).integers(0, 256, (1, 128, 128, 3), dtype=np.uint8)
    fine = fine_images(image, 64)
    torch.testing.assert_close(
        look(fine, 64).whole, torch.nn.functional.avg_pool2d(fine, 2), atol=1e-4, rtol=0
    )


def test_agreement_ignores_unknown_truth() -> None:
    seen = {"eyes": np.array([0.1, 0.5, 0.9], np.float32)}
    metrics = agreement(seen, {"eyes": np.array([0.1, np.nan, 0.8], np.float32)})
    assert metrics["eyes_mae"] == pytest.approx(0.05)
    assert metrics["eyes_correlation"] == pytest.approx(1)


def test_verification_by_hand() -> None:
    apart = np.array([[1, 0], [1, 0], [0, 1], [0, 1]], np.float32)
    assert verification(apart, np.array([0, 0, 1, 1])) == {
        "identity_auroc": 1.0,
        "identity_same_cosine": 1.0,
        "identity_other_cosine": 0.0,
    }
    assert verification(apart, np.array([0, 1, 0, 1]))["identity_auroc"] < 0.5
    assert verification(apart, np.zeros(4)) == {}
