"""Delete what no version needs any more, beside backups, restores, mounts and other cleanups.

    unused pages -> their blobs without pages, doomed -> objects deleted -> rows removed
    transaction     transaction                          worker             transaction

A backup that meets a blob before it is doomed uses it, and its page keeps it. One that looked it up before and commits
the page after is refused by the transaction of that page, and stores the block anew. So the grace time only saves
work: blobs that a running backup has stored and not put into a page yet are not taken away and stored twice.

Killed anywhere, what is doomed stays so, and the next cleanup goes on with it; an object that is gone already is fine.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from backyfs.engine.job import Job
from backyfs.engine.publish import catalog_kept, keep_catalog
from backyfs.engine.window import Window
from backyfs.errors import InterruptedByUser
from backyfs.metadata.garbage import (
    DoomedBlob,
    Garbage,
    doom_unused_blobs,
    doomed_blobs,
    forget_doomed,
    measure_doomed,
    measure_garbage,
    remove_unused_pages,
)
from backyfs.metadata.jobs import database_time
from backyfs.model import BlobId, NoProgress

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from backyfs.model import Progress
    from backyfs.repository import Repository

GRACE_S = 3600         # as in backy2
_PAGES_AT_ONCE = 16    # are removed in one transaction: some 16,000 counts, 50 ms
_BLOBS_AT_ONCE = 4096  # are doomed in one transaction, and their rows removed in another
_RUN_BLOBS = 256       # objects are deleted in runs of so many
_WORKERS = 16          # a deletion is mostly waiting, for a disk or an object store


@dataclass(slots=True, kw_only=True)
class CleanupReport:
    """What was taken away."""

    pages: int = 0
    blobs: int = 0
    stored_bytes: int = 0  # of their objects, as far as that is known
    duration_s: float = 0.0


def plan_cleanup(repository: Repository, *, grace_s: float = GRACE_S) -> Garbage:
    """Count what a cleanup would take away now.

    Raises:
        DatabaseError: the database fails, or a page is damaged.
    """
    with repository.database.read() as connection:
        return measure_garbage(connection, database_time(connection) - timedelta(seconds=grace_s))


def cleanup(
    repository: Repository,
    *,
    grace_s: float = GRACE_S,
    progress: Progress | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> CleanupReport:
    """Delete what no version needs, except blobs that were stored less than `grace_s` seconds ago.

    What an earlier cleanup has left comes first: that makes room where a disk is full. The catalog is brought up to
    date before any object is deleted, so that it does not name objects that are gone.

    Raises:
        InterruptedByUser: `stop` said so; the next cleanup goes on.
        StorageError, DatabaseError, JobLostError: likewise.
    """
    started = time.monotonic()
    repository.database.use_reserve()
    with catalog_kept(repository, stop), Job(repository.database, "cleanup", writes_blobs=False) as job:
        cleaner = Cleaner(repository, job, job.track(progress or NoProgress()), stop)
        cleaner.run(grace_s)
    cleaner.report.duration_s = time.monotonic() - started
    return cleaner.report


class Cleaner:
    """One cleanup under way. Owned by the thread that calls `run`."""

    def __init__(self, repository: Repository, job: Job, progress: Progress, stop: Callable[[], bool]) -> None:
        self._repository = repository
        self._database = repository.database
        self._storage = repository.blocks.storage
        self._job = job
        self._progress = progress
        self._stop = stop
        self.report = CleanupReport()

    def run(self, grace_s: float) -> None:
        """Take away what is doomed, then what no version needs."""
        with Window[None](_WORKERS) as window:
            self._delete_doomed(window)
            self._remove_pages()
            self._doom_blobs(grace_s)
            self._delete_doomed(window)

    def delete_doomed(self) -> None:
        """Delete what is doomed, and nothing else."""
        with Window[None](_WORKERS) as window:
            self._delete_doomed(window)

    def check(self) -> None:
        """Raise where this is to end: what `cleanup` says of it."""
        self._job.check()
        if self._stop():
            raise InterruptedByUser("interrupted: what was deleted is gone; the next cleanup goes on with the rest")

    def _remove_pages(self) -> None:
        while True:
            self.check()
            with self._database.write() as connection:
                removed = remove_unused_pages(connection, _PAGES_AT_ONCE)
            self.report.pages += removed
            if not removed:
                return

    def _doom_blobs(self, grace_s: float) -> None:
        last = BlobId(0)
        # Fixed at the beginning: without a grace time a backup would store the same block again and again, and a
        # cleanup take it each time.
        with self._database.read() as connection:
            older_than = database_time(connection) - timedelta(seconds=grace_s)
        while True:
            self.check()
            with self._database.write() as connection:
                now = database_time(connection)
                doomed = doom_unused_blobs(
                    connection, older_than=older_than, now=now, after=last, count=_BLOBS_AT_ONCE
                )
            if not doomed:
                return
            last = doomed[-1]

    def _delete_doomed(self, window: Window[None]) -> None:
        with self._database.read() as connection:
            many, stored_bytes = measure_doomed(connection)
        if not many:
            return
        self._progress.start("Deleting what no version needs", stored_bytes)
        try:
            self._delete_batches(window)
        finally:
            self._progress.stop()

    def _delete_batches(self, window: Window[None]) -> None:
        gone: list[DoomedBlob] = []  # whose objects are deleted: their rows go while the next are
        last = BlobId(0)
        while True:
            with self._database.read() as connection:
                batch = doomed_blobs(connection, last, _BLOBS_AT_ONCE)
            if batch:
                last = batch[-1].id
                self.check()
                keep_catalog(self._repository, stop=self._stop)
            for start in range(0, len(batch), _RUN_BLOBS):
                window.submit(self._delete_run, batch[start : start + _RUN_BLOBS])
            self._forget(gone)
            while window.pending:
                for _ in window.results():
                    pass
            if not batch:
                return
            gone = batch

    def _forget(self, gone: Sequence[DoomedBlob]) -> None:
        """Remove the rows of blobs whose objects are gone."""
        if not gone:
            return
        with self._database.write() as connection:
            self.report.blobs += forget_doomed(connection, [blob.id for blob in gone])
        freed = sum(blob.stored_size or 0 for blob in gone)
        self.report.stored_bytes += freed
        self._progress.advance(freed)

    def _delete_run(self, run: Sequence[DoomedBlob]) -> None:
        """Delete objects. Runs in a worker thread."""
        for blob in run:
            self._storage.delete(blob.uid)
