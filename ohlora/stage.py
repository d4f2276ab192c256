"""Stages of the pipeline: what each reads and writes, and the one way to run any of them.

`ohlora stage NAME`, the `cmd` of the DVC stage and the Prefect task are the same call of `execute`.
A stage is a function `run(config, inputs, outputs, journal) -> Report` in its room; paths are relative to the
work tree, so that the same stage runs in any workspace.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict
from tqdm.auto import tqdm

from ohlora.config import Config

T = TypeVar("T")
REPORT = "report.json"


class Report(BaseModel):
    """What a stage says about its work; written as `report.json` into its output folder."""

    model_config = ConfigDict(extra="forbid")

    metrics: dict[str, float] = {}  # final figures, held-out data only where a model is judged
    pictures: dict[str, str] = {}  # title -> PNG, relative to the output folder
    tables: dict[str, list[dict[str, Any]]] = {}  # title -> rows
    notes: list[str] = []  # sentences a person should read, e.g. "misses its floor"
    run_id: str | None = None  # MLflow run, filled in by `execute`


class Journal:
    """What a running stage tells the outside: metric curves as JSON lines, progress bars on the terminal.

    The MLflow journal of `ohlora.registry` extends it; stages never import MLflow.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "metrics.jsonl"

    def log(self, step: int, **metrics: float) -> None:
        """Append one point of each curve."""
        with self.path.open("a", encoding="utf-8") as f:
            f.write(json.dumps({"step": step, **metrics}) + "\n")

    def progress(self, items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
        """Iterate with a progress bar."""
        yield from tqdm(items, desc=description, total=total, mininterval=2.0, dynamic_ncols=True)


class Run(Protocol):
    def __call__(
        self, config: Config, inputs: dict[str, Path], outputs: dict[str, Path], journal: Journal
    ) -> Report: ...


@dataclass(frozen=True)
class Stage:
    """One step of the pipeline. `dvc.yaml` says the same to DVC; a test holds the two together."""

    name: str
    entry: str  # "module:function"
    inputs: dict[str, str] = field(default_factory=dict)  # name -> path in the work tree
    output: str = ""  # the one folder it writes
    model: str | None = None  # registered model that it trains
    params: tuple[str, ...] = ()  # sections or keys of params.yaml that change its result
    code: tuple[str, ...] = ()  # packages and modules whose change makes its output stale

    def load(self) -> Run:
        module, function = self.entry.split(":")
        run: Run = getattr(importlib.import_module(module), function)
        return run
