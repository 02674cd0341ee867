"""The object of a version: its record, the statistics of its backups, and the pages of its block map."""

from __future__ import annotations

import struct
import sys
import uuid
from array import array
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from backyfs.catalog.objects import Kind, Seal, open_object, pack_object, take_apart, version_name
from backyfs.errors import CatalogError
from backyfs.jsontext import read_json, statistics_record, version_record, write_json
from backyfs.remedies import Advice

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from backyfs.model import StatisticsRecord, VersionRecord

# bytes of the facts (4) | pages n (4) | facts, JSON | n x page number (4), ascending | n x uid of the page (16)
_COUNTS = struct.Struct("<II")
_UID_BYTES = 16
_MAX_PAGE_NUMBER = 1 << 31
# Parsed JSON takes up to thirty times its size in memory, and JSON that compresses well is small in the storage.
_MAX_FACTS = 4 << 20  # bytes
_MAX_TAGS = 10_000
_MAX_STATISTICS = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogVersion:
    """A version, as stored in the catalog."""

    version: VersionRecord
    statistics: tuple[StatisticsRecord, ...]  # the oldest first
    damage_found_at: datetime | None = None   # when a valid version was found damaged
    page_numbers: Sequence[int]               # ascending; absent pages are holes, or were not backed up
    page_uids: bytes                          # 16 bytes each

    def page_uid(self, position: int) -> str:
        """Return the uid of a page, by its position in `page_numbers`."""
        start = position * _UID_BYTES
        return str(uuid.UUID(bytes=self.page_uids[start : start + _UID_BYTES]))


def pack_version(version: CatalogVersion, by: Seal) -> bytes:
    """Return the object of a version.

    Raises:
        CatalogError: it is too large.
    """
    known = {**asdict(version.version), "statistics": [asdict(statistics) for statistics in version.statistics]}
    if version.damage_found_at is not None:
        known["damage_found_at"] = version.damage_found_at
    facts = write_json(known)
    if (
        len(facts) > _MAX_FACTS
        or len(version.version.tags) > _MAX_TAGS
        or len(version.statistics) > _MAX_STATISTICS
    ):
        raise CatalogError(
            f"has more than {_MAX_TAGS} tags or {_MAX_STATISTICS} statistics, or {_MAX_FACTS} bytes of them, and "
            "cannot be stored in the catalog",
            subject=f"version {version.version.uid}",
            remedy=Advice.REMOVE_TAGS(),
        )
    numbers = array("I", version.page_numbers)
    if sys.byteorder == "big":
        numbers.byteswap()
    content = b"".join((_COUNTS.pack(len(facts), len(numbers)), facts, numbers.tobytes(), version.page_uids))
    return pack_object(Kind.VERSION, version_name(version.version.uid), by, content)


def unpack_version(uid: str, by: Seal, stored: bytes) -> CatalogVersion:
    """Return the version from its object.

    Raises:
        CatalogError: it belongs to another version, or is damaged.
    """
    name = version_name(uid)
    content = open_object(take_apart(Kind.VERSION, name, stored), name, by)
    try:
        found = _parse(memoryview(content))
    except (ValueError, struct.error) as error:
        raise CatalogError(f"is damaged: {error}", subject=f"object {name}") from error
    if found.version.uid != uid:
        raise CatalogError(f"is damaged: it holds version {found.version.uid!r}", subject=f"object {name}")
    return found


def _parse(content: memoryview) -> CatalogVersion:
    facts_bytes, count = _COUNTS.unpack_from(content)
    if facts_bytes > _MAX_FACTS:
        raise ValueError(f"it has {facts_bytes} bytes of facts, more than the {_MAX_FACTS} that there can be")
    numbers_at = _COUNTS.size + facts_bytes
    uids_at = numbers_at + 4 * count
    if uids_at + _UID_BYTES * count != len(content):
        raise ValueError(f"it has {len(content)} bytes for {count} pages")
    numbers = array("I", bytes(content[numbers_at:uids_at]))
    if sys.byteorder == "big":
        numbers.byteswap()
    if any(one >= other for one, other in pairwise(numbers)):
        raise ValueError("its pages are not in order")
    if numbers and numbers[-1] >= _MAX_PAGE_NUMBER:
        raise ValueError(f"it has a page {numbers[-1]}")
    facts = read_json(bytes(content[_COUNTS.size : numbers_at]))
    version = version_record(facts, _MAX_TAGS)
    if len(set(version.tags)) != len(version.tags):
        raise ValueError("it has a tag twice")
    statistics = tuple(map(statistics_record, facts.objects("statistics", _MAX_STATISTICS)))
    if any(one.version_uid != version.uid for one in statistics):
        raise ValueError("it has statistics of another version")
    return CatalogVersion(
        version=version,
        statistics=statistics,
        damage_found_at=facts.time("damage_found_at") if "damage_found_at" in facts else None,
        page_numbers=numbers,
        page_uids=bytes(content[uids_at:]),
    )
