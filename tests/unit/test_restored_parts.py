"""Restores of a part of an image: what they read from the storage, and what they check."""

from __future__ import annotations

import secrets
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backyfs.engine.restore.restore import RestoreOptions, RestoreReport, restore
from tests.support.repositories import back_up, configure, make_repository, opened
from tests.support.storages import ReadStorage
from tests.support.stored import blob_of, file_of, flip_a_byte

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from backyfs.model import Version
    from backyfs.repository import Repository

pytestmark = pytest.mark.slow

SEGMENT = 256 << 10
BLOCK = 4 * SEGMENT
TABLE = 4 * 4 + 16
IMAGE = secrets.token_bytes(2 * BLOCK) + bytes(BLOCK) + secrets.token_bytes(SEGMENT + 777)  # incompressible
SIZE = len(IMAGE)


@contextmanager
def image_of(directory: Path, number: int) -> Iterator[tuple[Repository, Version]]:
    """Back up the image with an encryption version."""
    config = make_repository(directory / "repository", block_size=BLOCK, encrypted=number > 0)
    configure(config, encryption_version=number)
    (directory / "image").write_bytes(IMAGE)
    with opened(config) as repository:
        yield repository, back_up(repository, directory / "image").version


def restored(repository: Repository, version: Version, target: Path, start: int, stop: int) -> RestoreReport:
    options = RestoreOptions(replace=True, offset=start, length=stop - start)
    return restore(repository, version, str(target), options=options)


@pytest.fixture(scope="module", params=[0, 1, 2])
def stored(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Repository, Version]]:
    with image_of(tmp_path_factory.mktemp("parts"), request.param) as found:
        yield found


@given(bounds=st.lists(st.integers(0, SIZE), min_size=2, max_size=2, unique=True).map(sorted))
@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_part_equals_that_of_the_image(
    stored: tuple[Repository, Version], tmp_path: Path, bounds: list[int]
) -> None:
    start, stop = bounds
    target = tmp_path / "target"
    target.write_bytes(b"*" * SIZE)
    report = restored(*stored, target, start, stop)
    assert report.damaged == ()
    assert target.read_bytes() == b"*" * start + IMAGE[start:stop] + b"*" * (SIZE - stop)


@pytest.mark.parametrize(
    ("start", "stop", "read"),
    [
        (5, 10, [(0, TABLE), (TABLE, SEGMENT + 16)]),
        (SEGMENT - 1, 2 * SEGMENT, [(0, TABLE), (TABLE, 2 * (SEGMENT + 16))]),
        (BLOCK + 3 * SEGMENT, 2 * BLOCK, [(0, TABLE), (TABLE + 3 * (SEGMENT + 16), SEGMENT + 16)]),
        (0, BLOCK, ["whole"]),
        (BLOCK, BLOCK + SEGMENT, [(0, TABLE), (TABLE, SEGMENT + 16)]),
        (1, BLOCK, ["whole"]),
        (2 * BLOCK, 3 * BLOCK, []),
        (3 * BLOCK + SEGMENT, SIZE, [(0, 4 * 2 + 16), (4 * 2 + 16 + SEGMENT + 16, 777 + 16)]),
    ],
)
def test_only_the_segments_of_the_part_are_read(
    tmp_path: Path, start: int, stop: int, read: list[tuple[int, int] | str]
) -> None:
    with image_of(tmp_path, 2) as (repository, version):
        spy: Any = ReadStorage(repository.blocks.storage)
        spied = replace(repository, blocks=replace(repository.blocks, storage=spy))
        restored(spied, version, tmp_path / "target", start, stop)
        assert spy.read == read
        assert (tmp_path / "target").read_bytes()[start:stop] == IMAGE[start:stop]


@pytest.mark.parametrize("number", [0, 1])
def test_all_of_a_block_without_segments_is_read(tmp_path: Path, number: int) -> None:
    with image_of(tmp_path, number) as (repository, version):
        spy: Any = ReadStorage(repository.blocks.storage)
        spied = replace(repository, blocks=replace(repository.blocks, storage=spy))
        restored(spied, version, tmp_path / "target", 5, 10)
        assert spy.read == ["whole"]


@pytest.mark.parametrize("number", [0, 1])
def test_damage_anywhere_in_a_block_without_segments_is_found(tmp_path: Path, number: int) -> None:
    with image_of(tmp_path, number) as (repository, version):
        flip_a_byte(file_of(repository, blob_of(repository, version, 0)))  # in the middle
        report = restored(repository, version, tmp_path / "target", 5, 10)
        assert [(damage.start, damage.stop) for damage in report.damaged] == [(5, 10)]


def test_only_damage_in_the_segments_of_the_part_is_found(tmp_path: Path) -> None:
    with image_of(tmp_path, 2) as (repository, version):
        flip_a_byte(file_of(repository, blob_of(repository, version, 0)))  # in the middle: segment 1 or 2
        assert restored(repository, version, tmp_path / "target", 0, SEGMENT).damaged == ()
        report = restored(repository, version, tmp_path / "target", SEGMENT + 1, 3 * SEGMENT - 1)
        assert [(damage.start, damage.stop) for damage in report.damaged] == [(SEGMENT + 1, 3 * SEGMENT - 1)]


def test_the_object_of_another_blob_is_refused(tmp_path: Path) -> None:
    with image_of(tmp_path, 2) as (repository, version):
        other = file_of(repository, blob_of(repository, version, 1)).read_bytes()
        file_of(repository, blob_of(repository, version, 0)).write_bytes(other)
        report = restored(repository, version, tmp_path / "target", 5, 10)
        assert [(damage.start, damage.stop) for damage in report.damaged] == [(5, 10)]
        assert (tmp_path / "target").read_bytes()[5:10] == bytes(5)
