"""Compare some of the blocks that are not read with the source, to detect hints of another image.

The cost depends on the number of samples, not on the size of the image: a few blocks are read, and the source is
asked a few times for its next data.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from backyfs.errors import HintsError
from backyfs.geometry import PAGE_ENTRIES, block_count, block_length
from backyfs.images.image import Image
from backyfs.images.parts import PartLoader
from backyfs.metadata.maps.blockmap import HOLE, list_pages
from backyfs.model import BlockIndex
from backyfs.ranges import Ranges, ranges

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backyfs.engine.backup.plan import Plan
    from backyfs.model import Version
    from backyfs.repository import Repository
    from backyfs.sources.protocol import Source

_AT_THE_START = 5  # where most programs that write to a disk change something
_AT_RANDOM = 5     # and the next data after each, because most blocks of a large image are holes
_OF_RANGES = 5     # ranges whose first data is compared, to find a single block in a large range
_OF_THE_BASE = 5   # blocks in which the base has data


@dataclass(frozen=True, slots=True, kw_only=True)
class _Claim:
    """What the hints say about blocks that are not read."""

    blocks: Ranges
    is_hinted: bool  # by an entry; False: by the lack of one
    base: Image | None  # has the same blocks; None: they are zeros


class Sampling:
    """Compares blocks that a plan does not read with what the new version will have there."""

    def __init__(self, repository: Repository, source: Source, plan: Plan, base: Version | None) -> None:
        """Prepare to compare; without a base, the blocks must be zeros."""
        self._repository = repository
        self._loader = PartLoader(repository.blocks)
        self._source = source
        self._plan = plan
        self._base = None if base is None else Image(repository, base)
        self._random = random.SystemRandom()

    def check(self) -> None:
        """Compare blocks at the start, at random, and where source or base have data.

        Raises:
            HintsError: one differs.
            SourceError: the source cannot be read.
            DatabaseError: the block map of the base cannot be read.
        """
        for claim in self._claims():
            for index in sorted(self._chosen(claim)):
                if not self._is_true(claim, index):
                    self._refuse(claim, index)

    def _claims(self) -> Iterator[_Claim]:
        yield _Claim(blocks=self._plan.zeros, is_hinted=True, base=None)
        rest = self._plan.kept
        if self._base is None:
            blocks = block_count(self._plan.size_bytes, self._plan.block_size)
            rest = ranges([(0, blocks)]) - self._plan.read - self._plan.zeros
        yield _Claim(blocks=rest, is_hinted=False, base=self._base)

    def _chosen(self, claim: _Claim) -> set[BlockIndex]:
        count = len(claim.blocks)
        first = min(_AT_THE_START, count)
        others = self._random.sample(range(first, count), min(_AT_RANDOM, count - first))
        at_random = claim.blocks.picks(sorted(others))
        parts = claim.blocks.parts
        starts = [start for start, _ in self._random.sample(parts, min(_OF_RANGES, len(parts)))]
        chosen = [*claim.blocks.picks(range(first)), *at_random, *self._next_data(claim, [*at_random, *starts])]
        return {BlockIndex(index) for index in chosen} | self._with_data_in_base(claim)

    def _next_data(self, claim: _Claim, indexes: list[int]) -> Iterator[int]:
        """Yield the blocks with the next data of the source from each of these on, if the claim includes them."""
        for index in indexes:
            extent = next(self._source.data_extents(index * self._plan.block_size), None)
            if extent is not None and extent.start // self._plan.block_size in claim.blocks:
                yield extent.start // self._plan.block_size

    def _with_data_in_base(self, claim: _Claim) -> set[BlockIndex]:
        if claim.base is None:
            return set()
        with self._repository.database.read() as connection:
            numbers = [page_no for page_no, _ in list_pages(connection, claim.base.version.id)]
        chosen = set()
        for page_no in self._random.sample(numbers, min(_OF_THE_BASE, len(numbers))):
            first = page_no * PAGE_ENTRIES
            candidates = [
                first + position
                for position, entry in enumerate(claim.base.page(page_no).entries)
                if entry > HOLE and first + position in claim.blocks
            ]
            if candidates:
                chosen.add(BlockIndex(self._random.choice(candidates)))
        return chosen

    def _is_true(self, claim: _Claim, index: BlockIndex) -> bool:
        blob = None if claim.base is None else claim.base.named_blob(index)
        if blob is None and self._is_hole(index):
            return True
        block = self._read(index)
        if blob is None:
            return block == bytes(len(block))
        return self._loader.holds(blob, block)

    def _is_hole(self, index: BlockIndex) -> bool:
        start = index * self._plan.block_size
        extent = next(self._source.data_extents(start), None)
        return extent is None or extent.start >= start + self._length(index)

    def _read(self, index: BlockIndex) -> bytearray:
        block = bytearray(self._length(index))
        with memoryview(block) as view:
            self._source.read_into(index * self._plan.block_size, view)
        return block

    def _length(self, index: BlockIndex) -> int:
        return block_length(index, self._plan.size_bytes, self._plan.block_size)

    def _refuse(self, claim: _Claim, index: BlockIndex) -> None:
        start = index * self._plan.block_size
        if claim.is_hinted:
            fact = 'hold data, but the hints say that they are zeros ("exists": "false")'
        elif claim.base is None:
            fact = "are in no hint, but hold data"
        else:
            fact = f"are in no hint, but differ from version {claim.base.version.uid}"
        raise HintsError(
            f"{fact}: the hints are for another image or state, or relative to another version",
            subject=f"bytes {start} to {start + self._length(index)} of the source",
            remedy="make new ones, or back up without hints",
        )
