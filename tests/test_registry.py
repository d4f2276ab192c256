"""The registry against a real MLflow on SQLite."""

import subprocess
import sys
from pathlib import Path

import pytest

from ohlora.artifacts import ArtifactError, write_manifest
from ohlora.config import Config, load_config
from ohlora.lifeline import identity
from ohlora.registry import PROCESS_TAG, Registry, RegistryError, git_state
from ohlora.stage import Report

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def config() -> Config:
    return load_config(ROOT)


@pytest.fixture(scope="module")
def registry(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Registry:
    return Registry(config, tmp_path_factory.mktemp("tree"))


def model(folder: Path, kind: str, weights: bytes, base: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "weights.safetensors").write_bytes(weights)
    (folder / "preview.png").write_bytes(b"not part of the model")
    write_manifest(
        folder, kind, files=["weights.safetensors"], base={"name": "b", "sha256": base} if base else {}
    )
    return folder


def test_registering_twice_gives_the_same_version(registry: Registry, tmp_path: Path) -> None:
    folder = model(tmp_path / "m", "labeler", b"one")
    first = registry.register("labeler", folder, tags={"profile": "smoke"})
    again = registry.register("labeler", folder)
    other = registry.register("labeler", model(tmp_path / "n", "labeler", b"two"))
    assert (first.version, again.version, other.version) == (1, 1, 2)
    assert first.tags["profile"] == "smoke"
    assert [v.version for v in registry.versions("labeler")] == [2, 1]


def test_what_was_registered_comes_back_verified_and_alone(registry: Registry, tmp_path: Path) -> None:
    folder = model(tmp_path / "m", "face", b"weights")
    version = registry.register("face", folder)
    registry.move_alias(version, "champion")
    fetched = registry.fetch("face", "champion")
    assert fetched == registry.fetch("face", str(version.version)) == registry.fetch("face", version)
    assert sorted(f.name for f in fetched.iterdir()) == ["model.json", "weights.safetensors"]
    assert (fetched / "weights.safetensors").read_bytes() == b"weights"

    # the registry holds a copy: what happens to the stage's output afterwards does not reach it
    (folder / "weights.safetensors").write_bytes(b"changed")
    registry.fetch("face", "champion")
    (fetched / "weights.safetensors").write_bytes(b"garbage")
    with pytest.raises(ArtifactError, match=rf"face v{version.version} cannot be used: .* is corrupt"):
        registry.fetch("face", "champion")


def test_a_corrupt_folder_or_a_wrong_kind_is_not_registered(registry: Registry, tmp_path: Path) -> None:
    folder = model(tmp_path / "m", "voice", b"weights")
    with pytest.raises(ArtifactError, match="expected 'memory'"):
        registry.register("memory", folder)
    (folder / "weights.safetensors").write_bytes(b"garbage")
    with pytest.raises(ArtifactError, match="corrupt"):
        registry.register("voice", folder)
    assert registry.versions("voice") == []


def test_unknown_names_say_what_there_is(registry: Registry) -> None:
    with pytest.raises(RegistryError, match="unknown model 'nose'; there are: labeler, face, voice, memory"):
        registry.versions("nose")
    with pytest.raises(RegistryError, match=r"no memory 'champion' .*there are no versions yet"):
        registry.version("memory", "champion")
    assert registry.find("memory", "champion") is None


def test_a_base_is_kept_after_the_pipeline_moved_on(registry: Registry, tmp_path: Path) -> None:
    base = model(tmp_path / "base", "base-llm", b"base")
    digest = write_manifest(base, "base-llm", files=["weights.safetensors"]).digest
    registry.register("voice", model(tmp_path / "v", "voice", b"adapter", base=digest), base=base)
    (base / "weights.safetensors").unlink()
    kept = registry.base(digest)
    assert kept is not None
    assert (kept / "weights.safetensors").read_bytes() == b"base"
    assert registry.versions("voice")[0].tags["base_sha256"] == digest
    assert registry.base("0" * 64) is None


def test_a_run_keeps_curves_settings_and_lineage(registry: Registry, tmp_path: Path) -> None:
    params = {f"voice.key{i}": i for i in range(150)}  # more than MLflow takes in one call
    (tmp_path / "faces.png").write_bytes(b"png")
    with registry.run("voice", tags={"profile": "smoke"}, params=params, folder=tmp_path) as journal:
        for step in range(1500):
            journal.log(step, loss=1 / (step + 1))
        journal.report(Report(metrics={"bits": 2.5}, pictures={"Faces": "faces.png"}), tmp_path)
    run = registry.client.get_run(journal.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["profile"] == "smoke"
    assert run.data.params["voice.key149"] == "149"
    assert run.data.metrics["final/bits"] == 2.5
    assert len(registry.client.get_metric_history(journal.run_id, "loss")) == 1500
    assert [a.path for a in registry.client.list_artifacts(journal.run_id, "pictures")] == [
        "pictures/faces.png"
    ]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1500


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError("loss is NaN"), "FAILED"), (KeyboardInterrupt(), "KILLED")]
)
def test_a_run_that_ends_badly_says_so(
    registry: Registry, tmp_path: Path, error: BaseException, status: str
) -> None:
    run_ids = []

    def train() -> None:
        with registry.run("voice", tags={}, params={}, folder=tmp_path) as journal:
            run_ids.append(journal.run_id)
            journal.log(0, loss=1.0)
            raise error

    with pytest.raises(type(error)):
        train()
    run = registry.client.get_run(run_ids[0])
    assert run.info.status == status
    assert run.data.metrics["loss"] == 1.0
    assert run.data.tags["error"].startswith(type(error).__name__)


def test_reconcile_ends_runs_whose_process_is_gone(registry: Registry) -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    tags = {PROCESS_TAG: identity(child.pid)}
    dead = registry.client.create_run(registry.experiment_id, tags=tags).info.run_id
    mine = registry.client.create_run(registry.experiment_id, tags={PROCESS_TAG: identity()}).info.run_id
    assert registry.reconcile() == []
    child.kill()
    child.wait()
    assert registry.reconcile() == [dead]
    assert registry.client.get_run(dead).info.status == "KILLED"
    assert registry.client.get_run(mine).info.status == "RUNNING"


def test_a_moved_tree_still_finds_its_models(config: Config, tmp_path: Path) -> None:
    before = Registry(config, tmp_path / "before")
    before.register("memory", model(tmp_path / "m", "memory", b"w"))
    (tmp_path / "before").rename(tmp_path / "after")
    after = Registry(config, tmp_path / "after")
    assert after.fetch("memory", "1").is_relative_to(tmp_path / "after")


def test_git_state_without_git_is_unknown(tmp_path: Path) -> None:
    assert git_state(tmp_path) == {"git_commit": "unknown", "git_dirty": "unknown"}
