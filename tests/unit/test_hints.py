"""Hints: how they are parsed, and what they mean for blocks."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backyfs.errors import HintsError
from backyfs.hints import Hints, block_hints, parse_hints
from backyfs.ranges import ranges

BLOCK = 10


def hint(offset: int, length: int, exists: object) -> dict[str, object]:
    return {"offset": offset, "length": length, "exists": exists}


def test_truth_values_may_be_text_or_booleans() -> None:
    text = json.dumps([hint(0, 5, "true"), hint(5, 5, True), hint(20, 5, "false"), hint(30, 1, False)])
    assert parse_hints(text, "x") == Hints(data=ranges([(0, 10)]), zeros=ranges([(20, 25), (30, 31)]))


def test_hints_may_be_in_any_order_and_overlap() -> None:
    text = json.dumps([hint(50, 10, True), hint(0, 5, True), hint(3, 10, True), hint(7, 0, True)])
    assert parse_hints(text, "x").data == ranges([(0, 13), (50, 60)])


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        ("", "not valid JSON"),
        (b"\xff", "not valid JSON"),
        ("{}", "entry 1: offset and length"),
        ('{"offset": 1, "length": 2, "exists": "true"}', "not a list of objects"),
        ("[1]", "not a list of objects"),
        ('[{"offset": 1, "length": 2, "exists": "true"}, null]', "not a list of objects"),
        ('[{"offset": 1, "length": 2, "exists": "true"}, {"length": 2, "exists": true}]', "entry 2: offset and length"),
        ('[{"offset": true, "length": 2, "exists": true}]', "entry 1: offset and length"),
        ('[{"offset": -1, "length": 2, "exists": true}]', "entry 1: offset and length"),
        ('[{"offset": 1, "length": -2, "exists": true}]', "entry 1: offset and length"),
        ('[{"offset": 1, "length": 2}]', "entry 1: exists"),
        ('[{"offset": 1, "length": 2, "exists": "yes"}]', "entry 1: exists"),
        ('[{"offset": 1, "length": 2, "exists": 1}]', "entry 1: exists"),
        ("[" * 100_000, "recursion"),
    ],
)
def test_the_error_for_invalid_hints_names_the_entry(text: str | bytes, fact: str) -> None:
    with pytest.raises(HintsError, match=fact):
        parse_hints(text, "diff.json")


def test_a_partly_zeroed_block_is_read() -> None:
    found = block_hints(Hints(data=ranges([]), zeros=ranges([(5, 30)])), 100, BLOCK)
    assert (found.read, found.zeros) == (ranges([(0, 1)]), ranges([(1, 3)]))


def test_data_take_precedence_over_zeros() -> None:
    found = block_hints(Hints(data=ranges([(12, 13)]), zeros=ranges([(0, 30)])), 100, BLOCK)
    assert (found.read, found.zeros) == (ranges([(1, 2)]), ranges([(0, 1), (2, 3)]))


def test_zeros_up_to_the_end_include_the_short_last_block() -> None:
    found = block_hints(Hints(data=ranges([]), zeros=ranges([(90, 95)])), 95, BLOCK)
    assert (found.read, found.zeros) == (ranges([]), ranges([(9, 10)]))


@pytest.mark.parametrize("exists", [True, False])
def test_hints_beyond_the_end_are_refused(exists: bool) -> None:
    hints = parse_hints(json.dumps([hint(99, 2, exists)]), "x")
    with pytest.raises(HintsError, match="reach to byte 101, but the source ends at byte 100"):
        block_hints(hints, 100, BLOCK)


byte = st.integers(0, 95)
parts = st.lists(st.tuples(byte, byte), max_size=5).map(ranges)


@given(parts, parts)
def test_each_byte_is_as_hinted_or_unchanged(data: object, zeros: object) -> None:
    hints = Hints(data=data, zeros=zeros)  # type: ignore[arg-type]  # hypothesis
    found = block_hints(hints, 95, BLOCK)
    for index in range(10):
        here = range(index * BLOCK, min(95, index * BLOCK + BLOCK))
        states = {"data" if at in hints.data else "zeros" if at in hints.zeros else "as it was" for at in here}
        assert (index in found.zeros) == (states == {"zeros"})
        assert (index in found.read) == (states not in ({"zeros"}, {"as it was"}))
