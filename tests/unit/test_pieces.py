"""Parts of blocks: what is read from the storage, what is checked, and that a mount shows the image."""

from __future__ import annotations

import os
import secrets
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import trio

from backyfs.blocks import PieceLoader, load_block, piece_bytes, save_blocks
from backyfs.errors import IntegrityError, ObjectMissingError
from backyfs.model import BlobUid, PageNumber
from backyfs.mount.contents import Contents
from backyfs.mount.settings import Settings
from backyfs.storage.cache.storage import cached
from backyfs.storage.forwarding import ForwardingStorage
from backyfs.storage.protocol import MAX_OBJECT_BYTES
from backyfs.work.job import Job
from tests.support.jobs import spec
from tests.support.repositories import back_up, configure, make_repository, opened
from tests.support.storages import ReadStorage
from tests.support.stored import blob_of, file_of, flip_a_byte

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from backyfs.blocks import BlockStore
    from backyfs.model import Blob, Buffer, Version
    from backyfs.repository import Repository
    from backyfs.storage.keys import Key
    from backyfs.storage.protocol import Storage, Traits

SEGMENT = 256 << 10
BLOCK = 4 * SEGMENT
TABLE = 4 * 4 + 16
IMAGE = secrets.token_bytes(2 * BLOCK + SEGMENT + 777)


@contextmanager
def repository_of(directory: Path, version: int) -> Iterator[Repository]:
    config = make_repository(directory, block_size=BLOCK, encrypted=version > 0)
    configure(config, encryption_version=version)
    with opened(config) as repository:
        yield repository


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[Repository]:
    with repository_of(tmp_path, 2) as repository:
        yield repository


@pytest.fixture
def version(repository: Repository, tmp_path: Path) -> Version:
    image = tmp_path / "image"
    image.write_bytes(IMAGE)
    return back_up(repository, image).version


@pytest.fixture
def blob(repository: Repository, version: Version) -> Blob:
    return blob_of(repository, version, 1)


def spied(repository: Repository) -> tuple[PieceLoader, ReadStorage]:
    spy = ReadStorage(repository.blocks.storage)
    return PieceLoader(replace(repository.blocks, storage=spy)), spy


def part(first: int, count: int = 1) -> bytes:
    """Return segments of block 1."""
    return IMAGE[BLOCK + first * SEGMENT : BLOCK + (first + count) * SEGMENT]


def test_a_blob_of_version_2_has_pieces_of_256_kib(repository: Repository, version: Version) -> None:
    blobs = [blob_of(repository, version, index) for index in range(3)]
    assert [blob.encryption_version for blob in blobs] == [2, 2, 2]
    assert [piece_bytes(blob) for blob in blobs] == [SEGMENT, SEGMENT, SEGMENT]
    assert piece_bytes(replace(blobs[0], size=4096)) == 4096


@pytest.mark.parametrize("number", [0, 1])
def test_a_blob_of_another_version_is_one_piece(tmp_path: Path, number: int) -> None:
    image = tmp_path / "image"
    image.write_bytes(IMAGE)
    with repository_of(tmp_path, number) as repository:
        blob = blob_of(repository, back_up(repository, image).version, 0)
        loader, spy = spied(repository)
        assert piece_bytes(blob) == BLOCK
        assert loader.load(blob, range(1)) == [IMAGE[:BLOCK]]
        assert spy.read == ["whole"]


def test_a_piece_is_one_read_of_the_table_and_one_of_its_segment(repository: Repository, blob: Blob) -> None:
    loader, spy = spied(repository)
    assert loader.load(blob, range(1, 2)) == [part(1)]
    assert spy.read == [(0, TABLE), (TABLE + SEGMENT + 16, SEGMENT + 16)]


def test_the_table_is_read_once(repository: Repository, blob: Blob) -> None:
    loader, spy = spied(repository)
    loader.load(blob, range(1, 2))
    del spy.read[:]
    assert loader.load(blob, range(2, 4)) == [part(2), part(3)]
    assert spy.read == [(TABLE + 2 * (SEGMENT + 16), 2 * (SEGMENT + 16))]


def test_all_pieces_are_one_read(repository: Repository, blob: Blob) -> None:
    loader, spy = spied(repository)
    assert b"".join(loader.load(blob, range(4))) == part(0, 4)
    assert spy.read == ["whole"]


def test_damage_is_an_error_only_in_the_pieces_it_touches(repository: Repository, blob: Blob) -> None:
    flip_a_byte(file_of(repository, blob))  # in the middle: segment 1 or 2
    loader, _ = spied(repository)
    assert loader.load(blob, range(1)) == [part(0)]
    assert loader.load(blob, range(3, 4)) == [part(3)]
    for pieces in (range(1, 3), range(4)):
        with pytest.raises(IntegrityError, match=rf"^blob {blob.uid} fails authentication"):
            loader.load(blob, pieces)
    with pytest.raises(IntegrityError, match=rf"^blob {blob.uid} fails authentication"):
        load_block(repository.blocks, blob)


def test_a_damaged_table_is_read_again(repository: Repository, blob: Blob) -> None:
    file = file_of(repository, blob)
    sound = file.read_bytes()
    file.write_bytes(bytes((sound[0] ^ 1,)) + sound[1:])
    loader, _ = spied(repository)
    with pytest.raises(IntegrityError, match=rf"^blob {blob.uid} fails authentication"):
        loader.load(blob, range(1))
    file.write_bytes(sound)
    assert loader.load(blob, range(1)) == [part(0)]


def test_the_object_of_another_blob_is_refused(repository: Repository, version: Version, blob: Blob) -> None:
    os.replace(file_of(repository, blob_of(repository, version, 0)), file_of(repository, blob))
    loader, _ = spied(repository)
    with pytest.raises(IntegrityError, match=rf"^blob {blob.uid} fails authentication"):
        loader.load(blob, range(1))


def test_a_missing_object_is_reported_as_missing(repository: Repository, blob: Blob) -> None:
    file_of(repository, blob).unlink()
    loader, _ = spied(repository)
    for pieces in (range(1), range(4)):
        with pytest.raises(ObjectMissingError):
            loader.load(blob, pieces)


class Remote(ForwardingStorage):
    """A storage behind a network that records what is read from it, together or not."""

    def __init__(self, storage: Storage) -> None:
        super().__init__(storage)
        self.read: list[list[range]] = []

    @property
    def traits(self) -> Traits:
        return replace(super().traits, requests=8)

    def get_range(self, key: Key, offset: int, length: int) -> bytes:
        self.read.append([range(offset, offset + length)])
        return super().get_range(key, offset, length)

    def get_ranges(self, key: Key, wanted: Sequence[range]) -> list[bytes]:
        self.read.append(list(wanted))
        return super().get_ranges(key, wanted)


def remote(repository: Repository) -> tuple[PieceLoader, Remote]:
    storage = Remote(repository.blocks.storage)
    return PieceLoader(replace(repository.blocks, storage=storage)), storage


def test_behind_a_network_the_table_and_a_segment_take_one_round_trip(repository: Repository, blob: Blob) -> None:
    loader, storage = remote(repository)
    assert loader.load(blob, range(2, 3)) == [part(2)]
    [[table, segment]] = storage.read
    assert table == range(TABLE)
    assert len(segment) <= 288 << 10
    assert loader.load(blob, range(1, 2)) == [part(1)]
    assert storage.read[1:] == [[range(TABLE + SEGMENT + 16, TABLE + 2 * (SEGMENT + 16))]]  # the table is known


def test_behind_a_network_the_first_segment_is_read_with_the_table(repository: Repository, blob: Blob) -> None:
    loader, storage = remote(repository)
    assert loader.load(blob, range(1)) == [part(0)]
    assert storage.read == [[range(TABLE + SEGMENT + 16)]]


@pytest.mark.parametrize(
    ("image", "requests"),
    [
        (bytes(BLOCK - 1) + b"x", 1),  # the whole object is small
        (IMAGE[: 2 * SEGMENT] + bytes(2 * SEGMENT), 2),  # two segments are empty: the others are not where expected
    ],
    ids=["small", "uneven"],
)
def test_behind_a_network_a_block_of_any_content_is_read(
    repository: Repository, tmp_path: Path, image: bytes, requests: int
) -> None:
    file = tmp_path / "uneven"
    file.write_bytes(image)
    blob = blob_of(repository, back_up(repository, file).version, 0)
    for number in range(4):
        loader, storage = remote(repository)
        assert loader.load(blob, range(number, number + 1)) == [image[number * SEGMENT : (number + 1) * SEGMENT]]
        assert len(storage.read) <= requests


def test_a_blob_without_a_known_size_is_read_as_from_a_disk(repository: Repository, blob: Blob) -> None:
    loader, storage = remote(repository)
    assert loader.load(replace(blob, stored_size=None), range(1, 2)) == [part(1)]
    assert storage.read == [[range(TABLE)], [range(TABLE + SEGMENT + 16, TABLE + 2 * (SEGMENT + 16))]]


@pytest.mark.parametrize("says", [100, 4 * BLOCK])
def test_a_wrong_size_in_the_database_costs_a_request(repository: Repository, blob: Blob, says: int) -> None:
    loader, _ = remote(repository)
    for number in range(4):
        assert loader.load(replace(blob, stored_size=says), range(number, number + 1)) == [part(number)]


class Liar(ForwardingStorage):
    """A storage that returns wrong bytes for some time."""

    answers = 0  # that are wrong, from now on

    def get(self, key: Key, *, most: int = MAX_OBJECT_BYTES) -> Buffer:
        return self._lie(bytes(super().get(key, most=most)))

    def get_range(self, key: Key, offset: int, length: int) -> bytes:
        return self._lie(super().get_range(key, offset, length))

    def _lie(self, content: bytes) -> bytes:
        self.answers -= 1
        return content if self.answers < 0 else b"<?xml version='1.0'?><Error/>"


def cached_liar(repository: Repository, tmp_path: Path) -> tuple[BlockStore, Liar]:
    liar = Liar(repository.blocks.storage)
    storage = cached(liar, str(tmp_path / "cache"), size_bytes=1 << 30, repository=repository.uid)
    return replace(repository.blocks, storage=storage), liar


@pytest.mark.parametrize("pieces", [range(1, 2), range(4)])
def test_wrong_bytes_that_a_storage_returned_once_are_read_again(
    repository: Repository, blob: Blob, tmp_path: Path, pieces: range
) -> None:
    blocks, liar = cached_liar(repository, tmp_path)
    liar.answers = 1
    assert b"".join(PieceLoader(blocks).load(blob, pieces)) == part(pieces.start, len(pieces))
    liar.answers = 1
    assert load_block(blocks, blob) == part(0, 4)


def test_a_blob_that_is_repaired_is_not_damaged_in_the_cache(
    repository: Repository, blob: Blob, tmp_path: Path
) -> None:
    blocks, liar = cached_liar(repository, tmp_path)
    loader = PieceLoader(blocks)
    liar.answers = 1000
    for _ in range(2):
        with pytest.raises(IntegrityError):
            loader.load(blob, range(1, 2))
        with pytest.raises(IntegrityError):
            load_block(blocks, blob)
    liar.answers = 0
    assert loader.load(blob, range(1, 2)) == [part(1)]
    assert load_block(blocks, blob) == part(0, 4)


def test_every_block_gets_its_own_data_key(repository: Repository) -> None:
    same = [(BlobUid(f"abcd{number:028x}"), b"", b"one and the same block") for number in range(100)]
    saved = [*save_blocks(repository.blocks, same), *save_blocks(repository.blocks, [(BlobUid("ef" * 16), b"", b"")])]
    unwrap = repository.blocks.keyring.unwrap
    assert len({unwrap(blob.wrapped_key) for blob in saved}) == 101


def test_whole_blocks_have_the_bytes_of_the_image(repository: Repository, version: Version) -> None:
    blocks = [load_block(repository.blocks, blob_of(repository, version, index)) for index in range(3)]
    assert b"".join(blocks) == IMAGE


@pytest.mark.parametrize(
    ("offset", "size"),
    [(0, 4096), (SEGMENT - 10, 20), (BLOCK - 1, 2), (BLOCK + 5, 3 * SEGMENT), (0, len(IMAGE)), (len(IMAGE) - 7, 7)],
)
def test_a_mount_reads_any_part_of_the_image(
    repository: Repository, version: Version, offset: int, size: int
) -> None:
    async def read(job: Job) -> bytes:
        contents = Contents.of(repository, job, Settings())
        file = await contents.images.open(version, 0, version.size_bytes)
        try:
            return bytes(await file.read(offset, size))
        finally:
            await contents.images.close(file)

    with Job(repository.database, spec("mount")) as job:
        assert trio.run(read, job) == IMAGE[offset : offset + size]


def test_a_small_read_loads_one_piece_and_a_sequential_reader_whole_blocks_ahead(
    repository: Repository, version: Version
) -> None:
    async def main(job: Job) -> None:
        contents = Contents.of(repository, job, Settings())
        file = await contents.images.open(version, 0, version.size_bytes)
        cache = contents.cache
        file.reader.image.page(PageNumber(0))  # so read-ahead does not wait for the database
        await file.read(BLOCK // 2, 4096)  # near the beginning, so taken as sequential
        while cache._loads:  # noqa: ASYNC110 - nobody waits for them
            await trio.sleep(0.001)
        assert (cache.loads, cache.loads_ahead) == (1, 1)
        ahead = blob_of(repository, version, 1)
        assert [cache.peek(ahead, number) for number in range(4)] == [part(number) for number in range(4)]
        await contents.images.close(file)

    with Job(repository.database, spec("mount")) as job:
        trio.run(main, job)
