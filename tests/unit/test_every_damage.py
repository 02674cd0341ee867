"""Each kind of damage: scrub reports it; restore and mount return the rest and report exactly what is unavailable."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
import trio
from sqlalchemy import delete, insert, select, update

from backyfs.engine.restore.restore import restore
from backyfs.errors import BackyfsError
from backyfs.geometry import PAGE_ENTRIES
from backyfs.metadata.db.tables import blob_refs, blobs, pages, version_pages, versions
from backyfs.metadata.maps.blockmap import list_pages, load_page, pack
from backyfs.model import PageNumber, VersionStatus
from backyfs.mount.contents import Contents
from backyfs.mount.settings import Settings
from backyfs.work.job import Job
from tests.support.images import random_bytes
from tests.support.jobs import spec
from tests.support.repositories import back_up, make_repository, opened
from tests.support.stored import blob_of, file_of, flip_a_byte, truncate
from tests.unit.test_scrub import scrubbed, status, swap

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from backyfs.model import Version
    from backyfs.repository import Repository

pytestmark = pytest.mark.slow

BLOCK = 512
BLOCKS = PAGE_ENTRIES + 6
TAIL = 100  # bytes of the last block
SIZE = (BLOCKS - 1) * BLOCK + TAIL
PAGE_BYTES = PAGE_ENTRIES * BLOCK
HOLES = range(10, 900)  # blocks


@dataclass(frozen=True)
class Damaged:
    """One kind of damage, and the bytes of the image it costs."""

    inject: Callable[[Repository, Version], None]
    lost: list[tuple[int, int]]  # bytes of the image, in order
    words: str                   # in the message of scrub
    restore_words: str = ""      # in the message of restore, if different

    @property
    def is_of_objects(self) -> bool:
        return self.words in {"blob", "is missing"}


def block(index: int) -> tuple[int, int]:
    return index * BLOCK, min((index + 1) * BLOCK, SIZE)


def of_file(change: Callable[[Path], object], index: int) -> Callable[[Repository, Version], None]:
    def change_file(repository: Repository, version: Version) -> None:
        change(file_of(repository, blob_of(repository, version, index)))

    return change_file


def lengthen(file: Path) -> None:
    with file.open("ab") as stored:
        stored.write(b"more")


def swap_two(repository: Repository, version: Version) -> None:
    swap(*(file_of(repository, blob_of(repository, version, index)) for index in (3, 1000)))


def take_row(repository: Repository, version: Version) -> None:
    blob = blob_of(repository, version, 3)
    with repository.database.write() as connection:
        connection.execute(delete(blob_refs).where(blob_refs.c.blob_id == blob.id))
        connection.execute(delete(blobs).where(blobs.c.id == blob.id))


def name_another(repository: Repository, version: Version) -> None:
    """Make the page name another blob in place of this one, with a correct digest."""
    change_page(repository, version, blob_of(repository, version, 3).id, blob_of(repository, version, BLOCKS - 1).id)


def change_page(repository: Repository, version: Version, before: int, after: int) -> None:
    from blake3 import blake3

    with repository.database.write() as connection:
        entries = load_page(connection, version.id, PageNumber(0))
        assert entries is not None
        entries[entries.index(before)] = after
        new = {"entries": pack(entries), "digest": blake3(entries.tobytes()).digest()}
        (_, page_id), *_ = list_pages(connection, version.id)
        connection.execute(update(pages).where(pages.c.id == page_id).values(**new))


def set_size(size: int) -> Callable[[Repository, Version], None]:
    def change(repository: Repository, version: Version) -> None:
        with repository.database.write() as connection:
            connection.execute(update(versions).where(versions.c.id == version.id).values(size_bytes=size))

    return change


def set_page(number: int, **values: bytes) -> Callable[[Repository, Version], None]:
    def change(repository: Repository, version: Version) -> None:
        with repository.database.write() as connection:
            page_id = list_pages(connection, version.id)[number][1]
            connection.execute(update(pages).where(pages.c.id == page_id).values(**values))

    return change


def add_page(repository: Repository, version: Version) -> None:
    with repository.database.write() as connection:
        (_, page_id), *_ = list_pages(connection, version.id)
        connection.execute(insert(version_pages).values(version_id=version.id, page_no=7, page_id=page_id))
        connection.execute(update(pages).where(pages.c.id == page_id).values(refs=2))


FIRST_PAGE = [(0, PAGE_BYTES)]
LAST_PAGE = [(PAGE_BYTES, SIZE)]
DAMAGES = {
    "an object is missing": Damaged(of_file(lambda file: file.unlink(), 3), [block(3)], "is missing"),
    "an object is short": Damaged(of_file(truncate, 3), [block(3)], "blob"),
    "an object is empty": Damaged(of_file(lambda file: file.write_bytes(b""), 3), [block(3)], "blob"),
    "an object is long": Damaged(of_file(lengthen, BLOCKS - 1), [block(BLOCKS - 1)], "blob"),
    "a bit is flipped": Damaged(of_file(flip_a_byte, 1000), [block(1000)], "blob"),
    "objects are swapped": Damaged(swap_two, [block(3), block(1000)], "blob"),
    "a blob has no row": Damaged(take_row, [block(3)], "has no row", "does not have"),
    "a page names a blob of another size": Damaged(name_another, [block(3)], "has 100 bytes where the image has 512"),
    "a page is not a page": Damaged(set_page(0, entries=b"junk"), FIRST_PAGE, "page of a block map is damaged"),
    "a page is cut short": Damaged(set_page(1, entries=b""), LAST_PAGE, "page of a block map is damaged"),
    "a page has another digest": Damaged(set_page(1, digest=b"x" * 32), LAST_PAGE, "its digest differs"),
}  # fmt: skip


@pytest.fixture(params=[True, False], ids=["encrypted", "plain"])
def repository(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Repository]:
    config = make_repository(tmp_path / "repository", block_size=BLOCK, encrypted=request.param)
    with opened(config) as repository:
        yield repository


@pytest.fixture
def image(tmp_path: Path) -> bytes:
    content = bytearray(random_bytes(SIZE))
    content[HOLES.start * BLOCK : HOLES.stop * BLOCK] = bytes(len(HOLES) * BLOCK)
    (tmp_path / "image").write_bytes(content)
    return bytes(content)


def without(content: bytes, lost: list[tuple[int, int]]) -> bytes:
    rest = bytearray(content)
    for start, stop in lost:
        rest[start:stop] = bytes(stop - start)
    return bytes(rest)


def merged(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for start, stop in sorted(ranges):
        if found and found[-1][1] == start:
            found[-1] = (found[-1][0], stop)
        else:
            found.append((start, stop))
    return found


def mounted_bytes(repository: Repository, version: Version) -> tuple[bytes, list[tuple[int, int]]]:
    """Read an image block by block, as a mount does; return its bytes and the ranges with errors."""

    async def read() -> tuple[bytes, list[tuple[int, int]]]:
        content, lost = bytearray(), []
        with Job(repository.database, spec("mount")) as job:
            contents = Contents.of(repository, job, Settings())
            file = await contents.images.open(version, 0, version.size_bytes)
            for start in range(0, SIZE, BLOCK):
                length = min(BLOCK, SIZE - start)
                try:
                    content += await file.read(start, length)
                except BackyfsError:
                    content += bytes(length)
                    lost.append((start, start + length))
            await contents.images.close(file)
        return bytes(content), merged(lost)

    return trio.run(read)


@pytest.mark.parametrize("kind", DAMAGES)
def test_everything_except_the_damage_can_be_read(
    repository: Repository, tmp_path: Path, image: bytes, kind: str
) -> None:
    damage = DAMAGES[kind]
    version = back_up(repository, tmp_path / "image").version
    damage.inject(repository, version)

    # A restore finds it before any scrub has marked it, and marks unavailable objects.
    report = restore(repository, version, str(tmp_path / "out"))
    assert merged([(lost.start, lost.stop) for lost in report.damaged]) == damage.lost
    assert all((damage.restore_words or damage.words) in lost.reason for lost in report.damaged)
    assert (tmp_path / "out").read_bytes() == without(image, damage.lost)
    marked = VersionStatus.INVALID if damage.is_of_objects else VersionStatus.VALID
    assert status(repository, version) is marked
    # A mount reads only the segments of a block, which are intact and have their own tags, not the bytes after them.
    is_had = kind == "an object is long" and repository.blocks.encryption_version == 2
    mount_lost = [] if is_had else damage.lost
    assert mounted_bytes(repository, version) == (without(image, mount_lost), mount_lost)

    found, reported = scrubbed(repository)
    assert merged([line[1:3] for line in reported]) == damage.lost
    assert all(line[0] == version.uid and damage.words in line[3] for line in reported)
    assert found.versions_invalid == (() if damage.is_of_objects else (version.uid,))
    assert status(repository, version) is VersionStatus.INVALID
    assert scrubbed(repository, version)[1] == reported


@pytest.mark.parametrize(
    ("inject", "lost", "words"),
    [
        (set_size(SIZE + 1), block(BLOCKS - 1), "has 100 bytes where the image has 101"),
        (set_size(SIZE - 1), block(BLOCKS - 1), "has 100 bytes where the image has 99"),
        (set_size(SIZE - TAIL), (PAGE_BYTES, SIZE - TAIL), "has 6 blocks where the image has 5"),
        (set_size(SIZE + BLOCK), (PAGE_BYTES, SIZE + BLOCK), "has 6 blocks where the image has 7"),
        (set_size(PAGE_BYTES), (PAGE_BYTES, PAGE_BYTES + 6 * BLOCK), "beyond the end"),
        (add_page, (7 * PAGE_BYTES, 8 * PAGE_BYTES), "beyond the end"),
    ],
)
@pytest.mark.parametrize("repository", [False], indirect=True, ids=["plain"])
def test_a_size_that_does_not_match_the_block_map_is_found(repository, tmp_path, image, inject, lost, words):
    version = back_up(repository, tmp_path / "image").version
    inject(repository, version)
    report, reported = scrubbed(repository)
    assert len(reported) == 1
    assert reported[0][1] == lost[0]
    assert words in reported[0][3]
    assert report.bytes_unknown > 0
    assert report.versions_invalid == (version.uid,)
    assert scrubbed(repository)[0].versions_valid == ()


@pytest.mark.parametrize("repository", [False], indirect=True, ids=["plain"])
def test_wrong_counts_are_found_if_all_versions_are_checked(repository, tmp_path, image):
    version = back_up(repository, tmp_path / "image").version
    assert scrubbed(repository)[0].references_right
    with repository.database.write() as connection:
        first = connection.execute(select(blob_refs.c.blob_id)).scalars().first()
        connection.execute(update(blob_refs).where(blob_refs.c.blob_id == first).values(refs=0))
    assert scrubbed(repository)[0].references_right is False
    assert scrubbed(repository, version)[0].references_right is None


@pytest.mark.parametrize("repository", [False], indirect=True, ids=["plain"])
def test_the_rest_is_checked_if_a_page_is_damaged(repository, tmp_path, image):
    version = back_up(repository, tmp_path / "image").version
    other = back_up(repository, tmp_path / "image", "other").version
    flip_a_byte(file_of(repository, blob_of(repository, version, BLOCKS - 2)))
    set_page(0, entries=b"junk")(repository, version)
    for chosen in ([version, other], []):
        report, reported = scrubbed(repository, *chosen)
        assert (report.blobs_damaged, report.bytes_unknown) == (1, 2 * PAGE_BYTES)
        assert sorted(line[:3] for line in reported) == sorted(
            (one.uid, *lost) for one in (version, other) for lost in [*FIRST_PAGE, block(BLOCKS - 2)]
        )
    assert report.references_right is None


@pytest.mark.parametrize("repository", [False], indirect=True, ids=["plain"])
def test_a_repaired_page_makes_its_version_valid(repository, tmp_path, image):
    version = back_up(repository, tmp_path / "image").version
    with repository.database.read() as connection:
        digest = connection.execute(select(pages.c.digest).order_by(pages.c.id)).scalars().first()
    set_page(0, digest=b"x" * 32)(repository, version)
    assert scrubbed(repository)[0].versions_invalid == (version.uid,)
    set_page(0, digest=digest)(repository, version)
    assert scrubbed(repository)[0].versions_valid == (version.uid,)
