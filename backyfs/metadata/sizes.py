"""Sizes of all blobs at once, for those who count over the whole repository. Arrays are indexed by the ids of blobs."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from sqlalchemy import func, select

from backyfs.metadata.batches import batches
from backyfs.metadata.tables import blobs
from backyfs.model import BlobUid

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from backyfs.metadata.database import Connection

UNKNOWN = -1
_PLAIN = 0  # encryption version whose objects are the bytes of the block
_ROWS_AT_ONCE = 20_000


def highest_blob_id(connection: Connection) -> int:
    """Return the highest id that a blob has, 0 if there is none."""
    return connection.execute(select(func.max(blobs.c.id))).scalar() or 0


def odd_sizes(connection: Connection, block_size: int) -> dict[int, int]:
    """Return the sizes of those blobs that are no whole block, by their ids: ends of images."""
    query = select(blobs.c.id, blobs.c.size).where(blobs.c.size != block_size)
    return {row.id: row.size for row in connection.execute(query)}


def stored_sizes(
    connection: Connection, uses: array[int], object_size: Callable[[BlobUid], int | None]
) -> array[int]:
    """Return the sizes of the objects of all blobs that are used; like `uses`, 8 bytes for each id.

    Of the encrypted blobs of an adopted repository the database does not know it: `object_size` is asked, and may
    not know it either. UNKNOWN then.
    """
    sizes = array("q", [UNKNOWN]) * len(uses)
    query = (
        select(blobs.c.id, blobs.c.size, blobs.c.stored_size, blobs.c.encryption_version)
        .order_by(blobs.c.id)
        .limit(_ROWS_AT_ONCE)
    )
    last = 0
    while rows := connection.execute(query.where(blobs.c.id > last, blobs.c.id < len(uses))).all():
        to_ask = []
        for blob_id, size, stored_size, encryption_version in rows:
            if stored_size is not None:
                sizes[blob_id] = stored_size
            elif encryption_version == _PLAIN:
                sizes[blob_id] = size
            elif uses[blob_id]:
                to_ask.append(blob_id)
        for blob_id, uid in uids_of(connection, to_ask).items():
            answer = object_size(uid)
            sizes[blob_id] = UNKNOWN if answer is None else answer
        last = rows[-1].id
    return sizes


def uids_of(connection: Connection, ids: Iterable[int]) -> dict[int, BlobUid]:
    """Return the uids of blobs by their ids."""
    found: dict[int, BlobUid] = {}
    for batch in batches(ids):
        rows = connection.execute(select(blobs.c.id, blobs.c.uid).where(blobs.c.id.in_(batch)))
        found.update((row.id, BlobUid(row.uid)) for row in rows)
    return found
