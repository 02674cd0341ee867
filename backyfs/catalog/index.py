"""The object of the index: it lists all versions, so that missing versions and older states are noticed.

Each index has a number, which only increases. It names the object of the repository by its digest. So an older object
of the repository, with key slots that were removed since, is detected.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import accumulate, pairwise

from backyfs.catalog.objects import DIGEST_BYTES, INDEX_NAME, Kind, Seal, is_uid, open_object, pack_object, take_apart
from backyfs.errors import CatalogError

# number (8) | time, microseconds since 1970 (8) | digest of the object of the repository (16) | versions n (4)
# n x bytes of the uid (1) | the uids, ascending
_FIXED = struct.Struct(f"<QQ{DIGEST_BYTES}sI")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MAX_NUMBER = 1 << 62
_MAX_TIME = 1 << 57  # in the year 6536
MAX_VERSIONS = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogIndex:
    """The index of a catalog."""

    number: int
    written_at: datetime
    repository: bytes  # digest of the object of the repository
    versions: tuple[str, ...]  # uids, ascending


def pack_index(index: CatalogIndex, by: Seal) -> bytes:
    """Return the object of an index.

    Raises:
        CatalogError: it would list too many versions.
    """
    if len(index.versions) > MAX_VERSIONS:
        raise CatalogError(
            f"would name {len(index.versions)} versions, more than {MAX_VERSIONS}", subject=f"object {INDEX_NAME}"
        )
    microseconds = (index.written_at - _EPOCH) // timedelta(microseconds=1)
    uids = [uid.encode("ascii") for uid in index.versions]
    fixed = _FIXED.pack(index.number, microseconds, index.repository, len(uids))
    return pack_object(Kind.INDEX, INDEX_NAME, by, b"".join((fixed, bytes(map(len, uids)), *uids)))


def unpack_index(by: Seal, stored: bytes) -> CatalogIndex:
    """Return the index from its object.

    Raises:
        CatalogError: it belongs to another repository, or is damaged.
    """
    content = open_object(take_apart(Kind.INDEX, INDEX_NAME, stored), INDEX_NAME, by)
    try:
        return _parse(content)
    except (ValueError, struct.error) as error:
        raise CatalogError(f"is damaged: {error}", subject=f"object {INDEX_NAME}") from error


def _parse(content: bytes) -> CatalogIndex:
    number, microseconds, repository, count = _FIXED.unpack_from(content)
    start = _FIXED.size + count
    if number >= _MAX_NUMBER or microseconds >= _MAX_TIME or count > MAX_VERSIONS or start > len(content):
        raise ValueError("it has an impossible number, time or count of versions")
    ends = list(accumulate(content[_FIXED.size : start], initial=start))
    if ends[-1] != len(content):
        raise ValueError(f"it has {len(content)} bytes for {count} versions")
    versions = tuple(content[one:other].decode("ascii") for one, other in pairwise(ends))
    if not all(map(is_uid, versions)) or any(one >= other for one, other in pairwise(versions)):
        raise ValueError("its versions are not in order, or have impossible uids")
    return CatalogIndex(
        number=number,
        written_at=_EPOCH + timedelta(microseconds=microseconds),
        repository=repository,
        versions=versions,
    )
