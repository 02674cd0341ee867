"""Create a repository with its configuration and key file, without overwriting anything.

The configuration comes last, after key and repository. If this is killed in between, there is no configuration, so no
command uses an incomplete repository. The next attempt reports what exists.
"""

from __future__ import annotations

import contextlib
import os
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from backyfs import keys
from backyfs.config import config_text, load_config
from backyfs.engine.catalog.publish import keep_catalog
from backyfs.errors import UsageError
from backyfs.files import link_durably, make_directories, require_no_device_directory, write_file
from backyfs.metadata.db.database import Database
from backyfs.remedies import Advice
from backyfs.repository import create_repository, open_repository
from backyfs.sealing import NEWEST_ENCRYPTION_VERSION
from backyfs.work.run import never

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from backyfs.engine.setup.places import Places


@dataclass(frozen=True, slots=True, kw_only=True)
class InitReport:
    """What was created."""

    places: Places
    database: str          # without the password, so it can be shown
    key_check: str | None  # check value of the key; None without encryption
    block_size: int


def initialize(places: Places, *, block_size: int, encrypted: bool, stop: Callable[[], bool] = never) -> InitReport:
    """Create key file, storage directory, database and configuration.

    Threads that wait for the storage end when `stop` returns True. The calling thread ends by an exception of a signal.

    Raises:
        UsageError: one of them exists already, or cannot be created.
        ConfigError: a place or the block size cannot be used.
        SchemaError, StorageError: as `backyfs.repository.create_repository`.
    """
    _refuse_existing(places, encrypted=encrypted)
    with closing(Database(places.database_url)) as database:  # not opened yet, but this checks for the driver
        shown = database.place
    text = config_text(
        database_url=places.database_url,
        storage=places.storage_keys(),
        key_file=places.key_file if encrypted else None,
        encryption_version=NEWEST_ENCRYPTION_VERSION if encrypted else 0,
        block_size=block_size,
        logfile=places.logfile,
    )
    with _mapped_errors(), _draft(places.config_file, text) as draft:
        config, _ = load_config(draft, {})  # finds all mistakes before anything is created
        key = keys.new_key() if encrypted else None
        if key is not None:
            write_file(places.key_file, f"{key.hex()}\n".encode())
        try:
            create_repository(config, created_at=datetime.now(UTC))
        except BaseException:  # including a signal while a bucket does not answer
            if key is not None:
                os.unlink(places.key_file)  # nothing uses it yet
            raise
        make_directories(os.path.dirname(places.logfile))
        link_durably(draft, places.config_file)
    with open_repository(config, stop=stop) as repository:
        keep_catalog(repository)
    return InitReport(
        places=places,
        database=shown,
        key_check=keys.show_check(keys.key_check(key)) if key is not None else None,
        block_size=block_size,
    )


def write_configuration(
    places: Places, *, block_size: int, encryption_version: int | None, secret: Mapping[str, str]
) -> None:
    """Write a configuration for an existing repository; `secret` has its entries for a key or passphrase.

    Raises:
        UsageError: the file exists already, or cannot be created.
        ConfigError: a place cannot be used.
    """
    text = config_text(
        database_url=places.database_url,
        storage=places.storage_keys(),
        secret=secret,
        encryption_version=encryption_version,
        block_size=block_size,
        logfile=places.logfile,
    )
    with _mapped_errors(), _draft(places.config_file, text) as draft:
        load_config(draft, {})
        make_directories(os.path.dirname(places.logfile))
        link_durably(draft, places.config_file)


def _refuse_existing(places: Places, *, encrypted: bool) -> None:
    for what, path in (
        ("configuration", places.config_file),
        ("key file", places.key_file if encrypted else None),
    ):
        if path is not None and os.path.lexists(path):
            raise UsageError(
                "exists already and was not changed",
                subject=f"{what} {path}",
                remedy=Advice.MAKE_REPOSITORY_ELSEWHERE(),
            )


@contextlib.contextmanager
def _draft(config_file: str, text: str) -> Iterator[str]:
    draft = f"{config_file}.{os.getpid()}.new"
    require_no_device_directory(config_file)
    make_directories(os.path.dirname(config_file))
    write_file(draft, text.encode(errors="surrogateescape"))
    try:
        yield draft
    finally:
        os.unlink(draft)


@contextlib.contextmanager
def _mapped_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(
            str(error.strerror), subject=f"{error.filename}:", remedy="name another place or become root"
        ) from error
