import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from ohlora.artifacts import ArtifactError, verify
from ohlora.corpus.portraits import Portraits
from ohlora.labeling.parser import (
    WEIGHTS,
    Parser,
    as_input,
    autocast_dtype,
    build_network,
    fit,
    settings_of,
)
from ohlora.labeling.segmentation import iou_metrics
from ohlora.stage import Journal
from tests.labeling.tiny_parser import Trained, tiny_config


def test_training_learns_people_it_never_saw(trained: Trained, corpus: Path) -> None:
    folder, report, config = trained
    test = Portraits.load(corpus).select("test")
    untrained = Parser(
        build_network(settings_of(config.labeling)),
        settings_of(config.labeling),
        torch.device("cpu"),
        "",
    )
    before = iou_metrics(test.masks, untrained.masks(test.images))["mean_iou"]
    assert report.metrics["mean_iou"] > max(0.3, 2 * before)
    again = iou_metrics(test.masks, Parser.load(folder, "cpu").masks(test.images))
    assert again["mean_iou"] == pytest.approx(report.metrics["mean_iou"])


def test_the_report_shows_pictures_and_curves(trained: Trained) -> None:
    folder, report, _ = trained
    assert report.pictures
    for picture in report.pictures.values():
        assert (folder / picture).read_bytes().startswith(b"\x89PNG")
    points = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert points[-1]["step"] == 49
    assert points[-1]["cross_entropy"] < points[0]["cross_entropy"]


def test_the_model_folder_says_where_it_came_from(trained: Trained) -> None:
    manifest = verify(trained.folder, "labeler")
    assert set(manifest.files) == {WEIGHTS}
    assert manifest.provenance["steps"] == 50
    assert manifest.provenance["portraits"] == 16
    assert manifest.provenance["identities"] == 8
    assert len(manifest.provenance["corpus"]) == 64


def test_masks_have_the_size_of_their_images(trained: Trained) -> None:
    parser = Parser.load(trained.folder, "cpu")
    masks = parser.masks(np.zeros((17, 50, 70, 3), np.uint8))
    assert masks.shape == (17, 50, 70)
    assert masks.dtype == np.uint8
    assert parser.masks(np.zeros((0, 50, 70, 3), np.uint8)).shape == (0, 50, 70)
    assert not parser.network.training


@pytest.mark.parametrize("images", [np.zeros((8, 8, 3), np.uint8), np.zeros((1, 8, 8, 3), np.float32)])
def test_what_is_no_batch_of_images_is_refused(trained: Trained, images: np.ndarray) -> None:
    with pytest.raises(ValueError, match="uint8"):
        Parser.load(trained.folder, "cpu").masks(images)


def test_corrupt_weights_are_refused(trained: Trained, tmp_path: Path) -> None:
    shutil.copytree(trained.folder, tmp_path, dirs_exist_ok=True)
    weights = bytearray((tmp_path / WEIGHTS).read_bytes())
    weights[-1] ^= 1
    (tmp_path / WEIGHTS).write_bytes(weights)
    with pytest.raises(ArtifactError, match="corrupt"):
        Parser.load(tmp_path, "cpu")


def test_the_seed_decides_the_weights(corpus: Path, tmp_path: Path) -> None:
    portraits = Portraits.load(corpus).select("train")
    weights = []
    for seed in (1, 1, 2):
        config = tiny_config("labeling.steps=2", f"labeling.seed={seed}")
        network = fit(portraits.images, portraits.masks, config.labeling, config.runtime, Journal(tmp_path))
        weights.append(torch.cat([w.flatten() for w in network.state_dict().values()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_an_unknown_encoder_names_its_setting() -> None:
    with pytest.raises(ValueError, match=r"labeling\.architecture 'Unet' with encoder 'nonsense'"):
        build_network(settings_of(tiny_config("labeling.encoder=nonsense").labeling))


def test_inputs_are_in_range() -> None:
    pixels = as_input(np.array([[[[0, 128, 255]] * 4] * 4], np.uint8), 64)
    assert pixels.shape == (1, 3, 64, 64)
    assert pixels.min() == -1
    assert pixels.max() == 1


def test_precision_follows_the_setting() -> None:
    cpu = torch.device("cpu")
    assert autocast_dtype(tiny_config("runtime.precision=bfloat16").runtime, cpu) is torch.bfloat16
    assert autocast_dtype(tiny_config("runtime.precision=float32").runtime, cpu) is None
