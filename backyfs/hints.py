"""Parse hints: which bytes of an image changed since a base version, as `rbd diff --format=json` lists them. Pure.

    [{"offset": 0, "length": 4194304, "exists": "true"}, ...]

If `exists` is false, these bytes are zeros now. Depending on its release, Ceph writes it as text or as a boolean.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from backyfs.errors import HintsError
from backyfs.geometry import block_count
from backyfs.ranges import Ranges, ranges

if TYPE_CHECKING:
    from backyfs.ranges import Range

_REMEDY = "create the list with `rbd diff --format=json`"
_EXISTS = {"true": True, "false": False, True: True, False: False}


@dataclass(frozen=True, slots=True, kw_only=True)
class Hints:
    """Bytes of an image that changed."""

    data: Ranges   # bytes that contain data now
    zeros: Ranges  # bytes that are zeros now


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockHints:
    """Blocks to read and blocks that became zeros. All other blocks are unchanged."""

    read: Ranges
    zeros: Ranges


def parse_hints(text: str | bytes, where: str) -> Hints:
    """Return the hints in a text. Errors name `where` it comes from.

    Raises:
        HintsError: the text is not such a list.
    """
    found = _Entries(where)
    try:
        listed = json.loads(text, object_hook=found.add)
    except (ValueError, RecursionError) as error:  # ValueError: also for text that is not UTF-8
        raise HintsError(f"not valid JSON: {error}", subject=f"{where}:", remedy=_REMEDY) from error
    if not isinstance(listed, list) or listed != [None] * len(found.parts):
        raise HintsError("not a list of objects", subject=f"{where}:", remedy=_REMEDY)
    return Hints(
        data=ranges(part for part, exists in found.parts if exists),
        zeros=ranges(part for part, exists in found.parts if not exists),
    )


class _Entries:
    """The entries of a list of hints, converted while it is parsed: dictionaries would take ten times the memory."""

    def __init__(self, where: str) -> None:
        self._where = where
        self.parts: list[tuple[Range, bool]] = []

    def add(self, entry: dict[str, Any]) -> None:
        offset, length, exists = (entry.get(key) for key in ("offset", "length", "exists"))
        if type(offset) is not int or type(length) is not int or offset < 0 or length < 0:
            raise self._refusal("offset and length must be numbers of bytes")
        if not isinstance(exists, (str, bool)) or exists not in _EXISTS:
            raise self._refusal('exists must be "true" or "false"')
        self.parts.append(((offset, offset + length), _EXISTS[exists]))

    def _refusal(self, fact: str) -> HintsError:
        return HintsError(f"entry {len(self.parts) + 1}: {fact}", subject=f"{self._where}:", remedy=_REMEDY)


def block_hints(hints: Hints, size_bytes: int, block_size: int) -> BlockHints:
    """Return which blocks of an image of this size to read, and which are zeros.

    A block that became zeros only in part must be read, because the rest of it can be anything.

    Raises:
        HintsError: the hints reach beyond the end of the image.
    """
    end = max((part.parts[-1][1] for part in (hints.data, hints.zeros) if part.parts), default=0)
    if end > size_bytes:
        raise HintsError(
            f"reach to byte {end}, but the source ends at byte {size_bytes}: they are for another image or a larger "
            "state of it",
            subject="the hints",
            remedy="create hints for the snapshot that you back up",
        )
    blocks = block_count(size_bytes, block_size)
    whole_zeros = ranges(
        (-(-start // block_size), blocks if stop == size_bytes else stop // block_size) for start, stop in hints.zeros
    )
    data, partly_zeros = (
        ranges((start // block_size, block_count(stop, block_size)) for start, stop in part)
        for part in (hints.data, hints.zeros)
    )
    zeros = whole_zeros - data
    return BlockHints(read=(data | partly_zeros) - zeros, zeros=zeros)
