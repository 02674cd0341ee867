"""Compare some blocks that hints do not name with the source: hints of another image are found out so."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from backyfs.blocks import load_block
from backyfs.errors import HintsError
from backyfs.geometry import PAGE_ENTRIES, block_count, block_length, page_position
from backyfs.metadata.blobs import load_blobs
from backyfs.metadata.blockmap import HOLE, list_pages, page_entries
from backyfs.model import BlobId, BlockIndex
from backyfs.ranges import Ranges, ranges

if TYPE_CHECKING:
    from array import array

    from backyfs.engine.plan import Plan
    from backyfs.model import Blob, PageNumber, Version
    from backyfs.repository import Repository
    from backyfs.sources import Source

_AT_THE_START = 5  # most programs that write to a disk change something there
_AT_RANDOM = 5
_WITH_DATA = 5     # at random as well: of a large image, most blocks are holes


class Sampling:
    """Blocks that a plan does not read, compared with what the new version is going to have there."""

    def __init__(self, repository: Repository, source: Source, plan: Plan, base: Version | None) -> None:
        """Prepare to compare; without a base, the blocks have to be zeros."""
        self._repository = repository
        self._source = source
        self._plan = plan
        self._base = base
        self._pages: dict[PageNumber, array[int]] = {}
        self._random = random.SystemRandom()

    def check(self) -> None:
        """Compare blocks at the start and at random.

        Raises:
            HintsError: one differs.
            SourceError: the source cannot be read.
            DatabaseError: the block map of the base cannot be read.
        """
        for index in sorted(self._chosen()):
            if not self._is_as_expected(index):
                self._refuse(index)

    def _chosen(self) -> set[BlockIndex]:
        rest = self._not_read()
        if not rest:
            return set()
        count = len(rest)
        places = {*range(min(_AT_THE_START, count)), *self._random.sample(range(count), min(_AT_RANDOM, count))}
        return {BlockIndex(index) for index in rest.picks(sorted(places))} | self._some_with_data(rest)

    def _not_read(self) -> Ranges:
        if self._base is not None:
            return self._plan.kept
        blocks = block_count(self._plan.size_bytes, self._plan.block_size)
        return ranges([(0, blocks)]) - self._plan.read - self._plan.zeros

    def _some_with_data(self, rest: Ranges) -> set[BlockIndex]:
        if self._base is None:
            return set()
        with self._repository.database.read() as connection:
            numbers = [page_no for page_no, _ in list_pages(connection, self._base.id)]
        chosen = set()
        for page_no in self._random.sample(numbers, min(_WITH_DATA, len(numbers))):
            first = page_no * PAGE_ENTRIES
            candidates = [
                first + position
                for position, entry in enumerate(self._page(page_no))
                if entry > HOLE and first + position in rest
            ]
            if candidates:
                chosen.add(BlockIndex(self._random.choice(candidates)))
        return chosen

    def _is_as_expected(self, index: BlockIndex) -> bool:
        block = bytearray(block_length(index, self._plan.size_bytes, self._plan.block_size))
        with memoryview(block) as view:
            self._source.read_into(index * self._plan.block_size, view)
        blob = self._blob(index)
        if blob is None:
            return block == bytes(len(block))
        if blob.fingerprint is None:
            return block == load_block(self._repository.blocks, blob)
        return self._repository.blocks.fingerprint(block) == blob.fingerprint

    def _blob(self, index: BlockIndex) -> Blob | None:
        if self._base is None:
            return None
        page_no, position = page_position(index)
        entry = self._page(page_no)[position]
        if entry == HOLE:
            return None
        with self._repository.database.read() as connection:
            return load_blobs(connection, [BlobId(entry)])[BlobId(entry)]

    def _page(self, page_no: PageNumber) -> array[int]:
        assert self._base is not None
        if page_no not in self._pages:
            blocks = block_count(self._base.size_bytes, self._plan.block_size)
            with self._repository.database.read() as connection:
                self._pages[page_no] = page_entries(connection, self._base, page_no, blocks)
        return self._pages[page_no]

    def _refuse(self, index: BlockIndex) -> None:
        start = index * self._plan.block_size
        stop = start + block_length(index, self._plan.size_bytes, self._plan.block_size)
        expected = "holds data" if self._base is None else f"differs from version {self._base.uid}"
        raise HintsError(
            f"bytes {start} to {stop} of the source are in no hint, and what is there {expected}: the hints are of "
            "another image, or do not begin at that version; make new ones, or back up without hints"
        )
