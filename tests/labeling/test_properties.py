import json
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ohlora.artifacts import ArtifactError, verify
from ohlora.attributes import CONDITION_NAMES, FaceClass
from ohlora.config import Config, load_config
from ohlora.corpus.portraits import Portraits
from ohlora.labeling.parser import as_input
from ohlora.labeling.properties import WEIGHTS, Properties
from ohlora.labeling.property_data import (
    AT,
    _move,
    _relight,
    _repaint,
    boxes_of,
    draw_batch,
    examples,
    scales_of,
)
from ohlora.labeling.property_network import (
    AREAS,
    CLASSES,
    GRID,
    MOMENTS,
    PropertyNetwork,
    compute,
    cut,
    moments,
)
from ohlora.labeling.property_training import find_start, judge, train
from ohlora.stage import Journal, Report
from tests.labeling.drawn_people import measured, write_people

ROOT = Path(__file__).parents[2]
BOXES = {"eyes": (14, 22, 50, 38), "mouth": (20, 38, 44, 54)}
SCALES = dict.fromkeys(CONDITION_NAMES, (0.5, 0.25))


class Trained(NamedTuple):
    folder: Path
    report: Report
    config: Config


def tiny(*overrides: str) -> Config:
    values = ["runtime.device=cpu", "properties.steps=130", "properties.learning_rate=0.008"]
    return load_config(ROOT, "smoke", [*values, *overrides])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_people(tmp_path_factory.mktemp("people"), degraded=6)


@pytest.fixture(scope="module")
def trained(people: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder, config = tmp_path_factory.mktemp("properties"), tiny()
    return Trained(folder, train(config, {"corpus": people}, {"output": folder}, Journal(folder)), config)


# What was trained


def test_the_network_reads_people_it_never_saw(trained: Trained) -> None:
    metrics = trained.report.metrics
    for name, least in {
        "eyes": 0.9,
        "mouth": 0.8,
        "hair_color": 0.9,
        "hair_length": 0.8,
        "background_mean": 0.9,
        "background_std": 0.6,
    }.items():
        assert metrics[f"{name}_correlation"] > least, name


def test_what_was_judged_is_what_is_loaded(trained: Trained, people: Path) -> None:
    test = Portraits.load(people).select("test")
    values = Properties.load(trained.folder, "cpu").values(test.images)
    clean = test.truth["quality"] == 1
    error = np.abs(values["pose"] - test.truth["pose"])[clean]
    assert np.nanmean(error) == pytest.approx(trained.report.metrics["pose_mae"], rel=1e-4)


def test_the_report_compares_with_the_truth(trained: Trained) -> None:
    folder, report, _ = trained
    for picture in report.pictures.values():
        assert (folder / picture).read_bytes().startswith(b"\x89PNG")
    (rows,) = report.tables.values()
    assert [row["attribute"] for row in rows] == list(CONDITION_NAMES)
    assert all(row["correlation, degraded"] is not None for row in rows)
    points = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert points[-1]["regression"] < points[0]["regression"]
    assert points[-1]["mask"] < points[0]["mask"]


def test_the_model_folder_says_where_it_came_from(trained: Trained, people: Path) -> None:
    manifest = verify(trained.folder, "properties")
    assert set(manifest.files) == {WEIGHTS, "people.json"}
    assert manifest.provenance["portraits"] == 64
    portraits = Portraits.load(people)
    training = set(portraits.identity[portraits.split == "train"].tolist())
    assert set(Properties.load(trained.folder, "cpu").people) == training


def test_values_have_their_shape_and_range(trained: Trained) -> None:
    properties = Properties.load(trained.folder, "cpu")
    images = np.random.default_rng(0).integers(0, 256, (19, 50, 70, 3)).astype(np.uint8)
    values = properties.values(images)
    assert tuple(values) == CONDITION_NAMES
    assert all(v.shape == (19,) and v.dtype == np.float32 for v in values.values())
    for name, high in {"eyes": 1, "mouth": 1, "hair_length": 1, "background_mean": 255}.items():
        known = values[name][np.isfinite(values[name])]
        assert ((known >= 0) & (known <= high)).all()
    one = properties.values(images[17:18])
    for name in CONDITION_NAMES:
        np.testing.assert_allclose(one[name], values[name][17:18], rtol=1e-3, atol=1e-3)
    assert properties.values(images[:0])["eyes"].shape == (0,)
    assert not properties.network.training


def test_what_is_not_in_the_picture_is_unknown(trained: Trained) -> None:
    properties = Properties.load(trained.folder, "cpu")

    def only(label: FaceClass) -> None:  # the mask sees one class everywhere
        network = properties._fast
        network.painter[1].weight.zero_()
        network.painter[1].bias.fill_(-20).index_fill_(0, torch.tensor(int(label)), 20.0)

    image = np.zeros((1, 64, 64, 3), np.uint8)
    only(FaceClass.SKIN)
    skin = properties.values(image)
    assert np.isfinite([skin[name] for name in ("eyes", "mouth", "pose")]).all()
    assert np.isnan([skin[name] for name in ("hair_color", "hair_length", "background_std")]).all()
    only(FaceClass.BACKGROUND)
    nothing = properties.values(image)
    assert np.isnan([nothing[name] for name in ("eyes", "mouth", "pose", "hair_color")]).all()
    assert np.isfinite(nothing["background_mean"]).all()


@pytest.mark.parametrize("images", [np.zeros((8, 8, 3), np.uint8), np.zeros((1, 8, 8, 3), np.float32)])
def test_what_is_no_batch_of_images_is_refused(trained: Trained, images: np.ndarray) -> None:
    with pytest.raises(ValueError, match="uint8"):
        Properties.load(trained.folder, "cpu").values(images)


def test_corrupt_weights_are_refused(trained: Trained, tmp_path: Path) -> None:
    shutil.copytree(trained.folder, tmp_path, dirs_exist_ok=True)
    weights = bytearray((tmp_path / WEIGHTS).read_bytes())
    weights[-1] ^= 1
    (tmp_path / WEIGHTS).write_bytes(weights)
    with pytest.raises(ArtifactError, match="corrupt"):
        Properties.load(tmp_path, "cpu")


def test_training_continues(trained: Trained, people: Path, tmp_path: Path) -> None:
    config = tiny("properties.steps=1", f"properties.start={trained.folder}")
    report = train(config, {"corpus": people}, {"output": tmp_path}, Journal(tmp_path))
    assert any(f"Continued from {trained.folder}" in note for note in report.notes)
    assert report.metrics["mouth_correlation"] > 0.8
    assert verify(tmp_path).provenance["start"] == verify(trained.folder).digest


def test_a_network_that_knows_the_held_out_people_is_not_continued(trained: Trained) -> None:
    config = tiny(f"properties.start={trained.folder}").properties
    assert find_start(config, np.array([3]))[0] is not None
    start, note = find_start(config, np.array([1, 2, 3]))
    assert start is None
    assert "trained on 2 of the people held out here" in note


def test_the_seed_decides_the_weights(people: Path, tmp_path: Path) -> None:
    digests = []
    for number, seed in enumerate((1, 1, 2)):
        out = tmp_path / str(number)
        config = tiny("properties.steps=1", f"properties.seed={seed}")
        train(config, {"corpus": people}, {"output": out}, Journal(out))
        digests.append(verify(out).digest)
    assert digests[0] == digests[1]
    assert digests[0] != digests[2]


def test_judging_leaves_degraded_portraits_to_the_table(
    trained: Trained, people: Path, tmp_path: Path
) -> None:
    test = Portraits.load(people).select("test")
    report = judge(Properties.load(trained.folder, "cpu"), test, tmp_path)
    assert report.metrics["held_out_portraits"] == (test.truth["quality"] == 1).sum() < len(test)


# What a mask answers by itself


def exact(people: Path) -> tuple[dict[str, torch.Tensor], Portraits]:
    """What is computed under the true masks of clean portraits."""
    portraits = Portraits.load(people)
    portraits = portraits.select(portraits.truth["quality"] == 1)
    shares = F.one_hot(torch.from_numpy(portraits.masks).long(), CLASSES).permute(0, 3, 1, 2).float()
    behind = shares[:, FaceClass.BACKGROUND, :32]
    computed, statistics, seen = compute(as_input(portraits.images, 64), F.avg_pool2d(shares, 4), behind)
    assert statistics.isfinite().all()
    assert ((seen > 0) & (seen < 1)).all()
    return computed, portraits


def test_a_true_mask_gives_the_measured_truth(people: Path) -> None:
    computed, portraits = exact(people)
    most = {"hair_color": 15.0, "hair_length": 0.05, "background_mean": 4.0, "background_std": 4.0}
    for name in most:
        error = np.abs(computed[name].numpy() - portraits.truth[name])
        assert error.mean() < most[name], name
        assert np.corrcoef(computed[name].numpy(), portraits.truth[name])[0, 1] > 0.98, name


def test_a_little_hair_taken_for_background_hardly_counts() -> None:
    pixels = torch.zeros(1, 3, 64, 64)
    pixels[..., ::2] = 0.02
    pixels[..., :4, :8] = 1.0
    shares = torch.zeros(1, CLASSES, 16, 16)
    shares[:, FaceClass.BACKGROUND] = 1
    computed, statistics, _ = compute(pixels, shares, torch.ones(1, 32, 64))
    assert float(computed["background_mean"]) == pytest.approx(1.01 * 127.5, abs=0.5)
    assert 0.01 * 127.5 <= float(computed["background_std"]) < 2.5
    assert float(statistics[0, 6] * 127.5) > 10


def test_moments_say_where_and_how_large() -> None:
    shares = torch.zeros(1, CLASSES, 16, 16)
    shares[:, FaceClass.SKIN] = 1
    shares[0, FaceClass.NOSE, 4:8, 8:16] = 1
    shares[0, FaceClass.SKIN, 4:8, 8:16] = 0
    size, x, y, spread_x, spread_y = moments(shares).view(CLASSES, MOMENTS)[FaceClass.NOSE]
    assert float(size) == pytest.approx((32 / 256) ** 0.5)
    assert float(x) == pytest.approx(0.5, abs=0.02)
    assert float(y) == pytest.approx(-0.25, abs=0.02)
    assert spread_x > spread_y
    assert moments(shares).view(CLASSES, MOMENTS)[FaceClass.HAIR, 1:3].abs().max() == 0


@pytest.mark.parametrize("resolution", [32, 64])
def test_the_network_answers_in_its_shapes(resolution: int) -> None:
    network = PropertyNetwork(resolution, BOXES, SCALES).eval()
    answer = network(torch.zeros(2, 3, 2 * resolution, 2 * resolution))
    assert answer.values.shape == (2, 7)
    assert answer.logits.shape == (2, CLASSES, resolution // 2, resolution // 2)
    assert answer.seen.shape == (2, 3)


def test_areas_hold_eyes_and_mouth_and_are_alike_on_both_sides(people: Path) -> None:
    data = examples(Portraits.load(people), 32)
    boxes = boxes_of(data.masks)
    for name in AREAS:
        left, top, right, bottom = boxes[name]
        assert left + right == GRID
        assert 0 <= top < bottom <= GRID
    eyes = data.masks == FaceClass.LEFT_EYE
    inside = cut(eyes[:, None], boxes["eyes"])
    assert inside.sum() == eyes.sum() > 0
    assert boxes_of(torch.zeros(2, 64, 64, dtype=torch.uint8)) == BOXES


# What it learns from


def test_changes_keep_truths_true(people: Path) -> None:
    data = examples(Portraits.load(people), 32)
    pixels = data.images.float() / 127.5 - 1
    truth = data.truth.clone()
    _repaint(pixels, data.masks, truth, generator())
    changed = 0
    for i in range(len(data)):
        image = ((pixels[i] + 1) * 127.5).permute(1, 2, 0).numpy()
        if torch.equal(truth[i], data.truth[i]):
            continue
        changed += 1
        for name, value in measured(image, data.masks[i].numpy()).items():
            if truth[i, AT[name]] != data.truth[i, AT[name]]:
                assert float(truth[i, AT[name]]) == pytest.approx(value, abs=0.05)
    assert changed > len(data) // 3

    relit = half_bright(truth)
    lit = _relight(pixels * 0.5, relit, generator())
    for i in range(4):
        image = ((lit[i] + 1) * 127.5).permute(1, 2, 0).numpy()
        now = measured(image, data.masks[i].numpy())
        before = measured(((pixels[i] * 0.5 + 1) * 127.5).permute(1, 2, 0).numpy(), data.masks[i].numpy())
        for name in ("background_std", "hair_color"):
            at = AT[name]
            off = float(half_bright(truth)[i, at]) - before[name]  # of the stored truth, made before WebP
            assert float(relit[i, at]) - now[name] == pytest.approx(off, abs=0.2 + 0.2 * abs(off))


def half_bright(truth: torch.Tensor) -> torch.Tensor:
    """The truth of pixels * 0.5 around mid grey."""
    answer = truth.clone()
    for name in ("hair_color", "background_mean"):
        answer[:, AT[name]] = 127.5 + 0.5 * (answer[:, AT[name]] - 127.5)
    answer[:, AT["background_std"]] *= 0.5
    return answer


def test_a_move_takes_the_end_of_the_hair_along() -> None:
    pixels = torch.zeros(6, 3, 64, 64)
    shares = torch.zeros(6, CLASSES, 32, 32)
    shares[:, FaceClass.HAIR, :20] = 1
    shares[5, FaceClass.HAIR] = 1
    truth = torch.full((6, 7), 0.5)
    truth[:5, AT["hair_length"]] = 20 / 32
    truth[5, AT["hair_length"]] = 1.0
    _move((pixels, shares), truth, torch.arange(6), generator(1))
    ends = (shares[:, FaceClass.HAIR, :, 0] > 0.5).sum(1) / 32
    assert ends.unique().numel() > 2
    assert (truth[:, AT["hair_length"]] - ends).abs().max() < 1 / 32
    assert truth[5, AT["hair_length"]] == 1
    assert truth[:, AT["background_std"]].isnan().all()
    assert (truth[:, AT["pose"]] == 0.5).all()


def test_a_mirrored_batch_turns_the_other_way(people: Path) -> None:
    data = examples(Portraits.load(people), 32)
    batch = draw_batch(data, 64, generator())
    assert batch.pixels.shape == (64, 3, 64, 64)
    assert batch.pixels.abs().max() <= 1
    assert batch.shares.shape == (64, CLASSES, 16, 16)
    assert batch.behind.shape == (64, 32, 64)
    whole = F.avg_pool2d(batch.behind[:, None], 4)[:, 0]
    assert (whole - batch.shares[:, FaceClass.BACKGROUND, :8]).abs().mean() < 0.02
    known = set(data.truth[:, AT["pose"]].tolist())
    mirrored = [float(pose) not in known for pose in batch.truth[:, AT["pose"]]]
    assert 10 < sum(mirrored) < 54
    x = torch.arange(16) + 0.5
    nose = batch.shares[:, FaceClass.NOSE].sum(1)
    place = (nose @ x) / nose.sum(1)
    assert np.corrcoef(place.numpy(), batch.truth[:, AT["pose"]].numpy())[0, 1] > 0.9


def test_scales_leave_out_the_unknown() -> None:
    truth = torch.tensor([[1.0, 5.0] + [0.0] * 5, [3.0, float("nan")] + [0.0] * 5])
    scales = scales_of(truth)
    assert scales[CONDITION_NAMES[0]] == (2.0, 1.0)
    assert scales[CONDITION_NAMES[1]] == (5.0, pytest.approx(1e-3))
