"""The one task of all flows: ask DVC for a stage, then show what came out."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from prefect import get_run_logger, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import TaskRun
from prefect.runtime import flow_run
from prefect.states import State

from flows import ROOT
from flows.options import RunOptions
from flows.pages import stage_page
from ohlora.config import Config, load_config, state_dir
from ohlora.crew import Crew, Ticket
from ohlora.lifeline import identity
from ohlora.pipeline import (
    FLOW_RUN,
    StageBusy,
    StageResult,
    interrupt,
    must_run,
    run_lock,
    threads_environment,
    workspace,
)
from ohlora.pipeline import run_stage_through_dvc as reproduce


class RunStage(Protocol):
    """Hand in a stage; it runs when those it comes after are done, and all have run when the tree is left."""

    def __call__(self, name: str, *, after: Sequence[Ticket] = ()) -> Ticket: ...


def _may_pass(_task: Any, _run: TaskRun, state: State) -> bool:
    """Retry only a stage that never started because another DVC process held the tree."""
    return isinstance(state.result(raise_on_failure=False), StageBusy)


# DVC decides what is stale: a result cache here would disagree with it. Called by our own crew, not submitted
# to a task runner: there neither a cancel nor a timeout reaches DVC, which then trains on with the lock held.
@task(
    task_run_name="{name}",
    retries=1,
    retry_delay_seconds=10,
    retry_condition_fn=_may_pass,
    cache_policy=NO_CACHE,
    persist_result=False,
)
def stage(name: str, tree: Path, force: bool, mlflow_url: str, share: int = 1) -> StageResult:
    """Bring one stage of a tree up to date and publish its figures and pictures."""
    log = get_run_logger()
    environment = {FLOW_RUN: str(flow_run.id or ""), **threads_environment(share)}
    again = force or must_run(name, tree)
    result = reproduce(name, tree, again, environment=environment, on_line=log.info)
    key = name.replace("_", "-")
    create_markdown_artifact(stage_page(result, mlflow_url), key=key, description=f"stage {name}")
    for title, rows in result.report.tables.items():
        slug = "".join(c if c.isascii() and c.isalnum() else "-" for c in title.lower()).strip("-")
        create_table_artifact(rows, key=f"{key}-{slug}", description=title)
    return result


@contextlib.contextmanager
def work_tree(options: RunOptions) -> Iterator[RunStage]:
    """Hold the tree (or the workspace of other settings) for a flow run; yields how to run stages in it.

    They run, `jobs` at a time, when the body is through.
    """
    config = options.config()
    log = get_run_logger()
    with _recorded(config), run_lock(config, ROOT, f"flow run {flow_run.name}", say=log.warning):
        tree = workspace(config, ROOT)
        log.info("working in %s", tree)
        mlflow_url = f"http://127.0.0.1:{load_config(ROOT).ports.mlflow}"

        crew: Crew[StageResult] = Crew(config.jobs, interrupt)

        def work(name: str, share: int, before: list[StageResult]) -> StageResult:
            if name == "labels" and config.labeling.runner == "dask":
                from flows.shards import score_shards_on_dask  # Dask only where it is asked for

                log.info("scored %d shards on Dask", score_shards_on_dask(load_config(tree), tree))
            result: StageResult = stage(
                name, tree, name in options.force, mlflow_url, share, wait_for=list(before)
            )
            return result

        def run(name: str, *, after: Sequence[Ticket] = ()) -> Ticket:
            return crew.add(name, functools.partial(work, name), after)

        yield run
        crew.work()


@contextlib.contextmanager
def _recorded(config: Config) -> Iterator[None]:
    """Leave a note of the process that runs this flow run, so that a later start knows whether it lives."""
    record = record_path(config, str(flow_run.id))
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps({"process": identity()}), encoding="utf-8")
    try:
        yield
    finally:
        record.unlink(missing_ok=True)


def record_path(config: Config, flow_run_id: str) -> Path:
    """Where a flow run notes its process."""
    return state_dir(config, ROOT).resolve() / "runs" / f"{flow_run_id}.json"
