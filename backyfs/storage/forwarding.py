"""The base of storages that wrap another storage: they override what they change."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backyfs.storage.protocol import MAX_OBJECT_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from backyfs.model import Buffer, RequestCounts
    from backyfs.storage.keys import Key
    from backyfs.storage.protocol import Storage, StoredObject, Traits


class ForwardingStorage:
    """Forwards every call to another storage. See `protocol.Storage` for the methods."""

    def __init__(self, storage: Storage) -> None:
        """Wrap a storage. Closing this one closes the wrapped one."""
        self.storage = storage

    @property
    def traits(self) -> Traits:
        """The traits of the wrapped storage."""
        return self.storage.traits

    @property
    def round_trip_s(self) -> float:
        """The time that the wrapped storage takes to answer."""
        return self.storage.round_trip_s

    @property
    def requests(self) -> RequestCounts:
        """The requests of the wrapped storage."""
        return self.storage.requests

    def put(self, key: Key, parts: Sequence[Buffer]) -> int:
        """Store an object."""
        return self.storage.put(key, parts)

    def put_new(self, key: Key, content: Buffer) -> bool:
        """Store an object unless its key exists."""
        return self.storage.put_new(key, content)

    def flush(self) -> None:
        """Make earlier calls durable."""
        self.storage.flush()

    def get(self, key: Key, *, most: int = MAX_OBJECT_BYTES) -> Buffer:
        """Return an object."""
        return self.storage.get(key, most=most)

    def get_range(self, key: Key, offset: int, length: int) -> bytes:
        """Return a part of an object."""
        return self.storage.get_range(key, offset, length)

    def get_ranges(self, key: Key, wanted: Sequence[range]) -> list[bytes]:
        """Return several ranges of bytes of an object."""
        return self.storage.get_ranges(key, wanted)

    def size(self, key: Key) -> int | None:
        """Return the size of an object, if it is known."""
        return self.storage.size(key)

    def delete(self, keys: Sequence[Key]) -> None:
        """Delete objects."""
        self.storage.delete(keys)

    def list(self, prefix: str = "") -> Iterator[StoredObject]:
        """Yield objects by the prefix of their keys."""
        return self.storage.list(prefix)

    def sweep(self, older_than_s: float) -> int:
        """Remove what killed commands left."""
        return self.storage.sweep(older_than_s)

    def distrust(self, key: Key) -> bool:
        """Note that the bytes of an object were wrong."""
        return self.storage.distrust(key)

    def close(self) -> None:
        """Close the wrapped storage."""
        self.storage.close()
