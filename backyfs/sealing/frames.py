"""Decompress authenticated zstd frames to exactly the expected size."""

from __future__ import annotations

from typing import TYPE_CHECKING

import zstandard

from backyfs.errors import IntegrityError

if TYPE_CHECKING:
    from backyfs.model import Buffer


def decompress(decompressor: zstandard.ZstdDecompressor, frame: Buffer, size: int) -> bytes:
    """Return the `size` bytes of one zstd frame.

    Raises:
        IntegrityError: it is not such a frame.
    """
    # The frame is authentic, so this finds mistakes of its writer. The stated size is compared first, because zstd
    # allocates that much, regardless of any limit passed.
    try:
        stated = zstandard.frame_content_size(frame)
        if stated != size:
            raise IntegrityError(f"contains {stated} bytes, but its block has {size}")
        return decompressor.decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise IntegrityError(f"is not a zstd frame: {error}") from error
