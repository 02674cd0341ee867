"""The facts about a version that a mount shows in small files and in extended attributes. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backyfs.model import VersionStatus
from backyfs.moments import time_text

if TYPE_CHECKING:
    from datetime import datetime

    from backyfs.model import Version

ATTRIBUTE_PREFIX = b"user.backyfs."
ENCRYPTION_VERSIONS = b"encryption_versions"  # only an attribute, because it takes a look at the block map


def files(version: Version) -> dict[bytes, bytes]:
    """Return the names and contents of the small files of a version; each contains one line."""
    status = b"valid" if version.status is VersionStatus.VALID else b"invalid"
    lines = _common(version) | {status: version.status.value}
    return {what: _encoded(text + "\n") for what, text in lines.items()}


def attributes(version: Version) -> dict[bytes, bytes]:
    """Return the extended attributes of a version, without prefix, except for its encryption versions."""
    values = _common(version) | {
        b"uid": str(version.uid),
        b"valid": str(int(version.status is VersionStatus.VALID)),
        b"status": version.status.value,
        b"size": str(version.size_bytes),
    }
    return {what: _encoded(text) for what, text in values.items()}


def _common(version: Version) -> dict[bytes, str]:
    return {
        b"name": version.name,
        b"snapshot_name": version.snapshot_name,
        b"tags": ",".join(version.tags),
        b"date": _time(version.created_at),
        b"expire": _time(version.expire_at),
        b"protected": str(int(version.protected)),
    }


def _time(moment: datetime | None) -> str:
    """Return a time in UTC; empty if there is none."""
    return "" if moment is None else time_text(moment, separator="T")


def _encoded(text: str) -> bytes:
    return text.encode(errors="surrogatepass")
