"""Register a running command as a job: a row in the database, kept alive by the heartbeats of a thread.

When the job ends, one transaction turns the row into a run (`metadata/records/runs.py`).
"""

from __future__ import annotations

import logging
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from backyfs.errors import DatabaseError, DatabaseFullError, JobLostError, VersionError
from backyfs.metadata.records import jobs
from backyfs.metadata.records.processes import this_process
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

FIRST_BEAT_S = 2      # interval of the first beats, short enough to show the progress of a short command
_BEATS_A_RUN = 5      # later intervals are a fifth of the elapsed time, and at most jobs.HEARTBEAT_S

_log = logging.getLogger(__name__)


class Job:
    """A job that is registered during a `with`. Its methods may be called from any thread.

    A job that only reads works without a row if the database cannot be written. On a read-only file system nobody can
    remove anything. On a full disk, `rm` can still remove versions, and reading a removed version then fails, see
    `blockmap.page_entries`.
    """

    def __init__(
        self, database: Database, spec: JobSpec, *, only_reads: bool = False, limits: Limits = DEFAULT_LIMITS
    ) -> None:
        """Prepare a job; `spec` describes it to other commands."""
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
        self.progress: JobProgress | None = None  # the arguments of `count`; a running step takes precedence

    def hold(self, version_id: VersionId) -> None:
        """Prevent the removal of a version while this job lives.

        Raises:
            VersionNotFoundError: it was removed.
            DatabaseError: the database could not be written.
            JobLostError: another command considered this one dead.
        """
        if not self._is_registered:
            return
        try:
            with self.write() as connection:
                jobs.hold_version(connection, self._id, version_id)
        except DatabaseFullError as full:
            if not self._only_reads:
                raise
            _log.warning("other commands can remove the version while it is being read: %s", full)

    def hold_new(self, connection: Connection, version_id: VersionId) -> None:
        """Hold a version in the transaction that creates it, so that nobody can remove it before."""
        jobs.hold_version(connection, self._id, version_id)

    def hold_alone(self, version: Version, *, stop: Callable[[], bool] = lambda: False) -> None:
        """Hold a version exclusively.

        Raises:
            VersionError: another job holds it.
            VersionNotFoundError: it was removed.
            InterruptedByUser: `stop` returned True.
            DatabaseError: the database could not be written.
            JobLostError: another command considered this one dead.
        """
        remove_silent_jobs(self._database, stop=stop)
        with self.write() as connection:
            jobs.hold_version(connection, self._id, version.id)
            others = jobs.other_holders(connection, this_process(), self._id, version.uid)
        if others:
            raise VersionError(
                f"is in use by {others[0]}", subject=f"version {version.uid}", remedy="wait for its end"
            )

    def release(self, version_id: VersionId) -> None:
        """Allow the removal of a version again.

        Raises:
            DatabaseError: the database could not be written; the version stays held until the job ends.
        """
        if not self._is_registered:
            return
        with self._database.write() as connection:
            jobs.release_version(connection, self._id, version_id)

    def track(self, progress: Progress, recorded: Callable[[RunId], None] | None = None) -> Progress:
        """Return a progress that forwards to `progress` and is also visible in the list of jobs.

        It belongs to one thread, like `progress`. `recorded` is called with the run when this job has ended.
        """
        self._recorded = recorded
        self._tracked = CountedProgress(progress)
        return self._tracked

    def count(self, done: int, total: int, unit: Unit) -> JobProgress:
        """Update the progress in the list of jobs, for a job without steps that count bytes."""
        self.progress = JobProgress(done=done, total=total, unit=unit, elapsed_s=time.monotonic() - self._began)
        return self.progress

    @property
    def lost(self) -> bool:
        """Whether the row of this job is gone."""
        return self._lost.is_set()

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Yield a write transaction in which this job is certainly alive.

        Use it for everything that must not be lost: rows of objects, pages, the status of a version. When other
        commands consider a job dead, they may delete anything that it holds or has stored, so it must not refer to that
        afterwards. A host that was suspended in between would not know.

        Raises:
            JobLostError: the row of this job is gone.
            DatabaseError: the database failed; the transaction was rolled back.
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
        """Make sure that other commands still know about this job.

        Raises:
            JobLostError: its row is gone, so nothing protects its versions and objects any more.
        """
        if self.lost:
            raise JobLostError(
                "was considered dead by another command, and stops: this host was suspended, or the database was "
                "unreachable for a minute",
                subject=f"the job {self._spec.command!r}",
                remedy="run the command again",
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
            _log.warning("%s is on a read-only file system: other commands do not see this one", self._database.place)
            return self
        try:
            with self._database.write() as connection:
                self._id = jobs.register_job(connection, this_process(), self._spec)
        except DatabaseFullError as full:
            if not self._only_reads:
                raise
            self._is_registered = False
            _log.warning("other commands do not see this one, and can remove versions that it reads: %s", full)
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
            _log.warning("cannot remove the row of this job, which a later command will do: %s", gone)
            return
        if run_id is not None and self._recorded is not None:
            self._recorded(run_id)
