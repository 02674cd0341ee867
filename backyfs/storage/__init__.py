"""The storage: where objects lie. What every kind of storage does, and which kinds there are.

Objects are named by blob uids, written whole, never overwritten, and read whole or in part. Beside them lie a few
that have names, below `catalog/`: small ones, which others take the place of. Foreign errors become StorageError
here; what an object holds is not this package's business.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from backyfs.model import BlobUid, Buffer


# A block of the largest size, 64 MiB, takes less in every encryption version. What is larger was not made by us, and is
# not read: it would fill the memory.
MAX_OBJECT_BYTES = 72 << 20

MARKER_NAME = "catalog/marker"  # says which repository the storage belongs to, see `storage.marker`


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredObject:
    """What a storage knows of an object without reading it."""

    uid: BlobUid
    size_bytes: int
    age_s: float  # since it came to lie here, by the clock of the storage; it may be less than 0


class Storage(Protocol):
    """A place for objects. All methods may be called from several threads at once.

    Every method raises StorageError where the storage fails, with the reason and the object's name. A storage whose
    place has vanished since it was opened, as an unmounted directory has, raises WrongStorageError: its objects are
    not missing.
    """

    @property
    def keeps(self) -> bool:
        """Whether what is put can be read back: it cannot in the null storage."""
        ...

    def put(self, uid: BlobUid, parts: Sequence[Buffer]) -> int:
        """Store an object from its parts and return its size in bytes.

        After the next `flush` that begins when `put` has returned, it is durable and can be read; before
        that, a crash leaves it there whole or not at all.
        """
        ...

    def flush(self) -> None:
        """Make durable what was put before, and the deletion of objects that have names: both survive a power loss."""
        ...

    def get(self, uid: BlobUid) -> bytes:
        """Return an object.

        Raises:
            BlobMissingError: there is none.
            IntegrityError: it has more than MAX_OBJECT_BYTES; the message does not name it.
        """
        ...

    def get_range(self, uid: BlobUid, offset: int, length: int) -> bytes:
        """Return bytes [offset, offset + length) of an object; fewer, or none, where it ends before.

        Raises:
            BlobMissingError: there is none.
        """
        ...

    def delete(self, uid: BlobUid) -> None:
        """Delete an object; one that is gone already is fine."""
        ...

    def size(self, uid: BlobUid) -> int | None:
        """Return the size of an object in bytes; None where there is none, or it takes a request to find out."""
        ...

    def list_blobs(self) -> Iterator[BlobUid]:
        """Yield the uid of every object, in no order; those that have names are none of them."""
        ...

    def list_stored(self, prefix: str = "") -> Iterator[StoredObject]:
        """Yield every object whose uid begins with a prefix, and that `get` would find, in no order."""
        ...

    def remove_leftovers(self, older_than_s: float) -> int:
        """Remove what killed commands have left under temporary names, so long ago; return how many there were.

        A command that still works on one gets a StorageError.
        """
        ...

    def put_object(self, name: str, content: bytes) -> None:
        """Store an object that has a name, in the place of the one that had it.

        After the next `flush` that begins when this has returned, it is durable and can be read; before that, a crash
        leaves the one that was there or this one, whole.
        """
        ...

    def put_new_object(self, name: str, content: bytes) -> bool:
        """Store an object that has a name unless one has it already; return whether it was stored.

        When this returns True the object is durable. Of several calls at once, from any hosts, one returns True.
        """
        ...

    def get_object(self, name: str, max_bytes: int) -> bytes:
        """Return an object that has a name.

        Raises:
            ObjectMissingError: there is none.
            IntegrityError: it is larger than `max_bytes`; it was not read.
        """
        ...

    def delete_object(self, name: str) -> None:
        """Delete an object that has a name; one that is gone already is fine."""
        ...

    def list_objects(self, prefix: str) -> Iterator[str]:
        """Yield the names of all objects below a prefix that ends in `/`, in no order."""
        ...

    def close(self) -> None:
        """Let go of what the storage holds open."""
        ...

    def paths(self) -> Sequence[str]:
        """Return the local paths that belong to the storage, which nothing else may write to."""
        ...
