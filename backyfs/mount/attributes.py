"""The attributes of the nodes of a mount: type, mode, size and times, and how long the kernel may cache them."""

from __future__ import annotations

import os
import stat
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pyfuse3

from backyfs.model import VersionStatus
from backyfs.mount.tree import Data, Fact, Link, NameDirectory, PartitionData, TableText, Top, VersionDirectory

if TYPE_CHECKING:
    from backyfs.mount.tree import Node, Tree

_CHANGING_S = 0.7   # names of versions, and facts that can be edited: less than 2 s together with the age of the tree
_LASTING_S = 300.0  # anything that cannot change while it exists
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SECTOR_BYTES = 512  # of st_blocks


def entry_of(tree: Tree, node: Node, inode: int, *, writable: bool) -> pyfuse3.EntryAttributes:
    """Return the attributes of a node, except for sizes that the tree does not know.

    Raises:
        LookupError: the version is no longer in the tree.
    """
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = inode
    entry.st_uid = os.geteuid()
    entry.st_gid = os.getegid()
    entry.st_nlink = 1
    entry.st_blksize = 128 << 10
    entry.st_mode = _mode(node, writable=writable)
    entry.entry_timeout, entry.attr_timeout = _timeouts(tree, node)
    if not isinstance(node, (Top, NameDirectory)):
        uid = tree.target(node) if isinstance(node, Link) else node.uid
        moment_ns = (tree.version(uid).created_at - _EPOCH) // timedelta(microseconds=1) * 1000
        entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = moment_ns
    set_size(entry, _size(tree, node))
    return entry


def set_size(entry: pyfuse3.EntryAttributes, size_bytes: int, used_bytes: int | None = None) -> None:
    """Set the size of a file, and how many of its bytes are not holes; None: all of them."""
    entry.st_size = size_bytes
    entry.st_blocks = -(-(size_bytes if used_bytes is None else used_bytes) // _SECTOR_BYTES)


def _mode(node: Node, *, writable: bool) -> int:
    match node:
        case Data() | PartitionData():
            return stat.S_IFREG | (0o640 if writable else 0o440)
        case Top.STATS | Fact() | TableText():
            return stat.S_IFREG | 0o440
        case Link():
            return stat.S_IFLNK | 0o777
        case _:
            return stat.S_IFDIR | 0o550


def _size(tree: Tree, node: Node) -> int:
    match node:
        case Data(uid):
            return tree.version(uid).size_bytes
        case Fact() | Link():
            return len(tree.content(node))
        case _:
            return 0


def _timeouts(tree: Tree, node: Node) -> tuple[float, float]:
    """Return how long the kernel may cache the name of a node, and its attributes, in seconds."""
    match node:
        case Top.BY_NAME | Top.BY_VERSION_UID:
            return _LASTING_S, _CHANGING_S
        case Data(uid) | PartitionData(uid, _) if tree.version(uid).status is not VersionStatus.INCOMPLETE:
            return _LASTING_S, _LASTING_S
        case VersionDirectory():
            return _CHANGING_S, _LASTING_S
        case _:
            return _CHANGING_S, _CHANGING_S
