"""Check blobs that readers of a mount could not read, and mark the damaged ones, in the background.

A task of the event loop; the checks run in a thread.
"""

from __future__ import annotations

import threading
from functools import partial
from typing import TYPE_CHECKING

import trio

from backyfs.engine.damage.suspects import check_suspects
from backyfs.work.run import Control, Run

if TYPE_CHECKING:
    from backyfs.model import BlobId
    from backyfs.repository import Repository
    from backyfs.work.job import Job

_MOST = 10_000     # blobs to check: if there are more, run a scrub
_TOGETHER_S = 1.0  # collect for this long: a reader that finds one damaged blob finds the next one soon


class DamageMarker:
    """Collects blobs and checks each of them once."""

    def __init__(self, repository: Repository, job: Job) -> None:
        self._repository = repository
        self._limiter = trio.CapacityLimiter(1)
        self._waiting: set[BlobId] = set()
        self._seen: set[BlobId] = set()
        self._wake = trio.Event()
        self._ended = threading.Event()
        self._run = Run(Control(stop=self._ended.is_set), interrupted="the mount ended", job=job)

    def suspect(self, blob_id: BlobId) -> None:
        """Check a blob, unless that was done before."""
        if blob_id not in self._seen and len(self._seen) < _MOST:
            self._seen.add(blob_id)
            self._waiting.add(blob_id)
            self._wake.set()

    async def run(self) -> None:
        """Check blobs until cancelled. If the storage hangs, only this task waits for it."""
        try:
            while True:
                await self._wake.wait()
                await trio.sleep(_TOGETHER_S)
                self._wake = trio.Event()
                waiting, self._waiting = self._waiting, set()
                check = partial(check_suspects, self._repository, waiting, self._run)
                await trio.to_thread.run_sync(check, abandon_on_cancel=True, limiter=self._limiter)
        finally:
            self._ended.set()
