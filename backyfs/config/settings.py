"""What a configuration says, as frozen values. Fields have the names of their keys; paths are absolute.

The defaults stand here and nowhere else. Secrets are left out of every repr.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from backyfs.model import DEFAULT_COMPRESSION_LEVEL, Deduplication

if TYPE_CHECKING:
    from backyfs.model import KeySource, PassphraseSource


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficConfig:
    """How hard a storage may be worked."""

    simultaneous_writes: int | None = None  # None: no limit
    simultaneous_reads: int | None = None   # None: no limit
    bandwidth_read: int = 0   # bytes/s; 0: no limit
    bandwidth_write: int = 0  # bytes/s; 0: no limit

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
    """Blobs as objects in a bucket. The keys of s3 and minio are brought to the same fields.

    Of an access key at most one of value and file is set; with neither, the environment has to give it.
    """

    kind: Literal["s3", "minio"]
    bucket_name: str
    endpoint_url: str | None = None  # http(s)://host:port, for minio made of host and secure; None: AWS
    use_ssl: bool = True             # where endpoint_url is set, what its scheme says
    region_name: str | None = None
    signature_version: str | None = None
    addressing_style: Literal["path", "virtual", "auto"] | None = None
    disable_encoding_type: bool = False
    aws_access_key_id: str | None = field(default=None, repr=False)
    aws_access_key_id_file: str | None = None
    aws_secret_access_key: str | None = field(default=None, repr=False)
    aws_secret_access_key_file: str | None = None

    @property
    def place(self) -> str:
        """The bucket."""
        return self.bucket_name

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
    """Keeps nothing; for measurements."""


StorageConfig = DirectoryStorageConfig | ObjectStoreConfig | NullStorageConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class IoConfig:
    """How hard a source or target may be worked."""

    simultaneous_reads: int | None = None   # None: no limit
    simultaneous_writes: int | None = None  # None: no limit


@dataclass(frozen=True, slots=True, kw_only=True)
class FileIoConfig(IoConfig):
    """How files and devices are read and written."""

    read_holes: bool = False  # rather than asked for


@dataclass(frozen=True, slots=True, kw_only=True)
class RbdConfig:
    """How to reach the images of a Ceph cluster."""

    rados_name: str = "client.admin"
    cluster_name: str = "ceph"
    ceph_conffile: str | None = None
    simultaneous_reads: int = 10
    simultaneous_writes: int = 10
    new_image_features: tuple[str, ...] = ()  # RBD_FEATURE_...; (): what the cluster does by itself


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheduler:
    """How often something is to be backed up, and how many of these backups are to be kept."""

    name: str        # its section
    interval_s: int  # 1 and up
    keep: int        # 0: never due
    sla_s: int       # how late or early a backup may be


@dataclass(frozen=True, slots=True, kw_only=True)
class HooksConfig:
    """Commands of the administrator, run before, after and when something fails. See `backyfs.hooks`."""

    commands: tuple[tuple[str, str], ...] = ()  # name of the hook, as before_backup, and its command
    timeout_s: int = 60                         # of each


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """A whole configuration. Where a field may be None, None means that the files do not say."""

    files: tuple[str, ...]  # what was read, in order; a later file wins
    block_size: int | None = None  # bytes
    hash_function: str | None = None  # "blake3" or a name in hashlib
    logfile: str | None = None
    log_format: Literal["text", "json"] = "text"
    lock_dir: str | None = None
    cachedir: str | None = None
    process_name: str = "backyfs"
    disallow_rm_when_younger_than_days: int = 0
    deduplication: Deduplication = Deduplication.ON
    encryption_version: int | None = None  # of new blobs; whether there is such a version is not judged here
    compression_level: int = DEFAULT_COMPRESSION_LEVEL  # of new blobs
    key: KeySource | None = None
    passphrase: PassphraseSource | None = None  # tried where the key does not open the repository
    database_url: str = field(repr=False)  # can hold a password
    storage: StorageConfig
    io_file: FileIoConfig
    io_null: IoConfig
    io_rbd: RbdConfig
    hooks: HooksConfig = HooksConfig()
    schedulers: tuple[Scheduler, ...] = ()  # in the order of the files
