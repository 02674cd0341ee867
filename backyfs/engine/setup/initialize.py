"""Create a repository with its configuration and key file, without overwriting anything.

The configuration comes last, after key and repository. If this is killed in between, there is no configuration, so no
command uses an incomplete repository. The next attempt reports what exists.
"""

from __future__ import annotations

import contextlib
import os
import re
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from backyfs import keys
from backyfs.config import config_text, load_config
from backyfs.engine.catalog.publish import keep_catalog
from backyfs.errors import BackyfsError, UsageError
from backyfs.files import link_durably, make_directories, require_no_device_directory, write_file
from backyfs.metadata.db.database import Database
from backyfs.remedies import Advice
from backyfs.repository import create_repository, open_repository
from backyfs.sealing import NEWEST_ENCRYPTION_VERSION

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


# An engine and a colon or slashes, or user:password@. A path that looks like this can be written as ./path.
_BEGINS_LIKE_A_URL = re.compile(r"(sqlite|postgres|mysql|mariadb)[a-z0-9_+]*(:|/.*@)|[^/]*:[^/]*@", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where the parts of a repository are created. Absolute paths."""

    config_file: str
    key_file: str
    storage_path: str
    database: str  # path of an SQLite file, or URL of a database that exists and is empty
    logfile: str

    @property
    def database_url(self) -> str:
        """The database as configurations name it."""
        return self.database if "://" in self.database else f"sqlite:///{self.database}"


@dataclass(frozen=True, slots=True, kw_only=True)
class InitReport:
    """What was created."""

    places: Places
    database: str          # without the password, so it can be shown
    key_check: str | None  # check value of the key; None without encryption
    block_size: int


def default_places(environ: Mapping[str, str], *, as_root: bool, config_file: str | None = None) -> Places:
    """Return the default places of a repository: directories of the system for root, or else of the user (XDG).

    With `config_file`, key and log file are next to it, and so is the rest if the user has no home directory.

    Raises:
        UsageError: the user has no home directory.
    """
    beside = None if config_file is None else os.path.dirname(os.path.abspath(config_file))
    if as_root:
        config, data, state = beside or "/etc/backyfs", "/var/lib/backyfs", beside or "/var/log"
    else:
        config = beside or _users_directory(environ, "XDG_CONFIG_HOME", ".config")
        data = _users_directory(environ, "XDG_DATA_HOME", ".local/share", otherwise=beside)
        state = beside or _users_directory(environ, "XDG_STATE_HOME", ".local/state")
    file = os.path.abspath(config_file) if config_file is not None else f"{config}/backyfs.cfg"
    return Places(
        config_file=file,
        key_file=f"{os.path.splitext(file)[0]}.key",
        storage_path=f"{data}/data",
        database=f"{data}/backyfs.sqlite",
        logfile=f"{state}/backyfs.log",
    )


def named_database(text: str) -> str:
    """Return a database given by the user in the form of `Places`: a URL, or the path of an SQLite file.

    Raises:
        UsageError: it is a URL without `://`. Taken as a path it would be shown, and it can contain a password.
    """
    if "://" in text:
        return text
    if _BEGINS_LIKE_A_URL.match(text):
        raise UsageError(
            "is a URL without ://", subject="the database", remedy="write it as postgresql://user:password@host/name"
        )
    return os.path.abspath(text)


def _users_directory(
    environ: Mapping[str, str], variable: str, below_home: str, *, otherwise: str | None = None
) -> str:
    base = environ.get(variable, "")
    if not os.path.isabs(base):  # the XDG specification says to ignore relative ones
        home = environ.get("HOME", "")
        if not os.path.isabs(home):
            if otherwise is not None:
                return otherwise
            raise UsageError(
                "is not set", subject="HOME", remedy=f"set it to the user's home directory, or set {variable}"
            )
        base = os.path.join(home, below_home)
    return os.path.join(base, "backyfs")


def initialize(places: Places, *, block_size: int, encrypted: bool) -> InitReport:
    """Create key file, storage directory, database and configuration.

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
        storage_path=places.storage_path,
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
        except BackyfsError:
            if key is not None:
                os.unlink(places.key_file)  # nothing uses it yet
            raise
        make_directories(os.path.dirname(places.logfile))
        link_durably(draft, places.config_file)
    with open_repository(config) as repository:
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
        storage_path=places.storage_path,
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
