"""Encryption version 0: the block's bytes as they are. Nothing in the object vouches for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backyfs.errors import IntegrityError
from backyfs.model import DEFAULT_COMPRESSION_LEVEL

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from backyfs.model import Buffer


class Plain:
    """Objects that are the block."""

    uses_data_key = False
    seekable = None  # a part of a block has nothing that it could be compared with

    def sealer(
        self,
        compression_level: int = DEFAULT_COMPRESSION_LEVEL,  # noqa: ARG002 - nothing is compressed
    ) -> Callable[[Buffer, bytes], Sequence[Buffer]]:
        """Return a function that returns the block itself."""
        return lambda block, data_key: (block,)  # noqa: ARG005 - it has none

    def open(self, stored: Buffer, data_key: bytes, size: int) -> bytes:  # noqa: ARG002 - it has none
        """Return the object's bytes, of which only the number is checked here."""
        block = bytes(stored)  # no copy where `stored` is bytes already
        if len(block) != size:
            raise IntegrityError(f"has {len(block)} bytes where its block has {size}")
        return block
