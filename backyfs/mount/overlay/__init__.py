"""A directory of copy-on-write layers that store the writes to the images of a mount, one for each version.

The versions themselves never change. The directory belongs to one repository and, while it is open, to one mount.
Nothing outside it is touched, whatever the uid of a version looks like.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from contextlib import ExitStack, suppress
from functools import partial
from typing import TYPE_CHECKING, Self

from backyfs.errors import MountError
from backyfs.files import make_directory, open_file, require_no_device_directory, sync_directory, sync_file
from backyfs.mount.overlay.layer import Layer
from backyfs.mount.overlay.layerfiles import FILE_NAME, LayerNames, create_data, create_unnamed_data
from backyfs.mount.overlay.scratch import Scratch
from backyfs.remedies import Advice

if TYPE_CHECKING:
    from types import TracebackType

    from backyfs.model import VersionUid

__all__ = ["Layer", "OverlayDirectory", "Scratch"]

_LOCK = "lock"
_REPOSITORY = "repository"
_NEW_REPOSITORY = "repository.new"
_NOT_FOREIGN = {_LOCK, _NEW_REPOSITORY, "lost+found"}  # may be in a directory before its first use
# The file `repository` has two lines: this one, and the uid of the repository.
_MAGIC = b"backyfs overlay 1\n"


class OverlayDirectory:
    """A directory of layers, locked for one mount. Safe for several threads at once."""

    is_shared = True  # all open files of an image show the writes to it

    def __init__(self, path: str, repository_uid: str, *, discard: bool = False) -> None:
        """Open and lock the directory. Create it (mode 0700) if it does not exist.

        `discard` removes the writes of earlier mounts, and drops those of this mount at its end.

        Raises:
            MountError: the directory is in use by another mount, belongs to another repository, contains something
                else, or cannot be used.
        """
        self._path = os.path.abspath(path)
        self._is_kept = not discard
        self._lock = threading.Lock()  # guards the layers
        self._layers: dict[VersionUid, Layer] | None = {}  # None: closed
        with ExitStack() as opened:
            try:
                self._fd = _open_directory(self._path)
                opened.callback(os.close, self._fd)
                self._has_owner(repository_uid)  # create nothing in a foreign directory
                lock_fd = open_file(_LOCK, os.O_RDWR | os.O_NOFOLLOW, dir_fd=self._fd)
                opened.callback(os.close, lock_fd)
                fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if not self._has_owner(repository_uid):
                    self._set_owner(repository_uid)
                self._remove_files(everything=discard)
            except BlockingIOError as error:
                raise MountError(
                    "is in use by another mount", subject=self._path, remedy=Advice.UNMOUNT_OR_NAME_OVERLAY()
                ) from error
            except OSError as error:
                raise self._unusable(f"cannot store writes to images: {error.strerror}") from error
            self._opened = opened.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def layer(self, uid: VersionUid, size_bytes: int) -> Layer:
        """Return the layer of a version whose image has this size. It stays open until the directory is closed.

        Raises:
            MountError: its files are damaged or belong to another image, or the uid cannot be part of a file name.
            OSError: its files cannot be opened.
        """
        with self._lock:
            if self._layers is None:
                raise OSError(errno.EBADF, "the directory of the layers is closed")
            layer = self._layers.get(uid)
            if layer is None:
                names = LayerNames(self._fd, self._path, uid, size_bytes)
                layer = self._layers[uid] = self._open_layer(names)
            assert layer.size_bytes == size_bytes, "a version does not change"
            return layer

    def open(self, uid: VersionUid, size_bytes: int, *, for_writing: bool) -> Layer:  # noqa: ARG002 - all files share it
        """Return the layer of a version, which all open files of the version share."""
        return self.layer(uid, size_bytes)

    def release(self, layer: Layer) -> None:
        """Do nothing: a layer outlives the files that use it."""

    def _open_layer(self, names: LayerNames) -> Layer:
        if self._is_kept:
            return Layer(names.image_bytes, partial(create_data, names), names=names)
        return Layer(names.image_bytes, partial(create_unnamed_data, names))

    def close(self) -> None:
        """Sync and close all layers, and unlock the directory. Safe to call again.

        Raises:
            MountError: some writes could not be made durable.
        """
        with self._lock:
            layers, self._layers = self._layers or {}, None
        failures: list[tuple[VersionUid, OSError]] = []
        with self._opened:
            for uid, layer in layers.items():
                try:
                    layer.close()
                except OSError as error:
                    failures.append((uid, error))
        if failures:
            uids = ", ".join(uid for uid, _ in failures)
            first = failures[0][1]
            raise MountError(
                f"the last writes to {uids} are lost, earlier synced ones are kept: {first.strerror}",
                subject=f"{self._path}:",
                remedy="check the disk and its free space",
            ) from first

    def _unusable(self, fact: str) -> MountError:
        return MountError(fact, subject=self._path, remedy=Advice.NAME_OVERLAY())

    def _has_owner(self, repository_uid: str) -> bool:
        """Return whether the directory belongs to this repository; False: it belongs to none yet.

        Raises:
            MountError: it contains something else.
            OSError: it cannot be read.
        """
        try:
            fd = os.open(_REPOSITORY, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=self._fd)
        except FileNotFoundError:
            if set(os.listdir(self._fd)) - _NOT_FOREIGN:
                raise self._unusable("is not empty and contains no layers") from None
            return False
        try:
            stored = os.read(fd, 4096)
        finally:
            os.close(fd)
        if not stored.startswith(_MAGIC):
            raise self._unusable(f"has a damaged file {_REPOSITORY}, or one of another program or release")
        owner = stored.removeprefix(_MAGIC)
        if owner != f"{repository_uid}\n".encode():
            uid = owner.decode(errors="replace").strip()
            raise self._unusable(f"contains layers of another repository ({uid!r})")
        return True

    def _set_owner(self, repository_uid: str) -> None:
        flags = os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW
        with open(open_file(_NEW_REPOSITORY, flags, dir_fd=self._fd), "wb") as file:
            file.write(_MAGIC + f"{repository_uid}\n".encode())
            sync_file(file)
        os.rename(_NEW_REPOSITORY, _REPOSITORY, src_dir_fd=self._fd, dst_dir_fd=self._fd)
        os.fsync(self._fd)

    def _remove_files(self, *, everything: bool) -> None:
        """Remove the leftovers of a killed process, or all layers. Then sync the directory.

        A killed process may have renamed a map without syncing the directory.
        """
        files = [match for name in os.listdir(self._fd) if (match := FILE_NAME.fullmatch(name))]
        mapped = set() if everything else {file["uid"] for file in files if file["kind"] == "map"}
        doomed = [file for file in files if file["uid"] not in mapped or file["kind"] == "map.new"]
        # Maps first: data without a map counts as nothing, a map without data as damage.
        for is_data in (False, True):
            for file in doomed:
                if (file["kind"] == "data") is is_data:
                    os.unlink(file.string, dir_fd=self._fd)
            os.fsync(self._fd)


def _open_directory(path: str) -> int:
    with suppress(FileExistsError):
        require_no_device_directory(path)
        make_directory(path)
        sync_directory(os.path.dirname(path))
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY)
