"""The servers a person looks at: Prefect's UI, MLflow's UI, the flow runner and the chat page.

Each is a child process with a record in `<state>/services/NAME.json` and its own log; starting is idempotent,
stopping takes the whole process group. Nothing here knows what the servers compute.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
from pydantic import BaseModel, ConfigDict

from ohlora.config import Config, state_dir
from ohlora.errors import UserError

LOOPBACK = "127.0.0.1"
START_TIMEOUT_S = 120.0


class ServiceError(UserError, RuntimeError):
    """A server cannot be started or did not become ready; the message says what to do."""


class Record(BaseModel):
    """What is known of a server that was started."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    pid: int
    created: float  # start time of the process, so that a recycled pid is not mistaken for it
    url: str
    tag: str = ""  # what it serves, e.g. the bento's tag

    def alive(self) -> bool:
        try:
            process = psutil.Process(self.pid)
            return abs(process.create_time() - self.created) < 1 and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False


@dataclass(frozen=True)
class Service:
    """How to start one server."""

    name: str
    command: list[str]
    port: int  # 0: it listens on nothing
    ready_path: str = ""
    environment: Mapping[str, str] | None = None
    cwd: Path | None = None
    tag: str = ""
    port_key: str = ""  # setting that moves the port, for the error message

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.port}" if self.port else ""


def server_environment(config: Config, root: Path) -> dict[str, str]:
    """Environment of every child: state inside the work tree, no telemetry, the venv's programs first."""
    state = state_dir(config, root).resolve()
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return {
        **os.environ,
        "PATH": path,
        "DO_NOT_TRACK": "1",
        "PREFECT_HOME": str(state / "prefect"),
        "PREFECT_API_URL": f"http://{LOOPBACK}:{config.ports.prefect}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_LOGGING_LEVEL": "WARNING",
        "PREFECT_LOGGING_LOGGERS_PREFECT_FLOW_RUNS_LEVEL": "INFO",
        "PREFECT_LOGGING_LOGGERS_PREFECT_TASK_RUNS_LEVEL": "INFO",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DVC_NO_ANALYTICS": "1",
        "BENTOML_HOME": str(state / "bentoml"),
        "BENTOML_DO_NOT_TRACK": "True",
        "HF_HUB_OFFLINE": os.environ.get("HF_HUB_OFFLINE", "1"),
        "TOKENIZERS_PARALLELISM": "false",
    }


def prefect_service(config: Config, root: Path) -> Service:
    """Prefect's API and UI."""
    port = config.ports.prefect
    return Service(
        name="prefect",
        command=[sys.executable, "-m", "prefect", "server", "start", "--host", LOOPBACK, "--port", str(port)],
        port=port,
        ready_path="/api/health",
        environment=server_environment(config, root),
        cwd=root,
        port_key="ports.prefect",
    )


def mlflow_service(config: Config, root: Path) -> Service:
    """MLflow's UI over the same SQLite file that the stages write."""
    state = state_dir(config, root).resolve()
    port = config.ports.mlflow
    uri = config.tracking.uri or f"sqlite:///{state / 'mlflow.db'}"
    artifacts = config.tracking.artifacts or str(state / "mlartifacts")
    return Service(
        name="mlflow",
        command=[
            *(sys.executable, "-m", "mlflow", "server", "--host", LOOPBACK, "--port", str(port)),
            *("--backend-store-uri", uri, "--default-artifact-root", artifacts),
            *("--serve-artifacts", "--artifacts-destination", artifacts, "--workers", "1"),
        ],
        port=port,
        ready_path="/health",
        environment=server_environment(config, root),
        cwd=root,
        port_key="ports.mlflow",
    )


def runner_service(config: Config, root: Path) -> Service:
    """The process that serves the flows' deployments and runs them."""
    return Service(
        name="runner",
        command=[sys.executable, "-m", "flows.serve"],
        port=0,
        environment=server_environment(config, root),
        cwd=root,
    )


def chat_service(config: Config, root: Path, tag: str, host: str | None = None) -> Service:
    """The bento's server."""
    state = state_dir(config, root).resolve()
    environment = server_environment(config, root)
    environment["OHLORA_DATABASE"] = config.serving.database or f"sqlite:///{state / 'chat.db'}"
    environment["OHLORA_TOKEN"] = config.serving.token
    port = config.serving.port
    return Service(
        name="chat",
        command=[
            *(sys.executable, "-m", "bentoml", "serve", tag),
            *("--host", host or config.serving.host, "--port", str(port)),
        ],
        port=port,
        ready_path="/readyz",
        environment=environment,
        cwd=state,
        tag=tag,
        port_key="serving.port",
    )


def records(state: Path) -> dict[str, Record]:
    """Records of the servers that were started, living or not."""
    found = {}
    for path in sorted((state / "services").glob("*.json")):
        with contextlib.suppress(ValueError):
            record = Record.model_validate_json(path.read_bytes())
            found[record.name] = record
    return found


def port_is_free(port: int, host: str = LOOPBACK) -> bool:
    """Whether a server could listen there now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind((host, port))
        except OSError:
            return False
    return True


def launch(service: Service, state: Path) -> Record:
    """Start a server unless it runs already; does not wait for it (see `wait_ready`).

    Raises:
        ServiceError: its port is taken by somebody else.
    """
    known = records(state).get(service.name)
    if known and known.alive():
        if known.tag == service.tag and known.url == service.url:
            return known
        stop(known, state)
    if service.port and not port_is_free(service.port):
        raise ServiceError(
            f"port {service.port} for {service.name} is taken by another program; stop that program or "
            f"choose another port: set {service.port_key} in params.yaml"
        )
    folder = state / "services"
    folder.mkdir(parents=True, exist_ok=True)
    with log_path(state, service.name).open("ab") as log:
        process = subprocess.Popen(
            service.command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=dict(service.environment) if service.environment else None,
            cwd=service.cwd,
            start_new_session=True,
        )
    created = psutil.Process(process.pid).create_time()
    record = Record(name=service.name, pid=process.pid, created=created, url=service.url, tag=service.tag)
    (folder / f"{service.name}.json").write_text(record.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return record


def wait_ready(service: Service, state: Path, record: Record) -> None:
    """Wait until a server answers its readiness path.

    Raises:
        ServiceError: it died or did not become ready in time; the message ends with its last log lines.
    """
    deadline = time.monotonic() + START_TIMEOUT_S
    while service.port:
        if not record.alive():
            raise ServiceError(f"{service.name} stopped while starting\n{log_tail(state, service.name)}")
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(service.url + service.ready_path, timeout=5).status_code == 200:
                break
        if time.monotonic() > deadline:
            raise ServiceError(
                f"{service.name} did not become ready in {START_TIMEOUT_S:.0f} s\n"
                + log_tail(state, service.name)
            )
        time.sleep(0.25)


def stop(record: Record, state: Path, timeout_s: float = 15.0) -> bool:
    """Stop a server and everything it started (SIGTERM, then SIGKILL); returns whether it was running."""
    was_alive = record.alive()
    if was_alive:
        processes = [psutil.Process(record.pid)]
        with contextlib.suppress(psutil.NoSuchProcess):
            processes += processes[0].children(recursive=True)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(record.pid, signal.SIGTERM)
        _, left = psutil.wait_procs(processes, timeout=timeout_s)
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=5)
    (state / "services" / f"{record.name}.json").unlink(missing_ok=True)
    return was_alive


def log_path(state: Path, name: str) -> Path:
    """Where a server logs."""
    return state / "services" / f"{name}.log"


def log_tail(state: Path, name: str, lines: int = 15) -> str:
    """The last lines of a server's log, with where to read on."""
    path = log_path(state, name)
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    return "\n".join([*text.splitlines()[-lines:], f"(whole log: {path})"])


def newest_bento(state: Path) -> str | None:
    """Tag of the bento that the last package stage built, if it is still in the store."""
    store = state / "bentoml" / "bentos" / "ohlora"
    latest = store / "latest"
    if not latest.is_file():
        return None
    version = latest.read_text(encoding="utf-8").strip()
    return f"ohlora:{version}" if (store / version).is_dir() else None


def free_disk_gb(path: Path) -> float:
    """Free space of the file system that holds `path`, in GB."""
    return shutil.disk_usage(path).free / 1e9


def describe(state: Path) -> list[dict[str, str]]:
    """A row for each server that was started: name, state, address, pid."""
    return [
        {
            "service": record.name,
            "state": "running" if record.alive() else "stopped",
            "address": record.url or "-",
            "pid": str(record.pid),
            "serves": record.tag or "-",
        }
        for record in records(state).values()
    ]
