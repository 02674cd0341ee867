"""Check how the blocks of a repository are stored, and whether that is what the configuration says for new ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backyfs.engine.setup.findings import Grade
from backyfs.metadata.records.identity import list_key_slots, load_identity
from backyfs.metadata.upkeep.migration import Outdated, count_outdated
from backyfs.remedies import Advice
from backyfs.repository import version_of_new_blobs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backyfs.config import Config
    from backyfs.metadata.db.database import Connection
    from backyfs.remedies import Remedy


def check_blocks(config: Config, connection: Connection) -> Iterator[tuple[Grade, str] | tuple[Grade, str, Remedy]]:
    """Yield how blocks are stored, and a warning if blocks are plain that should not be. Reads the rows of all blobs.

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
        yield Grade.OK, f"new blocks are stored plain (encryption_version 0){encrypted}"
        return
    if plain:
        yield Grade.WARNING, f"{_blocks(plain)} stored plain though encryption is on", Advice.MIGRATE_ENCRYPTION()
    facts = f"new blocks get encryption version {new}"
    if others:
        listed = ", ".join(f"{count} of version {number}" for number, count in sorted(counts.items()))
        facts += f"; {_blocks(others)} encrypted otherwise ({listed}), which is not an error"
        yield Grade.OK, facts, Advice.UNIFY_ENCRYPTION()
    else:
        yield Grade.OK, facts


def _blocks(count: int) -> str:
    return "1 block is" if count == 1 else f"{count} blocks are"
