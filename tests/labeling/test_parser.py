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
    folded,
    load_network,
    settings_of,
)
from ohlora.labeling.segmentation import iou_metrics
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
    folder, report, config = trained
    assert report.pictures
    for picture in report.pictures.values():
        assert (folder / picture).read_bytes().startswith(b"\x89PNG")
    points = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert points[-1]["step"] == config.labeling.steps
    assert points[-1]["cross_entropy"] < points[0]["cross_entropy"]


def test_the_model_folder_says_where_it_came_from(trained: Trained) -> None:
    manifest = verify(trained.folder, "labeler")
    assert set(manifest.files) == {WEIGHTS}
    assert manifest.provenance["steps"] == trained.config.labeling.steps
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


def test_the_folded_network_answers_like_the_trained_one(trained: Trained) -> None:
    network, settings, _ = load_network(trained.folder)
    pixels = as_input(np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8), 64)
    fast = folded(network, settings.resolution)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in fast.modules())
    with torch.inference_mode():
        torch.testing.assert_close(fast(pixels), network.eval()(pixels), rtol=1e-3, atol=1e-3)


class Backwards(torch.nn.Module):
    """Lists its norm after the convolution, but runs it before."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 3, 3)
        self.norm = torch.nn.BatchNorm2d(3)
        self.norm.running_mean = torch.ones(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(self.norm(x))


def test_what_cannot_be_folded_stays_as_it_is() -> None:
    pixels = torch.ones(1, 3, 8, 8)
    network = Backwards().eval()
    torch.testing.assert_close(folded(network, 8)(pixels), network(pixels))


@pytest.mark.parametrize(("stride", "channels"), [(1, [16, 16, 8]), (2, [16, 8]), (4, [16])])
def test_every_pixel_has_logits_whatever_the_decoders_stride(stride: int, channels: list[int]) -> None:
    config = tiny_config(f"labeling.logit_stride={stride}", f"labeling.decoder_channels={channels}")
    network = build_network(settings_of(config.labeling)).eval()
    assert network(torch.zeros(1, 3, 64, 64)).shape == (1, 14, 64, 64)


def test_settings_that_do_not_go_together_say_so() -> None:
    with pytest.raises(ValueError, match="need 2 decoder_channels"):
        build_network(settings_of(tiny_config("labeling.decoder_channels=[8, 8, 8]").labeling))
    with pytest.raises(ValueError, match="only Unet can answer on a coarser grid"):
        build_network(settings_of(tiny_config("labeling.architecture=FPN").labeling))
