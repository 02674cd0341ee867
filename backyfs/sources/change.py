"""Signs that a source changed while it was read.

A different size is an error: the bytes that were read are not the image. Everything else is a warning, because
the bytes may still be right, and only the administrator can decide that.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class ChangeKind(Enum):
    """What was noticed."""

    CHANGED = "changed"  # its times changed
    MOUNTED = "mounted"  # a file system on it is mounted read-write


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceWarning:
    """A reason to doubt that the bytes read were ever all there at the same time."""

    kind: ChangeKind
    text: str
