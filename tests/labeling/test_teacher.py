from pathlib import Path

import numpy as np
import pytest
import torch

from ohlora.artifacts import ArtifactError
from ohlora.attributes import FaceClass
from ohlora.labeling.teacher import (
    CLASSES,
    STATE_KEY,
    FaceXFormerParser,
    Teacher,
    convert,
    distillation_loss,
)

TINY = {
    "embed": 8,
    "depths": [1, 2, 1, 1],
    "heads": [1, 2, 2, 4],
    "window": 7,
    "width": 32,
    "hidden": 48,
    "decoder_depth": 2,
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in the published file's layout: parsing path, other tasks' heads, Swin's last norm."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = FaceXFormerParser(**TINY)  # type: ignore[arg-type]
        state = network.state_dict()
        state["pe_layer.positional_encoding_gaussian_matrix"] = torch.randn(2, 16)
    state["face_decoder.output_hypernetwork_mlps.layers.2.weight"] *= 500  # opinions that differ
    state["backbone.1.weight"] = torch.ones(64)
    state["face_decoder.landmarks_prediction_head.layers.0.weight"] = torch.zeros(32, 32)
    path = tmp_path_factory.mktemp("teacher") / "model.pt"
    torch.save({STATE_KEY: state, "epoch": 3}, path)
    return path


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)


def test_names_are_those_of_the_published_checkpoint() -> None:
    names = set(FaceXFormerParser(**TINY).state_dict())  # type: ignore[arg-type]
    assert {
        "backbone.0.0.0.weight",
        "backbone.0.1.0.attn.qkv.weight",
        "backbone.0.2.reduction.weight",
        "backbone.0.7.0.mlp.3.bias",
        "pe_layer.positional_encoding_gaussian_matrix",
        "linear_c.3.proj.weight",
        "linear_fuse.weight",
        "face_decoder.landmarks_token.weight",
        "face_decoder.mask_tokens.weight",
        "face_decoder.transformer.layers.1.cross_attn_image_to_token.q_proj.weight",
        "face_decoder.transformer.layers.0.mlp.lin2.bias",
        "face_decoder.transformer.final_attn_token_to_image.out_proj.weight",
        "face_decoder.transformer.norm_final_attn.weight",
        "face_decoder.output_upscaling.1.weight",
        "face_decoder.output_upscaling.3.bias",
        "face_decoder.output_hypernetwork_mlps.layers.2.weight",
    } <= names


def test_a_checkpoint_parses_like_its_converted_folder(
    checkpoint: Path, images: np.ndarray, tmp_path: Path
) -> None:
    direct = Teacher.load(str(checkpoint), "cpu").opinions(images)
    assert direct.shape == (3, CLASSES, 112, 112)
    assert np.abs(direct.sum(1).astype(int) - 255).max() <= CLASSES
    assert (direct[0] != direct[1]).any()
    digest = convert(checkpoint, tmp_path / "teacher")
    again = Teacher.load(str(tmp_path / "teacher"), "cpu")
    assert again.digest == digest
    np.testing.assert_array_equal(again.opinions(images), direct)
    assert not list((tmp_path / "teacher").glob("*.pt"))


def test_every_part_of_the_parsing_path_counts(checkpoint: Path) -> None:
    network = Teacher.load(str(checkpoint), "cpu").network
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1), requires_grad=True)
    network(x).square().mean().backward()
    assert x.grad is not None
    silent = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    assert [name for name in silent if "k_proj.bias" not in name] == []  # a key's bias cancels in a softmax


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("executed",))


def test_nothing_in_a_checkpoint_is_executed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "evil.pt"
    torch.save({STATE_KEY: {"w": torch.zeros(1)}, "extra": Evil()}, path)
    with pytest.raises(ArtifactError, match="does not load as plain weights"):
        Teacher.load(str(path), "cpu")
    assert "executed" not in capsys.readouterr().out


def test_what_is_no_teacher_says_so(checkpoint: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.pth"
    torch.save({"conv.weight": torch.zeros(2, 2)}, other)
    with pytest.raises(ArtifactError, match="not laid out like FaceXFormer"):
        Teacher.load(str(other), "cpu")
    with pytest.raises(ArtifactError, match="there is no FaceXFormer checkpoint"):
        Teacher.load(str(tmp_path / "nothing.pt"), "cpu")
    (tmp_path / "broken.pt").write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(ArtifactError, match="does not load"):
        Teacher.load(str(tmp_path / "broken.pt"), "cpu")
    with pytest.raises(ArtifactError, match="hub:OWNER/REPO/PATH"):
        Teacher.load("hub:owner/repo", "cpu")


def test_ears_neck_and_clothes_are_the_teachers_background() -> None:
    opinions = torch.zeros(1, CLASSES, 4, 4)
    opinions[:, 0] = 1
    right = torch.full((1, len(FaceClass), 8, 8), -9.0)
    right[:, FaceClass.CLOTHES] = 9
    wrong = right.roll(-3, 1)
    assert distillation_loss(right, opinions) < 0.01
    assert distillation_loss(wrong, opinions) > 5
