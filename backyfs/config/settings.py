"""Hold the values of a configuration. Fields are named like their keys; paths are absolute.

All defaults are set here and nowhere else. No repr shows a secret.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from backyfs.model import DEFAULT_COMPRESSION_LEVEL, Deduplication

if TYPE_CHECKING:
    from backyfs.model import KeySource, PassphraseSource


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficConfig:
    """Limits for the load on a storage, and the disk cache that takes load off it."""

    simultaneous_writes: int | None = None  # None: no limit
    simultaneous_reads: int | None = None   # None: no limit
    bandwidth_read: int = 0   # bytes/s; 0: no limit
    bandwidth_write: int = 0  # bytes/s; 0: no limit
    cache: str | None = None  # directory; None: no cache
    cache_size: int = 10 << 30  # bytes

    @property
    def local_path(self) -> str | None:
        """The directory of the storage on this host, if it has one."""
        return None

    @property
    def place(self) -> str:
        """Where the storage is, for people."""
        return self.local_path or "null"

    @property
    def secret_files(self) -> tuple[str, ...]:
        """Files with keys to the storage."""
        return ()

    @property
    def has_secrets(self) -> bool:
        """Whether the configuration itself contains a key to the storage."""
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectoryStorageConfig(TrafficConfig):
    """Blobs as files below a directory."""

    path: str

    @property
    def local_path(self) -> str:
        """The directory."""
        return self.path


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectStoreConfig(TrafficConfig):
    """Blobs as objects in a bucket. The keys of s3 and minio share these fields.

    At most one of value and file is set for each part of the access key; without both, the environment must contain it.
    """

    kind: Literal["s3", "minio"]
    bucket_name: str
    endpoint_url: str | None = None  # http(s)://host:port, for minio built from host and secure; None: AWS
    use_ssl: bool = True             # if endpoint_url is set, taken from its scheme
    region_name: str | None = None
    signature_version: str | None = None
    addressing_style: Literal["path", "virtual", "auto"] | None = None
    disable_encoding_type: bool = False
    aws_access_key_id: str | None = field(default=None, repr=False)
    aws_access_key_id_file: str | None = None
    aws_secret_access_key: str | None = field(default=None, repr=False)
    aws_secret_access_key_file: str | None = None
    aws_profile: str | None = None  # in the files of the AWS command line
    prefix: str = ""                # of the keys of all objects, without slashes at its ends
    ca_file: str | None = None
    proxy_url: str | None = field(default=None, repr=False)  # can contain a password
    storage_class: str | None = None       # of new objects
    unsigned_payload: bool | None = None   # None: if TLS protects the bytes
    minimum_storage_days: int = 0          # objects that are younger are not deleted, because they are paid for anyway
    request_timeout: int = 30  # seconds for a request without its bytes
    retry_time: int = 300      # seconds to go on trying while the storage does not answer

    @property
    def place(self) -> str:
        """The bucket, with the prefix."""
        return f"s3://{self.bucket_name}/{self.prefix}".rstrip("/")

    @property
    def secret_files(self) -> tuple[str, ...]:
        """The file with the secret key."""
        return () if self.aws_secret_access_key_file is None else (self.aws_secret_access_key_file,)

    @property
    def has_secrets(self) -> bool:
        """Whether the configuration contains the secret key."""
        return self.aws_secret_access_key is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class NullStorageConfig(TrafficConfig):
    """A storage that keeps nothing; for measurements."""


StorageConfig = DirectoryStorageConfig | ObjectStoreConfig | NullStorageConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class IoConfig:
    """Limits for the load on a source or target."""

    simultaneous_reads: int | None = None   # None: no limit
    simultaneous_writes: int | None = None  # None: no limit


@dataclass(frozen=True, slots=True, kw_only=True)
class FileIoConfig(IoConfig):
    """How files and devices are read and written."""

    read_holes: bool = False  # read holes instead of asking the file system where they are


@dataclass(frozen=True, slots=True, kw_only=True)
class RbdConfig:
    """How to reach the images of a Ceph cluster."""

    rados_name: str = "client.admin"
    cluster_name: str = "ceph"
    ceph_conffile: str | None = None
    simultaneous_reads: int = 10
    simultaneous_writes: int = 10
    new_image_features: tuple[str, ...] = ()  # RBD_FEATURE_...; (): the defaults of the cluster


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheduler:
    """How often to back up a source, and how many of these backups to keep."""

    name: str        # of its section
    interval_s: int  # 1 and up
    keep: int        # 0: never due
    sla_s: int       # how early or late a backup may be


@dataclass(frozen=True, slots=True, kw_only=True)
class HooksConfig:
    """Commands of the administrator, run before and after commands and when one fails. See `backyfs.hooks`."""

    commands: tuple[tuple[str, str], ...] = ()  # name of the hook, such as before_backup, and its command
    timeout_s: int = 60                         # for each hook


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """A whole configuration. None in a field means that the files do not set it."""

    files: tuple[str, ...]  # the files that were read, in order; later files take precedence
    block_size: int | None = None  # bytes
    hash_function: str | None = None  # "blake3" or a name in hashlib
    logfile: str | None = None
    log_format: Literal["text", "json"] = "text"
    lock_dir: str | None = None
    cachedir: str | None = None
    process_name: str = "backyfs"
    disallow_rm_when_younger_than_days: int = 0
    deduplication: Deduplication = Deduplication.ON
    encryption_version: int | None = None  # of new blobs; `sealing.check_configured` checks that it exists
    compression_level: int = DEFAULT_COMPRESSION_LEVEL  # of new blobs
    key: KeySource | None = None
    passphrase: PassphraseSource | None = None  # tried if the key does not open the repository
    database_url: str = field(repr=False)  # can contain a password
    storage: StorageConfig
    io_file: FileIoConfig
    io_null: IoConfig
    io_rbd: RbdConfig
    hooks: HooksConfig = HooksConfig()
    schedulers: tuple[Scheduler, ...] = ()  # in the order of the files
