"""What a blob uid, or the name of an object, may look like: it becomes part of a file's path."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from backyfs.errors import ObjectUnreadableError, StorageError
from backyfs.values import BLOB_UID, obeys

if TYPE_CHECKING:
    from backyfs.model import BlobUid

NAMED = "catalog"  # all objects that have names lie below it; no blob does
_PREFIX = re.compile(rf"{NAMED}/([0-9A-Za-z-]{{1,64}}/){{0,3}}")
_NAME = re.compile(rf"{_PREFIX.pattern}[0-9A-Za-z-]{{1,64}}")


def check_uid(uid: BlobUid) -> None:
    """Check the uid of a blob, which comes from the database and must not name a file elsewhere.

    Raises:
        ObjectUnreadableError: it is malformed. Only this blob is affected.
    """
    if not is_uid(uid):
        raise ObjectUnreadableError(f"blob uid {uid!r} is malformed: it must be 5 to 32 letters and digits")


def is_uid(uid: str) -> bool:
    """Tell whether a blob can have this uid."""
    return obeys(BLOB_UID, uid)


def check_name(name: str) -> None:
    """Refuse what is no name of an object.

    Raises:
        StorageError: it is none.
    """
    if not is_name(name):
        raise StorageError(f"object {name!r} has no name that the storage knows: {NAMED}/… was expected")


def is_name(name: str) -> bool:
    """Tell whether an object can have this name."""
    return _NAME.fullmatch(name) is not None


def check_prefix(prefix: str) -> None:
    """Refuse what names of objects cannot begin with.

    Raises:
        StorageError: they cannot.
    """
    if not _PREFIX.fullmatch(prefix):
        raise StorageError(f"no objects have names that begin with {prefix!r}")
