"""A set of chunk numbers, stored as bits, that finds runs of chunks quickly. In memory; no I/O.

Bits are grouped in pages, and pages without any bit set do not exist. All pages of a 10 TiB image would take 335 MiB;
the set takes 4 KiB for each 128 MiB that contain a written chunk. Chunks are added and never removed. Not safe for
several threads at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

PAGE_BYTES = 4096
_PAGE_CHUNKS = 8 * PAGE_BYTES


def page_count(chunks: int) -> int:
    """Return how many pages the bits of this number of chunks take."""
    return -(-chunks // _PAGE_CHUNKS)


class ChunkSet:
    """A set of chunk numbers that tracks which of its pages have changed since they were stored."""

    def __init__(self) -> None:
        self._pages: dict[int, bytearray] = {}  # by number; chunk 0 is the lowest bit of the first byte
        self._changed: set[int] = set()         # numbers of pages
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, start: int, stop: int) -> None:
        """Add chunks [start, stop)."""
        for number, first, last in _by_page(start, stop):
            page = self._pages.setdefault(number, bytearray(PAGE_BYTES))
            part = slice(first // 8, (last + 7) // 8)
            before = int.from_bytes(page[part], "little")
            after = before | ((1 << (last - first)) - 1) << first % 8
            if after != before:
                page[part] = after.to_bytes(part.stop - part.start, "little")
                self._count += after.bit_count() - before.bit_count()
                self._changed.add(number)

    def runs(self, start: int, stop: int) -> list[tuple[int, int, bool]]:
        """Return chunks [start, stop) as runs, in order: first, last + 1, and whether they are in the set."""
        runs: list[tuple[int, int, bool]] = []
        for first, last, is_in in self._runs_by_page(start, stop):
            if runs and runs[-1][2] == is_in:
                first = runs.pop()[0]  # noqa: PLW2901 - the run continues across a page boundary
            runs.append((first, last, is_in))
        return runs

    def has(self, start: int, stop: int) -> bool:
        """Return whether all chunks of [start, stop) are in the set."""
        return all(is_in for _, _, is_in in self._runs_by_page(start, stop))

    def _runs_by_page(self, start: int, stop: int) -> Iterator[tuple[int, int, bool]]:
        for number, first, last in _by_page(start, stop):
            base = number * _PAGE_CHUNKS
            page = self._pages.get(number)
            if page is None:
                yield base + first, base + last, False
                continue
            bits = int.from_bytes(page[first // 8 : (last + 7) // 8], "little") >> first % 8
            while first < last:
                is_in = bool(bits & 1)
                others = ~bits if is_in else bits
                lowest = (others & -others).bit_length() - 1  # -1: all remaining bits are the same
                length = min(lowest, last - first) if lowest > 0 else last - first
                yield base + first, base + first + length, is_in
                bits >>= length
                first += length  # noqa: PLW2901 - the rest of this page

    # Pages, as they are stored.

    def load(self, number: int, page: bytes) -> None:
        """Add the chunks of a stored page."""
        self._pages[number] = bytearray(page)
        self._count += int.from_bytes(page, "little").bit_count()

    def page(self, number: int) -> bytes:
        """Return a copy of a page that has a bit set."""
        return bytes(self._pages[number])

    def take_changed(self) -> list[int]:
        """Return the numbers of the pages that changed since the last call, in order."""
        changed, self._changed = self._changed, set()
        return sorted(changed)

    def keep_changed(self, numbers: Iterable[int]) -> None:
        """Note that these pages, which `take_changed` returned, could not be stored."""
        self._changed.update(numbers)


def _by_page(start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """Cut [start, stop) at page boundaries. Yield the number of each page, and the range of bits within it."""
    while start < stop:
        number, first = divmod(start, _PAGE_CHUNKS)
        last = min(stop - number * _PAGE_CHUNKS, _PAGE_CHUNKS)
        yield number, first, last
        start = number * _PAGE_CHUNKS + last
