"""The stage `variants`: model folders, sheets and a table; goes on after a kill; starts from an import."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ohlora.artifacts import ArtifactError, read_manifest
from ohlora.config import Config, load_config
from ohlora.gan import VariantFace, load_face
from ohlora.gan.importing import import_checkpoint, load_stylegan
from ohlora.gan.variants import stage
from ohlora.gan.variants.adversarial import AdversarialTraining
from ohlora.gan.variants.method import VariantUnusable
from ohlora.gan.variants.methods import METHODS
from ohlora.labeling import filters, properties
from ohlora.labeling.classifier import CHANNELS, TASKS, Classifier
from ohlora.labeling.property_network import PropertyNetwork
from ohlora.labeling.reliability import Scaling
from ohlora.pipeline import STAGES
from ohlora.stage import Journal, Report
from tests.gan import variant_parts as parts
from tests.gan.genforce_checkpoint import checkpoint

HALF = load_config(parts.ROOT, "smoke").variants.conditional.steps // 2


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A corpus of noise, and untrained readers."""
    folder = tmp_path_factory.mktemp("inputs")
    parts.corpus(folder / "corpus")
    cpu = torch.device("cpu")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = PropertyNetwork(32, parts.BOXES, parts.SCALES)
        classifiers = {task: [Classifier(CHANNELS[task])] for task in TASKS}
    properties.save(properties.Properties(network, cpu), folder / "properties", {})
    scaling = {task: Scaling() for task in TASKS}
    filters.save(filters.Filters(classifiers, scaling, 32, cpu), folder / "filters", {})
    return {name: folder / name for name in ("corpus", "properties", "filters")}


def config(state: Path, *overrides: str) -> Config:
    values = [f"state={state}", "runtime.device=cpu", "runtime.threads=1", "runtime.precision=float32"]
    return load_config(parts.ROOT, "smoke", [*values, *(f"variants.{item}" for item in overrides)])


def run(settings: Config, inputs: dict[str, Path], out: Path) -> Report:
    out.mkdir(parents=True, exist_ok=True)
    return stage.train(settings, inputs, {"output": out}, Journal(out))


def test_the_smoke_profile_trains_all_variants(inputs: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = run(config(tmp_path / "state"), inputs, out)
    (rows,) = report.tables.values()
    assert [row["method"] for row in rows] == list(METHODS)
    assert {"eyes_correlation", "pose_mae", "persona_distance", "seconds"} <= set(rows[1])
    assert "hair_color_correlation" in rows[1]
    assert "hair_color_correlation" not in rows[4], "v4 does not control hair"
    assert len(report.pictures) == len(METHODS)
    for name in report.pictures.values():
        assert (out / name).is_file()
    for name in METHODS:
        assert isinstance(load_face(out / name), VariantFace)
        assert read_manifest(out / name).provenance["persona"]["candidates"] >= 8
    base = load_stylegan(out / stage.STYLEGAN)
    assert base.generator is not None
    assert base.discriminator is not None
    v4, own = load_face(out / "v4"), base.generator.state_dict()
    assert isinstance(v4, VariantFace)
    for name, value in v4.generator.state_dict().items():
        if name.startswith("synthesis."):
            torch.testing.assert_close(value, own[name], rtol=2e-3, atol=1e-3)
    assert not list((tmp_path / "state" / "checkpoints" / "variants").iterdir())


def test_a_killed_stage_goes_on_where_it_was(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    methods = "methods=[v1]"
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    run(config(tmp_path / "one", methods), inputs, whole)
    steps: list[str] = []
    original = AdversarialTraining.step

    def step(self: AdversarialTraining) -> dict[str, float]:
        if self.name == "v1" and self.step_number == HALF and not (tmp_path / "killed").exists():
            (tmp_path / "killed").touch()
            path = next((tmp_path / "two").rglob("base.safetensors")).with_name("v1.safetensors")
            self.save(path)
            raise KeyboardInterrupt
        steps.append(self.name)
        return original(self)

    monkeypatch.setattr(AdversarialTraining, "step", step)
    with pytest.raises(KeyboardInterrupt):
        run(config(tmp_path / "two", methods), inputs, parted)
    first = list(steps)
    steps.clear()
    run(config(tmp_path / "two", methods), inputs, parted)
    assert first.count("base") == 8
    assert "base" not in steps, "the base was done"
    assert steps.count("v1") == HALF
    one, two = (read_manifest(folder / "v1").files["generator.safetensors"] for folder in (whole, parted))
    assert one == two


def test_variants_start_from_an_imported_stylegan(inputs: dict[str, Path], tmp_path: Path) -> None:
    body = checkpoint(z=12, hidden=16)
    torch.save(body, tmp_path / "celeba.pth")
    import_checkpoint(tmp_path / "celeba.pth", tmp_path / "celeba")
    overrides = (f"start={tmp_path / 'celeba'}", "methods=[base, v4]", "resolution=256")
    report = run(config(tmp_path / "state", *overrides), inputs, tmp_path / "out")
    digest = read_manifest(tmp_path / "celeba").digest
    assert any(digest[:12] in note for note in report.notes)
    assert not (tmp_path / "out" / stage.STYLEGAN).exists()
    assert read_manifest(tmp_path / "out" / "v4").provenance["base"] == digest
    face = load_face(tmp_path / "out" / "base")
    assert isinstance(face, VariantFace)
    assert face.generator.config.resolution == 32


def test_bad_starts_are_refused(inputs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="is not a model folder"):
        run(config(tmp_path, f"start={tmp_path / 'nowhere'}"), inputs, tmp_path / "out")
    torch.save(checkpoint(), tmp_path / "celeba.pth")
    import_checkpoint(tmp_path / "celeba.pth", tmp_path / "critic", "discriminator")
    with pytest.raises(VariantUnusable, match="has no generator"):
        run(config(tmp_path, f"start={tmp_path / 'critic'}"), inputs, tmp_path / "out")


def test_by_default_nothing_is_trained(tmp_path: Path) -> None:
    assert load_config(parts.ROOT).variants.methods == []
    report = run(config(tmp_path, "methods=[]"), {}, tmp_path / "out")
    assert report.notes == ["variants.methods is empty: nothing was trained."]
    assert report.pictures == {}


def test_the_pipeline_knows_the_stage() -> None:
    assert STAGES["variants"].load() is stage.train
    assert set(STAGES["variants"].inputs) == {"corpus", "labels", "properties", "filters"}
