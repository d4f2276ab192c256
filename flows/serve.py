"""The one process that offers the flows in Prefect's UI and runs them: python -m flows.serve"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from pathlib import Path

from filelock import FileLock, Timeout
from prefect import serve
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.states import Crashed
from prefect.types.entrypoint import EntrypointType

from flows import ROOT
from flows.parts import face, labeling, memory, package, voice
from flows.pipeline import pipeline
from flows.select_voice import select_voice
from flows.tasks import record_path
from ohlora.config import Config, load_config, state_dir
from ohlora.lifeline import is_alive

logger = logging.getLogger("ohlora.flows")

PARTS = (labeling, face, voice, memory, package, select_voice)
RECONCILE_S = 30.0
_GRACE_S = 60.0  # a run that just started has not written its note yet


def main() -> int:
    """Serve all deployments until SIGTERM; returns 1 when a runner is there already."""
    config = load_config(ROOT)
    state = state_dir(config, ROOT).resolve()
    state.mkdir(parents=True, exist_ok=True)
    lock = FileLock(state / "runner.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        # Two runners of one deployment both take a cancel, and it hangs.
        print("error: a flow runner serves this tree already; stop it with: ohlora down", file=sys.stderr)
        return 1
    with lock:
        threading.Thread(target=_reconcile_for_ever, args=(config,), daemon=True).start()
        serve(
            *(
                flow.to_deployment(
                    flow.name, description=flow.__doc__, entrypoint_type=EntrypointType.MODULE_PATH
                )
                for flow in (pipeline, *PARTS)
            ),
            limit=1,
            query_seconds=2,
            print_starting_message=False,
        )
    return 0


def _reconcile_for_ever(config: Config) -> None:
    started = time.time()
    _reconcile_models(config)
    while True:
        try:
            with get_client(sync_client=True) as client:
                for name in reconcile(client, config, started):
                    logger.warning("flow run %s had no process any more; it is marked as crashed", name)
        except Exception as error:  # the server is not up yet, say: this thread must outlive it
            logger.warning("looking for dead flow runs failed, next try in %.0f s: %s", RECONCILE_S, error)
        time.sleep(RECONCILE_S)


def _reconcile_models(config: Config) -> None:
    from ohlora.registry import Registry

    for run_id in Registry(config, ROOT).reconcile():
        logger.warning("MLflow run %s had no process any more; it is marked as killed", run_id)


def reconcile(client: SyncPrefectClient, config: Config, since: float) -> list[str]:
    """Mark flow runs as crashed that say they run though their process is gone; returns their names.

    Args:
        client: of the Prefect server.
        config: settings of the tree.
        since: start of this runner; it is the only one, so what was pending before has nobody.
    """
    living = [StateType.RUNNING, StateType.PENDING, StateType.CANCELLING]
    found = client.read_flow_runs(
        flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=living)))
    )
    crashed = []
    for run in found:
        if run.parent_task_run_id is None and not _has_process(run, config, since):
            state = Crashed(message="Its process is gone; the next run goes on where this one stopped.")
            client.set_flow_run_state(run.id, state, force=True)
            crashed.append(run.name)
    for note in record_path(config, "").parent.glob("*.json"):
        if not _is_alive(note):
            note.unlink(missing_ok=True)
    return crashed


def _has_process(run: FlowRun, config: Config, since: float) -> bool:
    note = record_path(config, str(run.id))
    if note.is_file():
        return _is_alive(note)
    began = run.state.timestamp.timestamp() if run.state else 0.0
    return began > since - 1 or time.time() - began < _GRACE_S


def _is_alive(note: Path) -> bool:
    try:
        return is_alive(json.loads(note.read_text(encoding="utf-8"))["process"])
    except (OSError, ValueError, KeyError):
        return False


if __name__ == "__main__":
    sys.exit(main())
