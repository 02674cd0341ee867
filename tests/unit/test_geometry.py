"""Conversion between byte ranges, blocks and pages, compared with counting by definition."""

from __future__ import annotations

from itertools import chain, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backyfs.geometry import (
    PAGE_ENTRIES,
    BlockRun,
    BlockSlice,
    Extent,
    block_count,
    block_length,
    block_runs,
    block_slices,
    bytes_of_pieces,
    page_count,
    page_length,
    page_position,
    pieces_covering,
    within_piece,
)
from backyfs.model import BlockIndex, PageNumber

block_sizes = st.integers(1, 1 << 16)
sizes = st.integers(0, 1 << 40)


@st.composite
def sorted_extents(draw: st.DrawFn, size_bytes: int) -> list[Extent]:
    """Draw extents as a source reports them: not empty, sorted, apart or touching, within the image."""
    edges = sorted(draw(st.sets(st.integers(0, size_bytes), max_size=16)))
    candidates = [Extent(start, stop) for start, stop in pairwise(edges)]
    return [extent for extent in candidates if draw(st.booleans())]


def touched_blocks(extents: list[Extent], block_size: int) -> list[int]:
    """Return the blocks with a byte in an extent, checking each byte at block boundaries."""
    return sorted(
        {index for e in extents for index in range(e.start // block_size, (e.stop - 1) // block_size + 1)}
    )


def covered_blocks(runs: list[BlockRun]) -> list[int]:
    return [index for run in runs for index in range(run.first, run.first + run.count)]


# Counting


@pytest.mark.parametrize(
    ("size_bytes", "blocks"),
    [(0, 0), (1, 1), (4095, 1), (4096, 1), (4097, 2), (8191, 2), (8192, 2), (10 << 40, 2684354560)],
)
def test_the_number_of_blocks_covers_the_image(size_bytes: int, blocks: int) -> None:
    assert block_count(size_bytes, 4096) == blocks


@pytest.mark.parametrize(("blocks", "pages"), [(0, 0), (1, 1), (1023, 1), (1024, 1), (1025, 2), (2048, 2), (2049, 3)])
def test_a_block_map_has_a_page_for_every_1024_blocks(blocks: int, pages: int) -> None:
    assert page_count(blocks) == pages


@pytest.mark.parametrize(
    ("page_no", "blocks", "length"), [(0, 1, 1), (0, 1023, 1023), (0, 1024, 1024), (0, 1025, 1024), (1, 1025, 1)]
)
def test_only_the_last_page_can_be_short(page_no: int, blocks: int, length: int) -> None:
    assert page_length(PageNumber(page_no), blocks) == length


@pytest.mark.parametrize(
    ("index", "position"), [(0, (0, 0)), (1, (0, 1)), (1023, (0, 1023)), (1024, (1, 0)), (2049, (2, 1))]
)
def test_each_block_has_one_place_in_a_page(index: int, position: tuple[int, int]) -> None:
    assert page_position(BlockIndex(index)) == position


@pytest.mark.parametrize(
    ("index", "size_bytes", "length"), [(0, 1, 1), (0, 4095, 4095), (0, 4096, 4096), (0, 4097, 4096), (1, 4097, 1)]
)
def test_only_the_last_block_can_be_short(index: int, size_bytes: int, length: int) -> None:
    assert block_length(BlockIndex(index), size_bytes, 4096) == length


@given(sizes, block_sizes)
def test_the_blocks_of_an_image_cover_it_exactly(size_bytes: int, block_size: int) -> None:
    blocks = block_count(size_bytes, block_size)
    if blocks == 0:
        assert size_bytes == 0
    else:
        last = block_length(BlockIndex(blocks - 1), size_bytes, block_size)
        assert 1 <= last <= block_size
        assert (blocks - 1) * block_size + last == size_bytes


@given(st.integers(0, 1 << 20))
def test_the_pages_of_a_block_map_cover_every_block(blocks: int) -> None:
    lengths = [page_length(PageNumber(page_no), blocks) for page_no in range(page_count(blocks))]
    assert sum(lengths) == blocks
    assert all(length == PAGE_ENTRIES for length in lengths[:-1])
    assert all(1 <= length <= PAGE_ENTRIES for length in lengths)


@given(st.integers(0, 1 << 40))
def test_a_place_in_a_page_leads_back_to_its_block(index: int) -> None:
    page_no, position = page_position(BlockIndex(index))
    assert 0 <= position < PAGE_ENTRIES
    assert page_no * PAGE_ENTRIES + position == index


# Slices


@pytest.mark.parametrize(
    ("offset", "length", "slices"),
    [
        (0, 0, []),
        (0, 1, [(0, 0, 1)]),
        (0, 10, [(0, 0, 10)]),
        (9, 1, [(0, 9, 10)]),
        (9, 2, [(0, 9, 10), (1, 0, 1)]),
        (10, 10, [(1, 0, 10)]),
        (5, 20, [(0, 5, 10), (1, 0, 10), (2, 0, 5)]),
        (24, 1, [(2, 4, 5)]),
        (24, 100, [(2, 4, 5)]),
        (25, 1, []),
        (26, 1, []),
    ],
)
def test_a_read_of_25_bytes_in_blocks_of_10_is_cut_at_blocks_and_at_the_end(
    offset: int, length: int, slices: list[tuple[int, int, int]]
) -> None:
    expected = [BlockSlice(BlockIndex(index), start, stop) for index, start, stop in slices]
    assert list(block_slices(offset, length, 25, 10)) == expected


@given(st.integers(0, 3000), st.integers(0, 3000), st.integers(0, 2000), st.integers(1, 300))
def test_slices_add_up_to_the_requested_range(
    offset: int, length: int, size_bytes: int, block_size: int
) -> None:
    image = [*range(size_bytes)]
    blocks = [image[start : start + block_size] for start in range(0, size_bytes, block_size)]
    slices = list(block_slices(offset, length, size_bytes, block_size))
    assert [byte for part in slices for byte in blocks[part.index][part.start : part.stop]] == (
        image[offset : offset + length]
    )
    assert all(part.start < part.stop for part in slices)


# Pieces


@pytest.mark.parametrize(
    ("start", "stop", "pieces", "length"),
    [
        (0, 1, range(1), 10),
        (9, 10, range(1), 10),
        (9, 11, range(2), 20),
        (10, 25, range(1, 3), 15),
        (24, 25, range(2, 3), 5),
    ],
)
def test_bytes_of_a_blob_of_25_are_covered_by_pieces_of_10(start: int, stop: int, pieces: range, length: int) -> None:
    assert pieces_covering(start, stop, 10) == pieces
    assert bytes_of_pieces(pieces, 25, 10) == length


@given(st.integers(1, 2000), st.integers(1, 300), st.data())
def test_pieces_add_up_to_the_requested_range(size: int, piece_size: int, data: st.DataObject) -> None:
    blob = [*range(size)]
    start = data.draw(st.integers(0, size - 1))
    stop = data.draw(st.integers(start + 1, size))
    numbers = pieces_covering(start, stop, piece_size)
    pieces = {number: blob[number * piece_size : (number + 1) * piece_size] for number in numbers}
    single = [pieces[number][within_piece(start, stop, number, piece_size)] for number in numbers]
    assert [*chain(*single)] == blob[start:stop]
    joined = [*chain(*pieces.values())]
    assert joined[within_piece(start, stop, numbers.start, piece_size)] == blob[start:stop]
    assert len(joined) == bytes_of_pieces(numbers, size, piece_size)


# Runs


@pytest.mark.parametrize(
    ("extents", "runs"),
    [
        ([], []),
        ([(0, 1)], [(0, 1)]),
        ([(0, 10)], [(0, 1)]),
        ([(0, 11)], [(0, 2)]),
        ([(9, 11)], [(0, 2)]),
        ([(10, 20)], [(1, 1)]),
        ([(0, 2), (5, 7)], [(0, 1)]),              # two extents in one block: read once
        ([(0, 12), (15, 31)], [(0, 2), (2, 2)]),   # they meet in block 1
        ([(0, 10), (90, 95)], [(0, 1), (9, 1)]),
        ([(0, 95)], [(0, 4), (4, 4), (8, 2)]),     # four blocks at most
        ([(80, 200)], [(8, 2)]),                   # the image ends at 95
        ([(100, 200)], []),
    ],
)
def test_extents_of_95_bytes_in_blocks_of_10_become_runs(
    extents: list[tuple[int, int]], runs: list[tuple[int, int]]
) -> None:
    expected = [BlockRun(BlockIndex(first), count) for first, count in runs]
    assert list(block_runs((Extent(*extent) for extent in extents), 95, 10, 4)) == expected


def test_a_run_ends_where_a_page_ends() -> None:
    runs = block_runs([Extent(1020, 2050)], 4000, 1, 4000)
    assert [(run.first, run.count) for run in runs] == [(1020, 4), (1024, 1024), (2048, 2)]


@given(st.data(), st.integers(0, 20_000), st.integers(1, 50), st.integers(1, 3000))
def test_runs_cover_the_blocks_of_extents_once_and_in_order(
    data: st.DataObject, size_bytes: int, block_size: int, max_blocks: int
) -> None:
    extents = data.draw(sorted_extents(size_bytes))
    runs = list(block_runs(extents, size_bytes, block_size, max_blocks))
    assert covered_blocks(runs) == touched_blocks(extents, block_size)


@given(st.data(), st.integers(0, 20_000), st.integers(1, 5), st.integers(1, 3000))
def test_a_run_is_bounded_and_within_one_page(
    data: st.DataObject, size_bytes: int, block_size: int, max_blocks: int
) -> None:
    for run in block_runs(data.draw(sorted_extents(size_bytes)), size_bytes, block_size, max_blocks):
        assert 1 <= run.count <= max_blocks
        assert page_position(run.first)[0] == page_position(BlockIndex(run.first + run.count - 1))[0]
