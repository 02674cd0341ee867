"""The pages of a block map while a backup fills them, in the order in which blocks are done. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from backyfs.geometry import PAGE_ENTRIES, page_length, page_position
from backyfs.metadata.maps.blockmap import ABSENT, HOLE, new_entries

if TYPE_CHECKING:
    from array import array
    from collections.abc import Callable

    from backyfs.geometry import BlockRun
    from backyfs.model import BlobId, BlockIndex, PageNumber


@dataclass(slots=True)
class _Page:
    entries: array[int]
    committed: array[int]  # what the version has so far
    missing: int = 0  # blocks announced but not entered
    changed: bool = False  # since it was last taken


class MapBuilder:
    """Incomplete pages; only those with announced blocks are kept in memory.

    Runs are announced in order by `expect`. Blocks between two runs are as in `initial`, by default holes.
    """

    def __init__(
        self,
        blocks: int,
        initial: Callable[[PageNumber], array[int]] | None = None,
        committed: Callable[[PageNumber], array[int]] | None = None,
    ) -> None:
        """Begin a map of this many blocks.

        `initial` returns the entries of a page for blocks that are not read, `committed` those that the version already
        has, by default absent.
        """
        self._blocks = blocks
        self._initial = initial or self._all(HOLE)
        self._committed = committed or self._all(ABSENT)
        self._pages: dict[PageNumber, _Page] = {}
        self._announced = 0  # blocks below this one were announced or are not read

    def expect(self, run: BlockRun) -> None:
        """Announce that the blocks of a run will be entered. A run does not cross a page."""
        page_no, position = page_position(run.first)
        if page_no not in self._pages:
            self._pages[page_no] = _Page(self._initial(page_no), self._committed(page_no))
        page = self._pages[page_no]
        page.entries[position : position + run.count] = new_entries(run.count, ABSENT)
        page.missing += run.count
        self._announced = run.first + run.count

    def enter(self, index: BlockIndex, entry: BlobId | int) -> None:
        """Enter a block that was announced: the id of its blob, or HOLE."""
        page_no, position = page_position(index)
        page = self._pages[page_no]
        page.entries[position] = entry
        page.missing -= 1
        page.changed = True

    def end(self) -> None:
        """Announce that there are no more runs."""
        self._announced = self._blocks

    def take_complete(self) -> list[tuple[PageNumber, array[int]]]:
        """Return the complete pages, and forget them."""
        complete = [
            page_no
            for page_no, page in self._pages.items()
            if not page.missing and self._announced >= min((page_no + 1) * PAGE_ENTRIES, self._blocks)
        ]
        return [(page_no, self._pages.pop(page_no).entries) for page_no in complete]

    def take_partial(self) -> list[tuple[PageNumber, array[int]]]:
        """Return the other pages in which blocks were entered since they were last returned, and keep them.

        In the result, blocks announced but not entered are absent, and those not announced yet are as the version
        already has them.
        """
        partial = []
        for page_no, page in self._pages.items():
            if not page.changed:
                continue
            page.changed = False
            entries = page.entries[:]
            first = max(0, self._announced - page_no * PAGE_ENTRIES)
            entries[first:] = page.committed[first:]
            partial.append((page_no, entries))
        return partial

    def _all(self, entry: int) -> Callable[[PageNumber], array[int]]:
        return lambda page_no: new_entries(page_length(page_no, self._blocks), entry)
