"""Make the repository that an existing configuration names, and describe it."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from backyfs import keys
from backyfs.metadata.db.database import Database
from backyfs.metadata.db.revisions import SchemaState
from backyfs.metadata.records.identity import list_key_slots, load_identity
from backyfs.repository import create_repository

if TYPE_CHECKING:
    from backyfs.config import Config


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseReport:
    """A repository, as its database describes it."""

    made: bool  # by the command; False: it was there
    configuration: tuple[str, ...]  # files
    database: str  # as it may be shown
    uid: str
    block_size: int
    key_check: str | None  # of the oldest key slot; None: there is none
    plain: bool  # neither keys nor encryption are configured


def make_missing_repository(config: Config) -> bool:
    """Make the repository unless its database has tables; return whether it was made.

    The storage may hold the blocks of a database that was lost.

    Raises:
        What `create_repository` raises.
    """
    with closing(Database(config.database_url)) as database:
        if database.schema().state is not SchemaState.NONE:
            return False
    create_repository(config, created_at=datetime.now(UTC), may_hold_blobs=True)
    return True


def describe_repository(config: Config, *, made: bool) -> DatabaseReport:
    """Return what the database knows of the repository.

    Raises:
        DatabaseError: it cannot be read.
    """
    with closing(Database(config.database_url)) as database:
        with database.read() as connection:
            identity, slots = load_identity(connection), list_key_slots(connection)
        return DatabaseReport(
            made=made,
            configuration=tuple(config.files),
            database=database.place,
            uid=identity.uid,
            block_size=identity.block_size,
            key_check=keys.show_check(slots[0].key_check) if slots else None,
            plain=not slots and ((config.key is None and config.passphrase is None) or config.encryption_version == 0),
        )
