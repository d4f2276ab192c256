"""The pipeline: the one way to run a stage of the table (`ohlora.stages`) or all of them.

`ohlora stage NAME`, the `cmd` of the DVC stage and the Prefect task end in the same call of `execute`; DVC
decides whether it is needed. `dvc.yaml` says the same as the table, `dvc_file` makes it, a test compares.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import yaml

from ohlora.allocator import keep_freed_memory
from ohlora.artifacts import MANIFEST, ArtifactError, read_manifest, sha256_file
from ohlora.config import Config, load_config
from ohlora.crew import Crew, Ticket
from ohlora.errors import UserError
from ohlora.lifeline import die_with_parent
from ohlora.repro import StageBusy, StageFailed, StageResult, interrupt, read_report, reproduce
from ohlora.stage import REPORT, Journal, Report, Run, Stage
from ohlora.stages import STAGES
from ohlora.workspaces import is_changed, is_workspace, run_lock, workspace

__all__ = [
    "STAGES",
    "StageBusy",
    "StageError",
    "StageFailed",
    "StageResult",
    "dvc_file",
    "execute",
    "inputs_digest",
    "interrupt",
    "is_changed",
    "must_run",
    "order",
    "read_report",
    "run_lock",
    "run_pipeline",
    "run_stage_through_dvc",
    "threads_environment",
    "workspace",
]

FLOW_RUN = "OHLORA_FLOW_RUN_ID"
"""Environment variable that carries the id of the Prefect flow run to the MLflow run."""


class StageError(UserError, RuntimeError):
    """A stage cannot run: an input is missing, or its report is not what was agreed."""


def order(targets: Sequence[str] | None = None) -> list[str]:
    """Names of the stages that `targets` (default: all) need, themselves included, each after its inputs.

    Raises:
        StageError: a target is not a stage.
    """
    maker = {stage.output: stage.name for stage in STAGES.values()}
    done: list[str] = []

    def visit(name: str) -> None:
        if name not in STAGES:
            raise StageError(f"unknown stage {name!r}; there are: {', '.join(STAGES)}")
        if name in done:
            return
        for path in STAGES[name].inputs.values():
            if path in maker:
                visit(maker[path])
        done.append(name)

    for target in targets or STAGES:
        visit(target)
    return done


def dvc_file(stages: Mapping[str, Stage] | None = None) -> str:
    """The table as text of `dvc.yaml`."""
    body = {
        name: {
            "cmd": f"ohlora stage {name}",
            "deps": [*stage.inputs.values(), *stage.code],
            **({"params": list(stage.params)} if stage.params else {}),
            "outs": [stage.output],
        }
        for name, stage in (stages or STAGES).items()
    }
    head = "# Written by scripts/write_dvc_yaml.py from the table in ohlora/stages.py; change that one.\n"
    return head + yaml.safe_dump({"stages": body}, sort_keys=False, width=100)


def inputs_digest(inputs: Mapping[str, Path]) -> str:
    """SHA-256 over the content of a stage's inputs, without what differs between equal runs (reports)."""
    digest = hashlib.sha256()
    for name, path in sorted(inputs.items()):
        digest.update(f"{name}={path_digest(path)};".encode())
    return digest.hexdigest()


def path_digest(path: Path) -> str:
    """SHA-256 of a file, of a model folder's weights, or of all files of another folder."""
    if path.is_file():
        return sha256_file(path)
    if (path / MANIFEST).is_file():
        return read_manifest(path).digest
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")):
        if file.is_file() and file.name not in (REPORT, "metrics.jsonl") and "__pycache__" not in file.parts:
            digest.update(f"{file.relative_to(path).as_posix()}={sha256_file(file)};".encode())
    return digest.hexdigest()


def execute(name: str, root: Path, config: Config, stages: Mapping[str, Stage] | None = None) -> Report:
    """Run one stage here and now: clear its output, compute, write `report.json`, log and register the model.

    Args:
        name: stage of the table.
        root: work tree; becomes the current folder meanwhile.
        config: its settings.
        stages: another table than `STAGES`.

    Raises:
        StageError: an input is missing, or the stage reports a picture that it did not write.
    """
    die_with_parent()
    keep_freed_memory()
    stage = (stages or STAGES)[name]
    if is_workspace(root):  # its params.yaml says the same, with the registry's place in the work tree
        config = load_config(root)
    with contextlib.chdir(root), _interruptible():
        inputs = {key: Path(path) for key, path in stage.inputs.items()}
        for key, path in inputs.items():
            if not path.exists():
                raise StageError(_missing(name, key, path, is_workspace(root)))
        output = Path(stage.output)
        shutil.rmtree(output, ignore_errors=True)
        output.mkdir(parents=True)
        _limit_threads(config.runtime.threads)
        run = stage.load()
        _limit_threads(config.runtime.threads)
        if stage.model is None:
            report = run(config, inputs, {"output": output}, Journal(output))
            _write_report(report, output)
            return report
        return _run_logged(stage, run, config, inputs, output)


def _run_logged(stage: Stage, run: Run, config: Config, inputs: dict[str, Path], output: Path) -> Report:
    from ohlora.registry import Registry, git_state

    assert stage.model is not None
    registry = Registry(config, Path.cwd())
    registry.reconcile()
    tags = {
        "stage": stage.name,
        "profile": config.profile,
        "inputs_sha256": inputs_digest(inputs),
        "prefect_flow_run_id": os.environ.get(FLOW_RUN, ""),
        **git_state(Path.cwd()),
    }
    params = _settings(config, stage.params)
    with registry.run(stage.name, tags=tags, params=params, folder=output) as journal:
        report = run(config, inputs, {"output": output}, journal)
        report = report.model_copy(update={"run_id": journal.run_id})
        _write_report(report, output)
        journal.report(report, output)
        registry.register(stage.model, output, journal.run_id, tags=tags, base=_base_of(output, inputs))
    return report


def _write_report(report: Report, output: Path) -> None:
    for title, name in report.pictures.items():
        if not (output / name).is_file():
            raise StageError(f"the stage reports the picture {title!r}, but {output / name} is missing")
    (output / REPORT).write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")


def _missing(name: str, key: str, path: Path, changed: bool) -> str:
    maker = next((s.name for s in STAGES.values() if Path(s.output) == path), None)
    cure = f"make it with: ohlora run --target {maker}" if maker else f"restore it with: git checkout {path}"
    if maker and changed:  # other settings work in a folder of their own
        cure += " and the same --profile and --set"
    return f"stage {name} needs {path} ({key}), which is missing; {cure}"


def _base_of(output: Path, inputs: Mapping[str, Path]) -> Path | None:
    """The input that holds the base of the adapter in `output`."""
    wanted = read_manifest(output).base.get("sha256")
    for path in inputs.values():
        with contextlib.suppress(ArtifactError):
            if wanted and read_manifest(path).digest == wanted:
                return path
    return None


def _settings(config: Config, keys: Sequence[str]) -> dict[str, Any]:
    """The settings that `keys` (sections or single keys) name, flat: `voice.seed` -> 0."""
    flat: dict[str, Any] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                walk(f"{prefix}.{key}", item)
        else:
            flat[prefix] = value

    for key in keys:
        value: Any = config.model_dump(mode="json")
        for part in key.split("."):
            value = value[part]
        walk(key, value)
    return flat


def _limit_threads(threads: int) -> None:
    """Set torch's threads, now if it is loaded and by its environment if a stage loads it later."""
    if threads == 0:
        return
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(threads)
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(threads)


class Terminated(KeyboardInterrupt):
    """SIGTERM, so that a stage ends in order: its MLflow run says KILLED."""


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Turn SIGTERM into an exception while a stage runs."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(signum: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # DVC and its group send more than one
        raise Terminated(f"signal {signum}")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def run_stage_through_dvc(
    name: str,
    root: Path,
    force: bool = False,
    *,
    environment: Mapping[str, str] | None = None,
    on_line: Callable[[str], None] = print,
) -> StageResult:
    """Ask DVC for one stage of a tree; `reproduce` with the table's entry.

    Raises:
        StageFailed: it ended with an error. StageBusy: another DVC process holds the tree.
    """
    if name not in STAGES:
        raise StageError(f"unknown stage {name!r}; there are: {', '.join(STAGES)}")
    return reproduce(STAGES[name], root, force=force, environment=environment, on_line=on_line)


def must_run(name: str, tree: Path) -> bool:
    """Whether a stage is stale for a reason that DVC cannot see: a champion changed under the package."""
    if name != "package":
        return False
    from ohlora.package import is_stale

    return is_stale(load_config(tree), tree)


def run_pipeline(
    config: Config,
    root: Path,
    targets: Sequence[str] | None = None,
    force: Sequence[str] = (),
    on_stage: Callable[[StageResult], None] | None = None,
) -> list[StageResult]:
    """Bring the pipeline up to date without any server; what is unchanged is skipped.

    Args:
        config: settings; with other ones than the tree's the run works in a workspace.
        root: work tree.
        targets: only these stages and what they need.
        force: stages that run although nothing changed.
        on_stage: called after each stage.

    Raises:
        StageFailed: a stage ended with an error; those before it stay done.
    """
    names = order(targets)
    for name in force:
        if name not in names:
            raise StageError(f"cannot force stage {name!r}: this run has {', '.join(names)}")
    with run_lock(config, root, "ohlora run"):
        tree = workspace(config, root)

        def job(name: str) -> Callable[[int, list[StageResult]], StageResult]:
            def run(share: int, _before: list[StageResult]) -> StageResult:
                result = run_stage_through_dvc(
                    name, tree, name in force or must_run(name, tree), environment=threads_environment(share)
                )
                print(f"{name}: {result.outcome} ({result.seconds:.1f} s)", flush=True)
                if on_stage:
                    on_stage(result)
                return result

            return run

        crew: Crew[StageResult] = Crew(config.jobs, interrupt)
        tickets: dict[str, Ticket] = {}
        maker = {stage.output: stage.name for stage in STAGES.values()}
        for name in names:
            needed = [maker[path] for path in STAGES[name].inputs.values() if path in maker]
            tickets[name] = crew.add(name, job(name), [tickets[other] for other in needed])
        return crew.work()


def threads_environment(share: int) -> dict[str, str]:
    """Environment of a stage that has so many others beside it: its part of the cores.

    Two torch processes with a thread for each core are slower than one after the other. What
    `runtime.threads` says wins over it.
    """
    if share < 2:
        return {}
    threads = str(max(1, len(os.sched_getaffinity(0)) // share))
    return {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
