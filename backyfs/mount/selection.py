"""The selection of versions that a mount shows. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from backyfs.model import Version, VersionUid


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Versions that have one of these uids, names and tags. An empty field selects all versions."""

    uids: frozenset[VersionUid] = frozenset()
    names: tuple[str, ...] = ()  # or shell patterns
    tags: frozenset[str] = frozenset()

    def has(self, version: Version) -> bool:
        """Return whether a version is shown."""
        if self.uids and version.uid not in self.uids:
            return False
        if self.tags and self.tags.isdisjoint(version.tag_names):
            return False
        return not self.names or any(
            version.name == name or fnmatchcase(version.name, name) for name in self.names
        )
