"""The tree of a mount: its names, the node behind each name, and the contents of the small files. Pure.

    by_version_uid/<uid>/data, partitions/, name, snapshot_name, tags, date, expire, protected, valid or invalid
    by_name/<name>/<date>_<uid> -> ../../by_version_uid/<uid>, and latest -> the newest valid one
    that is not dated in the future
    stats, which is not listed: the counters of the mount

The entries below `partitions` come from the image itself and are not part of the tree.

A `Tree` is an immutable picture of the versions at one moment. A node identifies a thing, not a position in the tree,
so it stays valid in later trees.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from functools import cached_property
from typing import TYPE_CHECKING, TypeAlias

from backyfs.model import Version, VersionStatus, VersionUid
from backyfs.moments import time_name
from backyfs.mount.facts import files
from backyfs.text import is_control

if TYPE_CHECKING:
    from collections.abc import Iterable

_NAME_BYTES = 255  # NAME_MAX of Linux
_LATEST = b"latest"
_DIGEST_DIGITS = 32
_END_OF_TIME = datetime.max.replace(tzinfo=UTC)


class Top(Enum):
    """Nodes that always exist."""

    ROOT = "/"
    BY_VERSION_UID = "by_version_uid"
    BY_NAME = "by_name"
    STATS = "stats"


@dataclass(frozen=True, slots=True)
class VersionDirectory:
    """`by_version_uid/<uid>`."""

    uid: VersionUid


@dataclass(frozen=True, slots=True)
class Data:
    """`by_version_uid/<uid>/data`: the image."""

    uid: VersionUid


@dataclass(frozen=True, slots=True)
class PartitionDirectory:
    """`by_version_uid/<uid>/partitions`."""

    uid: VersionUid


@dataclass(frozen=True, slots=True)
class PartitionData:
    """`by_version_uid/<uid>/partitions/<number>`: a slice of the image."""

    uid: VersionUid
    number: int


@dataclass(frozen=True, slots=True)
class TableText:
    """`by_version_uid/<uid>/partitions/table.txt`: the partition table as text."""

    uid: VersionUid


@dataclass(frozen=True, slots=True)
class Fact:
    """`by_version_uid/<uid>/<what>`: a small file."""

    uid: VersionUid
    what: bytes


@dataclass(frozen=True, slots=True)
class NameDirectory:
    """`by_name/<name>`."""

    name: str


@dataclass(frozen=True, slots=True)
class Link:
    """A symbolic link to a version in `by_name/<name>`."""

    name: str
    uid: VersionUid | None  # None: `latest`


Node: TypeAlias = (
    Top | VersionDirectory | Data | PartitionDirectory | PartitionData | TableText | Fact | NameDirectory | Link
)


class Tree:
    """The tree of some versions. Its methods only look into memory; they raise LookupError for unknown nodes."""

    def __init__(self, versions: Iterable[Version], now: datetime = _END_OF_TIME) -> None:
        """Show versions, sorted by name, then by date, as at the time `now`."""
        self._versions = {version.uid: version for version in versions}
        self._now = now

    def is_true_at(self, now: datetime) -> bool:
        """Return whether the same versions give the same tree at this time: none of them has reached its date."""
        return all(
            version.is_dated_in_the_future(now) == version.is_dated_in_the_future(self._now)
            for version in self._versions.values()
        )

    def version(self, uid: VersionUid) -> Version:
        """Return a version that is in the tree."""
        return self._versions[uid]

    def target(self, link: Link) -> VersionUid:
        """Return the version that a link points to."""
        return link.uid or self._latest[link.name]

    @property
    def total_bytes(self) -> int:
        """The total size of all images."""
        return sum(version.size_bytes for version in self._versions.values())

    def children(self, node: Node) -> list[tuple[bytes, Node]]:
        """Return the entries of a directory, with their names, in order."""
        match node:
            case Top.ROOT:
                return [(top.value.encode(), top) for top in (Top.BY_VERSION_UID, Top.BY_NAME)]
            case Top.BY_VERSION_UID:
                return [(uid.encode(), VersionDirectory(uid)) for uid in self._versions]
            case Top.BY_NAME:
                return [(escaped, NameDirectory(name)) for escaped, name in self._names.items()]
            case VersionDirectory(uid):
                facts = ((what, Fact(uid, what)) for what in files(self._versions[uid]))
                return [(b"data", Data(uid)), (b"partitions", PartitionDirectory(uid)), *facts]
            case NameDirectory(name):
                return self._links(name)
            case _:
                raise LookupError(node)

    def child(self, node: Node, name: bytes) -> Node:
        """Return a directory entry by its name; also `stats` and `by_name/<name>/<uid>`, which are not listed."""
        match node:
            case Top.ROOT if name == Top.STATS.value.encode():
                return Top.STATS
            case Top.BY_VERSION_UID:
                return VersionDirectory(self._versions[_as_uid(name)].uid)
            case Top.BY_NAME:
                return NameDirectory(self._names[name])
            case NameDirectory(version_name):
                version = self._versions.get(_as_uid(name))
                if version is not None and version.name == version_name:
                    return Link(version_name, version.uid)
        return dict(self.children(node))[name]

    def content(self, node: Node) -> bytes:
        """Return the content of a small file, or the target of a link."""
        match node:
            case Fact(uid, what):
                return files(self._versions[uid])[what]
            case Link():
                return b"../../by_version_uid/" + self._versions[self.target(node)].uid.encode()
            case _:
                raise LookupError(node)

    @cached_property
    def _by_name(self) -> dict[str, list[Version]]:
        by_name: dict[str, list[Version]] = {}
        for version in self._versions.values():
            by_name.setdefault(version.name, []).append(version)
        return by_name

    @cached_property
    def _names(self) -> dict[bytes, str]:
        return {escape(name): name for name in self._by_name}

    @cached_property
    def _latest(self) -> dict[str, VersionUid]:
        return {
            version.name: version.uid  # the last version of each name wins
            for version in self._versions.values()
            if version.status is VersionStatus.VALID and not version.is_dated_in_the_future(self._now)
        }

    def _links(self, name: str) -> list[tuple[bytes, Node]]:
        links: list[tuple[bytes, Node]] = [
            (f"{time_name(version.created_at)}_{version.uid}".encode(), Link(name, version.uid))
            for version in self._by_name[name]
        ]
        if name in self._latest:
            links.append((_LATEST, Link(name, None)))
        return links


def escape(name: str) -> bytes:
    """Return a file name for any text.

    A character that a file name cannot contain or that controls a terminal, and `%`, become `%` and two hexadecimal
    digits for each byte. A name that is too long keeps its beginning and ends in `%~` and a digest; only the tree knows
    its full text.
    """
    if name in {"", ".", ".."}:
        return b"%" if not name else name.replace(".", "%2E").encode()
    escaped = b"".join(map(_escaped, name))
    if len(escaped) <= _NAME_BYTES:
        return escaped
    digest = hashlib.sha256(_encoded(name)).hexdigest()[:_DIGEST_DIGITS].encode()
    kept = escaped[: _NAME_BYTES - len(digest) - 2]
    percent = kept.rfind(b"%", len(kept) - 2)
    if percent >= 0:  # do not cut in the middle of an escape
        kept = kept[:percent]
    return b"%b%%~%b" % (_without_broken_end(kept), digest)


def _escaped(char: str) -> bytes:
    raw = _encoded(char)
    return b"".join(b"%%%02X" % byte for byte in raw) if char in "/%" or is_control(char) else raw


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", errors="surrogatepass")


def _without_broken_end(text: bytes) -> bytes:
    """Drop an incomplete UTF-8 character at the end."""
    return text.decode("utf-8", errors="ignore").encode()


def _as_uid(name: bytes) -> VersionUid:
    return VersionUid(name.decode("ascii", errors="replace"))
