"""From errors of the operating system to StorageErrors, with a remedy if there is one."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from backyfs.errors import (
    ObjectUnreadableError,
    StorageAwayError,
    StorageError,
    StorageFullError,
    StorageRefusedError,
)

if TYPE_CHECKING:
    from backyfs.storage.beneath import Root

_KINDS = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), StorageFullError),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), StorageRefusedError),
    **dict.fromkeys(  # a network file system whose server does not answer, or a FUSE mount whose process is gone
        (errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ECONNABORTED),
        StorageAwayError,
    ),
}
_REMEDIES = {
    errno.ENOSPC: "make room and run the command again",
    errno.EDQUOT: "make room and run the command again",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "check its owner and mode",
}
# Errors of a single object: a file system with checksums or a disk with bad sectors cannot read it, its owner does not
# permit it, or no file can have its name. Errors of a storage that is away are not among them.
_OF_ONE = frozenset(
    {
        errno.EIO, errno.EBADMSG, errno.EUCLEAN, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP,
        errno.ENOTDIR, errno.EISDIR, errno.ENXIO, errno.ENODEV, errno.ESPIPE, errno.EINVAL, errno.EOVERFLOW,
    }
)  # fmt: skip


def storage_error(path: str, error: OSError) -> StorageError:
    """Return the error for a path."""
    return _error(_KINDS.get(error.errno or 0, StorageError), path, error)


def object_error(root: Root, name: str, error: OSError) -> StorageError:
    """Return the error for a file, or a directory with a name ending in `/`, below the directory of a storage.

    It is an ObjectUnreadableError if the storage itself may be fine.
    """
    obstacle = root.obstacle(name)
    if obstacle is not None:
        place, kind = obstacle
        return ObjectUnreadableError(
            f"is {kind}", subject=f"storage: {place}", remedy="move it away and put back what was there"
        )
    path = f"{root.path}/{name}".rstrip("/")
    if error.errno in _OF_ONE:
        return _error(ObjectUnreadableError, path, error)
    return storage_error(path, error)


def _error(kind: type[StorageError], path: str, error: OSError) -> StorageError:
    return kind(
        error.strerror or str(error), subject=f"storage: {path}:", remedy=_REMEDIES.get(error.errno or 0)
    )
