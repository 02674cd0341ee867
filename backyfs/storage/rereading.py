"""Read an object again if what came is damaged and may not be what the storage has."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from backyfs.errors import IntegrityError

if TYPE_CHECKING:
    from collections.abc import Callable

    from backyfs.storage.keys import Key
    from backyfs.storage.protocol import Storage

_Read = TypeVar("_Read")


def read_twice(storage: Storage, key: Key, read: Callable[[], _Read]) -> _Read:
    """Return what `read` makes of an object. If that is damaged and may have come from elsewhere, read again.

    Raises:
        IntegrityError: `read` raised it again, or the storage itself is known to hold these bytes.
    """
    try:
        return read()
    except IntegrityError:
        if not storage.distrust(key):
            raise
    return read()
