"""StorageErrors of what the operating system says, with the remedy where there is one."""

from __future__ import annotations

import errno

from backyfs.errors import StorageError


def storage_error(path: str, error: OSError) -> StorageError:
    """Return the error for a path."""
    remedy = {
        errno.ENOSPC: "; make room and run the command again",
        errno.EROFS: "; the file system is read-only",
        errno.EACCES: "; check its owner and mode",
    }.get(error.errno or 0, "")
    return StorageError(f"storage: {path}: {error.strerror or error}{remedy}")


def raise_storage_error(error: OSError) -> None:
    """Raise it, for `os.walk`."""
    raise storage_error(str(error.filename), error) from error
