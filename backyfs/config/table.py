"""List every key of the configuration with its section, kind and meaning.

The loader, the warnings about unknown keys, the comments of a new file and a test of the manual all use this table.
Defaults are those of the fields in settings.py, which are named like the keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from backyfs.config import kind as k

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)  # not kw_only: a row of a table is read by column
class Key:
    """One key."""

    name: str
    kind: k.ValueKind
    meaning: str
    required: bool = False


_TRAFFIC = (
    Key("simultaneous_writes", k.COUNT, "Blobs written at the same time, at most."),
    Key("simultaneous_reads", k.COUNT, "Blobs read at the same time, at most."),
    Key("bandwidth_read", k.NUMBER, "Bytes read per second, at most; 0 means no limit."),
    Key("bandwidth_write", k.NUMBER, "Bytes written per second, at most; 0 means no limit."),
)

_CACHE = (
    Key("cache", k.OPTIONAL_PATH, "A directory with copies of objects that mounts have read."),
    Key("cache_size", k.COUNT, "The size of the cache in bytes, at most."),
)

_OBJECT_STORE = (
    *_CACHE,
    Key("aws_access_key_id", k.SECRET_TEXT, "The access key."),
    Key("aws_access_key_id_file", k.OPTIONAL_PATH, "A file that contains the access key."),
    Key("aws_secret_access_key", k.SECRET_TEXT, "The secret key."),
    Key("aws_secret_access_key_file", k.OPTIONAL_PATH, "A file that contains the secret key."),
    Key("region_name", k.OPTIONAL_TEXT, "The region of the bucket."),
    Key("signature_version", k.OPTIONAL_TEXT, "The version of request signatures."),
    Key("bucket_name", k.BUCKET, "The bucket that holds the blobs.", required=True),
    Key("addressing_style", k.ADDRESSING_STYLE, "Where requests name the bucket: in the path or the host."),
    Key("disable_encoding_type", k.OPTIONAL_BOOLEAN, "Of backy2; not used by backyfs."),
    Key("aws_profile", k.OPTIONAL_TEXT, "A profile in ~/.aws/credentials that contains both keys."),
    Key("prefix", k.OBJECT_PREFIX, "What the names of all objects begin with, for several repositories in a bucket."),
    Key("ca_file", k.OPTIONAL_PATH, "Certificates to trust in addition to those of the system, as PEM."),
    Key("proxy_url", k.PROXY_URL, "The HTTP proxy; default: as the environment says."),
    Key("storage_class", k.OPTIONAL_TEXT, "The storage class of new objects."),
    Key("unsigned_payload", k.OPTIONAL_BOOLEAN, "Sign requests without their bytes; default: yes with TLS."),
    Key("minimum_storage_days", k.DAYS, "Days for which each object is paid for; it is not deleted earlier."),
    Key("request_timeout", k.INTERVAL, "The time for a request, in addition to that for its bytes."),
    Key("retry_time", k.DURATION, "How long to go on trying while the storage does not answer."),
)

_IO = (
    Key("simultaneous_reads", k.COUNT, "Reads of a backup at the same time, at most."),
    Key("simultaneous_writes", k.COUNT, "Writes of a restore at the same time, at most."),
)

STORAGE_TYPE = Key(
    "type", k.STORAGE_TYPE, "The kind of storage: file (a directory), s3, minio, null (keeps nothing).", required=True
)

# Keys of [DataBackend] in addition to its type, by that type.
STORAGE_KEYS: Mapping[str, tuple[Key, ...]] = {
    "file": (Key("path", k.PATH, "The directory that holds the blobs.", required=True), *_CACHE, *_TRAFFIC),
    "s3": (
        *_OBJECT_STORE,
        Key("endpoint_url", k.ENDPOINT_URL, "The object store; default: AWS."),
        Key("use_ssl", k.OPTIONAL_BOOLEAN, "Use TLS. If endpoint_url is set, its http or https decides."),
        *_TRAFFIC,
    ),
    "minio": (
        *_OBJECT_STORE,
        Key("host", k.HOST, "The object store, optionally with a port.", required=True),
        Key("secure", k.OPTIONAL_BOOLEAN, "Use TLS."),
        *_TRAFFIC,
    ),
    "null": _TRAFFIC,
}

SCHEDULER_KEYS = (
    Key("interval", k.INTERVAL, "The time from one backup to the next.", required=True),
    Key("keep", k.NUMBER, "How many backups are kept; 0 switches the scheduler off.", required=True),
    Key("sla", k.DURATION, "How much earlier or later than the interval a backup may be.", required=True),
)

# Commands with hooks: [hooks] has a before_ and an after_ key for each of them.
HOOKED = ("backup", "restore", "scrub", "rm", "forget", "mount")

_HOOKS = (
    Key("timeout", k.INTERVAL, "The time that each hook may take. After that it is killed and counts as failed."),
    *(Key(f"before_{command}", k.OPTIONAL_TEXT, f"Run before `{command}`, which is cancelled if this fails.")
      for command in HOOKED),
    *(Key(f"after_{command}", k.OPTIONAL_TEXT, f"Run after `{command}`, whether it failed or not.")
      for command in HOOKED),
    Key("on_failure", k.OPTIONAL_TEXT, "Run when one of these commands failed or was interrupted."),
)  # fmt: skip

SECTION_KEYS: Mapping[str, tuple[Key, ...]] = {
    "DEFAULTS": (
        Key("logfile", k.PATH, "The log file."),
        Key(
            "block_size",
            k.BLOCK_SIZE,
            "Bytes per block of a new repository. An existing repository keeps its block size, and a different value "
            "here is an error.",
        ),
        Key(
            "hash_function",
            k.HASH_FUNCTION,
            "The hash function for the fingerprints of blocks in a new repository. An existing repository keeps its "
            "hash function, and a different value here is an error.",
        ),
        Key("log_format", k.LOG_FORMAT, "The format of the log: text, or json (one object per line)."),
        Key("lock_dir", k.PATH, "The directory of backy2's lock files."),
        Key("cachedir", k.PATH, "The directory of backy2's temporary data; not used by backyfs."),
        Key("process_name", k.TEXT, "The name of the program in the list of processes."),
        Key(
            "disallow_rm_when_younger_than_days",
            k.NUMBER,
            "A version younger than this many days is removed only by force.",
        ),
        Key("deduplication", k.DEDUPLICATION, "Store equal blocks once."),
        Key(
            "encryption_version",
            k.NUMBER,
            "How new blocks are stored: 0 is plain, 1 is compressed and encrypted as by backy2, 2 is the same in "
            "segments, of which a mount reads only those it needs. Existing blocks are not changed and stay readable.",
        ),
        Key(
            "compression_level",
            k.COMPRESSION_LEVEL,
            "The zstd level for new encrypted blocks, 1 to 19.",
        ),
        Key(
            "encryption_key",
            k.HEX_KEY,
            "The key itself. Keep a copy elsewhere: without the key, the backups are lost.",
        ),
        Key(
            "encryption_key_file",
            k.PATH,
            "A file that contains the key, 64 hex digits. Keep a copy elsewhere: without the key, the backups are "
            "lost.",
        ),
        Key("encryption_key_command", k.TEXT, "A command that prints the key, 64 hex digits."),
        Key(
            "encryption_key_credential",
            k.TEXT,
            "The name of a systemd credential that contains the key, 64 hex digits.",
        ),
        Key(
            "encryption_passphrase_file",
            k.PATH,
            "A file that contains the passphrase of a key slot.",
        ),
        Key("encryption_passphrase_command", k.TEXT, "A command that prints the passphrase of a key slot."),
    ),
    "MetaBackend": (
        Key("type", k.META_TYPE, "Where the metadata is stored; only sql is supported."),
        Key("engine", k.DATABASE_URL, "The URL of the database with the metadata.", required=True),
    ),
    "hooks": _HOOKS,
    "io_file": (
        *_IO,
        Key(
            "read_holes",
            k.OPTIONAL_BOOLEAN,
            "Read the holes of files too, instead of asking the file system where they are.",
        ),
    ),
    "io_null": _IO,
    "io_rbd": (
        Key("rados_name", k.TEXT, "The user of the Ceph cluster."),
        Key("cluster_name", k.TEXT, "The name of the Ceph cluster."),
        Key("ceph_conffile", k.OPTIONAL_PATH, "The ceph.conf that names hosts and keyring."),
        *_IO,
        Key("new_image_features", k.FEATURES, "The features of images that a restore creates, separated by spaces."),
    ),
}
