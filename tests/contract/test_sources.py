"""Every kind of source follows the same rules, even one that a test adds to the registry."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pytest

from backyfs.config import FileIoConfig, IoConfig
from backyfs.engine.backup.backup import BackupRequest, backup
from backyfs.engine.damage.scrub import ScrubRequest, scrub
from backyfs.errors import SourceError
from backyfs.schemes import scheme_of
from backyfs.sources.null import NullSource
from backyfs.sources.protocol import check_size
from backyfs.sources.registry import SOURCES, open_source
from tests.support.images import random_bytes, read_source, sparse_image
from tests.support.memory import IMAGES, SOURCE_SCHEME, MemoryImage
from tests.support.repositories import BLOCK
from tests.unit.test_sources import loop_device, open_files

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from backyfs.repository import Repository
    from backyfs.sources.protocol import Source

MIB = 1 << 20
SIZE = 3 * MIB + 512
PIECES = {MIB: random_bytes(8192), 2 * MIB: random_bytes(MIB + 512, 1)}
CONTENT = bytes(MIB) + PIECES[MIB] + bytes(MIB - 8192) + PIECES[2 * MIB]


@dataclass(frozen=True)
class Kind:
    """An image and its name."""

    uri: str
    content: bytes


@contextmanager
def path(directory: Path) -> Iterator[Kind]:
    yield Kind(str(sparse_image(directory / "image", SIZE, PIECES)), CONTENT)


@contextmanager
def file(directory: Path) -> Iterator[Kind]:
    yield Kind(f"file://{sparse_image(directory / 'image', SIZE, PIECES)}", CONTENT)


@contextmanager
def device(directory: Path) -> Iterator[Kind]:
    with loop_device(sparse_image(directory / "image", SIZE, PIECES)) as name:
        yield Kind(name, CONTENT)


@contextmanager
def null(directory: Path) -> Iterator[Kind]:
    yield Kind(f"null://{SIZE}", read_source(NullSource(SIZE), 0, SIZE))


@contextmanager
def memory(directory: Path) -> Iterator[Kind]:
    IMAGES["image"] = MemoryImage(CONTENT)
    yield Kind("memory://image", CONTENT)
    del IMAGES["image"]


KINDS = [path, file, device, null, memory]


@pytest.fixture(autouse=True)
def _memory_is_a_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SOURCES, "memory", SOURCE_SCHEME)


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def kind(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Kind]:
    with request.param(tmp_path) as kind:
        yield kind


@pytest.fixture
def source(kind: Kind) -> Iterator[Source]:
    source = open_source(kind.uri)
    yield source
    source.close()


def test_every_registered_scheme_is_tested_here(tmp_path):
    tested = set()
    for make in KINDS:
        with make(tmp_path) as kind:
            tested.add(scheme_of(kind.uri))
    assert tested == SOURCES.keys()


# The contract


def test_it_knows_its_name_and_size(kind, source):
    assert source.name == kind.uri.removeprefix("file://")
    assert source.size_bytes == source.size_now() == SIZE
    check_size(source)


@pytest.mark.parametrize("start", [0, 1, MIB, MIB + 100, 2 * MIB - 1, SIZE - 1, SIZE, SIZE + 1])
def test_its_extents_cover_all_data_from_any_byte(kind, source, start):
    content = bytearray(SIZE)
    content[:start] = kind.content[:start]
    at = start
    for extent in source.data_extents(start):
        assert at <= extent.start < extent.stop <= SIZE
        content[extent.start : extent.stop] = kind.content[extent.start : extent.stop]
        at = extent.stop
    assert content[:SIZE] == kind.content


def test_everything_is_data_if_holes_must_be_read(kind):
    source = open_source(kind.uri, read_holes=True)
    assert [(extent.start, extent.stop) for extent in source.data_extents()] == [(0, SIZE)]
    source.close()


def test_any_part_of_it_can_be_read(kind, source):
    for start, stop in ((0, SIZE), (0, 0), (1, 2), (MIB - 100, MIB + 9000), (2 * MIB + 1, SIZE), (SIZE - 1, SIZE)):
        assert read_source(source, start, stop - start) == kind.content[start:stop]


def test_threads_can_read_it_together(kind, source):
    with ThreadPoolExecutor(8) as threads:
        parts = threads.map(lambda start: read_source(source, start, min(65536, SIZE - start)), range(0, SIZE, 65536))
    assert b"".join(parts) == kind.content


@pytest.mark.parametrize("offset", [SIZE - 1, SIZE, SIZE + MIB])
def test_reading_beyond_its_end_is_an_error_that_names_it(source, offset):
    with pytest.raises(SourceError, match=source.name):
        read_source(source, offset, 2)


def test_reading_it_does_not_look_like_a_change(source):
    read_source(source, 0, SIZE)
    assert list(source.signs_of_change()) == []


def test_nothing_remains_open(kind):
    before = open_files()
    source = open_source(kind.uri)
    read_source(source, 0, 512)
    source.close()
    assert open_files() == before


# Limits


def with_limit(repository: Repository, reads: int | None) -> Repository:
    config = replace(
        repository.config,
        io_file=FileIoConfig(simultaneous_reads=reads),
        io_null=IoConfig(simultaneous_reads=reads),
    )
    return replace(repository, config=config)


@pytest.mark.parametrize("reads", [None, 1, 3])
def test_it_has_the_limit_of_its_section(kind, repository, reads):
    source = open_source(kind.uri, with_limit(repository, reads).config)
    assert source.parallel == reads
    source.close()


def test_without_a_configuration_there_is_no_limit(source):
    assert source.parallel is None


@pytest.fixture
def image(monkeypatch: pytest.MonkeyPatch) -> Iterator[MemoryImage]:
    """Make an image that counts its readers, on a host with more cores than the limit allows reads."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)))
    IMAGES["image"] = MemoryImage(random_bytes(8 * MIB))
    yield IMAGES["image"]
    del IMAGES["image"]


@pytest.mark.parametrize("reads", [1, 3])
def test_backups_and_comparisons_keep_to_the_limit_of_simultaneous_reads(repository, image, reads):
    image.expected_inside = reads
    source = open_source("memory://image", with_limit(repository, reads).config)
    version = backup(repository, source, BackupRequest(name="disk")).version
    assert image.most_inside == reads
    image.most_inside = 0
    report = scrub(repository, ScrubRequest(versions=(version,), source=source))
    assert (image.most_inside, report.bytes_differing) == (reads, 0)


def test_without_a_limit_more_threads_read_at_a_time(repository, image):
    image.expected_inside = 4
    source = open_source("memory://image", with_limit(repository, None).config)
    backup(repository, source, BackupRequest(name="disk"))
    assert image.most_inside > 3


# The registry


@pytest.mark.parametrize("uri", ["rbd://pool/image", "FILE:///image", "null9://1M"])
def test_the_error_for_an_unknown_kind_of_uri_lists_the_known_ones(uri):
    scheme = uri.partition("://")[0]
    with pytest.raises(SourceError) as raised:
        open_source(uri)
    assert str(raised.value) == (
        f"{uri}: sources of kind {scheme}:// are not known; give a path, file://PATH, null://SIZE or memory://NAME"
    )


@pytest.mark.parametrize("name", ["a-b://c", "://c", "-"])
def test_anything_else_is_a_path(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
    with open(name, "wb") as image:
        image.write(b"x" * BLOCK)
    source = open_source(name)
    assert (source.name, read_source(source, 0, BLOCK)) == (name, b"x" * BLOCK)
    source.close()


def test_a_source_of_a_new_kind_can_be_backed_up_and_is_watched_for_changes(repository, image):
    source = open_source("memory://image")

    def change(_version):
        image.changes += 1

    report = backup(repository, source, BackupRequest(name="disk"), announce=change)
    assert report.version.size_bytes == 8 * MIB
    assert [warning.text for warning in report.warnings] == ["memory://image has changed"]
