from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from ohlora.attributes import CONDITION_NAMES
from ohlora.corpus import Portraits
from ohlora.gan.data import (
    EYES,
    MOUTH,
    POSE,
    Boxes,
    CorpusUnusable,
    TrainingSet,
    conditions_of,
    held_out,
    kept_of,
    persona_identity,
)
from tests.gan.conftest import toy_portraits


@pytest.fixture
def data(portraits: Portraits) -> TrainingSet:
    return TrainingSet(portraits, conditions_of(portraits, None, "truth"), persona_share=0.5)


def test_a_tenth_of_the_persona_is_held_out_and_never_trained(
    portraits: Portraits, data: TrainingSet
) -> None:
    chosen = held_out(portraits)
    assert chosen.sum() == 2
    assert (portraits.identity[chosen] == 0).all()
    assert not set(data.rows) & set(np.flatnonzero(chosen))
    pose = portraits.truth["pose"]
    hers = pose[portraits.identity == 0]
    assert hers.min() < pose[chosen].min()
    assert pose[chosen].max() < hers.max()


def test_without_her_the_most_frequent_person_stands_in() -> None:
    assert persona_identity(np.array([5, 5, 7])) == 5
    assert persona_identity(np.array([5, 5, 0])) == 0


def test_labels_fill_gaps_and_can_win(portraits: Portraits, tmp_path: Path) -> None:
    n = len(portraits)
    frame = pd.DataFrame({name: np.full(n, 0.25, np.float32) for name in CONDITION_NAMES})
    frame.loc[1, "eyes"] = None
    frame = frame.assign(**{f"formula_{name}": 0.75 for name in CONDITION_NAMES})
    frame.to_parquet(tmp_path / "labels.parquet")
    eyes = portraits.truth["eyes"].copy()
    eyes[0] = np.nan
    gap = replace(portraits, truth=portraits.truth | {"eyes": eyes})
    truth, network, formulas = (
        conditions_of(gap, tmp_path, source) for source in ("truth", "network", "formulas")
    )
    assert truth[0, EYES] == 0.25
    np.testing.assert_array_equal(truth[1:, EYES], eyes[1:])
    assert network[0, EYES] == 0.25
    assert network[1, EYES] == eyes[1]
    assert (network[2:, EYES] == 0.25).all()
    assert (formulas[:, EYES] == 0.75).all()


def test_what_the_labels_reject_or_is_known_to_be_spoilt_does_not_train(
    portraits: Portraits, tmp_path: Path
) -> None:
    n = len(portraits)
    quality = np.ones(n, np.float32)
    quality[0] = 0
    spoilt = replace(portraits, truth=portraits.truth | {"quality": quality})
    pd.DataFrame({"kept": np.arange(n) != 1}).to_parquet(tmp_path / "labels.parquet")
    kept = kept_of(spoilt, tmp_path)
    assert kept.tolist() == [False, False, *[True] * (n - 2)]
    others = np.flatnonzero(portraits.identity != persona_identity(portraits.identity))
    rows = TrainingSet(
        portraits, conditions_of(portraits, None, "truth"), 0.4, kept=portraits.identity < 0
    ).rows
    assert not np.isin(others, rows).any()


def test_a_sweep_of_hair_keeps_its_own_hair(portraits: Portraits) -> None:
    swept = np.full(len(portraits), "", dtype="<U16")
    rows = np.flatnonzero(portraits.identity == persona_identity(portraits.identity))
    swept[rows[0]] = "hair_color"
    conditions = conditions_of(portraits, None, "truth")
    conditions[rows[0], CONDITION_NAMES.index("hair_color")] = 200
    data = TrainingSet(replace(portraits, swept=swept), conditions, 0.4)
    at = CONDITION_NAMES.index("hair_color")
    assert data.raw[rows[0], at] == 200
    assert len(set(data.raw[rows[1:], at].tolist())) == 1
    assert data.raw[rows[1], at] != 200


def test_labels_of_another_corpus_are_refused(portraits: Portraits, tmp_path: Path) -> None:
    pd.DataFrame({"eyes": [0.5]}).to_parquet(tmp_path / "labels.parquet")
    with pytest.raises(CorpusUnusable, match="run the labels stage again"):
        conditions_of(portraits, tmp_path, "truth")


def test_rows_with_gaps_are_dropped_and_none_left_is_an_error(portraits: Portraits) -> None:
    conditions = conditions_of(portraits, None, "truth")
    conditions[25, MOUTH] = np.nan
    assert 25 not in TrainingSet(portraits, conditions, 0.5).rows
    with pytest.raises(CorpusUnusable, match="no portrait to train on"):
        TrainingSet(portraits, np.full_like(conditions, np.nan), 0.5)


def test_people_of_the_test_split_never_train_but_she_does(portraits: Portraits) -> None:
    split = np.where(np.isin(portraits.identity, [0, 2]), "test", "train")
    moved = replace(portraits, split=split)
    data = TrainingSet(moved, conditions_of(moved, None, "truth"), 0.5)
    assert sorted(data.numbers) == [0, 1, 3, 4]


def test_a_batch_is_a_function_of_seed_and_step(data: TrainingSet) -> None:
    first, again, other = (data.batch(step, 8, 32, seed=1) for step in (3, 3, 4))
    assert all(torch.equal(getattr(first, k), getattr(again, k)) for k in vars(first))
    assert not torch.equal(first.images, other.images)


def test_a_batch_shows_the_persona_as_often_as_asked(data: TrainingSet) -> None:
    batch = data.batch(0, 8, 32, seed=0)
    assert (batch.codes == data.persona).sum() == 4
    assert batch.images.shape == (8, 3, 32, 32)
    assert batch.weights.shape == (8, 1, 32, 32)
    assert batch.images.abs().max() <= 1


def test_mirror_images_turn_the_other_way_and_are_other_people(
    data: TrainingSet, portraits: Portraits
) -> None:
    images, _, _ = data.at(64)
    found = 0
    for step in range(10):
        batch = data.batch(step, 8, 64, seed=0, swap=0)
        for k in range(8):
            plain = batch.images[k].flip(2) if batch.codes[k] >= len(data.numbers) else batch.images[k]
            row = ((images.float() / 127.5 - 1) - plain).abs().flatten(1).amax(1).argmin()
            sign = -1 if batch.codes[k] >= len(data.numbers) else 1
            pose = sign * portraits.truth["pose"][row]
            assert batch.conditions[k, POSE] * 30 == pytest.approx(pose, abs=1e-3)
            found += sign < 0
    assert found > 5


def test_a_foreign_eye_openness_comes_with_a_free_eye_area(data: TrainingSet, portraits: Portraits) -> None:
    free = 0
    for step in range(10):
        batch = data.batch(step, 8, 64, seed=0, swap=1.0)
        for k in range(8):
            area = batch.weights[k, 0] == 0
            assert area.any()
            eyes = batch.conditions[k, EYES] / 2 + 0.5
            if (eyes - torch.tensor(portraits.truth["eyes"])).abs().min() > 1e-5:
                free += 1
                assert area[18:25].any(1).all()
                assert not area[44:].any()
    assert free > 10


def test_walls_are_background_of_the_upper_half_and_turn_with_the_picture(data: TrainingSet) -> None:
    mirrored = 0
    for step in range(6):
        batch = data.batch(step, 8, 64, seed=0, swap=0)
        assert batch.walls.shape == (8, 64, 64)
        assert batch.walls.sum((1, 2)).min() > 24
        assert not batch.walls[:, 32:].any()
        grey = (batch.images.mean(1)[batch.walls] + 1) * 127.5
        torch.testing.assert_close(grey, torch.full_like(grey, 40))  # what the toy's background is painted in
        mirrored += int((batch.codes >= len(data.numbers)).sum())
    assert mirrored > 5


def test_boxes_cover_eyes_even_when_closed(portraits: Portraits) -> None:
    boxes = Boxes.measure(portraits.masks)
    closed = int(portraits.truth["eyes"].argmin())
    top, bottom, left, right = (boxes.eyes[closed] / 4).tolist()
    shift = round(float(portraits.truth["pose"][closed]) / 5)
    assert top <= 18
    assert bottom >= 30
    assert left <= 18 + shift
    assert right >= 46 + shift
    assert boxes.mouth[closed, 1] == 256


def test_a_mask_without_a_face_has_no_free_area() -> None:
    boxes = Boxes.measure(np.zeros((1, 64, 64), np.uint8))
    assert boxes.eyes.abs().sum() == 0
    assert boxes.mouth.abs().sum() == 0


def test_looks_tell_people_apart_by_what_no_condition_says() -> None:
    portraits = toy_portraits(hers=40, people=60, each=5)
    data = TrainingSet(portraits, conditions_of(portraits, None, "truth"), 0.4)
    looks = data.looks()
    half = len(data.numbers)
    assert looks.shape == (2 * half, 3 * 16 * 16)
    skin = torch.from_numpy(np.stack([portraits.images[data.rows_of(k)[0], 22, 32] for k in range(half)]))
    shown = torch.cdist(looks[:half], looks[:half]).flatten()
    true = torch.cdist(skin.float(), skin.float()).flatten()
    assert torch.corrcoef(torch.stack([shown, true]))[0, 1] > 0.8
