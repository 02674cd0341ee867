"""Tell the C library how to keep the memory of freed blocks."""

from __future__ import annotations

import ctypes

# glibc's malloc.h, mallopt(3)
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8
_LARGEST_MMAP_THRESHOLD = 32 << 20
_NEVER_TRIM = 1 << 30


def keep_freed_memory() -> None:
    """Keep it, instead of giving each block back to the kernel.

    A block of 4 MiB is by default mapped, touched page by page, and unmapped again: 400,000 page faults for an
    image of 2 GiB. Kept memory made opening blobs 1.7 times faster here. What a command keeps is what it needed
    at once, and it needs a bounded number of blocks.
    """
    _set((_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD), (_M_TRIM_THRESHOLD, _NEVER_TRIM))


def share_freed_memory() -> None:
    """Let what one thread has freed serve the others; to be called before there are threads.

    A mount with a cache of 256 MiB needs 370 MiB then, at the same speed; 470 MiB otherwise. Backup and restore
    hold no cache, and a restore is slower with it.
    """
    _set((_M_ARENA_MAX, 1))


def _set(*settings: tuple[int, int]) -> None:
    """Change settings of malloc; on a C library that has no such thing, leave everything as it is."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for setting in settings:
            mallopt(*setting)
