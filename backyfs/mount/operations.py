"""The FUSE handlers: they translate between pyfuse3 and tree, images and cache, and do nothing else.

Invariant: nothing but FUSEError leaves a handler; any other exception would end the whole mount.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
import stat
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import pyfuse3
import trio

from backyfs.errors import BackyfsError
from backyfs.geometry import block_slices
from backyfs.metadata.versions import list_versions
from backyfs.model import BlockIndex, VersionStatus
from backyfs.mount.image import Image
from backyfs.mount.mountpoints import PID_ATTRIBUTE
from backyfs.mount.readahead import ReadAhead
from backyfs.mount.tree import Data, Link, Node, Top, Tree

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from backyfs.engine.job import Job
    from backyfs.geometry import BlockSlice
    from backyfs.model import Blob, Version, VersionUid
    from backyfs.mount.cache import BlockCache
    from backyfs.repository import Repository

    Handler = TypeVar("Handler", bound=Callable[..., Awaitable[Any]])

_TREE_S = 1.0           # how old the picture of the versions may be
_ENTRY_TIMEOUT_S = 1.0  # for names: versions come and go
_IMAGE_TIMEOUT_S = 300.0  # for the attributes of an image, which never change
_WRITING_HANDLERS = (
    "setattr", "mknod", "mkdir", "unlink", "rmdir", "symlink", "rename", "link", "create", "write",
    "setxattr", "removexattr",
)  # fmt: skip

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_log = logging.getLogger(__name__)


def _guarded(handler: Handler) -> Handler:
    """Turn every error of a handler into an errno."""

    @functools.wraps(handler)
    async def guarded(self: Operations, *arguments: Any) -> Any:
        try:
            return await handler(self, *arguments)
        except pyfuse3.FUSEError:
            raise
        except LookupError:
            raise pyfuse3.FUSEError(errno.ENOENT) from None
        except OSError as error:
            raise pyfuse3.FUSEError(error.errno or errno.EIO) from error
        except BackyfsError as error:
            _log.error("%s: %s", handler.__name__, error)
            raise pyfuse3.FUSEError(errno.EIO) from error
        except Exception as error:
            _log.exception("%s failed; this is a bug, please report it", handler.__name__)
            raise pyfuse3.FUSEError(errno.EIO) from error

    return guarded  # type: ignore[return-value]  # the same but for errors


@dataclass(slots=True)
class _OpenFact:
    """A small file that is open: what it said then."""

    content: bytes


@dataclass(slots=True)
class _OpenImage:
    """An image that is open, and how it is read."""

    image: Image
    ahead: ReadAhead


@dataclass(slots=True)
class _OpenDirectory:
    """A directory that is open: what was in it then."""

    node: Node
    children: list[tuple[bytes, Node]]


class Operations(pyfuse3.Operations):
    """One mounted repository."""

    enable_writeback_cache = False

    def __init__(self, repository: Repository, cache: BlockCache, job: Job, *, read_ahead_bytes: int = 0) -> None:
        """Serve a repository. Blocks are read ahead of sequential readers while `background` is a nursery."""
        super().__init__()
        self.background: trio.Nursery | None = None
        self._read_ahead_blocks = -(-read_ahead_bytes // repository.block_size)
        self._repository = repository
        self._cache = cache
        self._job = job
        self._tree = Tree(())
        self._tree_at = float("-inf")
        self._tree_lock = trio.Lock()
        # Inodes are numbers for nodes; both stay for the life of the mount.
        self._nodes: dict[int, Node] = {}
        self._inodes: dict[Node, int] = {}
        for top in Top:
            self._inode(top)  # the root comes first and gets ROOT_INODE
        self._open: dict[int, _OpenFact | _OpenImage | _OpenDirectory] = {}
        self._next_handle = 1
        self._images: dict[VersionUid, Image] = {}
        self._image_lock = trio.Lock()
        self._zeros = memoryview(bytes(repository.block_size))

    # The tree.

    async def _current_tree(self) -> Tree:
        if time.monotonic() - self._tree_at > _TREE_S:
            async with self._tree_lock:
                if time.monotonic() - self._tree_at > _TREE_S:
                    self._tree = await trio.to_thread.run_sync(self._load_tree)
                    self._tree_at = time.monotonic()
        return self._tree

    def _load_tree(self) -> Tree:
        with self._repository.database.read() as connection:
            return Tree(list_versions(connection))

    def _inode(self, node: Node) -> int:
        inode = self._inodes.get(node)
        if inode is None:
            inode = self._inodes[node] = pyfuse3.ROOT_INODE + len(self._inodes)
            self._nodes[inode] = node
        return inode

    def _attributes(self, tree: Tree, node: Node) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = self._inode(node)
        entry.st_uid = os.geteuid()
        entry.st_gid = os.getegid()
        entry.st_nlink = 1
        entry.st_blksize = 128 << 10
        entry.entry_timeout = entry.attr_timeout = _ENTRY_TIMEOUT_S
        uid = getattr(node, "uid", None)
        created_at = tree.version(uid).created_at if uid is not None else None
        moment_ns = (created_at - _EPOCH) // timedelta(microseconds=1) * 1000 if created_at else 0
        entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = moment_ns
        entry.st_mode, entry.st_size = self._mode_and_size(tree, node)
        entry.st_blocks = -(-entry.st_size // 512)
        if isinstance(node, Data):
            entry.attr_timeout = _IMAGE_TIMEOUT_S
        return entry

    @staticmethod
    def _mode_and_size(tree: Tree, node: Node) -> tuple[int, int]:
        if isinstance(node, Data):
            return stat.S_IFREG | 0o440, tree.version(node.uid).size_bytes
        if isinstance(node, Link):
            return stat.S_IFLNK | 0o777, len(tree.content(node))
        try:
            return stat.S_IFREG | 0o440, len(tree.content(node))
        except LookupError:
            tree.children(node)
            return stat.S_IFDIR | 0o550, 0

    @_guarded
    async def lookup(
        self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext | None = None
    ) -> pyfuse3.EntryAttributes:
        """Find a name in a directory."""
        tree = await self._current_tree()
        return self._attributes(tree, tree.child(self._nodes[parent_inode], name))

    @_guarded
    async def getattr(
        self, inode: int, ctx: pyfuse3.RequestContext | None = None
    ) -> pyfuse3.EntryAttributes:
        """Tell what something is."""
        return self._attributes(await self._current_tree(), self._nodes[inode])

    @_guarded
    async def readlink(self, inode: int, ctx: pyfuse3.RequestContext | None = None) -> bytes:
        """Tell where a link points."""
        tree = await self._current_tree()
        return tree.content(self._nodes[inode])

    # Directories.

    @_guarded
    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext | None = None) -> int:
        """Take a picture of a directory."""
        tree = await self._current_tree()
        node = self._nodes[inode]
        return self._add_handle(_OpenDirectory(node, tree.children(node)))

    @_guarded
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        """List a directory from an entry on."""
        directory = self._open[fh]
        assert isinstance(directory, _OpenDirectory)
        tree = await self._current_tree()
        for number, (name, node) in enumerate(directory.children[start_id:], start_id + 1):
            try:
                attributes = self._attributes(tree, node)
            except LookupError:
                continue  # the version was removed meanwhile
            if not pyfuse3.readdir_reply(token, name, attributes, number):
                return

    @_guarded
    async def releasedir(self, fh: int) -> None:
        """Forget a directory."""
        del self._open[fh]

    # Files.

    @_guarded
    async def open(
        self, inode: int, flags: int, ctx: pyfuse3.RequestContext | None = None
    ) -> pyfuse3.FileInfo:
        """Open a file for reading; a version whose image was opened is held by the job of the mount."""
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_TRUNC | os.O_APPEND):
            raise pyfuse3.FUSEError(errno.EROFS)
        tree = await self._current_tree()
        node = self._nodes[inode]
        if not isinstance(node, Data):
            return pyfuse3.FileInfo(fh=self._add_handle(_OpenFact(tree.content(node))), keep_cache=False)
        image = await self._image(tree.version(node.uid))
        # The image never changes: what the kernel has read of it stays good.
        ahead = ReadAhead(block_size=image.block_size, most_blocks=self._read_ahead_blocks)
        return pyfuse3.FileInfo(fh=self._add_handle(_OpenImage(image, ahead)), keep_cache=True)

    async def _image(self, version: Version) -> Image:
        async with self._image_lock:
            image = self._images.get(version.uid)
            if image is None:
                await trio.to_thread.run_sync(self._job.hold, version.id)
            if image is None or image.version.status is VersionStatus.INCOMPLETE:  # its backup may have gone on since
                image = self._images[version.uid] = Image(self._repository, version)
        return image

    @_guarded
    async def read(self, fh: int, off: int, size: int) -> bytes:
        """Read a part of a file."""
        opened = self._open[fh]
        if isinstance(opened, _OpenFact):
            return opened.content[off : off + size]
        assert isinstance(opened, _OpenImage)
        image = opened.image
        for index in opened.ahead.note(off, size, image.version.size_bytes):
            if self.background is not None:
                self.background.start_soon(self._read_ahead, image, BlockIndex(index))
        parts = [
            await self._read_slice(image, part)
            for part in block_slices(off, size, image.version.size_bytes, image.block_size)
        ]
        if len(parts) == 1:
            return parts[0]  # type: ignore[return-value]  # pyfuse3 takes a view, and that spares a copy
        return b"".join(parts)

    async def _read_ahead(self, image: Image, index: BlockIndex) -> None:
        with suppress(pyfuse3.FUSEError):  # in a task of its own, where it would end the mount
            await self._load_ahead(image, index)

    @_guarded
    async def _load_ahead(self, image: Image, index: BlockIndex) -> None:
        with suppress(BackyfsError):  # whoever reads the block is told
            blob = await self._blob(image, index)
            if blob is not None:
                await self._cache.prefetch(blob)

    @staticmethod
    async def _blob(image: Image, index: BlockIndex) -> Blob | None:
        return image.blob(index) if image.knows(index) else await trio.to_thread.run_sync(image.blob, index)

    async def _read_slice(self, image: Image, part: BlockSlice) -> memoryview:
        try:
            blob = await self._blob(image, part.index)
            block = None if blob is None else await self._cache.get(blob)
        except BackyfsError as error:
            _log.error("version %s, block %d: %s", image.version.uid, part.index, error)
            raise pyfuse3.FUSEError(errno.EIO) from error
        view = self._zeros if block is None else memoryview(block)
        return view[part.start : part.stop]

    @_guarded
    async def release(self, fh: int) -> None:
        """Forget an open file."""
        del self._open[fh]

    @_guarded
    async def flush(self, fh: int) -> None:
        """Nothing was written."""

    # The file system.

    @_guarded
    async def statfs(self, ctx: pyfuse3.RequestContext | None = None) -> pyfuse3.StatvfsData:
        """Tell the size of all images; nothing is free."""
        tree = await self._current_tree()
        data = pyfuse3.StatvfsData()
        data.f_bsize = data.f_frsize = 512
        data.f_blocks = -(-tree.total_bytes // data.f_frsize)
        data.f_files = len(self._inodes)
        data.f_namemax = 255
        return data

    @_guarded
    async def getxattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext | None = None) -> bytes:
        """Tell the process that serves the mount, of the root directory."""
        if inode == pyfuse3.ROOT_INODE and name == PID_ATTRIBUTE.encode():
            return str(os.getpid()).encode()
        raise pyfuse3.FUSEError(pyfuse3.ENOATTR)

    @_guarded
    async def listxattr(self, inode: int, ctx: pyfuse3.RequestContext | None = None) -> list[bytes]:
        """List the extended attributes."""
        return [PID_ATTRIBUTE.encode()] if inode == pyfuse3.ROOT_INODE else []

    async def access(self, inode: int, mode: int, ctx: pyfuse3.RequestContext | None = None) -> bool:
        """Refuse writing; the rest the kernel checks itself (default_permissions)."""
        return not mode & os.W_OK

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """Inodes stay: they are few."""

    def _add_handle(self, opened: _OpenFact | _OpenImage | _OpenDirectory) -> int:
        handle = self._next_handle
        self._next_handle += 1
        self._open[handle] = opened
        return handle


async def _refuse_to_write(_self: Operations, *_arguments: Any) -> None:
    raise pyfuse3.FUSEError(errno.EROFS)


for _name in _WRITING_HANDLERS:
    setattr(Operations, _name, _refuse_to_write)
