"""What this machine lacks, in words that say what to do."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from ohlora.config import Config, state_dir
from ohlora.services import free_disk_gb, port_is_free, records

NEEDED_DISK_GB = 4.0  # artifacts, their DVC cache and two bentos of the default profile
NEEDED_MEMORY_GB = 6.0


@dataclass(frozen=True)
class Finding:
    """One check: `error` means that `ohlora up` would fail."""

    check: str
    level: Literal["ok", "note", "error"]
    result: str
    advice: str = ""


def examine(config: Config, root: Path) -> Iterator[Finding]:
    """Check Python, packages, memory, disk, ports, data and optional programs."""
    yield _python()
    yield from _packages(root)
    yield _memory()
    yield disk(root)
    yield from ports(config, root)
    yield from _data(config, root)
    yield from _programs()
    yield _accelerator(config)


def _python() -> Finding:
    version = platform.python_version()
    if sys.version_info[:2] == (3, 11):
        return Finding("Python", "ok", version)
    return Finding("Python", "error", version, "make the environment with Python 3.11: make clean-venv up")


def _packages(root: Path) -> Iterator[Finding]:
    lock = root / "requirements.lock"
    if not lock.is_file():
        yield Finding("packages", "error", "requirements.lock is missing", "git checkout requirements.lock")
        return
    wrong = []
    for name, version in re.findall(r"^([A-Za-z0-9_.-]+)==(\S+)", lock.read_text(encoding="utf-8"), re.M):
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found = "missing"
        if found != version:
            wrong.append(f"{name} {found}, locked {version}")
    if wrong:
        yield Finding("packages", "error", "; ".join(wrong[:5]), "make install")
    else:
        yield Finding("packages", "ok", "as locked")


def _memory() -> Finding:
    memory = psutil.virtual_memory()
    text = f"{memory.available / 1e9:.1f} GB free of {memory.total / 1e9:.1f} GB, {os.cpu_count()} cores"
    if memory.available / 1e9 < NEEDED_MEMORY_GB:
        return Finding(
            "memory", "note", text, f"training peaks near {NEEDED_MEMORY_GB:.0f} GB; close programs"
        )
    return Finding("memory", "ok", text)


def disk(root: Path) -> Finding:
    """Free space for artifacts, caches and bentos."""
    free = free_disk_gb(root)
    if free < NEEDED_DISK_GB:
        return Finding(
            "disk", "error", f"{free:.1f} GB free", f"{NEEDED_DISK_GB:.0f} GB are needed; make room"
        )
    return Finding("disk", "ok", f"{free:.1f} GB free")


def ports(config: Config, root: Path) -> Iterator[Finding]:
    """Whether each server's port is free or already ours."""
    running = {record.url for record in records(state_dir(config, root)).values() if record.alive()}
    wanted = {
        "ports.prefect": config.ports.prefect,
        "ports.mlflow": config.ports.mlflow,
        "serving.port": config.serving.port,
    }
    for key, port in wanted.items():
        if f"http://127.0.0.1:{port}" in running:
            yield Finding(key, "ok", f"{port}, running")
        elif port and not port_is_free(port):
            yield Finding(
                key,
                "error",
                f"port {port} is taken by another program",
                f"stop it, or choose another port: {key} in params.yaml",
            )
        else:
            yield Finding(key, "ok", f"{port} is free")


def _data(config: Config, root: Path) -> Iterator[Finding]:
    for path in (config.corpus.sample, config.persona.card, config.persona.dialogues, config.memory.pairs):
        if (root / path).exists():
            yield Finding(path, "ok", "present")
        else:
            yield Finding(path, "error", "missing", f"restore it: git checkout {path}")


def _programs() -> Iterator[Finding]:
    for name, why in (("git", "lineage tags"), ("chromium", "browser tests only")):
        found = shutil.which(name)
        yield Finding(name, "ok" if found else "note", found or "not found", "" if found else f"for {why}")


def _accelerator(config: Config) -> Finding:
    import torch

    if torch.cuda.is_available():
        return Finding("GPU", "ok", torch.cuda.get_device_name(0))
    if config.runtime.device == "cuda":
        return Finding("GPU", "error", "none", "set runtime.device to auto, or use a machine with a GPU")
    return Finding("GPU", "note", "none: the CPU does the work", "the default profile is made for that")
