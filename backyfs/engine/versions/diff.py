"""Compare two versions block by block, by the blobs they refer to, without reading any data.

Pages that both versions share are equal and need not be read, so comparing two similar versions takes hardly any
time.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from backyfs.geometry import PAGE_ENTRIES, block_count, page_count, page_length
from backyfs.metadata.maps.blockmap import ABSENT, HOLE, list_pages, new_entries
from backyfs.metadata.maps.pageloader import PageLoader
from backyfs.metadata.records.versions import find_version
from backyfs.model import BlockIndex, PageNumber, VersionStatus

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from backyfs.metadata.db.database import Connection
    from backyfs.metadata.maps.blockmap import Entries
    from backyfs.model import PageId, Version
    from backyfs.repository import Repository

_COMPARED_AT_ONCE = 32  # entries: arrays are compared as memory


class BlockState(StrEnum):
    """How a block of two versions compares."""

    SAME = "same"
    HOLE = "hole"            # holes in both
    DIFFERENT = "diff"
    NEW_LEFT = "new_left"    # only the left version has it
    NEW_RIGHT = "new_right"  # only the right version has it
    ABSENT = "absent"        # neither has it yet: both backups are incomplete


@dataclass(frozen=True, slots=True)
class DiffRun:
    """`count` consecutive blocks with the same state, beginning with block `first`."""

    first: BlockIndex
    count: int
    state: BlockState


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionComparison:
    """Two versions and how their blocks compare."""

    left: Version
    right: Version
    runs: Iterator[DiffRun]  # read while it is iterated over


@contextmanager
def compared_versions(
    repository: Repository, left: str, right: str, *, find_holes: bool = False
) -> Iterator[VersionComparison]:
    """Give the comparison of two versions that a person names, see `compare`. It ends with the `with`.

    Raises:
        VersionNotFoundError: one of them matches no version, or several.
        DatabaseError: a block map is damaged or cannot be read.
    """
    with repository.database.read() as connection:
        first, second = find_version(connection, left), find_version(connection, right)
        runs = compare(connection, first, second, repository.block_size, find_holes=find_holes)
        yield VersionComparison(left=first, right=second, runs=runs)


def compare(
    connection: Connection, left: Version, right: Version, block_size: int, *, find_holes: bool = False
) -> Iterator[DiffRun]:
    """Yield how the blocks of two versions compare, in order, in runs that are as long as possible.

    Blocks that are holes in both are SAME, or HOLE with `find_holes`, which also reads the pages that both share.

    Raises:
        DatabaseError: a block map is damaged or cannot be read.
    """
    return _join(_runs(connection, left, right, block_size, find_holes=find_holes))


def _runs(
    connection: Connection, left: Version, right: Version, block_size: int, *, find_holes: bool
) -> Iterator[DiffRun]:
    one, other = _Side(connection, left, block_size), _Side(connection, right, block_size)
    blocks = max(one.blocks, other.blocks)
    # Only a valid version is known to have all its blocks.
    skips_equal = not find_holes and all(version.status is VersionStatus.VALID for version in (left, right))
    numbers = [PageNumber(page) for page in range(page_count(blocks))]
    alike = {number for number in numbers if skips_equal and one.is_same(other, number)}
    differing = [number for number in numbers if number not in alike]
    pairs = PageLoader(connection).pairs((one.pages.get(number), other.pages.get(number)) for number in differing)
    for number in numbers:
        first = number * PAGE_ENTRIES
        if number in alike:
            yield DiffRun(BlockIndex(first), page_length(number, blocks), BlockState.SAME)
            continue
        old, new = next(pairs)
        yield from _compare_pages(first, one.fill(old, number), other.fill(new, number), find_holes=find_holes)


class _Side:
    """One of the two versions."""

    def __init__(self, connection: Connection, version: Version, block_size: int) -> None:
        self.blocks = block_count(version.size_bytes, block_size)
        self.pages: dict[PageNumber, PageId] = dict(list_pages(connection, version.id))
        self._without_row = ABSENT if version.status is VersionStatus.INCOMPLETE else HOLE

    def is_same(self, other: _Side, number: PageNumber) -> bool:
        """Return whether both have the same page there, or none, for the same number of blocks."""
        return self.pages.get(number) == other.pages.get(number) and self.length(number) == other.length(number)

    def length(self, number: PageNumber) -> int:
        return max(0, page_length(number, self.blocks))

    def fill(self, entries: Entries | None, number: PageNumber) -> Entries:
        """Return the entries of a page, which may have no row; beyond the end there are none."""
        return new_entries(self.length(number), self._without_row) if entries is None else entries


def _compare_pages(first: int, left: Entries, right: Entries, *, find_holes: bool) -> Iterator[DiffRun]:
    shared = min(len(left), len(right))
    for start in range(0, shared, _COMPARED_AT_ONCE):
        stop = min(start + _COMPARED_AT_ONCE, shared)
        one, other = left[start:stop], right[start:stop]
        if one == other and min(one) > (HOLE if find_holes else ABSENT):
            yield DiffRun(BlockIndex(first + start), stop - start, BlockState.SAME)
            continue
        for index, pair in enumerate(zip(one, other, strict=True), first + start):
            yield DiffRun(BlockIndex(index), 1, _state(*pair, find_holes=find_holes))
    longer, state = (left, BlockState.NEW_LEFT) if len(left) > shared else (right, BlockState.NEW_RIGHT)
    for index in range(shared, len(longer)):
        yield DiffRun(BlockIndex(first + index), 1, BlockState.ABSENT if longer[index] == ABSENT else state)


def _state(left: int, right: int, *, find_holes: bool) -> BlockState:
    if left == right:
        if left == ABSENT:
            return BlockState.ABSENT
        return BlockState.HOLE if find_holes and left == HOLE else BlockState.SAME
    if left == ABSENT:
        return BlockState.NEW_RIGHT
    return BlockState.NEW_LEFT if right == ABSENT else BlockState.DIFFERENT


def _join(runs: Iterable[DiffRun]) -> Iterator[DiffRun]:
    """Merge neighbouring runs that have the same state."""
    last: DiffRun | None = None
    for run in runs:
        if last is not None and last.state is run.state:
            last = DiffRun(last.first, last.count + run.count, run.state)
            continue
        if last is not None:
            yield last
        last = run
    if last is not None:
        yield last
