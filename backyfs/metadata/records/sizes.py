"""Load the sizes of all blobs, for reports about the whole repository."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import select

from backyfs.metadata.db.batches import batches
from backyfs.metadata.db.oddrows import sound_rows
from backyfs.metadata.db.tables import blobs
from backyfs.model import BlobUid

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from backyfs.metadata.db.database import Connection
    from backyfs.metadata.db.idarray import BlobIds, Numbers

UNKNOWN = -1
_PLAIN = 0  # encryption version whose objects are the bytes of the block
_ROWS_AT_ONCE = 20_000


def odd_sizes(connection: Connection, block_size: int) -> dict[int, int]:
    """Return the sizes, by id, of the blobs that are not a whole block: the ends of images."""
    query = select(blobs.c.id, blobs.c.size).where(blobs.c.size != block_size)
    return {row.id: row.size for row in sound_rows(connection, query, blobs.c.id)}


def stored_sizes(
    connection: Connection, ids: BlobIds, uses: Numbers, object_size: Callable[[BlobUid], int | None]
) -> Numbers:
    """Return the object sizes of all blobs in use. `ids` must be from the same transaction.

    The database does not know the object sizes of encrypted blobs of an adopted repository. They come from
    `object_size`; if it returns None, the size is UNKNOWN.
    """
    sizes = ids.numbers("q", UNKNOWN)
    query = (
        select(blobs.c.id, blobs.c.size, blobs.c.stored_size, blobs.c.encryption_version)
        .order_by(blobs.c.id)
        .limit(_ROWS_AT_ONCE)
    )
    last = 0
    while rows := sound_rows(connection, query.where(blobs.c.id > last), blobs.c.id):
        to_ask = []
        for row in rows:
            if row.stored_size is not None:
                sizes[row.id] = row.stored_size
            elif row.encryption_version == _PLAIN:
                sizes[row.id] = row.size
            elif uses[row.id]:
                to_ask.append(row.id)
        for blob_id, uid in uids_of(connection, to_ask).items():
            answer = object_size(uid)
            sizes[blob_id] = UNKNOWN if answer is None else answer
        last = rows[-1].id
    return sizes


def uids_of(connection: Connection, ids: Iterable[int]) -> dict[int, BlobUid]:
    """Return the uids of blobs by id."""
    found: dict[int, BlobUid] = {}
    for batch in batches(ids):
        rows = sound_rows(connection, select(blobs.c.id, blobs.c.uid).where(blobs.c.id.in_(batch)), blobs.c.id)
        found.update((row.id, BlobUid(row.uid)) for row in rows)
    return found
