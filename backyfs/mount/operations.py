"""The FUSE handlers: they translate between pyfuse3 and the parts of a mount, and do nothing else.

Invariant: handlers raise only FUSEError. Any other exception would end the whole mount.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import pyfuse3

from backyfs.errors import BackyfsError
from backyfs.host.answers import PID_ATTRIBUTE, REPOSITORY_ATTRIBUTE
from backyfs.model import VersionStatus
from backyfs.mount import facts
from backyfs.mount.attributes import entry_of, set_size
from backyfs.mount.fixedtree import FixedTree
from backyfs.mount.imagefile import ImageFile
from backyfs.mount.inodes import Inodes
from backyfs.mount.reading import UnreadableBlockError
from backyfs.mount.tree import Data, PartitionData, PartitionDirectory, TableText, Top, VersionDirectory

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from backyfs.model import Version
    from backyfs.mount.contents import Contents
    from backyfs.mount.tree import Node, Tree

    Handler = TypeVar("Handler", bound=Callable[..., Awaitable[Any]])

_WRITING_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_TRUNC | os.O_APPEND

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
        except UnreadableBlockError as error:
            self._contents.damage.note(error)
            raise pyfuse3.FUSEError(errno.EIO) from error
        except BackyfsError as error:
            _log.error("%s: %s", handler.__name__, error)
            raise pyfuse3.FUSEError(errno.EIO) from error
        except Exception as error:
            _log.exception("%s failed; this is a bug, please report it", handler.__name__)
            raise pyfuse3.FUSEError(errno.EIO) from error

    return guarded  # type: ignore[return-value]  # the same except for errors


@dataclass(slots=True)
class _OpenText:
    """An open small file, with its content when it was opened."""

    content: bytes


@dataclass(slots=True)
class _OpenDirectory:
    """An open directory, with its entries when it was opened."""

    children: list[tuple[bytes, Node]]


class Operations(FixedTree):
    """One mounted repository."""

    enable_writeback_cache = False

    def __init__(self, contents: Contents) -> None:
        """Serve the contents of a mount."""
        super().__init__()
        self._contents = contents
        self._inodes = Inodes(pyfuse3.ROOT_INODE)
        self._open: dict[int, _OpenText | ImageFile | _OpenDirectory] = {}
        self._next_handle = 1
        self._incomplete: set[Node] = set()  # images that were opened while their versions were incomplete

    # The tree.

    async def _attributes(self, tree: Tree, node: Node) -> pyfuse3.EntryAttributes:
        inode = self._inodes.number(node)
        try:
            return await self._attributes_of(tree, node, inode)
        except BaseException:
            self._inodes.drop_uncounted(inode)
            raise

    async def _attributes_of(self, tree: Tree, node: Node, inode: int) -> pyfuse3.EntryAttributes:
        entry = entry_of(tree, node, inode, writable=self._contents.images.is_writable)
        match node:
            case Data(uid) | PartitionData(uid, _):
                start, size = await self._slice(tree, node)
                set_size(entry, size, await self._contents.facts.used_bytes(tree.version(uid), start, start + size))
            case TableText(uid):
                set_size(entry, len(await self._contents.partitions.table_text(tree.version(uid))))
        return entry

    async def _slice(self, tree: Tree, node: Data | PartitionData) -> tuple[int, int]:
        """Return the offset of a file in its image, and its size."""
        version = tree.version(node.uid)
        if isinstance(node, Data):
            return 0, version.size_bytes
        return await self._contents.partitions.slice_of(version, node.number)

    async def _children(self, tree: Tree, node: Node) -> list[tuple[bytes, Node]]:
        if not isinstance(node, PartitionDirectory):
            return tree.children(node)
        numbers = await self._contents.partitions.numbers(tree.version(node.uid))
        listed: list[tuple[bytes, Node]] = [(b"%d" % number, PartitionData(node.uid, number)) for number in numbers]
        return [*listed, (b"table.txt", TableText(node.uid))]

    @_guarded
    async def lookup(
        self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext | None = None
    ) -> pyfuse3.EntryAttributes:
        """Find a name in a directory."""
        tree = await self._contents.tree.get()
        parent = self._inodes.node(parent_inode)
        if isinstance(parent, PartitionDirectory):
            node = dict(await self._children(tree, parent))[name]
        else:
            node = tree.child(parent, name)
        entry = await self._attributes(tree, node)
        self._inodes.count(entry.st_ino)
        return entry

    @_guarded
    async def getattr(
        self, inode: int, ctx: pyfuse3.RequestContext | None = None
    ) -> pyfuse3.EntryAttributes:
        """Return the attributes of a node."""
        return await self._attributes(await self._contents.tree.get(), self._inodes.node(inode))

    @_guarded
    async def setattr(
        self,
        inode: int,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: pyfuse3.RequestContext | None = None,
    ) -> pyfuse3.EntryAttributes:
        """Refuse: images keep their size. If images are writable, accept new times without storing them."""
        node = self._inodes.node(inode)
        if not self._contents.images.is_writable or not isinstance(node, (Data, PartitionData)):
            raise pyfuse3.FUSEError(errno.EROFS)
        if fields.update_size or fields.update_mode or fields.update_uid or fields.update_gid:
            raise pyfuse3.FUSEError(errno.EPERM)
        return await self._attributes(await self._contents.tree.get(), node)

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """Forget inodes that the kernel has forgotten."""
        for inode, lookups in inode_list:
            self._inodes.forget(inode, lookups)

    @_guarded
    async def readlink(self, inode: int, ctx: pyfuse3.RequestContext | None = None) -> bytes:
        """Return the target of a link."""
        tree = await self._contents.tree.get()
        return tree.content(self._inodes.node(inode))

    # Directories.

    @_guarded
    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext | None = None) -> int:
        """Open a directory and remember its entries."""
        tree = await self._contents.tree.get()
        return self._add_handle(_OpenDirectory(await self._children(tree, self._inodes.node(inode))))

    @_guarded
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        """List a directory, starting at an entry."""
        directory = self._open[fh]
        assert isinstance(directory, _OpenDirectory)
        tree = await self._contents.tree.get()
        for number in range(start_id, len(directory.children)):
            name, node = directory.children[number]
            try:
                attributes = await self._attributes(tree, node)
            except LookupError:
                continue  # the version was removed in the meantime
            if not pyfuse3.readdir_reply(token, name, attributes, number + 1):
                self._inodes.drop_uncounted(attributes.st_ino)
                return
            self._inodes.count(attributes.st_ino)

    @_guarded
    async def releasedir(self, fh: int) -> None:
        """Close a directory."""
        del self._open[fh]

    # Files.

    @_guarded
    async def open(
        self, inode: int, flags: int, ctx: pyfuse3.RequestContext | None = None
    ) -> pyfuse3.FileInfo:
        """Open a file. While an image is open, the job of the mount holds its version."""
        node = self._inodes.node(inode)
        is_image = isinstance(node, (Data, PartitionData))
        if flags & _WRITING_FLAGS and not (is_image and self._contents.images.is_writable):
            raise pyfuse3.FUSEError(errno.EROFS)
        tree = await self._contents.tree.get()
        match node:
            case Data(uid) | PartitionData(uid, _):
                version = tree.version(uid)
                start, size = await self._slice(tree, node)
                for_writing = flags & os.O_ACCMODE != os.O_RDONLY
                file = await self._contents.images.open(version, start, size, for_writing=for_writing)
                handle = self._add_handle(file)
                # Bypass the page cache: readers of the bare image must not see writes through another handle.
                direct_io = for_writing and self._contents.images.has_scratch
                return pyfuse3.FileInfo(
                    fh=handle, direct_io=direct_io, keep_cache=self._is_as_it_was(version, node)
                )
            case Top.STATS:
                handle = self._add_handle(_OpenText(self._contents.statistics.text()))
                return pyfuse3.FileInfo(fh=handle, direct_io=True)
            case TableText(uid):
                text = await self._contents.partitions.table_text(tree.version(uid))
            case _:
                text = tree.content(node)
        return pyfuse3.FileInfo(fh=self._add_handle(_OpenText(text)), keep_cache=False)

    def _is_as_it_was(self, version: Version, node: Node) -> bool:
        """Return whether the pages of an image that the kernel has cached are still valid. Call this at each opening.

        An image never changes, but an interrupted backup may have been continued after its source had changed. Data
        written to a partition also appears in the whole image when that is opened later, and vice versa.
        """
        was_incomplete = node in self._incomplete
        if version.status is VersionStatus.INCOMPLETE:
            self._incomplete.add(node)
        else:
            self._incomplete.discard(node)
        return not (was_incomplete or node in self._incomplete or self._contents.images.is_writable)

    @_guarded
    async def read(self, fh: int, off: int, size: int) -> bytes:
        """Read a part of a file."""
        opened = self._open[fh]
        if isinstance(opened, ImageFile):
            # pyfuse3 accepts a memoryview, which saves a copy.
            return await opened.read(off, size)  # type: ignore[return-value]
        assert isinstance(opened, _OpenText)
        return opened.content[off : off + size]

    @_guarded
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        """Write a part of an image to its layer."""
        opened = self._open[fh]
        if not isinstance(opened, ImageFile) or not self._contents.images.is_writable:
            raise pyfuse3.FUSEError(errno.EROFS)
        try:
            return await opened.write(off, buf) or _no_space(buf)
        except OSError:
            self._contents.statistics.write_errors += 1
            raise

    @_guarded
    async def fsync(self, fh: int, datasync: bool) -> None:
        """Make everything that was written to an image durable."""
        opened = self._open[fh]
        if isinstance(opened, ImageFile):
            await opened.sync()

    @_guarded
    async def flush(self, fh: int) -> None:
        """Do nothing: no write is buffered here."""

    @_guarded
    async def release(self, fh: int) -> None:
        """Close a file."""
        opened = self._open.pop(fh)
        if isinstance(opened, ImageFile):
            await self._contents.images.close(opened)

    # The file system.

    @_guarded
    async def statfs(self, ctx: pyfuse3.RequestContext | None = None) -> pyfuse3.StatvfsData:
        """Report the total size of all images, and no free space."""
        tree = await self._contents.tree.get()
        data = pyfuse3.StatvfsData()
        data.f_bsize = data.f_frsize = 512
        data.f_blocks = -(-tree.total_bytes // data.f_frsize)
        data.f_files = len(self._inodes)
        data.f_namemax = 255
        return data

    @_guarded
    async def getxattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext | None = None) -> bytes:
        """Return a fact about a version, or about the mount."""
        node = self._inodes.node(inode)
        if node is Top.ROOT:
            if name == PID_ATTRIBUTE.encode():
                return str(os.getpid()).encode()
            if name == REPOSITORY_ATTRIBUTE.encode():
                return self._contents.repository_uid.encode()
        if isinstance(node, (VersionDirectory, Data, PartitionData)) and name.startswith(facts.ATTRIBUTE_PREFIX):
            what = name.removeprefix(facts.ATTRIBUTE_PREFIX)
            version = (await self._contents.tree.get()).version(node.uid)
            if what == facts.ENCRYPTION_VERSIONS:
                return await self._contents.facts.encryption_versions(version)
            known = facts.attributes(version)
            if what in known:
                return known[what]
        raise pyfuse3.FUSEError(pyfuse3.ENOATTR)

    @_guarded
    async def listxattr(self, inode: int, ctx: pyfuse3.RequestContext | None = None) -> list[bytes]:
        """List the extended attributes."""
        node = self._inodes.node(inode)
        if node is Top.ROOT:
            return [PID_ATTRIBUTE.encode(), REPOSITORY_ATTRIBUTE.encode()]
        if isinstance(node, (VersionDirectory, Data, PartitionData)):
            version = (await self._contents.tree.get()).version(node.uid)
            return [facts.ATTRIBUTE_PREFIX + what for what in (*facts.attributes(version), facts.ENCRYPTION_VERSIONS)]
        return []

    async def access(self, inode: int, mode: int, ctx: pyfuse3.RequestContext | None = None) -> bool:
        """Refuse write access without a layer. The kernel checks the rest (default_permissions)."""
        return self._contents.images.is_writable or not mode & os.W_OK

    def _add_handle(self, opened: _OpenText | ImageFile | _OpenDirectory) -> int:
        handle = self._next_handle
        self._next_handle += 1
        self._open[handle] = opened
        return handle


def _no_space(data: bytes) -> int:
    """Refuse a write that begins beyond the end of an image."""
    if data:
        raise pyfuse3.FUSEError(errno.ENOSPC)
    return 0
