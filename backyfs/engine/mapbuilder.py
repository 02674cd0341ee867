"""The pages of a block map while a backup fills them in, in whatever order its blocks are done. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backyfs.geometry import PAGE_ENTRIES, page_length, page_position
from backyfs.metadata.blockmap import ABSENT, HOLE, new_entries

if TYPE_CHECKING:
    from array import array

    from backyfs.geometry import BlockRun
    from backyfs.model import BlobId, BlockIndex, PageNumber


class MapBuilder:
    """Pages that are not complete yet; only those that have blocks under way are kept.

    Runs are announced in order by `expect`. What lies between two of them is holes.
    """

    def __init__(self, blocks: int) -> None:
        self._blocks = blocks
        self._pages: dict[PageNumber, array[int]] = {}
        self._missing: dict[PageNumber, int] = {}  # blocks that were announced and not entered
        self._announced = 0                        # blocks below this one were announced, or are holes

    def expect(self, run: BlockRun) -> None:
        """Announce that the blocks of a run will be entered. A run lies within one page."""
        page_no, position = page_position(run.first)
        if page_no not in self._pages:
            self._pages[page_no] = new_entries(page_length(page_no, self._blocks), HOLE)
            self._missing[page_no] = 0
        entries = self._pages[page_no]
        entries[position : position + run.count] = new_entries(run.count, ABSENT)
        self._missing[page_no] += run.count
        self._announced = run.first + run.count

    def enter(self, index: BlockIndex, entry: BlobId | int) -> None:
        """Enter a block that was announced: the id of its blob, or HOLE."""
        page_no, position = page_position(index)
        self._pages[page_no][position] = entry
        self._missing[page_no] -= 1

    def end(self) -> None:
        """Announce that no more runs come: the rest are holes."""
        self._announced = self._blocks

    def abandon(self) -> None:
        """Give up: blocks that were not entered, and those that were never announced, are absent."""
        for page_no, entries in self._pages.items():
            first = max(0, self._announced - page_no * PAGE_ENTRIES)
            if first < len(entries):
                entries[first:] = new_entries(len(entries) - first, ABSENT)
            self._missing[page_no] = 0
        self._announced = self._blocks

    def take_complete(self) -> list[tuple[PageNumber, array[int]]]:
        """Return the pages to which nothing will be added, and forget them."""
        complete = [
            page_no
            for page_no, missing in self._missing.items()
            if not missing and self._announced >= min((page_no + 1) * PAGE_ENTRIES, self._blocks)
        ]
        return [(page_no, self._take(page_no)) for page_no in complete]

    def _take(self, page_no: PageNumber) -> array[int]:
        del self._missing[page_no]
        return self._pages.pop(page_no)
