"""The map builder returns each page once, when all its blocks are known, with the entries made."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st

from backyfs.engine.backup.mapbuilder import MapBuilder
from backyfs.geometry import PAGE_ENTRIES, BlockRun
from backyfs.metadata.maps.blockmap import ABSENT, HOLE
from backyfs.model import BlobId, BlockIndex, PageNumber

if TYPE_CHECKING:
    from collections.abc import Iterable
    from random import Random

Pages = dict[int, list[int]]


def run(first: int, count: int = 1) -> BlockRun:
    return BlockRun(BlockIndex(first), count)


def enter_all(builder: MapBuilder, blocks: Iterable[int], blob_id: int = 7) -> None:
    for index in blocks:
        builder.enter(BlockIndex(index), BlobId(blob_id))


def take(builder: MapBuilder) -> Pages:
    return {int(page_no): list(entries) for page_no, entries in builder.take_complete()}


def abandon(builder: MapBuilder) -> Pages:
    """Return the pages kept of a backup that ends early."""
    return {int(page_no): list(entries) for page_no, entries in builder.take_complete() + builder.take_partial()}


def test_an_image_without_data_has_no_pages() -> None:
    builder = MapBuilder(5000)
    builder.end()
    assert take(builder) == {}


def test_a_page_is_complete_when_its_last_block_is_entered() -> None:
    builder = MapBuilder(3)
    builder.expect(run(0, 3))
    enter_all(builder, [0, 2])
    assert take(builder) == {}
    enter_all(builder, [1])
    assert take(builder) == {0: [7, 7, 7]}


def test_a_page_is_returned_once() -> None:
    builder = MapBuilder(1)
    builder.expect(run(0))
    enter_all(builder, [0])
    assert take(builder) == {0: [7]}
    assert take(builder) == {}


def test_a_page_is_held_back_until_its_end_is_passed() -> None:
    builder = MapBuilder(3)
    builder.expect(run(0, 2))
    enter_all(builder, [0, 1])
    assert take(builder) == {}
    builder.expect(run(2))
    enter_all(builder, [2])
    assert take(builder) == {0: [7, 7, 7]}


def test_the_end_of_the_runs_completes_the_last_page_with_holes() -> None:
    builder = MapBuilder(4)
    builder.expect(run(0, 2))
    enter_all(builder, [0, 1])
    builder.end()
    assert take(builder) == {0: [7, 7, HOLE, HOLE]}


def test_blocks_between_runs_are_holes() -> None:
    builder = MapBuilder(5)
    builder.expect(run(1))
    builder.expect(run(4))
    enter_all(builder, [4, 1])
    assert take(builder) == {0: [HOLE, 7, HOLE, HOLE, 7]}


def test_a_run_in_a_later_page_completes_an_earlier_one() -> None:
    builder = MapBuilder(3000)
    builder.expect(run(10))
    enter_all(builder, [10], 5)
    assert take(builder) == {}
    builder.expect(run(2048))
    assert take(builder) == {0: [HOLE] * 10 + [5] + [HOLE] * 1013}


def test_pages_are_returned_when_complete_and_not_in_order() -> None:
    builder = MapBuilder(2049)
    builder.expect(run(0))
    builder.expect(run(1024))
    builder.expect(run(2048))
    enter_all(builder, [1024, 2048])
    assert [*take(builder)] == [1, 2]
    enter_all(builder, [0])
    assert [*take(builder)] == [0]


def test_pages_without_any_run_are_never_returned() -> None:
    builder = MapBuilder(3072)
    builder.expect(run(0))
    builder.expect(run(3071))
    enter_all(builder, [0, 3071])
    assert [*take(builder)] == [0, 2]


def test_the_last_page_has_as_many_entries_as_the_image_has_blocks() -> None:
    builder = MapBuilder(1027)
    builder.expect(run(1026))
    enter_all(builder, [1026])
    assert take(builder) == {1: [HOLE, HOLE, 7]}


def test_a_block_found_to_be_zeros_is_entered_as_a_hole() -> None:
    builder = MapBuilder(2)
    builder.expect(run(0, 2))
    builder.enter(BlockIndex(0), HOLE)
    builder.enter(BlockIndex(1), BlobId(9))
    assert take(builder) == {0: [HOLE, 9]}


def test_abandoning_leaves_blocks_without_an_entry_absent() -> None:
    builder = MapBuilder(4)
    builder.expect(run(0, 4))
    enter_all(builder, [1])
    assert abandon(builder) == {0: [ABSENT, 7, ABSENT, ABSENT]}


def test_abandoning_leaves_unannounced_blocks_absent() -> None:
    builder = MapBuilder(6)
    builder.expect(run(2))
    enter_all(builder, [2])
    assert abandon(builder) == {0: [HOLE, HOLE, 7, ABSENT, ABSENT, ABSENT]}


def test_abandoning_keeps_holes_already_passed() -> None:
    builder = MapBuilder(1030)
    builder.expect(run(0))
    builder.expect(run(1025))
    enter_all(builder, [1025])
    assert abandon(builder) == {1: [HOLE, 7, ABSENT, ABSENT, ABSENT, ABSENT]}


def test_abandoning_before_anything_was_announced_gives_no_pages() -> None:
    builder = MapBuilder(10)
    assert abandon(builder) == {}


def test_abandoning_after_the_end_leaves_no_other_block_absent() -> None:
    builder = MapBuilder(3)
    builder.expect(run(0, 2))
    enter_all(builder, [1])
    builder.end()
    assert abandon(builder) == {0: [ABSENT, 7, HOLE]}


def test_a_partial_page_is_returned_again_when_it_has_more_entries() -> None:
    builder = MapBuilder(3)
    builder.expect(run(0, 3))
    enter_all(builder, [0])
    assert abandon(builder) == {0: [7, ABSENT, ABSENT]}
    assert abandon(builder) == {}
    enter_all(builder, [2])
    assert abandon(builder) == {0: [7, ABSENT, 7]}
    enter_all(builder, [1])
    assert take(builder) == {0: [7, 7, 7]}


def test_unread_blocks_keep_their_old_entries() -> None:
    builder = MapBuilder(5, initial=lambda _: array("q", [1, 2, 3, 4, HOLE]))
    builder.expect(run(1))
    builder.expect(run(3))
    enter_all(builder, [1])
    assert abandon(builder) == {0: [1, 7, 3, ABSENT, ABSENT]}
    enter_all(builder, [3])
    builder.end()
    assert take(builder) == {0: [1, 7, 3, 7, HOLE]}


def test_committed_blocks_are_kept_when_the_backup_ends_early() -> None:
    entries = array("q", [5, ABSENT, ABSENT, 6])
    builder = MapBuilder(4, initial=lambda _: array("q", [5, HOLE, HOLE, 6]), committed=lambda _: entries)
    builder.expect(run(1))
    enter_all(builder, [1])
    assert abandon(builder) == {0: [5, 7, ABSENT, 6]}


@st.composite
def announced_runs(draw: st.DrawFn) -> tuple[int, list[BlockRun]]:
    """Draw the number of blocks of an image, and ordered runs that do not cross the end of a page."""
    blocks = draw(st.integers(1, 3 * PAGE_ENTRIES))
    runs: list[BlockRun] = []
    position = draw(st.integers(0, blocks))
    while position < blocks and len(runs) < 8:
        page_end = (position // PAGE_ENTRIES + 1) * PAGE_ENTRIES
        count = min(draw(st.integers(1, 700)), page_end - position, blocks - position)
        runs.append(run(position, count))
        position += count + draw(st.one_of(st.just(0), st.integers(0, 1500)))
    return blocks, runs


@given(announced_runs(), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_every_page_is_returned_once_with_its_entries_in_any_order(
    announced: tuple[int, list[BlockRun]], random: Random
) -> None:
    blocks, runs = announced
    builder = MapBuilder(blocks)
    expected = [HOLE] * blocks
    waiting: list[int] = []
    taken: Pages = {}

    def take_more() -> None:
        for page_no, entries in take(builder).items():
            assert page_no not in taken
            taken[page_no] = entries

    for each in runs:
        builder.expect(each)
        waiting += range(each.first, each.first + each.count)
        random.shuffle(waiting)
        keep = random.randrange(len(waiting) + 1)
        for index in waiting[keep:]:
            expected[index] = index + 1
            builder.enter(BlockIndex(index), BlobId(index + 1))
        del waiting[keep:]
        take_more()
    builder.end()
    for index in waiting:
        expected[index] = index + 1
        builder.enter(BlockIndex(index), BlobId(index + 1))
    take_more()

    touched = {each.first // PAGE_ENTRIES for each in runs}
    pages = {page_no: expected[page_no * PAGE_ENTRIES : (page_no + 1) * PAGE_ENTRIES] for page_no in touched}
    assert taken == pages


@given(announced_runs(), st.randoms(use_true_random=False), st.integers(0, 8))
@settings(deadline=None)
def test_an_abandoned_map_never_takes_a_missing_block_for_a_hole(
    announced: tuple[int, list[BlockRun]], random: Random, announced_count: int
) -> None:
    blocks, runs = announced
    runs = runs[:announced_count]
    builder = MapBuilder(blocks)
    expected = [ABSENT] * blocks
    passed = 0
    for each in runs:
        builder.expect(each)
        expected[passed : each.first] = [HOLE] * (each.first - passed)
        passed = each.first + each.count
    for each in runs:
        for index in range(each.first, each.first + each.count):
            if random.random() < 0.7:
                expected[index] = index + 1
                builder.enter(BlockIndex(index), BlobId(index + 1))
    touched = {index // PAGE_ENTRIES for index, entry in enumerate(expected) if entry > HOLE}
    assert abandon(builder) == {
        page_no: expected[page_no * PAGE_ENTRIES : (page_no + 1) * PAGE_ENTRIES] for page_no in touched
    }


def test_page_numbers_agree_with_the_block_map() -> None:
    builder = MapBuilder(PAGE_ENTRIES + 1)
    builder.expect(run(PAGE_ENTRIES))
    enter_all(builder, [PAGE_ENTRIES])
    [(page_no, entries)] = builder.take_complete()
    assert page_no == PageNumber(1)
    assert entries.typecode == "q"
