"""Keys of objects: one key space with two kinds of keys, which differ by the slash.

    blob            its uid, 5 to 32 letters and digits
    named object    `catalog/` and up to four more parts

A key can become part of a file's path, so it is checked before it is used.
"""

from __future__ import annotations

import re
from typing import NewType, TypeGuard

from backyfs.errors import ObjectUnreadableError
from backyfs.model import BlobUid
from backyfs.values import BLOB_UID, obeys

ObjectName = NewType("ObjectName", str)
Key = BlobUid | ObjectName

NAMED = "catalog"  # the first part of the names of all named objects
MARKER_NAME = ObjectName(f"{NAMED}/marker")  # names the repository that owns the storage, see `storage.marker`

_NAME = re.compile(rf"{NAMED}(/[0-9A-Za-z-]{{1,64}}){{1,4}}")


def is_blob(key: Key) -> TypeGuard[BlobUid]:
    """Return whether a key is that of a blob."""
    return "/" not in key


def is_uid(text: str) -> bool:
    """Return whether a blob can have this uid."""
    return obeys(BLOB_UID, text)


def is_name(text: str) -> bool:
    """Return whether a named object can have this name."""
    return _NAME.fullmatch(text) is not None


def check_key(key: Key) -> None:
    """Check a key, which may come from the database and must not name a file elsewhere.

    Raises:
        ObjectUnreadableError: it is malformed. Only this object is affected.
    """
    if "/" not in key:
        if not obeys(BLOB_UID, key):
            raise ObjectUnreadableError(
                "is malformed: it must be 5 to 32 letters and digits", subject=f"blob uid {key!r}"
            )
    elif not is_name(key):
        raise ObjectUnreadableError(
            f"is malformed: it must be {NAMED}/… with letters and digits", subject=f"object name {key!r}"
        )
