"""The marker of a storage: a small object that names the repository to which the storage belongs.

An empty mount point has no marker, and a storage shared by mistake has that of another repository. The marker guards
against accidents, not against attackers: anyone who can write to the storage can write a marker.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from backyfs.errors import IntegrityError, ObjectMissingError, StorageError
from backyfs.remedies import Advice
from backyfs.storage.keys import MARKER_NAME
from backyfs.storage.rereading import read_twice

if TYPE_CHECKING:
    from backyfs.storage.protocol import Storage

# "backyfs storage 1\n", then a line "repository <uid>\n" for each repository that the marker names: one, or two while
# a repository is taking over the identity of another one.
_HEADER = "backyfs storage 1\n"
_LINE = re.compile(r"repository ([0-9A-Za-z-]{1,36})\n")
_MARKER = re.compile(f"{re.escape(_HEADER)}((?:{_LINE.pattern}){{1,2}})")
_MAX_BYTES = 4096


def read_marker(storage: Storage) -> frozenset[str] | None:
    """Return the uids of the repositories that the marker names; None: the storage has no marker.

    Raises:
        StorageError: it cannot be read, or is not a marker.
    """
    try:
        return read_twice(storage, MARKER_NAME, lambda: _unpack(bytes(storage.get(MARKER_NAME, most=_MAX_BYTES))))
    except ObjectMissingError:
        return None
    except IntegrityError as error:
        raise StorageError(error.fact, subject=error.subject, remedy=Advice.REPLACE_MARKER()) from error


def put_first_marker(storage: Storage, uid: str) -> bool:
    """Mark a storage that has no marker, durably; return False, having done nothing, if it has one by now.

    Raises:
        StorageError: it cannot be written.
    """
    return storage.put_new(MARKER_NAME, _pack(uid))


def replace_marker(storage: Storage, *uids: str) -> None:
    """Mark a storage with these uids, whatever its marker says, durably.

    Raises:
        StorageError: it cannot be written; the marker is as it was.
    """
    storage.put(MARKER_NAME, [_pack(*uids)])
    storage.flush()


def _unpack(content: bytes) -> frozenset[str]:
    found = _MARKER.fullmatch(content.decode("ascii", errors="replace"))
    if found is None:
        raise IntegrityError("is damaged or of a newer release", subject=f"object {MARKER_NAME} in the storage")
    return frozenset(_LINE.findall(found.group(1)))


def _pack(*uids: str) -> bytes:
    return (_HEADER + "".join(f"repository {uid}\n" for uid in uids)).encode("ascii")
