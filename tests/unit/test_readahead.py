"""Read-ahead: sequential readers get a growing window, others get none."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from backyfs.mount.readahead import ReadAhead

BLOCK = 4 << 20
IMAGE = 100 * BLOCK


def reader(most_blocks: int = 8) -> ReadAhead:
    return ReadAhead(block_size=BLOCK, most_blocks=most_blocks)


def read(ahead: ReadAhead, *offsets: int, size: int = 128 << 10) -> list[int]:
    """Read at these places; return the blocks that were requested."""
    return [index for offset in offsets for index in ahead.note(offset, size, IMAGE)[0]]


def left_behind(ahead: ReadAhead, *offsets: int, size: int = 1 << 20) -> list[int]:
    """Read at these places; return the blocks that are left behind."""
    return [index for offset in offsets for index in ahead.note(offset, size, IMAGE)[1]]


def test_the_window_doubles_with_each_block_that_is_read() -> None:
    ahead = reader()
    asked = [list(ahead.note(block * BLOCK, BLOCK, IMAGE)[0]) for block in range(6)]
    assert asked == [[1], [2, 3], [4, 5, 6], [7, 8, 9, 10, 11], [12], [13]]


def test_small_reads_within_a_block_ask_once() -> None:
    assert read(reader(), *range(0, BLOCK - (128 << 10), 128 << 10)) == [1]


def test_the_end_of_the_image_is_not_passed() -> None:
    ahead = reader()
    for block in range(94):
        ahead.note(block * BLOCK, BLOCK, IMAGE)
    assert read(ahead, 94 * BLOCK, 95 * BLOCK, size=BLOCK) == []
    assert read(ahead, 99 * BLOCK, size=BLOCK) == []


def test_a_reader_that_jumps_gets_no_read_ahead() -> None:
    ahead = reader()
    assert read(ahead, 0) == [1]
    assert read(ahead, 50 * BLOCK, 20 * BLOCK, 70 * BLOCK, 3 * BLOCK) == []


def test_a_reader_that_jumps_and_then_continues_starts_again() -> None:
    ahead = reader()
    read(ahead, *range(0, 10 * BLOCK, BLOCK), size=BLOCK)
    assert read(ahead, 50 * BLOCK, size=BLOCK) == []
    assert read(ahead, 51 * BLOCK, size=BLOCK) == [52]
    assert read(ahead, 52 * BLOCK, size=BLOCK) == [53, 54]


def test_requests_that_overtake_each_other_count_as_sequential() -> None:
    ahead = reader()
    step = 1 << 20
    asked = read(ahead, 0, 2 * step, step, 4 * step, 3 * step, 6 * step, 5 * step, 7 * step, size=step)
    assert asked == [1, 2, 3, 4, 5]


def test_without_a_window_there_is_no_read_ahead() -> None:
    assert read(reader(0), *range(0, 20 * BLOCK, BLOCK), size=BLOCK) == []


def test_reading_the_same_place_again_requests_nothing() -> None:
    ahead = reader()
    assert read(ahead, 0, 0, 0) == [1]


@given(st.lists(st.tuples(st.integers(0, IMAGE - 1), st.integers(1, 1 << 20)), max_size=60), st.integers(0, 16))
def test_requests_are_ahead_and_within_the_window_and_the_image(reads: list[tuple[int, int]], most: int) -> None:
    ahead = reader(most)
    for offset, size in reads:
        asked, passed = ahead.note(offset, size, IMAGE)
        assert all(index < (offset + size) // BLOCK for index in passed)
        assert len(asked) <= most
        for index in asked:
            assert offset // BLOCK < index < 100
            assert index <= (min(offset + size, IMAGE) - 1) // BLOCK + most


def test_blocks_are_left_behind_once_no_late_request_can_need_them() -> None:
    assert left_behind(reader(), *range(0, 5 * BLOCK, 1 << 20)) == [0, 1, 2]


def test_a_reader_that_jumps_leaves_nothing_behind() -> None:
    ahead = reader()
    assert left_behind(ahead, 0, 50 * BLOCK, 20 * BLOCK) == []
    assert left_behind(ahead, *range(20 * BLOCK + (1 << 20), 24 * BLOCK, 1 << 20)) == [20, 21]
