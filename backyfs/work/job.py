"""The job of a running command: its row in the database, kept alive by the heartbeats of a thread.

At its end the row becomes a run (`metadata/records/runs.py`), in one transaction.
"""

from __future__ import annotations

import logging
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from backyfs.errors import DatabaseError, DatabaseFullError, JobLostError, VersionError
from backyfs.metadata.records import jobs
from backyfs.metadata.records.runs import prune_runs
from backyfs.model import JobProgress
from backyfs.work.ending import ending_of
from backyfs.work.limits import DEFAULT_LIMITS
from backyfs.work.progress import CountedProgress
from backyfs.work.silence import remove_silent_jobs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from backyfs.metadata.db.database import Connection, Database
    from backyfs.model import JobSpec, Progress, RunId, Unit, Version, VersionId
    from backyfs.work.limits import Limits

FIRST_BEAT_S = 2      # the first beats come this often, so that the progress of a short command can be seen
_BEATS_A_RUN = 5      # later ones are a fifth of the time so far apart, and at most jobs.HEARTBEAT_S

_log = logging.getLogger(__name__)


class Job:
    """A registered job, from `with` to its end. Its methods may be called from any thread.

    A job that only reads works without its row if the database cannot be written. Nobody can remove anything on a
    read-only file system. On a full disk `rm` can: then reading a version that is gone fails, see
    `blockmap.page_entries`.
    """

    def __init__(
        self, database: Database, spec: JobSpec, *, only_reads: bool = False, limits: Limits = DEFAULT_LIMITS
    ) -> None:
        """Prepare a job; `spec` is what others see of it."""
        self._database = database
        self._spec = spec
        self._only_reads = only_reads
        self._limits = limits
        self._is_registered = not (only_reads and database.is_read_only)
        self._ended = threading.Event()
        self._lost = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="backyfs-heartbeat", daemon=True)
        self._tracked: CountedProgress | None = None
        self._recorded: Callable[[RunId], None] | None = None
        self._began = time.monotonic()
        self.progress: JobProgress | None = None  # what `count` was called with; a step under way takes precedence

    def hold(self, version_id: VersionId) -> None:
        """Keep a version from being removed while this job lives.

        Raises:
            VersionNotFoundError: it was removed.
            DatabaseError: that could not be stored.
            JobLostError: another command took this one for dead.
        """
        if not self._is_registered:
            return
        try:
            with self.write() as connection:
                jobs.hold_version(connection, self._id, version_id)
        except DatabaseFullError as full:
            if not self._only_reads:
                raise
            _log.warning("other commands can remove the version that is being read: %s", full)

    def hold_new(self, connection: Connection, version_id: VersionId) -> None:
        """Hold a version in the transaction that makes it: nobody can remove it before it is held."""
        jobs.hold_version(connection, self._id, version_id)

    def hold_alone(self, version: Version, *, stop: Callable[[], bool] = lambda: False) -> None:
        """Hold a version that no other job may use at the same time.

        Raises:
            VersionError: another job holds it.
            VersionNotFoundError: it was removed.
            InterruptedByUser: `stop` returned True.
            DatabaseError: that could not be stored.
            JobLostError: another command took this one for dead.
        """
        remove_silent_jobs(self._database, stop=stop)
        with self.write() as connection:
            jobs.hold_version(connection, self._id, version.id)
            others = jobs.other_holders(connection, jobs.this_process(), self._id, version.uid)
        if others:
            raise VersionError(f"version {version.uid} is in use by {others[0]}; wait for its end")

    def release(self, version_id: VersionId) -> None:
        """Let a version be removed again.

        Raises:
            DatabaseError: that could not be stored; it stays held until the job ends.
        """
        if not self._is_registered:
            return
        with self._database.write() as connection:
            jobs.release_version(connection, self._id, version_id)

    def track(self, progress: Progress, recorded: Callable[[RunId], None] | None = None) -> Progress:
        """Return a progress that is shown as `progress` shows it, and to those who list the jobs.

        It belongs to one thread, as `progress` does. `recorded` is called with the run when this job has ended.
        """
        self._recorded = recorded
        self._tracked = CountedProgress(progress)
        return self._tracked

    def count(self, done: int, total: int, unit: Unit) -> JobProgress:
        """Show those who list the jobs how far this one has got, where it has no steps that count bytes."""
        self.progress = JobProgress(done=done, total=total, unit=unit, elapsed_s=time.monotonic() - self._began)
        return self.progress

    @property
    def lost(self) -> bool:
        """Whether the row of this job is gone."""
        return self._lost.is_set()

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Give a write transaction in which this job is known to be alive.

        Everything that others must not lose is written in such a transaction: rows of objects, pages, the status of a
        version. Once others take a job for dead they no longer spare what it holds and has stored, so it must not refer
        to that afterwards. A host that was suspended in between does not know.

        Raises:
            JobLostError: the row of this job is gone.
            DatabaseError: the database fails; nothing of the transaction was done.
        """
        with self._database.write() as connection:
            self.confirm(connection)
            yield connection

    def confirm(self, connection: Connection) -> None:
        """Make sure in a write transaction that this job is alive; see `write`.

        Raises:
            JobLostError: the row of this job is gone.
        """
        if self._is_registered and not jobs.has_row(connection, self._id):
            self._lost.set()
            self.check()

    def check(self) -> None:
        """Make sure that the other commands still know of this job.

        Raises:
            JobLostError: its row is gone; nothing keeps the others from removing what it works on.
        """
        if self.lost:
            raise JobLostError(
                f"the job {self._spec.command!r} was taken for dead by another command and stops; was this host "
                "suspended, or the database out of reach for a minute? Run the command again"
            )

    def _beat(self) -> None:
        began_s = time.monotonic()
        pause_s: float = FIRST_BEAT_S
        while not self._ended.wait(pause_s):
            elapsed_s = time.monotonic() - began_s
            pause_s = min(jobs.HEARTBEAT_S, max(FIRST_BEAT_S, elapsed_s / _BEATS_A_RUN))
            step = None if self._tracked is None else self._tracked.numbers()
            try:
                with self._database.write() as connection:
                    alive = jobs.beat(connection, self._id, step or self.progress)
            except DatabaseError as error:
                _log.warning("heartbeat failed, trying again in %.0f s: %s", pause_s, error)
                continue
            if not alive:
                self._lost.set()
                return

    def __enter__(self) -> Job:
        if not self._is_registered:
            _log.warning("%s is on a read-only file system: others do not see this command", self._database.place)
            return self
        try:
            with self._database.write() as connection:
                self._id = jobs.register_job(connection, jobs.this_process(), self._spec)
        except DatabaseFullError as full:
            if not self._only_reads:
                raise
            self._is_registered = False
            _log.warning("other commands do not see this one, and can remove what it reads: %s", full)
            return self
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._is_registered:
            return
        self._ended.set()
        self._thread.join()
        try:
            with self._database.write() as connection:
                run_id = jobs.end_job(connection, self._id, ending_of(error))
                if run_id is not None:
                    prune_runs(connection, run_id, self._limits.runs)
        except DatabaseError as gone:
            _log.warning("the row of this job stays behind and is removed by a later command: %s", gone)
            return
        if run_id is not None and self._recorded is not None:
            self._recorded(run_id)
