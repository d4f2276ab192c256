"""The table and dvc.yaml, a stage's run, DVC underneath, workspaces and the lock."""

import ast
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import psutil
import pytest
import yaml

from ohlora.artifacts import write_manifest
from ohlora.config import Config, load_config
from ohlora.pipeline import (
    STAGES,
    StageError,
    StageFailed,
    dvc_file,
    execute,
    inputs_digest,
    order,
    run_lock,
    run_pipeline,
    run_stage_through_dvc,
)
from ohlora.registry import Registry
from ohlora.stage import Journal, Report, Stage
from ohlora.workspaces import MARKER, workspace
from tests import tiny_tree

ROOT = Path(__file__).parent.parent
StandIn = tuple[str, Path, Config, dict[str, Stage]]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return tiny_tree.make(tmp_path / "tree")


def test_dvc_yaml_says_what_the_table_says() -> None:
    assert yaml.safe_load((ROOT / "dvc.yaml").read_text()) == yaml.safe_load(dvc_file())


def test_every_stage_depends_on_its_inputs_code_and_settings() -> None:
    settings = load_config(ROOT).model_dump()
    for name, stage in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].items():
        assert stage["cmd"] == f"ohlora stage {name}"
        assert set(STAGES[name].inputs.values()) | set(STAGES[name].code) == set(stage["deps"])
        assert stage["outs"] == [STAGES[name].output]
        for key in stage.get("params", []):
            value = settings
            for part in key.split("."):
                value = value[part]


# What a stage imports of its room that its artifact does not depend on:
# what a report shows, or what refuses a base.
NOT_IN_THE_ARTIFACT = {
    "parser": {"pictures"},
    "base_llm": {"hangul"},
    "voice": {"engine"},
    "preference": {"sft"},
}


def of_single_files(stage: Stage) -> bool:
    """Whether a stage names files of its entry's room instead of the room."""
    room = stage.entry.partition(":")[0].rpartition(".")[0].replace(".", "/")
    return room != "ohlora" and room not in stage.code


@pytest.mark.parametrize("name", [stage.name for stage in STAGES.values() if of_single_files(stage)])
def test_a_stage_of_single_files_depends_on_what_its_entry_imports_of_its_room(name: str) -> None:
    entry = STAGES[name].entry.partition(":")[0]
    room = entry.rpartition(".")[0]
    source = ast.parse((ROOT / f"{entry.replace('.', '/')}.py").read_text(encoding="utf-8"))
    modules = {node.module or "" for node in ast.walk(source) if isinstance(node, ast.ImportFrom)}
    imported = {module.removeprefix(f"{room}.") for module in modules if module.startswith(f"{room}.")}
    known = {Path(path).stem for path in STAGES[name].code}
    assert imported - known == NOT_IN_THE_ARTIFACT.get(name, set())


def test_order_puts_inputs_first() -> None:
    names = order()
    assert sorted(names) == sorted(STAGES)
    maker = {stage.output: stage.name for stage in STAGES.values()}
    for name in names:
        for path in STAGES[name].inputs.values():
            if path in maker:
                assert names.index(maker[path]) < names.index(name)
    assert order(["voice"]) == ["base_llm", "base_encoder", "retriever", "examples", "dialogues", "voice"]
    with pytest.raises(StageError, match="unknown stage 'nose'; there are: corpus"):
        order(["nose"])


# A stage's run


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., StandIn]:
    """Make a table with one stage that is a given function."""

    def make(run: Callable[..., Report], model: str | None = None) -> StandIn:
        module = ModuleType("stand_in_stage")
        module.run = run  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "stand_in_stage", module)
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data/rows.txt").write_text("rows")
        stage = Stage("s", "stand_in_stage:run", {"rows": "data/rows.txt"}, "artifacts/s", model, ("voice",))
        return "s", tmp_path, load_config(ROOT), {"s": stage}

    return make


def test_a_stage_gets_its_inputs_and_a_clean_output(stand_in: Callable[..., StandIn]) -> None:
    def run(config: Config, inputs: dict, outputs: dict, journal: Journal) -> Report:
        assert inputs == {"rows": Path("data/rows.txt")}
        assert inputs["rows"].read_text() == "rows"
        assert list(outputs["output"].iterdir()) == []
        journal.log(1, loss=0.5)
        (outputs["output"] / "p.png").write_bytes(b"png")
        return Report(metrics={"loss": 0.5}, pictures={"Rows": "p.png"})

    name, root, config, stages = stand_in(run)
    for _ in range(2):
        execute(name, root, config, stages)
    report = json.loads((root / "artifacts/s/report.json").read_text())
    assert report["metrics"] == {"loss": 0.5}
    assert (root / "artifacts/s/metrics.jsonl").read_text() == '{"step": 1, "loss": 0.5}\n'


def test_a_missing_input_or_picture_is_explained(stand_in: Callable[..., StandIn]) -> None:
    name, root, config, stages = stand_in(lambda *_: Report(pictures={"Faces": "faces.png"}))
    with pytest.raises(StageError, match=r"picture 'Faces', but artifacts/s/faces.png is missing"):
        execute(name, root, config, stages)
    (root / "data/rows.txt").unlink()
    with pytest.raises(StageError, match=r"stage s needs data/rows.txt \(rows\).*git checkout data/rows.txt"):
        execute(name, root, config, stages)
    with pytest.raises(StageError, match=r"needs artifacts/corpus .*ohlora run --target corpus"):
        execute("judge", root, config)
    # other settings work in a folder of their own, which the plain command does not fill
    (root / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    (root / MARKER).touch()
    with pytest.raises(StageError, match=r"--target corpus and the same --profile and --set$"):
        execute("judge", root, config)


def test_a_model_stage_is_logged_and_registered(
    stand_in: Callable[..., StandIn], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OHLORA_FLOW_RUN_ID", "flow-1")

    def train(config: Config, inputs: dict, outputs: dict, journal: Journal) -> Report:
        journal.log(0, loss=2.0)
        (outputs["output"] / "w.safetensors").write_bytes(b"weights")
        write_manifest(outputs["output"], "voice", files=["w.safetensors"])
        if os.environ.get("FAIL"):
            raise ValueError("diverged")
        return Report(metrics={"loss": 2.0})

    name, root, config, stages = stand_in(train, model="voice")
    report = execute(name, root, config, stages)
    registry = Registry(config, root)
    run = registry.client.get_run(report.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["voice.learning_rate"] == str(config.voice.learning_rate)
    assert run.data.metrics["loss"] == 2.0
    version = registry.version("voice", "1")
    assert (
        version.run_id
        == report.run_id
        == json.loads((root / "artifacts/s/report.json").read_text())["run_id"]
    )
    for tags in (version.tags, run.data.tags):
        assert tags["stage"] == "s"
        assert tags["profile"] == "default"
        assert tags["prefect_flow_run_id"] == "flow-1"
        assert tags["inputs_sha256"] == inputs_digest({"rows": root / "data/rows.txt"})

    monkeypatch.setenv("FAIL", "1")
    with pytest.raises(ValueError, match="diverged"):
        execute(name, root, config, stages)
    statuses = [r.info.status for r in registry.client.search_runs([registry.experiment_id])]
    assert sorted(statuses) == ["FAILED", "FINISHED"]


def test_sigterm_ends_a_stage_and_its_run_in_order(stand_in: Callable[..., StandIn]) -> None:
    def train(config: Config, inputs: dict, outputs: dict, journal: Journal) -> Report:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
        return Report()

    name, root, config, stages = stand_in(train, model="voice")
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        execute(name, root, config, stages)
    assert signal.getsignal(signal.SIGTERM) is before
    registry = Registry(config, root)
    assert [r.info.status for r in registry.client.search_runs([registry.experiment_id])] == ["KILLED"]


def test_inputs_digest_sees_content_and_not_reports(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/rows.txt").write_text("a")
    first = inputs_digest({"in": tmp_path / "in"})
    (tmp_path / "in/report.json").write_text("{}")
    assert inputs_digest({"in": tmp_path / "in"}) == first
    (tmp_path / "in/rows.txt").write_text("b")
    assert inputs_digest({"in": tmp_path / "in"}) != first


# Through DVC


def test_what_is_unchanged_is_skipped_and_what_was_is_restored(tree: Path) -> None:
    def run(*overrides: str, force: tuple[str, ...] = ()) -> list[str]:
        config = load_config(tree, None, overrides)
        return [r.outcome for r in run_pipeline(config, tree, [tiny_tree.TARGET], force)]

    assert run() == ["ran", "ran"]
    assert run() == ["skipped", "skipped"]
    assert run(force=("memory",)) == ["skipped", "ran"]
    params = (tree / "params.yaml").read_text()
    # other settings: a workspace, which gets the shared part from the cache
    assert run("memory.epochs=5") == ["restored", "ran"]
    assert run("memory.epochs=6") == ["skipped", "ran"]
    assert run("memory.epochs=5") == ["skipped", "restored"]
    assert (tree / "params.yaml").read_text() == params
    assert tiny_tree.log(tree) == ["base_encoder", "memory", "memory"]
    assert tiny_tree.log(tree / ".ohlora/workspaces/default") == ["memory", "memory"]
    assert run() == ["skipped", "skipped"]


def test_a_failing_stage_shows_its_last_lines(tree: Path) -> None:
    (tree / "fail").touch()
    lines: list[str] = []
    with pytest.raises(
        StageFailed, match=r"stage base_encoder failed \(exit code \d+\)(.|\n)*the loss is NaN"
    ):
        run_stage_through_dvc("base_encoder", tree, on_line=lines.append)
    assert "working on base_encoder" in lines
    (tree / "fail").unlink()
    assert run_stage_through_dvc("base_encoder", tree).outcome == "ran"


def _wait_for(path: Path, seconds: float = 300) -> int:
    deadline = time.monotonic() + seconds
    while not (path.is_file() and path.read_text()):
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.05)
    return int(path.read_text())


def test_nothing_outlives_a_killed_run(tree: Path) -> None:
    (tree / "slow").touch()
    code = (
        "from pathlib import Path; from ohlora.config import load_config; from ohlora.pipeline import *; "
        "run_pipeline(load_config('.'), Path('.'), ['memory'])"
    )
    run = subprocess.Popen([sys.executable, "-c", code], cwd=tree, start_new_session=True)
    try:
        trainer = psutil.Process(_wait_for(tree / "pid"))
        family = [trainer, *trainer.parents()[:2]]
        assert any(p.pid == run.pid for p in trainer.parents())
    finally:
        run.kill()
        run.wait()
    _, alive = psutil.wait_procs([p for p in family if p.pid != os.getpid()], timeout=30)
    assert alive == []
    # the lock of the dead is no obstacle, and what was finished is not done again
    (tree / "slow").unlink()
    results = run_pipeline(load_config(tree), tree, ["memory"])
    assert [r.outcome for r in results] == ["skipped", "ran"]


def test_one_run_at_a_time_and_the_second_says_who_it_waits_for(tree: Path) -> None:
    config = load_config(tree)
    code = (
        "import sys; from pathlib import Path; from ohlora.config import load_config; "
        "from ohlora.pipeline import run_lock\n"
        "with run_lock(load_config('.'), Path('.'), 'the first run'):\n"
        "    print('held', flush=True); sys.stdin.read()"
    )
    first = subprocess.Popen(
        [sys.executable, "-c", code], cwd=tree, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert first.stdout is not None
    assert first.stdout.readline() == "held\n"
    said: list[str] = []
    entered = threading.Event()

    def second() -> None:
        with run_lock(config, tree, "the second run", say=said.append, poll_s=0.05):
            entered.set()

    waiting = threading.Thread(target=second)
    waiting.start()
    while not said:
        time.sleep(0.01)
    assert f"the first run, pid {first.pid}, since" in said[0]
    assert not entered.is_set()
    first.communicate("")
    waiting.join(timeout=30)
    assert entered.is_set()


def test_a_workspace_follows_the_tree(tree: Path) -> None:
    config = load_config(tree, "smoke")
    assert workspace(load_config(tree), tree) == tree
    folder = workspace(config, tree)
    assert folder == tree / ".ohlora/workspaces/smoke"
    inside = load_config(folder)
    assert (inside.profile, inside.memory.epochs) == ("smoke", 2.0)
    assert Path(inside.state) == tree / ".ohlora"
    assert inside.tracking.uri == f"sqlite:///{tree / '.ohlora/mlflow.db'}"
    (tree / "data/stage.py").write_text("changed")
    (tree / "data/new.txt").write_text("new")
    (tree / "profiles/smoke.yaml").unlink()
    workspace(config, tree)
    assert (folder / "data/stage.py").read_text() == "changed"
    assert (folder / "data/new.txt").read_text() == "new"
    assert not (folder / "profiles/smoke.yaml").exists()
