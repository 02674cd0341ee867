"""Test data that is generated as it is read."""

from __future__ import annotations

import hashlib

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from backyfs.errors import SourceError
from backyfs.geometry import Extent
from backyfs.sources.null import NullSource, size_of
from backyfs.sources.registry import open_source
from tests.support.images import read_source

MIB = 1 << 20
LENGTH = 9 * MIB + 700  # the pattern repeats, and the last sector is incomplete


@pytest.fixture(scope="module")
def whole():
    return read_source(NullSource(LENGTH), 0, LENGTH)


@pytest.mark.parametrize(
    ("uri", "size"),
    [
        ("null://0", 0),
        ("null://1000", 1000),
        ("null://1000B", 1000),
        ("null://3k", 3 << 10),
        ("null://5M", 5 << 20),
        ("null://10G", 10 << 30),
        ("null://10GB", 10 << 30),
        ("null://200T", 200 << 40),
        ("null://7P", 7 << 50),
        ("null://9223372036854775807", 2**63 - 1),
    ],
)
def test_a_size_has_the_units_of_backy2(uri, size):
    assert size_of(uri) == size
    assert open_source(uri).size_bytes == size


@pytest.mark.parametrize(
    "size", ["", "M", "-1", "1.5G", "1K", "1m", "10 G", "10GiB", "1E", "10G/", "1\n", "8192P", "9" * 30, "\u0663"]
)
def test_an_invalid_size_is_refused(size):
    with pytest.raises(SourceError, match="does not give a size; write a whole number of bytes, perhaps with k, M, G"):
        open_source(f"null://{size}")


def test_the_bytes_never_change(whole):
    # Comparing measurements of two releases needs the same data.
    assert hashlib.sha256(whole).hexdigest() == "3b59f78c8a75acd0f289aaeb539ceaea734e17013c7c01ad5c6f450b6982ac2f"


def test_a_sector_consists_of_its_number_pseudorandom_bytes_and_zeros(whole):
    for number in (0, 1, 8191, 8192, 18432):
        sector = whole[number * 512 : (number + 1) * 512]
        assert sector[:8] == number.to_bytes(8, "little")
        assert len(set(sector[8:256])) > 100
        assert sector[256:] == bytes(256)


@pytest.mark.parametrize("block", [512, 4096, 4 * MIB])
def test_no_two_blocks_are_equal_and_none_is_all_zeros(whole, block):
    blocks = [whole[start : start + block] for start in range(0, 8 * MIB, block)]
    assert len(set(blocks)) == len(blocks)
    assert bytes(block) not in blocks


@pytest.mark.parametrize("level", [1, 3, 9])
def test_compression_halves_the_data(whole, level):
    stored = zstandard.ZstdCompressor(level=level).compress(whole[: 4 * MIB])
    assert 0.45 < len(stored) / (4 * MIB) < 0.55


@given(st.integers(0, LENGTH), st.integers(0, LENGTH))
def test_a_part_equals_the_same_range_of_the_whole(whole, one, other):
    start, stop = sorted((one, other))
    assert read_source(NullSource(LENGTH), start, stop - start) == whole[start:stop]


def test_reading_works_at_a_huge_offset():
    source = open_source("null://8P")
    assert read_source(source, (8 << 50) - 512, 8) == ((8 << 50) // 512 - 1).to_bytes(8, "little")


def test_everything_is_data_and_nothing_follows_the_end():
    source = open_source("null://1M")
    assert list(source.data_extents()) == [Extent(0, MIB)]
    assert list(source.data_extents(5)) == [Extent(5, MIB)]
    with pytest.raises(SourceError, match="null://1048576 ends before byte 1048577"):
        read_source(source, MIB, 1)
    assert list(open_source("null://0").data_extents()) == []
