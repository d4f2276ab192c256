"""Our image-generation test on faces whose answers are known."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ohlora.attributes import CONDITION_NAMES, FaceClass
from ohlora.evaluation.evidence import Plan
from ohlora.evaluation.face import silently
from ohlora.evaluation.face_stage import examine_face
from ohlora.evaluation.generation_report import JSON, MARKDOWN, ORIGINAL_TABLE, PICTURES, TABLE, write
from ohlora.evaluation.generation_test import Result, generation_test, leakage, sobol
from ohlora.evaluation.steadiness import between, hair_and_background, outside_ellipse, within
from ohlora.evaluation.units import LIMITS, Units
from tests.evaluation.fakes import FakeFace, evidence, portraits, read

PLAN = Plan(latents=12, pictures=24, moments=8)


def run(face: FakeFace, plan: Plan = PLAN, **changes: object) -> Result:
    return generation_test(face, evidence(**changes), plan, silently)


def test_requests_fill_all_ranges_and_are_hardly_correlated() -> None:
    units = Units.of(portraits())
    for key in ([0, 1], [0, 2]):
        asked = sobol(units, 24, key)
        assert asked.shape == (24, 7)
        assert (asked >= units.low).all()
        assert (asked <= units.high).all()
        position = (asked - units.low) / (units.high - units.low)
        for column in position.T:
            assert (np.histogram(column, np.linspace(0, 1, 5))[0] >= 4).all()
        between_columns = np.corrcoef(asked.T) - np.eye(7)
        assert np.abs(between_columns).max() < 0.5
    np.testing.assert_array_equal(sobol(units, 24, [0, 1]), sobol(units, 24, [0, 1]))
    assert not np.array_equal(sobol(units, 24, [0, 1]), sobol(units, 24, [0, 2]))


def test_who_obeys_perfectly_scores_one_and_passes() -> None:
    result = run(FakeFace())
    for name in CONDITION_NAMES:
        for kind in ("", "_mean", "_p5", "_p10", "_p50"):
            assert result.metrics[f"{name}_correlation{kind}"] == pytest.approx(1, abs=1e-4)
        assert result.metrics[f"{name}_mae_z"] == pytest.approx(0, abs=1e-3)
        assert result.metrics[f"judge_{name}_correlation"] == pytest.approx(1, abs=1e-4)
    for name in ("original_pass_share", "pass_share", "seven_pass_share", "female_share_judge"):
        assert result.metrics[name] == 1
    assert result.metrics["identity_within"] == pytest.approx(1)
    assert result.metrics["identity_ratio"] == pytest.approx(1)
    assert result.metrics["outside_change"] == 0
    found = leakage(result.latents)
    np.testing.assert_allclose(np.diag(found), 1, atol=1e-4)
    assert np.abs(found - np.diag(np.diag(found))).max() < 0.2


def test_who_ignores_requests_fails() -> None:
    result = run(FakeFace(ignores=CONDITION_NAMES))
    for name in CONDITION_NAMES:
        assert result.metrics[f"{name}_correlation_mean"] == 0
    assert result.metrics["original_pass_share"] == result.metrics["pass_share"] == 0
    one = run(FakeFace(ignores=("background_std",)))
    assert one.metrics["pass_share"] == 1
    assert one.metrics["seven_pass_share"] == 0


def test_what_is_measured_counts_and_what_the_judge_says_of_it_stands_beside() -> None:
    length = CONDITION_NAMES.index("hair_length")

    def backwards(images: np.ndarray) -> dict[str, np.ndarray]:
        low, high = LIMITS["hair_length"]
        values = low + high - read(images).attributes[:, length]
        values[:: len(images) // 2] = np.nan  # of every picture set, two show no hair
        return {"hair_length": values}

    metrics = run(FakeFace(), instrument=backwards).metrics
    assert metrics["hair_length_correlation_mean"] == pytest.approx(-1, abs=1e-4)
    assert metrics["instrument_hair_length_correlation"] == pytest.approx(-1, abs=1e-4)
    assert metrics["instrument_hair_length_unseen"] == pytest.approx(2 / 24)
    assert metrics["judge_hair_length_correlation_mean"] == pytest.approx(1, abs=1e-4)
    assert metrics["judge_hair_length_correlation_p5"] == pytest.approx(1, abs=1e-4)
    assert metrics["eyes_correlation_mean"] == pytest.approx(1, abs=1e-4)
    assert metrics["seven_pass_share"] == 0
    quick = run(FakeFace(), plan=replace(PLAN, measured=False), instrument=backwards).metrics
    assert quick["hair_length_correlation_mean"] == pytest.approx(1, abs=1e-4)
    assert "instrument_hair_length_correlation" not in quick


def test_one_disobedient_person_shows_in_the_fifth_percentile_and_as_the_worst() -> None:
    rebel = PLAN.seeds[3]
    result = run(FakeFace(rebels=frozenset({rebel})))
    assert result.metrics["pass_share"] == pytest.approx(11 / 12)
    assert result.metrics["eyes_correlation_p50"] == pytest.approx(1, abs=1e-4)
    assert result.metrics["eyes_correlation_p5"] < 0.5
    assert result.worst[0].seed == rebel


def test_who_changes_identity_gets_a_low_ratio_unless_renders_look_as_different() -> None:
    wandering = FakeFace(drift=1.0)
    result = run(wandering)
    assert result.metrics["identity_ratio"] < 0.5
    assert result.metrics["identity_ratio_p5"] <= result.metrics["identity_ratio"]
    # a judge who sees rendered people change with the pose as well does not hold it against the face
    fair = run(FakeFace(drift=0.3), corpus=portraits(swing=0.3))
    alone = run(FakeFace(drift=0.3))
    assert fair.metrics["identity_ratio"] == pytest.approx(1, abs=0.06)
    assert alone.metrics["identity_ratio"] < fair.metrics["identity_ratio"]


def test_change_outside_the_face_is_in_grey_levels_beside_that_of_renders() -> None:
    result = run(FakeFace(leak=20))
    # of the two changes, eyes and mouth, one opens the eyes by their whole range
    assert result.metrics["outside_change"] == pytest.approx(10)
    assert result.metrics["outside_change_pose"] == 0
    assert result.metrics["outside_change_renders"] == pytest.approx(2)  # 4 for eyes, 0 for mouth
    assert result.metrics["outside_change_pose_renders"] == 0


def test_shares_of_women_and_of_clean_pictures() -> None:
    def filters(images: np.ndarray) -> dict[str, np.ndarray]:
        half = np.arange(len(images)) % 2
        return {
            "gender": np.full(len(images), 0.7, np.float32),
            "quality": 0.5 + 0.4 * half.astype(np.float32),
        }

    metrics = run(FakeFace(), filter=filters, quality_at_least=0.89, female_at_least=0.69).metrics
    assert metrics["female_share"] == 1
    assert metrics["quality_share"] == 0.5
    assert "female_share" not in run(FakeFace()).metrics


def test_the_distance_sees_pictures_that_are_unlike_portraits() -> None:
    corpus = portraits(people=60)
    good = run(FakeFace(), corpus=corpus).metrics
    bad = run(FakeFace(ignores=("eyes", "mouth", "pose", "hair_color")), corpus=corpus).metrics
    assert abs(good["kid_renders"]) < 0.1
    assert bad["kid"] > good["kid"]
    assert bad["frechet"] > good["frechet"]
    features = run(FakeFace(), inception=lambda images: images[:, 9:13, 15, 0].astype(np.float32)).metrics
    assert features["inception_kid_std"] > 0


def test_the_same_seed_is_the_same_test_and_another_is_not() -> None:
    assert run(FakeFace(leak=3)).metrics == run(FakeFace(leak=3)).metrics
    face, other = FakeFace(), FakeFace()
    run(face)
    generation_test(other, evidence(), Plan(latents=12, seed=1), silently)
    assert set(face.seeds).isdisjoint(other.seeds)
    assert face.drawn == 12 * (24 + 8 + 5)


def test_a_corpus_that_knows_nothing_still_gives_the_obedience() -> None:
    corpus = portraits(people=3, each=1)
    for name in CONDITION_NAMES:
        corpus.truth[name][:] = np.nan
    plain = corpus.select(corpus.swept == "")
    metrics = run(FakeFace(), corpus=plain).metrics
    assert metrics["eyes_correlation_mean"] == pytest.approx(1, abs=1e-4)
    assert "identity_ratio" not in metrics
    assert "kid" not in metrics


def test_cosines_by_hand() -> None:
    a, b = np.array([[1.0, 0.0], [0.6, 0.8]]), np.array([[0.0, 1.0], [0.0, 1.0]])
    assert within(a) == pytest.approx(0.6)
    assert within(b) == pytest.approx(1)
    assert between([a, b]) == pytest.approx(np.mean([0, 0, 0.8, 0.8]))
    assert np.isnan(within(a[:1]))


def test_what_counts_as_outside() -> None:
    outside = outside_ellipse(np.zeros((2, 64, 64, 3), np.uint8))
    assert outside.shape == (2, 64, 64)
    assert outside[:, 0, 0].all()
    assert not outside[:, 34, 32].any()
    masks = np.array([[[FaceClass.HAIR, FaceClass.BACKGROUND, FaceClass.SKIN, FaceClass.CLOTHES]]], np.uint8)
    found = hair_and_background(lambda _: masks)(np.zeros((1, 1, 4, 3), np.uint8))
    assert found.tolist() == [[[True, True, False, False]]]


def test_the_report_has_everything_and_parses(tmp_path: Path) -> None:
    face, plan = FakeFace(), Plan(latents=7, original_latents=3)
    found = evidence(notes=("a note",))
    examination = examine_face("fake", face, found, plan, silently)
    pictures = write(examination, face, tmp_path)
    assert pictures == PICTURES
    assert all((tmp_path / name).stat().st_size > 1000 for name in pictures.values())

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    body = json.loads((tmp_path / JSON).read_text(), parse_constant=refuse)
    assert body["metrics"]["pass_share"] == 1
    assert body["original_test"]["pass_share"] == 1
    assert set(body["original_test"]["clamped_of_50"]) == {"eyes", "mouth", "pose"}
    with (tmp_path / TABLE).open() as table:
        assert [int(row["seed"]) for row in csv.DictReader(table)] == plan.seeds
    with (tmp_path / ORIGINAL_TABLE).open() as table:
        assert len(list(csv.DictReader(table))) == 3
    page = (tmp_path / MARKDOWN).read_text()
    assert "3 of 3 latents pass (100.0%)" in page
    assert "- a note" in page
    assert "| pose | -" in page.split("## z units")[1] or "| pose | 0" in page.split("## z units")[1]
    assert "| identity_ratio | 1 |" in page
