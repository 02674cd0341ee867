"""Zstd frames that came out of authenticated encryption: open them to exactly the size that is expected."""

from __future__ import annotations

from typing import TYPE_CHECKING

import zstandard

from backyfs.errors import IntegrityError

if TYPE_CHECKING:
    from backyfs.model import Buffer


def decompress(decompressor: zstandard.ZstdDecompressor, frame: Buffer, size: int) -> bytes:
    """Return the `size` bytes of one zstd frame.

    Raises:
        IntegrityError: it is no such frame.
    """
    # The frame is authentic, so this finds mistakes of its writer; a frame that states its size makes
    # zstd allocate that much whatever limit is passed, so the statement is compared first.
    try:
        stated = zstandard.frame_content_size(frame)
        if stated != size:
            raise IntegrityError(f"holds {stated} bytes where its block has {size}")
        return decompressor.decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise IntegrityError(f"is no zstd frame: {error}") from error
