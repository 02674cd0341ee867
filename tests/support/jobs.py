"""Jobs that tests register."""

from __future__ import annotations

from backyfs.model import JobKind, JobSpec

_WRITERS = {JobKind.BACKUP, JobKind.MIGRATE_ENCRYPTION, JobKind.REPAIR}


def spec(command: str) -> JobSpec:
    """Return the job that `backyfs jobs` shows as this text: a kind and an optional label."""
    kind, _, label = command.partition(" ")
    return JobSpec(kind=JobKind(kind), label=label, writes_blobs=JobKind(kind) in _WRITERS)
