"""Layers to throw away: each belongs to one open file, and ends when that is closed.

`attach` lets the kernel replay a journal into one. Those who open the image to read it see it as it was backed up.
The bytes are in files without a name: nothing is left of them, however the process ends.
"""

from __future__ import annotations

import os
import tempfile
from typing import TYPE_CHECKING, Self

from backyfs.errors import MountError
from backyfs.mount.overlay.layer import Layer
from backyfs.mount.overlay.room import Room

if TYPE_CHECKING:
    from types import TracebackType

    from backyfs.model import VersionUid

_MOST_BYTES = 4 << 30  # a journal of ext4 has 1 GiB at most, the log of an xfs 2 GiB
_SHARE = 2             # of the free room, one part in two: other programs need some as well


class Scratch:
    """Layers in a directory. Together they have 4 GiB at most. May be used by several threads at once."""

    is_shared = False  # what one writes to an image, nobody else reads

    def __init__(self, directory: str, *, most_bytes: int = _MOST_BYTES) -> None:
        """Put the layers into the file system of a directory: `most_bytes` at most, and half of what is free there.

        Raises:
            MountError: the directory cannot be used.
        """
        self._directory = directory
        try:
            place = os.statvfs(directory)
        except OSError as error:
            raise MountError(
                f"{directory} cannot hold what a journal writes: {error.strerror}; name another directory in TMPDIR"
            ) from error
        self._room = Room(min(most_bytes, place.f_bavail * place.f_frsize // _SHARE))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Do nothing: each layer is closed with the file that it belongs to, at the latest with the process."""

    def open(self, uid: VersionUid, size_bytes: int, *, for_writing: bool) -> Layer | None:  # noqa: ARG002 - any version
        """Return a new layer for an image of this size that is opened to be written to; None if it is only read."""
        if not for_writing:
            return None
        return Layer(size_bytes, lambda: self._create(size_bytes), room=self._room)

    def let_go(self, layer: Layer) -> None:
        """Forget what was written."""
        layer.close()

    def _create(self, size_bytes: int) -> int:
        with tempfile.TemporaryFile(prefix="backyfs-", dir=self._directory, buffering=0) as file:  # mode 0600
            os.ftruncate(file.fileno(), size_bytes)
            return os.dup(file.fileno())
