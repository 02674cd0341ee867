"""Forget: remove the versions that no scheduler needs, and tell of all of them why they stay or go."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from backyfs.engine.remove import remove_versions
from backyfs.metadata.versions import list_versions
from backyfs.retention import plan_removal

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from backyfs.config import Scheduler
    from backyfs.errors import VersionKeptError
    from backyfs.model import Version
    from backyfs.repository import Repository


class Outcome(StrEnum):
    """What becomes of a version."""

    KEPT = "keep"
    REMOVED = "remove"
    REFUSED = "refuse"  # no scheduler needs it, but it may not be removed


@dataclass(frozen=True, slots=True, kw_only=True)
class Forgotten:
    """What became of a version, and why."""

    version: Version
    outcome: Outcome
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
    stop: Callable[[], bool] = lambda: False,
) -> list[Forgotten]:
    """Remove the versions of all names, or of one, that none of the schedulers needs; return all of them, with reasons.

    With `dry_run` nothing is removed. What a running command holds stays; so does what is younger than the
    configuration allows to remove, but with `force`. Each version is looked at once more in the transaction that
    removes it: one that was protected meanwhile, or given an expiry or tags, stays.

    Raises:
        InterruptedByUser: `stop` said so; some versions are gone.
        DatabaseError: likewise.
    """
    config = repository.config
    others = [scheduler for scheduler in config.schedulers if scheduler not in chosen]
    with repository.database.read() as connection:
        versions = list_versions(connection, name=name)
    plan = plan_removal(versions, chosen, others, now)
    planned = {decision.version.id: decision.version for decision in plan if not decision.needed}
    refusals: dict[int, VersionKeptError] = {}
    if not dry_run:
        removals = remove_versions(
            repository,
            list(planned.values()),
            younger_than_days=config.disallow_rm_when_younger_than_days,
            force=force,
            now=now,
            still=lambda version: version == planned[version.id],
            command="forget",
            stop=stop,
        )
        refusals = {removal.version.id: removal.kept for removal in removals if removal.kept is not None}
    return [
        Forgotten(
            version=decision.version,
            outcome=_outcome(needed=decision.needed, refused=decision.version.id in refusals),
            reason=str(refusals.get(decision.version.id, decision.reason)),
            refusal=refusals.get(decision.version.id),
        )
        for decision in plan
    ]


def _outcome(*, needed: bool, refused: bool) -> Outcome:
    if needed:
        return Outcome.KEPT
    return Outcome.REFUSED if refused else Outcome.REMOVED
