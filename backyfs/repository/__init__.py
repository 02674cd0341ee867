"""A repository: a metadata database, a storage, and the keys that open them.

Opening a repository checks everything that commands rely on: the schema, the block size and hash function of the
configuration, and the key. Creating one never overwrites anything.
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
from backyfs.remedies import Advice
from backyfs.repository.claim import check_before_upgrade, claim
from backyfs.repository.keyring import (
    FIRST_SLOT,
    configured_secret,
    confirm_identity,
    tag_of,
    turn_encryption_on,
    unlock,
)
from backyfs.storage.registry import create_storage, open_storage, with_cache
from backyfs.work.limits import DEFAULT_LIMITS, Limits
from backyfs.work.parallel import at_most
from backyfs.work.width import Width, processors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from datetime import datetime

    from backyfs.catalog.store import Catalog
    from backyfs.config import Config
    from backyfs.keys.slots import Secret
    from backyfs.metadata.db.database import Connection
    from backyfs.model import Blob, BlobUid, Deduplication, RequestCounts

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
    own_paths: tuple[str, ...]  # local paths that no other program may write to
    limits: Limits = DEFAULT_LIMITS

    @property
    def width(self) -> Width:
        """In how many threads a command works."""
        return Width.of(self.blocks.storage.traits, self.block_size, workers=self.limits.workers)

    @property
    def requests(self) -> RequestCounts:
        """The requests to the storage since the repository was opened."""
        return self.blocks.storage.requests

    @property
    def catalog(self) -> Catalog:
        """The catalog of this repository in its storage."""
        from backyfs.catalog.objects import Seal  # noqa: PLC0415 - commands that change nothing do not need it
        from backyfs.catalog.store import Catalog  # noqa: PLC0415

        return Catalog(self.blocks.storage, Seal(repository=self.uid, key=self.blocks.keyring.repository_key))


@contextmanager
def open_repository(
    config: Config,
    *,
    stop: Callable[[], bool] = lambda: False,
    ask: Callable[[], str] | None = None,
    insist: bool = False,
    cached: bool = False,
) -> Iterator[Repository]:
    """Open the configured repository, and close it at the end.

    `ask` asks the user for a passphrase if the configuration has neither key nor passphrase. Threads that wait because
    of the limits of the storage call `stop`; once it returns True, they raise InterruptedByUser. With `insist`, a
    storage without a marker is accepted as that of the repository, see `backyfs.repository.claim`. With `cached`,
    blobs are read through the disk cache: for mounts only, because all other commands say something about the storage.

    Raises:
        SchemaOutdatedError: its schema is older; see `backyfs.engine.setup.upgrade`.
        NoRepositoryError: the database holds none.
        SchemaError: its schema is newer.
        ConfigError: block size or hash function differ from those of the repository, or the encryption version is
            unknown.
        MissingKeyError: it is encrypted, and there is no key.
        WrongKeyError: the key does not belong to it.
        IntegrityError: the database contradicts the key, or the catalog in the storage.
        WrongStorageError: the storage does not belong to this repository.
        StorageError: the storage is not available.
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
        storage = open_storage(config.storage, stop)

        def close_storage() -> None:
            storage.close()  # with its cache, if it gets one

        opened.callback(close_storage)
        unlocked = unlock(config, database, storage, ask)
        check_agreement(config, unlocked.identity)
        claim(database, storage, unlocked.identity.uid, insist=insist)
        if unlocked.awaits_key:
            turn_encryption_on(database, config)
            unlocked = unlock(config, database, storage, ask)
        identity, keyring = unlocked.identity, unlocked.keyring
        confirm_identity(database, storage, unlocked)
        if cached:
            storage = with_cache(storage, config, identity.uid)
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
                computing=at_most(None if storage.traits.requests is None else processors() + 1),
                knows_other_hashes=identity.hash_function != BLAKE3 or keyring.fingerprint_key is None,
            ),
            deduplication=config.deduplication,
            own_paths=own_paths(config, database, storage.traits.own_paths),
        )


def no_repository(config: Config, place: str) -> NoRepositoryError:
    """Return the error for a database without a repository, with a remedy that depends on the storage."""
    from backyfs.catalog.store import find_repository  # noqa: PLC0415 - slow to load, rarely needed

    try:
        with closing(open_storage(config.storage)) as storage:
            has_catalog = find_repository(storage) is not None
    except CatalogError:
        has_catalog = True  # a damaged one
    except (StorageError, ConfigError) as error:
        return NoRepositoryError(
            f"holds no repository, and the storage cannot be searched for a copy of the metadata ({error})",
            subject=place,
            remedy="make the storage available, or correct `engine` of [MetaBackend]",
        )
    if has_catalog:
        return NoRepositoryError(
            "holds no repository, but the storage holds a copy of the metadata of one",
            subject=place,
            remedy=Advice.RECOVER_OR_CORRECT_DATABASE(),
        )
    return NoRepositoryError(
        "holds no repository", subject=place, remedy=Advice.INITIALIZE_OR_CORRECT_DATABASE()
    )


def check_can_open(
    config: Config, known: Iterable[BlobUid] = (), *, stop: Callable[[], bool] = lambda: False
) -> None:
    """Check that everything configured except the database can be opened; otherwise an upgrade would be of no use.

    `known` are some of the blobs in the database. `stop` says whether to stop waiting for the storage.

    Raises:
        ConfigError: this release does not know the kind of storage or the encryption version.
        WrongStorageError: the storage has none of these blobs.
        StorageError: the storage is not available.
    """
    if config.encryption_version is not None:
        sealing.check_configured(config.encryption_version)
    with closing(open_storage(config.storage, stop)) as storage:
        check_before_upgrade(storage, known)


def create_repository(config: Config, *, created_at: datetime, may_hold_blobs: bool = False) -> None:
    """Create the configured repository: its storage directory, database and keys.

    With `may_hold_blobs` the storage may hold objects of blobs, whose rows will be imported. The storage gets its
    marker when the repository is opened for the first time.

    Raises:
        SchemaError: the database exists already.
        StorageError: the storage directory exists already and is not empty.
        MissingKeyError: encryption is on, and there is no key.
    """
    from backyfs.metadata.schema.schema import create_file, create_tables  # noqa: PLC0415 - alembic is slow to load

    if config.encryption_version is not None:
        sealing.check_configured(config.encryption_version)
    secret = configured_secret(config) if config.encryption_version != 0 else None
    storage_path = config.storage.local_path
    database = Database(config.database_url)
    with (
        _removed_on_failure(storage_path, os.rmdir),
        _removed_on_failure(sqlite_path(database.engine.url), os.unlink),
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
def _removed_on_failure(path: str | None, remove: Callable[[str], None]) -> Iterator[None]:
    """Remove what the `with` makes at `path` if it fails; leave what existed before."""
    if path is None or os.path.lexists(path):
        yield
        return
    try:
        yield
    except BaseException:
        with suppress(OSError):
            remove(path)
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
    """Check that the configured block size and hash function are those of the repository.

    Raises:
        ConfigError: they are not.
    """
    for key, configured, actual in (
        ("block_size", config.block_size, identity.block_size),
        ("hash_function", config.hash_function, identity.hash_function),
    ):
        if configured is not None and configured != actual:
            raise ConfigError(
                f"is {configured}, but this repository was created with {actual}, which cannot change",
                remedy="correct it or remove it",
                section="DEFAULTS",
                key=key,
                file=config.files[-1] if config.files else "",
            )


def _find_moved(database: Database, blob: Blob) -> Blob | None:
    try:
        with database.read() as connection:
            return find_moved(connection, blob)
    except DatabaseError as error:  # the error to report is what is wrong with the blob
        _log.warning("cannot check whether blob %s was re-sealed: %s", blob.uid, error)
        return None


def version_of_new_blobs(config: Config, identity: Identity, *, has_key: bool) -> int:
    """Return the encryption version of new blobs: the configured one, or the default for the repository."""
    if config.encryption_version is not None:
        return config.encryption_version
    if not has_key:
        return 0
    return sealing.BACKY2_ENCRYPTION_VERSION if _is_adopted(identity) else sealing.NEWEST_ENCRYPTION_VERSION


def _is_adopted(identity: Identity) -> bool:
    """Return whether a repository comes from backy2, by what `rekey` does not change. It may have key slots by now.

    This is also true if it was created without encryption, with a hash function of hashlib, and encrypted later.
    """
    return identity.hash_function != BLAKE3 and identity.wrapped_fingerprint_key is None


def _close(database: Database) -> None:
    database.close()
    if database.was_changed:
        database.keep_reserve()
