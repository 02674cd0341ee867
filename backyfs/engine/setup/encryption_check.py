"""Look how the blocks of a repository are stored, and whether that is what its configuration says of new ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backyfs.metadata.records.identity import list_key_slots, load_identity
from backyfs.metadata.upkeep.migration import Outdated, count_outdated
from backyfs.repository import version_of_new_blobs

if TYPE_CHECKING:
    from backyfs.config import Config
    from backyfs.metadata.db.database import Connection

_REMEDY = "run `backyfs migrate-encryption --all`"


def look_at_blocks(config: Config, connection: Connection) -> tuple[str | None, str]:
    """Return a warning, if blocks are plain that should not be, and the facts. One query that reads all blobs' rows.

    Raises:
        DatabaseError: the database cannot be read.
    """
    has_key = bool(list_key_slots(connection)) or config.key is not None or config.passphrase is not None
    new = version_of_new_blobs(config, load_identity(connection), has_key=has_key)
    counts = {count.encryption_version: count.blobs for count in count_outdated(connection, Outdated(to=new))}
    plain = counts.pop(0, 0)
    others = sum(counts.values())
    if new == 0:
        encrypted = f", and {_blocks(others)} encrypted, as earlier" if others else ""
        return None, f"new blocks are stored plain (encryption_version 0){encrypted}"
    facts = f"new blocks get encryption version {new}"
    if others:
        listed = ", ".join(f"{count} of version {number}" for number, count in sorted(counts.items()))
        facts += f"; {_blocks(others)} encrypted otherwise ({listed}), which is no fault; {_REMEDY} to seal them anew"
    if not plain:
        return None, facts
    return f"{_blocks(plain)} stored plain though encryption is on; {_REMEDY}", facts


def _blocks(count: int) -> str:
    return "1 block is" if count == 1 else f"{count} blocks are"
