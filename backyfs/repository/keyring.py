"""The keyring of a repository: open it, and check that it is the repository that the key was made for.

Anyone who can write to the database can make it claim that a repository is not encrypted, or that its fingerprints
have no key. So its identity has a tag that only the repository key can make (`keys.identity`), which is compared each
time the repository is opened with its key. A database of an older release has no tag. It is compared with the catalog
in the storage instead, where the object of the repository is sealed. So is a database that claims to have no key.
"""

from __future__ import annotations

import hmac
import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

from backyfs import keys
from backyfs.blocks import BLAKE3, digest_bytes
from backyfs.errors import CatalogError, IntegrityError, KeyMaterialError, MissingKeyError, WrongKeyError
from backyfs.keys.identity import identity_tag
from backyfs.keys.slots import Secret, SecretSources, make_slot, open_configured
from backyfs.metadata.records.blobs import newest_wrapped_key
from backyfs.metadata.records.identity import (
    Identity,
    add_key_slot,
    list_key_slots,
    load_identity,
    load_identity_tag,
    load_key_date,
    save_identity_tag,
    save_key_date,
    sound_key_slots,
)
from backyfs.remedies import Advice

if TYPE_CHECKING:
    from collections.abc import Callable

    from backyfs.catalog.repository import OpenPart
    from backyfs.config import Config
    from backyfs.metadata.db.database import Connection, Database
    from backyfs.model import KeySlot
    from backyfs.storage.protocol import Storage

FIRST_SLOT = "configuration"  # label of the slot that a repository is created with
_NOTHING_TO_COMPARE = (
    "nothing proves that the database was written with the key of this repository, and its fingerprints have no key. "
    "This is normal once, for the first command on a database of backy2 or of an older release. Otherwise somebody may "
    "have changed the database and the storage: do not use them"
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Unlocked:
    """An opened repository."""

    identity: Identity
    keyring: keys.Keyring
    has_tag: bool     # the database has one, and it matches; if not, see `confirm_identity`
    awaits_key: bool  # it was created without encryption, but a key is configured; see `turn_encryption_on`


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """What one snapshot of the database says."""

    identity: Identity
    tag: bytes | None
    slots: list[KeySlot]
    key_made_at: datetime | None
    wrapped_key: bytes | None  # a data key, if there are no slots


def unlock(
    config: Config, database: Database, storage: Storage | None, ask: Callable[[], str] | None = None
) -> Unlocked:
    """Open a repository without changing anything. `storage` holds the catalog; None: it is not available.

    Raises:
        MissingKeyError: it is encrypted, and there is no key.
        WrongKeyError: the key does not belong to it.
        IntegrityError: the key slot is damaged, or the database contradicts the key or the catalog.
        StorageError: the storage cannot be read.
    """
    found = _read(database)
    if found.slots:
        database.precondition = partial(_require_key_of, found.key_made_at)
        key: bytes | None = open_configured(found.slots, key_sources(config, ask)).repository_key
    else:
        catalog = None if storage is None else _catalog(storage, found.identity.uid)
        names_key = config.key is not None or config.passphrase is not None
        _require_never_had_slots(found, catalog, names_key=names_key)
        if not names_key:
            return _without_key(found)
        if found.wrapped_key is None and found.tag is None and (catalog is None or not catalog.is_sealed):
            return _without_key(found, awaits_key=config.encryption_version != 0)
        database.precondition = _require_no_slots
        key = _adopted_key(config, found, catalog)
    if key is None:
        return _without_key(found)
    if found.tag is not None:
        _compare(found.identity, found.tag, key)
    return Unlocked(
        identity=found.identity,
        keyring=keys.Keyring(repository_key=key, fingerprint_key=_fingerprint_key(found.identity, key)),
        has_tag=found.tag is not None,
        awaits_key=False,
    )


def turn_encryption_on(database: Database, config: Config) -> None:
    """Give a repository that was created without encryption its key, because the configuration has one now.

    Raises:
        MissingKeyError: the configured key cannot be read.
    """
    secret = configured_secret(config)
    assert secret is not None
    key = keys.new_key()
    slot = make_slot(secret, key, label=FIRST_SLOT, created_at=datetime.now(UTC))
    with database.write() as connection:
        if list_key_slots(connection):  # another command was first
            return
        add_key_slot(connection, slot)
        save_key_date(connection, slot.created_at)
        save_identity_tag(connection, tag_of(load_identity(connection), key))
    _log.warning(
        "this repository was not encrypted until now. New blocks will be; those stored so far stay plain. If it was "
        "encrypted before, somebody has changed its database and storage: do not use them"
    )


def confirm_identity(database: Database, storage: Storage, unlocked: Unlocked) -> None:
    """Give a repository of an older release its tag, unless the catalog in the storage contradicts the database.

    If the storage has no catalog that the key opens, the database is trusted. A warning says so, unless the
    fingerprint key vouches for the database, because removing tag, fingerprint key and catalog leads to the same state.

    Raises:
        IntegrityError: the catalog contradicts the database.
        StorageError: the catalog cannot be read.
    """
    identity, key = unlocked.identity, unlocked.keyring.repository_key
    if key is None or unlocked.has_tag:
        return
    catalog = _catalog(storage, identity.uid)
    sealed = None if catalog is None else _opened(catalog, key)
    if sealed is not None and _facts(sealed) != _facts(identity):
        raise _contradiction("than the catalog in the storage")
    if sealed is None and not _has_keyed_fingerprints(identity):
        _log.warning(_NOTHING_TO_COMPARE)
    if not database.is_read_only:
        with database.write() as connection:
            if load_identity(connection) == identity and load_identity_tag(connection) is None:
                save_identity_tag(connection, tag_of(identity, key))


def tag_of(identity: Identity, key: bytes) -> bytes:
    """Return the tag that an identity has under a repository key."""
    uid, block_size, hash_function, wrapped_fingerprint_key = _facts(identity)
    return identity_tag(
        key,
        uid=uid,
        block_size=block_size,
        hash_function=hash_function,
        wrapped_fingerprint_key=wrapped_fingerprint_key,
    )


def require_identity(connection: Connection, key: bytes) -> Identity:
    """Return the identity of a repository that was opened with its key.

    Raises:
        IntegrityError: it is not the identity that was written with this key.
    """
    identity, tag = load_identity(connection), load_identity_tag(connection)
    if tag is not None:
        _compare(identity, tag, key)
    return identity


def key_sources(config: Config, ask: Callable[[], str] | None = None) -> SecretSources:
    """Return where to get the key of the repository."""
    return SecretSources(key=config.key, passphrase=config.passphrase, ask=ask)


def configured_secret(config: Config) -> Secret | None:
    """Return the configured key, or else the configured passphrase; None: there is neither.

    Raises:
        MissingKeyError: it cannot be read.
    """
    if config.key is not None:
        return Secret(key=keys.read_key(config.key))
    if config.passphrase is not None:
        return Secret(passphrase=keys.read_passphrase(config.passphrase))
    return None


def _read(database: Database) -> _Found:
    with database.read() as connection:
        slots = sound_key_slots(connection)
        found = _Found(
            identity=load_identity(connection),
            tag=load_identity_tag(connection),
            slots=slots,
            key_made_at=load_key_date(connection),
            wrapped_key=None if slots else newest_wrapped_key(connection),
        )
    name = found.identity.hash_function
    try:
        is_known = digest_bytes(name) > 0
    except ValueError:
        is_known = False
    if not is_known:
        raise IntegrityError(
            f"has the unknown hash function {name!r}",
            subject="the row of the repository in the database",
            remedy=Advice.RECOVER_DATABASE(),
        )
    return found


def _without_key(found: _Found, *, awaits_key: bool = False) -> Unlocked:
    return Unlocked(
        identity=found.identity,
        keyring=keys.Keyring(repository_key=None, fingerprint_key=None),
        has_tag=False,
        awaits_key=awaits_key,
    )


def _require_never_had_slots(found: _Found, catalog: OpenPart | None, *, names_key: bool) -> None:
    """Refuse a database without key slots if the catalog or another column shows that there were some.

    A repository of backy2 has none until `rekey`, although its catalog, if it has one, is sealed. A fingerprint key
    and the date of a key exist only since the first slot.
    """
    if catalog is not None and catalog.is_sealed:
        had_slots = bool(catalog.key_slots)
    else:
        had_slots = found.tag is not None and not names_key
    if had_slots or found.identity.wrapped_fingerprint_key is not None or found.key_made_at is not None:
        raise _lost_slots()


def _lost_slots() -> IntegrityError:
    return IntegrityError(
        "has no key slot, but the repository is encrypted: the slots were lost or removed. No new key was made: it "
        "would open nothing",
        subject="the database",
        remedy=Advice.ADD_SLOT_FROM_RECOVERY(),
    )


def _adopted_key(config: Config, found: _Found, catalog: OpenPart | None) -> bytes | None:
    """Return the key of a repository of backy2, where the configured key itself wraps the data keys.

    None: the configured key does not wrap them and must not be used.
    """
    if config.key is None and found.wrapped_key is None:
        raise _lost_slots()
    if config.key is None:
        raise MissingKeyError(
            "are wrapped by the key of backy2, but the configuration has a passphrase",
            subject="the data keys of this repository",
            remedy=Advice.REKEY_FROM_BACKY2(),
        )
    key = keys.read_key(config.key)
    if _opens_something(key, found, catalog):
        return key
    if found.wrapped_key is None:
        raise _lost_slots()
    check = keys.show_check(keys.key_check(key))
    if config.encryption_version == 0 and found.tag is None:  # in this case backy2 did not check the key at all
        _log.warning("the configured key %s does not open the encrypted blocks of this repository", check)
        return None
    raise WrongKeyError(
        "does not open the data keys of this repository",
        subject=f"the configured key {check}",
        remedy="configure the key that backy2 used last (encryption_key_file, encryption_key_command or "
        "encryption_key)",
    )


def _opens_something(key: bytes, found: _Found, catalog: OpenPart | None) -> bool:
    if found.wrapped_key is not None:
        try:
            keys.unwrap_key(key, found.wrapped_key)
        except IntegrityError:
            return False
        return True
    if found.tag is not None:
        return hmac.compare_digest(found.tag, tag_of(found.identity, key))
    return catalog is not None and _opened(catalog, key) is not None


def _require_no_slots(connection: Connection) -> None:
    """Refuse to continue with the key of backy2 if the repository has got a repository key since."""
    if list_key_slots(connection):
        raise KeyMaterialError(
            "another command re-wrapped the data keys in the meantime", remedy="run the command again"
        )


def _require_key_of(date: datetime | None, connection: Connection) -> None:
    """Refuse to continue with a repository key that has been replaced."""
    if load_key_date(connection) != date:
        raise KeyMaterialError(
            "got another key in the meantime", subject="the repository", remedy="run the command again"
        )


def _fingerprint_key(identity: Identity, key: bytes) -> bytes | None:
    if identity.wrapped_fingerprint_key is None:
        return None
    try:
        return keys.unwrap_key(key, identity.wrapped_fingerprint_key)
    except IntegrityError as error:
        error.subject = "the fingerprint key in the database"
        error.remedy = Advice.RECOVER_DATABASE()
        raise


def _catalog(storage: Storage, uid: str) -> OpenPart | None:
    """Return the object of this repository in the catalog; None: there is none that can be read."""
    from backyfs.catalog.store import find_repository  # noqa: PLC0415 - slow to load, rarely needed

    try:
        found = find_repository(storage)
    except CatalogError as error:
        _log.info("the catalog cannot confirm the database: %s", error)
        return None
    return found if found is not None and found.uid == uid else None


def _opened(catalog: OpenPart, key: bytes) -> Identity | None:
    """Return the identity in the catalog; None: this key does not open it, for example after a change of keys."""
    from backyfs.catalog.repository import open_repository_object  # noqa: PLC0415 - slow to load, rarely needed

    if not catalog.is_sealed:
        return None
    try:
        return open_repository_object(catalog, key).identity
    except CatalogError:
        return None


def _has_keyed_fingerprints(identity: Identity) -> bool:
    return identity.wrapped_fingerprint_key is not None and identity.hash_function == BLAKE3


def _compare(identity: Identity, tag: bytes, key: bytes) -> None:
    if not hmac.compare_digest(tag, tag_of(identity, key)):
        raise _contradiction("than the ones written with its key")


def _facts(identity: Identity) -> tuple[str, int, str, bytes | None]:
    return identity.uid, identity.block_size, identity.hash_function, identity.wrapped_fingerprint_key


def _contradiction(than: str) -> IntegrityError:
    return IntegrityError(
        f"has another uid, block size, hash function or fingerprint key of the repository {than}: it was changed or "
        "damaged",
        subject="the database",
        remedy=Advice.RECOVER_DATABASE(),
    )
