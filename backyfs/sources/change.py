"""Signs that a source did not stay as it was while it was read.

A size that differs is an error: the bytes that were read are not the image. Everything else is a warning, because
the bytes may be right all the same, and only the administrator can tell.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from backyfs.errors import SourceError

if TYPE_CHECKING:
    from backyfs.sources import Source


class ChangeKind(Enum):
    """What was noticed."""

    CHANGED = "changed"  # its times moved
    MOUNTED = "mounted"  # a file system on it is mounted read-write


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceWarning:
    """A reason to doubt that the bytes that were read were ever there at the same time."""

    kind: ChangeKind
    text: str


def check_size(source: Source) -> None:
    """Make sure that a source still has the size it had when it was opened.

    Raises:
        SourceError: it shrank or grew, or cannot be asked.
    """
    size_bytes = source.size_now()
    if size_bytes != source.size_bytes:
        raise SourceError(
            f"{source.name} has {size_bytes} bytes and had {source.size_bytes} when it was opened: it "
            f"{'shrank' if size_bytes < source.size_bytes else 'grew'} while it was read; back up a snapshot, or stop "
            "what changes it"
        )
