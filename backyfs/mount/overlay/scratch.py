"""Temporary layers: each belongs to one open file and is dropped when that file is closed.

`attach` lets the kernel replay a journal into such a layer. Files that are opened for reading show the image as it was
backed up. The layers are files without a name, so nothing remains of them, however the process ends.
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

_MOST_BYTES = 4 << 30  # an ext4 journal has at most 1 GiB, an xfs log 2 GiB
_SHARE = 2             # use one part in two of the free space: other programs need some, too


class Scratch:
    """Layers in a directory, 4 GiB in total at most. Safe for several threads at once."""

    is_shared = False  # other open files do not show the writes

    def __init__(self, directory: str, *, most_bytes: int = _MOST_BYTES) -> None:
        """Put the layers into the file system of a directory: at most `most_bytes`, and half of its free space.

        Raises:
            MountError: the directory cannot be used.
        """
        self._directory = directory
        try:
            place = os.statvfs(directory)
        except OSError as error:
            raise MountError(
                f"cannot store the writes of a journal: {error.strerror}",
                subject=directory,
                remedy="name another directory in TMPDIR",
            ) from error
        self._room = Room(min(most_bytes, place.f_bavail * place.f_frsize // _SHARE))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Do nothing: each layer is closed with its file, at the latest when the process ends."""

    def open(self, uid: VersionUid, size_bytes: int, *, for_writing: bool) -> Layer | None:  # noqa: ARG002 - any version
        """Return a new layer for an image of this size that is opened for writing; None if it is only read."""
        if not for_writing:
            return None
        return Layer(size_bytes, lambda: self._create(size_bytes), room=self._room)

    def release(self, layer: Layer) -> None:
        """Drop the writes."""
        layer.close()

    def _create(self, size_bytes: int) -> int:
        with tempfile.TemporaryFile(prefix="backyfs-", dir=self._directory, buffering=0) as file:  # mode 0600
            os.ftruncate(file.fileno(), size_bytes)
            return os.dup(file.fileno())
