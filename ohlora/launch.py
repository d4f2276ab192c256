"""`ohlora up` and `ohlora down`: from whatever state this machine is in to a page that answers."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path

import httpx
from rich.console import Console

from ohlora.config import Config, state_dir
from ohlora.doctor import disk, ports
from ohlora.services import (
    Record,
    Service,
    ServiceError,
    chat_service,
    launch,
    log_tail,
    mlflow_service,
    newest_bento,
    prefect_service,
    records,
    runner_service,
    server_environment,
    stop,
    wait_ready,
)

STOP_ORDER = ("chat", "runner", "mlflow", "prefect")


def bring_up(config: Config, root: Path, console: Console) -> None:
    """Start the servers, bring the pipeline up to date, serve its bento; prints the addresses.

    What runs already is left alone, what is unchanged is not computed again.

    Raises:
        ServiceError: disk or a port is missing, a server or the pipeline failed.
    """
    started = time.monotonic()
    state = state_dir(config, root).resolve()
    state.mkdir(parents=True, exist_ok=True)
    for finding in (disk(root), *ports(config, root)):
        if finding.level == "error":
            raise ServiceError(f"{finding.result}; {finding.advice}")

    prefect, mlflow = prefect_service(config, root), mlflow_service(config, root)
    console.print("starting Prefect and MLflow …")
    pending = [(service, launch(service, state)) for service in (prefect, mlflow)]
    current = is_current(config, root)
    if current:  # nothing to compute: the page can load its models meanwhile
        pending.append(_launch_chat(config, root))
    for service, record in pending[:2]:
        wait_ready(service, state, record)
    runner = runner_service(config, root)
    runner_record = launch(runner, state)

    if current:
        console.print("the pipeline is up to date")
    else:
        console.print("running the pipeline; the same run is at " + prefect.url)
        _run_pipeline(config, root, has_bento=newest_bento(state) is not None, console=console)
        pending.append(_launch_chat(config, root))
    console.print("starting the chat page …")
    for service, record in pending[2:]:
        wait_ready(service, state, record)
    _wait_for_deployments(prefect, runner_record, state)
    _print_addresses(config, root, console, time.monotonic() - started)


def bring_down(config: Config, root: Path) -> list[str]:
    """Stop what `bring_up` started; returns the names of what was running."""
    state = state_dir(config, root).resolve()
    known = records(state)
    return [name for name in STOP_ORDER if name in known and stop(known[name], state)]


def is_current(config: Config, root: Path) -> bool:
    """Whether DVC sees nothing to do and the newest bento is of the current champions and settings."""
    from ohlora.package import is_stale

    if newest_bento(state_dir(config, root)) is None or not (root / "artifacts" / "package").is_dir():
        return False
    status = subprocess.run(
        [sys.executable, "-m", "dvc", "status", "--quiet"],
        cwd=root,
        env=server_environment(config, root),
        capture_output=True,
        check=False,
    )
    return status.returncode == 0 and not is_stale(config, root)


def _run_pipeline(config: Config, root: Path, *, has_bento: bool, console: Console) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "flows.pipeline"],
        cwd=root,
        env=server_environment(config, root),
        check=False,
    )
    if result.returncode == 0:
        return
    if has_bento:
        console.print("[yellow]the pipeline failed (see above); the last good bento is served[/]")
        return
    raise ServiceError(
        "the pipeline failed (see above); mend it and call make up again: it goes on from there"
    )


def _launch_chat(config: Config, root: Path) -> tuple[Service, Record]:
    state = state_dir(config, root).resolve()
    tag = newest_bento(state)
    if tag is None:
        raise ServiceError("the pipeline left no bento; build one with: ohlora bento build")
    service = chat_service(config, root, tag)
    return service, launch(service, state)


def _wait_for_deployments(prefect: Service, runner: Record, state: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if not runner.alive():
            raise ServiceError(f"the flow runner stopped while starting\n{log_tail(state, 'runner')}")
        with contextlib.suppress(httpx.HTTPError):
            found = httpx.post(f"{prefect.url}/api/deployments/count", json={}, timeout=5)
            if found.status_code == 200 and found.json() > 0:
                return
        time.sleep(0.5)
    raise ServiceError(f"the flow runner registered no deployment\n{log_tail(state, 'runner')}")


def _print_addresses(config: Config, root: Path, console: Console, seconds: float) -> None:
    report = root / "artifacts" / "package" / "report.json"
    if report.is_file():
        for note in json.loads(report.read_text(encoding="utf-8")).get("notes", []):
            console.print("• " + note.replace("[", "\\["))
    console.print(
        f"\n[bold]오로라 is up[/] after {seconds:.0f} s\n"
        f"  chat page    http://127.0.0.1:{config.serving.port}\n"
        f"  Prefect UI   http://127.0.0.1:{config.ports.prefect}   (Deployments → pipeline → Run)\n"
        f"  MLflow UI    http://127.0.0.1:{config.ports.mlflow}\n"
        "Next: open the chat page and say 안녕. Change params.yaml and call make up again to train.\n"
        "Stop everything with: make down"
    )
