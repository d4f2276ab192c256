"""One stage through DVC: a subprocess that skips what is unchanged and never outlives its caller."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ohlora.errors import UserError
from ohlora.lifeline import GRACE_S, end_session
from ohlora.stage import REPORT, Report, Stage

Outcome = Literal["ran", "restored", "skipped"]

_BUSY = ("Unable to acquire lock", "is busy, it is being blocked by")
_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_NOISE = ("Updating lock file", "Generating lock file", "Use `dvc push`", "WARNING: Process '")  # of DVC
_TAIL_LINES = 30
_PROGRESS_S = 5.0  # a redrawn progress bar is passed on this often
_BUSY_WAIT_S = 60.0

_looking = threading.Lock()  # DVC in this process is not made for threads
_interrupted: dict[int, float | None] = {}  # leader of a running session -> when it was told to end


class StageFailed(UserError, RuntimeError):
    """A stage ended with an error; the message ends with its last lines."""


class StageBusy(StageFailed):
    """Another DVC process holds the work tree for longer than a minute; trying again may help."""


@dataclass(frozen=True)
class StageResult:
    """What became of a stage."""

    name: str
    outcome: Outcome  # restored: DVC had the result of these inputs and settings in its cache
    seconds: float
    folder: Path  # its output
    report: Report


def reproduce(
    stage: Stage,
    tree: Path,
    *,
    force: bool = False,
    environment: Mapping[str, str] | None = None,
    on_line: Callable[[str], None] = print,
) -> StageResult:
    """Bring the output of one stage up to date.

    Args:
        stage: entry of the pipeline's table; `dvc.yaml` of the tree has one of its name.
        tree: work tree, or a workspace.
        force: run it although nothing changed.
        environment: added to the environment of the stage's process.
        on_line: gets each line that DVC and the stage print; redrawn progress bars only now and then.

    Raises:
        StageFailed: it ended with an error, or left no report.
        StageBusy: another DVC process holds the tree.
    """
    started = time.monotonic()
    if not force and is_unchanged(stage.name, tree):
        on_line(f"stage {stage.name} is unchanged")
        return StageResult(
            stage.name, "skipped", time.monotonic() - started, tree / stage.output, read_report(stage, tree)
        )
    # -P: the tree may hold a copy of this package, which must not shadow the installed one.
    command = [sys.executable, "-P", "-m", "ohlora.lifeline", str(os.getpid())]
    # DVC holds its lock before and after a stage's command, not meanwhile: another stage waits for it.
    command += ["dvc", "--wait-for-lock", "repro", "--single-item", stage.name]
    command += ["--force"] if force else []
    while True:
        code, lines = _stream(command, tree, dvc_environment(environment), on_line)
        if code == 0:
            break
        if not any(sign in line for line in lines for sign in _BUSY):
            raise StageFailed(_explain(stage.name, code, lines))
        if time.monotonic() - started > _BUSY_WAIT_S:
            raise StageBusy(_explain(stage.name, code, lines))
        on_line(f"another DVC process works in {tree}; waiting for it")
        time.sleep(2)
    return StageResult(
        name=stage.name,
        outcome=_outcome(lines),
        seconds=time.monotonic() - started,
        folder=tree / stage.output,
        report=read_report(stage, tree),
    )


def interrupt() -> None:
    """End the stages that run in other threads of this process; they fail there. Returns at once."""
    for pid, since in list(_interrupted.items()):
        late = since is not None and time.monotonic() - since > GRACE_S + 3
        if since is None or late:
            _interrupted[pid] = time.monotonic()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL if late else signal.SIGTERM)


def is_unchanged(name: str, tree: Path) -> bool:
    """Whether DVC sees nothing to do for a stage; False also when it cannot say. Takes 0.1 s."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with _looking, Repo(str(tree)) as repo:
            return not repo.status(
                targets=[f"{tree / 'dvc.yaml'}:{name}"]
            )  # alone it means the current folder's
    except DvcException:  # busy, or no such stage: the subprocess finds out and explains
        return False


def read_report(stage: Stage, tree: Path) -> Report:
    """The report that a stage left in its output folder.

    Raises:
        StageFailed: there is none, or it does not parse.
    """
    path = tree / stage.output / REPORT
    try:
        return Report.model_validate_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise StageFailed(
            f"stage {stage.name} left no readable {path}: {error}; run: ohlora run --force {stage.name}"
        ) from error


def dvc_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Environment of DVC: this interpreter's programs first, so that `ohlora` is found without a venv."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return {**os.environ, "PATH": path, "DVC_NO_ANALYTICS": "1", "PYTHONUNBUFFERED": "1", **(extra or {})}


def _stream(
    command: list[str], tree: Path, environment: Mapping[str, str], on_line: Callable[[str], None]
) -> tuple[int, list[str]]:
    process = subprocess.Popen(
        command,
        cwd=tree,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    _interrupted[process.pid] = None
    lines: list[str] = []
    last_progress = 0.0
    rest = b""
    try:
        while chunk := os.read(process.stdout.fileno(), 65536):  # type: ignore[union-attr]
            *parts, rest = re.split(rb"(?<=[\r\n])", rest + chunk)
            for part in parts:
                text = _ANSI.sub("", part.decode("utf-8", "replace")).rstrip()
                if not text:
                    continue
                if part.endswith(b"\r"):
                    if time.monotonic() - last_progress > _PROGRESS_S:
                        last_progress = time.monotonic()
                        on_line(text)
                    continue
                lines.append(text)
                if not text.startswith(_NOISE):
                    on_line(text)
        if text := _ANSI.sub("", rest.decode("utf-8", "replace")).strip():
            lines.append(text)
            on_line(text)
        return process.wait(), lines
    finally:
        if process.poll() is None:  # interrupted: DVC, the stage and what it started go together
            end_session(process.pid)
            process.wait()
        _interrupted.pop(process.pid, None)
        process.stdout.close()  # type: ignore[union-attr]


def _outcome(lines: list[str]) -> Outcome:
    if any(line.startswith("Running stage") for line in lines):
        return "ran"
    if any("is cached - skipping run" in line for line in lines):
        return "restored"
    return "skipped"


def _explain(name: str, code: int, lines: list[str]) -> str:
    tail = "\n".join("  " + line for line in lines[-_TAIL_LINES:])
    return f"stage {name} failed (exit code {code}); its last lines:\n{tail}"
