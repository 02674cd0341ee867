"""Store the identity of a repository: block size, hash function, wrapped keys. Only its keys can change later."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, insert, select, update

from backyfs.errors import IntegrityError, SchemaError
from backyfs.metadata.catalog.notes import note_repository
from backyfs.metadata.db.oddrows import require_sound, sound_rows
from backyfs.metadata.db.revisions import HEAD_RELEASE
from backyfs.metadata.db.tables import key_slots, repository
from backyfs.model import KeySlot
from backyfs.remedies import Advice

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
    """Store the identity of a new repository."""
    connection.execute(insert(repository).values(id=_THE_ROW, needs_release=HEAD_RELEASE, **asdict(identity)))
    note_repository(connection)


def load_identity(connection: Connection) -> Identity:
    """Return the identity of the repository.

    Raises:
        SchemaError: the database has the tables but no repository.
        OddValueError: a value is impossible.
    """
    # Columns by name: before an upgrade, the table can lack columns that later revisions add.
    values = _read_row(connection, [repository.c[field.name] for field in fields(Identity)])
    return Identity(**values)


def load_key_date(connection: Connection) -> datetime | None:
    """Return when the repository got its current key; None: when it was created.

    Raises:
        OddValueError: the value is impossible.
    """
    made_at: datetime | None = _read_row(connection, [repository.c.key_made_at])["key_made_at"]
    return made_at


def load_identity_tag(connection: Connection) -> bytes | None:
    """Return the tag of the identity, if it has one.

    Raises:
        OddValueError: the value is impossible.
    """
    tag: bytes | None = _read_row(connection, [repository.c.identity_tag])["identity_tag"]
    return tag


def save_identity_tag(connection: Connection, tag: bytes | None) -> None:
    """Store the tag of the identity. Call this in the transaction that changes the identity or its key."""
    connection.execute(update(repository).values(identity_tag=tag))


def _read_row(connection: Connection, columns: list[Column[Any]]) -> dict[str, Any]:
    rows = require_sound(connection, select(*columns).where(repository.c.id == _THE_ROW), repository.c.id)
    if not rows:
        raise SchemaError(
            "has the tables of a repository but no repository",
            subject="the database",
            remedy=Advice.MAKE_REPOSITORY_AGAIN(),
        )
    return {column.name: value for column, value in zip(columns, rows[0], strict=True)}


def save_key_date(connection: Connection, made_at: datetime) -> None:
    """Store when the repository got its key."""
    connection.execute(update(repository).values(key_made_at=made_at))
    note_repository(connection)


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageState:
    """What the database knows about its storage."""

    marked: bool       # it has got the marker of this repository
    had_objects: bool  # when the repository was created; their rows may still be imported


def load_storage_state(connection: Connection) -> StorageState:
    """Return what the database knows about its storage."""
    row = _read_row(connection, [repository.c.storage_marked, repository.c.storage_had_objects])
    return StorageState(marked=bool(row["storage_marked"]), had_objects=bool(row["storage_had_objects"]))


def note_storage_marked(connection: Connection) -> None:
    """Record that the storage durably has the marker of this repository. Without a marker it is another storage."""
    connection.execute(update(repository).values(storage_marked=True))


def note_storage_objects(connection: Connection, *, had_objects: bool) -> None:
    """Record whether rows for objects without a row may still be imported."""
    connection.execute(update(repository).values(storage_had_objects=had_objects))


def load_needed_release(connection: Connection) -> str:
    """Return the oldest release of backyfs that supports the repository.

    Raises:
        OddValueError: the value is impossible.
    """
    release: str = _read_row(connection, [repository.c.needs_release])["needs_release"]
    return release


def require_release(connection: Connection) -> None:
    """Record which release the schema needs now, for messages of older programs."""
    connection.execute(update(repository).values(needs_release=HEAD_RELEASE))
    note_repository(connection)


def replace_identity(connection: Connection, identity: Identity, slots: Iterable[KeySlot]) -> None:
    """Give an empty repository the identity of another one. The date of the other one's key is unknown."""
    values = {field.name: getattr(identity, field.name) for field in fields(Identity)} | {"key_made_at": None}
    connection.execute(update(repository).values(values))  # keep the row: it is the lock of all writers
    note_repository(connection)
    replace_key_slots(connection, slots)


def replace_key_slots(connection: Connection, slots: Iterable[KeySlot]) -> None:
    """Replace all key slots by these."""
    connection.execute(delete(key_slots))
    for slot in slots:
        add_key_slot(connection, slot)


def add_key_slot(connection: Connection, slot: KeySlot) -> None:
    """Store a key slot."""
    connection.execute(insert(key_slots).values(asdict(slot)))
    note_repository(connection)


def replace_key_slot(connection: Connection, label: str, slot: KeySlot) -> None:
    """Replace the key slot with this label."""
    values = {field.name: getattr(slot, field.name) for field in fields(KeySlot)}
    connection.execute(update(key_slots).where(key_slots.c.label == label).values(values))
    note_repository(connection)


def remove_key_slot(connection: Connection, label: str) -> None:
    """Remove the key slot with this label."""
    connection.execute(delete(key_slots).where(key_slots.c.label == label))
    note_repository(connection)


def save_fingerprint_key(connection: Connection, wrapped_key: bytes) -> None:
    """Store the rewrapped fingerprint key."""
    connection.execute(update(repository).values(wrapped_fingerprint_key=wrapped_key))
    note_repository(connection)


def list_key_slots(connection: Connection) -> list[KeySlot]:
    """Return the key slots, the oldest first.

    Raises:
        OddValueError: a slot has an impossible value.
        IntegrityError: there are more slots than a repository can have.
    """
    return _slots(require_sound(connection, _SLOTS, key_slots.c.id))


def sound_key_slots(connection: Connection) -> list[KeySlot]:
    """Return the undamaged key slots and note the others. One is enough to open the repository.

    Raises:
        OddValueError: all slots are damaged. An encrypted repository must not look like an unencrypted one.
        IntegrityError: there are more slots than a repository can have.
    """
    return _slots(sound_rows(connection, _SLOTS, key_slots.c.id)) or list_key_slots(connection)


def _slots(rows: Sequence[Row[Any]]) -> list[KeySlot]:
    if len(rows) > _MAX_SLOTS:
        raise IntegrityError(
            f"has more than {_MAX_SLOTS} key slots, the most that a repository can have",
            subject="the database",
            remedy=Advice.RECOVER_DATABASE(),
        )
    return [KeySlot(**{field.name: getattr(row, field.name) for field in fields(KeySlot)}) for row in rows]
