"""Repair damaged blobs when a backup reads their bytes: store them again, for all versions that use them.

The new object is durable before the row of the blob changes to it. Owned by the thread that owns the database.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from backyfs.metadata.records.blobs import insert_blobs
from backyfs.metadata.upkeep.checks import damaged_with, has_damage, replaceable
from backyfs.metadata.upkeep.replacement import Replacement, replace_objects

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from backyfs.metadata.db.database import Connection
    from backyfs.model import Blob, BlobId, BlobUid, SavedBlob
    from backyfs.repository import Repository


class Repairs:
    """The repairs of one backup. If nothing is damaged when it starts, it does not look for damage again."""

    def __init__(self, repository: Repository) -> None:
        """Check whether anything is damaged."""
        with repository.database.read() as connection:
            self.are_needed = has_damage(connection)
        self._found: dict[bytes, list[Blob]] = {}  # damaged blobs not being repaired yet, by fingerprint
        self._begun: dict[BlobUid, Blob] = {}      # damaged blobs, by the uid of their new object
        self._met: set[BlobId] = set()             # each is stored once
        self.blobs = 0                             # repaired so far

    def look_for(self, connection: Connection, fingerprints: Iterable[bytes]) -> None:
        """Find damaged blobs of these bytes."""
        if not self.are_needed:
            return
        self._found = {}
        for blob in damaged_with(connection, fingerprints):
            if blob.fingerprint is not None and blob.id not in self._met:
                self._found.setdefault(blob.fingerprint, []).append(blob)

    def take(self, fingerprint: bytes, size: int) -> list[Blob]:
        """Return the damaged blobs to store again from a block, each of them once."""
        if not self._found:
            return []
        taken = [blob for blob in self._found.pop(fingerprint, ()) if blob.size == size]
        self._met.update(blob.id for blob in taken)
        return taken

    def begin(self, uid: BlobUid, blob: Blob) -> None:
        """Note that the object `uid` will replace that of a damaged blob."""
        self._begun[uid] = blob

    def enter(self, connection: Connection, saved: Sequence[SavedBlob], now: datetime) -> dict[BlobUid, BlobId]:
        """Give durable objects their rows: new ones, or those of damaged blobs. Return their ids.

        Call it in a write transaction. If another command was first to repair a blob, the object becomes another blob.
        """
        if not self._begun:
            return insert_blobs(connection, saved, now)
        damaged = {blob.uid: self._begun[blob.uid] for blob in saved if blob.uid in self._begun}
        there = replaceable(connection, damaged.values())
        repaired = {uid: blob.id for uid, blob in damaged.items() if blob.id in there}
        replacements = [
            Replacement(blob=damaged[blob.uid], saved=blob) for blob in saved if blob.uid in repaired
        ]
        replace_objects(connection, replacements, now)
        self.blobs += len(repaired)
        return repaired | insert_blobs(connection, (blob for blob in saved if blob.uid not in repaired), now)
