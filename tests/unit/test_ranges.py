"""Ranges compared with sets of numbers."""

from hypothesis import given
from hypothesis import strategies as st

from backyfs.ranges import Ranges, ranges

numbers = st.integers(0, 40)
parts = st.lists(st.tuples(numbers, numbers), max_size=8)


def in_set(given_parts: list[tuple[int, int]]) -> set[int]:
    return {number for start, stop in given_parts for number in range(start, stop)}


def members(found: Ranges) -> set[int]:
    assert all(start < stop for start, stop in found)
    assert all(left[1] < right[0] for left, right in zip(found.parts, found.parts[1:], strict=False))
    return in_set(list(found.parts))


@given(parts)
def test_ranges_contain_the_numbers_of_their_parts(some: list[tuple[int, int]]) -> None:
    found = ranges(some)
    assert members(found) == in_set(some)
    assert len(found) == len(in_set(some))
    assert {number for number in range(50) if number in found} == in_set(some)


@given(parts, parts)
def test_ranges_combine_like_sets(some: list[tuple[int, int]], others: list[tuple[int, int]]) -> None:
    left, right = ranges(some), ranges(others)
    assert members(left | right) == in_set(some) | in_set(others)
    assert members(left & right) == in_set(some) & in_set(others)
    assert members(left - right) == in_set(some) - in_set(others)


@given(parts, numbers, numbers)
def test_within_cuts_out_a_part(some: list[tuple[int, int]], start: int, stop: int) -> None:
    assert in_set(list(ranges(some).within(start, stop))) == in_set(some) & set(range(start, stop))


@given(parts)
def test_a_number_can_be_picked_by_its_position(some: list[tuple[int, int]]) -> None:
    found = ranges(some)
    assert found.picks(range(len(found))) == sorted(in_set(some))
