"""Versions, as `ls` lists them and as commands that change one show it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backyfs.geometry import block_count
from backyfs.model import VersionStatus

if TYPE_CHECKING:
    from backyfs.engine.versions.listing import VersionList
    from backyfs.model import Version
    from backyfs.reports.values import Row

COLUMNS = (
    "date", "name", "snapshot_name", "size", "size_bytes", "uid", "valid", "protected", "tags", "expire",
)  # fmt: skip
ENCRYPTION = "encryption_versions"  # a further column, for which all block maps are read
CHANGED_COLUMNS = ("uid", "name", "date", "protected", "tags", "expire")


def as_rows(report: VersionList) -> list[Row]:
    """Return a row for each version."""
    rows = [version_row(version, report.block_size) for version in report.versions]
    if report.encryption is not None:
        for row, found in zip(rows, report.encryption, strict=True):
            row[ENCRYPTION] = found
    return rows


def version_row(version: Version, block_size: int) -> Row:
    """Return a version as a row, with the field names of backy2 and ours."""
    return {
        "uid": version.uid,
        "date": version.created_at,
        "name": version.name,
        "snapshot_name": version.snapshot_name,
        "size": block_count(version.size_bytes, block_size),
        "size_bytes": version.size_bytes,
        "valid": version.status is VersionStatus.VALID,
        "protected": version.protected,
        "tags": version.tags,
        "expire": version.expire_at,
        "status": version.status.value,
    }
