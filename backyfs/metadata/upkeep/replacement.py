"""Replace the objects of blobs: re-sealed ones, or new copies of damaged ones.

The row of a blob is changed to its new object, which is already durable, so every version that uses the blob gets it
immediately. In the same transaction, the old object gets a separate, doomed row, so that only a cleanup deletes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import bindparam, func, insert, select, update

from backyfs.metadata.catalog.notes import unpublish_pages_with
from backyfs.metadata.db.batches import batches
from backyfs.metadata.db.tables import blobs
from backyfs.model import BlobId

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from sqlalchemy import Row

    from backyfs.metadata.db.database import Connection
    from backyfs.model import Blob, SavedBlob

_REPLACE = (
    update(blobs)
    .where(blobs.c.id == bindparam("blob_id"))
    .values(
        uid=bindparam("new_uid"),
        fingerprint=func.coalesce(blobs.c.fingerprint, bindparam("new_fingerprint", type_=blobs.c.fingerprint.type)),
        stored_size=bindparam("new_stored_size"),
        encryption_version=bindparam("new_encryption_version"),
        wrapped_key=bindparam("new_wrapped_key"),
        valid=True,
        created_at=bindparam("sealed_at"),
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Replacement:
    """A new object for a blob."""

    blob: Blob        # the row when the blob was read
    saved: SavedBlob  # an object with the same bytes, durable in the storage


def replace_objects(
    connection: Connection, replacements: Iterable[Replacement], sealed_at: datetime
) -> frozenset[BlobId]:
    """Change a few hundred blobs to their new objects; return the changed ones. Call this in a write transaction.

    A blob is not changed if another command has re-sealed it in the meantime, or if it is doomed or gone. In that case
    its new object is doomed instead.
    """
    changed: set[BlobId] = set()
    for batch in batches(replacements):
        wanted = {replacement.blob.id: replacement for replacement in batch}
        there = blobs.c.id.in_(list(wanted)) & blobs.c.doomed_at.is_(None)
        rows = connection.execute(select(blobs.c.id, blobs.c.uid, blobs.c.stored_size, blobs.c.created_at).where(there))
        old = {row.id: row for row in rows if row.uid == wanted[BlobId(row.id)].blob.uid}
        if old:
            connection.execute(_REPLACE, [_new_values(wanted[BlobId(blob_id)], sealed_at) for blob_id in old])
        doomed = [
            _doomed_row(replacement, old.get(blob_id), sealed_at) for blob_id, replacement in wanted.items()
        ]
        connection.execute(insert(blobs), doomed)
        unpublish_pages_with(connection, sorted(BlobId(blob_id) for blob_id in old))
        changed.update(BlobId(blob_id) for blob_id in old)
    return frozenset(changed)


def _new_values(replacement: Replacement, sealed_at: datetime) -> dict[str, Any]:
    saved = replacement.saved
    return {
        "blob_id": replacement.blob.id,
        "new_uid": saved.uid,
        "new_fingerprint": saved.fingerprint,
        "new_stored_size": saved.stored_size,
        "new_encryption_version": saved.encryption_version,
        "new_wrapped_key": saved.wrapped_key,
        "sealed_at": sealed_at,
    }


def _doomed_row(replacement: Replacement, old: Row[Any, Any, Any, Any] | None, sealed_at: datetime) -> dict[str, Any]:
    """Return the row of the old object, or of the new one if it replaces nothing."""
    # Without key and fingerprint, so that no command finds or opens it.
    stored = replacement.saved if old is None else old
    return {
        "uid": stored.uid,
        "fingerprint": None,
        "size": replacement.blob.size,
        "stored_size": stored.stored_size,
        "encryption_version": replacement.blob.encryption_version,
        "wrapped_key": None,
        "valid": True,
        "created_at": sealed_at if old is None else old.created_at,
        "doomed_at": sealed_at,
    }
