"""Where the parts of a repository are created, by default or as the user says."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from backyfs.config import DirectoryStorageConfig, storage_config
from backyfs.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from backyfs.config import StorageConfig

_SCHEME = "s3://"

# An engine and a colon or slashes, or user:password@. A path that looks like this can be written as ./path.
_BEGINS_LIKE_A_URL = re.compile(r"(sqlite|postgres|mysql|mariadb)[a-z0-9_+]*(:|/.*@)|[^/]*:[^/]*@", re.IGNORECASE)
# s3:/bucket, S3://bucket and gs://bucket, of which no directory should be made.
_SCHEME_OF_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/")


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketPlace:
    """A bucket, or a part of one below a prefix, and how to reach it. Fields that are None have their defaults."""

    bucket: str
    prefix: str  # may be empty
    endpoint: str | None = None
    region: str | None = None
    access_key_file: str | None = None
    secret_key_file: str | None = None
    profile: str | None = None

    @property
    def url(self) -> str:
        """The bucket with the prefix."""
        return f"{_SCHEME}{self.bucket}/{self.prefix}".rstrip("/")

    def keys(self) -> dict[str, str]:
        """Return the keys of [DataBackend] for this bucket."""
        keys = {
            "type": "s3",
            "bucket_name": self.bucket,
            "prefix": self.prefix or None,
            "endpoint_url": self.endpoint,
            "region_name": self.region,
            "aws_access_key_id_file": _absolute(self.access_key_file),
            "aws_secret_access_key_file": _absolute(self.secret_key_file),
            "aws_profile": self.profile,
        }
        return {name: value for name, value in keys.items() if value is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where the parts of a repository are created. Paths are absolute."""

    config_file: str
    key_file: str
    storage: str | BucketPlace  # path of a directory, or a bucket
    database: str  # path of an SQLite file, or URL of a database that exists and is empty
    logfile: str

    @property
    def storage_name(self) -> str:
        """The storage as it is shown."""
        return self.storage if isinstance(self.storage, str) else self.storage.url

    def storage_keys(self) -> dict[str, str]:
        """Return the keys of [DataBackend] for the storage."""
        return {"type": "file", "path": self.storage} if isinstance(self.storage, str) else self.storage.keys()

    def storage_config(self) -> StorageConfig:
        """Return the storage as a configuration has it.

        Raises:
            ConfigError: a value for a bucket is not allowed.
        """
        if isinstance(self.storage, str):  # any path can be opened, also one that no configuration can contain
            return DirectoryStorageConfig(path=self.storage)
        return storage_config(self.storage.keys())

    @property
    def database_url(self) -> str:
        """The database as configurations name it."""
        return self.database if "://" in self.database else f"sqlite:///{self.database}"


def named_storage(text: str, **options: str | None) -> str | BucketPlace:
    """Return a storage given by the user: the path of a directory, or s3://BUCKET/PREFIX.

    `options` are the further fields of a `BucketPlace`.

    Raises:
        UsageError: it is another URL, or has no bucket, or there are options for a directory.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if not text.startswith(_SCHEME):
        return _named_directory(text, given)
    bucket, _, prefix = text.removeprefix(_SCHEME).partition("/")
    if not bucket:
        raise UsageError("has no bucket", subject=f"storage {text}", remedy="write s3://BUCKET or s3://BUCKET/PREFIX")
    if ("access_key_file" in given) != ("secret_key_file" in given):
        raise UsageError(
            "has only half of the credentials",
            subject=f"storage {text}",
            remedy="give the files of both keys, or neither",
        )
    return BucketPlace(bucket=bucket, prefix=prefix.strip("/"), **given)


def _named_directory(text: str, options: Mapping[str, str]) -> str:
    if url := _SCHEME_OF_URL.match(text):
        raise UsageError(  # without the rest, which can contain a password
            f"begins with {url[0]}, which is neither a directory nor s3://BUCKET/PREFIX",
            subject="the storage",
            remedy="write ./PATH for a directory with such a name",
        )
    if options:
        option = min(options).replace("_", " ")
        raise UsageError(
            f"is a directory, which has no {option}",
            subject=f"storage {text}",
            remedy="write s3://BUCKET/PREFIX for a bucket",
        )
    return os.path.abspath(text)


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
        storage=f"{data}/data",
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


def _absolute(path: str | None) -> str | None:
    return None if path is None else os.path.abspath(path)
