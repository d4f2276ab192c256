"""A crew does jobs in order of need, a few at a time."""

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ohlora.crew import Crew, Ticket


def nothing() -> None:
    """Stops nothing."""


@settings(max_examples=40)
@given(
    workers=st.integers(1, 4),
    needs=st.lists(st.lists(st.integers(0, 20), max_size=3), min_size=1, max_size=9),
)
def test_a_job_starts_when_those_before_it_are_done(workers: int, needs: list[list[int]]) -> None:
    crew: Crew[int] = Crew(workers, nothing)
    lock, running, most, tickets = threading.Lock(), set(), [0], []

    def job(number: int, before: list[int]):  # type: ignore[no-untyped-def]
        def run(share: int, results: list[int]) -> int:
            assert results == before
            assert 1 <= share <= workers
            with lock:
                running.add(number)
                most[0] = max(most[0], len(running))
            time.sleep(0.001)
            with lock:
                running.remove(number)
            return number

        return run

    for number, wanted in enumerate(needs):
        earlier = sorted({n % number for n in wanted}) if number else []
        tickets.append(crew.add(str(number), job(number, earlier), [tickets[n] for n in earlier]))
    assert crew.work() == list(range(len(needs)))
    assert most[0] <= workers


def test_two_jobs_run_at_a_time() -> None:
    crew: Crew[None] = Crew(2, nothing)
    both = threading.Barrier(2, timeout=20)
    for name in "ab":
        crew.add(name, lambda share, _: (both.wait(), None)[1])
    assert crew.work() == [None, None]


def test_after_a_failure_nothing_starts_and_what_runs_is_finished() -> None:
    crew: Crew[str] = Crew(2, nothing)
    failed = threading.Event()
    done = []

    def fail(_share: int, _before: list[str]) -> str:
        failed.set()
        raise ValueError("no luck")

    def slow(_share: int, _before: list[str]) -> str:
        assert failed.wait(20)
        time.sleep(0.05)
        done.append("slow")
        return "slow"

    first: Ticket = crew.add("fail", fail)
    crew.add("slow", slow)
    crew.add("late", lambda share, before: done.append("late") or "late", [first])
    crew.add("other", lambda share, before: done.append("other") or "other")
    with pytest.raises(ValueError, match="no luck"):
        crew.work()
    assert done == ["slow"]


INTERRUPTED = """
import signal, sys, threading
from ohlora.crew import Crew
def end(*_): raise SystemExit(7)
signal.signal(signal.SIGTERM, end)
stopped = threading.Event()
crew = Crew(2, stopped.set)
crew.add("waits", lambda share, before: (print("up", flush=True), stopped.wait(60)))
crew.work()
"""


def test_an_interrupt_stops_what_runs() -> None:
    process = subprocess.Popen([sys.executable, "-c", INTERRUPTED], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(timeout=30) == 7


def test_an_interrupt_while_a_job_is_handed_in_stops_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The signal may come when the job runs already and its future is not yet known."""
    started, stopped, later = threading.Event(), threading.Event(), []
    submit = ThreadPoolExecutor.submit

    def interrupted(pool, *job):  # type: ignore[no-untyped-def]
        submit(pool, *job)
        assert started.wait(30)
        submit(pool, *job)  # in the queue behind the first: not started any more
        raise KeyboardInterrupt

    monkeypatch.setattr(ThreadPoolExecutor, "submit", interrupted)
    crew: Crew[None] = Crew(1, stopped.set)

    def job(share: int, before: list[None]) -> None:
        later.append(share)
        started.set()
        assert stopped.wait(30)

    crew.add("job", job)
    with pytest.raises(KeyboardInterrupt):
        crew.work()
    assert stopped.is_set()
    assert len(later) == 1
