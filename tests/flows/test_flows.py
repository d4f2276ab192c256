"""Flows against a real Prefect server, over a tiny work tree with real DVC."""

import ast
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.settings import get_current_settings
from prefect.states import Running
from prefect.testing.utilities import prefect_test_harness
from pydantic import ValidationError

from flows.options import RunOptions
from flows.pages import stage_page
from flows.parts import memory
from flows.serve import PARTS, reconcile
from flows.tasks import record_path
from ohlora.config import load_config
from ohlora.lifeline import identity
from ohlora.pipeline import STAGES, StageResult
from ohlora.stage import Report
from tests import tiny_tree

ROOT = Path(__file__).parents[2]
RUN = "from flows.parts import memory; memory()"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with prefect_test_harness(server_startup_timeout=120):
        url = get_current_settings().api.url
        assert url is not None
        yield url


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return tiny_tree.make(tmp_path / "tree")


def start(tree: Path, server: str, code: str = RUN) -> subprocess.Popen[str]:
    """Run code with the flows in a process of its own, as Prefect's runner does."""
    environment = {**os.environ, "PREFECT_API_URL": server, "PYTHONPATH": str(ROOT)}
    environment.pop("PREFECT_HOME", None)
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=tree,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not (path.is_file() and path.read_text()):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.05)


def has_ended(pid: int) -> bool:
    """Whether a process is gone, or dead and not yet collected by the machine's first process."""
    try:
        process = psutil.Process(pid)
        return process.status() == psutil.STATUS_ZOMBIE or process.wait(timeout=2) is None
    except psutil.NoSuchProcess:
        return True
    except psutil.TimeoutExpired:
        return process.status() == psutil.STATUS_ZOMBIE


def runs() -> list[Any]:
    with get_client(sync_client=True) as client:
        return sorted(client.read_flow_runs(), key=lambda run: run.created, reverse=True)


def test_a_flow_runs_its_stages_and_shows_what_came_out(server: str, tree: Path) -> None:
    process = start(tree, server)
    output = process.communicate(timeout=240)[0]
    assert process.returncode == 0, output
    assert tiny_tree.log(tree) == ["base_encoder", "memory"]
    run = runs()[0]
    assert run.state.type == StateType.COMPLETED
    with get_client(sync_client=True) as client:
        tasks = {t.name: t for t in client.read_task_runs() if t.flow_run_id == run.id}
        shown = client.request("POST", "/artifacts/filter", json={}).json()
    assert {name: task.state.type for name, task in tasks.items()} == {
        "base_encoder": StateType.COMPLETED,
        "memory": StateType.COMPLETED,
    }
    pages = {a["key"]: a for a in shown if a["flow_run_id"] == str(run.id)}
    assert "| pearson | 0.5 |" in pages["memory"]["data"]
    assert "- memory is done" in pages["memory"]["data"]
    assert json.loads(pages["memory-worst-pairs"]["data"]) == [{"a": 1}]
    assert list((tree / ".ohlora/runs").iterdir()) == []


SELECT = """
from ohlora.evaluation.voice_selection import Selection

def measure(self, candidate):
    self.rows.append({"candidate": candidate.name, self.config.gate.voice.primary: float(len(self.rows))})
    return self.rows[-1]

Selection.measure = measure  # the training itself is tested in tests/evaluation
from flows.select_voice import select_voice
select_voice()
"""


def test_the_selection_of_a_voice_is_a_task_for_each_candidate_and_one_table(server: str, tree: Path) -> None:
    process = start(tree, server, SELECT)
    output = process.communicate(timeout=240)[0]
    assert process.returncode == 0, output
    names = [candidate.name for candidate in load_config(tree).voice.candidates]
    run = runs()[0]
    with get_client(sync_client=True) as client:
        tasks = [t.name for t in client.read_task_runs() if t.flow_run_id == run.id]
        shown = client.request("POST", "/artifacts/filter", json={}).json()
    assert sorted(tasks) == sorted(names)
    table = next(a for a in shown if a["key"] == "voice-candidates" and a["flow_run_id"] == str(run.id))
    assert [row["candidate"] for row in json.loads(table["data"])] == names
    assert "best by" in output


def test_after_sigkill_a_new_run_does_only_what_was_not_done(server: str, tree: Path) -> None:
    (tree / "slow").touch()
    process = start(tree, server)
    wait_for(tree / "pid", process)
    process.kill()
    process.wait()
    killed = runs()[0]
    assert killed.state.type == StateType.RUNNING  # nobody told the server
    with get_client(sync_client=True) as client:
        config = load_config(tree).model_copy(update={"state": str(tree / ".ohlora")})
        assert reconcile(client, config, since=0) == [killed.name]
        assert client.read_flow_run(killed.id).state.type == StateType.CRASHED

    (tree / "slow").unlink()
    process = start(tree, server)
    output = process.communicate(timeout=240)[0]
    assert process.returncode == 0, output
    assert tiny_tree.log(tree) == ["base_encoder", "memory", "memory"]


def test_sigterm_stops_the_trainer_with_the_flow(server: str, tree: Path) -> None:
    (tree / "slow").touch()
    process = start(tree, server)
    wait_for(tree / "pid", process)
    trainer = int((tree / "pid").read_text())
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert has_ended(trainer)
    assert list((tree / ".ohlora/runs").iterdir()) == []


def test_reconcile_leaves_the_living_alone(server: str, tmp_path: Path) -> None:
    config = load_config(ROOT).model_copy(update={"state": str(tmp_path)})
    with get_client(sync_client=True) as client:
        for run in runs():
            if run.state.type in (StateType.RUNNING, StateType.PENDING):
                client.delete_flow_run(run.id)
        run = client.create_flow_run(memory, parameters={}, state=Running())
        note = record_path(config, str(run.id))
        note.parent.mkdir(parents=True)
        note.write_text(json.dumps({"process": identity()}))
        assert reconcile(client, config, since=0) == []
        note.unlink()
        # without a note: a run that began a moment ago may not have written it yet
        assert reconcile(client, config, since=time.time() + 3600) == []
        client.delete_flow_run(run.id)


# What needs no server


def test_options_refuse_what_is_no_setting() -> None:
    assert RunOptions(profile="smoke", overrides=["voice.epochs=2"]).config().voice.epochs == 2
    assert RunOptions(promote=False).config().gate.promote is False
    for bad in (
        {"profile": "nose"},
        {"force": ["nose"]},
        {"overrides": ["voice.epochs"]},
        {"overrides": ["voice.epochz=2"]},
        {"overrides": ["voice.epochs=many"]},
        {"typo": 1},
    ):
        with pytest.raises(ValidationError):
            RunOptions.model_validate(bad)


def test_the_form_offers_profiles_and_stages() -> None:
    schema = RunOptions.model_json_schema()["properties"]
    assert schema["profile"]["enum"][:1] == ["default"]
    assert "smoke" in schema["profile"]["enum"]
    assert schema["force"]["items"]["enum"] == list(STAGES)
    assert all("description" in field for field in schema.values())


@pytest.mark.parametrize("source", ["pipeline", "parts"])
def test_flows_run_stages_after_what_they_need(source: str) -> None:
    """The diagram of a flow file and the table agree."""
    flows = [
        node
        for node in ast.parse((ROOT / "flows" / f"{source}.py").read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name != "main"
    ]
    maker = {stage.output: stage.name for stage in STAGES.values()}
    for flow in flows:
        calls = [c for c in ast.walk(flow) if isinstance(c, ast.Call) and ast.unparse(c.func) == "run"]
        calls.sort(key=lambda call: call.lineno)
        names = [ast.literal_eval(call.args[0]) for call in calls]
        for call, name in zip(calls, names, strict=True):
            after = {ast.unparse(e) for k in call.keywords for e in getattr(k.value, "elts", [])}
            needs = {maker[path] for path in STAGES[name].inputs.values() if path in maker}
            if name != "package":  # it waits for the models, which wait for the rest
                assert after == needs, (flow.name, name)
                assert needs <= set(names[: names.index(name)])
        if flow.name == "pipeline":
            assert sorted(names) == sorted(STAGES)
    assert source == "pipeline" or {flow.name for flow in flows} == {part.name for part in PARTS} - {
        "select_voice"
    }


def test_a_page_shows_pictures_that_are_small_enough(tmp_path: Path) -> None:
    Image.effect_noise((2000, 2000), 80).save(tmp_path / "sheet.png")
    report = Report(metrics={"bits": 2.5}, pictures={"Faces": "sheet.png"}, run_id="abc", notes=["a note"])
    page = stage_page(StageResult("face", "ran", 1.5, tmp_path, report), "http://127.0.0.1:5000")
    assert "http://127.0.0.1:5000/#/runs/abc" in page
    assert "![Faces](data:image/jpeg;base64," in page
    assert "| bits | 2.5 |" in page
    assert len(page) < 250_000
