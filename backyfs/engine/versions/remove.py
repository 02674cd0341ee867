"""Remove versions. Protected, used and recent ones are kept, each with its reason.

Only the database changes. Blocks that no version needs any more stay in the storage until a cleanup.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from backyfs.engine.catalog.publish import catalog_kept
from backyfs.errors import VersionKeptError
from backyfs.metadata.records.jobs import list_live_jobs, live_holders
from backyfs.metadata.records.processes import this_process
from backyfs.metadata.records.removal import lock_version, remove_version
from backyfs.metadata.records.versions import find_version, is_last_valid, list_versions, version_with_uid
from backyfs.model import JobKind, JobSpec, Unit
from backyfs.remedies import Advice
from backyfs.work.job import Job
from backyfs.work.pace import progress_text
from backyfs.work.run import UNATTENDED, Run
from backyfs.work.silence import remove_silent_jobs

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from datetime import datetime

    from backyfs.metadata.db.database import Connection
    from backyfs.metadata.records.jobs import LiveJob
    from backyfs.model import Version, VersionId
    from backyfs.repository import Repository
    from backyfs.work.run import Control


@dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    """What became of a version that should be removed."""

    version: Version
    kept: VersionKeptError | None  # why it was not removed; None: it was


@dataclass(frozen=True, slots=True, kw_only=True)
class RemovalRequest:
    """Which versions to remove, and which rules not to apply."""

    names: tuple[str, ...] = ()  # as a person names versions; none: all versions that have expired
    force: bool = False          # also versions that are too young and, if named, the last valid one of a name
    even_last: bool = False      # of those that have expired: also the last valid one of a name
    dry_run: bool = False        # remove nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class RemovalReport:
    """What became of the versions that should be removed."""

    request: RemovalRequest
    removals: tuple[Removal, ...]

    @property
    def kept(self) -> list[VersionKeptError]:
        """Why versions were kept."""
        return [removal.kept for removal in self.removals if removal.kept is not None]

    @property
    def errors(self) -> list[VersionKeptError]:
        """An error for each version that was named and is kept; expired ones are kept without an error."""
        return self.kept if self.request.names else []


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What keeps a version, apart from its protection and the jobs that hold it."""

    younger_than_days: int = 0  # 0: no rule
    force: bool = False         # versions may be younger than that
    keep_last: bool = False     # the last valid version of a name stays; if all should go, the newest
    # Whether a version still qualifies. It is asked in the transaction that removes, about the version as it is then.
    still: Callable[[Connection, Version], bool] = lambda _connection, _version: True


NO_RULES = Rules()


def remove(
    repository: Repository,
    request: RemovalRequest,
    *,
    now: datetime,
    control: Control = UNATTENDED,
    announce: Callable[[Removal], None] = lambda _removal: None,
) -> RemovalReport:
    """Remove the versions that were named, or all that have expired, by the rules of the configuration.

    Raises:
        VersionNotFoundError: one of the names matches no version, or several; nothing was removed.
        InterruptedByUser, DatabaseError, JobLostError: as `remove_versions`.
    """
    with repository.database.read() as connection:
        wanted = (
            [find_version(connection, name, now=now) for name in request.names]
            if request.names
            else [version for version in list_versions(connection) if version.has_expired(now)]
        )
    rules = Rules(
        younger_than_days=repository.config.disallow_rm_when_younger_than_days,
        force=request.force,
        keep_last=not (request.force if request.names else request.even_last),
        still=lambda _connection, version: bool(request.names) or version.has_expired(now),
    )
    if request.dry_run:
        removals = plan_removals(repository, wanted, rules=rules, now=now)
    else:
        removals = remove_versions(repository, wanted, rules=rules, now=now, control=control, announce=announce)
    return RemovalReport(request=request, removals=tuple(removals))


def remove_versions(
    repository: Repository,
    versions: Sequence[Version],
    *,
    rules: Rules = NO_RULES,
    now: datetime,
    kind: JobKind = JobKind.RM,
    control: Control = UNATTENDED,
    announce: Callable[[Removal], None] = lambda _removal: None,
) -> list[Removal]:
    """Remove versions, the oldest first, each in its own transaction, and return what became of each.

    A version is kept if it is protected or a running command holds it, or if `rules` keep it. All of this is checked in
    the transaction that removes the version, so nobody can begin to use it in between. A version that is gone in the
    meantime counts as removed; one that is named twice is reported once.

    `kind` is that of the job. `control` can stop it before each version; `announce` is called with each result
    immediately.

    Raises:
        InterruptedByUser: `control` asked to stop; what was announced is done.
        DatabaseError: likewise.
        JobLostError: another command took this one for dead; likewise.
    """
    wanted = _in_order(versions)
    removals: list[Removal] = []
    if not wanted:
        return removals
    repository.database.use_reserve()
    remove_silent_jobs(repository.database, stop=control.stop)
    spec = JobSpec(kind=kind, names=tuple(version.name for version in wanted))
    with catalog_kept(repository, control), Job(repository.database, spec, limits=repository.limits) as job:
        run = Run(control, interrupted="interrupted", job=job)
        for version in wanted:
            how_far = progress_text(job.count(len(removals), len(wanted), Unit.VERSIONS))
            run.saying(f"interrupted after {how_far}; run it again for the rest").check()
            removal = Removal(version=version, kept=_remove(repository, version, rules, now))
            removals.append(removal)
            announce(removal)
    return removals


def plan_removals(
    repository: Repository, versions: Sequence[Version], *, rules: Rules = NO_RULES, now: datetime
) -> list[Removal]:
    """Return what `remove_versions` would do with these versions now, without changing anything.

    Raises:
        DatabaseError: the database cannot be read.
    """
    removals = []
    gone: set[VersionId] = set()
    with repository.database.read() as connection:
        jobs = list_live_jobs(connection, this_process())
        for version in _in_order(versions):
            holders = [job for job in jobs if version.uid in job.versions]
            kept = _reason_to_keep(connection, version, rules, now, holders, gone)
            if kept is None:
                gone.add(version.id)
            removals.append(Removal(version=version, kept=kept))
    return removals


def _in_order(versions: Sequence[Version]) -> list[Version]:
    """Return each version once, in the order of removal: the newest valid one comes last."""
    return sorted(
        {version.id: version for version in versions}.values(), key=lambda version: (version.created_at, version.id)
    )


def _remove(repository: Repository, version: Version, rules: Rules, now: datetime) -> VersionKeptError | None:
    with repository.database.write() as connection:
        lock_version(connection, version.id)
        current = version_with_uid(connection, version.uid)
        kept = None
        if current is not None:
            holders = live_holders(connection, this_process(), current.id)
            kept = _reason_to_keep(connection, current, rules, now, holders)
        if kept is None:
            remove_version(connection, version.id)
        return kept


def _reason_to_keep(
    connection: Connection,
    version: Version,
    rules: Rules,
    now: datetime,
    holders: Sequence[LiveJob],
    gone: Collection[VersionId] = (),
) -> VersionKeptError | None:
    """Return why a version is kept; None: it can be removed. `gone` are versions that a plan has already removed."""
    subject = f"version {version.uid}"
    if version.protected:
        return VersionKeptError("is protected", subject=subject, remedy=Advice.UNPROTECT_VERSION(uid=version.uid))
    if holders:
        return VersionKeptError(f"is in use by {holders[0]}", subject=subject, remedy="wait until it ends, or end it")
    # 0 days means no limit: a version from a host whose clock is ahead is younger than that.
    young = now - version.created_at < timedelta(days=rules.younger_than_days) and rules.younger_than_days > 0
    if young and not rules.force:
        return VersionKeptError(
            f"is younger than the {rules.younger_than_days} days of disallow_rm_when_younger_than_days",
            subject=subject,
            remedy=Advice.REMOVE_YOUNG(),
        )
    if not rules.still(connection, version):
        return VersionKeptError(
            "changed in the meantime and no longer qualifies for removal", subject=subject, remedy="list it again"
        )
    if rules.keep_last and is_last_valid(connection, version, gone):
        return VersionKeptError(
            f"is the last valid version of {version.name!r}", subject=subject, remedy=Advice.REMOVE_LAST()
        )
    return None
