"""What a repository is: block size, hash function, wrapped keys. Fixed when it is made, but for the slots."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, insert, select, update

from backyfs.errors import IntegrityError, SchemaError
from backyfs.metadata.catalog.notes import note_repository
from backyfs.metadata.db.oddrows import require_sound, sound_rows
from backyfs.metadata.db.revisions import HEAD_RELEASE
from backyfs.metadata.db.tables import key_slots, repository
from backyfs.model import KeySlot

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from sqlalchemy import Column, Row

    from backyfs.metadata.db.database import Connection

_THE_ROW = 1
_MAX_SLOTS = 256  # see catalog.repository
_SLOTS = select(key_slots).order_by(key_slots.c.id).limit(_MAX_SLOTS + 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """The row of `repository`."""

    uid: str
    block_size: int
    hash_function: str
    wrapped_fingerprint_key: bytes | None
    created_at: datetime


def save_identity(connection: Connection, identity: Identity) -> None:
    """Store what a new repository is."""
    connection.execute(
        insert(repository).values(
            id=_THE_ROW,
            uid=identity.uid,
            block_size=identity.block_size,
            hash_function=identity.hash_function,
            wrapped_fingerprint_key=identity.wrapped_fingerprint_key,
            needs_release=HEAD_RELEASE,
            created_at=identity.created_at,
        )
    )
    note_repository(connection)


def load_identity(connection: Connection) -> Identity:
    """Return what the repository is.

    Raises:
        SchemaError: the database has the tables and no repository.
        OddValueError: a value cannot be.
    """
    # By name: a copy before an upgrade is made of tables that may lack what later revisions have added.
    values = _read_row(connection, [repository.c[field.name] for field in fields(Identity)])
    return Identity(**values)


def load_key_date(connection: Connection) -> datetime | None:
    """Return when the repository got the key that it has; None: when it was made.

    Raises:
        OddValueError: the value cannot be.
    """
    made_at: datetime | None = _read_row(connection, [repository.c.key_made_at])["key_made_at"]
    return made_at


def load_identity_tag(connection: Connection) -> bytes | None:
    """Return the tag of the identity; None: it has none.

    Raises:
        OddValueError: the value cannot be.
    """
    tag: bytes | None = _read_row(connection, [repository.c.identity_tag])["identity_tag"]
    return tag


def save_identity_tag(connection: Connection, tag: bytes | None) -> None:
    """Store the tag of the identity. To be called in the transaction that changes the identity or its key."""
    connection.execute(update(repository).values(identity_tag=tag))


def _read_row(connection: Connection, columns: list[Column[Any]]) -> dict[str, Any]:
    rows = require_sound(connection, select(*columns).where(repository.c.id == _THE_ROW), repository.c.id)
    if not rows:
        raise SchemaError("the database has the tables of a repository and no repository; run `backyfs init` again")
    return {column.name: value for column, value in zip(columns, rows[0], strict=True)}


def save_key_date(connection: Connection, made_at: datetime) -> None:
    """Store when the repository got its key."""
    connection.execute(update(repository).values(key_made_at=made_at))
    note_repository(connection)


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageState:
    """What the database knows of its storage."""

    marked: bool       # it was given the marker of this repository
    had_objects: bool  # when the repository was made; their rows may still be imported


def load_storage_state(connection: Connection) -> StorageState:
    """Return what is known of the storage."""
    row = _read_row(connection, [repository.c.storage_marked, repository.c.storage_had_objects])
    return StorageState(marked=bool(row["storage_marked"]), had_objects=bool(row["storage_had_objects"]))


def note_storage_marked(connection: Connection) -> None:
    """Store that the storage has the marker of this repository, durably: without it, it is another storage."""
    connection.execute(update(repository).values(storage_marked=True))


def note_storage_objects(connection: Connection, *, had_objects: bool) -> None:
    """Store whether objects without a row may be those of rows that are still to be imported."""
    connection.execute(update(repository).values(storage_had_objects=had_objects))


def load_needed_release(connection: Connection) -> str:
    """Return the oldest release of backyfs that works with the repository.

    Raises:
        OddValueError: the value cannot be.
    """
    release: str = _read_row(connection, [repository.c.needs_release])["needs_release"]
    return release


def require_release(connection: Connection) -> None:
    """Tell older programs which release the schema needs by now."""
    connection.execute(update(repository).values(needs_release=HEAD_RELEASE))
    note_repository(connection)


def replace_identity(connection: Connection, identity: Identity, slots: Iterable[KeySlot]) -> None:
    """Make a repository that is empty another one. When that one got its key is not known."""
    values = {field.name: getattr(identity, field.name) for field in fields(Identity)} | {"key_made_at": None}
    connection.execute(update(repository).values(values))  # the row stays: writers wait for each other at it
    note_repository(connection)
    replace_key_slots(connection, slots)


def replace_key_slots(connection: Connection, slots: Iterable[KeySlot]) -> None:
    """Make these the key slots, and no others."""
    connection.execute(delete(key_slots))
    for slot in slots:
        add_key_slot(connection, slot)


def add_key_slot(connection: Connection, slot: KeySlot) -> None:
    """Store a key slot."""
    connection.execute(
        insert(key_slots).values(
            label=slot.label,
            kdf=slot.kdf,
            kdf_parameters=slot.kdf_parameters,
            key_check=slot.key_check,
            wrapped_key=slot.wrapped_key,
            created_at=slot.created_at,
        )
    )
    note_repository(connection)


def replace_key_slot(connection: Connection, label: str, slot: KeySlot) -> None:
    """Put a key slot in the place of the one with this label."""
    values = {field.name: getattr(slot, field.name) for field in fields(KeySlot)}
    connection.execute(update(key_slots).where(key_slots.c.label == label).values(values))
    note_repository(connection)


def remove_key_slot(connection: Connection, label: str) -> None:
    """Remove the key slot with this label."""
    connection.execute(delete(key_slots).where(key_slots.c.label == label))
    note_repository(connection)


def save_fingerprint_key(connection: Connection, wrapped_key: bytes) -> None:
    """Store the fingerprint key, wrapped anew."""
    connection.execute(update(repository).values(wrapped_fingerprint_key=wrapped_key))
    note_repository(connection)


def list_key_slots(connection: Connection) -> list[KeySlot]:
    """Return the key slots, the oldest first.

    Raises:
        OddValueError: a value in one cannot be.
        IntegrityError: there are more than a repository can have.
    """
    return _slots(require_sound(connection, _SLOTS, key_slots.c.id))


def sound_key_slots(connection: Connection) -> list[KeySlot]:
    """Return the key slots that are not damaged; the others are noted: one is enough to open the repository.

    Raises:
        OddValueError: all are damaged. The repository is encrypted, and must not look as if it were not.
        IntegrityError: there are more than a repository can have.
    """
    return _slots(sound_rows(connection, _SLOTS, key_slots.c.id)) or list_key_slots(connection)


def _slots(rows: Sequence[Row[Any]]) -> list[KeySlot]:
    if len(rows) > _MAX_SLOTS:
        raise IntegrityError(
            f"the database has more than {_MAX_SLOTS} key slots, which no repository has; restore the database from a "
            "copy, or run `backyfs recover` to rebuild it from the storage"
        )
    return [
        KeySlot(
            label=row.label,
            kdf=row.kdf,
            kdf_parameters=row.kdf_parameters,
            key_check=row.key_check,
            wrapped_key=row.wrapped_key,
            created_at=row.created_at,
        )
        for row in rows
    ]
