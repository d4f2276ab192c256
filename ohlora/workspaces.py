"""Where a run works: the work tree itself, or a copy of it with other settings.

A run with a profile or with changed settings gets its own folder in the state folder, so that nobody's
`params.yaml` and outputs are rewritten under their hands. All of them share DVC's cache and the registry.
One run at a time: two trainings on the same cores are slower than one after the other.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from ohlora.config import PARAMS, Config, dump_config, load_config, state_dir
from ohlora.errors import UserError
from ohlora.lifeline import identity, is_alive
from ohlora.repro import dvc_environment

MARKER = ".ohlora-workspace.json"  # which files of the tree were copied here
_WITHOUT_GIT = (
    "dvc.yaml",
    ".dvcignore",
    "profiles",
    "data",
    "ohlora",
    "serving",
    "flows",
    "requirements.lock",
)
_NOT_COPIED = (PARAMS, "dvc.lock", ".dvc/", ".git/")


class WorkspaceError(UserError, RuntimeError):
    """A workspace cannot be prepared."""


def is_changed(config: Config, root: Path) -> bool:
    """Whether a configuration differs from the `params.yaml` of the tree, so that it needs a workspace."""
    return config != load_config(root)


def is_workspace(folder: Path) -> bool:
    """Whether a folder was made by `workspace`."""
    return (folder / MARKER).is_file()


def workspace(config: Config, root: Path, overridden: bool | None = None) -> Path:
    """The folder in which a run with these settings works, brought up to date with the work tree.

    Args:
        config: effective settings of the run.
        root: work tree (or a workspace, which is returned as it is).
        overridden: whether the settings differ from the tree's; found out when not given.

    Raises:
        WorkspaceError: DVC cannot be set up there.
    """
    root = root.resolve()
    if is_workspace(root) or not (is_changed(config, root) if overridden is None else overridden):
        return root
    state = state_dir(config, root).resolve()
    folder = state / "workspaces" / config.profile
    folder.mkdir(parents=True, exist_ok=True)
    with run_lock(config, root, f"prepare workspace {config.profile}"):
        _copy(root, folder)
        (folder / PARAMS).write_text(dump_config(_shared(config, root)), encoding="utf-8")
        if not (folder / ".dvc" / "config").is_file():
            _init_dvc(root, folder)
    return folder


@contextlib.contextmanager
def run_lock(
    config: Config, root: Path, what: str, say: Callable[[str], None] = print, poll_s: float = 0.5
) -> Iterator[None]:
    """Hold the one place for a run; waits for whoever has it and says who that is. Reentrant in a process."""
    state = state_dir(config, root).resolve()
    state.mkdir(parents=True, exist_ok=True)
    holder = state / "run.json"
    lock = FileLock(state / "run.lock", is_singleton=True, thread_local=False)
    said = ""
    while True:
        try:
            lock.acquire(timeout=poll_s)
            break
        except Timeout:
            who = _holder(holder)
            if who != said:
                said = who
                say(f"another run works in this tree: {who}; waiting for it to end")
    try:
        if lock.lock_counter == 1:
            body = {"process": identity(), "what": what, "since": time.strftime("%Y-%m-%d %H:%M:%S")}
            holder.write_text(json.dumps(body), encoding="utf-8")
        yield
    finally:
        if lock.lock_counter == 1:
            holder.unlink(missing_ok=True)
        lock.release()


def _holder(path: Path) -> str:
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        if is_alive(body["process"]):
            return f"{body['what']}, pid {body['process'].split(':')[1]}, since {body['since']}"
    except (OSError, ValueError, KeyError, IndexError):
        pass
    return "a run that is just starting"


def _shared(config: Config, root: Path) -> Config:
    """The same settings with absolute places, so that a workspace uses the tree's registry and servers."""
    state = state_dir(config, root).resolve()
    tracking = config.tracking.model_copy(
        update={
            "uri": config.tracking.uri or f"sqlite:///{state / 'mlflow.db'}",
            "artifacts": config.tracking.artifacts or str(state / "mlartifacts"),
        }
    )
    return config.model_copy(update={"state": str(state), "tracking": tracking})


def _files(root: Path) -> list[str]:
    """Files of the tree that git tracks or would track, relative to it."""
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        listed = subprocess.run(
            ["git", "ls-files", "-z", "-co", "--exclude-standard"],
            cwd=root,
            capture_output=True,
            check=True,
        ).stdout
        names = {os.fsdecode(name) for name in listed.split(b"\0") if name}
        return sorted(name for name in names if (root / name).is_file())
    found: list[str] = []
    for name in _WITHOUT_GIT:
        path = root / name
        files = [path] if path.is_file() else path.rglob("*")
        found += [str(f.relative_to(root)) for f in files if f.is_file() and "__pycache__" not in f.parts]
    return sorted(found)


def _copy(root: Path, folder: Path) -> None:
    """Copy what changed, remove what is gone from the tree."""
    names = [name for name in _files(root) if not name.startswith(_NOT_COPIED)]
    marker = folder / MARKER
    before = json.loads(marker.read_text(encoding="utf-8")) if marker.is_file() else []
    for name in set(before) - set(names):
        (folder / name).unlink(missing_ok=True)
    for name in names:
        source, target = root / name, folder / name
        there = source.stat()
        with contextlib.suppress(FileNotFoundError):
            here = target.stat()
            if here.st_size == there.st_size and here.st_mtime_ns == there.st_mtime_ns:
                continue
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)
    marker.write_text(json.dumps(names), encoding="utf-8")


def _init_dvc(root: Path, folder: Path) -> None:
    cache = root / ".dvc" / "cache"
    for arguments in (
        ["init", "--no-scm", "--quiet", "--force"],
        ["config", "core.analytics", "false"],
        ["config", "core.autostage", "false"],
        ["config", "cache.dir", str(cache)],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "dvc", *arguments],
            cwd=folder,
            env=dvc_environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            shutil.rmtree(folder / ".dvc", ignore_errors=True)
            raise WorkspaceError(f"dvc {' '.join(arguments)} failed in {folder}:\n{done.stderr.strip()}")
