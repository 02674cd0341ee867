"""Find the blobs to re-seal: those of another encryption version, or sealed too long ago."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import func, or_, select

from backyfs.metadata.db.tables import blobs, pages
from backyfs.metadata.maps.blockmap import all_pages, unpack
from backyfs.model import BlobId, PageId

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterator
    from datetime import datetime

    from sqlalchemy import ColumnElement

    from backyfs.metadata.db.database import Connection

_IDS_AT_ONCE = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Outdated:
    """Which blobs to re-seal: blobs of another encryption version than `to`, and blobs sealed before `before`."""

    to: int
    before: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobCount:
    """The number and size of the blobs of one encryption version."""

    encryption_version: int
    blobs: int
    bytes: int  # plain


def blobs_to_reseal(connection: Connection, outdated: Outdated, after: BlobId) -> list[BlobId]:
    """Return the next blobs to re-seal with ids above `after`, in order; an empty list means that there are no more."""
    query = select(blobs.c.id).where(blobs.c.id > after, *_conditions(outdated)).order_by(blobs.c.id)
    return [BlobId(blob_id) for blob_id in connection.execute(query.limit(_IDS_AT_ONCE)).scalars()]


def count_outdated(
    connection: Connection, outdated: Outdated, is_chosen: Callable[[BlobId], bool] | None = None
) -> list[BlobCount]:
    """Count the blobs to re-seal by encryption version: all of them, or those for which `is_chosen` returns True."""
    if is_chosen is None:
        count = select(blobs.c.encryption_version, func.count(), func.sum(blobs.c.size)).where(*_conditions(outdated))
        grouped = count.group_by(blobs.c.encryption_version).order_by(blobs.c.encryption_version)
        return [
            BlobCount(encryption_version=number, blobs=many, bytes=int(size))
            for number, many, size in connection.execute(grouped)
        ]
    found: dict[int, tuple[int, int]] = {}
    query = select(blobs.c.id, blobs.c.encryption_version, blobs.c.size).where(*_conditions(outdated))
    for row in connection.execute(query.execution_options(yield_per=_IDS_AT_ONCE)):
        if is_chosen(BlobId(row.id)):
            many, size = found.get(row.encryption_version, (0, 0))
            found[row.encryption_version] = many + 1, size + row.size
    return [
        BlobCount(encryption_version=number, blobs=many, bytes=size)
        for number, (many, size) in sorted(found.items())
    ]


def used_pages_with(connection: Connection, wanted: Container[BlobId]) -> Iterator[PageId]:
    """Yield the pages in use that contain one of these blobs, in one pass over all pages.

    Raises:
        DatabaseError: a page is damaged.
    """
    for row in all_pages(connection, pages.c.refs > 0):
        if any(entry in wanted for entry in unpack(row.entries)):
            yield PageId(row.id)


def _conditions(outdated: Outdated) -> list[ColumnElement[bool]]:
    other = blobs.c.encryption_version != outdated.to
    if outdated.before is not None:
        other = or_(other, blobs.c.created_at < outdated.before)
    return [other, blobs.c.doomed_at.is_(None)]
