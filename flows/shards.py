"""Shards of portraits on Prefect's Dask task runner, ahead of the labels stage, which finds them scored."""

from __future__ import annotations

from pathlib import Path

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect_dask import DaskTaskRunner

from ohlora.config import Config
from ohlora.labeling.scoring import ShardJob, jobs, score_shard
from ohlora.pipeline import STAGES


@task(task_run_name="{job.shard}", retries=1, cache_policy=NO_CACHE, persist_result=False)
def score(job: ShardJob) -> None:
    """Score one shard; its file appears on the file system that the workers share."""
    score_shard(job)


@flow(name="shards", persist_result=False)
def score_all(work: list[ShardJob]) -> None:
    """Score shards side by side."""
    score.map(work).result()


def score_shards_on_dask(config: Config, tree: Path) -> int:
    """Score what is not scored yet of a tree's corpus; returns the number of shards.

    Args:
        config: settings: `labeling.cluster`, or `labeling.workers` of a local cluster.
        tree: work tree or workspace whose corpus and models are up to date.

    Raises:
        CorpusError, ArtifactError: the corpus or a model is missing or corrupt.
    """
    inputs = {name: tree / path for name, path in STAGES["labels"].inputs.items()}
    missing = [job for job in jobs(config, inputs, tree) if not job.is_done]
    if missing:
        score_all.with_options(task_runner=runner(config))(missing)
    return len(missing)


def runner(config: Config) -> DaskTaskRunner:
    """The cluster at `labeling.cluster`, or a local one of `labeling.workers` processes."""
    if config.labeling.cluster:
        return DaskTaskRunner(address=config.labeling.cluster)
    local = {"n_workers": config.labeling.workers, "threads_per_worker": 1, "dashboard_address": None}
    return DaskTaskRunner(cluster_kwargs=local)
