"""A storage that keeps nothing, for measuring how fast the rest is.

It takes every object. None is ever there: to read one is an error, and no error of the storage's.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from backyfs.errors import BlobMissingError, ObjectMissingError
from backyfs.storage.uid import check_name, check_prefix, check_uid

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from backyfs.model import BlobUid, Buffer
    from backyfs.storage import StoredObject

_log = logging.getLogger(__name__)


class NullStorage:
    """A storage of type null. It says once, at the first object, that nothing is kept."""

    keeps = False

    def __init__(self) -> None:
        self._first = threading.Lock()  # held from the first object on

    def put(self, uid: BlobUid, parts: Sequence[Buffer]) -> int:
        """Forget an object and return its size in bytes."""
        check_uid(uid)
        if self._first.acquire(blocking=False):
            _log.warning("the storage is of type null and keeps nothing: what is backed up cannot be restored")
        return sum(memoryview(part).nbytes for part in parts)

    def flush(self) -> None:
        """Do nothing."""

    def get(self, uid: BlobUid) -> bytes:
        """Raise BlobMissingError."""
        check_uid(uid)
        raise BlobMissingError(uid, "was not kept: a storage of type null keeps nothing")

    def get_range(self, uid: BlobUid, offset: int, length: int) -> bytes:  # noqa: ARG002 - nothing is there
        """Raise BlobMissingError."""
        return self.get(uid)

    def delete(self, uid: BlobUid) -> None:
        """Do nothing: it is gone already."""
        check_uid(uid)

    def size(self, uid: BlobUid) -> int | None:
        """Return None."""
        check_uid(uid)
        return None

    def list_blobs(self) -> Iterator[BlobUid]:
        """Yield nothing."""
        return iter(())

    def list_stored(self, prefix: str = "") -> Iterator[StoredObject]:  # noqa: ARG002 - nothing is there
        """Yield nothing."""
        return iter(())

    def remove_leftovers(self, older_than_s: float) -> int:  # noqa: ARG002 - nothing is there
        """Remove nothing."""
        return 0

    def put_object(self, name: str, content: bytes) -> None:  # noqa: ARG002 - it is not kept
        """Forget an object."""
        check_name(name)

    def put_new_object(self, name: str, content: bytes) -> bool:  # noqa: ARG002 - it is not kept
        """Forget an object: none has its name."""
        check_name(name)
        return True

    def get_object(self, name: str, max_bytes: int) -> bytes:  # noqa: ARG002 - nothing is there
        """Raise ObjectMissingError."""
        check_name(name)
        raise ObjectMissingError(name, "was not kept: a storage of type null keeps nothing")

    def delete_object(self, name: str) -> None:
        """Do nothing: it is gone already."""
        check_name(name)

    def list_objects(self, prefix: str) -> Iterator[str]:
        """Yield nothing."""
        check_prefix(prefix)
        return iter(())

    def close(self) -> None:
        """Do nothing."""

    def paths(self) -> Sequence[str]:
        """Return no paths."""
        return ()
