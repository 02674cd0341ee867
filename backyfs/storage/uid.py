"""What a blob uid may look like: it becomes part of a file's path, or the name of an object."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backyfs.errors import StorageError

if TYPE_CHECKING:
    from backyfs.model import BlobUid

_LEAST_LENGTH = 4  # its first two pairs name directories


def check_uid(uid: BlobUid) -> None:
    """Refuse what is no uid. It comes from the database, and must not be able to name a file elsewhere.

    Raises:
        StorageError: it is none.
    """
    if not (uid.isascii() and uid.isalnum() and len(uid) >= _LEAST_LENGTH):
        raise StorageError(f"blob uid {uid!r} is no uid: letters and digits were expected")
