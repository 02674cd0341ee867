"""The space of versions."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from backyfs.engine.versions.du import SpaceList
    from backyfs.reports.values import Row

_BACKY2 = ("Real", "Null", "Dedup Own", "Dedup Others", "Individual", "Est. Space", "Est. Space freed")
ENCRYPTION = "Encryption Versions"  # a further column
# The fields of tables and of -m, by the names that backy2 has for these columns.
LABELS = {
    "date": "date",
    "name": "name",
    "uid": "uid",
    "Real": "real",
    "Null": "null",
    "Dedup Own": "dedup_own",
    "Dedup Others": "dedup_others",
    "Individual": "individual",
    "Est. Space": "est_space",
    "Est. Space freed": "est_space_freed",
    "Stored": "stored",
    ENCRYPTION: "encryption_versions",
}
SIZES = (*_BACKY2, "Stored")
COLUMNS = ("date", "name", *SIZES)
PIPE_COLUMNS = _BACKY2


def as_rows(report: SpaceList) -> list[Row]:
    """Return a row for each version."""
    rows: list[Row] = [
        {
            "uid": space.version.uid,
            "name": space.version.name,
            "date": space.version.created_at,
            "real": space.real_bytes,
            "null": space.null_bytes,
            "dedup_own": space.dedup_own_bytes,
            "dedup_others": space.dedup_others_bytes,
            "individual": space.individual_bytes,
            "est_space": space.estimated_bytes,
            "est_space_freed": space.freed_bytes,
            "stored": space.stored_bytes,
        }
        for space in report.versions
    ]
    if report.encryption is not None:
        for row, found in zip(rows, report.encryption, strict=True):
            row[LABELS[ENCRYPTION]] = found
    return rows
