"""Requests to an object store: sent in one event loop, repeated while the store is away, ended when the command ends.

Callers are threads, which wait for their answers. While they wait, they ask twice per second whether the command
should end. A request that is cancelled closes its connection, so an interrupted command never waits for a store that
is silent. Every attempt has an end: a fixed time, and the time that its bytes take at a low rate.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from concurrent.futures import CancelledError, Future
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar

from backyfs.errors import InterruptedByUser, StorageAwayError, StorageError
from backyfs.storage.bucket.failures import failure
from backyfs.storage.bucket.line import Line
from backyfs.storage.bucket.outage import Outage, Trial
from backyfs.storage.bucket.tally import Tally

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Sequence

    from backyfs.storage.bucket.line import Turn
    from backyfs.storage.bucket.outage import Patience

T = TypeVar("T")

_LOWEST_RATE = 32 << 10  # bytes/s; a request that is slower has failed
_LONGEST_PAUSE_S = 10.0
_ASK_S = 0.5  # between two questions whether the command should end
_timer: ContextVar[asyncio.Timeout] = ContextVar("_timer")  # of the attempt that runs


class Requests:
    """Sends requests. Any thread may call it."""

    def __init__(self, place: str, *, patience: Patience, stop: Callable[[], bool], line: Line | None = None) -> None:
        """Begin without a connection. `place` names the store in messages; `stop` says whether the command ends."""
        self._place = place
        self.patience = patience
        self._stop = stop
        self._line = line or Line()
        self._lock = threading.Lock()  # guards the start of the loop
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._is_closed = False
        self._outage = Outage(place, patience)
        self.tally = Tally()
        self.round_trip_s = 0.0  # the shortest time in which a request was answered; 0: none yet

    def send(
        self, verb: str, request: Callable[[], Awaitable[T]], *, size: int = 0, key: str = "", repeats: bool = True
    ) -> T:
        """Send a request of a kind (`verb`) and return its result.

        `size` is the number of bytes that it moves, or an estimate. With `repeats` it is sent again while the
        store is away. `key` names the object in messages.

        Raises:
            ObjectMissingError: the answer was 404.
            StorageAwayError: the store did not answer for as long as patience lasts.
            StorageError: it failed otherwise.
            InterruptedByUser: the command should end.
        """
        return self._wait(self._attempts(verb, request, size=size, key=key, repeats=repeats, is_estimate=False))

    def send_all(
        self,
        verb: str,
        requests: Sequence[tuple[Callable[[], Awaitable[T]], int]],
        *,
        key: str,
        is_estimate: bool = False,
    ) -> list[T]:
        """Send several requests at once, each with the number of bytes that it moves, and return their results.

        If these numbers are estimates, the requests call `allow` when they know better.

        Raises:
            What `send` raises.
        """
        if len(requests) == 1:
            request, size = requests[0]
            return [
                self._wait(self._attempts(verb, request, size=size, key=key, repeats=True, is_estimate=is_estimate))
            ]

        async def all_of_them() -> list[T]:
            attempts = [
                asyncio.ensure_future(
                    self._attempts(verb, request, size=size, key=key, repeats=True, is_estimate=is_estimate)
                )
                for request, size in requests
            ]
            try:
                return await asyncio.gather(*attempts)
            finally:
                for attempt in attempts:  # that are of no use if one of them has failed
                    attempt.cancel()

        return self._wait(all_of_them())

    def pause(self, seconds: float) -> None:
        """Wait before something is tried again.

        Raises:
            InterruptedByUser: the command should end.
        """
        self._wait(asyncio.sleep(seconds))

    def _wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        future = self._submit(coroutine)
        while True:
            try:
                return future.result(_ASK_S)
            except TimeoutError:
                if not future.done() and self._stop():
                    future.cancel()
                    raise InterruptedByUser("interrupted while waiting for the storage") from None
            except CancelledError:
                raise StorageError("was closed", subject=f"storage {self._place}") from None

    async def _attempts(
        self,
        verb: str,
        request: Callable[[], Awaitable[T]],
        *,
        size: int,
        key: str,
        repeats: bool,
        is_estimate: bool,
    ) -> T:
        trial = Trial()
        pause_s = self.patience.pause_s
        try:
            while True:
                try:
                    return await self._attempt(trial, verb, request, size, key, 0 if is_estimate else size)
                except StorageAwayError as error:
                    if not repeats:
                        raise
                    remaining_s = self._outage.remaining_s(trial, error)
                    if remaining_s <= 0:
                        raise
                # Requests that failed together come back at different times.
                await asyncio.sleep(min(remaining_s, pause_s * random.uniform(0.5, 1)))  # noqa: S311 - hides nothing
                pause_s = min(_LONGEST_PAUSE_S, 2 * pause_s)
        finally:
            self._outage.end(trial)

    def allow(self, size: int) -> None:
        """Give the running request the time for the `size` bytes of its answer, which it has just learned."""
        _timer.get().reschedule(asyncio.get_running_loop().time() + self._limit_s(size))

    def _limit_s(self, size: int) -> float:
        return self.patience.request_s + size / _LOWEST_RATE

    async def _attempt(
        self, trial: Trial, verb: str, request: Callable[[], Awaitable[T]], size: int, key: str, timed_bytes: int
    ) -> T:
        limit_s = self._limit_s(timed_bytes)
        async with self._line.turn(size) as turn:
            self._outage.begin(trial)
            self.tally.add(verb, requests=1, repeated=trial.is_failing)
            began_s = time.monotonic()
            try:
                async with asyncio.timeout(limit_s) as timer:
                    _timer.set(timer)
                    result = await request()
            except TimeoutError as error:
                turn.was_too_much()
                raise StorageAwayError(
                    f"does not answer: no answer within {limit_s:.0f} s", subject=f"storage {self._place}:"
                ) from error
            except StorageError as error:
                self._note_error(error, turn, trial)
                raise
            except Exception as error:
                translated = failure(error, place=self._place, verb=verb, key=key)
                self._note_error(translated, turn, trial)
                raise translated from error
            turn.was_taken()
            self._outage.note_answer(trial)
            took_s = time.monotonic() - began_s
            self.round_trip_s = min(self.round_trip_s or took_s, took_s)
            return result

    def _note_error(self, error: StorageError, turn: Turn, trial: Trial) -> None:
        if isinstance(error, StorageAwayError):
            turn.was_too_much()
        else:
            self._outage.note_answer(trial)

    def _submit(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        with self._lock:
            if self._is_closed:
                coroutine.close()
                raise StorageError("was closed", subject=f"storage {self._place}")
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._loop.run_forever, name="backyfs-requests", daemon=True)
                self._thread.start()
            return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def close(self) -> None:
        """Cancel what is in flight, and end the loop."""
        with self._lock:  # what was submitted before is cancelled, and nothing is submitted later
            loop, thread = self._loop, self._thread
            self._loop = self._thread = None
            self._is_closed = True
        if loop is None or thread is None:
            return
        asyncio.run_coroutine_threadsafe(_cancel_others(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
