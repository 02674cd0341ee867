"""Worker threads of a mount, with patience: who waits for a call that hangs is told so and goes on.

A thread that hangs in the kernel cannot be stopped. It is left behind, and keeps its place in the pool until
its call ends. Used by the tasks of one trio event loop.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

    from backyfs.errors import BackyfsError

DEFAULT_PATIENCE_S = 60.0

Result = TypeVar("Result")


class Pool:
    """So many threads for one kind of work."""

    def __init__(self, what: str, error: type[BackyfsError], *, threads: int, patience_s: float) -> None:
        """Make a pool; who runs out of patience gets an `error` that says that `what` does not answer."""
        self._what = what
        self._error = error
        self._limiter = trio.CapacityLimiter(threads)
        self._patience_s = patience_s
        self._ended_at = float("-inf")  # the last call; written by the threads
        self.timeouts = 0

    async def run(self, function: Callable[..., Result], *arguments: object) -> Result:
        """Call a function in a thread, as soon as one is free.

        Raises:
            The error of this pool: the function did not return in time, or all threads hang.
            What the function raises.
        """
        token = trio.lowlevel.current_trio_token()
        while True:
            began = time.monotonic()
            has_begun = False
            scope = trio.move_on_after(self._patience_s)

            def renew(scope: trio.CancelScope = scope) -> None:
                scope.deadline = trio.current_time() + self._patience_s

            def call(began: float = began, renew: Callable[[], None] = renew) -> Result:
                nonlocal has_begun
                has_begun = True
                if time.monotonic() - began > self._patience_s / 4:  # it had to wait for this thread
                    token.run_sync_soon(renew)
                try:
                    return function(*arguments)
                finally:
                    self._ended_at = time.monotonic()

            with scope:
                return await trio.to_thread.run_sync(call, limiter=self._limiter, abandon_on_cancel=True)
            if has_begun or self._ended_at < began:
                self.timeouts += 1
                raise self._error(f"{self._what} did not answer within {self._patience_s:g} s")
