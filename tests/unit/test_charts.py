"""Charts: from numbers to lines, in Unicode and in ASCII."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backyfs.cli.charts import ASCII, UNICODE, Bar, Kind, bars, columns, glyphs_for, picture, titled

KINDS = (
    Kind(glyph="?", name="absent", colour="2"),
    Kind(glyph=".", name="hole", colour="2"),
    Kind(glyph="-", name="same", colour="32"),
    Kind(glyph="#", name="changed", colour="33"),
)


@pytest.mark.parametrize(
    ("encoding", "glyphs"),
    [("utf-8", UNICODE), ("UTF8", UNICODE), ("ascii", ASCII), ("latin-1", ASCII), (None, ASCII), ("none such", ASCII)],
)
def test_a_stream_that_cannot_encode_blocks_gets_ascii(encoding, glyphs):
    assert glyphs_for(encoding) is glyphs


def test_ascii_charts_contain_only_ascii():
    assert "".join((ASCII.levels, *ASCII.parts, ASCII.hole, ASCII.same, ASCII.changed, ASCII.new)).isascii()


def test_bars_share_one_scale():
    rows = [
        Bar(label="a", parts=(5, 5, 10), note="20 B"),
        Bar(label="longer", parts=(0, 10, 0), note="1 B"),
        Bar(label="none", parts=(0, 0, 0)),
    ]
    assert bars(rows, 32, ASCII) == [
        "a      #####=====.......... 20 B",
        "longer ==========            1 B",
        "none",
    ]


def test_without_bars_there_are_no_lines():
    assert bars([], 80, ASCII) == []


def test_bars_of_zeros_are_empty():
    assert bars([Bar(label="x", parts=(0, 0, 0), note="0 B")], 20, UNICODE) == ["x                0 B"]


@given(st.lists(st.tuples(*[st.integers(0, 1 << 50)] * 3), min_size=1, max_size=20), st.integers(20, 200))
def test_a_bar_is_never_wider_than_the_line_and_the_largest_fills_it(parts, width):
    rows = [Bar(label=str(number), parts=some, note="x") for number, some in enumerate(parts)]
    lines = bars(rows, width, ASCII)
    assert all(len(line) <= width for line in lines)
    if max(map(sum, parts)):
        assert max(len(line) for line in lines) == width


def test_columns_rise_from_zero_to_the_largest_value():
    assert columns([0, 1, 2, 3, 4], 10, 2, UNICODE) == ["   ▄█", " ▄███"]


def test_columns_in_ascii():
    assert columns([0, 1, 2, 3], 10, 2, ASCII) == ["  .#", " :##"]


def test_an_unknown_value_is_a_gap():
    assert columns([4, None, 4], 10, 1, ASCII) == ["# #"]


def test_a_small_value_is_visible():
    assert columns([1_000_000, 1], 10, 1, UNICODE) == ["█▁"]


def test_more_values_than_fit_are_averaged():
    assert columns([0, 2, 4, 4, None, None], 3, 1, UNICODE) == ["▂█ "]


def test_no_values_and_zeros_are_blank():
    assert columns([], 10, 2, UNICODE) == ["", ""]
    assert columns([0, 0], 10, 1, UNICODE) == ["  "]


@given(st.lists(st.none() | st.floats(0, 1e15), max_size=300), st.integers(10, 100), st.integers(1, 6))
def test_a_chart_of_columns_has_the_requested_size(values, width, height):
    lines = columns(values, width, height, UNICODE)
    assert len(lines) == height
    assert {len(line) for line in lines} == {min(len(values), width)}


def test_a_chart_shows_its_title_and_scale():
    assert titled("Rate", [1.0, 2.0], lambda value: f"{value:.0f} B", 20, ASCII, height=2) == [
        "Rate",
        "2 B  #",
        "  0 ##",
    ]


def test_a_chart_of_nothing_says_so():
    assert titled("Rate", [None, None], str, 20, ASCII) == ["Rate: unknown"]


def test_a_map_has_a_character_for_each_place():
    runs = [(0, 2, 2), (2, 3, 1), (5, 1, 3), (6, 2, 0)]
    assert picture(runs, 8, KINDS, 5, 16, colours=False) == (["--...", "#??"], 1)


def test_one_changed_place_among_many_is_visible():
    lines, scale = picture([(0, 500, 1), (500, 1, 3), (501, 499, 2)], 1000, KINDS, 10, 1, colours=False)
    assert (lines, scale) == ([".....#----"], 100)


def test_colours_change_where_the_kind_does():
    assert picture([(0, 2, 2), (2, 1, 3)], 3, KINDS, 5, 1, colours=True)[0] == ["\x1b[32m--\x1b[33m#\x1b[0m"]


def test_a_map_of_nothing_is_empty():
    assert picture([], 0, KINDS, 10, 10, colours=False) == ([], 1)


@given(st.integers(1, 100_000), st.integers(1, 200), st.integers(1, 30))
def test_a_map_fits_into_the_width(length, width, height):
    lines, scale = picture([(0, length, 2)], length, KINDS, width, height, colours=False)
    assert len(lines) <= height
    assert all(len(line) <= width for line in lines)
    assert sum(map(len, lines)) == -(-length // scale)
    assert set("".join(lines)) == {"-"}
