"""Make zstd frames, and decompress authenticated ones to exactly the expected size."""

from __future__ import annotations

from typing import TYPE_CHECKING

import zstandard

from backyfs.errors import IntegrityError

if TYPE_CHECKING:
    from backyfs.model import Buffer


def compressor(level: int, window_log: int) -> zstandard.ZstdCompressor:
    """Return a compressor that looks back 2 ** `window_log` bytes."""
    parameters = zstandard.ZstdCompressionParameters.from_level(level, window_log=window_log)
    return zstandard.ZstdCompressor(compression_params=parameters)


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
