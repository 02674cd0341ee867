"""The protocol of storages: what every kind of storage does.

An object is written whole and read whole or in part. Its key says which of two kinds it is (`storage.keys`): a blob is
written once and never changes; a named object is small and can be replaced. What an object holds is not this package's
business. Errors of libraries and of the operating system become StorageError here, or one of its subclasses:

    ObjectMissingError      the object does not exist
    ObjectUnreadableError   this object cannot be read or deleted; others may be fine
    StorageFullError        there is no room
    StorageRefusedError     permissions, or a file system that is read-only
    StorageAwayError        the storage does not answer, and may do so later
    WrongStorageError       this is not the storage that was opened
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from backyfs.model import Buffer, RequestCounts
    from backyfs.storage.keys import Key


# In every encryption version, the largest block (64 MiB) takes less. We did not make an object that is larger, and
# reading it would fill the memory.
MAX_OBJECT_BYTES = 72 << 20

NO_REQUESTS: RequestCounts = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """What the rest of the program needs to know about a storage."""

    keeps: bool = True               # whether objects can be read back: not from the null storage
    own_paths: tuple[str, ...] = ()  # local paths that nothing else may write to
    requests: int | None = None      # worth having in flight at once; None: calls are as fast as the host itself
    deletions: int | None = None     # in one request, at most; None: any number, one after the other
    paid_days: int = 0               # an object is paid for this long, even if it is deleted earlier


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredObject:
    """What a storage knows of an object without reading it."""

    key: Key
    size_bytes: int | None  # None: something that cannot be read has taken the place of the object
    age_s: float            # since it was stored, by the clock of the storage; it may be negative, or -inf: unknown


class Storage(Protocol):
    """A place for objects. Any thread may call any method, at any time.

    Every method raises StorageError if the storage fails. The message names the object and the reason. If the place
    of a storage has vanished since it was opened, as after unmounting, methods raise WrongStorageError: the objects
    are not missing.
    """

    @property
    def traits(self) -> Traits:
        """Facts about the storage that do not change while it is open."""
        ...

    @property
    def round_trip_s(self) -> float:
        """How long the storage takes to answer a small request, in seconds, as measured; 0: no time, or not known."""
        ...

    @property
    def requests(self) -> RequestCounts:
        """The requests that were sent since the storage was opened, also after it was closed."""
        ...

    def put(self, key: Key, parts: Sequence[Buffer]) -> int:
        """Store an object from its parts and return its size in bytes. It replaces a named object with the same key.

        The object is durable and readable after the next `flush` that begins when `put` has returned. If the host
        crashes earlier, the object is either whole or absent; a named object may still be the previous one.
        """
        ...

    def put_new(self, key: Key, content: Buffer) -> bool:
        """Store an object unless the key exists, durably; return whether it was stored.

        Of several calls with the same key, from any host, exactly one returns True.
        """
        ...

    def flush(self) -> None:
        """Make earlier `put` calls, and deletions of named objects, durable: they survive a power failure."""
        ...

    def get(self, key: Key, *, most: int = MAX_OBJECT_BYTES) -> Buffer:
        """Return an object.

        Raises:
            ObjectMissingError: it does not exist.
            IntegrityError: it has more than `most` bytes. It was not read.
        """
        ...

    def get_range(self, key: Key, offset: int, length: int) -> bytes:
        """Return bytes [offset, offset + length) of an object: fewer, or none, if it ends earlier.

        Raises:
            ObjectMissingError: it does not exist.
        """
        ...

    def get_ranges(self, key: Key, wanted: Sequence[range]) -> list[bytes]:
        """Return several ranges of bytes of an object, each as `get_range` does, in the time of one request.

        Raises:
            ObjectMissingError: it does not exist.
        """
        ...

    def size(self, key: Key) -> int | None:
        """Return the size of an object in bytes; None: it does not exist, or finding out takes a request."""
        ...

    def delete(self, keys: Sequence[Key]) -> None:
        """Delete objects. Deleting an object that does not exist is not an error.

        Raises:
            ObjectsKeptError: some objects cannot be deleted. All others were.
        """
        ...

    def list(self, prefix: str = "") -> Iterator[StoredObject]:
        """Yield every object whose key begins with a prefix, in any order; without a prefix, all objects."""
        ...

    def sweep(self, older_than_s: float) -> int:
        """Remove temporary data that is older than this, left by killed commands; return how many there were.

        A command that is still writing such data gets a StorageError.
        """
        ...

    def distrust(self, key: Key) -> bool:
        """Note that `get` or `get_range` returned other bytes of an object than were stored.

        Return whether reading it again may return other bytes: because a copy of it was dropped, or because something
        on the way to the storage may have answered in its place.
        """
        ...

    def close(self) -> None:
        """Release what the storage holds open."""
        ...
