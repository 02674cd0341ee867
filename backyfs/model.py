"""Define the values that cross boundaries: ids, versions, blobs, and the progress protocol.

Pure data. Times are aware and in UTC, sizes are bytes. Each kind of row id has its own type, so mixing them
up is a type error.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, NewType, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

VersionId = NewType("VersionId", int)  # row of `versions`
PageId = NewType("PageId", int)        # row of `pages`
BlobId = NewType("BlobId", int)        # row of `blobs`; 1 and up
JobId = NewType("JobId", int)          # row of `jobs`
RunId = NewType("RunId", int)          # row of `runs`

VersionUid = NewType("VersionUid", str)  # UUID in its text form
BlobUid = NewType("BlobUid", str)        # up to 32 characters of [0-9A-Za-z], case-sensitive; names the object
BlockIndex = NewType("BlockIndex", int)  # number of a block within its image, from 0
PageNumber = NewType("PageNumber", int)  # number of a page within its block map, from 0

# By verb: put, get, head, list, delete. Empty: the storage takes no requests, or none was sent.
RequestCounts: TypeAlias = "Mapping[str, RequestCount]"

Buffer: TypeAlias = bytes | bytearray | memoryview  # can be written or sealed without a copy

NAME_LENGTH = 2048  # characters, as in backy2
DEFAULT_BLOCK_SIZE = 4 << 20  # 4 MiB, as in backy2
DEFAULT_COMPRESSION_LEVEL = 1  # of zstd, as in backy2


class VersionStatus(StrEnum):
    """How far a version can be trusted."""

    INCOMPLETE = "incomplete"  # its backup is running or was interrupted
    VALID = "valid"            # every block was stored, and none is known to be damaged
    INVALID = "invalid"        # complete, but a block was found damaged


class Deduplication(StrEnum):
    """Which stored blocks a backup reuses instead of storing them again."""

    OFF = "off"
    ON = "on"                      # all valid blocks
    SAME_VERSION = "same-version"  # only blocks of the encryption version that new blocks get


class JobKind(StrEnum):
    """What a job does."""

    BACKUP = "backup"
    RESTORE = "restore"
    SCRUB = "scrub"
    REPAIR = "repair"
    CLEANUP = "cleanup"
    MIGRATE_ENCRYPTION = "migrate-encryption"
    RM = "rm"
    FORGET = "forget"
    MOUNT = "mount"


class Unit(StrEnum):
    """What the progress of a job counts."""

    BYTES = "bytes"
    VERSIONS = "versions"


class RunOutcome(StrEnum):
    """How a job ended."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    INTERRUPTED = "interrupted"  # by a signal, or by the reader of its output
    KILLED = "killed"            # its process ended without recording anything; another command noticed
    LOST = "lost"                # another command had not heard from it, and took it for dead


# Clocks of hosts may differ by this much before a version counts as dated in the future.
CLOCK_TOLERANCE = timedelta(minutes=5)


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionRecord:
    """Everything about a version except its blocks, for taking it over from backy2 or an export, or exporting it."""

    uid: VersionUid
    created_at: datetime
    name: str
    snapshot_name: str
    size_bytes: int
    status: VersionStatus
    protected: bool
    expire_at: datetime | None
    tags: tuple[str, ...] = ()  # sorted


@dataclass(frozen=True, slots=True, kw_only=True)
class Version(VersionRecord):
    """One backup of one source at one time, as described by the database."""

    id: VersionId

    @property
    def tag_names(self) -> frozenset[str]:
        """The tags without surrounding white space, which earlier releases stored with some."""
        return frozenset(tag.strip() for tag in self.tags)

    @property
    def record(self) -> VersionRecord:
        """The record of the version for an export or the catalog."""
        return VersionRecord(**{field.name: getattr(self, field.name) for field in fields(VersionRecord)})

    def is_dated_in_the_future(self, now: datetime) -> bool:
        """Return whether its date is later than `now`. If so, a clock was or is wrong, and its age is unknown."""
        return self.created_at - now > CLOCK_TOLERANCE

    def has_expired(self, now: datetime) -> bool:
        """Return whether its date of expiry has passed."""
        return self.expire_at is not None and self.expire_at < now


@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    """A stored object with one sealed block, as described by the database."""

    id: BlobId
    uid: BlobUid
    fingerprint: bytes | None  # of the plain bytes; None if an adopted database had none
    size: int                  # plain bytes
    encryption_version: int
    wrapped_key: bytes | None  # data key, wrapped by the repository key; None if the version uses none
    stored_size: int | None = None  # bytes of the object; None if an adopted database had none


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedBlob:
    """A block that was written to the storage but has no row yet."""

    uid: BlobUid
    fingerprint: bytes
    size: int
    stored_size: int  # bytes of the object
    encryption_version: int
    wrapped_key: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobRecord:
    """Everything that is kept about a blob of backy2 or of an export."""

    uid: BlobUid
    fingerprint: bytes | None  # as in Blob
    size: int
    stored_size: int | None    # None: unknown
    encryption_version: int
    wrapped_key: bytes | None
    valid: bool                # False: found damaged


@dataclass(frozen=True, slots=True, kw_only=True)
class StatisticsRecord:
    """The statistics of a finished backup. Bytes are plain bytes unless stated otherwise."""

    created_at: datetime  # the end of the backup
    version_uid: VersionUid
    version_name: str
    version_size_bytes: int
    version_size_blocks: int
    bytes_read: int
    blocks_read: int
    bytes_written: int
    blocks_written: int
    bytes_stored: int | None  # bytes written, after sealing; None: unknown
    bytes_deduplicated: int
    blocks_deduplicated: int
    bytes_sparse: int
    blocks_sparse: int
    duration_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestCount:
    """The requests of one kind to a storage behind a network."""

    requests: int = 0  # every attempt, because each is paid for
    repeated: int = 0  # of these: sent because the one before had failed
    bytes: int = 0     # contents of objects that were stored or read, without attempts that failed


@dataclass(frozen=True, slots=True, kw_only=True)
class KeySlot:
    """One wrapped copy of the repository key, and what unwraps it."""

    label: str
    kdf: str             # how the unwrapping key is derived from a key or passphrase; see `backyfs.keys`
    kdf_parameters: str  # JSON; empty if the kdf has none
    key_check: bytes     # check value of the key that opens the slot
    wrapped_key: bytes   # the repository key
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class KeySource:
    """Where to read a 256-bit key from. Exactly one field is set. The repr never shows the key."""

    hex_digits: str | None = field(default=None, repr=False)
    file: str | None = None
    command: str | None = None
    credential: str | None = None  # name of a systemd credential


@dataclass(frozen=True, slots=True, kw_only=True)
class PassphraseSource:
    """Where to read a passphrase from. Exactly one field is set."""

    file: str | None = None
    command: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DamagedRange:
    """Bytes [start, stop) of an image that cannot be read, and why."""

    start: int
    stop: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSpec:
    """What a job does, as other commands see it."""

    kind: JobKind
    label: str = ""              # for people: which backup, which directory; nothing is decided by it
    names: tuple[str, ...] = ()  # names of the backups it works on
    writes_blobs: bool = False   # it may store objects that have no row yet; `cleanup --full` spares these

    @property
    def command(self) -> str:
        """The job in words: `backup disk`."""
        return f"{self.kind} {self.label}" if self.label else self.kind.value


@dataclass(frozen=True, slots=True, kw_only=True)
class JobProgress:
    """How far a step of a job has got."""

    label: str = ""
    done: int
    total: int  # 0: unknown
    unit: Unit = Unit.BYTES
    elapsed_s: float = 0.0  # since the step began


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How a job ended, as its run records it."""

    outcome: RunOutcome
    exit_status: int | None = None  # None: nobody knows
    error_class: str | None = None
    error: str | None = None        # the message


class Progress(Protocol):
    """Shows how far a long operation has got. Called from one thread."""

    def start(self, label: str, total_bytes: int) -> None:
        """Begin to show an operation over `total_bytes`."""
        ...

    def advance(self, amount_bytes: int) -> None:
        """Show that another `amount_bytes` are done."""
        ...

    def stop(self) -> None:
        """Remove the display."""
        ...


class NoProgress:
    """Progress that shows nothing."""

    def start(self, label: str, total_bytes: int) -> None:
        """Show nothing."""

    def advance(self, amount_bytes: int) -> None:
        """Show nothing."""

    def stop(self) -> None:
        """Show nothing."""
