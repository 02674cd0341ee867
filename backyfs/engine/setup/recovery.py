"""Recover a repository from its storage: which storage, key and database are meant, and a configuration if needed."""

from __future__ import annotations

import os
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from backyfs.config import find_config
from backyfs.engine.catalog.recover import open_catalog, recover
from backyfs.engine.setup.initialize import write_configuration
from backyfs.engine.setup.places import default_places, named_database
from backyfs.errors import ConfigError, IntegrityError, MissingKeyError, UsageError
from backyfs.keys import expected_keys
from backyfs.keys.slots import Secret
from backyfs.metadata.db.database import Database
from backyfs.remedies import Advice
from backyfs.repository.keyring import configured_secret
from backyfs.storage.registry import open_storage

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager

    from backyfs.catalog.repository import OpenPart
    from backyfs.config import Config, StorageConfig
    from backyfs.engine.catalog.recover import Loss, RecoveryReport
    from backyfs.engine.setup.places import BucketPlace, Places
    from backyfs.work.run import Control


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyChoice:
    """What opens the catalog. What is not given is taken from the configuration, or asked for."""

    page: bytes | None = None  # the key of the repository itself, from a recovery page
    options: Mapping[str, str]  # keys of a new configuration that name a key or passphrase, such as key_file
    read: Callable[[], Secret | None]  # reads what the options name; None: they name nothing
    ask: Callable[[], str] | None = None  # asks somebody for a passphrase


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryTarget:
    """What to recover from and to."""

    places: Places
    config: Config | None     # that exists; it is not changed
    storage: StorageConfig    # of the configuration, or another one that was named


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveredRepository:
    """A database that was rebuilt."""

    target: RecoveryTarget
    report: RecoveryReport
    losses: tuple[Loss, ...]
    database: str  # as it may be shown

    @property
    def written_configuration(self) -> str | None:
        """The configuration that was written, None if there was one."""
        return self.target.places.config_file if self.target.config is None else None

    @property
    def errors(self) -> list[IntegrityError]:
        """What was lost."""
        if not self.losses:
            return []
        return [
            IntegrityError(
                f"{len(self.losses)} objects are missing, damaged or older than the index says, and are listed; "
                f"{self.report.versions} versions were recovered"
            )
        ]


def recovery_target(
    environ: Mapping[str, str],
    *,
    config_file: str | None,
    load_config: Callable[[], Config],
    storage: str | BucketPlace | None,
    database: str | None,
    as_root: bool,
) -> RecoveryTarget:
    """Return what is meant: `storage` and `database` if they are given, else those of the configuration.

    `config_file` is the configuration that was named. `load_config` is called if it exists, or, if none was named, one
    in the usual places.

    Raises:
        UsageError: neither a storage nor a configuration is there, or `database` is not a file or URL.
        ConfigError: the configuration has a mistake.
    """
    try:
        is_there = any(map(os.path.lexists, find_config(config_file, environ)))
    except ConfigError:
        is_there = False
    config = load_config() if is_there else None
    if storage is None and config is None:
        raise UsageError(
            "no configuration names the storage", remedy="name its directory, or s3://BUCKET/PREFIX"
        )
    places = default_places(environ, as_root=as_root, config_file=config_file)
    if storage is not None:
        places = replace(places, storage=storage)
    if database is not None:
        places = replace(places, database=named_database(database))
    elif config is not None:
        places = replace(places, database=config.database_url)
    return RecoveryTarget(
        places=places,
        config=config,
        storage=config.storage if config is not None and storage is None else places.storage_config(),
    )


def recover_repository(
    target: RecoveryTarget,
    key: KeyChoice,
    *,
    check_objects: bool,
    stop: Callable[[], bool],
    control: Callable[[], AbstractContextManager[Control]],
) -> RecoveredRepository:
    """Rebuild the database, and write a configuration if there is none.

    `control` is entered when the key has been read. Until then, which can take as long as a command or person takes,
    signals are the caller's; `stop` ends waiting for the limits of the storage.

    Raises:
        MissingKeyError: the catalog is encrypted, and no key was given.
        What `open_catalog`, `recover` and `write_configuration` raise.
    """
    losses: list[Loss] = []
    with (
        closing(open_storage(target.storage, stop)) as storage,
        closing(Database(target.places.database_url)) as database,
    ):
        place = database.place
        catalog = open_catalog(
            storage, lambda found: _secret(target, key, found), key.page, expects_key=_names_key(target, key)
        )
        with control() as controlled:
            report = recover(
                storage, catalog, database, check_objects=check_objects, control=controlled, on_loss=losses.append
            )
    if target.config is None:
        is_sealed = catalog.objects.seal.key is not None
        write_configuration(
            target.places,
            block_size=report.repository.identity.block_size,
            encryption_version=None if is_sealed else 0,
            secret=_configured_options(key) if is_sealed else {},
        )
    return RecoveredRepository(target=target, report=report, losses=tuple(losses), database=place)


def _configured_options(key: KeyChoice) -> dict[str, str]:
    return {
        f"encryption_{name}": os.path.abspath(text) if name.endswith("_file") else text
        for name, text in key.options.items()
    }


def _names_key(target: RecoveryTarget, key: KeyChoice) -> bool:
    """Return whether options or configuration name what opens an encrypted repository."""
    config = target.config
    is_configured = (
        config is not None
        and config.encryption_version != 0
        and (config.key is not None or config.passphrase is not None)
    )
    return is_configured or bool(key.options)


def _secret(target: RecoveryTarget, key: KeyChoice, found: OpenPart) -> Secret:
    secret = key.read()
    if secret is None and target.config is not None:
        secret = configured_secret(target.config)
    if secret is None and key.ask is not None and found.key_slots:
        secret = Secret(passphrase=key.ask())
    if secret is None:
        slots = expected_keys(list(found.key_slots)) or "the key that backy2 was configured with"
        raise MissingKeyError(
            f"is encrypted, and opened by {slots}",
            subject=f"the catalog of repository {found.uid}",
            remedy=Advice.GIVE_CATALOG_KEY(),
        )
    return secret
