"""Jobs that wait for each other, a few at a time.

Stages of the pipeline spend much of their time in one thread: they start, read, write pictures. Two that do
not need each other fill two cores better than one after the other.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")

POLL_S = 0.5  # between two attempts to stop what runs


@dataclass(frozen=True)
class Ticket:
    """A job that was handed in; others name it to come after it."""

    name: str
    number: int


class Crew(Generic[T]):
    """Runs jobs in threads, each as soon as those it comes after are done.

    Args:
        workers: jobs at a time.
        stop: ends what jobs are doing; called, perhaps more than once, when the caller is interrupted.
    """

    def __init__(self, workers: int, stop: Callable[[], None]) -> None:
        self.workers = workers
        self.stop = stop
        self._jobs: list[tuple[Callable[[int, list[T]], T], tuple[Ticket, ...]]] = []

    def add(self, name: str, job: Callable[[int, list[T]], T], after: Sequence[Ticket] = ()) -> Ticket:
        """Hand in a job.

        Args:
            name: for people.
            job: gets how many jobs are running with it, and the results of `after`.
            after: what must be done before.
        """
        self._jobs.append((job, tuple(after)))
        return Ticket(name, len(self._jobs) - 1)

    def work(self) -> list[T]:
        """Do all jobs; results in the order of `add`.

        Where several can start, the one that was handed in first does. After a failure nothing new starts,
        what runs is finished, and the failure is raised. An interrupt (SIGTERM, Ctrl-C) stops what runs.
        """
        results: dict[int, T] = {}
        waiting = list(range(len(self._jobs)))
        running: dict[Future[T], int] = {}
        failure: BaseException | None = None
        # What runs is counted by the threads themselves: an interrupt can come while `submit` has started a
        # job and not yet returned its future.
        busy: set[int] = set()
        finished = threading.Condition()
        interrupted = threading.Event()

        def do(number: int, share: int, before: list[T]) -> T:
            busy.add(number)  # before the look at `interrupted`: one of the two threads sees the other
            try:
                if interrupted.is_set():
                    raise CancelledError
                return self._jobs[number][0](share, before)
            finally:
                with finished:
                    busy.discard(number)
                    finished.notify_all()

        def idle(timeout_s: float) -> bool:
            with finished:
                return finished.wait_for(lambda: not busy, timeout_s)

        with ThreadPoolExecutor(self.workers, thread_name_prefix="crew") as pool:
            try:
                while running or waiting:
                    ready = [n for n in waiting if all(t.number in results for t in self._jobs[n][1])]
                    for number in ready[: self.workers - len(running)] if failure is None else []:
                        waiting.remove(number)
                        share = min(self.workers, len(running) + len(ready))
                        context = contextvars.copy_context()  # a Prefect task finds its flow run in it
                        before = [results[t.number] for t in self._jobs[number][1]]
                        running[pool.submit(context.run, do, number, share, before)] = number
                    if not running:
                        break
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        number = running.pop(future)
                        error = future.exception()
                        if error is None:
                            results[number] = future.result()
                        failure = failure or error
            except BaseException:
                interrupted.set()
                while not idle(POLL_S):
                    self.stop()
                raise
        if failure is not None:
            raise failure
        return [results[number] for number in range(len(self._jobs))]
