"""Forget: remove the versions that no scheduler needs, and report for every version why it is kept or removed."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from backyfs.engine.versions.remove import Rules, remove_versions
from backyfs.errors import IntegrityError
from backyfs.metadata.db.tables import tags
from backyfs.metadata.records.versions import list_versions
from backyfs.model import JobKind
from backyfs.retention import plan_removal
from backyfs.work.run import UNATTENDED

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from backyfs.config import Scheduler
    from backyfs.engine.versions.remove import Removal
    from backyfs.errors import VersionKeptError
    from backyfs.metadata.db.database import Connection
    from backyfs.model import Version, VersionId
    from backyfs.repository import Repository
    from backyfs.retention import Decision
    from backyfs.work.run import Control


class ForgetOutcome(StrEnum):
    """What becomes of a version."""

    KEPT = "keep"
    REMOVED = "remove"
    REFUSED = "refuse"  # no scheduler needs it, but it may not be removed


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgetResult:
    """What became of a version, and why."""

    version: Version
    outcome: ForgetOutcome
    reason: str
    refusal: VersionKeptError | None = None


def forget(
    repository: Repository,
    chosen: Sequence[Scheduler],
    *,
    name: str | None = None,
    dry_run: bool = False,
    force: bool = False,
    now: datetime,
    control: Control = UNATTENDED,
    announce: Callable[[ForgetResult], None] = lambda _forgotten: None,
) -> list[ForgetResult]:
    """Remove versions that none of the schedulers needs; return all of them, with reasons.

    `name` limits this to the versions of one name. With `dry_run` nothing is removed. Versions that a running command
    uses are kept, as are those younger than the configuration allows to remove, unless `force` is set. The plan is
    made again in the transaction that removes a version: it is kept if it has been protected in the meantime, or if
    it is now needed in place of others that were removed or found damaged. `announce` is called immediately with each
    version that was planned for removal.

    Raises:
        InterruptedByUser: `control` asked to stop. The outcome of the versions already announced is final.
        DatabaseError: the database failed; likewise.
        IntegrityError: a row of a tag is damaged; likewise.
        JobLostError: another command considered this one dead; likewise.
    """
    database = repository.database
    others = [scheduler for scheduler in repository.config.schedulers if scheduler not in chosen]

    def plan(connection: Connection, name: str | None) -> dict[VersionId, Decision]:
        versions = list_versions(connection, name=name)
        if tags.name in database.odd_rows.tables:
            raise IntegrityError(
                "is damaged, so it is unknown which schedules need its version; nothing else was removed",
                subject="a tag in the database",
                remedy="correct or delete that row",
            )
        return {decision.version.id: decision for decision in plan_removal(versions, chosen, others, now)}

    with database.read() as connection:
        planned = plan(connection, name)
    results = {
        decision.version.id: ForgetResult(
            version=decision.version,
            outcome=ForgetOutcome.KEPT if decision.needed else ForgetOutcome.REMOVED,
            reason=decision.reason,
        )
        for decision in planned.values()
    }
    if dry_run:
        return list(results.values())

    def note(removal: Removal) -> None:
        if removal.kept is not None:
            results[removal.version.id] = ForgetResult(
                version=removal.version, outcome=ForgetOutcome.REFUSED, reason=str(removal.kept), refusal=removal.kept
            )
        announce(results[removal.version.id])

    remove_versions(
        repository,
        [decision.version for decision in planned.values() if not decision.needed],
        rules=Rules(
            younger_than_days=repository.config.disallow_rm_when_younger_than_days,
            force=force,
            keep_last=True,
            still=lambda connection, version: not plan(connection, version.name)[version.id].needed,
        ),
        now=now,
        kind=JobKind.FORGET,
        control=control,
        announce=note,
    )
    return list(results.values())
