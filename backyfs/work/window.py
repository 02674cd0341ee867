"""Run tasks in worker threads and return their results to one thread.

The thread that creates a window owns it. Only the owner submits tasks and takes results, so its own state (database,
block map, counters) needs no lock. The owner limits how many tasks are pending.
"""

from __future__ import annotations

import queue
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import TracebackType

T = TypeVar("T")
_I = TypeVar("_I")

_WAIT_S = 0.2  # maximum delay of signal handlers, which Python runs between two waits


class Window(Generic[T]):
    """Tasks that were submitted and whose results were not taken yet.

    Use it as a context manager: leaving it waits for running tasks and drops all others.
    """

    def __init__(self, workers: int, waiting: int = 1) -> None:
        self._executor = ThreadPoolExecutor(workers, thread_name_prefix="backyfs-worker")
        self._waiting = ThreadPoolExecutor(waiting, thread_name_prefix="backyfs-waiting")
        self._beside = ThreadPoolExecutor(1, thread_name_prefix="backyfs-beside")  # starts its thread on first use
        self._done: queue.SimpleQueue[Future[T]] = queue.SimpleQueue()
        self.pending = 0  # tasks whose result was not taken

    def submit(self, task: Callable[..., T], *arguments: Any) -> None:
        """Start a task in a worker thread."""
        self.pending += 1
        self._executor.submit(task, *arguments).add_done_callback(self._done.put)

    def submit_waiting(self, task: Callable[..., T], *arguments: Any) -> None:
        """Start a task that only waits for a network in one of the threads for such tasks."""
        self.pending += 1
        self._waiting.submit(task, *arguments).add_done_callback(self._done.put)

    def submit_beside(self, task: Callable[..., T], *arguments: Any) -> None:
        """Start a task in a separate thread, so that it does not queue behind tasks that may wait for a disk."""
        self.pending += 1
        self._beside.submit(task, *arguments).add_done_callback(self._done.put)

    def results(self) -> Iterator[T]:
        """Wait until a task has ended; yield its result and those of all other tasks that have ended by then.

        If a task raised, this raises the same error; call it again for the remaining results.
        """
        future = self._wait()
        while True:
            self.pending -= 1
            yield future.result()
            try:
                future = self._done.get_nowait()
            except queue.Empty:
                return

    def map(self, task: Callable[[_I], T], items: Iterable[_I], *, most: int) -> Iterator[T]:
        """Run a task for each item; yield the results in the order of completion.

        At most `most` tasks are pending at a time, so `items` can be a generator. If a task raised, this raises the
        same error; the results of the others are still available from `results`.
        """
        for item in items:
            yield from self.drain(most - 1)
            self.submit(task, item)
        yield from self.drain()

    def drain(self, most: int = 0) -> Iterator[T]:
        """Yield results until at most `most` tasks are pending. If a task raised, this raises the same error."""
        while self.pending > most:
            yield from self.results()

    def _wait(self) -> Future[T]:
        assert self.pending, "nothing is pending, so this would wait forever"
        while True:
            try:
                return self._done.get(timeout=_WAIT_S)
            except queue.Empty:
                continue

    def __enter__(self) -> Window[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for executor in (self._executor, self._waiting, self._beside):
            executor.shutdown(wait=True, cancel_futures=True)
