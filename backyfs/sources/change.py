"""Signs that a source did not stay as it was while it was read.

A size that differs is an error: the bytes that were read are not the image. Everything else is a warning, because
the bytes may be right all the same, and only the administrator can tell.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class ChangeKind(Enum):
    """What was noticed."""

    CHANGED = "changed"  # its times moved
    MOUNTED = "mounted"  # a file system on it is mounted read-write


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceWarning:
    """A reason to doubt that the bytes that were read were ever there at the same time."""

    kind: ChangeKind
    text: str
