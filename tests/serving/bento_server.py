"""Build and serve a bento the way a person would: with the commands, away from the repository."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from serving import ROOT
from tests.ports import free_port


@dataclass(frozen=True)
class Bento:
    """A built bento and the store it lies in."""

    tag: str
    path: Path
    home: Path


@dataclass(frozen=True)
class Server:
    """A running `bentoml serve`."""

    url: str
    folder: Path  # its working directory

    @property
    def log(self) -> str:
        return (self.folder / "server.log").read_text(encoding="utf-8")


def environment(home: Path, **extra: str) -> dict[str, str]:
    ours = ("OHLORA_", "BENTOML_", "PYTHONPATH")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
    return {**kept, "BENTOML_HOME": str(home), "BENTOML_DO_NOT_TRACK": "True", **extra}


def build(product: Path, home: Path, name: str = "ohlora") -> subprocess.CompletedProcess[str]:
    """Run the build command as a person would, from the repository."""
    return subprocess.run(
        [sys.executable, "-m", "serving.build", str(product), "--name", name],
        cwd=ROOT,
        env=environment(home),
        capture_output=True,
        text=True,
        check=False,
    )


@contextmanager
def serve(what: str, home: Path, folder: Path, **extra: str) -> Iterator[Server]:
    """Serve a bento (tag or folder) from `folder` on a free port until the block ends."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    command = [sys.executable, "-m", "bentoml", "serve", what, "--port", str(port)]
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment(home, **extra),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield Server(f"http://127.0.0.1:{port}", folder)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_for(server: Server, path: str, until: str = "", timeout: float = 400) -> httpx.Response:
    """Poll until `path` answers 200, or anything that holds `until`."""
    deadline = time.monotonic() + timeout
    answer = None
    while time.monotonic() < deadline:
        try:
            answer = httpx.get(server.url + path, timeout=5)
        except httpx.HTTPError:
            answer = None
        if answer is not None and (until in answer.text if until else answer.status_code == 200):
            return answer
        time.sleep(0.2)
    raise AssertionError(f"{path} did not come; last answer {answer}; log:\n{server.log}")
