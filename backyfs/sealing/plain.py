"""Encryption version 0: the block's bytes as they are. Nothing in the object vouches for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backyfs.errors import IntegrityError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from backyfs.model import Buffer


class Plain:
    """Objects that are the block."""

    uses_data_key = False
    seekable = None  # a part of a block has nothing that it could be compared with

    def sealer(self) -> Callable[[Buffer, bytes], Sequence[Buffer]]:
        """Return a function that returns the block itself."""
        return lambda block, data_key: (block,)  # noqa: ARG005 - it has none

    def open(self, stored: Buffer, data_key: bytes, size: int) -> bytes:  # noqa: ARG002 - it has none
        """Return the object's bytes, of which only the number is checked here."""
        block = bytes(stored)  # no copy where `stored` is bytes already
        if len(block) != size:
            raise IntegrityError(f"has {len(block)} bytes where its block has {size}")
        return block
