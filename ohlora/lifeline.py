"""Processes that end when nobody waits for them any more.

A trainer that outlives its pipeline keeps the cores, DVC's lock and an MLflow run. So each child watches
its parent: `python -m ohlora.lifeline PARENT MODULE ARGS…` runs a module as `python -m MODULE` and takes its
whole process group down when the parent dies, even by SIGKILL (Linux; elsewhere on orderly ends only).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import runpy
import signal
import sys
import time
from types import FrameType

import psutil

PR_SET_PDEATHSIG = 1
GRACE_S = 12.0  # what a stage gets to close its MLflow run; Prefect's runner gives the flow 30 s


def die_with_parent(parent: int | None = None) -> None:
    """Ask the kernel for SIGTERM when the parent dies; a no-op where there is no such call.

    Args:
        parent: pid of whoever started this process; when it is gone already, this process ends now.
    """
    if not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if parent is not None and os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)


def identity(pid: int | None = None) -> str:
    """`host:pid:start` of a process: unlike a pid it is not reused.

    Raises:
        psutil.NoSuchProcess: there is no such process.
    """
    process = psutil.Process(pid)
    return f"{platform.node()}:{process.pid}:{process.create_time():.2f}"


def is_alive(process: str) -> bool:
    """Whether the process of an `identity` runs. One of another host counts as alive: who can tell."""
    try:
        host, pid, started = process.rsplit(":", 2)
        if host != platform.node():
            return True
        found = psutil.Process(int(pid))
        return abs(found.create_time() - float(started)) < 1 and found.status() != psutil.STATUS_ZOMBIE
    except (ValueError, psutil.NoSuchProcess):
        return False


def _end_group(signum: int, _frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # Listed before the signal: one whose parent dies first is nobody's child a moment later.
    children = psutil.Process().children(recursive=True)
    os.killpg(os.getpgid(0), signal.SIGTERM)
    psutil.wait_procs(children, timeout=GRACE_S)
    for child in children:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    os._exit(128 + signum)


def end_session(pid: int) -> None:
    """End a child that leads its own session, and everything in its process group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGTERM)
    deadline = time.monotonic() + GRACE_S + 3
    while time.monotonic() < deadline:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
        try:
            os.killpg(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def main(arguments: list[str]) -> None:
    """Run `MODULE ARGS…` as `python -m` does, for as long as `PARENT` lives."""
    parent, module, *rest = arguments
    signal.signal(signal.SIGTERM, _end_group)
    die_with_parent(int(parent))
    sys.argv = [module, *rest]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1:])
