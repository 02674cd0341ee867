"""Make a repository together with its configuration and key file. Nothing that exists is overwritten.

Order: key, repository, configuration. Killed in between, the configuration is not there, so no command takes
the half for the whole; what is there is named by the next attempt.
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
from backyfs.repository import create_repository, open_repository
from backyfs.sealing import NEWEST_ENCRYPTION_VERSION

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


# An engine and a colon or slashes, or user:password@. A path that is so can be written as ./path.
_BEGINS_LIKE_A_URL = re.compile(r"(sqlite|postgres|mysql|mariadb)[a-z0-9_+]*(:|/.*@)|[^/]*:[^/]*@", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where the parts of a repository go. Absolute paths."""

    config_file: str
    key_file: str
    storage_path: str
    database: str  # path of an SQLite file, or URL of a database that exists and is empty
    logfile: str

    @property
    def database_url(self) -> str:
        """The database as a configuration names it."""
        return self.database if "://" in self.database else f"sqlite:///{self.database}"


@dataclass(frozen=True, slots=True, kw_only=True)
class InitReport:
    """What was made."""

    places: Places
    database: str          # as it may be shown: without a password
    key_check: str | None  # the key's check value as it is shown; None without encryption
    block_size: int


def default_places(environ: Mapping[str, str], *, as_root: bool, config_file: str | None = None) -> Places:
    """Return where a repository goes by default: the system's directories for root, else the user's (XDG).

    Key and log file stand beside a configuration that is named; so does the rest for a user without a home directory.

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
    """Return a database that was named on the command line as `Places` has it: a URL, or the path of an SQLite file.

    Raises:
        UsageError: it is a URL without its `://`. As a path it would be shown, and it can hold a password.
    """
    if "://" in text:
        return text
    if _BEGINS_LIKE_A_URL.match(text):
        raise UsageError("the database is a URL without ://, as in postgresql://user:password@host/name; write it so")
    return os.path.abspath(text)


def _users_directory(
    environ: Mapping[str, str], variable: str, below_home: str, *, otherwise: str | None = None
) -> str:
    base = environ.get(variable, "")
    if not os.path.isabs(base):  # the XDG specification has relative ones ignored
        home = environ.get("HOME", "")
        if not os.path.isabs(home):
            if otherwise is not None:
                return otherwise
            raise UsageError(f"HOME is not set; set it to the user's home directory, or set {variable}")
        base = os.path.join(home, below_home)
    return os.path.join(base, "backyfs")


def initialize(places: Places, *, block_size: int, encrypted: bool) -> InitReport:
    """Make key file, storage directory, database and configuration.

    Raises:
        UsageError: one of them is there already, or cannot be made.
        ConfigError: a place or the block size cannot be used.
        SchemaError, StorageError: as `backyfs.repository.create_repository`.
    """
    _refuse_existing(places, encrypted=encrypted)
    with closing(Database(places.database_url)) as database:  # not opened yet: is there such a driver?
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
        config, _ = load_config(draft, {})  # every mistake is found before anything is made
        key = keys.new_key() if encrypted else None
        if key is not None:
            write_file(places.key_file, f"{key.hex()}\n".encode())
        try:
            create_repository(config, created_at=datetime.now(UTC))
        except BackyfsError:
            if key is not None:
                os.unlink(places.key_file)  # nothing was made with it
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
    """Write a configuration for a repository that is there; `secret` are its keys that name a key or passphrase.

    Raises:
        UsageError: there is such a file, or it cannot be made.
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
                f"{what} {path} exists already and is not touched; to make another repository, name other "
                "places with -c, --data and --db (after an `init` that was killed: move it away)"
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
        raise UsageError(f"{error.filename}: {error.strerror}; name another place or become root") from error
