"""A repository: one metadata database, one storage, and the keys that open what lies in them.

Opening one checks everything a command relies on before it does anything: the schema, block size and
hash function against the configuration, the key. Making one never overwrites anything.
"""

from __future__ import annotations

import logging
import os
import uuid
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from backyfs import keys, sealing
from backyfs.blocks import BLAKE3, BlockStore, fingerprint_function
from backyfs.catalog.objects import Seal
from backyfs.catalog.store import Catalog, find_repository
from backyfs.errors import CatalogError, ConfigError, DatabaseError, NoRepositoryError, StorageError
from backyfs.keys.slots import make_slot
from backyfs.metadata.db.database import Database, sqlite_path
from backyfs.metadata.records.blobs import find_moved
from backyfs.metadata.records.identity import (
    Identity,
    add_key_slot,
    note_storage_objects,
    save_identity,
    save_identity_tag,
)
from backyfs.model import DEFAULT_BLOCK_SIZE
from backyfs.ownfiles import own_paths
from backyfs.repository.claim import check_before_upgrade, claim
from backyfs.repository.keyring import (
    FIRST_SLOT,
    configured_secret,
    confirm_identity,
    tag_of,
    turn_encryption_on,
    unlock,
)
from backyfs.storage.registry import create_storage, open_storage
from backyfs.work.limits import DEFAULT_LIMITS, Limits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from datetime import datetime

    from backyfs.config import Config
    from backyfs.keys.slots import Secret
    from backyfs.metadata.db.database import Connection
    from backyfs.model import Blob, BlobUid, Deduplication

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Repository:
    """An open repository."""

    config: Config  # that it was opened with
    uid: str
    block_size: int
    database: Database
    blocks: BlockStore
    deduplication: Deduplication
    own_paths: tuple[str, ...]  # local paths that nothing else may write to
    limits: Limits = DEFAULT_LIMITS

    @property
    def catalog(self) -> Catalog:
        """The catalog of this repository in its storage."""
        return Catalog(self.blocks.storage, Seal(repository=self.uid, key=self.blocks.keyring.repository_key))


@contextmanager
def open_repository(
    config: Config,
    *,
    stop: Callable[[], bool] = lambda: False,
    ask: Callable[[], str] | None = None,
    insist: bool = False,
) -> Iterator[Repository]:
    """Open the repository that the configuration names, and close it at the end.

    `ask` asks somebody for a passphrase, where the configuration has neither key nor passphrase. Threads that wait
    for the limits of the storage ask `stop` whether the command is to end; if it is, they raise InterruptedByUser.
    With `insist` a storage without a marker is taken for the repository's, see `backyfs.repository.claim`.

    Raises:
        SchemaOutdatedError: its schema is older; see `backyfs.engine.setup.upgrade`.
        NoRepositoryError: the database holds none.
        SchemaError: it is of a newer release.
        ConfigError: block size or hash function are not the repository's, or the encryption version is
            unknown.
        MissingKeyError: it is encrypted, and no key can be had.
        WrongKeyError: the key is not its key.
        IntegrityError: the database contradicts the key, or the catalog in the storage.
        WrongStorageError: the storage is not that of this repository.
        StorageError: the storage is not there.
    """
    if config.encryption_version is not None:
        sealing.check_configured(config.encryption_version)
    with ExitStack() as opened:
        database = Database(config.database_url)
        opened.callback(_close, database)
        try:
            database.check_revision()
        except NoRepositoryError as error:
            raise no_repository(config, database.place) from error
        storage = open_storage(config, stop)
        opened.callback(storage.close)
        unlocked = unlock(config, database, storage, ask)
        check_agreement(config, unlocked.identity)
        claim(database, storage, unlocked.identity.uid, insist=insist)
        if unlocked.awaits_key:
            turn_encryption_on(database, config)
            unlocked = unlock(config, database, storage, ask)
        identity, keyring = unlocked.identity, unlocked.keyring
        confirm_identity(database, storage, unlocked)
        yield Repository(
            config=config,
            uid=identity.uid,
            block_size=identity.block_size,
            database=database,
            blocks=BlockStore(
                storage=storage,
                keyring=keyring,
                fingerprint=fingerprint_function(identity.hash_function, keyring.fingerprint_key),
                encryption_version=version_of_new_blobs(config, identity, has_key=keyring.repository_key is not None),
                compression_level=config.compression_level,
                find_moved=partial(_find_moved, database),
                knows_other_hashes=identity.hash_function != BLAKE3 or keyring.fingerprint_key is None,
            ),
            deduplication=config.deduplication,
            own_paths=own_paths(config, database, storage.traits.own_paths),
        )


def no_repository(config: Config, place: str) -> NoRepositoryError:
    """Return the error for a database that holds no repository, with the remedy that the storage suggests."""
    try:
        with closing(open_storage(config)) as storage:
            has_catalog = find_repository(storage) is not None
    except CatalogError:
        has_catalog = True  # a damaged one
    except (StorageError, ConfigError) as error:
        return NoRepositoryError(
            f"{place} holds no repository, and its storage cannot be asked for a copy of the metadata ({error}); make "
            "the storage available, or correct `engine` of [MetaBackend]"
        )
    if has_catalog:
        return NoRepositoryError(
            f"{place} holds no repository, but the storage holds a copy of the metadata of one: run `backyfs recover` "
            "to rebuild the database, or correct `engine` of [MetaBackend]"
        )
    return NoRepositoryError(
        f"{place} holds no repository; run `backyfs initdb` to make one, or correct `engine` of [MetaBackend]"
    )


def check_can_open(config: Config, known: Iterable[BlobUid] = ()) -> None:
    """Make sure that what the configuration names besides the database can be opened: else an upgrade is of no use.

    `known` are some of the blobs that the database names.

    Raises:
        ConfigError: the kind of storage or the encryption version are unknown to this release.
        WrongStorageError: the storage has none of these blobs.
        StorageError: the storage is not there.
    """
    if config.encryption_version is not None:
        sealing.check_configured(config.encryption_version)
    with closing(open_storage(config)) as storage:
        check_before_upgrade(storage, known)


def create_repository(config: Config, *, created_at: datetime, may_hold_blobs: bool = False) -> None:
    """Make the repository that the configuration names: its storage directory, database and keys.

    With `may_hold_blobs` the storage may hold objects of blobs, whose rows are to be imported. It gets its marker when
    the repository is opened for the first time.

    Raises:
        SchemaError: the database is there already.
        StorageError: the storage directory is there already and not empty.
        MissingKeyError: encryption is on, and no key can be had.
    """
    from backyfs.metadata.schema.schema import create_file, create_tables  # noqa: PLC0415 - alembic is slow to load

    if config.encryption_version is not None:
        sealing.check_configured(config.encryption_version)
    secret = configured_secret(config) if config.encryption_version != 0 else None
    storage_path = config.storage.local_path
    database = Database(config.database_url)
    with (
        _taken_away_on_failure(storage_path, os.rmdir),
        _taken_away_on_failure(sqlite_path(database.engine.url), os.unlink),
        closing(database),
    ):
        holds_blobs = create_storage(config, may_hold_blobs=may_hold_blobs)
        create_file(database)
        with database.begin() as connection:
            create_tables(connection)
            _save_new_identity(connection, config, secret, created_at)
            note_storage_objects(connection, had_objects=holds_blobs)
    database.keep_reserve()


@contextmanager
def _taken_away_on_failure(path: str | None, take_away: Callable[[str], None]) -> Iterator[None]:
    """Take away what is made at `path` and does not become part of a repository; what was there before stays."""
    if path is None or os.path.lexists(path):
        yield
        return
    try:
        yield
    except BaseException:
        with suppress(OSError):
            take_away(path)
        raise


def _save_new_identity(
    connection: Connection, config: Config, secret: Secret | None, created_at: datetime
) -> None:
    repository_key = None if secret is None else keys.new_key()
    identity = Identity(
        uid=str(uuid.uuid4()),
        block_size=config.block_size or DEFAULT_BLOCK_SIZE,
        hash_function=config.hash_function or BLAKE3,
        wrapped_fingerprint_key=None if repository_key is None else keys.wrap_key(repository_key, keys.new_key()),
        created_at=created_at,
    )
    save_identity(connection, identity)
    if secret is not None and repository_key is not None:
        add_key_slot(connection, make_slot(secret, repository_key, label=FIRST_SLOT, created_at=created_at))
        save_identity_tag(connection, tag_of(identity, repository_key))


def check_agreement(config: Config, identity: Identity) -> None:
    """Refuse a configuration that says another block size or hash function than the repository has.

    Raises:
        ConfigError: it does.
    """
    for key, configured, actual in (
        ("block_size", config.block_size, identity.block_size),
        ("hash_function", config.hash_function, identity.hash_function),
    ):
        if configured is not None and configured != actual:
            raise ConfigError(
                f"is {configured}, but this repository was made with {actual}, which cannot change; "
                "correct it or take it out",
                section="DEFAULTS",
                key=key,
                file=config.files[-1] if config.files else "",
            )


def _find_moved(database: Database, blob: Blob) -> Blob | None:
    try:
        with database.read() as connection:
            return find_moved(connection, blob)
    except DatabaseError as error:  # what is the matter with the blob is the error to tell
        _log.warning("cannot look whether blob %s was sealed anew: %s", blob.uid, error)
        return None


def version_of_new_blobs(config: Config, identity: Identity, *, has_key: bool) -> int:
    """Return the encryption version that new blobs get: the configured one, else what fits the repository."""
    if config.encryption_version is not None:
        return config.encryption_version
    if not has_key:
        return 0
    return sealing.BACKY2_ENCRYPTION_VERSION if _is_adopted(identity) else sealing.NEWEST_ENCRYPTION_VERSION


def _is_adopted(identity: Identity) -> bool:
    """Tell whether a repository comes from backy2, by what stays as it was: `rekey` gives it slots like any other.

    One that was made plain, with a hash function of hashlib, and turned to encryption later is taken for one.
    """
    return identity.hash_function != BLAKE3 and identity.wrapped_fingerprint_key is None


def _close(database: Database) -> None:
    database.close()
    if database.was_changed:
        database.keep_reserve()
