"""The whole line on real servers: `ohlora up` in a copy of the tree with the smoke settings.

One module-wide `up` (tiny networks, minutes), then a test for each of its promises: pipeline, registry,
page, second start, staleness, flows from Prefect, SIGKILL, `down`.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

from ohlora.config import dump_config, load_config
from tests.ports import free_ports

ROOT = Path(__file__).parents[1]
pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(1800)]  # the latter a guard against hanging


@dataclass
class Tree:
    """A running copy of the work tree."""

    path: Path
    output: str  # of the first `ohlora up`
    chat: str
    prefect: str
    mlflow: str

    def ohlora(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "ohlora.cli", *arguments]
        done = subprocess.run(command, cwd=self.path, capture_output=True, text=True, check=False)
        if check:
            assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
        return done

    def dvc(self, *arguments: str) -> str:
        environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        command = [sys.executable, "-m", "dvc", *arguments]
        done = subprocess.run(
            command, cwd=self.path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def stages_run(self) -> dict[str, float]:
        return {path.parent.name: path.stat().st_mtime for path in self.path.glob("artifacts/*/report.json")}


def copy_tree(target: Path) -> None:
    names = subprocess.run(
        ["git", "ls-files", "-z", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True
    ).stdout
    for name in names.decode().split("\0"):
        if name and (ROOT / name).is_file() and name != "dvc.lock":
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_bytes((ROOT / name).read_bytes())
    for command in (["init", "-q"], ["add", "-A"]):
        subprocess.run(["git", *command], cwd=target, check=True, capture_output=True)
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    subprocess.run(["git", *identity, "commit", "-qm", "copy"], cwd=target, check=True, capture_output=True)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tree]:
    path = tmp_path_factory.mktemp("up") / "ohlora"
    path.mkdir()
    copy_tree(path)
    chat, prefect, mlflow = free_ports(3)
    ports = [f"serving.port={chat}", f"ports.prefect={prefect}", f"ports.mlflow={mlflow}"]
    config = load_config(ROOT, "smoke", ports).model_copy(update={"profile": "default"})
    (path / "params.yaml").write_text(dump_config(config), encoding="utf-8")
    addresses = (f"http://127.0.0.1:{port}" for port in (chat, prefect, mlflow))
    tree = Tree(path, "", *addresses)
    try:
        tree.output = tree.ohlora("up").stdout
        yield tree
    finally:
        tree.ohlora("down", check=False)


def test_up_prints_the_addresses_and_what_next(tree: Tree) -> None:
    for text in (tree.chat, tree.prefect, tree.mlflow, "make down"):
        assert text in tree.output


def test_a_chat_turn(tree: Tree) -> None:
    assert httpx.get(f"{tree.chat}/readyz").status_code == 200
    body = {"session": "e2e", "message": "안녕, 나는 민수야"}
    answer = httpx.post(f"{tree.chat}/api/chat", json=body, timeout=120)
    assert answer.status_code == 200, answer.text
    turn = answer.json()
    assert turn["text"].strip()
    assert turn["image"].startswith("data:image/")
    assert {"name", "eyes", "mouth", "pose"} <= set(turn["expression"])


def prefect_runs(tree: Tree) -> list[dict[str, Any]]:
    answer = httpx.post(f"{tree.prefect}/api/flow_runs/filter", json={"sort": "START_TIME_DESC"}, timeout=30)
    answer.raise_for_status()
    runs: list[dict[str, Any]] = answer.json()
    return runs


def test_prefect_shows_the_run_its_artifacts_and_the_deployments(tree: Tree) -> None:
    assert any(run["state_type"] == "COMPLETED" for run in prefect_runs(tree))
    deployments = httpx.post(f"{tree.prefect}/api/deployments/filter", json={}, timeout=30).json()
    assert {"pipeline", "labeling", "face", "voice", "memory", "package"} <= {d["name"] for d in deployments}
    schema = next(d for d in deployments if d["name"] == "pipeline")["parameter_openapi_schema"]
    assert "profile" in json.dumps(schema)
    artifacts = httpx.post(f"{tree.prefect}/api/artifacts/filter", json={}, timeout=30).json()
    face = next(a for a in artifacts if a["key"] == "face")
    assert "data:image/" in face["data"]
    assert tree.mlflow in face["data"]


def test_the_registry_has_champions_with_lineage(tree: Tree) -> None:
    for kind in ("labeler", "face", "voice", "memory"):
        shown = json.loads(tree.ohlora("registry", "show", kind, "champion").stdout)
        assert shown["files"]
        assert all(len(digest) == 64 for digest in shown["files"].values())
        assert len(shown["tags"]["git_commit"]) == 40
        assert shown["tags"]["inputs_sha256"]
        assert shown["tags"]["profile"] == "default"
    assert httpx.get(f"{tree.mlflow}/health", timeout=30).status_code == 200
    search = f"{tree.mlflow}/api/2.0/mlflow/registered-models/search"
    names = {model["name"] for model in httpx.get(search, timeout=60).json()["registered_models"]}
    assert {"ohlora-labeler", "ohlora-face", "ohlora-voice", "ohlora-memory"} <= names


def test_dvc_repro_after_up_runs_nothing(tree: Tree) -> None:
    before = tree.stages_run()
    assert "Running stage" not in tree.dvc("repro")
    assert tree.stages_run() == before


def test_a_second_up_reuses_everything(tree: Tree) -> None:
    before = tree.stages_run()
    assert "up to date" in tree.ohlora("up").stdout
    assert tree.stages_run() == before
    rows = tree.ohlora("status").stdout
    assert rows.count("running") == 4


def wait_for_state(tree: Tree, run_id: str, wanted: set[str], seconds: float = 300) -> str:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        run = httpx.get(f"{tree.prefect}/api/flow_runs/{run_id}", timeout=30).json()
        if run["state_type"] in wanted:
            return str(run["state_type"])
        time.sleep(1)
    pytest.fail(f"flow run stayed {run['state_type']}")


def start_deployment(tree: Tree, name: str, options: dict[str, Any]) -> str:
    found = httpx.get(f"{tree.prefect}/api/deployments/name/{name}/{name}", timeout=30)
    found.raise_for_status()
    body = {"parameters": {"options": options}, "state": {"type": "SCHEDULED"}}
    address = f"{tree.prefect}/api/deployments/{found.json()['id']}/create_flow_run"
    created = httpx.post(address, json=body, timeout=30)
    for _ in range(10):
        if created.status_code != 503:  # its database is busy; Prefect's own client tries again, too
            break
        time.sleep(5)
        created = httpx.post(address, json=body, timeout=30)
    assert created.status_code == 201, created.text
    return str(created.json()["id"])


def test_the_form_refuses_a_bad_value_before_a_run_starts(tree: Tree) -> None:
    found = httpx.get(f"{tree.prefect}/api/deployments/name/pipeline/pipeline", timeout=30).json()
    body = {"parameters": {"options": {"profile": "no-such-profile"}}, "state": {"type": "SCHEDULED"}}
    answer = httpx.post(
        f"{tree.prefect}/api/deployments/{found['id']}/create_flow_run", json=body, timeout=30
    )
    assert answer.status_code in (409, 422)
    assert "no-such-profile" in answer.text


def test_a_killed_flow_is_crashed_and_the_next_one_goes_on(tree: Tree) -> None:
    """SIGKILL in the middle of a forced stage: the run ends as crashed, finished stages are not redone."""
    options = {"overrides": ["voice.epochs=40"]}
    first = start_deployment(tree, "voice", options)
    wait_for_state(tree, first, {"RUNNING"}, 120)
    note = tree.path / ".ohlora" / "runs" / f"{first}.json"
    workspace = tree.path / ".ohlora" / "workspaces" / "default"
    deadline = time.monotonic() + 180
    while not (workspace / "artifacts" / "voice" / "metrics.jsonl").is_file():  # training began
        assert time.monotonic() < deadline
        time.sleep(0.5)
    finished = (workspace / "artifacts" / "dialogues" / "report.json").stat().st_mtime
    pid = int(json.loads(note.read_text())["process"].split(":")[1])
    children = psutil.Process(pid).children(recursive=True)
    os.kill(pid, signal.SIGKILL)
    assert wait_for_state(tree, first, {"CRASHED"}, 120) == "CRASHED"
    _, left = psutil.wait_procs(children, timeout=60)
    assert not left, "a trainer outlived its flow"

    second = start_deployment(tree, "voice", {"overrides": ["voice.epochs=1.5"]})
    assert wait_for_state(tree, second, {"COMPLETED", "FAILED", "CRASHED"}) == "COMPLETED"
    assert (workspace / "artifacts" / "dialogues" / "report.json").stat().st_mtime == finished


def test_a_learning_rate_makes_the_voice_and_package_stale_and_nothing_else(tree: Tree) -> None:
    params = tree.path / "params.yaml"
    original = params.read_text(encoding="utf-8")
    values = yaml.safe_load(original)
    values["voice"]["learning_rate"] *= 0.5
    before = tree.stages_run()
    try:
        params.write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), encoding="utf-8")
        tree.dvc("repro")
        after = tree.stages_run()
    finally:
        params.write_text(original, encoding="utf-8")
    assert {name for name in after if after[name] != before[name]} == {"voice", "preference", "package"}


def test_a_taken_port_is_a_clear_error(tree: Tree) -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        done = tree.ohlora("up", "--set", f"serving.port={s.getsockname()[1]}", check=False)
    assert done.returncode == 1
    assert "serving.port" in done.stderr
    assert "Traceback" not in done.stderr


def test_down_stops_everything(tree: Tree) -> None:
    pids = [json.loads(p.read_text())["pid"] for p in (tree.path / ".ohlora" / "services").glob("*.json")]
    assert len(pids) == 4
    tree.ohlora("down")
    assert not any(psutil.pid_exists(pid) for pid in pids)
    for address in (tree.chat, tree.prefect, tree.mlflow):
        with pytest.raises(httpx.TransportError):
            httpx.get(address, timeout=5)
