"""Delete data that no version needs any more, while backups, restores, mounts and other cleanups run.

    unused pages -> their blobs without pages, doomed -> objects deleted -> rows removed
    transaction     transaction                          worker             transaction

If a backup commits a page with a blob before the blob is doomed, that page keeps it. If it looked up the blob earlier
but commits the page later, the transaction of the page fails, and the backup stores the block again. So the grace time
only saves work: blobs that a running backup has stored but not yet entered in a page are not deleted and stored twice.

If a cleanup is killed, doomed blobs stay doomed, and the next cleanup continues with them. An object that is already
gone is not an error.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, TypeAlias

from backyfs.engine.catalog.publish import catalog_kept, keep_catalog
from backyfs.errors import BackyfsError, ObjectsKeptError, StorageError
from backyfs.metadata.db.clock import database_time
from backyfs.metadata.upkeep.garbage import (
    Cutoffs,
    DoomedBlob,
    Garbage,
    count_young,
    doom_unused_blobs,
    doomed_blobs,
    forget_doomed,
    measure_doomed,
    measure_garbage,
    remove_unused_pages,
)
from backyfs.model import BlobId, JobKind, JobSpec
from backyfs.work.blobset import BlobSet
from backyfs.work.job import Job
from backyfs.work.run import UNATTENDED, Control, Run
from backyfs.work.window import Window

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backyfs.errors import ObjectUnreadableError
    from backyfs.metadata.db.database import Connection
    from backyfs.repository import Repository
    from backyfs.storage.protocol import Storage

_log = logging.getLogger(__name__)

INTERRUPTED = "interrupted: deleted objects are gone; the next cleanup continues with the rest"
GRACE_S = 3600         # as in backy2
CleanupPlan: TypeAlias = Garbage
_MOST_NAMED = 20       # objects that cannot be deleted are logged, up to this many
_WORKERS = 16          # a deletion mostly waits for a disk or an object store


@dataclass(slots=True, kw_only=True)
class CleanupReport:
    """What was deleted."""

    pages: int = 0
    blobs: int = 0
    stored_bytes: int = 0  # of their objects, where known
    young_blobs: int | None = None  # are deleted later, because they are paid for; None: nothing is paid in advance
    undeleted: int = 0     # objects that the storage cannot delete; the next cleanup tries again
    duration_s: float = 0.0

    @property
    def errors(self) -> list[BackyfsError]:
        """What the next cleanup has to do again."""
        if not self.undeleted:
            return []
        return [
            StorageError(
                f"{self.undeleted} objects could not be deleted, and everything else was",
                remedy="the warnings in the log list them and the reasons; remove the reasons, and clean up again",
            )
        ]


def plan_cleanup(repository: Repository, *, grace_s: float = GRACE_S) -> CleanupPlan:
    """Count what a cleanup would delete now.

    Raises:
        DatabaseError: the database fails, or a page is damaged.
    """
    with repository.database.read() as connection:
        return measure_garbage(connection, cutoffs(connection, repository.blocks.storage, grace_s))


def cutoffs(connection: Connection, storage: Storage, grace_s: float) -> Cutoffs:
    """Return which blobs are too young now.

    An unused blob that is paid for is not doomed either: a backup may use it again, which costs nothing.
    """
    now = database_time(connection)
    paid = timedelta(days=storage.traits.paid_days)
    return Cutoffs(unused=now - max(paid, timedelta(seconds=grace_s)), doomed=now - paid if paid else None)


def cleanup(
    repository: Repository,
    *,
    grace_s: float = GRACE_S,
    control: Control = UNATTENDED,
) -> CleanupReport:
    """Delete what no version needs, except blobs that were stored less than `grace_s` seconds ago or are paid for.

    Blobs that an earlier cleanup doomed come first, because that makes room on a full disk. The catalog is brought up
    to date before any object is deleted, so it never refers to deleted objects.

    Raises:
        InterruptedByUser: `control` asked to stop; the next cleanup continues.
        StorageError, DatabaseError, JobLostError: likewise.
    """
    started = time.monotonic()
    repository.database.use_reserve()
    spec = JobSpec(kind=JobKind.CLEANUP)
    with catalog_kept(repository, control), Job(repository.database, spec, limits=repository.limits) as job:
        cleaner = Cleaner(repository, Run(control, interrupted=INTERRUPTED, job=job), grace_s)
        cleaner.run()
    cleaner.report.duration_s = time.monotonic() - started
    return cleaner.report


class Cleaner:
    """One cleanup under way. Owned by the thread that calls `run`."""

    def __init__(self, repository: Repository, run: Run, grace_s: float) -> None:
        self._repository = repository
        self._database = repository.database
        self._storage = repository.blocks.storage
        self._run = run
        self._limits = repository.limits
        self._grace_s = grace_s
        self._cutoffs = self._current_cutoffs()
        self._undeleted = BlobSet()
        self._lock = threading.Lock()  # guards that set and its count
        self.report = CleanupReport()

    def run(self) -> None:
        """Delete doomed blobs, then whatever no version needs."""
        with Window[list[DoomedBlob]](_WORKERS) as window:
            self._delete_doomed(window)
            self._remove_pages()
            self._doom_blobs()
            self._delete_doomed(window)
        self._count_young()

    def delete_doomed(self) -> None:
        """Delete blobs that are doomed by now, and nothing else."""
        self._cutoffs = self._current_cutoffs()
        with Window[list[DoomedBlob]](_WORKERS) as window:
            self._delete_doomed(window)
        self._count_young()

    def _current_cutoffs(self) -> Cutoffs:
        with self._database.read() as connection:
            return cutoffs(connection, self._storage, self._grace_s)

    def _count_young(self) -> None:
        if self._storage.traits.paid_days:
            with self._database.read() as connection:
                self.report.young_blobs = count_young(connection, self._cutoffs)

    def _remove_pages(self) -> None:
        while True:
            self._run.check()
            with self._database.write() as connection:
                removed = remove_unused_pages(connection, self._limits.pages_at_once)
            self.report.pages += removed
            if not removed:
                return

    def _doom_blobs(self) -> None:
        last = BlobId(0)
        while True:
            self._run.check()
            # The cutoff is fixed. Otherwise, without a grace time, a backup would store the same block again and again,
            # and the cleanup would delete it each time.
            with self._database.write() as connection:
                now = database_time(connection)
                doomed = doom_unused_blobs(
                    connection, older_than=self._cutoffs.unused, now=now, after=last, count=self._limits.blobs_at_once
                )
            if not doomed:
                return
            last = doomed[-1]

    def _delete_doomed(self, window: Window[list[DoomedBlob]]) -> None:
        with self._database.read() as connection:
            many, stored_bytes = measure_doomed(connection, self._cutoffs)
        if not many:
            return
        with self._run.step("Deleting what no version needs", stored_bytes):
            self._delete_batches(window)

    def _delete_batches(self, window: Window[list[DoomedBlob]]) -> None:
        gone: list[DoomedBlob] = []  # objects already deleted: their rows go while the next objects are deleted
        last = BlobId(0)
        while True:
            with self._database.read() as connection:
                batch = doomed_blobs(connection, self._cutoffs, last, self._limits.blobs_at_once)
            if batch:
                last = batch[-1].id
                self._run.check()
                keep_catalog(self._repository, Control(stop=self._run.stops))
            at_once = self._storage.traits.deletions or self._limits.deletions_a_task
            for start in range(0, len(batch), at_once):
                window.submit(self._delete_objects, batch[start : start + at_once])
            self._forget(gone)
            gone = []
            for deleted in window.drain():
                gone += deleted
            if not batch:
                return

    def _forget(self, gone: Sequence[DoomedBlob]) -> None:
        """Remove the rows of blobs whose objects are gone."""
        if not gone:
            return
        with self._database.write() as connection:
            self.report.blobs += forget_doomed(connection, [blob.id for blob in gone])
        freed = sum(blob.stored_size or 0 for blob in gone)
        self.report.stored_bytes += freed
        self._run.advance(freed)

    def _delete_objects(self, blobs: Sequence[DoomedBlob]) -> list[DoomedBlob]:
        """Delete objects and return the blobs whose objects are gone. Runs in a worker thread."""
        try:
            self._storage.delete([blob.uid for blob in blobs])
        except ObjectsKeptError as error:
            kept = error.kept
            for blob in blobs:
                if blob.uid in kept:
                    self._keep(blob, kept[blob.uid])
            return [blob for blob in blobs if blob.uid not in kept]
        return list(blobs)

    def _keep(self, blob: DoomedBlob, error: ObjectUnreadableError) -> None:
        with self._lock:
            if not self._undeleted.add(blob.id):  # it is tried again at the end
                return
            self.report.undeleted += 1
            if self.report.undeleted <= _MOST_NAMED:
                _log.warning("blob %s was not deleted: %s", blob.uid, error)
