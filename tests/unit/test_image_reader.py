"""Reading bytes of a version, as `os.pread` reads a file."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backyfs.errors import IntegrityError, ObjectMissingError, VersionIncompleteError
from backyfs.images.image import PageCache
from backyfs.images.reader import ImageReader
from backyfs.model import VersionStatus
from tests.support.images import random_bytes
from tests.support.repositories import back_up, make_repository, opened
from tests.support.stored import blob_of, file_of, flip_a_byte, incomplete_copy

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from backyfs.model import Version
    from backyfs.repository import Repository

BLOCK = 3 << 17  # more than a segment, and not a multiple of one
IMAGE = random_bytes(2 * BLOCK) + bytes(2 * BLOCK) + random_bytes(BLOCK, 1) + random_bytes(777, 2)
SIZE = len(IMAGE)


@contextmanager
def backed_up(directory: Path, *, encrypted: bool = True) -> Iterator[tuple[Repository, Version]]:
    config = make_repository(directory / "repository", block_size=BLOCK, encrypted=encrypted)
    image = directory / "image"
    image.write_bytes(IMAGE)
    with opened(config) as repository:
        yield repository, back_up(repository, image).version


@pytest.fixture(scope="module", params=[True, False], ids=["encrypted", "plain"])
def reader(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ImageReader]:
    with backed_up(tmp_path_factory.mktemp("reader"), encrypted=request.param) as found:
        yield ImageReader(*found)


@pytest.fixture
def stored(tmp_path: Path) -> Iterator[tuple[Repository, Version]]:
    with backed_up(tmp_path) as found:
        yield found


@given(offset=st.integers(0, SIZE + BLOCK), length=st.integers(0, SIZE + BLOCK))
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_range_has_the_bytes_of_the_image(reader: ImageReader, offset: int, length: int) -> None:
    assert reader.pread(offset, length) == IMAGE[offset : offset + length]


def test_threads_can_read_at_the_same_time(reader: ImageReader) -> None:
    ranges = [(offset, 1 + offset % 3000) for offset in range(0, SIZE, 9999)]
    with ThreadPoolExecutor(8) as threads:
        read = list(threads.map(lambda one: reader.pread(*one), ranges))
    assert read == [IMAGE[offset : offset + length] for offset, length in ranges]


def test_readers_share_a_cache_of_pages(stored: tuple[Repository, Version], tmp_path: Path) -> None:
    repository, version = stored
    pages = PageCache(1)
    other = back_up(repository, tmp_path / "image", "other").version
    readers = [ImageReader(repository, one, pages) for one in (version, other)]
    for offset in (0, BLOCK, SIZE - 1):
        assert [reader.pread(offset, 1) for reader in readers] == 2 * [IMAGE[offset : offset + 1]]


def test_damaged_bytes_are_an_error_but_others_can_be_read(stored: tuple[Repository, Version]) -> None:
    repository, version = stored
    flip_a_byte(file_of(repository, blob_of(repository, version, 1)))
    reader = ImageReader(repository, version)
    with pytest.raises(IntegrityError):
        reader.pread(BLOCK - 1, BLOCK)
    assert reader.pread(0, BLOCK) == IMAGE[:BLOCK]


def test_a_missing_block_is_an_error(stored: tuple[Repository, Version]) -> None:
    repository, version = stored
    file_of(repository, blob_of(repository, version, 0)).unlink()
    with pytest.raises(ObjectMissingError):
        ImageReader(repository, version).pread(0, 1)


def test_blocks_never_backed_up_are_an_error_and_not_zeros(stored: tuple[Repository, Version]) -> None:
    repository, version = stored
    incomplete = incomplete_copy(repository, version, [1])
    reader = ImageReader(repository, incomplete)
    with pytest.raises(VersionIncompleteError, match=rf"^block 1 of version {incomplete.uid} was never backed up"):
        reader.pread(BLOCK, 1)
    assert reader.pread(0, BLOCK) == IMAGE[:BLOCK]


def test_a_valid_version_with_an_absent_block_is_damaged(stored: tuple[Repository, Version]) -> None:
    repository, version = stored
    incomplete = incomplete_copy(repository, version, [1])
    reader = ImageReader(repository, replace(incomplete, status=VersionStatus.VALID))
    with pytest.raises(IntegrityError, match=rf"^block 1 of version {incomplete.uid} .*; scrub version "):
        reader.pread(BLOCK, 1)
