"""Try what a storage has to do, with a test object that does not stay."""

from __future__ import annotations

import secrets
from contextlib import suppress
from typing import TYPE_CHECKING

from backyfs.errors import (
    BackyfsError,
    InterruptedByUser,
    ObjectMissingError,
    StorageError,
    StorageRefusedError,
)
from backyfs.model import BlobUid

if TYPE_CHECKING:
    from collections.abc import Callable

    from backyfs.storage.protocol import Storage

_TEST_BYTES = 64 << 10


def try_test_object(storage: Storage, place: str) -> StorageRefusedError | None:
    """Write, read, list and delete a test object; return the error if deletion is not permitted.

    Raises:
        StorageError: anything else fails.
    """
    uid, stored = BlobUid(secrets.token_hex(16)), secrets.token_bytes(_TEST_BYTES)
    refusal = None
    try:
        storage.put(uid, [stored])
        storage.flush()
        read, part = storage.get(uid), storage.get_range(uid, 1, _TEST_BYTES // 2)
        is_listed = any(found.key == uid for found in storage.list(uid))
    except BackyfsError as error:
        if not isinstance(error, InterruptedByUser):  # the user does not want to wait
            with suppress(BackyfsError):
                storage.delete([uid])
        raise
    try:
        storage.delete([uid])
    except StorageRefusedError as error:
        refusal = error
    if read != stored or part != stored[1 : 1 + len(part)] or len(part) != _TEST_BYTES // 2:
        raise StorageError("returned other bytes of a test object than were stored", subject=place)
    if not is_listed:
        raise StorageError("does not list a test object that it has", subject=place)
    if refusal is None:
        _check_gone(storage.get, uid)
    return refusal


def _check_gone(get: Callable[[BlobUid], object], uid: BlobUid) -> None:
    try:
        get(uid)
    except ObjectMissingError:
        return
    raise StorageError(
        "still exists after it was deleted", subject=f"test object {uid}", remedy="delete it by hand"
    )
