"""Remove versions: those that are protected, in use or too young are kept, each with its reason.

Only the database changes. What no version needs any more stays in the storage until a cleanup.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from backyfs.engine.catalog.publish import catalog_kept
from backyfs.errors import VersionKeptError
from backyfs.metadata.records.jobs import list_live_jobs, live_holders, this_process
from backyfs.metadata.records.removal import lock_version, remove_version
from backyfs.metadata.records.versions import is_last_valid, version_with_uid
from backyfs.model import JobKind, JobSpec, Unit
from backyfs.work.job import Job
from backyfs.work.pace import progress_text
from backyfs.work.run import UNATTENDED, Run
from backyfs.work.silence import remove_silent_jobs

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from datetime import datetime

    from backyfs.metadata.db.database import Connection
    from backyfs.metadata.records.jobs import Job as LiveJob
    from backyfs.model import Version, VersionId
    from backyfs.repository import Repository
    from backyfs.work.run import Control


@dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    """What became of a version that was to be removed."""

    version: Version
    kept: VersionKeptError | None  # why it is still there; None: it is gone


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rules:
    """What keeps a version, besides its protection and the jobs that hold it."""

    younger_than_days: int
    force: bool
    keep_last: bool
    now: datetime
    still: Callable[[Version], bool]


def remove_versions(
    repository: Repository,
    versions: Sequence[Version],
    *,
    younger_than_days: int = 0,
    force: bool = False,
    keep_last: bool = False,
    now: datetime,
    still: Callable[[Version], bool] = lambda _version: True,
    kind: JobKind = JobKind.RM,
    control: Control = UNATTENDED,
    announce: Callable[[Removal], None] = lambda _removal: None,
) -> list[Removal]:
    """Remove versions, the oldest first, each in a transaction of its own, and return what became of each.

    A version that is protected or that a running command holds is kept, also with `force`; one younger than
    `younger_than_days` days at the time `now` is without it. `keep_last` keeps the last valid version of each name: if
    all of them are to be removed, the newest stays. All this is looked at in the transaction that removes: nobody can
    begin to use a version in between. So is `still`, which tells of a version as it is then whether it
    is to be removed still. One that is gone meanwhile counts as removed; one that is named twice is reported once.

    `kind` is that of the job. `control` can stop it before each version; `announce` is called
    with each at once.

    Raises:
        InterruptedByUser: `control` asked to stop; the versions that were announced are gone or kept as told.
        DatabaseError: likewise.
        JobLostError: another command took this one for dead; likewise.
    """
    rules = _Rules(younger_than_days=younger_than_days, force=force, keep_last=keep_last, now=now, still=still)
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
            run.saying(f"interrupted after {how_far}; run it again for the others").check()
            removal = Removal(version=version, kept=_remove(repository, version, rules))
            removals.append(removal)
            announce(removal)
    return removals


def plan_removals(
    repository: Repository,
    versions: Sequence[Version],
    *,
    younger_than_days: int = 0,
    force: bool = False,
    keep_last: bool = False,
    now: datetime,
) -> list[Removal]:
    """Return what `remove_versions` would do with these versions now. Nothing is changed.

    Raises:
        DatabaseError: the database cannot be read.
    """
    rules = _Rules(
        younger_than_days=younger_than_days, force=force, keep_last=keep_last, now=now, still=lambda _version: True
    )
    removals = []
    gone: set[VersionId] = set()
    with repository.database.read() as connection:
        jobs = list_live_jobs(connection, this_process())
        for version in _in_order(versions):
            holders = [job for job in jobs if version.uid in job.versions]
            kept = _reason_to_keep(connection, version, rules, holders, gone)
            if kept is None:
                gone.add(version.id)
            removals.append(Removal(version=version, kept=kept))
    return removals


def _in_order(versions: Sequence[Version]) -> list[Version]:
    """Return versions, each once, in the order of their removal: of several valid ones the newest is the last."""
    return sorted(
        {version.id: version for version in versions}.values(), key=lambda version: (version.created_at, version.id)
    )


def _remove(repository: Repository, version: Version, rules: _Rules) -> VersionKeptError | None:
    with repository.database.write() as connection:
        lock_version(connection, version.id)
        now = version_with_uid(connection, version.uid)
        kept = None
        if now is not None:
            holders = live_holders(connection, this_process(), now.id)
            kept = _reason_to_keep(connection, now, rules, holders)
        if kept is None:
            remove_version(connection, version.id)
        return kept


def _reason_to_keep(
    connection: Connection,
    version: Version,
    rules: _Rules,
    holders: Sequence[LiveJob],
    gone: Collection[VersionId] = (),
) -> VersionKeptError | None:
    """Return why a version stays; None if it does not. `gone` are versions that only a plan has removed."""
    uid = version.uid
    if version.protected:
        return VersionKeptError(f"version {uid} is protected; run `backyfs unprotect {uid}` first")
    if holders:
        return VersionKeptError(f"version {uid} is in use by {holders[0]}; wait for its end, or end it")
    # 0 days is no rule: a version of a host whose clock is ahead is younger than that.
    young = rules.now - version.created_at < timedelta(days=rules.younger_than_days) and rules.younger_than_days > 0
    if young and not rules.force:
        return VersionKeptError(
            f"version {uid} is younger than the {rules.younger_than_days} days of "
            "disallow_rm_when_younger_than_days; add --force to remove it all the same"
        )
    if not rules.still(version):
        return VersionKeptError(f"version {uid} was changed meanwhile and is not to go any more; look at it again")
    if rules.keep_last and is_last_valid(connection, version, gone):
        return VersionKeptError(
            f"version {uid} is the last valid version of {version.name!r}; make another backup first, or force its "
            "removal with --force (with --expired: --even-last)"
        )
    return None
