"""A storage that keeps nothing, for measuring the speed of everything else.

It accepts every object and holds none: reading raises ObjectMissingError, never another StorageError.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from backyfs.errors import ObjectMissingError
from backyfs.storage.keys import check_key
from backyfs.storage.protocol import MAX_OBJECT_BYTES, NO_REQUESTS, Traits

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from backyfs.model import Buffer
    from backyfs.storage.keys import Key
    from backyfs.storage.protocol import StoredObject

_log = logging.getLogger(__name__)


class NullStorage:
    """A storage of type null. It warns once, at the first blob, that nothing is kept."""

    traits = Traits(keeps=False)
    round_trip_s = 0.0
    requests = NO_REQUESTS

    def __init__(self) -> None:
        self._first = threading.Lock()  # held from the first object on

    def put(self, key: Key, parts: Sequence[Buffer]) -> int:
        """Discard an object and return its size in bytes."""
        check_key(key)
        if self._first.acquire(blocking=False):
            _log.warning("the storage is of type null and keeps nothing: what is backed up cannot be restored")
        return sum(memoryview(part).nbytes for part in parts)

    def put_new(self, key: Key, content: Buffer) -> bool:  # noqa: ARG002 - it is not kept
        """Discard an object and return True, since its key does not exist."""
        check_key(key)
        return True

    def flush(self) -> None:
        """Do nothing."""

    def get(self, key: Key, *, most: int = MAX_OBJECT_BYTES) -> bytes:  # noqa: ARG002 - there is nothing to read
        """Raise ObjectMissingError."""
        check_key(key)
        raise ObjectMissingError(key, "was not kept: a storage of type null keeps nothing")

    def get_range(self, key: Key, offset: int, length: int) -> bytes:  # noqa: ARG002 - there is nothing to read
        """Raise ObjectMissingError."""
        return self.get(key)

    def get_ranges(self, key: Key, wanted: Sequence[range]) -> list[bytes]:  # noqa: ARG002 - as above
        """Raise ObjectMissingError."""
        return [self.get(key)]

    def size(self, key: Key) -> int | None:
        """Return None: no object exists."""
        check_key(key)
        return None

    def delete(self, keys: Sequence[Key]) -> None:
        """Do nothing: no object exists."""

    def list(self, prefix: str = "") -> Iterator[StoredObject]:  # noqa: ARG002 - there is nothing to list
        """Yield nothing."""
        return iter(())

    def sweep(self, older_than_s: float) -> int:  # noqa: ARG002 - there is nothing to remove
        """Remove nothing."""
        return 0

    def distrust(self, key: Key) -> bool:  # noqa: ARG002 - there is nothing to read
        """Return False: no object exists."""
        return False

    def close(self) -> None:
        """Do nothing."""
