"""A window of work: tasks run in worker threads, their results come back to one thread.

The thread that makes a window owns it: it alone submits and takes results, so what it keeps between them
(database, block map, counters) needs no lock. The owner bounds the window, by what it lets be pending.
"""

from __future__ import annotations

import os
import queue
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import TracebackType

T = TypeVar("T")
_I = TypeVar("_I")

_WAIT_S = 0.2  # how long a signal can wait for its handler: Python runs it between two waits


def default_workers() -> int:
    """Return how many threads keep every core of this process busy, one of them waiting for a disk."""
    return len(os.sched_getaffinity(0)) + 1


class Window(Generic[T]):
    """Tasks that were submitted and whose results were not taken back yet.

    Used as a context manager: leaving it waits for the tasks that run, and drops those that do not yet.
    """

    def __init__(self, workers: int) -> None:
        self._executor = ThreadPoolExecutor(workers, thread_name_prefix="backyfs-worker")
        self._beside = ThreadPoolExecutor(1, thread_name_prefix="backyfs-beside")  # no thread before it is needed
        self._done: queue.SimpleQueue[Future[T]] = queue.SimpleQueue()
        self.pending = 0  # tasks whose result was not taken

    def submit(self, task: Callable[..., T], *arguments: Any) -> None:
        """Start a task in a worker thread."""
        self.pending += 1
        self._executor.submit(task, *arguments).add_done_callback(self._done.put)

    def submit_beside(self, task: Callable[..., T], *arguments: Any) -> None:
        """Start a task in a thread of its own: it does not queue behind the others, which may be waiting for a disk."""
        self.pending += 1
        self._beside.submit(task, *arguments).add_done_callback(self._done.put)

    def results(self) -> Iterator[T]:
        """Wait until a task has ended; yield its result and those of all others that have ended meanwhile.

        What a task raised is raised here; the results that were not taken yet can be taken by calling again.
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
        """Do a task for each item; yield the results as they come, in no order.

        At most `most` tasks are pending at a time, so the items may be made as they are needed. What a task raised is
        raised here; the results of the others can still be taken by `results`.
        """
        for item in items:
            while self.pending >= most:
                yield from self.results()
            self.submit(task, item)
        while self.pending:
            yield from self.results()

    def _wait(self) -> Future[T]:
        assert self.pending, "nothing is pending: this would wait for ever"
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
        for executor in (self._executor, self._beside):
            executor.shutdown(wait=True, cancel_futures=True)
