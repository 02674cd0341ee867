"""The values that cross boundaries: ids, versions, blobs, and the protocol of progress.

Pure data. Times are aware and in UTC, sizes are bytes. Ids of rows are types of their own, so that
mixing them up is a type error.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, NewType, Protocol, TypeAlias

if TYPE_CHECKING:
    from datetime import datetime

VersionId = NewType("VersionId", int)  # row of `versions`
PageId = NewType("PageId", int)        # row of `pages`
BlobId = NewType("BlobId", int)        # row of `blobs`; 1 and up
JobId = NewType("JobId", int)          # row of `jobs`

VersionUid = NewType("VersionUid", str)  # UUID in its text form
BlobUid = NewType("BlobUid", str)        # up to 32 characters of [0-9A-Za-z], case-sensitive; names the object
BlockIndex = NewType("BlockIndex", int)  # number of a block within its image, from 0
PageNumber = NewType("PageNumber", int)  # number of a page within its block map, from 0

Buffer: TypeAlias = bytes | bytearray | memoryview  # what may be written or sealed without a copy

NAME_LENGTH = 2048  # characters of a name, as backy2
DEFAULT_BLOCK_SIZE = 4 << 20  # 4 MiB, as backy2
DEFAULT_COMPRESSION_LEVEL = 1  # of zstd, as backy2


class VersionStatus(StrEnum):
    """How far a version can be trusted."""

    INCOMPLETE = "incomplete"  # its backup runs or was interrupted
    VALID = "valid"            # every block was stored, none is known to be damaged
    INVALID = "invalid"        # complete, and a block of it was found damaged


class Deduplication(StrEnum):
    """With which stored blocks a backup does with, instead of storing them anew."""

    OFF = "off"
    ON = "on"                      # all that are valid
    SAME_VERSION = "same-version"  # those of the encryption version that new ones get


# The clocks of hosts may differ by this much before a version counts as one of the future.
CLOCK_TOLERANCE = timedelta(minutes=5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """One backup of one source at one time."""

    id: VersionId
    uid: VersionUid
    created_at: datetime
    name: str
    snapshot_name: str
    size_bytes: int
    status: VersionStatus
    protected: bool
    expire_at: datetime | None
    tags: tuple[str, ...] = ()  # sorted

    @property
    def tag_names(self) -> frozenset[str]:
        """The tags as people and schedules look for them: earlier releases stored white space around some."""
        return frozenset(tag.strip() for tag in self.tags)

    @property
    def record(self) -> VersionRecord:
        """What an export or the catalog holds of it."""
        return VersionRecord(
            uid=self.uid,
            created_at=self.created_at,
            name=self.name,
            snapshot_name=self.snapshot_name,
            size_bytes=self.size_bytes,
            status=self.status,
            protected=self.protected,
            expire_at=self.expire_at,
            tags=self.tags,
        )

    def is_of_the_future(self, now: datetime) -> bool:
        """Tell whether it is dated later than `now`: a clock was or is wrong. Its date says nothing about its age."""
        return self.created_at - now > CLOCK_TOLERANCE


@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    """A stored object that holds one sealed block, as the database knows it."""

    id: BlobId
    uid: BlobUid
    fingerprint: bytes | None  # of the plain bytes; None where an adopted database has none
    size: int                  # plain bytes
    encryption_version: int
    wrapped_key: bytes | None  # data key, wrapped by the repository key; None where the version uses none


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedBlob:
    """A block that was put into the storage and has no row yet."""

    uid: BlobUid
    fingerprint: bytes
    size: int
    stored_size: int  # bytes of the object
    encryption_version: int
    wrapped_key: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobRecord:
    """All that is to be kept of a blob, as backy2 or an export names it."""

    uid: BlobUid
    fingerprint: bytes | None  # as that of a Blob
    size: int
    stored_size: int | None    # None where nobody knows
    encryption_version: int
    wrapped_key: bytes | None
    valid: bool                # False: found damaged


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionRecord:
    """A version that is to be taken over, or was written to an export: all of it but its blocks."""

    uid: VersionUid
    created_at: datetime
    name: str
    snapshot_name: str
    size_bytes: int
    status: VersionStatus
    protected: bool
    expire_at: datetime | None
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StatisticsRecord:
    """What a backup did, as it is kept after its end. Bytes are plain bytes but where stated."""

    created_at: datetime  # the end of the backup
    version_uid: VersionUid
    version_name: str
    version_size_bytes: int
    version_size_blocks: int
    bytes_read: int
    blocks_read: int
    bytes_written: int
    blocks_written: int
    bytes_stored: int | None  # what was written, after sealing; None: not known
    bytes_deduplicated: int
    blocks_deduplicated: int
    bytes_sparse: int
    blocks_sparse: int
    duration_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class KeySlot:
    """One way to the repository key."""

    label: str
    kdf: str             # how a key or passphrase becomes the key that unwraps; see `backyfs.keys`
    kdf_parameters: str  # JSON; empty where the kdf has none
    key_check: bytes     # check value of the key that opens the slot
    wrapped_key: bytes   # the repository key
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class KeySource:
    """Where a 256-bit key is to be read from; exactly one field is set. Never shown whole."""

    hex_digits: str | None = field(default=None, repr=False)
    file: str | None = None
    command: str | None = None
    credential: str | None = None  # name of a credential of systemd


@dataclass(frozen=True, slots=True, kw_only=True)
class PassphraseSource:
    """Where a passphrase is to be read from; exactly one field is set."""

    file: str | None = None
    command: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DamagedRange:
    """Bytes of an image that cannot be had: [start, stop), and why."""

    start: int
    stop: int
    reason: str


class Progress(Protocol):
    """Told how a long operation gets on. Called from one thread."""

    def start(self, label: str, total_bytes: int) -> None:
        """Begin to show an operation over so many bytes."""
        ...

    def advance(self, amount_bytes: int) -> None:
        """So many more bytes are done."""
        ...

    def stop(self) -> None:
        """Take the display away."""
        ...


class NoProgress:
    """Progress that shows nothing."""

    def start(self, label: str, total_bytes: int) -> None:
        """Show nothing."""

    def advance(self, amount_bytes: int) -> None:
        """Show nothing."""

    def stop(self) -> None:
        """Show nothing."""
