"""Worker threads of a mount, with a time limit: a task that waits too long for a call gets an error.

A thread that hangs in the kernel cannot be stopped. Its call keeps running, and later tasks can wait for it. Until it
ends, the pool runs one thread more in its place. Used by the tasks of one trio event loop.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

    from backyfs.errors import BackyfsError

DEFAULT_PATIENCE_S = 60.0
_MOST_PLACES_GIVEN_AWAY = 32

Result = TypeVar("Result")


class Call(Generic[Result]):
    """A call of a function in a thread. Any number of tasks can wait for it."""

    def __init__(self, pool: Pool, function: Callable[[], Result], then: Callable[[Call[Result]], None] | None) -> None:
        self.pool = pool
        self.result: Result | None = None
        self.error: Exception | None = None
        self.began_at: float | None = None  # set by the thread
        self.is_withdrawn = False
        self._function = function
        self._then = then
        self._lock = threading.Lock()  # decides whether it begins or is withdrawn
        self._ended = trio.Event()
        self._has_given_place_away = False

    def withdraw(self) -> bool:
        """Cancel the call; return False if it has already begun."""
        with self._lock:
            self.is_withdrawn = self.began_at is None
            return self.is_withdrawn

    async def wait(self) -> Result:
        """Return what the function returns.

        Raises:
            BackyfsError: the error of the pool: the function does not return in time, or all threads hang.
            Exception: whatever the function raised.
        """
        while not self._ended.is_set():
            asked_at = time.monotonic()
            if self.began_at is not None and asked_at - self.began_at >= self.pool.patience_s:
                self._give_place_away()
                raise self.pool.timed_out()
            with trio.move_on_after(self.pool.patience_s - (asked_at - (self.began_at or asked_at))):
                await self._ended.wait()
            if self.began_at is None and self.pool.ended_at < asked_at:
                raise self.pool.timed_out()
        if self.error is not None:
            raise self.error
        return self.result  # type: ignore[return-value]  # it has ended without an error

    async def perform(self) -> None:
        """Run the call, then `then`."""
        try:
            self.result = await trio.to_thread.run_sync(
                self._in_thread, limiter=self.pool.limiter, abandon_on_cancel=True
            )
        except Exception as error:  # noqa: BLE001 - raised again in every task that waits for the call
            self.error = error
        finally:
            if self._has_given_place_away:
                self.pool.limiter.total_tokens -= 1
            if self._then is not None:
                self._then(self)
            self._ended.set()

    def _in_thread(self) -> Result | None:
        with self._lock:
            if self.is_withdrawn:
                return None
            self.began_at = time.monotonic()
        try:
            return self._function()
        finally:
            self.pool.ended_at = time.monotonic()

    def _give_place_away(self) -> None:
        limiter = self.pool.limiter
        if not self._has_given_place_away and limiter.total_tokens < self.pool.threads + _MOST_PLACES_GIVEN_AWAY:
            self._has_given_place_away = True
            limiter.total_tokens += 1


class Pool:
    """A bounded number of threads for one kind of work."""

    def __init__(self, what: str, error: type[BackyfsError], *, threads: int, patience_s: float) -> None:
        """Make a pool. A task that waits longer than `patience_s` gets an `error`: `what` did not answer."""
        self._what = what
        self._error = error
        self.threads = threads
        self.patience_s = patience_s
        self.limiter = trio.CapacityLimiter(threads)
        self.ended_at = float("-inf")  # when the last call ended; set by the threads
        self.timeouts = 0

    def start(self, function: Callable[[], Result], then: Callable[[Call[Result]], None] | None = None) -> Call[Result]:
        """Call a function in a thread as soon as one is free, then `then` in the event loop, which must not raise."""
        call = Call(self, function, then)
        trio.lowlevel.spawn_system_task(call.perform)
        return call

    async def run(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Call a function in a thread and wait for it.

        Raises:
            BackyfsError: the error of this pool: the function does not return in time, or all threads hang.
            Exception: whatever the function raised.
        """
        return await self.start(lambda: function(*arguments)).wait()

    def timed_out(self) -> BackyfsError:
        """Count a timeout and return its error."""
        self.timeouts += 1
        return self._error(f"did not answer within {self.patience_s:g} s", subject=self._what)
