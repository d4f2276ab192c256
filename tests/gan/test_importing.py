"""Checkpoints of GenForce's layout become model folders that draw; anything else is refused with a reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from ohlora.artifacts import ArtifactError, read_manifest
from ohlora.cli import app
from ohlora.gan.importing import KIND, StyleGAN, import_checkpoint, load_stylegan, save_stylegan
from ohlora.gan.stylegan import StyleGANConfig, StyleGenerator
from tests.gan.genforce_checkpoint import checkpoint


def write(folder: Path, body: Any, name: str = "celeba.pth") -> Path:
    path = folder / name
    torch.save(body, path)
    return path


def run(*arguments: str | Path) -> tuple[int, str]:
    """Exit code, and output with line breaks of the terminal undone."""
    result = CliRunner().invoke(app, ["gan", "import", *map(str, arguments)])
    return result.exit_code, " ".join(result.output.split())


def test_a_small_checkpoint_is_imported_and_draws(tmp_path: Path) -> None:
    body = checkpoint()
    code, output = run(write(tmp_path, body), "--out", tmp_path / "out")
    assert code == 0, output
    assert "of 32 pixels" in output
    manifest = read_manifest(tmp_path / "out")
    assert manifest.kind == KIND
    assert sorted(manifest.files) == ["discriminator.safetensors", "generator.safetensors"]
    assert manifest.provenance["part"] == "generator_smooth"
    networks = load_stylegan(tmp_path / "out")
    assert networks.config == StyleGANConfig(
        resolution=32, z_dim=16, w_dim=24, mapping_layers=3, mapping_fmaps=20, fmaps_base=256, fmaps_max=16
    )
    assert networks.generator is not None
    assert networks.discriminator is not None
    for network, part in (
        (networks.generator, "generator_smooth"),
        (networks.discriminator, "discriminator"),
    ):
        assert all(torch.equal(value, body[part][name]) for name, value in network.state_dict().items())
    image = networks.generator(torch.randn(2, 16, generator=torch.Generator().manual_seed(0)))
    assert torch.isfinite(networks.discriminator(image)).all()


def test_the_full_size_is_imported_and_draws(tmp_path: Path) -> None:
    """celeba-partial-256's size: 26 million weights, some seconds."""
    full = {"resolution": 256, "z": 512, "w": 512, "mapping": 8, "hidden": 512, "base": 16384, "most": 512}
    body = checkpoint(**full)
    del body["generator"]  # as large as the averaged one
    import_checkpoint(write(tmp_path, body), tmp_path / "out")
    networks = load_stylegan(tmp_path / "out")
    assert networks.config == StyleGANConfig()
    assert networks.generator is not None
    with torch.no_grad():
        image = networks.generator(torch.randn(1, 512, generator=torch.Generator().manual_seed(0)))
    assert image.shape == (1, 3, 256, 256)
    assert torch.isfinite(image).all()
    assert image.std() > 0.1


@pytest.mark.parametrize("part", ["generator", "discriminator"])
def test_another_part_can_be_chosen(tmp_path: Path, part: str) -> None:
    body = checkpoint()
    assert run(write(tmp_path, body), "--out", tmp_path / "out", "--part", part)[0] == 0
    networks = load_stylegan(tmp_path / "out")
    if part == "discriminator":
        assert networks.generator is None
        assert networks.discriminator is not None
    else:
        assert networks.generator is not None
        assert torch.equal(networks.generator.truncation.w_avg, body["generator"]["truncation.w_avg"])


def test_training_snapshots_labels_and_wrapped_names(tmp_path: Path) -> None:
    parts = checkpoint(labels=3)
    wrapped = {p: {f"module.{name}": v for name, v in state.items()} for p, state in parts.items()}
    body = {"models": wrapped, "running_metadata": {"iter": 7, "seen_img": 99}, "learning_rates": {}}
    import_checkpoint(write(tmp_path, body), tmp_path / "out")
    networks = load_stylegan(tmp_path / "out")
    assert networks.config.label_dim == 3
    assert networks.config.label_width == 0
    assert networks.generator is not None
    assert networks.generator(torch.ones(1, 16), torch.ones(1, 3)).shape == (1, 3, 32, 32)


def test_what_is_saved_loads(tmp_path: Path) -> None:
    config = StyleGANConfig(resolution=16, z_dim=8, w_dim=8, mapping_layers=2, mapping_fmaps=8, fmaps_base=64)
    generator = StyleGenerator(config)
    save_stylegan(tmp_path / "out", StyleGAN(config, generator, None), {"steps": 1})
    loaded = load_stylegan(tmp_path / "out")
    assert loaded.discriminator is None
    assert loaded.generator is not None
    assert torch.equal(loaded.generator(torch.ones(1, 8)), generator(torch.ones(1, 8)))


def _stylegan2(body: dict[str, Any]) -> None:
    body["generator_smooth"] = {
        "mapping.dense0.weight": torch.zeros(8, 8),
        "truncation.w_avg": torch.zeros(8),
        "synthesis.early_layer.const": torch.zeros(1, 8, 4, 4),
    }


def _nan(body: dict[str, Any]) -> None:
    body["generator_smooth"]["synthesis.layer3.weight"][0, 0, 0, 0] = float("nan")


def _other_shape(body: dict[str, Any]) -> None:
    body["generator_smooth"]["synthesis.layer2.bias"] = torch.zeros(3)


def _missing_one(body: dict[str, Any]) -> None:
    del body["generator_smooth"]["synthesis.layer5.style.bias"]


def _one_more(body: dict[str, Any]) -> None:
    body["generator_smooth"]["synthesis.layer5.attention"] = torch.zeros(3)


def _odd_channels(body: dict[str, Any]) -> None:
    body["generator_smooth"]["synthesis.output3.weight"] = torch.zeros(3, 8, 1, 1)
    body["generator_smooth"]["synthesis.output2.weight"] = torch.zeros(3, 9, 1, 1)


def _swapped(body: dict[str, Any]) -> None:
    body["generator_smooth"], body["discriminator"] = body["discriminator"], body["generator_smooth"]


def _not_tensors(body: dict[str, Any]) -> None:
    body["generator_smooth"] = {"mapping.dense0.weight": [1, 2]}


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_stylegan2, r"looks like StyleGAN2; missing: synthesis.layer0.const, synthesis.output0.weight"),
        (_nan, "NaN or infinite: synthesis.layer3.weight"),
        (_other_shape, r"other shapes: synthesis.layer2.bias \(3,\) instead of \(16,\)"),
        (_missing_one, "missing: synthesis.layer5.style.bias"),
        (_one_more, "unknown: synthesis.layer5.attention"),
        (_odd_channels, "do not halve"),
        (_swapped, "looks like PGGAN or a discriminator"),
        (_not_tensors, "holds more than tensors: mapping.dense0.weight"),
        (
            lambda body: body.pop("generator_smooth"),
            "has no generator_smooth; it has generator, discriminator",
        ),
        (lambda body: [body.pop(name) for name in list(body)], "has none of generator_smooth"),
    ],
)
def test_other_checkpoints_are_refused_with_a_reason(tmp_path: Path, damage: Any, reason: str) -> None:
    body = checkpoint()
    damage(body)
    with pytest.raises(ArtifactError, match=reason):
        import_checkpoint(write(tmp_path, body), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_no_code_is_unpickled_and_damaged_files_are_refused(tmp_path: Path) -> None:
    whole = write(tmp_path, torch.nn.Linear(2, 2), "network.pth")
    good = write(tmp_path, checkpoint())
    short = tmp_path / "short.pth"
    short.write_bytes(good.read_bytes()[:-5000])
    text = tmp_path / "text.pth"
    text.write_text("no checkpoint")
    for path in (whole, short, text):
        code, output = run(path, "--out", tmp_path / "out")
        assert code == 1
        assert f"{path.name} does not load as plain weights" in output
    code, output = run(tmp_path / "nowhere.pth", "--out", tmp_path / "out")
    assert code == 1
    assert "there is no checkpoint" in output


def test_the_command_checks_its_options(tmp_path: Path) -> None:
    path = write(tmp_path, checkpoint())
    assert "there are: generator_smooth" in run(path, "--out", tmp_path / "out", "--part", "judge")[1]
    assert "is a file" in run(path, "--out", path)[1]
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    assert "holds other things" in run(path, "--out", tmp_path / "full")[1]


def test_a_changed_model_folder_is_refused(tmp_path: Path) -> None:
    import_checkpoint(write(tmp_path, checkpoint()), tmp_path / "out")
    manifest = tmp_path / "out" / "model.json"
    body = json.loads(manifest.read_text())
    body["settings"]["network"]["w_dim"] = 8
    manifest.write_text(json.dumps(body))
    with pytest.raises(ArtifactError, match="another architecture"):
        load_stylegan(tmp_path / "out")
    weights = tmp_path / "out" / "generator.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(ArtifactError, match="corrupt"):
        load_stylegan(tmp_path / "out")
