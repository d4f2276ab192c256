import json
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from ohlora.artifacts import ArtifactError, sha256_file, verify
from ohlora.attributes import FaceClass
from ohlora.config import Config, FiltersConfig, load_config
from ohlora.corpus.portraits import Portraits
from ohlora.labeling.classifier import CHANNELS, TASKS, Classifier, folded, views
from ohlora.labeling.filter_data import (
    AROUND,
    LAYERS,
    disguise,
    examples,
    from_bytes,
    quality_batch,
    to_bytes,
)
from ohlora.labeling.filter_report import Asked, gender_groups, hair_lengths, quality_asked
from ohlora.labeling.filter_training import FilterError, gender_question, quality_question, train
from ohlora.labeling.filters import WEIGHTS, Filters, passes
from ohlora.labeling.parser import as_input
from ohlora.stage import Journal, Report
from tests.labeling.drawn_people import write_people

ROOT = Path(__file__).parents[2]


class Trained(NamedTuple):
    folder: Path
    report: Report
    config: Config


def tiny(*overrides: str) -> Config:
    values = ["runtime.device=cpu", "filters.folds=2", "filters.steps=40", "filters.batch_size=16"]
    return load_config(ROOT, "smoke", [*values, "filters.learning_rate=0.01", *overrides])


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_people(tmp_path_factory.mktemp("people"))


@pytest.fixture(scope="module")
def trained(people: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder, config = tmp_path_factory.mktemp("filters"), tiny()
    return Trained(folder, train(config, {"corpus": people}, {"output": folder}, Journal(folder)), config)


# What was trained


def test_filters_tell_people_apart_that_they_never_saw(trained: Trained) -> None:
    metrics = trained.report.metrics
    assert metrics["gender_auroc"] > 0.9
    assert metrics["quality_auroc"] > 0.7
    assert metrics["gender_auroc_misleading_hair"] > 0.8
    assert {"gender_ece", "gender_brier", "quality_ece", "quality_brier"} <= set(metrics)


def test_what_was_judged_is_what_is_loaded(trained: Trained, people: Path) -> None:
    test = Portraits.load(people).select("test")
    clean = test.select(test.truth["quality"] == 1)
    gender = Filters.load(trained.folder, "cpu").probabilities(clean.images)["gender"]
    accuracy = ((gender > 0.5) == (clean.truth["gender"] > 0.5)).mean()
    assert accuracy == pytest.approx(trained.report.metrics["gender_accuracy"])


def test_the_report_shows_calibration_folds_and_thresholds(trained: Trained) -> None:
    folder, report, _ = trained
    assert "reliability.png" in report.pictures.values()
    for picture in report.pictures.values():
        assert (folder / picture).read_bytes().startswith(b"\x89PNG")
    folds, groups, kept = report.tables.values()
    assert [row["fold"] for row in folds] == [0, 1]
    assert sum(row["portraits"] for row in folds) == 64
    assert {"all", "misleading hair"} <= {row["among"] for row in groups if row["filter"] == "gender"}
    assert [row["portraits"] for row in kept] == ["women", "men", "degraded pictures"]
    points = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert {"gender_loss", "quality_loss"} <= {key for point in points for key in point}


def test_nobody_held_out_is_in_a_fold(trained: Trained, people: Path) -> None:
    portraits = Portraits.load(people)
    folds = Filters.load(trained.folder, "cpu").folds
    assert set(folds) == set(portraits.identity[portraits.split == "train"].tolist())
    assert set(folds.values()) == {0, 1}


def test_probabilities_have_their_shape_and_range(trained: Trained) -> None:
    filters = Filters.load(trained.folder, "cpu")
    images = np.random.default_rng(0).integers(0, 256, (35, 50, 70, 3)).astype(np.uint8)
    answer = filters.probabilities(images)
    assert set(answer) == set(TASKS)
    for values in answer.values():
        assert values.shape == (35,)
        assert values.dtype == np.float32
        assert ((values >= 0) & (values <= 1)).all()
    one = filters.probabilities(images[33:34])
    for task in TASKS:
        np.testing.assert_allclose(one[task], answer[task][33:34], atol=1e-5)
        assert filters.logits(images[:2])[task].shape == (2, 2)
        assert not any(network.training for network in filters.networks[task])
    assert filters.probabilities(images[:0])["gender"].shape == (0,)


@pytest.mark.parametrize("images", [np.zeros((8, 8, 3), np.uint8), np.zeros((1, 8, 8, 3), np.float32)])
def test_what_is_no_batch_of_images_is_refused(trained: Trained, images: np.ndarray) -> None:
    with pytest.raises(ValueError, match="uint8"):
        Filters.load(trained.folder, "cpu").probabilities(images)


@pytest.mark.parametrize("name", [WEIGHTS, "folds.json"])
def test_corrupt_files_are_refused(trained: Trained, tmp_path: Path, name: str) -> None:
    shutil.copytree(trained.folder, tmp_path, dirs_exist_ok=True)
    content = bytearray((tmp_path / name).read_bytes())
    content[-2] ^= 1
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ArtifactError, match="corrupt"):
        Filters.load(tmp_path, "cpu")


def test_training_continues_with_the_same_people_in_the_same_folds(
    trained: Trained, people: Path, tmp_path: Path
) -> None:
    config = tiny("filters.steps=1", f"filters.start={trained.folder}")
    report = train(config, {"corpus": people}, {"output": tmp_path}, Journal(tmp_path))
    assert any(f"Continued from {trained.folder}" in note for note in report.notes)
    assert report.metrics["gender_auroc"] > 0.9
    assert Filters.load(tmp_path, "cpu").folds == Filters.load(trained.folder, "cpu").folds
    assert verify(tmp_path, "filters").provenance["start"] == verify(trained.folder).digest


def test_filters_that_know_the_held_out_people_are_not_continued(trained: Trained, tmp_path: Path) -> None:
    others = write_people(tmp_path / "others", people=9)
    shutil.copytree(trained.folder, tmp_path / "start")
    folds = {str(identity): 0 for identity in range(1, 10)}
    (tmp_path / "start" / "folds.json").write_text(json.dumps(folds))
    manifest = json.loads((tmp_path / "start" / "model.json").read_text())
    manifest["files"]["folds.json"] = sha256_file(tmp_path / "start" / "folds.json")
    (tmp_path / "start" / "model.json").write_text(json.dumps(manifest))
    config = tiny("filters.steps=1", f"filters.start={tmp_path / 'start'}")
    report = train(config, {"corpus": others}, {"output": tmp_path / "out"}, Journal(tmp_path / "out"))
    assert any("trained on 3 of the people held out here" in note for note in report.notes)
    assert verify(tmp_path / "out").provenance["start"] == ""


def test_the_seed_decides_the_weights(people: Path, tmp_path: Path) -> None:
    digests = []
    for number, seed in enumerate((1, 1, 2)):
        out = tmp_path / str(number)
        config = tiny("filters.steps=1", f"filters.seed={seed}")
        train(config, {"corpus": people}, {"output": out}, Journal(out))
        digests.append(verify(out).digest)
    assert digests[0] == digests[1]
    assert digests[0] != digests[2]


# Thresholds


def test_both_thresholds_must_be_held() -> None:
    probabilities = {
        "gender": np.array([0.7, 0.69, 0.9, np.nan]),
        "quality": np.array([0.9, 0.99, 0.89, 1.0]),
    }
    config = FiltersConfig(gender_at_least=0.7, quality_at_least=0.9)
    assert passes(probabilities, config).tolist() == [True, False, False, False]


# Networks and views


@pytest.mark.parametrize("task", TASKS)
def test_folding_changes_no_answer(task: str) -> None:
    torch.manual_seed(0)
    network = Classifier(CHANNELS[task])
    view = torch.rand(6, CHANNELS[task], 32, 32)
    network(view)  # running statistics
    network.eval()
    fast = folded(network)
    assert torch.allclose(fast(view), network(view), atol=1e-5)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in fast.modules())
    assert any(isinstance(m, torch.nn.BatchNorm2d) for m in network.modules())


def test_the_quality_view_shows_noise_and_no_detail_of_a_flat_picture() -> None:
    flat = torch.full((1, 3, 16, 16), 0.25)
    view = views(flat, "quality")
    assert view.shape == (1, 12, 8, 8)
    assert torch.allclose(view[:, :3], torch.tensor(0.25))
    assert view[:, 3:].abs().max() == 0
    noisy = flat + 0.1 * torch.randn(flat.shape, generator=torch.Generator().manual_seed(0))
    assert views(noisy, "quality")[:, 3:].mean() > 0.1
    stripes = torch.zeros(1, 3, 16, 16)
    stripes[..., ::2] = 1
    details = views(stripes, "quality")[:, 3:].amax((2, 3))[0].view(3, 3)
    assert details[0].min() > 0.5  # left against right
    assert details[1:].max() == 0


def test_views_in_bytes_are_the_views() -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3)).astype(np.uint8)
    stored = to_bytes(images, 32)
    for task in TASKS:
        exact = views(as_input(images, 64), task)
        assert (from_bytes(stored, task) - exact).abs().max() < 0.005


def test_a_mirrored_view_is_the_view_of_the_mirrored_picture() -> None:
    images = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3)).astype(np.uint8)
    assert torch.equal(to_bytes(images[:, :, ::-1], 32), to_bytes(images, 32).flip(3))
    batch = quality_batch(to_bytes(images, 32), torch.Generator().manual_seed(0))
    assert batch.shape == (1, 12, 32, 32)
    assert batch.abs().max() <= 1


# What they learn from


def test_a_disguise_hides_the_hair_and_never_the_face() -> None:
    layers = LAYERS[torch.full((400, 4, 4), int(FaceClass.SKIN))]
    layers[:, 0] = LAYERS[FaceClass.HAIR]
    layers[:, 1] = LAYERS[FaceClass.CLOTHES]
    pictures = torch.full((400, 3, 4, 4), 0.5)
    changed = disguise(pictures, layers, torch.Generator().manual_seed(0)) != 0.5
    hair, body = changed[:, 0, 0, 0], changed[:, 0, 1, 0]
    assert 0.4 < hair.float().mean() < 0.6
    assert 0.08 < body.float().mean() < 0.25
    assert hair[body].all()
    assert not changed[:, :, 2:].any()
    assert int(LAYERS[FaceClass.HAIR]) == AROUND


def test_copies_have_a_defect_and_folds_keep_them_with_their_person(people: Path) -> None:
    data = examples(Portraits.load(people).select("train"), 32, copies=100, seed=3)
    assert len(data.source) == 100
    assert (data.clean[data.source] == 1).all()
    different = (data.degraded != data.views[torch.from_numpy(data.source)]).flatten(1).any(1)
    assert different.float().mean() > 0.95
    again = examples(Portraits.load(people).select("train"), 32, copies=100, seed=3)
    assert torch.equal(again.degraded, data.degraded)

    unseen = data.identity % 5 == 0
    question = quality_question(data, unseen)
    copies = len(np.unique(data.source[unseen[data.source]]))
    assert len(question.unseen()) == len(question.unseen_labels) == unseen.sum() + copies
    assert question.unseen_labels.sum() == (data.clean[unseen] == 1).sum()
    view, labels = question.batch(10, torch.Generator().manual_seed(0))
    assert view.shape == (10, 12, 32, 32)
    assert labels.tolist() == [1] * 5 + [0] * 5
    view, labels = gender_question(data, unseen).batch(9, torch.Generator().manual_seed(0))
    assert view.shape == (9, 3, 32, 32)
    assert labels.sum() == 4


def test_a_corpus_without_men_or_clean_portraits_is_refused(people: Path) -> None:
    training = Portraits.load(people).select("train")
    nobody = np.zeros(10, bool)
    data = examples(training.select(training.truth["gender"] == 1).select(np.arange(10)), 32, 1, seed=3)
    with pytest.raises(FilterError, match="10 portraits of women and 0 of men"):
        gender_question(data, nobody)
    data = examples(training.select(training.truth["quality"] == 0).select(np.arange(10)), 32, 1, seed=3)
    with pytest.raises(FilterError, match="no clean portraits"):
        quality_question(data, nobody)


def test_a_fold_that_holds_all_men_learns_from_everyone_and_judges_nobody(people: Path) -> None:
    data = examples(Portraits.load(people).select("train"), 32, 1, seed=3)
    question = gender_question(data, data.gender == 0)
    assert len(question.unseen()) == len(question.unseen_labels) == 0
    _, labels = question.batch(8, torch.Generator().manual_seed(0))
    assert labels.sum() == 4


# What the report asks


def test_hair_length_comes_from_the_parameters_or_from_thirds() -> None:
    parameters = ['{"look": {"hair": {"length": 0.2}}}', '{"look": {}}', "", "", "broken"]
    measured = np.array([0.9, 0.5, 0.6, 0.9, np.nan], np.float32)
    lengths = hair_lengths(parameters, measured)
    assert lengths[0] == np.float32(0.2)
    assert lengths[1] == 0.0
    assert lengths[3] == 1.0
    assert np.isnan(lengths[4])


def test_groups_hold_those_whose_hair_misleads() -> None:
    labels = np.array([1, 1, 0, 0], np.float32)
    asked = Asked(np.zeros((4, 1, 1, 3), np.uint8), labels, np.array(["short", "long", "short", "long"]))
    groups = {name: rows.tolist() for name, rows in gender_groups(asked).items()}
    assert groups == {
        "short_haired_women": [0, 2, 3],
        "long_haired_men": [0, 1, 3],
        "misleading_hair": [0, 3],
    }


def test_quality_is_asked_with_the_same_defects_every_time(people: Path) -> None:
    test = Portraits.load(people).select("test")
    first, second = quality_asked(test, 5), quality_asked(test, 5)
    assert np.array_equal(first.images, second.images)
    assert not np.array_equal(first.images, quality_asked(test, 6).images)
    clean = int((test.truth["quality"] == 1).sum())
    assert first.labels.sum() == clean
    assert len(first.labels) == clean + len(test)
    assert (first.groups[first.labels == 1] == "").all()
    assert set(first.groups[first.labels == 0].tolist()) <= {"blur", "noise", "exposure", "melt"}
