"""The key slots of a repository: add, remove, change them; what opens it, and the key itself for a recovery page."""

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
    """The key of a repository, for a recovery page. Whoever has it and the metadata reads everything."""

    repository: str  # uid
    key: bytes = field(repr=False)


@contextmanager
def open_database(config: Config) -> Iterator[Database]:
    """Open the metadata alone: keys are looked after where the storage is out of reach.

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
    """Return the key slots, the oldest first; a repository without encryption, or adopted from backy2, has none."""
    with database.read() as connection:
        return sound_key_slots(connection)


def check_key(database: Database, sources: SecretSources) -> KeySlot:
    """Return the slot that the configuration opens.

    Raises:
        MissingKeyError: there is no slot, or nothing configured to open it with.
        WrongKeyError: what is configured opens none.
        IntegrityError: the slot is damaged.
    """
    return _open(database, sources).slot


def add_slot(database: Database, sources: SecretSources, label: str, secret: Secret) -> KeySlot:
    """Let one more key or passphrase open the repository.

    Raises:
        UsageError: there is a slot with this label, or it is none.
        MissingKeyError, WrongKeyError, IntegrityError: the repository is not opened by what is configured.
    """
    opened = _open(database, sources)
    return _add(database, opened.repository_key, label, secret, opened)


def add_slot_from_recovery(database: Database, repository_key: bytes, label: str, secret: Secret) -> KeySlot:
    """Let a key or passphrase open the repository, by the key of a recovery page.

    Raises:
        UsageError: there is a slot with this label, or it is none.
        MissingKeyError: the repository has no key of its own.
        WrongKeyError: the page is one of another repository, or older than its key.
        IntegrityError: the identity in the database is not what was written with this key.
    """
    with database.read() as connection:
        identity = load_identity(connection)
        tag = load_identity_tag(connection)
        if tag is None:  # else it tells that the repository had slots, if it has none any more
            _require_slots(list_key_slots(connection))
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
            "nothing in this repository shows whether the recovery page is its own: no block is encrypted; make it "
            "again with `backyfs init`, nothing is lost"
        )
    elif tag_of(identity, repository_key) != tag:
        raise _wrong_page()
    return _add(database, repository_key, label, secret)


def _wrong_page() -> WrongKeyError:
    return WrongKeyError("the recovery page has the key of another repository; compare the repository's uid on it")


def change_slot(database: Database, sources: SecretSources, label: str, secret: Secret) -> KeySlot:
    """Let another key or passphrase open a slot; the old one opens it no longer.

    Raises:
        UsageError: there is no slot with this label.
        MissingKeyError, WrongKeyError, IntegrityError: the repository is not opened by what is configured.
    """
    opened = _open(database, sources)
    slot = make_slot(secret, opened.repository_key, label=label, created_at=datetime.now(UTC))
    with database.write() as connection:
        _require_still(connection, opened)
        _find(connection, label)
        replace_key_slot(connection, label, slot)
    return slot


def remove_slot(database: Database, sources: SecretSources, label: str, *, force: bool = False) -> None:
    """Remove a slot: its key or passphrase opens the repository no longer.

    The last one stays; the one that the configuration opens goes only with `force`.

    Raises:
        UsageError: there is no such slot, it is the last one, or the configuration needs it.
        MissingKeyError, WrongKeyError, IntegrityError: the repository is not opened by what is configured.
    """
    opened = _open(database, sources)
    with database.write() as connection:
        _require_still(connection, opened)
        _find(connection, label)
        if len(list_key_slots(connection)) == 1:
            raise UsageError(
                f"key slot {label!r} is the last one, and without it the backups are lost; add another one first with "
                "`backyfs key add`"
            )
        if opened.slot.label == label and not force:
            raise UsageError(
                f"key slot {label!r} is the one that this configuration opens; configure another key first, or add "
                "--force"
            )
        remove_key_slot(connection, label)


def repository_key(database: Database, sources: SecretSources) -> RepositoryKey:
    """Return the key of the repository itself.

    Raises:
        MissingKeyError, WrongKeyError, IntegrityError: the repository is not opened by what is configured.
    """
    opened = _open(database, sources)
    with database.read() as connection:
        return RepositoryKey(repository=load_identity(connection).uid, key=opened.repository_key)


def _open(database: Database, sources: SecretSources) -> OpenedSlot:
    slots = read_slots(database)
    _require_slots(slots)
    opened = open_configured(slots, sources)
    with database.read() as connection:
        require_identity(connection, opened.repository_key)
    return opened


def _require_slots(slots: list[KeySlot]) -> None:
    if not slots:
        raise MissingKeyError(
            "the repository has no key slots: it is not encrypted, or comes from backy2; in the latter case "
            "`backyfs rekey` gives it one"
        )


def _add(
    database: Database, repository_key: bytes, label: str, secret: Secret, opened: OpenedSlot | None = None
) -> KeySlot:
    if not label or len(label) > MAX_LABEL or not label.isprintable():
        raise UsageError(f"a label of a key slot has 1 to {MAX_LABEL} characters that can be printed; give another one")
    slot = make_slot(secret, repository_key, label=label, created_at=datetime.now(UTC))
    with database.write() as connection:
        if opened is not None:
            _require_still(connection, opened)
        others = list_key_slots(connection)
        if len(others) >= MAX_SLOTS:
            raise UsageError(
                f"the repository has {len(others)} key slots, and there can be {MAX_SLOTS}; remove one with "
                "`backyfs key remove`"
            )
        if any(other.label == label for other in others):
            raise UsageError(f"there is a key slot {label!r} already; give another label, or use `backyfs key change`")
        add_key_slot(connection, slot)
    return slot


def _find(connection: Connection, label: str) -> KeySlot:
    for slot in list_key_slots(connection):
        if slot.label == label:
            return slot
    raise UsageError(f"there is no key slot {label!r}; `backyfs key list` shows them")


def _require_still(connection: Connection, opened: OpenedSlot) -> None:
    """Refuse to go on if the slot that was opened is gone: the repository may have another key since."""
    if opened.slot not in list_key_slots(connection):
        raise KeyMaterialError("another command changed the key slots meanwhile; run the command again")
