"""The wrapped data keys of all blobs, to be wrapped anew: read and written in batches, never all at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import bindparam, select, update

from backyfs.metadata.tables import blobs

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from backyfs.metadata.database import Connection

_BATCH = 10_000  # rows; 2 MB


@dataclass(frozen=True, slots=True, kw_only=True)
class WrappedKey:
    """The wrapped data key of a blob."""

    blob_id: int
    uid: str
    wrapped_key: bytes


_REPLACE = (
    update(blobs).where(blobs.c.id == bindparam("blob_id")).values(wrapped_key=bindparam("wrapped"))
)


def wrapped_keys(connection: Connection) -> Iterator[list[WrappedKey]]:
    """Yield the data keys of all blobs that have one, in batches; each may be replaced before the next is asked for."""
    last = 0
    while True:
        query = (
            select(blobs.c.id, blobs.c.uid, blobs.c.wrapped_key)
            .where(blobs.c.id > last, blobs.c.wrapped_key.is_not(None))
            .order_by(blobs.c.id)
            .limit(_BATCH)
        )
        rows = connection.execute(query).all()
        if not rows:
            return
        yield [WrappedKey(blob_id=row.id, uid=row.uid, wrapped_key=row.wrapped_key) for row in rows]
        last = rows[-1].id


def replace_wrapped_keys(connection: Connection, rows: Sequence[WrappedKey]) -> None:
    """Store data keys that were wrapped anew."""
    if rows:
        connection.execute(_REPLACE, [{"blob_id": row.blob_id, "wrapped": row.wrapped_key} for row in rows])
