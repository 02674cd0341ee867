"""A cleanup that trusts nothing: it recounts all references before it deletes, and compares the storage with the rows.

    recount -> cleanup -> list the storage -> delete orphans -> read back what seems to be missing

The recount comes first because a count that is too low would make the cleanup delete blobs in use. Like any cleanup, it
can run at the same time as other commands. If it is killed, just run it again.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from backyfs.engine.catalog.check import remove_stale_objects
from backyfs.engine.catalog.publish import catalog_kept
from backyfs.engine.damage.blobchecker import BlobChecker
from backyfs.engine.damage.marking import MarkedDamage, mark_versions
from backyfs.engine.space.cleanup import GRACE_S, INTERRUPTED, Cleaner, plan_cleanup
from backyfs.engine.space.orphans import StorageDifferences, StorageListing, least_age_s
from backyfs.engine.space.recount import RecountReport, recount
from backyfs.errors import BackyfsError, IntegrityError
from backyfs.model import BlobId, JobKind, JobSpec
from backyfs.work.job import Job
from backyfs.work.run import UNATTENDED, Run
from backyfs.work.silence import remove_silent_jobs

if TYPE_CHECKING:
    from collections.abc import Callable

    from backyfs.engine.space.cleanup import CleanupPlan, CleanupReport
    from backyfs.model import DamagedRange, Version, VersionUid
    from backyfs.repository import Repository
    from backyfs.work.run import Control


@dataclass(frozen=True, slots=True, kw_only=True)
class FullPlan:
    """What a full cleanup would do now."""

    garbage: CleanupPlan    # by the current references; correcting wrong ones may change it
    wrong_references: int   # of pages and blobs
    orphans: int            # objects without a row
    orphan_bytes: int
    young_orphans: int
    missing_blobs: int      # without object, or with one of another size, or without a row though pages refer to them


@dataclass(frozen=True, slots=True, kw_only=True)
class FullReport:
    """What a full cleanup did and found."""

    cleaned: CleanupReport  # with the orphans
    wrong_references: int   # of pages and blobs, corrected
    orphans: int            # objects without a row, deleted
    orphan_bytes: int
    young_orphans: int      # kept for now: a running command may be about to add their rows
    leftovers: int          # of killed commands: temporary files and objects of the catalog
    damaged_blobs: int      # in use by versions: without object or row, or damaged
    versions_invalid: tuple[VersionUid, ...]  # valid until now
    duration_s: float

    @property
    def errors(self) -> list[BackyfsError]:
        """What could not be deleted, and what was found damaged."""
        if not self.damaged_blobs:
            return self.cleaned.errors
        damage = IntegrityError(
            f"damage in {self.damaged_blobs} blobs, which are marked, in ranges that the log lists; versions that have "
            "them are invalid",
            remedy="back up their sources again, and keep what can still be restored",
        )
        return [*self.cleaned.errors, damage]


def plan_full_cleanup(
    repository: Repository,
    *,
    grace_s: float = GRACE_S,
    prefix: str = "",
    control: Control = UNATTENDED,
) -> FullPlan:
    """Return what a full cleanup would do, without changing anything.

    Raises the errors of `full_cleanup`.
    """
    remove_silent_jobs(repository.database, stop=control.stop)
    spec = JobSpec(kind=JobKind.CLEANUP, label="--full --dry-run")
    with Job(repository.database, spec, limits=repository.limits) as job:
        run = Run(control, interrupted=INTERRUPTED, job=job)
        counted = recount(repository.database, run.check, correct=False)
        found = StorageListing(repository, run.check, prefix=prefix, grace_s=grace_s).run(doom=False)
    return FullPlan(
        garbage=plan_cleanup(repository, grace_s=grace_s),
        wrong_references=counted.pages + counted.blobs,
        orphans=found.orphans,
        orphan_bytes=found.orphan_bytes,
        young_orphans=found.young_orphans,
        missing_blobs=len(found.missing) + len(counted.without_row),
    )


def full_cleanup(
    repository: Repository,
    *,
    grace_s: float = GRACE_S,
    prefix: str = "",
    control: Control = UNATTENDED,
    on_damage: Callable[[Version, DamagedRange], None] = lambda _version, _damage: None,
) -> FullReport:
    """Correct references, delete unneeded blobs and objects without a row, and mark versions with missing blobs.

    Only objects whose uids begin with `prefix` are checked. The catalog is kept up to date as by `cleanup`. `on_damage`
    is called with each damaged range of a version.

    Raises:
        CatalogError: the storage does not belong to this database; no object without a row was deleted.
        StorageError, DatabaseError, JobLostError, InterruptedByUser: completed steps stay done; run it again.
        MissingKeyError: something seems to be damaged, and there is no key to check it.
    """
    started = time.monotonic()
    repository.database.use_reserve()
    remove_silent_jobs(repository.database, stop=control.stop)
    spec = JobSpec(kind=JobKind.CLEANUP, label="--full")
    with catalog_kept(repository, control), Job(repository.database, spec, limits=repository.limits) as job:
        run = Run(control, interrupted=INTERRUPTED, job=job)
        cleaner = Cleaner(repository, run, grace_s)
        counted = recount(repository.database, run.check)
        cleaner.run()
        found = StorageListing(repository, run.check, prefix=prefix, grace_s=grace_s).run(doom=True)
        cleaner.delete_doomed()
        leftovers = _remove_leftovers(repository) + remove_stale_objects(repository, control=control)
        with run.step("Reading what seems to be missing", len(found.missing) * repository.block_size):
            marked = _mark(repository, BlobChecker(repository, run), counted, found, on_damage)
    return FullReport(
        cleaned=cleaner.report,
        wrong_references=counted.pages + counted.blobs,
        orphans=found.orphans,
        orphan_bytes=found.orphan_bytes,
        young_orphans=found.young_orphans,
        leftovers=leftovers,
        damaged_blobs=marked.blobs,
        versions_invalid=marked.versions,
        duration_s=time.monotonic() - started,
    )


def _remove_leftovers(repository: Repository) -> int:
    # Always with a grace time: a command writes the catalog at its end, after its job has ended.
    with repository.database.write() as connection:
        least_s = least_age_s(connection, GRACE_S)
    return repository.blocks.storage.sweep(least_s)


def _mark(
    repository: Repository,
    checker: BlobChecker,
    counted: RecountReport,
    found: StorageDifferences,
    on_damage: Callable[[Version, DamagedRange], None],
) -> MarkedDamage:
    """Read back blobs that seem to be missing, and mark those that are."""
    if not found.missing and not counted.without_row:
        return MarkedDamage(blobs=0, versions=())
    checker.run(map(BlobId, found.missing))
    without_row = dict.fromkeys(counted.without_row, "has no row in the database")
    return mark_versions(repository, checker.found.damaged | without_row, on_damage)
