"""The key slots of a repository: add, remove and change them, and return the key for a recovery page."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from backyfs import keys
from backyfs.errors import IntegrityError, KeyMaterialError, MissingKeyError, UsageError, WrongKeyError
from backyfs.keys.slots import MAX_SLOTS, make_slot, open_configured
from backyfs.metadata.db.database import Database
from backyfs.metadata.records.blobs import newest_wrapped_key
from backyfs.metadata.records.identity import (
    add_key_slot,
    list_key_slots,
    load_identity,
    load_identity_tag,
    remove_key_slot,
    replace_key_slot,
    sound_key_slots,
)
from backyfs.remedies import Advice
from backyfs.repository.keyring import require_identity, tag_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backyfs.config import Config
    from backyfs.keys.slots import OpenedSlot, Secret, SecretSources
    from backyfs.metadata.db.database import Connection
    from backyfs.model import KeySlot

MAX_LABEL = 255  # characters


@dataclass(frozen=True, slots=True, kw_only=True)
class RepositoryKey:
    """The key of a repository, for a recovery page. With it and the metadata, all backups can be read."""

    repository: str  # uid
    key: bytes = field(repr=False)


@contextmanager
def open_database(config: Config) -> Iterator[Database]:
    """Open the metadata only, because keys can be managed without access to the storage.

    Raises:
        SchemaOutdatedError: its schema is older.
        SchemaError: there is no repository.
    """
    database = Database(config.database_url)
    try:
        database.check_revision()
        yield database
    finally:
        database.close()


def read_slots(database: Database) -> list[KeySlot]:
    """Return the key slots, oldest first. A repository without encryption, or adopted from backy2, has none."""
    with database.read() as connection:
        return sound_key_slots(connection)


def check_key(database: Database, sources: SecretSources) -> KeySlot:
    """Return the slot that the configuration opens.

    Raises:
        MissingKeyError: there is no slot, or neither key nor passphrase is configured.
        WrongKeyError: the configured key or passphrase opens none.
        IntegrityError: the slot is damaged.
    """
    return _open(database, sources).slot


def add_slot(database: Database, sources: SecretSources, label: str, secret: Secret) -> KeySlot:
    """Add a slot, so that one more key or passphrase opens the repository.

    Raises:
        UsageError: a slot with this label exists, or the label is not valid.
        MissingKeyError, WrongKeyError, IntegrityError: the configured key or passphrase does not open the repository.
    """
    opened = _open(database, sources)
    return _add(database, opened.repository_key, label, secret, opened)


def add_slot_from_recovery(database: Database, repository_key: bytes, label: str, secret: Secret) -> KeySlot:
    """Add a slot for a key or passphrase, using the key of a recovery page.

    Raises:
        UsageError: a slot with this label exists, or the label is not valid.
        MissingKeyError: the repository does not have a repository key.
        WrongKeyError: the page belongs to another repository, or is older than the repository key.
        IntegrityError: the identity in the database is not what was written with this key.
    """
    with database.read() as connection:
        identity = load_identity(connection)
        tag = load_identity_tag(connection)
        if tag is None:  # a tag shows that the repository had slots, even if they are lost
            require_slots(list_key_slots(connection))
        wrapped = identity.wrapped_fingerprint_key or newest_wrapped_key(connection)
    if wrapped is not None:
        try:
            keys.unwrap_key(repository_key, wrapped)
        except IntegrityError as error:
            raise _wrong_page() from error
        with database.read() as connection:
            require_identity(connection, repository_key)
    elif tag is None:
        raise MissingKeyError(
            "nothing in this repository shows whether the recovery page belongs to it: no block is encrypted",
            remedy=Advice.MAKE_RECOVERY_PAGE_AGAIN(),
        )
    elif tag_of(identity, repository_key) != tag:
        raise _wrong_page()
    return _add(database, repository_key, label, secret)


def _wrong_page() -> WrongKeyError:
    return WrongKeyError(
        "has the key of another repository",
        subject="the recovery page",
        remedy="compare the uid of the repository on it",
    )


def change_slot(database: Database, sources: SecretSources, label: str, secret: Secret) -> KeySlot:
    """Let another key or passphrase open a slot, in place of the old one.

    Raises:
        UsageError: there is no slot with this label.
        MissingKeyError, WrongKeyError, IntegrityError: the configured key or passphrase does not open the repository.
    """
    opened = _open(database, sources)
    slot = make_slot(secret, opened.repository_key, label=label, created_at=datetime.now(UTC))
    with database.write() as connection:
        _require_still(connection, opened)
        _find(connection, label)
        replace_key_slot(connection, label, slot)
    return slot


def remove_slot(database: Database, sources: SecretSources, label: str, *, force: bool = False) -> None:
    """Remove a slot, so its key or passphrase no longer opens the repository.

    The last slot is never removed, and the slot that the configuration opens only with `force`.

    Raises:
        UsageError: there is no such slot, it is the last one, or the configuration uses it.
        MissingKeyError, WrongKeyError, IntegrityError: the configured key or passphrase does not open the repository.
    """
    opened = _open(database, sources)
    with database.write() as connection:
        _require_still(connection, opened)
        _find(connection, label)
        if len(list_key_slots(connection)) == 1:
            raise UsageError(
                "is the last one, and without it the backups are lost",
                subject=f"key slot {label!r}",
                remedy=Advice.ADD_KEY_SLOT(),
            )
        if opened.slot.label == label and not force:
            raise UsageError(
                "is the one that this configuration opens",
                subject=f"key slot {label!r}",
                remedy=Advice.REMOVE_USED_KEY_SLOT(),
            )
        remove_key_slot(connection, label)


def repository_key(database: Database, sources: SecretSources) -> RepositoryKey:
    """Return the repository key.

    Raises:
        MissingKeyError, WrongKeyError, IntegrityError: the configured key or passphrase does not open the repository.
    """
    opened = _open(database, sources)
    with database.read() as connection:
        return RepositoryKey(repository=load_identity(connection).uid, key=opened.repository_key)


def _open(database: Database, sources: SecretSources) -> OpenedSlot:
    slots = read_slots(database)
    require_slots(slots)
    opened = open_configured(slots, sources)
    with database.read() as connection:
        require_identity(connection, opened.repository_key)
    return opened


def require_slots(slots: list[KeySlot]) -> None:
    """Make sure that there are key slots.

    Raises:
        MissingKeyError: there are none.
    """
    if not slots:
        raise MissingKeyError(
            "has no key slots: it is not encrypted, or comes from backy2",
            subject="the repository",
            remedy=Advice.REKEY(),
        )


def _add(
    database: Database, repository_key: bytes, label: str, secret: Secret, opened: OpenedSlot | None = None
) -> KeySlot:
    if not label or len(label) > MAX_LABEL or not label.isprintable():
        raise UsageError(
            f"must have 1 to {MAX_LABEL} printable characters",
            subject="the label of a key slot",
            remedy="give another one",
        )
    slot = make_slot(secret, repository_key, label=label, created_at=datetime.now(UTC))
    with database.write() as connection:
        if opened is not None:
            _require_still(connection, opened)
        others = list_key_slots(connection)
        if len(others) >= MAX_SLOTS:
            raise UsageError(
                f"has {len(others)} key slots, and the limit is {MAX_SLOTS}",
                subject="the repository",
                remedy=Advice.REMOVE_KEY_SLOT(),
            )
        if any(other.label == label for other in others):
            raise UsageError("exists already", subject=f"key slot {label!r}", remedy=Advice.CHANGE_KEY_SLOT())
        add_key_slot(connection, slot)
    return slot


def _find(connection: Connection, label: str) -> KeySlot:
    for slot in list_key_slots(connection):
        if slot.label == label:
            return slot
    raise UsageError(f"there is no key slot {label!r}", remedy=Advice.LIST_KEY_SLOTS())


def _require_still(connection: Connection, opened: OpenedSlot) -> None:
    """Refuse to continue if the slot that was opened is gone: the repository may have another key now."""
    if opened.slot not in list_key_slots(connection):
        raise KeyMaterialError(
            "another command changed the key slots in the meantime", remedy="run the command again"
        )
