"""StorageErrors of what the operating system says, with the remedy where there is one."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from backyfs.errors import ObjectUnreadableError, StorageError

if TYPE_CHECKING:
    from backyfs.storage.beneath import Root

_REMEDIES = {
    errno.ENOSPC: "; make room and run the command again",
    errno.EROFS: "; the file system is read-only",
    errno.EACCES: "; check its owner and mode",
}
# What is the matter with one object: file systems with checksums and disks with bad sectors cannot read it, its owner
# does not let us, or no file can have its name. What a storage says that is away is not among them.
_OF_ONE = frozenset(
    {
        errno.EIO, errno.EBADMSG, errno.EUCLEAN, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP,
        errno.ENOTDIR, errno.EISDIR, errno.ENXIO, errno.ENODEV, errno.ESPIPE, errno.EINVAL, errno.EOVERFLOW,
    }
)  # fmt: skip


def storage_error(path: str, error: OSError) -> StorageError:
    """Return the error for a path."""
    return StorageError(_message(path, error))


def object_error(root: Root, name: str, error: OSError) -> StorageError:
    """Return the error for what has a name below the directory of a storage; that of a directory ends in `/`.

    It is an ObjectUnreadableError where the storage itself may be all right.
    """
    obstacle = root.obstacle(name)
    if obstacle is not None:
        place, kind = obstacle
        return ObjectUnreadableError(f"storage: {place} is {kind}; move it away and put back what was there")
    path = f"{root.path}/{name}".rstrip("/")
    if error.errno in _OF_ONE:
        return ObjectUnreadableError(_message(path, error))
    return storage_error(path, error)


def _message(path: str, error: OSError) -> str:
    return f"storage: {path}: {error.strerror or error}{_REMEDIES.get(error.errno or 0, '')}"
