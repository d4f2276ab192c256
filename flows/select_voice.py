"""Model selection for the voice: candidates -> the same fine-tune -> the same scores -> one table."""

from __future__ import annotations

from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE

from flows import ROOT
from flows.options import RunOptions
from ohlora.config import VoiceCandidate
from ohlora.evaluation.voice_selection import Selection
from ohlora.pipeline import run_lock


@task(task_run_name="{candidate.name}", cache_policy=NO_CACHE, persist_result=False)
def measure(selection: Selection, candidate: VoiceCandidate) -> dict[str, Any]:
    """Fine-tune and score one candidate."""
    return selection.measure(candidate)


@flow(name="select_voice", persist_result=False)
def select_voice(options: RunOptions = RunOptions()) -> None:
    """Compare the voices of voice.candidates; promotes nothing."""
    log = get_run_logger()
    selection = Selection(ROOT, options.profile, options.overrides)
    with run_lock(selection.config, ROOT, "flow select_voice", say=log.warning), selection.opened():
        for candidate in selection.candidates:
            measure(selection, candidate)
    create_table_artifact(selection.rows, key="voice-candidates", description="Voices, fine-tuned alike")
    log.info("best by %s: %s", selection.config.gate.voice.primary, selection.best())
