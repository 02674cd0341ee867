"""Check the bucket of a new repository. It is never created: that is the owner's decision, with region and policies."""

from __future__ import annotations

from contextlib import closing, suppress
from typing import TYPE_CHECKING

from backyfs.errors import StorageError, StorageRefusedError
from backyfs.storage.bucket.blobnames import is_name_of_blob
from backyfs.storage.bucket.connection import open_bucket
from backyfs.storage.bucket.storage import CLOCK
from backyfs.storage.keys import NAMED

if TYPE_CHECKING:
    from backyfs.config import ObjectStoreConfig


def check_new_bucket(config: ObjectStoreConfig, *, may_hold_blobs: bool) -> bool:
    """Check that a bucket, below the prefix, holds no objects, and that objects can be stored there.

    With `may_hold_blobs` it may already hold blobs; return whether it does.

    Raises:
        StorageError: it holds something else, or cannot be used.
    """
    holds_blobs = False
    with closing(open_bucket(config, lambda: False)) as storage:
        if next(storage.list(f"{NAMED}/"), None) is not None:
            raise StorageError(
                "holds a repository",
                subject=f"storage {config.place}",
                remedy="recover it with a configuration for it, or name another bucket or prefix",
            )
        for path, _, _ in storage.entries(""):
            if path == CLOCK:  # was left by earlier attempts, with credentials that cannot delete
                continue
            if not (may_hold_blobs and is_name_of_blob(path)):
                raise StorageError(
                    f"is not empty: it holds {path}",
                    subject=f"storage {config.place}",
                    remedy="name another bucket or prefix",
                )
            holds_blobs = True
        storage.put(CLOCK, [b""])
        with suppress(StorageRefusedError):  # a host that only makes backups need not delete
            storage.delete([CLOCK])
    return holds_blobs
