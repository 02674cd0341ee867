"""Encryption version 0: the unchanged bytes of the block. The object contains nothing to verify them with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backyfs.errors import IntegrityError
from backyfs.model import DEFAULT_COMPRESSION_LEVEL

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from backyfs.model import Buffer


class Plain:
    """Objects that are the bytes of the block."""

    uses_data_key = False
    seekable = None  # a part of a block cannot be verified

    def sealer(
        self,
        compression_level: int = DEFAULT_COMPRESSION_LEVEL,  # noqa: ARG002 - nothing is compressed
    ) -> Callable[[Buffer, bytes], Sequence[Buffer]]:
        """Return a function that returns the block itself."""
        return lambda block, data_key: (block,)  # noqa: ARG005 - not used

    def open(self, stored: Buffer, data_key: bytes, size: int) -> bytes:  # noqa: ARG002 - not used
        """Return the bytes of the object. Only their number is checked here."""
        block = bytes(stored)  # no copy if `stored` is already bytes
        if len(block) != size:
            raise IntegrityError(f"has {len(block)} bytes, but its block has {size}")
        return block
