"""One thread that owns the models, so that the event loop answers `/healthz` while she thinks.

Loading, replies and faces are jobs of the same thread: two torch jobs on the same cores are slower than one
after the other, and nothing of `ohlora.chat` has to be thread-safe. The queue in front of it is bounded.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from serving.journal import describe, logger

if TYPE_CHECKING:
    from ohlora.chat import Companion

T = TypeVar("T")


class Busy(RuntimeError):
    """As many jobs are waiting as may wait; `retry_after` is a guess in seconds."""

    def __init__(self, retry_after: int) -> None:
        super().__init__("too many requests are waiting")
        self.retry_after = retry_after


class NotReady(RuntimeError):
    """The models are still loading, or failed to load."""


class Engine:
    """The loaded companion and the one thread that may use it."""

    def __init__(
        self,
        load: Callable[[], Companion],  # runs in the model thread
        waiting: int = 8,  # jobs that may wait behind the running one
    ) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="models")
        self._waiting = waiting
        self._lock = threading.Lock()
        self._jobs = 0  # waiting and running
        self._seconds = 2.0  # of a recent job, smoothed
        self._loading: Future[Companion] = self._executor.submit(self._load, load)

    @staticmethod
    def _load(load: Callable[[], Companion]) -> Companion:
        start = time.perf_counter()
        try:
            companion = load()
        except Exception as error:
            logger.error("the product does not load, the service stays unready: %s", describe(error))
            raise
        logger.info("models loaded in %.1f s", time.perf_counter() - start)
        return companion

    @property
    def ready(self) -> bool:
        """Whether the models are loaded."""
        return self._loading.done() and self._loading.exception() is None

    @property
    def failure(self) -> str | None:
        """Why the models did not load; `None` while loading and when loaded."""
        error = self._loading.exception() if self._loading.done() else None
        return None if error is None else describe(error)

    async def run(self, job: Callable[[Companion], T]) -> T:
        """Run a job in the model thread.

        Raises:
            NotReady: no models (yet).
            Busy: the queue is full.
        """
        if not self.ready:
            raise NotReady(self.failure or "the models are loading")
        companion = self._loading.result()
        with self._lock:
            if self._jobs > self._waiting:
                raise Busy(retry_after=max(1, round(self._jobs * self._seconds)))
            self._jobs += 1
        future = self._executor.submit(self._timed, job, companion)
        # On the thread's future: the caller may give up, the job still holds its place until it ends.
        future.add_done_callback(self._leave)
        return await asyncio.wrap_future(future)

    def _timed(self, job: Callable[[Companion], T], companion: Companion) -> T:
        start = time.perf_counter()
        try:
            return job(companion)
        finally:
            self._seconds = 0.7 * self._seconds + 0.3 * (time.perf_counter() - start)

    def _leave(self, _: Future[T]) -> None:
        with self._lock:
            self._jobs -= 1

    def close(self) -> None:
        """Drop waiting jobs; the running one ends by itself."""
        self._executor.shutdown(wait=False, cancel_futures=True)
